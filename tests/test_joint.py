"""Shared joint attention: equal to a slow restatement of its equations, and a patch that leaves nothing behind."""

import copy
import math
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from peft import LoraConfig
from torch.testing import assert_close

from stylemoments import joint, norms
from stylemoments.joint import JointStyleAligned
from stylemoments.references import KeptReference

from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler  # isort: skip
from diffusers import SD3Transformer2DModel, StableDiffusion3Pipeline  # isort: skip
from diffusers.models.attention_processor import JointAttnProcessor2_0, PAGJointAttnProcessor2_0  # isort: skip

OFF = {"adain_queries": False, "adain_keys": False}
SETTINGS = [
    {},
    OFF,
    {"reference_scale": 0.7},
    {"reference_shift": -1.5},
    {"reference_scale": 1.2, "reference_shift": 0.5},
    {"layers": 0.5},
]
IDS = [" ".join(each) or "default" for each in SETTINGS]


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def random_transformer(**settings):
    torch.manual_seed(0)
    transformer = SD3Transformer2DModel(
        sample_size=8, patch_size=2, in_channels=4, out_channels=4, num_layers=2, num_attention_heads=2,
        attention_head_dim=8, caption_projection_dim=16, joint_attention_dim=12, pooled_projection_dim=6,
        pos_embed_max_size=8, **settings,
    ).eval()  # fmt: skip
    for name, weight in transformer.named_parameters():  # norms and biases of a fresh network would hide faults
        if weight.ndim == 1:
            weight.data += 0.3 * torch.randn(weight.shape)
        elif "attn" in name:
            weight.data *= 2
    return transformer


KINDS = {
    "sd3": {},
    "sd35 large": {"qk_norm": "rms_norm"},
    "sd35 medium": {"qk_norm": "rms_norm", "dual_attention_layers": (0,)},
}


@pytest.fixture(scope="module", params=KINDS)
def transformer(request):
    """Each shape of transformer in turn; tests leave it as it was."""
    return random_transformer(**KINDS[request.param])


@pytest.fixture(scope="module")
def small():
    return random_transformer()


class Inputs:
    """What a transformer is called with: n pictures, doubled by guidance or not."""

    def __init__(self, n=3, guided=True, seed=0):
        copies = 1 + guided
        self.latents = torch.cat([normal(n, 4, 8, 8, seed=seed)] * copies)
        self.text, self.pooled = normal(copies * n, 5, 12, seed=seed + 1), normal(copies * n, 6, seed=seed + 2)

    def rows(self, rows):
        new = object.__new__(Inputs)
        new.latents, new.text, new.pooled = self.latents[rows], self.text[rows], self.pooled[rows]
        return new

    def through(self, transformer, t=500.0, **options):
        times = torch.full([len(self.latents)], t)
        return transformer(self.latents, self.text, self.pooled, times, **options).sample


@torch.no_grad()
def plain(transformer, inputs, **options):
    return inputs.through(transformer, **options)


@torch.no_grad()
def shared(transformer, inputs, **settings):
    with JointStyleAligned(transformer, **settings):
        return inputs.through(transformer)


# ------------------------------------------------------------------------------------- a slow restatement


def plain_adain(x, y):
    """Tokens N d, one head, as the paper writes it."""
    std = lambda z: (z.var(0) + 1e-5).sqrt()  # noqa: E731
    return std(y) * (x - x.mean(0)) / std(x) + y.mean(0)


def rms(norm, x):
    return x if norm is None else norm.weight * x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt()


