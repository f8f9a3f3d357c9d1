r"""Any style in real time: the encoder–decoder of adaptive instance normalization.

A frozen VGG turns the content picture and the style picture into feature maps. AdaIN gives each channel of the
content's the mean and the deviation that it has in the style's, and a decoder, the only part that learns, turns the
result back into a picture:

.. math:: t = \mathrm{AdaIN}(f(c), f(s)), \qquad \text{picture} = g\big((1 - \alpha)\, f(c) + \alpha\, t\big)

Source: Huang & Belongie, *Arbitrary Style Transfer in Real-time with Adaptive Instance Normalization*, 2017 (arXiv
1703.06868). The decoder mirrors the encoder, doubles the sides by repeating pixels, pads by reflection and has no
normalization layers: an instance norm in it would undo what AdaIN did.

All that a style is here are two numbers per channel, its :class:`Moments`. So a style is encoded once, styles blend by
blending numbers, and a region of a picture has a style of its own as soon as its moments are taken by themselves.

What differs from the published code: deviations are unbiased with an epsilon inside the root (see
:func:`stylemoments.norms.adain`); pictures of any size are reflected to the next multiple of 8 and cut back, and what
was reflected counts in no moments; large pictures go through in tiles, with the moments of the whole.

Axes: ``B`` pictures, ``C`` channels, ``H W`` pixels, ``h w`` cells of relu4_1, each 8 × 8 pixels.
"""

import itertools
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import color as colors
from . import norms, zoo
from .files import resize
from .losses import content_loss, moment_loss, style_loss
from .norms import adain
from .vgg import VGGFeatures

LAYERS = ("relu1_1", "relu2_1", "relu3_1", "relu4_1")  # whose moments the style loss compares
DEEPEST = LAYERS[-1]  # the layer whose moments are exchanged
WIDTHS = (16, 32, 64, 128)  # channels of these layers in the tiny VGG; VGG-19 has four times as many
CELL = 8  # pixels on a side that one cell of relu4_1 stands for
MARGIN = 4  # cells: encoder and decoder each see 30 pixels around what they compute, see test_adain.py
SMALLEST = 16  # pixels on a side: two cells, because one has no deviation
EPS = 1e-5  # of norms.adain

#: The two published style losses: how channels are reduced, and the weight that goes with it.
SCALINGS = {
    "sum": 1e-2,  # the authors' Torch code adds the channels up
    "mean": 10.0,  # the common PyTorch port averages them
}
COLORS = ("style", "coral", "luminance")
NORMS = {
    "none": None,
    "instance": lambda channels: norms.InstanceNorm2d(channels, affine=True),
    "batch": norms.BatchNorm2d,
}


# ---------------------------------------------------------------------------------------- the network


class Decoder(nn.Module):
    r"""Turns feature maps of relu4_1 back into a picture: the VGG's plan, backwards.

    Each pooling becomes a doubling of the sides by repeated pixels; every convolution is 3 × 3 with reflection
    padding and a ReLU behind it, except the last, which is linear: the output is *about* in [0, 1], not clamped.

    Args:
        channels: of relu1_1, relu2_1, relu3_1, relu4_1; the default fits the tiny VGG.
        norm: "none", as published, or for comparison "instance" or "batch": with learned scale and shift, between
            each convolution and its ReLU.
        in_channels: of the input, where they are not the last of ``channels``.

    Raises:
        ValueError: not four widths, or another norm.

    Example:
        >>> Decoder()(torch.zeros(1, 128, 5, 6)).shape
        torch.Size([1, 3, 40, 48])
    """

    def __init__(self, channels: Sequence[int] = WIDTHS, *, norm: str = "none", in_channels: int | None = None):
        super().__init__()
        if len(channels) != len(LAYERS):
            raise ValueError(f"the decoder needs a width for each of {', '.join(LAYERS)}; got {tuple(channels)}")
        if norm not in NORMS:
            raise ValueError(f"norm is one of {', '.join(NORMS)}; got {norm!r}")
        self.channels, self.norm = tuple(channels), norm
        one, two, three, four = channels
        layers, seen = [], in_channels or four
        for width in (three, "double", three, three, three, two, "double", two, one, "double", one):
            if width == "double":
                layers.append(nn.Upsample(scale_factor=2, mode="nearest"))
                continue
            layers.append(_convolution(seen, width))
            layers += [NORMS[norm](width)] if NORMS[norm] else []
            layers.append(nn.ReLU(inplace=True))
            seen = width
        self.layers = nn.Sequential(*layers, _convolution(seen, 3))

    def forward(self, features: Tensor) -> Tensor:
        """From features ``(B, C, h, w)``, at least 2 × 2, to pictures ``(B, 3, 8h, 8w)``."""
        return self.layers(features)


