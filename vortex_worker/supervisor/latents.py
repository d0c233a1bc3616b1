"""The client's half of the nodes on latent files: safetensors, as ComfyUI's SaveLatent writes them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vortex_worker.errors import ValidationError
from vortex_worker.executor.ports import OpSpec, Param, Port
from vortex_worker.supervisor.files import (
    LATENT,
    ClientNode,
    Place,
    check_extent,
    check_writable,
    new_files,
    read_input,
    whole,
)
from vortex_worker.supervisor.plain import as_json


def _read(params: Mapping[str, Any], place: Place) -> dict[str, Any]:
    return {"data": read_input(LATENT, params["latent"], place)}


def _place(params: Mapping[str, Any], place: Place) -> dict[str, Any]:
    check_writable(params["filename_prefix"], place)
    return dict(params)


def _save(inputs: Mapping[str, Any], params: Mapping[str, Any], place: Place) -> list[str]:
    import numpy as np
    from safetensors.numpy import save

    samples = inputs["samples"]["samples"]
    check_extent("samples", samples)
    try:
        array = np.ascontiguousarray(samples)
    except TypeError:  # NumPy has no bfloat16
        array = np.ascontiguousarray(samples.float())
    # The empty tensor tells latents of this form from the first ones, which were scaled.
    tensors = {"latent_tensor": array, "latent_format_version_0": np.zeros(0, np.float32)}
    metadata = {name: as_json(value) for name, value in {"prompt": place.prompt, **place.extra}.items() if value}
    try:
        with whole(next(new_files(params["filename_prefix"], ".latent", place))) as file:
            file.write(save(tensors, metadata))
    except OSError as error:
        raise ValidationError(f"latents can't be written to {place.output_dir!r}: {error.strerror}") from None
    return [file.name]


NODES: dict[str, ClientNode] = {
    "LoadLatent": ClientNode(
        OpSpec(
            "LoadLatent",
            outputs=(Port("latent", "LATENT"),),
            params=(Param("latent", "STRING", doc="file name, below the workflow's folder"),),
            source="builtin",
            doc="Read a latent file; it is decoded in the worker.",
        ),
        prepare=_read,
        names="latent",
    ),
    "SaveLatent": ClientNode(
        OpSpec(
            "SaveLatent",
            inputs=(Port("samples", "LATENT"),),
            params=(Param("filename_prefix", "STRING", default="latents/vortex", doc="as SaveImage's"),),
            source="builtin",
            doc="Write a latent as a safetensors file into the output folder.",
            output_node=True,
        ),
        prepare=_place,
        names="filename_prefix",
        finish=_save,
    ),
}
