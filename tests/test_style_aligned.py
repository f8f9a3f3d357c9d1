"""StyleAligned: equal to a slow restatement of its equations, and a patch that leaves nothing behind."""

import copy
import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F
from diffusers import ControlNetModel
from diffusers.models.attention_processor import (
    AttnProcessor,
    AttnProcessor2_0,
    CustomDiffusionAttnProcessor2_0,
    FusedAttnProcessor2_0,
    IPAdapterAttnProcessor2_0,
    SlicedAttnProcessor,
)
from peft import LoraConfig
from torch.testing import assert_close

from stylemoments import attention, diffusion, norms
from stylemoments.references import KeptReference
from stylemoments.style_aligned import StyleAligned, pooled

PROMPTS = ["a cat in neon light style", "an owl in neon light style", "a rocket in neon light style"]
SETTINGS = [
    {},
    {"adain_queries": False, "adain_keys": False},
    {"adain_values": True},
    {"share_attention": False},
    {"share_group_norm": True},
    {"share_layer_norm": True},
    {"reference_scale": 0.7},
    {"reference_shift": -1.5},
    {"share_group_norm": True, "share_layer_norm": True, "reference_scale": 1.2, "reference_shift": 0.5},
    {"layers": 0.5},
]
IDS = [" ".join(each) or "default" for each in SETTINGS]


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


class Inputs:
    """What a U-Net is called with: n pictures, doubled by guidance or not."""

    def __init__(self, pipe, n=3, guided=True, seed=0):
        prompts = diffusion.encode_prompts(pipe, (PROMPTS * n)[:n])
        self.latents = normal(n, *diffusion.latent_shape(pipe), seed=seed)
        halves = [(prompts.uncond, prompts.pooled_uncond)] * guided + [(prompts.cond, prompts.pooled)]
        self.hidden, pooled = torch.cat([hidden for hidden, _ in halves]), [p for _, p in halves]
        self.latents = torch.cat([self.latents] * len(halves))
        self.added = None
        if prompts.time_ids is not None:
            self.added = {"text_embeds": torch.cat(pooled), "time_ids": torch.cat([prompts.time_ids] * len(halves))}

    def rows(self, rows):
        new = object.__new__(Inputs)
        new.latents, new.hidden = self.latents[rows], self.hidden[rows]
        new.added = self.added and {name: x[rows] for name, x in self.added.items()}
        return new

    def through(self, unet, t=500, **options):
        return unet(self.latents, t, encoder_hidden_states=self.hidden, added_cond_kwargs=self.added, **options).sample


@torch.no_grad()
def plain(pipe, inputs, **options):
    return inputs.through(pipe.unet, **options)


@torch.no_grad()
def shared(pipe, inputs, *, t=500, **settings):
    with StyleAligned(pipe, **settings):
        return inputs.through(pipe.unet, t)


# ------------------------------------------------------------------------------------- a slow restatement


def plain_adain(x, y):
    """Tokens N d, one head, as the paper writes it."""
    std = lambda z: (z.var(0) + 1e-5).sqrt()  # noqa: E731
    return std(y) * (x - x.mean(0)) / std(x) + y.mean(0)


class Restated:
    """The equations of the paper, row by row and head by head; `rows` says whom each row follows."""

    def __init__(self, rows, *, q=True, k=True, v=False, share=True, scale=1.0, shift=0.0, copies=1):
        self.rows, self.q, self.k, self.v = rows, q, k, v
        self.share, self.scale, self.shift, self.copies = share, scale, shift, copies

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None):
        out = []
        for row, reference in enumerate(self.rows):
            heads = []
            for head in range(attn.heads):
                mine, its = ([self.tokens(attn, hidden_states[i], head, which) for which in ("q", "k", "v")]
                             for i in (row, reference))  # fmt: skip
                heads.append(self.one(*mine, *its) if row != reference else self.attend(*mine))
            out.append(attn.to_out[0](torch.cat(heads, -1)))
        return torch.stack(out)

    @staticmethod
    def tokens(attn, x, head, which):
        size = attn.inner_dim // attn.heads
        return getattr(attn, f"to_{which}")(x)[:, head * size : (head + 1) * size]

    def one(self, q, k, v, q_r, k_r, v_r):
        q = plain_adain(q, q_r) if self.q else q
        k = plain_adain(k, k_r) if self.k else k
        v = plain_adain(v, v_r) if self.v else v
        if not self.share:
            return self.attend(q, k, v)
        keys, values = torch.cat([k, *[self.scale * k_r] * self.copies]), torch.cat([v, *[v_r] * self.copies])
        return self.attend(
            q, keys, values, torch.cat([torch.zeros(len(k)), torch.full([len(k) * self.copies], self.shift)])
        )

    @staticmethod
    def attend(q, k, v, shift=0.0):
        return ((q @ k.T / q.shape[-1] ** 0.5) + shift).softmax(-1) @ v


@torch.no_grad()
def restated(pipe, inputs, rows, *, names=None, **options):
    names = attention.layers(pipe.unet) if names is None else names
    before = dict(pipe.unet.attn_processors)
    pipe.unet.set_attn_processor(
        {
            name: Restated(rows, **options) if name.removesuffix(".processor") in names else p
            for name, p in before.items()
        }
    )
    try:
        return inputs.through(pipe.unet)
    finally:
        pipe.unet.set_attn_processor(before)


@pytest.mark.parametrize(
    ("settings", "options"),
    [
        ({}, {}),
        ({"adain_queries": False}, {"q": False}),
        ({"adain_keys": False}, {"k": False}),
        ({"adain_values": True}, {"v": True}),
        ({"share_attention": False}, {"share": False}),
        ({"reference_scale": 0.6}, {"scale": 0.6}),
        ({"reference_shift": -0.8}, {"shift": -0.8}),
        ({"reference_shift": math.log(2)}, {"copies": 2}),  # a shift of log 2 is a second copy
        ({"reference_shift": -math.inf}, {"shift": -math.inf}),
    ],
)
def test_equals_the_restated_equations(pipe, settings, options):
    inputs = Inputs(pipe)
    expected = restated(pipe, inputs, [0, 0, 0, 3, 3, 3], **options)
    assert_close(shared(pipe, inputs, **settings), expected, atol=2e-5, rtol=1e-4)
    usual = restated(pipe, inputs, [0, 0, 0, 3, 3, 3])
    assert not settings or (expected - usual).abs().max() > 1e-3  # the setting does something


