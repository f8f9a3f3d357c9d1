"""The visible checks of assignment A1: a right function passes, and each usual mistake gets the Hint that names it."""

import pytest
import torch
from test_check import master, run_hidden, solved
from torch.nn import functional as F

from stylemoments import check, norms
from stylemoments.check import normalization

DIMS = {"BHW": (0, 2, 3), "CHW": (1, 2, 3), "HW": (2, 3)}


def named(check_of_task, function, sentence, *args):
    with pytest.raises(check.Hint) as caught:
        check_of_task(function, *args)
    assert sentence in str(caught.value)


# ---------------------------------------------------------------------------------------- normalize


def normalizer(*, dims=DIMS, correction=0, use=lambda var, eps: (var + eps).sqrt(), subtract=True, default=1e-5):
    def normalize(x, shared, eps=default):
        known = dims.get("".join(sorted(shared)), ["BCHW".index(letter) for letter in shared])
        mean, var = x.mean(known, keepdim=True), x.var(known, correction=correction, keepdim=True)
        return (x - mean if subtract else x) / use(var, eps)

    return normalize


class TestNormalize:
    def test_right(self, capsys):
        normalization.normalize(normalizer())
        assert capsys.readouterr().out == "normalize: no mistake found\n"

    MISTAKES = [
        ({"dims": DIMS | {"BHW": (2, 3), "HW": (0, 2, 3)}}, "batch and instance axes swapped: shared='BHW'"),
        ({"dims": DIMS | {"HW": (0, 2, 3)}}, "batch and instance axes swapped: shared='HW'"),
        ({"dims": DIMS | {"CHW": (2, 3)}}, "the wrong axes: shared='CHW' asks for layer norm"),
        ({"dims": DIMS | {"BHW": (1, 2, 3)}}, "the wrong axes: shared='BHW' asks for batch norm"),
        ({"dims": DIMS | {"BHW": (0, 1, 2, 3)}}, "other values than those of batch norm"),
        ({"correction": 1}, "the unbiased variance: you divide by n - 1"),
        ({"use": lambda var, eps: var.sqrt() + eps}, "eps stands outside the root"),
        ({"use": lambda var, eps: var.sqrt()}, "eps is not used"),
        ({"use": lambda var, eps: var + eps}, "divided by the variance and not by its root"),
        ({"use": lambda var, eps: 1.0}, "only the mean is subtracted"),
        ({"subtract": False}, "the mean is not subtracted"),
        ({"default": 1e-1}, "without a third argument eps must be 1e-5"),
    ]

    @pytest.mark.parametrize(("options", "sentence"), MISTAKES)
    def test_mistakes(self, options, sentence):
        named(normalization.normalize, normalizer(**options), sentence)

    def test_forms(self):
        named(normalization.normalize, lambda x, shared, eps: x.double(), "must return torch.float32")
        named(normalization.normalize, lambda x, shared, eps: x[0], "must return shape (4, 6, 3, 5)")
        named(normalization.normalize, lambda x, shared, eps: x / 0, "NaN or infinity")


# ---------------------------------------------------------------------------------------- batch norm


def stepper(*, swap=False, output=None, running=1, at_test="memory", frozen=False, add=False, forget=False, move=False):
    """A batch_norm_step with one mistake."""

    def batch_norm_step(x, running_mean, running_var, training, momentum=0.1, eps=1e-5):
        mean, var = x.mean((0, 2, 3)), x.var((0, 2, 3), correction=running)
        if not training:
            y = F.batch_norm(x, running_mean, running_var, eps=eps)
            if at_test == "company":
                y = F.batch_norm(x, None, None, training=True, eps=eps)
            return y, running_mean + (at_test == "collects"), running_var.clone()
        weight = 1 - momentum if swap else 1.0 if forget else 0.0 if frozen else momentum
        new = [old.lerp(value, weight) for old, value in ((running_mean, mean), (running_var, var))]
        if add:
            new[1] = running_var + momentum * var
        y = (
            output(x, running_mean, running_var, new, eps)
            if output
            else F.batch_norm(x, None, None, None, None, True, 0, eps)
        )
        if move:
            running_mean.lerp_(mean, momentum)
        return y, *new

    return batch_norm_step


