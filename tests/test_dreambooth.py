"""DreamBooth: who hears which words, losses by hand and by diffusers' formulas, exact resume, files that load."""

import copy
import json
import os
import socket
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
)
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0
from diffusers.training_utils import _collate_lora_metadata, compute_snr
from diffusers.utils import convert_state_dict_to_diffusers
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from safetensors import safe_open
from torch import nn
from torch.testing import assert_close

from stylemoments import diffusion, dreambooth, files
from stylemoments.dreambooth import CLASS, SUBJECT, DreamBooth, Settings

FEW = {"steps": 2, "batch": 2, "rate": 1e-2}
SIZES = ((20, 24), (16, 18), (40, 33))  # of the subject's pictures


def equal(found, expected, **options):
    """Bit for bit."""
    assert_close(found, expected, rtol=0, atol=0, **options)


def pictures(values, sizes=((16, 16),)):
    """Pictures of one gray each."""
    return [torch.full((3, *sizes[i % len(sizes)]), value) for i, value in enumerate(values)]


def noisy_pictures(n, seed=0, sizes=SIZES):
    generator = torch.Generator().manual_seed(seed)
    return [torch.rand(3, *sizes[i % len(sizes)], generator=generator) for i in range(n)]


def trainer(pipe, *, images=None, classes=None, token="sks", **changes):
    """A DreamBooth of a copy of a pipeline."""
    settings = Settings(**FEW | changes)
    images = noisy_pictures(3) if images is None else images
    classes = torch.stack(noisy_pictures(4, 1, ((16, 16),))) if classes is None else classes
    return DreamBooth(copy.deepcopy(pipe), images, token, "dog", class_images=classes, settings=settings)


def with_prediction(pipe, kind):
    pipe = copy.deepcopy(pipe)
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, prediction_type=kind)
    return pipe


def weights(dream):
    return {name: p.detach().clone() for name, p in dream.parameters().items()}


def finished(dream, folder=None, **options):
    return [*dream.train(folder, **options)]


def drawn(pipe, prompt="a sks dog"):
    return diffusion.generate(pipe, prompt, steps=2, guidance=1.0)


# ------------------------------------------------------------------------------------- settings


def test_defaults_have_the_types_they_say():
    kinds = {"tuple[str, ...]": tuple, "int | None": int, "float | None": float}
    for size in diffusion.SIZES:
        for rank in (None, 4):
            settings = dreambooth.defaults(size, rank=rank)
            for field in fields(settings):
                value = getattr(settings, field.name)
                kind = kinds.get(str(field.type), field.type)
                assert type(value) is kind or (value is None and "None" in str(field.type)), (field.name, value)
            assert settings.rank == rank


def test_defaults_take_changes():
    assert dreambooth.defaults("tiny", steps=7, seed=3) == replace(dreambooth.defaults("tiny"), steps=7, seed=3)
    assert dreambooth.defaults("sd15", rank=8).rate > dreambooth.defaults("sd15").rate
    with pytest.raises(ValueError, match="size must be one of tiny, sd15, sdxl; got 'huge'"):
        dreambooth.defaults("huge")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 0}, "steps is 1 or more; got 0"),
        ({"batch": 0}, "batch is 1 or more; got 0"),
        ({"rate": 0.0}, "rate is above 0; got 0.0"),
        ({"rate": float("nan")}, "rate is above 0; got nan"),
        ({"prior_weight": -1.0}, "prior_weight is 0 or more; got -1.0"),
        ({"text": "some"}, "text is one of frozen, token, all; got 'some'"),
        ({"rank": 0}, "rank is 1 or more, or None for all weights; got 0"),
        ({"alpha": 0.0}, "alpha is above 0, or None for the rank; got 0.0"),
        ({"targets": "to_q"}, "targets are names, one or more; got 'to_q'"),
        ({"targets": ()}, r"targets are names, one or more; got \(\)"),
        ({"snr_gamma": 0.0}, "snr_gamma is above 0, or None; got 0.0"),
        ({"zoom": 0.9}, "zoom is 1 or more; got 0.9"),
        ({"accumulate": 3}, "accumulate divides batch; got 3 with a batch of 2"),
        ({"precision": "half"}, "precision is one of fp32, bf16, fp16; got 'half'"),
        ({"average": 1.0}, r"average lies in \[0, 1\), or is None; got 1.0"),
        ({"weight_decay": -1.0}, "weight_decay is 0 or more; got -1.0"),
        ({"clip": 0.0}, "clip is above 0; got 0.0"),
        ({"seed": -1}, "seed is 0 or more; got -1"),
    ],
)
def test_settings_refuse(changes, message):
    with pytest.raises(ValueError, match=message):
        Settings(**FEW | changes)


# ------------------------------------------------------------------------------------- formulas


def test_snr_weights_by_hand():
    # alpha_bar 0.5, 0.9, 0.2: the ratios are 1, 9, 1/4; gamma 2 makes them 1, 2, 1/4
    alpha_bar = torch.tensor([0.5, 0.9, 0.2])
    for kind, expected in {
        "sample": [1, 2, 1 / 4], "epsilon": [1, 2 / 9, 1], "v_prediction": [1 / 2, 2 / 10, 1 / 5],
    }.items():  # fmt: skip
        assert_close(
            dreambooth.snr_weights(alpha_bar, kind, 2.0), torch.tensor(expected, dtype=torch.float32), msg=kind
        )
        equal(dreambooth.snr_weights(alpha_bar, kind, None), torch.ones(3))


@pytest.mark.parametrize("kind", diffusion.PREDICTION_TYPES)
def test_snr_weights_where_no_signal_is_left(kind):
    found = dreambooth.snr_weights(torch.tensor([0.0]), kind, 5.0)
    equal(found, torch.tensor([1.0 if kind == "epsilon" else 0.0]))


def test_the_three_predictions_weigh_the_clean_error_alike():
    # an error of the clean latents d is sqrt(s) d in the noise and sqrt(1 + s) d in v
    alpha_bar = torch.tensor([0.1, 0.7, 0.99])
    ratio = alpha_bar / (1 - alpha_bar)
    clean, noise, v = (dreambooth.snr_weights(alpha_bar, kind, 5.0) for kind in ("sample", "epsilon", "v_prediction"))
    assert_close(noise * ratio, clean)
    assert_close(v * (1 + ratio), clean)


def test_targets_by_hand():
    clean, noise, alpha_bar = torch.tensor([2.0]), torch.tensor([1.0]), torch.tensor(0.36)
    for kind, expected in {"epsilon": 1.0, "v_prediction": 0.6 * 1 - 0.8 * 2, "sample": 2.0}.items():
        assert_close(dreambooth.training_target(clean, noise, alpha_bar, kind), torch.tensor([expected]), msg=kind)


def test_unknown_prediction_type():
    for call in (
        lambda: dreambooth.training_target(torch.zeros(1), torch.zeros(1), torch.tensor(0.5), "flow"),
        lambda: dreambooth.snr_weights(torch.tensor([0.5]), "flow", None),
    ):
        with pytest.raises(ValueError, match="epsilon, v_prediction, sample; got 'flow'"):
            call()


