"""What untrusted code may ask of the kernel, and the courtesy of telling it beforehand.

    policy.py       a system-call policy, read from TOML and checked
    seccomp.py      a policy → the program that the kernel runs
    landlock.py     which files may be read
    preload.py      what is imported before lockdown, because it can't be afterwards
    import_hook.py  clear errors for custom nodes (not a boundary)
    macos.py        systems without seccomp
    policies/       bootstrap, execute, strict

Installing is ``_core.lockdown``'s work; the order of the locks is in ``main.py``. Imports only ``errors`` and ``_core``.
"""
