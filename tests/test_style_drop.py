"""StyleDrop: y + s B A y by hand, a patch that leaves nothing behind, adapters trained alone, files that load."""

import copy
import json

import pytest
import torch
from conftest import random_pipeline
from diffusers.models.attention import BasicTransformerBlock
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn
from torch.testing import assert_close

from stylemoments import diffusion, dreambooth, style_drop
from stylemoments.dreambooth import DreamBooth
from stylemoments.style_aligned import StyleAligned
from stylemoments.style_drop import StyleDrop

PROMPT = "a cat in papercut art style"
OTHERS = ["a dog in papercut art style", "an owl in papercut art style"]
FEW = {"steps": 2, "rate": 1e-2}


def equal(found, expected, **options):
    """Bit for bit."""
    assert_close(found, expected, rtol=0, atol=0, **options)


def picture(seed=0, side=16):
    return torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(seed))


def drawn(pipe, prompts=OTHERS):
    return diffusion.generate(pipe, prompts, steps=2, guidance=2.0)


def filled(adapters, seed=1):
    """Adapters as if they were trained."""
    generator = torch.Generator().manual_seed(seed)
    for weight in adapters.weights().values():
        weight.copy_(torch.randn(weight.shape, generator=generator) * 0.3)
    return adapters


def trained(adapters, **changes):
    return [*style_drop.trainer(adapters, picture(), PROMPT, **FEW | changes).train()]


def frozen(pipe):
    """A copy as training leaves it: a decoder without gradients computes with other kernels, a bit or two apart."""
    pipe = copy.deepcopy(pipe)
    pipe.vae.requires_grad_(False)
    return pipe


def state(pipe):
    return {name: weight.clone() for name, weight in pipe.unet.state_dict().items()}


# ------------------------------------------------------------------------------------- the patch


def test_one_adapter_for_each_transformer_block(pipe):
    blocks = [name for name, module in pipe.unet.named_modules() if isinstance(module, BasicTransformerBlock)]
    adapters = StyleDrop(pipe, 3)
    names = {name for name in adapters.weights()}
    assert names == {f"{name}.ff.style_drop.{part}.weight" for name in blocks for part in ("down", "up")}
    assert len(adapters.adapters) == len(blocks) == (8 if hasattr(pipe, "text_encoder_2") else 4)
    assert all(3 in weight.shape for weight in adapters.weights().values())


def test_training_begins_with_the_base_model(pipe):
    before = drawn(pipe)
    with StyleDrop(pipe):
        equal(drawn(pipe), before)


def test_the_equation_by_hand(pipe):
    adapters = filled(StyleDrop(pipe, 2, 0.5))
    weights = adapters.weights()
    plain, seen = copy.deepcopy(pipe), []

    def restated(name):
        def hook(module, args, output):
            seen.append(name)
            down, up = (weights[f"{name}.style_drop.{part}.weight"] for part in ("down", "up"))
            return output + 0.5 * torch.einsum("or,ri,bni->bno", up, down, output)

        return hook

    for name, module in plain.unet.named_modules():
        if isinstance(module, BasicTransformerBlock):
            module.ff.register_forward_hook(restated(f"{name}.ff"))
    expected = drawn(plain)
    with adapters:
        found = drawn(pipe)
    assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert len(set(seen)) == len(weights) / 2 and (found - drawn(pipe)).abs().max() > 1e-3


def test_strength_scales_and_zero_is_the_base_model(tiny_pipe):
    before, adapters = drawn(tiny_pipe), filled(StyleDrop(tiny_pipe))
    distances = []
    for adapters.strength in (0.0, 0.5, 1.0):
        with adapters:
            distances.append((drawn(tiny_pipe) - before).norm().item())
    assert 0 == distances[0] < distances[1] < distances[2]


def test_nothing_is_left_behind(pipe):
    pipe = copy.deepcopy(pipe)
    before, weights, names = drawn(pipe), state(pipe), [name for name, _ in pipe.unet.named_modules()]
    adapters = filled(StyleDrop(pipe))
    for _ in range(2):
        with adapters:
            assert set(adapters.weights()) <= set(pipe.unet.state_dict())
            assert not torch.equal(drawn(pipe), before)
        equal(state(pipe), weights)
        equal(drawn(pipe), before)
    with pytest.raises(ZeroDivisionError), adapters:
        1 / 0  # noqa: B018
    assert [name for name, _ in pipe.unet.named_modules()] == names
    assert all(not module._forward_hooks for module in pipe.unet.modules())


def test_the_seed_draws_the_first_values(tiny_pipe):
    a, b, c = (StyleDrop(tiny_pipe, seed=seed).weights() for seed in (0, 0, 1))
    equal(a, b)
    assert all(torch.equal(a[name], c[name]) == name.endswith("up.weight") for name in a)
    for name, weight in a.items():
        if name.endswith("down.weight"):
            assert weight.std().item() == pytest.approx(weight.shape[1] ** -0.5, rel=0.3)
        else:
            assert weight.abs().max() == 0


