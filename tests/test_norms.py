"""Every layer against torch.nn, against the laws it must obey, and against wrong input.

Tolerances: 1e-5 in float32 unless a line says otherwise. At mean 1e4 torch.nn itself is off by about 1e-3 in float32,
so there the float32 results of this package are held to torch.nn's float64 results on the same numbers.
"""

import inspect

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.testing import assert_close

from stylemoments import norms

CLOSE = {"rtol": 1e-5, "atol": 1e-5}


def images(*shape, mean=0.0, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(*(shape or (4, 6, 5, 7)), generator=generator, dtype=torch.float64) + mean).to(dtype)


def rows(*shape, seed=1):
    return images(*shape, seed=seed)


# Each pair: ours and torch's on the same arguments (x, weight, bias).
PAIRS = {
    "batch": (
        lambda x, w, b: norms.batch_norm(x, weight=w, bias=b, training=True),
        lambda x, w, b: F.batch_norm(x, None, None, w, b, training=True),
    ),
    "instance": (
        lambda x, w, b: norms.instance_norm(x, w, b),
        lambda x, w, b: F.instance_norm(x, weight=w, bias=b),
    ),
    "group": (
        lambda x, w, b: norms.group_norm(x, 3, w, b),
        lambda x, w, b: F.group_norm(x, 3, w, b),
    ),
    "layer": (
        lambda x, w, b: norms.layer_norm(x, x.shape[1:], *(v[:, None, None].expand(x.shape[1:]) for v in (w, b))),
        lambda x, w, b: F.layer_norm(x, x.shape[1:], *(v[:, None, None].expand(x.shape[1:]) for v in (w, b))),
    ),
}


@pytest.mark.parametrize("name", PAIRS)
class TestAgainstTorch:
    def test_values(self, name):
        ours, torchs = PAIRS[name]
        x, w, b = images(), rows(6), rows(6, seed=2)
        assert_close(ours(x, w, b), torchs(x, w, b), **CLOSE)

    def test_values_at_mean_ten_thousand(self, name):
        ours, torchs = PAIRS[name]
        x, w, b = images(mean=1e4), rows(6), rows(6, seed=2)
        assert_close(ours(x, w, b).double(), torchs(x.double(), w.double(), b.double()), **CLOSE)

    def test_gradients(self, name):
        results = []
        for function in PAIRS[name]:
            leaves = [v.requires_grad_() for v in (images(), rows(6), rows(6, seed=2))]
            (function(*leaves) * images(seed=3)).sum().backward()
            results.append([v.grad for v in leaves])
        assert_close(*results, rtol=1e-4, atol=1e-5)

    def test_gradcheck_in_float64(self, name):
        leaves = [v.double().requires_grad_() for v in (images(2, 3, 2, 3), rows(3), rows(3, seed=2))]
        assert torch.autograd.gradcheck(PAIRS[name][0], leaves)


@pytest.mark.parametrize("settings", [{}, {"momentum": 0.3}, {"momentum": None}, {"affine": False}, {"eps": 1e-2},
                                      {"track_running_stats": False}], ids=str)  # fmt: skip
def test_batch_norm_module_follows_torch_through_training_and_eval(settings):
    ours, torchs = norms.BatchNorm2d(6, **settings), nn.BatchNorm2d(6, **settings)
    for step in range(4):
        x = images(mean=step, seed=step)
        assert_close(ours(x), torchs(x), **CLOSE)
    assert_close(ours.state_dict(), torchs.state_dict(), **CLOSE)
    assert_close(ours.eval()(images()), torchs.eval()(images()), **CLOSE)


def test_batch_norm_eval_at_mean_ten_thousand():
    ours, torchs = norms.BatchNorm2d(6), nn.BatchNorm2d(6)
    for step in range(60):
        ours(images(mean=1e4, seed=step))
    torchs.load_state_dict(ours.state_dict())
    x = images(mean=1e4)
    assert_close(ours.eval()(x).double(), torchs.double().eval()(x.double()), **CLOSE)
    assert torch.all((ours.running_mean - 1e4 * (1 - 0.9**60)).abs() < 1), "the running mean must approach 1e4"