def test_another_reference_and_chosen_layers(pipe):
    inputs, names = Inputs(pipe, guided=False), attention.layers(pipe.unet)[:1]
    expected = restated(pipe, inputs, [2, 2, 2], names=names)
    assert_close(shared(pipe, inputs, reference=2, layers=names), expected, atol=2e-5, rtol=1e-4)


def test_full_attention_is_attention_over_all_pictures(pipe):
    inputs = Inputs(pipe)

    class Full:
        def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None):
            halves = [AttnProcessor()(attn, half.flatten(0, 1)[None]) for half in hidden_states.chunk(2)]
            return torch.cat(halves, 1).view_as(hidden_states)

    before = dict(pipe.unet.attn_processors)
    pipe.unet.set_attn_processor({name: Full() if ".attn1." in name else p for name, p in before.items()})
    expected = plain(pipe, inputs)
    pipe.unet.set_attn_processor(before)
    assert_close(shared(pipe, inputs, full_attention=True), expected, atol=2e-5, rtol=1e-4)


def test_full_attention_does_not_know_an_order(tiny_pipe):
    inputs, order = Inputs(tiny_pipe, guided=False), [2, 0, 1]
    one, two = (shared(tiny_pipe, each, full_attention=True) for each in (inputs, inputs.rows(order)))
    assert_close(two, one[order], atol=2e-5, rtol=1e-4)


def test_shared_group_norm_concatenates_the_pictures(pipe):
    """As the public code does: the reference below the target, the moments of both, the target cut out again."""
    inputs = Inputs(pipe, guided=False)

    def concatenated(norm, args, output):
        (x,) = args
        both = torch.cat([x, x[:1].expand_as(x)], -2)
        both = F.group_norm(both, norm.num_groups, norm.weight, norm.bias, norm.eps)
        return both[..., : x.shape[-2], :]

    hooks = [m.register_forward_hook(concatenated) for m in pipe.unet.modules() if isinstance(m, torch.nn.GroupNorm)]
    expected = plain(pipe, inputs)
    [hook.remove() for hook in hooks]
    found = shared(pipe, inputs, share_group_norm=True, share_attention=False, adain_queries=False, adain_keys=False)
    assert_close(found, expected, atol=2e-5, rtol=1e-4)
    assert (expected - plain(pipe, inputs))[1:].abs().max() > 1e-3


def test_pooled_moments_are_those_of_all_elements():
    target, references = normal(2, 3, 10) + 5, normal(2, 2, 3, 10, seed=1) * 3
    weights = torch.tensor([[1.0, 0.0], [0.5, 0.5]])
    found = pooled(*norms.moments(target, -1), weights, *norms.moments(references, -1))
    one = torch.cat([target[0], references[0, 0]], -1)
    two = torch.cat([target[1], target[1], *references[1]], -1)  # the target counts as much as both together
    for mean, variance, elements in zip(*found, (one, two), strict=True):
        assert_close((mean, variance), norms.moments(elements, -1))


# ------------------------------------------------------------------------------------- facts


@pytest.mark.parametrize("settings", SETTINGS, ids=IDS)
def test_the_reference_is_bit_for_bit_the_unpatched_sample(pipe, settings):
    options = {"steps": 3, "guidance": 3.0, "seed": 5}
    alone = diffusion.generate(pipe, PROMPTS, **options)
    with StyleAligned(pipe, reference=1, **settings):
        together = diffusion.generate(pipe, PROMPTS, **options)
    assert torch.equal(together[1], alone[1])
    assert not any(torch.equal(together[i], alone[i]) for i in (0, 2))


def test_sharing_layer_norm_changes_nothing(pipe):
    inputs = Inputs(pipe)
    assert torch.equal(shared(pipe, inputs, share_layer_norm=True), shared(pipe, inputs))
    norms_alone = {"share_layer_norm": True, "share_attention": False, "adain_queries": False, "adain_keys": False}
    assert_close(shared(pipe, inputs, **norms_alone), plain(pipe, inputs), atol=1e-6, rtol=1e-5)


def test_all_off_is_plain_sampling(pipe):
    inputs = Inputs(pipe)
    off = shared(pipe, inputs, share_attention=False, adain_queries=False, adain_keys=False)
    assert torch.equal(off, plain(pipe, inputs))
    assert torch.equal(shared(pipe, inputs, layers=0), plain(pipe, inputs))


def test_each_half_of_guidance_has_its_own_reference(pipe):
    inputs = Inputs(pipe)
    before = shared(pipe, inputs)
    inputs.hidden[:3] = normal(*inputs.hidden[:3].shape, seed=3)
    after = shared(pipe, inputs)
    assert torch.equal(after[3:], before[3:]) and not torch.equal(after[:3], before[:3])


@pytest.mark.parametrize("settings", [{}, {"share_group_norm": True, "reference_shift": 0.3}], ids=str)
def test_one_batch_two_passes_and_pairs_agree(pipe, settings):
    inputs = Inputs(pipe)
    together = shared(pipe, inputs, **settings)
    for half in (slice(0, 3), slice(3, 6)):  # guidance off, or run as two passes
        assert_close(shared(pipe, inputs.rows(half), **settings), together[half], atol=1e-6, rtol=1e-5)
    pairs = [0, 3, 1, 4, 2, 5]
    assert_close(shared(pipe, inputs.rows(pairs), **settings), together[pairs], atol=1e-6, rtol=1e-5)
    swapped = [3, 4, 5, 0, 1, 2]  # [cond; uncond]
    assert_close(shared(pipe, inputs.rows(swapped), **settings), together[swapped], atol=1e-6, rtol=1e-5)


def test_a_target_does_not_know_its_neighbors(pipe):
    inputs = Inputs(pipe, n=5, guided=False)
    whole = shared(pipe, inputs)
    assert_close(shared(pipe, inputs.rows([0, 3])), whole[[0, 3]], atol=1e-6, rtol=1e-5)


