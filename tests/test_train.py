"""Training: the shared loop on a task that can be worked out by hand, and each script on a few pictures."""

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from stylemoments.train import loop
from stylemoments.train.pictures import render

SMALL = loop.Settings(steps=6, batch=4, rate=0.01, warmup=1, save_every=2, log_every=1, average=0.5)


class Line(nn.Module):
    """y = w x with noise, so that a step depends on torch's random numbers too."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.zeros(1))

    def forward(self, x, y):
        error = self.w * (x + 0.01 * torch.randn_like(x)) - y
        return {"loss": (error**2).mean(), "error": error.abs().mean()}


class LineTask:
    """Learn to double 12 numbers."""

    pictures = 12

    def __init__(self):
        self.model = Line()
        self.seen = []  # the rows of each step
        self.raw = []  # the weight after each step

    def batch(self, rows):
        self.seen.append(rows.tolist())
        x = rows.float() / 6 - 1
        return x, 2 * x

    def after_step(self, model, settings, step):
        self.raw.append(model.w.item())

    def sheet(self, model):
        return np.zeros((2, 2, 3), np.uint8)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """64 training pictures, in the folder where the scripts look for them."""
    folder = tmp_path_factory.mktemp("runs") / "pictures"
    return render(64, folder), folder.parent


def trained(task, settings, out=None, stop=None):
    """The weights after the steps, or None if it was stopped."""
    for record in loop.steps(task, settings, out):
        if record.step == stop:
            return None
    return {name: value.clone() for name, value in task.model.state_dict().items()}


def assert_resumes_bit_for_bit(make_task, settings, folder):
    """Stopped after the checkpoint of step 2, once more after that of step 4, and continued: nothing differs."""
    whole = trained(make_task(), settings)
    for stop in (3, 5):
        trained(make_task(), settings, folder, stop)
    resumed = trained(make_task(), settings, folder)
    assert whole.keys() == resumed.keys()
    for name, value in whole.items():
        assert torch.equal(value, resumed[name]), f"{name} differs after resuming"


# ------------------------------------------------------------------------------------- the loop


def test_every_picture_once_per_epoch():
    """12 pictures, 4 per step: steps 1 to 3 see each once, so do 4 to 6, in another order."""
    task = LineTask()
    trained(task, SMALL)
    first, second = sum(task.seen[:3], []), sum(task.seen[3:], [])
    assert sorted(first) == sorted(second) == list(range(12))
    assert first != second


def test_the_result_is_the_moving_average():
    """The first weight, then 9/11, 9/12, 9/13 of the way to the next, at last half: the decay of 1/2 is reached."""
    task = LineTask()
    result = trained(task, replace(SMALL, steps=12))
    average = task.raw[0]
    for n, weight in enumerate(task.raw[1:], start=1):
        average += (weight - average) * max(9 / (10 + n), 1 / 2)
    assert len(task.raw) == 12
    assert result["w"].item() == pytest.approx(average, rel=1e-5)


def test_without_averaging_the_result_is_the_last_weight():
    task = LineTask()
    result = trained(task, replace(SMALL, average=0.0))
    assert result["w"].item() == pytest.approx(task.raw[-1], rel=1e-6)


def test_the_first_step_of_adamw_is_the_rate():
    """Adam's first step goes by the learning rate, whatever the size of the gradient; vectors do not decay."""
    task = LineTask()
    trained(task, replace(SMALL, steps=1, cooldown=1.0))
    assert task.raw[0] == pytest.approx(SMALL.rate, rel=1e-4)


def test_a_stopped_run_ends_like_one_that_was_not(tmp_path):
    assert_resumes_bit_for_bit(LineTask, SMALL, tmp_path / "line")
    curve = [json.loads(line) for line in (tmp_path / "line" / loop.CURVE).read_text("utf-8").splitlines()]
    assert [line["step"] for line in curve] == [1, 2, 3, 4, 5, 6], "each step once"


def test_other_settings_are_not_continued(tmp_path):
    trained(LineTask(), SMALL, tmp_path, stop=3)
    with pytest.raises(ValueError, match="other settings.*another folder"):
        trained(LineTask(), replace(SMALL, rate=0.02), tmp_path)


def test_a_batch_larger_than_the_world_is_refused():
    with pytest.raises(ValueError, match="batch of 13.*there are 12"):
        next(loop.steps(LineTask(), replace(SMALL, batch=13)))


# ------------------------------------------------------------------------------------- the judge


def test_augmenting_leaves_a_plain_picture_plain():
    """One color stays that color under shift and blur; only the noise is left, at most 0.08 deviation, 0 on average."""
    from stylemoments.train.judge import NOISE, augment

    torch.manual_seed(0)
    error = augment(torch.full((16, 3, 64, 64), 0.5)) - 0.5
    assert error.std((-3, -2, -1)).max() < NOISE * 1.1
    assert error.mean().abs() < 1e-3


