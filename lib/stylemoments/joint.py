r"""Shared attention for transformers that attend to picture and text together, such as Stable Diffusion 3.

This is **our extension**: the paper of StyleAligned (Hertz et al. 2024, arXiv 2312.02133) shares the self-attention of
a U-Net, and says nothing of *joint* attention, in which tokens of the picture and of the text look at each other
(Esser et al., *Scaling Rectified Flow Transformers for High-Resolution Image Synthesis*, 2024, arXiv 2403.03206). It
has been tested for what it computes, on random weights, and not for how well it keeps a style.

With :math:`X` of the picture and :math:`x` of the text, a target t looks in each joint attention at its own picture,
its own text, and the picture of its reference r:

.. math:: \hat Q_t = \mathrm{AdaIN}(Q_t, Q_r), \qquad \hat K_t = \mathrm{AdaIN}(K_t, K_r)

.. math:: \mathrm{softmax}\left([\hat Q_t; q_t] \, [\hat K_t; k_t; K_r]^\top / \sqrt d\right) \, [V_t; v_t; V_r]

What we decided, where the paper cannot say:

- The moments are those of each feature of each head over the tokens of the *picture*, *after* the norms of queries and
  keys where the model has them (Stable Diffusion 3.5): these norms act on each token alone, and would undo an AdaIN
  before them in part. Text has another meaning at each place and is left alone.
- The text of the reference is not looked at: it says what the reference shows, not how it is drawn.
- The text of a target looks at the reference, too. It is a stream of its own that the picture reads again in the next
  block, and all queries are then one call of fused attention.
- The second attention of some blocks of Stable Diffusion 3.5 (``attn2``), in which a picture looks at itself alone, is
  shared as in a U-Net.

The reference looks at its own picture and text alone: it comes out as without its followers, but for rounding.

Axes: ``B`` rows of the batch, ``h`` heads, ``N`` tokens of the picture, ``T`` of the text, ``d`` features; ``t`` target
rows, ``r`` reference rows, ``R`` references that one target follows.
"""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import KW_ONLY, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import attention
from .references import KeptReference, Rows, batch_layout, follows, plan
from .style_aligned import Sharing, is_shared, token_moments

# isort: split
from diffusers import SD3Transformer2DModel
from diffusers.models.attention_processor import JointAttnProcessor2_0, XFormersJointAttnProcessor

PLAIN = (JointAttnProcessor2_0, XFormersJointAttnProcessor)


def layers(transformer: nn.Module) -> list[str]:
    """The names of the attention layers in which pictures can be shared, from the noisy picture to the prediction.

    Example:
        >>> transformer = SD3Transformer2DModel(
        ...     sample_size=8, num_layers=2, num_attention_heads=2, attention_head_dim=4, caption_projection_dim=8,
        ...     joint_attention_dim=8, pooled_projection_dim=8, dual_attention_layers=(0,))
        >>> layers(transformer)
        ['transformer_blocks.0.attn', 'transformer_blocks.0.attn2', 'transformer_blocks.1.attn']
    """
    return [
        f"transformer_blocks.{i}.{kind}"
        for i, block in enumerate(transformer.transformer_blocks)
        for kind in ("attn", "attn2")
        if getattr(block, kind) is not None
    ]


