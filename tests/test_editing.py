"""From a picture that exists: SDEdit, and the trajectory of an inversion played back."""

import pytest
import torch
from torch.testing import assert_close

from stylemoments import diffusion, editing
from stylemoments.style_aligned import StyleAligned

# isort: split
from diffusers import DDIMScheduler

SAID = ["a cat in neon light style", "a dog in neon light style"]


def picture(seed=0, side=16):
    return torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(seed))


# ------------------------------------------------------------------------------------- SDEdit


def test_sdedit_equals_the_restated_loop(pipe):
    """Noise to a level, then the last steps of DDIM as diffusers' scheduler takes them."""
    noise = diffusion.initial_latents(pipe, 2, seed=3)
    image = picture()
    *_, last = editing.sdedit(pipe, image, SAID, strength=0.5, steps=6, guidance=3.0, latents=noise)

    scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    scheduler.set_timesteps(6)
    times = scheduler.timesteps[3:]
    clean = diffusion.encode(pipe, image).expand(2, -1, -1, -1)
    x = scheduler.add_noise(clean, noise, times[:1])
    said = diffusion.encode_prompts(pipe, SAID)
    for t in times:
        output = diffusion._output(pipe, x, t, said, 3.0)
        x = scheduler.step(output, t, x).prev_sample
    assert_close(last.latents, x, atol=1e-5, rtol=1e-4)
    assert last.index == 5


@pytest.mark.parametrize(("strength", "taken"), [(1.0, 4), (0.5, 2), (0.01, 1)])
def test_strength_is_the_share_of_the_steps(tiny_pipe, strength, taken):
    steps = [*editing.sdedit(tiny_pipe, picture(), SAID, strength=strength, steps=4)]
    assert [step.index for step in steps] == [*range(4 - taken, 4)]


def test_less_strength_stays_closer(tiny_pipe):
    clean = diffusion.encode(tiny_pipe, picture())
    distances = []
    for strength in (0.25, 0.5, 1.0):
        *_, last = editing.sdedit(tiny_pipe, picture(), SAID[:1], strength=strength, steps=8, guidance=1.0)
        distances.append((last.latents - clean).norm().item())
    assert distances[0] < distances[1] < distances[2]


def test_one_picture_each_or_one_for_all(tiny_pipe):
    both = torch.cat([picture(0), picture(1)])
    *_, each = editing.sdedit(tiny_pipe, both, SAID, steps=3)
    *_, first = editing.sdedit(tiny_pipe, both[:1], SAID, steps=3)
    assert_close(each.latents[0], first.latents[0])
    assert (each.latents[1] - first.latents[1]).abs().max() > 0.01


@pytest.mark.parametrize("strength", [0.0, 1.1, float("nan")])
def test_strength_is_checked(tiny_pipe, strength):
    with pytest.raises(ValueError, match="strength is the share"):
        editing.sdedit(tiny_pipe, picture(), SAID, strength=strength)


# ------------------------------------------------------------------------------------- inversion


def test_the_first_step_of_the_published_inversion_changes_nothing(tiny_pipe, monkeypatch):
    """With the schedule of the public code, no offset and a final level of its own, it goes from t = 0 to t = 0."""
    config = tiny_pipe.scheduler.config | {"steps_offset": 0}
    monkeypatch.setattr(tiny_pipe, "scheduler", DDIMScheduler.from_config(config))
    clean = diffusion.encode(tiny_pipe, picture())
    first, second, *_ = diffusion.invert(tiny_pipe, clean, SAID[0], steps=10)
    assert first.timestep == 0
    assert_close(first.latents, clean, atol=1e-6, rtol=1e-5)
    assert (second.latents - clean).abs().max() > 1e-3


def test_a_trajectory_has_the_noise_of_every_step(tiny_pipe):
    path = editing.trajectory(tiny_pipe, picture(), SAID[0], steps=4)
    found = [*diffusion.invert(tiny_pipe, diffusion.encode(tiny_pipe, picture()), SAID[0], steps=4, guidance=2.0)]
    assert path.steps == 4 and path.prompt == SAID[0] and path.guidance == editing.GUIDANCE
    for step in found:
        assert_close(path.latents[3 - step.index], step.latents[0])
    assert_close(path.latents[4], diffusion.encode(tiny_pipe, picture())[0])


def test_one_picture_has_one_trajectory(tiny_pipe):
    with pytest.raises(ValueError, match="one picture has one trajectory"):
        editing.trajectory(tiny_pipe, torch.rand(2, 3, 16, 16), SAID[0])


# ------------------------------------------------------------------------------------- replay


def played(pipe, steps=4):
    return editing.trajectory(pipe, picture(), SAID[0], steps=steps)