def test_style_aligned_acts_beside_it(tiny_pipe):
    adapters = filled(StyleDrop(tiny_pipe))
    with adapters:
        alone = drawn(tiny_pipe)
        with StyleAligned(tiny_pipe):
            inner = drawn(tiny_pipe)
    with StyleAligned(tiny_pipe), adapters:
        outer = drawn(tiny_pipe)
    equal(inner, outer)
    equal(inner[0], alone[0])
    assert not torch.equal(inner[1], alone[1])


def test_it_refuses(tiny_pipe):
    with pytest.raises(TypeError, match="whose .unet is a UNet2DConditionModel.* got object"):
        StyleDrop(object())
    for rank, strength in ((0, 1.0), (8, float("nan")), (8, float("inf"))):
        with pytest.raises(ValueError, match=f"rank is 1 or more .* got rank={rank}, strength={strength}"):
            StyleDrop(tiny_pipe, rank, strength)
    with StyleDrop(tiny_pipe), pytest.raises(RuntimeError, match="has StyleDrop's adapters already; leave"):
        StyleDrop(tiny_pipe).__enter__()
    compiled = copy.deepcopy(tiny_pipe)
    compiled.unet._compiled_call_impl = lambda: None
    with pytest.raises(RuntimeError, match="compiled U-Net may not see new layers"):
        StyleDrop(compiled).__enter__()


# ------------------------------------------------------------------------------------- training


def test_training_changes_the_adapters_and_nothing_else(pipe):
    pipe = frozen(pipe)
    before, weights = drawn(pipe), state(pipe)
    adapters = StyleDrop(pipe, 2)
    first = {name: weight.clone() for name, weight in adapters.weights().items()}
    with adapters:
        dream = style_drop.trainer(adapters, picture(), PROMPT, **FEW)
        assert set(dream.parameters()) == {f"unet.{name}" for name in adapters.weights()}
        assert len([*dream.train()]) == 2
        styled = drawn(pipe)
    assert all(not torch.equal(weight, first[name]) for name, weight in adapters.weights().items())
    equal(state(pipe), weights)
    equal(drawn(pipe), before)
    assert not torch.equal(styled, before)
    assert adapters.prompt == dream.prompt == PROMPT


def test_the_first_step_is_adamw(tiny_pipe):
    """Without a gradient down stays; up gets the rate in the direction of its gradient."""
    pipe = copy.deepcopy(tiny_pipe)
    adapters = StyleDrop(pipe, 2)
    first = {name: weight.clone() for name, weight in adapters.weights().items()}
    with adapters:
        trained(adapters, steps=1, weight_decay=0.0)
    for name, weight in adapters.weights().items():
        if name.endswith("down.weight"):
            equal(weight, first[name])
        else:
            assert_close(weight.abs().median(), torch.tensor(1e-2), atol=1e-4, rtol=0)


@pytest.mark.parametrize("changes", [{}, {"average": 0.8}])
def test_a_stopped_run_goes_on_exactly(tiny_pipe, tmp_path, changes):
    def run(folder=None, count=None):
        pipe = copy.deepcopy(tiny_pipe)
        with StyleDrop(pipe, 2) as adapters:
            steps = style_drop.trainer(adapters, picture(), PROMPT, steps=5, rate=1e-2, **changes).train(
                folder, save_every=2
            )
            records = [next(steps) for _ in range(count)] if count else [*steps]
        return records, {name: weight.clone() for name, weight in adapters.weights().items()}

    records, straight = run()
    first, _ = run(tmp_path, 3)
    rest, resumed = run(tmp_path)
    assert (first, rest) == (records[:3], records[2:])
    equal(resumed, straight)


def test_half_precision_trains_float32_adapters(pipe):
    half = copy.deepcopy(pipe)
    for module in (half.unet, half.vae, *dreambooth._encoders(half)):
        nn.Module.to(module, torch.bfloat16)
    with StyleDrop(half, 2) as adapters, StyleDrop(copy.deepcopy(pipe), 2) as full:
        equal(drawn(half), drawn_outside(half, adapters))
        (record,) = trained(adapters, steps=1)
        (expected,) = trained(full, steps=1)
        assert record.loss == pytest.approx(expected.loss, rel=0.03)
        assert {weight.dtype for weight in adapters.weights().values()} == {torch.float32}
        assert half.unet.dtype == torch.bfloat16 and drawn(half).isfinite().all()


def drawn_outside(pipe, adapters):
    """The pictures without the adapters, which stay."""
    adapters.strength, strength = 0.0, adapters.strength
    try:
        return drawn(pipe)
    finally:
        adapters.strength = strength


def test_checkpointing_changes_no_weight(tiny_pipe):
    found = []
    for on in (False, True):
        with StyleDrop(copy.deepcopy(tiny_pipe), 2) as adapters:
            trained(adapters, checkpointing=on)
        found.append(adapters.weights())
    assert_close(found[0], found[1], atol=1e-5, rtol=1e-4)


