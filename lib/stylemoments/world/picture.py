"""Your own picture in a style of the tiny world."""

import numpy as np
from PIL import Image

from .palette import Palette
from .styles import STYLES, Picture
from .world import known, render

_CHANNELS = {1: "gray", 3: "RGB", 4: "RGBA"}


def stylize_picture(image, style: str, *, hue: float | None = None, seed: int = 0):
    """Draw your own picture in a style of the tiny world.

    Patterns scale with the picture. Where the picture has transparency, the style's own ground shows.

    Args:
        image: a PIL picture of any mode, or an array or tensor ``(C, H, W)`` in [0, 1] with 1 (gray), 3 (RGB) or 4
            (RGBA) channels; at least 16 pixels on a side.
        style: one of ``STYLES``.
        hue: the palette's, in [0, 1); drawn from the seed unless given.
        seed: of palette and strokes.

    Returns:
        The same kind and size of picture, RGB.

    Raises:
        ValueError: an unknown style, or a picture of another shape or range.

    >>> stylize_picture(Image.new("L", (40, 30), 128), "neon light", seed=1).size
    (40, 30)
    """
    known("style", style, [*STYLES])
    rng = np.random.Generator(np.random.Philox(key=seed))
    drawn = rng.random()
    pixels = render(_read(image), style, Palette(drawn if hue is None else hue), rng)
    if isinstance(image, Image.Image):
        return Image.fromarray(pixels)
    planes = np.ascontiguousarray(pixels.transpose(2, 0, 1)) / np.float32(255)
    return image.new_tensor(planes) if hasattr(image, "new_tensor") else planes


def _read(image) -> Picture:
    if isinstance(image, Image.Image):
        image = np.asarray(image.convert("RGBA")).transpose(2, 0, 1) / np.float32(255)
    x = np.asarray(image, np.float32)
    if x.ndim != 3 or x.shape[0] not in _CHANNELS or min(x.shape[1:]) < 16:
        raise ValueError(
            "a picture is a PIL image or an array (C, H, W) with 1, 3 or 4 channels and at least 16 pixels on a side; "
            f"got shape {x.shape}. Pass one picture at a time, channels first"
        )
    if not (x.min() >= 0 and x.max() <= 1):
        raise ValueError(f"pixels must lie in [0, 1]; got {x.min():.3g} to {x.max():.3g}. Divide 8-bit values by 255")
    alpha = x[3] if len(x) == 4 else np.ones(x.shape[1:], np.float32)
    rgb = np.broadcast_to(x[:3] if len(x) > 1 else x, (3, *x.shape[1:]))
    return Picture(np.ascontiguousarray(rgb.transpose(1, 2, 0)), alpha)
