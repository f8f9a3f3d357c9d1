r"""LoRA on some pictures of a batch: a subject in a style, where the picture that gives the style knows no subject.

Hertz et al., *Style Aligned Image Generation via Shared Attention*, 2024 (arXiv 2312.02133) join StyleAligned with
DreamBooth: the low-rank adapters act on the pictures of the subject, the reference is drawn by the base model, all in
one batch. The public code has no such part. With the weights :math:`W` of a layer and the adapter's :math:`B A`, row i
of the batch becomes

.. math:: y_i = W x_i + s_i \, B A \, x_i, \qquad
          s_i = \tfrac{\alpha}{r} \text{ for a personalized picture, } 0 \text{ for any other}

The layer computes :math:`W x` for the whole batch at once, as the base model does: on a CPU the other pictures are
those of the base model bit for bit. The product of the adapter is computed for the personalized rows alone, by what
PEFT has for batches of several adapters.

Axes: ``B`` rows of the batch, that is, copies (guidance) times pictures.
"""

import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import KW_ONLY, dataclass
from functools import partial
from numbers import Integral
from typing import Any

from . import diffusion
from .dreambooth import ADAPTER
from .references import LAYOUTS, batch_layout, check_steady

# isort: split
import torch
from diffusers import DiffusionPipeline, UNet2DConditionModel
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

BASE = "__base__"  # PEFT's name for no adapter


@dataclass(eq=False)
class Personalized:
    """In this block the LoRA of a pipeline's U-Net acts on some pictures of a batch, and not on the others.

    The U-Net is as before after the block, also where it fails: the LoRA acts on all pictures again. It works with
    :func:`stylemoments.diffusion.sample`, with the pipeline's own call, and within or around a block of
    :class:`stylemoments.style_aligned.StyleAligned`. How strongly the LoRA acts is what ``pipe.set_adapters`` said.

    The text encoders are not called in the block: where they were trained, too, encode with :func:`encode_prompts`.

    Args:
        pipe: with a ``.unet`` of diffusers' class ``UNet2DConditionModel`` that has the LoRA, such as
            :func:`stylemoments.dreambooth.load` makes.
        pictures: which of the batch are personalized, counted from 0 and without guidance's copies; one or more.
        adapter: the name of the LoRA; it must be the only active one.
        layout: how guidance doubles the batch, see :func:`stylemoments.references.batch_layout`; ``"auto"`` sees it.

    Raises:
        TypeError: a pipeline without such a U-Net.
        ValueError: no pictures, or what is no index; another layout; a U-Net without this LoRA. While sampling: a
            picture that is not in the batch, or latents that do not tell the layout.
        RuntimeError: LoRA that is fused into the weights, not active, or not alone; on entry, a U-Net that is
            personalized already, or compiled.

    Example:
        >>> from .dreambooth import DreamBooth, defaults
        >>> pipe = diffusion.load("tiny", device="cpu")
        size tiny: as asked
        >>> settings = defaults("tiny", rank=2, steps=1, batch=1, prior_weight=0)
        >>> for record in DreamBooth(pipe, [torch.rand(3, 64, 64)], "sks", "dog", settings=settings).train():
        ...     pass
        >>> said = encode_prompts(pipe, ["a cat in neon light style", "a sks dog in neon light style"], [1])
        >>> with Personalized(pipe, [1]):
        ...     images = diffusion.generate(pipe, said, steps=2)
        >>> images.shape
        torch.Size([2, 3, 64, 64])
    """

    pipe: Any
    pictures: Sequence[int]
    _: KW_ONLY
    adapter: str = ADAPTER
    layout: str = "auto"

    def __post_init__(self):
        unet = getattr(self.pipe, "unet", None)
        if not isinstance(unet, UNet2DConditionModel):
            raise TypeError(
                "Personalized needs a pipeline whose .unet is a UNet2DConditionModel, such as Stable Diffusion's, not "
                f"compiled; got {type(self.pipe).__name__} with {type(unet).__name__}"
            )
        self.pictures = _checked(self.pictures)
        if self.layout not in LAYOUTS:
            raise ValueError(f"the layout is one of {', '.join(LAYOUTS)}; got {self.layout!r}")
        if not _lora(unet, self.adapter):
            raise ValueError(_none(unet, self.adapter))
        self._undo = ExitStack()

    # ------------------------------------------------------------------ entering and leaving

    def __enter__(self):
        unet = self.pipe.unet
        if any(isinstance(getattr(hook, "__self__", None), Personalized) for hook in unet._forward_pre_hooks.values()):
            raise RuntimeError("this U-Net is personalized already; leave the other block first")
        if unet._compiled_call_impl is not None:
            raise RuntimeError("a compiled U-Net may not see the rows; use Personalized with one that is not compiled")
        layers = _lora(unet, self.adapter)
        if not layers:
            raise ValueError(_none(unet, self.adapter))
        self._acts = self._before = None
        with ExitStack() as undo:
            undo.callback(unet.register_forward_pre_hook(self._begin, with_kwargs=True).remove)
            for layer in layers:
                undo.callback(_act_on(layer, self.adapter, lambda: self._acts))
            self._undo = undo.pop_all()
        return self

    def __exit__(self, *exception):
        self._undo.close()

    # ------------------------------------------------------------------ one call of the U-Net

    def _begin(self, unet: nn.Module, args: tuple, options: dict) -> None:
        """See who is in the batch, before the U-Net computes."""
        latents = args[0] if args else options["sample"]
        times = torch.as_tensor(args[1] if len(args) > 1 else options["timestep"]).flatten().tolist()
        rows = batch_layout(latents[:, : unet.config.out_channels], self.layout)  # others are of an image to edit
        self._check_rows(times[0] if len(set(times)) == 1 else math.nan, rows)
        acting = set(rows[:, self.pictures].flatten().tolist())
        self._acts = [row in acting for row in range(len(latents))]

    def _check_rows(self, time: float, rows: Tensor) -> None:
        n = rows.shape[1]
        if self.pictures[-1] >= n:
            raise ValueError(
                f"picture {self.pictures[-1]} cannot be personalized: the batch has pictures 0 to {n - 1}. (Two rows "
                'of the same latents count as one picture with guidance; layout="single" says that they are two)'
            )
        if self._before is not None and self.layout == "auto":
            check_steady(*self._before, time, rows)
        self._before = time, rows


