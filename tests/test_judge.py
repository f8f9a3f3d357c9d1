"""The judge: what its outputs mean, kind errors, and how often the shipped one is right."""

import numpy as np
import pytest
import torch

from stylemoments import judge
from stylemoments.judge import NAMES, Judge, angle, verdict
from stylemoments.world import HELD_OUT_HAND, NOWHERE, OBJECTS, PLACES, STYLES, World


@pytest.fixture(scope="module")
def fresh() -> Judge:
    torch.manual_seed(0)
    return Judge()


@pytest.fixture(scope="module")
def shipped() -> Judge:
    return judge.load()


def one_hot(names: tuple[str, ...], word: str) -> torch.Tensor:
    """An output that is as sure as ln 9 against 0."""
    return torch.log(torch.tensor([[9.0 if name == word else 1.0 for name in names]]))


def test_the_names_are_the_worlds():
    assert NAMES["objects"] == tuple(OBJECTS)
    assert NAMES["styles"] == tuple(STYLES)
    assert set(NAMES["places"]) == {NOWHERE, *PLACES}
    assert [len(names) for names in NAMES.values()] == [48, 9, 8]


def test_the_largest_output_names_the_answer():
    """One output is ln 9, the other 8 styles have 0: the probability is 9 / (9 + 8)."""
    words = {"objects": "cat", "styles": "neon light", "places": "in the snow"}
    said = verdict({k: one_hot(NAMES[k], word) for k, word in words.items()} | {"hues": torch.tensor([[-1.0, 0.0]])})
    assert (said.objects, said.styles, said.places) == (["cat"], ["neon light"], ["in the snow"])
    assert said.probabilities["styles"].max().item() == pytest.approx(9 / 17)
    np.testing.assert_array_equal(said.hues, [0.5])  # half a turn


def test_angles_by_hand():
    """Right, up, left, down; and a hair below right, which must stay below a whole turn."""
    points = torch.tensor([[2.0, 0], [0, 3], [-1, 0], [0, -0.5], [1, -1e-30]])
    np.testing.assert_allclose(angle(points)[:4], [0, 0.25, 0.5, 0.75], atol=1e-12)
    assert angle(points).dtype == np.float64
    assert (angle(points) < 1).all()


def test_angles_undo_cosine_and_sine():
    hues = np.random.default_rng(0).random(100)
    points = torch.tensor(np.stack([np.cos(2 * np.pi * hues), np.sin(2 * np.pi * hues)], -1))
    np.testing.assert_allclose(angle(points), hues, atol=1e-12)


def test_a_verdict_has_one_entry_per_picture(fresh):
    said = fresh(torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(0)))
    assert len(said.objects) == len(said.styles) == len(said.places) == len(said.hues) == 3
    assert {name: tuple(p.shape) for name, p in said.probabilities.items()} == {
        "objects": (3, 48), "styles": (3, 9), "places": (3, 8),
    }  # fmt: skip
    for p in said.probabilities.values():
        torch.testing.assert_close(p.sum(-1), torch.ones(3))


def test_each_picture_is_judged_by_itself(fresh):
    """Also in training mode, which it returns to."""
    images = torch.rand(4, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    together = fresh.train()(images)
    assert fresh.training
    alone = fresh.eval()(images[2:3])
    torch.testing.assert_close(together.probabilities["objects"][2:3], alone.probabilities["objects"])


def test_a_picture_without_detail_may_have_any_size(fresh):
    """A picture of one color is the same at 64 and at 128 pixels."""
    small, large = (torch.full((1, 3, side, side), 0.25) for side in (64, 128))
    torch.testing.assert_close(fresh(large).probabilities["styles"], fresh(small).probabilities["styles"])


def test_it_is_small(fresh):
    assert 0.5e6 < sum(p.numel() for p in fresh.parameters()) < 1.5e6


@pytest.mark.parametrize(
    "images, says",
    [
        (torch.zeros(3, 64, 64), r"\(n, 3, H, W\)"),
        (torch.zeros(1, 4, 64, 64), r"\(n, 3, H, W\)"),
        (torch.zeros(1, 3, 64, 64, dtype=torch.uint8), "uint8"),
        (torch.full((1, 3, 64, 64), 255.0), r"\[0, 1\].*255"),
        (torch.full((1, 3, 64, 64), torch.nan), r"\[0, 1\]"),
    ],
)
def test_wrong_input_gets_a_clear_error(fresh, images, says):
    with pytest.raises(ValueError, match=says):
        fresh(images)


def test_saved_in_half_precision_it_loads_in_single(fresh, tmp_path):
    from safetensors.torch import save_file

    halves = {name: x.half() if x.is_floating_point() else x for name, x in fresh.state_dict().items()}
    save_file(halves, tmp_path / "model.safetensors")
    loaded = judge.load(tmp_path)
    assert not loaded.training
    assert loaded.hue.weight.dtype == torch.float32
    torch.testing.assert_close(loaded.hue.weight, fresh.hue.weight, atol=0, rtol=2**-10)


@pytest.mark.parametrize(
    "kind, objects, styles", [({"split": "train"}, 0.97, 0.99), ({"split": "held-out"}, 0.94, 0.97)]
)
def test_the_shipped_judge_knows_the_world(shipped, kind, objects, styles):
    """300 pictures that it did not learn from; the bounds are two standard errors below what its card says."""
    sample = World(3).sample(300, **kind)
    said = shipped(torch.from_numpy(sample.images))
    assert np.mean(np.array(said.objects) == sample.objects) >= objects
    assert np.mean(np.array(said.styles) == sample.styles) >= styles
    assert np.mean(np.array(said.places) == sample.places) >= 0.97


def test_the_shipped_judge_knows_more_than_the_hands_it_learned_from(shipped):
    """Drawings in a hand it never saw: far above one in 48."""
    sample = World(3).sample(200, hand=HELD_OUT_HAND)
    said = shipped(torch.from_numpy(sample.images))
    assert np.mean(np.array(said.objects) == sample.objects) > 0.5
