"""LoRA on some rows: the others are the base model bit for bit, these are as with LoRA on all."""

import copy
from contextlib import ExitStack

import pytest
import torch
from peft import LoraConfig
from torch.testing import assert_close

from stylemoments import adapters, attention, diffusion, dreambooth
from stylemoments.adapters import Personalized
from stylemoments.dreambooth import DreamBooth, Settings
from stylemoments.style_aligned import StyleAligned

PROMPTS = ["a cat in neon light style", "a sks dog in neon light style", "an owl in neon light style"]
TARGETS = ("to_q", "to_k", "to_v", "to_out.0", "ff.net.2", "conv1", "time_emb_proj", "proj_in", "linear_1")


def equal(found, expected, **options):
    """Bit for bit."""
    assert_close(found, expected, rtol=0, atol=0, **options)


def with_lora(base, *, text="all", targets=TARGETS, alpha=None, seed=1):
    """A copy with LoRA as if it were trained, in attention, feed-forwards, convolutions and the time's embedding."""
    pipe, image = copy.deepcopy(base), torch.rand(3, 16, 16)
    settings = Settings(rank=2, prior_weight=0.0, text=text, targets=targets, alpha=alpha, batch=1)
    DreamBooth(pipe, [image], "sks", "dog", settings=settings)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in (pipe.unet, *dreambooth._encoders(pipe)):
            for name, p in sorted(module.named_parameters()):
                if "lora_B" in name:
                    p.copy_(torch.randn(p.shape, generator=generator) * 0.3)
    return pipe


@pytest.fixture(scope="module")
def personal(pipe):
    return with_lora(pipe)


@pytest.fixture(scope="module")
def tiny_personal(tiny_pipe):
    return with_lora(tiny_pipe)


class Inputs:
    """What a U-Net is called with: n pictures, as many times as guidance shows them, in a layout."""

    def __init__(self, pipe, layout="halves", n=3):
        prompts = diffusion.encode_prompts(pipe, PROMPTS[:n])
        latents = torch.randn(n, *diffusion.latent_shape(pipe), generator=torch.Generator().manual_seed(0))
        copies = 1 if layout == "single" else 2
        order = torch.arange(copies * n)
        order = order.view(2, -1).T.flatten() if layout == "pairs" else order
        self.latents = torch.cat([latents] * copies)[order]
        self.hidden = torch.cat([prompts.cond, prompts.uncond][:copies])[order]
        self.added = None
        if prompts.pooled is not None:
            pooled = torch.cat([prompts.pooled, prompts.pooled_uncond][:copies])[order]
            self.added = {"text_embeds": pooled, "time_ids": torch.cat([prompts.time_ids] * copies)}
        self.picture = torch.arange(n).repeat(copies)[order]

    @torch.no_grad()
    def through(self, pipe, t=500):
        return pipe.unet(self.latents, t, encoder_hidden_states=self.hidden, added_cond_kwargs=self.added).sample


# ------------------------------------------------------------------------------------- rows


@pytest.mark.parametrize("layout", ["single", "halves", "pairs"])
@pytest.mark.parametrize("pictures", [[1], [0, 2], [2, 1, 0]])
def test_some_rows_have_it_and_the_others_not(pipe, personal, layout, pictures):
    inputs = Inputs(pipe, layout)
    base, everywhere = inputs.through(pipe), inputs.through(personal)
    with Personalized(personal, pictures):
        found = inputs.through(personal)
    acting = torch.isin(inputs.picture, torch.tensor(pictures))
    assert acting.sum() == len(pictures) * (1 if layout == "single" else 2)
    equal(found[~acting], base[~acting])
    assert_close(found[acting], everywhere[acting], atol=1e-5, rtol=1e-5)
    assert ((found - base)[acting].abs().amax((1, 2, 3)) > 1e-3).all()