class Restated:
    """The equations, row by row and head by head; `rows` says whom each row follows."""

    def __init__(self, rows, *, q=True, k=True, scale=1.0, shift=0.0, copies=1):
        self.rows, self.q, self.k, self.scale, self.shift, self.copies = rows, q, k, scale, shift, copies

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None):
        pictures, texts = [], []
        for row, reference in enumerate(self.rows):
            heads = []
            for head in range(attn.heads):
                picture = self.picture(attn, hidden_states[row], head)
                text = [torch.zeros(0, attn.inner_dim // attn.heads)] * 3
                if encoder_hidden_states is not None:
                    text = self.text(attn, encoder_hidden_states[row], head)
                its = None if reference == row else self.picture(attn, hidden_states[reference], head)
                heads.append(self.one(*picture, *text, its))
            tokens = torch.cat(heads, -1)
            pictures.append(attn.to_out[0](tokens[: len(hidden_states[row])]))
            texts.append(tokens[len(hidden_states[row]) :])
        if encoder_hidden_states is None:
            return torch.stack(pictures)
        texts = texts if attn.context_pre_only else [attn.to_add_out(text) for text in texts]
        return torch.stack(pictures), torch.stack(texts)

    @staticmethod
    def picture(attn, x, head):
        size = attn.inner_dim // attn.heads
        q, k, v = (to(x)[:, head * size : (head + 1) * size] for to in (attn.to_q, attn.to_k, attn.to_v))
        return rms(attn.norm_q, q), rms(attn.norm_k, k), v

    @staticmethod
    def text(attn, x, head):
        size, projections = attn.inner_dim // attn.heads, (attn.add_q_proj, attn.add_k_proj, attn.add_v_proj)
        q, k, v = (to(x)[:, head * size : (head + 1) * size] for to in projections)
        return rms(attn.norm_added_q, q), rms(attn.norm_added_k, k), v

    def one(self, q, k, v, q_text, k_text, v_text, its):
        logits_of = lambda q, k: q @ k.T / q.shape[-1] ** 0.5  # noqa: E731
        if its is None:
            q, k, v = torch.cat([q, q_text]), torch.cat([k, k_text]), torch.cat([v, v_text])
            return logits_of(q, k).softmax(-1) @ v
        q_r, k_r, v_r = its
        q = torch.cat([plain_adain(q, q_r) if self.q else q, q_text])
        k = plain_adain(k, k_r) if self.k else k
        logits = [logits_of(q, k), logits_of(q, k_text)]
        logits += [logits_of(q, self.scale * k_r) + self.shift] * self.copies
        return torch.cat(logits, -1).softmax(-1) @ torch.cat([v, v_text, *[v_r] * self.copies])


@torch.no_grad()
def restated(transformer, inputs, rows, *, names=None, **options):
    names = joint.layers(transformer) if names is None else names
    before = dict(transformer.attn_processors)
    processors = {
        name: Restated(rows, **options) if name.removesuffix(".processor") in names else p for name, p in before.items()
    }
    transformer.set_attn_processor(processors)
    try:
        return inputs.through(transformer)
    finally:
        transformer.set_attn_processor(before)


TOLERANCE = {"atol": 5e-5, "rtol": 1e-4}
ROUNDING = {"atol": 1e-5, "rtol": 1e-5}


@pytest.mark.parametrize(
    ("settings", "options"),
    [
        ({}, {}),
        ({"adain_queries": False}, {"q": False}),
        ({"adain_keys": False}, {"k": False}),
        ({"reference_scale": 0.6}, {"scale": 0.6}),
        ({"reference_scale": 0.0}, {"scale": 0.0}),
        ({"reference_shift": -0.8}, {"shift": -0.8}),
        ({"reference_shift": math.log(2)}, {"copies": 2}),  # a shift of log 2 is a second copy
        ({"reference_shift": -math.inf}, {"shift": -math.inf}),
    ],
    ids=str,
)
def test_equals_the_restated_equations(transformer, settings, options):
    inputs, followed = Inputs(), [0, 0, 0, 3, 3, 3]
    expected = restated(transformer, inputs, followed, **options)
    assert_close(shared(transformer, inputs, **settings), expected, **TOLERANCE)
    usual = restated(transformer, inputs, followed)
    assert not settings or (expected - usual).abs().max() > 1e-3  # the setting does something


def test_the_restatement_alone_is_the_transformer(transformer):
    inputs = Inputs()
    assert_close(restated(transformer, inputs, range(6)), plain(transformer, inputs), **TOLERANCE)


def test_another_reference_and_chosen_layers(transformer):
    inputs, names = Inputs(guided=False), joint.layers(transformer)
    for name in names:
        expected = restated(transformer, inputs, [2, 2, 2], names=[name])
        assert_close(shared(transformer, inputs, reference=2, layers=[name]), expected, **TOLERANCE)


def test_names_of_layers(transformer):
    dual = bool(transformer.config.dual_attention_layers)
    names = ["transformer_blocks.0.attn", "transformer_blocks.0.attn2", "transformer_blocks.1.attn"]
    assert joint.layers(transformer) == (names if dual else names[::2])
    inputs = Inputs(guided=False)
    first = shared(transformer, inputs, layers=["transformer_blocks.0"])
    assert_close(first, restated(transformer, inputs, [0, 0, 0], names=names[:2]), **TOLERANCE)


def test_an_odd_picture_and_another_length_of_text(transformer):
    inputs = Inputs(guided=False)
    inputs.latents, inputs.text = inputs.latents[..., :6, :], normal(3, 9, 12)
    expected = restated(transformer, inputs, [0, 0, 0], shift=0.4)
    assert_close(shared(transformer, inputs, reference_shift=0.4), expected, **TOLERANCE)


# ------------------------------------------------------------------------------------- facts


@pytest.mark.parametrize("settings", SETTINGS, ids=IDS)
@pytest.mark.parametrize("reference", [0, 1])
def test_the_reference_is_unpatched(transformer, settings, reference):
    inputs = Inputs()
    alone, together = plain(transformer, inputs), shared(transformer, inputs, reference=reference, **settings)
    assert_close(together[reference::3], alone[reference::3], **ROUNDING)
    targets = [i for i in range(6) if i % 3 != reference]
    assert (together - alone)[targets].abs().amax((1, 2, 3)).min() > 1e-3


def test_all_off_is_plain(transformer):
    inputs = Inputs()
    expected = plain(transformer, inputs)
    assert torch.equal(shared(transformer, inputs, layers=0), expected)
    assert_close(shared(transformer, inputs, **OFF, reference_shift=-math.inf), expected, atol=1e-5, rtol=1e-4)


def test_each_half_of_guidance_has_its_own_reference(transformer):
    inputs = Inputs()
    before = shared(transformer, inputs)
    inputs.text[:3] = normal(3, 5, 12, seed=3)
    after = shared(transformer, inputs)
    assert torch.equal(after[3:], before[3:]) and not torch.equal(after[:3], before[:3])


def test_halves_passes_and_pairs_agree(transformer):
    inputs, tolerance = Inputs(), {"atol": 1e-5, "rtol": 1e-4}
    together = shared(transformer, inputs)
    for half in (slice(0, 3), slice(3, 6)):  # guidance off, or run as two passes
        assert_close(shared(transformer, inputs.rows(half)), together[half], **tolerance)
    pairs = [0, 3, 1, 4, 2, 5]
    assert_close(shared(transformer, inputs.rows(pairs)), together[pairs], **tolerance)
    assert_close(shared(transformer, inputs, layout="halves"), together, **tolerance)
    single = restated(transformer, inputs, [0] * 6)
    assert_close(shared(transformer, inputs, layout="single"), single, **TOLERANCE)


def test_channels_of_an_image_to_edit_do_not_hide_guidance():
    transformer, inputs = random_transformer(), Inputs()
    wider = SD3Transformer2DModel.from_config({**transformer.config, "in_channels": 8}).eval()
    inputs.latents = torch.cat([inputs.latents, normal(6, 4, 8, 8, seed=9)], 1)  # others in each half
    assert torch.equal(shared(wider, inputs), shared(wider, inputs, layout="halves"))


def test_several_sets_and_a_picture_alone(transformer):
    inputs = Inputs(n=5, guided=False)
    found = shared(transformer, inputs, reference=[0, 0, 2, 2, 4])
    for rows in ([0, 1], [2, 3]):
        assert_close(found[rows], shared(transformer, inputs.rows(rows)), atol=1e-5, rtol=1e-4)
    assert_close(found[4], plain(transformer, inputs)[4], **ROUNDING)


def test_between_two_references(transformer):
    inputs = Inputs(n=4)
    of_one = shared(transformer, inputs, reference=[0, 1, 0, 0])
    mixed = shared(transformer, inputs, reference=[0, 1, {0: 0.4, 1: 0.6}, {0: 1.0}])
    assert_close(mixed[3::4], of_one[3::4], **TOLERANCE)
    assert (mixed[2::4] - of_one[2::4]).abs().amax((1, 2, 3)).min() > 1e-4
    for x in (inputs.latents, inputs.text, inputs.pooled):
        x[1::4] = x[0::4]  # a mixture of one with itself
    same = shared(transformer, inputs, reference=[0, 1, {0: 0.4, 1: 0.6}, 0], layout="halves")
    of_one = shared(transformer, inputs, reference=[0, 1, 0, 0], layout="halves")
    assert_close(same[2::4], of_one[2::4], **TOLERANCE)


def test_the_reference_hears_no_text_of_its_targets_and_they_none_of_its(small):
    inputs, layer = Inputs(guided=False), joint.layers(small)[-1:]
    before = shared(small, inputs, layers=layer)
    inputs.text[1] += 1  # of a target
    after = shared(small, inputs, layers=layer)
    assert torch.equal(after[[0, 2]], before[[0, 2]]) and not torch.equal(after[1], before[1])
    with JointStyleAligned(small) as aligned:
        aligned._begin(small, (inputs.latents, None, None, torch.tensor(1.0)), {})
        picture, text = ([normal(3, 2, n, 4, seed=n + i) for i in range(3)] for n in (6, 5))
        found = aligned.attend(picture, text)
        text = [x.clone() for x in text]
        for x in text:
            x[0] += 1  # of the reference
        again = aligned.attend(picture, text)
    assert torch.equal(again[1:], found[1:]) and not torch.equal(again[0], found[0])
    assert found.shape == (3, 2, 11, 4)


def test_the_picture_of_a_target_takes_the_moments_of_its_reference(small):
    with JointStyleAligned(small) as aligned:
        aligned._begin(small, (normal(3, 4, 8, 8), None, None, torch.tensor(1.0)), {})
        picture, text = ([normal(3, 2, n, 4, seed=n + i) * 2 + 1 for i in range(3)] for n in (6, 5))
        queries, keys, values, bias = aligned._shared(picture, text)
    assert bias is None and keys.shape == values.shape == (2, 2, 6 + 5 + 6, 4) and queries.shape == (2, 2, 6 + 5, 4)
    for found, given, words in zip((queries, keys), picture, text, strict=False):
        assert_close(found[:, :, :6], norms.adain(given[1:], given[:1], dim=-2))
        assert torch.equal(found[:, :, 6:11], words[1:])
    assert torch.equal(keys[:, :, 11:], picture[1][:1].expand(2, -1, -1, -1))
    assert torch.equal(values[0], torch.cat([picture[2][1], text[2][1], picture[2][0]], -2))


# ------------------------------------------------------------------------------------- a patch that leaves nothing


def everything(network):
    """All that a patch could have left in a network."""
    modules = dict(network.named_modules())
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in modules.values()]
    return {name: id(p) for name, p in network.attn_processors.items()}, hooks, [*modules], {
        name: sorted(set(vars(m)) - {"_modules"}) for name, m in modules.items()
    }  # fmt: skip


def test_the_network_is_as_before(transformer):
    inputs, before = Inputs(), everything(transformer)
    output = plain(transformer, inputs)
    with JointStyleAligned(transformer):
        assert everything(transformer) != before
    assert everything(transformer) == before
    assert torch.equal(plain(transformer, inputs), output)


@pytest.mark.parametrize("where", ["block", "batch"])
def test_the_network_is_as_before_after_an_exception(small, where):
    before = everything(small)
    with pytest.raises((KeyError, ValueError)), JointStyleAligned(small):
        if where == "block":
            raise KeyError
        Inputs(n=1).through(small)
    assert everything(small) == before


def test_one_instance_can_be_entered_again(small):
    inputs, aligned, found = Inputs(), JointStyleAligned(small), []
    for _ in range(2):
        with torch.no_grad(), aligned:
            found.append(inputs.through(small))
    assert torch.equal(*found)


def test_nested_use_is_refused_and_leaves_the_outer_one(small):
    inputs = Inputs()
    expected = shared(small, inputs)
    with torch.no_grad(), JointStyleAligned(small) as outer:
        for inner in (outer, JointStyleAligned(small, layers=0)):
            with pytest.raises(RuntimeError, match="already"), inner:
                pass
        assert torch.equal(inputs.through(small), expected)


def test_lora_stays_and_acts():
    transformer = random_transformer(qk_norm="rms_norm")
    inputs = Inputs()
    without = shared(transformer, inputs)
    targets = ["to_q", "to_k", "to_v", "to_out.0", "add_k_proj", "to_add_out"]
    transformer.add_adapter(LoraConfig(r=2, init_lora_weights=False, target_modules=targets))
    before, found = everything(transformer), shared(transformer, inputs)
    assert (found - without).abs().max() > 1e-3
    assert_close(found, restated(transformer, inputs, [0, 0, 0, 3, 3, 3]), **TOLERANCE)
    assert everything(transformer) == before


def test_a_pipeline_stands_for_its_transformer_and_keywords_for_places(small):
    inputs, expected = Inputs(), shared(small, Inputs())
    with torch.no_grad(), JointStyleAligned(SimpleNamespace(transformer=small)):
        options = {"encoder_hidden_states": inputs.text, "pooled_projections": inputs.pooled}
        found = small(hidden_states=inputs.latents, timestep=torch.full([6], 500.0), **options).sample
    assert torch.equal(found, expected)


def test_a_timestep_for_each_row(small):
    """As in training."""
    inputs, times = Inputs(guided=False), torch.tensor([900.0, 500.0, 100.0])
    with torch.no_grad():
        alone = small(inputs.latents, inputs.text, inputs.pooled, times).sample
        with JointStyleAligned(small):
            found = small(inputs.latents, inputs.text, inputs.pooled, times).sample
    assert_close(found[0], alone[0], **ROUNDING)
    assert (found - alone)[1:].abs().amax((1, 2, 3)).min() > 1e-3


def test_dropout_after_attention_acts():
    transformer = random_transformer()
    transformer.transformer_blocks[1].attn.to_out[1].p = 1.0
    transformer.train()
    layer = ["transformer_blocks.1"]
    inputs = Inputs()
    assert torch.equal(shared(transformer, inputs, layers=layer), plain(transformer, inputs))  # all of it is dropped


def test_gradients_flow_from_targets_to_the_reference_and_not_back(small):
    inputs = Inputs(guided=False)
    inputs.latents.requires_grad_()
    with JointStyleAligned(small, reference_shift=0.5):
        output = inputs.through(small)
    of_target, of_reference = (
        torch.autograd.grad(output[i].sum(), inputs.latents, retain_graph=True)[0].abs().amax((1, 2, 3)) for i in (1, 0)
    )
    assert of_target[0] > 0 and of_target[1] > 0 and of_target[2] == 0
    assert of_reference[0] > 0 and (of_reference[1:] == 0).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_does_not_overflow(small, dtype):
    picture, text = ([normal(2, 1, n, 8, seed=i) * 40 for i in range(3)] for n in (4096, 77))
    with JointStyleAligned(small, reference_shift=0.1) as aligned:
        aligned._begin(small, (normal(2, 4, 8, 8), None, None, torch.tensor(1.0)), {})
        found = aligned.attend([x.to(dtype) for x in picture], [x.to(dtype) for x in text])
    assert found.dtype == dtype and found.isfinite().all()


def test_in_bfloat16():
    transformer, inputs = random_transformer(**KINDS["sd35 medium"]), Inputs()
    expected = shared(transformer, inputs, reference_shift=0.4)
    transformer.to(torch.bfloat16)
    inputs.latents, inputs.text, inputs.pooled = (x.bfloat16() for x in (inputs.latents, inputs.text, inputs.pooled))
    found = shared(transformer, inputs, reference_shift=0.4)
    assert found.dtype == torch.bfloat16
    assert_close(found.float(), expected, atol=0.15, rtol=0.05)


def test_attention_is_always_fused_and_the_bias_one_row(small, monkeypatch):
    masks, fused = [], F.scaled_dot_product_attention

    def watched(*tokens, attn_mask=None, **options):
        masks.append(attn_mask)
        return fused(*tokens, attn_mask=attn_mask, **options)

    monkeypatch.setattr(F, "scaled_dot_product_attention", watched)
    inputs = Inputs(guided=False)
    shared(small, inputs)
    assert len(masks) == 4 and all(mask is None for mask in masks)
    masks.clear()
    shared(small, inputs, reference_shift=1.0)
    assert [mask.shape for mask in masks if mask is not None] == [(2, 1, 1, 16 + 5 + 16)] * 2


# ------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"reference_scale": -1.0}, "reference_scale is a finite factor"),
        ({"reference_shift": math.nan}, "reference_shift is a number up to 100"),
        ({"layout": "thirds"}, "the layout is one of"),
        ({"layers": 1.5}, "a fraction from 0 to 1"),
        ({"layers": ["down_blocks"]}, "'down_blocks'"),
        ({"reference": -1}, "reference is the index"),
        ({"reference": KeptReference()}, "draw the reference in the batch of its targets"),
    ],
)
def test_settings_out_of_range(small, settings, message):
    with pytest.raises(ValueError, match=message):
        JointStyleAligned(small, **settings)


