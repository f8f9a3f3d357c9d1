"""AdaIN's encoder–decoder: against the formulas written out in numpy, the laws it obeys, and the promises it makes.

Tolerances: 5e-5 in float32 unless a line says otherwise. The encoder has random weights and the decoder is untrained:
what is tested here holds for any weights. How well the shipped decoder does is on its model card; here it must do it.
"""

import inspect
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.testing import assert_close

from stylemoments import adain as room
from stylemoments import color, gallery, losses
from stylemoments.adain import Decoder, Moments, StyleTransfer, blend, region_moments, stylize
from stylemoments.vgg import VGGFeatures

CLOSE = {"rtol": 1e-5, "atol": 5e-5}  # a channel that is almost flat in the content amplifies rounding


def picture(height=40, width=48, *, seed=0, batch=1) -> torch.Tensor:
    """Soft colored blobs and noise: something with different moments in different places."""
    generator = torch.Generator().manual_seed(seed)
    blobs = torch.rand(batch, 3, 4, 5, generator=generator)
    blobs = nn.functional.interpolate(blobs, (height, width), mode="bilinear")
    return (blobs + 0.2 * torch.rand(batch, 3, height, width, generator=generator)).clamp(0, 1)


CONTENT, STYLE, OTHER = picture(), picture(56, 32, seed=1), picture(32, 64, seed=2)


def fresh(weights="random", **options) -> StyleTransfer:
    """A model whose output lies well inside [0, 1], so that clamping hides nothing."""
    torch.manual_seed(0)
    encoder = VGGFeatures(weights=weights)
    decoder = Decoder(tuple(encoder.channels.values()), **options) if options else None
    model = StyleTransfer(encoder, decoder).eval()
    last = model.decoder.layers[-1]
    with torch.no_grad():
        made = model(CONTENT, STYLE)
        last.weight /= 10 * made.std((0, 2, 3))[:, None, None, None]
        last.bias.zero_()
        last.bias += 0.5 - model(CONTENT, STYLE).mean((0, 2, 3))
    return model.requires_grad_(False)


@pytest.fixture(scope="module")
def model() -> StyleTransfer:
    return fresh()


def features(model, images) -> torch.Tensor:
    return model.encoder(images)["relu4_1"]


def adain_in_numpy(content: torch.Tensor, style: torch.Tensor) -> torch.Tensor:
    """Channel by channel, in float64."""
    content, style = content.double().numpy(), style.double().numpy()
    result = np.empty_like(content)
    for channel, (x, y) in enumerate(zip(content[0], style[0], strict=True)):
        sigma_x, sigma_y = math.sqrt(x.var(ddof=1) + 1e-5), math.sqrt(y.var(ddof=1) + 1e-5)
        result[0, channel] = sigma_y * (x - x.mean()) / sigma_x + y.mean()
    return torch.from_numpy(result).float()


# ---------------------------------------------------------------------------------------- the network


class TestDecoder:
    def test_is_the_published_one_at_full_width(self):
        """The widths of the authors' decoder, and of its ports."""
        decoder = Decoder((64, 128, 256, 512))
        convolutions = [layer for layer in decoder.layers if isinstance(layer, nn.Conv2d)]
        assert [(c.in_channels, c.out_channels) for c in convolutions] == [
            (512, 256), (256, 256), (256, 256), (256, 256), (256, 128), (128, 128), (128, 64), (64, 64), (64, 3),
        ]  # fmt: skip
        assert {c.padding_mode for c in convolutions} == {"reflect"}
        kinds = [type(layer).__name__ for layer in decoder.layers]
        assert kinds.count("ReLU") == 8 and kinds[-1] == "Conv2d", "all but the last convolution are followed by a ReLU"
        assert [i for i, kind in enumerate(kinds) if kind == "Upsample"] == [2, 11, 16]
        assert len(kinds) == 9 + 8 + 3, "and nothing else: no normalization"

    def test_mirrors_the_encoder(self, model):
        inner = [layer.out_channels for layer in model.decoder.layers if isinstance(layer, nn.Conv2d)][:-1]
        convolutions = [layer for layer in model.encoder.modules() if isinstance(layer, nn.Conv2d)]
        assert inner == [convolution.in_channels for convolution in convolutions[:0:-1]]

    @pytest.mark.parametrize("norm, kind", [("instance", "InstanceNorm2d"), ("batch", "BatchNorm2d")])
    def test_norms_for_comparison_stand_before_each_relu(self, norm, kind):
        kinds = [type(layer).__name__ for layer in Decoder(norm=norm).layers]
        assert kinds.count(kind) == 8
        assert all(kinds[i + 1] == "ReLU" and kinds[i - 1] == "Conv2d" for i, k in enumerate(kinds) if k == kind)

    def test_instance_norm_undoes_what_adain_did(self):
        """A first instance norm removes the scale of its input: the reason why the decoder has none."""
        x = picture(seed=3).repeat(1, 4, 1, 1)[:, :8]
        for norm, blind in (("instance", True), ("none", False)):
            torch.manual_seed(0)
            first = Decoder((2, 4, 8, 8), norm=norm).layers[:3]
            assert torch.allclose(first(x), first(3 * x), atol=1e-2) == blind

    def test_takes_more_channels(self):
        assert Decoder(in_channels=256)(torch.zeros(1, 256, 2, 3)).shape == (1, 3, 16, 24)

    def test_two_networks_never_share_one(self):
        first, second = StyleTransfer(VGGFeatures(weights="random")), StyleTransfer(VGGFeatures(weights="random"))
        pairs = zip(first.decoder.parameters(), second.decoder.parameters(), strict=True)
        assert all(a.data_ptr() != b.data_ptr() for a, b in pairs)


