"""``vortex-worker nodes``: what it lists."""

import json
import re

from shell import vortex


def test_nodes_lists_what_there_is(digits, tmp_path):
    done = vortex("nodes", "--custom-nodes", digits, "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    nodes = {node["name"]: node for node in json.loads(done.stdout)["nodes"]}
    assert {"KSampler", "DigitsModelLoader", "SaveImage", "EmptyLatentImage"} <= nodes.keys()
    seed = next(param for param in nodes["KSampler"]["params"] if param["name"] == "seed")
    assert seed["maximum"] == (1 << 64) - 1
    assert len(re.findall(r"\bKSampler\b", vortex("nodes", cwd=tmp_path).stdout)) == 1


def test_in_a_pipe_no_name_of_a_node_is_cut(tmp_path):
    folder = tmp_path / "nodes"
    folder.mkdir()
    (folder / "long.py").write_text(
        "from vortex_worker.executor import AbstractExecutor, Param\n"
        f"class Long(AbstractExecutor):\n    op_type = '{'Long' * 40}'\n"
        f"    params = (Param('{'name' * 40}', 'INT'),)\n"
        "    def execute(self, inputs, params): return {}\n"
    )
    listed = vortex("nodes", "--custom-nodes", folder, cwd=tmp_path).stdout
    assert "Long" * 40 + "  nodes/long\n" in listed
    assert f"  takes  {'name' * 40} [a whole number]\n" in listed
    assert "euler_ancestral_cfg_pp" in listed
