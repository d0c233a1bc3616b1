"""The documentation site, by Sphinx: ``make docs`` builds it into site/, and a warning fails it.

The source folder is the repository itself, so that links lead where they lead in it: README.md is the front page, and a
header or an example that a page links to comes along as a download. The reference is made of docstrings.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import vortex_worker

ROOT = Path(__file__).parents[1]
#: Left to right in the side bar; pages that are not here come in the middle.
FIRST = [
    "docs/design",
    "docs/executors",
    "docs/nodes",
    "docs/comfyui",
    "docs/sampling",
    "docs/models",
    "docs/operations",
    "docs/deployment",
]
LAST = ["docs/sandbox", "docs/protocol", "docs/shared-memory", "docs/reference"]
LAST += ["CONTRIBUTING", "SECURITY", "CHANGELOG"]

project = "vortex-worker"
version = release = vortex_worker.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
root_doc = "README"
include_patterns = [
    "*.md",
    "docs/*.md",
    "examples/*/README.md",
    "bench/**/README.md",
    "tests/**/README.md",
]
source_suffix = {".md": "markdown"}
html_theme = "furo"
html_title = project
html_show_copyright = False
html_show_sourcelink = False
pygments_style = "default"
myst_heading_anchors = 3
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_default_options = {"members": True, "undoc-members": True, "show-inheritance": True}
nitpicky = False  # our docstrings name classes in plain words

_LINK = re.compile(r"(?<!!)\[([^\]]*)\]\((?!https?:)([^)\s#]+)\)")


def _read(app: Any, name: str, source: list[str]) -> None:
    """A link to a folder is one to its README.md, or none if it has none. The front page gets the table of contents."""
    here = (ROOT / name).parent

    def readme(match: re.Match[str]) -> str:
        folder = (here / match[2]).resolve()
        if not folder.is_dir():
            return match[0]
        return f"[{match[1]}]({match[2].rstrip('/')}/README.md)" if (folder / "README.md").exists() else match[1]

    text = _LINK.sub(readme, source[0])
    if name == root_doc:
        pages = {str(path.relative_to(ROOT).with_suffix("")) for path in ROOT.glob("docs/*.md")}
        middle = sorted(pages - {*FIRST, *LAST})
        order = [page for page in (*FIRST, *middle, *LAST) if page in pages or (ROOT / f"{page}.md").exists()]
        text += "\n```{toctree}\n:hidden:\n\n" + "\n".join(order) + "\n```\n"
    elif name.startswith(("bench/", "examples/", "tests/")):
        text = f"---\norphan: true\n---\n\n{text}"
    source[0] = text


def _finish(app: Any, error: Exception | None) -> None:
    """The front page, also under the name that servers look for."""
    if error is None:
        page = '<!doctype html><meta http-equiv="refresh" content="0; url=README.html"><a href="README.html">Start</a>'
        Path(app.outdir, "index.html").write_text(page + "\n", "utf-8")


def setup(app: Any) -> None:
    app.connect("source-read", _read)
    app.connect("build-finished", _finish)