def test_several_sets_in_one_batch(pipe):
    inputs = Inputs(pipe, n=5)
    found = shared(pipe, inputs, reference=[0, 0, 2, 2, 2], share_group_norm=True)
    for rows in ([0, 1, 5, 6], [2, 3, 4, 7, 8, 9]):
        assert_close(found[rows], shared(pipe, inputs.rows(rows), share_group_norm=True), atol=1e-6, rtol=1e-5)


def test_full_attention_of_several_sets(tiny_pipe):
    inputs = Inputs(tiny_pipe, n=4)
    found = shared(tiny_pipe, inputs, reference=[0, 0, 2, 2], full_attention=True)
    for rows in ([0, 1, 4, 5], [2, 3, 6, 7]):
        assert_close(found[rows], shared(tiny_pipe, inputs.rows(rows), full_attention=True), atol=1e-6, rtol=1e-5)


def test_a_picture_that_follows_itself_is_left_alone(tiny_pipe):
    inputs = Inputs(tiny_pipe, guided=False)
    found = shared(tiny_pipe, inputs, reference=[0, 0, 2], share_group_norm=True)
    assert torch.equal(found[[0, 2]], plain(tiny_pipe, inputs)[[0, 2]])


@pytest.mark.parametrize("guided", [True, False])
def test_between_two_references(pipe, guided):
    inputs = Inputs(pipe, n=4, guided=guided)
    options = {"share_group_norm": True, "adain_values": True}
    of_one = shared(pipe, inputs, reference=[0, 1, 0, 0], **options)
    mixed = shared(pipe, inputs, reference=[0, 1, {0: 0.4, 1: 0.6}, {0: 1.0}], **options)
    assert_close(mixed[3::4], of_one[3::4], atol=1e-5, rtol=1e-4)
    assert (mixed[2::4] - of_one[2::4]).abs().amax((1, 2, 3)).min() > 1e-4
    for x in (inputs.latents, inputs.hidden, *(inputs.added or {}).values()):
        x[1::4] = x[0::4]  # a mixture of one with itself
    same = shared(pipe, inputs, reference=[0, 1, {0: 0.4, 1: 0.6}, 0], **options)
    assert_close(same[2::4], of_one[2::4], atol=1e-5, rtol=1e-4)


def test_moments_of_a_mixture_are_those_of_mixed_adains():
    from stylemoments.style_aligned import blended

    x, ys, weights = normal(1, 2, 9, 4), normal(2, 2, 9, 4, seed=1) * 2 + 1, torch.tensor([[0.3, 0.7]])
    expected = sum(w * norms.adain(x, y[None], dim=-2) for w, y in zip((0.3, 0.7), ys, strict=True))
    same = blended(torch.ones(1, 2, 1, 1, 1), torch.full((1, 2, 1, 1, 1), 1e-6), weights)
    assert_close(same, (torch.ones(1, 1, 1, 1), torch.full((1, 1, 1, 1), 1e-6)), atol=1e-9, rtol=1e-2)
    mean, variance = norms.moments(ys, -2, unbiased=True)
    assert_close(norms.with_moments(x, *blended(mean[None], variance[None], weights), dim=-2), expected)


# ------------------------------------------------------------------------------------- a kept reference


@pytest.mark.parametrize("guidance", [1.0, 3.0])
@pytest.mark.parametrize("settings", [{}, {"share_group_norm": True, "share_layer_norm": True, "adain_values": True}])
def test_a_kept_reference_equals_a_fresh_one(pipe, guidance, settings):
    options = {"steps": 3, "guidance": guidance}
    noise = diffusion.initial_latents(pipe, 3, 0)
    with StyleAligned(pipe, keep=True, **settings) as aligned:
        fresh = diffusion.generate(pipe, PROMPTS, latents=noise, **options)
    assert len(aligned.kept.calls) == 3
    with StyleAligned(pipe, reference=aligned.kept, **settings):
        for i in (1, 2, 1):  # one run after the other
            again = diffusion.generate(pipe, PROMPTS[i], latents=noise[i : i + 1], **options)
            assert_close(again[0], fresh[i], atol=1e-5, rtol=1e-4)


def test_a_reference_can_be_kept_alone_and_of_two_passes(tiny_pipe):
    inputs = Inputs(tiny_pipe)
    together = shared(tiny_pipe, inputs)
    with torch.no_grad(), StyleAligned(tiny_pipe, keep=True) as aligned:
        inputs.rows([0]).through(tiny_pipe.unet)
        inputs.rows([3]).through(tiny_pipe.unet)
    with torch.no_grad(), StyleAligned(tiny_pipe, reference=aligned.kept):
        for rows in ([1, 2], [4, 5]):
            found = inputs.rows(rows).through(tiny_pipe.unet)
            assert_close(found, together[rows], atol=1e-6, rtol=1e-5)


def test_the_size_of_a_kept_reference(tiny_pipe):
    inputs, (name,) = Inputs(tiny_pipe), attention.layers(tiny_pipe.unet)[:1]  # 4 x 4 tokens of 16 numbers, 2 heads
    with StyleAligned(tiny_pipe, keep=True, layers=[name]) as aligned:
        inputs.through(tiny_pipe.unet)  # gradients are on
    kept = aligned.kept.calls[0].layers[name]
    assert not any(x.requires_grad for x in (*kept[:2], *kept.queries))
    assert aligned.kept.nbytes == 2 * 4 * (2 * 16 * 16 + 2 * 16)  # 2 rows; keys, values; two moments
    assert repr(aligned.kept) == "KeptReference(1 calls of the U-Net, 0 MB)"


