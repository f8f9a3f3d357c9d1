r"""ControlNet: a picture of edges says where things are, and the prompt says what they are.

Zhang, Rao, Agrawala, *Adding Conditional Control to Text-to-Image Diffusion Models*, ICCV 2023 (arXiv 2302.05543).
A second network, begun as a copy of the U-Net's first half, sees the noisy latents and a condition :math:`c`. What it
says is added to the skip connections :math:`h_i` of the frozen U-Net and to its middle:

.. math:: h_i \leftarrow h_i + s \, Z_i\big(f_i(x_t, t, \text{prompt}, c)\big)

Each :math:`Z_i` is a 1 x 1 convolution that is zero at first, so training begins with the pictures of the U-Net alone.

:class:`Controlled` controls some pictures of a batch and leaves the others free: next to
:class:`stylemoments.style_aligned.StyleAligned` the reference keeps its own layout, the targets take theirs.

What differs from the paper: its edges are Canny's, one pixel wide and black or white by two thresholds; those of
:func:`edges` are as wide and as bright as the change of color is steep, so there is nothing to choose, and faint edges
stay faint. Guidance sees the condition in both halves, as in diffusers, without the paper's weights for each layer.

Axes: ``B`` rows of the batch, ``C h w`` channels and sides of the latents, ``H W`` sides of the pictures.
"""

import inspect
import math
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any

from . import _torchvision, zoo  # noqa: F401

# isort: split
import torch
import torch.nn.functional as F
from diffusers import ControlNetModel, UNet2DConditionModel
from torch import Tensor, nn

from .references import LAYOUTS, batch_layout

FAINTEST = 4 / 255  # what Sobel's filter says of a step of one level in 255
SOBEL = torch.tensor([[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]])
RESIDUALS = ("down_block_additional_residuals", "mid_block_additional_residual")


# ---------------------------------------------------------------------------------------- the condition


def edges(images: Tensor) -> Tensor:
    """White edges on black: how steeply the color changes, by the filter of Sobel and Feldman (1968).

    Of the three colors the one that changes most counts. Each picture is divided by its steepest place, so contrast and
    brightness do not matter, but steps fainter than one level in 255 stay as faint as they are.

    Args:
        images: ``(B, 3, H, W)`` in [0, 1].

    Returns:
        ``(B, 3, H, W)`` in [0, 1], three equal channels.

    Raises:
        ValueError: not a batch of images with three channels.

    Example:
        >>> step = torch.zeros(1, 3, 4, 4)
        >>> step[..., 2:] = 1.0  # the right half is white
        >>> edges(step)[0, 0, 0].tolist()
        [0.0, 1.0, 1.0, 0.0]
    """
    if images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(f"edges needs images of shape (B, 3, H, W) in [0, 1]; got shape {tuple(images.shape)}")
    channels = F.pad(images, (1, 1, 1, 1), mode="replicate").flatten(0, 1)[:, None]  # (B 3) 1 H+2 W+2
    filters = torch.stack([SOBEL, SOBEL.T])[:, None].to(images)
    steepness = F.conv2d(channels, filters).norm(dim=1).view_as(images).amax(1, keepdim=True)  # B 1 H W
    steepest = steepness.amax((-2, -1), keepdim=True).clamp(min=FAINTEST)
    return (steepness / steepest).expand(-1, 3, -1, -1).contiguous()


# ---------------------------------------------------------------------------------------- loading


def load(
    size: str = "tiny", *, device: str | torch.device | None = None, dtype: torch.dtype | None = None
) -> ControlNetModel:
    """The ControlNet that ships with the package: from the edges of a picture of the tiny world to pictures like it.

    For Stable Diffusion 1.5 or XL, load one from the Hugging Face Hub, pinned to the commit you looked at::

        from diffusers import ControlNetModel
        controlnet = ControlNetModel.from_pretrained(
            "lllyasviel/control_v11p_sd15_canny", revision="<the commit>", torch_dtype=pipe.unet.dtype
        ).to(pipe.device)

    :class:`Controlled` takes it as it takes the tiny one. Give it the conditions that it was trained on: Canny's edges
    for this one.

    Args:
        size: ``"tiny"``, the one that ships.
        device: where to compute; None is the CUDA GPU where there is one, else the CPU.
        dtype: of the weights; None is float32.

    Raises:
        ValueError: another size.
        WeightsError: the shipped files are damaged.

    Example:
        >>> load(device="cpu").config.conditioning_channels
        3
    """
    if size != "tiny":
        raise ValueError(
            f'only the size "tiny" ships with a ControlNet; got {size!r}. For Stable Diffusion 1.5 and XL call '
            "diffusers.ControlNetModel.from_pretrained with the name of a repository and a revision"
        )
    from .diffusion import quiet

    with quiet():
        controlnet = ControlNetModel.from_pretrained(
            zoo.folder("tiny-control"), torch_dtype=dtype or torch.float32, local_files_only=True, use_safetensors=True
        )
    return controlnet.eval().to(device or ("cuda" if torch.cuda.is_available() else "cpu"))


