"""A diffusion model as samplers see it: noisy input and sigma in, denoised estimate out.

Sigma is the noise's standard deviation in the variance-exploding view, x = x0 + sigma · noise, of
Karras et al., "Elucidating the Design Space of Diffusion-Based Generative Models" (2022).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Network = Callable[[Tensor, Tensor, Tensor], Tensor]
PARAMETRIZATIONS = ("eps", "v", "x0", "edm", "flow")


def stable_diffusion_sigmas() -> Tensor:
    """The 1000 noise levels of Stable Diffusion, ascending: betas linear in their roots, 0.00085 to 0.012."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    kept = torch.cumprod(1 - betas, 0)
    return ((1 - kept) / kept).sqrt().float()


class DiffusionModel:
    """A network and how to ask it.

    Args:
        network: ``(x [B, …], t [B], cond [B, …]) → [B, …]``.
        parametrization: what the network gives: the noise (``eps``), the velocity (``v``, Salimans
            and Ho 2022), the data (``x0``), Karras's preconditioned output (``edm``, sigma_data 0.5),
            or a rectified flow's velocity (``flow``, Liu et al. 2022; sigma is then its time, 0 to 1).
        sigmas: ascending noise levels that the network was trained on, [N]; t is an index into them.
        latent_channels: channels that ``samples`` must have; None: not checked.
    """

    def __init__(
        self,
        network: Network,
        *,
        parametrization: str = "eps",
        sigmas: Tensor | None = None,
        latent_channels: int | None = None,
    ) -> None:
        if parametrization not in PARAMETRIZATIONS:
            raise ValueError(f"parametrization is {parametrization!r}: it takes {', '.join(PARAMETRIZATIONS)}")
        if sigmas is None:
            sigmas = torch.arange(1, 1001) / 1000 if parametrization == "flow" else stable_diffusion_sigmas()
        if sigmas.dim() != 1 or len(sigmas) < 2 or not bool((sigmas[1:] > sigmas[:-1]).all()) or sigmas[0] <= 0:
            raise ValueError(f"sigmas is a tensor {list(sigmas.shape)}: it takes at least two, ascending, above 0")
        self.network = network
        self.parametrization = parametrization
        self.latent_channels = latent_channels
        self.sigmas = sigmas.float().cpu()
        self._log_sigmas = self.sigmas.log()

    @property
    def sigma_min(self) -> float:
        return float(self.sigmas[0])

    @property
    def sigma_max(self) -> float:
        return float(self.sigmas[-1])

    def sigma_to_t(self, sigma: Tensor) -> Tensor:
        """Fractional index of each sigma in the table, by its logarithm. Outside it: the nearest end."""
        log_sigma = sigma.float().clamp_min(1e-10).log()
        table = self._log_sigmas.to(sigma.device)
        low = (torch.searchsorted(table, log_sigma, right=True) - 1).clamp(0, len(table) - 2)
        below, above = table[low], table[low + 1]
        return low + ((log_sigma - below) / (above - below)).clamp(0, 1)

    def t_to_sigma(self, t: Tensor) -> Tensor:
        """Sigma at each fractional index, by its logarithm."""
        t = t.float().clamp(0, len(self.sigmas) - 1)
        table = self._log_sigmas.to(t.device)
        low, part = t.floor().long(), t.frac()
        high = (low + 1).clamp_max(len(table) - 1)
        return ((1 - part) * table[low] + part * table[high]).exp()

    def noise_scale(self, sigma: float) -> tuple[float, float]:
        """``(a, b)`` of a start at ``sigma``: x = a · latent + b · noise."""
        return (1 - sigma, sigma) if self.parametrization == "flow" else (1.0, sigma)

    def denoise(self, x: Tensor, sigma: Tensor, cond: Tensor) -> Tensor:
        """The network's estimate of the data.

        Args:
            x: [B, …], noisy. sigma: [B]. cond: [B, …], whatever the network takes.
        """
        wide = sigma.reshape(-1, *[1] * (x.dim() - 1)).to(x.dtype)
        match self.parametrization:
            case "flow":
                return x - wide * self.network(x, sigma * 1000, cond)
            case "edm":
                data = 0.5
                total = wide**2 + data**2
                out = self.network(x / total.sqrt(), sigma.log() / 4, cond)
                return x * (data**2 / total) + out * (wide * data / total.sqrt())
        scaled = x / (wide**2 + 1).sqrt()
        out = self.network(scaled, self.sigma_to_t(sigma), cond)
        match self.parametrization:
            case "eps":
                return x - wide * out
            case "v":
                return x / (wide**2 + 1) - out * (wide / (wide**2 + 1).sqrt())
            case _:
                return out
