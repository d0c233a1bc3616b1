"""A job as its caller sees it, told by the fabric's side in every order."""

from __future__ import annotations

import pytest

from vortex_worker.errors import Cancelled
from vortex_worker.supervisor.job import Job, Progress


@pytest.mark.parametrize("error", [None, Cancelled("enough")])
def test_a_report_that_comes_after_the_end_is_nobody_s(error):
    """One thread reads it while another ends the job: kept, its preview would hold memory as long as the job."""
    job = Job(1, "Op", lambda job: None)
    seen = []
    job.on_progress(lambda job: seen.append(job.progress.step))
    job._report(Progress(1, 3), None)
    job._end(None, error)
    job._report(Progress(2, 3), object())
    assert (seen, job.progress.step, job.preview) == ([1], 1, None)
