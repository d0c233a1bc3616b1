# ruff: noqa: E501 (commands stand here as they do on their pages)
"""Every command and code block of the documents runs, here or in another test; what can't says here why."""

import json
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from vortex_worker.sandbox.policy_file import read_policy

ROOT = Path(__file__).parents[2]
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md")),
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "examples").glob("*/README.md")),
    ROOT / "tests" / "security" / "attacks" / "README.md",
]
FENCED = re.compile(r"^( *)```([\w{}-]*)\n(.*?)^ *```$", re.M | re.S)
PROGRAMS = {"vortex-worker": [sys.executable, "-P", "-m", "vortex_worker"], "python": [sys.executable]}

SHORT = ["--set", "sampler.steps=1"]
#: Command → what is added to it to be short.
RUN = {
    "vortex-worker doctor": [],
    "vortex-worker top --once --json --interval 0.1": [],
    "vortex-worker run examples/digits/workflow.json -o out": SHORT,
    "vortex-worker run examples/comfyui/workflow.json --custom-nodes examples/comfyui/packs -o out": [],
}
COMFYUI = "it takes a ComfyUI of yours; examples/comfyui is the same with a pack of its own"
THESE_TESTS = "it would run these tests"
PACKAGES = "it takes a package index; tests/ run in what it installs, and `make wheel` does it on a bare machine"
MODELS = "it takes gigabytes of a model; tests/numerics/test_diffusion_pipelines.py runs its workflow with a small one"
YOURS = "it takes the reader's own files"
#: Command → why it isn't run here.
NOT_RUN = {
    "make demo": "it builds; what it then runs is `vortex-worker run examples/digits/workflow.json -o out`",
    "make test": THESE_TESTS,
    "git clone <this repository> && cd vortex-worker": "it is a sketch",
    "pip install vortex-worker": PACKAGES,
    'pip install "vortex-worker[diffusion]"': PACKAGES,
    "pip install --no-deps k-diffusion && pip install diffusers scipy torchdiffeq torchsde tqdm": PACKAGES,
    "vortex-worker run digits -o out": "tests/integration/test_cli_run.py runs it",
    'vortex-worker run examples/digits/workflow.json -o out --set "prompt.text=0123456789 1999-12-31" --set sampler.seed=4': "the same as without, with other settings",
    "make compare": "it installs every peer, and measures for long; tests/unit/test_bench_report.py checks what becomes of it",
    "vortex-worker bench --only sample.overhead,sample.step": "a minute; tests/unit/test_bench.py runs one benchmark so",
    "vortex-worker run workflow.json --custom-nodes ~/ComfyUI/custom_nodes --models ~/ComfyUI/models -o out": YOURS,
    "vortex-worker nodes --custom-nodes ~/ComfyUI/custom_nodes": YOURS,
    "vortex-worker run workflow.json --learn mine.toml": "tests/integration/test_learn.py learns one so",
    "vortex-worker policy lint mine.toml": "tests/integration/test_learn.py",
    "vortex-worker run workflow.json --policy mine.toml": "tests/integration/test_learn.py",
    "vortex-worker run examples/comfyui/workflow.json --custom-nodes examples/comfyui/packs -o out --watch": "it does not end by itself; tests/integration/test_cli_watch.py watches",
    "vortex-worker run out/sunset_00001.png --custom-nodes examples/comfyui/packs -o again": "it takes what the one before has written",
    "vortex-worker doctor --matrix": "minutes; tests/security/test_matrix.py does it",
    "vortex-worker run cat.json --custom-nodes my_nodes -o out": "it needs its page: see the last test",
    "vortex-worker run examples/diffusion/text-to-image.json --models ~/ComfyUI/models -o out": MODELS,
    "vortex-worker run examples/diffusion/text-to-image.json --models ~/ComfyUI/models -o out --set 4.ckpt_name=mine.safetensors": MODELS,
    "python examples/digits/train.py --minutes 33 --bf16 --batch 96": "half an hour; what it made is what the tests draw with",
    "python examples/deploy/service.py --custom-nodes examples/digits --output out": "tests/integration/test_deploy.py runs it",
    "curl -s --data @examples/digits/workflow.json http://127.0.0.1:8188/run": "tests/integration/test_deploy.py asks so",
    "python -W ignore tests/numerics/report.py --write": "minutes; tests/numerics/test_samplers.py checks what it prints",
}
#: (page, first line of a Python block) → why it isn't run.
BLOCKS_NOT_RUN = {
    ("README.md", "import torch"): "tests/integration/test_readme.py runs it",
    ("docs/operations.md", 'fabric = vw.Fabric(workers=2, models="models", preload=[("CheckpointLoaderSimple", {"ckpt_name": "base.safetensors"})])'): "it takes a model; tests/integration/test_preload.py preloads",
    ("docs/sampling.md", "from vortex_worker.executor.nodes.sampling.model import DiffusionModel"): "the network is the reader's; examples/digits/nodes.py is the same with one",
    ("tests/security/attacks/README.md", '@attack("files", FILTER, LANDLOCK)'): "tests/security/attacks/test_corpus.py runs every attack",
}  # fmt: skip