def test_loss_by_hand_in_any_order():
    squares, which = torch.tensor([4.0, 1.0, 3.0]), torch.tensor([CLASS, SUBJECT, SUBJECT])
    found = dreambooth.dreambooth_loss(squares, which, 0.5)
    equal([x.item() for x in found], [(1 + 3) / 2 + 0.5 * 4, 2.0, 4.0])
    loss, subject, prior = dreambooth.dreambooth_loss(squares[1:], which[1:], 0.5)
    assert loss == subject == 2 and prior is None


# ------------------------------------------------------------------------------------- crops


def test_crop_by_hand():
    # 4 x 8, both corners of the last 4 x 4: no resizing
    image = torch.arange(32.0).reshape(1, 4, 8).expand(3, 4, 8) / 31
    left = dreambooth.crop(image, 4, 1.0, torch.tensor([0.0, 0.0]))
    right = dreambooth.crop(image, 4, 1.0, torch.tensor([0.0, 0.999]))
    equal(left.image, image[:, :, :4])
    equal(right.image, image[:, :, 4:])
    assert (left.time_ids, right.time_ids) == ((4, 8, 0, 0, 4, 4), (4, 8, 0, 4, 4, 4))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("u", [0.0, 0.5, 1 - 2**-24])
def test_crops_stay_inside(size, u):
    found = dreambooth.crop(torch.rand(3, *size), 16, 1.37, torch.tensor([u, u]))
    assert found.image.shape == (3, 16, 16)
    assert found.time_ids[:2] == size and found.time_ids[4:] == (16, 16)


# ------------------------------------------------------------------------------------- what a step draws


class Glass(nn.Module):
    """An autoencoder whose latents are the gray of the picture."""

    class config:
        scaling_factor, block_out_channels = 0.5, (8, 8)

    dtype, device = torch.float32, torch.device("cpu")

    def encode(self, images):
        gray = images.mean((1, 2, 3))[:, None, None, None].expand(-1, 4, 8, 8)
        spread = type("Spread", (), {"mean": gray, "std": torch.zeros_like(gray)})
        return type("Output", (), {"latent_dist": spread})


def test_every_picture_is_beside_its_prompt(tiny_pipe):
    # the network predicts the clean latents, so the target shows each picture: gray * 2 - 1, halved
    dream = trainer(
        with_prediction(tiny_pipe, "sample"), batch=4, images=pictures([0.1, 0.2, 0.3], SIZES),
        classes=torch.stack(pictures([0.6, 0.7, 0.8, 0.9, 1.0])),
    )  # fmt: skip
    dream.pipe.register_modules(vae=Glass())
    for step in range(3):
        batch = dream.batch(step)
        grays = [round(gray, 4) for gray in (batch.target[:, 0, 0, 0] * 2 / 2 + 0.5).tolist()]
        turns = range(4 * step, 4 * step + 4)
        assert grays == [(0.1, 0.2, 0.3)[i % 3] for i in turns] + [(0.6, 0.7, 0.8, 0.9, 1.0)[i % 5] for i in turns]
        assert batch.which.tolist() == [SUBJECT if gray < 0.5 else CLASS for gray in grays]


def test_every_row_hears_its_own_words(pipe):
    dream, heard = trainer(pipe), {}
    said = diffusion.encode_prompts(pipe, ["a sks dog", "a dog"])
    dream.pipe.unet.register_forward_pre_hook(lambda module, args, options: heard.update(options), with_kwargs=True)
    batch = dream.batch(0)
    for order in (torch.arange(4), torch.tensor([3, 0, 2, 1])):
        shuffled = batch._replace(which=batch.which[order], time_ids=batch.time_ids[order])
        dream.loss(shuffled)
        assert_close(heard["encoder_hidden_states"], said.cond[shuffled.which])
        if said.pooled is not None:
            assert_close(heard["added_cond_kwargs"]["text_embeds"], said.pooled[shuffled.which])
            assert_close(heard["added_cond_kwargs"]["time_ids"], shuffled.time_ids.float())


def test_every_picture_of_the_batch_has_a_weight(tiny_pipe):
    dream = trainer(tiny_pipe, snr_gamma=5.0, batch=3)
    batch = dream.batch(0)
    snr = compute_snr(dream.pipe.scheduler, batch.times)
    assert batch.weights.shape == (6,)
    assert_close(batch.weights, snr.clamp(max=5.0) / snr)


def test_class_pictures_have_a_size_of_their_own(tiny_pipe):
    dream = trainer(tiny_pipe, batch=3, zoom=1.5)
    for step in range(3):
        time_ids = dream.batch(step).time_ids.tolist()
        assert [tuple(ids[:2]) for ids in time_ids[:3]] == [SIZES[i] for i in range(3)]
        assert time_ids[3:] == [[16, 16, 0, 0, 16, 16]] * 3


def test_crops_differ_between_steps_and_come_again(tiny_pipe):
    dream, again = trainer(tiny_pipe, batch=3, zoom=1.5), trainer(tiny_pipe, batch=3, zoom=1.5)
    crops = [tuple(map(tuple, dream.batch(step).time_ids[:3].tolist())) for step in range(6)]
    assert len(set(crops)) == 6
    equal(again.batch(4), dream.batch(4))


def test_every_draw_depends_on_step_seed_and_kind(tiny_pipe):
    dream, other = trainer(tiny_pipe), trainer(tiny_pipe, seed=1)
    noises = [dream._draws(0, SUBJECT)[4], dream._draws(1, SUBJECT)[4], dream._draws(0, CLASS)[4]]
    noises += [other._draws(0, SUBJECT)[4]]
    assert len({noise.sum().item() for noise in noises}) == 4
    whole = torch.cat([noise.flatten() for noise in noises])
    assert abs(whole.mean()) < 0.1 and abs(whole.std() - 1) < 0.1


def test_the_prior_leaves_the_subjects_draws_alone(tiny_pipe):
    both, alone = trainer(tiny_pipe).batch(5), trainer(tiny_pipe, prior_weight=0.0).batch(5)
    equal([x[:2] for x in both], list(alone))


def test_a_share_is_a_part_of_the_whole(tiny_pipe):
    dream = trainer(tiny_pipe, batch=4)
    whole = dream.batch(2)
    for first in range(2):
        equal(list(dream.batch(2, slice(first, None, 2))), [x[first::2] for x in whole])


def test_class_pictures_can_be_replaced(tiny_pipe):
    dream = trainer(with_prediction(tiny_pipe, "sample"))
    before = dream.batch(0)
    dream.class_images = torch.zeros(2, 3, 16, 16)
    after = dream.batch(0)
    equal(after.target[:2], before.target[:2])
    assert not torch.equal(after.target[2:], before.target[2:])


# ------------------------------------------------------------------------------------- the loss


def plain_loss(pipe, dream, step, gamma, weight):
    """The loss with diffusers' own formulas, the subject's and the class's pictures one after the other."""
    scheduler, parts = pipe.scheduler, []
    for kind, prompt in ((SUBJECT, "a sks dog"), (CLASS, "a dog")):
        _, numbers, places, times, noise, spread = dream._draws(step, kind)
        images, squares = dream.class_images if kind == CLASS else dream.images, []
        for number, u, t, e, z in zip(numbers, places, times, noise, spread, strict=True):
            image = images[number % len(images)]
            if kind == SUBJECT:
                image = dreambooth.crop(image, 16, 1 + (dream.settings.zoom - 1) * u[2].item(), u[:2]).image
            posterior = pipe.vae.encode(image[None] * 2 - 1).latent_dist
            clean = (posterior.mean + posterior.std * z) * pipe.vae.config.scaling_factor
            noisy = scheduler.add_noise(clean, e[None], t[None])
            target = {"epsilon": e[None], "sample": clean}.get(scheduler.config.prediction_type)
            target = scheduler.get_velocity(clean, e[None], t[None]) if target is None else target
            output = pipe.unet(noisy, t, encoder_hidden_states=diffusion.encode_prompts(pipe, prompt).cond).sample
            squares.append(nn.functional.mse_loss(output, target) * snr_weight(scheduler, t, gamma))
        parts.append(sum(squares) / len(squares))
    return parts[0] + weight * parts[1]


