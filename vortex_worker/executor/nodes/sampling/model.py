"""A diffusion model as samplers see it: noisy input and sigma in, denoised estimate out.

Sigma is the noise's standard deviation in the variance-exploding view, x = x0 + sigma · noise, of
Karras et al., "Elucidating the Design Space of Diffusion-Based Generative Models" (2022).
"""

from __future__ import annotations

import copy
import math
from bisect import bisect_right
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

Network = Callable[..., Tensor]
Extras = Callable[[Mapping[str, Any], Tensor], dict[str, Tensor]]
PARAMETRIZATIONS = ("eps", "v", "x0", "edm", "flow")
_LEAST_KEPT = 4.8973451890853435e-08  # of the signal's variance, where there should be none
_DISTILLED = 50  # levels of a consistency model's table
_LCM_TIMES = 10  # a consistency model's times count as so many, where it says what of x is kept
_EDM_DATA = 0.5  # standard deviation of the data that `edm` is scaled for


def stable_diffusion_sigmas() -> Tensor:
    """The 1000 noise levels of Stable Diffusion, ascending: betas linear in their roots, 0.00085 to 0.012."""
    return discrete_sigmas(0.00085, 0.012, 1000, of_roots=True)


def discrete_sigmas(first: float, last: float, count: int, *, of_roots: bool) -> Tensor:
    """Noise levels, ascending, of ``count`` betas from ``first`` to ``last``, linear in themselves or their roots."""
    power = 2 if of_roots else 1
    betas = torch.linspace(first ** (1 / power), last ** (1 / power), count, dtype=torch.float64) ** power
    kept = torch.cumprod(1 - betas, 0)
    return ((1 - kept) / kept).sqrt().float()


def zero_terminal(sigmas: Tensor) -> Tensor:
    """Noise levels whose last holds no signal (Lin et al. 2024, arXiv 2305.08891, algorithm 1); ascending, as given.

    Of the signal's amplitude the last one's is taken everywhere, and what is left is scaled to where it began. No
    signal at all would be an infinite sigma: ComfyUI's stand-in for it is about 4518.8.
    """
    amplitude = 1 / (sigmas.double() ** 2 + 1).sqrt()
    first, last = amplitude[0].item(), amplitude[-1].item()
    kept = ((amplitude - last) * (first / (first - last))) ** 2
    kept[-1] = _LEAST_KEPT
    return ((1 - kept) / kept).sqrt().float()


def distilled(sigmas: Tensor) -> Tensor:
    """The 50 noise levels that latent consistency models keep of a table (Luo et al. 2023, arXiv 2310.04378)."""
    stride = len(sigmas) // _DISTILLED
    return sigmas[stride - 1 :: stride]


def flow_sigmas(shift: float) -> Tensor:
    """A rectified flow's 1000 times, ascending to 1, shifted towards noise (Esser et al. 2024, equation 23)."""
    times = torch.arange(1, 1001, dtype=torch.float64) / 1000
    return (shift * times / (1 + (shift - 1) * times)).float()


class Level(NamedTuple):
    """A noise level, as numbers (Karras et al. 2022, equation 7).

    They are numbers before they meet a tensor: on a device each is one argument of a kernel, not a kernel.
    """

    scale: float  #: of what the network is given, c_in
    time: float  #: what it is told as ``t``, c_noise
    keep: float  #: of what is noisy that is in the estimate, c_skip
    weight: float  #: of the network's output in it, c_out

    def scaled(self, x: Tensor) -> Tensor:
        """Noisy data as the network takes it."""
        return x if self.scale == 1 else x * self.scale

    def estimate(self, x: Tensor, output: Tensor) -> Tensor:
        """The data, from what is noisy and the network's output for it."""
        if self.keep == 1:
            return torch.add(x, output, alpha=self.weight)
        if self.keep == 0:
            return output
        return (x * self.keep).add_(output, alpha=self.weight)


