"""ControlNet: controlled rows as in diffusers, free rows untouched, and a block that leaves nothing behind."""

import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import random_pipeline
from diffusers import (
    ControlNetModel,
    StableDiffusionControlNetPipeline,
    StableDiffusionXLControlNetPipeline,
    UNet2DConditionModel,
)
from PIL import Image
from safetensors.torch import load_file
from torch.testing import assert_close

from stylemoments import control, diffusion, zoo
from stylemoments.control import Controlled, edges
from stylemoments.style_aligned import StyleAligned
from stylemoments.train import control as training
from stylemoments.train import loop, ship
from stylemoments.train.pictures import render

PROMPTS = ["a cat in neon light style", "an owl in neon light style", "a rocket in neon light style"]
RESIDUALS = ("down_block_additional_residuals", "mid_block_additional_residual")


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def conditions(*which, side=16):
    """A random picture for each number, None for None."""
    return [which and torch.rand(3, side, side, generator=torch.Generator().manual_seed(which)) for which in which]


def controlnet_of(pipe, *, zero=False, **options):
    """A ControlNet of the pipeline's U-Net with random weights; `zero` leaves it as it begins."""
    torch.manual_seed(1)
    options = {"conditioning_embedding_out_channels": (8, 16)} | options
    net = ControlNetModel.from_unet(pipe.unet, **options).eval()
    begun = [net.controlnet_cond_embedding.conv_out, net.controlnet_mid_block, *net.controlnet_down_blocks]
    for module in begun if not zero else ():
        torch.nn.init.normal_(module.weight, std=0.3)
        torch.nn.init.normal_(module.bias, std=0.3)
    return net


@pytest.fixture(scope="module")
def net(pipe):
    return controlnet_of(pipe)


@pytest.fixture(scope="module")
def tiny_net(tiny_pipe):
    return controlnet_of(tiny_pipe)


def call(pipe, *, copies=1, order=None, n=3):
    """What a U-Net is called with: n pictures, as many times as guidance shows them."""
    prompts = diffusion.encode_prompts(pipe, PROMPTS[:n])
    hidden = torch.cat([prompts.uncond, prompts.cond][2 - copies :])
    latents = torch.cat([normal(n, *diffusion.latent_shape(pipe))] * copies)
    added = None
    if prompts.time_ids is not None:
        pooled = torch.cat([prompts.pooled_uncond, prompts.pooled][2 - copies :])
        added = {"text_embeds": pooled, "time_ids": torch.cat([prompts.time_ids] * copies)}
    order = [*range(n * copies)] if order is None else order
    added = added and {name: x[order] for name, x in added.items()}
    return {"sample": latents[order], "encoder_hidden_states": hidden[order], "added_cond_kwargs": added}


@torch.no_grad()
def through(unet, options, t=500):
    return unet(timestep=t, **options).sample


@torch.no_grad()
def by_hand(pipe, net, options, of_rows, scale=1.0, t=500):
    """Row by row: the ControlNet's call and the U-Net's, or the U-Net's alone for a row without a condition."""
    out = []
    for row, condition in enumerate(of_rows):
        one = {name: x and {k: v[[row]] for k, v in x.items()} if name == "added_cond_kwargs" else x[[row]]
               for name, x in options.items()}  # fmt: skip
        residuals = {}
        if condition is not None:
            said = net(**one, timestep=t, controlnet_cond=condition[None], return_dict=False)
            residuals = dict(zip(RESIDUALS, ([x * scale for x in said[0]], said[1] * scale), strict=True))
        out.append(through(pipe.unet, one | residuals, t))
    return torch.cat(out)


# ------------------------------------------------------------------------------------- edges


def test_edges_of_a_step():
    """Sobel's filter says 4 on both sides of a step of 1, the largest value; elsewhere nothing changes."""
    step = torch.zeros(1, 3, 6, 6)
    step[..., 3:] = 1
    expected = torch.tensor([0.0, 0, 1, 1, 0, 0]).expand(1, 3, 6, 6)
    assert_close(edges(step), expected)
    assert_close(edges(step.mT), expected.mT)


