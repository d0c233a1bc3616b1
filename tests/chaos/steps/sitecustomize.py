"""Deaths at named steps of a worker's life, for ``test_steps``. The product knows nothing of this file.

Python imports it when it starts, where its folder is in PYTHONPATH: here, in the zygote. That appends a line for each
fork to a file, which outlives it. Every second worker is to end at the next of the steps in turn: by a fault of
its own, or by standing still there until the test kills it.

A step is ``when module:name #n``: before or after the n-th call of that function; or ``fork`` itself, in the child;
or ``before fork`` and ``after fork`` in the zygote.
"""

import ctypes
import importlib
import itertools
import os
import re
import signal
import time

FILE = os.environ.get("PYTHON_VORTEX_STEPS_FILE", "")
STEPS = os.environ.get("PYTHON_VORTEX_STEPS", "").split(",")


def next_step():
    """The step at which the worker of this fork is to end, and how; ("", "") if it is to live."""
    with open(FILE, "a+") as file:
        file.seek(0)
        count = len(file.readlines())
        turn = count // 2
        step = STEPS[turn % len(STEPS)] if count % 2 else ""
        how = ("falls", "stands")[turn // len(STEPS) % 2] if step and "fork" not in step else "falls"
        file.write(f"{how} at {step}\n" if step else "\n")
    return step, how


def end(step, how):
    os.write(2, f"{how} at {step}, pid {os.getpid()}\n".encode())
    while how == "stands":
        time.sleep(3600)
    ctypes.string_at(8)


def arm(step, how):
    """Make the step in question this process's last."""
    when, module, name, number = re.fullmatch(r"(before|after) ([\w.]+):([\w.]+) #(\d+)", step).groups()
    owner = importlib.import_module(module)
    *outer, name = name.split(".")
    for part in outer:
        owner = getattr(owner, part)
    real, calls = getattr(owner, name), itertools.count(1)

    def last(*args, **kwargs):
        now = next(calls) == int(number)
        if now and when == "before":
            end(step, how)
        result = real(*args, **kwargs)
        if now:
            end(step, how)
        return result

    setattr(owner, name, last)


class Fork:
    """What happens around each fork of the zygote."""

    step, how = "", ""

    @classmethod
    def before(cls):
        cls.step, cls.how = next_step()
        if cls.step == "before fork":
            os.kill(os.getpid(), signal.SIGKILL)

    @classmethod
    def in_parent(cls):
        if cls.step == "after fork":
            os.kill(os.getpid(), signal.SIGKILL)

    @classmethod
    def in_child(cls):
        if cls.step == "fork":
            os.kill(os.getpid(), signal.SIGKILL)
        if ":" in cls.step:
            arm(cls.step, cls.how)


if FILE and "VORTEX_ZYGOTE_FD" in os.environ:
    os.register_at_fork(before=Fork.before, after_in_parent=Fork.in_parent, after_in_child=Fork.in_child)