def test_the_prompt_is_what_is_heard(tiny_pipe):
    with StyleDrop(copy.deepcopy(tiny_pipe)) as adapters:
        dream = style_drop.trainer(adapters, picture(), PROMPT, **FEW)
    equal(dream.denoiser.words()[0], diffusion.encode_prompts(tiny_pipe, PROMPT).cond)


def test_settings():
    for size in diffusion.SIZES:
        drop, lora = style_drop.defaults(size), style_drop.lora_settings(size)
        for settings in (drop, lora):
            assert (settings.steps, settings.batch, settings.prior_weight, settings.zoom) == (400, 1, 0, 1)
            assert settings.text == "frozen"
        assert (drop.rank, lora.rank) == (None, style_drop.LORA_RANK)
        assert (drop.rate, lora.rate) == (style_drop.RATE[size], style_drop.LORA_RATE[size])
    assert style_drop.defaults("tiny", steps=7, rate=0.5).rate == 0.5
    assert style_drop.lora_settings("tiny", rank=4).rank == 4
    with pytest.raises(ValueError, match="size must be one of tiny, sd15, sdxl; got 'huge'"):
        style_drop.defaults("huge")


def test_lora_for_a_style(pipe):
    pipe = frozen(pipe)
    before, settings = drawn(pipe), style_drop.lora_settings("tiny", steps=2)
    dream = DreamBooth(pipe, picture(), "", "", prompt=PROMPT, settings=settings)
    assert [record.prior for record in dream.train()] == [None] * 2 and dream.prompt == PROMPT
    assert not torch.equal(drawn(pipe), before)
    pipe.unload_lora_weights()
    equal(drawn(pipe), before)


# ------------------------------------------------------------------------------------- files


def test_save_and_load(pipe, tmp_path):
    adapters = filled(StyleDrop(pipe, 3))
    adapters.prompt = PROMPT
    adapters.save(tmp_path / "style.safetensors")
    loaded = style_drop.load(tmp_path / "style.safetensors", pipe)
    equal(loaded.weights(), adapters.weights())
    assert (loaded.rank, loaded.prompt, loaded.strength) == (3, PROMPT, 1.0)
    with adapters:
        expected = drawn(pipe)
    with loaded:
        equal(drawn(pipe), expected)
    plain = drawn(pipe)
    with style_drop.load(tmp_path / "style.safetensors", pipe, strength=0.0):
        equal(drawn(pipe), plain)
    with safe_open(tmp_path / "style.safetensors", "pt") as file:
        assert file.metadata() == {"format": "style_drop", "rank": "3", "prompt": PROMPT, "size": ""}


def test_what_was_trained_is_saved_after_the_block(tiny_pipe, tmp_path):
    pipe = copy.deepcopy(tiny_pipe)
    with StyleDrop(pipe, 2) as adapters:
        trained(adapters)
        expected = drawn(pipe)
    adapters.save(tmp_path / "style.safetensors")
    fresh = frozen(tiny_pipe)
    with style_drop.load(tmp_path / "style.safetensors", fresh):
        equal(drawn(fresh), expected)


def test_files_are_whole_and_not_replaced(tiny_pipe, tmp_path, monkeypatch):
    adapters, path = StyleDrop(tiny_pipe, 2), tmp_path / "style.safetensors"
    adapters.save(path)
    with pytest.raises(FileExistsError, match="is not replaced unless you force it"):
        adapters.save(path)
    filled(adapters).save(path, force=True)
    equal(style_drop.load(path, tiny_pipe).weights(), adapters.weights())
    monkeypatch.setattr(style_drop, "save_file", lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        adapters.save(tmp_path / "other.safetensors")
    assert [file.name for file in tmp_path.iterdir()] == ["style.safetensors"]


def test_load_refuses(tiny_pipe, tmp_path):
    path = tmp_path / "style.safetensors"
    with pytest.raises(FileNotFoundError, match="no file .*style.safetensors; StyleDrop.save writes one"):
        style_drop.load(path, tiny_pipe)
    path.write_text(json.dumps({}))
    with pytest.raises(ValueError, match="is no whole file of safetensors"):
        style_drop.load(path, tiny_pipe)
    save_file({"a": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match="has no adapters of StyleDrop"):
        style_drop.load(path, tiny_pipe)
    xl = random_pipeline("sdxl")
    StyleDrop(xl).save(path, force=True)
    with pytest.raises(ValueError, match="adapters of another U-Net: .*transformer_blocks.1.ff.* has no place"):
        style_drop.load(path, tiny_pipe)
    StyleDrop(tiny_pipe).save(path, force=True)
    with pytest.raises(ValueError, match="adapters of another U-Net: .* is missing, and 7 more; load the pipeline"):
        style_drop.load(path, xl)
    adapters = StyleDrop(tiny_pipe, 2)
    save_file({k: v[:, :1].contiguous() for k, v in adapters.weights().items()}, path,
              {"format": "style_drop", "rank": "2", "prompt": "", "size": "tiny"})  # fmt: skip
    with pytest.raises(ValueError, match=r"another U-Net of size tiny: .* is \(2, 1\), not \(2, 16\), and"):
        style_drop.load(path, tiny_pipe)
