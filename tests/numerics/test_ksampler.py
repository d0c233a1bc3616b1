"""The KSampler node as jobs see it, against the same run made of k-diffusion's parts."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import kdiffusion
import pytest
import torch
from counting import Counting, conditioning
from measure import KDIFFUSION, NAMES, TABLE
from torch import Tensor

from vortex_worker.errors import Cancelled, ExecutionError, OutOfArena, ValidationError
from vortex_worker.executor.context import JobContext
from vortex_worker.executor.nodes.sampling import ksampler
from vortex_worker.executor.nodes.sampling.ksampler import KSampler
from vortex_worker.executor.nodes.sampling.model import DiffusionModel
from vortex_worker.executor.nodes.sampling.preview import preview_of
from vortex_worker.executor.nodes.sampling.samplers import ADD_NOISE, BROWNIAN, CFG_PP, DROP_PENULTIMATE, SAMPLERS
from vortex_worker.executor.nodes.sampling.schedules import SCHEDULES
from vortex_worker.executor.registry import spec_of
from vortex_worker.executor.validation import check_outputs, prepare

POSITIVE, NEGATIVE = conditioning(1.0, 2.0, 3.0), conditioning(0.2)


def run(
    model: DiffusionModel | None = None, latent: Any = None, context: JobContext | None = None, **params: Any
) -> dict[str, Any]:
    """One job, through validation as the runner does it."""
    node = KSampler()
    spec = spec_of(KSampler, "built-in")
    given = {
        "model": model or DiffusionModel(Counting(), latent_channels=2),
        "positive": params.pop("positive", POSITIVE),
        "negative": params.pop("negative", NEGATIVE),
        "latent_image": latent if latent is not None else {"samples": torch.zeros(3, 2, 4, 4)},
    }
    ready, settings = prepare(spec, given, params)
    if problems := node.validate(ready, settings):
        raise ValidationError("; ".join(problems), problems=problems)
    node.context = context or JobContext()
    with torch.inference_mode():
        return check_outputs(spec, node.execute(ready, settings))


def by_hand(name: str, schedule: str, steps: int, seed: int, scale: float, latent: Tensor, denoise: float) -> Tensor:
    """The same of k-diffusion's parts, with cond and uncond run apart."""
    sampling, external = kdiffusion.load()
    network = Counting()
    kept = (1 / (TABLE.sigmas.double() ** 2 + 1)).float()
    cond, uncond = (
        external.DiscreteEpsDDPMDenoiser(lambda x, t, c=c: network(x, t, c), kept, quantize=False)
        for c in (POSITIVE[0][0], NEGATIVE[0][0].expand(3, -1, -1))
    )
    drop = name in DROP_PENULTIMATE
    whole = int(steps / denoise) + drop
    if schedule == "karras":
        sigmas = sampling.get_sigmas_karras(whole, TABLE.sigma_min, TABLE.sigma_max)
    else:
        sigmas = external.DiscreteSchedule(TABLE.sigmas, quantize=False).get_sigmas(whole)
    if drop:
        sigmas = torch.cat([sigmas[:-2], sigmas[-1:]])
    sigmas = sigmas[-(steps + 1) :]
    noise = torch.randn(latent.shape, generator=torch.Generator().manual_seed(seed))
    level = (sigmas[0] ** 2 + 1).sqrt() if denoise == 1 else sigmas[0]
    known_as, options = KDIFFUSION[name]
    if name in BROWNIAN:
        options = {**options, "noise_sampler": sampling.BrownianTreeNoiseSampler(latent, sigmas[-2], sigmas[0], seed)}
    elif name in ADD_NOISE:
        generator = torch.Generator().manual_seed(seed + 1)
        options = {"noise_sampler": lambda sigma, following: torch.randn(latent.shape, generator=generator)}

    def model(x: Tensor, sigma: Tensor) -> Tensor:
        without = uncond(x, sigma)
        return without + (cond(x, sigma) - without) * scale

    run, x = getattr(sampling, f"sample_{known_as}"), latent + noise * level
    if name in ("dpm_fast", "dpm_adaptive"):
        count = {"n": steps} if name == "dpm_fast" else {}
        return run(model, x, float(sigmas[-2]), float(sigmas[0]), disable=True, **count)
    return run(model, x, sigmas, disable=True, **options)


