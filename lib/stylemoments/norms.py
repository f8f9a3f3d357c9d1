r"""Normalization layers: a pure function and a thin module each.

Every layer here subtracts a mean, divides by a standard deviation, and then scales and shifts. They differ in
two questions only: *which axes* the moments are taken over, and *where the new scale and shift come from*.

    ==========================  ===============  ==============================================
    layer                       moments over     scale and shift
    ==========================  ===============  ==============================================
    batch norm                  B, H, W          learned, one per channel
    layer norm                  C, H, W          learned, one per element
    instance norm               H, W             learned, one per channel
    group norm                  a group, H, W    learned, one per channel
    conditional instance norm   H, W             learned, one row per style
    adaptive instance norm      H, W             the moments of another image: nothing is learned
    ==========================  ===============  ==============================================

Axes: ``B`` images, ``C`` channels, ``H`` rows, ``W`` columns, ``S`` styles; tokens are ``(B, h, N, d)``.

Sources: batch norm 1502.03167, layer norm 1607.06450, instance norm 1607.08022, group norm 1803.08494,
conditional instance norm 1610.07629, adaptive instance norm 1703.06868 (arXiv).

What differs from ``torch.nn``: moments are taken from centered values, so that float32 stays exact to about
1e-6 where the mean is ten thousand times the spread (``torch.nn`` is off by about 1e-3 there). Instance norm keeps no
running statistics: it is the same in training and at test time.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

Dim = int | Sequence[int]


# ---------------------------------------------------------------------------------------- moments


def _floating(x: Tensor, who: str) -> None:
    if not (isinstance(x, Tensor) and x.is_floating_point()):
        got = x.dtype if isinstance(x, Tensor) else type(x).__name__
        raise TypeError(f"{who} needs a floating-point tensor; got {got}. Convert with x.float() first")


def _images(x: Tensor, who: str) -> None:
    _floating(x, who)
    if x.ndim != 4:
        raise ValueError(f"{who} needs images of shape (B, C, H, W); got shape {tuple(x.shape)}")


def _center(x: Tensor, dim: Dim) -> tuple[Tensor, Tensor]:
    mean = x.mean(dim, keepdim=True)
    x = x - mean
    rest = x.detach().mean(dim, keepdim=True)  # what rounding left: 5e-4 at mean 1e4 in float32, gradient zero
    return x - rest, mean + rest


def _variance(centered: Tensor, dim: Dim, *, unbiased: bool = False) -> Tensor:
    if not unbiased:
        return centered.square().mean(dim, keepdim=True)
    total = centered.square().sum(dim, keepdim=True)
    n = centered.numel() // total.numel()
    if n < 2:
        raise ValueError(
            f"the unbiased variance divides by n - 1 and needs at least two elements over dim {dim}; "
            f"got shape {tuple(centered.shape)}. Pass unbiased=False or a larger input"
        )
    return total / (n - 1)


def moments(x: Tensor, dim: Dim = (-2, -1), *, unbiased: bool = False) -> tuple[Tensor, Tensor]:
    r"""Mean and variance over ``dim``.

    .. math:: \mu = \tfrac1n \textstyle\sum x, \qquad \sigma^2 = \tfrac1n \textstyle\sum (x - \mu)^2

    Args:
        x: floating-point tensor of any shape.
        dim: axis or axes to reduce; the default takes the moments of each channel of each image.
        unbiased: divide the sum of squares by ``n - 1`` instead of ``n``.

    Returns:
        mean and variance, with the reduced axes kept at size 1.

    Raises:
        TypeError: x is not floating point.
        ValueError: nothing to reduce over, or one element under an unbiased variance.

    Example:
        >>> mean, var = moments(torch.tensor([[1.0, 3.0]]), dim=-1)
        >>> mean.item(), var.item()
        (2.0, 1.0)
    """
    _floating(x, "moments")
    if x.numel() == 0:
        raise ValueError(f"moments of nothing: got an empty tensor of shape {tuple(x.shape)}")
    centered, mean = _center(x, dim)
    return mean, _variance(centered, dim, unbiased=unbiased)


def _standardize(x: Tensor, dim: Dim, eps: float) -> Tensor:
    centered, _ = _center(x, dim)
    return centered * torch.rsqrt(_variance(centered, dim) + eps)


def _check_channels(x: Tensor, **values: Tensor | None) -> None:
    for name, value in values.items():
        if value is not None and value.shape[-1] != x.shape[1]:
            raise ValueError(
                f"{name} needs one value for each of {x.shape[1]} channels; got shape {tuple(value.shape)}"
            )


def _per_channel(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    """Scale and shift each channel; weight and bias are (C,) or (B, C)."""
    _check_channels(x, weight=weight, bias=bias)
    if weight is not None:
        x = x * weight[..., None, None]
    return x if bias is None else x + bias[..., None, None]


# ---------------------------------------------------------------------------------------- functions


def batch_norm(
    x: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    r"""Batch normalization (Ioffe & Szegedy 2015): moments of each channel over the whole batch.

    In training the moments are the batch's own (biased variance), and the running estimates, where given,
    move towards them in place: ``running = (1 - momentum) * running + momentum * batch`` (with the *unbiased*
    variance, as in ``torch.nn``). Otherwise the running estimates are used, and an image no longer depends on
    its neighbors in the batch. Without running estimates the batch's moments are always used.

    Args:
        x: images (B, C, H, W).
        running_mean, running_var: (C,) each, or both None.
        weight, bias: (C,) each, scale and shift; None means 1 and 0.
        training: use and record the batch's moments.
        momentum: weight of the newest batch in the running estimates, in [0, 1].
        eps: added to the variance inside the root.

    Raises:
        TypeError: x is not floating point.
        ValueError: wrong shape; one value per channel in training; only one running estimate given.

    Example:
        >>> x = torch.tensor([1.0, 3.0]).reshape(2, 1, 1, 1)
        >>> batch_norm(x, training=True, eps=0.0).flatten().tolist()
        [-1.0, 1.0]
    """
    _images(x, "batch_norm")
    if (running_mean is None) != (running_var is None):
        raise ValueError("batch_norm needs both running_mean and running_var, or neither; got one")
    _check_channels(x, running_mean=running_mean, running_var=running_var)
    if running_mean is not None and not training:
        normalized = (x - running_mean[:, None, None]) * torch.rsqrt(running_var[:, None, None] + eps)
        return _per_channel(normalized, weight, bias)
    if x.numel() <= x.shape[1]:
        raise ValueError(
            f"batch_norm needs more than one value per channel to take moments of; got shape {tuple(x.shape)}. "
            "Use a larger batch, or eval mode"
        )
    centered, mean = _center(x, (0, 2, 3))
    var = _variance(centered, (0, 2, 3))
    if running_mean is not None:
        n = x.numel() // x.shape[1]
        with torch.no_grad():
            running_mean.lerp_(mean.flatten(), momentum)
            running_var.lerp_(var.flatten() * n / (n - 1), momentum)
    return _per_channel(centered * torch.rsqrt(var + eps), weight, bias)


def layer_norm(
    x: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    eps: float = 1e-5,
) -> Tensor:
    r"""Layer normalization (Ba et al. 2016): moments of each sample over its trailing axes.

    Args:
        x: tensor whose trailing axes are ``normalized_shape``: ``(C, H, W)`` for images, ``(d,)`` for tokens.
        normalized_shape: the sizes of the axes to reduce.
        weight, bias: scale and shift of shape ``normalized_shape``; None means 1 and 0.
        eps: added to the variance inside the root.

    Raises:
        TypeError: x is not floating point.
        ValueError: the trailing axes of x, weight or bias are not ``normalized_shape``.

    Example:
        >>> layer_norm(torch.tensor([[1.0, 3.0]]), (2,), eps=0.0).tolist()
        [[-1.0, 1.0]]
    """
    _floating(x, "layer_norm")
    shape = tuple(normalized_shape)
    for name, value in (("x", x), ("weight", weight), ("bias", bias)):
        if value is not None and (not shape or tuple(value.shape[-len(shape) :]) != shape):
            raise ValueError(f"the trailing axes of {name} must be {shape}; got shape {tuple(value.shape)}")
    x = _standardize(x, tuple(range(-len(shape), 0)), eps)
    x = x if weight is None else x * weight
    return x if bias is None else x + bias


def instance_norm(x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None, *, eps: float = 1e-5) -> Tensor:
    r"""Instance normalization (Ulyanov et al. 2016): moments of each channel of each image.

    Blind to contrast and brightness: ``instance_norm(a * x + b) == instance_norm(x)`` for a > 0, up to eps.

    Args:
        x: images (B, C, H, W).
        weight, bias: (C,) each, scale and shift; None means 1 and 0.
        eps: added to the variance inside the root.

    Raises:
        TypeError: x is not floating point.
        ValueError: wrong shape, or images of a single pixel, whose variance is always zero.

    Example:
        >>> x = torch.tensor([1.0, 3.0]).reshape(1, 1, 1, 2)
        >>> torch.allclose(instance_norm(x), instance_norm(10 * x + 5))
        True
    """
    _images(x, "instance_norm")
    if x.shape[2] * x.shape[3] < 2:
        raise ValueError(f"instance_norm needs more than one pixel per channel; got shape {tuple(x.shape)}")
    return _per_channel(_standardize(x, (2, 3), eps), weight, bias)


def group_norm(
    x: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    eps: float = 1e-5,
) -> Tensor:
    r"""Group normalization (Wu & He 2018): moments of each group of channels of each image.

    One group is layer norm over (C, H, W); as many groups as channels is instance norm.

    Args:
        x: images (B, C, H, W).
        num_groups: how many groups; divides C.
        weight, bias: (C,) each, scale and shift; None means 1 and 0.
        eps: added to the variance inside the root.

    Raises:
        TypeError: x is not floating point.
        ValueError: wrong shape, or C is not a multiple of num_groups.

    Example:
        >>> x = torch.tensor([1.0, 3.0, 10.0, 30.0]).reshape(1, 4, 1, 1)
        >>> group_norm(x, 2, eps=0.0).flatten().tolist()
        [-1.0, 1.0, -1.0, 1.0]
    """
    _images(x, "group_norm")
    if num_groups < 1 or x.shape[1] % num_groups:
        raise ValueError(f"num_groups must divide the number of channels; got {num_groups} for {x.shape[1]} channels")
    groups = x.unflatten(1, (num_groups, -1))  # (B, G, C/G, H, W)
    return _per_channel(_standardize(groups, (2, 3, 4), eps).flatten(1, 2), weight, bias)


def _style_rows(style: int | Tensor, weight: Tensor, bias: Tensor, batch: int) -> tuple[Tensor, Tensor]:
    """The (B, C) or (1, C) rows of scale and shift that ``style`` names or blends."""
    styles = weight.shape[0]
    if isinstance(style, Tensor) and style.is_floating_point():
        if style.shape not in ((styles,), (1, styles), (batch, styles)):
            raise ValueError(f"blend weights need shape ({styles},) or ({batch}, {styles}); got {tuple(style.shape)}")
        return torch.atleast_2d(style @ weight), torch.atleast_2d(style @ bias)
    index = torch.as_tensor(style, device=weight.device)
    if index.shape not in ((), (1,), (batch,)):
        raise ValueError(f"style needs one index, or one for each of {batch} images; got shape {tuple(index.shape)}")
    if index.min() < 0 or index.max() >= styles:
        raise IndexError(f"style indices run from 0 to {styles - 1}; got {index.tolist()}")
    return torch.atleast_2d(weight[index]), torch.atleast_2d(bias[index])


def conditional_instance_norm(
    x: Tensor, style: int | Tensor, weight: Tensor, bias: Tensor, *, eps: float = 1e-5
) -> Tensor:
    r"""Conditional instance normalization (Dumoulin et al. 2017): one row of scale and shift per style.

    Args:
        x: images (B, C, H, W).
        style: an index, one index per image (B,), or float weights (S,) or (B, S) that blend rows.
        weight, bias: (S, C) each, a row per style.
        eps: added to the variance inside the root.

    Raises:
        TypeError: x is not floating point.
        ValueError: wrong shape of x, style, weight or bias.
        IndexError: a style that has no row.

    Example:
        >>> x, ones = torch.randn(2, 3, 4, 4), torch.ones(5, 3)
        >>> torch.allclose(conditional_instance_norm(x, 4, ones, 0 * ones), instance_norm(x))
        True
    """
    _images(x, "conditional_instance_norm")
    for name, value in (("weight", weight), ("bias", bias)):
        if value.ndim != 2 or value.shape[1] != x.shape[1] or value.shape != weight.shape:
            raise ValueError(f"{name} needs shape (styles, {x.shape[1]}), the same for both; got {tuple(value.shape)}")
    return _per_channel(instance_norm(x, eps=eps), *_style_rows(style, weight, bias, len(x)))


def adain(x: Tensor, y: Tensor, *, dim: Dim = (-2, -1), eps: float = 1e-5, unbiased: bool = True) -> Tensor:
    r"""Adaptive instance normalization (Huang & Belongie 2017): give x the moments of y.

    .. math:: \mathrm{AdaIN}(x, y) = \sigma(y)\,\frac{x - \mu(x)}{\sigma(x)} + \mu(y),
              \qquad \sigma(\cdot) = \sqrt{\mathrm{var}(\cdot) + \epsilon}

    With the default ``dim`` these are the moments of each channel of an image (B, C, H, W); with ``dim=-2`` those
    of each feature over the tokens (B, h, N, d) of attention. Defaults are StyleAligned's: unbiased variance, eps
    inside both roots. (The Torch original of AdaIN uses the biased variance and eps on x only.)

    Args:
        x: content; floating point.
        y: style; as x, but the reduced axes may have other sizes, and the batch may be 1 for every x.
        dim: the axes the moments are taken over.
        eps: added to both variances inside the root.
        unbiased: divide by ``n - 1`` instead of ``n``.

    Returns:
        a tensor of the shape of x.

    Raises:
        TypeError: x or y is not floating point.
        ValueError: x and y differ in an axis that is kept; one element under an unbiased variance.

    Example:
        >>> x, y = torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([[10.0, 30.0, 50.0, 70.0]])
        >>> adain(x, y, dim=-1).mean().item()
        40.0
    """
    _floating(x, "adain")
    _floating(y, "adain")
    _check_kept_axes(x, y, dim)
    return with_moments(x, *moments(y, dim, unbiased=unbiased), dim=dim, eps=eps, unbiased=unbiased)


def with_moments(
    x: Tensor, mean: Tensor, variance: Tensor, *, dim: Dim = (-2, -1), eps: float = 1e-5, unbiased: bool = True
) -> Tensor:
    r"""Give x these moments: what :func:`adain` does once those of the style are known, so that they can be kept.

    Args:
        x: content; floating point.
        mean, variance: what :func:`moments` returns for the style, over the same ``dim``.
        dim, eps, unbiased: see :func:`adain`.

    Raises:
        TypeError: x is not floating point.
        ValueError: one element under an unbiased variance.

    Example:
        >>> with_moments(torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor(40.0), torch.tensor(100.0), dim=-1)
        tensor([[30.0000, 40.0000, 50.0000]])
    """
    _floating(x, "with_moments")
    x, _ = _center(x, dim)
    return x * ((variance + eps) / (_variance(x, dim, unbiased=unbiased) + eps)).sqrt() + mean


def _check_kept_axes(x: Tensor, y: Tensor, dim: Dim) -> None:
    reduced = {d % x.ndim for d in ([dim] if isinstance(dim, int) else dim)}
    same = x.ndim == y.ndim and all(
        a == b or (axis == 0 and b == 1)
        for axis, (a, b) in enumerate(zip(x.shape, y.shape, strict=True))
        if axis not in reduced
    )
    if not same:
        raise ValueError(
            f"x and y must agree in every axis but dim={dim} (the batch of y may be 1); "
            f"got {tuple(x.shape)} and {tuple(y.shape)}"
        )


# ---------------------------------------------------------------------------------------- modules


class _Affine(nn.Module):
    """Scale and shift of a given shape, 1 and 0 at the start, or none at all."""

    def __init__(self, shape: Sequence[int], eps: float, affine: bool):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(*shape)) if affine else None
        self.bias = nn.Parameter(torch.zeros(*shape)) if affine else None


class BatchNorm2d(_Affine):
    """:func:`batch_norm` with learned scale and shift and running estimates.

    Its state and that of ``torch.nn.BatchNorm2d`` load into each other.

    Args:
        num_features: C.
        eps, momentum: as :func:`batch_norm`; momentum None keeps the plain average of all batches.
        affine: learn scale and shift.
        track_running_stats: keep running estimates; without them eval mode uses the batch's moments too.
    """

    def __init__(self, num_features, *, eps=1e-5, momentum=0.1, affine=True, track_running_stats=True):
        super().__init__((num_features,), eps, affine)
        self.momentum = momentum
        track = track_running_stats
        self.register_buffer("running_mean", torch.zeros(num_features) if track else None)
        self.register_buffer("running_var", torch.ones(num_features) if track else None)
        self.register_buffer("num_batches_tracked", torch.tensor(0) if track else None)

    def forward(self, x: Tensor) -> Tensor:
        counting = self.training and self.num_batches_tracked is not None
        momentum = self.momentum
        if momentum is None:
            momentum = 1 / (self.num_batches_tracked.item() + 1) if counting else 0.0
        x = batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias,
                       training=self.training, momentum=momentum, eps=self.eps)  # fmt: skip
        if counting:
            self.num_batches_tracked += 1
        return x


class LayerNorm(_Affine):
    """:func:`layer_norm` with learned scale and shift; normalized_shape is an int or the trailing sizes."""

    def __init__(self, normalized_shape, *, eps=1e-5, affine=True):
        shape = (normalized_shape,) if isinstance(normalized_shape, int) else tuple(normalized_shape)
        super().__init__(shape, eps, affine)
        self.normalized_shape = shape

    def forward(self, x: Tensor) -> Tensor:
        return layer_norm(x, self.normalized_shape, self.weight, self.bias, eps=self.eps)


class InstanceNorm2d(_Affine):
    """:func:`instance_norm` of num_features channels; ``affine`` is off by default, as in ``torch.nn``."""

    def __init__(self, num_features, *, eps=1e-5, affine=False):
        super().__init__((num_features,), eps, affine)

    def forward(self, x: Tensor) -> Tensor:
        return instance_norm(x, self.weight, self.bias, eps=self.eps)


class GroupNorm(_Affine):
    """:func:`group_norm` with learned scale and shift of num_channels channels in num_groups groups."""

    def __init__(self, num_groups, num_channels, *, eps=1e-5, affine=True):
        super().__init__((num_channels,), eps, affine)
        self.num_groups = num_groups

    def forward(self, x: Tensor) -> Tensor:
        return group_norm(x, self.num_groups, self.weight, self.bias, eps=self.eps)


class ConditionalInstanceNorm2d(_Affine):
    """:func:`conditional_instance_norm` with one learned row of scale and shift (2·C numbers) per style."""

    def __init__(self, num_features, num_styles, *, eps=1e-5):
        super().__init__((num_styles, num_features), eps, affine=True)

    def forward(self, x: Tensor, style: int | Tensor) -> Tensor:
        return conditional_instance_norm(x, style, self.weight, self.bias, eps=self.eps)


class AdaIN(nn.Module):
    """:func:`adain` with its settings kept; it learns nothing."""

    def __init__(self, *, dim: Dim = (-2, -1), eps: float = 1e-5, unbiased: bool = True):
        super().__init__()
        self.dim, self.eps, self.unbiased = dim, eps, unbiased

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return adain(x, y, dim=self.dim, eps=self.eps, unbiased=self.unbiased)