def test_norms_are_kept_of_a_reference_alone(tiny_pipe):
    inputs = Inputs(tiny_pipe, guided=False)
    settings = {"share_group_norm": True, "share_layer_norm": True}
    expected = shared(tiny_pipe, inputs, **settings)
    with StyleAligned(tiny_pipe, keep=True, **settings) as aligned, attention.recorded(tiny_pipe.unet, "self") as maps:
        inputs.rows([0]).through(tiny_pipe.unet)  # gradients are on
    assert not any(m.requires_grad for call in aligned.kept.calls for pair in call.norms.values() for m in pair)
    assert maps.at(4).shape == (1, 4, 4, 16)
    found = shared(tiny_pipe, inputs.rows([1, 2]), reference=aligned.kept, **settings)
    assert_close(found, expected[1:], atol=1e-5, rtol=1e-4)


def test_a_block_begins_with_the_first_kept_call(tiny_pipe):
    """A run of two passes that was left between them, and a new block."""
    inputs = Inputs(tiny_pipe)
    with torch.no_grad(), StyleAligned(tiny_pipe, keep=True) as aligned:
        inputs.rows([0]).through(tiny_pipe.unet)
        inputs.rows([3]).through(tiny_pipe.unet)
    following = StyleAligned(tiny_pipe, reference=aligned.kept)
    for _ in range(2):
        with torch.no_grad(), following:
            found = inputs.rows([1]).through(tiny_pipe.unet)
    assert_close(found[0], shared(tiny_pipe, inputs)[1], atol=1e-6, rtol=1e-5)


def test_a_run_that_was_left_early_does_not_shift_the_next(tiny_pipe):
    noise, options = diffusion.initial_latents(tiny_pipe, 2, 0), {"steps": 3, "guidance": 2.0}
    with StyleAligned(tiny_pipe, keep=True) as aligned:
        fresh = diffusion.generate(tiny_pipe, PROMPTS[:2], latents=noise, **options)
    with StyleAligned(tiny_pipe, reference=aligned.kept):
        next(diffusion.sample(tiny_pipe, PROMPTS[1], latents=noise[1:], **options))
        again = diffusion.generate(tiny_pipe, PROMPTS[1], latents=noise[1:], **options)
    assert_close(again[0], fresh[1], atol=1e-5, rtol=1e-4)


def test_kept_references_are_checked(tiny_pipe):
    with StyleAligned(tiny_pipe, keep=True, layers=0.5) as aligned:
        diffusion.generate(tiny_pipe, PROMPTS[0], steps=2, guidance=2.0)
    kept = aligned.kept
    with (
        pytest.raises(ValueError, match="same steps, guidance and size"),
        StyleAligned(tiny_pipe, reference=kept, layers=0.5),
    ):
        diffusion.generate(tiny_pipe, PROMPTS[1], steps=3, guidance=2.0)
    with (
        pytest.raises(ValueError, match="same steps, guidance and size"),
        StyleAligned(tiny_pipe, reference=kept, layers=0.5),
    ):
        diffusion.generate(tiny_pipe, PROMPTS[1:], steps=2, guidance=1.0)
    with pytest.raises(ValueError, match="nothing was kept of layer"):
        StyleAligned(tiny_pipe, reference=kept)
    with pytest.raises(ValueError, match="nothing was kept for share_group_norm"):
        StyleAligned(tiny_pipe, reference=kept, layers=0.5, share_group_norm=True)
    with pytest.raises(ValueError, match="kept already"):
        StyleAligned(tiny_pipe, reference=kept, layers=0.5, keep=True)
    with pytest.raises(ValueError, match="empty"):
        StyleAligned(tiny_pipe, reference=KeptReference())
    with pytest.raises(ValueError, match="a second one began"), StyleAligned(tiny_pipe, keep=True):
        for _ in range(2):
            diffusion.generate(tiny_pipe, PROMPTS[0], steps=2)
    with pytest.raises(ValueError, match="guidance and size"), StyleAligned(tiny_pipe, reference=kept, layers=0.5):
        diffusion.generate(tiny_pipe, PROMPTS[1], steps=2, guidance=2.0, latents=normal(1, 4, 6, 8))
    kept.calls[1].layers.clear()
    with pytest.raises(ValueError, match="keep a whole run"):
        StyleAligned(tiny_pipe, reference=kept, layers=0.5)
    with pytest.raises(ValueError, match="keeps one reference"), StyleAligned(tiny_pipe, keep=True, reference=[0, 1]):
        diffusion.generate(tiny_pipe, PROMPTS[:2], steps=2)


# ------------------------------------------------------------------------------------- a patch that leaves nothing


def everything(unet):
    """All that a patch could have left in a network."""
    modules = dict(unet.named_modules())
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in modules.values()]
    return {name: id(p) for name, p in unet.attn_processors.items()}, hooks, [*modules], {
        name: sorted(set(vars(m)) - {"_modules"}) for name, m in modules.items()
    }  # fmt: skip


def test_the_network_is_as_before(pipe):
    inputs, before = Inputs(pipe), everything(pipe.unet)
    output = plain(pipe, inputs)
    shared(pipe, inputs, share_group_norm=True, share_layer_norm=True)
    assert everything(pipe.unet) == before
    assert torch.equal(plain(pipe, inputs), output)


@pytest.mark.parametrize("where", ["block", "batch"])
def test_the_network_is_as_before_after_an_exception(tiny_pipe, where):
    before = everything(tiny_pipe.unet)
    with pytest.raises((KeyError, ValueError)), StyleAligned(tiny_pipe, share_group_norm=True):
        if where == "block":
            raise KeyError
        diffusion.generate(tiny_pipe, PROMPTS[0], steps=2)
    assert everything(tiny_pipe.unet) == before


def test_one_instance_can_be_entered_again(tiny_pipe):
    inputs, aligned, found = Inputs(tiny_pipe), StyleAligned(tiny_pipe), []
    for _ in range(2):
        with torch.no_grad(), aligned:
            found.append(inputs.through(tiny_pipe.unet))
    assert torch.equal(*found)


def test_nested_use_is_refused_and_leaves_the_outer_one(tiny_pipe):
    inputs = Inputs(tiny_pipe)
    expected = shared(tiny_pipe, inputs)
    with torch.no_grad(), StyleAligned(tiny_pipe) as outer:
        for inner in (outer, StyleAligned(tiny_pipe, layers=0)):
            with pytest.raises(RuntimeError, match="already"), inner:
                pass
        assert torch.equal(inputs.through(tiny_pipe.unet), expected)


