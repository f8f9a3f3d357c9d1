"""A palette: every color of a picture from one hue.

Colors are chosen in OKLCH (Björn Ottosson, 2020), where lightness and chroma look alike at every hue, so that a red
palette is as light and as strong as a blue one.
"""

import math
from dataclasses import dataclass

import numpy as np

LMS_FROM_LAB = ((1, 0.3963377774, 0.2158037573), (1, -0.1055613458, -0.0638541728), (1, -0.0894841775, -1.2914855480))
RGB_FROM_LMS = (
    (4.0767416621, -3.3077115913, 0.2309699292),
    (-1.2684380046, 2.6097574011, -0.3413193965),
    (-0.0041960863, -0.7034186147, 1.7076147010),
)


def _oklch(lightness: float, chroma: float, hue: float) -> tuple[float, float, float]:
    lab = lightness, chroma * math.cos(2 * math.pi * hue), chroma * math.sin(2 * math.pi * hue)
    lms = [sum(m * x for m, x in zip(row, lab, strict=True)) ** 3 for row in LMS_FROM_LAB]
    linear = [min(max(sum(m * x for m, x in zip(row, lms, strict=True)), 0), 1) for row in RGB_FROM_LMS]
    srgb = [12.92 * x if x <= 0.0031308 else 1.055 * x ** (1 / 2.4) - 0.055 for x in linear]
    return tuple(round(255 * x) / 255 for x in srgb)  # rounded: the same on every platform


@dataclass(frozen=True)
class Palette:
    """The colors that go with one hue.

    >>> Palette(0.08).color(0.6, 0.2)  # a strong red
    array([0.87058824, 0.23921569, 0.19215687], dtype=float32)
    """

    hue: float  # angle in OKLCH as a share of the circle, [0, 1): 0.08 red, 0.3 yellow, 0.4 green, 0.73 blue

    def color(self, lightness: float, chroma: float, turn: float = 0.0) -> np.ndarray:
        """One color: float32 ``(3,)`` in [0, 1].

        Args:
            lightness: 0 is black, 1 is white.
            chroma: 0 is gray; 0.03 is a tint, 0.2 as strong as most screens can show.
            turn: how far to go around the circle of hues from the palette's own.
        """
        return np.float32(_oklch(lightness, chroma, self.hue + turn))