def name_of(page):
    return str(page.relative_to(ROOT))


def commands():
    """``(page, command)`` of shell blocks, and of indented lines that begin with a program of ours."""
    for page in PAGES:
        text = page.read_text("utf-8")
        lines = [
            line.removeprefix("$ ")
            for _, kind, body in FENCED.findall(text)
            if kind in ("console", "sh")
            for line in body.splitlines()
        ]
        lines += re.findall(r"^    ((?:make|vortex-worker|python|pytest|pip|curl) .*)$", FENCED.sub("", text), re.M)
        for line in lines:
            if command := re.sub(r"\s+#.*", "", line).strip():
                yield name_of(page), command


def is_synopsis(command):
    return command.startswith("vortex-worker") and bool(re.search(r"[\[…|]|\b[A-Z]{4,}\b|^\S+ (bench|start)$", command))


def known(command):
    return (
        command in RUN
        or command in NOT_RUN
        or is_synopsis(command)
        or command.split()[0] == "pytest"
        or command.startswith("python -m pytest")
    )


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_command_is_run_or_says_why_not(page):
    unknown = [command for name, command in commands() if name == name_of(page) and not known(command)]
    assert unknown == [], "add them to RUN, or to NOT_RUN with the reason"


def test_no_entry_is_left_of_a_command_that_is_gone():
    there = {command for _, command in commands()}
    assert {*RUN, *NOT_RUN} - there == set()


@pytest.mark.parametrize("command", RUN)
def test_the_command_runs(command, tmp_path):
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    program, *arguments = shlex.split(command)
    argv = [*PROGRAMS[program], *arguments, *RUN[command]]
    done = subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("command", sorted({c for _, c in commands() if is_synopsis(c)}))
def test_what_a_synopsis_promises_the_help_knows(command):
    subcommand, *rest = re.findall(r"(?<![\w-])[a-z]{3,}\b", command.removeprefix("vortex-worker"))[:2]
    words = [subcommand, *(rest if subcommand == "policy" else [])]
    done = subprocess.run([*PROGRAMS["vortex-worker"], *words, "--help"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    for option in re.findall(r"--[a-z-]+", command):
        assert option in done.stdout


@pytest.mark.parametrize("path", ["tests/security", "tests/numerics", "tests/chaos", "tests/security/attacks"])
def test_what_pytest_is_given_is_there(path):
    assert any((ROOT / path).glob("test_*.py"))


def blocks(kind):
    for page in PAGES:
        text = page.read_text("utf-8")
        for match in FENCED.finditer(text):
            if match[2] == kind:
                before = text[: match.start()].rstrip().rpartition("\n")[2]
                yield name_of(page), before, re.sub(f"^{match[1]}", "", match[3], flags=re.M)


def test_every_python_block_runs_or_says_why_not():
    """``tests/unit/test_docs.py`` runs those that are marked."""
    there = {(page, text.split("\n")[0]) for page, before, text in blocks("python") if "<!-- runnable" not in before}
    assert there == set(BLOCKS_NOT_RUN)


def test_every_block_names_its_language():
    kinds = {kind for page in PAGES for _, kind, _ in FENCED.findall(page.read_text("utf-8"))}
    assert kinds <= {"python", "console", "sh", "json", "toml", "text", "mermaid", "{eval-rst}"}


@pytest.mark.parametrize(("page", "text"), [(p, t) for p, _, t in blocks("json")], ids=lambda v: v[:20])
def test_json_blocks_are_json(page, text):
    assert json.loads(text)


@pytest.mark.parametrize(("page", "text"), [(p, t) for p, _, t in blocks("toml")], ids=lambda v: v[:20])
def test_toml_blocks_are_toml_and_policies_are_policies(page, text, tmp_path):
    data = tomllib.loads(text)
    if "extends" in data:
        path = tmp_path / "mine.toml"
        path.write_text(text, "utf-8")
        assert read_policy(str(path)).rules


def test_the_workflow_of_executors_md_runs(tmp_path):
    from PIL import Image

    text = (ROOT / "docs" / "executors.md").read_text("utf-8")
    (tmp_path / "my_nodes").mkdir()
    node = re.search(r"<!-- runnable: (my_nodes/vignette\.py) -->\n+```python\n(.*?)```", text, re.S)
    (tmp_path / node[1]).write_text(node[2], "utf-8")
    (tmp_path / "cat.json").write_text(next(t for p, _, t in blocks("json") if p == "docs/executors.md"), "utf-8")
    Image.new("RGB", (32, 32), "white").save(tmp_path / "cat.png")
    argv = [*PROGRAMS["vortex-worker"], "run", "cat.json", "--custom-nodes", "my_nodes", "-o", "out"]
    done = subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    (picture,) = (tmp_path / "out").iterdir()
    with Image.open(picture) as image:
        assert image.getpixel((16, 16)) > image.getpixel((0, 0))  # dark corners
