"""A node that can be held, for ``recover.reply``."""

import time
from typing import Any

from vortex_worker.executor import AbstractExecutor, Port


class BenchGate(AbstractExecutor):
    """Waits while ``gate[0]`` is 0; gives ``gate[1]``."""

    op_type = "BenchGate"
    input_ports = (Port("gate", "TENSOR"),)
    output_ports = (Port("number", "INT"),)

    def execute(self, inputs: dict[str, Any], params: dict[str, Any]) -> dict[str, Any]:
        gate = inputs["gate"]
        while gate[0].item() == 0:
            self.context.progress(1, 2)
            time.sleep(0.002)
        return {"number": int(gate[1])}