def test_edges_of_a_step_and_one_half_as_high():
    steps = torch.tensor([0.0, 0, 0, 1, 1, 1, 0.5, 0.5, 0.5]).expand(1, 3, 9, 9)
    assert_close(edges(steps)[0, 0, 0], torch.tensor([0.0, 0, 1, 1, 0, 0.5, 0.5, 0, 0]))


def test_edges_of_a_dot():
    """Around one white pixel: 2 beside it, the root of 2 at its corners, and none on it, for both sides are alike."""
    dot = torch.zeros(1, 3, 5, 5)
    dot[..., 2, 2] = 1
    beside, corner = 1.0, 2**0.5 / 2
    expected = [[corner, beside, corner], [beside, 0, beside], [corner, beside, corner]]
    assert_close(edges(dot)[0, 1, 1:4, 1:4], torch.tensor(expected))


def test_edges_do_not_know_contrast_and_brightness():
    images = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    for other in (0.5 * images + 0.3, 1 - images, images.flip(1)):
        assert_close(edges(other), edges(images))
    assert_close(edges(images[1:]), edges(images)[1:])  # each picture is scaled by itself


def test_edges_of_colors_of_one_brightness():
    colors = torch.tensor([[0.587, 0.0, 0.0], [0.0, 0.299, 0.0]]).T  # 0.299 red + 0.587 green is the same
    step = colors.repeat_interleave(3, 1)[None, :, None].expand(1, 3, 4, 6)
    assert edges(step).amax() == 1


def test_the_color_that_changes_most_counts():
    """A step of red alone, then one of all colors: both are as steep."""
    steps = torch.zeros(1, 3, 4, 9)
    steps[:, 0, :, 3:], steps[:, 1:, :, 6:] = 1, 1
    steps[:, 0, :, 6:] = 0
    assert_close(edges(steps)[0, 0, 0], torch.tensor([0.0, 0, 1, 1, 0, 1, 1, 0, 0]))


def test_flat_pictures_have_no_edges_and_faint_steps_faint_ones():
    assert edges(torch.full((1, 3, 8, 8), 0.3)).abs().max() < 1e-4
    faint = torch.full((1, 3, 8, 8), 0.3)
    faint[..., 4:] += 0.5 / 255
    assert edges(faint).max().item() == pytest.approx(0.5, abs=1e-3)


@pytest.mark.parametrize("shape", [(3, 8, 8), (1, 1, 8, 8), (1, 4, 8, 8)])
def test_edges_of_something_else(shape):
    with pytest.raises(ValueError, match=r"\(B, 3, H, W\)"):
        edges(torch.zeros(shape))


# ------------------------------------------------------------------------------------- one call of the U-Net


@pytest.mark.parametrize("copies", [1, 2])
def test_free_rows_are_as_without_bit_for_bit(pipe, net, copies):
    options = call(pipe, copies=copies)
    plain = through(pipe.unet, options)
    with Controlled(pipe, net, conditions(None, 1, None)):
        found = through(pipe.unet, options)
    for row in range(len(plain)):
        assert torch.equal(found[row], plain[row]) == (row % 3 != 1)
    assert (found - plain).abs().amax((1, 2, 3))[1::3].min() > 1e-2


@pytest.mark.parametrize("layout", ["single", "halves", "pairs"])
@pytest.mark.parametrize("scale", [1.0, 0.4])
def test_controlled_rows_equal_both_networks_called_by_hand(pipe, net, layout, scale):
    order = {"pairs": [0, 3, 1, 4, 2, 5]}.get(layout)
    options = call(pipe, copies=1 if layout == "single" else 2, order=order)
    one, _, other = asked = conditions(1, None, 2)
    rows = {"single": asked, "halves": asked * 2, "pairs": [one, one, None, None, other, other]}[layout]
    expected = by_hand(pipe, net, options, rows, scale)
    for seen in ("auto", layout):
        with Controlled(pipe, net, asked, scale=scale, layout=seen):
            assert_close(through(pipe.unet, options), expected, atol=1e-5, rtol=1e-5)


