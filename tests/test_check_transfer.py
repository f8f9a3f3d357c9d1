"""The visible checks of assignment A2: a right function passes, and each usual mistake gets the Hint that names it."""

import pytest
import torch
from test_check import master, run_hidden, solved

from stylemoments import check, color, norms
from stylemoments.check import transfer


def named(check_of_task, function, sentence, *args):
    with pytest.raises(check.Hint) as caught:
        check_of_task(function, *args)
    assert sentence in str(caught.value)


def passes(capsys, check_of_task, *args):
    check_of_task(*args)
    assert capsys.readouterr().out == f"{check_of_task.__name__}: no mistake found\n"


def moments(x, correction=1):
    return x.mean((2, 3), keepdim=True), x.var((2, 3), correction=correction, keepdim=True)


# ---------------------------------------------------------------------------------------- region_gram


def products(x, weight):
    return torch.einsum("bihw,bjhw->bij", x * weight, x)


def size(mask):
    return mask.sum((1, 2, 3))[:, None, None]


def centered(x, mask):
    return x - (x * mask).sum((2, 3), keepdim=True) / mask.sum((2, 3), keepdim=True)


def right_region_gram(x, mask):
    return products(x, mask) / size(mask).clamp_min(1e-12)


class TestRegionGram:
    def test_right(self, capsys):
        passes(capsys, transfer.region_gram, right_region_gram)

    MISTAKES = [
        (lambda x, m: products(x, m * m) / size(m), "the mask counts twice"),
        (lambda x, m: products(x, m) / m[0].numel(), "divided by all places H · W"),
        (lambda x, m: products(x, m) / size((m > 0).float()), "places that have any weight"),
        (lambda x, m: products(x, m) / size(m) / x.shape[1], "the number of channels as well"),
        (lambda x, m: products(x, m), "not divided by the size of the region"),
        (lambda x, m: products(x, m) / m.sum(), "the sizes of all regions of the batch together"),
        (lambda x, m: products(x, torch.ones_like(x)) / m[0].numel(), "the mask is not used"),
        (lambda x, m: products(x, m[:1]) / size(m[:1]), "the mask of the first picture is used for all"),
        (lambda x, m: products(centered(x, m), m) / size(m), "that is the covariance"),
        (lambda x, m: products(x, m) / size(m) + 1, "other values"),
        (lambda x, m: torch.einsum("bchw,bcij->bhwij", x, x), "must return shape (2, 3, 3)"),
    ]

    @pytest.mark.parametrize(("function", "sentence"), MISTAKES)
    def test_mistakes(self, function, sentence):
        named(transfer.region_gram, function, sentence)


# ---------------------------------------------------------------------------------------- gram_step


def stepper(loss=None, gradient=lambda right, x, target, gram: right, divisor=lambda c, n: n):
    """A gram_step: a loss of Gram matrices, (B,) or a number, and a changed gradient of the right one."""

    def gram_step(features, target):
        x = features.clone().requires_grad_()
        gram = torch.einsum("bihw,bjhw->bij", x, x)
        c, n = x.shape[1], x[0, 0].numel()
        right = relative(gram / n, target).mean()
        (slope,) = torch.autograd.grad(right, x)
        value = (loss or relative)(gram.detach() / divisor(c, n), target).mean().item()
        return value, gradient(slope, features, target, gram.detach() / n)

    return gram_step


def total(x):
    return x.sum((1, 2))


def relative(gram, target):
    return total((gram - target) ** 2) / total(target**2)


def each(values):
    return values[:, None, None, None]