# ---------------------------------------------------------------------------------------- the patch


@dataclass(eq=False)
class Controlled:
    """Pictures that a pipeline draws in this block follow their conditions, those without one are as always.

    Each call of the U-Net is preceded by one of the ControlNet, with the controlled rows only. The others get zeros: on
    a CPU they come out bit for bit as without the block. After the block the U-Net is as before, also where it fails.

    It works with :func:`stylemoments.diffusion.sample`, with the pipeline's own call and within or around a block of
    :class:`stylemoments.style_aligned.StyleAligned`, whose reference is best left free.

    Args:
        pipe: with a ``.unet`` of diffusers' class ``UNet2DConditionModel`` and a ``.vae_scale_factor``: Stable
            Diffusion 1, 2 or XL, the tiny pipeline, your own.
        controlnet: made for this U-Net, on its device.
        conditions: one entry for each picture of the batch: its condition, ``(3, H, W)`` or ``(1, 3, H, W)`` in [0, 1]
            and of the size of the picture, such as :func:`edges` makes; or None for a picture that is left free. A
            tensor ``(B, 3, H, W)`` is a condition for each.
        scale: factor of what the ControlNet says, 0 or more. 1 is how it was trained, 0 leaves all pictures free; less
            than 1 lets the picture leave the condition where the prompt wants to.
        layout: how guidance doubles the batch, see :func:`stylemoments.references.batch_layout`; ``"auto"`` sees it.

    Raises:
        TypeError: a pipeline without such a U-Net, or not a ControlNet of diffusers.
        ValueError: no condition at all, or one that is not a picture in [0, 1]; a scale or layout out of its range; a
            ControlNet of another U-Net. While sampling: not as many conditions as pictures, conditions of another size
            than the pictures, residuals of another ControlNet.
        RuntimeError: the U-Net is controlled already.

    Example:
        >>> from . import diffusion
        >>> pipe, controlnet = diffusion.load("tiny", device="cpu"), load(device="cpu")
        size tiny: as asked
        >>> condition = edges(torch.rand(1, 3, 64, 64))
        >>> with Controlled(pipe, controlnet, [None, condition]):
        ...     images = diffusion.generate(pipe, ["a cat in neon light style", "a dog in neon light style"], steps=2)
        >>> images.shape
        torch.Size([2, 3, 64, 64])
    """

    pipe: Any
    controlnet: ControlNetModel
    conditions: Sequence[Tensor | None] | Tensor
    _: KW_ONLY
    scale: float = 1.0
    layout: str = "auto"

    def __post_init__(self):
        unet = getattr(self.pipe, "unet", None)
        if not isinstance(unet, UNet2DConditionModel):
            raise TypeError(
                "Controlled needs a pipeline whose .unet is a UNet2DConditionModel, such as Stable Diffusion's, not "
                f"compiled; got {type(self.pipe).__name__} with {type(unet).__name__}"
            )
        if not isinstance(self.controlnet, ControlNetModel):
            raise TypeError(f"Controlled needs a ControlNetModel of diffusers; got {type(self.controlnet).__name__}")
        if not (math.isfinite(self.scale) and self.scale >= 0):
            raise ValueError(f"scale is a finite factor, 0 or more; got {self.scale}")
        if self.layout not in LAYOUTS:
            raise ValueError(f"the layout is one of {', '.join(LAYOUTS)}; got {self.layout!r}")
        self._pictures = [i for i, condition in enumerate(self.conditions) if condition is not None]
        if not self._pictures:
            raise ValueError("Controlled needs a condition for one picture at least; got none")
        self._condition = torch.stack([_picture(self.conditions[i], i) for i in self._pictures])  # c 3 H W
        self._check_fit(unet)

    def _check_fit(self, unet: UNet2DConditionModel) -> None:
        found, needed = _shape(self.controlnet), _shape(unet)
        config = self.controlnet.config
        found |= {"pixels to a latent": 2 ** (len(config.conditioning_embedding_out_channels) - 1),
                  "colors of a condition": config.conditioning_channels}  # fmt: skip
        needed |= {"pixels to a latent": self.pipe.vae_scale_factor, "colors of a condition": 3}
        wrong = [f"{what} {found[what]} instead of {needed[what]}" for what in needed if found[what] != needed[what]]
        if wrong:
            raise ValueError(f"this ControlNet was made for another U-Net: it has {', '.join(wrong)}")

    # ------------------------------------------------------------------ entering and leaving

    def __enter__(self):
        unet = self.pipe.unet
        if any(isinstance(getattr(hook, "__self__", None), Controlled) for hook in unet._forward_pre_hooks.values()):
            raise RuntimeError("this U-Net is controlled already; leave the other block first")
        self._handle = unet.register_forward_pre_hook(self._begin, with_kwargs=True)
        return self

    def __exit__(self, *exception):
        self._handle.remove()

    # ------------------------------------------------------------------ one call of the U-Net

    def _begin(self, unet: nn.Module, args: tuple, options: dict) -> tuple[tuple, dict]:
        """Add what the ControlNet says to the arguments of the U-Net."""
        call = inspect.signature(unet.forward).bind(*args, **options).arguments
        if given := [name for name in RESIDUALS if call.get(name) is not None]:
            raise ValueError(f"the U-Net was called with {given[0]} of another ControlNet; use one of the two")
        latents = call["sample"]
        rows = self._rows(latents[:, : unet.config.out_channels])  # others are of an image to edit
        down, mid = self._residuals(call, rows)

        def among_free(x: Tensor) -> Tensor:
            return latents.new_zeros(len(latents), *x.shape[1:]).index_copy(0, rows, x.to(latents))

        residuals = tuple(map(among_free, down)), among_free(mid)
        return args, options | dict(zip(RESIDUALS, residuals, strict=True))

    def _rows(self, latents: Tensor) -> Tensor:
        """The controlled rows of the batch, copy by copy of the pictures."""
        rows = batch_layout(latents, self.layout)
        if rows.shape[1] != len(self.conditions):
            raise ValueError(
                f"one condition, or None, for each picture: got {len(self.conditions)} for the {rows.shape[1]} "
                "pictures of the batch. (Two rows of the same latents count as one picture with guidance; "
                'layout="single" says that they are two)'
            )
        sides = tuple(side * self.pipe.vae_scale_factor for side in latents.shape[2:])
        if self._condition.shape[2:] != sides:
            got = " x ".join(map(str, self._condition.shape[2:]))
            raise ValueError(f"conditions have the size of the pictures, {sides[0]} x {sides[1]} pixels; got {got}")
        return rows[:, self._pictures].flatten().to(latents.device)

    def _residuals(self, call: dict, rows: Tensor) -> tuple[tuple[Tensor, ...], Tensor]:
        """What the ControlNet says of these rows: for each skip connection, and for the middle."""
        net, batch = self.controlnet, len(call["sample"])

        def of(x):
            """These rows of an argument; one that all rows share stays as it is."""
            return x[rows] if isinstance(x, Tensor) and x.ndim and len(x) == batch else x

        added = call.get("added_cond_kwargs") or {}
        condition = self._condition.to(rows.device, net.dtype)
        return net(
            of(call["sample"])[:, : net.config.in_channels].to(net.dtype), of(call["timestep"]),
            of(call["encoder_hidden_states"]).to(net.dtype), condition.repeat(len(rows) // len(condition), 1, 1, 1),
            conditioning_scale=self.scale, class_labels=of(call.get("class_labels")),
            timestep_cond=of(call.get("timestep_cond")),
            added_cond_kwargs={name: of(x) for name, x in added.items() if name in ("text_embeds", "time_ids")},
            return_dict=False,
        )  # fmt: skip


def _picture(condition: Tensor, number: int) -> Tensor:
    """A condition as ``(3, H, W)``."""
    fine = isinstance(condition, Tensor) and condition.is_floating_point()
    if not fine or condition.shape[-3:-2] != (3,) or condition.shape[:-3] not in ((), (1,)):
        what = f"shape {tuple(condition.shape)}, {condition.dtype}" if isinstance(condition, Tensor) else condition
        raise ValueError(
            f"a condition is a picture of floats in [0, 1], (3, H, W) or (1, 3, H, W); got {what} for picture {number}"
        )
    low, high = condition.aminmax()
    if not (low >= 0 and high <= 1):  # refuses NaN, too
        raise ValueError(f"a condition lies in [0, 1]; got values from {low:g} to {high:g} for picture {number}")
    return condition.reshape(condition.shape[-3:])


def _shape(net: UNet2DConditionModel | ControlNetModel) -> dict[str, Any]:
    """What the first halves of a U-Net and of its ControlNet have in common."""
    skips = [net.conv_in.out_channels]
    for block in net.down_blocks:
        skips += [resnet.out_channels for resnet in block.resnets]
        skips += [f"half of {below.out_channels}" for below in block.downsamplers or ()]
    return {
        "skip connections": skips,
        "numbers in a word": net.config.cross_attention_dim,
        "added embeddings": net.config.addition_embed_type,
    }
