"""What a person types after ``--set``, and what is meant by it."""

from typing import Any

import pytest

from vortex_worker.cli.run import _parse_setting


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("false", False),
        ("False", False),
        ("True", True),
        ("3", 3),
        ("3.5", 3.5),
        ('"False"', "False"),
        ("falsehood", "falsehood"),
        ("a = b", "a = b"),
        ("", ""),
    ],
)
def test_a_value_is_what_it_looks_like(typed: str, meant: Any) -> None:
    target, value = _parse_setting(f"node.input={typed}")
    assert (target, value, type(value)) == ("node.input", meant, type(meant))
