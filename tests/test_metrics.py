from itertools import combinations

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.spatial import distance

from stylemoments.metrics import (
    diversity,
    hue_distance,
    leakage,
    mean_interval,
    paired_bootstrap,
    set_consistency,
    subject_fidelity,
    text_alignment,
)


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


# ------------------------------------------------------------------------------------- the bootstrap


def test_equal_differences_leave_no_doubt():
    """Whatever is drawn again, every pair differs by 2."""
    assert paired_bootstrap([3, 4, 5], [1, 2, 3]) == (2, 2, 2, 3)


def test_two_pairs_by_hand():
    """Differences 0 and 1: the mean of two draws is 0, 1/2 or 1 with chances 1/4, 1/2, 1/4."""
    assert paired_bootstrap([1, 5], [1, 4]) == (0.5, 0, 1, 2)
    assert paired_bootstrap([1, 5], [1, 4], level=0.4) == (0.5, 0.5, 0.5, 2), "from 30 % to 70 % all are 1/2"


def test_the_bootstrap_against_scipy():
    a, b = np.random.default_rng(0).exponential(size=(2, 30))
    ours = paired_bootstrap(a, b, level=0.9, resamples=20_000)
    theirs = stats.bootstrap(
        (a, b), lambda a, b, axis: (a - b).mean(axis), paired=True, vectorized=True, method="percentile",
        confidence_level=0.9, n_resamples=20_000, random_state=np.random.default_rng(1),
    ).confidence_interval  # fmt: skip
    np.testing.assert_allclose((ours.low, ours.high), theirs, atol=0.01)
    assert ours.mean == pytest.approx(np.mean(a - b))


def test_the_bootstrap_has_a_seed_and_takes_differences():
    a, b = np.random.default_rng(4).normal(size=(2, 25))
    assert paired_bootstrap(a, b) == paired_bootstrap(a, b) == paired_bootstrap(a - b)
    assert paired_bootstrap(a, b) != paired_bootstrap(a, b, seed=1)


def test_the_bootstrap_of_many_pairs_is_students_interval():
    values = np.random.default_rng(5).normal(size=2000)
    np.testing.assert_allclose(paired_bootstrap(values)[:3], mean_interval(values)[:3], atol=0.002)


@pytest.mark.parametrize(
    "measure, says",
    [
        (lambda: paired_bootstrap([1, 2], [1, 2, 3]), r"equally long lists.*got \(2,\) and \(3,\)"),
        (lambda: paired_bootstrap([1.0]), "two numbers or more"),
        (lambda: paired_bootstrap([[1, 2], [3, 4]]), "equally long lists"),
        (lambda: paired_bootstrap([1, 2], [1, np.inf]), "finite"),
        (lambda: paired_bootstrap([1, 2], level=95), "between 0 and 1.*95"),
        (lambda: paired_bootstrap([1, 2], resamples=0), "1 or more.*0"),
    ],
)
def test_wrong_pairs_get_a_clear_error(measure, says):
    with pytest.raises(ValueError, match=says):
        measure()


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


def test_subject_fidelity_by_hand():
    """Against (1, 0) and (0, 1) the first has cosines 1 and 0, the second 3/5 and 4/5; lengths do not matter."""
    assert subject_fidelity([[2, 0], [3, 4]], [[1, 0], [0, 5]]) == pytest.approx((1 + 0 + 0.6 + 0.8) / 4)


def test_subject_fidelity_against_all_pairs():
    generated, real = np.random.default_rng(6).normal(size=(2, 7, 5))
    expected = 1 - distance.cdist(generated, real[:3], "cosine").mean()
    assert subject_fidelity(generated, real[:3]) == pytest.approx(expected)


def test_fidelity_of_the_real_pictures_has_self_pairs_and_the_ceiling_has_none():
    """Two at a right angle: with themselves they score 1/2, with each other 0. So a copy lies above the ceiling."""
    real = [[1, 0], [0, 1]]
    assert subject_fidelity(real, real) == pytest.approx(0.5)
    assert set_consistency(real) == pytest.approx(0)


def test_diversity_by_hand():
    """Corners of a triangle with sides 3, 4, 5: (9 + 16 + 25) / 3. One picture repeated: 0."""
    assert diversity([[0, 0], [3, 0], [0, 4]]) == pytest.approx(50 / 3)
    assert diversity([[1, 2], [1, 2], [1, 2]]) == 0


@pytest.mark.parametrize("mean", [0, 1e4])
def test_diversity_against_all_pairs(mean):
    features = np.random.default_rng(7).normal(size=(6, 5)) + mean
    assert diversity(features) == pytest.approx(distance.pdist(features, "sqeuclidean").mean())


def test_text_alignment_by_hand():
    """The cosines are 1, 0 and 3/5; a longer vector changes nothing."""
    assert text_alignment([[2, 0], [0, 1], [1, 0]], [[1, 0], [1, 0], [3, 4]]) == pytest.approx(1.6 / 3)


def test_leakage_by_hand():
    """The reference shows object 2. One target has half of it beside its own, one has none, one has nothing else."""
    seen = [[0.0, 0.0, 1.0], [0.4, 0.2, 0.4], [0.1, 0.9, 0.0], [0.0, 0.3, 0.7]]
    assert leakage(seen, [2, 0, 1, 0]) == pytest.approx((0.5 + 0 + 1) / 3)
    assert leakage([[0, 0, 1], [0, 1, 0]], [2, 0]) == 0  # a target that shows neither has not leaked


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
        (lambda: subject_fidelity([[1, 0]], [[1, 0, 0]]), r"same features: got \(1, 2\) and \(1, 3\)"),
        (lambda: subject_fidelity(np.ones((0, 2)), [[1, 0]]), r"\(0, 2\)"),
        (lambda: diversity([[1, 0]]), r"two pictures or more; got shape \(1, 2\)"),
        (lambda: diversity([1, 0]), r"\(N, D\)"),
        (lambda: diversity([[1, 0], [np.nan, 0]]), "finite"),
        (lambda: leakage([[1, 0]], [0]), r"one target or more.*\(1, 2\) and \(1,\)"),
        (lambda: leakage([[1, 0], [0, 1]], [0]), r"\(2, 2\) and \(1,\)"),
        (lambda: leakage([[1, 0], [0, 1]], [0, 2]), "objects from 0 to 1"),
        (lambda: leakage([[1, 0], [0, 1]], [0, -1]), "objects from 0 to 1"),
        (lambda: leakage([[1, 0], [np.nan, 1]], [0, 1]), "finite"),
        (lambda: leakage([[1, 0], [0, 1]], [0, 0]), "object 0, as the reference does, cannot leak"),
        (lambda: text_alignment([[1, 0]], [[1, 0], [0, 1]]), r"its text: got .*\(1, 2\) and \(2, 2\)"),
        (lambda: text_alignment(np.ones((0, 2)), np.ones((0, 2))), "its text"),
    ],
)
def test_wrong_features_get_a_clear_error(measure, says):
    with pytest.raises(ValueError, match=says):
        measure()
