"""Sampling of diffusion models: noise schedules, samplers, guidance, and the KSampler node.

``schedules`` gives sigmas, ``samplers`` are pure functions over them, ``guidance`` makes one
denoiser of cond and uncond, ``model`` wraps a network, ``noise`` draws it; ``ksampler`` joins them.
"""
