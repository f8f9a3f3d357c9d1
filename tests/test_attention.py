"""Watching attention: what is recorded is what the network uses, and watching changes nothing."""

import math

import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import Attention

from stylemoments import attention


@pytest.fixture
def unet():
    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=8, block_out_channels=(8, 16), layers_per_block=1, cross_attention_dim=4, norm_num_groups=4,
        attention_head_dim=2,
        down_block_types=("CrossAttnDownBlock2D",) * 2, up_block_types=("CrossAttnUpBlock2D",) * 2,
    ).eval()  # fmt: skip


def call(unet, rows=2, words=5):
    generator = torch.Generator().manual_seed(1)
    latents, context = torch.randn(rows, 4, 8, 8, generator=generator), torch.randn(rows, words, 4, generator=generator)
    with torch.no_grad():
        return unet(latents, 10, context).sample


def test_watching_changes_nothing_and_leaves_nothing(unet):
    before = call(unet)
    with attention.recorded(unet):
        during = call(unet)
    assert torch.equal(before, during)
    assert not any(module._forward_pre_hooks for module in unet.modules())


def test_hooks_are_gone_after_an_error(unet):
    with pytest.raises(KeyError), attention.recorded(unet):
        raise KeyError
    assert not any(module._forward_pre_hooks for module in unet.modules())


@pytest.mark.parametrize(("kind", "keys"), [("cross", 5), ("self", 64)])
def test_maps_are_distributions_over_the_keys(unet, kind, keys):
    with attention.recorded(unet, kind) as maps:
        call(unet)
    assert maps.at(8).shape == (2, 8, 8, keys)
    torch.testing.assert_close(maps.at(8).sum(-1), torch.ones(2, 8, 8))


def test_probabilities_equal_those_of_diffusers():
    torch.manual_seed(0)
    layer = Attention(query_dim=8, cross_attention_dim=4, heads=2, dim_head=4)
    tokens, context = torch.randn(3, 6, 8), torch.randn(3, 5, 4)
    query, key = layer.head_to_batch_dim(layer.to_q(tokens)), layer.head_to_batch_dim(layer.to_k(context))
    theirs = layer.get_attention_scores(query, key).unflatten(0, (3, 2))
    torch.testing.assert_close(attention.probabilities(layer, tokens, context), theirs)


def test_a_query_of_zeros_looks_at_all_keys_alike():
    layer = Attention(query_dim=8, heads=2, dim_head=4)
    torch.testing.assert_close(attention.probabilities(layer, torch.zeros(1, 4, 8)), torch.full((1, 2, 4, 4), 0.25))


def test_maps_are_means_over_calls():
    maps = attention.Maps()
    maps.add("layer", torch.zeros(1, 4, 3))
    maps.add("layer", torch.full((1, 4, 3), 2.0))
    assert torch.equal(maps.at(2), torch.ones(1, 2, 2, 3))


def test_large_layers_are_left_out(unet):
    with attention.recorded(unet, "self", largest=4) as maps:
        call(unet)
    with pytest.raises(ValueError, match=r"no recorded layer sees 8 × 8 places; recorded sides: \[4\]"):
        maps.at(8)


def test_unknown_kind_is_refused(unet):
    with pytest.raises(ValueError, match="one of self, cross; got 'joint'"), attention.recorded(unet, "joint"):
        pass


@pytest.mark.parametrize(
    ("layers", "number"), [(0, 0), (0.4, 28), (0.5, 35), (0.6, 42), (1 / 70, 1), (0.007, 0), (0.108, 8), (1, 70)]
)
def test_fractions_of_seventy_layers(layers, number):
    """The public code rounds: 0.4, 0.5 and 0.6 are all 35 of 70 there, and under 1/70 it divides by zero."""
    names = [f"layer.{i}" for i in range(70)]
    chosen = attention.choose_layers(names, layers)
    assert len(chosen) == number and chosen == [name for name in names if name in set(chosen)]
    places = [names.index(name) for name in chosen]
    gaps = {b - a for a, b in zip(places, places[1:], strict=False)}
    assert not gaps or max(gaps) - min(gaps) <= 1 and max(gaps) == math.ceil(70 / number)  # spread evenly over all


def test_layers_that_look_at_words_only_are_left_out(unet):
    names = attention.layers(unet)
    block = unet.get_submodule(names[1].removesuffix(".attn1"))
    block.only_cross_attention = True
    assert attention.layers(unet) == [names[0], *names[2:]]


def test_words_beside_the_pictures_of_an_ip_adapter(unet):
    words = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(2))
    layer = next(module for name, module in unet.named_modules() if name.endswith("attn2"))
    tokens, maps = torch.randn(2, 64, 8, generator=torch.Generator().manual_seed(3)), attention.Maps()
    attention._watch(maps, "both", 32, layer, (tokens,), {"encoder_hidden_states": (words, [words])})
    attention._watch(maps, "words", 32, layer, (tokens,), {"encoder_hidden_states": words})
    assert torch.equal(maps.layers["both"], maps.layers["words"])
