"""Values go through a worker unchanged, of every kind and dtype."""

import numpy as np
import pytest
import torch


@pytest.mark.parametrize(
    "value",
    [
        None, True, False, 0, -1, 2**63 - 1, -(2**63), 2**64 - 1, 1.5, float("inf"), "", "text ☃", b"", b"\0\xff",
        [], {}, [1, [2.5, "x", None]], {"a": {"b": [True, b"z"]}, "": 0},
    ],
    ids=repr,
)  # fmt: skip
def test_plain_values_go_through_unchanged(fabric, value):
    out = fabric.run("Identity", {"tensor": value})["tensor"]
    assert out == value
    assert type(out) is type(value)


def test_nan_goes_through(fabric):
    out = fabric.run("Identity", {"tensor": float("nan")})["tensor"]
    assert out != out


DTYPES = [
    torch.bool, torch.uint8, torch.uint16, torch.uint32, torch.uint64, torch.int8, torch.int16, torch.int32,
    torch.int64, torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.float8_e4m3fn,
    torch.float8_e5m2, torch.complex64, torch.complex128,
]  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype_goes_through_bit_for_bit(fabric, dtype):
    bits = torch.arange(6 * 16, dtype=torch.uint8)
    if dtype is torch.bool:
        bits = bits % 2
    tensor = bits.view(dtype).reshape(6, -1)
    out = fabric.run("Identity", {"tensor": tensor})["tensor"]
    assert out.dtype is dtype
    assert out.shape == tensor.shape
    assert torch.equal(out.view(torch.uint8), tensor.view(torch.uint8))


@pytest.mark.parametrize(
    "tensor",
    [
        torch.tensor(3.0),
        torch.empty(0),
        torch.empty(2, 0, 3),
        torch.arange(24.0).reshape(2, 3, 4).permute(2, 0, 1),
        torch.arange(24.0)[::3],
        torch.arange(3.0).expand(5, 3),
        torch.arange(64.0)[1:],
        torch.arange(6.0, requires_grad=True),
        torch.nn.Parameter(torch.ones(3)),
        torch.arange(4.0).reshape([1] * 20 + [4]),
    ],
    ids=["scalar", "empty", "empty-3d", "permuted", "strided", "expanded", "offset", "grad", "parameter", "21-d"],
)
def test_every_form_of_tensor_goes_through(fabric, tensor):
    out = fabric.run("Identity", {"tensor": tensor})["tensor"]
    assert out.shape == tensor.shape
    assert torch.equal(out, tensor.detach())
    assert not out.requires_grad


def test_arrays_and_nested_tensors_go_through(fabric):
    array = np.arange(12, dtype=np.int32).reshape(3, 4)
    given = {"array": array, "flipped": array[::-1], "list": [torch.ones(2), {"x": torch.zeros(1)}], "n": 1}
    out = fabric.run("Identity", {"tensor": given})["tensor"]
    assert torch.equal(out["array"], torch.from_numpy(array))
    assert torch.equal(out["flipped"], torch.from_numpy(array[::-1].copy()))
    assert torch.equal(out["list"][0], torch.ones(2))
    assert torch.equal(out["list"][1]["x"], torch.zeros(1))
    assert out["n"] == 1
