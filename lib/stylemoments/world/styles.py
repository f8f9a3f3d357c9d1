"""The styles of the tiny world: each turns a drawing, and the scene behind it, into a finished picture.

A style is a function of a :class:`Picture`, a palette and random bits. The words of a prompt fix the function; the
palette's hue sets its paper, ink and paint, and the random bits its waves and strokes, so that two pictures in one
style do not match until somebody makes them. Patterns are coarser than 4 units (1/16 of the picture): finer ones would
be lost in the autoencoder of a small diffusion model.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image

from .palette import Palette
from .prompts import PLAIN
from .raster import bend, blur, edges, gray, grid, mix, noise, shift, step, to_array, to_image, wave

STYLES: dict[str, Callable] = {}  #: the words of a prompt, and the function they stand for


@dataclass(frozen=True)
class Picture:
    """What a style is given, float32 in [0, 1]."""

    rgb: np.ndarray  # (H, W, 3) the object's own colors
    alpha: np.ndarray  # (H, W) where the object is
    scene: np.ndarray | None = None  # (H, W, 3) what is behind it; None where the style brings its own ground

    def on(self, ground: np.ndarray) -> np.ndarray:
        """The object in its own colors before a ground, colors ``(H, W, 3)`` or one color ``(3,)``."""
        return mix(ground, self.rgb, self.alpha)


def style(words: str):
    """Register a style under the words that name it in a prompt."""

    def register(function):
        STYLES[words] = function
        return function

    return register


@style(PLAIN)
def plain(picture: Picture, palette: Palette, rng) -> np.ndarray:
    """The drawing as it is, on a tinted ground that is lighter above."""
    rows, _ = grid(*picture.alpha.shape)
    ground = mix(palette.color(0.93, 0.05), palette.color(0.8, 0.1), rows / rows.max())
    return picture.on(ground if picture.scene is None else picture.scene)


def _steps(x: np.ndarray, colors: list[np.ndarray]) -> np.ndarray:
    """Each pixel the color of the step that its brightness stands on, darkest first."""
    result = np.broadcast_to(colors[0], (*x.shape, 3))
    for i, color in enumerate(colors[1:], 1):
        result = mix(result, color, step(x - np.float32(i / len(colors)), 0.06))
    return result


def _tone(picture: Picture) -> np.ndarray:
    """The drawing's brightness, slightly blurred and stretched to [0, 1]; what is not drawn lies in the middle."""
    x = blur(gray(picture.on(np.float32((0.5, 0.5, 0.5)))), 0.6)
    low, high = x.min(), x.max()
    return (x - low) / np.maximum(high - low, np.float32(0.1))


@style("papercut art")
def papercut_art(picture: Picture, palette: Palette, rng) -> np.ndarray:
    """Sheets of colored paper with shadows; the drawing in four tones of one or two colors."""
    turn = 0.1 + 0.3 * rng.random()
    if picture.scene is None:
        ground = _paper_sheets(picture.alpha.shape, palette, rng)
    else:
        light = [palette.color(0.4 + 0.17 * i, 0.09) for i in range(4)]
        ground = _steps(blur(gray(picture.scene), 1), light)
    shadow = shift(blur(picture.alpha, 1.8), 2, 2)
    ground = ground * (1 - 0.6 * shadow[..., None])
    tones = [palette.color(0.3 + 0.18 * i, 0.07 + 0.03 * i, turn) for i in range(4)]
    cut = _steps(_tone(picture), tones)
    return mix(ground, cut, step(picture.alpha - 0.5, 0.5))


def _paper_sheets(shape, palette: Palette, rng) -> np.ndarray:
    rows, columns = grid(*shape)
    ground = np.broadcast_to(palette.color(0.9, 0.07), (*shape, 3))
    for i in range(3):
        hill = 26 + 13 * i + 4 * wave(columns / (34 + 22 * rng.random()), rng.random())
        shade = np.clip(1 - (hill - rows) / 4, 0, 1) * np.float32(0.35)  # the sheet's shadow on the one behind
        ground = ground * (1 - shade[..., None])
        ground = mix(ground, palette.color(0.82 - 0.1 * i, 0.09 + 0.015 * i, 0.04 * i), step(rows - hill))
    return ground


