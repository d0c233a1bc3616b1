"""Samplers: pure functions from noise at the first sigma to data at the last.

``sampler(model, x, sigmas, *, noise, callback, …)``, see ``signature``. Formulae are those of the
papers cited; the tests hold each to an outside reference, and to the order of convergence that its paper claims.

One page a family: ``ode`` and ``ancestral`` (one step, without noise and with), ``dpm_solver`` (steps of their own),
``multistep`` and ``adams`` (from the estimates of earlier steps), ``dpmpp_sde``, ``seeds``, ``er_sde`` and
``sa_solver`` (the stochastic equation), ``uni_pc``, ``res``, ``gradient``, ``cfg_pp``.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from vortex_worker.executor.nodes.sampling.samplers.adams import deis, ipndm, ipndm_v
from vortex_worker.executor.nodes.sampling.samplers.ancestral import (
    dpm_2_ancestral,
    dpmpp_2s_ancestral,
    euler_ancestral,
    lcm,
)
from vortex_worker.executor.nodes.sampling.samplers.cfg_pp import (
    dpmpp_2m_cfg_pp,
    dpmpp_2s_ancestral_cfg_pp,
    euler_ancestral_cfg_pp,
    euler_cfg_pp,
)
from vortex_worker.executor.nodes.sampling.samplers.dpm_solver import dpm_adaptive, dpm_fast
from vortex_worker.executor.nodes.sampling.samplers.dpmpp_sde import (
    dpmpp_2m_sde,
    dpmpp_2m_sde_heun,
    dpmpp_3m_sde,
    dpmpp_sde,
)
from vortex_worker.executor.nodes.sampling.samplers.er_sde import er_sde
from vortex_worker.executor.nodes.sampling.samplers.gradient import gradient_estimation, gradient_estimation_cfg_pp
from vortex_worker.executor.nodes.sampling.samplers.multistep import dpmpp_2m, lms
from vortex_worker.executor.nodes.sampling.samplers.ode import dpm_2, euler, heun, heunpp2
from vortex_worker.executor.nodes.sampling.samplers.res import (
    res_multistep,
    res_multistep_ancestral,
    res_multistep_ancestral_cfg_pp,
    res_multistep_cfg_pp,
)
from vortex_worker.executor.nodes.sampling.samplers.sa_solver import sa_solver, sa_solver_pece
from vortex_worker.executor.nodes.sampling.samplers.seeds import exp_heun_2_x0, exp_heun_2_x0_sde, seeds_2, seeds_3
from vortex_worker.executor.nodes.sampling.samplers.uni_pc import uni_pc, uni_pc_bh2

#: By ComfyUI's names, in its order. ``_gpu``: the same function, its noise drawn on the device.
SAMPLERS: dict[str, Callable[..., Tensor]] = {
    "euler": euler,
    "euler_cfg_pp": euler_cfg_pp,
    "euler_ancestral": euler_ancestral,
    "euler_ancestral_cfg_pp": euler_ancestral_cfg_pp,
    "heun": heun,
    "heunpp2": heunpp2,
    "exp_heun_2_x0": exp_heun_2_x0,
    "exp_heun_2_x0_sde": exp_heun_2_x0_sde,
    "dpm_2": dpm_2,
    "dpm_2_ancestral": dpm_2_ancestral,
    "lms": lms,
    "dpm_fast": dpm_fast,
    "dpm_adaptive": dpm_adaptive,
    "dpmpp_2s_ancestral": dpmpp_2s_ancestral,
    "dpmpp_2s_ancestral_cfg_pp": dpmpp_2s_ancestral_cfg_pp,
    "dpmpp_sde": dpmpp_sde,
    "dpmpp_sde_gpu": dpmpp_sde,
    "dpmpp_2m": dpmpp_2m,
    "dpmpp_2m_cfg_pp": dpmpp_2m_cfg_pp,
    "dpmpp_2m_sde": dpmpp_2m_sde,
    "dpmpp_2m_sde_gpu": dpmpp_2m_sde,
    "dpmpp_2m_sde_heun": dpmpp_2m_sde_heun,
    "dpmpp_2m_sde_heun_gpu": dpmpp_2m_sde_heun,
    "dpmpp_3m_sde": dpmpp_3m_sde,
    "dpmpp_3m_sde_gpu": dpmpp_3m_sde,
    "ddpm": euler_ancestral,  # the posterior of Ho et al. (2020) is the ancestral step, to the last digit
    "lcm": lcm,
    "ipndm": ipndm,
    "ipndm_v": ipndm_v,
    "deis": deis,
    "res_multistep": res_multistep,
    "res_multistep_cfg_pp": res_multistep_cfg_pp,
    "res_multistep_ancestral": res_multistep_ancestral,
    "res_multistep_ancestral_cfg_pp": res_multistep_ancestral_cfg_pp,
    "gradient_estimation": gradient_estimation,
    "gradient_estimation_cfg_pp": gradient_estimation_cfg_pp,
    "er_sde": er_sde,
    "seeds_2": seeds_2,
    "seeds_3": seeds_3,
    "sa_solver": sa_solver,
    "sa_solver_pece": sa_solver_pece,
    "ddim": euler,  # DDIM's deterministic step is Euler's in the variance-exploding view
    "uni_pc": uni_pc,
    "uni_pc_bh2": uni_pc_bh2,
}

#: These take a schedule of one step more without its last sigma but one: near 0 it asks too much of them.
DROP_PENULTIMATE = frozenset({"dpm_2", "dpm_2_ancestral", "uni_pc", "uni_pc_bh2"})

#: Their model gives a pair, so the negative runs at any guidance.
CFG_PP = frozenset(name for name in SAMPLERS if name.endswith("_cfg_pp"))

#: Their noise is of one Brownian path, which the number of steps doesn't change.
BROWNIAN = frozenset(name for name in SAMPLERS if "_sde" in name and name.startswith("dpmpp"))

#: These add noise.
ADD_NOISE = BROWNIAN | {name for name in SAMPLERS if "ancestral" in name} | {
    "exp_heun_2_x0_sde", "ddpm", "lcm", "er_sde", "seeds_2", "seeds_3", "sa_solver", "sa_solver_pece",
}  # fmt: skip

#: Of a flow model these run in the variance-exploding view (``views.exploding``); the others in its own time.
EXPLODING = ADD_NOISE | CFG_PP | {"exp_heun_2_x0"}

#: And these choose how much noise in the flow's own time (``ancestral.flow_levels``).
FLOW_RULE = frozenset({"euler_ancestral", "dpm_2_ancestral", "dpmpp_2s_ancestral"})
