"""A node that loads whatever it is pointed at, as nodes do."""

import safetensors.torch
import torch

from vortex_worker.executor import AbstractExecutor, Param, Port


class LoadCheckpoint(AbstractExecutor):
    """Loads a file and reads all of it. ``unsafe`` runs the code that a pickle may hold."""

    op_type = "LoadCheckpoint"
    output_ports = (Port("tensors", "INT"),)
    params = (Param("path", "STRING"), Param("unsafe", "BOOLEAN", default=False))

    def execute(self, inputs, params):
        path = params["path"]
        if path.endswith(".safetensors"):
            loaded = safetensors.torch.load_file(path)
        else:
            loaded = torch.load(path, weights_only=not params["unsafe"])
        tensors = [value for value in dict(loaded).values() if isinstance(value, torch.Tensor)]
        assert all(tensor.double().sum() is not None for tensor in tensors)
        return {"tensors": len(tensors)}
