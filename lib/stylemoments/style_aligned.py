r"""StyleAligned: pictures of one style, by letting them share attention while they are drawn.

Hertz, Voynov, Fruchter, Cohen-Or, *Style Aligned Image Generation via Shared Attention*, CVPR 2024 (arXiv 2312.02133).
In the self-attention of a diffusion U-Net each target picture t looks at a reference picture r beside itself:

.. math:: \hat Q_t = \mathrm{AdaIN}(Q_t, Q_r), \qquad \hat K_t = \mathrm{AdaIN}(K_t, K_r)

.. math:: \mathrm{softmax}\left(\hat Q_t \, [\hat K_t; K_r]^\top / \sqrt d\right) \, [V_t; V_r]

The moments of AdaIN are those of each feature of each head, over the tokens. The reference looks at itself alone: it
comes out as without its followers, on a CPU bit for bit. Nothing is trained.

Axes: ``B`` rows of the batch, ``h`` heads, ``N`` tokens (places of the picture), ``d`` features; ``t`` target rows,
``r`` reference rows, ``R`` references that one target follows.

The U-Net must be as diffusers made it: not compiled, and without gradient checkpointing while it is trained. One thread
at a time may call it in the block.

What differs from the public code (github.com/google/style-aligned): where the reference stands in the batch, and
whether guidance doubled it, is seen or said, never guessed; the layers that share are a fraction or names; a shift is
an additive bias of fused attention; the scale and the norms leave the reference itself alone; several sets fit into one
batch; a picture can follow several references; and what targets need of a reference can be kept.
"""

import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import KW_ONLY, dataclass, fields
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import attention
from .norms import moments, with_moments
from .references import (
    LAYOUTS,
    Call,
    Kept,
    KeptReference,
    Rows,
    batch_layout,
    check_reference,
    check_steady,
    follows,
    plan,
    plan_following,
)

# isort: split
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import (
    AttnProcessor,
    AttnProcessor2_0,
    FusedAttnProcessor2_0,
    SlicedAttnProcessor,
    XFormersAttnProcessor,
)

EPS = 1e-5  # of AdaIN, as in the public code
LOUDEST = 100.0  # a shift beyond which nothing but the reference is heard, and half precision overflows
PLAIN = (AttnProcessor, AttnProcessor2_0, FusedAttnProcessor2_0, SlicedAttnProcessor, XFormersAttnProcessor)


# ---------------------------------------------------------------------------------------- the formulas


