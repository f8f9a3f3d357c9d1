"""Panoramas: one window is a picture, many agree on their mean, and a reference beside them is left alone."""

from itertools import pairwise

import pytest
import torch
from torch.testing import assert_close

from stylemoments import diffusion, panorama
from stylemoments.panorama import averaged, cut, windows
from stylemoments.style_aligned import StyleAligned

PROMPT, REFERENCE = "a cat in neon light style", "an owl in watercolor style"
OPTIONS = {"steps": 3, "guidance": 3.0, "seed": 4}  # random pipelines draw 16 x 16 pixels, 2 x 2 to a latent


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def last(pipe, **options):
    *_, step = panorama.sample(pipe, PROMPT, **{**OPTIONS, "stride": 4, **options})
    return step


# ------------------------------------------------------------------------------------- windows


@pytest.mark.parametrize("length", range(5, 17))
@pytest.mark.parametrize("stride", range(1, 6))
def test_windows_cover_every_place_and_end_flush(length, stride):
    starts, side = windows(length, 5, stride), 5
    assert {place for start in starts for place in range(start, start + side)} == {*range(length)}
    assert starts[0] == 0 and starts[-1] == length - side
    assert all(0 < b - a <= stride for a, b in pairwise(starts))
    assert all(b - a == stride for a, b in pairwise(starts[:-1]))


def test_windows_by_hand():
    assert windows(8, 8, 3) == [0]
    assert windows(16, 8, 8) == [0, 8]
    assert windows(16, 8, 4) == [0, 4, 8]
    assert windows(17, 8, 8) == [0, 8, 9]


@pytest.mark.parametrize("settings", [(7, 8, 1), (8, 0, 1), (16, 8, 0), (16, 8, 9)])
def test_windows_that_would_not_cover_are_refused(settings):
    with pytest.raises(ValueError, match="must fit into" if settings[1] != 8 or settings[0] < 8 else "stride"):
        windows(*settings)


def test_cutting_and_averaging_undo_each_other():
    whole = normal(1, 3, 5, 9)
    places = [(top, left) for top in windows(5, 4, 1) for left in windows(9, 4, 3)]
    views = cut(whole, places, (4, 4))
    assert torch.equal(views[4], whole[0, :, 1:5, 3:7]) and len(views) == 6
    assert_close(averaged(views, places, (5, 9)), whole)


def test_a_mean_by_hand_and_place_by_place():
    views, places = normal(3, 2, 2, 3), [(0, 0), (0, 2), (0, 3)]
    found = averaged(views, places, (2, 6))
    for column, seen in enumerate([[(0, 0)], [(0, 1)], [(0, 2), (1, 0)], [(1, 1), (2, 0)], [(1, 2), (2, 1)], [(2, 2)]]):
        assert_close(found[0, :, :, column], sum(views[w, :, :, x] for w, x in seen) / len(seen))
    with pytest.raises(ValueError, match="leave 2 places"):
        averaged(views[:2], places[:2], (2, 6))


def test_averaging_steps_and_averaging_predictions_are_the_same():
    clean, noise, places = normal(3, 2, 4, 4), normal(3, 2, 4, 4, seed=1), [(0, 0), (0, 2), (0, 3)]
    steps = averaged(diffusion.ddim_step(clean, noise, 0.3), places, (4, 7))
    predictions = (averaged(x, places, (4, 7)) for x in (clean, noise))
    assert_close(steps, diffusion.ddim_step(*predictions, 0.3))


# ------------------------------------------------------------------------------------- panoramas


def test_one_window_is_an_ordinary_picture(pipe):
    for ours, theirs in zip(
        panorama.sample(pipe, PROMPT, width=16, **OPTIONS), diffusion.sample(pipe, PROMPT, **OPTIONS), strict=True
    ):
        assert ours[:2] == theirs[:2] and ours.reference is None
        assert torch.equal(ours.latents, theirs.latents) and torch.equal(ours.clean, theirs.clean)


