"""Visible checks of assignment A2, Style transfer.

Inputs are drawn by fixed seeds, and in no check do two mistakes give the same values. Every check takes the student's
function, or the student's results, and prints one line or raises a :class:`stylemoments.check.Hint`.

Axes: ``B`` pictures, ``C`` channels, ``H W`` or ``h w`` places.

    >>> from stylemoments import check
    >>> check.transfer.match_luminance(lambda x, y: x[0])
    Traceback (most recent call last):
    ...
    stylemoments.check.Hint: <lambda> must return shape (2, 3, 4, 5) here; got shape (3, 4, 5)
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from .. import adain, color, losses, norms
from . import Hint, call, compare, passed

UNBIASED = "biased for unbiased: you divide by n, here all variances divide by n - 1"


def _draw(*shape: int, seed: int, spread: float = 2.0, mean: float = 1.0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * spread + mean


# ---------------------------------------------------------------------------------------- region_gram


def region_gram(function: Callable) -> None:
    """Task 1: ``region_gram(features, mask)``, the Gram matrix of a region.

    Raises:
        Hint: see the module.
    """
    x, quarters = _draw(2, 3, 4, 5, seed=1), _draw(2, 1, 4, 5, seed=2, mean=0.0).abs().mul(1.2).long().clamp(max=4)
    _region_gram_once(function, x, quarters)
    _region_gram_once(function, x, quarters[:1])
    passed("region_gram")


def _region_gram_once(function: Callable, x: Tensor, quarters: Tensor) -> None:
    mask = quarters / 4
    repeated = [  # a place of weight 3/4 stands there three times
        image.flatten(1).repeat_interleave(times.flatten(), 1)
        for image, times in zip(x, quarters.expand(2, -1, -1, -1), strict=True)
    ]
    wanted = torch.cat([losses.gram(image[None, :, None], normalize="hw") for image in repeated])
    got = call(function, x, mask, like=wanted)
    compare(got, wanted, _region_mistakes(x, mask), otherwise="other values; try two channels and two places by hand")


def _region_mistakes(x: Tensor, mask: Tensor) -> dict[str, Tensor]:
    def products(weight):
        return losses.gram(x * weight.sqrt(), normalize=None)

    size = mask.sum((2, 3))[..., None]  # B 1 1
    centered = x - (mask * x).sum((2, 3), keepdim=True) / mask.sum((2, 3), keepdim=True)
    return {
        "the mask counts twice: both factors of a product are masked, but a place counts once": products(mask.square())
        / size,
        "divided by all places H · W; the region has fewer": products(mask) / mask[0].numel(),
        "divided by the number of places that have any weight; add the weights up": products(mask)
        / (mask > 0).sum((2, 3))[..., None],
        "divided by the number of channels as well": products(mask) / size / x.shape[1],
        "not divided by the size of the region": products(mask),
        "divided by the sizes of all regions of the batch together": products(mask) / mask.sum(),
        "the mask is not used": losses.gram(x, normalize="hw"),
        "the mask of the first picture is used for all": products(mask[:1]) / size[:1],
        "the mean is subtracted: that is the covariance, a Gram matrix keeps the means": losses.gram(
            centered * mask.sqrt(), normalize=None
        )
        / size,
    }


# ---------------------------------------------------------------------------------------- gram_step


def gram_step(function: Callable) -> None:
    """Task 2: ``gram_step(features, target)``, the relative Gram loss and its gradient.

    Raises:
        Hint: see the module.
    """
    x = _draw(2, 3, 3, 4, seed=3)
    target = losses.gram(_draw(2, 3, 5, 5, seed=4, mean=0.5), normalize="hw")
    leaf = x.clone().requires_grad_()
    loss = losses.gram_loss(leaf, target, normalize="hw", reduction="relative")
    (right,) = torch.autograd.grad(loss, leaf)
    got_loss, got_gradient = call(function, x, target, like=(0.0, x))
    _check_gram_loss(got_loss, x, target, loss.item())
    compare(
        got_gradient,
        right,
        _gradient_mistakes(right, x, target),
        otherwise="the loss is right and its gradient is not; change one feature by 0.001 and see how the loss moves",
    )
    passed("gram_step")


def _check_gram_loss(got: float, x: Tensor, target: Tensor, right: float) -> None:
    gram = losses.gram(x, normalize="hw")
    error = (gram - target).square().sum((1, 2))
    share = error / target.square().sum((1, 2))
    smaller = losses.gram(x, normalize="chw") - target
    mistakes = {
        "the loss is a share of the features' own Gram matrix; divide by the squares of the target": error
        / gram.square().sum((1, 2)),
        "the loss is no share: the squared difference is not divided by the squares of the target": error,
        "the squared difference is averaged over the entries, not divided by the squares of the target": error
        / x.shape[1] ** 2,
        "the loss is summed over the batch; take the mean of the pictures": 2 * share,
        "the loss is the root of the share": share.sqrt(),
        "the Gram matrix is divided by C · H · W, but the target by H · W": smaller.square().sum((1, 2))
        / target.square().sum((1, 2)),
        "the Gram matrix is not divided by H · W": (gram * x[0, 0].numel() - target).square().sum((1, 2))
        / target.square().sum((1, 2)),
        "the differences are not squared": (gram - target).abs().sum((1, 2)) / target.abs().sum((1, 2)),
        "one share of the whole batch; take the share of each picture, then their mean": error.sum()[None]
        / target.square().sum(),
    }
    means = {sentence: value.mean().item() for sentence, value in mistakes.items()}
    compare(got, right, means, otherwise="the loss has another value than the text describes")


def _gradient_mistakes(right: Tensor, x: Tensor, target: Tensor) -> dict[str, Tensor]:
    places, pictures = x[0, 0].numel(), len(x)
    squares = target.square().sum((1, 2)).reshape(-1, 1, 1, 1)
    own = losses.gram(x, normalize="hw").square().sum((1, 2)).reshape(-1, 1, 1, 1)
    return {
        "the gradient is half of what it is: every feature stands in a product twice, and there is a square": right / 2,
        "the gradient is a quarter of what it is: mind the square, and that every feature stands in a product twice": (
            right / 4
        ),
        "the gradient lacks the division by H · W that is inside the Gram matrix": right * places,
        "the loss is the mean over the batch, so the gradient of each picture is divided by the batch, too": (
            right * pictures
        ),
        "the sign is that of a descent step; the gradient points uphill": -right,
        "the gradient is that of the squared difference, not of the share": right * squares,
        "the gradient is divided by the square of the wrong Gram matrix": right * squares / own,
    }


# ---------------------------------------------------------------------------------------- restyle


def restyle(function: Callable) -> None:
    """Task 3: ``restyle(content, styles, weights, alpha)``, a mixture of styles and of style and content.

    Raises:
        Hint: see the module.
    """
    x = _draw(2, 3, 3, 4, seed=5) * torch.tensor([1.0, 3.0]).reshape(2, 1, 1, 1)
    sizes = ((3, 4), (2, 5), (4, 4))
    styles = [_draw(1, 3, *size, seed=10 + i, spread=1.0 + 2 * i, mean=3.0 * i) for i, size in enumerate(sizes)]
    weights, alpha = [1.0, 0.5, 2.5], 0.7
    got = call(function, x, styles, weights, alpha, like=x)
    wanted = _mixed(x, adain.blend([adain.region_moments(style) for style in styles], weights), alpha)
    compare(
        got,
        wanted,
        _blend_mistakes(x, styles, weights, alpha),
        otherwise="other values than the text describes; begin with one style and alpha = 1, there it is norms.adain",
    )
    full = call(function, x, styles[:1], [1.0], like=x)
    compare(full, norms.adain(x, styles[0]), {}, otherwise="without a fourth argument alpha must be 1")
    passed("restyle")


def _mixed(x: Tensor, style: adain.Moments, alpha: float = 1.0) -> Tensor:
    everywhere = torch.ones_like(x[:1, :1])
    return adain.restyle(x, [adain.Region(style, everywhere, everywhere)], [adain.region_moments(x)], alpha=alpha)


def _blend_mistakes(x: Tensor, styles: list[Tensor], weights: list[float], alpha: float) -> dict[str, Tensor]:
    moments = [adain.region_moments(style) for style in styles]
    blended, total = adain.blend(moments, weights), sum(weights)
    share = [weight / total for weight in weights]
    mean_square = sum(w * m.deviation.square() for w, m in zip(share, moments, strict=True))
    pixels = torch.cat([style.flatten(2) for style in styles], 2)[:, :, None]
    own, batch = adain.region_moments(x), norms.moments(x, (0, 2, 3), unbiased=True)
    standard = (x - batch[0]) / (batch[1] + 1e-5).sqrt()
    biased = [losses.mean_std(style)[0, 1][None, :, None, None] for style in styles]
    fewer = sum(w * deviation for w, deviation in zip(share, biased, strict=True))
    return {
        UNBIASED: torch.lerp(x, norms.instance_norm(x) * fewer + blended.mean, alpha),
        "the weights are not divided by their sum": _mixed(
            x, adain.Moments(blended.mean * total, blended.deviation * total), alpha
        ),
        "variances are blended; blend the deviations": _mixed(
            x, adain.Moments(blended.mean, mean_square.sqrt()), alpha
        ),
        "the weights are not used": _mixed(x, adain.blend(moments), alpha),
        "only the first style is used": _mixed(x, moments[0], alpha),
        "the styles are thrown together and have one mean and one deviation; blend the moments of each": _mixed(
            x, adain.region_moments(pixels), alpha
        ),
        "alpha is not used": _mixed(x, blended),
        "alpha is the wrong way round: 0 leaves the content as it is": _mixed(x, blended, 1 - alpha),
        "alpha counts twice": _mixed(x, blended, alpha**2),
        "statistics of the wrong image: the content is normalized with the moments of the whole batch": torch.lerp(
            x, standard * blended.deviation + blended.mean, alpha
        ),
        "the content keeps its own mean: subtract it before you scale": torch.lerp(
            x, _mixed(x, blended) + own.mean / own.deviation * blended.deviation, alpha
        ),
    }


# ---------------------------------------------------------------------------------------- restyle_regions


def restyle_regions(function: Callable) -> None:
    """Task 4: ``restyle_regions(content, styles, masks)``, each region in a style of its own.

    Raises:
        Hint: see the module.
    """
    x = _draw(2, 3, 4, 6, seed=20) + torch.linspace(0, 9, 4).reshape(1, 1, 4, 1)
    styles = [
        _draw(1, 3, *size, seed=21 + i, spread=1.0 + i, mean=5.0 * i - 3) for i, size in enumerate(((4, 6), (5, 3)))
    ]
    masks = [torch.zeros(1, 1, 4, 6) for _ in styles]
    masks[0][..., :2, :], masks[1][..., 2:, :4] = 1.0, 1.0  # the lower right corner belongs to nobody
    wanted = _in_regions(x, styles, masks)
    compare(
        call(function, x, styles, masks, like=x),
        wanted,
        _region_style_mistakes(x, styles, masks, wanted),
        otherwise="other values than the text describes; look at the moments of your result inside each mask",
    )
    passed("restyle_regions")


def _in_regions(x: Tensor, styles: list[Tensor], masks: list[Tensor]) -> Tensor:
    regions = [adain.Region(adain.region_moments(s), m, m) for s, m in zip(styles, masks, strict=True)]
    return adain.restyle(x, regions, [adain.region_moments(x, mask) for mask in masks])


def _region_style_mistakes(x: Tensor, styles: list[Tensor], masks: list[Tensor], wanted: Tensor) -> dict[str, Tensor]:
    covered = sum(masks)

    def put(results):
        return x * (1 - covered) + sum(mask * result for mask, result in zip(masks, results, strict=True))

    whole = [norms.adain(x, style) for style in styles]
    with_zeros = [
        (x - norms.moments(x * mask)[0])
        / (norms.moments(x * mask, unbiased=True)[1] + 1e-5).sqrt()
        * (norms.moments(style, unbiased=True)[1] + 1e-5).sqrt()
        + norms.moments(style)[0]
        for style, mask in zip(styles, masks, strict=True)
    ]
    batch = [
        norms.adain(x.transpose(0, 1)[:, :, mask[0, 0] > 0].flatten(1)[None, ..., None], style)
        .reshape(3, 2, -1)
        .transpose(0, 1)
        for style, mask in zip(styles, masks, strict=True)
    ]
    biased = []
    for style, mask in zip(styles, masks, strict=True):
        inside = x[:, :, mask[0, 0] > 0][..., None]
        biased.append(norms.adain(inside, style, unbiased=False)[..., 0])
    return {
        "statistics of the wrong place: the content's moments are those of the whole picture, not of the region": put(
            whole
        ),
        "places outside of all masks become 0; they keep the content": wanted * covered,
        "the styles are in each other's regions": _in_regions(x, styles[::-1], masks),
        "the places outside of a region count as zeros in its moments; leave them out": put(with_zeros),
        UNBIASED: _filled(x, biased, masks),
        "statistics of the wrong image: a region is normalized over the whole batch": _filled(x, batch, masks),
        "the masks are not used: the last style is everywhere": whole[-1],
        "the masks are not used: the first style is everywhere": whole[0],
    }


def _filled(x: Tensor, inside: list[Tensor], masks: list[Tensor]) -> Tensor:
    """x with these values, (B, C, places), in the regions."""
    x = x.clone()
    for values, mask in zip(inside, masks, strict=True):
        x[:, :, mask[0, 0] > 0] = values
    return x


# ---------------------------------------------------------------------------------------- match_luminance


def match_luminance(function: Callable) -> None:
    """Task 5: ``match_luminance(x, y)``, light and dark of y in the colors of x.

    Raises:
        Hint: see the module.
    """
    generator = torch.Generator().manual_seed(30)
    scale = torch.tensor([0.2, 0.9]).reshape(2, 1, 1, 1)
    x, y = torch.rand(2, 3, 4, 5, generator=generator) * scale, torch.rand(1, 3, 6, 3, generator=generator) ** 3
    light, other = color.luminance(x), color.luminance(y)
    new = norms.adain(light, other, unbiased=False)
    wanted = x + new - light
    mean = norms.moments(other)[0]
    even, even_y = x.mean(1, keepdim=True), y.mean(1, keepdim=True)
    mistakes = {
        "each color is matched by itself, as AdaIN does; match the luminance alone": norms.adain(x, y, unbiased=False),
        "R, G and B count the same in the luminance; the eye weighs them": (
            x + norms.adain(even, even_y, unbiased=False) - even
        ),
        "the colors are scaled; add the difference of the luminances to each channel": x * new / light,
        "the colors are gone: the result is the luminance alone": new.expand_as(x),
        "the colors are scaled together with the luminance; only the luminance is scaled": (
            (x - norms.moments(light)[0]) * ((norms.moments(other)[1] + 1e-5) / (norms.moments(light)[1] + 1e-5)).sqrt()
            + mean
        ),
        "only the mean of the luminance is matched": x + mean - norms.moments(light)[0],
        "only the deviation of the luminance is matched": wanted - mean + norms.moments(light)[0],
        "the result is clamped; leave that to the caller": wanted.clamp(0, 1),
        "unbiased for biased: you divide by n - 1, here both variances divide by n": x
        + norms.adain(light, other)
        - light,
        "statistics of the wrong image: the luminance of x is normalized over the whole batch": (
            x + norms.adain(light, other, dim=(0, 2, 3), unbiased=False) - light
        ),
    }
    got = call(function, x, y, like=x)
    compare(got, wanted, mistakes, otherwise="other values; look at the luminance of your result, and at its R - G")
    passed("match_luminance")


# ---------------------------------------------------------------------------------------- the experiment


def leak(rows: list, seams: Mapping, distances: int) -> None:
    """The experiment: for each draw the change at each distance from the border, and the seams of both ways.

    Args:
        rows: at least ten lists, each of ``distances`` numbers, the row next to the border first.
        seams: ``"features"`` and ``"pixels"``, a number for each draw.
        distances: rows of pixels in the upper half.

    Raises:
        Hint: another form, or numbers that the experiment cannot give.
    """
    change = _numbers(rows, "leak")
    if change.ndim != 2 or len(change) < 10 or change.shape[1] != distances:
        raise Hint(f"leak needs ten draws or more, and {distances} rows for each; got shape {tuple(change.shape)}")
    _check_change(change)
    for way in ("features", "pixels"):
        if not isinstance(seams, Mapping) or way not in seams:
            raise Hint('seams must be a dict with the keys "features" and "pixels"')
        values = _numbers(seams[way], f'seams["{way}"]')
        if values.shape != change.shape[:1] or bool((values <= 0).any()):
            raise Hint(f'seams["{way}"] needs one positive number for each of {len(change)} draws')
    passed("leak")


def _numbers(values: object, name: str) -> Tensor:
    try:
        found = torch.tensor(values, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError):
        raise Hint(f"{name} must be made of lists and plain numbers, all lists of one length") from None
    if not bool(found.isfinite().all()):
        raise Hint(f"{name} holds NaN or infinity")
    return found


def _check_change(change: Tensor) -> None:
    if bool((change < 0).any()):
        raise Hint("leak holds negative numbers: take the size of the differences")
    near, far = change[:, :4].mean(), change[:, -4:].mean()
    if float(change.max()) == 0:
        raise Hint("nothing changes at all: is the lower style exchanged, and is the upper half compared?")
    if float(far) > float(near):
        raise Hint("the change grows with the distance from the border: the row next to the border comes first")
    if float(far) > 1e-4:
        raise Hint(
            "the upper half changes even where it is farthest from the border: does an exchange of the lower style "
            "reach the moments of the upper region, or was something else exchanged, too?"
        )
    if len(change.unique(dim=0)) == 1:
        raise Hint("all draws give the same rows: does every draw use its own pictures?")
