"""Systems without seccomp: custom nodes only inside an App Sandbox, or by an explicit word."""

from __future__ import annotations

import plistlib
import sys
from pathlib import Path

import pytest

from vortex_worker.errors import ConfigError
from vortex_worker.sandbox import macos


@pytest.mark.parametrize("platform", ["darwin", "freebsd14"])
def test_no_sandbox_no_custom_nodes(monkeypatch: pytest.MonkeyPatch, platform: str) -> None:
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(macos, "in_app_sandbox", lambda: False)
    with pytest.raises(ConfigError, match=rf"nodes/a, nodes/b.* on {platform}: .*VORTEX_ALLOW_UNSANDBOXED=1"):
        macos.require_sandbox(["nodes/a", "nodes/b"])
    assert macos.require_sandbox(["nodes/a"], allow_unsandboxed=True) == "none"
    assert macos.require_sandbox([]) == "none"


def test_inside_an_app_sandbox(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(macos, "in_app_sandbox", lambda: True)
    assert macos.require_sandbox(["nodes/a"]) == "app-sandbox"


@pytest.mark.skipif(sys.platform == "darwin", reason="asks macOS")
def test_other_systems_have_none() -> None:
    assert not macos.in_app_sandbox()


def test_entitlements() -> None:
    text = Path(macos.ENTITLEMENTS).read_bytes()
    entitlements = plistlib.loads(text)
    assert entitlements["com.apple.security.app-sandbox"] is True
    assert not any("network" in key for key in entitlements)
    assert b"<!--" not in text  # some versions of macOS refuse a signature with comments in it
