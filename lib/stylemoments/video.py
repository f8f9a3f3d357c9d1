r"""Frames of a video in the style of a picture, and how much they flicker.

A network that sees one frame at a time makes much out of little: noise in the camera changes the strokes, and a person
who enters the picture changes the moments of the whole, so that even the wall behind gets another color.
:func:`stylize_frames` answers both by remembering the frame before. The *moments* of the content follow slowly, and a
pixel of the output follows slowly *where the input stands still*.

What differs from the paper (Huang & Belongie 2017, arXiv 1703.06868): it styles each frame by itself. Ruder et al. 2016
(arXiv 1604.08610) follow moving things by optical flow; we do not, so what moves may still shimmer.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from . import color as colors
from .adain import Moments, StyleTransfer, check_options, checked, encode_styles, region_moments, regions_of, restyle

STILL = 0.05  # a change of the input from which on it is no noise but motion; a camera's noise makes about 0.02
CUT = 0.2  # a mean change of the input from which on it is another scene


@dataclass(frozen=True)
class _Memory:
    """What is kept of the frame before."""

    frame: Tensor
    contents: list[Moments]
    output: Tensor


def stylize_frames(
    model: StyleTransfer,
    frames: Iterable[Tensor],
    styles: Tensor | Moments | Sequence[Tensor | Moments],
    *,
    alpha: float = 1.0,
    weights: Sequence[float] | None = None,
    masks: Sequence[Tensor] | None = None,
    color: str = "style",
    smoothing: float = 0.8,
) -> Iterator[Tensor]:
    r"""Give the frames of a video the style of pictures, which are encoded once.

    With smoothing :math:`\lambda`, the moments of the content are :math:`m_t = \lambda m_{t-1} + (1 - \lambda) f_t`,
    where :math:`f_t` are those of frame t. Each pixel of the output is blended in the same way with that of the frame
    before, where :math:`\lambda` falls to 0 as the :func:`change` of the input there rises to 0.05. A cut to another
    scene, a mean change of more than 0.2, starts anew; so does another size.

    Args:
        model: see :func:`stylemoments.adain.load`.
        frames: each ``(1, 3, H, W)`` in [0, 1], taken one at a time.
        styles, alpha, weights, masks, color: as in :func:`stylemoments.adain.stylize`. With ``color="coral"`` the
            styles get the colors of the first frame.
        smoothing: in [0, 1): 0 makes each frame by itself; more flickers less, but slow changes of the light, which
            count as still, then lag by about smoothing / (1 - smoothing) frames.

    Yields:
        for each frame a picture ``(1, 3, H, W)`` in [0, 1].

    Raises:
        ValueError: anything outside these ranges; says what it got.

    Example:
        >>> from stylemoments.vgg import VGGFeatures
        >>> model, frames = StyleTransfer(VGGFeatures(weights="random")), torch.rand(3, 1, 3, 16, 20)
        >>> [tuple(frame.shape) for frame in stylize_frames(model, frames, torch.rand(1, 3, 32, 32))]
        [(1, 3, 16, 20), (1, 3, 16, 20), (1, 3, 16, 20)]
    """
    check_options(alpha, color)
    if not 0 <= smoothing < 1:
        raise ValueError(f"smoothing goes from 0, none, to less than 1; got {smoothing}")
    return _stylized(model, frames, styles, alpha, weights, masks, color, smoothing)


def _stylized(model, frames, styles, alpha, weights, masks, color, smoothing) -> Iterator[Tensor]:
    encoded = memory = None
    for frame in frames:
        frame = checked(frame, "a frame").to(model.device)
        if encoded is None:
            encoded = encode_styles(model, styles, frame, color=color)
        if memory is None or frame.shape != memory.frame.shape:
            memory, regions = None, regions_of(frame, encoded, weights=weights, masks=masks)
        with torch.no_grad():
            memory = _next(model, frame, regions, alpha, smoothing, memory)
        yield colors.keep_luminance(memory.output, frame) if color == "luminance" else memory.output


def _next(model, frame, regions, alpha, smoothing, memory) -> _Memory:
    """The memory after this frame; its output is the picture."""
    features = model.encode(frame)
    contents = [region_moments(features, region.weight) for region in regions]
    changes = None if memory is None else change(frame, memory.frame)
    remembered = changes is not None and changes.mean() < CUT
    if remembered:
        pairs = zip(contents, memory.contents, strict=True)
        contents = [_lerp(content, before, smoothing) for content, before in pairs]
    output = model.decode(restyle(features, regions, contents, alpha=alpha), frame.shape[-2:])
    if remembered:
        output = output.lerp(memory.output, smoothing * (1 - (changes / STILL) ** 2).clamp_min(0))
    return _Memory(frame, contents, output)


def _lerp(content: Moments, before: Moments, share: float) -> Moments:
    return Moments(content.mean.lerp(before.mean, share), content.deviation.lerp(before.deviation, share))


def change(frame: Tensor, before: Tensor) -> Tensor:
    """How much each place differs between two frames: absolute differences, in the color where they are largest.

    Each is averaged over 5 × 5 pixels: noise becomes much the same everywhere, and motion of fine texture stays motion.

    Args:
        frame, before: ``(B, 3, H, W)``, at least 3 pixels on each side.

    Returns:
        ``(B, 1, H, W)``.

    Example:
        >>> change(torch.ones(1, 3, 8, 8), torch.zeros(1, 3, 8, 8)).mean().item()
        1.0
    """
    difference = F.pad((frame - before).abs(), (2, 2, 2, 2), mode="reflect")
    return F.avg_pool2d(difference, 5, stride=1).amax(1, keepdim=True)


def flicker(outputs: Iterable[Tensor], inputs: Iterable[Tensor], *, still: float = 0.1) -> float:
    """How much an output changes from frame to frame where its input does not, beyond the change of the input there.

    The mean absolute change of the output less that of the input, over the pixels whose input changed by less than
    ``still`` in every color, and over all pairs of neighboring frames.

    Args:
        outputs, inputs: frames ``(1, 3, H, W)`` in [0, 1], as many and as large as each other.
        still: what counts as no change of the input.

    Returns:
        in units of the pixels' range [0, 1]; 0 for outputs that are the inputs, negative for calmer ones.

    Raises:
        ValueError: fewer than two frames, not as many, or nothing that stands still.

    Example:
        >>> gray = torch.full((1, 3, 4, 4), 0.5)
        >>> flicker([gray, gray + 0.25], [gray, gray])
        0.25
    """
    beyond, pixels, before = 0.0, 0, None
    for now in zip(outputs, inputs, strict=True):
        if before is not None:
            output, source = ((a - b).abs() for a, b in zip(now, before, strict=True))
            calm = source.amax(1, keepdim=True) < still
            beyond += ((output - source) * calm).double().sum().item() / source.shape[1]
            pixels += calm.sum().item()
        before = now
    if not pixels:
        raise ValueError("flicker needs two frames or more, and pixels of the input that stand still; got none")
    return beyond / pixels
