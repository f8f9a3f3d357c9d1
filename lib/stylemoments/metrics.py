r"""Statistics: what a handful of measurements says about the mean behind them.

Student, *The Probable Error of a Mean*, Biometrika 1908.
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