def blended(mean: Tensor, variance: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    r"""The moments with which AdaIN equals :math:`\sum_k w_k \, \mathrm{AdaIN}(x, y_k)`: means and deviations mixed.

    Args:
        mean, variance: of the references, ``(t, R, h, 1, d)``.
        weights: ``(t, R)``, each row sums to 1.

    Returns:
        mean and variance, ``(t, h, 1, d)``.

    Example:
        >>> mean, variance = torch.tensor([0.0, 1.0]).view(1, 2, 1, 1, 1), torch.tensor([1.0, 9.0]).view(1, 2, 1, 1, 1)
        >>> [round(x.item(), 3) for x in blended(mean, variance, torch.tensor([[0.5, 0.5]]))]  # deviations 1 and 3
        [0.5, 4.0]
    """
    weights = weights[..., None, None, None]
    deviation = ((variance + EPS).sqrt() * weights).sum(1)
    return (mean * weights).sum(1), deviation.square() - EPS


def pooled(mean: Tensor, variance: Tensor, weights: Tensor, other_mean: Tensor, other_variance: Tensor):
    """Moments of a target and its references taken together, the target counting as much as all of them.

    With one reference these are the moments of both, one below the other: what sharing group norm means.

    Args:
        mean, variance: biased, of the targets, ``(t, ...)``.
        weights: ``(t, R)``, each row sums to 1.
        other_mean, other_variance: of their references, ``(t, R, ...)``.

    Returns:
        mean and variance, ``(t, ...)``.

    Example:
        >>> t, r = torch.tensor([[1.0, 3.0]]), torch.tensor([[5.0, 7.0]])  # together: mean 4, variance 5
        >>> mean, variance = pooled(*moments(t, -1), torch.ones(1, 1), *(x[:, None] for x in moments(r, -1)))
        >>> mean.item(), variance.item()
        (4.0, 5.0)
    """
    weights = weights.view(*weights.shape, *[1] * (mean.ndim - 1))
    together = (mean + (weights * other_mean).sum(1)) / 2
    spread = (weights * (other_variance + (other_mean - together[:, None]).square())).sum(1)
    return together, (variance + (mean - together).square() + spread) / 2


def _float32(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()  # half precision overflows in a variance of 4096 tokens


def token_moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and unbiased variance of each feature of each head over the tokens: (B, h, 1, d) each, of (B, h, N, d)."""
    return moments(_float32(x), -2, unbiased=True)


# ---------------------------------------------------------------------------------------- what patches have in common


class Sharing:
    """What every patch that shares attention has in common, whatever network it is for.

    A patch has ``reference``, ``reference_scale``, ``reference_shift``, ``layout``, and between the calls of its
    network ``_rows``, who is in the batch, and ``_before``, the timestep and layout of the last call.
    """

    reference: Any
    reference_scale: float
    reference_shift: float
    layout: str
    _rows: Rows
    _before: "tuple[float, Tensor] | None"

    def _check_settings(self) -> None:
        check_reference(self.reference)
        if not (math.isfinite(self.reference_scale) and self.reference_scale >= 0):
            raise ValueError(f"reference_scale is a finite factor, 0 or more; got {self.reference_scale}")
        if not self.reference_shift <= LOUDEST:
            raise ValueError(f"reference_shift is a number up to {LOUDEST:g}; got {self.reference_shift}")
        if self.layout not in LAYOUTS:
            raise ValueError(f"the layout is one of {', '.join(LAYOUTS)}; got {self.layout!r}")

    def _check_layout(self, timestep: float, rows: Tensor) -> None:
        """Two sets from the same noise look like guidance, until they differ."""
        if self._before is not None and self.layout == "auto":
            check_steady(*self._before, timestep, rows)

    def _looks(self, follows: list[dict[int, float]]) -> list[dict[int, float]]:
        """At whom each picture looks beside itself, and how much; nobody, for a reference."""
        return [weights if weights != {i: 1.0} else {} for i, weights in enumerate(follows)]

    def _aligned(self, x: Tensor, of_source: tuple[Tensor, Tensor]) -> Tensor:
        """AdaIN over the tokens: targets (t, h, N, d), moments of the source (r, h, 1, d)."""
        mean, variance = (self._rows.of_targets(m) for m in of_source)  # t R h 1 d
        if mean.shape[1] == 1:
            mean, variance = mean[:, 0], variance[:, 0]
        else:
            mean, variance = blended(mean, variance, self._rows.weights.to(mean.dtype))
        return with_moments(_float32(x), mean, variance, dim=-2, eps=EPS).to(x.dtype)

    def _others(self, x: Tensor) -> Tensor:
        """Tokens of all that each target follows: (r, h, N, d) to (t, h, R N, d)."""
        return self._rows.of_targets(x).transpose(1, 2).flatten(2, 3)

    def _bias(self, own: int, others: int, dtype: torch.dtype) -> Tensor | None:
        """What is added to the logits: nothing for a target's own keys, shift + log weight for the others'.

        Args:
            own, others: keys of a target, and of one that it follows.
        """
        weights = self._rows.weights
        if self.reference_shift == 0 and self._rows.even:
            return None
        nothing = torch.zeros(len(weights), own, device=weights.device)
        shifted = (weights.log() + self.reference_shift).repeat_interleave(others, -1)
        return torch.cat([nothing, shifted], -1)[:, None, None].to(dtype)


def is_shared(network: nn.Module) -> bool:
    """Whether a network is in the block of a patch that shares its attention."""
    return any(isinstance(getattr(hook, "__self__", None), Sharing) for hook in network._forward_pre_hooks.values())


# ---------------------------------------------------------------------------------------- the patch


@dataclass(eq=False)
class StyleAligned(Sharing):
    r"""Pictures that a pipeline draws in this block share the style of the reference among them.

    The U-Net is changed on entry and as before after the block, also where the block fails. LoRA, IP-Adapters and
    ControlNets stay as they are and act as always. Gradients flow through.

    Args:
        pipe: anything with a ``.unet`` of diffusers' class ``UNet2DConditionModel``: Stable Diffusion 1, 2 or XL, the
            tiny pipeline, your own.
        share_attention: targets look at the reference's keys and values beside their own. Default of the paper.
        adain_queries, adain_keys, adain_values: targets' queries, keys or values get the reference's moments first. The
            paper's default is queries and keys.
        full_attention: every picture of a set looks at all of them, and there is no reference: the paper's ablation.
            Then ``layers``, ``reference`` (who is in which set) and ``layout`` count, the AdaIN settings and
            ``share_attention`` do not, and the settings of a reference are refused.
        share_group_norm: target and reference are normalized by their common moments in every group norm, whatever
            ``layers`` says. The paper does not mention it; the public code has it on by default.
        share_layer_norm: the same for the layer norms of the transformer blocks. It is what the public code does, and
            it changes nothing: a layer norm takes the moments of each token alone.
        reference_scale: factor of the reference's keys as targets see them; 0 to about 1.5. Below 1 is for references
            that draw too much attention to themselves, at 0 all of the reference is heard alike; 1 is the paper.
        reference_shift: added to the logits of the reference's keys; up to 100, and log 2 equals a second copy of the
            reference. 0 is the paper; at minus infinity nothing is shared and AdaIN stays.
        layers: which self-attention layers share: a fraction from 0 to 1 of them, spread evenly, or a list of names as
            in :func:`stylemoments.attention.layers` or their beginnings, such as ``["up_blocks"]``. 1, all of them, is
            the paper.
        reference: which picture is the reference. An index: one set, and all others follow it; the first is the paper.
            A list with an entry for each picture, the index of the one it follows: several sets in one batch, where
            ``[0, 0, 2, 2]`` is two; a picture that follows itself is a reference, or alone. An entry such as
            ``{0: 0.3, 1: 0.7}`` follows several: their keys are weighed by it, and their moments are mixed (ours, not
            the paper's). Or what ``keep`` kept: every picture of the batch follows that.
        layout: how guidance doubles the batch, see :func:`stylemoments.references.batch_layout`; ``"auto"`` sees it.
        keep: keep what targets need of the reference in one run of the sampler; after the block it is in the attribute
            ``kept``. The batch may then be the reference alone. It takes two tensors of tokens by channels for each
            layer, row and step: 18 MB for 12 steps of the tiny pipeline with guidance, 0.84 GB for *each* step of XL at
            1024 pixels in half precision.

    Raises:
        TypeError: a pipeline without such a U-Net; on entry, a layer whose processor does more than attention.
        ValueError: a setting out of its range. While sampling: no targets in the batch, a reference that is not in it,
            latents that do not tell the layout, an attention mask.
        RuntimeError: the U-Net is style-aligned already, or compiled, or was changed in the block.

    Example:
        >>> from . import diffusion
        >>> pipe = diffusion.load("tiny", device="cpu")
        size tiny: as asked
        >>> with StyleAligned(pipe):
        ...     images = diffusion.generate(pipe, ["a cat in neon light style", "a dog in neon light style"], steps=2)
        >>> images.shape
        torch.Size([2, 3, 64, 64])
    """

    pipe: Any
    _: KW_ONLY
    share_attention: bool = True
    adain_queries: bool = True
    adain_keys: bool = True
    adain_values: bool = False
    full_attention: bool = False
    share_group_norm: bool = False
    share_layer_norm: bool = False
    reference_scale: float = 1.0
    reference_shift: float = 0.0
    layers: float | Sequence[str] = 1.0
    reference: "int | Sequence[int | Mapping[int, float]] | KeptReference" = 0
    layout: str = "auto"
    keep: bool = False

    def __post_init__(self):
        unet = getattr(self.pipe, "unet", None)
        if not isinstance(unet, UNet2DConditionModel):
            raise TypeError(
                "StyleAligned needs a pipeline whose .unet is a UNet2DConditionModel, such as Stable Diffusion's, "
                f"not compiled; got {type(self.pipe).__name__} with {type(unet).__name__}"
            )
        self._names = attention.choose_layers(attention.layers(unet), self.layers)
        self._check_settings()
        if self.full_attention:
            self._check_full_attention()
        if isinstance(self.reference, KeptReference):
            self._check_kept(self.reference)
        self.kept: KeptReference | None = None
        self._undo = ExitStack()

    def _check_full_attention(self) -> None:
        entries = self.reference if isinstance(self.reference, Sequence) else []
        if isinstance(self.reference, KeptReference) or self.keep or any(isinstance(e, Mapping) for e in entries):
            raise ValueError(
                "with full_attention every picture looks at all of its set: there is no reference to keep or to mix"
            )
        changed = [name for name in ("share_group_norm", "share_layer_norm") if getattr(self, name)]
        changed += ["reference_scale"] * (self.reference_scale != 1) + ["reference_shift"] * (self.reference_shift != 0)
        if changed:
            raise ValueError(f"with full_attention there is no reference for {', '.join(changed)}; leave it out")

    def _check_kept(self, kept: KeptReference) -> None:
        if self.keep:
            raise ValueError("keep=True needs a fresh reference in the batch; this one is kept already")
        if not kept.calls:
            raise ValueError("the reference is empty: sample with it in a block of StyleAligned(pipe, keep=True) first")
        missing = [name for call in kept.calls for name in self._names if name not in call.layers]
        if missing or (self.share_group_norm and not all(call.norms for call in kept.calls)):
            what = f"of layer {missing[0]}" if missing else "for share_group_norm"
            raise ValueError(
                f"nothing was kept {what}: keep a whole run of the reference, with the settings that its followers need"
            )

    # ------------------------------------------------------------------ entering and leaving

    def __enter__(self):
        unet = self.pipe.unet
        if is_shared(unet):
            raise RuntimeError("this U-Net is style-aligned already; leave the other block first")
        if unet._compiled_call_impl is not None:
            raise RuntimeError(
                "a compiled U-Net may keep its old attention; use StyleAligned with one that is not compiled"
            )
        modules = dict(unet.named_modules())
        for name in self._names:
            if not isinstance(processor := modules[name].processor, PLAIN):
                raise TypeError(
                    f"StyleAligned would put aside what {type(processor).__name__} does in {name}; it can replace "
                    f"{', '.join(kind.__name__ for kind in PLAIN)}. Choose other layers, or call "
                    "unet.set_default_attn_processor() first"
                )
        self.kept = KeptReference() if self.keep else None
        self._plans: dict[tuple, Rows] = {}
        self._rows = self._call = self._before = None
        self._next = 0  # of the calls of a kept reference
        with ExitStack() as undo:
            undo.callback(unet.register_forward_pre_hook(self._begin, with_kwargs=True).remove)
            for name in self._names:
                undo.callback(modules[name].set_processor, modules[name].processor)
                modules[name].set_processor(_SharedAttention(self, name))
            for name, module in modules.items():
                if self.share_group_norm and isinstance(module, nn.GroupNorm):
                    undo.callback(module.register_forward_hook(partial(self._group_norm, name)).remove)
                if self.share_layer_norm and isinstance(module, nn.LayerNorm) and "transformer_blocks" in name:
                    undo.callback(module.register_forward_hook(self._layer_norm).remove)
            self._undo = undo.pop_all()
        return self

    def __exit__(self, *exception):
        self._undo.close()
        self._plans, self._rows, self._call = {}, None, None

    def settings(self) -> dict:
        """All settings but the pipeline, by name."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name != "pipe"}

    # ------------------------------------------------------------------ one call of the U-Net

    def _begin(self, unet: nn.Module, args: tuple, options: dict) -> None:
        """See who is in the batch, before the U-Net computes."""
        self._check_network(unet)
        latents = args[0] if args else options["sample"]
        times = torch.as_tensor(args[1] if len(args) > 1 else options["timestep"]).flatten().tolist()
        timestep = times[0] if len(set(times)) == 1 else math.nan
        own = latents[:, : unet.config.out_channels]  # others are of an image to edit
        rows = batch_layout(own, self.layout)
        self._check_layout(timestep, rows)
        key = (*rows.shape, int(rows[-1, 0]), latents.device)
        if key not in self._plans:
            self._plans[key] = self._plan(rows, latents.device)
        self._rows, self._call = self._plans[key], None
        if self.keep or isinstance(self.reference, KeptReference):
            if math.isnan(timestep):
                raise ValueError(f"a kept reference needs one timestep for the whole batch; got {times}")
            self._call = (self._keep if self.keep else self._follow)(Call(timestep, len(rows), latents.shape[2:]))
        self._before = timestep, rows

    def _check_network(self, unet: nn.Module) -> None:
        if unet.is_gradient_checkpointing and unet.training:
            raise RuntimeError(
                "gradient checkpointing computes layers again when it is no longer known who follows whom: call "
                "unet.disable_gradient_checkpointing() first"
            )
        for name in self._names:
            if not isinstance(unet.get_submodule(name).processor, _SharedAttention):
                raise RuntimeError(f"the processor of {name} was replaced: change the U-Net before or after the block")

    def _keep(self, call: Call) -> Call:
        if self._before is not None and call.timestep > self._before[0]:
            raise ValueError(
                "keep=True keeps one run of the sampler, and a second one began; leave the block after the first"
            )
        self.kept.calls.append(call)
        return call

    def _follow(self, now: Call) -> Call:
        """The kept call that belongs to this one; a new run of the sampler begins with the first."""
        calls = self.reference.calls
        self._next %= len(calls)
        if calls[self._next].timestep != now.timestep == calls[0].timestep:
            self._next = 0  # the run before was left early
        call = calls[self._next]
        if (call.timestep, call.copies, call.sides) != (now.timestep, now.copies, now.sides):
            raise ValueError(
                f"the reference was kept at {call}, and is followed at {now}: sample with the same steps, guidance "
                "and size"
            )
        self._next += 1
        return call

    def _plan(self, rows: Tensor, device: torch.device) -> Rows:
        if isinstance(self.reference, KeptReference):
            return plan_following(rows, device)
        return plan(self._looks(follows(self.reference, rows.shape[1])), rows, device, keep=self.keep)

    def _looks(self, follows: list[dict[int, float]]) -> list[dict[int, float]]:
        if not self.full_attention:
            return super()._looks(follows)
        return [
            {j: 1.0 for j, theirs in enumerate(follows) if theirs == weights and j != i}
            for i, weights in enumerate(follows)
        ]

    # ------------------------------------------------------------------ attention

    def _reference(self, name: str, queries: Tensor, keys: Tensor, values: Tensor) -> Kept:
        """What the targets need of those they follow in this layer."""
        source = self._rows.source
        if source is None:
            return self._call.layers[name]
        of_queries = token_moments(queries[source]) if self.keep or self._gives_moments("adain_queries") else None
        return Kept(keys[source], values[source], of_queries)

    def _gives_moments(self, setting: str) -> bool:
        return getattr(self, setting) and not self.full_attention

    def _shared(self, reference: Kept, queries: Tensor, keys: Tensor, values: Tensor):
        """Queries, keys, values and bias of the targets: (t, h, N, d), (t, h, M, d) twice, (t, 1, 1, M) or None."""
        queries, keys, values = (x[self._rows.targets] for x in (queries, keys, values))
        if self._gives_moments("adain_queries"):
            queries = self._aligned(queries, reference.queries)
        if self._gives_moments("adain_keys"):
            keys = self._aligned(keys, token_moments(reference.keys))
        if self._gives_moments("adain_values"):
            values = self._aligned(values, token_moments(reference.values))
        if not (self.share_attention or self.full_attention):
            return queries, keys, values, None
        tokens, its_keys = keys.shape[-2], reference.keys
        if self.reference_scale != 1:
            its_keys = its_keys * self.reference_scale
        keys = torch.cat([keys, self._others(its_keys)], -2)
        values = torch.cat([values, self._others(reference.values)], -2)
        return queries, keys, values, self._bias(tokens, tokens, keys.dtype)

    def attend(self, name: str, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """What comes out of a layer's heads, (B, h, N, d) as queries, keys and values are."""
        rows, output = self._rows, torch.empty_like(queries)
        rows.check(queries)
        reference = self._reference(name, queries, keys, values)
        if len(rows.plain):
            plain = (x[rows.plain] for x in (queries, keys, values))
            output[rows.plain] = F.scaled_dot_product_attention(*plain)
        if len(rows.targets):
            *shared, bias = self._shared(reference, queries, keys, values)
            output[rows.targets] = F.scaled_dot_product_attention(*shared, attn_mask=bias)
        if self.keep:
            moments_ = tuple(x.detach() for x in reference.queries)
            self._call.layers[name] = Kept(reference.keys.detach(), reference.values.detach(), moments_)
        return output

    def probabilities(self, name: str, queries: Tensor, keys: Tensor) -> Tensor:
        """How much each query looks at each key: (B, h, N, M), a row's own N first, then those it follows."""
        rows, scale = self._rows, queries.shape[-1] ** -0.5
        rows.check(queries)
        own = (_float32(queries[rows.plain]) * scale @ _float32(keys[rows.plain]).mT).softmax(-1)
        if not len(rows.targets):
            return own[rows.plain.argsort()]
        q, k, _, bias = self._shared(self._reference(name, queries, keys, keys), queries, keys, keys)
        logits = _float32(q) * scale @ _float32(k).mT
        targets = (logits if bias is None else logits + bias).softmax(-1)
        found = targets.new_zeros(len(queries), *targets.shape[1:])
        found[rows.targets] = targets
        found[rows.plain, :, :, : keys.shape[-2]] = own
        return found

    # ------------------------------------------------------------------ norms

    def _group_norm(self, name: str, norm: nn.GroupNorm, args: tuple, output: Tensor) -> Tensor:
        rows, x = self._rows, args[0]
        rows.check(x)
        if norm.weight.device != x.device:
            raise RuntimeError(
                "share_group_norm needs the U-Net's weights where it computes: use enable_model_cpu_offload instead of "
                "enable_sequential_cpu_offload"
            )

        def groups(of: Tensor) -> Tensor:
            return _float32(x[of]).reshape(len(of), norm.num_groups, -1)  # b g n

        source = self._call.norms[name] if rows.source is None else moments(groups(rows.source), -1)
        if self.keep:
            self._call.norms[name] = tuple(m.detach() for m in source)
        if not len(rows.targets):
            return output
        own = groups(rows.targets)
        mean, variance = pooled(*moments(own, -1), rows.weights, *(rows.of_targets(m) for m in source))
        normal = ((own - mean) * (variance + norm.eps).rsqrt()).view(-1, *x.shape[1:])
        weight, bias = (p.view(-1, *[1] * (x.ndim - 2)) for p in (norm.weight, norm.bias))
        return output.index_copy(0, rows.targets, (normal * weight + bias).to(output.dtype))

    def _layer_norm(self, norm: nn.LayerNorm, args: tuple, output: Tensor) -> Tensor:
        rows, x = self._rows, args[0]
        if rows.source is None or not len(rows.targets):  # no tokens of a reference; they would change nothing
            return output
        others = rows.of_targets(x[rows.source]).flatten(1, 2)  # t (R n) c
        both = torch.cat([x[rows.targets], others], -2)
        both = F.layer_norm(both, norm.normalized_shape, norm.weight, norm.bias, norm.eps)
        return output.index_copy(0, rows.targets, both[:, : x.shape[-2]].to(output.dtype))


class _SharedAttention:
    """The processor of one self-attention layer while it is shared."""

    def __init__(self, aligned: StyleAligned, name: str):
        self.aligned, self.name = aligned, name

    def __reduce_ex__(self, protocol):
        raise RuntimeError("leave the block of StyleAligned before you copy or pickle its U-Net")

    def __call__(self, attn, hidden_states: Tensor, encoder_hidden_states=None, attention_mask=None, **_) -> Tensor:
        if encoder_hidden_states is not None or attention_mask is not None:
            raise ValueError(
                f"{self.name} was given other tokens to look at, or a mask, so it cannot be shared; choose other layers"
            )
        found = self.aligned.attend(self.name, *self._heads(attn, hidden_states, "qkv"))
        return attn.to_out[1](attn.to_out[0](found.transpose(1, 2).flatten(2)))

    def probabilities(self, attn, hidden_states: Tensor) -> Tensor:
        """For :mod:`stylemoments.attention`: at what each token looks."""
        return self.aligned.probabilities(self.name, *self._heads(attn, hidden_states, "qk"))

    @staticmethod
    def _heads(attn, x: Tensor, which: str) -> list[Tensor]:
        return [getattr(attn, f"to_{i}")(x).unflatten(-1, (attn.heads, -1)).transpose(1, 2) for i in which]  # b h n d
