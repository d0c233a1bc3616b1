"""Arrow streams and tensor messages that nobody vetted: a view inside the bytes, or InvalidHandle, and nothing else."""

import random
import threading

import pyarrow as pa
import pytest
import torch
from cases import cases
from fuzzer.mutation import mutate_bytes

from vortex_worker._core.handle import itemsize
from vortex_worker.bridge.arrow import ArrowBridge
from vortex_worker.bridge.arrow_ipc import find_tensor
from vortex_worker.errors import InvalidHandle


def stream(*columns):
    sink = pa.BufferOutputStream()
    batch = pa.record_batch(list(columns), names=[f"c{i}" for i in range(len(columns))])
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return sink.getvalue().to_pybytes()


def written(tensor, how):
    buffer = bytearray(4096)
    return bytes(buffer[: getattr(ArrowBridge(), how)(tensor, memoryview(buffer))])


def permuted():
    kind = pa.fixed_shape_tensor(pa.int32(), (2, 3), permutation=[1, 0])
    return pa.ExtensionArray.from_storage(kind, pa.array([[1, 2, 3, 4, 5, 6]] * 2, pa.list_(pa.int32(), 6)))


SEEDS = (
    written(torch.arange(24.0).reshape(2, 3, 4), "write_stream"),
    written(torch.arange(10, dtype=torch.int16), "write_stream"),
    written(torch.arange(24.0).reshape(2, 3, 4), "write_tensor"),
    stream(permuted()),
    stream(pa.array([1, None, 3])),
    stream(pa.array(["a", "b"]).dictionary_encode()),
    stream(pa.array([[{"x": 1}], []])),
    stream(pa.array([1, 2]), pa.array([3, 4])),
    stream(pa.array([True, False])),
)


def look(data):
    """As the reader of a result would: find it, check where it lies, touch both ends. Whether there is one."""
    try:
        found = find_tensor(memoryview(data))
        assert found.start >= 0
        assert found.start + found.nbytes <= len(data)
        tensor = ArrowBridge().arrow_to_tensor(data)
    except InvalidHandle:
        return False
    last = sum((size - 1) * step for size, step in zip(tensor.shape, tensor.stride(), strict=True))
    if tensor.numel():
        assert (last + 1) * tensor.element_size() <= len(data)
        tensor[(0,) * tensor.dim()].item()
        tensor[(-1,) * tensor.dim()].item()
    assert itemsize(found.dtype) == tensor.element_size()
    return True


@pytest.mark.timeout(3600)
def test_any_arrow_bytes_are_a_tensor_inside_them_or_refused():
    taken = 0
    for case, rng in cases("arrow", 15_000):
        data = bytearray(mutate_bytes(rng, rng.choice(SEEDS), SEEDS))
        try:
            taken += look(data)
        except BaseException as error:
            raise AssertionError(f"case {case} {data.hex()}: {error!r}") from error
    assert taken > 0


def test_bytes_that_change_while_they_are_read_are_one_or_the_other():
    """Another thread rewrites the metadata, between what is valid and what is not. Only a copy is ever judged."""
    good = SEEDS[0]
    data, stop = bytearray(good), threading.Event()
    buffer = memoryview(data)

    def rewrite():
        rng = random.Random(1)
        while not stop.is_set():
            at = rng.randrange(len(good) - 8)
            buffer[at : at + 8] = rng.randbytes(8)
            buffer[at : at + 8] = good[at : at + 8]

    thread = threading.Thread(target=rewrite)
    thread.start()
    try:
        for _, _ in cases("changing", 3000):
            try:
                found = find_tensor(buffer)
            except InvalidHandle:
                continue
            assert 0 <= found.start <= found.start + found.nbytes <= len(data)
            try:
                ArrowBridge().arrow_to_tensor(buffer)
            except InvalidHandle:
                pass
    finally:
        stop.set()
        thread.join()
