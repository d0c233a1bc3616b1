"""Systems without seccomp and Landlock: the App Sandbox on macOS, and nothing elsewhere, which is said aloud.

macOS gives a process its sandbox when it starts, by the entitlements that its program is signed with; a
process can't be put there later by public means. So this module only looks, and refuses custom nodes to a
worker that has no sandbox. ``entitlements.plist`` is what to sign an embedding application with.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from vortex_worker.errors import ConfigError

__all__ = ["ENTITLEMENTS", "in_app_sandbox", "require_sandbox"]

#: ``codesign --entitlements`` takes this file. Explained in ``docs/sandbox.md``, since comments in it would
#: make some versions of macOS refuse the signature.
ENTITLEMENTS = os.path.join(os.path.dirname(os.path.abspath(__file__)), "entitlements.plist")


def in_app_sandbox() -> bool:
    """Whether macOS confines this process. False on every other system."""
    if sys.platform != "darwin":
        return False
    import ctypes

    try:
        check = ctypes.CDLL("/usr/lib/libSystem.B.dylib").sandbox_check
    except (OSError, AttributeError):
        return False
    # sandbox_check(pid, operation, type): with no operation it says whether there is a sandbox at all.
    return bool(check(os.getpid(), None, 0) == 1)


def require_sandbox(custom_nodes: Sequence[str], *, allow_unsandboxed: bool = False) -> str:
    """What confines this process, in words for the log and the handshake: ``"app-sandbox"`` or ``"none"``.

    Raises:
        ConfigError: nothing confines it, custom nodes are configured, and running without was not allowed.
    """
    if in_app_sandbox():
        return "app-sandbox"
    if custom_nodes and not allow_unsandboxed:
        cure = (
            "run inside an application signed with the App Sandbox entitlements (sandbox/entitlements.plist)"
            if sys.platform == "darwin"
            else "build vortex-worker with libseccomp"
            if sys.platform == "linux"
            else "use Linux, which has a sandbox"
        )
        raise ConfigError(
            f"custom nodes are configured ({', '.join(custom_nodes)}), but nothing confines this process on "
            f"{sys.platform}: {cure}, or set VORTEX_ALLOW_UNSANDBOXED=1 if you trust every one of them"
        )
    return "none"