class DiffusionModel:
    """A network and how to ask it.

    Args:
        network: ``(x [B, …], t [B], cond [B, …], **extras) → [B, …]``. ``x`` is scaled to the variance that the
            parametrization trains with; ``t`` float32: a sigma's place in the table, fractions and
            all (``eps``, ``v``, ``x0``), ln(sigma) / 4 (``edm``), or 1000 · sigma (``flow``).
        parametrization: what the network gives: the noise (``eps``), the velocity (``v``, Salimans
            and Ho 2022), the data (``x0``), Karras's preconditioned output (``edm``, sigma_data 0.5),
            or a rectified flow's velocity (``flow``, Liu et al. 2022; sigma is then its time, 0 to 1,
            and x = (1 − sigma) · x0 + sigma · noise).
        sigmas: ascending noise levels that the network was trained on, [N]. Default: Stable
            Diffusion's; for ``flow`` 0.001 to 1.
        latent_channels: channels that ``samples`` must have; None: not checked.
        latent_scale, latent_shift: the network sees (samples − shift) · scale of a VAE's latents.
        cond_width: last dimension that ``cond`` must have; None: not checked.
        extras: ``(options, like) → {name: [1 or B, …]}``: what else the network takes, made of a
            conditioning's options (``pooled_output``, …) for latents like ``like``.
    """

    def __init__(
        self,
        network: Network,
        *,
        parametrization: str = "eps",
        sigmas: Tensor | None = None,
        latent_channels: int | None = None,
        latent_scale: float = 1.0,
        latent_shift: float = 0.0,
        cond_width: int | None = None,
        extras: Extras | None = None,
    ) -> None:
        if parametrization not in PARAMETRIZATIONS:
            accepted = ", ".join(PARAMETRIZATIONS)
            raise ValueError(f"parametrization is {parametrization!r}: it takes {accepted}")
        if sigmas is None:
            sigmas = flow_sigmas(1.0) if parametrization == "flow" else stable_diffusion_sigmas()
        self.network = network
        self.latent_channels = latent_channels
        self.latent_scale = latent_scale
        self.latent_shift = latent_shift
        self.cond_width = cond_width
        self.extras = extras
        #: Further ones, of networks that are asked beside this one.
        self.extras_beside: Extras | None = None
        self.rescale = 0.0
        self._ask(parametrization, sigmas)
        #: The table that t counts in, whatever else the model is asked as; None: t is no place in a table.
        self.trained = None if parametrization in ("edm", "flow") else self.sigmas

    def _ask(self, parametrization: str, sigmas: Tensor) -> None:
        sigmas = sigmas.detach().float().cpu()
        if sigmas.dim() != 1 or len(sigmas) < 2 or not sigmas[0] > 0 or not bool((sigmas.diff() > 0).all()):
            raise ValueError(f"sigmas is a tensor {list(sigmas.shape)}: it takes some, ascending, above 0")
        self.parametrization = parametrization
        self.sigmas = sigmas
        self.sigma_min = float(sigmas[0])
        self.sigma_max = float(sigmas[-1])
        # Between two levels of the table, t is even in log sigma; a flow's is even in sigma.
        self._heights = sigmas if parametrization == "flow" else sigmas.log()
        self._places: list[float] = self._heights.tolist()

    def with_sampling(self, parametrization: str, sigmas: Tensor) -> DiffusionModel:
        """The same network, which gives something else than it was said to, or on other noise levels, ascending.

        Args:
            parametrization: of ``PARAMETRIZATIONS``; or ``lcm``, a consistency model of ``distilled`` levels, asked of
                no times but theirs.
        """
        other = copy.copy(self)
        other._ask(parametrization, sigmas)
        return other

    def with_network(self, network: Network) -> DiffusionModel:
        """The same model around another network of its kind."""
        other = copy.copy(self)
        other.network = network
        return other

    def with_beside(self, network: Network, extras: Extras) -> DiffusionModel:
        """The same model around a network that asks others, too, for which there are further ``extras``."""
        other = self.with_network(network)
        other.extras_beside = extras
        return other

    def with_rescale(self, share: float) -> DiffusionModel:
        """The same model, whose guidance keeps ``share`` of the spread it had without (see ``guidance``)."""
        other = copy.copy(self)
        other.rescale = share
        return other

    def scaled(self, samples: Tensor) -> Tensor:
        """A VAE's latents as the network sees them. An empty latent stays empty."""
        if (self.latent_scale, self.latent_shift) == (1, 0) or not samples.any():
            return samples
        return (samples - self.latent_shift) * self.latent_scale

    def unscaled(self, samples: Tensor) -> Tensor:
        """The network's latents as a VAE gives them."""
        if (self.latent_scale, self.latent_shift) == (1, 0):
            return samples
        return samples / self.latent_scale + self.latent_shift

    def sigma_to_t(self, sigma: float) -> float:
        """Sigma's place in the table, with its fraction. Outside the table: the nearer end."""
        table = self._places
        if sigma <= 0:
            return 0.0
        height = sigma if self.parametrization == "flow" else math.log(sigma)
        low = min(max(bisect_right(table, height) - 1, 0), len(table) - 2)
        return low + min(max((height - table[low]) / (table[low + 1] - table[low]), 0.0), 1.0)

    def time_of(self, sigma: float) -> float:
        """What the network is told as ``t``."""
        match self.parametrization:
            case "flow":
                return sigma * 1000
            case "edm":
                return math.log(sigma) / 4
            case "lcm":
                assert self.trained is not None
                stride = len(self.trained) // len(self.sigmas)
                return round(self.sigma_to_t(sigma)) * stride + stride - 1
        return self.sigma_to_t(sigma)

    def t_to_sigma(self, t: Tensor) -> Tensor:
        """The sigma at each place in the table, which may have a fraction. On the CPU."""
        table = self._heights
        t = t.float().clamp(0, len(table) - 1)
        low = t.long()
        height = torch.lerp(table[low], table[(low + 1).clamp_max(len(table) - 1)], t.frac())
        return height if self.parametrization == "flow" else height.exp()

    def noise_scale(self, sigma: float) -> tuple[float, float]:
        """``(a, b)`` of a start at ``sigma``: x = a · latent + b · noise.

        At the table's top b is the root of sigma² + 1, as ComfyUI has it: there the latent is usually
        empty, and noise stands for the data's own variance too.
        """
        if self.parametrization == "flow":
            return self.noised(sigma)
        whole = sigma > self.sigma_max or math.isclose(sigma, self.sigma_max, rel_tol=1e-5)
        return 1.0, math.sqrt(sigma**2 + 1) if whole else sigma

    def noised(self, sigma: float) -> tuple[float, float]:
        """``(a, b)`` of the data at ``sigma``: x = a · latent + b · noise."""
        return (1 - sigma, sigma) if self.parametrization == "flow" else (1.0, sigma)

    def level(self, sigma: float) -> Level:
        """How the network is asked at ``sigma``, and what its output says of the data."""
        match self.parametrization:
            case "eps":
                return Level(1 / math.sqrt(sigma**2 + 1), self.sigma_to_t(sigma), 1.0, -sigma)
            case "v":
                scale = 1 / math.sqrt(sigma**2 + 1)
                return Level(scale, self.sigma_to_t(sigma), scale**2, -sigma * scale)
            case "flow":
                return Level(1.0, self.time_of(sigma), 1.0, -sigma)
            case "edm":
                scale = 1 / math.sqrt(sigma**2 + _EDM_DATA**2)
                return Level(scale, self.time_of(sigma), (_EDM_DATA * scale) ** 2, sigma * _EDM_DATA * scale)
            case "lcm":  # the data, and close to time 0 what it was given
                t = self.time_of(sigma)
                late = t * _LCM_TIMES
                norm = math.hypot(late, _EDM_DATA)
                kept = late / norm + (_EDM_DATA / norm) ** 2
                return Level(1 / math.sqrt(sigma**2 + 1), t, kept, -sigma * late / norm)
        return Level(1 / math.sqrt(sigma**2 + 1), self.sigma_to_t(sigma), 0.0, 1.0)

    def ask(self, x: Tensor, level: Level, cond: Tensor, **extras: Tensor) -> Tensor:
        """The network's output, of the dtype of ``x``.

        Args:
            x: [B, …], times the level's scale. cond: [B, …], whatever the network takes. extras: [B, …], likewise.
        """
        times = torch.full((len(x),), level.time, dtype=torch.float32, device=x.device)
        output = self.network(x, times, cond, **extras)
        return output if output.dtype is x.dtype else output.to(x.dtype)  # asking first is the cheaper

    def denoise(self, x: Tensor, sigma: float, cond: Tensor, **extras: Tensor) -> Tensor:
        """The estimate of the data, of the dtype of ``x``.

        Args:
            x: [B, …], noisy. cond: [B, …], whatever the network takes. extras: [B, …], likewise.
        """
        level = self.level(sigma)
        return level.estimate(x, self.ask(level.scaled(x), level, cond, **extras))