def test_other_networks_are_refused(tiny_pipe):
    for other in (tiny_pipe, tiny_pipe.unet, None):
        with pytest.raises(TypeError, match="SD3Transformer2DModel.*got"):
            JointStyleAligned(other)


@pytest.mark.parametrize(
    ("inputs", "settings", "message"),
    [
        (Inputs(n=1), {}, "none that follows another"),
        (Inputs(n=2), {"reference": 2}, "cannot follow picture 2"),
        (Inputs(n=3), {"reference": [0, 0]}, "2 entries"),
        (Inputs(n=3, guided=False), {"layout": "halves"}, "two rows for each picture"),
    ],
)
def test_batches_that_do_not_fit(small, inputs, settings, message):
    with pytest.raises(ValueError, match=message):
        shared(small, inputs, **settings)


def test_rows_that_only_looked_like_guidance_are_refused(small):
    inputs = Inputs()
    with torch.no_grad(), JointStyleAligned(small):
        inputs.through(small, 900.0)
        inputs.latents[4] += 1
        with pytest.raises(ValueError, match="they were no guidance"):
            inputs.through(small, 800.0)


def test_what_would_go_wrong_unseen_is_refused():
    transformer = random_transformer()
    inputs = Inputs()
    with torch.no_grad(), JointStyleAligned(transformer):
        with pytest.raises(RuntimeError, match="leave the block"):
            copy.deepcopy(transformer)
        inputs.through(transformer)
        layer, tokens = transformer.transformer_blocks[0].attn, (normal(6, 16, 16), normal(6, 5, 16))
        with pytest.raises(RuntimeError, match="with 6 rows, and a layer of it with 2"):
            layer(*(x[:2] for x in tokens))
        with pytest.raises(ValueError, match="attention mask"):
            layer(*tokens, attention_mask=torch.ones(6, 21))
        transformer.set_attn_processor(JointAttnProcessor2_0())
        with pytest.raises(RuntimeError, match="was replaced"):
            inputs.through(transformer)
    transformer.enable_gradient_checkpointing()
    with pytest.raises(RuntimeError, match="disable_gradient_checkpointing"), JointStyleAligned(transformer):
        inputs.through(transformer)
    shared(transformer, inputs)  # without gradients nothing is computed again
    transformer.disable_gradient_checkpointing()
    transformer.transformer_blocks[1].compile(backend="eager")
    with pytest.raises(RuntimeError, match="compiled"):
        shared(transformer, inputs)
    with pytest.raises(TypeError, match="compiled"):
        JointStyleAligned(torch.compile(transformer, backend="eager"))


