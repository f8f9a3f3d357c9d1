"""Trains tiny-dino, a network that learns without labels to tell pictures of the tiny world apart.

    python -m stylemoments.train.dino --out runs/dino

Caron et al., *Emerging Properties in Self-Supervised Vision Transformers*, 2021 (arXiv 2104.14294): a student sees
crops of a picture and predicts to which of some prototypes a teacher assigns other crops of it; the teacher is the
moving average of the student. Deviations:

- One view in five has all its hues turned by a random angle, the others keep their colors but for a little brightness
  and contrast; no solarising, no grayscale. Never turning them teaches the palette and nothing of the object: after
  1200 steps neighbors shared it less often than with random weights. Always turning them would teach that color does
  not matter.
- The network is a small residual one, as the authors' ResNet-50, and no transformer. A transformer of this size, with
  patches of 8 pixels, was after 200 steps no better than with random weights.
- The teacher's assignments are balanced within the batch by Sinkhorn's iterations (Caron et al., *SwAV*, 2020, arXiv
  2006.09882; Oquab et al., *DINOv2*, 2023, arXiv 2304.07193) instead of centred. With centering alone, so short a run
  settled on a dozen of 512 prototypes.
"""

from .. import _torchvision  # noqa: F401, I001
import json
import math

import numpy as np
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import save_model
from torch import Tensor, nn

from ..metrics import hue_distance
from ..world import NOWHERE, Sample, World
from . import loop
from .judge import blurred
from .pictures import Pictures, render

#: The arguments of timm's create_model.
CONFIG = {"model_name": "resnet18", "layers": [1, 1, 1, 1], "channels": [48, 96, 192, 256], "num_classes": 0}
SETTINGS = loop.Settings(steps=1200, batch=64, rate=2e-3, weight_decay=0.04, average=0.0)  # the teacher is the average
GLOBAL = (0.6, 1.0)  # share of the picture's area in the crops of 64 pixels, of which there are two
LOCAL = (0.25, 0.6)  # and in those of 32 pixels
LOCALS = 3  # how many of these
LIGHT = 0.1  # largest change of brightness and contrast
TURNED = 0.2  # share of the views whose hues are turned
HIDDEN, BOTTLENECK, PROTOTYPES = 256, 64, 512
STUDENT_TEMPERATURE, TEACHER_TEMPERATURE = 0.1, 0.04
BALANCING = 3  # iterations of Sinkhorn
TEACHER_MOMENTUM = 0.98  # at the start; 1 at the end
FRESH_SEED = 2  # the pictures of the figures; training has seed 1
FRESH = 2000  # how many
NEIGHBORS, NEIGHBOR_TEMPERATURE = 20, 0.07  # of the paper's k-NN
SHOWN = 8


def crops(images: Tensor, size: int, area: tuple[float, float]) -> Tensor:
    """One crop of each picture ``(n, 3, size, size)`` in [-1, 1] at a random place: mirrored, blurred, lighter."""
    n, at = len(images), images.device
    side = torch.empty(n, 2, device=at).uniform_(*area).mean(-1).sqrt()  # of the crop, the picture's is 1
    place = (torch.rand(n, 2, device=at) * 2 - 1) * (1 - side)[:, None]
    mirror = torch.randint(0, 2, (n,), device=at) * 2 - 1
    window = torch.zeros(n, 2, 3, device=at)
    window[:, 0, 0], window[:, 1, 1], window[..., 2] = side * mirror, side, place
    grid = F.affine_grid(window, [n, 3, size, size], align_corners=False)
    views = F.grid_sample(images, grid, padding_mode="reflection", align_corners=False)
    views = views.lerp(blurred(views), torch.rand(n, 1, 1, 1, device=at))
    views = turned(views, torch.rand(n, device=at).sub(0.5) * 2 * torch.pi * (torch.rand(n, device=at) < TURNED))
    contrast, brightness = (torch.rand(2, n, 1, 1, 1, device=at) * 2 - 1) * LIGHT
    views = (views - 0.5) * (1 + contrast) + brightness
    return (2 * views).contiguous(memory_format=torch.channels_last)