def test_each_picture_follows_its_own(pipe, net):
    options, (one, other) = call(pipe, n=2), conditions(1, 2)

    def drawn(*asked):
        with Controlled(pipe, net, asked):
            return through(pipe.unet, options)

    both = drawn(one, other[None])  # with and without an axis for the batch
    assert_close(both[0], drawn(one, None)[0], atol=1e-5, rtol=1e-5)
    assert_close(both[1], drawn(None, other)[1], atol=1e-5, rtol=1e-5)
    assert (both - drawn(other, one)).abs().amax((1, 2, 3)).min() > 1e-3
    assert torch.equal(drawn(*torch.stack([one, other])), both)


def test_the_controlnet_sees_the_controlled_rows_only(tiny_pipe, tiny_net):
    seen = []
    handle = tiny_net.register_forward_pre_hook(lambda net, args: seen.append(args[0]))
    options = call(tiny_pipe, copies=2)
    with Controlled(tiny_pipe, tiny_net, conditions(None, None, 1)):
        through(tiny_pipe.unet, options)
    handle.remove()
    assert torch.equal(torch.stack(seen), options["sample"][None, [2, 5]])


def test_a_timestep_for_each_row(tiny_pipe, tiny_net):
    """As in training, and with the arguments in their places instead of by name."""
    options, times = call(tiny_pipe), torch.tensor([900, 500, 20])
    asked = conditions(1, 2, None)
    expected = torch.cat([by_hand(tiny_pipe, tiny_net, options, asked, t=int(t))[[i]] for i, t in enumerate(times)])
    with Controlled(tiny_pipe, tiny_net, asked), torch.no_grad():
        (found,) = tiny_pipe.unet(options["sample"], times, options["encoder_hidden_states"], return_dict=False)
    assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_a_fresh_controlnet_changes_nothing(pipe):
    options = call(pipe)
    plain = through(pipe.unet, options)
    for net, scale in [(controlnet_of(pipe, zero=True), 1.0), (controlnet_of(pipe), 0.0)]:
        with Controlled(pipe, net, conditions(1, 2, None), scale=scale):
            assert torch.equal(through(pipe.unet, options), plain)


def test_a_controlnet_of_another_precision(tiny_pipe, tiny_net):
    options, asked = call(tiny_pipe), conditions(1, None, None)
    expected = by_hand(tiny_pipe, tiny_net, options, asked)
    with Controlled(tiny_pipe, controlnet_of(tiny_pipe).double(), asked):
        found = through(tiny_pipe.unet, options)
    assert found.dtype == torch.float32
    assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_a_unet_that_sees_an_image_to_edit(tiny_pipe, tiny_net):
    """It has five more channels, and the ControlNet sees the first four, as in diffusers."""
    torch.manual_seed(0)
    unet = UNet2DConditionModel.from_config(tiny_pipe.unet.config, in_channels=9).eval()
    pipe, options, (asked,) = SimpleNamespace(unet=unet, vae_scale_factor=2), call(tiny_pipe), conditions(1)
    wide = options | {"sample": torch.cat([options["sample"], normal(3, 5, 8, 8, seed=1)], 1)}
    with torch.no_grad():
        down, mid = tiny_net(**options, timestep=500, controlnet_cond=asked.expand(3, -1, -1, -1), return_dict=False)
    expected = through(unet, wide | dict(zip(RESIDUALS, (down, mid), strict=True)))
    with Controlled(pipe, tiny_net, [asked] * 3):
        assert_close(through(unet, wide), expected, atol=1e-5, rtol=1e-5)


def test_gradients_flow_to_the_controlnet(tiny_pipe):
    net = controlnet_of(tiny_pipe, zero=True)
    with Controlled(tiny_pipe, net, conditions(None, 1, None)):
        tiny_pipe.unet(timestep=500, **call(tiny_pipe)).sample[1].square().sum().backward()
    tiny_pipe.unet.zero_grad(set_to_none=True)
    assert net.controlnet_mid_block.weight.grad.abs().max() > 0