def unbiased_output(x, mean, var, new, eps):
    return (x - x.mean((0, 2, 3), keepdim=True)) / (x.var((0, 2, 3), keepdim=True) + eps).sqrt()


def eps_outside(x, mean, var, new, eps):
    return (x - x.mean((0, 2, 3), keepdim=True)) / (x.var((0, 2, 3), correction=0, keepdim=True).sqrt() + eps)


class TestBatchNormStep:
    def test_right(self, capsys):
        normalization.batch_norm_step(stepper())
        assert capsys.readouterr().out == "batch_norm_step: no mistake found\n"

    MISTAKES = [
        ({"at_test": "company"}, "training=False uses the moments of the batch"),
        ({"at_test": "collects"}, "training=False changes the running estimates"),
        ({"swap": True}, "momentum is the wrong way round in running_mean"),
        ({"frozen": True}, "running_mean does not move in training"),
        ({"forget": True}, "running_mean forgets the past"),
        ({"add": True}, "running_var is added up"),
        ({"running": 0}, "the running variance collects the biased variance"),
        ({"move": True}, "changes its input in place"),
        (
            {"output": lambda x, mean, var, new, eps: F.batch_norm(x, mean, var, eps=eps)},
            "training=True normalizes with the running estimates",
        ),
        (
            {"output": lambda x, mean, var, new, eps: F.batch_norm(x, *new, eps=eps)},
            "normalized with the new running estimates",
        ),
        (
            {"output": lambda x, mean, var, new, eps: norms.instance_norm(x, eps=eps)},
            "batch and instance axes swapped",
        ),
        ({"output": unbiased_output}, "x is normalized with the unbiased variance"),
        ({"output": eps_outside}, "eps stands outside the root"),
        ({"output": lambda x, *_: 2 * x}, "training=True gives other values than batch norm"),
    ]

    @pytest.mark.parametrize(("options", "sentence"), MISTAKES)
    def test_mistakes(self, options, sentence):
        named(normalization.batch_norm_step, stepper(**options), sentence)

    def test_forms(self):
        named(normalization.batch_norm_step, lambda x, *_: x, "must return a tuple of 3")
        wrong = lambda x, mean, var, *_: (x, mean[:, None, None], var)  # noqa: E731
        named(normalization.batch_norm_step, wrong, "result 1, must return shape (4,)")


# ---------------------------------------------------------------------------------------- fold


def folder(make):
    def fold(weight, bias, gamma, beta, mean, var, eps=1e-5):
        bias = torch.zeros_like(mean) if bias is None else bias
        scale = gamma / (var + eps).sqrt()
        return make(weight, bias, gamma, beta, mean, var, eps, scale)

    return fold


def out(weight, scale):
    return weight * scale[:, None, None, None]


right_fold = folder(lambda w, b, g, beta, m, v, eps, s: (out(w, s), (b - m) * s + beta))


