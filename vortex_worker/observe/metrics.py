"""Prometheus metrics of fabrics, by ``prometheus_client`` (``pip install vortex-worker[metrics]``).

::

    from prometheus_client import start_http_server
    from vortex_worker.observe import metrics

    metrics.instrument(fabric)
    start_http_server(9464, addr="127.0.0.1")
"""

from __future__ import annotations

import time
import weakref
from collections import Counter
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING

from vortex_worker.errors import JobError

try:
    import prometheus_client as prometheus
    from prometheus_client.core import GaugeMetricFamily, Metric
except ImportError as error:
    raise ImportError("metrics need prometheus_client: pip install 'vortex-worker[metrics]'") from error

if TYPE_CHECKING:
    from vortex_worker.supervisor.fabric import Fabric
    from vortex_worker.supervisor.job import Job

#: Upper bounds in s, a third of a decade apart: from a no-op's tenth of a millisecond to a long sampling.
BUCKETS = (1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500)
STATES = ("launched", "joined", "locked", "idle", "busy", "standby")

_of_registry: weakref.WeakKeyDictionary[prometheus.CollectorRegistry, Metrics] = weakref.WeakKeyDictionary()


def instrument(
    fabric: Fabric, *, name: str = "fabric", registry: prometheus.CollectorRegistry = prometheus.REGISTRY
) -> None:
    """Count and time the jobs of ``fabric`` from now on, and tell of its workers whenever ``registry`` is read.

    Args:
        name: the label ``fabric`` of all its metrics; tells several fabrics of one process apart.
    """
    if registry not in _of_registry:
        _of_registry[registry] = Metrics(registry)
    _of_registry[registry].add(name, fabric)


class Metrics:
    """The metrics of all fabrics in one registry."""

    def __init__(self, registry: prometheus.CollectorRegistry) -> None:
        job = ("fabric", "op_type")
        self.jobs = prometheus.Counter(
            "vortex_jobs", "Jobs that ended, by how: done, an error's code, or why it was not taken.",
            (*job, "outcome"), registry=registry,
        )  # fmt: skip
        self.retries = prometheus.Counter(
            "vortex_job_retries",
            "Runs of jobs after their first, for the worker before had died.",
            job,
            registry=registry,
        )
        self.in_flight = prometheus.Gauge(
            "vortex_jobs_in_flight", "Jobs that were submitted and have not ended.", ("fabric",), registry=registry
        )
        self.seconds = prometheus.Histogram(
            "vortex_job_seconds", "From submit to end.", job, registry=registry, buckets=BUCKETS
        )
        self.execute_seconds = prometheus.Histogram(
            "vortex_job_execute_seconds", "In the node itself.", job, registry=registry, buckets=BUCKETS
        )
        self._fabrics: weakref.WeakKeyDictionary[Fabric, str] = weakref.WeakKeyDictionary()
        registry.register(self)

    def add(self, name: str, fabric: Fabric) -> None:
        self._fabrics[fabric] = name
        fabric.observe(partial(self._begun, name))

    def _begun(self, name: str, job: Job) -> None:
        self.in_flight.labels(name).inc()
        job.add_done_callback(partial(self._ended, name, time.monotonic()))

    def _ended(self, name: str, begun: float, job: Job) -> None:
        error = job.exception()
        outcome = "done" if error is None else error.code if isinstance(error, JobError) else type(error).__name__
        self.in_flight.labels(name).dec()
        self.jobs.labels(name, job.op_type, outcome).inc()
        self.seconds.labels(name, job.op_type).observe(time.monotonic() - begun)
        if error is None:
            self.execute_seconds.labels(name, job.op_type).observe(job.timings.execute / 1e9)
        if job.attempts > 1:
            self.retries.labels(name, job.op_type).inc(job.attempts - 1)

    def collect(self) -> Iterator[Metric]:
        """What is asked of the fabrics when the registry is read."""
        workers = GaugeMetricFamily("vortex_workers", "Workers, by what they do.", labels=("fabric", "state"))
        age = GaugeMetricFamily(
            "vortex_worker_heartbeat_age_seconds", "Since a worker's last sign of life.", labels=("fabric", "slot")
        )
        memory = GaugeMetricFamily(
            "vortex_worker_memory_bytes", "Resident and backed by no file; what siblings share counts for each.",
            labels=("fabric", "slot"),
        )  # fmt: skip
        for fabric, name in list(self._fabrics.items()):
            described = [*fabric.workers(), *fabric.standbys()]
            states = Counter(_state(worker) for worker in described)
            for state in STATES:
                workers.add_metric((name, state), states[state])
            for worker in described:
                slot = str(worker["slot"])
                memory.add_metric((name, slot), worker["memory_bytes"])
                if worker["heartbeat_age_s"] is not None:
                    age.add_metric((name, slot), worker["heartbeat_age_s"])
        yield from (workers, age, memory)

    def describe(self) -> Iterator[Metric]:
        """Nothing: what there will be is not known before a fabric is asked."""
        return iter(())


def _state(worker: dict[str, object]) -> str:
    if worker["stage"] == "ready":
        return "idle" if worker["job"] is None else "busy"
    return str(worker["stage"])
