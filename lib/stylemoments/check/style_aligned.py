r"""Visible checks of the assignment on StyleAligned: attention that reaches into another picture, and its measures.

Axes: ``B`` targets, ``h`` heads, ``N`` tokens of a target, ``M`` tokens of the reference, ``d`` features. The rows of a
batch that guidance doubled are ``[uncond; cond]``; the first row of each half is its reference.

    >>> from stylemoments import check
    >>> check.style_aligned.set_consistency(lambda features: 0.5)
    Traceback (most recent call last):
    ...
    stylemoments.check.Hint: set_consistency is not the mean cosine over all pairs of two different pictures
"""

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from .. import metrics
from ..norms import adain
from . import Hint, call, close, compare, passed

EPS = 1e-5
over_tokens = partial(adain, dim=-2)


def _random(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# ---------------------------------------------------------------------------------------- align


def align(function: Callable) -> None:
    """Check ``align(x, reference)``: AdaIN over the tokens.

    Args:
        function: takes ``(B, h, N, d)`` and ``(1 or B, h, M, d)``, returns ``(B, h, N, d)``.

    Raises:
        Hint: names the mistake.

    Example:
        >>> align(lambda x, reference: adain(x, reference, dim=-2))
        align: no mistake found
    """
    _align_axes(function)
    _align_variance(function)
    _align_epsilon(function)
    passed("align")


def _align_axes(function: Callable) -> None:
    """As many tokens as features, and a reference for each target: wrong axes give numbers here, and no errors."""
    x = 20 * _random(0, 3, 2, 6, 6) + 10 * _random(1, 3, 2, 1, 6)  # so large that epsilon does not count
    y = 5 * _random(2, 3, 2, 6, 6) - 30 + 10 * _random(3, 3, 2, 1, 6)
    right = over_tokens(x, y)
    own, theirs = x.mean(-2, keepdim=True), y.mean(-2, keepdim=True)
    by_variance = (x - own) * y.var(-2, keepdim=True) / x.var(-2, keepdim=True) + theirs
    wrong_image = "the statistics are of the wrong image: "
    mistakes = {
        "align returns x as it was": x,
        "align takes the moments over the features of each token, as layer norm does; each feature of each head has "
        "its own, over the tokens": adain(x, y, dim=-1),
        "align takes one mean and one deviation for all features of a head; each feature has its own": adain(x, y),
        "align mixes the heads; each head has its own moments": adain(x, y, dim=(1, -2)),
        "batch and token axes are swapped: align takes moments over the pictures of the batch": adain(x, y, dim=0),
        "align takes moments over all pictures together; each picture has its own": adain(x, y, dim=(0, -2)),
        wrong_image + "the reference gets those of x, and x should get those of the reference": over_tokens(y, x),
        wrong_image + "x gets those of its own first picture": over_tokens(x, x[:1]),
        wrong_image + "all targets get those of the first reference, and here each has its own": over_tokens(x, y[:1]),
        "align does not add the mean of the reference": right - theirs,
        "align keeps the mean of x; only the deviation is that of the reference": right - theirs + own,
        "align gives x the mean of the reference, but keeps the deviation of x": x - own + theirs,
        "align multiplies and divides by variances; they should be deviations": by_variance,
    }
    got = call(function, x, y, like=x)
    compare(got, right, mistakes, otherwise="align does not give x the moments of the reference over the tokens")


def _align_variance(function: Callable) -> None:
    """Fewer tokens than the reference has: only here biased and unbiased differ."""
    x, y = 20 * _random(4, 3, 2, 4, 5), 40 * _random(5, 1, 2, 9, 5) + 10
    said = "align takes the biased variance for the unbiased one: StyleAligned divides by n - 1"
    mistakes = {said: over_tokens(x, y, unbiased=False)}
    otherwise = "align is wrong where the reference has another number of tokens than x"
    compare(call(function, x, y, like=x), over_tokens(x, y), mistakes, otherwise=otherwise)


def _align_epsilon(function: Callable) -> None:
    """Numbers so small that epsilon counts."""
    x, y = 1e-3 * _random(6, 2, 1, 8, 3), 2e-3 * _random(7, 1, 1, 8, 3)
    (mean, theirs), (spread, wide) = ([f(z, -2, keepdim=True) for z in (x, y)] for f in (torch.mean, torch.std))
    outside = (x - mean) * (wide + EPS) / (spread + EPS) + theirs
    on_x = (x - mean) * wide / (spread.square() + EPS).sqrt() + theirs
    mistakes = {
        "align leaves epsilon away, and a feature that is the same in all tokens is divided by 0": over_tokens(
            x, y, eps=0.0
        ),
        "align adds epsilon outside the root; it is added to the variance, inside": outside,
        "align adds epsilon to the variance of x alone; StyleAligned adds it to both": on_x,
    }
    otherwise = "align is wrong for numbers near 0: 1e-5 is added to both variances, inside the roots"
    compare(call(function, x, y, like=x), over_tokens(x, y), mistakes, otherwise=otherwise, atol=1e-7)


# ---------------------------------------------------------------------------------------- attend


def _weighed(logits: Tensor, values: Tensor) -> Tensor:
    return logits.softmax(-1) @ values


def attend(function: Callable) -> None:
    """Check ``attend(q, k, v, k_r, v_r, shift)``: targets look at themselves and at the reference.

    Args:
        function: takes three times ``(B, h, N, d)``, twice ``(1, h, M, d)`` and a number, returns ``(B, h, N, d)``.

    Raises:
        Hint: names the mistake.
    """
    q, k, v = (2 * _random(seed, 3, 2, 5, 4) for seed in (10, 11, 12))
    k_r, v_r = (2 * _random(seed, 1, 2, 5, 4) for seed in (13, 14))
    _attend_parts(function, q, k, v, k_r, v_r)
    _attend_shift(function, q, k, v, k_r, v_r)
    _attend_unheard(function, q, k, v, k_r, v_r)
    passed("attend")


def _attend_parts(function: Callable, q: Tensor, k: Tensor, v: Tensor, k_r: Tensor, v_r: Tensor) -> None:
    others, heard = k_r.expand_as(k), v_r.expand_as(v)
    keys, values = torch.cat([k, others], -2), torch.cat([v, heard], -2)
    products, half = q @ keys.mT, q @ k.mT / 2  # the root of d is 2
    mistakes = {
        "the reference is not heard at all: attend uses the target's own keys and values alone": _weighed(half, v),
        "attend looks at the reference alone; a target's own keys and values stay beside those of the reference":
            _weighed(q @ others.mT / 2, heard),
        "keys are shared but not values: beside the reference's keys stand values of the target":
            _weighed(products / 2, torch.cat([v, v], -2)),
        "values are shared but not keys: beside the reference's values stand keys of the target":
            _weighed(torch.cat([half, half], -1), values),
        "keys and values stand in different orders: a key of the target meets a value of the reference":
            _weighed(products / 2, torch.cat([heard, v], -2)),
        "attend does not divide the products of queries and keys by the root of d": _weighed(products, values),
        "attend divides by d, not by its root": _weighed(products / 4, values),
        "attend divides by the root of the number of tokens; d is the number of features": _weighed(
            products / 5**0.5, values),
        "the softmax runs over the queries; the shares of each query, over all keys, sum to 1":
            (products / 2).softmax(-2) @ values,
        "two softmaxes, one over each picture's keys, are not one over all of them": _weighed(half, v)
            + _weighed(q @ others.mT / 2, heard),
        "two softmaxes, averaged, are not one over all keys: the reference would always get half": 0.5
            * (_weighed(half, v) + _weighed(q @ others.mT / 2, heard)),
    }  # fmt: skip
    got = _called(function, q, k, v, k_r, v_r)
    otherwise = "attend without a shift is not softmax(Q [K; K_r]^T / root of d) [V; V_r]"
    compare(got, _weighed(products / 2, values), mistakes, otherwise=otherwise)


def _called(function: Callable, *args: Tensor) -> Tensor:
    """Keys that were put together and values that were not do not fit: say so beside the error."""
    try:
        return call(function, *args, 0.0, like=args[0])
    except Hint as hint:
        if "stopped with" in str(hint):
            why = "If a size does not fit: perhaps keys are shared but not values; 10 keys need 10 values"
            raise Hint(f"{hint}. {why}") from hint.__cause__
        raise


def _attend_shift(function: Callable, q: Tensor, k: Tensor, v: Tensor, k_r: Tensor, v_r: Tensor) -> None:
    shift = 1.5
    keys, values = torch.cat([k, k_r.expand_as(k)], -2), torch.cat([v, v_r.expand_as(v)], -2)
    logits, on_them = q @ keys.mT / 2, torch.arange(10) >= 5
    before_root = (q @ keys.mT + shift * on_them) / 2
    moved = torch.cat([k, k_r.expand_as(k) + shift], -2)
    mistakes = {
        "attend takes no notice of the shift, or adds it to all logits, which changes nothing": _weighed(
            logits, values),
        "the shift turns the reference down: it is added to the target's own logits, or subtracted": _weighed(
            logits - shift * on_them, values),
        "the shift multiplies the logits of the reference; it is added to them": _weighed(
            torch.where(on_them, shift * logits, logits), values),
        "the shift is added after the softmax; it is added to the logits, before": (
            logits.softmax(-1) + shift * on_them) @ values,
        "the shift is added before the division by the root of d; it is added to the logits themselves": _weighed(
            before_root, values),
        "the shift is added to the reference's keys; it is added to the logits": _weighed(q @ moved.mT / 2, values),
    }  # fmt: skip
    got = call(function, q, k, v, k_r, v_r, shift, like=q)
    otherwise = "attend is right without a shift and wrong with one: it is added to the logits of the reference's keys"
    compare(got, _weighed(logits + shift * on_them, values), mistakes, otherwise=otherwise)


def _attend_unheard(function: Callable, q: Tensor, k: Tensor, v: Tensor, k_r: Tensor, v_r: Tensor) -> None:
    got = call(function, q, k, v, k_r, v_r, -float("inf"))
    if isinstance(got, Tensor) and bool(got.isnan().any()):
        raise Hint(
            "at a shift of minus infinity attend returns NaN: zero times infinity is NaN, so add the shift where the "
            "reference's keys are, and nothing elsewhere"
        )
    alone, otherwise = _weighed(q @ k.mT / 2, v), "at a shift of minus infinity the reference must not be heard at all"
    compare(got, alone, {}, otherwise=otherwise)


# ---------------------------------------------------------------------------------------- style_aligned


def style_aligned(function: Callable) -> None:
    """Check ``style_aligned(q, k, v, copies)``: a whole batch, with one reference in each of its copies.

    Args:
        function: takes three times ``(copies · n, h, N, d)`` and a number, returns ``(copies · n, h, N, d)``.

    Raises:
        Hint: names the mistake.
    """
    q, k, v = (2 * _random(seed, 6, 2, 5, 4) + _random(seed + 9, 6, 2, 1, 4) for seed in (20, 21, 22))
    right = _led(q, k, v, [0, 0, 0, 3, 3, 3])
    mixed = "guidance halves are mixed: "
    mistakes = {
        mixed + "all rows follow the first row of the batch; each half has its own reference": [0, 0, 0, 0, 0, 0],
        mixed + "targets of the second half follow the reference of the first": [0, 0, 0, 3, 0, 0],
        mixed + "targets of the first half follow the reference of the second": [0, 3, 3, 3, 3, 3],
        mixed + "the targets of each half follow the reference of the other": [0, 3, 3, 3, 0, 0],
        mixed + "each half, with its reference, follows the reference of the other": [3, 3, 3, 0, 0, 0],
        mixed + "the batch is [uncond; cond], one half after the other, and not in turns": [0, 1, 0, 1, 0, 1],
        "the statistics are of the wrong image: the reference is the first row of each half, not the last": [
            2, 2, 2, 5, 5, 5],
    }  # fmt: skip
    found = {sentence: _led(q, k, v, leaders) for sentence, leaders in mistakes.items()}
    found |= _other_sharing(q, k, v)
    got = call(function, q, k, v, 2, like=q)
    compare(got, right, found, otherwise="style_aligned is not StyleAligned, row by row, in each half of the batch")
    got = call(function, q[:3], k[:3], v[:3], 1, like=q[:3])
    otherwise = "style_aligned is right for a doubled batch and wrong for a single one, copies = 1"
    compare(got, right[:3], {}, otherwise=otherwise)
    passed("style_aligned")


def _led(q: Tensor, k: Tensor, v: Tensor, leaders: Sequence[int], **settings: bool) -> Tensor:
    """Each row looks at itself and at its leader; a leader's own row comes out as if alone."""
    rows = enumerate(leaders)
    return torch.cat([_one(*(x[[i]] for x in (q, k, v)), *(x[[r]] for x in (q, k, v)), **settings) for i, r in rows])


def _one(q, k, v, q_r, k_r, v_r, *, queries=True, keys=True, values=False, swapped=False, late=False) -> Tensor:
    """One row beside its reference, with AdaIN on some of the three, and two faults."""
    q = over_tokens(q, q_r) if queries else q
    k = over_tokens(k, q_r if swapped else k_r) if keys else k
    v = over_tokens(v, v_r) if values else v
    both = torch.cat([k, k_r], -2)
    both = over_tokens(both, k_r) if late else both
    return _weighed(q @ both.mT / q.shape[-1] ** 0.5, torch.cat([v, v_r], -2))


def _other_sharing(q: Tensor, k: Tensor, v: Tensor) -> dict[str, Tensor]:
    """What comes out when other things are aligned, or others look at each other."""
    led = partial(_led, q, k, v, [0, 0, 0, 3, 3, 3])
    alone = _weighed(q @ k.mT / 2, v)
    return {
        "no row is aligned: each looks at itself alone": alone,
        "the reference is shared, but queries and keys are not aligned to it": led(queries=False, keys=False),
        "only the queries are aligned; the paper aligns queries and keys": led(keys=False),
        "only the keys are aligned; the paper aligns queries and keys": led(queries=False),
        "the values are aligned, too; the paper aligns queries and keys": led(values=True),
        "the target's keys get the moments of the reference's queries; keys belong to keys": led(swapped=True),
        "the keys are aligned after those of the reference have been put beside them; align the target's alone": led(
            keys=False, late=True
        ),
        "all pictures of a half look at each other, and there is no reference": torch.cat(
            [_everybody(*(x[half] for x in (q, k, v))) for half in (slice(3), slice(3, 6))]
        ),
        "all rows of the batch look at each other, and there is no reference": _everybody(q, k, v),
    }


def _everybody(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    keys, values = (x.transpose(0, 1).flatten(1, 2) for x in (k, v))  # h, B N, d
    return _weighed(q @ keys.mT / q.shape[-1] ** 0.5, values)


# ---------------------------------------------------------------------------------------- numbers of a set


def set_consistency(function: Callable) -> None:
    """Check ``set_consistency(features)``: the mean cosine over the pairs of a set.

    Args:
        function: takes a tensor ``(N, D)``, returns a number.

    Raises:
        Hint: names the mistake.

    Example:
        >>> set_consistency(lambda features: metrics.set_consistency(features.numpy()))
        set_consistency: no mistake found
    """
    features = _random(30, 4, 6) * torch.tensor([1.0, 3.0, 0.5, 2.0])[:, None] + 0.5
    right = metrics.set_consistency(features)
    unit = features / features.norm(dim=-1, keepdim=True)
    cosines, products = unit @ unit.T, features @ features.T
    other_pairs = ~torch.eye(4, dtype=torch.bool)
    columns = features / features.norm(dim=0)
    mistakes = {
        "the pairs of a picture with itself are among them, and their cosine is always 1": cosines.mean(),
        "the pairs of a picture with itself are left out of the sum, but counted in the number": right * 12 / 16,
        "each pair is summed once and counted twice: N (N - 1) / 2 pairs, or N (N - 1) if both orders count": right / 2,
        "each pair is summed twice and counted once": right * 2,
        "the features are not scaled to length 1, so these are products and not cosines": products[other_pairs].mean(),
        "the features are divided by the lengths of the columns; each row, a picture, gets length 1": (
            columns @ columns.T
        )[other_pairs].mean(),
        "only pairs with the first picture count; set consistency takes all pairs": cosines[0, 1:].mean(),
        "only neighbors are compared; set consistency takes all pairs": cosines.diagonal(1).mean(),
    }
    got = call(function, features, like=0.0)
    otherwise = "set_consistency is not the mean cosine over all pairs of two different pictures"
    compare(got, right, {said: float(value) for said, value in mistakes.items()}, otherwise=otherwise)
    passed("set_consistency")


def leakage(function: Callable) -> None:
    """Check ``leakage(probabilities, objects)``: how much of the reference's object is seen in the targets.

    Args:
        function: takes a tensor ``(N, C)`` and ``N`` whole numbers, the reference first; returns a number.

    Raises:
        Hint: names the mistake.

    Example:
        >>> leakage(metrics.leakage)
        leakage: no mistake found
    """
    objects = [2, 0, 4, 1]
    probabilities = (1.5 * _random(31, 4, 5)).softmax(-1)
    right = metrics.leakage(probabilities, objects)
    targets = probabilities[1:]
    leaked, own = targets[:, 2], targets[range(3), objects[1:]]
    wrong_row, after, before = probabilities[:3], targets[range(3), [4, 1, 0]], targets[range(3), objects[:3]]
    mistakes = {
        "the reference is counted as a target of itself": (3 * right + 0.5) / 4,
        "leak and own object are swapped: this is the share of the target's own object": 1 - right,
        "this is the probability of the reference's object alone, not its share beside the target's own": leaked.mean(),
        "the leak is divided by the target's own probability; the share divides by the sum of both": (
            leaked / own
        ).mean(),
        "this is one ratio of sums; each target has a ratio of its own, and leakage is their mean": leaked.sum()
        / (leaked + own).sum(),
        "objects are paired wrongly: the reference's is objects[0], not number 0": (
            targets[:, 0] / (targets[:, 0] + own)
        ).mean(),
        "objects are paired wrongly: each target is compared with the next one's object": (
            leaked / (leaked + after)
        ).mean(),
        "objects are paired wrongly: each target is compared with the object of the picture before it": (
            leaked / (leaked + before)
        ).mean(),
        "objects are paired wrongly: rows and objects are one place apart": (
            wrong_row[:, 2] / (wrong_row[:, 2] + wrong_row[range(3), objects[1:]])
        ).mean(),
        "the target's own object is not its most probable one: read it from objects": (
            leaked / (leaked + targets.amax(-1))
        ).mean(),
    }
    got = call(function, probabilities, objects, like=0.0)
    otherwise = "leakage is not the mean over the targets of p_r / (p_r + p_t)"
    compare(got, right, {said: float(value) for said, value in mistakes.items()}, otherwise=otherwise)
    passed("leakage")


def paired_interval(function: Callable) -> None:
    """Check ``paired_interval(a, b)``: the mean difference over the sets that both have, and its 95 % interval.

    Args:
        function: takes two dicts, name of the set to number; returns mean, low and high.

    Raises:
        Hint: names the mistake.
    """
    a = {"7": 40.0, "31": 12.0, "5": 55.0, "90": 71.0, "14": 20.0}
    b = {"14": 35.0, "90": 99.0, "5": 61.0, "7": 49.0, "62": 10.0}
    ours, theirs = (np.array([each[name] for name in ("7", "5", "90", "14")]) for each in (a, b))
    found = ours - theirs
    unpaired = np.sqrt(ours.var(ddof=1) / 4 + theirs.var(ddof=1) / 4)
    five, missing = stats.t.ppf(0.975, 4), np.array([-9, 12, -6, -28, -15, -10.0])
    by_place = np.subtract([*a.values()], [*b.values()])
    t = stats.t.ppf(0.975, 3)
    mistakes = {
        "pairs are matched by their place in the dicts; match them by name": _around(by_place, five / 5**0.5),
        "pairs are matched by their place among the sets that both have; match them by name": _around(
            ours - theirs[::-1], t / 2),
        "a set that only one of the two has counts as 0 in the other; leave it out": _around(
            missing, stats.t.ppf(0.975, 5) / 6**0.5),
        "the difference is b - a; it should be a - b": _around(-found, t / 2),
        "the deviation is the biased one: with n - 1 degrees of freedom it divides by n - 1": _around(
            found, t / 2, ddof=0),
        "the interval is that of a single difference, not of their mean: divide the deviation by the root of n":
            _around(found, t),
        "the deviation is divided by n, not by its root": _around(found, t / 4),
        "1.96 is for many pairs; for few, Student's factor is larger": _around(found, 1.96 / 2),
        "Student's factor has n - 1 degrees of freedom, not n": _around(found, stats.t.ppf(0.975, 4) / 2),
        "Student's factor is that of 90 %: 2.5 % lie on each side": _around(found, stats.t.ppf(0.95, 3) / 2),
        "this is one standard error to each side, about 68 %": _around(found, 0.5),
        "the interval is that of two separate groups; take the differences first, then their deviation": (
            float(found.mean()), float(found.mean() - t * unpaired), float(found.mean() + t * unpaired)),
    }  # fmt: skip
    got, right = call(function, a, b, like=(0.0, 0.0, 0.0)), _around(found, t / 2)
    compare(got, right, mistakes, otherwise="paired_interval does not return mean, low and high of the differences")
    passed("paired_interval")


def _around(differences: np.ndarray, factor: float, ddof: int = 1) -> tuple[float, float, float]:
    mean, half = float(differences.mean()), float(factor * differences.std(ddof=ddof))
    return mean, mean - half, mean + half


# ---------------------------------------------------------------------------------------- the experiment

RANGES = {"hue": (0, 180), "consistency": (-1, 1), "text": (-1, 1), "leak": (0, 1)}
WAYS = ("never", "first half", "second half", "always")


def results(found: dict, sets: Sequence[int]) -> None:
    """Check the form of the experiment's numbers, ``found[measure][way][name of the set]``; not their values.

    Args:
        found: the student's results.
        sets: the numbers of the sets that were drawn.

    Raises:
        Hint: a key is missing or too much, a number is not finite or out of range, or all ways have the same numbers.

    Example:
        >>> numbers = {way: {"3": 0.1 * i, "8": 0.2} for i, way in enumerate(WAYS)}
        >>> results({measure: numbers for measure in RANGES}, [3, 8])
        results: no mistake found
    """

    def results():
        return found

    number = dict.fromkeys(map(str, sets), 0.0)
    found = call(results, like={measure: {way: number for way in WAYS} for measure in RANGES})
    for measure, (low, high) in RANGES.items():
        values = [list(found[measure][way].values()) for way in WAYS]
        if not all(low <= value <= high for row in values for value in row):
            raise Hint(f"results: {measure} lies between {low} and {high}; one of yours does not")
    if _all_alike(found["hue"]):
        raise Hint(
            "results: all ways have the same hue gaps, so nothing was shared: is sharing on in the steps of a way?"
        )
    passed("results")


def _all_alike(by_way: dict[str, dict[str, float]]) -> bool:
    first, *others = by_way.values()
    return all(close(dict(first), dict(other), atol=1e-6) for other in others)
