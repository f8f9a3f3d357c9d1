"""The visible checks of the assignment on StyleAligned: right functions pass, each usual mistake is named."""

import math
from functools import partial

import pytest
import torch
from scipy import stats
from torch.nn.functional import scaled_dot_product_attention

from stylemoments import check, metrics
from stylemoments.check import style_aligned as room


def moments(x, dim, correction=1):
    return x.mean(dim, keepdim=True), x.var(dim, keepdim=True, correction=correction)


def restyled(x, y, dim=-2, correction=1, eps=1e-5):
    (mx, vx), (my, vy) = (moments(z, dim, correction) for z in (x, y))
    return (x - mx) / (vx + eps).sqrt() * (vy + eps).sqrt() + my


def without_mean(x, y):
    (mx, vx), (_, vy) = moments(x, -2), moments(y, -2)
    return (x - mx) * ((vy + 1e-5) / (vx + 1e-5)).sqrt()


def eps_outside(x, y):
    (mx, vx), (my, vy) = moments(x, -2), moments(y, -2)
    return (x - mx) / (vx.sqrt() + 1e-5) * (vy.sqrt() + 1e-5) + my


def eps_on_x(x, y):
    (mx, vx), (my, vy) = moments(x, -2), moments(y, -2)
    return (x - mx) / (vx + 1e-5).sqrt() * vy.sqrt() + my


def by_variance(x, y):
    (mx, vx), (my, vy) = moments(x, -2), moments(y, -2)
    return (x - mx) / vx * vy + my


def in_place(x, y):
    right = restyled(x, y)
    x -= x.mean(-2, keepdim=True)
    return right


ALIGN = {
    "over the features of each token": partial(restyled, dim=-1),
    "for all features of a head": partial(restyled, dim=(-2, -1)),
    "mixes the heads": partial(restyled, dim=(1, 2)),
    "batch and token axes are swapped": partial(restyled, dim=0),
    "all pictures together": partial(restyled, dim=(0, 2)),
    "wrong image: the reference gets those of x": lambda x, y: restyled(y, x),
    "wrong image: x gets those of its own first": lambda x, y: restyled(x, x[:1]),
    "wrong image: all targets get those of the first reference": lambda x, y: restyled(x, y[:1]),
    "does not add the mean": without_mean,
    "keeps the mean of x": lambda x, y: without_mean(x, y) + x.mean(-2, keepdim=True),
    "keeps the deviation of x": lambda x, y: x - x.mean(-2, keepdim=True) + y.mean(-2, keepdim=True),
    "multiplies and divides by variances": by_variance,
    "as it was": lambda x, y: x,
    "biased variance for the unbiased": partial(restyled, correction=0),
    "leaves epsilon away": partial(restyled, eps=0.0),
    "outside the root": eps_outside,
    "variance of x alone": eps_on_x,
    "in place": in_place,
    "must return a tensor": lambda x, y: None,
    "must return shape": lambda x, y: restyled(x, y)[0],
    "NaN or infinity": lambda x, y: restyled(x, y) / 0,
    "must return torch.float32": lambda x, y: restyled(x, y).double(),
    "not give x the moments": lambda x, y: restyled(x, y) + 1,
}


@pytest.mark.parametrize("said", ALIGN)
def test_align_names_the_mistake(said):
    with pytest.raises(check.Hint, match=said):
        check.style_aligned.align(ALIGN[said])


def test_align_passes(capsys):
    check.style_aligned.align(restyled)
    assert capsys.readouterr().out == "align: no mistake found\n"


# ---------------------------------------------------------------------------------------- attend


def together(k, k_r):
    return torch.cat([k, k_r.expand(len(k), -1, -1, -1)], -2)


def shifted(q, keys, shift, own, scale=None):
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    logits = q @ keys.mT * scale
    return torch.cat([logits[..., :own], logits[..., own:] + shift], -1)


def attended(q, k, v, k_r, v_r, shift, scale=None):
    return shifted(q, together(k, k_r), shift, k.shape[-2], scale).softmax(-1) @ together(v, v_r)


