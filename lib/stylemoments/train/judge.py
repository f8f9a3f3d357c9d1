"""Trains the judge, the classifier of the tiny world that measures the other models.

    python -m stylemoments.train.judge --out runs/judge

It will judge pictures that a diffusion model drew and an autoencoder smoothed. So that it does not lean on fine
texture, which those lose, every training picture is shifted, blurred and made noisy by a random amount.
"""

import json

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_model
from torch import Tensor, nn

from ..judge import NAMES, Judge
from ..metrics import hue_distance
from ..world import HELD_OUT_HAND, Sample, World
from . import loop
from .pictures import Pictures, render

SETTINGS = loop.Settings(steps=1200, batch=128, rate=2e-3, weight_decay=0.05, average=0.99)
SHIFT = 2 * 3 / 64  # largest shift, 3 pixels, in units of half the picture
NOISE = 0.08  # largest standard deviation of the noise
FRESH_SEED = 2  # the pictures of the figures; training has seed 1
FRESH = 2000  # how many of each kind
SHOWN = 12


def augment(images: Tensor) -> Tensor:
    """Each picture shifted by up to 3 pixels, blurred and made noisy by amounts of its own; values may leave [0, 1]."""
    n = len(images)
    shift = torch.eye(2, 3, device=images.device).repeat(n, 1, 1)
    shift[..., 2] = (torch.rand(n, 2, device=images.device) * 2 - 1) * SHIFT
    grid = F.affine_grid(shift, list(images.shape), align_corners=False)
    images = F.grid_sample(images, grid, padding_mode="reflection", align_corners=False)
    softness, noise = torch.rand(2, n, 1, 1, 1, device=images.device)
    images = images.lerp(blurred(images), softness)
    return images + NOISE * noise * torch.randn_like(images)


def blurred(images: Tensor) -> Tensor:
    """Pictures under a binomial filter of 5 × 5 pixels (standard deviation 1); edges are reflected."""
    line = torch.tensor([1.0, 4, 6, 4, 1], device=images.device) / 16
    kernel = torch.outer(line, line).expand(3, 1, 5, 5)
    return F.conv2d(F.pad(images, (2, 2, 2, 2), mode="reflect"), kernel, groups=3)


class Judging(nn.Module):
    """The judge with its losses: three cross-entropies, and one minus the cosine of the angle between the hues."""

    def __init__(self):
        super().__init__()
        self.judge = Judge().to(memory_format=torch.channels_last)

    def forward(self, images: Tensor, targets: Tensor, hues: Tensor) -> dict[str, Tensor]:
        with torch.autocast(images.device.type, enabled=False):
            images = augment(images).contiguous(memory_format=torch.channels_last)
        logits = self.judge.logits(images)
        losses = {name: F.cross_entropy(logits[name].float(), targets[:, i]) for i, name in enumerate(NAMES)}
        losses["hues"] = 1 - F.cosine_similarity(logits["hues"].float(), hues).mean()
        right = (logits["objects"].argmax(-1) == targets[:, 0]).float().mean()
        return {"loss": sum(losses.values()), **losses, "objects_right": right}


class Task:
    """What :func:`loop.steps` trains."""

    def __init__(self, pictures: Pictures):
        self.data, self.pictures, self.model = pictures, len(pictures), Judging()
        numbers = [[names.index(word) for word in pictures.facts[name]] for name, names in NAMES.items()]
        self.targets = torch.tensor(numbers).T  # n 3
        turn = 2 * torch.pi * torch.tensor(pictures.facts["hues"], dtype=torch.float64)
        self.hues = torch.stack([turn.cos(), turn.sin()], -1).float()

    def batch(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.data.images(rows), self.targets[rows], self.hues[rows]

    def after_step(self, model, settings, step):
        pass

    @torch.no_grad()
    def sheet(self, model: nn.Module) -> np.ndarray:
        """Pictures above, as they are trained on; below each, white for every right answer: object, style, place."""
        images, targets, _ = (part.to(model.judge.hue.weight.device) for part in self.batch(torch.arange(SHOWN)))
        logits = model.judge.logits(images)
        right = torch.stack([logits[name].argmax(-1) == targets[:, i] for i, name in enumerate(NAMES)])  # 3 n
        strip = right.float().cpu().repeat_interleave(8, 0).repeat_interleave(64, 1).expand(3, -1, -1)
        shown = torch.cat([augment(images).clamp(0, 1).cpu().permute(1, 2, 0, 3).flatten(2), strip], 1)
        return (shown * 255).round().byte().permute(1, 2, 0).numpy()


def figures(judge: Judge, n: int) -> dict[str, dict[str, float]]:
    """How often the judge is right on ``n`` fresh pictures of each kind."""
    world = World(FRESH_SEED)
    return {
        "trained pairs": right(judge, world.sample(n, split="train")),
        "held-out pairs": right(judge, world.sample(n, split="held-out")),
        "held-out hand": right(judge, world.sample(n, hand=HELD_OUT_HAND)),
    }


def right(judge: Judge, sample: Sample) -> dict[str, float]:
    """Shares of right answers, the mean error of the hue in degrees, and the number of pictures."""
    said = judge(torch.from_numpy(sample.images))
    shares = {name: np.mean(np.array(getattr(said, name)) == np.array(getattr(sample, name))) for name in NAMES}
    shares["hue_error"] = hue_distance(said.hues, sample.hues).mean()
    return {name: round(float(value), 4) for name, value in shares.items()} | {"n": len(sample.prompts)}


def main() -> None:
    options = loop.parser(__doc__.splitlines()[0], SETTINGS).parse_args()
    settings = loop.chosen(SETTINGS, options)
    torch.manual_seed(settings.seed)
    task = Task(render(settings.pictures, options.out.parent / "pictures"))

    def finish():
        judge = task.model.judge.to(memory_format=torch.contiguous_format).eval()
        save_model(judge, options.out / "model.safetensors")
        found = figures(judge, n=48 if options.smoke else FRESH)
        (options.out / "figures.json").write_text(json.dumps(found, indent=2) + "\n", "utf-8")

    loop.run(task, settings, options.out, finish)


if __name__ == "__main__":
    main()
