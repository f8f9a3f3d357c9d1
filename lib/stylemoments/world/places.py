"""The places of the tiny world: a small landscape behind the object.

Each is a function of a square's size, a palette and random bits. The sky takes the palette's hue; sand, trees and
houses lean toward it and keep the lightness that makes them what they are.
"""

from collections.abc import Callable

import numpy as np

from .palette import Palette
from .raster import grid, mix, step, wave

PLACES: dict[str, Callable] = {}  #: the words of a prompt, and the function they stand for


def place(words: str):
    """Register a place under the words that name it in a prompt."""

    def register(function):
        PLACES[words] = function
        return function

    return register


def _near(palette: Palette, hue: float) -> Palette:
    """A palette near a hue, pulled a little way to the given palette's own."""
    way = (palette.hue - hue + 0.5) % 1 - 0.5
    return Palette((hue + 0.2 * way) % 1)


def _sky(size: int, top: np.ndarray, bottom: np.ndarray) -> np.ndarray:
    rows, _ = grid(size, size)
    return mix(top, bottom, np.clip(rows / 44, 0, 1))


def _hills(size: int, height: float, swing: float, rng) -> np.ndarray:
    """A mask of what lies below a wavy line."""
    rows, columns = grid(size, size)
    line = height + swing * wave(columns / (40 + 30 * rng.random()), rng.random())
    return step(rows - line)


def _disc(size: int, row: float, column: float, radius: float) -> np.ndarray:
    rows, columns = grid(size, size)
    return step(radius - np.sqrt((rows - row) * (rows - row) + (columns - column) * (columns - column)))


def _specks(size: int, n: int, radius: float, rng) -> np.ndarray:
    """Round specks anywhere."""
    rows, columns = grid(size, size)
    spots = (rng.random((n, 2, 1, 1)) * 64).astype(np.float32)
    down, right = rows - spots[:, 0], columns - spots[:, 1]
    return step(radius - np.sqrt(np.min(down * down + right * right, axis=0)))


def _fir(size: int, top: float, column: float, width: float) -> np.ndarray:
    """A fir tree: a tall triangle in three tiers."""
    rows, columns = grid(size, size)
    down = np.maximum(rows - top, 0)
    reach = width * (0.12 + 0.88 * (down % 11) / 11) * (0.5 + down / 66)
    return step(reach - np.abs(columns - column)) * step(down - 1)


@place("in the snow")
def in_the_snow(size: int, palette: Palette, rng) -> np.ndarray:
    """White hills, two firs, large flakes."""
    scene = _sky(size, palette.color(0.74, 0.09), palette.color(0.88, 0.05))
    firs = np.maximum(_fir(size, 8 + 8 * rng.random(), 8, 9), _fir(size, 8 + 8 * rng.random(), 56, 9))
    scene = mix(scene, palette.color(0.5, 0.07), firs)
    scene = mix(scene, palette.color(0.92, 0.02), _hills(size, 38, 3, rng))
    scene = mix(scene, np.float32((1, 1, 1)), _hills(size, 47, 3, rng))
    return mix(scene, np.float32((1, 1, 1)), _specks(size, 12, 1.6, rng))


@place("on the beach")
def on_the_beach(size: int, palette: Palette, rng) -> np.ndarray:
    """A sun, the sea with foam, sand."""
    scene = _sky(size, palette.color(0.82, 0.09), palette.color(0.94, 0.05))
    scene = mix(scene, np.float32((1, 0.95, 0.75)), _disc(size, 13, 12 + 40 * rng.random(), 7))
    rows, columns = grid(size, size)
    sea, sand = _near(palette, 0.62), _near(palette, 0.22)
    scene = mix(scene, sea.color(0.6, 0.11), step(rows - 28))
    scene = mix(scene, sea.color(0.72, 0.1), step(wave(rows / 7, rng.random()) - 0.3, 0.6) * step(rows - 28) * 0.7)
    shore = 44 + 3 * wave(columns / 37, rng.random())
    scene = mix(scene, np.float32((0.98, 0.99, 1)), step(rows - shore + 3))
    return mix(scene, sand.color(0.86, 0.08), step(rows - shore))