def masked(q, k, v, k_r, v_r, shift):
    """Right but for a shift of minus infinity."""
    keys = together(k, k_r)
    mask = torch.arange(keys.shape[-2]) >= k.shape[-2]
    return (q @ keys.mT / q.shape[-1] ** 0.5 + shift * mask).softmax(-1) @ together(v, v_r)


def own_values(q, k, v, k_r, v_r, shift):
    return shifted(q, together(k, k_r), shift, k.shape[-2]).softmax(-1) @ torch.cat([v, v], -2)


def own_keys(q, k, v, k_r, v_r, shift):
    return shifted(q, torch.cat([k, k], -2), shift, k.shape[-2]).softmax(-1) @ together(v, v_r)


def values_not_joined(q, k, v, k_r, v_r, shift):
    return shifted(q, together(k, k_r), shift, k.shape[-2]).softmax(-1) @ v


def other_order(q, k, v, k_r, v_r, shift):
    values = torch.cat([v_r.expand(len(v), -1, -1, -1), v], -2)
    return shifted(q, together(k, k_r), shift, k.shape[-2]).softmax(-1) @ values


def on_own(q, k, v, k_r, v_r, shift):
    logits, own = q @ together(k, k_r).mT / q.shape[-1] ** 0.5, k.shape[-2]
    return torch.cat([logits[..., :own] + shift, logits[..., own:]], -1).softmax(-1) @ together(v, v_r)


def after_softmax(q, k, v, k_r, v_r, shift):
    shares = attend_shares(q, k, k_r)
    shares[..., k.shape[-2] :] += shift
    return shares @ together(v, v_r)


def attend_shares(q, k, k_r):
    return (q @ together(k, k_r).mT / q.shape[-1] ** 0.5).softmax(-1)


def multiplied(q, k, v, k_r, v_r, shift):
    logits, own = q @ together(k, k_r).mT / q.shape[-1] ** 0.5, k.shape[-2]
    logits[..., own:] *= shift if shift else 1
    return logits.softmax(-1) @ together(v, v_r)


def by_queries(q, k, v, k_r, v_r, shift):
    return shifted(q, together(k, k_r), shift, k.shape[-2]).softmax(-2) @ together(v, v_r)


def averaged(q, k, v, k_r, v_r, shift):
    theirs = (x.expand(len(q), -1, -1, -1) for x in (k_r, v_r))
    return (scaled_dot_product_attention(q, k, v) + scaled_dot_product_attention(q, *theirs)) / 2


ATTEND = {
    "not heard at all": lambda q, k, v, k_r, v_r, shift: scaled_dot_product_attention(q, k, v),
    "looks at the reference alone": lambda q, k, v, k_r, v_r, shift: scaled_dot_product_attention(
        q, k_r.expand_as(k), v_r.expand_as(v)
    ),
    "keys are shared but not values: beside": own_values,
    "perhaps keys are shared but not values": values_not_joined,
    "values are shared but not keys": own_keys,
    "in different orders": other_order,
    "does not divide": partial(attended, scale=1.0),
    "divides by d, not": partial(attended, scale=0.25),
    "number of tokens": partial(attended, scale=5**-0.5),
    "over the queries": by_queries,
    "averaged": averaged,
    "takes no notice of the shift": lambda q, k, v, k_r, v_r, shift: attended(q, k, v, k_r, v_r, 0.0),
    "turns the reference down: it is added to the target's own logits": on_own,
    "multiplies the logits": multiplied,
    "after the softmax": after_softmax,
    "or subtracted": lambda q, k, v, k_r, v_r, shift: attended(q, k, v, k_r, v_r, -shift),
    "added to the reference's keys": lambda q, k, v, k_r, v_r, shift: attended(q, k, v, k_r + shift, v_r, 0.0),
    "division by the root": lambda q, k, v, k_r, v_r, shift: attended(q, k, v, k_r, v_r, shift / 2),
    "zero times infinity": masked,
    "must not be heard at all": lambda q, k, v, k_r, v_r, shift: attended(q, k, v, k_r, v_r, max(shift, -0.5)),
    "not written yet": lambda *args: (_ for _ in ()).throw(NotImplementedError),
    "stopped with ZeroDivisionError": lambda *args: 1 / 0,
}


