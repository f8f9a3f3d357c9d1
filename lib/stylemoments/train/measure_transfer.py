"""What the slim VGG sees, and what the decoder of AdaIN makes, as rows for their cards; see ``measure.py``."""

import json
import time

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from .. import adain, gallery, zoo
from ..losses import content_loss, moment_loss, style_loss
from ..metrics import mean_interval
from ..transfer import stylize_by_optimization
from ..vgg import STYLE_LAYERS, VGGFeatures
from .vgg import STAGES, Crops, Teacher, standardized

SEED = 3
READ = {layer: block for layer, (block, _) in STAGES.items()}  # a layer, and the teacher's block of its size
CHECKPOINTS = (10, 25, 50, 100)  # steps of Gatys' method to compare with


def interval(values, unit: str = "", digits: int = 2) -> str:
    """The mean of paired values with its 95 % interval.

    >>> interval([1.0, 2.0, 3.0])
    '2.00 [-0.48, 4.48], n = 3'
    """
    mean, low, high, n = mean_interval(values)
    return f"{mean:.{digits}f}{unit} [{low:.{digits}f}, {high:.{digits}f}], n = {n}"


def pairs(n: int) -> list[tuple[str, str]]:
    """Test photographs with test paintings, drawn by the seed; no photograph comes twice before all came once."""
    rng = np.random.default_rng(SEED)
    photographs, paintings = gallery.names("photograph", "test"), gallery.names("painting", "test")
    rounds = range(-(-n // len(photographs)))
    drawn = [photographs[i] for _ in rounds for i in rng.permutation(len(photographs))][:n]
    return [(name, paintings[rng.integers(len(paintings))]) for name in drawn]


# ---------------------------------------------------------------------------------------- tiny-vgg


def of_vgg(n: int) -> dict[str, str]:
    """Agreement with the teacher, and transfer with the trained and with random weights as the teacher sees it."""
    trained = json.loads((zoo.folder("tiny-vgg") / "figures.json").read_text("utf-8"))
    rows = {
        "the teacher's first answer is the student's, of 1000": f"{100 * trained['same first answer']:.1f} %",
        "… among the student's first five": f"{100 * trained['among the first five']:.1f} %",
    }
    teacher = Teacher()
    for weights in ("tiny", "random"):
        for layer, share in readings(teacher, weights, n).items():
            rows[f"teacher's features that {layer} tells, {weights}"] = f"{100 * share:.0f} %"
    return rows | transfers(teacher)


@torch.no_grad()
def readings(teacher: Teacher, weights: str, n: int) -> dict[str, float]:
    """Share of the variance of the teacher's features that a linear map of ours explains: fitted on crops of training
    photographs, measured on crops of test photographs."""
    features = VGGFeatures(tuple(READ), weights=weights)
    sides = []
    for split in ("train", "test"):
        torch.manual_seed(SEED)
        images = Crops(gallery.names("photograph", split))(torch.arange(n))
        wanted = teacher(standardized(images))[0]
        ours = features(images)
        sides.append({layer: (_cells(ours[layer]), _cells(wanted[block])) for layer, block in READ.items()})
    return {layer: _explained(*sides[0][layer], *sides[1][layer]) for layer in READ}


def _cells(x: Tensor) -> Tensor:
    """Up to 64 places of each picture as rows: float64 ``(N, C)``."""
    step = max(1, x.shape[-1] // 8)
    return x[..., step // 2 :: step, step // 2 :: step].permute(0, 2, 3, 1).flatten(0, 2).double()


def _explained(x: Tensor, y: Tensor, x_test: Tensor, y_test: Tensor) -> float:
    ones = [torch.cat([a, a.new_ones(len(a), 1)], 1) for a in (x, x_test)]
    ridge = 1e-4 * len(x) * torch.eye(ones[0].shape[1], dtype=x.dtype)
    weights = torch.linalg.solve(ones[0].T @ ones[0] + ridge, ones[0].T @ y)
    rest = (ones[1] @ weights - y_test).square().mean(0)
    return (1 - rest / y_test.var(0)).mean().item()


def transfers(teacher: Teacher, size: int = 128, steps: int = 60) -> dict[str, str]:
    """The same transfers by optimization on the trained and on random weights, compared by the teacher's features."""
    found: dict[str, list] = {weights: [] for weights in ("tiny", "random")}
    for photograph, painting in tqdm(pairs(24), desc="transfers", unit="pair"):
        content, style = gallery.load(photograph, size), gallery.load(painting, size)
        for weights, seen in found.items():
            *_, last = stylize_by_optimization(content, style, vgg=weights, steps=steps)
            seen.append(_seen(teacher, last.image, content, style))
    rows = {}
    for i, what in enumerate(("content that the teacher finds again", "style distance left, as the teacher sees it")):
        for weights, seen in found.items():
            rows[f"{what}, {weights}"] = interval([100 * pair[i] for pair in seen], " %", 0)
        apart = [100 * (a[i] - b[i]) for a, b in zip(found["tiny"], found["random"], strict=True)]
        rows[f"{what}, difference"] = interval(apart, " points", 1)
    return rows


@torch.no_grad()
def _seen(teacher: Teacher, made: Tensor, content: Tensor, style: Tensor) -> tuple[float, float]:
    """Cosine of the centered deep features of result and content; distance to the style as a share of the content's."""
    deep, early = 10, (0, 2, 4)
    (a, _), (b, _), (s, _) = (teacher(standardized(x)) for x in (made, content, style))
    mean = b[deep].mean((2, 3), keepdim=True)
    kept = F.cosine_similarity((a[deep] - mean).flatten(), (b[deep] - mean).flatten(), dim=0)
    left = [moment_loss(a[i], s[i]).item() / moment_loss(b[i], s[i]).item() for i in early]
    return kept.item(), float(np.mean(left)) ** 0.5


# ---------------------------------------------------------------------------------------- tiny-adain


def of_adain(n: int, size: int = 512) -> dict[str, str]:
    """One pass of AdaIN beside Gatys' method at several numbers of steps: losses and time, on the same pairs."""
    model, rows = adain.load(), {}
    found: dict[str, list] = {}
    for photograph, painting in tqdm(pairs(n), desc="AdaIN and Gatys", unit="pair"):
        content, style = gallery.load(photograph, size), gallery.load(painting, size)
        known = model.encode_style(style)
        adain.stylize(model, content, known)  # warms up
        began = time.perf_counter()
        image = adain.stylize(model, content, known)
        images = {"AdaIN, one pass": (image, time.perf_counter() - began)}
        began = time.perf_counter()
        for step in stylize_by_optimization(content, style, style_loss="moments", steps=max(CHECKPOINTS)):
            if step.step in CHECKPOINTS:
                images[f"Gatys' method with moments, {step.step} steps"] = step.image, time.perf_counter() - began
        for name, (image, seconds) in images.items():
            found.setdefault(name, []).append((*_losses(model, image, content, style), seconds))
    for name, values in found.items():
        style_left, content_lost, seconds = np.array(values).T
        rows[f"{size} px, {name}: style loss left"] = interval(100 * style_left, " %", 1)
        rows[f"{size} px, {name}: content loss"] = interval(content_lost)
        rows[f"{size} px, {name}: seconds, median"] = f"{np.median(seconds):.2f}"
    return rows


@torch.no_grad()
def _losses(model, image: Tensor, content: Tensor, style: Tensor) -> tuple[float, float]:
    """AdaIN's style loss as a share of the content's own, and the squared error of relu4_1 against the content's."""
    made, photograph, wanted = (model.encoder(x) for x in (image, content, style))
    layers = {layer: wanted[layer] for layer in STYLE_LAYERS}
    left = style_loss(made, layers, loss=moment_loss) / style_loss(photograph, layers, loss=moment_loss)
    return left.item(), content_loss(made["relu4_1"], photograph["relu4_1"]).item()
