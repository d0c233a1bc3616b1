"""Compares this project with what people use today, on this machine, turn by turn.

    bench/compare.py setup [PEER…]      # one virtual environment for each peer, below .bench/
    bench/compare.py run [--quick] [--peers PEER,…] [--output FILE]
    bench/compare.py plot [FILE]        # the picture and the table of docs/performance.md, of the newest result

``run`` starts each peer in a process of its own environment (this file, as ``serve PEER``), tells it what to do in
lines of JSON, and goes from peer to peer in every round, so that what disturbs the machine disturbs them all. Every
result is compared with what was sent. What can't be had is told in the result, with the reason.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import json
import os
import select
import shutil
import signal
import statistics
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parent
PLACE = ROOT / ".bench"
sys.path[0:0] = [str(HERE)]

import peers  # noqa: E402 - bench/ is not installed

SMALL, LARGE = 1024, 16 << 20  # float32: 4 KiB, 64 MiB
STAMPS = 7  # elements that are changed before a call, and looked at after it
TIMEOUT = 180.0  # s for one command
PATIENCE = 3.0  # s after which a peer's round of calls ends with those it has made
CONFESSION = [
    "Peers that are not measured at a moment stand by; some of them wake now and then.",
    "The function is the identity: what is measured is the way there and back, not work.",
    "A tensor that is held may be given back as it lies; one in private memory must be carried over first.",
    "Memory is proportional set size (PSS): pages shared with other programs count in part.",
    "A worker is killed while it waits for work; the clock starts at the signal.",
]


# ------------------------------------------------------------------ one peer, in its own environment


class Subject:
    """A peer, and what is measured of it. Runs in the peer's environment."""

    def __init__(self, name: str) -> None:
        import torch

        torch.set_num_threads(1)
        peers.warm_up()
        self.peer = peers.load(name)()
        self.workers = 0
        self._alone = pss(os.getpid())

    def about(self) -> dict[str, Any]:
        peer = self.peer
        version = importlib.metadata.version(peer.distribution) if peer.distribution else ""
        return {
            "title": peer.title, "version": version, "docs": peer.docs, "use": peer.use,
            "isolation": peer.isolation, "recovery": peer.recovery, "has_workers": peer.has_workers,
        }  # fmt: skip

    def start(self, workers: int) -> float:
        """Seconds from nothing to the first right result. The program itself has torch already."""
        tensor = self._tensor(SMALL)
        begun = time.perf_counter()
        self.peer.setup(workers)
        self.workers = workers
        out = self.peer.call(tensor)
        ended = time.perf_counter()
        self._check(out, tensor)
        return ended - begun

    def call(self, elements: int, held: bool, count: int) -> list[float]:
        """Seconds of each call. Changing the tensor before and checking after are not timed. Not for long."""
        samples: list[float] = []
        end = time.monotonic() + PATIENCE
        while len(samples) < count and (not samples or time.monotonic() < end):
            tensor = self._tensor(elements)
            argument = self.peer.hold(tensor) if held else tensor
            out = None
            begun = time.perf_counter()
            out = self.peer.call(argument)
            samples.append(time.perf_counter() - begun)
            self._check(out, tensor)
            del argument
        return samples

    def crash(self) -> float:
        """Seconds from SIGKILL of the worker to the next right result."""
        tensor = self._tensor(SMALL)
        self._check(self.peer.call(tensor), tensor)
        if hasattr(self.peer, "before_crash"):
            self.peer.before_crash()
        pid = self.peer.pid()
        begun = time.perf_counter()
        os.kill(pid, signal.SIGKILL)
        while True:
            out = self.peer.recall(tensor)
            ended = time.perf_counter()
            # The signal and the call race: a result that the dying worker gave is no recovery.
            if self.peer.pid() != pid:
                break
        self._check(out, tensor)
        return ended - begun

    def memory(self) -> float:
        """MiB that this process and all that came of it take more than it alone, once every worker has worked."""
        self.peer.call_all(self._tensor(SMALL), self.workers)
        return sum(pss(pid) for pid in [os.getpid(), *descendants(os.getpid())]) - self._alone

    def close(self) -> None:
        self.peer.close()

    def _tensor(self, elements: int) -> Any:
        """A vector that was never sent before."""
        import torch

        tensor = torch.arange(float(elements))
        tensor[:: elements // STAMPS] = torch.rand(len(tensor[:: elements // STAMPS]))
        return tensor

    def _check(self, out: Any, tensor: Any) -> None:
        import torch

        assert torch.equal(out, tensor), "what came back is not what was sent"


def serve(name: str) -> None:
    """Do what comes in by standard input. Results go to the first standard output; what a peer prints, to stderr."""
    results = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    subject = Subject(name)
    try:
        for line in sys.stdin:
            request = json.loads(line)
            try:
                answer = {"result": getattr(subject, request.pop("do"))(**request)}
            except BaseException as error:
                answer = {"error": f"{type(error).__name__}: {error}"}
            results.write(json.dumps(answer) + "\n")
            results.flush()
    finally:
        for pid in descendants(os.getpid()):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        os._exit(0)


def descendants(pid: int) -> list[int]:
    """All processes that came of ``pid`` and are still there."""
    found: list[int] = []
    for thread in Path(f"/proc/{pid}/task").glob("*"):
        with contextlib.suppress(OSError):
            for child in map(int, (thread / "children").read_text().split()):
                found += [child, *descendants(child)]
    return found


def pss(pid: int) -> float:
    """Proportional set size, MiB; none of one that has just ended."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) / 1024
    return 0.0


# ----------------------------------------------------------------------------- the other end


class Failure(Exception):
    """A peer did not do what it was told; the message says why."""


class Driver:
    """A peer's process, as the harness sees it."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._log = open(PLACE / f"{name}.log", "w")  # noqa: SIM115 - closed in close()
        self._process = subprocess.Popen(
            [python_of(name), str(HERE / "compare.py"), "serve", name],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, text=True, start_new_session=True,
        )  # fmt: skip

    def ask(self, what: str, **arguments: Any) -> Any:
        """Have it done, and wait."""
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        try:
            stdin.write(json.dumps({"do": what, **arguments}) + "\n")
            stdin.flush()
            if not select.select([stdout], [], [], TIMEOUT)[0]:
                raise Failure(f"{what}: nothing within {TIMEOUT:g} s")
            line = stdout.readline()
        except OSError as error:
            raise Failure(f"{what}: {error}") from None
        if not line:
            raise Failure(f"{what}: its process ended; it wrote: {self.said()}")
        answer = json.loads(line)
        if "error" in answer:
            raise Failure(f"{what}: {answer['error']}")
        return answer["result"]

    def said(self) -> str:
        lines = Path(self._log.name).read_text(errors="replace").strip().splitlines()
        return lines[-1] if lines else "nothing"

    def close(self) -> None:
        """End it, and all that came of it."""
        with contextlib.suppress(Failure):
            self.ask("close")
        family = descendants(self._process.pid)
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        try:
            self._process.wait(15)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            for pid in family:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        self._process.stdout.close()
        self._log.close()


class Comparison:
    """One run. A peer that fails is left out from then on, and its reason kept."""

    def __init__(self, names: list[str]) -> None:
        self.names = names
        self.failures: dict[str, str] = {}
        self.about: dict[str, dict[str, Any]] = {}
        self.samples: dict[str, dict[str, list[list[float]]]] = {name: {} for name in names}
        self._drivers: dict[str, Driver] = {}

    def each(self, what: str, turn: int, *, only_workers: bool = False) -> list[Driver]:
        """The peers of this round: another one first each time."""
        print(f"{what:<20}", end="\r", file=sys.stderr, flush=True)
        able = [n for n in self._drivers if not only_workers or self.about[n]["has_workers"]]
        return [self._drivers[name] for name in able[turn % len(able) :] + able[: turn % len(able)]] if able else []

    def open(self, workers: int) -> None:
        """A process for each peer, in its own environment, and so many workers."""
        for name in self.names:
            if name not in self.failures:
                driver = self._drivers[name] = Driver(name)
                with self.guarded(driver):
                    self.about[name] = driver.ask("about")
                    self.keep(name, f"start{workers}", [driver.ask("start", workers=workers)])

    def close(self) -> None:
        for driver in self._drivers.values():
            driver.close()
        self._drivers.clear()

    @contextlib.contextmanager
    def guarded(self, driver: Driver) -> Any:
        """A failure inside is this peer's alone."""
        try:
            yield
        except Failure as failure:
            print(f"{driver.name}: {failure}", file=sys.stderr)
            self.failures[driver.name] = str(failure)
            driver.close()
            del self._drivers[driver.name]

    def keep(self, name: str, measure: str, samples: list[float]) -> None:
        self.samples[name].setdefault(measure, []).append(samples)

    def calls(self, measure: str, rounds: int, **arguments: Any) -> None:
        for turn in range(rounds):
            for driver in self.each(measure, turn):
                with self.guarded(driver):
                    samples = driver.ask("call", **arguments)
                    if turn:  # the first warms up
                        self.keep(driver.name, measure, samples)

    def measure(self, quick: bool) -> None:
        more = 1 if quick else 4
        for turn in range(more):
            self.open(1)
            if turn < more - 1:
                self.close()
        self.calls("roundtrip", 2 + 5 * more, elements=SMALL, held=True, count=100)
        self.calls("roundtrip.private", 2 + 5 * more, elements=SMALL, held=False, count=100)
        self.calls("large", 2 + 2 * more, elements=LARGE, held=True, count=3)
        self.calls("large.private", 2 + 2 * more, elements=LARGE, held=False, count=3)
        for turn in range(1 + 2 * more):
            for driver in self.each("crash", turn, only_workers=True):
                with self.guarded(driver):
                    self.keep(driver.name, "crash", [driver.ask("crash")])
        self.close()
        for _ in range(1 if quick else 3):
            self.measure_memory()

    def measure_memory(self) -> None:
        for name in self.names:  # each alone: they share torch's pages with one another
            for workers in (1, 3):
                if name in self.failures or not self.about[name]["has_workers"]:
                    continue
                driver = self._drivers[name] = Driver(name)
                with self.guarded(driver):
                    driver.ask("start", workers=workers)
                    self.keep(name, f"memory{workers}", [driver.ask("memory")])
                self.close()


def figures(samples: dict[str, list[list[float]]]) -> dict[str, Any]:
    """What the samples come to, in s and MiB; the spread is of the medians of the rounds."""
    found: dict[str, Any] = {}
    for measure, rounds in samples.items():
        if measure.startswith(("memory", "start3")):
            continue
        flat = sorted(sample for batch in rounds for sample in batch)
        medians = [statistics.median(batch) for batch in rounds]
        found["start" if measure == "start1" else measure] = {
            "unit": "s", "median": statistics.median(flat), "least": flat[0],
            "p90": flat[int(len(flat) * 0.9) if len(flat) > 9 else -1],
            "of_rounds": [min(medians), max(medians)], "count": len(flat),
        }  # fmt: skip
    if "memory1" in samples and "memory3" in samples:
        one, three = (statistics.median(flat for (flat,) in samples[key]) for key in ("memory1", "memory3"))
        count = len(samples["memory3"])
        found["memory"] = {"unit": "MiB", "median": (three - one) / 2, "count": count}
        found["memory.whole"] = {"unit": "MiB", "median": one, "count": count}
    return found


def run(names: list[str], quick: bool, output: Path) -> None:
    from vortex_worker.bench import machine

    PLACE.mkdir(exist_ok=True)
    about = machine.describe()
    about["kernel"] = ".".join(str(about["kernel"]).split(".")[:2])
    begun, load = datetime.now(UTC), os.getloadavg()
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    comparison, complete = Comparison(names), False
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        comparison.measure(quick)
        complete = True
    except KeyboardInterrupt:
        print("interrupted: what there is, is written", file=sys.stderr)
    finally:
        comparison.close()
    after = os.getloadavg()
    data = {
        "date": begun.isoformat(timespec="seconds"),
        "seconds": round((datetime.now(UTC) - begun).total_seconds()),
        "machine": about,
        "commit": commit.stdout.strip(),
        "quick": quick,
        "complete": complete,
        "confession": [*CONFESSION, load_confession(load, after)],
        "peers": {
            name: comparison.about.get(name, {"title": peers.load(name).title})
            | {"failure": comparison.failures.get(name), "figures": figures(comparison.samples[name])}
            for name in names
        },
    }
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(data, indent=1, ensure_ascii=False) + "\n", "utf-8")
    print(f"{output}: written", file=sys.stderr)


