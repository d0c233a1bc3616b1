"""Nodes that keep to the rules: gates to stop a job at a known point, resident objects, output memory."""

import ctypes
import time
from functools import partial

import torch

from vortex_worker.executor import AbstractExecutor, Param, Port

_getpid = ctypes.CDLL(None).getpid


class Gate(AbstractExecutor):
    """Runs until its input, which lies in shared memory, is set by the test; lets itself be cancelled."""

    op_type = "Gate"
    input_ports = (Port("gate", "TENSOR"), Port("tensor", "*", optional=True))
    output_ports = (Port("tensor", "*"), Port("pid", "INT"))

    def execute(self, inputs, params):
        while not inputs["gate"].item():
            self.context.progress(1, 2, "waiting")
            time.sleep(0.002)
        self.context.progress(2, 2)
        return {"tensor": inputs.get("tensor"), "pid": _getpid()}


class DeafGate(AbstractExecutor):
    """The same, but after its first report it hears no cancellation and looks at no deadline."""

    op_type = "DeafGate"
    input_ports = (Port("gate", "TENSOR"),)
    output_ports = (Port("pid", "INT"),)

    def execute(self, inputs, params):
        self.context.progress(1, 2)
        while not inputs["gate"].item():
            time.sleep(0.002)
        return {"pid": _getpid()}


class TidyGate(AbstractExecutor):
    """Looks whether it is cancelled, and ends in its own way."""

    op_type = "TidyGate"
    output_ports = (Port("pid", "INT"),)

    def execute(self, inputs, params):
        self.context.progress(1, 2)
        while not self.context.cancelled:
            time.sleep(0.002)
        return {"pid": _getpid()}


class Nap(AbstractExecutor):
    """Sleeps, and reports nothing."""

    op_type = "Nap"
    params = (Param("seconds", "FLOAT", minimum=0.0, maximum=1.0),)

    def execute(self, inputs, params):
        time.sleep(params["seconds"])
        return {}


class Steps(AbstractExecutor):
    """Reports every step."""

    op_type = "Steps"
    output_ports = (Port("steps", "INT"),)
    params = (Param("steps", "INT", minimum=1, maximum=1000),)

    def execute(self, inputs, params):
        for step in range(params["steps"]):
            self.context.progress(step, params["steps"], f"step {step}")
        self.context.progress(params["steps"], params["steps"])
        return {"steps": params["steps"]}


class Show(AbstractExecutor):
    """Shows each step of what it makes, in the way it is asked to."""

    op_type = "Show"
    input_ports = (Port("tensor", "TENSOR", optional=True),)
    output_ports = (Port("tensor", "TENSOR"), Port("made", "INT"))
    params = (
        Param("steps", "INT", minimum=1, maximum=1_000_000),
        Param("size", "INT", default=4),
        Param("way", "CHOICE", default="tensor", choices=("tensor", "function", "input", "rubbish")),
    )

    def execute(self, inputs, params):
        made = []

        def make(step):
            made.append(step)
            return torch.full((params["size"],), float(step))

        for step in range(1, params["steps"] + 1):
            if params["way"] == "tensor":
                preview = make(step)
            elif params["way"] == "function":
                preview = partial(make, step)
            else:
                preview = inputs["tensor"][1:] if params["way"] == "input" else "a picture"
            self.context.progress(step, params["steps"], preview=preview)
        return {"tensor": torch.full((params["size"],), float(params["steps"])), "made": len(made)}


class MakeBox(AbstractExecutor):
    """A resident object: stays in this worker."""

    op_type = "MakeBox"
    input_ports = (Port("tensor", "TENSOR", optional=True),)
    output_ports = (Port("box", "BOX"), Port("pid", "INT"))
    params = (Param("value", "FLOAT", default=1.0),)

    def execute(self, inputs, params):
        value = torch.tensor(params["value"]) + inputs.get("tensor", torch.tensor(0.0))
        return {"box": {"value": value, "uses": 0}, "pid": _getpid()}


class MakeSlowBox(AbstractExecutor):
    """The same, once its gate is open."""

    op_type = "MakeSlowBox"
    input_ports = (Port("gate", "TENSOR"),)
    output_ports = (Port("box", "BOX"),)

    def execute(self, inputs, params):
        while not inputs["gate"].item():
            self.context.progress(1, 2)
            time.sleep(0.002)
        return {"box": {"value": torch.tensor(1.0), "uses": 0}}


class WrapBox(AbstractExecutor):
    """An object made from an object: its lineage has two steps."""

    op_type = "WrapBox"
    input_ports = (Port("box", "BOX"),)
    output_ports = (Port("box", "BOX"),)

    def execute(self, inputs, params):
        return {"box": {"value": inputs["box"]["value"] * 10, "uses": 0}}