def test_the_equation_by_hand(tiny_pipe):
    """One layer: W x for all, and alpha / r B A x for one."""
    pipe = with_lora(tiny_pipe, targets=("to_q",), alpha=6.0)
    pipe.set_adapters("dreambooth", 0.5)
    name = next(name for name in attention.layers(pipe.unet))
    layer, plain = (each.unet.get_submodule(f"{name}.to_q") for each in (pipe, tiny_pipe))
    seen = []
    layer.register_forward_hook(lambda module, args, output: seen.append((args[0], output)))
    with Personalized(pipe, [1]):
        Inputs(tiny_pipe, "single").through(pipe)
    (x, found), b, a = seen[0], layer.lora_B["dreambooth"].weight, layer.lora_A["dreambooth"].weight
    expected = torch.einsum("oi,bni->bno", plain.weight, x)
    expected[1] += 0.5 * 6 / 2 * torch.einsum("or,ri,ni->no", b, a, x[1])
    assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_strength_is_what_the_pipeline_says(tiny_pipe, tiny_personal):
    pipe, inputs = copy.deepcopy(tiny_personal), Inputs(tiny_pipe)
    found = []
    for strength in (0.0, 0.4, 1.0):
        pipe.set_adapters("dreambooth", strength)
        everywhere = inputs.through(pipe)
        with Personalized(pipe, [1]):
            found.append(inputs.through(pipe)[1])
        assert_close(found[-1], everywhere[1], atol=1e-5, rtol=1e-5)
    assert_close(found[0], inputs.through(tiny_pipe)[1], atol=1e-5, rtol=1e-5)
    assert (found[1] - found[2]).abs().max() > 1e-3


def test_pictures_drawn_with_and_without_guidance(pipe, personal):
    for guidance in (1.0, 2.0):
        options = {"steps": 2, "guidance": guidance}
        said = diffusion.encode_prompts(pipe, PROMPTS)
        base = diffusion.generate(frozen(pipe), said, **options)
        everywhere = diffusion.generate(personal, said, **options)
        with Personalized(personal, [1]):
            found = diffusion.generate(personal, said, **options)
        equal(found[[0, 2]], base[[0, 2]])
        assert_close(found[1], everywhere[1], atol=1e-5, rtol=1e-5)
        assert (found[1] - base[1]).abs().max() > 1e-3


def frozen(pipe):
    """A copy without gradients, as the one with LoRA is: the decoder computes with other kernels then, a bit apart."""
    pipe = copy.deepcopy(pipe)
    pipe.vae.requires_grad_(False)
    return pipe


def test_the_pipelines_own_call(tiny_pipe, tiny_personal):
    options = {"num_inference_steps": 2, "guidance_scale": 3.0, "output_type": "latent"}
    said = diffusion.encode_prompts(tiny_pipe, PROMPTS)
    options |= {"prompt_embeds": said.cond, "negative_prompt_embeds": said.uncond}
    latents = diffusion.initial_latents(tiny_pipe, 3, 0)
    base, everywhere = (each(latents=latents.clone(), **options).images for each in (tiny_pipe, tiny_personal))
    with Personalized(tiny_personal, [2]):
        found = tiny_personal(latents=latents.clone(), **options).images
    equal(found[:2], base[:2])
    assert_close(found[2], everywhere[2], atol=1e-5, rtol=1e-5)


# ------------------------------------------------------------------------------------- with StyleAligned


@pytest.mark.parametrize("outer", ["aligned", "personal"])
def test_the_reference_is_the_base_models(pipe, personal, outer):
    options, said = {"steps": 2, "guidance": 2.0}, diffusion.encode_prompts(pipe, PROMPTS)
    base = diffusion.generate(frozen(pipe), said, **options)
    with StyleAligned(pipe):
        aligned = diffusion.generate(pipe, said, **options)
    with Personalized(personal, [1]):
        alone = diffusion.generate(personal, said, **options)
    blocks = [StyleAligned(personal), Personalized(personal, [1])]
    with ExitStack() as stack:
        for block in blocks if outer == "aligned" else reversed(blocks):
            stack.enter_context(block)
        found = diffusion.generate(personal, said, **options)
    equal(found[0], base[0])
    assert_close(found[2], aligned[2], atol=1e-5, rtol=1e-5)
    for other in (base, aligned, alone):
        assert (found[1] - other[1]).abs().max() > 1e-3
    with StyleAligned(personal):
        both = diffusion.generate(personal, said, **options)
    assert not torch.equal(both[0], base[0]), "with LoRA on all rows the reference has it, too"


# ------------------------------------------------------------------------------------- the patch


