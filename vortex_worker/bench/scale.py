"""``scale.*``: what one job costs when there is much of everything, beside what it costs when there is little.

Each is a ratio that should be 1, but for ``scale.length``, which has a bare exchange beside it: a figure that grows
with the number of workers, clients, handles, nodes or bytes is a list that somebody goes through.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from vortex_worker.bench.bare import answering, ask
from vortex_worker.bench.measure import Result, Skipped, Target, median, p99, settle

_NODES = Path(__file__).parent / "nodes"
_MIB, _GIB = 1 << 20, 1 << 30
_SMALL: dict[str, Any] = {"standby": 0, "threads": 1, "lease_size": 16 * _MIB, "client_size": 16 * _MIB}
_WORKER_MIB = 30  # what one worker is reckoned with, before it is known
_SPARE_MIB = 2048  # of the machine's memory, left alone


def scale_workers(quick: bool) -> Result:
    """Many jobs in flight, over 1 to 16 workers."""
    return _over_workers((1, 2, 4, 8, 16), rounds=3 if quick else 10, jobs=1000)


def scale_workers256(quick: bool) -> Result:
    """The same over as many workers as there are slots."""
    return _over_workers((1, 256), rounds=3 if quick else 10, jobs=1024)


def _over_workers(counts: Sequence[int], rounds: int, jobs: int) -> Result:
    from vortex_worker.supervisor.fabric import Fabric

    needed = sum(counts) * _WORKER_MIB + _SPARE_MIB
    if (free := _available_mib()) < needed:
        raise Skipped(f"{sum(counts)} workers are reckoned with {needed} MiB, and {free} are available")
    samples: dict[int, list[float]] = {count: [] for count in counts}
    beside: dict[str, float] = {}
    with ExitStack() as stack:
        fabrics = {}
        for count in counts:
            begun = time.perf_counter()
            fabrics[count] = stack.enter_context(Fabric(count, start_timeout=300, **_SMALL))
            _wait_ready(fabrics[count], count)
            beside[f"{count} workers ready, s"] = time.perf_counter() - begun
        settle()
        for _ in range(rounds):
            for count, fabric in fabrics.items():
                for turn in range(2):
                    begun = time.perf_counter()
                    running = [fabric.submit("Identity", {"tensor": number}) for number in range(jobs)]
                    assert [job.result(120)["tensor"] for job in running] == list(range(jobs))
                    if turn:  # before that they were asleep, as long as the others had theirs
                        samples[count].append((time.perf_counter() - begun) / jobs)
        for count, fabric in fabrics.items():
            workers = fabric.workers()
            assert sum(worker["jobs_done"] for worker in workers) == jobs * 2 * rounds
            beside[f"{count} workers, µs a job"] = median(samples[count]) * 1e6
            # Of those that are idle, the first is taken: so this is how many the caller could keep busy.
            beside[f"{count} workers, that had work"] = sum(worker["jobs_done"] > 0 for worker in workers)
            with suppress(PermissionError):  # only root may see a worker's
                beside[f"{count} workers, MiB each (PSS)"] = sum(_pss(worker["pid"]) for worker in workers) / count
    what = "a job of many in flight, over " + ", ".join(map(str, counts[1:])) + " workers: the worst"
    return _worst(what, samples, "over 1 worker", Target("ratio", 1.5, 1.1), beside)


def _wait_ready(fabric: Any, workers: int) -> None:
    """Wait for all workers, and give up before they have eaten the machine's memory."""
    for _ in range(300):
        with suppress(TimeoutError):
            fabric.wait_ready(1)
            return
        if (free := _available_mib()) < _SPARE_MIB:
            raise Skipped(f"{workers} workers were being started, and {free} MiB of memory were left")
    raise Skipped(f"{workers} workers were not ready within 300 s")


