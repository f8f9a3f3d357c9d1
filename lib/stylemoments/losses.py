r"""Losses of style transfer: how far a picture is from a content, from a style, and from smooth.

Content compares features place by place. Style first makes a *summary* of each layer that forgets the places, and
compares the summaries: all products of two channels (Gram), or each channel's mean and deviation (moments).

    ===================  ====================================  ================================================
    loss                 compares                              source (arXiv)
    ===================  ====================================  ================================================
    content_loss         features                              Gatys 2016 (1508.06576)
    gram_loss            (C, C) products of channels           Gatys 2016, Johnson 2016 (1603.08155)
    moment_loss          2 C means and standard deviations     Huang & Belongie 2017 (1703.06868), Li 2017
                                                               (1701.01036)
    total_variation      neighboring pixels                    Rudin, Osher & Fatemi, Physica D 60, 1992
    ===================  ====================================  ================================================

Features are ``(B, C, H, W)``: images, channels, rows, columns. A style may have another H and W than the picture; its
batch may be 1 for every picture. Where a style does not change, pass its summary (:func:`gram`, :func:`mean_std`) in
the place of its features: it is then computed once.

Published weights do not carry over, because every paper divides by something else. So each loss says which
``reduction`` is whose, and ``"relative"`` is ours: the squared difference *as a share of the target's own square*. It
is 0 for a perfect match and 1 for features that are all zero, in every layer of every network.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from . import norms

REDUCTIONS = ("mean", "sum", "relative")
GRAM_DIVISORS: dict[str | None, Callable[[int, int], int]] = {
    "hw": lambda c, pixels: pixels,
    "chw": lambda c, pixels: c * pixels,
    None: lambda c, pixels: 1,
}


# ---------------------------------------------------------------------------------------- summaries


def gram(features: Tensor, *, normalize: str | None = "chw") -> Tensor:
    r"""Gram matrix: the product of every two channels, summed over all places.

    .. math:: G_{ij} = \frac1Z \sum_{hw} F_{ihw} F_{jhw}

    Three :math:`Z` are in use. A loss on Grams feels their square, so style weights do not carry over.

    Args:
        features: floating point ``(B, C, H, W)``.
        normalize: ``"chw"``, Z = C·H·W, is Johnson's; ``"hw"``, Z = H·W, is what Gatys' own PyTorch code divides by;
            None, Z = 1, is the G of Gatys' paper, which divides in the loss instead. Without it the Gram grows
            with the number of pixels, and pictures of other sizes cannot be compared.

    Returns:
        ``(B, C, C)``, symmetric.

    Raises:
        TypeError: features are not floating point.
        ValueError: another shape, or another name for Z.

    Example:
        >>> features = torch.tensor([[1.0, 2.0], [3.0, 0.0]]).reshape(1, 2, 1, 2)  # two channels, two pixels
        >>> gram(features, normalize=None).tolist()
        [[[5.0, 3.0], [3.0, 9.0]]]
    """
    _check_features(features, "gram")
    if normalize not in GRAM_DIVISORS:
        raise ValueError(f'normalize must be "hw", "chw" or None; got {normalize!r}')
    flat = features.flatten(2)  # B C HW
    return flat @ flat.mT / GRAM_DIVISORS[normalize](*flat.shape[1:])


def mean_std(features: Tensor, *, eps: float = 1e-5) -> Tensor:
    r"""Mean and standard deviation of each channel, :math:`\sqrt{\sigma^2 + \epsilon}` with the biased variance.

    Args:
        features: floating point ``(B, C, H, W)``.
        eps: keeps the gradient finite where a channel is constant; the Torch original of AdaIN has 1e-6.

    Returns:
        ``(B, 2, C)``: means, then deviations.

    Raises:
        TypeError: features are not floating point.
        ValueError: another shape.

    Example:
        >>> mean_std(torch.tensor([1.0, 3.0]).reshape(1, 1, 1, 2), eps=0.0).tolist()
        [[[2.0], [1.0]]]
    """
    _check_features(features, "mean_std")
    mean, variance = norms.moments(features)
    return torch.stack([mean.flatten(1), (variance + eps).sqrt().flatten(1)], 1)


# ---------------------------------------------------------------------------------------- losses


def content_loss(x: Tensor, target: Tensor, *, reduction: str = "mean") -> Tensor:
    r"""Squared difference of features, place by place.

    Args:
        x: floating point ``(B, C, H, W)``.
        target: of the same shape; the batch may be 1.
        reduction: over C, H, W; the batch is always averaged. ``"mean"`` is Johnson's and AdaIN's, ``"sum"`` is
            twice Gatys' (who halves it), ``"relative"`` divides the sum by that of the target's squares.

    Raises:
        TypeError: not floating point.
        ValueError: shapes that differ, or another reduction.

    Example:
        >>> x, target = torch.tensor([1.0, 5.0]).reshape(1, 1, 1, 2), torch.tensor([3.0, 1.0]).reshape(1, 1, 1, 2)
        >>> [content_loss(x, target, reduction=r).item() for r in ("mean", "sum", "relative")]
        [10.0, 20.0, 2.0]
    """
    _check_features(x, "content_loss")
    return _squared_difference(x, target, reduction)


def gram_loss(x: Tensor, y: Tensor, *, normalize: str | None = "chw", reduction: str = "mean") -> Tensor:
    r"""Squared difference of Gram matrices.

    Gatys' loss of one layer, :math:`\frac{1}{4 C^2 (HW)^2} \sum_{ij} (G_{ij} - A_{ij})^2`, is a quarter of
    ``gram_loss(x, y, normalize="hw")``; Johnson's is ``gram_loss(x, y, normalize="chw", reduction="sum")``.

    Args:
        x: features ``(B, C, H, W)``.
        y: features of the style with the same C, any size; or their :func:`gram`, normalized as here. Batch B or 1.
        normalize: as :func:`gram`. It cancels where ``reduction`` is ``"relative"``.
        reduction: over the C·C entries, as :func:`content_loss`.

    Raises:
        TypeError: not floating point.
        ValueError: channels or batches that do not match, another normalize or reduction.

    Example:
        >>> x = torch.rand(1, 3, 8, 8)
        >>> gram_loss(x, x.flip(-1)).item() < 1e-12  # a mirror moves every place and keeps the style
        True
    """
    return _squared_difference(gram(x, normalize=normalize), _summary(y, gram, normalize=normalize), reduction)


def moment_loss(x: Tensor, y: Tensor, *, reduction: str = "mean", eps: float = 1e-5) -> Tensor:
    r"""Squared difference of channel means plus that of channel deviations: AdaIN's style loss of one layer.

    Args:
        x: features ``(B, C, H, W)``.
        y: features of the style with the same C, any size; or their :func:`mean_std`. Batch B or 1.
        reduction: over the channels. ``"sum"`` is the Torch original's, for a style weight of 0.01; ``"mean"`` is the
            common PyTorch port's, C times smaller, for a style weight of 10; ``"relative"`` is ours, see above.
        eps: as :func:`mean_std`.

    Raises:
        TypeError: not floating point.
        ValueError: channels or batches that do not match, or another reduction.

    Example:
        >>> x, y = torch.tensor([-1.0, 1.0]).reshape(1, 1, 1, 2), torch.tensor([1.0, 7.0]).reshape(1, 1, 2, 1)
        >>> moment_loss(x, y, eps=0.0).item()  # means 0 and 4, deviations 1 and 3: 16 + 4
        20.0
    """
    loss = _squared_difference(mean_std(x, eps=eps), _summary(y, mean_std, eps=eps), reduction)
    return 2 * loss if reduction == "mean" else loss  # the mean of each kind, then their sum


def total_variation(images: Tensor) -> Tensor:
    """Mean absolute difference of vertical neighbors plus that of horizontal neighbors (the anisotropic form).

    Johnson's code squares the differences and sums them, Gatys' has no such term.

    Args:
        images: floating point ``(B, C, H, W)``, at least two pixels on each side.

    Raises:
        TypeError: not floating point.
        ValueError: another shape, or a side of one pixel, which has no neighbors.

    Example:
        >>> total_variation(torch.eye(2).expand(1, 3, 2, 2)).item()  # a checkerboard: all neighbors differ by 1
        2.0
    """
    _check_features(images, "total_variation")
    if min(images.shape[2:]) < 2:
        raise ValueError(f"total_variation needs at least two pixels on each side; got shape {tuple(images.shape)}")
    return images.diff(dim=-2).abs().mean() + images.diff(dim=-1).abs().mean()


def style_loss(
    features: Mapping[str, Tensor],
    targets: Mapping[str, Tensor],
    *,
    loss: Callable[[Tensor, Tensor], Tensor] = moment_loss,
    weights: Mapping[str, float] | None = None,
) -> Tensor:
    """A loss of one layer, summed over layers.

    Args:
        features: layer name to features, as :class:`stylemoments.vgg.VGGFeatures` returns them; may hold more layers.
        targets: layer name to what ``loss`` compares with; these layers count.
        loss: of features and target of one layer; options by :func:`functools.partial`.
        weights: of the layers; a layer without one is left out. None weighs each layer 1, as AdaIN does. (Gatys weighs
            each of his five 1/5.)

    Raises:
        ValueError: no layer, or one that features or targets lack.

    Example:
        >>> x, y = torch.rand(2, 1, 3, 4, 4)
        >>> style_loss({"relu1_1": x}, {"relu1_1": y}, loss=gram_loss) == gram_loss(x, y)
        tensor(True)
    """
    weights = dict.fromkeys(targets, 1.0) if weights is None else weights
    missing = [layer for layer in weights if layer not in features or layer not in targets]
    if missing or not weights:
        raise ValueError(
            f"style_loss needs features and targets of each layer; {', '.join(missing) or 'all of them'} missing from "
            f"features of {', '.join(features) or 'nothing'} or targets of {', '.join(targets) or 'nothing'}"
        )
    return sum(weight * loss(features[layer], targets[layer]) for layer, weight in weights.items())


# ---------------------------------------------------------------------------------------- helpers


def _check_features(x: Tensor, who: str) -> None:
    if not (isinstance(x, Tensor) and x.is_floating_point()):
        got = x.dtype if isinstance(x, Tensor) else type(x).__name__
        raise TypeError(f"{who} needs a floating-point tensor; got {got}. Convert with x.float() first")
    if x.ndim != 4:
        raise ValueError(f"{who} needs a tensor of shape (B, C, H, W); got shape {tuple(x.shape)}")


def _summary(y: Tensor, summarize: Callable[..., Tensor], **options) -> Tensor:
    """The summary of a style, or y itself where it is one."""
    return y if isinstance(y, Tensor) and y.ndim == 3 else summarize(y, **options)


def _squared_difference(x: Tensor, target: Tensor, reduction: str) -> Tensor:
    """Reduced over all axes but the batch, which is averaged."""
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction must be one of {', '.join(REDUCTIONS)}; got {reduction!r}")
    if x.shape[1:] != target.shape[1:] or len(target) not in (1, len(x)):
        raise ValueError(
            f"the target must have the shape of x (its batch may be 1); got {tuple(target.shape)} for {tuple(x.shape)}"
        )
    error = (x - target).square().flatten(1)
    if reduction == "mean":
        return error.mean()
    total = error.sum(1)
    if reduction == "relative":
        total = total / target.square().flatten(1).sum(1).clamp_min(1e-12)  # a target of zeros has no share
    return total.mean()
