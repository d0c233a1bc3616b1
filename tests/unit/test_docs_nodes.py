"""docs/nodes.md has every built-in node as the registry does. ``python tests/unit/test_docs_nodes.py`` writes it."""

from __future__ import annotations

from pathlib import Path

from vortex_worker.executor.ports import REQUIRED, OpSpec, Param, Port
from vortex_worker.executor.registry import builtin
from vortex_worker.supervisor.workflow import CLIENT_NODES

PAGE = Path(__file__).parents[2] / "docs" / "nodes.md"

HEAD = """\
# Built-in nodes

Every node that comes with vortex-worker, as `vortex-worker nodes` lists them, too (`--json` for programs). This page is
written by `python tests/unit/test_docs_nodes.py` from what the nodes declare, and a test holds it to that.

Settings have their defaults behind `=`; without one, a value must be given. A `?` marks inputs that may be left out.
Types are explained in [Writing a node](executors.md#ports). Where ComfyUI has a node of the same name, inputs and
meaning are the same.
"""
#: Heading → modules whose nodes are below it.
GROUPS = {
    "Tensors": ("tensor",),
    "Models": ("loaders",),
    "Prompts": ("conditioning",),
    "ControlNets": ("controlnet",),
    "Sampling": ("ksampler", "patches"),
    "Latents": ("latent", "latent_file", "latents"),
    "From latents to images and back": ("vae",),
    "Images": ("image", "images"),
    "Masks": ("mask",),
}
_FEW = 9  # choices that are all shown


def specs() -> dict[str, list[OpSpec]]:
    """By module. Of nodes on files, the client's half is what a workflow sees."""
    found: dict[str, list[OpSpec]] = {}
    for cls, spec in builtin():
        client = CLIENT_NODES.get(spec.name)
        found.setdefault(cls.__module__.rpartition(".")[2], []).append(client.spec if client else spec)
    workers = {spec.name for group in found.values() for spec in group}
    for name, client in CLIENT_NODES.items():
        if name not in workers:
            found.setdefault("latents" if "Latent" in name else "images", []).append(client.spec)
    return found


def port(port: Port) -> str:
    names = "/".join((port.name, *port.aliases))
    return f"`{names}`{'?' * port.optional} {port.type.replace('*', 'any')}"


def param(param: Param) -> str:
    default = "" if param.default is REQUIRED else f" = {param.default!r}"
    text = f"`{param.name}{default}` {param.type}"
    if param.choices:
        shown = ", ".join(param.choices[:_FEW])
        text = f"`{param.name}{default}` " + (
            f"one of {len(param.choices)}: {shown}, …" if len(param.choices) > _FEW else f"one of {shown}"
        )
    elif param.minimum is not None and param.maximum is not None:
        text += f", {param.minimum} to {param.maximum}"
    return text + (f" ({param.doc})" if param.doc else "")


def entry(spec: OpSpec) -> str:
    lines = [f"### {spec.name}", "", spec.doc.replace("``", "`"), ""]
    if spec.inputs:
        lines.append(f"- takes {', '.join(map(port, spec.inputs))}")
    lines += [f"- {param(each)}" for each in spec.params]
    if spec.outputs:
        lines.append(f"- gives {', '.join(map(port, spec.outputs))}")
    return "\n".join(lines)


def text() -> str:
    found = specs()
    assert {module for modules in GROUPS.values() for module in modules} == found.keys()
    parts = [HEAD]
    for heading, modules in GROUPS.items():
        parts.append(f"## {heading}\n")
        nodes = [spec for module in modules for spec in found[module]]
        parts += [entry(spec) + "\n" for spec in sorted(nodes, key=lambda spec: spec.name)]
    return "\n".join(parts)


def test_the_page_has_every_node_as_it_declares_itself() -> None:
    assert PAGE.read_text("utf-8") == text()


def test_every_node_says_in_a_line_what_it_does() -> None:
    for group in specs().values():
        for spec in group:
            assert spec.doc.endswith("."), spec.name


if __name__ == "__main__":
    PAGE.write_text(text(), "utf-8")
