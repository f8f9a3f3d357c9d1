r"""Panoramas: pictures wider or taller than the U-Net draws, made of overlapping windows that agree where they overlap.

Bar-Tal, Yariv, Lipman, Dekel, *MultiDiffusion: Fusing Diffusion Paths for Controlled Image Generation*, ICML 2023
(arXiv 2302.08113). At each step every window is denoised as if it were a picture of its own; a place of the panorama
then takes the mean of all windows that see it:

.. math:: x'(p) = \frac{1}{|\{w : p \in w\}|} \sum_{w \,\ni\, p} \mathrm{step}(x|_w)(p)

A step of DDIM is linear in the clean latents and the noise that were predicted, so it does not matter whether the steps
are averaged or the predictions.

A **reference** is one more picture, of ordinary size and with a prompt of its own, in row 0 of every batch. Alone it
does nothing to the panorama. Inside ``with StyleAligned(pipe):`` (arXiv 2312.02133, whose authors show such panoramas)
all windows share its style, and it comes out as without them.

What differs from the public code of MultiDiffusion: a side may be any multiple of a latent pixel, for the last window
ends where the panorama ends; all windows of a step are one batch; and there can be a reference.

Axes: ``C H W`` channels, rows and columns of the panorama's latents; ``h w`` those of a window; ``n`` windows.
"""

from collections.abc import Iterator, Sequence
from itertools import product
from typing import NamedTuple

from . import diffusion
from .style_aligned import is_shared

# isort: split
import torch
from diffusers import DiffusionPipeline
from torch import Tensor

Place = tuple[int, int]  # top row and left column of a window


class PanoramaStep(NamedTuple):
    """One step of :func:`sample`."""

    index: int  # from 0
    timestep: int  # at which the U-Net was called
    latents: Tensor  # (1, C, H, W), of the panorama after the step
    clean: Tensor  # (1, C, H, W), the mean of the clean latents that the windows predicted in it
    reference: Tensor | None  # (1, C, h, w), latents of the reference after the step


# ---------------------------------------------------------------------------------------- windows


def windows(length: int, side: int, stride: int) -> list[int]:
    """Where windows begin that cover a length; the last one ends where the length ends.

    Args:
        length: to cover.
        side: of a window, at most ``length``.
        stride: from one window to the next, 1 to ``side``; the last step may be shorter.

    Raises:
        ValueError: a window that is longer than the length, or a stride that would leave gaps or stand still.

    Example:
        >>> windows(11, 4, 3)
        [0, 3, 6, 7]
    """
    if not 1 <= side <= length:
        raise ValueError(f"a window must fit into the length, {length}; got a side of {side}")
    if not 1 <= stride <= side:
        raise ValueError(f"the stride is 1 to {side}, the side of a window, so that no gaps are left; got {stride}")
    return [*range(0, length - side, stride), length - side]


def cut(latents: Tensor, places: Sequence[Place], sides: tuple[int, int]) -> Tensor:
    """The windows of a panorama.

    Args:
        latents: (1, C, H, W).
        places: n of them.
        sides: rows and columns of a window.

    Returns:
        (n, C, h, w).

    Example:
        >>> cut(torch.tensor([[[[1, 2, 3, 4]]]]), [(0, 0), (0, 2)], (1, 2)).flatten(1).tolist()
        [[1, 2], [3, 4]]
    """
    h, w = sides
    return torch.cat([latents[..., top : top + h, left : left + w] for top, left in places])


def averaged(views: Tensor, places: Sequence[Place], sides: tuple[int, int]) -> Tensor:
    """The panorama whose every place is the mean of the windows that see it; :func:`cut` backwards.

    Args:
        views: (n, C, h, w), the windows.
        places: n of them, which cover the panorama.
        sides: rows and columns of the panorama.

    Returns:
        (1, C, H, W).

    Raises:
        ValueError: a place that no window sees.

    Example:
        >>> averaged(torch.tensor([[[[1.0, 2.0]]], [[[4.0, 8.0]]]]), [(0, 0), (0, 1)], (1, 3)).flatten().tolist()
        [1.0, 3.0, 8.0]
    """
    h, w = views.shape[-2:]
    total, count = views.new_zeros(1, views.shape[1], *sides), views.new_zeros(sides)
    for view, (top, left) in zip(views, places, strict=True):
        total[..., top : top + h, left : left + w] += view
        count[top : top + h, left : left + w] += 1
    if not count.all():
        raise ValueError(f"the windows leave {int((count == 0).sum())} places of the panorama uncovered")
    return total / count


