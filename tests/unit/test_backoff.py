"""Starts that fail: how long until the next, and when there is to be none."""

import signal
import time

import pytest

from vortex_worker.supervisor.recovery import Backoff


@pytest.fixture
def clock(monkeypatch):
    """Seconds, to be set by the test."""
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def test_each_pause_is_as_long_as_the_last_or_longer_until_a_start_succeeds():
    starts, pauses = Backoff(), []
    for _ in range(30):
        pauses.append(starts.pause)
        starts.failed(-signal.SIGKILL)
    assert pauses == sorted(pauses)
    assert pauses[0] < 0.1 < 1.0 < pauses[-1] < 60.0
    starts.succeeded()
    assert starts.pause == pauses[0]
    assert not starts.hopeless


@pytest.mark.parametrize("status", [1, 0, None, -signal.SIGSYS], ids=str)
def test_what_ends_by_itself_three_times_is_given_up_at_once(status, clock):
    starts = Backoff()
    for _ in range(2):
        starts.failed(status)
        assert not starts.hopeless
    starts.failed(status)
    assert starts.hopeless


def test_what_is_killed_is_given_up_after_ten_times_and_ten_seconds(clock):
    starts = Backoff()
    for _ in range(50):
        starts.failed(-signal.SIGKILL)
    clock[0] += 9.0
    assert not starts.hopeless
    clock[0] += 2.0
    assert starts.hopeless
    starts.succeeded()
    clock[0] += 60.0
    for _ in range(9):
        starts.failed(-signal.SIGSEGV)
    clock[0] += 60.0
    assert not starts.hopeless
    starts.failed(-signal.SIGSEGV)
    assert starts.hopeless
