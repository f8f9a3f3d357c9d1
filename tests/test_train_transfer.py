"""The training of the slim VGG and of AdaIN's decoder: what is folded stays the same, what is random stays in range."""

from dataclasses import replace

import pytest
import torch
from test_train import SMALL, assert_resumes_bit_for_bit

from stylemoments import gallery
from stylemoments.train import adain, measure_transfer, vgg
from stylemoments.train.patterns import patterns
from stylemoments.vgg import DEEPEST_TINY, LAYERS, VGG

NINE = LAYERS[: LAYERS.index(DEEPEST_TINY) + 1]


@pytest.fixture(scope="module")
def distilling():
    """The student after norms with statistics of their own, in eval mode."""
    torch.manual_seed(0)
    model = vgg.Distilling()
    for module in model.student.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
            module.weight.data.uniform_(0.5, 2)
            module.bias.data.normal_()
    return model.eval()


def images(n: int = 2, side: int = 48) -> torch.Tensor:
    return torch.rand(n, 3, side, side, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def test_folded_norms_change_nothing(distilling):
    plain = VGG(vgg.WIDTH, DEEPEST_TINY, padding="reflect")
    plain.load_state_dict(vgg.folded(distilling.student))
    for layer, x in distilling.student(images(), NINE).items():
        torch.testing.assert_close(plain(images(), [layer])[layer], x, atol=1e-3, rtol=1e-4)


@torch.no_grad()
def test_rescaling_brings_each_mean_to_one_and_changes_a_factor_only(distilling):
    state = vgg.folded(distilling.student)
    before, after = (VGG(vgg.WIDTH, DEEPEST_TINY, padding="reflect") for _ in range(2))
    before.load_state_dict(state)
    after.load_state_dict(vgg.rescaled(state, images()))
    seen = vgg.standardized(images())
    for old, new in zip(before(seen, NINE).values(), after(seen, NINE).values(), strict=True):
        assert abs(new.mean().item() - 1) < 1e-3
        torch.testing.assert_close(new, old / old.mean(), atol=1e-3, rtol=1e-3)


def test_the_teacher_knows_a_cat_and_is_never_trained():
    teacher = vgg.Teacher().train()
    assert not teacher.training and not any(p.requires_grad for p in teacher.parameters())
    cat = gallery.load("chelsea", 224)[..., :224, 60:284]
    _, logits = teacher(vgg.standardized(cat))
    assert logits.argmax().item() in range(281, 286), "tabby, tiger cat, Persian, Siamese or Egyptian cat"


def test_a_step_of_distillation_has_a_gradient_for_every_weight_of_the_student(distilling):
    losses = distilling.train()(images(4, 64))
    losses["loss"].backward()
    assert set(losses) == {"loss", *(f"stage{i}" for i in range(5)), "answers", "agree"}
    assert all(p.grad is not None and p.grad.isfinite().all() for p in distilling.student.parameters())
    assert all(p.grad is None for p in distilling.teacher.parameters())
    distilling.eval()


@pytest.mark.parametrize("make", [lambda: patterns(6, 40), lambda: vgg.augmented(images(6, 40))])
def test_random_pictures_stay_in_range_and_follow_the_seed(make):
    torch.manual_seed(1)
    first = make()
    torch.manual_seed(1)
    assert torch.equal(first, make())
    assert first.shape == (6, 3, 40, 40) and first.min() >= 0 and first.max() <= 1
    assert not torch.equal(first, make())


def test_crops_come_from_the_picture_that_a_row_names():
    torch.manual_seed(0)
    crops = vgg.Crops(("duck", "scarlet-macaw"), size=32)
    dark, red, dark_again = crops(torch.tensor([0, 1, 2]))
    assert dark.shape == (3, 32, 32)
    assert red[0].mean() > red[2].mean() + 0.1, "the macaw is red"
    assert not torch.equal(dark, dark_again), "another crop of the same picture"


def test_training_the_decoder_resumes_bit_for_bit(tmp_path):
    settings = replace(SMALL, batch=8, pictures=16)

    def task():
        torch.manual_seed(0)
        return adain.Task(settings)

    assert_resumes_bit_for_bit(task, settings, tmp_path)
    assert len(list(tmp_path.glob("sheet-*.png"))) == 3


def test_the_encoder_is_not_trained():
    task = adain.Task(replace(SMALL, batch=8))
    content, style = task.batch(torch.arange(8))
    assert content.shape == style.shape == (8, 3, adain.SIDE, adain.SIDE)
    task.model(content, style)["loss"].backward()
    assert {name.split(".")[1] for name, p in task.model.named_parameters() if p.grad is not None} == {"decoder"}


def test_test_pictures_are_not_trained_on():
    for task_names in (gallery.names("photograph", "train"), gallery.names("painting", "train")):
        assert not set(task_names) & set(gallery.names(split="test"))
    drawn = measure_transfer.pairs(12)
    assert len({photograph for photograph, _ in drawn}) == 12, "each test photograph once"
    assert drawn == measure_transfer.pairs(12)
    assert {split for pair in drawn for split in (gallery.entry(name).split for name in pair)} == {"test"}


def test_a_linear_reading_explains_what_is_linear():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(200, 3, dtype=torch.float64, generator=generator)
    y = torch.stack([2 * x[:, 0] - x[:, 2] + 1, torch.randn(200, dtype=torch.float64, generator=generator)], 1)
    share = measure_transfer._explained(x[:100], y[:100], x[100:], y[100:])
    assert abs(share - 0.5) < 0.1, "all of the first, nothing of the second"
