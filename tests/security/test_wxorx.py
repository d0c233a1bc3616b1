"""W^X, for those who ask for it: no instructions but those that a worker had at its lockdown are ever run in it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from sandbox_child import supported

import vortex_worker as vw
from vortex_worker.sandbox import bpf, matrix, seccomp
from vortex_worker.sandbox.policy import Condition, Policy, Rule

pytestmark = pytest.mark.skipif(not supported(), reason="this machine lacks seccomp or Landlock")

NODES = Path(__file__).with_name("nodes")
#: How each way to run machine code ends without W^X. (What a policy calls tidiness refuses some.)
WAYS = {
    "mapped_for_all": "42",
    "written_then_opened": "42",
    "written_then_turned": "PermissionError",
    "over_a_library": "42",
    "callback": "42",
}


@pytest.fixture(scope="module", params=[True, False], ids=["wxorx", "without"])
def fabric(request: pytest.FixtureRequest) -> Iterator[vw.Fabric]:
    with vw.Fabric(1, standby=0, custom_nodes=NODES, wxorx=request.param) as fabric:
        fabric.wait_ready(60)
        yield fabric


def wxorx(fabric: vw.Fabric) -> bool:
    (worker,) = fabric.workers()
    assert worker["sandbox"]["enforced"]
    return "wxorx" in worker["sandbox"]["layers"]


@pytest.mark.parametrize("way", WAYS)
def test_machine_code(fabric: vw.Fabric, way: str) -> None:
    said = fabric.run("RunCode", params={"way": way})["said"]
    if wxorx(fabric):
        assert said == ("MemoryError" if way == "callback" else "PermissionError")
    else:
        assert said == WAYS[way]


def test_honest_work_is_done(fabric: vw.Fabric) -> None:
    image, kernel = torch.randn(1, 8, 64, 64), torch.randn(8, 8, 3, 3)
    done = fabric.run("Convolve", {"image": image, "kernel": kernel})
    assert torch.allclose(done["image"], torch.nn.functional.conv2d(image, kernel), rtol=1e-3, atol=1e-3)
    square = image[0, 0].bfloat16().float()
    assert torch.allclose(done["square"].float(), square @ square.T, rtol=0.05, atol=0.5)


def test_seen_from_outside(fabric: vw.Fabric) -> None:
    """Code that oneDNN made before lockdown, in the zygote too, can't be written any more."""
    (worker,) = fabric.workers()
    try:
        maps = Path(f"/proc/{worker['pid']}/maps").read_text()
    except PermissionError:
        pytest.skip("only root may look at a worker's memory")
    both = [line for line in maps.splitlines() if "wx" in line.split()[1]]
    assert bool(both) != wxorx(fabric)


@pytest.mark.parametrize("name", ["execute", "strict", "cuda"])
def test_no_policy_lets_memory_become_executable(name: str) -> None:
    profile = matrix.Profile(name, wxorx=True)
    tried = dict.fromkeys(("mmap", "mprotect", "pkey_mprotect", "read"), 0)
    for vector in matrix.vectors(profile):
        found = profile.by_program(vector)
        assert found == profile.by_policy(vector)
        call = profile.call(vector)
        if call in tried and vector.way == matrix.probe.NATIVE:
            tried[call] += 1
            if call != "read" and vector.args[2] & 4:
                assert found[0] != "allow", vector
    assert all(tried.values())
    assert matrix.redundant(seccomp.load_policy(name).without_code()) == ()


def test_an_own_policy_that_allows_everything_of_memory() -> None:
    """Conditions on the same argument are merged; a rule that is only about code goes."""
    rules = {
        "mprotect": (Rule("mprotect", "allow", 0, (), "all of it", "g"),),
        "mmap": (
            Rule("mmap", "allow", 0, (Condition(2, 2, 2), Condition(3, 2, 2)), "writable", "g"),
            Rule("mmap", "allow", 0, (Condition(2, 5, 5),), "code", "g"),
        ),
    }
    policy = Policy("mine", "mine.toml", rules, "kill_process", "r").without_code()
    machine = bpf.Machine(seccomp.compile_policy(policy).code)
    for protection in range(8):
        expected = ("errno", 13) if protection & 4 else ("allow", 0)
        assert machine.decide(seccomp.number_of("mprotect") or 0, (0, 0, protection, 0, 0, 0)) == expected
        mapped = ("errno", 13) if protection & 4 else ("allow", 0) if protection & 2 else ("kill_process", 0)
        assert machine.decide(seccomp.number_of("mmap") or 0, (0, 0, protection, 2, 0, 0)) == mapped


def test_a_worker_of_its_own_start_is_bound_too() -> None:
    """Not forked by a zygote, but started by exec."""
    with vw.Fabric(1, standby=0, custom_nodes=NODES, wxorx=True, zygote=False) as fabric:
        fabric.wait_ready(60)
        assert wxorx(fabric)
        assert fabric.run("RunCode", params={"way": "mapped_for_all"})["said"] == "PermissionError"
