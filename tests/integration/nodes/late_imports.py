"""Imports, in its first job, what takes long to import: of that, only the libraries are loaded before lockdown."""

from typing import Any

from vortex_worker.executor import AbstractExecutor, Port


class ImportsLate(AbstractExecutor):
    op_type = "ImportsLate"
    output_ports = (Port("rows", "INT"), Port("zone", "STRING"))

    def execute(self, inputs: dict[str, Any], params: dict[str, Any]) -> dict[str, Any]:
        import datetime
        import zoneinfo

        import pyarrow

        new_year = datetime.datetime(2026, 1, 1, tzinfo=zoneinfo.ZoneInfo("UTC"))
        return {
            "rows": pyarrow.table({"column": [1, 2, 3]}).num_rows,
            "zone": str(new_year.tzname()),
        }