class TestGramStep:
    def test_right(self, capsys):
        passes(capsys, transfer.gram_step, stepper())

    MISTAKES = [
        ({"loss": lambda g, t: total((g - t) ** 2) / total(g**2)}, "a share of the features' own Gram matrix"),
        ({"loss": lambda g, t: total((g - t) ** 2)}, "the loss is no share"),
        ({"loss": lambda g, t: ((g - t) ** 2).mean((1, 2))}, "averaged over the entries"),
        ({"loss": lambda g, t: relative(g, t).sum()}, "summed over the batch"),
        ({"loss": lambda g, t: relative(g, t).sqrt()}, "the root of the share"),
        ({"divisor": lambda c, n: c * n}, "divided by C · H · W"),
        ({"divisor": lambda c, n: 1}, "not divided by H · W"),
        ({"loss": lambda g, t: total((g - t).abs()) / total(t.abs())}, "the differences are not squared"),
        ({"loss": lambda g, t: ((g - t) ** 2).sum() / (t**2).sum()}, "one share of the whole batch"),
        ({"loss": lambda g, t: relative(g, t) + 1}, "another value than the text describes"),
        ({"gradient": lambda right, *_: right / 2}, "the gradient is half of what it is"),
        ({"gradient": lambda right, *_: right / 4}, "the gradient is a quarter of what it is"),
        ({"gradient": lambda right, x, *_: right * x[0, 0].numel()}, "lacks the division by H · W"),
        ({"gradient": lambda right, x, *_: right * len(x)}, "divided by the batch, too"),
        ({"gradient": lambda right, *_: -right}, "the gradient points uphill"),
        ({"gradient": lambda right, x, t, g: right * each(total(t**2))}, "not of the share"),
        (
            {"gradient": lambda right, x, t, g: right * each(total(t**2) / total(g**2))},
            "the square of the wrong Gram matrix",
        ),
        ({"gradient": lambda right, *_: right + 1}, "the loss is right and its gradient is not"),
        ({"gradient": lambda right, *_: right.flatten(2)}, "result 1, must return shape (2, 3, 3, 4)"),
    ]

    @pytest.mark.parametrize(("options", "sentence"), MISTAKES)
    def test_mistakes(self, options, sentence):
        named(transfer.gram_step, stepper(**options), sentence)

    def test_a_tensor_is_no_number(self):
        named(transfer.gram_step, lambda x, target: (x.mean(), x), "result 0, must return a plain number")


# ---------------------------------------------------------------------------------------- restyle


def mixer(blend=None, *, correction=1, shares=None, own=None, alphas=lambda a: a, subtract=True, default=1.0):
    def restyle(content, styles, weights, alpha=default, eps=1e-5):
        share = (shares or (lambda w: [x / sum(w) for x in w]))(weights)
        mean, square = (blend or of_deviations)(share, styles, correction, eps)
        m, v = own(content) if own else moments(content, correction)
        t = (content - m if subtract else content) / (v + eps).sqrt() * square.sqrt() + mean
        return content + alphas(alpha) * (t - content)

    return restyle


def of_deviations(share, styles, correction, eps):
    known = [moments(style, correction) for style in styles]
    mean = sum(p * m for p, (m, _) in zip(share, known, strict=True))
    return mean, sum(p * (v + eps).sqrt() for p, (_, v) in zip(share, known, strict=True)) ** 2


def of_variances(share, styles, correction, eps):
    mean, _ = of_deviations(share, styles, correction, eps)
    return mean, sum(p * (moments(style)[1] + eps) for p, style in zip(share, styles, strict=True))


def of_all_pixels(share, styles, correction, eps):
    mean, var = moments(torch.cat([style.flatten(2) for style in styles], 2)[..., None])
    return mean, var + eps


class TestRestyle:
    def test_right(self, capsys):
        passes(capsys, transfer.restyle, mixer())

    MISTAKES = [
        ({"correction": 0}, "biased for unbiased"),
        ({"shares": lambda w: w}, "not divided by their sum"),
        ({"shares": lambda w: [1 / len(w)] * len(w)}, "the weights are not used"),
        ({"shares": lambda w: [1.0] + [0.0] * (len(w) - 1)}, "only the first style is used"),
        ({"blend": of_variances}, "variances are blended"),
        ({"blend": of_all_pixels}, "thrown together"),
        ({"alphas": lambda a: 1.0}, "alpha is not used"),
        ({"alphas": lambda a: 1 - a}, "alpha is the wrong way round"),
        ({"alphas": lambda a: a * a}, "alpha counts twice"),
        (
            {"own": lambda x: (x.mean((0, 2, 3), keepdim=True), x.var((0, 2, 3), keepdim=True))},
            "the moments of the whole batch",
        ),
        ({"subtract": False}, "the content keeps its own mean"),
        ({"alphas": lambda a: a / 2}, "other values than the text describes"),
        ({"default": 0.5}, "without a fourth argument alpha must be 1"),
    ]

    @pytest.mark.parametrize(("options", "sentence"), MISTAKES)
    def test_mistakes(self, options, sentence):
        named(transfer.restyle, mixer(**options), sentence)