def seen(function, x: torch.Tensor, pixel: int) -> tuple[int, int]:
    """First and last column that one column of the output depends on."""
    x = x.clone().requires_grad_()
    function(x)[0, :, x.shape[-2] // 2, pixel].sum().backward()
    columns = x.grad.abs().sum((0, 1, 2)).nonzero().flatten()
    return columns.min().item(), columns.max().item()


def test_margins_cover_what_encoder_and_decoder_see():
    """Positive weights, and means for maxima, so that no gradient is lost on the way. Radius: 30 pixels each.

    By hand, encoder: 2 convolutions of radius 1 at full size, 2 at half, 4 at a quarter, 1 at an eighth make
    2 + 2·2 + 4·4 + 1·8 = 30. The decoder has the same plan.
    """
    encoder, decoder = VGGFeatures(weights="random", pooling="average"), Decoder()
    for parameter in (*encoder.parameters(), *decoder.parameters()):
        parameter.data.abs_()
    x = torch.ones(1, 3, 16, 200)
    first, last = seen(lambda x: encoder(x)["relu4_1"].repeat_interleave(8, 2), x, 12)  # cell 12: pixels 96 to 103
    assert (first, last) == (96 - 30, 103 + 30)
    f = torch.ones(1, 128, 4, 25)
    first, last = seen(lambda f: decoder(f), f, 96)  # the first pixel of cell 12
    assert (first, last) == (12 - 4, 12 + 3), "30 pixels left of cell 12 lies cell 8, and 30 to the right cell 15"
    assert room.MARGIN * room.CELL >= 30


def test_encoder_is_frozen_and_the_decoder_learns():
    model = StyleTransfer(VGGFeatures(weights="random")).train()
    assert model.training and model.decoder.training and not model.encoder.training
    sum(room.losses(model, CONTENT, STYLE[..., :32, :]).values()).backward()
    assert all(p.grad is None for p in model.encoder.parameters())
    assert all(p.grad.abs().sum() > 0 for p in model.decoder.parameters())


# ---------------------------------------------------------------------------------------- the method


def test_against_adain_in_numpy(model):
    t = adain_in_numpy(features(model, CONTENT), features(model, STYLE))
    expected = model.decoder(t)
    assert 0 < expected.min() and expected.max() < 1, "the test must not depend on the clamp"
    assert_close(model(CONTENT, STYLE), expected, **CLOSE)
    assert_close(stylize(model, CONTENT, STYLE), expected, **CLOSE)


def test_output_is_clamped_only_when_stylized(model):
    wild = fresh()
    wild.decoder.layers[-1].weight *= 100
    assert wild(CONTENT, STYLE).min() < 0
    result = stylize(wild, CONTENT, STYLE)
    assert result.min() == 0 and result.max() == 1


@pytest.mark.parametrize("alpha", [0.0, 0.25, 1.0])
def test_alpha_mixes_features(model, alpha):
    c, s = features(model, CONTENT), features(model, STYLE)
    expected = model.decoder((1 - alpha) * c + alpha * adain_in_numpy(c, s))
    assert_close(stylize(model, CONTENT, STYLE, alpha=alpha), expected, **CLOSE)
    assert_close(model(CONTENT, STYLE, alpha=alpha), expected, **CLOSE)


def test_a_picture_in_its_own_style_is_its_reconstruction(model):
    for size in ((40, 48), (37, 53)):
        content = picture(*size)
        assert_close(stylize(model, content, content), stylize(model, content, STYLE, alpha=0), **CLOSE)


@pytest.mark.parametrize("height, width", [(37, 53), (16, 16), (17, 31), (64, 33)])
def test_any_size_comes_back_exactly(model, height, width):
    content, style = picture(height, width), picture(width, height, seed=1)
    result = stylize(model, content, style)
    assert result.shape == content.shape and result.is_contiguous() and not result.requires_grad
    assert model(content, style).shape == content.shape


def test_what_was_reflected_counts_in_no_moments(model):
    """A last column of cells of which only 3 of 8 pixels exist counts as 3/8 of a cell."""
    content = picture(40, 51)
    f = model.encode(content)
    assert f.shape[-2:] == (5, 7)
    weight = np.ones((5, 7))
    weight[:, -1] = 3 / 8
    x = f[0, 7].double().numpy()
    mean = (weight * x).sum() / weight.sum()
    got = model.encode_style(content)
    assert got.mean[0, 7].item() == pytest.approx(mean, rel=1e-5)
    variance = (weight * (x - mean) ** 2).sum() / (weight.sum() - (weight**2).sum() / weight.sum())
    assert got.deviation[0, 7].item() == pytest.approx(math.sqrt(variance + 1e-5), rel=1e-5)


def test_each_picture_of_a_batch_is_styled_by_itself(model):
    contents, styles = picture(batch=3), picture(32, 32, seed=1, batch=3)
    alone = [stylize(model, contents[i : i + 1], styles[i : i + 1]) for i in range(3)]
    assert_close(stylize(model, contents, styles), torch.cat(alone), **CLOSE)
    alone = [stylize(model, content[None], [STYLE, OTHER]) for content in contents]
    assert_close(stylize(model, contents, [STYLE, OTHER]), torch.cat(alone), **CLOSE)


def test_a_style_is_encoded_once_and_used_again(model, monkeypatch):
    encoded = model.encode_style(STYLE)
    assert isinstance(encoded, Moments) and encoded.mean.shape == encoded.deviation.shape == (1, 128, 1, 1)
    expected = stylize(model, CONTENT, STYLE)
    shapes = []
    monkeypatch.setattr(model.encoder, "forward", lambda x, f=model.encoder.forward: (shapes.append(x.shape), f(x))[1])
    assert_close(stylize(model, CONTENT, encoded), expected, atol=0, rtol=0)
    assert shapes == [CONTENT.shape], "only the content may be encoded again"


# ---------------------------------------------------------------------------------------- several styles


def test_one_hot_weights_choose_one_style(model):
    for weights, style in (([1, 0], STYLE), ([0.0, 2.5], OTHER)):
        expected = stylize(model, CONTENT, style)
        assert_close(stylize(model, CONTENT, [STYLE, OTHER], weights=weights), expected, **CLOSE)


def test_blending_styles_is_blending_their_feature_maps(model):
    c = features(model, CONTENT)
    maps = [adain_in_numpy(c, features(model, style)) for style in (STYLE, OTHER)]
    expected = model.decoder(0.3 * maps[0] + 0.7 * maps[1])
    assert_close(stylize(model, CONTENT, [STYLE, OTHER], weights=[0.3, 0.7]), expected, **CLOSE)
    assert_close(stylize(model, CONTENT, [STYLE, OTHER], weights=(3, 7)), expected, **CLOSE)
    equal = stylize(model, CONTENT, [STYLE, OTHER], weights=[1, 1])
    assert_close(stylize(model, CONTENT, [STYLE, OTHER]), equal, **CLOSE)


def moments(mean, deviation) -> Moments:
    return Moments(*(torch.tensor(x).reshape(1, -1, 1, 1) for x in (mean, deviation)))


def test_blends_by_hand():
    a, b = moments([0.0, 2.0], [1.0, 1.0]), moments([4.0, 2.0], [3.0, 5.0])
    half = blend([a, b])
    assert half.mean.flatten().tolist() == [2, 2] and half.deviation.flatten().tolist() == [2, 3]
    away = blend([a, b], [2, -1])  # 2a - b
    assert away.mean.flatten().tolist() == [-4, 2]
    assert away.deviation.flatten().tolist() == [0, 0], "-1 and -3, which no deviation is"


@pytest.mark.parametrize("weights", [[1.0], [1, 2, 3], [0, 0], [1, -1], [1, -2], [math.nan, 1], [math.inf, 1], []])
def test_weights_that_mean_nothing_are_refused(weights):
    a = moments([0.0], [1.0])
    with pytest.raises(ValueError, match=r"one weight per style; got|positive sum.*got"):
        blend([a, a], weights)


# ---------------------------------------------------------------------------------------- regions


class TestRegionMoments:
    x = picture(6, 7, seed=4)

    def check(self, got: Moments, selected: np.ndarray):
        assert_close(got.mean.flatten(), torch.from_numpy(selected.mean(-1)).float(), **CLOSE)
        deviation = np.sqrt(selected.var(-1, ddof=1) + 1e-5)
        assert_close(got.deviation.flatten(), torch.from_numpy(deviation).float(), **CLOSE)

    def test_everywhere(self):
        self.check(region_moments(self.x), self.x[0].flatten(1).double().numpy())

    @pytest.mark.parametrize("share", [1.0, 0.5, 1e-3])
    def test_of_a_part_are_those_of_its_cells(self, share):
        """However little its cells count."""
        inside = torch.rand(1, 1, 6, 7, generator=torch.Generator().manual_seed(5)) > 0.5
        selected = self.x[0, :, inside[0, 0]].double().numpy()
        self.check(region_moments(self.x, share * inside.float()), selected)

    def test_large_mean_does_not_eat_the_deviation(self):
        shifted = region_moments((self.x + 1e4).double())
        assert_close(region_moments(self.x + 1e4).deviation.double(), shifted.deviation, rtol=1e-2, atol=0)

    @pytest.mark.parametrize("cells", [0, 1])
    def test_too_small_a_region_is_refused(self, cells):
        weight = torch.zeros(1, 1, 6, 7)
        weight.view(-1)[:cells] = 0.3
        with pytest.raises(ValueError, match="at least two cells of 8 × 8"):
            region_moments(self.x, weight)


def half_mask(height=40, width=48) -> torch.Tensor:
    mask = torch.zeros(1, 1, height, width)
    mask[..., : width // 2] = 1
    return mask


def test_a_mask_of_ones_is_no_mask(model):
    for size in ((40, 48), (37, 53)):
        content = picture(*size)
        expected = stylize(model, content, STYLE)
        for mask in (torch.ones(1, 1, *size), torch.ones(1, 1, 3, 200)):
            assert_close(stylize(model, content, [STYLE], masks=[mask]), expected, **CLOSE)


def test_a_mask_of_one_half_is_alpha_one_half(model):
    half = stylize(model, CONTENT, STYLE, masks=torch.full((1, 1, 10, 10), 0.5))
    assert_close(half, stylize(model, CONTENT, STYLE, alpha=0.5), **CLOSE)


def test_each_half_gets_the_moments_of_its_style(model):
    left = half_mask()
    styles = [model.encode_style(style) for style in (STYLE, OTHER)]
    f = model.encode(CONTENT)
    regions = room.regions_of(CONTENT, styles, masks=[left, 1 - left])
    t = room.restyle(f, regions, [region_moments(f, region.weight) for region in regions])
    for half, style in ((slice(0, 3), styles[0]), (slice(3, 6), styles[1])):
        deviation, mean = torch.std_mean(t[..., half], (-2, -1), keepdim=True)
        assert_close(mean, style.mean, rtol=1e-4, atol=1e-4)
        varied = f[..., half].std((-2, -1), keepdim=True) > 0.1  # a channel that is flat in the content stays flat
        assert varied.float().mean() > 0.2
        assert_close(deviation[varied], style.deviation[varied], rtol=1e-3, atol=1e-4)
    t_left = adain_in_numpy(f[..., :3], features(model, STYLE))
    t_right = adain_in_numpy(f[..., 3:], features(model, OTHER))
    expected = model.decoder(torch.cat([t_left, t_right], -1))
    assert_close(stylize(model, CONTENT, [STYLE, OTHER], masks=[left, 1 - left]), expected, **CLOSE)


def test_what_no_mask_covers_stays_content(model):
    f = features(model, CONTENT)
    expected = model.decoder(torch.cat([adain_in_numpy(f[..., :3], features(model, STYLE)), f[..., 3:]], -1))
    assert_close(stylize(model, CONTENT, STYLE, masks=[half_mask()]), expected, **CLOSE)


def test_where_masks_overlap_they_share(model):
    ones = torch.ones(1, 1, 5, 6)
    shared = stylize(model, CONTENT, [STYLE, OTHER], masks=[ones, ones])
    assert_close(shared, stylize(model, CONTENT, [STYLE, OTHER], weights=[1, 1]), **CLOSE)


@pytest.mark.parametrize("size", [(5, 6), (40, 48), (160, 192)])
def test_masks_may_have_any_resolution(model, size):
    expected = stylize(model, CONTENT, [STYLE], masks=[half_mask()])
    assert_close(stylize(model, CONTENT, [STYLE], masks=[half_mask(*size)]), expected, **CLOSE)


def test_masks_become_the_mean_over_each_cell():
    mask = torch.zeros(1, 1, 16, 24)
    mask[..., :2, :4] = 1  # 8 of the 64 pixels of the first cell
    assert room.cells(mask, (16, 24)).tolist() == [[[[0.125, 0, 0], [0, 0, 0]]]]
    assert room.cells(torch.ones(1, 1, 9, 9), (17, 18)).tolist() == [[[[1, 1, 1]] * 3]], "an edge is no shadow"


def test_a_style_may_be_a_region_of_a_picture(model):
    mask = half_mask(32, 64)
    got, whole = model.encode_style(OTHER, mask=mask), region_moments(features(model, OTHER)[..., :4])
    assert_close(got.mean, whole.mean, **CLOSE)
    assert_close(got.deviation, whole.deviation, **CLOSE)


# ---------------------------------------------------------------------------------------- color


def test_keeping_the_luminance_only(model):
    result = stylize(model, CONTENT, STYLE, color="luminance")
    plain = stylize(model, CONTENT, STYLE)
    assert_close(result, color.keep_luminance(plain, CONTENT))
    assert_close(color.luminance(result), color.luminance(plain), atol=1e-5, rtol=0)


def test_coral_gives_the_style_the_contents_colors_first(model):
    result = stylize(model, CONTENT, STYLE, color="coral")
    assert_close(result, stylize(model, CONTENT, color.coral(STYLE, CONTENT).clamp(0, 1)), atol=0, rtol=0)
    contents = picture(batch=2)
    alone = [stylize(model, content[None], STYLE, color="coral") for content in contents]
    assert_close(stylize(model, contents, STYLE, color="coral"), torch.cat(alone), **CLOSE)


# ---------------------------------------------------------------------------------------- tiles


@pytest.mark.parametrize("size, tile", [((160, 208), 64), ((160, 208), 24), ((147, 203), 64), ((33, 300), 128)])
def test_tiles_make_the_same_picture(model, size, tile):
    content = picture(*size, batch=2)
    expected = stylize(model, content, [STYLE, OTHER], weights=[2, 1], alpha=0.8)
    result = stylize(model, content, [STYLE, OTHER], weights=[2, 1], alpha=0.8, tile=tile)
    assert_close(result, expected, atol=1e-4, rtol=0)
    assert result.is_contiguous()


def test_tiles_without_margins_would_not(model, monkeypatch):
    """The test above can fail."""
    content = picture(160, 208)
    expected = stylize(model, content, STYLE)
    monkeypatch.setattr(room, "MARGIN", 1)
    assert (stylize(model, content, STYLE, tile=64) - expected).abs().max() > 1e-3


def test_tiles_with_masks_and_the_moments_of_the_whole(model):
    content, mask = picture(96, 160), half_mask(96, 160)
    expected = stylize(model, content, [STYLE, OTHER], masks=[mask, 1 - mask])
    assert_close(stylize(model, content, [STYLE, OTHER], masks=[mask, 1 - mask], tile=64), expected, atol=1e-4, rtol=0)


def test_tiles_bound_the_pixels_that_are_computed_at_a_time(model, monkeypatch):
    shapes = []
    monkeypatch.setattr(model.encoder, "forward", lambda x, f=model.encoder.forward: (shapes.append(x.shape), f(x))[1])
    stylize(model, picture(160, 208), model.encode_style(STYLE), tile=64)
    assert len(shapes) == 1 + 3 * 4
    assert max(max(shape[-2:]) for shape in shapes[1:]) == 64 + 2 * 32


def test_tiles_cover_every_cell_once():
    covered = torch.zeros(20, 31)
    for (rows, columns), (rows_around, columns_around) in room.tiles((20, 31), 64):
        covered[rows, columns] += 1
        assert rows_around.start == max(rows.start - 4, 0) and columns_around.stop == min(columns.stop + 4, 31)
    assert (covered == 1).all()


def test_progress_counts_the_tiles_of_both_passes(model):
    seen = []
    stylize(model, picture(64, 128), STYLE, tile=64, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]
    seen.clear()
    stylize(model, CONTENT, STYLE, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 2), (2, 2)]


def test_a_decoder_with_batch_norm_works_in_tiles_and_one_with_instance_norm_refuses():
    content = picture(96, 96)
    batch = fresh(norm="batch")
    assert_close(stylize(batch, content, STYLE, tile=48), stylize(batch, content, STYLE), atol=1e-4, rtol=0)
    with pytest.raises(ValueError, match="instance norm"):
        stylize(fresh(norm="instance"), content, STYLE, tile=48)


def test_batch_norm_does_not_learn_from_what_is_stylized():
    model = fresh(norm="batch")
    expected, before = stylize(model, CONTENT, STYLE), {k: v.clone() for k, v in model.state_dict().items()}
    assert_close(stylize(model.train(), CONTENT, STYLE), expected, atol=0, rtol=0)
    assert model.decoder.training
    assert_close(dict(model.state_dict()), before, atol=0, rtol=0)


# ---------------------------------------------------------------------------------------- training


@pytest.mark.parametrize("scaling", ["sum", "mean"])
def test_losses_against_the_formulas_in_numpy(model, scaling):
    content, style = picture(batch=2), picture(seed=1, batch=2)
    got = room.losses(model, content, style, scaling=scaling)
    f_style, made, t = model.encoder(style), [], []
    for i in range(2):
        t.append(adain_in_numpy(features(model, content[i : i + 1]), f_style["relu4_1"][i : i + 1]))
    t = torch.cat(t)
    made = model.encoder(model.decoder(t))
    assert got["content"].item() == pytest.approx(np.square((made["relu4_1"] - t).numpy()).mean(), rel=1e-4)
    expected = 0.0
    for layer in ("relu1_1", "relu2_1", "relu3_1", "relu4_1"):
        a, b = (f[layer].double().numpy() for f in (made, f_style))
        of_means = np.square(a.mean((2, 3)) - b.mean((2, 3)))  # B C
        of_deviations = np.square(np.sqrt(a.var((2, 3)) + 1e-5) - np.sqrt(b.var((2, 3)) + 1e-5))
        over_channels = getattr(np, scaling)(of_means, 1) + getattr(np, scaling)(of_deviations, 1)
        expected += over_channels.mean()
    assert got["style"].item() == pytest.approx(expected, rel=1e-4)


def test_the_published_weights():
    assert room.SCALINGS == {"sum": 0.01, "mean": 10.0}
    parameters = inspect.signature(room.train).parameters
    published = {"batch": 8, "crop": 256, "rate": 1e-4, "decay": 5e-5}
    assert {name: parameters[name].default for name in published} == published


@pytest.mark.parametrize("scaling", ["sum", "mean"])
def test_training_lowers_the_loss(scaling):
    torch.manual_seed(0)
    model = StyleTransfer(VGGFeatures(weights="random"))
    before = {name: value.clone() for name, value in model.encoder.state_dict().items()}
    content, style = picture(32, 32), picture(32, 32, seed=1)  # of the crop's size, so that each step sees the same
    records = list(room.train(model, [content], [style], steps=20, batch=1, crop=32, rate=2e-3, scaling=scaling))
    assert [record.step for record in records] == list(range(1, 21))
    assert records[-1].losses["total"] < 0.8 * records[0].losses["total"]
    for record in records:
        weighted = record.losses["content"] + room.SCALINGS[scaling] * record.losses["style"]
        assert record.losses["total"] == pytest.approx(weighted, rel=1e-5)
    assert_close(dict(model.encoder.state_dict()), before, atol=0, rtol=0)
    assert not model.decoder.training


def trained(**options) -> tuple[list[float], torch.Tensor]:
    torch.manual_seed(0)
    model = StyleTransfer(VGGFeatures(weights="random"))
    pools = [picture(24, 40, seed=seed) for seed in range(3)], [picture(40, 24, seed=seed) for seed in (3, 4)]
    records = list(room.train(model, *pools, **({"steps": 2, "batch": 2, "crop": 16} | options)))
    return [record.losses["total"] for record in records], model.decoder.layers[0].weight


def test_training_repeats_with_its_seed():
    assert_close(trained(), trained(), atol=0, rtol=0)
    assert trained(seed=1)[0] != trained()[0]


def test_training_with_settings_of_ones_own():
    assert trained(style_weight=0.0)[0][0] < trained(style_weight=1.0)[0][0]
    assert_close(trained(rate=0.0)[1], trained(steps=0)[1], atol=0, rtol=0)
    trained(size=48, crop=48)


def test_the_rate_falls_as_published(monkeypatch):
    rates, step = [], torch.optim.Adam.step

    def recorded(optimizer):
        rates.append(optimizer.param_groups[0]["lr"])
        step(optimizer)

    monkeypatch.setattr(torch.optim.Adam, "step", recorded)
    trained(steps=3, rate=1e-3, decay=0.5)
    assert rates == pytest.approx([1e-3, 1e-3 / 1.5, 1e-3 / 2])


def test_a_stopped_training_leaves_a_model_in_eval_mode():
    model = StyleTransfer(VGGFeatures(weights="random"))
    for record in room.train(model, [CONTENT], [STYLE], steps=100, batch=1, crop=16):
        assert not model.decoder.training, "the loop may look at results"
        if record.step == 2:
            break
    assert not model.decoder.training


# ---------------------------------------------------------------------------------------- weights


@pytest.fixture
def decoder_files(model, tmp_path):
    """The decoder of the fixture as our file and as one of the PyTorch port, whose layers have other numbers."""
    from safetensors.torch import save_file

    state = model.decoder.state_dict()
    save_file(state, tmp_path / "decoder.safetensors")
    numbers = (1, 5, 8, 11, 14, 18, 21, 25, 28)  # of the port: paddings are layers of their own
    parts = [f"{number}.{part}" for number in numbers for part in ("weight", "bias")]
    torch.save(dict(zip(parts, state.values(), strict=True)), tmp_path / "decoder.pth")
    return tmp_path


@pytest.mark.parametrize("name", ["decoder.safetensors", "decoder.pth"])
def test_a_decoder_is_loaded_from_a_file(model, decoder_files, name):
    loaded = room.load("random", decoder=decoder_files / name)
    assert_close(dict(loaded.decoder.state_dict()), dict(model.decoder.state_dict()), atol=0, rtol=0)
    assert not loaded.training


def test_a_decoder_in_half_precision_is_loaded_in_single(model, decoder_files):
    from safetensors.torch import save_file

    halves = {name: value.half() for name, value in model.decoder.state_dict().items()}
    save_file(halves, decoder_files / "half.safetensors")
    loaded = room.load("random", decoder=decoder_files / "half.safetensors")
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}


