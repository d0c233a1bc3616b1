"""What workers are, have and tell of themselves."""

from pathlib import Path

import torch
from conftest import SETTINGS, started

import vortex_worker as vw


def status_of(pid):
    fields = {}
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        key, _, value = line.partition(":")
        fields[key] = value.strip()
    return fields


def test_every_thread_of_every_worker_is_sandboxed_as_reported(fabric):
    fabric.wait_ready(60)
    own = int(status_of("self")["Seccomp_filters"])
    for worker in fabric.workers():
        sandbox = worker["sandbox"]
        assert sandbox["enforced"] is True
        assert sandbox["policy"] == "execute"
        assert {"landlock", "seccomp-bootstrap", "seccomp-execute", "canary", "no_new_privs", "rlimits"} <= set(
            sandbox["layers"]
        )
        assert len(bytes.fromhex(sandbox["filter_sha256"])) == 32
        tasks = list(Path(f"/proc/{worker['pid']}/task").iterdir())
        assert tasks
        for task in tasks:
            fields = status_of(f"{worker['pid']}/task/{task.name}")
            assert fields["Seccomp"] == "2"
            assert int(fields["Seccomp_filters"]) - own == sandbox["kernel"]["filters"] >= 2
            assert fields["NoNewPrivs"] == "1"
            assert int(fields["CapEff"], 16) == int(fields["CapPrm"], 16) == int(fields["CapBnd"], 16) == 0 or (
                int(fields["CapEff"], 16) == int(fields["CapPrm"], 16) == 0
            )


def test_a_worker_has_no_descriptor_beyond_its_socket_and_log(fabric):
    for worker in fabric.wait_ready(60).workers():
        kinds = sorted(
            link.readlink().name.partition(":")[0] if ":" in link.readlink().name else str(link.readlink())
            for link in Path(f"/proc/{worker['pid']}/fd").iterdir()
        )
        assert kinds.count("socket") == 1, kinds
        assert not any("memfd" in kind or "shm" in kind for kind in kinds), kinds
        # Standard input, output and error; the control socket; the heartbeat's stop signal.
        assert len(kinds) == 5, kinds


def test_a_worker_sees_nothing_of_the_supervisors_secrets(monkeypatch):
    monkeypatch.setenv("VERY_SECRET_TOKEN", "hunter2")
    with vw.Fabric(1, **SETTINGS) as fabric:
        pid = fabric.wait_ready(60).workers()[0]["pid"]
        try:
            environment = Path(f"/proc/{pid}/environ").read_bytes()
        except PermissionError:  # it is not dumpable; then nobody else can look, either
            environment = b""
        assert b"hunter2" not in environment
        assert fabric.run("Identity", {"tensor": 1})["tensor"] == 1


def test_nodes_lists_built_in_and_custom_nodes(fabric):
    nodes = fabric.nodes()
    assert nodes["Identity"].source == "builtin"
    assert nodes["Gate"].source.endswith("well_behaved")
    assert [port.name for port in nodes["OpenBox"].inputs] == ["box", "other", "gate"]
    steps = nodes["Steps"].params[0]
    assert (steps.type, steps.minimum, steps.maximum) == ("INT", 1, 1000)
    assert nodes["InPlaceOnCopy"].mutates_inputs is True


def test_workers_report_what_they_do(fabric, gate):
    job = started(fabric.submit("Gate", {"gate": gate}))
    worker = next(worker for worker in fabric.workers() if worker["job"] == job.id)
    assert worker["id"] == job.worker
    before = worker["jobs_done"]
    gate.fill_(1)
    assert job.result()["pid"] == worker["pid"]
    after = next(w for w in fabric.workers() if w["id"] == worker["id"])
    assert (after["job"], after["jobs_done"], after["stage"]) == (None, before + 1, "ready")


def test_the_strict_policy_runs_jobs_with_no_file_at_all():
    with vw.Fabric(1, threads=1, policy="strict") as fabric:
        out = fabric.run("Scale", {"tensor": torch.ones(4)}, {"factor": 3.0})["tensor"]
        assert torch.equal(out, torch.full((4,), 3.0))
        assert fabric.workers()[0]["sandbox"]["policy"] == "strict"
        latent, size = {"samples": torch.ones(1, 4, 8, 8)}, {"width": 128, "height": 128, "upscale_method": "bislerp"}
        larger = fabric.run("LatentUpscale", {"samples": latent}, size)["latent"]
        laid = fabric.run("LatentCompositeMasked", {"destination": larger, "source": latent}, {"x": 8})["latent"]
        torch.testing.assert_close(laid["samples"], torch.ones(1, 4, 16, 16))