def snr_weight(scheduler, t, gamma):
    if gamma is None:
        return 1.0
    snr = compute_snr(scheduler, t[None])[0]
    per = {"epsilon": snr, "v_prediction": snr + 1, "sample": 1.0}
    return min(snr, gamma) / per[scheduler.config.prediction_type]


@pytest.mark.parametrize("gamma", [None, 5.0])
@pytest.mark.parametrize("kind", diffusion.PREDICTION_TYPES)
@torch.no_grad()
def test_loss_equals_diffusers_formulas(tiny_pipe, kind, gamma):
    plain = with_prediction(tiny_pipe, kind)
    dream = trainer(plain, snr_gamma=gamma, prior_weight=0.7, zoom=1.5)
    for step in (0, 3):
        loss, subject, prior = dream.loss(dream.batch(step))
        assert_close(loss, plain_loss(plain, dream, step, gamma, 0.7), atol=1e-5, rtol=1e-5)
        assert_close(loss, subject + 0.7 * prior)


def gradients(dream, part, batch=None):
    """Of one of loss, subject and prior, with respect to everything that is trained, in one vector."""
    parts = dream.loss(dream.batch(0) if batch is None else batch)
    found = torch.autograd.grad(parts[part], [*dream.parameters().values()])
    return torch.cat([g.flatten() for g in found])


def test_the_prior_reaches_the_network_and_lambda_scales_it(tiny_pipe):
    whole, subject, prior = (gradients(trainer(tiny_pipe, prior_weight=0.5), part) for part in range(3))
    assert prior.norm() > 1e-3 * subject.norm() > 0
    assert_close(whole, subject + 0.5 * prior, atol=1e-5, rtol=1e-4)


def test_no_prior_weight_is_no_class_pictures(tiny_pipe):
    ignored, absent = trainer(tiny_pipe, prior_weight=0.0), copy.deepcopy(tiny_pipe)
    absent = DreamBooth(absent, noisy_pictures(3), "sks", "dog", settings=Settings(**FEW, prior_weight=0.0))
    assert finished(ignored) == finished(absent)
    equal(weights(ignored), weights(absent))


def test_checkpointing_changes_no_gradient(tiny_pipe):
    dreams = [trainer(tiny_pipe, checkpointing=on, rank=2) for on in (False, True)]
    assert [record.loss for record in finished(dreams[0])] == pytest.approx(
        [record.loss for record in finished(dreams[1])], abs=1e-5
    )
    assert_close(weights(dreams[0]), weights(dreams[1]), atol=1e-5, rtol=1e-4)


def test_accumulating_changes_no_gradient(tiny_pipe):
    dreams = [trainer(tiny_pipe, accumulate=parts, batch=4, text="all") for parts in (1, 2, 4)]
    whole, *parts = ([(r.loss, r.subject, r.prior) for r in finished(dream)] for dream in dreams)
    for part in parts:
        assert_close(torch.tensor(part), torch.tensor(whole), atol=1e-4, rtol=1e-4)


def test_accumulated_gradients_are_those_of_the_whole(tiny_pipe):
    dreams = [trainer(tiny_pipe, accumulate=parts, batch=4, steps=1) for parts in (1, 2)]
    runs = [dreambooth._Run(dream) for dream in dreams]
    for run in runs:
        run._update = lambda: None
        run.step(0)
    found = [torch.cat([p.grad.flatten() for p in dream.parameters().values()]) for dream in dreams]
    assert_close(found[0], found[1], atol=1e-5, rtol=1e-5)


def test_the_loss_falls_on_one_batch(tiny_pipe):
    dream = trainer(tiny_pipe, steps=25, rate=1e-2)
    fixed = dream.batch(0)
    dream.batch = lambda step, share: fixed
    losses = [record.loss for record in dream.train()]
    assert losses[-1] < 0.5 * losses[0]


# ------------------------------------------------------------------------------------- precision


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_comes_near(tiny_pipe, precision):
    full, half = (trainer(tiny_pipe, precision=each) for each in ("fp32", precision))
    first = [finished(dream)[0].loss for dream in (full, half)]
    assert first[0] == pytest.approx(first[1], rel=0.02) and first[0] != first[1]
    assert {p.dtype for p in half.parameters().values()} == {torch.float32}
    assert all(p.isfinite().all() for p in half.parameters().values())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("text", ["frozen", "all"])
def test_lora_trains_beside_frozen_half_precision(pipe, text, precision):
    half = copy.deepcopy(pipe)
    for module in (half.unet, half.vae, *dreambooth._encoders(half)):
        nn.Module.to(module, torch.bfloat16)
    options = {"rank": 2, "text": text, "targets": ("to_q", "to_v"), "steps": 1}
    dream, full = trainer(half, precision=precision, **options), trainer(pipe, **options)
    before = weights(dream)
    (record,) = dream.train()
    with torch.no_grad():
        assert record.loss == pytest.approx(full.loss(full.batch(0))[0].item(), rel=0.03)
    assert {p.dtype for p in before.values()} == {torch.float32}
    assert all(p.isfinite().all() for p in dream.parameters().values())
    same = [name for name, p in weights(dream).items() if torch.equal(p, before[name])]
    assert all(name.startswith("text_0.encoder.layers.1") for name in same), "XL does not read that layer"
    assert not same or hasattr(pipe, "text_encoder_2")
    assert dream.pipe.unet.dtype == dream.pipe.vae.dtype == torch.bfloat16
    assert drawn(dream.pipe).isfinite().all()


# ------------------------------------------------------------------------------------- what is trained


def parts_of(names):
    """Which parts of the pipeline the names are of, LoRA told apart."""
    return {name.split(".")[0] + (" lora" if "lora_" in name else "") for name in names}


@pytest.mark.parametrize(
    ("text", "rank", "expected"),
    [
        ("frozen", None, {"unet"}),
        ("frozen", 2, {"unet lora"}),
        ("token", None, {"unet", "text_i"}),
        ("token", 2, {"unet lora", "text_i"}),
        ("all", None, {"unet", "text_i"}),
        ("all", 2, {"unet lora", "text_i lora"}),
    ],
)
def test_gradients_are_where_they_should_be(pipe, text, rank, expected):
    dream = trainer(pipe, text=text, rank=rank)
    encoders = range(len(dreambooth._encoders(dream.pipe)))
    expected = {each.replace("_i", f"_{i}") for each in expected for i in encoders}
    assert parts_of(dream.parameters()) == expected
    dream.loss(dream.batch(0))[0].backward()
    modules = {"unet": dream.pipe.unet, "vae": dream.pipe.vae}
    modules |= {f"text_{i}": e for i, e in enumerate(dreambooth._encoders(dream.pipe))}
    reached = {f"{k}.{name}" for k, m in modules.items() for name, p in m.named_parameters() if p.grad is not None}
    assert reached <= set(dream.parameters()) and parts_of(reached) == expected
    unreached = set(dream.parameters()) - reached  # XL reads the last but one layer of its first encoder
    assert not unreached or (hasattr(pipe, "text_encoder_2") and parts_of(unreached) <= {"text_0", "text_0 lora"})
    if text == "token":
        assert [name for name in reached if name.startswith("text")] == [
            name for name in reached if name.endswith("token_embedding.weight")
        ]


