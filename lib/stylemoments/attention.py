r"""Watching the attention of a U-Net: which words, and which places of the picture, each place looks at.

Hertz et al., *Prompt-to-Prompt Image Editing with Cross-Attention Control*, 2022 (arXiv 2208.01626), showed that the
maps of the words are the layout of the picture. Here they are computed beside the network, from the same inputs and
weights, so that watching changes nothing.

Axes: ``B`` rows of the batch (with guidance ``[uncond; cond]``, so twice the prompts), ``h`` heads, ``q`` queries
(places of the picture, row by row), ``k`` keys (tokens of the prompt, or places again).
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from numbers import Real

import torch
from torch import Tensor, nn

from . import _torchvision  # noqa: F401 - before diffusers is imported

KINDS = {"self": "attn1", "cross": "attn2"}  # diffusers' names of the two layers of a transformer block


def layers(unet: nn.Module) -> list[str]:
    """The names of the self-attention layers of a U-Net, from the noisy picture to the prediction.

    Example:
        >>> from stylemoments import diffusion
        >>> layers(diffusion.load("tiny", device="cpu").unet)[0]
        size tiny: as asked
        'down_blocks.0.attentions.0.transformer_blocks.0.attn1'
    """
    from diffusers.models.attention import BasicTransformerBlock

    blocks = [(name, block) for name, block in unet.named_modules() if isinstance(block, BasicTransformerBlock)]
    names = [name for name, block in blocks if not block.only_cross_attention]
    order = {"down": 0, "mid_": 1, "up_b": 2}  # a U-Net registers its middle last
    return sorted((f"{name}.attn1" for name in names), key=lambda name: order.get(name[:4], 3))


def choose_layers(names: Sequence[str], layers: float | Sequence[str]) -> list[str]:
    """Some of the layers: a fraction, spread evenly, or those of these names.

    Args:
        names: all of them, in order.
        layers: from 0 to 1, rounded half up to a number of layers; or names, or beginnings of names up to a dot.

    Raises:
        ValueError: a fraction outside [0, 1], or a name that no layer has.

    Example:
        >>> choose_layers(["down.0", "down.1", "mid", "up.0", "up.1"], 0.4)
        ['mid', 'up.1']
        >>> choose_layers(["down.0", "down.1", "mid", "up.0", "up.1"], ["mid", "up"])
        ['mid', 'up.0', 'up.1']
    """
    if isinstance(layers, str):
        layers = [layers]
    if not isinstance(layers, Sequence):
        if not isinstance(layers, Real) or not 0 <= layers <= 1:
            raise ValueError(f"layers is a fraction from 0 to 1, or a list of names; got {layers!r}")
        n, k = len(names), math.floor(layers * len(names) + 0.5)
        return [name for i, name in enumerate(names) if (i + 1) * k // n > i * k // n]
    for asked in layers:
        if not any(_under(name, asked) for name in names):
            raise ValueError(
                f"no self-attention layer is called {asked!r} or lies in it; the layers are {', '.join(names)}"
            )
    return [name for name in names if any(_under(name, asked) for asked in layers)]


def _under(name: str, asked: str) -> bool:
    return name == asked or name.startswith(f"{asked}.")


def probabilities(attention: nn.Module, tokens: Tensor, context: Tensor | None = None) -> Tensor:
    r"""How much each query looks at each key, :math:`\mathrm{softmax}(QK^\top / \sqrt d)`.

    Args:
        attention: a ``diffusers`` attention layer.
        tokens: (B, q, c), what asks.
        context: (B, k, c'), what is looked at; None for the tokens themselves.

    Returns:
        (B, h, q, k), each row sums to one.
    """
    queries = attention.to_q(tokens)
    keys = attention.to_k(tokens if context is None else context)
    queries, keys = (x.unflatten(-1, (attention.heads, -1)).transpose(1, 2) for x in (queries, keys))  # B h n d
    return (queries * attention.scale @ keys.transpose(-2, -1)).softmax(-1)


class Maps:
    """Attention maps, averaged over heads and over all calls of the U-Net while they were recorded."""

    def __init__(self):
        self.layers: dict[str, Tensor] = {}  # name of the layer -> (B, q, k)
        self._calls: dict[str, int] = {}

    def add(self, name: str, map: Tensor) -> None:
        """Take one more call of a layer into its mean; ``map`` is (B, q, k)."""
        self._calls[name] = calls = self._calls.get(name, 0) + 1
        mean = self.layers.setdefault(name, torch.zeros_like(map))
        mean += (map - mean) / calls

    def at(self, side: int) -> Tensor:
        """The mean over the layers that see the picture at ``side`` × ``side`` places: (B, side, side, k).

        Raises:
            ValueError: no recorded layer has this side, or those that do look at different keys.
        """
        fitting = [map for map in self.layers.values() if map.shape[1] == side**2]
        if not fitting:
            sides = sorted({round(map.shape[1] ** 0.5) for map in self.layers.values()})
            raise ValueError(f"no recorded layer sees {side} × {side} places; recorded sides: {sides}")
        keys = sorted({map.shape[2] for map in fitting})
        if len(keys) > 1:
            raise ValueError(
                f"layers of this side look at {keys} keys, some shared and some not: read Maps.layers by name"
            )
        return torch.stack(fitting).mean(0).unflatten(1, (side, side))


@contextmanager
def recorded(unet: nn.Module, kind: str = "cross", *, largest: int = 32) -> Iterator[Maps]:
    """Record the attention maps of every call of a U-Net in this block; the U-Net itself computes as always.

    While :class:`stylemoments.style_aligned.StyleAligned` acts, the keys of a target are its own places and then those
    of the pictures it looks at.

    Args:
        unet: a ``UNet2DConditionModel``.
        kind: ``"cross"`` looks at the words, ``"self"`` at the picture.
        largest: layers that see more than ``largest`` × ``largest`` places are left out: a map of self-attention at
            64 × 64 has 16 million numbers.

    Raises:
        ValueError: an unknown kind.

    Example:
        >>> from diffusers import UNet2DConditionModel
        >>> unet = UNet2DConditionModel(8, 4, 4, down_block_types=("CrossAttnDownBlock2D",), norm_num_groups=4,
        ...     up_block_types=("CrossAttnUpBlock2D",), block_out_channels=(8,), cross_attention_dim=4)
        >>> with recorded(unet) as maps:
        ...     output = unet(torch.zeros(2, 4, 8, 8), 0, torch.zeros(2, 5, 4))
        >>> maps.at(8).shape  # 5 words, all alike here
        torch.Size([2, 8, 8, 5])
    """
    if kind not in KINDS:
        raise ValueError(f"the kind of attention is one of {', '.join(KINDS)}; got {kind!r}")
    maps = Maps()
    layers = [(name, layer) for name, layer in unet.named_modules() if name.endswith(KINDS[kind])]
    hooks = [
        layer.register_forward_pre_hook(partial(_watch, maps, name, largest), with_kwargs=True)
        for name, layer in layers
    ]
    try:
        yield maps
    finally:
        for hook in hooks:
            hook.remove()


@torch.no_grad()
def _watch(maps: Maps, name: str, largest: int, attention: nn.Module, args: tuple, options: dict) -> None:
    tokens, context = args[0], options.get("encoder_hidden_states")
    if isinstance(context, tuple):  # an IP-Adapter's: the words, and the tokens of its pictures
        context = context[0]
    if tokens.shape[1] > largest**2:
        return
    shared = getattr(attention.processor, "probabilities", None)
    looks = probabilities(attention, tokens, context) if shared is None else shared(attention, tokens)
    maps.add(name, looks.mean(1).float().cpu())
