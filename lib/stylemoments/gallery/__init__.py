r"""Photographs and paintings to look at, train on and measure with; all ship with the package or with one it needs.

Seventy-five photographs and eight paintings by Vincent van Gogh lie beside this file, in the public domain or under
CC0; six more photographs are those of scikit-learn and scikit-image. ``index.csv`` has the author, license and source
of each. What the shipped networks learned from is the split ``train``; the split ``test`` they have never seen.

    >>> names("painting", "test")
    ('cafe-terrace', 'langlois-bridge', 'night-cafe', 'painter-on-the-road', 'pere-tanguy')
    >>> load("night-cafe", size=64).shape
    torch.Size([1, 3, 64, 81])
"""

import csv
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

FOLDER = Path(__file__).parent
KINDS, SPLITS = ("photograph", "painting"), ("train", "test")


@dataclass(frozen=True)
class Picture:
    """One row of the index."""

    name: str
    kind: str  # one of KINDS
    split: str  # one of SPLITS
    title: str
    author: str
    license: str
    source: str


def _of_packages() -> list[Picture]:
    """Photographs of scikit-learn and scikit-image; their source is the file that is read."""
    rows = [
        ("temple", "Summer Palace, Beijing", "danielbuechele", "CC BY 2.0", "scikit-learn: china.jpg"),
        ("dahlia", "Dahlia", "vultilion", "CC BY 2.0", "scikit-learn: flower.jpg"),
        ("astronaut", "Eileen Collins, astronaut", "NASA", "public domain", "scikit-image: astronaut"),
        ("chelsea", "Chelsea the cat", "Stéfan van der Walt", "CC0-1.0", "scikit-image: chelsea"),
        ("coffee", "A cup of coffee", "Rachel Michetti", "CC0-1.0", "scikit-image: coffee"),
        ("rocket", "Falcon 9 with DSCOVR", "SpaceX", "public domain", "scikit-image: rocket"),
    ]
    return [Picture(name, "photograph", "test", *known) for name, *known in rows]


@cache
def _index() -> dict[str, Picture]:
    with (FOLDER / "index.csv").open(encoding="utf-8", newline="") as file:
        ours = [Picture(**row) for row in csv.DictReader(file)]
    return {picture.name: picture for picture in sorted([*ours, *_of_packages()], key=lambda picture: picture.name)}


def names(kind: str | None = None, split: str | None = None) -> tuple[str, ...]:
    """The names of the pictures, in alphabetical order.

    Args:
        kind: ``"photograph"`` or ``"painting"``; None means both.
        split: ``"train"`` or ``"test"``; None means both.

    Raises:
        ValueError: another kind or split.
    """
    for what, asked, known in (("kind", kind, KINDS), ("split", split, SPLITS)):
        if asked not in (None, *known):
            raise ValueError(f"{what} must be one of {', '.join(known)}, or None for all; got {asked!r}")
    return tuple(p.name for p in _index().values() if kind in (None, p.kind) and split in (None, p.split))


def entry(name: str) -> Picture:
    """What is known of a picture.

    Raises:
        ValueError: no picture has this name.
    """
    if name not in _index():
        raise ValueError(f"no picture is called {name!r}; stylemoments.gallery.names() lists all {len(_index())}")
    return _index()[name]


def image(name: str) -> Image.Image:
    """The picture as it is stored, RGB.

    Raises:
        ValueError: no picture has this name.
    """
    source = entry(name).source
    if source.startswith("scikit-learn: "):
        from sklearn.datasets import load_sample_image

        return Image.fromarray(load_sample_image(source.removeprefix("scikit-learn: ")))
    if source.startswith("scikit-image: "):
        from skimage import data

        return Image.fromarray(getattr(data, source.removeprefix("scikit-image: "))()).convert("RGB")
    with Image.open(FOLDER / f"{name}.webp") as picture:
        return picture.convert("RGB")


def load(name: str, size: int | None = None) -> Tensor:
    """The picture as float32 ``(1, 3, H, W)`` in [0, 1].

    Args:
        name: one of :func:`names`.
        size: length of the shorter side in pixels, the aspect is kept; None takes the picture as it is stored, the
            shorter side 383 to 512 pixels in most.

    Raises:
        ValueError: no picture has this name, or the size is no positive number.
    """
    picture = image(name)
    if size is not None:
        if size < 1:
            raise ValueError(f"size is the length of the shorter side in pixels, at least 1; got {size}")
        scale = size / min(picture.size)
        sides = [max(size, round(side * scale)) for side in picture.size]
        picture = picture.resize(sides, Image.Resampling.LANCZOS)
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None].float() / 255
