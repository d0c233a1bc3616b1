"""Nodes for the chaos suite: right results that can be told from wrong ones, and ways to die."""

import ctypes
import threading
import time

import torch

from vortex_worker.executor import AbstractExecutor, Param, Port


class Work(AbstractExecutor):
    """A tensor that only this seed and this input give."""

    op_type = "Work"
    input_ports = (Port("tensor", "TENSOR"),)
    output_ports = (Port("tensor", "TENSOR"), Port("number", "INT"))
    params = (Param("number", "INT"),)

    def execute(self, inputs, params):
        self.context.progress(1, 2)
        return {"tensor": inputs["tensor"] * params["number"], "number": params["number"]}


class Wait(AbstractExecutor):
    """Runs until its input, in shared memory, is set."""

    op_type = "Wait"
    input_ports = (Port("gate", "TENSOR"),)
    output_ports = (Port("tensor", "TENSOR"),)

    def execute(self, inputs, params):
        while not inputs["gate"].item():
            self.context.progress(1, 2)
            time.sleep(0.002)
        return {"tensor": torch.ones(1)}


class Thing:
    def __init__(self, number):
        self.values = torch.full((1000,), float(number))


class Make(AbstractExecutor):
    """An object that stays in its worker."""

    op_type = "Make"
    output_ports = (Port("thing", "THING"),)
    params = (Param("number", "INT"),)

    def execute(self, inputs, params):
        return {"thing": Thing(params["number"])}


class Use(AbstractExecutor):
    """What was made, and the input."""

    op_type = "Use"
    input_ports = (Port("thing", "THING"), Port("tensor", "TENSOR"))
    output_ports = (Port("tensor", "TENSOR"),)

    def execute(self, inputs, params):
        return {"tensor": inputs["thing"].values + inputs["tensor"].sum()}


class Poison(AbstractExecutor):
    """Ends its process."""

    op_type = "Poison"
    output_ports = ()
    params = (Param("how", "STRING"),)

    def execute(self, inputs, params):
        libc = ctypes.CDLL(None)
        if params["how"] == "segv":
            ctypes.string_at(8)
        elif params["how"] == "socket":
            libc.socket(2, 1, 0)
        elif params["how"] == "raise":
            raise RuntimeError("as asked")
        return {}


class Mine(AbstractExecutor):
    """Makes a denied system call at a random moment, when other jobs run in its process, or none."""

    op_type = "Mine"
    output_ports = ()
    params = (Param("seconds", "FLOAT"),)

    def execute(self, inputs, params):
        libc = ctypes.CDLL(None)
        threading.Timer(params["seconds"], lambda: libc.socket(2, 1, 0)).start()
        return {}


class Hog(AbstractExecutor):
    """Takes more memory than its worker may have."""

    op_type = "Hog"
    output_ports = ()

    def execute(self, inputs, params):
        torch.zeros(16 << 30, dtype=torch.uint8)
        return {}