@pytest.mark.parametrize("rank", [None, 2])
def test_only_the_row_of_the_token_changes(pipe, rank):
    dream = trainer(pipe, text="token", rank=rank, average=0.5)
    number = dream.pipe.tokenizer("sks", add_special_tokens=False).input_ids[0]
    finished(dream)
    for old, new in zip(dreambooth._encoders(pipe), dreambooth._encoders(dream.pipe), strict=True):
        old, new = old.state_dict(), new.state_dict()
        changed = {name for name in old if not torch.equal(old[name], new[name])}
        (name,) = changed
        assert name.endswith("token_embedding.weight")
        assert (old[name] != new[name]).any(-1).nonzero().flatten().tolist() == [number]


def test_a_trained_token_leaves_nothing_behind(tiny_pipe):
    dream = trainer(tiny_pipe, text="token", steps=1)
    finished(dream)
    second = trainer(dream.pipe, text="all")
    before = weights(second)["text_0.embeddings.token_embedding.weight"]
    finished(second)
    changed = (weights(second)["text_0.embeddings.token_embedding.weight"] != before).any(-1)
    assert changed.sum() > 1  # all the words of both prompts


def test_fresh_lora_is_the_base_model(pipe):
    noisy, times, which = torch.randn(2, 4, 8, 8), torch.tensor([3, 700]), torch.tensor([0, 1])
    time_ids = torch.tensor([[16, 16, 0, 0, 16, 16]] * 2)
    with torch.no_grad():
        outputs = [trainer(pipe, rank=r, text="all").denoiser(noisy, times, which, time_ids) for r in (None, 2)]
    equal(outputs[0], outputs[1])
    equal(drawn(trainer(pipe, rank=2, text="all").pipe), drawn(pipe))


def test_lora_has_its_rank_alpha_and_targets(tiny_pipe):
    dream = trainer(tiny_pipe, rank=3, alpha=6.0, targets=("to_q", "ff.net.2"))
    shapes = {name.rsplit(".lora_", 1)[0].rsplit(".", 2)[-1]: p.shape for name, p in dream.parameters().items()}
    assert {name.split(".attn")[-1].split("blocks.0.")[-1][2:] for name in shapes} | {"2"} >= {"2"}
    ends = {name.split(".lora_")[0] for name in dream.parameters()}
    assert ends and all(end.endswith(("to_q", "ff.net.2")) for end in ends)
    assert all(3 in p.shape for p in dream.parameters().values())
    layer = dream.pipe.unet.get_submodule(min(ends).removeprefix("unet."))
    assert layer.scaling == {dreambooth.ADAPTER: 2.0}


def test_the_seed_draws_the_adapters(tiny_pipe):
    state = torch.get_rng_state()
    a, b, c = (weights(trainer(tiny_pipe, rank=2, seed=seed)) for seed in (0, 0, 1))
    equal(a, b)
    assert not any(torch.equal(a[name], c[name]) for name in a if "lora_A" in name)
    assert torch.equal(state, torch.get_rng_state()), "training must not touch the global generator"


def test_words_of_trained_encoders_are_those_of_the_pipeline(pipe):
    said = diffusion.encode_prompts(pipe, ["a sks dog", "a dog"])
    for text in dreambooth.TEXT:
        with torch.no_grad():
            hidden, pooled = trainer(pipe, text=text).denoiser.words()
        assert_close(hidden, said.cond)
        if said.pooled is None:
            assert pooled is None
        else:
            assert_close(pooled, said.pooled)


def test_memory_by_hand(tiny_pipe):
    weights_of = sum(p.numel() for m in (tiny_pipe.unet, tiny_pipe.vae, tiny_pipe.text_encoder) for p in m.parameters())
    unet = sum(p.numel() for p in tiny_pipe.unet.parameters())
    found = trainer(tiny_pipe, average=0.9).memory()
    assert found == {"weights": 4 * weights_of, "gradients": 4 * unet, "optimizer": 8 * unet, "average": 4 * unet}
    lora = trainer(tiny_pipe, rank=1).memory()
    assert lora["gradients"] < 0.1 * found["gradients"] and lora["average"] == 0


# ------------------------------------------------------------------------------------- runs


@pytest.mark.parametrize("changes", [{}, {"rank": 2}, {"text": "all"}, {"rank": 2, "text": "all", "snr_gamma": 5.0}])
def test_one_path_for_every_pipeline(pipe, changes):
    dream = trainer(pipe, **changes)
    before = weights(dream)
    records = finished(dream)
    assert [record.step for record in records] == [1, 2]
    assert all(r.loss == pytest.approx(r.subject + r.prior) and r.image is None for r in records)
    assert any(not torch.equal(p, before[name]) for name, p in weights(dream).items())
    assert not torch.equal(drawn(dream.pipe), drawn(pipe))


def test_steps_are_adamw(tiny_pipe):
    dream, plain = trainer(tiny_pipe, clip=0.1), trainer(tiny_pipe)
    finished(dream)
    optimizer = torch.optim.AdamW(plain.parameters().values(), lr=1e-2, weight_decay=0.01)
    plain.pipe.unet.set_attn_processor(AttnProcessor())
    for step in range(2):
        optimizer.zero_grad()
        plain.loss(plain.batch(step))[0].backward()
        nn.utils.clip_grad_norm_(plain.parameters().values(), 0.1)
        optimizer.step()
    assert_close(weights(dream), weights(plain), atol=1e-5, rtol=1e-4)


def test_the_average_by_hand(tiny_pipe):
    # weights of the steps w1, w2, w3: the mean of w1 and w2, then decay 1/2 keeps half of it
    plain, averaged = trainer(tiny_pipe, steps=3), trainer(tiny_pipe, steps=3, average=0.5)
    seen = [weights(plain) for _ in plain.train()]
    finished(averaged)
    expected = {name: ((seen[0][name] + seen[1][name]) / 2 + seen[2][name]) / 2 for name in seen[0]}
    assert_close(weights(averaged), expected, atol=1e-6, rtol=1e-5)


EXACT = {"steps": 5, "batch": 4, "accumulate": 2, "rank": 2, "text": "all", "average": 0.8, "snr_gamma": 5.0}


@pytest.mark.parametrize("changes", [EXACT, {"steps": 5, "text": "token"}, {"steps": 5, "precision": "fp16"}])
def test_a_stopped_run_goes_on_exactly(tiny_pipe, tmp_path, changes):
    straight = trainer(tiny_pipe, **changes)
    records = finished(straight)
    stopped = trainer(tiny_pipe, **changes).train(tmp_path, save_every=2)
    first = [next(stopped) for _ in range(3)]
    stopped.close()
    going_on = trainer(tiny_pipe, **changes)
    rest = finished(going_on, tmp_path, save_every=2)
    assert (first, rest) == (records[:3], records[2:])
    equal(weights(going_on), weights(straight))
    done = trainer(tiny_pipe, **changes)
    assert finished(done, tmp_path) == []
    equal(weights(done), weights(straight))


