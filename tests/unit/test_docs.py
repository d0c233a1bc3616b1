"""The documents are true: examples run, offsets and field numbers are the code's, links lead somewhere."""

import gc
import re
import subprocess
import sys
from pathlib import Path

import pytest

from vortex_worker.ipc import control_pb2 as pb

ROOT = Path(__file__).parents[2]
DOCS = [
    *sorted((ROOT / "docs").glob("*.md")),
    *(ROOT / name for name in ("CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md")),
]
#: ``<!-- runnable -->`` before a block: it runs. ``<!-- runnable: FILE -->``: it is saved as that file first.
RUNNABLE = re.compile(r"<!-- runnable(?:: (\S+))? -->\n+```python\n(.*?)```", re.S)


def page(name):
    return (ROOT / "docs" / name).read_text("utf-8")


@pytest.mark.parametrize("name", [path.name for path in DOCS if "<!-- runnable" in path.read_text("utf-8")])
def test_the_examples_run(name, tmp_path, monkeypatch):
    blocks = RUNNABLE.findall(page(name))
    assert any(not file for file, _ in blocks)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    modules = set(sys.modules)
    try:
        for file, text in blocks:
            if file:
                path = tmp_path / file
                path.parent.mkdir(exist_ok=True)
                path.write_text(text, "utf-8")
            else:
                exec(compile(text, f"docs/{name}", "exec"), {"__name__": "__main__"})
    finally:
        for module in set(sys.modules) - modules:
            if str(getattr(sys.modules[module], "__file__", "")).startswith(str(tmp_path)):
                del sys.modules[module]
        # A tracer provider that lives on in a cycle would start a thread in each process that a later test forks.
        gc.collect()


def test_a_node_is_fifteen_lines_as_we_say_it_is():
    (file, text), *_ = RUNNABLE.findall(page("executors.md"))
    assert "these fifteen lines" in page("executors.md")
    assert (file, len(text.splitlines())) == ("my_nodes/vignette.py", 15)


def test_every_python_block_of_executors_is_marked():
    assert len(RUNNABLE.findall(page("executors.md"))) == page("executors.md").count("```python")


# ------------------------------------------------------- shared-memory.md against csrc/layout.h

SIZES = {"u64": 8, "u32": 4, "i32": 4}


def table_of(text, heading):
    """Rows of the first table below a heading, as lists of cells without backquotes."""
    section = text.split(f"\n## {heading}\n", 1)[1].split("\n## ", 1)[0]
    rows = [
        [cell.strip().strip("`") for cell in line.strip("|").split("|")]
        for line in section.split("\n")
        if line.startswith("|")
    ]
    return rows[2:]


@pytest.mark.parametrize(("heading", "struct"), [("Header", "vw_header"), ("Slots", "vw_slot")])
def test_the_offsets_are_those_of_layout_h(heading, struct):
    layout = (ROOT / "csrc" / "layout.h").read_text()
    asserted = {name: int(at) for name, at in re.findall(rf"offsetof\({struct}, (\w+)\) == (\d+)", layout)}
    body = layout.split(f"typedef struct {struct} {{")[1].split("}")[0]
    types = {
        name: f"{'u' if unsigned else 'i'}{bits}"
        for unsigned, bits, name in re.findall(r"_Atomic (u?)int(32|64)_t (\w+);", body)
    }
    rows = [row for row in table_of(page("shared-memory.md"), heading) if row[1] != "zeros"]
    assert {row[1]: int(row[0]) for row in rows} == asserted
    assert {row[1]: row[2] for row in rows} == types


@pytest.mark.parametrize("heading", ["Header", "Slots"])
def test_the_tables_leave_no_gap_in_64_bytes(heading):
    at = 0
    for row in table_of(page("shared-memory.md"), heading):
        assert int(row[0]) == at, row
        at += SIZES[row[2]] if row[2] in SIZES else int(row[2].removesuffix(" bytes"))
    assert at == 64


def test_the_constants_are_those_of_layout_h():
    text, layout = page("shared-memory.md"), (ROOT / "csrc" / "layout.h").read_text()
    magic = re.search(r"VW_MAGIC UINT64_C\((0x[0-9a-f]+)\)", layout).group(1)
    assert f"`{magic}`" in text
    assert int(magic, 16).to_bytes(8, "little") == b"VORTEXW1"
    assert "`" + b"VORTEXW1".hex(" ") + "`" in text
    statuses = {name.lower(): number for name, number in re.findall(r"VW_(\w+) = (\d),", layout)}
    assert statuses
    told = re.search(r"Status: (.*?)\.", text, re.S).group(1)
    assert {name: number for number, name in re.findall(r"(\d) (\w+)", told)} == statuses


# --------------------------------------------------------- protocol.md against the wire's schema


def test_the_field_numbers_are_those_of_the_schema():
    told = {}
    for name, fields in re.findall(r"^\| `([A-Z][a-zA-Z]+)` \| (\d+ \w+ [^|]*?) \|", page("protocol.md"), re.M):
        told[name] = {field: int(number) for number, field in re.findall(r"(?:^|· )(\d+) (\w+) ", fields + " ")}
    messages = {m.name: m for m in pb.DESCRIPTOR.message_types_by_name.values()}
    assert told == {name: {f.name: f.number for f in m.fields} for name, m in messages.items()}


def test_the_hex_dumps_are_packets():
    dumps = re.findall(r"```text\n((?:[0-9a-f]{4}  .*\n)+)```", page("protocol.md"))
    assert len(dumps) >= 4
    kinds = []
    for dump in dumps:
        frame = b"".join(bytes.fromhex(line[6:54]) for line in dump.splitlines())
        assert int.from_bytes(frame[:4], "little") == len(frame) - 4
        kinds.append(pb.ControlPacket.FromString(frame[4:]).WhichOneof("body"))
    assert {"handshake", "handshake_ack", "job_submit", "job_result"} <= set(kinds)


# ------------------------------------------------------------- deployment.md against the metrics


def test_the_metrics_are_those_there_are():
    import prometheus_client

    from vortex_worker.observe.metrics import Metrics

    registry = prometheus_client.CollectorRegistry()
    there = set()
    for family in [*Metrics(registry).collect(), *registry.collect()]:
        there.add(family.name + ("_total" if family.type == "counter" else ""))
    text = page("deployment.md")
    assert set(re.findall(r"^\| `(vortex_\w+)` \|", text, re.M)) == there


# ----------------------------------------------------------------------------- links


def test_the_site_builds_without_a_warning(tmp_path):
    """Links, anchors and docstrings included."""
    command = [sys.executable, "-P", "-m", "sphinx", "-b", "html", "-W", "--keep-going", "-q", "-c", "docs", "-d"]
    done = subprocess.run(
        [*command, tmp_path / "trees", ".", tmp_path / "site"], cwd=ROOT, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "run_workflow" in (tmp_path / "site" / "docs" / "reference.html").read_text("utf-8")


@pytest.mark.parametrize("path", DOCS, ids=lambda path: path.name)
def test_every_link_leads_somewhere(path):
    text = path.read_text("utf-8")
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith(("http:", "https:", "mailto:")):
            continue
        file, _, anchor = target.partition("#")
        there = path.parent / file if file else path
        assert there.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", there.read_text("utf-8"), re.M)
            assert anchor in {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}, target