# ---------------------------------------------------------------------------------------- settings


def _in_latents(pipe: DiffusionPipeline, name: str, pixels: int) -> int:
    factor = pipe.vae_scale_factor
    if pixels < 1 or pixels % factor:
        raise ValueError(f"{name} is a multiple of {factor} pixels, the side of one latent; got {pixels}")
    return pixels // factor


def _layout(
    pipe: DiffusionPipeline, width: int, height: int | None, stride: int | None
) -> tuple[list[Place], tuple[int, int]]:
    """Places of the windows, and rows and columns of the panorama, in latents."""
    window, factor = diffusion.latent_sides(pipe), pipe.vae_scale_factor
    asked = window[0] * factor if height is None else height, width
    for name, pixels, side in zip(("height", "width"), asked, window, strict=True):
        if pixels < side * factor:
            raise ValueError(f"a panorama is at least what the U-Net draws, {name} {side * factor}; got {pixels}")
    sides = tuple(_in_latents(pipe, name, pixels) for name, pixels in zip(("height", "width"), asked, strict=True))
    step = max(1, min(window) // 8) if stride is None else _in_latents(pipe, "stride", stride)
    if step > min(window):
        raise ValueError(f"stride is at most the side of a window, {min(window) * factor} pixels; got {stride}")
    tops, lefts = (windows(length, side, step) for length, side in zip(sides, window, strict=True))
    return [*product(tops, lefts)], sides


def _parts(pipe: DiffusionPipeline, n: int, at_once: int | None, reference: str | None) -> list[slice]:
    """Which of the n windows the U-Net sees together."""
    at_once = n if at_once is None else at_once
    if at_once < 1:
        raise ValueError(f"at_once is how many windows the U-Net sees at a time, 1 or more; got {at_once}")
    if at_once < n and reference is None and is_shared(pipe.unet):
        raise ValueError(
            f"in a block of StyleAligned {n} windows, {at_once} at a time, would follow another window in each part: "
            "pass a reference, which is in every part, or leave at_once out"
        )
    return [slice(first, first + at_once) for first in range(0, n, at_once)]


def _repeated(prompts: diffusion.Prompts, n: int) -> diffusion.Prompts:
    """The last prompt n times, after those before it."""
    rows = [*range(len(prompts) - 1), *[len(prompts) - 1] * n]
    fields = (prompts.cond, prompts.uncond, prompts.pooled, prompts.pooled_uncond, prompts.time_ids)
    return diffusion.Prompts(*(None if x is None else x[rows] for x in fields))


# ---------------------------------------------------------------------------------------- the loop


def _noise(pipe: DiffusionPipeline, sides: tuple[int, int], seed: int) -> Tensor:
    """As :func:`stylemoments.diffusion.initial_latents` of one picture, of any sides."""
    shape = (1, pipe.unet.config.in_channels, *sides)
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(pipe.device)


def _predict(
    pipe: DiffusionPipeline,
    reference: Tensor,
    views: Tensor,
    t: int,
    encoded: diffusion.Prompts,
    parts,
    guidance: float,
) -> diffusion.Prediction:
    """What is predicted for the reference, if there is one, and for all windows, some of them at a time."""
    found = []
    for part in parts:
        batch = torch.cat([reference, views[part]])
        prompts = _repeated(encoded, len(views[part]))
        found.append(diffusion.predict(pipe, batch, t, prompts, guidance=guidance))
    n = len(reference)  # 0 or 1; each part predicts the same for it
    return diffusion.Prediction(*(torch.cat([xs[0][:n], *(x[n:] for x in xs)]) for xs in zip(*found, strict=True)))


@torch.no_grad()
def sample(
    pipe: DiffusionPipeline,
    prompt: str,
    *,
    width: int,
    height: int | None = None,
    reference: str | None = None,
    stride: int | None = None,
    steps: int = 25,
    guidance: float | None = None,
    seed: int = 0,
    at_once: int | None = None,
) -> Iterator[PanoramaStep]:
    """Sample one panorama, step by step; the last step's latents are those to decode.

    Windows are of the size that the U-Net was trained on, and each is told, where it listens (XL), that it is a whole
    picture.

    Args:
        pipe: a Stable Diffusion pipeline, 1, 2 or XL, with a DDIM scheduler.
        prompt: of all windows.
        width, height: of the panorama in pixels, multiples of ``pipe.vae_scale_factor``, at least what the U-Net draws;
            a height of None is that.
        reference: a prompt for the picture in row 0; None is no such picture, and a block of StyleAligned then takes
            the first window for its reference.
        stride: from one window to the next, in pixels; None is an eighth of a window, as in the public code.
            More is faster, and seams show.
        steps, guidance: see :func:`stylemoments.diffusion.sample`.
        seed: of the panorama's noise; the reference has that of ``seed + 1``, so that the panorama begins alike with a
            reference and without.
        at_once: the U-Net sees at most so many windows at a time, and the reference with them in each part: for memory.
            None is all.

    Raises:
        ValueError: sides or a stride that are no multiples, too small, or a stride larger than a window; ``at_once``
            below 1, or in a block of StyleAligned without a reference; see :func:`stylemoments.diffusion.schedule`.

    Example:
        >>> pipe = diffusion.load("tiny", device="cpu")
        size tiny: as asked
        >>> for step in sample(pipe, "a cat in neon light style", width=96, stride=32, steps=2):
        ...     print(step.index, tuple(step.latents.shape))
        0 (1, 4, 16, 24)
        1 (1, 4, 16, 24)
    """
    places, sides = _layout(pipe, width, height, stride)
    parts = _parts(pipe, len(places), at_once, reference)
    guidance = diffusion.default_guidance(pipe) if guidance is None else guidance
    encoded = diffusion.encode_prompts(pipe, [prompt] if reference is None else [reference, prompt])
    window, latents = diffusion.latent_sides(pipe), _noise(pipe, sides, seed)
    n = len(encoded) - 1  # rows of the reference: 1, or 0 without
    aside = _noise(pipe, window, seed + 1)[:n]
    for index, (t, _, alpha_bar_next) in enumerate(diffusion.schedule(pipe, steps)):
        views = cut(latents, places, window)
        prediction = _predict(pipe, aside, views, t, encoded, parts, guidance)
        stepped = diffusion.ddim_step(*prediction, alpha_bar_next)
        aside, latents = stepped[:n], averaged(stepped[n:], places, sides)
        clean = averaged(prediction.clean[n:], places, sides)
        yield PanoramaStep(index, t, latents, clean, aside if n else None)


def generate(pipe: DiffusionPipeline, prompt: str, **options) -> tuple[Tensor, Tensor | None]:
    """The end of :func:`sample`, which takes the same options, as images.

    Returns:
        the panorama, float32 ``(1, 3, height, width)`` in [0, 1]; and the reference, ``(1, 3, h, w)``, or None.

    Example:
        >>> from stylemoments.style_aligned import StyleAligned
        >>> pipe = diffusion.load("tiny", device="cpu")
        size tiny: as asked
        >>> style, options = "in neon light style", {"width": 96, "stride": 32, "steps": 2}
        >>> with StyleAligned(pipe):
        ...     panorama, reference = generate(pipe, f"a cat {style}", reference=f"an owl {style}", **options)
        >>> tuple(panorama.shape), tuple(reference.shape)
        ((1, 3, 64, 96), (1, 3, 64, 64))
    """
    *_, last = sample(pipe, prompt, **options)
    reference = None if last.reference is None else diffusion.decode(pipe, last.reference)
    return diffusion.decode(pipe, last.latents), reference