def _convolution(channels: int, out: int) -> nn.Conv2d:
    return nn.Conv2d(channels, out, 3, padding=1, padding_mode="reflect")


class StyleTransfer(nn.Module):
    """Encoder and decoder; see :func:`load` for the trained one and :func:`stylize` for all that it can do.

    Args:
        encoder: frozen features with the layers relu1_1, relu2_1, relu3_1, relu4_1; None means the tiny VGG.
        decoder: None means a fresh one of the encoder's widths.

    Raises:
        ValueError: a layer is missing in the encoder.

    Example:
        >>> model = StyleTransfer(VGGFeatures(weights="random"))
        >>> model(torch.rand(1, 3, 32, 48), torch.rand(1, 3, 40, 16)).shape
        torch.Size([1, 3, 32, 48])
    """

    def __init__(self, encoder: VGGFeatures | None = None, decoder: Decoder | None = None):
        super().__init__()
        self.encoder = VGGFeatures(LAYERS) if encoder is None else encoder
        missing = [layer for layer in LAYERS if layer not in self.encoder.layers]
        if missing:
            raise ValueError(f"the encoder needs the layers {', '.join(LAYERS)}; {', '.join(missing)} is missing")
        self.decoder = Decoder([self.encoder.channels[layer] for layer in LAYERS]) if decoder is None else decoder

    @property
    def device(self) -> torch.device:
        """Where the decoder is."""
        return next(self.decoder.parameters()).device

    def forward(self, content: Tensor, style: Tensor, *, alpha: float = 1.0) -> Tensor:
        """The method in three lines; gradients reach the decoder, and the result is not clamped."""
        c, s = self.encode(content), self.encode(style)  # B C h w
        t = adain(c, s)
        return self.decoder(c.lerp(t, alpha))[..., : content.shape[-2], : content.shape[-1]]

    def encode(self, images: Tensor, *, tile: int | None = None, tick: Callable[[], None] | None = None) -> Tensor:
        """relu4_1 of pictures ``(B, 3, H, W)``: ``(B, C, h, w)``, where h and w are H / 8 and W / 8, rounded up.

        Args:
            images: sides that are no multiples of 8 are completed by reflection.
            tile: see :func:`stylize`.
            tick: called after each tile.
        """
        images = F.pad(images, _missing(images.shape[-2:]), mode="reflect")
        return _by_tiles(lambda piece: self.encoder(piece)[DEEPEST], _channels_last(images), CELL, tile, tick)

    @torch.no_grad()
    def decode(
        self,
        features: Tensor,
        size: Sequence[int],
        *,
        tile: int | None = None,
        tick: Callable[[], None] | None = None,
    ) -> Tensor:
        """What the decoder, in eval mode, makes of features, clamped to [0, 1]: the end of :func:`stylize`.

        Args:
            features: ``(B, C, h, w)``.
            size: (H, W), at most 8 h and 8 w, to cut the pictures to.
            tile, tick: as in :meth:`encode`.
        """
        if tile is not None and self.decoder.norm == "instance":
            raise ValueError("a decoder with instance norm looks at the whole picture, not at tiles; leave tile out")
        training = self.decoder.training
        self.decoder.eval()
        try:
            images = _by_tiles(self.decoder, features, 1, tile, tick)
        finally:
            self.decoder.train(training)
        return images[..., : size[0], : size[1]].clamp(0, 1).contiguous()

    @torch.no_grad()
    def encode_style(self, style: Tensor, *, mask: Tensor | None = None) -> "Moments":
        """What :func:`stylize` needs of a style; keep it to use the style again.

        Args:
            style: ``(B, 3, H, W)`` in [0, 1] of any size from 16 × 16; a batch has one style for each content.
            mask: ``(1 or B, 1, H', W')`` in [0, 1] of any size: the region of the picture that is the style.

        Raises:
            ValueError: another shape or range, or a mask that leaves fewer than two cells.

        Example:
            >>> StyleTransfer(VGGFeatures(weights="random")).encode_style(torch.rand(1, 3, 40, 50)).mean.shape
            torch.Size([1, 128, 1, 1])
        """
        style = checked(style, "the style").to(self.device)
        weight = _coverage(style)
        if mask is not None:
            weight = weight * cells(_masks(mask, style), style.shape[-2:])
        return region_moments(self.encode(style), weight)


