"""Gatys' optimization and the feed-forward network: what must hold of any, on small images and random features.

The VGG has random weights: nothing here depends on which features a style is made of. Tolerances: 1e-5 in float32
unless a line says otherwise.
"""

import dataclasses
import inspect

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from stylemoments import color, norms, transfer
from stylemoments.transfer import TransferNet, stylize_by_optimization, train_feed_forward
from stylemoments.vgg import STYLE_LAYERS, VGGFeatures

CLOSE = {"rtol": 1e-5, "atol": 1e-5}


def image(*shape, seed=0, rough=4):
    """Smooth random images."""
    n, c, h, w = shape or (1, 3, 32, 40)
    small = torch.rand(n, c, h // rough + 1, w // rough + 1, generator=torch.Generator().manual_seed(seed))
    return F.interpolate(small, (h, w), mode="bilinear", align_corners=True)


def striped(h=40, w=32):
    """A picture with a style: colored stripes."""
    wave = (torch.arange(w) // 2 % 2).float()
    return torch.stack([0.9 * wave, 0.3 + 0.2 * wave, 0.7 - 0.5 * wave]).reshape(1, 3, 1, w).repeat(1, 1, h, 1)


@pytest.fixture(scope="module")
def vgg():
    return VGGFeatures(STYLE_LAYERS, weights="random")


@pytest.fixture
def stylize(vgg):
    """The records of an optimization with few steps."""
    settings = {"vgg": vgg, "steps": 12}
    return lambda content, style, **options: list(stylize_by_optimization(content, style, **settings | options))


@pytest.fixture
def train(vgg):
    """The records of a training with few steps."""
    settings = {"vgg": vgg, "steps": 8, "batch": 2, "crop": 16}
    return lambda net, photos, styles, **options: list(train_feed_forward(net, photos, styles, **settings | options))


def net(norm="instance", *, seed=0, **options):
    torch.manual_seed(seed)
    return TransferNet(norm, **{"width": 4, "blocks": 1} | options)


def trained_looking(net, seed=7):
    """The same network with scales and shifts that differ by style and channel, as after training."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in net.named_parameters():
            if ".norm." in name:
                value += 0.3 * torch.randn(value.shape, generator=generator)
    return net


def snapshot(net):
    return {name: value.clone() for name, value in net.state_dict().items()}


# ---------------------------------------------------------------------------------------- the loss, written out


def relative(x, y):
    return ((x - y) ** 2).sum() / (y**2).sum()


def summary(f, style_loss):
    if style_loss == "gram":
        return torch.einsum("chw,dhw->cd", f, f) / f.shape[1] / f.shape[2]
    return torch.stack([f.mean((1, 2)), (f.var((1, 2), correction=0) + 1e-5).sqrt()])


def expected_losses(vgg, picture, content, style, style_loss="gram"):
    """Content at relu3_1 and style at four layers, from the definition."""
    x, c, s = ({layer: f[0] for layer, f in vgg(v).items()} for v in (picture, content, style))
    styles = [relative(summary(x[layer], style_loss), summary(s[layer], style_loss)) for layer in STYLE_LAYERS]
    rows, columns = (picture[:, :, 1:] - picture[:, :, :-1]), (picture[..., 1:] - picture[..., :-1])
    return {
        "content": relative(x["relu3_1"], c["relu3_1"]).item(),
        "style": (sum(styles) / 4).item(),
        "variation": (rows.abs().mean() + columns.abs().mean()).item(),
    }


# ---------------------------------------------------------------------------------------- optimizing an image


@pytest.mark.parametrize("optimizer", ["lbfgs", "adam"])
class TestEitherOptimizer:
    def test_from_noise_content_and_style_both_fall(self, stylize, optimizer):
        path = stylize(image(), striped(), start="noise", optimizer=optimizer, steps=30)
        first, last = path[0].losses, path[-1].losses
        assert last["content"] < 0.5 * first["content"] and last["style"] < 0.5 * first["style"]

    def test_from_content_style_falls_and_content_pays(self, stylize, optimizer):
        path = stylize(image(), striped(), optimizer=optimizer)
        assert path[0].losses["content"] == 0 < path[-1].losses["content"]
        assert path[-1].losses["style"] < 0.5 * path[0].losses["style"]
        assert path[-1].losses["total"] < 0.5 * path[0].losses["total"]

    def test_the_same_seed_gives_the_same_image(self, stylize, optimizer):
        runs = [stylize(image(), striped(), start="noise", optimizer=optimizer, seed=s)[-1].image for s in (3, 3, 4)]
        assert torch.equal(runs[0], runs[1])
        assert not torch.equal(runs[0], runs[2])

    def test_a_step_is_one_pass_through_the_vgg(self, vgg, stylize, optimizer):
        passes = []
        handle = vgg.register_forward_hook(lambda *_: passes.append(1))
        stylize(image(), striped(), optimizer=optimizer, steps=5)
        handle.remove()
        assert len(passes) == 2 + 6, "content and style once each, then the start and five steps"

    def test_images_lie_in_the_unit_interval(self, stylize, optimizer):
        for step in stylize(image(), striped(), start="noise", style_weight=1e3, optimizer=optimizer):
            assert 0 <= step.image.min() and step.image.max() <= 1

    def test_finds_the_minimum_of_a_bowl(self, optimizer):
        bottom = image(1, 3, 6, 6) * 0.8 + 0.1
        path = transfer._optimize(
            torch.zeros(1, 3, 6, 6), lambda x: {"total": (x - bottom).square().mean()}, optimizer, 0.1, 100
        )
        assert_close([*path][-1].image, bottom, rtol=0, atol=0.01)


def test_lbfgs_needs_fewer_steps_than_adam_on_a_narrow_valley():
    """A quadratic whose curvatures differ by a thousand: what L-BFGS learns of them is worth more than a rate."""
    curvature = torch.logspace(0, 3, 108).reshape(1, 3, 6, 6)
    bottom = image(1, 3, 6, 6) * 0.8 + 0.1

    def last(optimizer, rate):
        def measure(x):
            return {"total": (curvature * (x - bottom).square()).mean()}

        *_, end = transfer._optimize(torch.full((1, 3, 6, 6), 0.5), measure, optimizer, rate, 60)
        return end.losses["total"]

    assert last("lbfgs", 0.1) < 0.1 * min(last("adam", rate) for rate in (0.003, 0.01, 0.04, 0.1))


class TestLBFGS:
    """Against the textbook's recursion with whole matrices, and its guards."""

    def run(self, steps, rate=100.0):
        generator = torch.Generator().manual_seed(0)
        root = torch.randn(5, 5, generator=generator, dtype=torch.float64)
        hessian, x = root @ root.T + torch.eye(5), torch.ones(5, dtype=torch.float64, requires_grad=True)
        optimizer, path = transfer.LBFGS(x, rate), []
        for _ in range(steps):
            x.grad = hessian @ x.detach()
            path.append((x.detach().clone(), x.grad.clone()))
            optimizer.step()
        return path, x.detach(), optimizer

    def test_the_two_loops_are_the_bfgs_update_of_the_inverse_hessian(self):
        path, end, _ = self.run(5)
        pairs = [(b[0] - a[0], b[1] - a[1]) for a, b in zip(path, path[1:], strict=False)]
        s, y = pairs[-1]
        inverse = torch.eye(5, dtype=torch.float64) * (s @ y) / (y @ y)
        for s, y in pairs:
            side = torch.eye(5, dtype=torch.float64) - torch.outer(s, y) / (s @ y)
            inverse = side @ inverse @ side.T + torch.outer(s, s) / (s @ y)
        assert_close(end - path[-1][0], -inverse @ path[-1][1], rtol=1e-9, atol=1e-12)

    def test_no_step_is_longer_than_the_rate(self):
        path, *_ = self.run(8, rate=0.05)
        sizes = [(b[0] - a[0]).square().mean().sqrt().item() for a, b in zip(path, path[1:], strict=False)]
        assert sizes[0] == pytest.approx(0.005), "a tenth, while the curvature is unknown"
        assert max(sizes) <= 0.05 * (1 + 1e-9)

    def test_remembers_the_last_pairs_only(self):
        assert len(self.run(transfer.HISTORY + 5)[2].pairs) <= transfer.HISTORY

    def test_a_hill_teaches_it_nothing(self):
        x = torch.ones(4, requires_grad=True)
        optimizer = transfer.LBFGS(x, 0.1)
        for _ in range(3):
            x.grad = -x.detach()  # curved downwards
            optimizer.step()
        assert not optimizer.pairs

    def test_stays_where_the_gradient_is_zero(self):
        x = torch.ones(4, requires_grad=True)
        optimizer = transfer.LBFGS(x, 0.1)
        for _ in range(2):
            x.grad = torch.zeros(4)
            optimizer.step()
        assert torch.equal(x.detach(), torch.ones(4))

    def test_does_not_fly_off(self):
        """Full steps without a limit once raised this loss a hundredfold; ours never rises far."""
        for start in transfer.STARTS:
            path = stylize_by_optimization(image(), striped(), vgg="random", style_weight=100.0, start=start, steps=15)
            totals = [step.losses["total"] for step in path]
            assert max(totals) < 1.5 * totals[0], start


def test_adam_is_torchs_adam_on_the_loss_written_out(vgg, stylize):
    content, style = image(), striped()
    x = content.clone().requires_grad_()
    adam = torch.optim.Adam([x], lr=0.04)
    for _ in range(3):
        features, wanted, manner = vgg(x), vgg(content), vgg(style)
        loss = relative(features["relu3_1"], wanted["relu3_1"])
        for layer in STYLE_LAYERS:
            loss = loss + 5 / 4 * relative(*(summary(f[layer][0], "gram") for f in (features, manner)))
        x.grad = torch.autograd.grad(loss * x.numel(), x)[0]
        adam.step()
        x.data.clamp_(0, 1)
    got = stylize(content, style, optimizer="adam", style_weight=5.0, variation_weight=0.0, steps=3)[-1].image
    assert_close(got, x.detach(), rtol=0, atol=1e-4)  # Adam divides by small numbers, which lets rounding grow


class TestRecords:
    def test_one_for_the_start_and_one_for_each_step(self, stylize):
        path = stylize(image(), striped(), steps=5)
        assert [step.step for step in path] == [0, 1, 2, 3, 4, 5]
        assert all(step.image.shape == (1, 3, 32, 40) and not step.image.requires_grad for step in path)
        assert all([*step.losses] == ["content", "style", "variation", "total"] for step in path)
        assert all(type(value) is float for value in path[-1].losses.values())
        assert torch.equal(path[0].image, image()), "later steps must not change what an earlier record holds"

    def test_none_to_take_gives_the_start(self, stylize):
        assert len(stylize(image(), striped(), steps=0)) == 1

    def test_are_frozen(self, stylize):
        with pytest.raises(dataclasses.FrozenInstanceError):
            stylize(image(), striped(), steps=0)[0].step = 1

    @pytest.mark.parametrize("style_loss", ["gram", "moments"])
    def test_losses_are_those_of_the_image_by_the_definition(self, vgg, stylize, style_loss):
        weights = {"content_weight": 2.0, "style_weight": 3.0, "variation_weight": 0.5}
        for step in stylize(image(), striped(), style_loss=style_loss, steps=2, **weights):
            expected = expected_losses(vgg, step.image, image(), striped(), style_loss)
            expected["total"] = 2 * expected["content"] + 3 * expected["style"] + 0.5 * expected["variation"]
            assert step.losses == pytest.approx(expected, rel=1e-4, abs=1e-6)

    def test_what_comes_in_is_left_as_it_was(self, vgg, stylize):
        content, style, before = image(), striped(), snapshot(vgg)
        stylize(content, style)
        assert torch.equal(content, image()) and torch.equal(style, striped())
        assert all(torch.equal(value, before[name]) for name, value in vgg.state_dict().items())
        assert not content.requires_grad and all(p.grad is None for p in vgg.parameters())


class TestStarts:
    def test_from_the_content(self, stylize):
        start = stylize(image(), striped(), steps=0)[0]
        assert torch.equal(start.image, image()) and start.losses["content"] == 0

    def test_from_the_style(self, stylize):
        start = stylize(image(), striped(32, 40), start="style", steps=0)[0]
        assert_close(start.image, striped(32, 40), **CLOSE)
        assert start.losses["style"] == pytest.approx(0, abs=1e-6)

    def test_from_a_style_of_another_size(self, stylize):
        assert stylize(image(), striped(70, 21), start="style", steps=0)[0].image.shape == (1, 3, 32, 40)

    def test_noise_knows_neither(self, stylize):
        pairs = [(image(), striped()), (image(seed=1), image(seed=2))]
        starts = [stylize(*pair, start="noise", steps=0)[0].image for pair in pairs]
        assert torch.equal(*starts)
        assert starts[0].mean().item() == pytest.approx(0.5, abs=0.02)


class TestSeveralStyles:
    def test_their_losses_are_weighed(self, stylize):
        alone = [stylize(image(), s, steps=0)[0].losses["style"] for s in (striped(), image(seed=5))]
        both = [striped(), image(seed=5)]
        for weights, expected in (
            (None, sum(alone) / 2),
            ([1.0, 0.0], alone[0]),
            ([0.25, 0.75], 0.25 * alone[0] + 0.75 * alone[1]),
            ([1, 3], 0.25 * alone[0] + 0.75 * alone[1]),
        ):
            got = stylize(image(), both, style_weights=weights, steps=0)[0].losses["style"]
            assert got == pytest.approx(expected, rel=1e-5), f"style_weights={weights}"

    def test_a_batch_of_styles_is_several(self, stylize):
        both = torch.cat([striped(32, 40), image(seed=5)])
        got = [stylize(image(), styles, steps=2)[-1].image for styles in (both, both.split(1))]
        assert torch.equal(*got)

    def test_a_weight_of_zero_leaves_a_style_out(self, stylize):
        got = stylize(image(), [striped(), image(seed=5)], style_weights=[2.0, 0.0])[-1].image
        assert_close(got, stylize(image(), striped())[-1].image, rtol=0, atol=1e-3)  # rounding grows over the steps


class TestColor:
    def test_coral_gives_the_style_the_colors_of_the_content(self, stylize):
        content, style = image(seed=2), striped()
        recolored = color.coral(style, content).clamp(0, 1)
        got = stylize(content, style, color="coral")
        assert torch.equal(got[-1].image, stylize(content, recolored)[-1].image)

    def test_luminance_keeps_a_gray_content_gray(self, stylize):
        gray = image(1, 1, 32, 40).repeat(1, 3, 1, 1)
        got = stylize(gray, striped(), color="luminance")[-1].image
        assert_close(got, got[:, :1].expand_as(got), **CLOSE)
        assert (got - gray).abs().max() > 0.05, "but it did change"

    def test_luminance_keeps_the_hue_of_every_pixel(self, stylize):
        content = image(seed=2)
        got = stylize(content, striped(), color="luminance")[-1].image
        before, after = (v - color.luminance(v) for v in (content, got))
        assert_close(F.cosine_similarity(before, after), torch.ones(1, 32, 40), rtol=0, atol=1e-3)

    def test_luminance_transfers_between_gray_images_of_equal_moments(self, stylize):
        content, style = image(seed=2), striped()
        gray_content, gray_style = color.luminance(content), color.luminance(style)
        (mean, var), (style_mean, style_var) = (norms.moments(v) for v in (gray_content, gray_style))
        moved = ((gray_style - style_mean) * (var / style_var).sqrt() + mean).clamp(0, 1)
        by_hand = stylize(gray_content.repeat(1, 3, 1, 1), moved.repeat(1, 3, 1, 1), steps=1)[0].losses
        assert stylize(content, style, color="luminance", steps=1)[0].losses == pytest.approx(by_hand, rel=1e-3)


def test_weights_by_name_make_the_vgg_that_is_needed_with_average_pooling():
    average = VGGFeatures(STYLE_LAYERS, weights="random", pooling="average")
    by_name, given = (
        [*stylize_by_optimization(image(), striped(), vgg=vgg, steps=2)][-1] for vgg in ("random", average)
    )
    assert torch.equal(by_name.image, given.image)


def test_layers_may_be_chosen(vgg):
    options = {"content_layers": ["relu2_1", "relu3_1"], "style_layers": ["relu1_1"], "steps": 0}
    (start,) = stylize_by_optimization(image(seed=1), striped(), vgg=vgg, start="style", **options)
    x, c = (vgg(v) for v in (start.image, image(seed=1)))
    expected = sum(relative(x[layer], c[layer]) for layer in ("relu2_1", "relu3_1")) / 2
    assert start.losses["content"] == pytest.approx(expected.item(), rel=1e-4)


def test_a_loss_that_is_not_finite_stops_the_run():
    path = transfer._optimize(torch.zeros(1, 3, 4, 4), lambda x: {"total": x.sum() / 0}, "adam", 0.1, 3)
    with pytest.raises(FloatingPointError, match="at step 0. Take a smaller rate"):
        next(path)


# ---------------------------------------------------------------------------------------- the feed-forward network


class TestNetwork:
    @pytest.mark.parametrize("norm", transfer.NORMS)
    @pytest.mark.parametrize("size", [(37, 53), (8, 8), (64, 9), (20, 24)], ids=str)
    def test_any_size_comes_back_exactly(self, norm, size):
        got = net(norm).eval()(image(2, 3, *size))
        assert got.shape == (2, 3, *size)
        assert 0 < got.min() and got.max() < 1

    def test_sizes_that_are_multiples_of_four_are_not_padded(self):
        x = image(1, 3, 20, 24)
        padded = F.pad(x[..., :19, :21], (0, 3, 0, 1), mode="reflect")
        assert torch.equal(net()(x[..., :19, :21]), net()(padded)[..., :19, :21])

    @pytest.mark.parametrize("norm", transfer.NORMS)
    def test_against_the_network_written_out_with_torch(self, norm):
        model = trained_looking(net(norm, blocks=2)).eval()
        state = model.state_dict()

        def convolve(x, name, stride=1):
            pad = state[name + ".weight"].shape[-1] // 2
            padded = F.pad(x, (pad,) * 4, mode="reflect")
            return F.conv2d(padded, state[name + ".weight"], state.get(name + ".bias"), stride)

        def layer(x, name, stride=1):
            x = convolve(x, name + ".conv", stride)
            scale, shift = (state[f"{name}.norm.{v}"].flatten() for v in ("weight", "bias"))
            if norm == "batch":  # in eval mode, fresh: mean 0, variance 1
                return F.batch_norm(x, torch.zeros(len(scale)), torch.ones(len(scale)), scale, shift)
            return F.instance_norm(x, weight=scale, bias=shift)

        x = image(2, 3, 16, 20)
        y = layer(x, "layers.0").relu()
        y = layer(y, "layers.1", 2).relu()
        y = layer(y, "layers.2", 2).relu()
        for name in ("layers.3", "layers.4"):
            y = y + layer(layer(y, name + ".layer1").relu(), name + ".layer2")
        for name in ("layers.5", "layers.6"):
            y = layer(y.repeat_interleave(2, 2).repeat_interleave(2, 3), name).relu()
        y = convolve(y, "last").sigmoid()
        assert_close(model(x), y, **CLOSE)

    def test_parameters_of_the_papers_network_by_hand(self):
        model = TransferNet("conditional", styles=10, width=32, blocks=5)
        convolutions = (3 * 32 + 32 * 3) * 81 + (32 * 64 + 64 * 128) * 9 * 2 + 10 * 128 * 128 * 9 + 3
        channels = 32 + 64 + 128 + 10 * 128 + 64 + 32  # behind every convolution but the last
        assert sum(p.numel() for p in model.parameters()) == convolutions + 10 * 2 * channels

    @pytest.mark.parametrize("norm, training, blind", [("instance", False, True), ("instance", True, True),
                                                       ("batch", False, False), ("batch", True, False)])  # fmt: skip
    def test_instance_norm_makes_it_blind_to_the_contrast_of_an_image(self, norm, training, blind):
        model, x = trained_looking(net(norm)).train(training), torch.cat([image(), image(seed=1)])
        contrast, brightness = (torch.tensor(v).reshape(2, 1, 1, 1) for v in ([1.0, 0.4], [0.0, 0.3]))
        before, after = model(x)[1], model(contrast * x + brightness)[1]
        change = (after - before).norm() / (before - before.mean((1, 2), keepdim=True)).norm()
        assert (change < 0.05) == blind, f"changed by {change:.1%} of the contrast"  # not by 0, because of eps

    def test_batch_norm_sees_the_neighbors_in_training_only(self):
        model = net("batch")
        x, company = image(), torch.cat([image(), image(seed=1) * 0.2])
        assert (model.train()(company)[:1] - model.train()(x)).abs().max() > 1e-3
        assert_close(model.eval()(company)[:1], model.eval()(x), **CLOSE)

    def test_gradients_reach_every_parameter(self):
        for norm in transfer.NORMS:
            model = net(norm)
            model(image()).square().sum().backward()
            silent = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum()]
            assert not silent, f"{norm}: {silent}"


class TestManyStyles:
    def setup_method(self):
        self.net = trained_looking(net("conditional", styles=3)).eval()
        self.x = image(3, 3, 16, 20)

    def test_one_style_is_the_network_with_instance_norm(self):
        one, plain = trained_looking(net("conditional")), net("instance")
        plain.load_state_dict({n: v[0] if ".norm." in n else v for n, v in one.state_dict().items()})
        assert_close(one(self.x), plain(self.x), **CLOSE)

    def test_styles_differ(self):
        assert (self.net(self.x, 0) - self.net(self.x, 1)).abs().max() > 0.01

    def test_each_image_has_its_own(self):
        got = self.net(self.x, torch.tensor([2, 0, 1]))
        each = [self.net(self.x[i : i + 1], style) for i, style in enumerate((2, 0, 1))]
        assert_close(got, torch.cat(each), **CLOSE)

    def test_weights_of_one_and_zeros_are_an_index(self):
        for style in range(3):
            assert_close(self.net(self.x, torch.eye(3)[style]), self.net(self.x, style), **CLOSE)

    def test_blending_styles_is_blending_rows(self):
        blend = self.net(self.x, torch.tensor([0.2, 0.5, 0.3]))
        weights = torch.tensor([0.2, 0.5, 0.3])
        mixed = trained_looking(net("conditional"))
        mixed.load_state_dict(
            {n: (weights @ v)[None] if ".norm." in n else v for n, v in self.net.state_dict().items()}
        )
        assert_close(blend, mixed(self.x), **CLOSE)

    def test_a_new_style_starts_as_the_mean_of_the_others(self):
        mean = self.net(self.x, torch.full((3,), 1 / 3))
        assert self.net.add_style() == 3
        assert (self.net.styles, self.net(self.x, 3).shape) == (4, self.x.shape)
        assert_close(self.net(self.x, 3), mean, **CLOSE)

    def test_a_new_style_leaves_the_others_bit_for_bit(self):
        before, pictures = snapshot(self.net), [self.net(self.x, style) for style in range(3)]
        self.net.add_style()
        for name, value in self.net.state_dict().items():
            assert torch.equal(value[:3] if ".norm." in name else value, before[name]), name
        assert all(torch.equal(self.net(self.x, style), pictures[style]) for style in range(3))

    def test_a_grown_network_loads_into_one_made_at_that_size(self):
        self.net.add_style()
        other = net("conditional", styles=4, seed=1).eval()
        other.load_state_dict(self.net.state_dict())
        assert torch.equal(other(self.x, 3), self.net(self.x, 3))

    def test_rows_are_views_of_one_style(self):
        rows = self.net.rows(1)
        assert sum(row.numel() for row in rows) == 2 * (4 + 8 + 16 + 2 * 16 + 8 + 4)
        before = snapshot(self.net)
        for row in rows:
            row.add_(1)
        for name, value in self.net.state_dict().items():
            expected = before[name] + torch.tensor([0.0, 1, 0])[:, None] if ".norm." in name else before[name]
            assert torch.equal(value, expected), name


# ---------------------------------------------------------------------------------------- training


class TestTraining:
    @pytest.mark.parametrize("norm", transfer.NORMS)
    def test_the_loss_falls(self, train, norm):
        path = train(net(norm), image(4, 3, 32, 32), striped(), steps=25, rate=2e-2)
        first, last = (sum(s.losses["total"] for s in part) / 5 for part in (path[:5], path[-5:]))
        assert last < 0.8 * first, f"{norm}: {first} to {last}"

    def test_losses_of_a_batch_by_the_definition(self, vgg, train):
        """One photograph of the size of the crop: the batch is known."""
        for style_loss in ("gram", "moments"):
            photo = image(1, 3, 16, 16)
            weights = {"content_weight": 2.0, "style_weight": 3.0, "variation_weight": 0.5}
            (record,) = train(net(), photo, striped(), steps=1, style_loss=style_loss, **weights)
            assert_close(record.image, net()(photo).expand(2, 3, 16, 16).detach(), **CLOSE)
            expected = expected_losses(vgg, record.image[:1], photo, striped(), style_loss)
            expected["total"] = 2 * expected["content"] + 3 * expected["style"] + 0.5 * expected["variation"]
            assert record.losses == pytest.approx(expected, rel=1e-4)

    def test_each_image_of_a_batch_is_held_to_the_style_it_drew(self, vgg, train):
        photo, styles = image(1, 3, 16, 16), [striped(), image(1, 3, 24, 24, seed=9)]
        model = trained_looking(net("conditional", styles=2))
        pictures = [model(photo, style).detach() for style in (0, 1)]
        (record,) = train(model, photo, styles, steps=1, batch=6)
        drawn = [min((0, 1), key=lambda s: (picture - pictures[s]).abs().max().item()) for picture in record.image]
        assert set(drawn) == {0, 1}, "six draws of two styles"
        each = [expected_losses(vgg, pictures[s], photo, styles[s])["style"] for s in drawn]
        assert record.losses["style"] == pytest.approx(sum(each) / 6, rel=1e-4)

    def test_the_update_follows_the_record(self, vgg):
        model, before = net(), snapshot(net())
        path = train_feed_forward(model, image(2, 3, 32, 32), striped(), vgg=vgg, steps=2, crop=16, batch=2)
        assert next(path).step == 0
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
        assert next(path).step == 1
        assert not all(torch.equal(value, before[name]) for name, value in model.state_dict().items())

    def test_is_adam_on_all_parameters(self, train):
        """The first update of Adam is the rate times the sign of the gradient, where that is not nearly zero."""
        model, before = net(), snapshot(net())
        train(model, image(2, 3, 32, 32), striped(), steps=1, rate=1e-3)
        for name, value in model.named_parameters():
            moved = (value.detach() - before[name]).abs()
            assert 0.5e-3 < moved.max() < 1.001e-3, name

    @pytest.mark.parametrize("norm", transfer.NORMS)
    def test_the_same_seeds_give_the_same_network(self, train, norm):
        models = []
        for seed in (1, 1, 2):
            models.append(net(norm))
            train(models[-1], image(3, 3, 32, 32), striped(), seed=seed)
        first, again, other = (torch.cat([p.detach().flatten() for p in model.parameters()]) for model in models)
        assert torch.equal(first, again)
        assert not torch.equal(first, other)

    def test_leaves_the_network_in_eval_mode(self, train):
        model = net("batch").eval()
        train(model, image(2, 3, 32, 32), striped(), steps=2)
        assert not model.training
        assert model.layers[0].norm.num_batches_tracked == 2, "but trains in training mode"

    def test_photographs_may_have_any_sizes(self, train):
        photographs = [image(1, 3, 16, 40), image(1, 3, 33, 17, seed=1)]
        assert train(net(), photographs, striped(), steps=3)[-1].image.shape == (2, 3, 16, 16)

    def test_crops_come_from_everywhere(self):
        ramp = torch.arange(20.0).reshape(1, 1, 1, 20).expand(1, 3, 16, 20)
        batches = transfer._batches([ramp], styles=1, batch=4, crop=16, steps=30, seed=0)
        corners = torch.cat([crops[:, 0, 0, 0] for crops, _ in batches])
        assert corners.unique().tolist() == [0.0, 1.0, 2.0, 3.0, 4.0]

    def test_every_photograph_is_used(self):
        plain = [torch.full((1, 3, 16, 16), float(i)) for i in range(3)]
        batches = transfer._batches(plain, styles=1, batch=4, crop=16, steps=10, seed=0)
        assert torch.cat([crops for crops, _ in batches]).unique().tolist() == [0.0, 1.0, 2.0]


class TestTrainingOneStyle:
    def setup_method(self):
        self.net = trained_looking(net("conditional", styles=2))
        self.photographs = image(2, 3, 32, 32)

    def test_changes_its_rows_and_nothing_else_bit_for_bit(self, train):
        train(self.net, self.photographs, [striped(), image(seed=5)])  # momentum of an earlier training must not matter
        new = self.net.add_style()
        before, pictures = snapshot(self.net), [self.net(self.photographs, style) for style in (0, 1)]
        train(self.net, self.photographs, striped(), only_style=new)
        for name, value in self.net.state_dict().items():
            rest = slice(0, 2) if ".norm." in name else slice(None)
            assert torch.equal(value[rest], before[name][rest]), name
            if ".norm." in name:
                assert not torch.equal(value[new], before[name][new]), name
        assert all(torch.equal(self.net(self.photographs, style), pictures[style]) for style in (0, 1))

    def test_leaves_what_may_be_trained_as_it_was(self, train):
        train(self.net, self.photographs, striped(), only_style=0, steps=2)
        assert all(p.requires_grad and p.grad is None for p in self.net.parameters())

    def test_lowers_the_loss(self, train):
        photo = image(1, 3, 16, 16)  # as large as the crop: every batch is the same
        path = train(self.net, photo, striped(), only_style=self.net.add_style(), steps=25, rate=2e-2)
        assert path[-1].losses["total"] < 0.95 * path[0].losses["total"]

    def test_is_adam_on_the_row(self, train, vgg):
        """The first update of Adam on the gradient of the loss written out."""
        twin = trained_looking(net("conditional", styles=2))
        train(self.net, image(1, 3, 16, 16), striped(), only_style=1, steps=1, rate=1e-2)
        picture = twin(image(1, 3, 16, 16), 1)
        found, wanted, manner = vgg(picture), vgg(image(1, 3, 16, 16)), vgg(striped())
        loss = relative(found["relu3_1"], wanted["relu3_1"])
        for layer in STYLE_LAYERS:
            styles = (summary(f[layer][0], "gram") for f in (found, manner))
            loss = loss + DEFAULT_STYLE_WEIGHT / 4 * relative(*styles)
        loss = loss + DEFAULT_VARIATION_WEIGHT * (picture.diff(dim=2).abs().mean() + picture.diff(dim=3).abs().mean())
        loss.backward()
        for name, value in twin.named_parameters():
            if ".norm." in name:
                moved, gradient = (self.net.get_parameter(name) - value)[1], value.grad[1]
                sure = gradient.abs() > 1e-4  # a shift before another norm has next to no gradient
                assert_close(moved[sure], -1e-2 * gradient[sure].sign(), rtol=0, atol=1e-4)


def default(function, name):
    return inspect.signature(function).parameters[name].default


DEFAULT_STYLE_WEIGHT = default(train_feed_forward, "style_weight")
DEFAULT_VARIATION_WEIGHT = default(train_feed_forward, "variation_weight")

BAD = torch.ones(1, 3, 32, 32, dtype=torch.uint8)
WRONG_STYLIZE = [
    ({"content": BAD}, TypeError, "content must be floating point"),
    ({"content": image(2, 3, 32, 32)}, ValueError, "one RGB image"),
    ({"content": image(1, 1, 32, 32)}, ValueError, "(1, 1, 32, 32)"),
    ({"content": image(1, 3, 12, 32)}, ValueError, "at least 16"),
    ({"style": BAD}, TypeError, "style"),
    ({"style": []}, ValueError, "got none"),
    ({"style": [image(), image(1, 4, 32, 32)]}, ValueError, "(1, 4, 32, 32)"),
    ({"style_weights": [1.0, 2.0]}, ValueError, "must be 1 finite"),
    ({"style_weights": [0.0]}, ValueError, "not all 0"),
    ({"style_weights": [-1.0]}, ValueError, "[-1.0]"),
    ({"style_weights": [float("nan")]}, ValueError, "finite"),
    ({"optimizer": "sgd"}, ValueError, "lbfgs, adam"),
    ({"start": "black"}, ValueError, "content, noise, style"),
    ({"color": "keep"}, ValueError, "coral"),
    ({"style_loss": "mean"}, ValueError, "gram, moments"),
    ({"content_layers": ["relu9_9"], "vgg": "random"}, ValueError, "relu9_9"),
    ({"content_layers": ["relu3_2"]}, ValueError, "it lacks relu3_2"),
    ({"steps": -1}, ValueError, "steps"),
]  # fmt: skip


@pytest.mark.parametrize("options, error, says", WRONG_STYLIZE, ids=range(len(WRONG_STYLIZE)))
def test_wrong_input_to_stylize_gets_a_clear_error_at_the_call(vgg, options, error, says):
    with pytest.raises(error) as caught:
        stylize_by_optimization(**{"content": image(), "style": striped(), "vgg": vgg} | options)
    assert says in str(caught.value)


PHOTOS = image(2, 3, 32, 32)
WRONG = [
    (lambda vgg: TransferNet("layer"), ValueError, "batch, instance, conditional"),
    (lambda vgg: TransferNet("instance", styles=2), ValueError, 'norm="conditional"'),
    (lambda vgg: TransferNet("conditional", styles=0), ValueError, "got 0"),
    (lambda vgg: net()(image(1, 3, 7, 20)), ValueError, "at least 8"),
    (lambda vgg: net()(image(1, 1, 20, 20)), ValueError, "(1, 1, 20, 20)"),
    (lambda vgg: net()(image(), 0), ValueError, "leave style out"),
    (lambda vgg: net("conditional", styles=2)(image()), ValueError, "say which style"),
    (lambda vgg: net("conditional", styles=2)(image(), 2), IndexError, "0 to 1"),
    (lambda vgg: net("conditional", styles=2)(image(), torch.ones(3)), ValueError, "blend"),
    (lambda vgg: net().add_style(), ValueError, "rows of styles"),
    (lambda vgg: net("batch").rows(0), ValueError, "rows of styles"),
    (lambda vgg: net("conditional").rows(1), IndexError, "0 to 0"),
    (lambda vgg: net("conditional").rows(-1), IndexError, "got -1"),
    (lambda vgg: train_feed_forward(net(), BAD, striped(), vgg=vgg, crop=16), TypeError, "photographs"),
    (lambda vgg: train_feed_forward(net(), [], striped(), vgg=vgg, crop=16), ValueError, "photographs must be one"),
    (lambda vgg: train_feed_forward(net(), PHOTOS, striped(), vgg=vgg, crop=33), ValueError, "crop of 33"),
    (lambda vgg: train_feed_forward(net(), PHOTOS, PHOTOS, vgg=vgg, crop=16), ValueError, "needs 1 style"),
    (lambda vgg: train_feed_forward(net("conditional", styles=3), PHOTOS, PHOTOS, vgg=vgg, crop=16), ValueError, "3"),
    (lambda vgg: train_feed_forward(net(), PHOTOS, striped(), vgg=vgg, crop=16, only_style=0), ValueError, "rows"),
    (lambda vgg: train_feed_forward(net("conditional"), PHOTOS, striped(), vgg=vgg, crop=16, only_style=1),
     IndexError, "0 to 0"),
    (lambda vgg: train_feed_forward(net(), PHOTOS, striped(), vgg=vgg, crop=16, style_loss="x"), ValueError, "gram"),
    (lambda vgg: train_feed_forward(net(), PHOTOS, striped(), vgg=vgg, crop=4), ValueError, "crop must be"),
    (lambda vgg: next(train_feed_forward(net(), PHOTOS, striped(), vgg=vgg, crop=8)), ValueError, "at least 16"),
    (lambda vgg: train_feed_forward(net(), PHOTOS, striped(), vgg=vgg, crop=16, batch=0), ValueError, "batch"),
]  # fmt: skip


@pytest.mark.parametrize("call, error, says", WRONG, ids=range(len(WRONG)))
def test_wrong_input_gets_a_clear_error(vgg, call, error, says):
    with pytest.raises(error) as caught:
        call(vgg)
    assert says in str(caught.value)


def test_defaults_have_the_types_they_should():
    expected = {"steps": int, "batch": int, "crop": int, "rate": float, "seed": int, "start": str, "color": str,
                "content_weight": float, "style_weight": float, "variation_weight": float, "width": int, "blocks": int,
                "content_layers": tuple, "style_layers": tuple}  # fmt: skip
    for function in (stylize_by_optimization, train_feed_forward, TransferNet):
        for name, parameter in inspect.signature(function).parameters.items():
            if name in expected and parameter.default is not None:
                assert type(parameter.default) is expected[name], f"{function.__name__}({name})"
