"""``map.*``: from a handle in shared memory to a tensor."""

from __future__ import annotations

from typing import Any

from vortex_worker.bench.measure import Result, Target, interleaved, median, p99


def map_tensor(quick: bool) -> Result:
    """A handle that was not seen before becomes a tensor."""
    import torch

    from vortex_worker._core.arena import Arena
    from vortex_worker._core.handle import TensorHandle
    from vortex_worker.bridge.tensor import view

    arena = Arena.create(8 << 20)
    handle = TensorHandle(arena.data_offset, 4096, 12, (32, 32))
    buffer = arena.buffer(arena.data_offset, 4096)
    view(arena, handle).copy_(torch.arange(1024.0).reshape(32, 32))

    def reference() -> Any:
        return torch.frombuffer(buffer, dtype=torch.float32)

    assert torch.equal(view(arena, handle).flatten(), reference())
    ours, theirs = interleaved(lambda: view(arena, handle), reference, rounds=50 if quick else 300, loops=1000)
    return Result(
        "handle → tensor, shape and dtype included", "µs", median(ours) * 1e6, p99(ours) * 1e6,
        "torch.frombuffer, flat", median(theirs) * 1e6, Target("ratio", 1.0, 0.6),
    )  # fmt: skip


def map_arrow(quick: bool) -> Result:
    """An Arrow IPC stream in shared memory becomes a tensor."""
    import pyarrow as pa
    import torch

    from vortex_worker._core.arena import Arena
    from vortex_worker.bridge.arrow import ArrowBridge

    arena = Arena.create(8 << 20)
    bridge = ArrowBridge()
    tensor = torch.arange(1024.0).reshape(32, 32)
    area = arena.buffer(arena.data_offset, 1 << 16)
    size = bridge.write_stream(tensor, area)
    stream = arena.buffer(arena.data_offset, size)

    def ours() -> Any:
        return bridge.arrow_to_tensor(stream)

    def reference() -> Any:
        with pa.ipc.open_stream(pa.py_buffer(stream)) as reader:
            return reader.read_all()

    assert torch.equal(ours(), tensor)
    mine, theirs = interleaved(ours, reference, rounds=50 if quick else 300, loops=100)
    return Result(
        "Arrow IPC stream → tensor", "µs", median(mine) * 1e6, p99(mine) * 1e6,
        "pyarrow reads the stream into a table", median(theirs) * 1e6, Target("median", 100.0, 10.0),
    )  # fmt: skip
