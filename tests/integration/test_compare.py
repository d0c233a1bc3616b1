"""The comparison: its harness measures what it says, with the peers that need nothing of their own."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[2] / "bench"


def serve(peer, *requests):
    """What a peer's process answers to each request."""
    lines = "".join(json.dumps(request) + "\n" for request in requests)
    command = [sys.executable, str(BENCH / "compare.py"), "serve", peer]
    done = subprocess.run(command, input=lines, capture_output=True, text=True, timeout=200)
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(answers) == len(requests), done.stderr
    return answers


@pytest.mark.parametrize("peer", ["call", "fabric", "pipe", "torch_mp"])
def test_a_peer_gives_every_figure(peer):
    about, first, held, private = serve(
        peer,
        {"do": "about"},
        {"do": "start", "workers": 1},
        {"do": "call", "elements": 1024, "held": True, "count": 3},
        {"do": "call", "elements": 1 << 20, "held": False, "count": 2},
    )
    assert about["result"]["title"]
    assert first["result"] > 0
    assert len(held["result"]) == 3
    assert len(private["result"]) == 2


def test_a_peer_gets_over_a_crash_and_is_weighed():
    _, crash, memory, close = serve(
        "pipe", {"do": "start", "workers": 2}, {"do": "crash"}, {"do": "memory"}, {"do": "close"}
    )
    assert crash["result"] > 0
    assert memory["result"] > 1
    assert close == {"result": None}


def test_a_peer_that_fails_says_why():
    (answer,) = serve("pipe", {"do": "call", "elements": 1024, "held": True, "count": 1})
    assert "_workers" in answer["error"]


def test_a_result_that_is_not_what_was_sent_is_no_figure():
    program = f"""
import sys
sys.path[0:0] = [{str(BENCH)!r}]
import compare, peers.call
peers.call.identity = lambda tensor: tensor + 1
compare.Subject("call").call(1024, True, 1)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=100)
    assert "AssertionError: what came back is not what was sent" in done.stderr