def test_a_processor_that_would_be_lost_is_refused():
    transformer = random_transformer()
    transformer.transformer_blocks[1].attn.set_processor(PAGJointAttnProcessor2_0())
    before = everything(transformer)
    with pytest.raises(TypeError, match="PAGJointAttnProcessor2_0"), JointStyleAligned(transformer):
        pass
    assert everything(transformer) == before
    with JointStyleAligned(transformer, layers=["transformer_blocks.0"]):  # the other layer can be shared
        pass


# ------------------------------------------------------------------------------------- a whole pipeline


@pytest.fixture(scope="module")
def pipe():
    torch.manual_seed(0)
    vae = AutoencoderKL(
        block_out_channels=(8, 8), norm_num_groups=4, latent_channels=4, sample_size=16, scaling_factor=1.5,
        shift_factor=0.06, down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
    ).eval()  # fmt: skip
    nobody = dict.fromkeys(
        f"{kind}{number}" for kind in ("text_encoder", "tokenizer") for number in ("", "_2", "_3")
    )  # fmt: skip
    pipe = StableDiffusion3Pipeline(
        transformer=random_transformer(qk_norm="rms_norm", dual_attention_layers=(0,)),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0), vae=vae, **nobody,
    )  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.mark.parametrize("guidance", [1.0, 4.0])
@pytest.mark.parametrize("options", [{}, {"skip_guidance_layers": [0]}], ids=str)
def test_a_pipeline_draws_the_same_reference_and_other_targets(pipe, guidance, options):
    def pictures():
        return pipe(
            prompt_embeds=normal(3, 5, 12), negative_prompt_embeds=normal(3, 5, 12, seed=1),
            pooled_prompt_embeds=normal(3, 6), negative_pooled_prompt_embeds=normal(3, 6, seed=1), height=16, width=16,
            latents=normal(3, 4, 8, 8), num_inference_steps=4, guidance_scale=guidance, output_type="pt", **options,
        ).images  # fmt: skip

    alone = pictures()
    with JointStyleAligned(pipe):
        together = pictures()
    assert together.shape == (3, 3, 16, 16)
    assert_close(together[0], alone[0], **ROUNDING)
    assert (together - alone)[1:].abs().amax((1, 2, 3)).min() > 1e-3
    assert torch.equal(pictures(), alone)
