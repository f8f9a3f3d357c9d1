from itertools import combinations

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.spatial import distance

from stylemoments.metrics import hue_distance, mean_interval, set_consistency, text_alignment


def test_by_hand():
    """Mean 2, deviation 1, n 3: half width 4.303 / sqrt 3."""
    interval = mean_interval([1, 2, 3])
    np.testing.assert_allclose(interval, (2, 2 - 2.4841, 2 + 2.4841, 3), atol=1e-4)


def test_against_scipy():
    values = np.random.default_rng(0).normal(size=(7, 4))
    result = stats.ttest_1samp(values, 0, axis=0).confidence_interval(0.9)
    interval = mean_interval(values, level=0.9)
    np.testing.assert_allclose(interval.low, result.low)
    np.testing.assert_allclose(interval.high, result.high)


def test_covers_the_truth_as_often_as_it_says():
    """2000 experiments of five runs around 0: the 95 % interval holds it in 95 % (± 1.5 points)."""
    interval = mean_interval(np.random.default_rng(1).normal(size=(5, 2000)))
    assert abs(np.mean((interval.low < 0) & (interval.high > 0)) - 0.95) < 0.015


@pytest.mark.parametrize(
    "values, level, says", [([1.0], 0.95, "two"), (3.0, 0.95, "two"), ([1, np.nan], 0.95, "finite"), ([1, 2], 95, "95")]
)
def test_wrong_input_gets_a_clear_error(values, level, says):
    with pytest.raises(ValueError, match=says):
        mean_interval(values, level=level)


# ------------------------------------------------------------------------------------- features


def test_hue_distance_by_hand():
    """A tenth of the circle is 36 degrees, also across the zero; opposite is 180, and a whole turn is none."""
    np.testing.assert_allclose(hue_distance([0.1, 0.95, 0.2, 0.0], [0.2, 0.05, 0.7, 1.0]), [36, 36, 180, 0], atol=1e-9)


def test_hue_distance_is_the_angle_between_the_points_on_the_circle():
    a, b = np.random.default_rng(2).random((2, 50))
    cosine = np.cos(2 * np.pi * a) * np.cos(2 * np.pi * b) + np.sin(2 * np.pi * a) * np.sin(2 * np.pi * b)
    np.testing.assert_allclose(hue_distance(a, b), np.degrees(np.arccos(cosine)), atol=1e-5)
    np.testing.assert_allclose(hue_distance(a, b), hue_distance(b, a), atol=1e-9)


def test_set_consistency_by_hand():
    """Two alike and one at a right angle: cosines 1, 0, 0. Two opposite: −1. The same twice: 1."""
    assert set_consistency([[1, 0], [5, 0], [0, 2]]) == pytest.approx(1 / 3)
    assert set_consistency([[1, 2], [-1, -2]]) == pytest.approx(-1)
    assert set_consistency([[3, 4], [3, 4]]) == pytest.approx(1)


def test_set_consistency_against_all_pairs():
    features = np.random.default_rng(3).normal(size=(6, 5))
    pairs = [1 - distance.cosine(a, b) for a, b in combinations(features, 2)]
    assert set_consistency(features) == pytest.approx(np.mean(pairs))


def test_text_alignment_by_hand():
    """The cosines are 1, 0 and 3/5; a longer vector changes nothing."""
    assert text_alignment([[2, 0], [0, 1], [1, 0]], [[1, 0], [1, 0], [3, 4]]) == pytest.approx(1.6 / 3)


def test_text_alignment_against_torch():
    torch.manual_seed(0)
    images, texts = torch.randn(2, 5, 7, dtype=torch.float64)
    expected = torch.nn.functional.cosine_similarity(images, texts).mean().item()
    assert text_alignment(images, texts) == pytest.approx(expected)


@pytest.mark.parametrize(
    "measure, says",
    [
        (lambda: hue_distance(np.nan, 0.5), "finite"),
        (lambda: set_consistency([[1, 0]]), "two pictures or more; got 1"),
        (lambda: set_consistency([1, 0]), r"\(N, D\); got \(2,\)"),
        (lambda: set_consistency([[1, 0], [0, 0]]), "all zero"),
        (lambda: set_consistency([[1, 0], [np.inf, 0]]), "finite"),
        (lambda: text_alignment([[1, 0]], [[1, 0], [0, 1]]), r"its text: got .*\(1, 2\) and \(2, 2\)"),
        (lambda: text_alignment(np.ones((0, 2)), np.ones((0, 2))), "its text"),
    ],
)
def test_wrong_features_get_a_clear_error(measure, says):
    with pytest.raises(ValueError, match=says):
        measure()