@dataclass(eq=False)
class JointStyleAligned(Sharing):
    r"""Pictures that a transformer draws in this block share the style of the reference among them.

    The transformer is changed on entry and as before after the block, also where the block fails. LoRA and ControlNets
    stay as they are and act as always. Gradients flow through. It must be as diffusers made it: not compiled, and
    without gradient checkpointing while gradients are computed. One thread at a time may call it in the block.

    Args:
        pipe_or_transformer: a ``SD3Transformer2DModel`` of diffusers, or anything with one as ``.transformer``: Stable
            Diffusion 3 or 3.5.
        adain_queries, adain_keys: the picture's queries or keys of targets get the moments of the reference's first.
        reference_scale: factor of the reference's keys as targets see them; 0 to about 1.5. Below 1 is for references
            that draw too much attention to themselves; at 0 all of the reference is heard alike.
        reference_shift: added to the logits of the reference's keys; up to 100, and log 2 equals a second copy of the
            reference. At minus infinity nothing is shared and AdaIN stays.
        layers: which of the layers that :func:`layers` names share: a fraction from 0 to 1 of them, spread evenly, or a
            list of names or of their beginnings, such as ``["transformer_blocks.3"]``.
        reference: which picture is the reference: an index, or a list with an entry for each picture, as in
            :class:`stylemoments.style_aligned.StyleAligned`; mixtures such as ``{0: 0.3, 1: 0.7}`` among them. What
            ``StyleAligned(keep=True)`` kept is of a U-Net, and refused.
        layout: how guidance doubles the batch, see :func:`stylemoments.references.batch_layout`; ``"auto"`` sees it.

    Raises:
        TypeError: no such transformer; on entry, a layer whose processor does more than joint attention.
        ValueError: a setting out of its range. While sampling: no targets in the batch, a reference that is not in it,
            latents that do not tell the layout, an attention mask.
        RuntimeError: the transformer is style-aligned already, or compiled, or was changed in the block, or gradient
            checkpointing would run parts of it again later.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> transformer = SD3Transformer2DModel(
        ...     sample_size=8, in_channels=4, out_channels=4, num_layers=2, num_attention_heads=2, attention_head_dim=4,
        ...     caption_projection_dim=8, joint_attention_dim=8, pooled_projection_dim=8)
        >>> inputs = torch.randn(3, 4, 8, 8), torch.randn(3, 5, 8), torch.randn(3, 8), torch.tensor([500.0] * 3)
        >>> with torch.no_grad():
        ...     plain = transformer(*inputs).sample
        ...     with JointStyleAligned(transformer):
        ...         shared = transformer(*inputs).sample
        >>> [torch.allclose(*pair, atol=1e-5) for pair in zip(shared, plain)]  # the first is the reference
        [True, False, False]
    """

    pipe_or_transformer: Any
    _: KW_ONLY
    adain_queries: bool = True
    adain_keys: bool = True
    reference_scale: float = 1.0
    reference_shift: float = 0.0
    layers: float | Sequence[str] = 1.0
    reference: "int | Sequence[int | Mapping[int, float]]" = 0
    layout: str = "auto"

    def __post_init__(self):
        transformer = getattr(self.pipe_or_transformer, "transformer", self.pipe_or_transformer)
        if not isinstance(transformer, SD3Transformer2DModel):
            raise TypeError(
                "JointStyleAligned needs a SD3Transformer2DModel, such as Stable Diffusion 3's, or a pipeline with one "
                f"as .transformer, not compiled; got {type(self.pipe_or_transformer).__name__} with "
                f"{type(transformer).__name__}. For a U-Net take StyleAligned"
            )
        self._names = attention.choose_layers(layers(transformer), self.layers)
        self._check_settings()
        if isinstance(self.reference, KeptReference):
            raise ValueError(
                "a kept reference is of a U-Net; for a transformer, draw the reference in the batch of its targets"
            )
        self._transformer = transformer
        self._undo = ExitStack()

    # ------------------------------------------------------------------ entering and leaving

    def __enter__(self):
        transformer = self._transformer
        self._check_enter(transformer)
        self._plans: dict[tuple, Rows] = {}
        self._rows = self._before = None
        with ExitStack() as undo:
            undo.callback(transformer.register_forward_pre_hook(self._begin, with_kwargs=True).remove)
            for name in self._names:
                layer = transformer.get_submodule(name)
                undo.callback(layer.set_processor, layer.processor)
                layer.set_processor(_SharedJointAttention(self, name))
            self._undo = undo.pop_all()
        return self

    def _check_enter(self, transformer: nn.Module) -> None:
        if is_shared(transformer):
            raise RuntimeError("this transformer is style-aligned already; leave the other block first")
        if any(module._compiled_call_impl is not None for module in transformer.modules()):
            raise RuntimeError(
                "a compiled transformer may keep its old attention; use JointStyleAligned with one that is not compiled"
            )
        for name in self._names:
            if not isinstance(processor := transformer.get_submodule(name).processor, PLAIN):
                raise TypeError(
                    f"JointStyleAligned would put aside what {type(processor).__name__} does in {name}; it can replace "
                    f"{', '.join(kind.__name__ for kind in PLAIN)}. Choose other layers, or call "
                    f"transformer.set_attn_processor({PLAIN[0].__name__}()) first"
                )

    def __exit__(self, *exception):
        self._undo.close()
        self._plans, self._rows = {}, None

    # ------------------------------------------------------------------ one call of the transformer

    def _begin(self, transformer: nn.Module, args: tuple, options: dict) -> None:
        """See who is in the batch, before the transformer computes."""
        self._check_network(transformer)
        latents = args[0] if args else options["hidden_states"]
        times = torch.as_tensor(args[3] if len(args) > 3 else options["timestep"]).flatten().tolist()
        timestep = times[0] if len(set(times)) == 1 else float("nan")
        own = latents[:, : transformer.config.out_channels]  # others are of an image to edit
        rows = batch_layout(own, self.layout)
        self._check_layout(timestep, rows)
        key = (*rows.shape, int(rows[-1, 0]), latents.device)
        if key not in self._plans:
            looks = self._looks(follows(self.reference, rows.shape[1]))
            self._plans[key] = plan(looks, rows, latents.device)
        self._rows, self._before = self._plans[key], (timestep, rows)

    def _check_network(self, transformer: nn.Module) -> None:
        if transformer.is_gradient_checkpointing and torch.is_grad_enabled():
            raise RuntimeError(
                "gradient checkpointing computes layers again when it is no longer known who follows whom: call "
                "transformer.disable_gradient_checkpointing() first"
            )
        for name in self._names:
            if not isinstance(transformer.get_submodule(name).processor, _SharedJointAttention):
                raise RuntimeError(
                    f"the processor of {name} was replaced: change the transformer before or after the block"
                )

    # ------------------------------------------------------------------ attention

    def attend(self, picture: Sequence[Tensor], text: Sequence[Tensor] | None) -> Tensor:
        """What comes out of a layer's heads, for the picture's tokens and then for the text's.

        Args:
            picture: queries, keys and values, (B, h, N, d) each.
            text: the same of the text, (B, h, T, d); None where a picture looks at itself alone.

        Returns:
            (B, h, N + T, d).
        """
        rows = self._rows
        rows.check(picture[0])
        own = _joined(picture, text)
        output = torch.empty_like(own[0])
        if len(rows.plain):
            output[rows.plain] = F.scaled_dot_product_attention(*(x[rows.plain] for x in own))
        if len(rows.targets):
            *shared, bias = self._shared(picture, text)
            output[rows.targets] = F.scaled_dot_product_attention(*shared, attn_mask=bias)
        return output

    def _shared(self, picture: Sequence[Tensor], text: Sequence[Tensor] | None):
        """Queries, keys, values and bias of the targets: (t, h, N + T, d), (t, h, M, d) twice, (t, 1, 1, M) or None."""
        rows = self._rows
        queries, keys, values = (x[rows.targets] for x in picture)
        its_queries, its_keys, its_values = (x[rows.source] for x in picture)
        if self.adain_queries:
            queries = self._aligned(queries, token_moments(its_queries))
        if self.adain_keys:
            keys = self._aligned(keys, token_moments(its_keys))
        text = None if text is None else [x[rows.targets] for x in text]
        queries, keys, values = _joined((queries, keys, values), text)
        bias = self._bias(keys.shape[-2], its_keys.shape[-2], keys.dtype)
        if self.reference_scale != 1:
            its_keys = its_keys * self.reference_scale
        keys = torch.cat([keys, self._others(its_keys)], -2)
        values = torch.cat([values, self._others(its_values)], -2)
        return queries, keys, values, bias


