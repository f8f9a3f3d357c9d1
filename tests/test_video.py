"""Frames: nothing is lost, nothing flickers more than without smoothing, what moves stays sharp; the measure by hand.

The decoder is untrained, but for one test with the shipped one.
"""

import inspect

import pytest
import torch
from torch.testing import assert_close

from stylemoments import adain, color, gallery, video
from stylemoments.adain import StyleTransfer, region_moments, stylize
from stylemoments.vgg import VGGFeatures
from stylemoments.video import change, flicker, stylize_frames


@pytest.fixture(scope="module")
def model() -> StyleTransfer:
    """Its output varies by 0.1 around 0.5, so that clamping hides nothing."""
    torch.manual_seed(0)
    model = StyleTransfer(VGGFeatures(weights="random")).requires_grad_(False)
    last = model.decoder.layers[-1]
    last.weight /= 10 * model(scene(), STYLE).std((0, 2, 3))[:, None, None, None]
    last.bias += 0.5 - model(scene(), STYLE).mean((0, 2, 3))
    return model


def noise(*shape, seed=0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def scene(height=40, width=56) -> torch.Tensor:
    return (0.5 + 0.15 * torch.nn.functional.interpolate(noise(1, 3, 5, 7), (height, width), mode="bilinear")).clamp(
        0, 1
    )


def grainy(n=8) -> list[torch.Tensor]:
    """A scene that stands still under the noise of a camera."""
    return [(scene() + 0.02 * noise(1, 3, 40, 56, seed=i + 1)).clamp(0, 1) for i in range(n)]


def entering(n=8) -> list[torch.Tensor]:
    """Something bright enters from the right and changes the moments of the whole; the left stands still."""
    clip = [scene() for _ in range(n)]
    for i, frame in enumerate(clip):
        frame[..., 8:32, 56 - 3 * i :] = 0.95
    return clip


STYLE, OTHER = noise(1, 3, 32, 48, seed=9).sigmoid(), noise(1, 3, 40, 40, seed=10).sigmoid()


# ---------------------------------------------------------------------------------------- the measure


def flat(*values) -> list[torch.Tensor]:
    return [torch.full((1, 3, 4, 6), value) for value in values]


def test_flicker_by_hand():
    still = flat(0.5, 0.5, 0.5)
    assert flicker(still, still) == 0
    assert flicker(flat(0.2, 0.5, 0.4), still) == pytest.approx((0.3 + 0.1) / 2)
    assert flicker(flat(0.2, 0.5, 0.4), flat(0.5, 0.55, 0.52)) == pytest.approx((0.3 - 0.05 + 0.1 - 0.03) / 2)
    assert flicker(still, flat(0.5, 0.55, 0.5)) == pytest.approx(-0.05)


def test_flicker_looks_only_where_the_input_stands_still():
    inputs, outputs = flat(0.5, 0.5), flat(0.5, 0.5)
    inputs[1][:, 1, :2] = 0.7  # the upper half moves, in one color
    outputs[1][..., :2, :] = 0.9
    assert flicker(outputs, inputs) == 0
    outputs[1][:, :, 2:] = 0.6
    assert flicker(outputs, inputs) == pytest.approx(0.1)
    assert flicker(outputs, inputs, still=0.5) == pytest.approx((0.4 + 0.1) / 2 - 0.2 / 2 / 3)


def test_flicker_takes_frames_as_they_come():
    assert flicker(iter(flat(0.2, 0.4)), iter(flat(0.5, 0.5))) == pytest.approx(0.2)


@pytest.mark.parametrize("outputs, inputs", [(flat(0.5), flat(0.5)), ([], []), (flat(0, 0), flat(0.0, 1.0))])
def test_flicker_of_nothing_is_refused(outputs, inputs):
    with pytest.raises(ValueError, match="two frames or more"):
        flicker(outputs, inputs)


def test_flicker_of_clips_that_do_not_belong_together_is_refused():
    with pytest.raises(ValueError, match="argument 2 is longer"):
        flicker(flat(0.5, 0.5), flat(0.5, 0.5, 0.5))


def test_change_by_hand():
    before, frame = torch.zeros(1, 3, 9, 9), torch.zeros(1, 3, 9, 9)
    frame[0, :, 4, 4] = torch.tensor([0.25, -0.5, 0.0])
    changed = change(frame, before)
    assert changed.shape == (1, 1, 9, 9)
    assert changed[0, 0, 4, 4].item() == pytest.approx(0.5 / 25), "the largest color over 25 pixels"
    assert changed[0, 0, 4, 7] == 0


# ---------------------------------------------------------------------------------------- frames


def test_without_smoothing_each_frame_is_stylized_by_itself(model):
    clip = entering(3)
    options = {"weights": [2, 1], "alpha": 0.7}
    results = list(stylize_frames(model, iter(clip), [STYLE, OTHER], smoothing=0, **options))
    for result, frame in zip(results, clip, strict=True):
        assert_close(result, stylize(model, frame, [STYLE, OTHER], **options), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "clip, still", [(grainy(), [scene()] * 8), (entering(), entering())], ids=["grainy", "entering"]
)
def test_smoothing_takes_most_of_the_flicker_away(model, clip, still):
    """For the grainy clip, what the noise makes is measured against the scene without it."""
    found = {s: flicker(stylize_frames(model, clip, STYLE, smoothing=s), still) for s in (0.0, 0.5, 0.8)}
    assert found[0.0] > 0.005, "there must be something to smooth"
    assert found[0.5] < 0.7 * found[0.0]
    assert found[0.8] < 0.4 * found[0.0]


def test_the_shipped_decoder_flickers_less_with_smoothing():
    """A photograph into which something red is pushed, under noise."""
    shipped, photograph, style = adain.load(), gallery.load("coffee", 96), gallery.load("night-cafe", 96)
    clip = [photograph.clone() for _ in range(6)]
    for i, frame in enumerate(clip):
        frame[..., 16:56, : 6 * i] = torch.tensor([1.0, 0.2, 0.1])[:, None, None]
    grainy = [(frame + 0.02 * noise(*frame.shape, seed=i)).clamp(0, 1) for i, frame in enumerate(clip)]
    with_smoothing, without = (
        flicker(stylize_frames(shipped, grainy, style, smoothing=smoothing), clip) for smoothing in (0.8, 0.0)
    )
    assert 0 < with_smoothing < 0.5 * without


def test_moments_follow_slowly(model, monkeypatch):
    """Without blending of pixels: what an object at the right does to the wall at the left."""
    monkeypatch.setattr(video, "STILL", 1e-9)
    clip = entering()
    left = [frame[..., :16] for frame in clip]  # out of the decoder's sight of the object at first

    def of_the_left(smoothing):
        return flicker([out[..., :16] for out in stylize_frames(model, clip, STYLE, smoothing=smoothing)], left)

    assert of_the_left(0.8) < 0.5 * of_the_left(0.0)


def test_smoothing_by_its_formula(model):
    """A gray wall under slow light: the output of frame 2, from the moments and pixels of frames 1 and 2."""
    first, second = scene(), scene() + 0.01
    features = [model.encode(frame) for frame in (first, second)]
    style = model.encode_style(STYLE)
    now, before = (region_moments(f) for f in reversed(features))
    mean, deviation = 0.75 * before.mean + 0.25 * now.mean, 0.75 * before.deviation + 0.25 * now.deviation
    t = (features[1] - mean) / deviation * style.deviation + style.mean
    share = 0.75 * (1 - (0.01 / 0.05) ** 2)
    expected = share * stylize(model, first, style) + (1 - share) * model.decoder(t).clamp(0, 1)
    *_, result = stylize_frames(model, [first, second], STYLE, smoothing=0.75)
    assert_close(result, expected, rtol=0, atol=1e-4)


def test_what_moves_leaves_no_ghost(model):
    """Where the input changed, the output is made anew: only the moments remember."""
    clip = [torch.full((1, 3, 40, 56), 0.3) + 0.0 * scene() for _ in range(2)]
    clip[0][..., 8:32, 4:28] = 0.9
    clip[1][..., 8:32, 28:52] = 0.9
    *_, alone = stylize_frames(model, clip[1:], STYLE)
    *_, result = stylize_frames(model, clip, STYLE)
    moved = torch.zeros(1, 3, 40, 56, dtype=torch.bool)
    moved[..., 10:30, 6:26] = moved[..., 10:30, 30:50] = True
    assert (result - alone)[moved].abs().mean() < 0.1 * (alone[..., 4:28] - alone[..., 28:52]).abs().mean() + 0.02


def test_a_cut_starts_anew(model):
    clip = [0.1 * scene(), 0.1 * scene(), 1 - 0.1 * scene()]
    assert change(clip[2], clip[1]).mean() > video.CUT
    *_, last = stylize_frames(model, clip, STYLE, smoothing=0.9)
    assert_close(last, stylize(model, clip[2], STYLE), rtol=0, atol=1e-6)


def test_another_size_starts_anew(model):
    clip = [scene(), scene(37, 53), scene(37, 53)]
    masks = [torch.ones(1, 1, 8, 8)]
    results = list(stylize_frames(model, clip, STYLE, masks=masks))
    assert [result.shape for result in results] == [frame.shape for frame in clip]
    assert_close(results[1], stylize(model, clip[1], STYLE, masks=masks), rtol=0, atol=1e-6)


def test_the_style_is_encoded_once_and_frames_one_at_a_time(model, monkeypatch):
    encoded, taken = [], []
    encode = model.encode_style
    monkeypatch.setattr(model, "encode_style", lambda style: encoded.append(style) or encode(style))
    frames = (taken.append(i) or frame for i, frame in enumerate(entering(4)))
    results = stylize_frames(model, frames, [STYLE, OTHER])
    assert taken == []
    next(results)
    next(results)
    assert taken == [0, 1]
    assert len(encoded) == 2


def test_colors_are_kept(model):
    clip = grainy(3)
    kept = list(stylize_frames(model, clip, STYLE, color="luminance"))
    plain = list(stylize_frames(model, clip, STYLE))
    for result, frame, styled in zip(kept, clip, plain, strict=True):
        assert_close(result, color.keep_luminance(styled, frame))
    first = next(stylize_frames(model, clip, STYLE, color="coral"))
    assert_close(first, stylize(model, clip[0], STYLE, color="coral"), rtol=0, atol=1e-6)


WRONG = [
    ({"smoothing": 1.0}, "less than 1; got 1.0"),
    ({"smoothing": -0.1}, "got -0.1"),
    ({"alpha": 2}, "alpha goes from 0"),
    ({"color": "sepia"}, "got 'sepia'"),
]


@pytest.mark.parametrize("options, says", WRONG, ids=range(len(WRONG)))
def test_wrong_options_are_refused_at_the_call(model, options, says):
    with pytest.raises(ValueError, match=says):
        stylize_frames(model, [scene()], STYLE, **options)


def test_a_wrong_frame_is_refused_when_it_comes(model):
    results = stylize_frames(model, [scene(), scene()[0]], STYLE)
    next(results)
    with pytest.raises(ValueError, match=r"a frame is a float tensor \(B, 3, H, W\); got .*\(3, 40, 56\)"):
        next(results)


def test_defaults_have_the_types_they_should():
    """A stray comma once made a famous default a tuple."""
    expected = {"alpha": float, "smoothing": float, "still": float, "color": str}
    for function in (stylize_frames, flicker):
        for name, parameter in inspect.signature(function).parameters.items():
            if name in expected:
                assert type(parameter.default) is expected[name], f"{function.__name__}({name})"
