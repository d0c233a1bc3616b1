"""A worker that computes on an NVIDIA card, under the policy ``cuda``. Where there is none, nothing of this runs."""

import errno
import os
import signal

import pytest
import torch
from conftest import SETTINGS, until

import vortex_worker as vw
from vortex_worker.errors import CUDAError, LaunchError, OOMSoft, SandboxViolation

pytestmark = pytest.mark.skipif(not os.path.exists("/dev/nvidiactl"), reason="no NVIDIA card")


@pytest.fixture(scope="module")
def card():
    with vw.Fabric(1, device="cuda", **SETTINGS | {"lease_size": 256 << 20, "client_size": 256 << 20}) as fabric:
        yield fabric.wait_ready(120)


def on_card(fabric, how, tensor=None, size=0, **settings):
    inputs = {} if tensor is None else {"tensor": tensor}
    return fabric.run("OnCard", inputs, {"how": how, "size": size}, **settings)["value"]


def test_every_layer_holds(card):
    (worker,) = card.workers()
    assert worker["sandbox"]["policy"] == "cuda"
    assert worker["sandbox"]["enforced"]
    assert {"landlock", "seccomp-execute", "canary"} <= set(worker["sandbox"]["layers"])
    assert on_card(card, "where") == "cuda:0"


def test_auto_is_the_card():
    with vw.Fabric(1, standby=0, **SETTINGS) as fabric:
        fabric.wait_ready(120)
        assert on_card(fabric, "where") == "cuda:0"
        assert fabric.workers()[0]["sandbox"]["policy"] == "cuda"


def test_products_are_the_cpus(card):
    given = torch.randn(512, 512, dtype=torch.float64)
    torch.testing.assert_close(on_card(card, "product", given), given @ given)


@pytest.mark.parametrize("shape", [(0,), (), (3,), (64 << 20,), (7, 1, 5)])
def test_a_tensor_goes_to_the_card_and_back_unchanged(card, shape):
    given = torch.randint(0, 256, shape, dtype=torch.uint8)
    back = on_card(card, "whole", given)
    assert back.device.type == "cpu"
    assert torch.equal(back, given)


def test_a_view_of_a_tensor_on_the_card_comes_home_whole(card):
    given = torch.randn(300, 200)
    assert torch.equal(on_card(card, "whole", given.T), given.T)


def test_workers_draw_numbers_of_their_own(card):
    first = on_card(card, "drawn", size=64)
    card.reload(120)
    assert not torch.equal(first, on_card(card, "drawn", size=64))


@pytest.mark.parametrize(("how", "size"), [("images", 0), ("mathematics", 0), ("streams", 40)])
def test_what_networks_do_works_after_lockdown(card, how, size):
    assert on_card(card, how, size=size) > 0
    assert len(card.workers()) == 1


def test_graphs(card):
    assert on_card(card, "graph").tolist() == [3.0] * 8


def test_memory_that_runs_out_is_told(card):
    with pytest.raises(OOMSoft):
        on_card(card, "exhaust", retries=0)
    assert on_card(card, "where") == "cuda:0"


def test_a_lost_context_is_a_new_worker(card):
    before = card.workers()[0]["pid"]
    with pytest.raises(CUDAError):
        on_card(card, "astray", retries=0)
    until(lambda: all(worker["pid"] != before for worker in card.workers()), "another worker")
    card.wait_ready(120)
    assert on_card(card, "product", torch.eye(4)).equal(torch.eye(4))


def test_no_device_is_opened_after_lockdown(card):
    assert on_card(card, "reopen") in (errno.EACCES, errno.EPERM)


def test_a_word_that_is_not_for_jobs_is_death_by_name(card):
    with pytest.raises(SandboxViolation, match="ioctl"):
        on_card(card, "new_word", retries=0)
    card.wait_ready(120)
    assert on_card(card, "where") == "cuda:0"


def test_two_workers_share_a_card_and_one_death_is_one_death(card):
    with vw.Fabric(2, standby=0, device="cuda", **SETTINGS) as fabric:
        fabric.wait_ready(120)
        os.kill(fabric.workers()[0]["pid"], signal.SIGKILL)
        given = torch.randn(64, 64)
        torch.testing.assert_close(on_card(fabric, "product", given), given @ given, rtol=1e-3, atol=1e-3)
        fabric.wait_ready(120)


def test_a_card_that_is_not_there_is_named():
    with pytest.raises(LaunchError, match="cuda:9"), vw.Fabric(1, standby=0, device="cuda:9", **SETTINGS) as fabric:
        fabric.wait_ready(120)