class TestFold:
    def test_right(self, capsys):
        normalization.fold(right_fold)
        assert capsys.readouterr().out == "fold: no mistake found\n"

    MISTAKES = [
        (lambda w, b, g, t, m, v, e, s: (w * s[:, None, None], (b - m) * s + t), "to the wrong axis of the weight"),
        (lambda w, b, g, t, m, v, e, s: (w, (b - m) * s + t), "the weight is not scaled"),
        (lambda w, b, g, t, m, v, e, s: (out(w, s), b - m * s + t), "the old bias is not scaled"),
        (lambda w, b, g, t, m, v, e, s: (out(w, s), b * s - m + t), "the mean is not scaled"),
        (lambda w, b, g, t, m, v, e, s: (out(w, s), b * s + t), "the mean of the norm is lost"),
        (lambda w, b, g, t, m, v, e, s: (out(w, s), t - m * s), "the old bias is lost"),
        (lambda w, b, g, t, m, v, e, s: (out(w, s), (b - m + t) * s), "beta is scaled"),
        (
            lambda w, b, g, t, m, v, e, s: (out(w, g / (v + e)), (b - m) * g / (v + e) + t),
            "divided by the variance and not by its root",
        ),
        (lambda w, b, g, t, m, v, e, s: (out(w, g / v**0.5), (b - m) * g / v**0.5 + t), "eps is not used"),
        (
            lambda w, b, g, t, m, v, e, s: (out(w, g / (v**0.5 + e)), (b - m) * g / (v**0.5 + e) + t),
            "eps stands outside the root",
        ),
        (lambda w, b, g, t, m, v, e, s: (-out(w, s), b), "computes something else"),
    ]

    @pytest.mark.parametrize(("make", "sentence"), MISTAKES)
    def test_mistakes(self, make, sentence):
        named(normalization.fold, folder(make), sentence)

    def test_forms(self):
        flat = folder(lambda w, b, g, t, m, v, e, s: (out(w, s), ((b - m) * s + t)[:, None]))
        named(normalization.fold, flat, "result 1, must return shape (5,)")


# ---------------------------------------------------------------------------------------- merge


def merger(make, count=sum):
    def merge(parts):
        means, variances = torch.stack([part[1] for part in parts]), torch.stack([part[2] for part in parts])
        n = torch.tensor([float(part[0]) for part in parts]).reshape(-1, *[1] * parts[0][1].ndim)
        share = n / n.sum()
        mean = (share * means).sum(0)
        result = make(share, means, variances, mean, n.sum())
        return count(part[0] for part in parts), *(result if isinstance(result, tuple) else (mean, result))

    return merge


def whole_variance(share, means, variances, mean, n):
    return (share * (variances + (means - mean) ** 2)).sum(0)


class TestMerge:
    def test_right(self, capsys):
        normalization.merge(merger(whole_variance))
        assert capsys.readouterr().out == "merge: no mistake found\n"

    MISTAKES = [
        (lambda p, means, v, mean, n: (means.mean(0), v.mean(0)), "every part counts the same in the mean"),
        (lambda p, means, v, mean, n: (mean + 1, v.mean(0)), "the mean of the whole is not the mean"),
        (lambda p, means, v, mean, n: (p * v).sum(0), "that spread is missing"),
        (
            lambda p, means, v, mean, n: (v + (means - mean) ** 2).mean(0),
            "every part counts the same in the variance",
        ),
        (lambda *known: whole_variance(*known) * known[-1] / (known[-1] - 1), "biased for unbiased"),
        (
            lambda p, means, v, mean, n: (p * v).sum(0) + ((means - mean) ** 2).mean(0),
            "the spread of the means counts every part the same",
        ),
        (lambda p, means, v, mean, n: (p * (v + (means - mean).abs())).sum(0), "without its square"),
        (lambda p, means, v, mean, n: v.sum(0), "the variance of the whole is not that of all its numbers"),
    ]

    @pytest.mark.parametrize(("make", "sentence"), MISTAKES)
    def test_mistakes(self, make, sentence):
        named(normalization.merge, merger(make), sentence)

    def test_count(self):
        named(
            normalization.merge,
            merger(whole_variance, count=lambda parts: len(list(parts))),
            "is the sum of the parts' n",
        )
        wrong = merger(whole_variance, count=lambda parts: float(sum(parts)))
        named(normalization.merge, wrong, "result 0, must return a whole number")


# ---------------------------------------------------------------------------------------- adain to a set