@pytest.mark.parametrize("painting", ["night-cafe", "pere-tanguy"])
@pytest.mark.parametrize("photograph", ["temple", "coffee"])
def test_the_shipped_decoder_moves_photographs_towards_paintings(photograph, painting):
    """Pictures that it never saw: most of the distance in style is gone, and without style the photograph is back."""
    shipped, photograph, painting = room.load(), gallery.load(photograph, 128), gallery.load(painting, 128)
    wanted = shipped.encoder(painting)
    before, after = (
        losses.style_loss(shipped.encoder(images), wanted)
        for images in (photograph, stylize(shipped, photograph, painting))
    )
    assert after < 0.6 * before
    back = stylize(shipped, photograph, painting, alpha=0)
    assert torch.corrcoef(torch.stack([back.flatten(), photograph.flatten()]))[0, 1] > 0.7


def test_weights_that_cannot_be_loaded(decoder_files):
    with pytest.raises(ValueError, match=r"does not fit an encoder with \(64, 128, 256, 512\) channels"):
        room.load("random-wide", decoder=decoder_files / "decoder.pth")
    with pytest.raises(ValueError, match="pass decoder="):
        room.load("full")
    with pytest.raises(FileNotFoundError, match="no file lost.pth"):
        room.load("full", decoder="lost.pth")
    with pytest.raises(ValueError, match="weights"):
        room.load("huge", decoder=decoder_files / "decoder.pth")