@pytest.mark.parametrize("said", ATTEND)
def test_attend_names_the_mistake(said):
    with pytest.raises(check.Hint, match=said):
        check.style_aligned.attend(ATTEND[said])


def test_attend_passes(capsys):
    check.style_aligned.attend(attended)
    assert capsys.readouterr().out == "attend: no mistake found\n"


# ---------------------------------------------------------------------------------------- style_aligned


def of_set(q, k, v, lead_q=None, lead_k=None, lead_v=None, *, queries=restyled, keys=restyled, values=None):
    """One set that follows its first row, or another reference."""
    lead_q, lead_k, lead_v = (
        own[:1] if lead is None else lead for own, lead in ((q, lead_q), (k, lead_k), (v, lead_v))
    )
    q = queries(q, lead_q) if queries else q
    k = keys(k, lead_k) if keys else k
    v = values(v, lead_v) if values else v
    return attended(q, k, v, lead_k, lead_v, 0.0)


def halves(q, k, v, copies, **settings):
    parts = zip(q.chunk(copies), k.chunk(copies), v.chunk(copies), strict=True)
    return torch.cat([of_set(*part, **settings) for part in parts])


def follow_row_0(q, k, v, copies):
    return of_set(q, k, v)


def row_0_but_second_reference_alone(q, k, v, copies):
    found, n = of_set(q, k, v), len(q) // copies
    return torch.cat([found[:n], of_set(*(x[n : n + 1] for x in (q, k, v))), found[n + 1 :]])


def crossed(q, k, v, copies):
    leads = [x.chunk(copies)[::-1] for x in (q, k, v)]
    parts = zip(*(x.chunk(copies) for x in (q, k, v)), *([y[:1] for y in x] for x in leads), strict=True)
    return torch.cat([of_set(*part) for part in parts])


def in_turns(q, k, v, copies):
    found = torch.empty_like(q)
    for i in range(copies):
        found[i::copies] = of_set(*(x[i::copies] for x in (q, k, v)))
    return found


def last_leads(q, k, v, copies):
    return halves(*(x.flip(0) for x in (q, k, v)), copies).flip(0)


def late(q, k, v, copies):
    found = []
    for part_q, part_k, part_v in zip(q.chunk(copies), k.chunk(copies), v.chunk(copies), strict=True):
        keys = restyled(together(part_k, part_k[:1]), part_k[:1])
        found.append(scaled_dot_product_attention(restyled(part_q, part_q[:1]), keys, together(part_v, part_v[:1])))
    return torch.cat(found)


def keys_by_queries(q, k, v, copies):
    parts = zip(q.chunk(copies), k.chunk(copies), v.chunk(copies), strict=True)
    return torch.cat([of_set(a, b, c, keys=lambda x, _, a=a: restyled(x, a[:1])) for a, b, c in parts])


def everybody(q, k, v, copies):
    found = []
    for part_q, part_k, part_v in zip(q.chunk(copies), k.chunk(copies), v.chunk(copies), strict=True):
        keys, values = (x.transpose(0, 1).flatten(1, 2).expand(len(part_q), -1, -1, -1) for x in (part_k, part_v))
        found.append(scaled_dot_product_attention(part_q, keys, values))
    return torch.cat(found)


STYLE_ALIGNED = {
    "halves are mixed: all rows follow the first row": follow_row_0,
    "halves are mixed: targets of the second half": row_0_but_second_reference_alone,
    "halves are mixed: each half, with its reference, follows": crossed,
    "not in turns": in_turns,
    "not the last": last_leads,
    "no row is aligned": lambda q, k, v, copies: scaled_dot_product_attention(q, k, v),
    "queries and keys are not aligned": partial(halves, queries=None, keys=None),
    "only the queries": partial(halves, keys=None),
    "only the keys": partial(halves, queries=None),
    "the values are aligned, too": partial(halves, values=restyled),
    "moments of the reference's queries": keys_by_queries,
    "after those of the reference have been put beside": late,
    "all pictures of a half look at each other": everybody,
    "all rows of the batch look": lambda q, k, v, copies: everybody(q, k, v, 1),
    "copies = 1": lambda q, k, v, copies: halves(q, k, v, 2) if len(q) % 2 == 0 else q,
}