def turned(images: Tensor, angles: Tensor) -> Tensor:
    """Colors ``(n, 3, H, W)`` turned about the gray axis by angles ``(n,)`` in radians.

    A third of a turn takes red to green, green to blue, blue to red:

    >>> red = torch.tensor([1.0, 0.0, 0.0])[None, :, None, None]
    >>> turned(red, torch.tensor([2 * torch.pi / 3])).flatten().round(decimals=3).abs()
    tensor([0., 1., 0.])
    """
    cos, sin = angles.cos(), angles.sin() / 3**0.5
    same, next, last = (1 + 2 * cos) / 3, (1 - cos) / 3 - sin, (1 - cos) / 3 + sin
    rows = [torch.stack(row, -1) for row in ((same, next, last), (last, same, next), (next, last, same))]
    return torch.einsum("nij,njhw->nihw", torch.stack(rows, 1), images)


class Head(nn.Module):
    """Features to the cosines with the prototypes."""

    def __init__(self, dim: int):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(dim, HIDDEN), nn.GELU(), nn.Linear(HIDDEN, HIDDEN), nn.GELU(), nn.Linear(HIDDEN, BOTTLENECK)
        )
        self.prototypes = nn.Parameter(torch.randn(PROTOTYPES, BOTTLENECK))

    def forward(self, features: Tensor) -> Tensor:
        points = F.normalize(self.layers(features).float(), dim=-1)
        with torch.autocast(points.device.type, enabled=False):  # half precision is rough over a low temperature
            return points @ F.normalize(self.prototypes, dim=-1).T


def network() -> nn.Sequential:
    """What ships, and the head that only training needs."""
    body = timm.create_model(**CONFIG).to(memory_format=torch.channels_last)
    return nn.Sequential(body, Head(body.num_features))


class SelfDistillation(nn.Module):
    """Student and teacher with the loss; pictures are in [0, 1]."""

    def __init__(self):
        super().__init__()
        self.student, self.teacher = network(), network().requires_grad_(False)
        self.teacher.load_state_dict(self.student.state_dict())

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        with torch.autocast(images.device.type, enabled=False):
            large = torch.cat([crops(images, 64, GLOBAL) for _ in range(2)])
            small = torch.cat([crops(images, 32, LOCAL) for _ in range(LOCALS)])
        with torch.no_grad():
            target = balanced(self.teacher(large) / TEACHER_TEMPERATURE).unflatten(0, (2, -1))  # v n k
        guesses = torch.cat([self.student(large), self.student(small)]) / STUDENT_TEMPERATURE
        guesses = guesses.log_softmax(-1).unflatten(0, (2 + LOCALS, -1))  # v n k
        pairs = [(t, s) for t in range(2) for s in range(2 + LOCALS) if t != s]
        loss = -torch.stack([(target[t] * guesses[s]).sum(-1).mean() for t, s in pairs]).mean()
        return {"loss": loss, "sharpness": target.amax(-1).mean()}


def balanced(logits: Tensor) -> Tensor:
    """Assignments ``(n, k)`` that sum to 1 for each picture, and to about n / k for each prototype.

    >>> balanced(torch.tensor([[0.0, 0.0], [0.0, 0.0]]))
    tensor([[0.5000, 0.5000],
            [0.5000, 0.5000]])
    """
    for _ in range(BALANCING):
        logits = logits.log_softmax(-2).log_softmax(-1)
    return logits.exp()


class Task:
    """What :func:`loop.steps` trains."""

    def __init__(self, pictures: Pictures):
        self.data, self.pictures, self.model = pictures, len(pictures), SelfDistillation()

    def batch(self, rows: Tensor) -> tuple[Tensor]:
        return (self.data.images(rows),)

    @torch.no_grad()
    def after_step(self, model, settings, step):
        """The teacher follows the student, ever more slowly."""
        share = (1 - TEACHER_MOMENTUM) * (1 + math.cos(math.pi * step / settings.steps)) / 2
        for slow, fast in zip(model.teacher.parameters(), model.student.parameters(), strict=True):
            slow.lerp_(fast, share)

    @torch.no_grad()
    def sheet(self, model: nn.Module) -> np.ndarray:
        """Left a picture, then those of the first 512 that the teacher finds nearest."""
        images = self.data.images(torch.arange(min(512, self.pictures)))
        features = embedded(model.teacher[0], images)
        near = (features[:SHOWN] @ features.T).topk(SHOWN).indices
        shown = images[near].permute(0, 3, 1, 4, 2).flatten(0, 1).flatten(1, 2)  # (rows 64) (columns 64) 3
        return (shown * 255).round().byte().numpy()


