"""Sampling of diffusion models. What each room is; imports run downwards::

    ksampler     the KSampler nodes: what they take. Imports torch only when they run
    patches      nodes that give a model asked otherwise. The same
    sample       one run: joins the rest
    control      ControlNets of conditionings, put into a model
    guidance     one denoiser of cond and uncond, in one batch
    schedules    sigmas, by ComfyUI's names and rules
    samplers/    pure functions over sigmas, a page a family
    views        flow models, as samplers that add noise see them
    watch        progress, cancellation, and NaN named by its step
    noise        noise from 64-bit seeds; brownian: of one path, for stochastic equations
    model        DiffusionModel: a network, its sigma table and what its output means

To name a sampler or schedule in the nodes too, add it to the names in ``ksampler``.
"""
