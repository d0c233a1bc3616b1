"""Who kills at random, and who counts what is left: shared by the chaos tests and the soak."""

import collections
import contextlib
import gc
import os
import random
import resource
import signal
import subprocess
import threading
import time


def descendants():
    """Processes below this one, as ``(pid, name)``: the zygotes and their children."""
    lines = subprocess.run(["ps", "-eo", "pid=,ppid=,comm="], capture_output=True, text=True, check=True).stdout
    children = collections.defaultdict(list)
    for line in lines.splitlines():
        pid, parent, name = line.split(None, 2)
        children[int(parent)].append((int(pid), name))
    found, look = [], [os.getpid()]
    while look:
        for pid, name in children[look.pop()]:
            if name != "ps":
                found.append((pid, name))
                look.append(pid)
    return found


def counts():
    """What of processes, threads, descriptors and shared memory there is now."""
    gc.collect()
    with open("/proc/self/maps") as maps:
        arenas = sum("vortex-arena" in line for line in maps)
    return {
        "processes": descendants(),
        "threads": threading.active_count(),
        "descriptors": len(os.listdir("/proc/self/fd")),
        "arenas": arenas,
        "shm": sorted(name for name in os.listdir("/dev/shm") if "vortex" in name),  # others' come and go
    }


def counts_of(fabric):
    """The same of a fabric that runs, each of whose workers is ready and idle."""
    live = live_of(fabric)
    names = collections.Counter(name for _, name in descendants())
    return counts() | {"processes": names, "live": live}


def live_of(fabric):
    """Live blocks of the client's region and handles of all leases, once those that nobody holds are gone."""
    end = time.monotonic() + 30
    while True:
        gc.collect()
        live = fabric._memory.client_live
        for lease in fabric._memory._leases:
            lease.collect()
            live += lease.live
        if live == 0 or time.monotonic() > end:
            return live
        time.sleep(0.02)


class Killer(threading.Thread):
    """Does harm to random processes of a fabric, at random moments of their lives."""

    SIGNALS = (signal.SIGKILL,) * 6 + (signal.SIGSEGV,) * 2 + (signal.SIGABRT, signal.SIGSTOP)

    def __init__(self, fabric, seed, pause=0.015, every=0, zygotes=0.02, starve=0.05):
        """
        Args:
            fabric: to be asked which worker is which process.
            pause: seconds between two, on average.
            every: jobs that must have ended between two, on average; on a slow machine too there are jobs between.
            zygotes: the part of them that goes to a zygote, but one in five seconds at most.
            starve: the part that takes all memory from a worker, for a moment.
        """
        super().__init__(daemon=True)
        self.fabric = fabric
        self.random = random.Random(seed)
        self.pause = pause
        self.every = every
        self.ended = 0  # jobs; counted by who runs them
        self.zygotes = zygotes
        self.starve = starve
        self.stop = threading.Event()
        self.sent = collections.Counter()
        self.starved = set()  # ids of workers
        self.last = 0.0  # when a zygote was killed

    def run(self):
        after = 0.0
        while not self.stop.wait(self.random.expovariate(1 / self.pause)):
            if self.ended < after:
                continue
            after = self.ended + self.random.uniform(0, 2 * self.every)
            victims = descendants()
            workers = [pid for pid, name in victims if name == "vw-worker"]
            zygotes = [pid for pid, name in victims if name == "vw-zygote"]
            # A zygote takes seconds to start where the machine is busy. One that is killed ten times before it has
            # is given up, and rightly.
            if self.random.random() < self.zygotes and zygotes and time.monotonic() - self.last > 5.0:
                self.last = time.monotonic()
                self.send(self.random.choice(zygotes), signal.SIGKILL, "zygote")
            elif self.random.random() < self.starve:
                self.take_memory()
            elif workers:
                self.send(self.random.choice(workers), self.random.choice(self.SIGNALS), "worker")

    def send(self, pid, number, what):
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            return
        self.sent[f"{what} {signal.Signals(number).name}"] += 1

    def take_memory(self):
        """From now on a worker gets no more from the kernel, for as long as some jobs take."""
        ready = [w for w in self.fabric.workers() + self.fabric.standbys() if w["stage"] in ("ready", "standby")]
        if not ready:
            return
        victim = self.random.choice(ready)
        self.starved.add(victim["id"])
        with contextlib.suppress(ProcessLookupError):
            soft, hard = resource.prlimit(victim["pid"], resource.RLIMIT_DATA)
            resource.prlimit(victim["pid"], resource.RLIMIT_DATA, (1, hard))
            self.sent["worker out of memory"] += 1
            time.sleep(0.02)
            resource.prlimit(victim["pid"], resource.RLIMIT_DATA, (soft, hard))
