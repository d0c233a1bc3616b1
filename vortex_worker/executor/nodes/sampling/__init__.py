"""Sampling of diffusion models. What each room is; imports run downwards::

    ksampler     the KSampler node: joins the rest. Imports torch only when it runs
    guidance     one denoiser of cond and uncond, in one batch
    schedules    sigmas, by ComfyUI's names and rules
    samplers/    pure functions over sigmas: one step (ode), ancestral, multistep
    noise        noise from 64-bit seeds
    model        DiffusionModel: a network, its sigma table and what its output means

To name a sampler or schedule in the node too, add it to the names in ``ksampler``.
"""
