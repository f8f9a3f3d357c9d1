r"""Visible checks of the assignment on DreamBooth: what a step learns from, the loss, low-rank adapters, one score.

Axes: ``B`` pictures, ``C H W`` channels, rows, columns of the latents, ``N`` tokens. A noise level is written as an
angle here: with :math:`\bar\alpha = \cos^2\varphi` the noisy latents are the clean ones and the noise, turned by it.

    >>> from stylemoments import check
    >>> check.dreambooth.lora(lambda *args: 0.0)
    Traceback (most recent call last):
    ...
    stylemoments.check.Hint: <lambda> must return a tensor; got float
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .. import metrics
from . import Hint, call, close, compare, passed

KINDS = ("epsilon", "v_prediction", "sample")


def _random(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


class _Turned(NamedTuple):
    """Pictures and noise, turned by an angle each."""

    cos: Tensor  # (B, 1, 1, 1)
    sin: Tensor

    def noisy(self, clean: Tensor, noise: Tensor) -> Tensor:
        return self.cos * clean + self.sin * noise

    def v(self, clean: Tensor, noise: Tensor) -> Tensor:
        return self.cos * noise - self.sin * clean


def _turned(angles: Tensor) -> _Turned:
    angles = angles.reshape(-1, 1, 1, 1)
    return _Turned(angles.cos(), angles.sin())


# ---------------------------------------------------------------------------------------- training_pair


def training_pair(function: Callable) -> None:
    """Check ``training_pair(clean, noise, alpha_bar, kind)``: what the network sees, and what it should say.

    Args:
        function: takes twice ``(B, C, H, W)``, ``(B,)`` and the kind of prediction; returns noisy latents and target.

    Raises:
        Hint: names the mistake.
    """
    clean, noise = _random(0, 4, 3, 4, 4), _random(1, 4, 3, 4, 4)  # four pictures, four columns: a wrong axis fits
    angles = torch.tensor([0.2, 0.6, 1.0, 1.4])
    turn, level = _turned(angles), angles.cos().square()
    for kind in KINDS:
        noisy, target = call(function, clean, noise, level, kind, like=(clean, clean))
        _check_noisy(noisy, clean, noise, turn, angles)
        _check_target(target, clean, noise, turn, kind)
    passed("training_pair")


def _check_noisy(noisy: Tensor, clean: Tensor, noise: Tensor, turn: _Turned, angles: Tensor) -> None:
    along = _Turned(angles.cos(), angles.sin())  # one number for each column
    squares = _Turned(turn.cos.square(), turn.sin.square())
    mistakes = {
        "each picture has a noise level of its own, and yours runs along the columns: give alpha_bar the axes (B, 1, "
        "1, 1)": along.noisy(clean, noise),
        "the factors are roots: alpha_bar and 1 - alpha_bar are parts of the variance": squares.noisy(clean, noise),
        "the factors of picture and noise are swapped: alpha_bar is the part that is still picture": turn.noisy(
            noise, clean
        ),
        "the factor of the noise is the root of 1 - alpha_bar, not 1 less the root of alpha_bar": turn.cos * clean
        + (1 - turn.cos) * noise,
        "all pictures get the noise level of the first one": _turned(angles[:1]).noisy(clean, noise),
        "the picture keeps its full size; it shrinks as the noise grows": clean + turn.sin * noise,
        "the noise is added with factor 1; it has a factor, too": turn.cos * clean + noise,
        "the network sees the clean latents: nothing is spoiled": clean,
        "noisy latents and target stand in the wrong order: return the noisy latents first": turn.v(clean, noise),
    }
    otherwise = "the noisy latents are not the mixture that the schedule asks for"
    compare(noisy, turn.noisy(clean, noise), mistakes, otherwise=otherwise)


def _check_target(target: Tensor, clean: Tensor, noise: Tensor, turn: _Turned, kind: str) -> None:
    right = {"epsilon": noise, "v_prediction": turn.v(clean, noise), "sample": clean}
    mistakes = {
        f"the target of kind {kind!r} is yours for {other!r}": right[other] for other in KINDS if other != kind
    } | {
        "the sign of v is turned: v has a plus before the noise and a minus before the picture": -turn.v(clean, noise),
        "v is a difference; yours adds its two parts": turn.cos * noise + turn.sin * clean,
        "the factors of v are swapped: at a small time v is nearly the noise": turn.sin * noise - turn.cos * clean,
        "the factors of v are roots": turn.cos.square() * noise - turn.sin.square() * clean,
        "the target is the noisy latents, which the network sees already": turn.noisy(clean, noise),
    }
    compare(target, right[kind], mistakes, otherwise=f"the target of kind {kind!r} is not what the network should say")


# ---------------------------------------------------------------------------------------- denoise_step


def denoise_step(function: Callable) -> None:
    """Check ``denoise_step(output, noisy, now, after, weight)``: guidance, and one step of DDIM.

    Args:
        function: takes v of the doubled batch ``(2 B, C, H, W)``, ``(B, C, H, W)``, two noise levels and the weight of
            guidance; returns the latents of the next step.

    Raises:
        Hint: names the mistake.
    """
    output, noisy, weight = _random(10, 6, 2, 4, 4), _random(11, 3, 2, 4, 4), 2.5
    uncond, cond = output[:3], output[3:]
    now, after = 1.1, 0.7  # angles: less noise after
    right = uncond + weight * (cond - uncond)
    said = {
        "guidance halves are mixed: the first half of the batch is without words, the second with them": cond
        + weight * (uncond - cond),
        "guidance halves are mixed: the batch is [uncond; cond], one half after the other, and not in turns": output[
            ::2
        ].lerp(output[1::2], weight),
        "guidance is ignored: this is the answer with words": cond,
        "guidance is ignored: this is the answer without words": uncond,
        "guidance begins at the answer without words; yours begins at the one with them, one weight too far": cond
        + weight * (cond - uncond),
        "guidance does not add its difference to the answer without words": weight * (cond - uncond),
        "guidance weighs the answer with words; it should weigh the difference of the two answers": uncond
        + cond * weight,
    }
    mistakes = {sentence: _moved(v, noisy, now, after) for sentence, v in said.items()}
    mistakes |= _wrong_steps(right, noisy, now, after)
    args = output, noisy, math.cos(now) ** 2, math.cos(after) ** 2, weight
    otherwise = "denoise_step does not lead to where the noisy latents would be, if the guided network were right"
    compare(call(function, *args, like=noisy), _moved(right, noisy, now, after), mistakes, otherwise=otherwise)
    passed("denoise_step")


def _moved(v: Tensor, noisy: Tensor, now: float, after: float) -> Tensor:
    """The step as one rotation, back by the difference of the angles."""
    return math.cos(now - after) * noisy - math.sin(now - after) * v


def _wrong_steps(v: Tensor, noisy: Tensor, now: float, after: float) -> dict[str, Tensor]:
    """The right guidance, and something wrong afterwards."""
    cos, sin, next_cos, next_sin = math.cos(now), math.sin(now), math.cos(after), math.sin(after)
    clean, noise = cos * noisy - sin * v, sin * noisy + cos * v
    as_noise = (noisy - sin * v) / cos
    return {
        "the network says v, and you take it for the noise": next_cos * as_noise + next_sin * v,
        "the network says v, and you take it for the clean latents": next_cos * v + next_sin * (noisy - cos * v) / sin,
        "the clean latents are a difference: a part of the noisy ones less a part of v": next_cos
        * (cos * noisy + sin * v)
        + next_sin * noise,
        "the noise is a sum: a part of the noisy latents and a part of v": next_cos * clean
        + next_sin * (sin * noisy - cos * v),
        "clean latents and noise are mixed by the level of now; they go to the level of after": noisy,
        "now and after are swapped": _moved(v, noisy, after, now),
        "the factors of the mixture are roots": next_cos**2 * clean + next_sin**2 * noise,
        "now and after are parts of the variance: all four factors are roots": next_cos**2
        * (cos**2 * noisy - sin**2 * v)
        + next_sin**2 * (sin**2 * noisy + cos**2 * v),
        "clean latents and noise have each other's factor": next_cos * noise + next_sin * clean,
        "these are the clean latents that the network believes in, and not the next, less noisy ones": clean,
    }


# ---------------------------------------------------------------------------------------- training_batch


def training_batch(function: Callable) -> None:
    """Check ``training_batch(subject, of_class, words)``: every picture with its own caption.

    Args:
        function: takes ``(n, C, H, W)``, ``(m, C, H, W)`` and the two captions ``(2, N, d)``; returns the pictures,
            their captions ``(n + m, N, d)`` and ``(n + m,)``, 0 for the subject and 1 for its class.

    Raises:
        Hint: names the mistake.
    """
    for n, m in ((3, 3), (4, 2), (2, 5)):
        _check_batch(function, n, m)
    passed("training_batch")


def _check_batch(function: Callable, n: int, m: int) -> None:
    subject, of_class, words = _random(20, n, 2, 3, 3), _random(21, m, 2, 3, 3), _random(22, 2, 4, 5)
    kinds = torch.tensor([0] * n + [1] * m)
    pictures = torch.cat([subject, of_class])
    got = call(function, subject, of_class, words, like=(pictures, words[kinds], kinds))
    first = "of_class comes before the subject: put the subject's pictures first"
    compare(got[0], pictures, {first: torch.cat([of_class, subject])}, otherwise="the pictures are not those given")
    turns = torch.arange(n + m) % 2
    half = (torch.arange(n + m) >= (n + m) // 2).long()
    paired_wrongly = "captions are paired wrongly: "
    mistakes = {
        paired_wrongly + "they take turns, and the pictures do not": turns,
        paired_wrongly + "the subject's pictures have the caption of the class, and the other way round": 1 - kinds,
        paired_wrongly + "all have the caption of the subject": 0 * kinds,
        paired_wrongly + "all have the caption of the class": 0 * kinds + 1,
        paired_wrongly + "you count as many pictures of the class as of the subject; here are more of one": half,
    }
    captions = {said: words[numbers] for said, numbers in mistakes.items()}
    compare(got[1], words[kinds], captions, otherwise=paired_wrongly + "not every picture has its own")
    wrong = {said.replace("captions are", "the numbers of the captions are"): value for said, value in mistakes.items()}
    if not torch.equal(got[2], kinds):
        compare(got[2], kinds, wrong, otherwise="which is 0 for the subject's pictures and 1 for those of the class")


# ---------------------------------------------------------------------------------------- dreambooth_loss


def dreambooth_loss(function: Callable) -> None:
    """Check ``dreambooth_loss(output, target, which, prior_weight)``: the loss with prior preservation.

    Args:
        function: takes twice ``(B, C, H, W)``, ``(B,)`` and the prior weight; returns a tensor without axes.

    Raises:
        Hint: names the mistake.
    """
    output, target, weight = _random(30, 6, 2, 3, 3), _random(31, 6, 2, 3, 3), 0.3
    which = torch.tensor([1, 0, 0, 1, 0, 0])
    squares = (output - target).square()
    errors, absolute = squares.flatten(1).mean(1), (output - target).abs().flatten(1).mean(1)
    own, prior = errors[which == 0].mean(), errors[which == 1].mean()
    factors = torch.where(which == 1, weight, 1.0)
    by_place = errors[:3].mean(), errors[3:].mean()
    mistakes = {
        "the prior weight is on the wrong half: it weighs the pictures of the class, not the subject's": weight * own
        + prior,
        "the prior weight is on both parts; it weighs that of the class alone": weight * (own + prior),
        "the prior weight is not used: both parts count alike": own + prior,
        "the part of the class is missing": own,
        "the part of the subject is missing": weight * prior,
        "this is one mean over all pictures; each part has a mean of its own": (factors * errors).mean(),
        "this is one weighted mean over all pictures; each part has a mean of its own": (factors * errors).sum()
        / factors.sum(),
        "this is one mean over all pictures, unweighted; each part has a mean of its own": errors.mean(),
        "the parts are mixed, (1 - weight) to weight; the subject's counts fully": (1 - weight) * own + weight * prior,
        "you take the first half of the batch for the subject; which says whose picture it is, in any order": by_place[
            0
        ]
        + weight * by_place[1],
        "you take the last half of the batch for the subject; which says whose picture it is, in any order": by_place[1]
        + weight * by_place[0],
        "the errors are summed; the loss takes their mean": squares[which == 0].sum()
        + weight * squares[which == 1].sum(),
        "the errors of a picture are summed; a picture counts with their mean": 18 * (own + weight * prior),
        "the errors are absolute values; the loss takes their squares": absolute[which == 0].mean()
        + weight * absolute[which == 1].mean(),
    }
    got = call(function, output, target, which, weight, like=own)
    right = own + weight * prior
    compare(
        got, right, mistakes, otherwise="the loss is not the subject's mean error plus prior_weight times the class's"
    )
    _check_without_class(function, output, target, errors)
    passed("dreambooth_loss")


def _check_without_class(function: Callable, output: Tensor, target: Tensor, errors: Tensor) -> None:
    got = call(function, output, target, torch.zeros(6, dtype=torch.long), 0.3)
    if isinstance(got, Tensor) and bool(got.isnan()):
        raise Hint("without pictures of the class the loss is NaN, the mean of nothing; then it is the subject's part")
    compare(got, errors.mean(), {}, otherwise="without pictures of the class the loss is not the subject's part alone")


# ---------------------------------------------------------------------------------------- lora


def lora(function: Callable) -> None:
    """Check ``lora(x, weight, a, b, alpha, strength)``: a linear layer with a low-rank change.

    Args:
        function: takes ``(B, N, i)``, ``(o, i)``, ``(r, i)``, ``(o, r)`` and two numbers, returns ``(B, N, o)``.

    Raises:
        Hint: names the mistake.
    """
    _lora_square(function)
    _lora_scale(function)
    passed("lora")


def _lora_square(function: Callable) -> None:
    """All sides alike, so that wrong orders give numbers, not errors."""
    x, weight, a, b = _random(40, 2, 3, 4), _random(41, 4, 4), _random(42, 4, 4), _random(43, 4, 4)
    plain, changed = x @ weight.T, weight + 0.75 * b @ a
    mistakes = {
        "a linear layer multiplies by the transpose of its weight": x @ changed,
        "the change is A B; it is B A, which first goes down to the rank and then up again": plain
        + 0.75 * x @ (a @ b).T,
        "A and B are not transposed": plain + 0.75 * x @ a @ b,
        "the layer's own output is missing: LoRA adds to it": 0.75 * x @ (b @ a).T,
        "the change is missing": plain,
        "the change is subtracted": 2 * plain - x @ changed.T,
    }
    got = call(function, x, weight, a, b, 3.0, 1.0, like=plain)
    compare(got, x @ changed.T, mistakes | _scales(plain, x @ (b @ a).T, 3.0, 1.0, 4, 4, 4), otherwise=_LORA)


_LORA = "lora is not the layer's own output plus strength · alpha / rank times what A and B add"


def _lora_scale(function: Callable) -> None:
    """All sides different, and a strength."""
    x, weight, a, b = _random(44, 2, 3, 7), _random(45, 5, 7), _random(46, 2, 7), _random(47, 5, 2)
    plain, change = x @ weight.T, x @ (b @ a).T
    alpha, strength = 3.0, 0.4
    got = call(function, x, weight, a, b, alpha, strength, like=plain)
    mistakes = _scales(plain, change, alpha, strength, 2, 5, 7)
    compare(got, plain + strength * alpha / 2 * change, mistakes, otherwise=_LORA)


def _scales(plain: Tensor, change: Tensor, alpha: float, strength: float, r: int, o: int, i: int) -> dict[str, Tensor]:
    """The right change, scaled wrongly."""
    rank_of_a = "alpha is divided by a side of the weight; the rank is the short side of A and B"
    return {
        "the change is not scaled: alpha / rank is missing": plain + strength * change,
        "the change is scaled by alpha, and not divided by the rank": plain + strength * alpha * change,
        "the change is divided by the rank, and alpha is missing": plain + strength / r * change,
        "alpha is divided by the root of the rank; plain LoRA divides by the rank": plain
        + strength * alpha / r**0.5 * change,
        "the strength is not used": plain + alpha / r * change,
        "neither strength nor alpha / rank is used: the change is not scaled": plain + change,
        "the strength weighs the layer's own output, too; it weighs the change": strength
        * (plain + alpha / r * change),
        "the strength blends from the layer to its change; it leaves the layer as it is": (1 - strength) * plain
        + strength * alpha / r * change,
        rank_of_a: plain + strength * alpha / i * change,
        rank_of_a + ", which has as many rows as that of A": plain + strength * alpha / o * change,
        "rank and alpha are swapped: the scale is alpha / rank": plain + strength * r / alpha * change,
    }


# ---------------------------------------------------------------------------------------- subject_scores


def subject_scores(function: Callable) -> None:
    """Check ``subject_scores(generated, real)``: how near generated pictures are to real ones, and real to each other.

    Args:
        function: takes ``(n, D)`` and ``(m, D)``, returns score and ceiling.

    Raises:
        Hint: names the mistake.
    """
    for n, m in ((4, 4), (6, 3)):
        lengths = torch.linspace(0.5, 3, n)[:, None], torch.linspace(2, 0.7, m)[:, None]
        generated, real = (
            (_random(s, k, 5) + 0.6) * long for s, k, long in zip((50, 51), (n, m), lengths, strict=True)
        )
        score, ceiling = call(function, generated, real, like=(0.0, 0.0))
        _check_score(score, generated, real)
        _check_ceiling(ceiling, generated, real)
    passed("subject_scores")


def _check_score(score: float, generated: Tensor, real: Tensor) -> None:
    one, two = (x / x.norm(dim=-1, keepdim=True) for x in (generated, real))
    cosines, columns = one @ two.T, generated / generated.norm(dim=0) @ (real / real.norm(dim=0)).T
    fewer = min(len(generated), len(real))
    mean = torch.cosine_similarity(one.mean(0), two.mean(0), dim=0)
    mistakes = {
        "the features are not scaled to length 1, so the score is a product and not a cosine": (
            generated @ real.T
        ).mean(),
        "the features are divided by the lengths of the columns; each row, a picture, gets length 1": columns.mean(),
        "only pairs of one number count; the score takes all pairs of a generated and a real picture": cosines[
            range(fewer), range(fewer)
        ].mean(),
        "this is the cosine of two mean vectors; the score is the mean of the cosines": mean,
        "this is the cosine of two means of features; the score is the mean of the cosines": torch.cosine_similarity(
            generated.mean(0), real.mean(0), dim=0
        ),
        "only the nearest real picture counts; the score takes all pairs": cosines.amax(1).mean(),
        "this is 1 less the cosine, a distance": 1 - cosines.mean(),
    }
    otherwise = "the score is not the mean cosine over all pairs of a generated and a real picture"
    compare(score, metrics.subject_fidelity(generated, real), _numbers(mistakes), otherwise=otherwise)


def _check_ceiling(ceiling: float, generated: Tensor, real: Tensor) -> None:
    unit, m = real / real.norm(dim=-1, keepdim=True), len(real)
    right = metrics.set_consistency(real)
    mistakes = {
        "the ceiling counts the pairs of a picture with itself, whose cosine is always 1": (unit @ unit.T).mean(),
        "the pairs of a picture with itself are left out of the sum, but counted in the number": right * (m - 1) / m,
        "each pair is summed once and counted twice": right / 2,
        "each pair is summed twice and counted once": right * 2,
        "the ceiling is of the generated pictures; it is of the real ones": metrics.set_consistency(generated),
        "score and ceiling are the same number": metrics.subject_fidelity(generated, real),
    }
    otherwise = "the ceiling is not the mean cosine over all pairs of two different real pictures"
    compare(ceiling, right, _numbers(mistakes), otherwise=otherwise)


def _numbers(mistakes: dict) -> dict[str, float]:
    return {said: float(value) for said, value in mistakes.items()}


# ---------------------------------------------------------------------------------------- the experiment

RANGES = {"subject": (-1, 1), "pres": (-1, 1), "div": (0, math.inf)}
WAYS = ("untrained", "one", "eight")


def results(found: dict, subjects: Sequence[str]) -> None:
    """Check the form of the experiment's numbers, ``found[measure][way][name of the subject]``; not their values.

    Args:
        found: the student's results.
        subjects: the names of the subjects that were taught.

    Raises:
        Hint: a key is missing or too much, a number is not finite or out of range, or the models have one score.

    Example:
        >>> numbers = {way: {"fox": 0.1 * i, "zebra": 0.2} for i, way in enumerate(WAYS)}
        >>> results({measure: numbers for measure in RANGES}, ["fox", "zebra"])
        results: no mistake found
    """

    def results():
        return found

    number = dict.fromkeys(subjects, 0.0)
    found = call(results, like={measure: {way: number for way in WAYS} for measure in RANGES})
    for measure, (low, high) in RANGES.items():
        if not all(low <= value <= high for way in WAYS for value in found[measure][way].values()):
            raise Hint(f"results: {measure} lies between {low} and {high}; one of yours does not")
    if close(found["subject"]["one"], found["subject"]["untrained"], atol=1e-6):
        raise Hint("results: the trained models have the scores of the untrained one; measure what teach returns")
    passed("results")
