"""Choosing a device, warming it up, and telling its errors from a node's."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import types

import pytest
import torch

from vortex_worker import device
from vortex_worker.device import Device, cpu, cuda, metal
from vortex_worker.errors import ConfigError


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with two NVIDIA GPUs, as torch tells of them."""
    properties = types.SimpleNamespace(name="GPU", total_memory=1 << 33)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: properties)


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)


@pytest.mark.usefixtures("no_gpu")
def test_the_cpu_is_always_there() -> None:
    chosen = device.choose()
    assert chosen == device.choose("cpu") == device.choose("cpu:0") == cpu.device()
    assert device.available() == [chosen]
    assert (chosen.type, chosen.index) == ("cpu", 0)
    assert chosen.name
    assert chosen.memory > 1 << 20
    assert chosen.torch_device == torch.device("cpu")


@pytest.mark.usefixtures("two_gpus")
def test_a_gpu_goes_before_the_cpu() -> None:
    assert [(found.type, found.index) for found in device.available()][:2] == [("cuda", 0), ("cuda", 1)]
    assert device.choose() == Device("cuda", 0, "GPU", 1 << 33)
    assert device.choose("cuda") == device.choose("cuda:0")
    assert device.choose("cuda:1").torch_device == torch.device("cuda", 1)
    assert device.choose("cpu").type == "cpu"
    with pytest.raises(ConfigError, match=r"device is 'cuda:2', which is not here: there are auto, cuda:0, cuda:1"):
        device.choose("cuda:2")


def test_mps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.mps, "recommended_max_memory", lambda: 5 << 30)
    assert metal.devices() == [Device("mps", 0, "Apple GPU", 5 << 30)]
    assert device.choose("mps").torch_device == torch.device("mps", 0)


@pytest.mark.usefixtures("no_gpu")
@pytest.mark.parametrize("name", ["", "gpu", "cuda", "cuda:0", "cpu:1", "cpu:", "CPU", "auto:0", "cuda:x", "x" * 9999])
def test_a_bad_name(name: str) -> None:
    with pytest.raises(ConfigError, match=r"which is not here: there are auto, cpu$") as caught:
        device.choose(name)
    assert len(str(caught.value)) < 200


def test_starts_no_process() -> None:
    program = """
        import sys
        sys.addaudithook(lambda event, _: event in ("subprocess.Popen", "os.fork", "os.exec") and 1 / 0)
        from vortex_worker.device import cpu
        print(cpu.device())
        assert "torch" not in sys.modules
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(program)], check=True)


def test_the_cpu_s_name_without_proc(monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(*arguments: object, **keywords: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("builtins.open", denied)
    assert cpu.device.__wrapped__().name == os.uname().machine  # not what was read before


@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="counts threads as Linux lists them")
def test_warm_up_starts_every_thread_there_will_be() -> None:
    program = """
        import os, torch
        from vortex_worker import device

        def threads():
            return len(os.listdir("/proc/self/task"))

        device.warm_up(device.choose("cpu"), threads=5)
        assert torch.get_num_threads() == 5
        before = threads()
        assert before >= 5, before
        with torch.inference_mode():
            big = torch.randn(700, 700)
            (big @ big).sum()
            (big.bfloat16() @ big.bfloat16()).sum()
            torch.nn.functional.conv2d(big[None, None].bfloat16(), big[None, None, :3, :3].bfloat16())
            torch.nn.functional.interpolate(big[None, None], (900, 900), mode="bicubic").softmax(-1)
            torch.linalg.inv(big)
            torch.fft.fft2(big).abs().sort()
        assert threads() == before, (before, threads())
        device.empty_cache()
        assert threads() == before
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(program)], check=True)


def test_zero_threads_leaves_torch_its_choice() -> None:
    before = torch.get_num_threads()
    device.warm_up(device.choose("cpu"))
    assert torch.get_num_threads() == before


def test_real_out_of_memory_is_told_apart() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 55)
    assert device.is_oom(caught.value)
    assert not device.is_device_error(caught.value)
    with pytest.raises(RuntimeError) as caught:
        torch.ones(2) + torch.ones(3)
    assert not device.is_oom(caught.value)
    assert not device.is_device_error(caught.value)


@pytest.mark.parametrize(
    "error",
    [
        ValueError("can't allocate memory"),
        OSError(13, "Permission denied"),
        OSError("CUDA out of memory"),
        RuntimeError("I have not enough patience"),
        RuntimeError("CUDA error: an illegal memory access was encountered"),
        SystemExit("not enough memory"),
        Exception(),
    ],
)
def test_not_out_of_memory(error: BaseException) -> None:
    assert not device.is_oom(error)


@pytest.mark.parametrize("error", [ValueError("CUDA error: x"), RuntimeError("no CUDA error"), KeyError("CUDA error")])
def test_not_a_device_error(error: BaseException) -> None:
    assert not device.is_device_error(error)


def test_an_exception_that_can_t_be_shown() -> None:
    class Rude(RuntimeError):
        def __str__(self) -> str:
            raise SystemExit

    for question in (device.is_oom, device.is_device_error, device.is_sticky):
        assert not question(Rude())


def test_questions_need_no_torch() -> None:
    program = """
        import sys
        from vortex_worker import device
        assert device.is_oom(MemoryError())
        assert not device.is_oom(RuntimeError("other"))
        assert not device.is_oom(RuntimeError("could not create a primitive"))  # of memory only where that is limited
        assert not device.is_device_error(RuntimeError("other"))
        device.empty_cache()
        assert "torch" not in sys.modules
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(program)], check=True)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_for_real() -> None:
    chosen = device.choose("cuda")
    device.warm_up(chosen)
    assert chosen.memory > 0
    with pytest.raises(torch.OutOfMemoryError) as caught:
        torch.empty(1 << 50, device=chosen.torch_device)
    assert cuda.is_oom(caught.value)
    device.empty_cache()