def test_a_replayed_picture_is_the_picture(pipe):
    path = played(pipe)
    with StyleAligned(pipe):
        steps = [*diffusion.sample(pipe, SAID, steps=4, replay={0: path.latents})]
    for step in steps:
        assert_close(step.latents[0], path.latents[step.index + 1])
    image = diffusion.decode(pipe, path.latents[-1:])
    assert_close(image, diffusion.decode(pipe, diffusion.encode(pipe, picture())))


def test_the_target_follows_what_is_replayed(pipe):
    """By hand: at each step the U-Net sees the recorded latents in the first row."""
    path, noise = played(pipe), diffusion.initial_latents(pipe, 2, seed=0)
    with StyleAligned(pipe):
        *_, last = diffusion.sample(pipe, SAID, steps=4, guidance=3.0, latents=noise, replay={0: path.latents})
        said, x = diffusion.encode_prompts(pipe, SAID), noise[1:]
        for i, (t, _, alpha_bar_next) in enumerate(diffusion.schedule(pipe, 4)):
            both = torch.cat([path.latents[i : i + 1], x])
            clean, eps = diffusion.predict(pipe, both, t, said, guidance=3.0)
            x = diffusion.ddim_step(clean, eps, alpha_bar_next)[1:]
    assert_close(last.latents[1:], x, atol=1e-5, rtol=1e-4)


def test_other_rows_do_not_change_without_sharing(tiny_pipe):
    path = played(tiny_pipe)
    *_, last = diffusion.sample(tiny_pipe, SAID, steps=4, replay={0: path.latents})
    *_, plain = diffusion.sample(tiny_pipe, SAID, steps=4)
    assert_close(last.latents[1], plain.latents[1])


def test_an_offset_stands_still_first(tiny_pipe):
    path = played(tiny_pipe)
    moved = path.offset(2)
    assert torch.equal(moved.latents[:3], path.latents[2].expand(3, -1, -1, -1))
    assert torch.equal(moved.latents[3:], path.latents[3:])
    assert torch.equal(path.offset(0).latents, path.latents)
    for n in (-1, 5):
        with pytest.raises(ValueError, match="offset is from 0 to the 4 steps"):
            path.offset(n)


def test_the_noise_that_was_passed_stays(tiny_pipe):
    noise = diffusion.initial_latents(tiny_pipe, 2, seed=0)
    before = noise.clone()
    [*diffusion.sample(tiny_pipe, SAID, steps=4, latents=noise, replay={0: played(tiny_pipe).latents})]
    assert torch.equal(noise, before)


@pytest.mark.parametrize(
    "replay", [{2: torch.zeros(5, 4, 8, 8)}, {0: torch.zeros(4, 4, 8, 8)}, {0: torch.zeros(5, 4, 8, 4)}]
)
def test_a_replay_is_checked(tiny_pipe, replay):
    with pytest.raises(ValueError, match=r"4 steps of 2 pictures replay latents of shape \(5, 4, 8, 8\)"):
        [*diffusion.sample(tiny_pipe, SAID, steps=4, replay=replay)]


# ------------------------------------------------------------------------------------- start and size


def test_start_goes_on_where_another_run_stopped(pipe):
    whole = [*diffusion.sample(pipe, SAID, steps=5)]
    rest = [*diffusion.sample(pipe, SAID, steps=5, start=2, latents=whole[1].latents)]
    assert [step.timestep for step in rest] == [step.timestep for step in whole[2:]]
    assert torch.equal(rest[-1].latents, whole[-1].latents)


def test_start_is_checked(tiny_pipe):
    noise = diffusion.initial_latents(tiny_pipe, 2, seed=0)
    for start, latents in [(1, None), (5, noise), (-1, noise)]:
        with pytest.raises(ValueError, match="start is 0 to 4 for 5 steps"):
            [*diffusion.sample(tiny_pipe, SAID, steps=5, start=start, latents=latents)]


@pytest.mark.parametrize(("height", "width"), [(16, 16), (40, 20), (20, 41), (7, 9)])
def test_the_middle_of_a_picture(tiny_pipe, height, width):
    image = torch.zeros(1, 3, height, width)
    image[..., height // 2, width // 2] = 1
    fitted = editing.fitted(tiny_pipe, image)
    assert fitted.shape == (1, 3, 16, 16)
    row, column = divmod(fitted[0, 0].argmax().item(), 16)
    assert abs(row - 8) <= 2 and abs(column - 8) <= 2


def test_the_middle_needs_a_picture(tiny_pipe):
    with pytest.raises(ValueError, match="a picture has the shape"):
        editing.fitted(tiny_pipe, torch.zeros(3, 16, 16))