# ---------------------------------------------------------------------------------------- errors


ONES = torch.ones(1, 1, 8, 8)
WRONG = [
    (lambda m: stylize(m, CONTENT, STYLE, alpha=1.5), "alpha goes from 0.*got 1.5"),
    (lambda m: stylize(m, CONTENT, STYLE, alpha=-0.1), "got -0.1"),
    (lambda m: stylize(m, CONTENT, STYLE, alpha=math.nan), "got nan"),
    (lambda m: stylize(m, CONTENT, STYLE, color="sepia"), "style, coral, luminance; got 'sepia'"),
    (lambda m: stylize(m, CONTENT, STYLE, tile=100), "multiple of 8 pixels.*got 100"),
    (lambda m: stylize(m, CONTENT, STYLE, tile=0), "got 0"),
    (lambda m: stylize(m, CONTENT, []), "no style"),
    (lambda m: stylize(m, CONTENT, [STYLE, OTHER], weights=[1]), "got 1 weights for 2 styles"),
    (lambda m: stylize(m, CONTENT, [STYLE, OTHER], weights=[1, 1], masks=[ONES, ONES]), "not both"),
    (lambda m: stylize(m, CONTENT, [STYLE, OTHER], masks=[ONES]), "got 1 masks for 2 styles"),
    (lambda m: stylize(m, CONTENT, STYLE, masks=[ONES[0]]), r"\(1 or 1, 1, H, W\); got \(1, 8, 8\)"),
    (lambda m: stylize(m, CONTENT, STYLE, masks=[255 * ONES]), "got 255 to 255"),
    (lambda m: stylize(m, CONTENT, STYLE, masks=[0 * ONES]), "enlarge its mask"),
    (lambda m: stylize(m, CONTENT, m.encode_style(STYLE), color="coral"), "pass the picture"),
    (lambda m: stylize(m, CONTENT, picture(batch=2)), "as a list"),
    (lambda m: stylize(m, CONTENT[0], STYLE), r"the content is a float tensor \(B, 3, H, W\); got .*\(3, 40, 48\)"),
    (lambda m: stylize(m, CONTENT, STYLE[:, :1]), "the style is a float tensor"),
    (lambda m: stylize(m, CONTENT, ["starry.jpg"]), "got str"),
    (lambda m: stylize(m, CONTENT[..., :15], STYLE), "the content needs at least 16 pixels"),
    (lambda m: stylize(m, 255 * CONTENT, STYLE), "Divide bytes by 255"),
    (lambda m: stylize(m, CONTENT * math.nan, STYLE), "got nan to nan"),
    (lambda m: stylize(m, (255 * CONTENT).byte(), STYLE), "torch.uint8"),
    (lambda m: room.losses(m, CONTENT, STYLE, scaling="max"), "sum, mean; got 'max'"),
    (lambda m: room.train(m, [CONTENT], [STYLE], steps=1, scaling="max"), "got 'max'"),
    (lambda m: room.train(m, [CONTENT], [STYLE], steps=1), r"at least 256 pixels.*\(1, 3, 40, 48\)"),
    (lambda m: room.train(m, [CONTENT], [], steps=1, crop=16), "got none"),
    (lambda m: room.train(m, [CONTENT], [STYLE], steps=1, crop=20), "multiple of 8 pixels.*got 20"),
    (lambda m: Decoder((16, 32, 64)), r"a width for each.*got \(16, 32, 64\)"),
    (lambda m: Decoder(norm="layer"), "none, instance, batch; got 'layer'"),
    (lambda m: StyleTransfer(VGGFeatures(["relu4_1"], weights="random")), "relu1_1, relu2_1, relu3_1 is missing"),
]


