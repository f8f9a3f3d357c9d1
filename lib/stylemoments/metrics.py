r"""Statistics: what measurements say about the mean behind them, and how alike features are.

Student, *The Probable Error of a Mean*, Biometrika 1908. The functions of features know nothing of the network that
made them; :mod:`stylemoments.embed` has the usual ones.
"""

from typing import NamedTuple

import numpy as np
from scipy import stats


class Interval(NamedTuple):
    """A mean with its confidence interval; every field but ``n`` has the shape of the mean."""

    mean: np.ndarray | float
    low: np.ndarray | float
    high: np.ndarray | float
    n: int

    def __str__(self):
        return f"{self.mean:.3g} [{self.low:.3g}, {self.high:.3g}], n = {self.n}"


def mean_interval(values, *, level: float = 0.95, axis: int = 0) -> Interval:
    r"""Mean and Student-t confidence interval over independent repetitions (seeds, pairs, images).

    For a comparison, pass the differences of *paired* runs: what both runs share cancels, and the
    interval says whether the difference is real.

    Args:
        values: array-like of finite numbers; at least two along ``axis``.
        level: coverage of the interval, between 0 and 1.
        axis: the axis of the repetitions.

    Raises:
        ValueError: fewer than two repetitions, a value that is not finite, or a level outside (0, 1).

    Example:
        >>> print(mean_interval([1.0, 2.0, 3.0]))
        2 [-0.484, 4.48], n = 3
    """
    values = np.asarray(values, dtype=float)
    if not 0 < level < 1:
        raise ValueError(f"level is a probability between 0 and 1; got {level}")
    if values.ndim == 0 or values.shape[axis] < 2:
        raise ValueError(f"an interval needs at least two repetitions along axis {axis}; got shape {values.shape}")
    if not np.isfinite(values).all():
        raise ValueError("every repetition must be a finite number; drop or explain the others first")
    n = values.shape[axis]
    mean = values.mean(axis)
    half = stats.t.ppf((1 + level) / 2, n - 1) * values.std(axis, ddof=1) / np.sqrt(n)
    return Interval(mean, mean - half, mean + half, n)


def hue_distance(a, b) -> np.ndarray:
    """How far apart two hues are on the circle, in degrees from 0 to 180.

    Args:
        a, b: hues as shares of the circle (0.25 is a quarter turn), of one shape or broadcast to one.

    Raises:
        ValueError: a hue that is not finite.

    Example:
        >>> hue_distance(0.95, 0.05).round(6).item()  # across the zero
        36.0
    """
    difference = np.asarray(a, float) - np.asarray(b, float)
    if not np.isfinite(difference).all():
        raise ValueError("hues are finite numbers, shares of the circle; drop the others first")
    return np.abs((difference + 0.5) % 1 - 0.5) * 360


def set_consistency(features) -> float:
    r"""Mean cosine between the pictures of a set, :math:`\frac{1}{N(N-1)}\sum_{i\ne j}\cos(f_i, f_j)`; no self-pairs.

    Measured on DINO features it is the "set consistency" of Hertz et al., *Style Aligned Image Generation via Shared
    Attention*, 2024 (arXiv 2312.02133). Report text alignment beside it: a set of one picture repeated scores 1.

    Args:
        features: array-like ``(N, D)``, two rows or more; they need not have length 1.

    Raises:
        ValueError: another shape, fewer than two rows, or a row without a direction.

    Example:
        >>> round(set_consistency([[1, 0], [2, 0], [0, 3]]), 4)  # cosines 1, 0, 0
        0.3333
    """
    features = _directions(features)
    n = len(features)
    if n < 2:
        raise ValueError(f"a set has two pictures or more; got {n}")
    total = features.sum(0)  # its squared length is the sum over all pairs, the N self-pairs among them
    return float((total @ total - n) / (n * (n - 1)))


def text_alignment(image_features, text_features) -> float:
    """Mean cosine between each picture and its text.

    On CLIP features this is "text alignment" of Hertz et al., 2024 (arXiv 2312.02133), and CLIP-T of Ruiz et al., 2023
    (arXiv 2208.12242). Hessel et al., *CLIPScore*, 2021 (arXiv 2104.08718), cut it off below 0 and multiply by 2.5;
    this does not.

    Args:
        image_features: array-like ``(N, D)``; the rows need not have length 1.
        text_features: array-like ``(N, D)``, row ``i`` the text of picture ``i``.

    Raises:
        ValueError: different shapes, no rows, or a row without a direction.

    Example:
        >>> text_alignment([[1, 0], [0, 2]], [[1, 0], [1, 0]])  # cosines 1 and 0
        0.5
    """
    images, texts = _directions(image_features), _directions(text_features)
    if images.shape != texts.shape or not len(images):
        raise ValueError(f"each picture needs its text: got features of shapes {images.shape} and {texts.shape}")
    return float((images * texts).sum(-1).mean())


def _directions(features) -> np.ndarray:
    """Rows of length 1, float64."""
    features = np.asarray(features, dtype=float)
    if features.ndim != 2:
        raise ValueError(f"features have the shape (N, D); got {features.shape}")
    lengths = np.linalg.norm(features, axis=-1, keepdims=True)
    if not (np.isfinite(lengths) & (lengths > 0)).all():
        raise ValueError("a cosine needs finite features that are not all zero; drop the other rows first")
    return features / lengths