@place("in the forest")
def in_the_forest(size: int, palette: Palette, rng) -> np.ndarray:
    """Two rows of firs before a light sky, grass."""
    leaf = _near(palette, 0.4)
    scene = _sky(size, palette.color(0.88, 0.07), palette.color(0.94, 0.05))
    for row, lightness, width, columns in ((4, 0.66, 9, range(2, 66, 12)), (12, 0.48, 10, range(-4, 72, 17))):
        jitter = rng.random((len(columns), 2))
        trees = [_fir(size, row + 10 * a, c + 5 * b, width) for c, (a, b) in zip(columns, jitter.tolist(), strict=True)]
        scene = mix(scene, leaf.color(lightness, 0.09), np.max(trees, axis=0))
    return mix(scene, leaf.color(0.62, 0.12), _hills(size, 52, 2, rng))


@place("in the city")
def in_the_city(size: int, palette: Palette, rng) -> np.ndarray:
    """Towers with lit windows, a street."""
    rows, columns = grid(size, size)
    scene = _sky(size, palette.color(0.8, 0.08), palette.color(0.93, 0.05))
    starts = np.cumsum(10 + 8 * rng.random(8)) - 14  # the left side of each tower
    tower = np.searchsorted(starts, columns[0])
    top, tone = rng.random((2, 9)).astype(np.float32)[:, tower]
    walls = mix(palette.color(0.4, 0.06), palette.color(0.56, 0.06), tone[None])
    lit = (rows % 9 > 4) & (columns % 8 > 4)
    walls = mix(walls, np.float32((1, 0.92, 0.62)), lit * np.float32(0.75))
    gap = np.diff(tower, prepend=0) == 0  # a line of sky between two towers
    scene = mix(scene, walls, step(rows - 6 - 26 * top) * gap)
    scene = mix(scene, palette.color(0.36, 0.02), step(rows - 52))
    dashes = step(1.2 - np.abs(rows - 58)) * (columns % 16 > 7)
    return mix(scene, np.float32((0.95, 0.95, 0.92)), dashes)


@place("at night")
def at_night(size: int, palette: Palette, rng) -> np.ndarray:
    """Stars, a crescent moon, dark hills."""
    dark = Palette((0.6 + 0.25 * palette.hue) % 1)
    scene = _sky(size, dark.color(0.2, 0.07), dark.color(0.36, 0.11))
    scene = mix(scene, np.float32((1, 1, 0.92)), _specks(size, 14, 1.3, rng))
    column = 12 + 40 * rng.random()
    moon = np.clip(_disc(size, 12, column, 7) - _disc(size, 10, column + 4, 6), 0, 1)
    scene = mix(scene, np.float32((1, 0.95, 0.72)), moon)
    return mix(scene, dark.color(0.25, 0.07, 0.1), _hills(size, 50, 3, rng))


@place("in the desert")
def in_the_desert(size: int, palette: Palette, rng) -> np.ndarray:
    """A large low sun, dunes with a shaded side."""
    sand = _near(palette, 0.17)
    scene = _sky(size, palette.color(0.78, 0.11), palette.color(0.93, 0.07, 0.08))
    scene = mix(scene, np.float32((1, 0.86, 0.5)), _disc(size, 24, 14 + 36 * rng.random(), 11))
    for i, height in enumerate((36, 44, 53)):
        scene = mix(scene, sand.color(0.66 + 0.07 * i, 0.13), _hills(size, height, 5, rng))
    return scene


@place("under water")
def under_water(size: int, palette: Palette, rng) -> np.ndarray:
    """Light from above, weed, bubbles."""
    rows, columns = grid(size, size)
    water = _near(palette, 0.6)
    scene = _sky(size, water.color(0.8, 0.1), water.color(0.45, 0.11))
    beams = step(wave((columns - rows * np.float32(0.5)) / 21, rng.random()) - 0.5, 0.8) * np.clip(1 - rows / 44, 0, 1)
    scene = mix(scene, water.color(0.92, 0.06), beams * np.float32(0.6))
    for column in (6, 15, 50, 59):
        middle = column + 2.5 * wave(rows / 17, rng.random())
        weed = step(2.4 - np.abs(columns - middle)) * step(rows - 26 - 14 * rng.random())
        scene = mix(scene, palette.color(0.6, 0.14, 0.1), weed)
    bubbles = _specks(size, 7, 2.6, rng)
    return mix(scene, water.color(0.95, 0.03), bubbles * np.float32(0.7))