def random_pipe():
    from conftest import random_pipeline

    return random_pipeline("sd15")


def test_lora_stays_and_acts():
    pipe = random_pipe()
    inputs, without = Inputs(pipe), shared(pipe, Inputs(pipe))
    pipe.unet.add_adapter(LoraConfig(r=2, init_lora_weights=False, target_modules=["to_q", "to_k", "to_v", "to_out.0"]))
    before, weights = everything(pipe.unet), {name: p.clone() for name, p in pipe.unet.named_parameters()}
    found = shared(pipe, inputs)
    assert (found - without).abs().max() > 1e-3
    assert_close(found, restated(pipe, inputs, [0, 0, 0, 3, 3, 3]), atol=2e-5, rtol=1e-4)
    assert everything(pipe.unet) == before
    assert all(torch.equal(p, weights[name]) for name, p in pipe.unet.named_parameters())


def test_ip_adapter_processors_stay_and_act():
    pipe = random_pipe()
    torch.manual_seed(0)
    processors = {
        name: IPAdapterAttnProcessor2_0(layer.inner_dim, 16, num_tokens=(2,))
        if ".attn2." in name
        else AttnProcessor2_0()
        for name in pipe.unet.attn_processors
        for layer in [pipe.unet.get_submodule(name.removesuffix(".processor"))]
    }
    pipe.unet.set_attn_processor(processors)
    before, state = everything(pipe.unet), {name: x.clone() for name, x in pipe.unet.state_dict().items()}
    inputs, picture = Inputs(pipe), normal(6, 1, 2, 16, seed=4)
    inputs.hidden = (inputs.hidden, [picture])
    found = shared(pipe, inputs)
    assert_close(found, restated(pipe, inputs, [0, 0, 0, 3, 3, 3]), atol=2e-5, rtol=1e-4)
    inputs.hidden = (inputs.hidden[0], [picture * 0])
    assert (shared(pipe, inputs) - found).abs().max() > 1e-4
    assert everything(pipe.unet) == before
    assert [*state] == [*pipe.unet.state_dict()] and all(
        torch.equal(x, state[n]) for n, x in pipe.unet.state_dict().items()
    )


def test_controlnet_acts_and_is_not_patched():
    pipe = random_pipe()
    torch.manual_seed(0)
    control = ControlNetModel.from_unet(pipe.unet, conditioning_embedding_out_channels=(4, 4)).eval()
    for weight in control.parameters():
        weight.data += 0.05 * torch.randn(weight.shape)
    inputs, before = Inputs(pipe), everything(control)
    condition = torch.rand(6, 3, 16, 16)
    with torch.no_grad():
        down, middle = control(inputs.latents, 500, inputs.hidden, condition, return_dict=False)
        extra = {"down_block_additional_residuals": down, "mid_block_additional_residual": middle}
        with StyleAligned(pipe):
            assert everything(control) == before
            found = inputs.through(pipe.unet, **extra)
    assert torch.equal(found[[0, 3]], plain(pipe, inputs, **extra)[[0, 3]])
    assert (found - shared(pipe, inputs)).abs().max() > 1e-3


@pytest.mark.parametrize("kind", [AttnProcessor, AttnProcessor2_0, SlicedAttnProcessor, FusedAttnProcessor2_0])
def test_plain_processors_give_way(kind):
    pipe = random_pipe()
    inputs, expected = Inputs(pipe), shared(pipe, Inputs(pipe))
    if kind is FusedAttnProcessor2_0:
        pipe.unet.fuse_qkv_projections()
    pipe.unet.set_attn_processor(kind(1) if kind is SlicedAttnProcessor else kind())
    before = everything(pipe.unet)
    assert_close(shared(pipe, inputs), expected, atol=1e-5, rtol=1e-4)
    assert everything(pipe.unet) == before


def test_what_would_go_wrong_unseen_is_refused():
    pipe = random_pipe()
    inputs = Inputs(pipe)
    with torch.no_grad(), StyleAligned(pipe, share_group_norm=True):
        with pytest.raises(RuntimeError, match="leave the block"):
            copy.deepcopy(pipe.unet)
        with pytest.raises(RuntimeError, match="with 6 rows, and a layer of it with 2"):
            inputs.through(pipe.unet)
            layer = pipe.unet.get_submodule(attention.layers(pipe.unet)[0])
            layer(normal(2, 16, 16))
        with pytest.raises(ValueError, match="other tokens to look at"):
            layer(normal(6, 16, 16), encoder_hidden_states=normal(6, 5, 16))
        pipe.unet.set_attn_processor(AttnProcessor())
        with pytest.raises(RuntimeError, match="was replaced"):
            inputs.through(pipe.unet)
    pipe.unet.train().enable_gradient_checkpointing()
    with pytest.raises(RuntimeError, match="disable_gradient_checkpointing"):
        shared(pipe, inputs)
    pipe.unet.eval().disable_gradient_checkpointing()
    shared(pipe, inputs)
    pipe.unet.compile(backend="eager")
    with pytest.raises(RuntimeError, match="compiled"):
        shared(pipe, inputs)
    pipe.unet = torch.compile(pipe.unet, backend="eager")
    with pytest.raises(TypeError, match="compiled"):
        StyleAligned(pipe)


def test_dropout_after_attention_acts():
    pipe = random_pipe()
    pipe.unet.get_submodule(attention.layers(pipe.unet)[0]).to_out[1].p = 1.0
    inputs = Inputs(pipe)
    pipe.unet.train()
    layers = attention.layers(pipe.unet)[:1]
    assert torch.equal(shared(pipe, inputs, layers=layers), plain(pipe, inputs))  # all of the layer is dropped


def test_a_processor_that_would_be_lost_is_refused():
    pipe = random_pipe()
    name = attention.layers(pipe.unet)[-1]
    pipe.unet.get_submodule(name).set_processor(CustomDiffusionAttnProcessor2_0(hidden_size=16, cross_attention_dim=16))
    before = everything(pipe.unet)
    with pytest.raises(TypeError, match="CustomDiffusionAttnProcessor2_0"), StyleAligned(pipe):
        pass
    assert everything(pipe.unet) == before
    shared(pipe, Inputs(pipe), layers=attention.layers(pipe.unet)[:1])  # the other layers can be shared