# ------------------------------------------------------------------------------------- the sampler


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_pictures_equal_those_of_diffusers_own_pipeline(pipe, net, guidance):
    xl = hasattr(pipe, "text_encoder_2")
    kind, more = (StableDiffusionXLControlNetPipeline, {"add_watermarker": False}) if xl else (
        StableDiffusionControlNetPipeline, {"requires_safety_checker": False})  # fmt: skip
    theirs = kind(**pipe.components, controlnet=net, **more)
    theirs.set_progress_bar_config(disable=True)
    latents, (one, other) = diffusion.initial_latents(pipe, 2, seed=3), conditions(1, 2)
    expected = theirs(
        PROMPTS[:2], image=torch.stack([one, other]), latents=latents, num_inference_steps=3, guidance_scale=guidance,
        controlnet_conditioning_scale=0.7, output_type="latent",
    ).images  # fmt: skip
    with Controlled(pipe, net, [one, other], scale=0.7):
        *_, last = diffusion.sample(pipe, PROMPTS[:2], steps=3, guidance=guidance, latents=latents)
        own = pipe(PROMPTS[:2], latents=latents, num_inference_steps=3, guidance_scale=guidance, output_type="latent")
    assert_close(last.latents, expected, atol=1e-5, rtol=1e-5)
    assert_close(own.images, expected, atol=1e-5, rtol=1e-5)


def test_with_style_aligned_in_both_orders(pipe, net):
    asked, options = conditions(None, 1, 2), {"steps": 2, "guidance": 3.0, "seed": 5}
    plain = diffusion.generate(pipe, PROMPTS, **options)
    with StyleAligned(pipe):
        aligned = diffusion.generate(pipe, PROMPTS, **options)
    with StyleAligned(pipe), Controlled(pipe, net, asked):
        one = diffusion.generate(pipe, PROMPTS, **options)
    with Controlled(pipe, net, asked), StyleAligned(pipe):
        other = diffusion.generate(pipe, PROMPTS, **options)
    with Controlled(pipe, net, asked):
        alone = diffusion.generate(pipe, PROMPTS, **options)
    assert torch.equal(one, other)
    assert torch.equal(one[0], plain[0])
    for without in (aligned, alone):
        assert (one - without).abs().amax((1, 2, 3))[1:].min() > 1e-3


# ------------------------------------------------------------------------------------- entering and leaving


def test_leaves_the_unet_as_it_was(tiny_pipe, tiny_net):
    options, asked = call(tiny_pipe), conditions(1, None, None)
    plain, weights = through(tiny_pipe.unet, options), [x.clone() for x in tiny_pipe.unet.state_dict().values()]
    with pytest.raises(KeyError), Controlled(tiny_pipe, tiny_net, asked):
        through(tiny_pipe.unet, options)
        raise KeyError
    block = Controlled(tiny_pipe, tiny_net, asked)
    for _ in range(2):  # a block can be used again
        with block:
            assert not torch.equal(through(tiny_pipe.unet, options), plain)
    assert not tiny_pipe.unet._forward_pre_hooks and not tiny_pipe.unet._forward_pre_hooks_with_kwargs
    assert torch.equal(through(tiny_pipe.unet, options), plain)
    assert all(map(torch.equal, tiny_pipe.unet.state_dict().values(), weights))


def test_two_blocks_at_once_are_refused(tiny_pipe, tiny_net):
    options, asked = call(tiny_pipe), conditions(1, None, None)
    with Controlled(tiny_pipe, tiny_net, asked):
        once = through(tiny_pipe.unet, options)
        with pytest.raises(RuntimeError, match="controlled already"), Controlled(tiny_pipe, tiny_net, asked):
            pass
        assert torch.equal(through(tiny_pipe.unet, options), once), "the first block goes on"


# ------------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("asked", "options", "said"),
    [
        ([], {}, "got none"),
        ([None, None], {}, "got none"),
        ([torch.rand(1, 16, 16)], {}, r"\(1, 16, 16\).* picture 0"),
        ([None, torch.rand(2, 3, 16, 16)], {}, r"\(2, 3, 16, 16\).* picture 1"),
        (torch.rand(3, 16, 16), {}, r"\(16, 16\).* picture 0"),
        ([torch.ones(3, 16, 16, dtype=torch.uint8)], {}, "uint8"),
        (["a cat"], {}, "a cat"),
        ([torch.full((3, 16, 16), 255.0)], {}, "from 255 to 255"),
        ([-torch.rand(3, 16, 16)], {}, r"in \[0, 1\]"),
        ([torch.full((3, 16, 16), torch.nan)], {}, r"in \[0, 1\]"),
        (conditions(1), {"scale": -0.1}, "scale is a finite factor, 0 or more; got -0.1"),
        (conditions(1), {"scale": float("inf")}, "got inf"),
        (conditions(1), {"layout": "thirds"}, "one of auto, single, halves, pairs; got 'thirds'"),
    ],
)
def test_settings_out_of_range_are_refused(tiny_pipe, tiny_net, asked, options, said):
    with pytest.raises(ValueError, match=said):
        Controlled(tiny_pipe, tiny_net, asked, **options)


