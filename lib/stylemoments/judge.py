"""The judge: a small classifier that says what a picture of the tiny world shows, to measure the models that draw.

A residual network after He et al., *Deep Residual Learning for Image Recognition*, 2016 (arXiv 1512.03385), with four
linear heads: object, style, place, and the palette's hue as a point on the circle. It learned from pictures of the
world alone, whose truth is known; see :mod:`stylemoments.train.judge`.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_model
from torch import Tensor, nn

from .world import NOWHERE, OBJECTS, PLACES, STYLES

SIZE = 64  # pixels on a side, as it was trained
BATCH = 256  # pictures at a time, to bound the memory
WIDTHS = (32, 64, 128, 160)  # channels at 32, 16, 8, 4 pixels on a side

#: What each head chooses from, in the order of its outputs.
NAMES: dict[str, tuple[str, ...]] = {
    "objects": tuple(OBJECTS),
    "styles": tuple(STYLES),
    "places": (NOWHERE, *PLACES),
}


@dataclass(frozen=True)
class Verdict:
    """What the judge sees; entry ``i`` of each field belongs to picture ``i``."""

    objects: list[str]  # of world.OBJECTS
    styles: list[str]  # of world.STYLES
    places: list[str]  # of world.PLACES, or NOWHERE
    hues: np.ndarray  # (n,) float64 in [0, 1): the palette's, as a share of the circle
    probabilities: dict[str, Tensor]  # "objects" (n, 48), "styles" (n, 9), "places" (n, 8), in the order of NAMES


class Block(nn.Module):
    """Two convolutions beside a shortcut; ``stride`` 2 halves the sides."""

    def __init__(self, channels: int, out: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, out, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(out)
        self.conv2 = nn.Conv2d(out, out, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(out)
        self.shortcut = nn.Sequential(nn.AvgPool2d(stride), nn.Conv2d(channels, out, 1, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        residual = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)))))
        return F.relu(self.shortcut(x) + residual)


class Judge(nn.Module):
    """Tells object, style, place and hue; see :func:`load` for the one that ships.

    Called with pictures ``(n, 3, H, W)`` in [0, 1] it returns a :class:`Verdict`. It always judges in evaluation mode.

    Example:
        >>> verdict = Judge()(torch.rand(2, 3, 64, 64))  # fresh weights: a guess
        >>> len(verdict.objects), verdict.hues.shape, verdict.probabilities["styles"].shape
        (2, (2,), torch.Size([2, 9]))
    """

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 32, 4, 2, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU())
        pairs = zip((32, *WIDTHS), WIDTHS, (1, 2, 2, 2), strict=False)
        self.body = nn.Sequential(*(Block(channels, out, stride) for channels, out, stride in pairs))
        self.heads = nn.ModuleDict({name: nn.Linear(WIDTHS[-1], len(names)) for name, names in NAMES.items()})
        self.hue = nn.Linear(WIDTHS[-1], 2)

    def logits(self, images: Tensor) -> dict[str, Tensor]:
        """The plain outputs for pictures of 64 × 64: one entry per name of ``NAMES``, and ``"hues"`` as ``(n, 2)``."""
        features = self.body(self.stem(images * 2 - 1)).mean((-2, -1))  # n c
        return {name: head(features) for name, head in self.heads.items()} | {"hues": self.hue(features)}

    @torch.no_grad()
    def forward(self, images: Tensor) -> Verdict:
        """Judge pictures.

        Args:
            images: float ``(n, 3, H, W)`` in [0, 1]; sizes other than 64 × 64 are resized with antialiasing.

        Raises:
            ValueError: another shape, or values outside [0, 1].
        """
        images = checked(images)
        was_training = self.training
        self.eval()
        device = self.hue.weight.device
        try:
            parts = [self.logits(resized(part.to(device))) for part in images.split(BATCH)]
        finally:
            self.train(was_training)
        return verdict({name: torch.cat([part[name] for part in parts]).cpu() for name in parts[0]})


def verdict(logits: dict[str, Tensor]) -> Verdict:
    """What the outputs of :meth:`Judge.logits` say.

    >>> sure = {name: torch.eye(len(names))[:1] for name, names in NAMES.items()}  # the first name of each
    >>> said = verdict(sure | {"hues": torch.tensor([[0.0, 1.0]])})
    >>> said.styles, said.places, said.hues.item()  # a quarter of the circle
    (['plain'], ['nowhere'], 0.25)
    """
    probabilities = {name: logits[name].float().softmax(-1) for name in NAMES}
    said = {name: [NAMES[name][i] for i in p.argmax(-1).tolist()] for name, p in probabilities.items()}
    return Verdict(**said, hues=angle(logits["hues"]), probabilities=probabilities)


def angle(points: Tensor) -> np.ndarray:
    """The direction of points ``(n, 2)`` as a share of the circle: float64 ``(n,)`` in [0, 1)."""
    x, y = points.double().numpy().T
    return np.arctan2(y, x) / (2 * np.pi) % 1 % 1  # twice: the rest of a tiny negative angle rounds to 1


def checked(images: Tensor) -> Tensor:
    """Pictures as float32, or a ValueError that says what is wrong with them."""
    images = torch.as_tensor(images)
    if images.ndim != 4 or images.shape[1] != 3 or not images.is_floating_point():
        raise ValueError(f"pictures are float (n, 3, H, W); got {images.dtype} {tuple(images.shape)}")
    if images.numel() and not (images.min() >= 0 and images.max() <= 1):
        raise ValueError(f"pictures lie in [0, 1]; got {images.min():.3g} to {images.max():.3g}: rescale or clamp them")
    return images.float()


def resized(images: Tensor) -> Tensor:
    """Pictures at the size the judge knows."""
    if images.shape[-2:] == (SIZE, SIZE):
        return images
    return F.interpolate(images, (SIZE, SIZE), mode="bilinear", antialias=True, align_corners=False)


def load(folder: Path | None = None) -> Judge:
    """The judge, in evaluation mode.

    Args:
        folder: where ``model.safetensors`` lies; the default is the one that ships with the package.
    """
    if folder is None:
        from . import zoo

        folder = zoo.folder("judge")
    judge = Judge()
    load_model(judge, folder / "model.safetensors")  # half precision on disk, single in memory
    return judge.eval()