def test_the_pipelines_own_call(pipe):
    """Anything that calls the U-Net is patched: the pictures are those of our loop."""
    noise, options = diffusion.initial_latents(pipe, 3, 0), {"output_type": "np"}
    with StyleAligned(pipe):
        ours = diffusion.generate(pipe, PROMPTS, latents=noise, steps=3, guidance=3.0)
        theirs = pipe(PROMPTS, latents=noise, num_inference_steps=3, guidance_scale=3.0, **options).images
    assert_close(ours, torch.from_numpy(theirs).permute(0, 3, 1, 2), atol=1e-4, rtol=1e-3)


# ------------------------------------------------------------------------------------- watching, gradients, precision


def test_attention_maps_show_what_is_shared(tiny_pipe):
    inputs, side = Inputs(tiny_pipe, guided=False), 4
    with torch.no_grad(), StyleAligned(tiny_pipe, reference_shift=-math.inf):
        with attention.recorded(tiny_pipe.unet, "self") as maps:
            inputs.through(tiny_pipe.unet)
    looks = maps.at(side)
    assert looks.shape == (3, side, side, 2 * side**2) and looks[..., side**2 :].sum() == 0
    with torch.no_grad(), StyleAligned(tiny_pipe), attention.recorded(tiny_pipe.unet, "self") as maps:
        inputs.through(tiny_pipe.unet)
    looks = maps.at(side)
    assert_close(looks.sum(-1), torch.ones(3, side, side))
    assert looks[0, ..., side**2 :].sum() == 0 and (looks[1:, ..., side**2 :].sum(-1) > 0.2).all()
    with torch.no_grad(), StyleAligned(tiny_pipe, full_attention=True):
        with attention.recorded(tiny_pipe.unet, "self") as maps:
            inputs.through(tiny_pipe.unet)
    assert maps.at(side).shape == (3, side, side, 3 * side**2)


def test_recorded_maps_are_those_that_are_used(tiny_pipe):
    """Probabilities times values are the output of the heads."""
    q, k, v = (normal(3, 2, 6, 4, seed=seed) for seed in range(3))
    for settings in ({}, {"reference_shift": 0.7, "reference_scale": 0.8}, {"full_attention": True}):
        with StyleAligned(tiny_pipe, **settings) as aligned:
            aligned._begin(tiny_pipe.unet, (normal(3, 4, 8, 8), 1), {})
            looks = aligned.probabilities("x", q, k)
            others = v[aligned._rows.source][aligned._rows.followed].transpose(1, 2).flatten(2, 3)
            rows = aligned._rows.targets
            expected = looks[rows] @ torch.cat([v[rows], others], -2)
            assert_close(aligned.attend("x", q, k, v)[rows], expected)


def test_maps_of_the_reference_are_those_of_plain_attention(tiny_pipe):
    inputs = Inputs(tiny_pipe)
    with torch.no_grad(), attention.recorded(tiny_pipe.unet, "self") as expected:
        inputs.rows([0, 3]).through(tiny_pipe.unet)
    with torch.no_grad(), StyleAligned(tiny_pipe, layers=0), attention.recorded(tiny_pipe.unet, "self") as maps:
        inputs.through(tiny_pipe.unet)
    assert_close(maps.at(4)[[0, 3]], expected.at(4))
    with torch.no_grad(), StyleAligned(tiny_pipe), attention.recorded(tiny_pipe.unet, "self") as maps:
        inputs.through(tiny_pipe.unet)
    assert_close(maps.at(4)[[0, 3], ..., :16], expected.at(4))


def test_maps_of_shared_and_other_layers_are_not_mixed(tiny_pipe):
    with torch.no_grad(), StyleAligned(tiny_pipe, layers=0.4), attention.recorded(tiny_pipe.unet, "self") as maps:
        Inputs(tiny_pipe).through(tiny_pipe.unet)
    with pytest.raises(ValueError, match=r"look at \[16, 32\] keys"):
        maps.at(4)


def test_keywords_and_a_timestep_for_each_row(tiny_pipe):
    inputs = Inputs(tiny_pipe)
    expected = shared(tiny_pipe, inputs)
    with torch.no_grad(), StyleAligned(tiny_pipe):
        options = {"encoder_hidden_states": inputs.hidden}
        found = tiny_pipe.unet(sample=inputs.latents, timestep=torch.tensor([500] * 6), **options).sample
        assert torch.equal(found, expected)
        tiny_pipe.unet(inputs.latents, torch.tensor([500, 400, 300] * 2), **options)  # as in training
    with torch.no_grad(), pytest.raises(ValueError, match="one timestep"), StyleAligned(tiny_pipe, keep=True):
        tiny_pipe.unet(inputs.latents[:2], torch.tensor([500, 400]), encoder_hidden_states=inputs.hidden[:2])


def test_gradients_flow_from_targets_to_the_reference_and_not_back(tiny_pipe):
    inputs = Inputs(tiny_pipe, guided=False)
    inputs.latents.requires_grad_()
    with StyleAligned(tiny_pipe, share_group_norm=True, share_layer_norm=True, reference_shift=0.5):
        output = inputs.through(tiny_pipe.unet)
    of_target, of_reference = (
        torch.autograd.grad(output[i].sum(), inputs.latents, retain_graph=True)[0].abs().amax((1, 2, 3)) for i in (1, 0)
    )
    assert of_target[0] > 0 and of_target[1] > 0 and of_target[2] == 0
    assert of_reference[0] > 0 and (of_reference[1:] == 0).all()