# Not dpm_adaptive: a last digit decides whether it takes a step.
@pytest.mark.filterwarnings("ignore:Should have")  # torchsde rounds its ends, and not what it is asked for
@pytest.mark.parametrize("denoise", [1.0, 0.5])
@pytest.mark.parametrize("schedule", ["normal", "karras"])
@pytest.mark.parametrize("name", sorted(set(KDIFFUSION) - CFG_PP - {"dpm_adaptive"}))
def test_equals_the_run_by_hand(name: str, schedule: str, denoise: float) -> None:
    latent = torch.randn(3, 2, 4, 4, generator=torch.Generator().manual_seed(9))
    seed = (1 << 64) - 5
    wanted = by_hand(name, schedule, 10, seed, 4.0, latent, denoise)
    out = run(
        latent={"samples": latent}, sampler_name=name, scheduler=schedule, steps=10, seed=seed, cfg=4.0, denoise=denoise
    )
    # A path's middle is asked for at a sigma that differs in float32's last digits: 2e-3 of a noise.
    bound = 2e-3 if name == "dpmpp_sde" else 1e-4
    torch.testing.assert_close(out["latent"]["samples"], wanted, rtol=0, atol=bound * float(wanted.abs().max()))


@pytest.mark.parametrize("schedule", sorted(SCHEDULES))
@pytest.mark.parametrize("name", NAMES)
def test_every_pair_is_finite_repeatable_and_depends_on_the_seed(name: str, schedule: str) -> None:
    one, two, other = (
        run(sampler_name=name, scheduler=schedule, steps=4, seed=seed, cfg=2.0)["latent"]["samples"]
        for seed in (3, 3, 4)
    )
    assert torch.equal(one, two)
    assert not torch.equal(one, other)
    assert bool(one.isfinite().all())


def test_steps_are_the_networks_calls() -> None:
    once = [
        "euler",
        "dpmpp_2m",
        "lms",
        "deis",
        "uni_pc",
        "sa_solver",
        "res_multistep",
        "er_sde",
        "dpmpp_3m_sde",
        "dpm_fast",
    ]
    twice = ["heun", "dpm_2", "seeds_2", "exp_heun_2_x0", "dpmpp_sde"]
    calls_of = dict.fromkeys(once, 9) | dict.fromkeys(twice, 17)
    for name, calls in (calls_of | {"seeds_3": 25, "heunpp2": 24, "sa_solver_pece": 17}).items():
        network = Counting()
        run(DiffusionModel(network), sampler_name=name, steps=9)
        assert len(network.asked) == calls
        assert {len(x) for x, _, _ in network.asked} == {6}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_keeps_dtype_keys_and_input(dtype: torch.dtype) -> None:
    samples = torch.ones(3, 2, 4, 4, dtype=dtype)
    latent = {"samples": samples, "batch_index": [4, 1, 2], "noise_mask": None, "note": "kept"}
    out = run(latent=latent, steps=2)["latent"]
    assert out["samples"].dtype == dtype
    assert {key: out[key] for key in out if key != "samples"} == {
        "batch_index": [4, 1, 2],
        "noise_mask": None,
        "note": "kept",
    }
    assert torch.equal(samples, torch.ones_like(samples))


def test_denoise_0_gives_the_latent_back() -> None:
    latent = {"samples": torch.ones(3, 2, 4, 4)}
    network = Counting()
    out = run(DiffusionModel(network), latent=latent, denoise=0.0)
    assert out["latent"]["samples"] is latent["samples"]
    assert network.asked == []


