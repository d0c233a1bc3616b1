"""What a step frees, the next step of a job finds again; and a worker that has no job gives it back."""

import time
from pathlib import Path

import vortex_worker as vw

NODE = '''
import torch
from vortex_worker.executor import AbstractExecutor, Param, Port


class Steps(AbstractExecutor):
    """Each step takes some buffers, as large as a network's, and frees them."""

    op_type = "Steps"
    output_ports = (Port("sum", "FLOAT"),)
    params = (Param("steps", "INT"),)

    def execute(self, inputs, params):
        total = 0.0
        for _ in range(params["steps"]):
            kept = [torch.ones(2 << 20) for _ in range(6)]  # 8 MiB each
            total += float(sum(buffer[0] for buffer in kept))
        return {"sum": total}
'''
PAGE = 4096
STEP = 48 << 20  # bytes that a step takes


def faults(pid):
    """proc(5), stat: minflt."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[7])


def test_steps_take_no_new_pages_and_a_worker_at_rest_keeps_none(tmp_path):
    (tmp_path / "steps.py").write_text(NODE)
    with vw.Fabric(1, standby=0, threads=1, custom_nodes=tmp_path, lease_size=8 << 20, client_size=8 << 20) as fabric:
        fabric.wait_ready(60)
        (worker,) = fabric.workers()
        assert fabric.run("Steps", params={"steps": 2}) == {"sum": 12.0}
        before = faults(worker["pid"])
        assert fabric.run("Steps", params={"steps": 20}) == {"sum": 120.0}
        assert faults(worker["pid"]) - before < 2 * STEP // PAGE  # if each took new ones: 20 times as many
        end = time.monotonic() + 60
        while fabric.workers()[0]["memory_bytes"] > worker["memory_bytes"] + STEP // 2 and time.monotonic() < end:
            time.sleep(0.05)
        assert fabric.workers()[0]["memory_bytes"] < worker["memory_bytes"] + STEP // 2
        assert fabric.run("Steps", params={"steps": 1}) == {"sum": 6.0}
        assert fabric.workers()[0]["pid"] == worker["pid"]
