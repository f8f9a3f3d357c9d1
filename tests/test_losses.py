"""Each loss against an answer worked out by hand, against an independent formulation, and against wrong input.

Tolerances: 1e-5 in float32 unless a line says otherwise.
"""

import inspect
import itertools
from functools import partial

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from stylemoments import losses

CLOSE = {"rtol": 1e-5, "atol": 1e-6}
LOSSES = {
    "content": losses.content_loss,
    "gram": losses.gram_loss,
    "moment": losses.moment_loss,
}


def features(*shape, seed=0, mean=0.5, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(*(shape or (2, 6, 5, 7)), generator=generator, dtype=torch.float64) + mean).to(dtype)


def pixels(*values, channels=1):
    """One image of one row."""
    return torch.tensor(values).reshape(1, channels, 1, -1)


class TestGram:
    def test_by_hand(self):
        x = pixels(1.0, 2.0, 3.0, 0.0, channels=2)  # channels (1, 2) and (3, 0): 1 + 4, 3 + 0, 9 + 0
        expected = torch.tensor([[[5.0, 3.0], [3.0, 9.0]]])
        assert_close(losses.gram(x, normalize=None), expected)
        assert_close(losses.gram(x, normalize="hw"), expected / 2)
        assert_close(losses.gram(x, normalize="chw"), expected / 4)
        assert_close(losses.gram(x), losses.gram(x, normalize="chw"))

    def test_is_covariance_plus_product_of_means(self):
        x = features(1, 6, 5, 7)
        flat = x[0].flatten(1)
        expected = torch.cov(flat, correction=0) + torch.outer(flat.mean(1), flat.mean(1))
        assert_close(losses.gram(x, normalize="hw")[0], expected, **CLOSE)

    def test_against_einsum_and_against_loops(self):
        x = features()
        assert_close(losses.gram(x, normalize=None), torch.einsum("bihw,bjhw->bij", x, x), rtol=1e-5, atol=1e-4)
        for b, i, j in itertools.product((0, 1), (0, 5), (2, 5)):
            assert_close(losses.gram(x)[b, i, j], (x[b, i] * x[b, j]).sum() / (6 * 5 * 7), **CLOSE)

    def test_forgets_where(self):
        x = features()
        shuffled = x.flatten(2)[..., torch.randperm(35, generator=torch.Generator().manual_seed(1))].reshape(2, 6, 7, 5)
        assert_close(losses.gram(shuffled), losses.gram(x), **CLOSE)

    def test_the_divided_ones_do_not_feel_the_size(self):
        x = features()
        tiled = x.repeat(1, 1, 2, 3)
        for normalize, grows in (("hw", 1), ("chw", 1), (None, 6)):
            assert_close(losses.gram(tiled, normalize=normalize), grows * losses.gram(x, normalize=normalize), **CLOSE)


class TestMeanStd:
    @pytest.mark.parametrize("mean", [0.0, 1e4])
    def test_against_numpy(self, mean):
        x = features(mean=mean)
        a = x.double().numpy()
        expected = np.stack([a.mean((2, 3)), np.sqrt(a.var((2, 3)) + 1e-5)], 1)
        assert_close(losses.mean_std(x).double(), torch.from_numpy(expected), **CLOSE)

    def test_constant_channel_has_a_finite_gradient(self):
        x = torch.full((1, 2, 3, 3), 0.5, requires_grad=True)
        losses.mean_std(x).sum().backward()
        assert torch.isfinite(x.grad).all()


class TestContent:
    def test_by_hand(self):
        x, target = pixels(1.0, 5.0), pixels(3.0, 1.0)  # differences 2 and 4: squares 4 and 16
        found = [losses.content_loss(x, target, reduction=r).item() for r in ("mean", "sum", "relative")]
        assert found == [10.0, 20.0, 2.0], "the target's own squares are 9 and 1"

    def test_against_torch(self):
        x, y = features(), features(seed=1)
        assert_close(losses.content_loss(x, y), torch.nn.functional.mse_loss(x, y), **CLOSE)

    def test_is_gatys_formula_twice(self):
        x, y = features(1, 6, 5, 7), features(1, 6, 5, 7, seed=1)
        gatys = 0.5 * (x - y).pow(2).sum()
        assert_close(losses.content_loss(x, y, reduction="sum") / 2, gatys, **CLOSE)


