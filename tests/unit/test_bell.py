"""Who waits for a change is woken by it, and nobody else is looked for."""

import threading
import time

import pytest

from vortex_worker.supervisor.bell import Bell


class Waiters:
    """Threads that wait until there are enough of something."""

    def __init__(self, bell, lock, count):
        self.bell, self.lock, self.have, self.woken = bell, lock, 0, []
        self.threads = [threading.Thread(target=self.wait, args=(number,)) for number in range(count)]
        for thread in self.threads:
            thread.start()
        while bell.waiting < count:
            time.sleep(0.001)

    def wait(self, number):
        with self.lock:
            assert self.bell.wait_for(lambda: self.have > 0, 30)
            self.have -= 1
            self.woken.append(number)

    def give(self, count, most=None):
        with self.lock:
            self.have += count
            self.bell.ring(most)

    def join(self):
        for thread in self.threads:
            thread.join(30)
        return len(self.woken)


def test_all_that_wait_are_woken():
    lock = threading.RLock()
    waiters = Waiters(Bell(lock), lock, 3)
    waiters.give(3)
    assert waiters.join() == 3


def test_as_many_as_there_is_room_for():
    lock = threading.RLock()
    waiters = Waiters(bell := Bell(lock), lock, 3)
    waiters.give(1, most=1)
    while len(waiters.woken) < 1:
        time.sleep(0.001)
    assert bell.waiting == 2
    waiters.give(2, most=2)
    assert waiters.join() == 3


def test_a_ring_that_nobody_hears_is_forgotten():
    lock = threading.RLock()
    bell = Bell(lock)
    with lock:
        bell.ring()
        bell.ring(5)
        assert not bell.wait_for(lambda: False, 0.01)
        assert bell.waiting == 0


def test_who_stops_waiting_is_not_counted():
    lock = threading.RLock()
    bell = Bell(lock)

    def raises():
        raise ZeroDivisionError

    with lock:
        with pytest.raises(ZeroDivisionError):
            bell.wait_for(raises)
        assert bell.wait_for(lambda: True)
        assert bell.waiting == 0


@pytest.mark.parametrize("timeout", [float("inf"), 1e300])
def test_any_time_is_a_time_to_wait(timeout):
    lock, there = threading.RLock(), []
    bell = Bell(lock)

    def come():
        with lock:
            there.append(True)
            bell.ring()

    with lock:
        threading.Timer(0.01, come).start()
        assert bell.wait_for(lambda: bool(there), timeout)
