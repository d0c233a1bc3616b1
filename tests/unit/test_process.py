"""What a supervisor asks of its own process, in processes of their own: limits can't be raised again."""

import subprocess
import sys

PROGRAM = """
import resource
from vortex_worker.supervisor.process import reserve_descriptors
resource.setrlimit(resource.RLIMIT_NOFILE, ({soft}, {hard}))
reserve_descriptors({workers})
print(resource.getrlimit(resource.RLIMIT_NOFILE)[0])
"""


def limit_after(workers, soft, hard):
    """What it prints, or its error."""
    program = PROGRAM.format(workers=workers, soft=soft, hard=hard)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    return done.stdout.strip() or done.stderr.splitlines()[-1]


def test_the_limit_of_open_files_is_raised_as_far_as_the_workers_need():
    assert 64 + 4 * 256 < int(limit_after(256, 64, 4096)) < 4096
    assert limit_after(2, 4096, 4096) == "4096"


def test_more_workers_than_open_files_are_refused_with_the_number_they_take():
    error = limit_after(256, 64, 512)
    assert "ConfigError" in error
    assert "256 workers take about" in error
    assert "this process may have 512" in error