class OpenBox(AbstractExecutor):
    """What is in an object; how often it was opened tells whether it is still the same one."""

    op_type = "OpenBox"
    input_ports = (Port("box", "BOX"), Port("other", "BOX", optional=True), Port("gate", "TENSOR", optional=True))
    output_ports = (Port("value", "TENSOR"), Port("uses", "INT"), Port("pid", "INT"))

    def execute(self, inputs, params):
        while "gate" in inputs and not inputs["gate"].item():
            self.context.progress(1, 2)
            time.sleep(0.002)
        box = inputs["box"]
        box["uses"] += 1
        value = box["value"] + (inputs["other"]["value"] if "other" in inputs else 0)
        return {"value": value, "uses": box["uses"], "pid": _getpid()}


class Pid(AbstractExecutor):
    """Which process runs the job."""

    op_type = "Pid"
    output_ports = (Port("pid", "INT"),)

    def execute(self, inputs, params):
        return {"pid": _getpid()}


class InPlaceOnCopy(AbstractExecutor):
    """Writes to its input, as it says: it gets a copy."""

    op_type = "InPlaceOnCopy"
    input_ports = (Port("tensor", "TENSOR"), Port("nested", "*", optional=True))
    output_ports = (Port("tensor", "TENSOR"),)
    mutates_inputs = True

    def execute(self, inputs, params):
        inputs["tensor"].add_(1)
        for tensor in inputs.get("nested", {}).values():
            tensor.add_(1)
        return {"tensor": inputs["tensor"]}


class Fill(AbstractExecutor):
    """An output made where it will be handed over, or elsewhere."""

    op_type = "Fill"
    output_ports = (Port("tensor", "TENSOR"),)
    params = (
        Param("count", "INT", minimum=0),
        Param("value", "FLOAT", default=0.0),
        Param("copy", "BOOLEAN", default=False),
    )

    def execute(self, inputs, params):
        make = torch.empty if params["copy"] else self.context.empty
        return {"tensor": make((params["count"],), dtype=torch.float32).fill_(params["value"])}


class Views(AbstractExecutor):
    """Two views of one input, one of them strided, and a nested one."""

    op_type = "Views"
    input_ports = (Port("tensor", "TENSOR"),)
    output_ports = (Port("half", "TENSOR"), Port("transposed", "TENSOR"), Port("nested", "*"))

    def execute(self, inputs, params):
        tensor = inputs["tensor"]
        return {"half": tensor[: len(tensor) // 2], "transposed": tensor.T, "nested": {"list": [tensor, 1, None]}}


class Talk(AbstractExecutor):
    """Floods its log."""

    op_type = "Talk"
    output_ports = (Port("lines", "INT"),)
    params = (Param("lines", "INT", default=20_000),)

    def execute(self, inputs, params):
        for line in range(params["lines"]):
            print(f"line {line} " + "x" * 80, flush=True)
        print("\x1b[31m\x00\xff" * 1000 + "y" * 1_000_000, end="", flush=True)  # one endless line, with no end
        return {"lines": params["lines"]}


class Draw(AbstractExecutor):
    """Random numbers nobody seeded, once the gate is open."""

    op_type = "Draw"
    input_ports = (Port("gate", "TENSOR"),)
    output_ports = (Port("torch", "*"), Port("numpy", "*"), Port("python", "*"), Port("pid", "INT"))

    def execute(self, inputs, params):
        import random

        import numpy

        while not inputs["gate"].item():
            self.context.progress(1, 2)
            time.sleep(0.002)
        return {
            "torch": torch.rand(4).tolist(), "numpy": numpy.random.rand(4).tolist(), "python": random.random(),
            "pid": _getpid(),
        }  # fmt: skip


class Multiply(AbstractExecutor):
    """A matrix product large enough for every thread."""

    op_type = "Multiply"
    output_ports = (Port("tensor", "TENSOR"),)
    params = (Param("size", "INT"),)

    def execute(self, inputs, params):
        square = torch.ones(params["size"], params["size"])
        return {"tensor": square @ square}


class Leak(AbstractExecutor):
    """Keeps memory after its end."""

    op_type = "Leak"
    output_ports = (Port("count", "INT"),)
    params = (Param("bytes", "INT"),)
    kept = ()

    def execute(self, inputs, params):
        Leak.kept = (*Leak.kept, torch.ones(params["bytes"], dtype=torch.uint8))
        return {"count": params["bytes"]}


class ImportByName(AbstractExecutor):
    """Import a module."""

    op_type = "ImportByName"
    output_ports = (Port("name", "STRING"),)
    params = (Param("name", "STRING"),)

    def execute(self, inputs, params):
        return {"name": __import__(params["name"]).__name__}


class ImageStack(AbstractExecutor):
    """Two pictures as one batch."""

    op_type = "ImageStack"
    input_ports = (Port("a", "IMAGE"), Port("b", "IMAGE"))
    output_ports = (Port("image", "IMAGE"),)

    def execute(self, inputs, params):
        import torch

        return {"image": torch.cat((inputs["a"], inputs["b"]))}