class TestGramLoss:
    def test_by_hand(self):
        x, y = pixels(1.0, 2.0), pixels(3.0, 1.0, 1.0, 1.0)  # Grams 5 and 12; per pixel 2.5 and 3
        assert losses.gram_loss(x, y, normalize=None).item() == 49.0
        assert losses.gram_loss(x, y, normalize="hw").item() == 0.25
        assert losses.gram_loss(x, y, normalize="chw").item() == 0.25, "with one channel the two agree"
        assert losses.gram_loss(x, y, normalize="hw", reduction="relative").item() == pytest.approx(0.25 / 9)

    def test_is_gatys_formula(self):
        x, y = features(1, 6, 5, 7), features(1, 6, 5, 7, seed=1)
        n, m = 6, 35
        difference = torch.einsum("bihw,bjhw->bij", x, x) - torch.einsum("bihw,bjhw->bij", y, y)
        gatys = difference.pow(2).sum() / (4 * n**2 * m**2)
        assert_close(losses.gram_loss(x, y, normalize="hw") / 4, gatys, **CLOSE)

    def test_is_johnson_formula(self):
        x, y = features(1, 6, 5, 7), features(1, 6, 5, 7, seed=1)
        frobenius = torch.linalg.matrix_norm((losses.gram(x, normalize=None) - losses.gram(y, normalize=None)) / 210)
        assert_close(losses.gram_loss(x, y, reduction="sum"), frobenius[0] ** 2, **CLOSE)

    def test_weights_do_not_carry_over_but_relative_ones_do(self):
        x, y = features(), features(seed=1)
        hw, chw = (losses.gram_loss(x, y, normalize=n) for n in ("hw", "chw"))
        assert_close(hw, 36 * chw, **CLOSE)  # C squared
        relative = [losses.gram_loss(x, y, normalize=n, reduction="relative") for n in ("hw", "chw", None)]
        assert_close(relative, [relative[0]] * 3, **CLOSE)


class TestMomentLoss:
    def test_by_hand(self):
        x, y = pixels(-1.0, 1.0), pixels(1.0, 7.0, 1.0, 7.0)  # means 0 and 4, deviations 1 and 3
        for reduction, expected in (("mean", 20.0), ("sum", 20.0), ("relative", 20 / 25)):
            assert losses.moment_loss(x, y, reduction=reduction, eps=0.0).item() == pytest.approx(expected)

    def test_against_numpy(self):
        x, y = features(), features(1, 6, 9, 4, seed=1)
        a, b = x.double().numpy(), y.double().numpy()
        means = (a.mean((2, 3)) - b.mean((2, 3))) ** 2
        deviations = (np.sqrt(a.var((2, 3)) + 1e-5) - np.sqrt(b.var((2, 3)) + 1e-5)) ** 2
        total = (means + deviations).sum(1).mean()  # over channels; then the batch
        assert losses.moment_loss(x, y, reduction="sum").item() == pytest.approx(total, rel=1e-5)
        assert losses.moment_loss(x, y, reduction="mean").item() == pytest.approx(total / 6, rel=1e-5)

    def test_the_original_sums_what_the_port_averages(self):
        x, y = features(2, 512, 4, 4), features(2, 512, 4, 4, seed=1)
        by_sum, by_mean = (losses.moment_loss(x, y, reduction=r) for r in ("sum", "mean"))
        assert_close(by_sum, 512 * by_mean, **CLOSE)

    def test_is_blind_to_products_of_channels_which_a_gram_sees(self):
        x = features(1, 2, 1, 4)
        x[0, 0, 0], x[0, 1, 0] = torch.tensor([0.0, 0, 1, 1]), torch.tensor([0.0, 1, 0, 1])
        y = x.clone()
        y[0, 1, 0] = x[0, 0, 0]  # the same mean and deviation, but now the two move together
        assert losses.moment_loss(x, y).item() == 0
        assert losses.gram_loss(x, y).item() > 0


