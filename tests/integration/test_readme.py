"""The README's Python session runs as it stands."""

import os
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_python_session_of_the_readme_runs(capsys):
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    assert blocks
    before = os.getcwd()
    os.chdir(ROOT)
    try:
        for block in blocks:
            exec(compile(block, "README.md", "exec"), {})
    finally:
        os.chdir(before)
    assert capsys.readouterr().out == "torch.Size([4, 1, 28, 28])\n"


def test_every_link_of_the_readme_leads_somewhere():
    text = (ROOT / "README.md").read_text()
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        assert target.startswith("http") or (ROOT / target).exists(), target
