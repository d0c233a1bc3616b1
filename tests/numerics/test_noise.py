"""Noise: torch's own CPU generator, seeds of 64 bits, batches and rows."""

from __future__ import annotations

import pytest
import torch

from vortex_worker.executor.nodes.sampling.noise import NoiseSource, initial

LIKE = torch.empty(3, 2, 4, 4)
SEEDS = [0, 1, 7, (1 << 63) - 1, 1 << 63, (1 << 64) - 1]


@pytest.mark.parametrize("seed", SEEDS)
def test_is_one_draw_of_torch_s_generator(seed: int) -> None:
    wanted = torch.randn(3, 2, 4, 4, generator=torch.Generator().manual_seed(seed))
    assert torch.equal(initial(LIKE, seed), wanted)


def test_seeds_differ_in_their_low_32_bits_alone() -> None:
    """torch's CPU generator is a Mersenne Twister that is seeded with 32 bits: ours, as ComfyUI's, is that one."""
    drawn = {seed: tuple(initial(LIKE, seed).flatten()[:4].tolist()) for seed in [0, *(1 << bit for bit in range(64))]}
    assert len({drawn[seed] for seed in drawn if seed < 1 << 32}) == 33
    assert {drawn[seed] for seed in drawn if seed >= 1 << 32} == {drawn[0]}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_does_not_depend_on_the_latent_s_dtype(dtype: torch.dtype) -> None:
    assert torch.equal(initial(LIKE.to(dtype), 5), initial(LIKE, 5))


def test_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    initial(LIKE, 5)
    NoiseSource(LIKE, 5)(1.0, 0.5)
    assert torch.equal(torch.get_rng_state(), before)


def test_batch_index_draws_row_by_row() -> None:
    generator = torch.Generator().manual_seed(5)
    rows = [torch.randn(2, 4, 4, generator=generator) for _ in range(8)]
    drawn = initial(LIKE, 5, [7, 0, 7])
    assert all(torch.equal(drawn[i], rows[place]) for i, place in enumerate([7, 0, 7]))
    assert torch.equal(initial(LIKE[:1], 5, [3])[0], rows[3])


def test_steps_draw_from_the_next_seed() -> None:
    """ComfyUI's rule on the CPU, so that a step's noise is not the start's."""
    source, generator = NoiseSource(LIKE, 5), torch.Generator().manual_seed(6)
    for _ in range(3):
        assert torch.equal(source(1.0, 0.5), torch.randn(3, 2, 4, 4, generator=generator))
    last = NoiseSource(LIKE, (1 << 64) - 1)
    assert torch.equal(last(1.0, 0.5), torch.randn(3, 2, 4, 4, generator=torch.Generator().manual_seed(0)))


def test_is_standard_normal() -> None:
    drawn = initial(torch.empty(1, 1, 300, 300), 11)
    assert float(drawn.mean()) == pytest.approx(0, abs=0.02)
    assert float(drawn.std()) == pytest.approx(1, abs=0.02)
