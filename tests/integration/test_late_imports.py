"""What is compiled and slow to import can be imported after lockdown, which maps no code any more."""

from typing import Any

import pytest
from conftest import SETTINGS

import vortex_worker as vw


@pytest.mark.parametrize("how", [{}, {"wxorx": True}, {"zygote": False}], ids=["forked", "wxorx", "executed"])
def test_the_first_job_may_import_it(how: dict[str, Any]) -> None:
    with vw.Fabric(1, standby=0, **SETTINGS, **how) as fabric:
        assert fabric.run("ImportsLate") == {"rows": 3, "zone": "UTC"}