def scale_clients(quick: bool) -> Result:
    """1 to 64 threads that each wait for their own jobs.

    Threads of one Python take turns, and each turn costs a wake: what that is, as many threads show that talk to a
    plain process instead, each over a socket of its own.
    """
    from vortex_worker.supervisor.fabric import Fabric

    counts, jobs = (1, 2, 4, 8, 16, 32, 64), 512 if quick else 2048
    samples: dict[int, list[float]] = {count: [] for count in counts}
    bare: dict[int, list[float]] = {count: [] for count in counts}
    unfair = 1.0
    with (
        Fabric(max(1, len(os.sched_getaffinity(0)) - 1), **_SMALL) as fabric,
        answering(counts[-1]) as peers,
    ):  # a CPU for the clients
        fabric.wait_ready(120)
        settle()

        def run(client: int, job: int) -> None:
            assert fabric.run("Identity", {"tensor": [client, job]}) == {"tensor": [client, job]}

        for turn in range(3 if quick else 8):
            for count in counts:
                took, beside = _in_threads(run, count, jobs // count)
                plain, _ = _in_threads(lambda client, job: ask(peers[client], 0), count, jobs // count)
                if turn:
                    samples[count].append(took)
                    bare[count].append(plain)
                    unfair = max(unfair, beside) if count == counts[-1] else unfair
    alone = median(samples[1])
    worst = max(counts[1:], key=lambda count: median(samples[count]) / (alone + median(bare[count])))
    return Result(
        f"a job of {worst} client threads: of 2 to 64, the worst", "µs",
        median(samples[worst]) * 1e6, p99(samples[worst]) * 1e6,
        f"with 1 client, and a turn of {worst} threads with plain sockets",
        (alone + median(bare[worst])) * 1e6, Target("ratio", 1.5, 1.1),
        _series(samples, "clients, µs a job") | _series(bare, "threads with plain sockets, µs a turn")
        | {"64 clients, the last to end to the mean": unfair},
    )  # fmt: skip


def _in_threads(call: Callable[[int, int], object], threads: int, calls: int) -> tuple[float, float]:
    """Seconds a call of so many threads at once, and how much longer the last took than they did in the mean."""
    ends: list[float] = []
    ready = threading.Barrier(threads + 1)

    def client(number: int) -> None:
        ready.wait()
        for index in range(calls):
            call(number, index)
        ends.append(time.perf_counter())

    clients = [threading.Thread(target=client, args=(number,)) for number in range(threads)]
    for thread in clients:
        thread.start()
    ready.wait()
    begun = time.perf_counter()
    for thread in clients:
        thread.join()
    assert len(ends) == threads
    took = max(ends) - begun
    return took / (threads * calls), took / (sum(ends) / threads - begun)


def scale_length(quick: bool) -> Result:
    """Jobs of 1 µs to 1 s: what a job takes beside the node's own time.

    Who waits for long is woken on a CPU that sleeps, and finds its caches cold: what that costs anybody, two plain
    processes show that wait as long.
    """
    from vortex_worker.supervisor.fabric import Fabric

    lengths = {1: 300, 100: 300, 10_000: 30, 100_000: 5, 1_000_000: 1 if quick else 5}  # µs: how often
    samples: dict[int, list[float]] = {length: [] for length in lengths}
    bare: dict[int, list[float]] = {length: [] for length in lengths}
    with Fabric(1, custom_nodes=_NODES, **_SMALL) as fabric, answering(1) as (peer,):
        fabric.wait_ready(120)
        settle()
        for turn in range(1 if quick else 3):
            for length, count in lengths.items():
                for _ in range(count + (turn == 0)):
                    begun = time.perf_counter()
                    took = fabric.run("BenchBusy", params={"us": float(length)})["us"]
                    ended = time.perf_counter()
                    assert took >= length
                    samples[length].append(ended - begun - took / 1e6)
                for _ in range(count + (turn == 0)):
                    begun = time.perf_counter()
                    took = ask(peer, length)
                    bare[length].append(time.perf_counter() - begun - took)
    worst = max(lengths, key=lambda length: median(samples[length]) / median(bare[length]))
    return Result(
        f"beside a node's time, a job of {worst} µs: of 1 µs to 1 s, the worst", "µs",
        median(samples[worst]) * 1e6, p99(samples[worst]) * 1e6,
        "two plain processes that wait as long", median(bare[worst]) * 1e6, Target("ratio", 3.0, 1.5),
        _series(samples, "µs long, µs beside") | _series(bare, "µs long between plain processes, µs beside"),
    )  # fmt: skip


def scale_tensors(quick: bool) -> Result:
    """Tensors of 0 B to 4 GiB, in and out, and made by the worker. Pages that nobody touches take no memory."""
    import torch

    from vortex_worker.supervisor.fabric import Fabric

    sizes = (4096, 0, _MIB, 64 * _MIB, _GIB, 4 * _GIB)
    samples: dict[int, list[float]] = {size: [] for size in sizes}
    made: dict[int, list[float]] = {size: [] for size in sizes}
    with Fabric(1, custom_nodes=_NODES, standby=0, client_size=6 * _GIB, lease_size=5 * _GIB) as fabric:
        fabric.wait_ready(120)
        settle()
        tensors = {size: fabric.empty((size,), torch.uint8) for size in sizes}
        for turn in range(1 + (3 if quick else 10)):
            for size, tensor in tensors.items():
                if size:
                    tensor[0] = tensor[-1] = turn
                for _ in range(10):
                    begun = time.perf_counter()
                    out = fabric.run("Identity", {"tensor": tensor})["tensor"]
                    ended = time.perf_counter()
                    assert out.shape == tensor.shape
                    assert not size or out[0] == out[-1] == turn
                    if turn:
                        samples[size].append(ended - begun)
                    out = None
                    begun = time.perf_counter()
                    out = fabric.run("BenchMake", params={"nbytes": size})["tensor"]
                    ended = time.perf_counter()
                    assert out.shape == (size,)
                    assert not size or out[0] == out[-1] == 7
                    if turn:
                        made[size].append(ended - begun)
                    out = None
    return _worst(
        "a tensor of 0 B to 4 GiB in and out, the worst", samples, "of 4 KiB", Target("ratio", 1.2, 1.1),
        _series(samples, "B in and out, µs") | _series(made, "B made by the worker, µs"),
    )  # fmt: skip


def scale_handles(quick: bool) -> Result:
    """Jobs that make a tensor, while ten thousand others are held."""
    from vortex_worker.supervisor.fabric import Fabric

    live = 10_000
    with ExitStack() as stack:
        fabrics = [
            stack.enter_context(Fabric(1, custom_nodes=_NODES, **_SMALL)).wait_ready(120) for _ in range(2)
        ]  # fmt: skip
        settle()

        def make(fabric: Any) -> Any:
            return fabric.run("BenchMake", params={"nbytes": 64})["tensor"]

        held = [job.result(120)["tensor"] for job in _jobs(fabrics[1], live, "BenchMake", {"nbytes": 64})]
        assert len({tensor.data_ptr() for tensor in held}) == live
        samples: dict[int, list[float]] = {0: [], live: []}
        for _ in range(10 if quick else 40):
            for fabric, into in zip(fabrics, samples.values(), strict=True):
                for number in range(50):
                    begun = time.perf_counter()
                    tensor = make(fabric)
                    into.append(time.perf_counter() - begun)
                    assert tensor[0] == 7
                    if fabric is fabrics[1]:
                        held[number * 97 % live] = tensor  # another one goes
        assert all(int(tensor[0]) == 7 for tensor in held[:: live // 100])
        del tensor
        held.clear()
    return _worst(
        "a job that makes a tensor, 10 000 being held", samples, "none being held", Target("ratio", 1.3, 1.1),
        _series(samples, "held, µs a job"),
    )  # fmt: skip


def _jobs(fabric: Any, count: int, op_type: str, params: dict[str, Any]) -> list[Any]:
    return [fabric.submit(op_type, params=params) for _ in range(count)]


_SHAPES: dict[str, Callable[[int], int]] = {"a chain": lambda n: n - 1, "all from one": lambda n: 0}


def scale_graph(quick: bool) -> Result:
    """A workflow of ten thousand nodes (two thousand if quick), one after another, and all from one."""
    from vortex_worker.supervisor.fabric import Fabric

    few, many = 100, 2_000 if quick else 10_000
    runs = 0
    results: dict[str, dict[int, list[float]]] = {}
    with Fabric(2, **_SMALL) as fabric:
        fabric.wait_ready(120)
        settle()
        for shape, source in _SHAPES.items():
            samples: dict[int, list[float]] = {few: [], many: []}
            results[shape] = samples
            for count, times in ((few, 3), (many, 1), (few, many // few // 4), (many, 1), (few, 3)):
                for _ in range(times):
                    runs += 1  # what a fabric has computed before, it would not compute again
                    workflow: dict[str, Any] = {"0": {"class_type": "Identity", "inputs": {"tensor": runs}}}
                    for number in range(1, count):
                        link = [str(source(number)), 0]
                        workflow[str(number)] = {"class_type": "Identity", "inputs": {"tensor": link}}
                    done = fabric.run_workflow(workflow)
                    assert len(done.nodes) == count
                    assert all(value == {"tensor": runs} for value in done.values.values())
                    samples[count].append(done.seconds / count)
    worst = max(results, key=lambda shape: median(results[shape][many]) / median(results[shape][few]))
    beside = {
        f"{shape}, {key}": value
        for shape, s in results.items()
        for key, value in _series(s, "nodes, µs a node").items()
    }
    what = f"a node of a workflow of {many}, {worst}"
    return _worst(what, results[worst], f"of one of {few}", Target("ratio", 1.3, 1.1), beside)


# ---- from samples by size to a result


def _worst(
    what: str, samples: dict[int, list[float]], reference: str, target: Target, beside: dict[str, float]
) -> Result:
    """The size with the largest median, beside the first size."""
    first, *others = samples
    worst = max(others, key=lambda size: median(samples[size]))
    return Result(
        what, "µs", median(samples[worst]) * 1e6, p99(samples[worst]) * 1e6,
        reference, median(samples[first]) * 1e6, target, beside,
    )  # fmt: skip


def _series(samples: dict[int, list[float]], unit: str) -> dict[str, float]:
    return {f"{size:,} {unit}": median(taken) * 1e6 for size, taken in samples.items()}


def _pss(pid: int) -> float:
    """Proportional set size of a process, MiB."""
    with open(f"/proc/{pid}/smaps_rollup") as file:
        return next(int(line.split()[1]) / 1024 for line in file if line.startswith("Pss:"))


def _available_mib() -> int:
    with open("/proc/meminfo") as file:
        return next(int(line.split()[1]) // 1024 for line in file if line.startswith("MemAvailable:"))
