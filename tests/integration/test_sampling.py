"""Sampling where it runs: in a locked worker, which can load no module that it hadn't, by the digits model."""

from pathlib import Path

import pytest
import torch

import vortex_worker as vw
from vortex_worker.errors import Cancelled
from vortex_worker.executor.nodes.sampling.ksampler import SAMPLER_NAMES

FOLDER = Path(__file__).parents[2] / "examples" / "digits"


@pytest.fixture(scope="module")
def digits():
    """``(fabric, inputs)``: a worker with the digits model, and what KSampler wants to draw a seven."""
    with vw.Fabric(1, standby=0, threads=1, custom_nodes=FOLDER) as fabric:
        model = fabric.run("DigitsModelLoader")["model"]
        prompt = fabric.run("DigitsPrompt", params={"text": "7"})
        yield (
            fabric,
            {
                "model": model,
                "positive": prompt["digits"],
                "negative": prompt["none"],
                "latent": prompt["latent"],
            },
        )


@pytest.mark.parametrize("name", SAMPLER_NAMES)
def test_every_sampler_runs_in_a_locked_worker(digits, name):
    fabric, inputs = digits
    settings = {"steps": 4, "cfg": 2.5, "sampler_name": name, "scheduler": "karras", "seed": 3}
    one, two = (fabric.run("KSampler", inputs, settings)["latent"]["samples"] for _ in range(2))
    assert torch.equal(one, two)
    assert bool(one.isfinite().all())
    assert float(one.std()) > 0.1


def test_two_jobs_do_one_run(digits):
    fabric, inputs = digits
    settings = {"noise_seed": 5, "steps": 8, "cfg": 2.5, "sampler_name": "heun", "scheduler": "karras"}
    whole = fabric.run("KSamplerAdvanced", inputs, settings)["latent"]["samples"]
    first = {"end_at_step": 4, "return_with_leftover_noise": "enable"}
    half = fabric.run("KSamplerAdvanced", inputs, {**settings, **first})["latent"]
    rest = {"start_at_step": 4, "add_noise": "disable"}
    done = fabric.run("KSamplerAdvanced", {**inputs, "latent": half}, {**settings, **rest})["latent"]["samples"]
    torch.testing.assert_close(done, whole, rtol=1e-3, atol=1e-3)


def test_rescaled_guidance_is_a_model_of_its_own(digits):
    fabric, inputs = digits
    model = fabric.run("RescaleCFG", {"model": inputs["model"]}, {"multiplier": 0.8})["model"]
    settings = {"steps": 4, "cfg": 9.0, "scheduler": "karras"}
    plain = fabric.run("KSampler", inputs, settings)["latent"]["samples"]
    rescaled = fabric.run("KSampler", {**inputs, "model": model}, settings)["latent"]["samples"]
    assert not torch.equal(plain, rescaled)


def test_shows_the_digit_as_it_appears_and_stops_between_steps(digits):
    fabric, inputs = digits
    shown = []

    def watch(job):
        if job.preview is not None and len(shown) < 2:
            shown.append(job.preview.clone())
        if len(shown) == 2:
            job.cancel()

    job = fabric.submit("KSampler", inputs, {"steps": 10_000, "cfg": 2.5, "scheduler": "karras"})
    job.on_progress(watch)
    with pytest.raises(Cancelled):
        job.result(120)
    assert {(tuple(picture.shape), picture.dtype) for picture in shown} == {((28, 28, 3), torch.uint8)}
    assert job.progress.step < 10_000