@pytest.mark.parametrize(("n", "more"), [(2, {}), (4, {}), (3, {"layout": "halves"})])
def test_wrong_numbers_of_conditions_are_refused(tiny_pipe, tiny_net, n, more):
    options = call(tiny_pipe, copies=2)
    with pytest.raises(ValueError, match="one condition, or None, for each picture: got . for the . pictures"):
        with Controlled(tiny_pipe, tiny_net, conditions(*range(1, n + 1)), **more):
            through(tiny_pipe.unet, options if not more else call(tiny_pipe, copies=2, n=2))
    assert not tiny_pipe.unet._forward_pre_hooks


def test_other_sizes_are_refused(tiny_pipe, tiny_net):
    with pytest.raises(ValueError, match="16 x 16 pixels; got 32 x 32"):
        with Controlled(tiny_pipe, tiny_net, conditions(1, None, 2, side=32)):
            through(tiny_pipe.unet, call(tiny_pipe))
    with Controlled(tiny_pipe, tiny_net, conditions(1, None, 2, side=32)):
        wide = call(tiny_pipe) | {"sample": normal(3, 4, 16, 16)}
        assert through(tiny_pipe.unet, wide).shape == (3, 4, 16, 16)


@pytest.mark.parametrize("name", RESIDUALS)
def test_residuals_of_another_controlnet_are_refused(tiny_pipe, tiny_net, name):
    options = call(tiny_pipe) | {name: torch.zeros(1)}
    with pytest.raises(ValueError, match=name), Controlled(tiny_pipe, tiny_net, conditions(1, 2, None)):
        through(tiny_pipe.unet, options)


def test_a_controlnet_of_another_unet_is_refused(tiny_pipe):
    def narrow(**options):
        return ControlNetModel(
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), norm_num_groups=4, attention_head_dim=2,
            **{"block_out_channels": (8, 16), "layers_per_block": 1, "cross_attention_dim": 16,
               "conditioning_embedding_out_channels": (8, 16)} | options,
        )  # fmt: skip

    Controlled(tiny_pipe, narrow(), conditions(1))
    for options, said in [
        ({"block_out_channels": (8, 32)}, "skip connections .*32.* instead of .*16"),
        ({"layers_per_block": 2}, "skip connections"),
        ({"cross_attention_dim": 24}, "numbers in a word 24 instead of 16"),
        ({"conditioning_embedding_out_channels": (8, 8, 16)}, "pixels to a latent 4 instead of 2"),
        ({"conditioning_channels": 1}, "colors of a condition 1 instead of 3"),
    ]:
        with pytest.raises(ValueError, match=said):
            Controlled(tiny_pipe, narrow(**options), conditions(1))


def test_of_stable_diffusion_xl_and_not(tiny_pipe, tiny_net):
    xl = random_pipeline("sdxl")
    with pytest.raises(ValueError, match="added embeddings text_time instead of None"):
        Controlled(tiny_pipe, controlnet_of(xl), conditions(1))
    with pytest.raises(ValueError, match="added embeddings None instead of text_time"):
        Controlled(xl, tiny_net, conditions(1))


def test_other_classes_are_refused(tiny_pipe, tiny_net):
    with pytest.raises(TypeError, match="str with NoneType"):
        Controlled("tiny", tiny_net, conditions(1))
    with pytest.raises(TypeError, match="a ControlNetModel of diffusers; got UNet2DConditionModel"):
        Controlled(tiny_pipe, tiny_pipe.unet, conditions(1))


# ------------------------------------------------------------------------------------- the one that ships


def test_only_tiny_ships():
    with pytest.raises(ValueError, match="'sdxl'.*from_pretrained"):
        control.load("sdxl")


