"""The visible checks of the assignment on DreamBooth: right functions pass, each usual mistake is named."""

from functools import partial

import pytest
import torch

from stylemoments import check, diffusion, dreambooth, metrics
from stylemoments.check import dreambooth as room

# ---------------------------------------------------------------------------------------- training_pair


def wide(alpha_bar):
    return alpha_bar[:, None, None, None]


def pair(clean, noise, alpha_bar, kind):
    """By the library."""
    level = wide(alpha_bar)
    noisy = level.sqrt() * clean + (1 - level).sqrt() * noise
    return noisy, dreambooth.training_target(clean, noise, level, kind)


def spoiled(signal, spread):
    """The right targets beside other noisy latents."""

    def function(clean, noise, alpha_bar, kind):
        noisy = signal(alpha_bar) * clean + spread(alpha_bar) * noise
        return noisy, pair(clean, noise, alpha_bar, kind)[1]

    return function


def aimed(v):
    """The right noisy latents beside another v."""

    def function(clean, noise, alpha_bar, kind):
        noisy, target = pair(clean, noise, alpha_bar, kind)
        level = wide(alpha_bar)
        return noisy, v(clean, noise, level.sqrt(), (1 - level).sqrt()) if kind == "v_prediction" else target

    return function


def root(alpha_bar):
    return wide(alpha_bar).sqrt()


def rest(alpha_bar):
    return (1 - wide(alpha_bar)).sqrt()


TRAINING_PAIR = {
    "along the columns": spoiled(lambda a: a.sqrt(), lambda a: (1 - a).sqrt()),
    "the factors are roots": spoiled(wide, lambda a: 1 - wide(a)),
    "picture and noise are swapped": spoiled(rest, root),
    "not 1 less the root": spoiled(root, lambda a: 1 - root(a)),
    "of the first one": spoiled(lambda a: root(a)[:1], lambda a: rest(a)[:1]),
    "keeps its full size": spoiled(lambda a: 1, rest),
    "added with factor 1": spoiled(root, lambda a: 1),
    "nothing is spoiled": spoiled(lambda a: 1, lambda a: 0),
    "wrong order": lambda c, n, a, kind: pair(c, n, a, "v_prediction")[::-1],
    "not the mixture": spoiled(root, lambda a: 2 * rest(a)),
    "'epsilon' is yours for 'v_prediction'": lambda c, n, a, kind: pair(c, n, a, "v_prediction"),
    "'v_prediction' is yours for 'epsilon'": lambda c, n, a, kind: pair(c, n, a, "epsilon"),
    "'epsilon' is yours for 'sample'": lambda c, n, a, kind: pair(c, n, a, "sample"),
    "sign of v": aimed(lambda clean, noise, a, b: b * clean - a * noise),
    "adds its two parts": aimed(lambda clean, noise, a, b: a * noise + b * clean),
    "factors of v are swapped": aimed(lambda clean, noise, a, b: b * noise - a * clean),
    "factors of v are roots": aimed(lambda clean, noise, a, b: a**2 * noise - b**2 * clean),
    "which the network sees already": aimed(lambda clean, noise, a, b: a * clean + b * noise),
    "must return a tuple of 2": lambda c, n, a, kind: pair(c, n, a, kind)[0],
    "stopped with": lambda c, n, a, kind: (a[:2] * c, n),
}


@pytest.mark.parametrize("said", TRAINING_PAIR)
def test_training_pair_names_the_mistake(said):
    with pytest.raises(check.Hint, match=said):
        check.dreambooth.training_pair(TRAINING_PAIR[said])


# ---------------------------------------------------------------------------------------- denoise_step


def guided(output, weight):
    uncond, cond = output.chunk(2)
    return uncond + weight * (cond - uncond)


def step(output, noisy, now, after, weight, guide=guided, kind="v_prediction"):
    """By the library."""
    clean, noise = diffusion.to_clean_and_noise(guide(output, weight), noisy, now, kind)
    return diffusion.ddim_step(clean, noise, after)


def halves(combine):
    return partial(step, guide=lambda output, weight: combine(*output.chunk(2), weight))


def parts(combine):
    """Guided and taken apart rightly, then something else."""

    def function(output, noisy, now, after, weight):
        v = guided(output, weight)
        return combine(noisy, v, *diffusion.to_clean_and_noise(v, noisy, now, "v_prediction"), now, after)

    return function


def no_roots(x, v, clean, noise, a, z):
    return z * (a * x - (1 - a) * v) + (1 - z) * ((1 - a) * x + a * v)