@pytest.mark.parametrize("call, says", WRONG, ids=range(len(WRONG)))
def test_wrong_input_gets_a_clear_error(model, call, says):
    with pytest.raises(ValueError, match=says):
        call(model)


def test_defaults_have_the_types_they_should():
    """A stray comma once made a famous default a tuple."""
    expected = {"alpha": float, "color": str, "norm": str, "scaling": str, "batch": int, "crop": int, "rate": float,
                "decay": float, "seed": int, "weights": (str, type(None)), "tile": type(None)}  # fmt: skip
    for function in (stylize, room.train, room.losses, room.load, Decoder, StyleTransfer.forward):
        for name, parameter in inspect.signature(function).parameters.items():
            if name in expected and parameter.default is not parameter.empty:
                assert isinstance(parameter.default, expected[name]), f"{function.__name__}({name})"


def test_losses_are_the_rooms(model):
    """The same function that chapter 2 optimizes an image with."""
    got = room.losses(model, CONTENT, STYLE[..., :32, :], scaling="mean")["style"]
    with torch.no_grad():
        made = model.encoder(model(CONTENT, STYLE[..., :32, :]))
        assert_close(got, losses.style_loss(made, model.encoder(STYLE[..., :32, :])), rtol=1e-4, atol=1e-6)