def test_batch_index_makes_one_image_of_a_batch_again() -> None:
    batch = run(latent={"samples": torch.zeros(3, 2, 4, 4), "batch_index": [0, 1, 2]}, seed=5)["latent"]["samples"]
    alone = run(latent={"samples": torch.zeros(1, 2, 4, 4), "batch_index": [2]}, seed=5, positive=conditioning(3.0))[
        "latent"
    ]["samples"]
    torch.testing.assert_close(alone[0], batch[2], rtol=1e-4, atol=1e-4)


def test_flow_takes_straight_paths() -> None:
    """A network that always points from the start's noise to one picture arrives there, by any step."""
    noise = torch.randn(3, 2, 4, 4, generator=torch.Generator().manual_seed(5))
    picture = torch.full((3, 2, 4, 4), 0.25)
    model = DiffusionModel(lambda x, t, cond: noise - picture, parametrization="flow")
    for name in ("euler", "heun", "dpmpp_2m"):
        out = run(model, seed=5, cfg=1.0, sampler_name=name, steps=3)["latent"]["samples"]
        torch.testing.assert_close(out, picture)


def test_flow_starts_between_latent_and_noise() -> None:
    seen: list[Tensor] = []
    model = DiffusionModel(lambda x, t, cond: (seen.append(x), x)[1], parametrization="flow")
    latent = torch.full((3, 2, 4, 4), 0.25)
    run(model, latent={"samples": latent}, seed=5, cfg=1.0, steps=5, denoise=0.5)
    noise = torch.randn(3, 2, 4, 4, generator=torch.Generator().manual_seed(5))
    sigma = 1 - 5 * (1 - 0.001) / 9  # the sixth of ten from 1 to 0.001
    torch.testing.assert_close(seen[0], (1 - sigma) * latent + sigma * noise)


def test_reports_each_step_and_writes_into_the_lease() -> None:
    said: list[tuple[int, int]] = []
    made: list[Tensor] = []

    def allocate(shape: Any, dtype: torch.dtype) -> Tensor:
        made.append(torch.empty(tuple(shape), dtype=dtype))
        return made[-1]

    def report(step: int, total: int, message: str, preview: Any = None) -> None:
        said.append((step, total))

    context = JobContext(report=report, allocate=allocate)
    out = run(context=context, steps=5)
    assert said == [(i, 5) for i in range(6)]
    assert len(made) == 1
    assert out["latent"]["samples"] is made[0]


def test_a_full_lease_fails_before_the_first_step() -> None:
    network = Counting()

    def allocate(shape: Any, dtype: torch.dtype) -> Tensor:
        raise OutOfArena("full")

    with pytest.raises(OutOfArena):
        run(DiffusionModel(network), context=JobContext(allocate=allocate))
    assert network.asked == []