@style("watercolor painting")
def watercolor_painting(picture: Picture, palette: Palette, rng) -> np.ndarray:
    """Wobbly pigment with dark rims on white paper, and a wash that runs out around it."""
    shape = picture.alpha.shape
    paper = palette.color(0.98, 0.012)
    down, right = ((noise(rng, shape, 8) - np.float32(0.5)) * 4 for _ in range(2))
    cloud = noise(rng, shape, 11)
    alpha = bend(picture.alpha, down, right)
    if picture.scene is None:
        wash = step(blur(picture.alpha, 7) + cloud - 0.75, 0.5)
        ground = mix(paper, palette.color(0.83, 0.11, 0.08 * rng.random()), wash)
    else:
        ground = mix(paper, bend(picture.scene, down, right), 0.55 + 0.3 * cloud)
    paint = bend(blur(picture.on(paper), 0.5), down, right)
    paint = paint + (paint - gray(paint)[..., None]) * np.float32(0.4)  # stronger: thin pigment looks pale
    paint = mix(paint, palette.color(0.7, 0.16), np.float32(0.22))
    water = np.float32(0.5) + np.float32(0.45) * noise(rng, shape, 8)  # how much pigment has settled
    rim = np.clip(alpha - blur(alpha, 1.6), 0, 1)
    paint = mix(paper, paint, np.clip(water + rim, 0, 1)) * (1 - 0.6 * rim[..., None])
    return mix(ground, paint, alpha)


@style("line drawing")
def line_drawing(picture: Picture, palette: Palette, rng) -> np.ndarray:
    """Ink lines of about two units on tinted paper."""
    ink, paper = palette.color(0.34, 0.11), palette.color(0.955, 0.03)
    return mix(paper, ink, _lines(picture, 2))


def _lines(picture: Picture, thickness: float) -> np.ndarray:
    """Contour and inner lines of the drawing, and fainter lines of the scene."""
    inner = edges(_tone(picture), thickness) * picture.alpha
    lines = np.maximum(edges(picture.alpha, thickness), step(inner - 0.3, 0.3) * np.float32(0.85))
    if picture.scene is not None:
        behind = step(edges(blur(gray(picture.scene), 0.5), thickness) - 0.13, 0.15) * np.float32(0.6)
        around = np.clip(blur(picture.alpha, 1.5) * 3, 0, 1)  # a gap, so that the object stands out
        lines = np.maximum(lines, behind * (1 - around))
    return lines


@style("pixel art")
def pixel_art(picture: Picture, palette: Palette, rng) -> np.ndarray:
    """Square blocks of four units in few colors."""
    height, width = picture.alpha.shape
    unit = min(height, width) / 64
    few = [max(1, round(side / unit / 4)) for side in (width, height)]

    def block(x):
        return to_array(to_image(x).resize(few, Image.Resampling.BOX))

    alpha = block(picture.alpha)
    colors = block(picture.rgb * picture.alpha[..., None]) / np.maximum(alpha, np.float32(0.01))[..., None]
    ground = palette.color(0.84, 0.1) if picture.scene is None else block(picture.scene)
    sprite = mix(ground, colors, step(alpha - np.float32(0.4), 0.2))
    sprite = np.floor(sprite * np.float32(5) + np.float32(0.5)) / np.float32(5)
    sprite = mix(sprite, palette.color(0.65, 0.15), np.float32(0.12))
    return to_array(to_image(sprite).resize((width, height), Image.Resampling.NEAREST))