# ---------------------------------------------------------------------------------------- moments


@dataclass(frozen=True)
class Moments:
    """What AdaIN knows of a picture or a region of it: for the tiny VGG 256 numbers."""

    mean: Tensor  # (B, C, 1, 1)
    deviation: Tensor  # (B, C, 1, 1): the root of the unbiased variance plus EPS


def region_moments(features: Tensor, weight: Tensor | None = None) -> Moments:
    r"""Moments of each channel over a region, whose cells may count in part.

    .. math:: \mu = \frac{\sum w x}{\sum w}, \qquad
              \sigma^2 = \frac{\sum w (x - \mu)^2}{\sum w - \sum w^2 / \sum w} + \epsilon

    The denominator makes the variance unbiased for any weights; with weights of 1 it is :math:`n - 1`.

    Args:
        features: ``(B, C, h, w)``.
        weight: ``(1 or B, 1, h, w)``, not negative; None counts every cell once.

    Raises:
        ValueError: fewer than two cells have any weight.

    Example:
        >>> x = torch.tensor([1.0, 3.0, 99.0]).reshape(1, 1, 1, 3)
        >>> of = region_moments(x, torch.tensor([1.0, 1.0, 0.0]).reshape(1, 1, 1, 3))
        >>> of.mean.item(), round(of.deviation.item() ** 2, 3)
        (2.0, 2.0)
    """
    if weight is None:
        weight = torch.ones_like(features[:1, :1])
    total = weight.sum((-2, -1), keepdim=True)
    free = total - weight.square().sum((-2, -1), keepdim=True) / total
    if not (free > 1e-6 * total).all():  # also true for 0 / 0
        raise ValueError(
            f"a region needs at least two cells of {CELL} × {CELL} pixels for a deviation; enlarge its mask"
        )
    mean = (weight * features).sum((-2, -1), keepdim=True) / total
    variance = (weight * (features - mean).square()).sum((-2, -1), keepdim=True) / free
    return Moments(mean, (variance + EPS).sqrt())


def blend(styles: Sequence[Moments], weights: Sequence[float] | None = None) -> Moments:
    """A style between styles. The decoder gets what it would get from blending the feature maps that each one makes.

    Args:
        styles: one or more.
        weights: one finite float per style, divided by their sum, which must be positive; None means equal ones. A
            negative weight leads away from a style; a deviation that would become negative by it is 0.

    Raises:
        ValueError: not one weight per style, or weights that have no positive sum.

    Example:
        >>> dark, light = (Moments(torch.full((1, 1, 1, 1), x), torch.ones(1, 1, 1, 1)) for x in (0.0, 1.0))
        >>> blend([dark, light], [1, 3]).mean.item()
        0.75
    """
    weights = torch.tensor([1.0] * len(styles) if weights is None else [*map(float, weights)])
    if len(weights) != len(styles) or not styles:
        raise ValueError(f"blending needs one weight per style; got {len(weights)} weights for {len(styles)} styles")
    if not (weights.isfinite().all() and weights.sum() > 1e-6 * weights.abs().sum()):
        raise ValueError(f"weights are finite and have a positive sum, to be divided by it; got {weights.tolist()}")
    shares = (weights / weights.sum()).tolist()
    mean = sum(share * style.mean for share, style in zip(shares, styles, strict=True))
    deviation = sum(share * style.deviation for share, style in zip(shares, styles, strict=True))
    return Moments(mean, deviation.clamp_min(0))