def restated(pipe, prompt, *, sides, stride, steps, guidance, seed):
    """MultiDiffusion window by window, each with the pipeline's own scheduler: no batches, no cutting of ours."""
    side, (height, width) = pipe.unet.config.sample_size, sides
    x = torch.randn(1, 4, height, width, generator=torch.Generator().manual_seed(seed))
    prompts = diffusion.encode_prompts(pipe, prompt)
    added = {"added_cond_kwargs": None}, {"added_cond_kwargs": None}
    if prompts.time_ids is not None:
        added = [
            {"added_cond_kwargs": {"text_embeds": pooled, "time_ids": prompts.time_ids}}
            for pooled in (prompts.pooled_uncond, prompts.pooled)
        ]
    pipe.scheduler.set_timesteps(steps)
    for t in pipe.scheduler.timesteps:
        total, count = torch.zeros_like(x), torch.zeros_like(x)
        for top in sorted({*range(0, height - side, stride), height - side}):
            for left in sorted({*range(0, width - side, stride), width - side}):
                here = (..., slice(top, top + side), slice(left, left + side))
                uncond, cond = (
                    pipe.unet(x[here], t, encoder_hidden_states=hidden, **extra).sample
                    for hidden, extra in zip((prompts.uncond, prompts.cond), added, strict=True)
                )
                total[here] += pipe.scheduler.step(uncond + guidance * (cond - uncond), t, x[here]).prev_sample
                count[here] += 1
        x = total / count
    return x


@torch.no_grad()
def test_equals_the_restated_equations(pipe):
    expected = restated(pipe, PROMPT, sides=(9, 15), stride=3, **OPTIONS)
    step = last(pipe, width=30, height=18, stride=6)
    assert step.latents.shape == step.clean.shape == (1, 4, 9, 15)
    assert_close(step.latents, expected, atol=1e-5, rtol=1e-4)


def test_the_usual_stride_is_an_eighth_of_a_window(tiny_pipe):
    usual, eighth, fourth = (last(tiny_pipe, width=20, stride=stride).latents for stride in (None, 2, 4))
    assert torch.equal(usual, eighth) and not torch.equal(usual, fourth)


def test_windows_that_do_not_overlap_are_separate_pictures(pipe):
    step = last(pipe, width=32, height=32, stride=16)
    noise = normal(1, 4, 16, 16, seed=4)
    quarters = [noise[..., top : top + 8, left : left + 8] for top in (0, 8) for left in (0, 8)]
    for i, quarter in enumerate(quarters):
        *_, alone = diffusion.sample(pipe, PROMPT, latents=quarter, steps=3, guidance=3.0)
        top, left = divmod(i, 2)
        found = step.latents[..., 8 * top : 8 * top + 8, 8 * left : 8 * left + 8]
        assert_close(found, alone.latents, atol=1e-5, rtol=1e-4)