def _joined(picture: Sequence[Tensor], text: Sequence[Tensor] | None) -> list[Tensor]:
    """Tokens of the picture and then of the text."""
    return [*picture] if text is None else [torch.cat(pair, -2) for pair in zip(picture, text, strict=True)]


class _SharedJointAttention:
    """The processor of one attention layer while it is shared."""

    def __init__(self, aligned: JointStyleAligned, name: str):
        self.aligned, self.name = aligned, name

    def __reduce_ex__(self, protocol):
        raise RuntimeError("leave the block of JointStyleAligned before you copy or pickle its transformer")

    def __call__(self, attn, hidden_states: Tensor, encoder_hidden_states=None, attention_mask=None, **_):
        if attention_mask is not None:
            raise ValueError(f"{self.name} was given an attention mask, so it cannot be shared; choose other layers")
        picture, text = self._heads(attn, hidden_states, "to_{}", "norm_{}"), None
        if encoder_hidden_states is not None:
            text = self._heads(attn, encoder_hidden_states, "add_{}_proj", "norm_added_{}")
        found = self.aligned.attend(picture, text).transpose(1, 2).flatten(2)  # B N+T hd
        n = hidden_states.shape[1]
        of_picture = attn.to_out[1](attn.to_out[0](found[:, :n]))
        if text is None:
            return of_picture
        return of_picture, found[:, n:] if attn.context_pre_only else attn.to_add_out(found[:, n:])

    @staticmethod
    def _heads(attn, x: Tensor, projection: str, norm: str) -> list[Tensor]:
        """Queries, keys and values, (B, h, tokens, d)."""
        heads = [getattr(attn, projection.format(i))(x).unflatten(-1, (attn.heads, -1)).transpose(1, 2) for i in "qkv"]
        norms = [getattr(attn, norm.format(i)) for i in "qk"]
        return [x if norm is None else norm(x) for x, norm in zip(heads, [*norms, None], strict=True)]