def encode_prompts(
    pipe: DiffusionPipeline,
    prompts: str | Sequence[str],
    pictures: Sequence[int],
    *,
    adapter: str = ADAPTER,
    negative: str = "",
) -> diffusion.Prompts:
    """Encode prompts, those of personalized pictures with the LoRA of the text encoders, the others without.

    The negative prompt of a picture is encoded as its prompt is. Encoders without LoRA encode all alike. A token whose
    row was trained (``text="token"``) lies in the table of words for all: a prompt that does not say it is unchanged.

    Args:
        pipe: a Stable Diffusion pipeline, 1, 2 or XL.
        prompts: one or more.
        pictures: indices of the personalized ones.
        adapter: the name of the LoRA.
        negative: see :func:`stylemoments.diffusion.encode_prompts`.

    Raises:
        ValueError: no pictures, or one that has no prompt; no prompts.
        RuntimeError: LoRA that is fused into the weights, not active, or not alone.
    """
    prompts, pictures = [prompts] if isinstance(prompts, str) else list(prompts), _checked(pictures)
    if prompts and pictures[-1] >= len(prompts):
        raise ValueError(f"picture {pictures[-1]} has no prompt: there are {len(prompts)}, for pictures 0 and on")
    acts = [picture in pictures for picture in range(len(prompts))]
    with ExitStack() as undo:
        for encoder in (pipe.text_encoder, getattr(pipe, "text_encoder_2", None)):
            for layer in _lora(encoder, adapter) if encoder is not None else ():
                undo.callback(_act_on(layer, adapter, lambda: acts))
        return diffusion.encode_prompts(pipe, prompts, negative=negative)


# ---------------------------------------------------------------------------------------- parts


def _checked(pictures: Sequence[int]) -> list[int]:
    """Indices in their order."""
    found = list(pictures) if isinstance(pictures, Sequence) and not isinstance(pictures, str) else []
    fine = all(isinstance(i, Integral) and not isinstance(i, bool) and i >= 0 for i in found)
    if not found or not fine or len(set(found)) < len(found):
        raise ValueError(
            "pictures are the indices of those to personalize, from 0, each once and one at least, such as [1, 2]; "
            f"got {pictures!r}"
        )
    return sorted(map(int, found))


def _lora(module: nn.Module, adapter: str) -> list[LoraLayer]:
    """The layers with this LoRA; where there is any, it must be ready to act, and nothing beside it."""
    every = [layer for layer in module.modules() if isinstance(layer, LoraLayer)]
    if any(layer.merged for layer in every):
        raise RuntimeError("the LoRA was fused into the weights of all pictures: call pipe.unfuse_lora() first")
    found = [layer for layer in every if adapter in layer.lora_A]
    active = {name for layer in every for name in ([] if layer.disable_adapters else layer.active_adapters)}
    if found and active != {adapter}:
        raise RuntimeError(
            f"{adapter!r} must be active and alone, and {', '.join(sorted(active)) or 'none'} is: call "
            f"pipe.enable_lora() and pipe.set_adapters({adapter!r})"
        )
    return found


def _none(module: nn.Module, adapter: str) -> str:
    known = sorted(getattr(module, "peft_config", {}))
    return (
        f"this U-Net has no LoRA {adapter!r}, it has {', '.join(known) or 'none'}: load one first, such as with "
        "dreambooth.load(folder, pipe=pipe)"
    )


def _act_on(layer: LoraLayer, adapter: str, acts: Callable[[], list[bool] | None]) -> Callable[[], None]:
    """Let a LoRA act on some rows only; what undoes it."""
    return layer.register_forward_pre_hook(partial(_name_rows, adapter, acts), with_kwargs=True).remove


def _name_rows(adapter: str, acts: Callable, layer: LoraLayer, args: tuple, options: dict) -> tuple[tuple, dict]:
    """Tell PEFT which rows the adapter is for."""
    rows = acts()
    if rows is None or len(args[0]) != len(rows):
        raise RuntimeError(
            f"the model was called with {'no' if rows is None else len(rows)} rows, and a layer of it with "
            f"{len(args[0])}: call the model itself"
        )
    return args, options | {"adapter_names": [adapter if acting else BASE for acting in rows]}
