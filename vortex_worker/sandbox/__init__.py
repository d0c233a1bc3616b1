"""What untrusted code may ask of the kernel, and the courtesy of telling it beforehand.

    policies/       bootstrap, execute, strict: TOML, to be read by people
    policy_file.py  reads one, and refuses what is not certain
    policy.py       a policy as data: what it says of a call
    seccomp.py      a policy → the program that the kernel runs
    bpf.py          evaluates such a program without a kernel
    matrix.py       holds policy, program and kernel against each other, call by call
    learning.py     what a policy lacks, learned from the calls that it denied
    landlock.py     which files may be read
    view.py         what exists: these, and the links that lead to them
    preload.py      what is imported before lockdown, because it can't be afterwards
    import_hook.py  clear errors for custom nodes (not a boundary)
    macos.py        systems without seccomp
    stages.py       a worker's three stages, in order, and the report of what holds

Installing is ``_core.lockdown``'s work; the order of the locks is in ``main.py``. Imports only ``errors``
and ``_core``.
"""