def test_the_blur_of_a_point_is_pascals_triangle():
    from stylemoments.train.judge import blurred

    point = torch.zeros(1, 3, 9, 9)
    point[..., 4, 4] = 256
    line = torch.tensor([1.0, 4, 6, 4, 1])
    torch.testing.assert_close(blurred(point)[0, 0, 2:7, 2:7], torch.outer(line, line))


# ------------------------------------------------------------------------------------- tiny-dino


def test_balanced_assignments_use_all_prototypes_alike():
    """Each of 6 pictures gives away 1, each of 3 prototypes receives 2."""
    from stylemoments.train.dino import balanced

    torch.manual_seed(0)
    shares = balanced(torch.randn(6, 3))
    torch.testing.assert_close(shares.sum(1), torch.ones(6))
    torch.testing.assert_close(shares.sum(0), torch.full((3,), 2.0), atol=0.1, rtol=0)


def test_a_crop_of_the_whole_picture_is_the_picture_or_its_mirror(monkeypatch):
    from stylemoments.train import dino

    monkeypatch.setattr(dino, "LIGHT", 0.0)
    monkeypatch.setattr(dino, "TURNED", 0.0)
    monkeypatch.setattr(dino, "blurred", lambda images: images)
    torch.manual_seed(0)
    images = torch.rand(8, 3, 64, 64)
    made = dino.crops(images, 64, (1.0, 1.0)) / 2 + 0.5  # it makes them for the network, in [-1, 1]
    kept = (made - images).abs().amax((1, 2, 3)) < 1e-4
    mirrored = (made - images.flip(-1)).abs().amax((1, 2, 3)) < 1e-4
    assert (kept ^ mirrored).all()
    assert kept.any() and mirrored.any()


def test_neighbors_by_hand():
    """Two clusters far apart: the neighbors of a picture are those of its own, so every answer is right."""
    from stylemoments.train.dino import neighbors
    from stylemoments.world import World

    sample = World(0).sample(1, object="cat", style="plain", place="nowhere")
    facts = {"styles": ["plain", "neon light"] * 20, "objects": ["cat", "dog"] * 20, "places": ["nowhere"] * 40,
             "hues": [float(sample.hues[0]), 0.5] * 20}  # fmt: skip
    known = torch.tensor([[1.0, 0.0], [0.0, 1.0]]).repeat(20, 1)
    found = neighbors(torch.tensor([[1.0, 0.0]]), sample, known, facts)
    assert found == {"styles": 1, "objects": 1, "places": 1, "hue_error": pytest.approx(0, abs=1e-3), "n": 1}


# ------------------------------------------------------------------------------------- tiny-subject


@pytest.fixture(scope="module")
def subject_task():
    from stylemoments.train.subject import Task

    torch.manual_seed(0)
    return Task(64)  # one pose of each drawing, eight grounds of each place


def test_a_batch_shows_each_identity_twice(subject_task):
    """Three objects, four identities of each, two pictures: no two pictures alike, all in [0, 1]."""
    images = subject_task.batch(torch.tensor([3, 7, 9]))[0]
    assert images.shape == (12, 2, 3, 64, 64)
    assert images.min() >= 0 and images.max() <= 1
    flat = images.flatten(0, 1).flatten(1)
    assert (torch.cdist(flat, flat) + 100 * torch.eye(24)).min() > 1, "another place behind each"


def test_identities_of_an_object_differ(subject_task, monkeypatch):
    """On a white ground, unmirrored, with one pose of each drawing: an identity's pictures are the same, no others."""
    monkeypatch.setattr(subject_task, "grounds", torch.full_like(subject_task.grounds, 255))
    images = subject_task.batch(torch.arange(48))[0]
    torch.testing.assert_close(images[:, 0], images[:, 1])
    first = images[:, 0].unflatten(0, (48, 4)).flatten(2)
    apart = torch.cdist(first, first) + 100 * torch.eye(4)
    assert (apart.amin((1, 2)) > 0.1).float().mean() > 0.9, (
        "but for what is gray, where the order of colors says nothing"
    )


def test_no_subject_and_no_held_out_hand_is_learned_from(monkeypatch):
    from stylemoments.train import subject
    from stylemoments.world import HANDS, OBJECTS

    seen = []
    monkeypatch.setattr(subject, "drawing", lambda name, hand, size: seen.append((name, hand)))
    monkeypatch.setattr(subject, "pose", lambda *_, **__: np.zeros((64, 64, 4), np.float32))
    subject.poses(1, seed=0)
    assert set(seen) == {(noun, hand) for noun in OBJECTS for hand in HANDS}