@pytest.mark.parametrize("said", STYLE_ALIGNED)
def test_style_aligned_names_the_mistake(said):
    with pytest.raises(check.Hint, match=said):
        check.style_aligned.style_aligned(STYLE_ALIGNED[said])


def test_style_aligned_passes(capsys):
    check.style_aligned.style_aligned(halves)
    assert capsys.readouterr().out == "style_aligned: no mistake found\n"


# ---------------------------------------------------------------------------------------- the numbers


def cosines(features):
    unit = features / features.norm(dim=-1, keepdim=True)
    return unit @ unit.T


def off_diagonal(table):
    return table[~torch.eye(len(table), dtype=torch.bool)]


SET_CONSISTENCY = {
    "with itself are among them": lambda f: cosines(f).mean().item(),
    "left out of the sum, but counted": lambda f: off_diagonal(cosines(f)).sum().item() / len(f) ** 2,
    "summed once and counted twice": lambda f: cosines(f).triu(1).sum().item() / (len(f) * (len(f) - 1)),
    "summed twice and counted once": lambda f: 2 * off_diagonal(cosines(f)).mean().item(),
    "not scaled to length 1": lambda f: off_diagonal(f @ f.T).mean().item(),
    "lengths of the columns": lambda f: off_diagonal((f / f.norm(dim=0)) @ (f / f.norm(dim=0)).T).mean().item(),
    "only pairs with the first": lambda f: cosines(f)[0, 1:].mean().item(),
    "only neighbors": lambda f: cosines(f).diagonal(1).mean().item(),
    "plain number": lambda f: off_diagonal(cosines(f)).mean(),
    "not the mean cosine": lambda f: 0.123,
}


@pytest.mark.parametrize("said", SET_CONSISTENCY)
def test_set_consistency_names_the_mistake(said):
    with pytest.raises(check.Hint, match=said):
        check.style_aligned.set_consistency(SET_CONSISTENCY[said])


def leak(p, objects, *, rows=None, reference=None, own=None):
    """The leakage of some rows, with the reference's and the targets' own columns."""
    rows = range(1, len(p)) if rows is None else rows
    reference = objects[0] if reference is None else reference
    own = objects[1:] if own is None else own
    pairs = [(p[i, reference], p[i, j]) for i, j in zip(rows, own, strict=True)]
    return float(sum(r / (r + t) for r, t in pairs) / len(pairs))


def one_ratio(p, objects):
    targets = p[1:]
    leaked, own = targets[:, objects[0]].sum(), targets[range(3), objects[1:]].sum()
    return float(leaked / (leaked + own))


LEAKAGE = {
    "as a target of itself": lambda p, o: leak(p, o, rows=range(4), own=o),
    "leak and own object are swapped": lambda p, o: 1 - leak(p, o),
    "alone, not its share": lambda p, o: float(p[1:, o[0]].mean()),
    "divides by the sum of both": lambda p, o: float((p[1:, o[0]] / p[range(1, 4), o[1:]]).mean()),
    "one ratio of sums": one_ratio,
    "objects are paired wrongly: the reference's": lambda p, o: leak(p, o, reference=0),
    "objects are paired wrongly: each target": lambda p, o: leak(p, o, own=[*o[2:], o[1]]),
    "the object of the picture before it": lambda p, o: leak(p, o, own=o[:3]),
    "objects are paired wrongly: rows": lambda p, o: leak(p, o, rows=range(3)),
    "not its most probable one": lambda p, o: float((p[1:, o[0]] / (p[1:, o[0]] + p[1:].amax(-1))).mean()),
    "not the mean over the targets": lambda p, o: 0.5,
}


