"""The drawings of the tiny world, as they lie in the package: who drew what, decoded once per size.

They are emoji of four openly licensed sets (DATA_LICENSES.md), collected by ``book/_tools/drawings.py``.
"""

import json
from functools import lru_cache
from importlib.resources import files

import numpy as np
from PIL import Image

from .raster import to_array

_FOLDER = files(__package__) / "sheets"
_INDEX = json.loads((_FOLDER / "index.json").read_text("utf-8"))

OBJECTS: tuple[str, ...] = tuple(_INDEX["objects"])  #: the nouns of the world
HANDS = ("noto", "twemoji", "fluent")  #: who drew the objects of an ordinary sample
HELD_OUT_HAND = "noto-v1"  #: a fourth hand for every object, drawn only when you ask for it
SUBJECT_NOUNS: dict[str, str] = {name: row["noun"] for name, row in _INDEX["subjects"].items()}
SUBJECT_HANDS: dict[str, str] = {name: row["hand"] for name, row in _INDEX["subjects"].items()}


@lru_cache(maxsize=8)
def _sheet(name: str) -> Image.Image:
    with (_FOLDER / f"{name}.png").open("rb") as file:
        return Image.open(file).convert("RGBA")


def _cell(sheet: str, i: int) -> Image.Image:
    side, columns = _INDEX["size"], _INDEX["columns"]
    x, y = i % columns * side, i // columns * side
    return _sheet(sheet).crop((x, y, x + side, y + side))


@lru_cache(maxsize=1024)
def drawing(name: str, hand: str, size: int) -> Image.Image:
    """The drawing of an object by a hand, or of a subject (whose hand is its own), RGBA, ``size`` pixels square.

    >>> drawing("cat", "noto", 64).size, drawing("fox", "fluent", 64).size
    ((64, 64), (64, 64))
    """
    sheet, names = ("subjects", [*SUBJECT_NOUNS]) if name in SUBJECT_NOUNS else (hand, OBJECTS)
    return _cell(sheet, names.index(name)).resize((size, size), Image.Resampling.HAMMING)  # sharper filters leave halos


def pose(picture: Image.Image, *, scale: float, down: float, right: float, turn: float) -> np.ndarray:
    """Scale and turn a square RGBA drawing about its center, then shift it.

    Args:
        scale: size of the drawing as a share of the square.
        down, right: shift as a share of the square.
        turn: rotation in radians, small: sine and cosine are taken from their first terms.

    Returns:
        Colors and alpha, float32 ``(H, W, 4)`` in [0, 1].
    """
    side, middle = picture.width, picture.width / 2
    cos, sin = (1 - turn * turn / 2) / scale, (turn - turn**3 / 6) / scale
    x, y = middle + right * side, middle + down * side
    inverse = (cos, sin, middle - cos * x - sin * y, -sin, cos, middle + sin * x - cos * y)
    moved = picture.transform((side, side), Image.Transform.AFFINE, inverse, Image.Resampling.BICUBIC)
    return to_array(moved)