def test_the_clean_latents_are_the_mean_prediction(tiny_pipe):
    """With the noise that follows from them, they make the latents of the next step."""
    noise = normal(1, 4, 8, 12, seed=4)
    (t, alpha_bar, alpha_bar_next), *_ = diffusion.schedule(tiny_pipe, 3)
    step = next(panorama.sample(tiny_pipe, PROMPT, width=24, **OPTIONS))
    eps = (noise - alpha_bar**0.5 * step.clean) / (1 - alpha_bar) ** 0.5
    assert step.timestep == t
    assert_close(step.latents, diffusion.ddim_step(step.clean, eps, alpha_bar_next), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("guidance", [0.0, 1.0, 3.0])
@pytest.mark.parametrize("reference", [None, REFERENCE])
def test_some_at_a_time_are_as_all_together(tiny_pipe, guidance, reference):
    options = {"width": 32, "guidance": guidance, "reference": reference}
    together, parts = last(tiny_pipe, **options), last(tiny_pipe, at_once=2, **options)  # 5 windows
    assert_close(parts.latents, together.latents, atol=1e-5, rtol=1e-4)
    assert_close(parts.clean, together.clean, atol=1e-5, rtol=1e-4)
    if reference:
        assert_close(parts.reference, together.reference, atol=1e-5, rtol=1e-4)


def test_how_many_rows_the_unet_sees(tiny_pipe):
    seen = []
    hook = tiny_pipe.unet.register_forward_pre_hook(lambda unet, args: seen.append(len(args[0])))
    try:
        last(tiny_pipe, width=32, reference=REFERENCE, at_once=2, steps=1)
        last(tiny_pipe, width=32, reference=REFERENCE, steps=1)
        last(tiny_pipe, width=32, steps=1, guidance=1.0)
    finally:
        hook.remove()
    assert seen == [2 * (1 + 2), 2 * (1 + 2), 2 * (1 + 1), 2 * (1 + 5), 5]


# ------------------------------------------------------------------------------------- a reference


def ordinary(pipe, prompt, seed):
    *_, step = diffusion.sample(pipe, prompt, **{**OPTIONS, "seed": seed})
    return step.latents


@pytest.mark.parametrize("at_once", [None, 2])
def test_the_reference_is_an_ordinary_picture_shared_or_not(pipe, at_once):
    options = {"width": 32, "reference": REFERENCE, "at_once": at_once}
    free = last(pipe, **options)
    with StyleAligned(pipe):
        shared = last(pipe, **options)
    assert torch.equal(shared.reference, free.reference)
    assert_close(free.reference, ordinary(pipe, REFERENCE, OPTIONS["seed"] + 1), atol=1e-5, rtol=1e-4)
    assert (shared.latents - free.latents).abs().max() > 1e-3


def test_a_reference_alone_does_nothing_to_the_panorama(pipe):
    found, without = last(pipe, width=28, reference=REFERENCE), last(pipe, width=28)
    assert_close(found.latents, without.latents, atol=1e-5, rtol=1e-4)


def test_every_window_follows_the_reference(pipe):
    """Windows that do not overlap are targets of StyleAligned like any others."""
    noise = torch.cat([normal(1, 4, 8, 8, seed=5), *normal(1, 4, 8, 16, seed=4).split(8, -1)])
    prompts = [REFERENCE, PROMPT, PROMPT]
    with StyleAligned(pipe, share_group_norm=True):
        found = last(pipe, width=32, stride=16, reference=REFERENCE)
        *_, expected = diffusion.sample(pipe, prompts, latents=noise, steps=3, guidance=3.0)
    assert_close(found.reference, expected.latents[:1], atol=1e-5, rtol=1e-4)
    assert_close(found.latents, torch.cat([*expected.latents[1:, None]], -1), atol=1e-5, rtol=1e-4)


def test_shared_parts_are_as_all_together(pipe):
    with StyleAligned(pipe):
        together, parts = (last(pipe, width=32, reference=REFERENCE, at_once=n) for n in (None, 2))
    assert_close(parts.latents, together.latents, atol=1e-5, rtol=1e-4)


def test_without_a_reference_the_first_window_leads(tiny_pipe):
    with StyleAligned(tiny_pipe):
        shared = last(tiny_pipe, width=32, stride=16)
    free = last(tiny_pipe, width=32, stride=16)
    assert_close(shared.latents[..., :8], free.latents[..., :8], atol=1e-6, rtol=1e-5)
    assert (shared.latents - free.latents)[..., 8:].abs().max() > 1e-3


def test_a_kept_reference_can_be_followed(tiny_pipe):
    with StyleAligned(tiny_pipe, keep=True) as aligned:
        fresh = last(tiny_pipe, width=24, reference=REFERENCE)
    with StyleAligned(tiny_pipe, reference=aligned.kept):
        again = last(tiny_pipe, width=24)
    assert_close(again.latents, fresh.latents, atol=1e-5, rtol=1e-4)


# ------------------------------------------------------------------------------------- images and refusals


def test_images(pipe):
    image, reference = panorama.generate(pipe, PROMPT, width=24, height=18, reference=REFERENCE, **OPTIONS)
    assert image.shape == (1, 3, 18, 24) and reference.shape == (1, 3, 16, 16)
    assert image.dtype == torch.float32 and 0 <= image.min() and image.max() <= 1
    assert_close(
        reference, diffusion.generate(pipe, REFERENCE, **{**OPTIONS, "seed": OPTIONS["seed"] + 1}), atol=1e-5, rtol=1e-4
    )
    image, reference = panorama.generate(pipe, PROMPT, width=16, **OPTIONS)
    assert reference is None and torch.equal(image, diffusion.generate(pipe, PROMPT, **OPTIONS))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"width": 14}, "at least what the U-Net draws, width 16; got 14"),
        ({"width": 16, "height": 8}, "height 16; got 8"),
        ({"width": 25}, "width is a multiple of 2 pixels.*got 25"),
        ({"width": 24, "height": 17}, "height is a multiple of 2 pixels.*got 17"),
        ({"width": 24, "stride": 3}, "stride is a multiple of 2 pixels.*got 3"),
        ({"width": 24, "stride": 0}, "stride is a multiple"),
        ({"width": 24, "stride": 18}, "at most the side of a window, 16 pixels; got 18"),
        ({"width": 24, "at_once": 0}, "at_once is how many.*got 0"),
        ({"width": 24, "steps": 0}, "steps must be"),
    ],
)
def test_what_cannot_be_drawn_is_refused(tiny_pipe, options, message):
    with pytest.raises(ValueError, match=message):
        last(tiny_pipe, **options)


def test_parts_that_would_each_follow_another_window_are_refused(tiny_pipe):
    with StyleAligned(tiny_pipe), pytest.raises(ValueError, match="would follow another window in each part"):
        last(tiny_pipe, width=32, at_once=2)
