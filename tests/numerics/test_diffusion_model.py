"""DiffusionModel against k-diffusion's wrappers and the parametrizations' definitions."""

from __future__ import annotations

import kdiffusion
import pytest
import torch
from measure import TABLE
from torch import Tensor

from vortex_worker.executor.nodes.sampling.model import PARAMETRIZATIONS, DiffusionModel

SIGMAS = torch.tensor([14.0, 3.3, 0.9, 0.031])
COND = torch.zeros(4, 1)


def network(x: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
    """Something that depends on all it is given."""
    return torch.tanh(x * 0.7) + torch.sin(t / 100).reshape(-1, 1, 1, 1)


def inputs() -> Tensor:
    x = torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    return x * SIGMAS.reshape(-1, 1, 1, 1)


def places(model: DiffusionModel, sigmas: Tensor) -> Tensor:
    return torch.tensor([model.sigma_to_t(sigma) for sigma in sigmas.tolist()])


def denoised(model: DiffusionModel, x: Tensor, sigmas: Tensor) -> Tensor:
    """Each sample at its own sigma: ``denoise`` takes one."""
    rows = [model.denoise(x[i : i + 1], float(sigma), COND[i : i + 1]) for i, sigma in enumerate(sigmas)]
    return torch.cat(rows)


def test_sigma_and_t_equal_k_diffusion() -> None:
    _, external = kdiffusion.load()
    theirs = external.DiscreteSchedule(TABLE.sigmas, quantize=False)
    sigma = torch.cat([torch.logspace(-1.53, 1.16, 500), TABLE.sigmas, torch.tensor([0.001, 100.0])])
    torch.testing.assert_close(places(TABLE, sigma), theirs.sigma_to_t(sigma), rtol=1e-5, atol=2e-3)
    t = torch.linspace(0, 999, 2001)
    torch.testing.assert_close(TABLE.t_to_sigma(t), theirs.t_to_sigma(t), rtol=2e-6, atol=0)


def test_sigma_to_t_inverts_t_to_sigma() -> None:
    t = torch.linspace(0, 999, 1717)
    torch.testing.assert_close(places(TABLE, TABLE.t_to_sigma(t)), t, rtol=0, atol=2e-3)
    assert TABLE.t_to_sigma(torch.tensor([0.0, 999.0])).tolist() == pytest.approx([TABLE.sigma_min, TABLE.sigma_max])
    assert places(TABLE, torch.tensor([1e-9, 0.0, 1e9])).tolist() == [0, 0, 999]


def test_eps_equals_k_diffusion() -> None:
    _, external = kdiffusion.load()
    kept = 1 / (TABLE.sigmas.double() ** 2 + 1)
    theirs = external.DiscreteEpsDDPMDenoiser(network, kept.float(), quantize=False)
    x = inputs()
    torch.testing.assert_close(denoised(DiffusionModel(network), x, SIGMAS), theirs(x, SIGMAS), rtol=1e-4, atol=1e-4)


def test_v_equals_k_diffusion() -> None:
    _, external = kdiffusion.load()
    kept = 1 / (TABLE.sigmas.double() ** 2 + 1)
    theirs = external.DiscreteVDDPMDenoiser(network, kept.float(), quantize=False)
    x = inputs()
    ours = denoised(DiffusionModel(network, parametrization="v"), x, SIGMAS)
    torch.testing.assert_close(ours, theirs(x, SIGMAS), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("parametrization", PARAMETRIZATIONS)
def test_a_perfect_network_gives_the_data_back(parametrization: str) -> None:
    """Each parametrization's target, by its paper's definition, put through ``denoise``."""
    generator = torch.Generator().manual_seed(0)
    data = torch.randn(4, 3, 5, 5, generator=generator, dtype=torch.float64)
    noise = torch.randn(data.shape, generator=generator, dtype=torch.float64)
    sigma = torch.tensor([0.9, 0.5, 0.1, 0.031], dtype=torch.float64)
    s = sigma.reshape(-1, 1, 1, 1)
    alpha = 1 / (1 + s**2).sqrt()  # the variance-preserving view: alpha · data + alpha · sigma · noise
    noisy = (1 - s) * data + s * noise if parametrization == "flow" else data + s * noise
    seen = {
        "eps": (alpha * noisy, noise),
        "v": (alpha * noisy, alpha * noise - alpha * s * data),
        "x0": (alpha * noisy, data),
        "edm": (
            noisy / (s**2 + 0.25).sqrt(),
            (data - noisy * 0.25 / (s**2 + 0.25)) * (s**2 + 0.25).sqrt() / (s * 0.5),
        ),
        "flow": (noisy, noise - data),
    }
    wanted, target = seen[parametrization]

    for i in range(4):

        def perfect(x: Tensor, t: Tensor, cond: Tensor, i: int = i) -> Tensor:
            torch.testing.assert_close(x, wanted[i : i + 1])
            return target[i : i + 1]

        model = DiffusionModel(perfect, parametrization=parametrization)
        ours = model.denoise(noisy[i : i + 1], float(sigma[i]), COND[i : i + 1])
        torch.testing.assert_close(ours, data[i : i + 1], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("parametrization", "wanted"),
    [("eps", 999.0), ("v", 999.0), ("x0", 999.0), ("edm", 0.25 * 2.68202), ("flow", 14614.6)],
)
def test_what_t_the_network_gets(parametrization: str, wanted: float) -> None:
    got: list[Tensor] = []
    model = DiffusionModel(lambda x, t, c: got.append(t) or x, parametrization=parametrization)  # type: ignore[func-returns-value]
    model.denoise(torch.zeros(2, 1, 2, 2), 14.6146, COND[:2])
    assert got[0].shape == (2,)
    assert got[0].dtype == torch.float32
    assert got[0].tolist() == pytest.approx([wanted] * 2, rel=1e-4)


@pytest.mark.parametrize("parametrization", PARAMETRIZATIONS)
def test_gives_x_s_dtype_whatever_the_network_does(parametrization: str) -> None:
    model = DiffusionModel(lambda x, t, c: x.bfloat16(), parametrization=parametrization)
    assert model.denoise(torch.zeros(1, 1, 2, 2), 0.5, COND[:1]).dtype == torch.float32


def test_where_a_run_starts() -> None:
    """ComfyUI's rule: at the table's top, noise has the data's unit variance too."""
    assert TABLE.noise_scale(TABLE.sigma_max) == (1.0, pytest.approx((14.614642**2 + 1) ** 0.5, rel=1e-6))
    assert TABLE.noise_scale(100.0) == (1.0, pytest.approx(10001**0.5))
    assert TABLE.noise_scale(5.0) == (1.0, 5.0)
    assert DiffusionModel(network, parametrization="flow").noise_scale(0.75) == (0.25, 0.75)


def test_refuses_what_it_can_t_be() -> None:
    with pytest.raises(ValueError, match=r"'epsilon'.*eps, v, x0"):
        DiffusionModel(network, parametrization="epsilon")
    for sigmas in (torch.ones(5), torch.tensor([1.0]), torch.tensor([0.0, 1.0]), torch.tensor([[1.0, 2.0]])):
        with pytest.raises(ValueError, match="sigmas"):
            DiffusionModel(network, sigmas=sigmas)
    with pytest.raises(ValueError, match="sigmas"):
        DiffusionModel(network, sigmas=torch.tensor([1.0, float("nan"), 2.0]))