def setter(style=None, *, dim=(2, 3), unbiased=False, result=None, use=lambda var, eps: (var + eps).sqrt()):
    def adain_to_set(x, styles, eps=1e-5):
        pixels = torch.cat([each.flatten(2) for each in styles], 2)
        mean, var = (style or of_pixels)(styles, pixels, int(unbiased))
        own = x.mean(dim, keepdim=True), x.var(dim, correction=int(unbiased), keepdim=True)
        if result:
            return result(x, *own, mean, var, eps)
        return (x - own[0]) / use(own[1], eps) * use(var, eps) + mean

    return adain_to_set


def of_pixels(styles, pixels, correction):
    return pixels.mean(2)[..., None, None], pixels.var(2, correction=correction)[..., None, None]


def of_each(styles):
    return (torch.stack([f(s) for s in styles]) for f in (mean_of, var_of))


def mean_of(style):
    return style.mean((2, 3), keepdim=True)


def var_of(style):
    return style.var((2, 3), correction=0, keepdim=True)


def shares(styles):
    n = torch.tensor([float(style[0, 0].numel()) for style in styles]).reshape(-1, 1, 1, 1, 1)
    return n / n.sum()


def within(styles, pixels, correction):
    return of_pixels(styles, pixels, 0)[0], (shares(styles) * torch.stack([*map(var_of, styles)])).sum(0)


def mean_deviation(styles, pixels, correction):
    deviations = torch.stack([*map(var_of, styles)]).sqrt()
    return of_pixels(styles, pixels, 0)[0], (shares(styles) * deviations).sum(0) ** 2


def equal_pictures(styles, pixels, correction):
    means, variances = of_each(styles)
    return means.mean(0), variances.mean(0) + means.var(0, correction=0)


def equal_and_within(styles, pixels, correction):
    means, variances = of_each(styles)
    return means.mean(0), variances.mean(0)


def one_color(styles, pixels, correction):
    return pixels.mean(), pixels.var(correction=0)


class TestAdainToSet:
    def test_right(self, capsys):
        normalization.adain_to_set(setter())
        assert capsys.readouterr().out == "adain_to_set: no mistake found\n"

    MISTAKES = [
        ({"style": within}, "that spread is missing"),
        ({"style": mean_deviation}, "the deviations of the pictures are averaged"),
        ({"style": equal_pictures}, "every picture of the set counts the same"),
        ({"style": equal_and_within}, "means and variances of the pictures are averaged"),
        ({"style": lambda styles, *_: (mean_of(styles[0]), var_of(styles[0]))}, "only the first picture"),
        ({"style": lambda styles, *_: (mean_of(styles[-1]), var_of(styles[-1]))}, "only the last picture"),
        ({"style": one_color}, "all channels share one mean"),
        ({"unbiased": True}, "the unbiased variance: you divide by n - 1"),
        ({"dim": (0, 2, 3)}, "statistics of the wrong image: x is normalized with the moments of the whole batch"),
        ({"use": lambda var, eps: var.sqrt() + eps}, "eps stands outside the roots"),
        (
            {"result": lambda x, m, v, mean, var, eps: (x - m) * ((var + eps) / (v + eps)).sqrt()},
            "the mean of the set does not arrive",
        ),
        (
            {"result": lambda x, m, v, mean, var, eps: (x - m) / (v + eps).sqrt() + mean},
            "the deviation of the set does not arrive",
        ),
        (
            {"result": lambda x, m, v, mean, var, eps: x * ((var + eps) / (v + eps)).sqrt() + mean},
            "x keeps its own mean",
        ),
        ({"result": lambda x, *_: x + 1}, "other moments than the set"),
    ]

    @pytest.mark.parametrize(("options", "sentence"), MISTAKES)
    def test_mistakes(self, options, sentence):
        named(normalization.adain_to_set, setter(**options), sentence)


# ---------------------------------------------------------------------------------------- the experiment

SIZES = (2, 4, 8)


def found(**changed):
    memory, company = [[90.0 + s] * 3 for s in range(5)], [[50.0 + s, 70.0, 90.0] for s in range(5)]
    return {name: {"memory": memory, "company": company} | changed for name in ("full", "low")}