def test_a_gradient_equals_the_slope(tiny_pipe):
    with StyleAligned(tiny_pipe, share_group_norm=True) as aligned:
        aligned._begin(tiny_pipe.unet, (normal(3, 4, 8, 8), 1), {})
        rows = [x.double().requires_grad_() for x in (normal(3, 2, 5, 3, seed=seed) for seed in range(3))]
        assert torch.autograd.gradcheck(lambda *qkv: aligned.attend("x", *qkv), rows, atol=1e-4)
        norm = torch.nn.GroupNorm(2, 4).double()
        x = normal(3, 4, 2, 2).double().requires_grad_()
        assert torch.autograd.gradcheck(lambda x: aligned._group_norm("x", norm, (x,), norm(x)), x, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_does_not_overflow(tiny_pipe, dtype):
    """Sums of squares of 4096 tokens pass 65 504, the largest number of float16."""
    q, k, v = (normal(2, 1, 4096, 8, seed=seed) * 40 for seed in range(3))
    with StyleAligned(tiny_pipe, reference_shift=0.1) as aligned:
        aligned._begin(tiny_pipe.unet, (normal(2, 4, 8, 8), 1), {})
        exact, half = aligned.attend("x", q, k, v), aligned.attend("x", *(x.to(dtype) for x in (q, k, v)))
        assert half.dtype == dtype
        assert aligned.probabilities("x", *(x.to(dtype) for x in (q[..., :64, :], k[..., :64, :]))).isfinite().all()
        queries = aligned._aligned(q[1:].to(dtype), norms.moments(q[:1].to(dtype).float(), -2, unbiased=True))
        assert_close(queries.float(), norms.adain(q[1:], q[:1], dim=-2), atol=1.0, rtol=0.05)
    assert half.isfinite().all() and exact.isfinite().all()


def test_attention_is_always_fused_and_the_bias_one_row(tiny_pipe, monkeypatch):
    masks, fused = [], F.scaled_dot_product_attention

    def watched(*tokens, attn_mask=None, **options):
        masks.append(attn_mask)
        return fused(*tokens, attn_mask=attn_mask, **options)

    monkeypatch.setattr(F, "scaled_dot_product_attention", watched)
    inputs = Inputs(tiny_pipe, guided=False)
    shared(tiny_pipe, inputs)
    assert masks and all(mask is None for mask in masks)
    masks.clear()
    shared(tiny_pipe, inputs, reference_shift=1.0)
    biases = [mask for mask in masks if mask is not None]
    assert len(biases) == len(attention.layers(tiny_pipe.unet)) and all(b.shape[1:3] == (1, 1) for b in biases)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_shared_group_norm_in_half_precision(tiny_pipe, dtype):
    norm = torch.nn.GroupNorm(2, 4, eps=0.5)
    x = normal(3, 4, 32, 32) * 300 + 100
    with StyleAligned(tiny_pipe) as aligned:
        aligned._begin(tiny_pipe.unet, (normal(3, 4, 8, 8), 1), {})
        exact = aligned._group_norm("x", norm, (x,), norm(x))
        half = aligned._group_norm("x", norm.to(dtype), (x.to(dtype),), norm.to(dtype)(x.to(dtype)))
    assert half.dtype == dtype
    assert_close(half.float(), exact, atol=0.05, rtol=0.02)


def test_shared_group_norm_has_the_eps_of_its_layer(tiny_pipe):
    norm, x = torch.nn.GroupNorm(2, 4, eps=0.5), normal(3, 4, 4, 4)
    with StyleAligned(tiny_pipe) as aligned:
        aligned._begin(tiny_pipe.unet, (normal(3, 4, 8, 8), 1), {})
        found = aligned._group_norm("x", norm, (x,), norm(x))
    assert_close(found[1:2], norm(torch.cat([x[1:2], x[:1]], -2))[..., :4, :], atol=1e-5, rtol=1e-5)


def test_layer_norms_outside_the_blocks_are_left_alone():
    pipe = random_pipe()
    pipe.unet.add_module("projection_of_an_adapter", torch.nn.LayerNorm(4))
    with StyleAligned(pipe, share_layer_norm=True):
        assert not pipe.unet.projection_of_an_adapter._forward_hooks


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("settings", [{}, {"share_group_norm": True, "reference_shift": 0.4}], ids=str)
def test_on_a_gpu(dtype, settings):
    pipe = random_pipe()
    inputs = Inputs(pipe)
    inputs.latents = inputs.latents[..., :6, :]  # an odd number of tokens: 3 x 4
    expected = shared(pipe, inputs, **settings)
    pipe.to("cuda", dtype)
    inputs.latents, inputs.hidden = (x.to("cuda", dtype) for x in (inputs.latents, inputs.hidden))
    found, tolerance = shared(pipe, inputs, **settings), 1e-3 if dtype == torch.float32 else 0.05
    assert_close(found.float().cpu(), expected, atol=tolerance, rtol=tolerance)
    assert_close(found[[0, 3]], plain(pipe, inputs)[[0, 3]])


# ------------------------------------------------------------------------------------- settings


def test_types_of_the_defaults():
    found = {f.name: f.default for f in dataclasses.fields(StyleAligned) if f.name != "pipe"}
    assert found == {
        "share_attention": True, "adain_queries": True, "adain_keys": True, "adain_values": False,
        "full_attention": False, "share_group_norm": False, "share_layer_norm": False, "reference_scale": 1.0,
        "reference_shift": 0.0, "layers": 1.0, "reference": 0, "layout": "auto", "keep": False,
    }  # fmt: skip
    flags = [name for name, value in found.items() if isinstance(value, bool)]
    assert len(flags) == 8 and type(found["reference"]) is int and type(found["layers"]) is float


def test_settings_are_told(tiny_pipe):
    told = StyleAligned(tiny_pipe, layers=["mid_block"]).settings()
    assert told["layers"] == ["mid_block"] and told["adain_keys"] is True and "pipe" not in told


def test_layers_are_in_the_order_of_the_network(pipe):
    names, called = attention.layers(pipe.unet), []
    hooks = [pipe.unet.get_submodule(n).register_forward_pre_hook(lambda *_, n=n: called.append(n)) for n in names]
    plain(pipe, Inputs(pipe))
    [hook.remove() for hook in hooks]
    assert called == names


def test_names_of_layers(pipe):
    names = attention.layers(pipe.unet)
    assert attention.choose_layers(names, names[1]) == [names[1]]
    assert attention.choose_layers(names, ["mid_block"]) == [n for n in names if n.startswith("mid_block.")]
    with pytest.raises(ValueError, match="'mid_bl' or lies in it; the layers are down_blocks"):
        attention.choose_layers(names, ["mid_bl"])
    for wrong in (-0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match="fraction from 0 to 1"):
            attention.choose_layers(names, wrong)
    with StyleAligned(pipe, layers=names[:2]):
        kinds = {n: type(pipe.unet.get_submodule(n).processor).__name__ for n in names}
    assert [n for n in names if kinds[n] == "_SharedAttention"] == names[:2]


def test_pictures_of_one_noise_need_a_layout(tiny_pipe):
    inputs = Inputs(tiny_pipe, n=4, guided=False)
    inputs.latents = inputs.latents[:1].repeat(4, 1, 1, 1)
    with pytest.raises(ValueError, match='pass layout="halves"'):
        shared(tiny_pipe, inputs)
    assert_close(shared(tiny_pipe, inputs, layout="single"), restated(tiny_pipe, inputs, [0] * 4), atol=2e-5, rtol=1e-4)
    found = shared(tiny_pipe, inputs, layout="halves")
    assert_close(found, restated(tiny_pipe, inputs, [0, 0, 2, 2]), atol=2e-5, rtol=1e-4)


def test_two_sets_of_one_noise_are_told_from_guidance_as_soon_as_they_differ(tiny_pipe):
    noise, options = diffusion.initial_latents(tiny_pipe, 2, 0).repeat(2, 1, 1, 1), {"steps": 3, "guidance": 1.0}
    said = [*PROMPTS, "a dog"]
    with pytest.raises(ValueError, match="they were no guidance"), StyleAligned(tiny_pipe):
        diffusion.generate(tiny_pipe, said, latents=noise, **options)
    with StyleAligned(tiny_pipe, reference=[0, 0, 2, 2], layout="single"):
        diffusion.generate(tiny_pipe, said, latents=noise, **options)


def test_guided_and_unguided_batches_of_one_size_in_one_block(tiny_pipe):
    """Four rows: two pictures with guidance, then four without."""
    guided, unguided = Inputs(tiny_pipe, n=2), Inputs(tiny_pipe, n=4, guided=False, seed=1)
    with torch.no_grad(), StyleAligned(tiny_pipe):
        one, two = (each.through(tiny_pipe.unet) for each in (guided, unguided))
    assert_close(one, restated(tiny_pipe, guided, [0, 0, 2, 2]), atol=2e-5, rtol=1e-4)
    assert_close(two, restated(tiny_pipe, unguided, [0] * 4), atol=2e-5, rtol=1e-4)


def test_halves_and_pairs_in_one_block(tiny_pipe):
    halves, pairs = Inputs(tiny_pipe, n=2), Inputs(tiny_pipe, n=2).rows([0, 2, 1, 3])
    with torch.no_grad(), StyleAligned(tiny_pipe):
        one, two = (each.through(tiny_pipe.unet) for each in (halves, pairs))
    assert_close(two, one[[0, 2, 1, 3]], atol=1e-6, rtol=1e-5)


def test_channels_of_an_image_to_edit_do_not_count():
    """InstructPix2Pix shows the U-Net the noise beside an image, which is not there in every copy."""
    pipe = random_pipe()
    pipe.unet = type(pipe.unet).from_config(pipe.unet.config, in_channels=8).eval()
    inputs = Inputs(pipe, n=2)
    assert inputs.latents.shape[1] == 8
    inputs.latents[:2, 4:] = 0
    assert_close(shared(pipe, inputs), restated(pipe, inputs, [0, 0, 2, 2]), atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"reference": -1}, "index of a picture"),
        ({"reference": "0"}, "index of a picture"),
        ({"reference": []}, "index of a picture"),
        ({"reference": True}, "index of a picture"),
        ({"reference": [[0], 0]}, "index of the picture to follow"),
        ({"layers": None}, "fraction from 0 to 1"),
        ({"reference": [0, 1.5]}, "index of the picture to follow"),
        ({"reference": [0, {0: 0.5, 1: 0.6}]}, "sum to 1"),
        ({"reference": [0, {0: 1.5, 1: -0.5}]}, "positive weights"),
        ({"reference_scale": -1.0}, "finite factor"),
        ({"reference_scale": math.inf}, "finite factor"),
        ({"reference_shift": math.inf}, "up to 100"),
        ({"reference_shift": math.nan}, "up to 100"),
        ({"layout": "rows"}, "layout"),
        ({"full_attention": True, "share_group_norm": True}, "share_group_norm"),
        ({"full_attention": True, "reference_shift": 1.0}, "reference_shift"),
        ({"full_attention": True, "keep": True}, "no reference to keep"),
        ({"full_attention": True, "reference": [0, 1, {0: 0.5, 1: 0.5}]}, "to mix"),
    ],
)
def test_wrong_settings(tiny_pipe, settings, said):
    with pytest.raises(ValueError, match=said):
        StyleAligned(tiny_pipe, **settings)


@pytest.mark.parametrize(
    ("settings", "n", "said"),
    [
        ({}, 1, "none that follows another"),
        ({"reference": 3}, 3, "cannot follow picture 3"),
        ({"reference": [0, 0]}, 3, "has 2 entries"),
        ({"reference": [0, 0, 1]}, 3, "follows another itself"),
        ({"reference": [0, 1, 2]}, 3, "none that follows another"),
    ],
)
def test_wrong_batches(tiny_pipe, settings, n, said):
    for guided in (True, False):
        with pytest.raises(ValueError, match=said):
            shared(tiny_pipe, Inputs(tiny_pipe, n=n, guided=guided), **settings)


def test_a_mask_is_refused(tiny_pipe):
    with pytest.raises(ValueError, match="a mask"), torch.no_grad(), StyleAligned(tiny_pipe):
        Inputs(tiny_pipe).through(tiny_pipe.unet, attention_mask=torch.ones(6, 16))


def test_a_pipeline_without_a_unet_is_refused():
    for thing in (object(), torch.nn.Linear(1, 1)):
        with pytest.raises(TypeError, match="whose .unet is a UNet2DConditionModel"):
            StyleAligned(thing)
