"""Brownian noise: torchsde's path, whatever is asked of it and when."""

from __future__ import annotations

import itertools
import math

import kdiffusion
import pytest
import torch
from measure import TABLE

from vortex_worker.executor.nodes.sampling.brownian import BrownianNoise
from vortex_worker.executor.nodes.sampling.schedules import sigmas_for

LIKE = torch.empty(2, 3, 4, 5)
SIGMAS = sigmas_for(TABLE, "karras", 12)[:-1]
SEEDS = [0, 7, (1 << 32) + 7, (1 << 64) - 1]


def noise_of(seed: int = 3, like: torch.Tensor = LIKE, low: float = SIGMAS[-1], high: float = SIGMAS[0]):  # type: ignore[no-untyped-def]
    return BrownianNoise(like, seed, low, high)


@pytest.mark.filterwarnings("ignore:Should have")  # torchsde rounds its ends, and not what it is asked for
@pytest.mark.parametrize("seed", SEEDS)
def test_equals_torchsde(seed: int) -> None:
    """As k-diffusion and ComfyUI ask it, midpoints among it."""
    sampling, _ = kdiffusion.load()
    table = torch.tensor(SIGMAS)
    theirs = sampling.BrownianTreeNoiseSampler(torch.zeros(LIKE.shape), table[-1], table[0], seed=seed)
    ours = noise_of(seed)
    for a, b in itertools.pairwise(SIGMAS):
        middle = float(torch.tensor(a * b).sqrt())
        for pair in ((a, middle), (a, b)):
            torch.testing.assert_close(ours(*pair), theirs(*map(torch.tensor, pair)), rtol=0, atol=2e-4)


def test_all_64_bits_of_a_seed_count() -> None:
    drawn = {tuple(noise_of(1 << bit)(14.0, 1.0).flatten()[:4].tolist()) for bit in range(64)}
    assert len(drawn) == 64


def test_order_and_repetition_change_nothing() -> None:
    pairs = list(itertools.pairwise(SIGMAS))
    forward, backward = noise_of(), noise_of()
    first = [forward(*pair) for pair in pairs]
    second = [backward(*pair) for pair in reversed(pairs)][::-1]
    again = [forward(*pair) for pair in pairs]
    for a, b, c in zip(first, second, again, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5)
        torch.testing.assert_close(a, c, rtol=0, atol=1e-5)


def test_parts_of_a_step_add_up_to_it() -> None:
    """So twice the steps see the same path."""
    noise = noise_of()
    whole = noise(10.0, 2.0) * math.sqrt(8.0)
    parts = noise(10.0, 7.0) * math.sqrt(3.0) + noise(7.0, 2.0) * math.sqrt(5.0)
    torch.testing.assert_close(whole, parts, rtol=0, atol=1e-5)


def test_is_standard_normal_and_independent() -> None:
    noise = noise_of(like=torch.empty(40_000), low=0.03, high=14.6)
    drawn = torch.stack([noise(a, b) for a, b in itertools.pairwise([14.6, 9.0, 3.3, 0.7, 0.2, 0.03])])
    assert drawn.mean(1).abs().max() < 0.025
    torch.testing.assert_close(torch.corrcoef(drawn), torch.eye(5), rtol=0, atol=0.025)
    torch.testing.assert_close(drawn.var(1), torch.ones(5), rtol=0, atol=0.04)


def test_ends_and_nearness() -> None:
    noise = noise_of()
    assert torch.equal(noise(5.0, 5.0), torch.zeros(LIKE.shape))
    assert torch.equal(noise(5.0, 5.0 - 1e-9), torch.zeros(LIKE.shape))
    assert bool(noise(SIGMAS[0] * 2, SIGMAS[1]).isfinite().all())  # beyond the end counts from there
    assert torch.equal(noise_of(low=5.0, high=5.0)(5.0, 5.0), torch.zeros(LIKE.shape))
    small = noise(5.0, 5.0 - 2e-6)
    assert 0.5 < float(small.std()) < 2


def test_thousands_of_steps() -> None:
    sigmas = sigmas_for(TABLE, "karras", 3000)[:-1]
    noise = BrownianNoise(torch.empty(2), 5, sigmas[-1], sigmas[0])
    drawn = torch.stack([noise(a, b) for a, b in itertools.pairwise(sigmas[::7])])
    assert float(drawn.std()) == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_is_float32_whatever_the_latent_is(dtype: torch.dtype) -> None:
    assert torch.equal(noise_of(like=LIKE.to(dtype))(9.0, 3.0), noise_of()(9.0, 3.0))


def test_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    noise_of()(9.0, 3.0)
    assert torch.equal(torch.get_rng_state(), before)