DENOISE_STEP = {
    "the first half of the batch is without words": halves(lambda u, c, g: c + g * (u - c)),
    "not in turns": partial(step, guide=lambda output, g: output[::2] + g * (output[1::2] - output[::2])),
    "this is the answer with words": halves(lambda u, c, g: c),
    "this is the answer without words": halves(lambda u, c, g: u),
    "one weight too far": halves(lambda u, c, g: c + g * (c - u)),
    "does not add its difference": halves(lambda u, c, g: g * (c - u)),
    "the difference of the two answers": halves(lambda u, c, g: u + g * c),
    "take it for the noise": partial(step, kind="epsilon"),
    "take it for the clean latents": partial(step, kind="sample"),
    "clean latents are a difference": parts(
        lambda x, v, clean, noise, a, z: z**0.5 * (a**0.5 * x + (1 - a) ** 0.5 * v) + (1 - z) ** 0.5 * noise
    ),
    "the noise is a sum": parts(
        lambda x, v, clean, noise, a, z: z**0.5 * clean + (1 - z) ** 0.5 * ((1 - a) ** 0.5 * x - a**0.5 * v)
    ),
    "mixed by the level of now": lambda output, noisy, now, after, weight: step(output, noisy, now, now, weight),
    "now and after are swapped": lambda output, noisy, now, after, weight: step(output, noisy, after, now, weight),
    "factors of the mixture are roots": parts(lambda x, v, clean, noise, a, z: z * clean + (1 - z) * noise),
    "all four factors are roots": parts(no_roots),
    "each other's factor": parts(lambda x, v, clean, noise, a, z: z**0.5 * noise + (1 - z) ** 0.5 * clean),
    "not the next, less noisy": parts(lambda x, v, clean, noise, a, z: clean),
    "does not lead to": parts(lambda x, v, clean, noise, a, z: clean + noise),
    "must return shape": lambda output, *args: output,
}


@pytest.mark.parametrize("said", DENOISE_STEP)
def test_denoise_step_names_the_mistake(said):
    with pytest.raises(check.Hint, match=said):
        check.dreambooth.denoise_step(DENOISE_STEP[said])


# ---------------------------------------------------------------------------------------- training_batch


def batch(subject, of_class, words, which=None, names=None):
    kinds = torch.tensor([0] * len(subject) + [1] * len(of_class))
    which = kinds if which is None else which(kinds)
    return torch.cat([subject, of_class]), words[which], kinds if names is None else names(kinds)


def class_first(subject, of_class, words):
    clean, captions, which = batch(subject, of_class, words)
    return torch.cat([of_class, subject]), captions, which


def in_turns(kinds):
    return torch.arange(len(kinds)) % 2