def test_a_finished_run_can_be_made_longer(tiny_pipe, tmp_path):
    finished(trainer(tiny_pipe, **EXACT | {"steps": 3}), tmp_path)
    longer, straight = trainer(tiny_pipe, **EXACT), trainer(tiny_pipe, **EXACT)
    assert [record.step for record in longer.train(tmp_path)] == [4, 5]
    finished(straight)
    equal(weights(longer), weights(straight))


@pytest.mark.parametrize(
    "changes",
    [{"seed": 1}, {"rate": 1e-3}, {"token": "dog"}, {"rank": 2}, {"images": noisy_pictures(2)},
     {"classes": torch.zeros(1, 3, 16, 16)}, {"steps": 1}],
)  # fmt: skip
def test_another_run_is_not_continued(tiny_pipe, tmp_path, changes):
    finished(trainer(tiny_pipe, steps=2), tmp_path)
    with pytest.raises(ValueError, match="holds step 2 of another run .* choose another folder"):
        finished(trainer(tiny_pipe, **{"steps": 2} | changes), tmp_path)


def test_checkpoints_are_whole_and_as_often_as_asked(tiny_pipe, tmp_path):
    seen = []
    for record in trainer(tiny_pipe, steps=5).train(tmp_path, save_every=2):
        path = tmp_path / dreambooth.CHECKPOINT
        seen.append(torch.load(path, weights_only=True)["step"] if path.exists() else 0)
        assert record.step == len(seen)
    assert seen == [0, 2, 2, 4, 5]
    assert [path.name for path in tmp_path.iterdir()] == [dreambooth.CHECKPOINT]
    finished(trainer(tiny_pipe), tmp_path / "last", save_every=0)
    assert torch.load(tmp_path / "last" / dreambooth.CHECKPOINT, weights_only=True)["step"] == 2


def state_of(pipe):
    modules = (pipe.unet, pipe.vae, *dreambooth._encoders(pipe))
    return (
        pipe.unet.attn_processors,
        [part.training for module in modules for part in module.modules()],
        pipe.unet.is_gradient_checkpointing,
    )