class TestResults:
    def test_right(self, capsys):
        normalization.results(found(), SIZES)
        assert capsys.readouterr().out == "results: no mistake found\n"

    MISTAKES = [
        ({"memory": None}, "must be a list of lists of numbers"),
        ({"memory": [[90.0] * 3] * 4}, "needs five seeds or more, and 3 sizes"),
        ({"memory": [[90.0 + s] * 2 for s in range(5)]}, "needs five seeds or more, and 3 sizes"),
        ({"memory": [[190.0 + s] * 3 for s in range(5)]}, "not between 0 and 100"),
        ({"memory": [[0.9 + s / 100] * 3 for s in range(5)]}, "give percent, not shares"),
        ({"memory": [[90.0] * 3] * 5}, "all seeds of"),
        ({"memory": [[80.0, 85.0, 90.0 + s] for s in range(5)]}, "the size of the test batch cannot matter"),
        ({"company": [[90.0 + s] * 3 for s in range(5)]}, "is company=True?"),
    ]

    @pytest.mark.parametrize(("changed", "sentence"), MISTAKES)
    def test_mistakes(self, changed, sentence):
        named(normalization.results, found(**changed), sentence, SIZES)

    def test_a_missing_contrast(self):
        named(normalization.results, {"full": found()["full"]}, 'results["low"]["memory"]', SIZES)


# ---------------------------------------------------------------------------------------- hidden tests

RIGHT = {
    "normalize": normalizer(),
    "batch_norm_step": stepper(),
    "fold": right_fold,
    "merge": merger(whole_variance),
    "adain_to_set": setter(),
}
TASKS = {
    "normalize": [normalizer(**options) for options, _ in TestNormalize.MISTAKES],
    "batch_norm_step": [stepper(**options) for options, _ in TestBatchNormStep.MISTAKES if "move" not in options],
    "fold": [folder(make) for make, _ in TestFold.MISTAKES],
    "merge": [merger(make) for make, _ in TestMerge.MISTAKES],
    "adain_to_set": [setter(**options) for options, _ in TestAdainToSet.MISTAKES],
}


def one_pass_variance(x, shared, eps=1e-5):
    mean = x.mean(DIMS[shared], keepdim=True)
    return (x - mean) / ((x**2).mean(DIMS[shared], keepdim=True) - mean**2 + eps).sqrt()


def one_pass_merge(share, means, variances, mean, n):
    return (share * (variances + means**2)).sum(0) - mean**2


@pytest.fixture(scope="module")
def cells():
    return master("a1-normalization.md")


@pytest.fixture(scope="module")
def solutions(cells):
    return solved(cells, "a1", TASKS)


class TestHidden:
    @pytest.mark.parametrize("task", TASKS)
    def test_the_solution_passes_check_and_hidden_tests(self, task, cells, solutions):
        getattr(normalization, task)(solutions[task])
        run_hidden(cells, f"a1-{task.replace('_', '-')}", solutions)

    @pytest.mark.parametrize("task", TASKS)
    def test_another_right_function_passes(self, task, cells, solutions):
        run_hidden(cells, f"a1-{task.replace('_', '-')}", solutions | {task: RIGHT[task]})

    @pytest.mark.parametrize(("task", "number"), [(task, i) for task in TASKS for i in range(len(TASKS[task]))])
    def test_a_mistake_fails(self, task, number, cells, solutions):
        with pytest.raises(AssertionError):
            run_hidden(cells, f"a1-{task.replace('_', '-')}", solutions | {task: TASKS[task][number]})

    @pytest.mark.parametrize(
        ("task", "function"), [("normalize", one_pass_variance), ("merge", merger(one_pass_merge))]
    )
    def test_the_shorter_formula_passes_the_check_and_fails(self, task, function, cells, solutions):
        getattr(normalization, task)(function)
        names = [name for name in cells if name.startswith(f"a1-{task}-hidden-extremes")]
        with pytest.raises(AssertionError):
            exec(cells[names[0]], solutions | {task: function})