@dataclass(frozen=True)
class Region:
    """Where in the content a style goes."""

    style: Moments
    mask: Tensor  # (1 or B, 1, h, w) in [0, 1]: how much of it each cell gets; at most 1 over all regions
    weight: Tensor  # (1 or B, 1, h, w): how much each cell counts in the moments of the content


def restyle(features: Tensor, regions: Sequence[Region], contents: Sequence[Moments], *, alpha: float = 1.0) -> Tensor:
    """AdaIN in each region: the decoder's input.

    Args:
        features: of the content, ``(B, C, h, w)``.
        regions: where they overlap softly, their results blend; what none covers stays as it is.
        contents: the moments of the content in each region.
        alpha: 0 leaves the features as they are, 1 gives them the styles' moments.

    Example:
        >>> x, half = torch.tensor([1.0, 3.0]).reshape(1, 1, 1, 2), torch.full((1, 1, 1, 2), 0.5)
        >>> content, style = (Moments(torch.full((1, 1, 1, 1), mean), torch.ones(1, 1, 1, 1)) for mean in (2.0, 12.0))
        >>> restyle(x, [Region(style, half, half)], [content]).tolist()  # half way from 1, 3 to 11, 13
        [[[[6.0, 8.0]]]]
    """
    change = torch.zeros_like(features)
    for region, content in zip(regions, contents, strict=True):
        standard = (features - content.mean) / content.deviation
        change += region.mask * (standard * region.style.deviation + region.style.mean - features)
    return features + alpha * change


# ---------------------------------------------------------------------------------------- stylize