@pytest.mark.parametrize("how", ["end", "close", "error"])
def test_the_pipeline_is_left_as_it_was(tiny_pipe, how, monkeypatch):
    dream = trainer(tiny_pipe, checkpointing=True)
    dream.pipe.unet.down_blocks[0].train()
    before = state_of(dream.pipe)
    run = dream.train()
    next(run)
    assert state_of(dream.pipe) == before, "between steps too"
    if how == "error":
        monkeypatch.setattr(dream, "loss", lambda *args: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            next(run)
    elif how == "close":
        run.close()
    else:
        assert len([*run]) == 1
    assert state_of(dream.pipe) == before
    assert all(p.grad is None for p in dream.parameters().values()) or how != "end"


def test_steps_run_in_training_mode_with_plain_attention(tiny_pipe):
    dream, seen = trainer(tiny_pipe, checkpointing=True), []
    dream.pipe.unet.set_attn_processor(AttnProcessor2_0())
    loss = dream.loss

    def watched(*args):
        unet = dream.pipe.unet
        seen.append((unet.training, unet.is_gradient_checkpointing, {type(p) for p in unet.attn_processors.values()}))
        return loss(*args)

    dream.loss = watched
    finished(dream)
    assert seen == [(True, True, {AttnProcessor})] * 2


def test_pictures_on_the_way(tiny_pipe):
    dream = trainer(tiny_pipe, steps=4)
    records = finished(dream, validate_every=2, validation_prompt="a dog")
    assert [record.image is not None for record in records] == [False, True, False, True]
    equal(records[-1].image, diffusion.generate(dream.pipe, "a dog", seed=0))


def test_a_scheduler_of_another_kind(tiny_pipe):
    euler = copy.deepcopy(tiny_pipe)
    euler.scheduler = EulerDiscreteScheduler.from_config(euler.scheduler.config)
    assert finished(trainer(euler)) == finished(trainer(tiny_pipe))


SHARED = [
    {"steps": 3, "batch": 4, "rate": 1e-3, "accumulate": 2, "text": "all"},
    {"steps": 3, "batch": 2, "rate": 1e-3, "rank": 2, "text": "token", "checkpointing": True},
]


def train_shared(out: Path) -> list:
    """Run in every process: the curves of the runs, whose checkpoints and results go into a folder."""
    from conftest import random_pipeline

    curves = []
    for i, changes in enumerate(SHARED):
        dream = trainer(random_pipeline("sd15"), **changes)
        curves.append([[r.loss, r.subject, r.prior] for r in dream.train(out / str(i))])
        dream.save(out / f"model-{i}")
    return curves


PROCESS = """
import json, os, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import conftest
from test_dreambooth import dreambooth, train_shared
curves = train_shared(Path(sys.argv[2]))
Path(sys.argv[2], f"curves-{os.environ['RANK']}.json").write_text(json.dumps(curves))
dreambooth.PartialState().destroy_process_group()
"""


def test_two_processes_take_the_steps_of_one(tmp_path):
    """As torchrun starts them on a CPU; `accelerate launch --cpu` starts one only, where there is no MPI."""
    with socket.create_server(("localhost", 0)) as free:
        port = str(free.getsockname()[1])
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
    (tmp_path / "two").mkdir()
    command = [sys.executable, "-c", PROCESS, Path(__file__).parent, tmp_path / "two"]
    started = [
        subprocess.Popen(command, stderr=subprocess.PIPE, text=True,
                         env=os.environ | shared | {"RANK": rank, "LOCAL_RANK": rank})
        for rank in "01"
    ]  # fmt: skip
    try:
        found = {"one": train_shared(tmp_path / "one")}
        for process in started:
            _, errors = process.communicate(timeout=300)
            assert process.returncode == 0, errors[-2000:]
    finally:
        for process in started:
            process.kill()  # where one failed, the other waits for it
    found["two"], same = (json.loads((tmp_path / "two" / f"curves-{rank}.json").read_text()) for rank in "01")
    assert found["two"] == same, "every process says the same"
    for one, two in zip(found["one"], found["two"], strict=True):
        assert_close(torch.tensor(two), torch.tensor(one), atol=1e-4, rtol=1e-4)
    for i in range(2):
        one, two = (
            torch.load(tmp_path / name / str(i) / dreambooth.CHECKPOINT, weights_only=True) for name in ("one", "two")
        )
        assert one["run"] == two["run"] and one["step"] == two["step"] == 3
        assert (tmp_path / "two" / f"model-{i}" / dreambooth.FACTS).exists()
    assert {path.name for path in (tmp_path / "two").iterdir()} == {
        "0", "1", "model-0", "model-1", "curves-0.json", "curves-1.json",
    }  # fmt: skip


# ------------------------------------------------------------------------------------- prompts and adapters of your own


def told(pipe, prompt="a cat in papercut art style", *, images=None, token="", adapters=None, **changes):
    """A DreamBooth of one whole picture, with a prompt instead of a token."""
    settings = Settings(**FEW | {"prior_weight": 0.0, "zoom": 1.0, "rank": None if adapters else 2} | changes)
    images = noisy_pictures(1, sizes=((16, 16),)) if images is None else images
    return DreamBooth(pipe, images, token, "", settings=settings, prompt=prompt, adapters=adapters)


def test_a_prompt_instead_of_a_token(pipe):
    dream = told(copy.deepcopy(pipe))
    assert dream.prompt == "a cat in papercut art style" and dream.token == ""
    equal(dream.denoiser.words()[0], diffusion.encode_prompts(pipe, [dream.prompt]).cond)
    assert len(finished(dream)) == 2
    same, other = (told(copy.deepcopy(pipe), prompt).fingerprint() for prompt in (dream.prompt, "a dog"))
    assert dream.fingerprint() == same != other


def test_a_prompt_beside_the_prior(tiny_pipe):
    classes, settings = torch.rand(2, 3, 16, 16), Settings(**FEW, rank=2)
    dream = DreamBooth(copy.deepcopy(tiny_pipe), noisy_pictures(1), "sks", "dog", class_images=classes,
                       settings=settings, prompt="a drawing of a sks dog")  # fmt: skip
    said = diffusion.encode_prompts(tiny_pipe, ["a drawing of a sks dog", "a dog"])
    equal(dream.denoiser.encoded.cond, said.cond)
    with pytest.raises(ValueError, match="prior weight of 1.0 needs a class noun"):
        DreamBooth(copy.deepcopy(tiny_pipe), noisy_pictures(1), "", "", class_images=classes, settings=settings,
                   prompt="a drawing")  # fmt: skip


@pytest.mark.parametrize(("token", "prompt"), [("", None), (" ", None), ("sks", ""), ("", " ")])
def test_a_prompt_or_a_token_is_needed(tiny_pipe, token, prompt):
    with pytest.raises(ValueError, match="and a token as its name, .*got 1 pictures and ' ?'. .A prompt of your own"):
        told(copy.deepcopy(tiny_pipe), prompt, token=token)


class Scaled(nn.Module):
    """An adapter: the smallest that there is."""

    def __init__(self, part):
        super().__init__()
        self.factor = nn.Parameter(torch.ones(1))
        part.register_module("scaled", self)
        part.register_forward_hook(lambda module, args, output: output * self.factor.to(output.dtype))


def with_adapter(pipe):
    pipe = copy.deepcopy(pipe)
    return pipe, Scaled(pipe.unet.mid_block.resnets[0])


def test_adapters_alone_are_trained(pipe):
    pipe, adapters = with_adapter(pipe)
    before = {name: p.clone() for name, p in pipe.unet.named_parameters()}
    dream = told(pipe, adapters=adapters, average=0.5)
    assert [*dream.parameters()] == ["unet.mid_block.resnets.0.scaled.factor"]
    finished(dream)
    changed = [name for name, p in pipe.unet.named_parameters() if not torch.equal(p, before[name])]
    assert changed == ["mid_block.resnets.0.scaled.factor"]
    assert dream.memory()["gradients"] == 4


def test_adapters_go_on_exactly(tiny_pipe, tmp_path):
    def run():
        pipe, adapters = with_adapter(tiny_pipe)
        return told(pipe, adapters=adapters, steps=5)

    straight, stopped, going_on = run(), run().train(tmp_path, save_every=2), run()
    records = finished(straight)
    first = [next(stopped) for _ in range(3)]
    rest = finished(going_on, tmp_path)
    assert (first, rest) == (records[:3], records[2:])
    equal(weights(going_on), weights(straight))


def test_adapters_in_half_precision(tiny_pipe):
    half = copy.deepcopy(tiny_pipe)
    nn.Module.to(half.unet, torch.bfloat16)
    half, adapters = with_adapter(half)
    assert len(finished(told(half, adapters=adapters))) == 2 and adapters.factor != 1
    nn.Module.to(adapters, torch.bfloat16)
    with pytest.raises(ValueError, match="trained in float32, and these are torch.bfloat16"):
        told(half, adapters=adapters)


def test_adapters_are_saved_by_themselves(tiny_pipe, tmp_path):
    pipe, adapters = with_adapter(tiny_pipe)
    with pytest.raises(RuntimeError, match="save its adapters by their own method, such as StyleDrop.save"):
        told(pipe, adapters=adapters).save(tmp_path / "model")
    assert not [*tmp_path.iterdir()]


def test_adapters_refused(tiny_pipe):
    pipe, adapters = with_adapter(tiny_pipe)
    for changes, got in (({"rank": 2}, "rank=2 and text='frozen'"), ({"text": "all"}, "rank=None and text='all'")):
        with pytest.raises(ValueError, match=f"adapters are trained alone, .* got {got}"):
            told(pipe, adapters=adapters, **changes)
    for outside in (Scaled(nn.Identity()), nn.Identity()):
        with pytest.raises(ValueError, match="adapters to train lie in the U-Net, and those of .* do not: enter"):
            told(pipe, adapters=outside)


def counted(dream, monkeypatch):
    """How often the autoencoder was asked, as a list that grows."""
    asked, encode = [], dream.pipe.vae.encode
    monkeypatch.setattr(dream.pipe.vae, "encode", lambda *args: asked.append(1) or encode(*args))
    return asked


def test_a_whole_picture_is_encoded_once(tiny_pipe, monkeypatch):
    images = noisy_pictures(2, sizes=((16, 16),))
    dream, plain = (told(copy.deepcopy(tiny_pipe), images=images, snr_gamma=5.0) for _ in range(2))
    asked = counted(dream, monkeypatch)
    for step in range(4):
        plain._encoded.clear()  # encodes anew in every step
        equal(dream.batch(step), plain.batch(step))
        for number, u in ((2 * step, torch.rand(3)), (2 * step + 1, torch.rand(3))):
            seen = dreambooth.crop(images[number % 2], 16, 1.0, u[:2])
            equal(dream._of_subject(number, u), plain._posterior(seen))
    assert len(asked) == 2


@pytest.mark.parametrize(("zoom", "size"), [(1.1, (16, 16)), (1.0, (16, 17)), (1.0, (24, 24))])
def test_crops_are_encoded_anew(tiny_pipe, monkeypatch, zoom, size):
    dream = told(copy.deepcopy(tiny_pipe), images=noisy_pictures(1, sizes=(size,)), zoom=zoom)
    asked = counted(dream, monkeypatch)
    for step in range(3):
        dream.batch(step)
    assert len(asked) == 6


# ------------------------------------------------------------------------------------- pictures of the class


def class_images(pipe, n, folder=None, **options):
    return dreambooth.class_images(pipe, "dog", n, folder, **{"steps": 2, "guidance": 1.5} | options)


def test_class_pictures_are_those_of_the_model(tiny_pipe):
    found = class_images(tiny_pipe, 3, seed=5)
    expected = diffusion.generate(tiny_pipe, ["a dog"] * 3, steps=2, guidance=1.5, seed=5)
    assert found.shape == (3, 3, 16, 16) and found.dtype == torch.float32
    assert_close(found, expected, atol=0.5 / 255 + 1e-5, rtol=0)
    assert_close(found * 255, (found * 255).round(), atol=1e-4, rtol=0)


def test_class_pictures_do_not_depend_on_how_many(tiny_pipe):
    assert_close(class_images(tiny_pipe, 10)[:3], class_images(tiny_pipe, 3), atol=1.1 / 255, rtol=0)


def test_class_pictures_are_kept(tiny_pipe, tmp_path, monkeypatch):
    folder = tmp_path / "some" / "folder"
    made = class_images(tiny_pipe, 4, folder)
    equal(made, class_images(tiny_pipe, 4))
    times = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    monkeypatch.setattr(diffusion, "generate", lambda *args, **options: pytest.fail("they are there"))
    equal(class_images(tiny_pipe, 4, folder), made)
    equal(class_images(tiny_pipe, 2, folder), made[:2])
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == times


def test_class_pictures_go_on(tiny_pipe, tmp_path):
    made = class_images(tiny_pipe, 4, tmp_path)
    (tmp_path / "00002.png").unlink()
    again = class_images(tiny_pipe, 5, tmp_path)
    equal(again[[0, 1, 3]], made[[0, 1, 3]])
    assert_close(again[2], made[2], atol=1.1 / 255, rtol=0)
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"{i:05d}.png" for i in range(5)] + ["class.json"]