def test_states_load_both_ways():
    pairs = [(norms.BatchNorm2d(6), nn.BatchNorm2d(6)), (norms.GroupNorm(2, 6), nn.GroupNorm(2, 6)),
             (norms.LayerNorm((6, 5, 7)), nn.LayerNorm((6, 5, 7))),
             (norms.InstanceNorm2d(6, affine=True), nn.InstanceNorm2d(6, affine=True))]  # fmt: skip
    for ours, torchs in pairs:
        for value in torchs.parameters():
            nn.init.normal_(value, generator=torch.Generator().manual_seed(0))
        ours.load_state_dict(torchs.state_dict())
        torchs.load_state_dict(ours.state_dict())
        assert_close(ours(images()), torchs(images()), **CLOSE)


def test_modules_return_what_their_functions_return():
    x, y = images(), images(4, 6, 3, 3, mean=2)
    assert_close(norms.InstanceNorm2d(6)(x), norms.instance_norm(x))
    assert_close(norms.GroupNorm(3, 6, eps=0.1)(x), norms.group_norm(x, 3, eps=0.1))
    assert_close(norms.LayerNorm(7, affine=False)(x), norms.layer_norm(x, (7,)))
    assert_close(norms.AdaIN(eps=0.1, unbiased=False)(x, y), norms.adain(x, y, eps=0.1, unbiased=False))
    assert_close(norms.ConditionalInstanceNorm2d(6, 3)(x, 2), norms.instance_norm(x))
    assert [*norms.AdaIN().parameters()] == [], "AdaIN learns nothing"
    assert sum(p.numel() for p in norms.ConditionalInstanceNorm2d(6, 3).parameters()) == 3 * 2 * 6


class TestMoments:
    def test_by_hand(self):
        mean, var = norms.moments(torch.tensor([[[[1.0, 2.0], [3.0, 6.0]]]]))
        assert (mean.item(), var.item()) == (3.0, 3.5)
        assert norms.moments(torch.tensor([1.0, 2.0, 6.0]), 0, unbiased=True)[1].item() == 7.0

    def test_keeps_the_reduced_axes(self):
        assert [m.shape for m in norms.moments(images())] == [(4, 6, 1, 1)] * 2

    def test_large_mean_does_not_eat_the_variance(self):
        x = images(mean=1e4)
        assert_close(norms.moments(x)[1].double(), x.double().var((-2, -1), unbiased=False, keepdim=True), **CLOSE)

    @pytest.mark.parametrize("unbiased", [True, False])
    def test_against_numpy(self, unbiased):
        x = images()
        mean, var = norms.moments(x, (0, 2), unbiased=unbiased)
        assert_close(mean, torch.from_numpy(x.numpy().mean((0, 2), keepdims=True)), **CLOSE)
        assert_close(var, torch.from_numpy(x.numpy().var((0, 2), keepdims=True, ddof=int(unbiased))), **CLOSE)