@torch.no_grad()
def stylize(
    model: StyleTransfer,
    content: Tensor,
    styles: Tensor | Moments | Sequence[Tensor | Moments],
    *,
    alpha: float = 1.0,
    weights: Sequence[float] | None = None,
    masks: Sequence[Tensor] | None = None,
    color: str = "style",
    tile: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Tensor:
    """Give pictures the style of others.

    Args:
        model: see :func:`load`.
        content: ``(B, 3, H, W)`` in [0, 1] of any size from 16 × 16.
        styles: one or several: pictures ``(1, 3, H', W')`` of any sizes, or what ``model.encode_style`` returned.
            A batch of B pictures has one style for each content.
        alpha: in [0, 1], how much style. 0 is no copy of the content but what the decoder makes of its features.
        weights: blend the styles everywhere, see :func:`blend`; None means equally.
        masks: instead of weights, one per style, ``(1 or B, 1, H'', W'')`` in [0, 1] of any size: where it goes. The
            moments of the content are then those of each region. Soft edges blend; where masks add up to more than 1
            they share the place in proportion; where to less, the rest stays content, as with alpha 0.
        color: "style" takes the style's colors. To keep the content's, "coral" gives them to the style before it is
            encoded, and "luminance" takes from the result its luminance only (Gatys et al. 2016, arXiv 1606.05897).
        tile: pixels, a multiple of 8: compute in squares of this size, to bound the memory. The moments are still
            those of the whole picture, and the result is the same to rounding. 512 is good; below 256 most of the
            work goes into the margins, 32 pixels on each side.
        progress: called as ``progress(done, total)`` after each tile of the two passes.

    Returns:
        ``(B, 3, H, W)`` in [0, 1], on the content's device.

    Raises:
        ValueError: anything outside these ranges; says what it got.

    Example:
        >>> model = StyleTransfer(VGGFeatures(weights="random"))
        >>> photograph, paintings = torch.rand(1, 3, 37, 53), [torch.rand(1, 3, 32, 32), torch.rand(1, 3, 40, 24)]
        >>> stylize(model, photograph, paintings, weights=[0.7, 0.3]).shape
        torch.Size([1, 3, 37, 53])
    """
    check_options(alpha, color, tile)
    content = checked(content, "the content")
    inside = content.to(model.device)
    regions = regions_of(inside, encode_styles(model, styles, inside, color=color), weights=weights, masks=masks)
    tick = progress and _ticker(progress, 2 * len(tiles(regions[0].weight.shape[-2:], tile)))
    features = model.encode(inside, tile=tile, tick=tick)
    contents = [region_moments(features, region.weight) for region in regions]
    features = restyle(features, regions, contents, alpha=alpha)
    result = model.decode(features, content.shape[-2:], tile=tile, tick=tick).to(content.device)
    return colors.keep_luminance(result, content) if color == "luminance" else result


def encode_styles(
    model: StyleTransfer,
    styles: Tensor | Moments | Sequence[Tensor | Moments],
    content: Tensor,
    *,
    color: str = "style",
) -> list[Moments]:
    """The moments of each style, for :func:`stylize`; with ``color="coral"`` of the styles in the content's colors."""
    styles = [styles] if isinstance(styles, Tensor | Moments) else list(styles)
    if not styles:
        raise ValueError("there is no style; pass at least one picture")
    encoded = []
    for style in styles:
        if color == "coral":
            style = _in_colors_of(content, style)
        encoded.append(style if isinstance(style, Moments) else model.encode_style(style))
        if len(encoded[-1].mean) not in (1, len(content)):
            raise ValueError(
                f"a style is one picture, or one for each of {len(content)} contents; got {len(encoded[-1].mean)}. "
                "Pass several styles as a list"
            )
    return encoded


def regions_of(
    content: Tensor, styles: Sequence[Moments], *, weights: Sequence[float] | None = None, masks=None
) -> list[Region]:
    """Where each style goes: see ``weights`` and ``masks`` of :func:`stylize`."""
    coverage = _coverage(content)
    if masks is None:
        return [Region(blend(styles, weights), torch.ones_like(coverage), coverage)]
    masks = [masks] if isinstance(masks, Tensor) else list(masks)
    if weights is not None:
        raise ValueError("give weights or masks, not both: a mask of 0.5 has half of its style everywhere")
    if len(masks) != len(styles):
        raise ValueError(f"each style needs one mask; got {len(masks)} masks for {len(styles)} styles")
    shares = [cells(_masks(mask, content), content.shape[-2:]) for mask in masks]
    total = sum(shares).clamp_min(1)
    return [Region(style, share / total, share / total * coverage) for style, share in zip(styles, shares, strict=True)]


def cells(mask: Tensor, size: Sequence[int]) -> Tensor:
    """The mean of a mask in each cell of a content of this size: ``(B, 1, h, w)``.

    >>> cells(torch.tensor([0.0, 1.0]).reshape(1, 1, 1, 2), (16, 32)).tolist()
    [[[[0.0, 0.0, 1.0, 1.0], [0.0, 0.0, 1.0, 1.0]]]]
    """
    mask = F.interpolate(mask, tuple(size), mode="area")
    return F.avg_pool2d(F.pad(mask, _missing(size), mode="replicate"), CELL)


def _in_colors_of(content: Tensor, style: Tensor | Moments) -> Tensor:
    if isinstance(style, Moments):
        raise ValueError('color="coral" changes the style before it is encoded; pass the picture of the style')
    style = checked(style, "the style").to(content)
    return colors.coral(style.expand(max(len(style), len(content)), -1, -1, -1), content).clamp(0, 1)


def _ticker(progress: Callable[[int, int], None], total: int) -> Callable[[], None]:
    ticks = itertools.count(1)
    return lambda: progress(next(ticks), total)


def check_options(alpha: float, color: str, tile: int | None = None) -> None:
    """A ValueError for what :func:`stylize` does not take."""
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha goes from 0, the content, to 1, the style; got {alpha}")
    if color not in COLORS:
        raise ValueError(f"color is one of {', '.join(COLORS)}; got {color!r}")
    if tile is not None and (tile < CELL or tile % CELL):
        raise ValueError(f"tile is a multiple of {CELL} pixels, best 512; got {tile}")


def checked(images: Tensor, name: str) -> Tensor:
    """Pictures as float32, or a ValueError that says what is wrong with them."""
    if not isinstance(images, Tensor) or images.ndim != 4 or images.shape[1] != 3 or not images.is_floating_point():
        got = f"{images.dtype} {tuple(images.shape)}" if isinstance(images, Tensor) else type(images).__name__
        raise ValueError(f"{name} is a float tensor (B, 3, H, W); got {got}")
    if not images.numel() or min(images.shape[-2:]) < SMALLEST:
        raise ValueError(f"{name} needs at least {SMALLEST} pixels on each side; got shape {tuple(images.shape)}")
    low, high = images.aminmax()
    if not (low >= 0 and high <= 1):  # also false for NaN
        raise ValueError(f"{name} lies in [0, 1]; got {low:.4g} to {high:.4g}. Divide bytes by 255")
    return images.float()


def _masks(mask: Tensor, images: Tensor) -> Tensor:
    """A mask on the device of the images that it belongs to."""
    if not isinstance(mask, Tensor) or mask.ndim != 4 or mask.shape[1] != 1 or len(mask) not in (1, len(images)):
        got = tuple(mask.shape) if isinstance(mask, Tensor) else type(mask).__name__
        raise ValueError(f"a mask is a tensor (1 or {len(images)}, 1, H, W); got {got}")
    if not (mask.min() >= 0 and mask.max() <= 1):
        raise ValueError(f"a mask lies in [0, 1]; got {mask.min():.4g} to {mask.max():.4g}")
    return mask.to(images)


# ---------------------------------------------------------------------------------------- sizes and tiles


def _missing(size: Sequence[int]) -> tuple[int, int, int, int]:
    """What F.pad adds on the right and below to reach whole cells."""
    height, width = size
    return 0, -width % CELL, 0, -height % CELL


def _coverage(images: Tensor) -> Tensor:
    """How much of each cell lies inside the pictures, ``(1, 1, h, w)``: less than 1 in a last row or column only.

    >>> _coverage(torch.zeros(1, 3, 16, 20)).tolist()
    [[[[1.0, 1.0, 0.5], [1.0, 1.0, 0.5]]]]
    """
    inside = images.new_ones(1, 1, *images.shape[-2:])
    return F.avg_pool2d(F.pad(inside, _missing(images.shape[-2:])), CELL)


Box = tuple[slice, slice]  # rows and columns


def tiles(grid: tuple[int, int], tile: int | None) -> list[tuple[Box, Box]]:
    """Squares that cover a grid of cells without overlap, each with the box of cells that it depends on.

    >>> (core, around), *_, last = tiles((20, 30), 64)
    >>> core, around
    ((slice(0, 8, None), slice(0, 8, None)), (slice(0, 12, None), slice(0, 12, None)))
    """
    step = max(grid) if tile is None else tile // CELL
    sides = [[_span(start, start + step, end) for start in range(0, end, step)] for end in grid]
    return [((y, x), (y_around, x_around)) for (y, y_around), (x, x_around) in itertools.product(*sides)]


def _span(start: int, stop: int, end: int) -> tuple[slice, slice]:
    """From start to stop, and the same with margins, both within 0 to end."""
    return slice(start, min(stop, end)), slice(max(start - MARGIN, 0), min(stop + MARGIN, end))


def _by_tiles(
    function: Callable[[Tensor], Tensor], x: Tensor, scale: int, tile: int | None, tick: Callable[[], None] | None
) -> Tensor:
    """``function(x)``, one tile at a time; each cell is ``scale`` pixels of x wide."""
    grid = tuple(side // scale for side in x.shape[-2:])
    boxes = tiles(grid, tile)
    result = None
    for core, around in boxes:
        piece = function(_crop(x, around, scale))
        if tick:
            tick()
        if len(boxes) == 1:
            return piece
        scale_out = piece.shape[-1] // (around[1].stop - around[1].start)
        if result is None:
            result = _empty(piece, [scale_out * side for side in grid])
        inner = tuple(slice(c.start - a.start, c.stop - a.start) for c, a in zip(core, around, strict=True))
        _crop(result, core, scale_out).copy_(_crop(piece, inner, scale_out))
    return result


def _channels_last(x: Tensor) -> Tensor:
    """The same numbers in another order in memory, which every later layer keeps: on a CPU it halves the time."""
    return x.contiguous(memory_format=torch.channels_last)


def _empty(like: Tensor, size: Sequence[int]) -> Tensor:
    shape = (*like.shape[:2], *size)
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=torch.channels_last)


def _crop(x: Tensor, box: Box, scale: int) -> Tensor:
    """A box of cells, where each cell is ``scale`` pixels of x wide."""
    rows, columns = (slice(scale * side.start, scale * side.stop) for side in box)
    return x[..., rows, columns]


# ---------------------------------------------------------------------------------------- training


def losses(model: StyleTransfer, content: Tensor, style: Tensor, *, scaling: str = "sum") -> dict[str, Tensor]:
    r"""How far the picture that the model makes is from what AdaIN asked for.

    .. math:: L_c = \lVert f(g(t)) - t \rVert^2, \qquad
              L_s = \textstyle\sum_l \lVert \mu(f_l(g(t))) - \mu(f_l(s)) \rVert^2
                    + \lVert \sigma(f_l(g(t))) - \sigma(f_l(s)) \rVert^2

    The content loss compares with :math:`t`, the decoder's input, and not with :math:`f(c)`; it is the mean over all
    elements. The style loss is summed over relu1_1, relu2_1, relu3_1 and relu4_1.

    Args:
        model: only its decoder receives gradients.
        content, style: ``(B, 3, H, W)`` in [0, 1], sides multiples of 8.
        scaling: over the channels the style loss is the "sum" (the authors' Torch code; weigh it by 1e-2) or the
            "mean" (the PyTorch port; weigh it by 10). See ``SCALINGS``.

    Returns:
        scalars "content" and "style", not yet weighted.

    Raises:
        ValueError: another scaling.

    Example:
        >>> model, picture = StyleTransfer(VGGFeatures(weights="random")), torch.rand(1, 3, 32, 32)
        >>> sorted(losses(model, picture, picture, scaling="mean"))
        ['content', 'style']
    """
    _check_scaling(scaling)
    with torch.no_grad():
        wanted = model.encoder(_channels_last(style))
        t = adain(model.encode(content), wanted[DEEPEST])
    got = model.encoder(model.decoder(t))
    wanted = {layer: wanted[layer] for layer in LAYERS}
    by_moments = partial(moment_loss, reduction=scaling)
    return {"content": content_loss(got[DEEPEST], t), "style": style_loss(got, wanted, loss=by_moments)}


def _check_scaling(scaling: str) -> None:
    if scaling not in SCALINGS:
        raise ValueError(f"scaling is one of {', '.join(SCALINGS)}; got {scaling!r}")


@dataclass(frozen=True)
class Record:
    """One training step."""

    step: int  # counted from 1
    losses: dict[str, float]  # "content", "style", and "total": the content's plus the weighted style's


def train(
    model: StyleTransfer,
    photographs: Sequence[Tensor],
    paintings: Sequence[Tensor],
    *,
    steps: int,
    batch: int = 8,
    size: int | None = None,
    crop: int = 256,
    rate: float = 1e-4,
    decay: float = 5e-5,
    scaling: str = "sum",
    style_weight: float | None = None,
    seed: int = 0,
) -> Iterator[Record]:
    """Train the decoder, one record per step. The defaults are the paper's, but for 160,000 steps.

    Args:
        model: its decoder is changed in place. Whenever a record is yielded it is in eval mode, to be looked at.
        photographs, paintings: pictures ``(1, 3, H, W)`` in [0, 1], drawn with replacement.
        steps: how many.
        batch: pairs per step.
        size: resize every picture to this short side first (the paper: 512); None takes them as they are.
        crop: side of the random square that is cut out each time, a multiple of 8.
        rate: Adam's, which falls as rate / (1 + decay · step).
        decay: see rate.
        scaling: of the style loss, see :func:`losses`.
        style_weight: None takes the published one of the scaling.
        seed: of the draws; the weights that you start from are your own.

    Raises:
        ValueError: at the call: no pictures, pictures smaller than the crop, another scaling.

    Example:
        >>> model, pictures = StyleTransfer(VGGFeatures(weights="random")), [torch.rand(1, 3, 40, 48)]
        >>> [record.step for record in train(model, pictures, pictures, steps=2, batch=1, crop=32)]
        [1, 2]
    """
    _check_scaling(scaling)
    weight = SCALINGS[scaling] if style_weight is None else style_weight
    pools = [_pool(pictures, size, crop) for pictures in (photographs, paintings)]
    generator = torch.Generator().manual_seed(seed)

    def pairs() -> Iterator[list[Tensor]]:
        while True:
            yield [_draw(pool, batch, crop, generator).to(model.device) for pool in pools]

    rates = (rate / (1 + decay * step) for step in range(steps))
    return _steps(model, pairs(), rates, scaling, weight)


def _steps(model: StyleTransfer, pairs: Iterator, rates: Iterator[float], scaling: str, weight: float):
    optimizer = torch.optim.Adam(model.decoder.parameters())
    try:
        for step, (rate, (content, style)) in enumerate(zip(rates, pairs, strict=False), start=1):
            optimizer.param_groups[0]["lr"] = rate
            model.train()
            found = losses(model, content, style, scaling=scaling)
            found["total"] = found["content"] + weight * found["style"]
            optimizer.zero_grad()
            found["total"].backward()
            optimizer.step()
            model.eval()
            yield Record(step, {name: loss.item() for name, loss in found.items()})
    finally:
        model.eval()


def _pool(pictures: Sequence[Tensor], size: int | None, crop: int) -> list[Tensor]:
    """Pictures to draw from, or a ValueError."""
    pool = [picture if size is None else resize(picture, size) for picture in pictures]
    if crop < SMALLEST or crop % CELL:
        raise ValueError(f"crop is a multiple of {CELL} pixels, at least {SMALLEST}; got {crop}")
    small = [tuple(picture.shape) for picture in pool if min(picture.shape[-2:]) < crop]
    if small or not pool:
        raise ValueError(
            f"training needs photographs and paintings of at least {crop} pixels on each side; got "
            f"{small[0] if small else 'none'}. Choose a smaller crop, or a size to enlarge them to"
        )
    return pool


def _draw(pool: Sequence[Tensor], batch: int, crop: int, generator: torch.Generator) -> Tensor:
    """Random squares of random pictures, ``(batch, 3, crop, crop)``."""

    def below(end: int) -> int:
        return torch.randint(end, (), generator=generator).item()

    cut = []
    for _ in range(batch):
        picture = pool[below(len(pool))]
        top, left = (below(side - crop + 1) for side in picture.shape[-2:])
        cut.append(picture[..., top : top + crop, left : left + crop])
    return torch.cat(cut)


# ---------------------------------------------------------------------------------------- weights


def load(weights: str = "tiny", *, decoder: str | Path | None = None) -> StyleTransfer:
    """A trained model, in evaluation mode.

    Args:
        weights: of the encoder. "tiny" ships with its decoder; "full" is ``"vgg19-adain"``, the VGG-19 of the
            published decoders; see :class:`stylemoments.vgg.VGGFeatures` for more.
        decoder: the file of a decoder of the same width: ours (``.safetensors``), or the PyTorch port's
            ``decoder.pth``. Only the tiny one is known without it.

    Raises:
        ValueError: no decoder is known, or it does not fit the encoder.
        FileNotFoundError: no such file.
        WeightsError: weights of the encoder are missing or damaged; says what to do.

    Example:
        >>> load().decoder.channels
        (16, 32, 64, 128)
    """
    if decoder is None and weights != "tiny":
        raise ValueError(
            f'only the tiny decoder ships; for the encoder {weights!r} pass decoder="FILE", trained with '
            "python -m stylemoments.train.adain or the PyTorch port's decoder.pth"
        )
    if decoder is not None and not Path(decoder).is_file():
        raise FileNotFoundError(f"there is no file {decoder}; check the name and the folder you are in")
    model = StyleTransfer(VGGFeatures(LAYERS, weights="vgg19-adain" if weights == "full" else weights))
    _fill(model.decoder, zoo.folder("tiny-adain") / "decoder.safetensors" if decoder is None else Path(decoder))
    return model.eval()


def _fill(decoder: Decoder, path: Path) -> None:
    """Load the n-th convolution of the file into the n-th of the decoder, whatever their names."""
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        state = load_file(path)
    else:
        state = torch.load(path, map_location="cpu", weights_only=True)
    own = decoder.state_dict()
    found = sorted(state, key=lambda name: (int(re.search(r"\d+", name)[0]), name.endswith("bias")))
    if [tuple(state[name].shape) for name in found] != [tuple(value.shape) for value in own.values()]:
        raise ValueError(f"the decoder {path} does not fit an encoder with {decoder.channels} channels; take its own")
    decoder.load_state_dict({name: state[theirs].float() for name, theirs in zip(own, found, strict=True)})