@pytest.mark.parametrize("changes", [{"seed": 1}, {"steps": 3}, {"guidance": 2.0}])
def test_class_pictures_made_otherwise_are_refused(tiny_pipe, tmp_path, changes):
    class_images(tiny_pipe, 1, tmp_path)
    with pytest.raises(ValueError, match="holds pictures made otherwise.*choose another folder"):
        class_images(tiny_pipe, 1, tmp_path, **changes)


def test_class_pictures_show_a_bar(tiny_pipe, capsys):
    class_images(tiny_pipe, 2)
    assert capsys.readouterr().err == ""
    class_images(tiny_pipe, 2, progress=True)
    assert "class images" in capsys.readouterr().err


def test_class_pictures_refuse():
    for noun, n in (("", 3), ("dog", 0)):
        with pytest.raises(ValueError, match=f"its noun and a number of 1 or more; got '{noun}' and {n}"):
            dreambooth.class_images(None, noun, n)


# ------------------------------------------------------------------------------------- files


@pytest.mark.parametrize("text", dreambooth.TEXT)
def test_a_pipeline_comes_back(pipe, tmp_path, text):
    dream = trainer(pipe, text=text)
    finished(dream)
    dream.save(tmp_path / "model")
    loaded = dreambooth.load(tmp_path / "model")
    assert type(loaded) is type(pipe)
    equal(drawn(loaded), drawn(dream.pipe))
    plain = type(pipe).from_pretrained(tmp_path / "model", local_files_only=True)
    equal(plain.unet.state_dict(), dream.pipe.unet.state_dict())
    facts = json.loads((tmp_path / "model" / dreambooth.FACTS).read_text())
    assert (facts["token"], facts["noun"], facts["prompt"], facts["images"]) == ("sks", "dog", "a sks dog", 3)
    assert facts["settings"]["text"] == text
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize(("text", "alpha"), [("frozen", None), ("token", 6.0), ("all", 6.0)])
def test_lora_comes_back(pipe, tmp_path, text, alpha, capfd):
    dream = trainer(pipe, rank=2, alpha=alpha, text=text, targets=("to_q", "to_v"))
    finished(dream)
    dream.save(tmp_path)
    loaded, plain = (copy.deepcopy(pipe) for _ in range(2))
    capfd.readouterr()
    assert dreambooth.load(tmp_path, pipe=loaded) is loaded
    assert capfd.readouterr().err == ""
    equal(drawn(loaded), drawn(dream.pipe))
    assert not torch.equal(drawn(loaded), drawn(pipe))
    if text != "token":
        plain.load_lora_weights(str(tmp_path))
        equal(drawn(plain), drawn(dream.pipe))


@pytest.mark.parametrize("text", ["token", "all"])
def test_strength_zero_is_the_base_model(pipe, tmp_path, text):
    dream = trainer(pipe, rank=2, text=text, steps=1)
    finished(dream)
    dream.save(tmp_path)
    none, half, all_ = (drawn(dreambooth.load(tmp_path, pipe=copy.deepcopy(pipe), strength=s)) for s in (0.0, 0.5, 1.0))
    equal(none, drawn(pipe))
    assert (half - none).norm() < (all_ - none).norm()


def as_diffusers_script(pipe, folder, text, metadata):
    """A LoRA file as train_dreambooth_lora.py (SD) and train_dreambooth_lora_sdxl.py (XL) write it."""
    modules = {"unet": pipe.unet}
    if text:
        modules |= {name: getattr(pipe, name) for name in ("text_encoder", "text_encoder_2") if hasattr(pipe, name)}
    for name, module in modules.items():
        ends = ["to_k", "to_q", "to_v", "to_out.0"] if name == "unet" else ["q_proj", "k_proj", "v_proj", "out_proj"]
        module.add_adapter(LoraConfig(r=4, lora_alpha=4, init_lora_weights="gaussian", target_modules=ends))
        for key, p in module.named_parameters():
            if "lora_B" in key:
                nn.init.normal_(p, std=0.1, generator=torch.Generator().manual_seed(len(key)))
    layers = {
        f"{name}_lora_layers": convert_state_dict_to_diffusers(get_peft_model_state_dict(module))
        for name, module in modules.items()
    }
    cls = StableDiffusionXLPipeline if hasattr(pipe, "text_encoder_2") else StableDiffusionPipeline
    cls.save_lora_weights(folder, **layers, **(_collate_lora_metadata(modules) if metadata else {}))


@pytest.mark.parametrize(("text", "metadata"), [(False, True), (True, True), (True, False)])
def test_a_file_of_diffusers_script_loads(pipe, tmp_path, text, metadata, capfd):
    trained = copy.deepcopy(pipe)
    as_diffusers_script(trained, tmp_path, text, metadata)
    capfd.readouterr()
    equal(drawn(dreambooth.load(tmp_path, pipe=copy.deepcopy(pipe))), drawn(trained))
    file = tmp_path / "pytorch_lora_weights.safetensors"
    equal(drawn(dreambooth.load(file, pipe=copy.deepcopy(pipe))), drawn(trained))
    assert capfd.readouterr().err == ""


def test_the_size_names_the_base_model(shipped, tmp_path, capsys):
    base = diffusion.load("tiny", device="cpu")
    dream = trainer(base, rank=2)
    finished(dream)
    dream.save(tmp_path / "lora")
    equal(drawn(dreambooth.load(tmp_path / "lora")), drawn(dream.pipe))
    whole = trainer(base, steps=1)
    finished(whole)
    whole.save(tmp_path / "whole")
    loaded = dreambooth.load(tmp_path / "whole")
    assert loaded.size == "tiny" and diffusion.default_guidance(loaded) == diffusion.default_guidance(base)