class TestTotalVariation:
    def test_a_checkerboard_has_two(self):
        board = (torch.arange(6)[:, None] + torch.arange(8)) % 2
        assert losses.total_variation(board.float().expand(2, 3, 6, 8)).item() == 2.0

    def test_stripes_have_one_and_a_plain_image_none(self):
        stripes = (torch.arange(6) % 2).float().expand(1, 3, 8, 6)
        assert losses.total_variation(stripes).item() == 1.0
        assert losses.total_variation(torch.full((1, 3, 4, 4), 0.7)).item() == 0.0

    def test_a_ramp_by_hand(self):
        ramp = torch.tensor([0.0, 0.5, 1.0]).expand(1, 1, 2, 3)
        assert losses.total_variation(ramp).item() == 0.5

    def test_against_numpy(self):
        x = features(2, 3, 5, 7)
        expected = np.abs(np.diff(x.numpy(), axis=2)).mean() + np.abs(np.diff(x.numpy(), axis=3)).mean()
        assert losses.total_variation(x).item() == pytest.approx(expected, rel=1e-5)


class TestStyleLoss:
    def setup_method(self):
        self.x = {"relu1_1": features(2, 4, 8, 8), "relu2_1": features(2, 8, 4, 4)}
        self.y = {"relu1_1": features(1, 4, 6, 9, seed=1), "relu2_1": features(1, 8, 3, 5, seed=2)}

    def test_sums_over_layers(self):
        each = [losses.moment_loss(self.x[layer], self.y[layer]) for layer in self.x]
        assert_close(losses.style_loss(self.x, self.y), each[0] + each[1])

    def test_weights_choose_layers(self):
        got = losses.style_loss(self.x, self.y, loss=losses.gram_loss, weights={"relu2_1": 3.0})
        assert_close(got, 3 * losses.gram_loss(self.x["relu2_1"], self.y["relu2_1"]))

    def test_only_the_layers_of_the_targets_count(self):
        got = losses.style_loss(self.x, {"relu1_1": self.y["relu1_1"]})
        assert_close(got, losses.moment_loss(self.x["relu1_1"], self.y["relu1_1"]))

    @pytest.mark.parametrize("name", ["gram", "moment"])
    def test_summaries_stand_for_their_features(self, name):
        loss, summarize = LOSSES[name], {"gram": losses.gram, "moment": losses.mean_std}[name]
        kept = {layer: summarize(y) for layer, y in self.y.items()}
        assert_close(losses.style_loss(self.x, kept, loss=loss), losses.style_loss(self.x, self.y, loss=loss))


@pytest.mark.parametrize("reduction", losses.REDUCTIONS)
@pytest.mark.parametrize("name", LOSSES)
class TestEveryLoss:
    def test_is_zero_on_itself_and_positive_elsewhere(self, name, reduction):
        loss = partial(LOSSES[name], reduction=reduction)
        assert loss(features(), features()).item() == 0
        assert loss(features(), features(seed=1)).item() > 0

    def test_returns_a_scalar_of_the_same_dtype(self, name, reduction):
        x, y = features(dtype=torch.float64), features(seed=1, dtype=torch.float64)
        got = LOSSES[name](x, y, reduction=reduction)
        assert (got.shape, got.dtype) == ((), torch.float64)

    def test_one_target_serves_a_batch_whose_mean_is_taken(self, name, reduction):
        loss = partial(LOSSES[name], reduction=reduction)
        x, y = features(3, 6, 5, 7), features(1, 6, 5, 7, seed=1)
        assert_close(loss(x, y), torch.stack([loss(image, y) for image in x.split(1)]).mean(), **CLOSE)

    def test_gradcheck_in_float64(self, name, reduction):
        x, y = (features(2, 3, 2, 3, seed=s, dtype=torch.float64).requires_grad_() for s in (0, 1))
        assert torch.autograd.gradcheck(partial(LOSSES[name], reduction=reduction), (x, y))

    def test_relative_is_one_for_features_of_zero(self, name, reduction):
        if reduction == "relative":
            zero = torch.zeros(2, 6, 5, 7)
            options = {"eps": 0.0} if name == "moment" else {}
            assert LOSSES[name](zero, features(), reduction=reduction, **options).item() == pytest.approx(1)
            assert torch.isfinite(LOSSES[name](features(), zero, reduction=reduction))


