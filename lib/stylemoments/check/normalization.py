"""Visible checks of assignment A1, Normalization.

Inputs are drawn by fixed seeds, and in no check do two mistakes give the same values. Every check takes the student's
function, or the student's results, and prints one line or raises a :class:`stylemoments.check.Hint`.

Axes: ``B`` images, ``C`` channels, ``H`` rows, ``W`` columns.

    >>> from stylemoments import check
    >>> check.normalization.merge(lambda parts: parts[0])
    Traceback (most recent call last):
    ...
    stylemoments.check.Hint: n of the whole is the sum of the parts' n; the result must say so, to be merged again
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from .. import norms
from . import Hint, call, close, compare, passed

AXES = {"B": 0, "C": 1, "H": 2, "W": 3}
LAYERS = {"BHW": "batch norm", "CHW": "layer norm", "HW": "instance norm"}


def _draw(*shape: int, seed: int, spread: float = 2.0, mean: float = 1.0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * spread + mean


# ---------------------------------------------------------------------------------------- normalize


def normalize(function: Callable) -> None:
    """Task 1: ``normalize(x, shared, eps)``, where ``shared`` names the axes that share one mean.

    Raises:
        Hint: see the module.
    """
    x = _draw(4, 6, 3, 5, seed=1) * torch.linspace(0.5, 2, 24).reshape(4, 6, 1, 1)
    for shared in LAYERS:
        _normalize_once(function, x, shared, 0.2)
    y = call(function, x, "HW", like=x)
    if not close(y, norms.instance_norm(x)):
        raise Hint("without a third argument eps must be 1e-5; leave the default of the signature as it was")
    passed("normalize")


def _normalize_once(function: Callable, x: Tensor, shared: str, eps: float) -> None:
    dim = tuple(AXES[letter] for letter in shared)
    mean, var = norms.moments(x, dim)
    _, more = norms.moments(x, dim, unbiased=True)
    mistakes = {
        "the unbiased variance: you divide by n - 1, the formula of the layers divides by n": _scaled(
            x, mean, more + eps
        ),
        "eps stands outside the root; it is added to the variance, before the root": (x - mean) / (var.sqrt() + eps),
        "eps is not used": _scaled(x, mean, var),
        "divided by the variance and not by its root": (x - mean) / (var + eps),
        "the mean is not subtracted": x / (var + eps).sqrt(),
        "only the mean is subtracted; nothing is divided": x - mean,
    }
    for other, layer in LAYERS.items():
        if other != shared:
            moments = norms.moments(x, tuple(AXES[letter] for letter in other))
            mistakes[_swapped(shared, other, layer)] = _scaled(x, moments[0], moments[1] + eps)
    compare(
        call(function, x, shared, eps, like=x),
        _scaled(x, mean, var + eps),
        mistakes,
        otherwise=f"other values than those of {LAYERS[shared]} for shared={shared!r}; compare with a 2 × 1 × 1 × 2 "
        "example that you work out by hand",
    )


def _scaled(x: Tensor, mean: Tensor, square: Tensor) -> Tensor:
    return (x - mean) * square.rsqrt()


def _swapped(shared: str, other: str, layer: str) -> str:
    what = "batch and instance axes swapped" if {shared, other} == {"BHW", "HW"} else "the wrong axes"
    return f"{what}: shared={shared!r} asks for {LAYERS[shared]}, and these are the values of {layer}"


# ---------------------------------------------------------------------------------------- batch norm


def batch_norm_step(function: Callable) -> None:
    """Task 2: ``batch_norm_step(x, running_mean, running_var, training, momentum, eps)``, which returns three tensors.

    Raises:
        Hint: see the module.
    """
    x, old_mean, old_var = _draw(3, 4, 2, 3, seed=2), _draw(4, seed=3), _draw(4, seed=4).abs() + 0.5
    eps, momentum = 0.1, 0.3
    like = (x, old_mean, old_var)
    made = call(function, x, old_mean, old_var, False, momentum, eps, like=like)
    _check_eval(made, x, old_mean, old_var, eps)
    made = call(function, x, old_mean, old_var, True, momentum, eps, like=like)
    _check_output(made[0], x, old_mean, old_var, momentum, eps)
    mean, var = (value.flatten() for value in norms.moments(x, (0, 2, 3)))
    _, more = norms.moments(x, (0, 2, 3), unbiased=True)
    _check_estimate("running_mean", made[1], old_mean, mean, momentum, {})
    biased = "the running variance collects the biased variance; like torch, it shall collect the unbiased one"
    others = {biased: old_var.lerp(var, momentum)}
    _check_estimate("running_var", made[2], old_var, more.flatten(), momentum, others)
    passed("batch_norm_step")


def _check_eval(made: tuple, x: Tensor, mean: Tensor, var: Tensor, eps: float) -> None:
    if not (close(made[1], mean) and close(made[2], var)):
        raise Hint("training=False changes the running estimates; at test time nothing is collected")
    with_batch = F.batch_norm(x, None, None, training=True, eps=eps)
    compare(
        made[0],
        F.batch_norm(x, mean, var, training=False, eps=eps),
        {"training=False uses the moments of the batch; at test time the memory counts, not the company": with_batch},
        otherwise="training=False gives other values than the running estimates do; mind the axis of the channels, "
        "the root and eps",
    )


def _check_output(y: Tensor, x: Tensor, old_mean: Tensor, old_var: Tensor, momentum: float, eps: float) -> None:
    mean, var = norms.moments(x, (0, 2, 3))
    _, more = norms.moments(x, (0, 2, 3), unbiased=True)
    new = [old_mean.lerp(mean.flatten(), momentum), old_var.lerp(more.flatten(), momentum)]
    mistakes = {
        "training=True normalizes with the running estimates; in training the batch's own moments count": F.batch_norm(
            x, old_mean, old_var, eps=eps
        ),
        "normalized with the new running estimates; in training the batch's own moments count": F.batch_norm(
            x, *new, eps=eps
        ),
        "batch and instance axes swapped: each image is normalized by itself": norms.instance_norm(x, eps=eps),
        "x is normalized with the unbiased variance; only the running variance collects that one": _scaled(
            x, mean, more + eps
        ),
        "eps stands outside the root; it is added to the variance, before the root": (x - mean) / (var.sqrt() + eps),
    }
    compare(y, _scaled(x, mean, var + eps), mistakes, otherwise="training=True gives other values than batch norm")


def _check_estimate(name: str, got: Tensor, old: Tensor, new: Tensor, momentum: float, others: Mapping) -> None:
    mistakes = {
        f"momentum is the wrong way round in {name}: it is the weight of the newest batch": new.lerp(old, momentum),
        f"{name} does not move in training": old,
        f"{name} forgets the past: it becomes the value of the newest batch": new,
        f"{name} is added up; the old estimate must lose what the new batch gains": old + momentum * new,
        **others,
    }
    compare(got, old.lerp(new, momentum), mistakes, otherwise=f"{name} is another number after a step of training")


# ---------------------------------------------------------------------------------------- fold


def fold(function: Callable) -> None:
    """Task 3: ``fold(weight, bias, gamma, beta, mean, var, eps)``, one convolution for a convolution and its norm.

    What counts is what the convolution computes, so that is compared.

    Raises:
        Hint: see the module.
    """
    weight, bias = _draw(5, 5, 3, 3, seed=5, mean=0.1), _draw(5, seed=6)
    gamma, beta, mean = _draw(5, seed=7), _draw(5, seed=8), _draw(5, seed=9)
    var, eps, x = _draw(5, seed=10).abs() + 0.3, 0.2, _draw(2, 5, 6, 6, seed=11)
    scale = gamma / (var + eps).sqrt()
    right = F.batch_norm(F.conv2d(x, weight, bias), mean, var, gamma, beta, eps=eps)
    made = call(function, weight, bias, gamma, beta, mean, var, eps, like=(weight, bias))
    out = weight * scale[:, None, None, None]
    no_eps = F.batch_norm(F.conv2d(x, weight, bias), mean, var, gamma, beta, eps=1e-12)
    outside = gamma / (var.sqrt() + eps)
    mistakes = {
        "the scale goes to the wrong axis of the weight: the norm scales the channels that come out": F.conv2d(
            x, weight * scale[:, None, None], (bias - mean) * scale + beta
        ),
        "the weight is not scaled": F.conv2d(x, weight, (bias - mean) * scale + beta),
        "the old bias is not scaled; the norm sees it as a part of its input": F.conv2d(
            x, out, bias - mean * scale + beta
        ),
        "the mean is not scaled; it is subtracted before the division": F.conv2d(x, out, bias * scale - mean + beta),
        "the mean of the norm is lost": F.conv2d(x, out, bias * scale + beta),
        "the old bias is lost": F.conv2d(x, out, beta - mean * scale),
        "beta is scaled; it is added after the division": F.conv2d(x, out, (bias - mean + beta) * scale),
        "divided by the variance and not by its root": F.batch_norm(
            F.conv2d(x, weight, bias), mean, (var + eps).square(), gamma, beta, eps=1e-12
        ),
        "eps is not used": no_eps,
        "eps stands outside the root; it is added to the variance, before the root": F.conv2d(
            x, weight * outside[:, None, None, None], (bias - mean) * outside + beta
        ),
    }
    compare(
        F.conv2d(x, *made),
        right,
        mistakes,
        rtol=1e-3,
        atol=1e-3,
        otherwise="the folded convolution computes something else than convolution and norm do; write the norm of "
        "w · x + b on paper and sort by what stands before x",
    )
    passed("fold")


# ---------------------------------------------------------------------------------------- merge


def merge(function: Callable) -> None:
    """Task 4: ``merge(parts)``, the moments of a whole from those of its parts, ``(n, mean, var)`` each.

    Raises:
        Hint: see the module.
    """
    whole = torch.cat([_draw(n, 3, seed=n, mean=float(n)) for n in (2, 5, 11)])
    parts = [(len(p), p.mean(0), p.var(0, correction=0)) for p in whole.split([2, 5, 11])]
    n = torch.tensor([float(count) for count, _, _ in parts])[:, None]
    means, variances = (torch.stack([part[i] for part in parts]) for i in (1, 2))
    share = n / n.sum()
    mean = whole.mean(0)
    between = means - mean
    count, got_mean, got_var = call(function, parts, like=(0, mean, mean))
    if count != len(whole):
        raise Hint("n of the whole is the sum of the parts' n; the result must say so, to be merged again")
    equal = "every part counts the same in the {}; a part of more numbers counts more"
    compare(
        got_mean,
        mean,
        {equal.format("mean"): means.mean(0)},
        otherwise="the mean of the whole is not the mean of all its numbers",
    )
    compare(
        got_var,
        whole.var(0, correction=0),
        {
            "the variances are averaged, but the means of the parts differ too, and that spread is missing": (
                share * variances
            ).sum(0),
            equal.format("variance"): (variances + between.square()).mean(0),
            "biased for unbiased: the variance of the whole divides by n, not by n - 1": whole.var(0),
            "the spread of the means counts every part the same; a part of more numbers counts more": (
                share * variances
            ).sum(0)
            + between.square().mean(0),
            "the spread of the means without its square": (share * (variances + between.abs())).sum(0),
        },
        otherwise="the variance of the whole is not that of all its numbers; try two parts of two numbers by hand",
    )
    passed("merge")


# ---------------------------------------------------------------------------------------- adain to a set


def adain_to_set(function: Callable) -> None:
    """Task 5: ``adain_to_set(x, styles, eps)``, the moments of a set of pictures for each of a batch.

    Raises:
        Hint: see the module.
    """
    x, eps = _draw(3, 2, 4, 4, seed=20) * torch.linspace(0.5, 2, 3).reshape(3, 1, 1, 1), 0.3
    sizes = ((4, 4), (3, 5), (6, 7))
    styles = [_draw(1, 2, *size, seed=30 + i, spread=1.0 + i, mean=2.0 * i) for i, size in enumerate(sizes)]
    pixels = torch.cat([style.flatten(2) for style in styles], 2)  # of the set, as one wide picture
    mean, var = (value[..., None] for value in norms.moments(pixels, -1))
    made = call(function, x, styles, eps, like=x)
    wanted = norms.with_moments(x, mean, var, eps=eps, unbiased=False)
    compare(made, wanted, _set_mistakes(x, styles, mean, var, eps), otherwise=_SET_OTHERWISE)
    passed("adain_to_set")


_SET_OTHERWISE = (
    "the result has other moments than the set, or is no scaled and shifted x; look at the moments of each image that "
    "you return"
)


def _set_mistakes(x: Tensor, styles: list[Tensor], mean: Tensor, var: Tensor, eps: float) -> dict[str, Tensor]:
    def give(m, v, **options):
        return norms.with_moments(x, m, v, **{"eps": eps, "unbiased": False, **options})

    each = [norms.moments(style) for style in styles]
    means, variances = (torch.stack(values) for values in zip(*each, strict=True))
    pixels = torch.tensor([float(style[0, 0].numel()) for style in styles]).reshape(-1, 1, 1, 1, 1)
    share = pixels / pixels.sum()
    within = (share * variances).sum(0)
    n = int(pixels.sum())
    batch = norms.moments(x, (0, 2, 3))
    return {
        "the variances of the pictures are averaged, but their means differ too, and that spread is missing": give(
            mean, within
        ),
        "the deviations of the pictures are averaged; the set has one deviation, that of all its pixels": give(
            mean, (share * variances.sqrt()).sum(0).square()
        ),
        "every picture of the set counts the same; a picture of more pixels counts more": give(
            means.mean(0), (variances + (means - means.mean(0)).square()).mean(0)
        ),
        "means and variances of the pictures are averaged, each picture the same": give(
            means.mean(0), variances.mean(0)
        ),
        "only the first picture of the set is used": give(*each[0]),
        "only the last picture of the set is used": give(*each[-1]),
        "the unbiased variance: you divide by n - 1, here both variances divide by n": give(
            mean, var * n / (n - 1), unbiased=True
        ),
        "statistics of the wrong image: x is normalized with the moments of the whole batch, not of each image": (
            (x - batch[0]) * ((var + eps) / (batch[1] + eps)).sqrt() + mean
        ),
        "all channels share one mean and one deviation of the set": give(
            mean.mean(1, keepdim=True),
            (var + mean.square()).mean(1, keepdim=True) - mean.mean(1, keepdim=True).square(),
        ),
        "the mean of the set does not arrive": give(torch.zeros_like(mean), var),
        "the deviation of the set does not arrive": norms.instance_norm(x, eps=eps) + mean,
        "x keeps its own mean: subtract it before you scale": give(mean, var)
        + norms.moments(x)[0] * ((var + eps) / (norms.moments(x)[1] + eps)).sqrt(),
        "eps stands outside the roots; it is added to the variances, before the roots": (
            (x - norms.moments(x)[0]) / (norms.moments(x)[1].sqrt() + eps) * (var.sqrt() + eps) + mean
        ),
    }


# ---------------------------------------------------------------------------------------- the experiment


def results(found: Mapping, sizes: tuple[int, ...]) -> None:
    """The experiment: ``found[contrast][moments][seed][size]`` in percent, for "full" and "low" contrast and for the
    moments of the "memory" and of the "company", at least five seeds.

    Raises:
        Hint: another form, or numbers that the experiment cannot give.
    """
    for contrast in ("full", "low"):
        for moments in ("memory", "company"):
            try:
                rows = found[contrast][moments]
                percent = torch.tensor(rows, dtype=torch.float64)
            except (KeyError, RuntimeError, TypeError, ValueError):
                raise Hint(
                    f'results["{contrast}"]["{moments}"] must be a list of lists of numbers: seeds, sizes'
                ) from None
            _check_percent(percent, f'results["{contrast}"]["{moments}"]', len(sizes))
            _check_company(percent, moments)
    passed("results")


def _check_percent(percent: Tensor, name: str, sizes: int) -> None:
    if percent.ndim != 2 or percent.shape[1] != sizes or len(percent) < 5:
        raise Hint(f"{name} needs five seeds or more, and {sizes} sizes for each; got shape {tuple(percent.shape)}")
    if not bool(((percent >= 0) & (percent <= 100)).all()):
        raise Hint(f"{name} has numbers that are not between 0 and 100")
    if float(percent.max()) <= 1:
        raise Hint(f"{name} has no number above 1: give percent, not shares")
    if len(percent.unique(dim=0)) == 1:
        raise Hint(f"all seeds of {name} are the same: give each network its own seed")


def _check_company(percent: Tensor, moments: str) -> None:
    same = bool((percent == percent[:, :1]).all())
    if moments == "memory" and float((percent - percent[:, :1]).abs().max()) > 0.5:
        raise Hint(
            "with the running estimates the size of the test batch cannot matter, but here it does: do the layers use "
            "the batch's moments, or collect new ones while they are tested?"
        )
    if moments == "company" and same:
        raise Hint(
            "with the batch's moments the size of the test batch matters, but here it does not: is company=True?"
        )