@torch.no_grad()
def embedded(net: nn.Module, images: Tensor) -> Tensor:
    """Unit vectors ``(n, d)`` on the CPU for pictures in [0, 1]."""
    device = next(net.parameters()).device
    return torch.cat([F.normalize(net(part.to(device) * 2 - 1).float(), dim=-1).cpu() for part in images.split(256)])


def figures(nets: dict[str, nn.Module], bank: Pictures, n: int) -> dict[str, dict]:
    """For each network, how well neighbors share what is true of them, and how alike pairs are, of ``n`` pictures."""
    fresh = World(FRESH_SEED).sample(n, split="train")
    nowhere = World(FRESH_SEED).sample(n, place=NOWHERE)
    found = {}
    for name, net in nets.items():
        known = embedded(net, bank.images(torch.arange(min(4 * n, len(bank)))))
        found[name] = {
            "neighbors": neighbors(embedded(net, torch.from_numpy(fresh.images)), fresh, known, bank.facts),
            "pairs": likeness(embedded(net, torch.from_numpy(nowhere.images)), nowhere),
        }
    return found


def neighbors(features: Tensor, fresh: Sample, known: Tensor, facts: dict[str, list]) -> dict[str, float]:
    """The paper's weighted k-NN: share of right answers, and the mean error of the hue in degrees."""
    cosines, near = (features @ known.T).topk(min(NEIGHBORS, len(known)))
    weights = (cosines / NEIGHBOR_TEMPERATURE).exp()
    found = {}
    for name in ("styles", "objects", "places"):
        names = sorted(set(facts[name]))
        votes = F.one_hot(torch.tensor([names.index(word) for word in facts[name][: len(known)]]), len(names))
        said = (weights[..., None] * votes[near]).sum(1).argmax(-1)
        found[name] = np.mean([names[i] == true for i, true in zip(said, getattr(fresh, name), strict=True)])
    turns = torch.exp(2j * torch.pi * torch.tensor(facts["hues"][: len(known)]))
    hues = (weights * turns[near]).sum(1).angle() / (2 * torch.pi)
    found["hue_error"] = hue_distance(hues.numpy(), fresh.hues).mean()
    return {name: round(float(value), 4) for name, value in found.items()} | {"n": len(features)}


def likeness(features: Tensor, sample: Sample) -> dict[str, dict[str, float]]:
    """Mean cosine of pairs by what they share, and how often such a pair is more alike than one that shares nothing."""
    cosines = (features @ features.T).numpy()
    objects, styles = (np.array(getattr(sample, name)) for name in ("objects", "styles"))
    apart = hue_distance(sample.hues[:, None], sample.hues)
    same_object, same_style = objects[:, None] == objects, styles[:, None] == styles
    kinds = {
        "same style, same palette": ~same_object & same_style & (apart < 10),
        "same style, other palette": ~same_object & same_style & (apart > 90),
        "other style, same palette": ~same_object & ~same_style & (apart < 10),
        "same object and style, other palette": same_object & same_style & (apart > 90),
        "same object, other style": same_object & ~same_style & (apart > 90),
        "nothing shared": ~same_object & ~same_style & (apart > 90),
    }
    nothing = np.sort(cosines[kinds["nothing shared"]])
    return {
        kind: {
            "cosine": round(float(cosines[mask].mean()), 4),
            "above": round(float(np.searchsorted(nothing, cosines[mask]).mean() / len(nothing)), 4),
            "n": int(mask.sum()) // 2,
        }
        for kind, mask in kinds.items()
    }


def main() -> None:
    options = loop.parser(__doc__.splitlines()[0], SETTINGS).parse_args()
    settings = loop.chosen(SETTINGS, options)
    torch.manual_seed(settings.seed)
    task = Task(render(settings.pictures, options.out.parent / "pictures"))
    random = network()[0].eval()

    def finish():
        teacher = task.model.teacher[0].to(memory_format=torch.contiguous_format)
        save_model(teacher, options.out / "model.safetensors")
        (options.out / "config.json").write_text(json.dumps(CONFIG, indent=2) + "\n", "utf-8")
        nets = {"trained": teacher, "random weights": random}
        found = figures(nets, task.data, n=200 if options.smoke else FRESH)
        (options.out / "figures.json").write_text(json.dumps(found, indent=2) + "\n", "utf-8")

    loop.run(task, settings, options.out, finish)


if __name__ == "__main__":
    main()
