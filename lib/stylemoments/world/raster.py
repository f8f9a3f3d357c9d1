"""What every style and place is made of: grids, blur, noise, edges and mixing on NumPy arrays.

``H`` rows, ``W`` columns; colors are ``(H, W, 3)`` and masks ``(H, W)``, float32 in ``[0, 1]``. Lengths are given in
*units*: one unit is 1/64 of the picture's short side, so a pattern keeps its look at every size.

The same numbers come out on every platform, because only exact steps stand between the random bits and the pixels:
float32 sums, products and quotients one at a time, Pillow's integer filters, and sines in float64 that are rounded
long before they could differ. No float32 sine, no matrix product, no long sum.
"""

from functools import lru_cache

import numpy as np
from PIL import Image, ImageFilter
from scipy.ndimage import maximum_filter, minimum_filter


@lru_cache(maxsize=32)
def grid(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows ``(H, 1)`` and columns ``(1, W)`` of the pixels' centers, in units.

    >>> rows, columns = grid(64, 128)
    >>> float(rows[0, 0]), float(columns[0, -1])
    (0.5, 127.5)
    """
    unit = min(height, width) / 64
    rows, columns = ((np.arange(side) + 0.5) / unit for side in (height, width))
    return rows.astype(np.float32)[:, None], columns.astype(np.float32)[None]


def mix(under, over, share) -> np.ndarray:
    """Colors ``under`` where the mask ``share`` is 0, ``over`` where it is 1; each may be one color or one float32."""
    return under + (over - under) * share[..., None]


def step(x: np.ndarray, width: float = 1.0) -> np.ndarray:
    """A soft edge: 0 below ``-width/2``, 1 above ``width/2``, a line between; width in units of ``x``."""
    return np.clip(x * np.float32(1 / width) + np.float32(0.5), 0, 1)


def wave(x: np.ndarray, phase: float) -> np.ndarray:
    """The sine of ``2π (x + phase)``, computed in float64."""
    return np.sin(2 * np.pi * (x.astype(np.float64) + phase)).astype(np.float32)


def gray(rgb: np.ndarray) -> np.ndarray:
    """Brightness ``(H, W)`` of colors, with the weights of Rec. 601."""
    weights = np.float32((0.299, 0.587, 0.114))
    return rgb[..., 0] * weights[0] + rgb[..., 1] * weights[1] + rgb[..., 2] * weights[2]


def to_image(x: np.ndarray) -> Image.Image:
    """A mask or colors as an 8-bit picture."""
    return Image.fromarray((np.clip(x, 0, 1) * np.float32(255) + np.float32(0.5)).astype(np.uint8))


def to_array(image: Image.Image) -> np.ndarray:
    """An 8-bit picture as float32 in [0, 1]."""
    return np.asarray(image).astype(np.float32) * np.float32(1 / 255)


def blur(x: np.ndarray, radius: float) -> np.ndarray:
    """A Gaussian blur with a standard deviation of ``radius`` units."""
    return to_array(to_image(x).filter(ImageFilter.GaussianBlur(radius * min(x.shape[:2]) / 64)))


def shift(x: np.ndarray, down: float, right: float) -> np.ndarray:
    """The picture moved by some units; what it leaves behind repeats its border."""
    unit = min(x.shape[:2]) / 64
    rows, columns = (
        np.clip(np.arange(side) - round(move * unit), 0, side - 1)
        for side, move in zip(x.shape, (down, right), strict=False)
    )
    return x[rows[:, None], columns]


def noise(rng: np.random.Generator, shape: tuple[int, int], cell: float) -> np.ndarray:
    """Smooth noise in [0, 1] whose bumps are about ``cell`` units wide."""
    unit = min(shape) / 64
    rows, columns = (max(2, round(side / unit / cell) + 1) for side in shape)
    coarse = (rng.random((rows, columns)) * 255).astype(np.uint8)
    return to_array(Image.fromarray(coarse).resize(shape[::-1], Image.Resampling.BICUBIC))


def bend(x: np.ndarray, down: np.ndarray, right: np.ndarray) -> np.ndarray:
    """The picture with each pixel fetched from ``down`` and ``right`` units away, masks of the picture's shape."""
    height, width = x.shape[:2]
    unit = np.float32(min(height, width) / 64)
    rows = np.clip(np.arange(height, dtype=np.float32)[:, None] + down * unit, 0, height - 1.001)
    columns = np.clip(np.arange(width, dtype=np.float32) + right * unit, 0, width - 1.001)
    top, left = np.floor(rows), np.floor(columns)
    lower, righter = (rows - top)[..., None], (columns - left)[..., None]
    flat, index = x.reshape(height * width, -1), top.astype(np.intp) * width + left.astype(np.intp)
    upper_row = flat[index] * (1 - righter) + flat[index + 1] * righter
    lower_row = flat[index + width] * (1 - righter) + flat[index + width + 1] * righter
    return (upper_row * (1 - lower) + lower_row * lower).reshape(x.shape)


def edges(x: np.ndarray, thickness: float) -> np.ndarray:
    """How much a mask changes within ``thickness`` units around each pixel: its lines, from 0 to 1."""
    size = max(3, round(thickness * min(x.shape) / 64) // 2 * 2 + 1)
    return maximum_filter(x, size, mode="nearest") - minimum_filter(x, size, mode="nearest")
