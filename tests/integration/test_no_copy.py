"""Tensors are handed over without a copy, and their memory comes back."""

import gc

import torch
from conftest import started


def test_identity_returns_the_very_memory_of_its_input(fabric):
    mine = fabric.empty((16, 16), torch.float32)
    mine.copy_(torch.arange(256.0).reshape(16, 16))
    out = fabric.run("Identity", {"tensor": mine})["tensor"]
    assert out.data_ptr() == mine.data_ptr()
    mine[0, 0] = -5
    assert out[0, 0] == -5


def test_an_output_goes_into_the_next_job_without_a_copy(fabric):
    first = fabric.run("RandomTensor", params={"shape": [64, 64], "seed": 1})["tensor"]
    second = fabric.run("Identity", {"tensor": first})["tensor"]
    assert second.data_ptr() == first.data_ptr()
    third = fabric.run("Identity", {"tensor": {"deep": [second[8:]]}})["tensor"]["deep"][0]
    assert third.data_ptr() == first[8:].data_ptr()


def test_a_client_tensor_outside_the_arena_is_copied_once_at_submit(fabric):
    mine = torch.ones(8)
    job = fabric.submit("Identity", {"tensor": mine})
    mine.zero_()
    assert torch.equal(job.result()["tensor"], torch.ones(8))


def test_a_running_node_sees_what_is_written_into_its_input(fabric, gate):
    job = started(fabric.submit("Gate", {"gate": gate}))
    assert not job.done()
    gate.fill_(1)
    assert job.result()["tensor"] is None


def test_views_of_an_input_come_back_as_views(fabric):
    mine = fabric.tensor(torch.arange(32.0).reshape(8, 4))
    out = fabric.run("Views", {"tensor": mine})
    assert out["half"].data_ptr() == out["transposed"].data_ptr() == mine.data_ptr()
    assert torch.equal(out["half"], mine[:4])
    assert torch.equal(out["transposed"], mine.T)
    assert out["nested"]["list"][0].data_ptr() == mine.data_ptr()
    assert out["nested"]["list"][1:] == [1, None]


def test_context_empty_and_private_outputs_give_the_same(fabric):
    direct = fabric.run("Fill", params={"count": 1000, "value": 2.5})["tensor"]
    copied = fabric.run("Fill", params={"count": 1000, "value": 2.5, "copy": True})["tensor"]
    assert torch.equal(direct, torch.full((1000,), 2.5))
    assert torch.equal(direct, copied)
    assert direct.data_ptr() != copied.data_ptr()


def test_memory_comes_back_when_results_are_dropped(single):
    # 64 MiB of lease, 48 MiB a result: each must be gone before the next.
    for value in range(6):
        out = single.run("Fill", params={"count": 12 << 20, "value": float(value)})["tensor"]
        assert out[-1] == value
        del out
        gc.collect()


def test_client_memory_comes_back_too(single):
    for _ in range(6):
        tensor = single.empty((12 << 20,), torch.float32)
        tensor[-1] = 4
        assert single.run("Identity", {"tensor": tensor[-1:]})["tensor"].item() == 4
        del tensor
        gc.collect()


def test_a_result_is_not_overwritten_while_it_is_held(single):
    kept = [single.run("Fill", params={"count": 1 << 16, "value": float(v)})["tensor"] for v in range(40)]
    for value, tensor in enumerate(kept):
        assert torch.equal(tensor, torch.full((1 << 16,), float(value)))
