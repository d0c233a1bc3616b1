"""OpenTelemetry traces: a span for each job (``pip install vortex-worker[tracing]``).

::

    from vortex_worker.observe import tracing

    tracing.instrument(fabric)  # spans go where your OpenTelemetry SDK is set up to send them
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import vortex_worker
from vortex_worker.errors import JobError

try:
    import opentelemetry.trace as trace
except ImportError as error:
    raise ImportError("traces need opentelemetry-api: pip install 'vortex-worker[tracing]'") from error

if TYPE_CHECKING:
    from vortex_worker.supervisor.fabric import Fabric
    from vortex_worker.supervisor.job import Job


def instrument(fabric: Fabric, tracer_provider: trace.TracerProvider | None = None) -> None:
    """Trace the jobs of ``fabric`` from now on, each below the span that is current where it is submitted.

    Args:
        tracer_provider: whose spans they are; the global one by default.
    """
    tracer = trace.get_tracer("vortex_worker", vortex_worker.__version__, tracer_provider)
    fabric.observe(partial(_begun, tracer))


def _begun(tracer: trace.Tracer, job: Job) -> None:
    attributes: dict[str, str | int] = {"vortex.job.id": job.id, "vortex.op_type": job.op_type}
    span = tracer.start_span(f"vortex {job.op_type}", kind=trace.SpanKind.CLIENT, attributes=attributes)
    job.add_done_callback(partial(_ended, span))


def _ended(span: trace.Span, job: Job) -> None:
    span.set_attributes({"vortex.worker": job.worker, "vortex.attempts": job.attempts})
    span.set_attributes({f"vortex.{part}_ns": ns for part, ns in job.timings._asdict().items()})
    error = job.exception()
    if error is not None:
        kind = error.code if isinstance(error, JobError) else type(error).__name__
        span.set_attribute("error.type", kind)
        span.set_status(trace.StatusCode.ERROR, str(error))
    span.end()