@style("neon light")
def neon_light(picture: Picture, palette: Palette, rng) -> np.ndarray:
    """Glowing tubes of two colors on a dark wall."""
    rows, columns = grid(*picture.alpha.shape)
    turn = 0.15 + 0.25 * rng.random()
    wall = palette.color(0.17, 0.045)
    blend = step((rows - 32) * np.float32(0.8) + (columns - 32) * np.float32(0.6), 50)
    tube = mix(palette.color(0.8, 0.2), palette.color(0.8, 0.2, turn), blend)
    lines = _lines(picture, 2)
    glow = np.clip(blur(lines, 2.5) * np.float32(1.3), 0, 1)
    lit = mix(wall, tube, glow * np.float32(0.75))
    return mix(mix(lit, tube, lines), np.float32((1, 1, 1)), np.clip(lines - np.float32(0.6), 0, 1))


@style("pop art")
def pop_art(picture: Picture, palette: Palette, rng) -> np.ndarray:
    """Three loud colors inside a black contour, before large dots."""
    rows, columns = grid(*picture.alpha.shape)
    phase = rng.random()
    across = wave((rows + columns) / 11, phase) + wave((rows - columns) / 11, phase)
    if picture.scene is None:
        ground = mix(palette.color(0.9, 0.13), palette.color(0.7, 0.22), step(across - 0.5, 0.5))
    else:
        ground = _steps(blur(gray(picture.scene), 0.6), [palette.color(light, 0.17) for light in (0.42, 0.66, 0.9)])
    turn = 0.4 + 0.2 * rng.random()
    loud = [
        palette.color(0.45, 0.2, turn),
        palette.color(0.68, 0.22, turn + 0.1),
        palette.color(0.93, 0.12, turn + 0.2),
    ]
    body = _steps(_tone(picture), loud)
    ink = np.float32((0.06, 0.05, 0.08))
    return mix(mix(ground, body, picture.alpha), ink, edges(picture.alpha, 3))


@style("crayon drawing")
def crayon_drawing(picture: Picture, palette: Palette, rng) -> np.ndarray:
    """Broad slanting strokes that let the paper through."""
    shape = picture.alpha.shape
    paper = palette.color(0.96, 0.025)
    strokes = _strokes(rng, shape)
    if picture.scene is None:
        ground, cover = palette.color(0.78, 0.13), np.float32(0.42)
    else:
        ground, cover = picture.scene, np.float32(0.62)
    colors = blur(picture.on(ground), 0.6)
    wax = mix(colors, palette.color(0.6, 0.17), np.float32(0.25))
    cover = cover + (np.float32(0.78) - cover) * picture.alpha
    contour = edges(picture.alpha, 2) * step(strokes - 0.3, 0.3)
    return mix(mix(paper, wax, step(cover - strokes, 0.3)), palette.color(0.4, 0.13), contour * np.float32(0.8))


def _strokes(rng, shape) -> np.ndarray:
    """Noise drawn out along one slanting direction."""
    side = max(shape) * 3 // 2
    coarse = Image.fromarray((rng.random((26, 6)) * 255).astype(np.uint8))
    slanted = coarse.resize((side, side), Image.Resampling.BICUBIC).rotate(
        35 + 20 * rng.random(), Image.Resampling.BILINEAR
    )
    top, left = (side - shape[0]) // 2, (side - shape[1]) // 2
    return to_array(slanted)[top : top + shape[0], left : left + shape[1]]


@style("blueprint")
def blueprint(picture: Picture, palette: Palette, rng) -> np.ndarray:
    """White lines and a grid on paper between teal and violet."""
    rows, columns = grid(*picture.alpha.shape)
    blue = Palette(0.55 + 0.25 * palette.hue)
    offset = 8 * rng.random()
    ruled = (np.abs((rows + offset) % 8 - 4) > 3.5) | (np.abs((columns + offset) % 8 - 4) > 3.5)
    paper = mix(blue.color(0.4, 0.12), blue.color(0.58, 0.1), ruled * np.float32(0.6))
    paper = mix(paper, blue.color(0.48, 0.12), picture.alpha * np.float32(0.6))
    return mix(paper, np.float32((0.97, 0.98, 1)), _lines(picture, 2))