def test_cancel_stops_at_the_next_step() -> None:
    network = Counting()
    context = JobContext(cancelled=lambda: len(network.asked) >= 3)
    with pytest.raises(Cancelled):
        run(DiffusionModel(network), context=context)
    assert len(network.asked) == 3


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_says_at_which_step_the_model_broke(value: float) -> None:
    network = Counting()

    def breaks(x: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        out = network(x, t, cond)
        if len(network.asked) == 4:
            out[0, 0, 0, 0] = value
        return out

    with pytest.raises(ExecutionError, match=r"the model gave NaN or infinity at step 4 of 20 \(sigma 6.205\)"):
        run(DiffusionModel(breaks), cfg=1.0)


def test_says_when_the_latent_was_broken() -> None:
    with pytest.raises(ExecutionError, match="the latent holds NaN or infinity at step 1"):
        run(latent={"samples": torch.full((3, 2, 4, 4), float("nan"))})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": object()}, "'model' is a object: it takes a DiffusionModel"),
        ({"latent": {"samples": torch.ones(3, 4, 4, 4)}}, "'latent' has 4 channels: it takes 2"),
        ({"latent": {"samples": torch.zeros(2, 2, 4, 4)}}, r"'positive' is a tensor \[3, .*must be 1 or 2"),
        ({"latent": {"samples": torch.zeros(3, 2, 4, 4).long()}}, "'latent' is of torch.int64"),
        ({"latent": {"samples": torch.zeros(3, 2, 4, 4), "batch_index": [1, 2]}}, "bad batch_index"),
        ({"latent": {"samples": torch.zeros(3, 2, 4, 4), "batch_index": [1, 2, 5000]}}, "bad batch_index"),
        ({"latent": {"samples": torch.zeros(3, 2, 4, 4), "noise_mask": torch.ones(1)}}, "bad noise_mask"),
        (
            {"latent": {"samples": torch.zeros(3, 2, 4, 4), "noise_mask": torch.full((4, 4), float("nan"))}},
            r"bad noise_mask: it takes \[3 or 1, …, height, width\], 0 to 1",
        ),
        ({"latent": {"samples": torch.zeros(3, 2, 0, 4)}}, r"'latent' is a tensor \[3, 2, 0, 4\]: .* none of them 0"),
        ({"latent": {"samples": torch.zeros(0, 2, 4, 4)}}, r"'latent' is a tensor \[0, 2, 4, 4\]: .* none of them 0"),
        ({"negative": conditioning(1.0, 2.0)}, "'negative' is a tensor"),
        (
            {"negative": [[torch.zeros(1, 1, dtype=torch.cfloat), {}]]},
            "'negative' is of torch.complex64: it takes real numbers",
        ),
        ({"denoise": 1e-9}, "'denoise' is 1e-09: with 20 steps it takes 0, or at least 2e-05"),
        ({"sampler_name": "eular"}, "did you mean 'euler'"),
        ({"seed": 1 << 64}, "'seed'"),
        ({"steps": 0}, "'steps'"),
        ({"cfg": 101.0}, "'cfg'"),
        ({"denoise": 1.5}, "'denoise'"),
    ],
)
def test_refuses_and_says_why(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        run(**change)


def test_lists_every_problem_at_once() -> None:
    with pytest.raises(ValidationError) as caught:
        run(latent={"samples": torch.ones(2, 5, 4, 4)}, negative=conditioning(1.0, 2.0, 3.0))
    assert len(caught.value.problems) == 3


def alone(x: Tensor, t: Tensor, cond: Tensor) -> Tensor:
    """A network that looks at no neighbours."""
    return torch.tanh(x * 0.7 + cond.float().mean())


def test_an_empty_latent_gets_the_models_channels() -> None:
    empty = run(latent={"samples": torch.zeros(3, 4, 4, 4)})["latent"]["samples"]
    assert torch.equal(empty, run()["latent"]["samples"])


def test_a_mask_keeps_the_rest_of_the_latent() -> None:
    latent = torch.randn(3, 2, 4, 4, generator=torch.Generator().manual_seed(3))
    mask = torch.zeros(1, 32, 32)
    mask[..., 16:] = 1
    model = DiffusionModel(alone, latent_scale=0.2, latent_shift=0.1)
    out = run(model, {"samples": latent, "noise_mask": mask}, denoise=0.6)["latent"]["samples"]
    torch.testing.assert_close(out[..., :2], latent[..., :2], rtol=0, atol=1e-5)
    whole = run(model, {"samples": latent}, denoise=0.6)["latent"]["samples"]
    torch.testing.assert_close(out[..., 2:], whole[..., 2:], rtol=1e-5, atol=1e-5)
    assert (out[..., 2:] - latent[..., 2:]).abs().max() > 0.1


def test_scaled_latents_are_those_of_the_network() -> None:
    latent = torch.randn(3, 2, 4, 4, generator=torch.Generator().manual_seed(3))
    scaled = DiffusionModel(alone, latent_scale=0.5, latent_shift=0.25)
    out = run(scaled, {"samples": latent}, denoise=0.5)["latent"]["samples"]
    plain = run(DiffusionModel(alone), {"samples": (latent - 0.25) * 0.5}, denoise=0.5)["latent"]["samples"]
    torch.testing.assert_close(out, plain / 0.5 + 0.25, rtol=1e-5, atol=1e-5)


def test_ddim_s_surroundings_have_noise_of_their_own() -> None:
    """ComfyUI's rule: what lies outside a mask is noised from the next seed."""
    latent, mask = torch.full((3, 2, 4, 4), 2.0), torch.zeros(1, 4, 4)
    seen: list[Tensor] = []
    model = DiffusionModel(lambda x, t, cond: (seen.append(x), x)[1])
    last = (1 << 64) - 1
    for name, seed in (("euler", 5), ("ddim", 5), ("ddim", last)):
        run(model, {"samples": latent, "noise_mask": mask}, sampler_name=name, steps=1, seed=seed, cfg=1.0)
    top = TABLE.sigma_max
    for x, seed in zip(seen, (5, 6, 0), strict=True):
        noise = torch.randn(3, 2, 4, 4, generator=torch.Generator().manual_seed(seed))
        torch.testing.assert_close(x, (latent + noise * top) / (top**2 + 1) ** 0.5)


@pytest.mark.parametrize("name", sorted(CFG_PP))
def test_cfg_pp_asks_for_both_at_any_scale(name: str) -> None:
    network = Counting()
    out = run(DiffusionModel(network), sampler_name=name, steps=3, cfg=1.0)["latent"]["samples"]
    assert {len(x) for x, _, _ in network.asked} == {6}
    # A negative that is the positive changes nothing: then it is the plain sampler.
    same = run(sampler_name=name, steps=3, cfg=1.0, negative=POSITIVE)["latent"]["samples"]
    plain = run(sampler_name=name.removesuffix("_cfg_pp"), steps=3, cfg=1.0)["latent"]["samples"]
    torch.testing.assert_close(same, plain, rtol=1e-4, atol=1e-4)
    assert (out - plain).abs().max() > 1e-3


def test_the_gpu_s_names_draw_on_the_device() -> None:
    """Which here is the CPU, so they draw the same."""
    for name in SAMPLERS:
        if name.endswith("_gpu"):
            wanted = run(sampler_name=name.removesuffix("_gpu"), steps=3)["latent"]["samples"]
            assert torch.equal(run(sampler_name=name, steps=3)["latent"]["samples"], wanted)


def test_shows_what_there_is_so_far(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[Any] = []

    def report(step: int, total: int, message: str, preview: Any = None) -> None:
        shown.append(preview)

    run(context=JobContext(report=report), steps=5)
    assert shown.count(None) >= 5  # quicker than the eye: at most one in a tenth of a second
    monkeypatch.setattr("vortex_worker.executor.nodes.sampling.watch._EVERY", 0)
    shown.clear()
    run(context=JobContext(report=report), steps=5)
    assert [preview is None for preview in shown] == [False] * 5 + [True]
    picture = shown[3]()
    assert (picture.shape, picture.dtype) == ((4, 4, 3), torch.uint8)


@pytest.mark.parametrize("shape", [(2, 1, 5, 7), (1, 2, 5, 7), (1, 4, 5, 7), (1, 16, 3, 5, 7), (1, 8, 7)])
def test_previews_of_any_latent(shape: tuple[int, ...]) -> None:
    latent = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    picture = preview_of(latent.to(torch.bfloat16))
    assert picture.shape == (shape[-2] if len(shape) > 3 else 1, shape[-1], 3)
    assert picture.is_contiguous()
    assert 60 < picture.float().mean() < 196
    assert bool((preview_of(torch.zeros(shape)) == 127).all())


def test_names_are_those_of_the_tables() -> None:
    assert set(ksampler.SAMPLER_NAMES) == set(SAMPLERS)
    assert set(ksampler.SCHEDULE_NAMES) == set(SCHEDULES)


def test_declares_itself_without_torch() -> None:
    code = "import sys, vortex_worker.executor.nodes.sampling.ksampler as k; print(k.EXECUTORS, 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("False")