# ---------------------------------------------------------------------------------------- restyle_regions


def regions(*, own=None, correction=1, outside="content", order=1, cut=True):
    def restyle_regions(content, styles, masks, eps=1e-5):
        made = content.clone() if outside == "content" else torch.zeros_like(content)
        for style, mask in zip(styles[::order], masks, strict=True):
            inside = mask[0, 0] > 0
            x = content[:, :, inside]
            m, v = own(content, mask) if own else (x.mean(2), x.var(2, correction=correction))
            mean, var = moments(style, correction)
            painted = (content - m.reshape(-1, 3, 1, 1)) * ((var + eps) / (v.reshape(-1, 3, 1, 1) + eps)).sqrt() + mean
            made = torch.where(mask > 0, painted, made) if cut else painted
        return made

    return restyle_regions


def of_region_in_batch(content, mask):
    x = content.transpose(0, 1)[:, :, mask[0, 0] > 0].flatten(1)
    return x.mean(1), x.var(1)


class TestRestyleRegions:
    def test_right(self, capsys):
        passes(capsys, transfer.restyle_regions, regions())

    MISTAKES = [
        ({"own": lambda x, mask: moments(x)}, "the content's moments are those of the whole picture"),
        ({"own": lambda x, mask: moments(x * mask)}, "count as zeros in its moments"),
        ({"own": of_region_in_batch}, "normalized over the whole batch"),
        ({"correction": 0}, "biased for unbiased"),
        ({"outside": "zero"}, "places outside of all masks become 0"),
        ({"order": -1}, "in each other's regions"),
        ({"own": lambda x, mask: moments(x), "cut": False}, "the masks are not used: the last style is everywhere"),
        ({"own": lambda x, mask: moments(x + mask)}, "other values than the text describes"),
    ]

    @pytest.mark.parametrize(("options", "sentence"), MISTAKES)
    def test_mistakes(self, options, sentence):
        named(transfer.restyle_regions, regions(**options), sentence)

    def test_the_first_style_everywhere(self):
        first = lambda x, styles, masks, eps=1e-5: norms.adain(x, styles[0])  # noqa: E731
        named(transfer.restyle_regions, first, "the masks are not used: the first style is everywhere")


# ---------------------------------------------------------------------------------------- match_luminance


def luminances(x, y, eps, luma=color.luminance):
    """Of x, its mean and deviation, and those of y."""
    light, other = luma(x), luma(y)
    (m, v), (mean, var) = moments(light, 0), moments(other, 0)
    return light, m, (v + eps).sqrt(), mean, (var + eps).sqrt()


def matcher(make=lambda x, light, m, d, mean, deviation: x + (light - m) / d * deviation + mean - light, **luma):
    def match_luminance(x, y, eps=1e-5):
        return make(x, *luminances(x, y, eps, **luma))

    return match_luminance


def shifted_in_batch(x, light, m, d, mean, deviation):
    return x + (light - light.mean()) / (light.var(correction=0) + 1e-5).sqrt() * deviation + mean - light


def unbiased_luminance(x, y, eps=1e-5):
    return x + norms.adain(color.luminance(x), color.luminance(y), eps=eps) - color.luminance(x)


class TestMatchLuminance:
    def test_right(self, capsys):
        passes(capsys, transfer.match_luminance, matcher())

    MISTAKES = [
        (lambda x, y, eps=1e-5: norms.adain(x, y, eps=eps, unbiased=False), "each color is matched by itself"),
        (matcher(luma=lambda z: z.mean(1, keepdim=True)), "R, G and B count the same"),
        (matcher(lambda x, light, m, d, *y: x * ((light - m) / d * y[1] + y[0]) / light), "add the difference of the"),
        (matcher(lambda x, light, m, d, *y: ((light - m) / d * y[1] + y[0]).expand_as(x)), "the colors are gone"),
        (matcher(lambda x, light, m, d, *y: (x - m) / d * y[1] + y[0]), "scaled together with the luminance"),
        (matcher(lambda x, light, m, d, *y: x - m + y[0]), "only the mean of the luminance"),
        (matcher(lambda x, light, m, d, *y: x + (light - m) / d * y[1] + m - light), "only the deviation"),
        (lambda x, y, eps=1e-5: matcher()(x, y, eps).clamp(0, 1), "the result is clamped"),
        (unbiased_luminance, "unbiased for biased"),
        (matcher(shifted_in_batch), "normalized over the whole batch"),
        (lambda x, y, eps=1e-5: x.clone(), "look at the luminance of your result"),
    ]

    @pytest.mark.parametrize(("function", "sentence"), MISTAKES)
    def test_mistakes(self, function, sentence):
        named(transfer.match_luminance, function, sentence)


