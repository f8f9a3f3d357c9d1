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


def paired_bootstrap(a, b=None, *, level: float = 0.95, resamples: int = 10_000, seed: int = 0) -> Interval:
    r"""Mean of ``a - b`` and its percentile bootstrap interval over the pairs.

    Efron, *Bootstrap Methods: Another Look at the Jackknife*, 1979. The pairs are drawn again, with replacement, as
    many as there are; the interval holds the middle ``level`` of the means. It assumes no bell curve, and of
    few pairs it is too narrow: under about twenty, :func:`mean_interval` of the differences is the safer choice.

    Args:
        a: array-like ``(N,)`` of finite numbers, one per pair (a subject, a set, a seed); two or more.
        b: the same for what ``a`` is compared with, in the same order; None where ``a`` is the differences already.
        level: coverage of the interval, between 0 and 1.
        resamples: how often the pairs are drawn again.
        seed: of the draws; the same seed gives the same interval.

    Raises:
        ValueError: other shapes, a value that is not finite, a level outside (0, 1), or no resamples.

    Example:
        >>> print(paired_bootstrap([3.0, 4.0, 5.0], [1.0, 2.0, 3.0]))  # each pair differs by 2
        2 [2, 2], n = 3
    """
    a = np.asarray(a, dtype=float)
    b = np.zeros_like(a) if b is None else np.asarray(b, dtype=float)
    if a.shape != b.shape or a.ndim != 1 or len(a) < 2:
        raise ValueError(f"pairs are two equally long lists of two numbers or more; got {a.shape} and {b.shape}")
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise ValueError("every number of a pair must be finite; drop or explain the other pairs first")
    if not 0 < level < 1 or resamples < 1:
        raise ValueError(f"level lies between 0 and 1, and resamples is 1 or more; got {level} and {resamples}")
    differences, n = a - b, len(a)
    rng = np.random.default_rng(seed)
    means = differences[rng.integers(0, n, (resamples, n))].mean(-1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Interval(differences.mean(), low, high, n)


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


def subject_fidelity(generated, real) -> float:
    r"""Mean cosine between generated and real pictures of a subject, over all pairs of one of each.

    On DINO ViT-S/16 features this is "DINO" of Ruiz et al., *DreamBooth*, 2023 (arXiv 2208.12242), on CLIP features its
    "CLIP-I". With pictures of the *class* as ``generated`` it is PRES, and high values say that the class drifted to
    the subject. What the paper measured, on 30 subjects:

        ======================================  =====  ======
        pictures                                DINO   CLIP-I
        ======================================  =====  ======
        real ones                               0.774  0.885
        DreamBooth on Imagen                    0.696  0.812
        DreamBooth on Stable Diffusion          0.668  0.803
        Textual Inversion on Stable Diffusion   0.569  0.780
        ======================================  =====  ======

    and a PRES of 0.664 without the prior-preservation loss against 0.493 with it. ``set_consistency(real)`` is what the
    real pictures reach among themselves, and the ceiling: a score above it means that pictures were copied, places and
    all. Report :func:`text_alignment` beside it.

    Args:
        generated: array-like ``(N, D)``, one row or more; the rows need not have length 1.
        real: array-like ``(M, D)``, one row or more.

    Raises:
        ValueError: another shape, no rows, or a row without a direction.

    Example:
        >>> subject_fidelity([[1, 0], [0, 2]], [[3, 0]])  # cosines 1 and 0
        0.5
    """
    generated, real = _directions(generated), _directions(real)
    if generated.shape[1] != real.shape[1] or not len(generated) or not len(real):
        raise ValueError(
            f"fidelity compares pictures with pictures, by the same features: got {generated.shape} and {real.shape}"
        )
    return float(generated.mean(0) @ real.mean(0))  # the mean over all pairs, without the pairs


def leakage(probabilities, objects) -> float:
    r"""Content leakage: how much of the reference's object a classifier sees in the targets, beyond their own.

    The mean over the targets of :math:`p_r / (p_r + p_t)`, where p is the probability that the classifier gives to the
    object of the reference and to that of the target. 0 is a set of clean targets, or of targets that show neither; 1
    is a set in which every target shows the reference's object instead of its own. The StyleAligned paper
    (arXiv 2312.02133) shows leakage in pictures; the number is ours.

    Args:
        probabilities: array-like ``(N, C)``, one row per picture, the reference first.
        objects: ``N`` indices from 0 to C - 1: what each picture should show; no target may share the reference's.

    Raises:
        ValueError: other shapes, no targets, values that are not finite, an object out of range, or a target with the
            object of the reference.

    Example:
        >>> leakage([[1, 0, 0], [0.2, 0.8, 0], [0, 0, 1]], [0, 1, 2])  # a fifth in one target, nothing in the other
        0.1
    """
    probabilities, objects = np.asarray(probabilities, dtype=float), np.asarray(objects)
    if probabilities.ndim != 2 or objects.shape != probabilities.shape[:1] or len(objects) < 2:
        raise ValueError(
            "leakage needs probabilities (N, C) of a reference and one target or more, and what each shows; "
            f"got shapes {probabilities.shape} and {objects.shape}"
        )
    if not np.isfinite(probabilities).all() or not np.isin(objects, np.arange(probabilities.shape[1])).all():
        raise ValueError(f"probabilities are finite, objects from 0 to {probabilities.shape[1] - 1}; got {objects}")
    reference, *targets = objects.astype(int)
    if reference in targets:
        raise ValueError(f"targets that show object {reference}, as the reference does, cannot leak; leave them out")
    leaked = probabilities[1:, reference]
    own = probabilities[np.arange(1, len(objects)), targets]
    return float((leaked / (leaked + own + np.finfo(float).tiny)).mean())


def diversity(features) -> float:
    r"""Mean squared distance between the pictures of a set, :math:`\frac{1}{N(N-1)}\sum_{i\ne j}\|f_i-f_j\|^2`.

    On the features of :func:`stylemoments.embed.perceptual`, whose squared distance is LPIPS, this is "DIV" of Ruiz et
    al., *DreamBooth*, 2023 (arXiv 2208.12242): the mean LPIPS between pictures of one prompt. The paper measured 0.371
    without the prior-preservation loss and 0.391 with it. A set of one picture repeated scores 0. It is twice the sum
    of the features' variances, and is computed so.

    Args:
        features: array-like ``(N, D)`` of finite numbers, two rows or more; their lengths matter.

    Raises:
        ValueError: another shape, fewer than two rows, or a value that is not finite.

    Example:
        >>> diversity([[0, 0], [3, 4]])  # a distance of 5
        25.0
    """
    features = np.asarray(features, dtype=float)
    if features.ndim != 2 or len(features) < 2:
        raise ValueError(f"diversity needs features (N, D) of two pictures or more; got shape {features.shape}")
    if not np.isfinite(features).all():
        raise ValueError("every feature must be a finite number; drop the other rows first")
    return float(2 * features.var(axis=0, ddof=1).sum())


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