class TestLaws:
    def test_instance_norm_is_blind_to_contrast_and_brightness(self):
        x = images()
        assert_close(norms.instance_norm(3 * x + 5), norms.instance_norm(x), rtol=1e-5, atol=2e-5)

    def test_batch_norm_is_not(self):
        x = images()
        gain = torch.tensor([0.5, 1.0, 2.0, 4.0])[:, None, None, None]
        difference = norms.batch_norm(gain * x, training=True) - norms.batch_norm(x, training=True)
        assert difference.abs().max() > 0.5

    def test_batch_norm_of_one_image_in_training_is_instance_norm(self):
        x = images(1, 6, 5, 7)
        assert_close(norms.batch_norm(x, training=True), norms.instance_norm(x), **CLOSE)

    def test_group_norm_lies_between_layer_and_instance_norm(self):
        x = images()
        assert_close(norms.group_norm(x, 1), norms.layer_norm(x, x.shape[1:]), **CLOSE)
        assert_close(norms.group_norm(x, 6), norms.instance_norm(x), **CLOSE)

    def test_conditional_instance_norm_with_one_style_is_instance_norm(self):
        x, weight, bias = images(), rows(1, 6), rows(1, 6, seed=2)
        assert_close(norms.conditional_instance_norm(x, 0, weight, bias), norms.instance_norm(x, weight[0], bias[0]))

    def test_conditional_instance_norm_with_the_rows_of_an_image_is_adain(self):
        x, y = images(), images(1, 6, 3, 8, mean=2, seed=4)
        mean, var = norms.moments(y)
        weight, bias = (var + 1e-5).sqrt().flatten(1), mean.flatten(1)
        expected = norms.adain(x, y, unbiased=False)
        assert_close(norms.conditional_instance_norm(x, 0, weight, bias), expected, **CLOSE)

    def test_adain_with_itself_changes_nothing(self):
        for mean in (0.0, 1e4):
            assert_close(norms.adain(images(mean=mean), images(mean=mean)), images(mean=mean), **CLOSE)

    def test_adain_forgets_the_style_before(self):
        x, y, z = images(), images(mean=3, seed=5), images(mean=-1, seed=6)
        assert_close(norms.adain(norms.adain(x, y), z), norms.adain(x, z), rtol=1e-5, atol=2e-5)

    @pytest.mark.parametrize("mean, rtol", [(0.0, 1e-4), (1e4, 1e-2)])
    def test_adain_has_the_moments_of_the_style(self, mean, rtol):
        # 1e-4: eps stands in both variances and does not cancel to the last digit.
        # 1e-2: at 3e4 the result itself is rounded to steps of 2e-3, which its variance feels.
        y = images(4, 6, 9, 2, mean=mean, seed=5) * 3
        got = norms.moments(norms.adain(images(), y), unbiased=True)
        assert_close(got, norms.moments(y, unbiased=True), rtol=rtol, atol=1e-4)


class TestAdaIN:
    def test_by_hand(self):
        x, y = (
            torch.tensor([-1.0, 1.0]).reshape(1, 1, 1, 2),
            torch.tensor([3.0, 5.0, 7.0]).reshape(1, 1, 3, 1),
        )
        got = norms.adain(x, y, eps=0.0)  # unbiased: sd(x) = sqrt 2, sd(y) = 2, mean(y) = 5
        assert_close(got.flatten(), torch.tensor([5 - 2**0.5, 5 + 2**0.5]), **CLOSE)

    def test_against_the_formula_written_out_in_float64(self):
        x, y = images(), images(1, 6, 3, 8, mean=2, seed=4)
        a, b = x.double(), y.double()
        root_x = (a.var((2, 3), keepdim=True) + 1e-5).sqrt()
        root_y = (b.var((2, 3), keepdim=True) + 1e-5).sqrt()
        expected = root_y * (a - a.mean((2, 3), keepdim=True)) / root_x + b.mean((2, 3), keepdim=True)
        assert_close(norms.adain(x, y).double(), expected, **CLOSE)

    def test_tokens_of_attention_with_other_lengths(self):
        x, y = images(2, 3, 10, 4), images(2, 3, 17, 4, mean=1, seed=7)
        got = norms.adain(x, y, dim=-2)
        assert got.shape == x.shape
        assert_close(got.mean(-2), y.mean(-2), **CLOSE)
        assert_close(got[1, 2, :, 3], norms.adain(x[1, 2, :, 3], y[1, 2, :, 3], dim=0), **CLOSE)

    def test_one_style_serves_a_whole_batch(self):
        x, y = images(), images(1, 6, 5, 7, seed=8)
        assert_close(norms.adain(x, y), torch.cat([norms.adain(x[i : i + 1], y) for i in range(4)]), **CLOSE)

    @pytest.mark.parametrize("dim", [(-2, -1), -2, (0, 2, 3)])
    @pytest.mark.parametrize("unbiased", [True, False])
    def test_kept_moments_serve_as_the_style(self, dim, unbiased):
        x, y = images(), images(seed=8) * 3 - 1
        kept = norms.moments(y, dim, unbiased=unbiased)
        options = {"dim": dim, "unbiased": unbiased, "eps": 0.1}
        assert torch.equal(norms.with_moments(x, *kept, **options), norms.adain(x, y, **options))

    def test_flat_content_gets_the_mean_and_no_nan(self):
        assert_close(norms.adain(torch.ones(1, 2, 3, 3), images(1, 2, 3, 3)).mean((2, 3)),
                     images(1, 2, 3, 3).mean((2, 3)), **CLOSE)  # fmt: skip

    def test_gradcheck_in_float64(self):
        x = images(2, 2, 2, 3, dtype=torch.float64).requires_grad_()
        y = images(1, 2, 3, 2, dtype=torch.float64, seed=3).requires_grad_()
        assert torch.autograd.gradcheck(norms.adain, (x, y))