def test_nothing_is_left_behind(pipe):
    pipe, inputs = with_lora(pipe), Inputs(pipe)
    before, weights = inputs.through(pipe), {k: v.clone() for k, v in pipe.unet.state_dict().items()}
    grads = [p.requires_grad for p in pipe.unet.parameters()]
    for _ in range(2):
        with Personalized(pipe, [1]):
            assert not torch.equal(inputs.through(pipe), before)
        equal(inputs.through(pipe), before)
    with pytest.raises(ZeroDivisionError), Personalized(pipe, [1]):
        1 / 0  # noqa: B018
    equal(inputs.through(pipe), before)
    equal(dict(pipe.unet.state_dict()), weights)
    assert [p.requires_grad for p in pipe.unet.parameters()] == grads
    assert not any(module._forward_pre_hooks for module in pipe.unet.modules())


def test_gradients_reach_the_lora_from_its_rows(tiny_pipe, tiny_personal):
    inputs = Inputs(tiny_pipe)
    trained = [p for p in tiny_personal.unet.parameters() if p.requires_grad]
    with Personalized(tiny_personal, [1]):
        output = tiny_personal.unet(inputs.latents, 500, encoder_hidden_states=inputs.hidden).sample
    for row, reached in ((0, False), (1, True), (4, True)):
        found = torch.autograd.grad(output[row].sum(), trained, retain_graph=True)
        assert all(g.any() for g in found) if reached else not any(g.any() for g in found)


# ------------------------------------------------------------------------------------- prompts


def parts(prompts):
    return [x for x in (prompts.cond, prompts.uncond, prompts.pooled, prompts.pooled_uncond) if x is not None]


@pytest.mark.parametrize("negative", ["", "blurry"])
@pytest.mark.parametrize("pictures", [[1], [0, 2], [0, 1, 2]])
def test_prompts_with_and_without(pipe, personal, pictures, negative):
    found = adapters.encode_prompts(personal, PROMPTS, pictures, negative=negative)
    base, everywhere = (diffusion.encode_prompts(each, PROMPTS, negative=negative) for each in (pipe, personal))
    for x, plain, own in zip(parts(found), parts(base), parts(everywhere), strict=True):
        for i in range(3):
            if i in pictures:
                assert_close(x[i], own[i], atol=1e-5, rtol=1e-5)
                assert not torch.equal(own[i], plain[i]) or not plain[i].any()  # XL's empty negative prompt is zeros
            else:
                equal(x[i], plain[i])
    assert (found.time_ids is None) is (base.time_ids is None)
    again = diffusion.encode_prompts(personal, PROMPTS, negative=negative)
    equal(parts(again), parts(everywhere))


def test_encoders_without_lora_encode_all_alike(tiny_pipe):
    pipe = with_lora(tiny_pipe, text="frozen")
    equal(parts(adapters.encode_prompts(pipe, PROMPTS, [1])), parts(diffusion.encode_prompts(tiny_pipe, PROMPTS)))


def test_a_trained_token_is_for_those_who_say_it(tiny_pipe):
    pipe = with_lora(tiny_pipe, text="token")
    (table, row), = dreambooth._token_rows(pipe, "sks")  # fmt: skip
    with torch.no_grad():
        table[row] += 1
    found, base = adapters.encode_prompts(pipe, PROMPTS, [1]), diffusion.encode_prompts(tiny_pipe, PROMPTS)
    equal(found.cond[[0, 2]], base.cond[[0, 2]])
    assert not torch.equal(found.cond[1], base.cond[1])


def test_prompts_refuse(tiny_personal):
    with pytest.raises(ValueError, match="picture 3 has no prompt: there are 3, for"):
        adapters.encode_prompts(tiny_personal, PROMPTS, [0, 3])
    with pytest.raises(ValueError, match="each once and one at least"):
        adapters.encode_prompts(tiny_personal, PROMPTS, [])
    with pytest.raises(ValueError, match="at least one prompt"):
        adapters.encode_prompts(tiny_personal, [], [0])


# ------------------------------------------------------------------------------------- what it refuses


@pytest.mark.parametrize("pictures", [[], [-1], [1, 1], [True], [0.0], 1, "1", None])
def test_pictures_are_indices(tiny_personal, pictures):
    with pytest.raises(ValueError, match="indices of those to personalize, from 0, each once and one at least"):
        Personalized(tiny_personal, pictures)