@pytest.mark.parametrize("said", LEAKAGE)
def test_leakage_names_the_mistake(said):
    with pytest.raises(check.Hint, match=said):
        check.style_aligned.leakage(LEAKAGE[said])


def interval(differences, level=0.95, ddof=1, root=True, degrees=None, factor=None):
    d = torch.tensor(differences, dtype=torch.float64)
    n = len(d)
    degrees = n - 1 if degrees is None else degrees
    factor = stats.t.ppf((1 + level) / 2, degrees) if factor is None else factor
    half = factor * d.std(correction=ddof).item() / (math.sqrt(n) if root else 1)
    return d.mean().item(), d.mean().item() - half, d.mean().item() + half


def paired(a, b):
    return [a[name] - b[name] for name in a if name in b]


def separate(a, b):
    both = [name for name in a if name in b]
    one, two = (torch.tensor([x[name] for name in both], dtype=torch.float64) for x in (a, b))
    half = stats.t.ppf(0.975, 3) * math.sqrt(one.var() / 4 + two.var() / 4)
    mean = (one.mean() - two.mean()).item()
    return mean, mean - half, mean + half


PAIRED = {
    "by their place in the dicts": lambda a, b: interval([x - y for x, y in zip(a.values(), b.values(), strict=True)]),
    "by their place among the sets": lambda a, b: interval(
        [a[x] - b[y] for x, y in zip([n for n in a if n in b], [n for n in b if n in a], strict=True)]
    ),
    "counts as 0": lambda a, b: interval([a.get(name, 0) - b.get(name, 0) for name in {**a, **b}]),
    "should be a - b": lambda a, b: interval(paired(b, a)),
    "the biased one": lambda a, b: interval(paired(a, b), ddof=0),
    "of a single difference": lambda a, b: interval(paired(a, b), root=False),
    "1.96": lambda a, b: interval(paired(a, b), factor=1.96),
    "not n": lambda a, b: interval(paired(a, b), degrees=4),
    "that of 90": lambda a, b: interval(paired(a, b), level=0.9),
    "one standard error": lambda a, b: interval(paired(a, b), factor=1.0),
    "two separate groups": separate,
    "divided by n, not": lambda a, b: interval(paired(a, b), factor=stats.t.ppf(0.975, 3) / 2),
    "must return a tuple of 3": lambda a, b: interval(paired(a, b))[:2],
    "does not return mean, low and high": lambda a, b: (0.0, 0.0, 0.0),
}


@pytest.mark.parametrize("said", PAIRED)
def test_paired_interval_names_the_mistake(said):
    with pytest.raises(check.Hint, match=said):
        check.style_aligned.paired_interval(PAIRED[said])


def test_right_numbers_pass(capsys):
    check.style_aligned.set_consistency(lambda features: metrics.set_consistency(features.numpy()))
    check.style_aligned.leakage(leak)
    check.style_aligned.paired_interval(lambda a, b: interval(paired(a, b)))
    assert capsys.readouterr().out.count("no mistake found") == 3


# ---------------------------------------------------------------------------------------- results


def numbers(**changes):
    """Results of two sets, and what is wrong with them."""
    found = {m: {way: {"3": 0.1 * i, "41": 0.2} for i, way in enumerate(room.WAYS)} for m in room.RANGES}
    return found | changes


WRONG = {
    "the keys": numbers(extra={}),
    "hue lies between": numbers(hue={way: {"3": 200.0, "41": 1.0} for way in room.WAYS}),
    "plain number": numbers(text={way: {"3": torch.tensor(0.1), "41": 0.2} for way in room.WAYS}),
    "all ways have the same": numbers(hue={way: {"3": 20.0, "41": 1.0} for way in room.WAYS}),
    "must return a dict": [],
}


@pytest.mark.parametrize("said", WRONG)
def test_results_name_what_is_wrong(said):
    with pytest.raises(check.Hint, match=said):
        check.style_aligned.results(WRONG[said], [3, 41])


def test_results_of_other_sets_are_refused():
    check.style_aligned.results(numbers(), [3, 41])
    with pytest.raises(check.Hint, match="keys"):
        check.style_aligned.results(numbers(), [3, 42])