def load_confession(before: tuple[float, ...], after: tuple[float, ...]) -> str:
    cpus = len(os.sched_getaffinity(0))
    busy = before[0] > 0.2 * cpus
    return f"Load average {before[0]:.2f} at the start and {after[0]:.2f} at the end, on {cpus} CPUs" + (
        ": others were at work on this machine when it began, so trust ratios, and those roughly." if busy else "."
    )


# ------------------------------------------------------------------------------ environments


def python_of(name: str) -> str:
    """The interpreter of a peer's environment: the project's own where it needs nothing else."""
    return str((PLACE / name if peers.load(name).requires else ROOT / ".venv") / "bin" / "python")


def setup(names: list[str]) -> None:
    """Make the environments. torch and NumPy are the project's, by a .pth file: one copy, one version."""
    project = ROOT / ".venv" / "bin" / "python"
    site = subprocess.run(
        [project, "-P", "-c", "import sysconfig; print(sysconfig.get_path('platlib'))"],
        capture_output=True, text=True, check=True,
    ).stdout.strip()  # fmt: skip
    PLACE.mkdir(exist_ok=True)
    wanted = {name: peers.load(name).requires for name in names} | {"plot": ("matplotlib==3.11.2",)}
    for name, requires in wanted.items():
        folder = PLACE / name
        if not requires or ((folder / ".requires").exists() and (folder / ".requires").read_text() == repr(requires)):
            continue
        print(f"{name}: {' '.join(requires)}", file=sys.stderr)
        subprocess.run([project, "-m", "venv", "--clear", folder], check=True)
        python = folder / "bin" / "python"
        own = next((folder / "lib").glob("python*/site-packages"))
        (own / "project.pth").write_text(f"{site}\n")
        subprocess.run([python, "-m", "pip", "install", "-q", "--disable-pip-version-check", *requires], check=True)
        (folder / ".requires").write_text(repr(requires))
    if "comfy" in names and shutil.which("bwrap") is None:
        if shutil.which("apt-get") and os.geteuid() == 0:
            subprocess.run(["apt-get", "install", "-y", "-qq", "bubblewrap"], check=True, stdout=subprocess.DEVNULL)
        else:
            print("please install bubblewrap, or pyisolate is measured without its sandbox", file=sys.stderr)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    making = commands.add_parser("setup", help="make the peers' environments")
    making.add_argument("peers", nargs="*", default=peers.NAMES)
    running = commands.add_parser("run", help="measure, and write bench/results/DATE.json")
    running.add_argument("--quick", action="store_true", help="few rounds: to see that it works")
    running.add_argument("--peers", default=",".join(peers.NAMES))
    running.add_argument("--output", type=Path)
    drawing = commands.add_parser("plot", help="draw a result, and write its table into docs/performance.md")
    drawing.add_argument("result", type=Path, nargs="?", help="the newest by default")
    serving = commands.add_parser("serve", help="what run starts, in a peer's environment")
    serving.add_argument("peer", choices=peers.NAMES)
    arguments = parser.parse_args()
    if arguments.command == "serve":
        serve(arguments.peer)
    elif arguments.command == "setup":
        setup(list(arguments.peers))
    elif arguments.command == "plot":
        kept = (HERE / "results").glob("*.json")
        result = arguments.result or max(kept, key=lambda file: json.loads(file.read_text())["date"])
        subprocess.run([PLACE / "plot" / "bin" / "python", HERE / "plot.py", result], check=True)
    else:
        stamp = datetime.now(UTC).strftime("%Y-%m-%d-%H%M")
        run(arguments.peers.split(","), arguments.quick, arguments.output or HERE / "results" / f"{stamp}.json")


if __name__ == "__main__":
    main()