def half(kinds):
    return (torch.arange(len(kinds)) >= len(kinds) // 2).long()


TRAINING_BATCH = {
    "of_class comes before": class_first,
    "^captions are paired wrongly: they take turns": partial(batch, which=in_turns),
    "^captions are paired wrongly: the subject's pictures have": partial(batch, which=lambda kinds: 1 - kinds),
    "^captions are paired wrongly: all have the caption of the subject": partial(batch, which=lambda kinds: 0 * kinds),
    "^captions are paired wrongly: all have the caption of the class": partial(batch, which=torch.ones_like),
    "^captions are paired wrongly: you count as many": partial(batch, which=half),
    "^captions are paired wrongly: not every": partial(batch, which=lambda kinds: torch.tensor([1, 0, 0, 0, 1, 1])),
    "the numbers of the captions are paired wrongly: they take turns": partial(batch, names=in_turns),
    "the numbers of the captions are paired wrongly: you count as many": partial(batch, names=half),
    "must return torch.int64": partial(batch, names=lambda kinds: kinds.float()),
    "must return shape": partial(batch, names=lambda kinds: kinds[:, None]),
    "the pictures are not those given": lambda s, c, words: (0 * torch.cat([s, c]), *batch(s, c, words)[1:]),
}


@pytest.mark.parametrize("said", TRAINING_BATCH)
def test_training_batch_names_the_mistake(said):
    with pytest.raises(check.Hint, match=said):
        check.dreambooth.training_batch(TRAINING_BATCH[said])


# ---------------------------------------------------------------------------------------- dreambooth_loss


def errors_of(output, target):
    return (output - target).square().mean((1, 2, 3))


def loss(output, target, which, weight):
    """By the library."""
    return dreambooth.dreambooth_loss(errors_of(output, target), which, weight)[0]


def of_parts(combine, errors=errors_of):
    def function(output, target, which, weight):
        e = errors(output, target)
        return combine(e[which == 0].mean(), e[which == 1].mean(), weight)

    return function


def of_all(combine):
    return lambda output, target, which, weight: combine(
        errors_of(output, target), torch.where(which == 1, weight, 1.0)
    )


def by_place(first_is_subject):
    def function(output, target, which, weight):
        e = errors_of(output, target)
        own, other = (e[:3], e[3:]) if first_is_subject else (e[3:], e[:3])
        return own.mean() + weight * other.mean()

    return function


def summed(output, target, which, weight):
    squares = (output - target).square()
    return squares[which == 0].sum() + weight * squares[which == 1].sum()


DREAMBOOTH_LOSS = {
    "prior weight is on the wrong half": of_parts(lambda own, prior, w: w * own + prior),
    "on both parts": of_parts(lambda own, prior, w: w * (own + prior)),
    "is not used": of_parts(lambda own, prior, w: own + prior),
    "part of the class is missing": of_parts(lambda own, prior, w: own),
    "part of the subject is missing": of_parts(lambda own, prior, w: w * prior),
    "one mean over all pictures; each": of_all(lambda e, factors: (factors * e).mean()),
    "one weighted mean": of_all(lambda e, factors: (factors * e).sum() / factors.sum()),
    "unweighted": of_all(lambda e, factors: e.mean()),
    "parts are mixed": of_parts(lambda own, prior, w: (1 - w) * own + w * prior),
    "first half of the batch": by_place(True),
    "last half of the batch": by_place(False),
    "the errors are summed": summed,
    "errors of a picture are summed": of_parts(
        lambda own, prior, w: own + w * prior, lambda output, target: (output - target).square().sum((1, 2, 3))
    ),
    "absolute values": of_parts(
        lambda own, prior, w: own + w * prior, lambda output, target: (output - target).abs().mean((1, 2, 3))
    ),
    "the mean of nothing": of_parts(lambda own, prior, w: own + w * prior),
    "must return a tensor": lambda *args: loss(*args).item(),
    "must return shape": lambda *args: loss(*args)[None],
    "not the subject's mean error": lambda *args: loss(*args) + 1,
    "not the subject's part alone": lambda output, target, which, w: (
        loss(output, target, which, w) * (1 if which.any() else 2)
    ),
}


@pytest.mark.parametrize("said", DREAMBOOTH_LOSS)
def test_dreambooth_loss_names_the_mistake(said):
    with pytest.raises(check.Hint, match=said):
        check.dreambooth.dreambooth_loss(DREAMBOOTH_LOSS[said])


# ---------------------------------------------------------------------------------------- lora


def adapted(x, weight, a, b, alpha, strength, scale=None):
    scale = strength * alpha / len(a) if scale is None else scale(alpha, strength, len(a), weight)
    return x @ weight.T + scale * x @ (b @ a).T


def scaled(scale):
    return partial(adapted, scale=scale)


LORA = {
    "alpha / rank is missing": scaled(lambda alpha, s, r, w: s),
    "not divided by the rank": scaled(lambda alpha, s, r, w: s * alpha),
    "alpha is missing": scaled(lambda alpha, s, r, w: s / r),
    "root of the rank": scaled(lambda alpha, s, r, w: s * alpha / r**0.5),
    "the strength is not used": scaled(lambda alpha, s, r, w: alpha / r),
    "divided by a side of the weight; the rank is the short side of A and B$": scaled(
        lambda alpha, s, r, w: s * alpha / w.shape[1]
    ),
    "as many rows as that of A": scaled(lambda alpha, s, r, w: s * alpha / w.shape[0]),
    "rank and alpha are swapped": scaled(lambda alpha, s, r, w: s * r / alpha),
    "weighs the layer's own output, too": lambda x, w, a, b, alpha, s: s * adapted(x, w, a, b, alpha, 1.0),
    "blends": lambda x, w, a, b, alpha, s: (
        (1 - s) * x @ w.T + s * alpha / len(a) * x @ (b @ a).T if s != 1 else adapted(x, w, a, b, alpha, s)
    ),
    "by the transpose of its weight": lambda x, w, a, b, alpha, s: (
        x @ (w + s * alpha / len(a) * b @ a) if len(w) == w.shape[1] else x
    ),
    "the change is A B": lambda x, w, a, b, alpha, s: x @ w.T + s * alpha / len(a) * x @ (a @ b).T,
    "not transposed": lambda x, w, a, b, alpha, s: x @ w.T + s * alpha / len(a) * x @ a @ b,
    "own output is missing": lambda x, w, a, b, alpha, s: s * alpha / len(a) * x @ (b @ a).T,
    "the change is missing": lambda x, w, a, b, alpha, s: x @ w.T,
    "is subtracted": lambda x, w, a, b, alpha, s: adapted(x, w, a, b, alpha, -s),
    "strength · alpha / rank": lambda *args: adapted(*args) + 1,
}


@pytest.mark.parametrize("said", LORA)
def test_lora_names_the_mistake(said):
    with pytest.raises(check.Hint, match=said):
        check.dreambooth.lora(LORA[said])


# ---------------------------------------------------------------------------------------- subject_scores


def unit(features):
    return features / features.norm(dim=-1, keepdim=True)


def ceiling(real):
    return metrics.set_consistency(real)


def scores(generated, real):
    """By the library."""
    return metrics.subject_fidelity(generated, real), ceiling(real)


def in_order(generated, real):
    n = min(len(generated), len(real))
    return (unit(generated)[:n] * unit(real)[:n]).sum(-1).mean().item(), ceiling(real)


def by_columns(generated, real):
    return ((generated / generated.norm(dim=0)) @ (real / real.norm(dim=0)).T).mean().item(), ceiling(real)


def of_means(generated, real):
    return torch.cosine_similarity(generated.mean(0), real.mean(0), dim=0).item(), ceiling(real)


def of_mean_directions(generated, real):
    return torch.cosine_similarity(unit(generated).mean(0), unit(real).mean(0), dim=0).item(), ceiling(real)


def with_ceiling(change):
    return lambda generated, real: (scores(generated, real)[0], change(generated, real))


SUBJECT_SCORES = {
    "not scaled to length 1": lambda g, r: ((g @ r.T).mean().item(), ceiling(r)),
    "lengths of the columns": by_columns,
    "only pairs of one number": in_order,
    "cosine of two means": of_means,
    "cosine of two mean vectors": of_mean_directions,
    "only the nearest": lambda g, r: ((unit(g) @ unit(r).T).amax(1).mean().item(), ceiling(r)),
    "a distance": lambda g, r: (1 - scores(g, r)[0], ceiling(r)),
    "not the mean cosine over all pairs of a generated": lambda g, r: (0.111, ceiling(r)),
    "of a picture with itself, whose cosine": with_ceiling(lambda g, r: (unit(r) @ unit(r).T).mean().item()),
    "left out of the sum, but counted": with_ceiling(lambda g, r: ceiling(r) * (len(r) - 1) / len(r)),
    "summed once": with_ceiling(lambda g, r: ceiling(r) / 2),
    "summed twice": with_ceiling(lambda g, r: ceiling(r) * 2),
    "of the generated pictures": with_ceiling(lambda g, r: ceiling(g)),
    "the same number": with_ceiling(lambda g, r: scores(g, r)[0]),
    "the ceiling is not": with_ceiling(lambda g, r: 0.111),
    "plain number": lambda g, r: (torch.tensor(scores(g, r)[0]), ceiling(r)),
}


@pytest.mark.parametrize("said", SUBJECT_SCORES)
def test_subject_scores_name_the_mistake(said):
    with pytest.raises(check.Hint, match=said):
        check.dreambooth.subject_scores(SUBJECT_SCORES[said])


# ---------------------------------------------------------------------------------------- right functions


def test_right_functions_pass(capsys):
    check.dreambooth.training_pair(pair)
    check.dreambooth.denoise_step(step)
    check.dreambooth.training_batch(batch)
    check.dreambooth.dreambooth_loss(loss)
    check.dreambooth.lora(adapted)
    check.dreambooth.subject_scores(scores)
    assert capsys.readouterr().out.count("no mistake found") == 6


@pytest.mark.parametrize("task", ["training_pair", "denoise_step", "training_batch", "dreambooth_loss", "lora"])
def test_unwritten_functions_are_told(task):
    def unwritten(*args):
        raise NotImplementedError

    with pytest.raises(check.Hint, match="not written yet"):
        getattr(check.dreambooth, task)(unwritten)
    with pytest.raises(check.Hint, match="stopped with KeyError"):
        getattr(check.dreambooth, task)(lambda *args: {}["x"])


# ---------------------------------------------------------------------------------------- results


def numbers(**changes):
    """Results of two subjects, and what is wrong with them."""
    found = {m: {way: {"fox": 0.1 * i, "zebra": 0.2} for i, way in enumerate(room.WAYS)} for m in room.RANGES}
    return found | changes


WRONG = {
    "the keys": numbers(extra={}),
    "div lies between": numbers(div={way: {"fox": -1.0, "zebra": 1.0} for way in room.WAYS}),
    "plain number": numbers(pres={way: {"fox": "0.1", "zebra": 0.2} for way in room.WAYS}),
    "scores of the untrained": numbers(subject={way: {"fox": 0.3, "zebra": 0.2} for way in room.WAYS}),
    "must return a dict": None,
}


@pytest.mark.parametrize("said", WRONG)
def test_results_name_what_is_wrong(said):
    with pytest.raises(check.Hint, match=said):
        check.dreambooth.results(WRONG[said], ["fox", "zebra"])


def test_results_of_other_subjects_are_refused():
    check.dreambooth.results(numbers(), ["fox", "zebra"])
    with pytest.raises(check.Hint, match="keys"):
        check.dreambooth.results(numbers(), ["fox", "tiger"])