def test_the_shipped_one_draws_along_the_edges():
    """Of a picture it has never seen, whatever the prompt; the card has the figures of many."""
    from stylemoments.world import World

    pipe, net = diffusion.load("tiny", device="cpu"), control.load(device="cpu")
    condition = edges(torch.from_numpy(World(4).sample(3, style="plain", place="nowhere").images))
    prompts = ["a cat", "a guitar in neon light style", ""]
    free = diffusion.generate(pipe, prompts, steps=8)
    with Controlled(pipe, net, condition):
        controlled = diffusion.generate(pipe, prompts, steps=8)
    for index in range(3):
        with_, without = (
            np.corrcoef(edges(images)[index, 0].flatten(), condition[index, 0].flatten())[0, 1]
            for images in (controlled, free)
        )
        assert with_ > without + 0.2


# ------------------------------------------------------------------------------------- training


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The script with --smoke."""
    folder = tmp_path_factory.mktemp("runs")
    command = [sys.executable, "-m", "stylemoments.train.control", "--out", folder / "control", "--smoke"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def task(runs):
    """On the pictures of the smoke test, whose latents are not needed."""
    pipe = diffusion.load("tiny", device="cpu")
    return training.Task(render(64, runs / "pictures"), torch.zeros(2, 64, 4, 16, 16), pipe)


def test_training_begins_with_the_unet_alone(task):
    """The loss of a fresh ControlNet is that of the frozen U-Net."""
    latents, words, condition = task.batch(torch.arange(8))
    assert condition.shape == (8, 3, 64, 64) and condition.max() == 1

    def loss():
        torch.manual_seed(0)
        return task.model(latents, words, condition)["loss"]

    begun = loss().item()
    unet, forward = task.model.unet, task.model.unet.forward
    unet.forward = lambda *args, **residuals: forward(*args)
    assert loss().item() == begun
    unet.forward = forward
    zero = task.model.controlnet.controlnet_mid_block.weight
    torch.nn.init.normal_(zero)
    assert loss().item() != begun
    torch.nn.init.zeros_(zero)


def test_only_the_controlnet_learns(runs, task):
    ours = load_file(runs / "control/diffusion_pytorch_model.safetensors")
    assert all(ours[f"controlnet_down_blocks.{i}.weight"].abs().max() > 0 for i in range(6))
    saved = torch.load(runs / "control" / loop.CHECKPOINT, weights_only=True)["model"]
    for name, x in task.pipe.unet.state_dict().items():
        assert torch.equal(saved[f"unet.{name}"], x)


def test_half_of_the_prompts_are_left_empty(task):
    torch.manual_seed(0)
    _, words, _ = task.batch(torch.arange(64).repeat(20))
    empty = (words == task.words[0]).all(-1).all(-1).float().mean().item()
    assert empty == pytest.approx(0.5, abs=0.05)  # 1280 draws, three deviations


def test_the_sheet_shows_edges_free_and_controlled_pictures(runs):
    sheet = np.asarray(Image.open(runs / "control/sheet-000004.png"))
    assert sheet.shape == (3 * 64, training.SHOWN * 64, 3)
    condition, free, controlled = sheet.reshape(3, 64, -1, 3).astype(float)
    assert (condition == condition[..., :1]).all() and condition.max() == 255
    assert np.abs(free - controlled).mean() < np.abs(free - condition).mean() / 3, "four steps change little"


def test_shipped_in_half_precision_it_loads(runs, tmp_path, monkeypatch):
    monkeypatch.setattr(zoo, "WEIGHTS", tmp_path / "weights")
    assert ship.ship(runs, zoo.WEIGHTS) == ["tiny-control"]
    ship.write_sums(zoo.WEIGHTS)
    assert {path.name for path in zoo.folder("tiny-control").iterdir()} == {
        "config.json", "curve.jsonl", "diffusion_pytorch_model.safetensors"
    }  # fmt: skip
    assert str(runs) not in (zoo.folder("tiny-control") / "config.json").read_text("utf-8")
    net, whole = control.load(device="cpu"), load_file(runs / "control/diffusion_pytorch_model.safetensors")
    assert net.dtype == torch.float32 and not net.training
    for name, x in net.state_dict().items():
        assert_close(x, whole[name], atol=1e-3, rtol=1e-3)