class TestConditional:
    def setup_method(self):
        self.x, self.weight, self.bias = images(), rows(3, 6), rows(3, 6, seed=2)

    def norm(self, style):
        return norms.conditional_instance_norm(self.x, style, self.weight, self.bias)

    def test_each_image_has_its_own_style(self):
        got = self.norm(torch.tensor([2, 0, 1, 1]))
        expected = [norms.instance_norm(self.x[i : i + 1], self.weight[s], self.bias[s])
                    for i, s in enumerate([2, 0, 1, 1])]  # fmt: skip
        assert_close(got, torch.cat(expected), **CLOSE)

    def test_blending_styles_is_blending_results(self):
        blend = self.norm(torch.tensor([0.25, 0.0, 0.75]))
        assert_close(blend, 0.25 * self.norm(0) + 0.75 * self.norm(2), **CLOSE)
        assert_close(self.norm(torch.eye(3)[[2, 0, 1, 1]]), self.norm(torch.tensor([2, 0, 1, 1])), **CLOSE)

    def test_starts_as_instance_norm_for_every_style(self):
        layer = norms.ConditionalInstanceNorm2d(6, 3)
        assert_close(layer(self.x, torch.tensor([0, 1, 2, 0])), norms.instance_norm(self.x), **CLOSE)

    def test_training_one_style_leaves_the_other_rows_alone(self):
        layer = norms.ConditionalInstanceNorm2d(6, 3)
        layer(self.x, 1).square().sum().backward()
        touched = layer.weight.grad.abs().sum(1) > 0
        assert touched.tolist() == [False, True, False]

    def test_gradcheck_in_float64(self):
        leaves = [v.double().requires_grad_() for v in (images(2, 2, 2, 3), rows(3, 2), rows(3, 2, seed=2))]
        style = torch.tensor([2, 0])
        assert torch.autograd.gradcheck(lambda x, w, b: norms.conditional_instance_norm(x, style, w, b), leaves)


