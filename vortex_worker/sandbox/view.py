"""What a worker sees of the file system: the files and folders of Landlock's list, and the links that lead to them.

    seen = outline(folders)                     # in the zygote, once for all workers
    enter_view(seen.shown, seen.links)          # _core.lockdown; from here on nothing else exists

A path has more spellings than one: ``/lib`` is a link to ``usr/lib``, a virtual environment may lie behind one, and so
may a socket. Each link on the way to a listed path is made anew in the view, so that all of them go on working.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from vortex_worker.sandbox import landlock

__all__ = ["View", "outline", "why_not"]

#: Folders of nothing but links, through which those in the system's folders lead (Debian's choice of a BLAS, say).
_SWITCHBOARDS = ("/etc/alternatives",)


class View(NamedTuple):
    """What ``_core.lockdown.enter_view`` takes."""

    shown: tuple[bytes, ...]
    links: tuple[tuple[bytes, bytes], ...]


def outline(rules: Iterable[tuple[bytes, int]], spellings: Iterable[str] = (), sockets: Iterable[str] = ()) -> View:
    """The view for Landlock's ``rules``.

    Args:
        rules: as ``landlock.readonly_rules`` and ``device_rules`` give them.
        spellings: these paths as others write them, with links.
        sockets: paths of sockets to connect to; one that does not exist is left out.
    """
    wanted = [os.fsdecode(path) for path, _ in rules]
    wanted += [os.path.realpath(path) for path in (*_SWITCHBOARDS, *sockets) if os.path.exists(path)]
    shown = landlock.outermost(wanted)
    links = {
        link: target
        for path in (*spellings, *sockets)
        for link, target in _links(path)
        if not landlock.inside(link, shown)
    }
    return View(tuple(map(os.fsencode, shown)), tuple((os.fsencode(link), os.fsencode(links[link])) for link in links))


def _links(path: str) -> Iterator[tuple[str, str]]:
    """Each link among the parts of ``path``: where it lies, by no link, and what it leads to at the end of all links.

    So what its own text goes through need not exist. What a ``..`` comes back from must, in the view, too.
    """
    here = "/"
    for part in path.split("/"):
        here = there = os.path.normpath(os.path.join(here, part))
        if os.path.islink(there):
            here = os.path.realpath(there)
            yield there, here


def why_not() -> str:
    """Why a worker can't have a view on this machine; "": it can. Tried in a child."""
    from vortex_worker._core import lockdown

    seen = outline(landlock.readonly_rules(), landlock.spellings())
    receive, send = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            lockdown.enter_view(*seen)
        except BaseException as error:
            os.write(send, str(error).encode())
        os._exit(0)
    os.close(send)
    with open(receive, "rb") as answer:
        why = answer.read().decode()
    os.waitpid(pid, 0)
    return why