def test_the_contrast_by_hand():
    """Two identities, three pictures at cosine 1 and one at -1; the loss is that of the four softmaxes."""
    from stylemoments.train.subject import TEMPERATURE, contrast

    a = torch.tensor([1.0, 0.0])
    found = contrast(torch.stack([torch.stack([a, a]), torch.stack([a, -a])]))
    hot, cold = np.exp(1 / TEMPERATURE), np.exp(-1 / TEMPERATURE)
    losses = [-np.log(hot / (2 * hot + cold))] * 2 + [-np.log(cold / (2 * hot + cold)), np.log(3)]
    assert found["loss"].item() == pytest.approx(np.mean(losses), rel=1e-5)


def test_the_contrast_is_the_supervised_contrastive_loss():
    """Khosla et al., equation 2, written out with loops over pictures and labels."""
    from stylemoments.train.subject import TEMPERATURE, contrast

    torch.manual_seed(0)
    features = torch.nn.functional.normalize(torch.randn(5, 2, 7, dtype=torch.float64), dim=-1)
    z, labels, losses = features.flatten(0, 1), [i // 2 for i in range(10)], []
    for i in range(10):
        rest = [j for j in range(10) if j != i]
        total = sum((z[i] @ z[j] / TEMPERATURE).exp() for j in rest)
        losses += [-((z[i] @ z[p] / TEMPERATURE).exp() / total).log() for p in rest if labels[p] == labels[i]]
    assert contrast(features)["loss"].item() == pytest.approx(torch.stack(losses).mean().item())


def test_told_apart_by_hand():
    """One thing lies along x, the other along y with a picture astray at (0.8, 0.6), whose nearest is the first."""
    from stylemoments.train.subject import told_apart

    x, y, astray = [1.0, 0.0], [0.0, 1.0], [0.8, 0.6]
    images, others = torch.tensor([[x, x], [y, astray]]), torch.tensor([[y], [y]])
    found = told_apart(lambda features: features, images, others)
    assert found == {"nearest": 0.75, "within": 0.8, "between": 0.4, "class": 0.4, "n": 4}


def test_the_things_of_the_figures():
    from stylemoments.train.subject import held_out, subjects

    for n, (images, others) in zip((16, 48), (subjects(), held_out()), strict=True):
        assert images.shape == (n, 5, 3, 64, 64)
        assert others.shape == (n, 8, 3, 64, 64)


def test_changed_subjects():
    """Mirrored twice, or with colors exchanged three times, a picture is what it was; the eight styles have names."""
    from stylemoments.train.subject import changed, subjects
    from stylemoments.world import STYLES

    ways, images = changed(), subjects()[0]
    assert len(ways) == 3 + len(STYLES) - 1
    assert all(
        pictures.shape == images.shape and 0 <= pictures.min() <= pictures.max() <= 1 for pictures in ways.values()
    )
    torch.testing.assert_close(ways["mirrored"].flip(-1), images)
    torch.testing.assert_close(ways["with their colors exchanged"].roll(2, dims=2), images)


# ------------------------------------------------------------------------------------- the scripts


def test_a_stopped_subject_ends_like_one_that_was_not(tmp_path):
    from stylemoments.train import subject

    def make_task():
        torch.manual_seed(0)
        return subject.Task(64)

    small = replace(subject.SETTINGS, steps=6, batch=2, warmup=1, save_every=2)
    assert_resumes_bit_for_bit(make_task, small, tmp_path)


@pytest.mark.parametrize("script", ["judge", "dino"])
def test_a_stopped_script_ends_like_one_that_was_not(script, pictures, tmp_path):
    from importlib import import_module

    module = import_module(f"stylemoments.train.{script}")

    def make_task():
        torch.manual_seed(0)
        return module.Task(pictures[0])

    assert_resumes_bit_for_bit(make_task, replace(module.SETTINGS, steps=6, batch=8, warmup=1, save_every=2), tmp_path)


@pytest.mark.parametrize(
    "script, files, figures",
    [
        ("judge", {"model.safetensors"}, {"trained pairs", "held-out pairs", "held-out hand"}),
        ("dino", {"model.safetensors", "config.json"}, {"trained", "random weights"}),
        ("subject", {"model.safetensors"}, {"subjects", "held-out hand"}),
    ],
)
def test_smoke(script, files, figures, pictures):
    out = pictures[1] / script
    command = [sys.executable, "-m", f"stylemoments.train.{script}", "--smoke", "--out", str(out)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    made = {path.name for path in out.iterdir()}
    assert files | {"figures.json", loop.CHECKPOINT, loop.CURVE, "sheet-000002.png", "sheet-000004.png"} == made
    assert json.loads((out / "figures.json").read_text("utf-8")).keys() == figures
