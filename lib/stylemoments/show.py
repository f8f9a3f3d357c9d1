r"""What a chapter shows: image grids and intervals over seeds; sliders and quizzes come from ``interact``."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from .interact import quiz, slider
from .metrics import mean_interval

__all__ = ["COLORS", "band", "effects", "grid", "quiz", "slider", "use_style"]

# Okabe and Ito's colors: blue, orange, purple, vermillion, green, sky blue, black, yellow. The order is ours: the
# first four are at least 6 steps of CIE lightness apart, so that they also differ in print and for every eye.
COLORS = ("#0072B2", "#E69F00", "#CC79A7", "#D55E00", "#009E73", "#56B4E9", "#000000", "#F0E442")


def use_style() -> None:
    """Set matplotlib's defaults for every later figure: :data:`COLORS`, a light grid, an opaque white ground."""
    plt.rcParams.update(
        {
            "axes.prop_cycle": plt.cycler(color=COLORS),
            "axes.grid": True,
            "axes.axisbelow": True,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.titlesize": 11,
            "axes.labelsize": 11,
            "figure.constrained_layout.use": True,
            "figure.dpi": 110,
            "figure.facecolor": "white",  # opaque: dark axis labels stay readable in dark mode
            "figure.figsize": (6.4, 3.6),
            "font.size": 10.5,
            "grid.color": "#dddddd",
            "grid.linewidth": 0.8,
            "legend.frameon": False,
            "lines.linewidth": 2,
            "savefig.facecolor": "white",
        }
    )


def _batch(images) -> list:
    shape = getattr(images, "shape", None)
    if isinstance(images, Image.Image) or (shape is not None and len(shape) != 4):
        got = "one PIL image" if shape is None else f"shape {tuple(shape)}"
        raise ValueError(f"grid takes a batch of images or a list; got {got}. Pass a single image as [image]")
    images = list(images)
    if not images:
        raise ValueError("grid needs at least one image; got none. Check the selection that made the list")
    return images


def _pixels(image) -> np.ndarray:
    """One image as floats in [0, 1], shape (H, W) or (H, W, 3)."""
    if isinstance(image, Image.Image):
        image = image.convert("RGB")
    is_tensor = hasattr(image, "detach")
    image = np.asarray(image.detach().cpu().numpy() if is_tensor else image)
    shape, channels = image.shape, 0 if is_tensor else -1
    if image.ndim not in (2, 3) or (image.ndim == 3 and shape[channels] not in (1, 3)):
        raise ValueError(
            "an image is a (3, H, W) or (1, H, W) tensor, an (H, W, 3) or (H, W) array, or a PIL image; "
            f"got shape {shape}. Move the channels first for a tensor, last for an array"
        )
    if image.ndim == 3:
        image = np.moveaxis(image, channels, -1)
    image = image / 255 if image.dtype == np.uint8 else image.astype(float)
    if not (image.min() >= -1e-3 and image.max() <= 1 + 1e-3):  # also false for NaN
        raise ValueError(
            f"pixels must lie in [0, 1]; got values from {image.min():.4g} to {image.max():.4g}. "
            "Undo the model's normalization first, or clamp if you mean to clip"
        )
    return np.clip(image[..., 0] if image.shape[2:] == (1,) else image, 0, 1)


def grid(images, *, columns: int | None = None, titles: Sequence[str] | None = None, size: float = 1.6) -> Figure:
    """Images side by side, row by row; gray images are shown gray.

    The figure is shown when it is the last line of a cell; in the middle of a cell, call ``display(figure)``.

    Args:
        images: a tensor (B, 3, H, W) or (B, 1, H, W) of floats in [0, 1]; or a list that may mix PIL images,
            arrays (H, W, 3) or (H, W), and tensors (3, H, W) or (1, H, W). Arrays and tensors hold floats in
            [0, 1] or uint8.
        columns: images per row; all of them up to 8 by default.
        titles: one line above each image.
        size: width of an image in inches.

    Raises:
        ValueError: no image, a shape that is no image, a value more than 1e-3 outside [0, 1], or another number
            of titles than of images.

    Example:
        >>> len(grid(np.zeros((3, 8, 8, 3)), columns=2).axes)
        3
    """
    pixels = [_pixels(image) for image in _batch(images)]
    titles = [""] * len(pixels) if titles is None else titles
    if len(titles) != len(pixels):
        raise ValueError(f"grid needs one title per image; got {len(titles)} for {len(pixels)} images")
    columns = min(len(pixels), 8) if columns is None else columns
    rows = -(-len(pixels) // columns)
    height = size * pixels[0].shape[0] / pixels[0].shape[1] + (0.25 if any(titles) else 0)
    figure = plt.figure(figsize=(columns * size, rows * height), layout="constrained")
    for place, (image, title) in enumerate(zip(pixels, titles, strict=True), start=1):
        axes = figure.add_subplot(rows, columns, place)
        axes.imshow(image, cmap="gray", vmin=0, vmax=1)
        axes.set_title(title)
        axes.set_axis_off()
    plt.close(figure)  # still drawable; otherwise a notebook shows it twice
    return figure


def band(ax: Axes, x, values, *, label: str, color: str | None = None) -> None:
    """Draw the mean of repeated runs and its 95 % Student-t interval.

    Args:
        ax: axes to draw on.
        x: positions, length m.
        values: array-like (n, m): one row per seed, n at least 2.
        label: name in the legend.
        color: any matplotlib color; the next of the cycle by default.

    Raises:
        ValueError: ``values`` is not (n, m), holds fewer than two runs, or is not finite.
    """
    if np.ndim(values) != 2 or np.shape(values)[1] != len(x):
        raise ValueError(
            f"band needs one row per seed and one column per x, shape (n, {len(x)}); got {np.shape(values)}"
        )
    mean, low, high, _ = mean_interval(values)
    (line,) = ax.plot(x, mean, label=label, color=color)
    ax.fill_between(x, low, high, color=line.get_color(), alpha=0.2, linewidth=0)


def effects(ax: Axes, found: Mapping[str, Sequence[float]], title: str = "") -> None:
    """Draw paired differences, a row for each comparison: each pair as a tick, the mean with its 95 % interval.

    Args:
        ax: axes to draw on.
        found: the differences by label, the first on top; each two or more, finite.
        title: above the axes.

    Raises:
        ValueError: nothing to draw, or as :func:`stylemoments.metrics.mean_interval`.
    """
    if not found:
        raise ValueError("effects needs one comparison or more; got none")
    for row, values in enumerate(found.values()):
        mean, low, _, _ = mean_interval(values)
        ax.plot(values, np.full(len(values), row), "|", color="gray", markersize=9)
        ax.errorbar(mean, row, xerr=mean - low, fmt="o", capsize=4, color=COLORS[0])
    ax.axvline(0, color="black", linewidth=1)
    ax.set_yticks(range(len(found)), found)
    ax.set(ylim=(len(found) - 0.5, -0.5), title=title)
