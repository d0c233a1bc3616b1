"""Metrics and traces tell what happened to jobs and workers; without them, nothing of theirs is loaded."""

import subprocess
import sys
import time
from pathlib import Path

import prometheus_client
import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

import vortex_worker as vw
from vortex_worker.observe import metrics, tracing

NODES = Path(__file__).parent / "nodes"


def until(holds):
    """Observers are told in the fabric's thread, just after the caller has the result."""
    end = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.005)


@pytest.fixture(scope="module")
def registry():
    return prometheus_client.CollectorRegistry()


@pytest.fixture(scope="module")
def spans():
    return InMemorySpanExporter()


@pytest.fixture(scope="module")
def provider(spans):
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(spans))
    yield provider
    provider.shutdown()  # or it lives to the end, and starts a thread in each process that a later test forks


@pytest.fixture(scope="module")
def fabric(registry, provider):
    with vw.Fabric(workers=1, standby=1, custom_nodes=NODES) as fabric:
        metrics.instrument(fabric, name="main", registry=registry)
        tracing.instrument(fabric, provider)
        yield fabric.wait_ready()


def test_jobs_are_counted_by_outcome_and_timed(fabric, registry):
    def value(name, **labels):
        return registry.get_sample_value(name, {"fabric": "main", **labels}) or 0.0

    for _ in range(3):
        fabric.run("Steps", params={"steps": 2})
    with pytest.raises(vw.errors.ValidationError):
        fabric.run("Steps", params={"steps": 0})
    with pytest.raises(vw.errors.ExecutorNotFound):
        fabric.run("NoSuchNode")
    until(lambda: value("vortex_jobs_total", op_type="NoSuchNode", outcome="WK-003") == 1)
    assert value("vortex_jobs_total", op_type="Steps", outcome="done") == 3
    assert value("vortex_jobs_total", op_type="Steps", outcome="WK-004") == 1
    assert value("vortex_job_seconds_count", op_type="Steps") == 4
    assert value("vortex_job_execute_seconds_count", op_type="Steps") == 3
    assert value("vortex_job_execute_seconds_sum", op_type="Steps") <= value("vortex_job_seconds_sum", op_type="Steps")
    until(lambda: value("vortex_jobs_in_flight") == 0)


def test_a_job_in_flight_and_the_workers_are_seen(fabric, registry):
    gate = fabric.tensor([0])
    job = fabric.submit("Gate", {"gate": gate})
    while not job.progress.step:
        assert not job.wait(0.01), job.exception()
    try:
        text = prometheus_client.generate_latest(registry).decode()
        assert 'vortex_jobs_in_flight{fabric="main"} 1.0' in text
        assert 'vortex_workers{fabric="main",state="busy"} 1.0' in text
        assert 'vortex_workers{fabric="main",state="standby"} 1.0' in text
        for slot in (0, 1):
            assert registry.get_sample_value("vortex_worker_memory_bytes", {"fabric": "main", "slot": str(slot)}) > 1e6
            labels = {"fabric": "main", "slot": str(slot)}
            assert registry.get_sample_value("vortex_worker_heartbeat_age_seconds", labels) >= 0
    finally:
        gate.fill_(1)
        job.wait()


def test_a_job_is_a_span_below_its_callers(fabric, provider, spans):
    spans.clear()
    with provider.get_tracer("test").start_as_current_span("outer") as outer:
        fabric.run("Steps", params={"steps": 2})
        with pytest.raises(vw.errors.ValidationError):
            fabric.run("Steps", params={"steps": 0})
    until(lambda: len(spans.get_finished_spans()) >= 3)
    known = {worker["id"] for worker in fabric.workers()}
    done, failed = (span for span in spans.get_finished_spans() if span.name == "vortex Steps")
    for span in (done, failed):
        assert span.parent.span_id == outer.get_span_context().span_id
        assert span.attributes["vortex.op_type"] == "Steps"
        assert span.attributes["vortex.attempts"] == 1
        assert span.attributes["vortex.worker"] in known
    assert done.status.is_ok
    assert done.attributes["vortex.execute_ns"] > 0
    assert failed.status.status_code is StatusCode.ERROR
    assert failed.attributes["error.type"] == "WK-004"
    assert "steps" in failed.status.description


def test_two_fabrics_share_a_registry_and_a_closed_one_is_no_error():
    registry = prometheus_client.CollectorRegistry()
    with vw.Fabric(standby=0) as one, vw.Fabric(standby=0) as other:
        metrics.instrument(one, name="one", registry=registry)
        metrics.instrument(other, name="other", registry=registry)
        one.run("Identity", {"tensor": [1.0]})
    with pytest.raises(vw.errors.FabricClosed):
        other.run("Identity", {"tensor": [1.0]})
    labels = {"op_type": "Identity"}  # both are closed: their threads have ended
    assert registry.get_sample_value("vortex_jobs_total", {"fabric": "one", "outcome": "done", **labels}) == 1
    assert registry.get_sample_value("vortex_workers", {"fabric": "one", "state": "idle"}) == 0


def test_a_job_that_is_not_taken_is_counted_as_such():
    registry = prometheus_client.CollectorRegistry()
    fabric = vw.Fabric(standby=0)
    metrics.instrument(fabric, registry=registry)
    fabric.close()
    with pytest.raises(vw.errors.FabricClosed):
        fabric.run("Identity")
    labels = {"fabric": "fabric", "op_type": "Identity", "outcome": "FabricClosed"}
    assert registry.get_sample_value("vortex_jobs_total", labels) == 1
    assert registry.get_sample_value("vortex_jobs_in_flight", {"fabric": "fabric"}) == 0


def test_who_does_not_use_them_does_not_load_them():
    code = (
        "import sys, vortex_worker as vw; f = vw.Fabric(standby=0); f.wait_ready(); f.close(); "
        "print([m for m in sys.modules if m.split('.')[0] in ('prometheus_client', 'opentelemetry')])"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize(("name", "extra"), [("metrics", "metrics"), ("tracing", "tracing")])
def test_what_to_install_is_told(name, extra):
    code = (
        "import sys; sys.modules['prometheus_client'] = sys.modules['opentelemetry'] = None; "
        f"import vortex_worker.observe.{name}"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True)
    assert f"pip install 'vortex-worker[{extra}]'" in done.stderr