def test_pictures_lie_in_the_batch(tiny_pipe, tiny_personal):
    with (
        Personalized(tiny_personal, [1, 3]),
        pytest.raises(ValueError, match="picture 3 cannot be personalized: the batch has pictures 0 to 2"),
    ):
        Inputs(tiny_pipe).through(tiny_personal)


def test_two_pictures_from_one_noise(tiny_pipe, tiny_personal):
    said = diffusion.encode_prompts(tiny_pipe, PROMPTS[:2])
    latents, options = diffusion.initial_latents(tiny_pipe, 1, 0).repeat(2, 1, 1, 1), {"steps": 3, "guidance": 1.0}
    with Personalized(tiny_personal, [0]), pytest.raises(ValueError, match="so they were no guidance: pass layout="):
        diffusion.generate(tiny_personal, said, latents=latents, **options)
    with Personalized(tiny_personal, [1]), pytest.raises(ValueError, match='layout="single" says that they are two'):
        diffusion.generate(tiny_personal, said, latents=latents, **options)
    with Personalized(tiny_personal, [1], layout="single"):
        found = diffusion.generate(tiny_personal, said, latents=latents, **options)
    equal(found[0], diffusion.generate(frozen(tiny_pipe), said, latents=latents, **options)[0])


def test_the_lora_must_be_there_alone_and_active(tiny_pipe, tiny_personal):
    with pytest.raises(TypeError, match="whose .unet is a UNet2DConditionModel.* got object"):
        Personalized(object(), [0])
    with pytest.raises(ValueError, match="layout is one of auto, single, halves, pairs; got 'rows'"):
        Personalized(tiny_personal, [0], layout="rows")
    with pytest.raises(ValueError, match="has no LoRA 'dreambooth', it has none: load one first"):
        Personalized(tiny_pipe, [0])
    with pytest.raises(ValueError, match="has no LoRA 'style', it has dreambooth"):
        Personalized(tiny_personal, [0], adapter="style")
    pipe = copy.deepcopy(tiny_personal)
    with pytest.warns(UserWarning, match="multiple adapters"):
        pipe.unet.add_adapter(LoraConfig(r=1, target_modules=["to_q"]), adapter_name="style")
    with pytest.raises(RuntimeError, match="'dreambooth' must be active and alone, and style is"):
        Personalized(pipe, [0])
    pipe.unet.set_adapters(["dreambooth", "style"])
    with pytest.raises(RuntimeError, match="must be active and alone, and dreambooth, style is"):
        Personalized(pipe, [0])
    pipe.unet.set_adapters(["dreambooth"])
    with Personalized(pipe, [0]):
        pass
    pipe.unet.disable_lora()
    with pytest.raises(RuntimeError, match="must be active and alone, and none is: call pipe.enable_lora"):
        Personalized(pipe, [0])


def test_entering_refuses(tiny_pipe, tiny_personal):
    pipe = copy.deepcopy(tiny_personal)
    block = Personalized(pipe, [0])
    with block, pytest.raises(RuntimeError, match="personalized already; leave the other block first"):
        Personalized(pipe, [1]).__enter__()
    pipe.fuse_lora()
    with pytest.raises(RuntimeError, match="fused into the weights of all pictures: call pipe.unfuse_lora"):
        block.__enter__()
    pipe.unfuse_lora()
    pipe.unet._compiled_call_impl = lambda: None
    with pytest.raises(RuntimeError, match="compiled U-Net may not see the rows"):
        block.__enter__()
    pipe.unet._compiled_call_impl = None
    pipe.unload_lora_weights()
    with pytest.raises(ValueError, match="it has none"):
        block.__enter__()


def test_layers_are_called_by_the_unet(tiny_pipe, tiny_personal):
    layer = next(m for m in tiny_personal.unet.modules() if isinstance(m, adapters.LoraLayer))
    x = torch.zeros(2, 1)
    with Personalized(tiny_personal, [0]):
        with pytest.raises(RuntimeError, match="called with no rows, and a layer of it with 2: call the model itself"):
            layer(x)
        Inputs(tiny_pipe).through(tiny_personal)
        with pytest.raises(RuntimeError, match="called with 6 rows, and a layer of it with 2"):
            layer(x)
