"""Who leads and who follows: what is seen in a batch, and its rows by hand."""

import pytest
import torch

from stylemoments.references import batch_layout, follows, plan, plan_following

CPU = torch.device("cpu")


def test_layouts_of_a_batch():
    noise = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    assert batch_layout(noise).tolist() == [[0, 1, 2]]
    assert batch_layout(noise[:2]).tolist() == [[0, 1]]
    assert batch_layout(noise[:1].repeat(2, 1, 1, 1)).tolist() == [[0], [1]]
    assert batch_layout(noise.repeat_interleave(2, 0)).tolist() == [[0, 2, 4], [1, 3, 5]]
    assert batch_layout(noise[[0, 0, 1, 2]]).tolist() == [[0, 1, 2, 3]]
    assert batch_layout(noise[[0, 0, 1, 0, 0, 1]]).tolist() == [[0, 1, 2], [3, 4, 5]]
    for repeated in ([0, 1] * 3, [0, 1] * 4, [0] * 3, [0] * 4, [0, 0, 1, 1] * 2):  # three times, or in two ways
        with pytest.raises(ValueError, match='pass layout="halves"'):
            batch_layout(noise[repeated])
    same = noise[:1].repeat(4, 1, 1, 1)
    assert batch_layout(same, "single").tolist() == [[0, 1, 2, 3]]
    assert batch_layout(same, "halves").tolist() == [[0, 1], [2, 3]]
    with pytest.raises(ValueError, match="two rows for each picture; got a batch of 3"):
        batch_layout(noise, "pairs")


def test_rows_of_a_guided_batch_by_hand():
    """Pictures 0 to 3, the second leads, the fourth is alone; rows 0 to 3 without the prompt, 4 to 7 with it."""
    looks = [{1: 1.0}, {}, {1: 1.0}, {}]
    rows = plan(looks, torch.arange(8).view(2, 4), CPU)
    assert rows.plain.tolist() == [1, 3, 5, 7] and rows.targets.tolist() == [0, 2, 4, 6]
    assert rows.source.tolist() == [1, 5]  # nobody looks at the fourth
    assert rows.followed.tolist() == [[0], [0], [1], [1]]
    assert rows.weights.tolist() == [[1], [1], [1], [1]] and rows.even


def test_rows_of_a_mixture_by_hand():
    """The third picture follows both, the fourth the second alone; its place for another is filled up with weight 0."""
    rows = plan([{}, {}, {0: 0.25, 1: 0.75}, {1: 1.0}], torch.arange(4)[None], CPU)
    assert rows.source.tolist() == [0, 1] and rows.targets.tolist() == [2, 3]
    assert rows.followed.tolist() == [[0, 1], [1, 0]] and rows.weights.tolist() == [[0.25, 0.75], [1, 0]]
    assert not rows.even


def test_rows_that_follow_a_kept_reference():
    rows = plan_following(torch.arange(4).view(2, 2), CPU)
    assert rows.targets.tolist() == [0, 1, 2, 3] and rows.source is None and len(rows.plain) == 0
    assert rows.followed.tolist() == [[0], [0], [1], [1]]  # each half its own


def test_whom_pictures_follow():
    assert follows(2, 3) == [{2: 1.0}] * 3
    assert follows([0, 0, 2, {0: 0.5, 2: 0.5}], 4) == [{0: 1.0}, {0: 1.0}, {2: 1.0}, {0: 0.5, 2: 0.5}]
