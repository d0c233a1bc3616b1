"""A fabric's settings, and its end."""

import pytest
import torch
from conftest import NODES, SETTINGS, started

import vortex_worker as vw
from vortex_worker.errors import ConfigError, FabricClosed, LaunchError

# --------------------------------------------------------------- settings


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"workers": 0}, "workers"),
        ({"workers": 257}, "workers"),
        ({"workers": True}, "workers"),
        ({"workers": "2"}, "workers"),
        ({"queue": 0}, "queue"),
        ({"lease_size": 1}, "lease_size"),
        ({"client_size": 1.5}, "client_size"),
        ({"log_level": "loud"}, "log_level"),
        ({"custom_nodes": NODES / "nowhere"}, "custom_nodes"),
        ({"models": [NODES / "well_behaved.py"]}, "models"),
        ({"max_frame": 1}, "max_frame"),
        ({"max_frame": 1 << 40}, "max_frame"),
        ({"heartbeat_ms": 0}, "heartbeat_ms"),
        ({"threads": -1}, "threads"),
        ({"memory_limit": -1}, "memory_limit"),
        ({"grace": -1.0}, "grace"),
        ({"start_timeout": 0}, "start_timeout"),
        ({"device": "abacus"}, "device is 'abacus': it takes auto, cpu, cuda, cuda:N or mps"),
        ({"device": "cuda:"}, "device is 'cuda:'"),
        ({"device": None}, "device is None"),
        (
            {"policy": "no-such-policy"},
            "policy is 'no-such-policy': it takes execute, strict, cuda or the path of a TOML file",
        ),
        ({"policy": "./no-such.toml"}, "policy ./no-such.toml"),
        ({"policy": 5}, "policy is 5: it takes execute, strict, cuda or the path of a TOML file"),
        ({"models": 5}, "models is 5: it takes paths of folders"),
        ({"models": "no\0folder"}, "models is"),
        ({"modules": 5}, "modules is 5: it takes names of Python modules"),
        ({"modules": None}, "modules is None"),
        ({"allow_unsandboxed": "no"}, "allow_unsandboxed is 'no': it takes True or False"),
        ({"learn": 0}, "learn is 0: it takes True or False"),
        ({"zygote": None}, "zygote is None"),
        ({"wxorx": "yes"}, "wxorx is 'yes'"),
        ({"grace": 10**400}, "grace is 1000"),
        ({"stall_timeout": 1e300}, r"stall_timeout is 1e\+300: it takes seconds, 0 or more, below 1e9"),
        ({"start_timeout": float("nan")}, "start_timeout is nan"),
        ({"device": ["cpu"]}, "device is"),
        ({"log_level": ["info"]}, "log_level is"),
        ({"preload": 5}, "preload takes pairs"),
        ({"models": NODES / "nowhere"}, "models is .*nowhere.*folders that exist"),
    ],
    ids=lambda value: str(value)[-40:],
)
def test_a_bad_setting_is_refused_by_name_before_anything_starts(settings, named):
    with pytest.raises(ConfigError, match=named):
        vw.Fabric(**settings).close()


def test_a_setting_that_can_t_be_shown_is_named_too():
    with pytest.raises(ConfigError, match="queue is an object of type int: it takes a whole number"):
        vw.Fabric(queue=10**5000).close()


@pytest.mark.parametrize("settings", [{"device": "cuda:99"}], ids=str)
def test_a_setting_that_only_a_worker_can_judge_ends_in_a_launch_error(settings):
    value = next(iter(settings.values()))
    with vw.Fabric(1, **settings) as fabric:
        with pytest.raises(LaunchError, match=value):
            fabric.wait_ready(60)
        with pytest.raises(LaunchError, match=value):
            fabric.run("Identity", {"tensor": 1})
        assert fabric.workers() == []


# --------------------------------------------------------------------- end


def test_closing_ends_jobs_and_refuses_more_and_may_be_repeated():
    fabric = vw.Fabric(1, **SETTINGS)
    gate = fabric.tensor([0])
    running = started(fabric.submit("Gate", {"gate": gate}))
    queued = fabric.submit("Identity", {"tensor": 1})
    fabric.close()
    fabric.close()
    for job in (running, queued):
        with pytest.raises(FabricClosed):
            job.result(timeout=0)
    with pytest.raises(FabricClosed):
        fabric.submit("Identity", {"tensor": 1})
    with pytest.raises(FabricClosed):
        fabric.wait_ready()
    assert fabric.workers() == []


def test_tensors_outlive_the_fabric():
    with vw.Fabric(1, **SETTINGS) as fabric:
        mine = fabric.tensor([1.0, 2.0])
        out = fabric.run("Scale", {"tensor": torch.arange(1000.0)}, {"factor": 2.0})["tensor"]
        unread = fabric.submit("Scale", {"tensor": torch.ones(3)}, {"factor": 7.0})
        unread.wait()
    assert torch.equal(out, torch.arange(1000.0) * 2)
    out += 1
    assert out[3] == 7
    assert torch.equal(mine, torch.tensor([1.0, 2.0]))
    assert torch.equal(unread.result()["tensor"], torch.full((3,), 7.0))


def test_making_tensors_after_the_end_is_refused():
    fabric = vw.Fabric(1, threads=1)
    fabric.close()
    for make in (lambda: fabric.empty((4,)), lambda: fabric.tensor([1.0])):
        with pytest.raises(FabricClosed):
            make()