@pytest.mark.parametrize("name", ["gram", "moment"])
def test_styles_may_have_another_size(name):
    x, y = features(2, 6, 5, 7), features(1, 6, 11, 3, seed=1)
    assert torch.isfinite(LOSSES[name](x, y))
    assert_close(LOSSES[name](x, x.repeat(1, 1, 2, 2)), torch.tensor(0.0), **CLOSE)


def test_total_variation_gradcheck_in_float64():
    x = features(1, 2, 3, 4, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(losses.total_variation, x)


INTEGERS = torch.ones(2, 6, 5, 7, dtype=torch.int64)
WRONG = [
    (lambda: losses.gram(INTEGERS), TypeError, "x.float()"),
    (lambda: losses.gram([1.0]), TypeError, "got list"),
    (lambda: losses.gram(features(6, 5, 7)), ValueError, "(B, C, H, W)"),
    (lambda: losses.gram(features(), normalize="wh"), ValueError, "'wh'"),
    (lambda: losses.mean_std(features(6, 5, 7)), ValueError, "(6, 5, 7)"),
    (lambda: losses.content_loss(INTEGERS, features()), TypeError, "torch.int64"),
    (lambda: losses.content_loss(features(), features(2, 6, 5, 8)), ValueError, "(2, 6, 5, 8)"),
    (lambda: losses.content_loss(features(), features(3, 6, 5, 7)), ValueError, "batch may be 1"),
    (lambda: losses.content_loss(features(), features(), reduction="none"), ValueError, "relative"),
    (lambda: losses.gram_loss(features(), features(2, 5, 5, 7)), ValueError, "(2, 5, 5)"),
    (lambda: losses.gram_loss(features(), features(), normalize="c"), ValueError, "'c'"),
    (lambda: losses.moment_loss(features(), INTEGERS), TypeError, "mean_std"),
    (lambda: losses.moment_loss(features(), features(2, 5, 5, 7)), ValueError, "(2, 2, 5)"),
    (lambda: losses.moment_loss(features(), losses.gram(features())), ValueError, "(2, 6, 6)"),
    (lambda: losses.total_variation(features(1, 3, 1, 5)), ValueError, "two pixels"),
    (lambda: losses.total_variation(INTEGERS), TypeError, "torch.int64"),
    (lambda: losses.style_loss({"a": features()}, {"b": features()}), ValueError, "b missing"),
    (lambda: losses.style_loss({"a": features()}, {"a": features()}, weights={"c": 1.0}), ValueError, "c missing"),
    (lambda: losses.style_loss({"a": features()}, {}), ValueError, "nothing"),
]  # fmt: skip


@pytest.mark.parametrize("call, error, says", WRONG, ids=range(len(WRONG)))
def test_wrong_input_gets_a_clear_error(call, error, says):
    with pytest.raises(error) as caught:
        call()
    assert says in str(caught.value)


def test_defaults_have_the_types_they_should():
    expected = {"eps": float, "reduction": str, "normalize": str}
    for function in (losses.gram, losses.mean_std, *LOSSES.values()):
        for name, parameter in inspect.signature(function).parameters.items():
            if name in expected:
                assert type(parameter.default) is expected[name], f"{function.__name__}({name})"