# ---------------------------------------------------------------------------------------- the experiment


def rows(n=12, distances=8):
    return [[max(0.0, (4 - i) * 0.1) + (0.01 * draw if i < 4 else 0.0) for i in range(distances)] for draw in range(n)]


SEAMS = {"features": [1.1] * 12, "pixels": [2.5] * 12}


class TestLeak:
    def test_right(self, capsys):
        passes(capsys, transfer.leak, rows(), SEAMS, 8)

    @pytest.mark.parametrize(
        ("change", "sentence"),
        [
            (rows(n=9), "leak needs ten draws or more"),
            (rows(distances=7), "and 8 rows for each"),
            ([row[: 7 + (i % 2)] for i, row in enumerate(rows())], "all lists of one length"),
            ([[-x for x in row] for row in rows()], "take the size of the differences"),
            ([[0.0] * 8] * 12, "nothing changes at all"),
            ([row[::-1] for row in rows()], "the row next to the border comes first"),
            ([[x + 0.01 for x in row] for row in rows()], "where it is farthest from the border"),
            ([rows()[0]] * 12, "all draws give the same rows"),
            ([[float("nan")] * 8] * 12, "NaN"),
        ],
    )
    def test_mistakes_of_the_rows(self, change, sentence):
        named(transfer.leak, change, sentence, SEAMS, 8)

    @pytest.mark.parametrize(
        ("seams", "sentence"),
        [
            ([1.0] * 12, 'the keys "features" and "pixels"'),
            ({"features": [1.0] * 12}, 'the keys "features" and "pixels"'),
            (SEAMS | {"pixels": [1.0] * 11}, "one positive number for each of 12 draws"),
            (SEAMS | {"pixels": [0.0] * 12}, "one positive number for each of 12 draws"),
        ],
    )
    def test_mistakes_of_the_seams(self, seams, sentence):
        named(transfer.leak, rows(), sentence, seams, 8)


# ---------------------------------------------------------------------------------------- hidden tests

RIGHT = {
    "region_gram": right_region_gram,
    "gram_step": stepper(),
    "restyle": mixer(),
    "restyle_regions": regions(),
    "match_luminance": matcher(),
}
TASKS = {
    "region_gram": [function for function, _ in TestRegionGram.MISTAKES],
    "gram_step": [stepper(**options) for options, _ in TestGramStep.MISTAKES],
    "restyle": [mixer(**options) for options, _ in TestRestyle.MISTAKES],
    "restyle_regions": [regions(**options) for options, _ in TestRestyleRegions.MISTAKES],
    "match_luminance": [function for function, _ in TestMatchLuminance.MISTAKES],
}


@pytest.fixture(scope="module")
def cells():
    return master("a2-style-transfer.md")


@pytest.fixture(scope="module")
def solutions(cells):
    return solved(cells, "a2", TASKS)


class TestHidden:
    @pytest.mark.parametrize("task", TASKS)
    def test_the_solution_passes_check_and_hidden_tests(self, task, cells, solutions):
        getattr(transfer, task)(solutions[task])
        run_hidden(cells, f"a2-{task.replace('_', '-')}", solutions)

    @pytest.mark.parametrize("task", TASKS)
    def test_another_right_function_passes(self, task, cells, solutions):
        run_hidden(cells, f"a2-{task.replace('_', '-')}", solutions | {task: RIGHT[task]})

    @pytest.mark.parametrize(("task", "number"), [(task, i) for task in TASKS for i in range(len(TASKS[task]))])
    def test_a_mistake_fails(self, task, number, cells, solutions):
        with pytest.raises(AssertionError):
            run_hidden(cells, f"a2-{task.replace('_', '-')}", solutions | {task: TASKS[task][number]})