INTEGERS = torch.ones(2, 3, 4, 4, dtype=torch.int64)
WRONG = [
    (lambda: norms.moments(INTEGERS), TypeError, "x.float()"),
    (lambda: norms.moments([1.0, 2.0]), TypeError, "got list"),
    (lambda: norms.batch_norm(INTEGERS, training=True), TypeError, "torch.int64"),
    (lambda: norms.layer_norm(INTEGERS, (4,)), TypeError, "torch.int64"),
    (lambda: norms.instance_norm(INTEGERS), TypeError, "torch.int64"),
    (lambda: norms.group_norm(INTEGERS, 1), TypeError, "torch.int64"),
    (lambda: norms.adain(images(), INTEGERS), TypeError, "torch.int64"),
    (lambda: norms.conditional_instance_norm(INTEGERS, 0, rows(1, 3), rows(1, 3)), TypeError, "torch.int64"),
    (lambda: norms.moments(torch.empty(0, 3)), ValueError, "empty"),
    (lambda: norms.moments(torch.ones(3, 1), -1, unbiased=True), ValueError, "at least two elements"),
    (lambda: norms.adain(torch.ones(1, 1, 1, 1), images(1, 1, 2, 2)), ValueError, "unbiased=False"),
    (lambda: norms.adain(images(1, 1, 2, 2), torch.ones(1, 1, 1, 1)), ValueError, "unbiased=False"),
    (lambda: norms.batch_norm(images(6, 5), training=True), ValueError, "(B, C, H, W)"),
    (lambda: norms.BatchNorm2d(6)(images(1, 6, 1, 1)), ValueError, "larger batch"),
    (lambda: norms.batch_norm(images(1, 6, 1, 1), training=True), ValueError, "more than one value"),
    (lambda: norms.batch_norm(images(), torch.zeros(6)), ValueError, "both"),
    (lambda: norms.batch_norm(images(), torch.zeros(5), torch.ones(5)), ValueError, "6 channels"),
    (lambda: norms.batch_norm(images(), weight=torch.ones(5), training=True), ValueError, "6 channels"),
    (lambda: norms.instance_norm(images(3, 4, 5)), ValueError, "(B, C, H, W)"),
    (lambda: norms.instance_norm(images(2, 3, 1, 1)), ValueError, "more than one pixel"),
    (lambda: norms.instance_norm(images(), bias=torch.ones(5)), ValueError, "6 channels"),
    (lambda: norms.group_norm(images(), 4), ValueError, "got 4 for 6 channels"),
    (lambda: norms.group_norm(images(), 0), ValueError, "got 0"),
    (lambda: norms.layer_norm(images(), (5, 8)), ValueError, "(5, 8)"),
    (lambda: norms.layer_norm(images(), (7,), torch.ones(6)), ValueError, "weight"),
    (lambda: norms.adain(images(), images(4, 5, 5, 7)), ValueError, "(4, 5, 5, 7)"),
    (lambda: norms.adain(images(), images(2, 6, 5, 7)), ValueError, "batch of y may be 1"),
    (lambda: norms.adain(images(), images(4, 1, 5, 7)), ValueError, "(4, 1, 5, 7)"),
    (lambda: norms.adain(images(), images(6, 5, 7)), ValueError, "(6, 5, 7)"),
    (lambda: norms.conditional_instance_norm(images(), 3, rows(3, 6), rows(3, 6)), IndexError, "0 to 2"),
    (lambda: norms.conditional_instance_norm(images(), -1, rows(3, 6), rows(3, 6)), IndexError, "0 to 2"),
    (lambda: norms.conditional_instance_norm(images(), torch.tensor([0, 1]), rows(3, 6), rows(3, 6)), ValueError, "4"),
    (lambda: norms.conditional_instance_norm(images(), torch.ones(2), rows(3, 6), rows(3, 6)), ValueError, "blend"),
    (lambda: norms.conditional_instance_norm(images(), 0, rows(3, 5), rows(3, 5)), ValueError, "(styles, 6)"),
    (lambda: norms.conditional_instance_norm(images(), 0, rows(3, 6), rows(2, 6)), ValueError, "bias"),
]  # fmt: skip


@pytest.mark.parametrize("call, error, says", WRONG, ids=range(len(WRONG)))
def test_wrong_input_gets_a_clear_error(call, error, says):
    with pytest.raises(error) as caught:
        call()
    assert says in str(caught.value)


def test_failed_batch_leaves_the_running_estimates_alone():
    layer = norms.BatchNorm2d(6)
    with pytest.raises(ValueError):
        layer(images(1, 6, 1, 1))
    assert_close(layer.state_dict(), norms.BatchNorm2d(6).state_dict())


def test_defaults_have_the_types_they_should():
    """A stray comma once made a famous default a tuple."""
    expected = {"eps": float, "momentum": float, "unbiased": bool, "training": bool, "affine": bool}
    for function in (
        norms.adain,
        norms.batch_norm,
        norms.moments,
        norms.BatchNorm2d,
        norms.AdaIN,
        norms.GroupNorm,
    ):
        for name, parameter in inspect.signature(function).parameters.items():
            if name in expected:
                assert type(parameter.default) is expected[name], f"{function.__name__}({name})"
