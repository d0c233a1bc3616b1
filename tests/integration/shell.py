"""The command line as somebody types it, and small things to give it."""

import json
import subprocess
import sys

COMMAND = [sys.executable, "-P", "-m", "vortex_worker"]
SMALL = {
    "a": {"class_type": "EmptyLatentImage", "inputs": {"width": 64, "height": 64}},
    "b": {"class_type": "RepeatLatentBatch", "inputs": {"samples": ["a", 0], "amount": 2}},
}


def vortex(*arguments, cwd, **options):
    return subprocess.run(
        [*COMMAND, *map(str, arguments)], cwd=cwd, capture_output=True, text=True, timeout=120, **options
    )


def workflow(tmp_path, nodes=SMALL):
    path = tmp_path / "workflow.json"
    path.write_text(json.dumps(nodes))
    return path


#: Nodes that never end, and that take all the memory there is.
STRANGE = """
import time
from vortex_worker.executor import AbstractExecutor

class Forever(AbstractExecutor):
    op_type = "Forever"
    def execute(self, inputs, params):
        while True:
            time.sleep(0.1)

class Greedy(AbstractExecutor):
    op_type = "Greedy"
    output_ports = ()
    def execute(self, inputs, params):
        bytearray(8 << 30)
        return {}
"""
