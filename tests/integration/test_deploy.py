"""The deployment examples: the service does what it says, and what can be checked of unit and image is."""

import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "examples" / "deploy"
DIGITS = ROOT / "examples" / "digits"


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    """The service, ready: it says so to a systemd of ours. Its address, its process, its folder."""
    folder = tmp_path_factory.mktemp("service")
    with (
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd,
        socket.create_server(("127.0.0.1", 0)) as probe,
        (folder / "log").open("wb") as log,
    ):
        systemd.bind(str(folder / "notify"))
        systemd.settimeout(120)
        port = probe.getsockname()[1]
        probe.close()
        options = ["--port", str(port), "--custom-nodes", str(DIGITS), "--workers", "1"]
        process = subprocess.Popen(
            [sys.executable, "-P", DEPLOY / "service.py", *options],
            cwd=folder,
            stderr=log,
            env={"NOTIFY_SOCKET": str(folder / "notify")},
        )
        try:
            assert systemd.recv(100) == b"READY=1"
            yield f"http://127.0.0.1:{port}", process, folder
        finally:
            process.kill()
            process.wait()


def ask(url, data=None):
    try:
        with urllib.request.urlopen(url, data, timeout=120) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as answer:
        return answer.code, answer.read().decode()


def test_a_workflow_in_a_picture_out(service):
    url, _, folder = service
    workflow = json.loads((DIGITS / "workflow.json").read_text())
    workflow["sampler"]["inputs"]["steps"] = 1
    status, body = ask(f"{url}/run", json.dumps(workflow).encode())
    assert status == 200, body
    (file,) = json.loads(body)["files"]
    assert (folder / file).read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("path", "data", "status", "said"),
    [
        ("/run", b"{", 400, "not JSON"),
        ("/run", b"[]", 400, "node by id"),
        ("/run", b'{"a": {"class_type": "NoSuchNode", "inputs": {}}}', 400, "NoSuchNode"),
        ("/run", b"", 413, "1 to"),
        ("/elsewhere", b"{}", 404, "POST /run"),
        ("/elsewhere", None, 404, "not here"),
    ],
)
def test_what_it_does_not_take(service, path, data, status, said):
    assert ask(service[0] + path, data)[0] == status
    assert said in ask(service[0] + path, data)[1]


def test_health_and_metrics(service):
    status, body = ask(f"{service[0]}/healthz")
    assert status == 200
    assert len(json.loads(body)["workers"]) == 1
    status, body = ask(f"{service[0]}/metrics")
    assert status == 200
    assert re.search(r'^vortex_workers\{fabric="fabric",state="idle"\} 1.0$', body, re.M)


def test_sigterm_ends_it_cleanly_and_its_log_is_json(service):
    _, process, folder = service
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0
    lines = [json.loads(line) for line in (folder / "log").read_text().splitlines()]
    assert any(line["event"].startswith("ready on") for line in lines)
    assert all({"time", "level", "logger", "event"} <= line.keys() for line in lines)


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd-analyze is not here")
def test_systemd_finds_no_fault_with_the_unit(tmp_path):
    unit = tmp_path / "vortex-worker.service"
    text = (DEPLOY / "vortex-worker.service").read_text()
    unit.write_text(text.replace("/opt/vortex-worker/bin/python", sys.executable))  # it must exist
    done = subprocess.run(["systemd-analyze", "verify", unit], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_image_starts_the_service_as_nobody_in_particular():
    text = (DEPLOY / "Containerfile").read_text()
    steps = [line.split(None, 1) for line in text.splitlines() if line[:1].isupper()]
    kinds = [kind for kind, _ in steps]
    assert kinds[0] == "FROM"
    assert ":" in steps[0][1]
    assert not steps[0][1].endswith(":latest")
    assert kinds.index("USER") < kinds.index("ENTRYPOINT")
    assert dict(steps)["USER"] not in ("0", "root")
    for kind in ("ENTRYPOINT", "HEALTHCHECK"):
        command = json.loads(dict(steps)[kind][dict(steps)[kind].index("[") :])
        assert command[0] == "python"
    assert "service.py" in dict(steps)["COPY"]