def test_a_result_is_whole_or_not_there(tiny_pipe, tmp_path, monkeypatch):
    dream = trainer(tiny_pipe, rank=2)
    monkeypatch.setattr(dream.pipe, "save_lora_weights", lambda *args, **options: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        dream.save(tmp_path / "model")
    assert [*tmp_path.iterdir()] == []


def test_an_earlier_result_is_replaced_and_nothing_else(tiny_pipe, tmp_path):
    whole, lora = trainer(tiny_pipe), trainer(tiny_pipe, rank=2)
    whole.save(tmp_path / "model")
    lora.save(tmp_path / "model")
    assert sorted(path.name for path in (tmp_path / "model").iterdir()) == [
        dreambooth.FACTS, "pytorch_lora_weights.safetensors",
    ]  # fmt: skip
    (tmp_path / "model" / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="holds other files, such as notes.txt; choose another folder"):
        lora.save(tmp_path / "model")
    assert (tmp_path / "model" / "notes.txt").read_text() == "mine"


def test_the_file_says_rank_and_alpha_in_one_order(tiny_pipe, tmp_path):
    trainer(tiny_pipe, rank=2, alpha=6.0, text="all").save(tmp_path)
    with safe_open(tmp_path / "pytorch_lora_weights.safetensors", "pt") as file:
        facts = json.loads(file.metadata()["lora_adapter_metadata"])
    for name, ends in {"unet": dreambooth.UNET_TARGETS, "text_encoder": dreambooth.TEXT_TARGETS}.items():
        assert (facts[f"{name}.r"], facts[f"{name}.lora_alpha"]) == (2, 6.0)
        assert facts[f"{name}.target_modules"] == sorted(ends)


def test_load_refuses(tiny_pipe, tmp_path):
    with pytest.raises(FileNotFoundError, match="neither a pipeline .* nor a LoRA file"):
        dreambooth.load(tmp_path)
    trainer(tiny_pipe, rank=2).save(tmp_path / "lora")
    with pytest.raises(ValueError, match="does not say which model its LoRA belongs to; pass pipe="):
        dreambooth.load(tmp_path / "lora")
    base = copy.deepcopy(tiny_pipe)
    dreambooth.load(tmp_path / "lora", pipe=base)
    with pytest.raises(ValueError, match="has a 'dreambooth' adapter already; load a fresh one"):
        dreambooth.load(tmp_path / "lora", pipe=base)


# ------------------------------------------------------------------------------------- what it refuses


def nothing_changed(pipe, was):
    assert not dreambooth._adapters(pipe)
    flags = [p.requires_grad for p in pipe.unet.parameters()]
    assert flags == was


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": []}, "three to five, and a token as its name, such as 'sks'; got 0 pictures and 'sks'"),
        ({"token": " "}, "got 3 pictures and ' '"),
        (
            {"images": torch.rand(3, 16, 16)},
            r"pictures are float \(3, H, W\) in \[0, 1\]; got torch.float32 \(16, 16\)",
        ),
        ({"images": [torch.rand(4, 16, 16)]}, r"got torch.float32 \(4, 16, 16\)"),
        ({"images": [torch.zeros(3, 16, 16, dtype=torch.uint8)]}, r"got torch.uint8 \(3, 16, 16\)"),
        ({"images": [torch.rand(3, 16, 16) * 255 + 2]}, r"lie in \[0, 1\]; got .* rescale or clamp"),
        ({"images": [torch.full((3, 16, 16), float("nan"))]}, r"lie in \[0, 1\]; got nan to nan"),
        ({"classes": torch.rand(2, 3, 8, 8)}, r"class are 16 pixels square here; got \(2, 3, 8, 8\)"),
        ({"classes": torch.rand(0, 3, 16, 16)}, "needs a class noun and pictures of the class: pass"),
        ({"classes": torch.rand(2, 3, 16, 16) - 1}, r"lie in \[0, 1\]"),
        ({"token": "sksdog sks", "text": "token"}, "trains the row of one token, and 'sksdog sks' is . tokens"),
        ({"rank": 2, "targets": ("to_q", "to_z")}, "and none ends in 'to_z'"),
    ],
)
def test_dreambooth_refuses(tiny_pipe, changes, message):
    pipe = copy.deepcopy(tiny_pipe)
    was = [p.requires_grad for p in pipe.unet.parameters()]
    options = {"images": noisy_pictures(3), "classes": torch.rand(2, 3, 16, 16), "token": "sks"} | changes
    images, classes, token = (options.pop(name) for name in ("images", "classes", "token"))
    with pytest.raises(ValueError, match=message):
        DreamBooth(pipe, images, token, "dog", class_images=classes, settings=Settings(**FEW | options))
    nothing_changed(pipe, was)


def test_the_prior_needs_pictures_and_a_noun(tiny_pipe):
    for noun, classes in (("dog", None), ("", torch.rand(2, 3, 16, 16))):
        with pytest.raises(ValueError, match="prior weight of 1.0 needs a class noun and pictures of the class: pass"):
            DreamBooth(tiny_pipe, noisy_pictures(1), "sks", noun, class_images=classes, settings=Settings(**FEW))


def test_no_noun_without_the_prior(tiny_pipe):
    settings = Settings(**FEW, prior_weight=0.0)
    dream = DreamBooth(copy.deepcopy(tiny_pipe), noisy_pictures(1), "sks", "", settings=settings)
    assert dream.prompt == "a sks" and [record.prior for record in finished(dream)] == [None] * 2


@pytest.mark.parametrize(
    "changes", [{}, {"text": "all"}, {"text": "token", "rank": 2}, {"text": "all", "precision": "bf16"}]
)
def test_what_is_trained_must_be_float32(tiny_pipe, changes):
    half = copy.deepcopy(tiny_pipe)
    nn.Module.to(half.text_encoder if "text" in changes else half.unet, torch.bfloat16)
    was = [p.requires_grad for p in half.unet.parameters()]
    with pytest.raises(ValueError, match="trained in float32, and these are torch.bfloat16: load the pipeline with"):
        DreamBooth(half, noisy_pictures(1), "sks", "dog", class_images=torch.rand(1, 3, 16, 16),
                   settings=Settings(**FEW | changes))  # fmt: skip
    nothing_changed(half, was)


def test_adapters_are_not_mixed(tiny_pipe):
    first = trainer(tiny_pipe, rank=2)
    with pytest.raises(ValueError, match=r"has adapters already \(dreambooth\); load a fresh one, or call pipe.unload"):
        DreamBooth(first.pipe, noisy_pictures(1), "sks", "dog", settings=Settings(**FEW, prior_weight=0.0))
    first.pipe.unload_lora_weights()
    trainer(first.pipe, rank=2)


def test_pipelines_that_cannot_be_trained(tiny_pipe):
    wide, flow = copy.deepcopy(tiny_pipe), copy.deepcopy(tiny_pipe)
    wide.unet.register_to_config(sample_size=(8, 16))
    with pytest.raises(ValueError, match="square pictures; the U-Net of this pipeline is made for 8 x 16"):
        DreamBooth(wide, noisy_pictures(1), "sks", "dog", settings=Settings(**FEW))
    flow.scheduler = FlowMatchEulerDiscreteScheduler()
    with pytest.raises(
        ValueError, match="FlowMatchEulerDiscreteScheduler with the prediction type 'none': set pipe.sch"
    ):
        DreamBooth(flow, noisy_pictures(1), "sks", "dog", settings=Settings(**FEW))


def test_a_batch_that_processes_cannot_share(tiny_pipe, monkeypatch):
    dream = trainer(tiny_pipe, batch=2)
    state = type("State", (), {"num_processes": 4, "process_index": 0, "is_main_process": True})
    monkeypatch.setattr(dreambooth, "_state", lambda pipe: state)
    with pytest.raises(ValueError, match="multiple of processes times accumulate, 4 x 1; got 2"):
        next(dream.train())


def test_subject_pictures_from_files(tiny_pipe, tmp_path):
    for i, picture in enumerate(noisy_pictures(2)):
        files.write(tmp_path / f"{i}.png", picture)
    images = [files.read(path) for path in sorted(tmp_path.iterdir())]  # (1, 3, H, W) of two sizes
    assert len(finished(trainer(tiny_pipe, images=images))) == 2
