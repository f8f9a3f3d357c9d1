"""Diffusion: formulas by hand, loops equal to diffusers' own, pictures that do not know their neighbors, inversion."""

import inspect
import socket
from types import SimpleNamespace

import pytest
import torch
from diffusers import DDIMInverseScheduler, DDIMScheduler, EulerDiscreteScheduler
from torch import nn
from torch.testing import assert_close

from stylemoments import diffusion, zoo

PROMPTS = ["a cat in papercut art style", "an owl", "a sailboat on the beach"]


def last(steps):
    return list(steps)[-1]


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def plain_call(pipe, prompts, latents, **options):
    """The pipeline's own pictures, (B, 3, H, W) in [0, 1]."""
    images = pipe(list(prompts), latents=latents.clone(), output_type="np", **options).images
    return torch.from_numpy(images).permute(0, 3, 1, 2)


# ------------------------------------------------------------------------------------- formulas


def test_outputs_by_hand():
    # signal 0.6, spread 0.8: x = 0.6 * 2 + 0.8 * 1 = 2, v = 0.6 * 1 - 0.8 * 2 = -1
    x, clean, noise, v = (torch.tensor([value]) for value in (2.0, 2.0, 1.0, -1.0))
    for output, kind in ((noise, "epsilon"), (v, "v_prediction"), (clean, "sample")):
        found = diffusion.to_clean_and_noise(output, x, 0.36, kind)
        assert_close(found, (clean, noise), msg=kind)


def test_an_alpha_bar_per_picture():
    x, output = normal(2, 4, 3, 3), normal(2, 4, 3, 3, seed=1)
    both = diffusion.to_clean_and_noise(output, x, torch.tensor([0.2, 0.9]).view(2, 1, 1, 1), "epsilon")
    for index, alpha_bar in enumerate((0.2, 0.9)):
        one = diffusion.to_clean_and_noise(output[index], x[index], alpha_bar, "epsilon")
        assert_close([both[0][index], both[1][index]], list(one))


def test_unknown_prediction_type():
    with pytest.raises(ValueError, match="epsilon, v_prediction, sample; got 'flow'"):
        diffusion.to_clean_and_noise(torch.zeros(1), torch.zeros(1), 0.5, "flow")


def test_ddim_step_by_hand():
    clean, noise = torch.tensor([2.0]), torch.tensor([1.0])
    assert_close(diffusion.ddim_step(clean, noise, 0.64), torch.tensor([0.8 * 2 + 0.6 * 1]))
    # from 0.32 to 0.64, eta 1: variance 0.36 / 0.68 * (1 - 0.32 / 0.64) = 0.2647
    drawn = diffusion.ddim_step(clean, noise, 0.64, eta=1.0, alpha_bar=0.32, fresh=torch.tensor([3.0]))
    assert_close(drawn, torch.tensor([0.8 * 2 + (0.36 - 0.264706) ** 0.5 + 3 * 0.264706**0.5]), atol=1e-5, rtol=0)


def test_ancestral_noise_is_that_of_ddpm():
    # eta 1 over one timestep is DDPM's posterior: mean (sqrt(a') beta x0 + sqrt(alpha) (1 - a') x) / (1 - a)
    a_next, alpha = 0.8, 0.95
    a, beta = a_next * alpha, 1 - alpha
    x, clean, zero = normal(5), normal(5, seed=1), torch.zeros(5)
    noise = (x - a**0.5 * clean) / (1 - a) ** 0.5
    mean = (a_next**0.5 * beta * clean + alpha**0.5 * (1 - a_next) * x) / (1 - a)
    assert_close(diffusion.ddim_step(clean, noise, a_next, eta=1.0, alpha_bar=a, fresh=zero), mean)
    spread = diffusion.ddim_step(clean, noise, a_next, eta=1.0, alpha_bar=a, fresh=zero + 1) - mean
    assert_close(spread, zero + (beta * (1 - a_next) / (1 - a)) ** 0.5)


@pytest.mark.parametrize("options", [{"eta": -1.0}, {"eta": 1.0}, {"eta": 1.0, "alpha_bar": 0.3}])
def test_ddim_step_refuses(options):
    with pytest.raises(ValueError, match="eta"):
        diffusion.ddim_step(torch.zeros(1), torch.zeros(1), 0.5, **options)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("prediction_type", diffusion.PREDICTION_TYPES)
@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
def test_every_step_equals_the_scheduler(eta, prediction_type, spacing):
    scheduler = DDIMScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, clip_sample=False,
        set_alpha_to_one=spacing == "trailing", steps_offset=int(spacing == "leading"),
        prediction_type=prediction_type, timestep_spacing=spacing,
    )  # fmt: skip
    levels = diffusion.schedule(SimpleNamespace(scheduler=scheduler), 7)
    assert [level.timestep for level in levels] == scheduler.timesteps.tolist()
    for t, alpha_bar, alpha_bar_next in levels:
        x, output, fresh = (normal(2, 4, 3, 3, seed=seed) for seed in (t, t + 1, t + 2))
        clean, noise = diffusion.to_clean_and_noise(output, x, alpha_bar, prediction_type)
        ours = diffusion.ddim_step(clean, noise, alpha_bar_next, eta=eta, alpha_bar=alpha_bar, fresh=fresh)
        theirs = scheduler.step(output, t, x, eta=eta, variance_noise=fresh if eta else None)
        assert_close(ours, theirs.prev_sample, atol=1e-4, rtol=1e-4)
        assert_close(clean, theirs.pred_original_sample, atol=1e-4, rtol=1e-4)


# ------------------------------------------------------------------------------------- schedule


def test_schedule_of_stable_diffusion(tiny_pipe):
    # leading spacing in strides of 1000 // 4, offset 1; the last step goes to alpha_bar of timestep 0
    levels = diffusion.schedule(tiny_pipe, 4)
    alpha_bars = tiny_pipe.scheduler.alphas_cumprod
    assert [level.timestep for level in levels] == [751, 501, 251, 1]
    assert_close([level.alpha_bar_next for level in levels], [alpha_bars[t].item() for t in (501, 251, 1, 0)])
    assert all(level.alpha_bar < level.alpha_bar_next for level in levels)


@pytest.mark.parametrize("steps", [0, -3, 1000, 1001])
def test_schedule_refuses_steps(tiny_pipe, steps):
    with pytest.raises(ValueError, match=f"from 1 to 999 with this scheduler; got {steps}"):
        diffusion.schedule(tiny_pipe, steps)


@pytest.mark.parametrize("scheduler", [EulerDiscreteScheduler(), DDIMScheduler(clip_sample=True)])
def test_schedule_refuses_other_schedulers(scheduler):
    with pytest.raises(ValueError, match="DDIMScheduler.from_config"):
        diffusion.schedule(SimpleNamespace(scheduler=scheduler), 10)


# ------------------------------------------------------------------------------------- text and pictures


@pytest.mark.parametrize("negative", ["", "a cat"])
def test_prompts_equal_the_pipelines_own(pipe, negative):
    prompts = diffusion.encode_prompts(pipe, PROMPTS, negative=negative)
    own = pipe.encode_prompt(PROMPTS, device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=False)
    assert len(prompts) == 3
    assert_close(prompts.cond, own[0])
    assert prompts.uncond.shape == prompts.cond.shape
    xl = hasattr(pipe, "text_encoder_2")
    assert bool((prompts.uncond == 0).all()) == (xl and not negative)
    assert (prompts.pooled is not None) == (prompts.time_ids is not None) == xl
    if xl:
        assert prompts.time_ids.tolist() == [[16, 16, 0, 0, 16, 16]] * 3


def test_one_string_is_one_prompt(tiny_pipe):
    one, listed = (diffusion.encode_prompts(tiny_pipe, prompts) for prompts in ("an owl", ["an owl"]))
    assert_close(one.cond, listed.cond)


def test_no_prompts(tiny_pipe):
    with pytest.raises(ValueError, match="at least one prompt"):
        diffusion.encode_prompts(tiny_pipe, [])


def test_decode_is_the_autoencoder(pipe):
    latents = normal(2, 4, 8, 8)
    with torch.no_grad():
        raw = pipe.vae.decode(latents / 0.18).sample
    images = diffusion.decode(pipe, latents)
    assert images.shape == (2, 3, 16, 16)
    assert_close(images, (raw / 2 + 0.5).clamp(0, 1))


def test_encode_takes_the_mean_or_draws(pipe):
    images = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        posterior = pipe.vae.encode(images * 2 - 1).latent_dist
    mean = diffusion.encode(pipe, images)
    assert_close(mean, posterior.mean * 0.18)
    drawn = diffusion.encode(pipe, images, generator=torch.Generator().manual_seed(5))
    assert_close(drawn, mean + 0.18 * posterior.std * normal(2, 4, 8, 8, seed=5))


def test_the_autoencoder_works_in_float32_and_keeps_its_weights(tiny_pipe, capfd):
    latents, before = normal(1, 4, 8, 8), diffusion.decode(tiny_pipe, normal(1, 4, 8, 8))
    tiny_pipe.vae.half()
    try:
        assert diffusion.decode(tiny_pipe, latents.half()).dtype == torch.float32
        assert tiny_pipe.vae.dtype == torch.float16
        assert_close(diffusion.decode(tiny_pipe, latents), before, atol=5e-3, rtol=0)
    finally:
        tiny_pipe.vae.float()
    assert capfd.readouterr().err == "", "no warnings"


@pytest.mark.parametrize("shape", [(3, 16, 16), (1, 1, 16, 16)])
def test_encode_refuses_other_shapes(tiny_pipe, shape):
    with pytest.raises(ValueError, match=r"\(B, 3, H, W\)"):
        diffusion.encode(tiny_pipe, torch.zeros(shape))


# ------------------------------------------------------------------------------------- prediction and guidance


class Calls(nn.Module):
    """Counts the pictures of each call of a U-Net."""

    def __init__(self, unet):
        super().__init__()
        self.unet, self.batches = unet, []

    def __getattr__(self, name):
        return super().__getattr__(name) if name in ("unet", "batches") else getattr(self.unet, name)

    def forward(self, latents, *args, **options):
        self.batches.append(len(latents))
        return self.unet(latents, *args, **options)


def test_guidance_is_linear_and_calls_once(pipe, monkeypatch):
    prompts, latents = diffusion.encode_prompts(pipe, PROMPTS), normal(3, 4, 8, 8)
    calls = Calls(pipe.unet)
    monkeypatch.setattr(pipe, "unet", calls)
    noise = {g: diffusion.predict(pipe, latents, 500, prompts, guidance=g).noise for g in (0, 1, 3.0, 0.5)}
    assert calls.batches == [3, 3, 6, 6]
    assert_close(noise[3.0], noise[0] + 3 * (noise[1] - noise[0]), atol=1e-5, rtol=1e-5)
    assert_close(noise[0.5], (noise[0] + noise[1]) / 2, atol=1e-5, rtol=1e-5)
    assert (noise[1] - noise[0]).abs().max() > 1e-4, "the prompts must make a difference"


def test_clean_and_noise_make_up_the_latents(pipe):
    prompts, latents = diffusion.encode_prompts(pipe, PROMPTS), normal(3, 4, 8, 8)
    clean, noise = diffusion.predict(pipe, latents, 300, prompts, guidance=4.0)
    alpha_bar = pipe.scheduler.alphas_cumprod[300]
    assert_close(alpha_bar.sqrt() * clean + (1 - alpha_bar).sqrt() * noise, latents, atol=1e-5, rtol=1e-5)


def test_the_latents_keep_their_dtype(tiny_pipe):
    prompts, latents = diffusion.encode_prompts(tiny_pipe, "an owl"), normal(1, 4, 8, 8).double()
    assert diffusion.predict(tiny_pipe, latents, 9, prompts, guidance=2.0).clean.dtype == torch.float64


# ------------------------------------------------------------------------------------- sampling


@pytest.mark.parametrize("guidance", [1.0, 5.0])
def test_pictures_equal_the_pipelines_own(pipe, guidance):
    latents = diffusion.initial_latents(pipe, 3, seed=7)
    ours = diffusion.generate(pipe, PROMPTS, steps=7, guidance=guidance, seed=7)
    theirs = plain_call(pipe, PROMPTS, latents, num_inference_steps=7, guidance_scale=guidance)
    assert_close(ours, theirs, atol=1e-4, rtol=0)
    assert ours.std() > 0.01, "a flat picture proves nothing"


def test_ancestral_pictures_equal_the_pipelines_own(pipe):
    generators = [torch.Generator().manual_seed(7 + index) for index in range(3)]
    options = {"num_inference_steps": 5, "guidance_scale": 3.0, "eta": 1.0, "output_type": "latent"}
    theirs = pipe(PROMPTS, generator=generators, **options).images
    ours = last(diffusion.sample(pipe, PROMPTS, steps=5, guidance=3.0, eta=1.0, seed=7)).latents
    assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_a_picture_does_not_know_its_neighbors(pipe, eta):
    options = {"steps": 4, "guidance": 3.0, "seed": 3, "eta": eta}
    many = last(diffusion.sample(pipe, PROMPTS, **options)).latents
    alone = last(diffusion.sample(pipe, PROMPTS[:1], **options)).latents
    assert_close(many[:1], alone, atol=1e-5, rtol=1e-5)
    third = last(diffusion.sample(pipe, PROMPTS[2], **options | {"seed": 5})).latents
    assert_close(many[2:], third, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_own_latents_of_the_same_seed_change_nothing(tiny_pipe, eta):
    latents = diffusion.initial_latents(tiny_pipe, 1, seed=2)
    given = last(diffusion.sample(tiny_pipe, "an owl", steps=3, seed=2, eta=eta, latents=latents))
    drawn = last(diffusion.sample(tiny_pipe, "an owl", steps=3, seed=2, eta=eta))
    assert torch.equal(given.latents, drawn.latents)


def test_steps_tell_what_happens(pipe):
    prompts, alpha_bars = diffusion.encode_prompts(pipe, PROMPTS), pipe.scheduler.alphas_cumprod
    before = diffusion.initial_latents(pipe, 3, seed=0)
    for index, step in enumerate(diffusion.sample(pipe, prompts, steps=4, guidance=2.0)):
        assert (step.index, step.timestep) == (index, 751 - 250 * index)
        clean, noise = diffusion.predict(pipe, before, step.timestep, prompts, guidance=2.0)
        assert_close(step.clean, clean)
        before = step.latents
    assert_close(before, alpha_bars[0].sqrt() * clean + (1 - alpha_bars[0]).sqrt() * noise)


def test_loops_leave_no_trace(tiny_pipe):
    steps = diffusion.sample(tiny_pipe, "an owl", steps=4)
    first = next(steps)
    assert torch.is_grad_enabled() and not first.latents.requires_grad
    last(diffusion.sample(tiny_pipe, "a cat", steps=2))  # another loop in between
    assert_close(last(steps).latents, last(diffusion.sample(tiny_pipe, "an owl", steps=4)).latents)
    assert tiny_pipe.unet.training is tiny_pipe.vae.training is False


def test_a_patched_unet_acts(tiny_pipe):
    """A hook that silences the U-Net leaves sqrt(last / first) of the noise."""
    hook = tiny_pipe.unet.register_forward_hook(lambda *call: SimpleNamespace(sample=torch.zeros_like(call[1][0])))
    try:
        end = last(diffusion.sample(tiny_pipe, "an owl", steps=4, guidance=2.0)).latents
    finally:
        hook.remove()
    alpha_bars = tiny_pipe.scheduler.alphas_cumprod
    expected = diffusion.initial_latents(tiny_pipe, 1, 0) * (alpha_bars[0] / alpha_bars[751]).sqrt()
    assert_close(end, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", ["sd15", "sdxl"])
def test_guidance_as_shipped(tiny_pipe, monkeypatch, kind):
    def pictures(**options):
        return last(diffusion.sample(tiny_pipe, "an owl", steps=2, **options)).latents

    assert torch.equal(pictures(), pictures(guidance=7.5)), "diffusers' default for this class"
    monkeypatch.setattr(tiny_pipe, "size", kind, raising=False)
    assert torch.equal(pictures(), pictures(guidance=zoo.entry(kind).guidance))
    monkeypatch.setattr(tiny_pipe, "size", "tiny", raising=False)
    assert torch.equal(pictures(), pictures(guidance=2.5))


def test_one_latent_per_prompt(tiny_pipe):
    with pytest.raises(ValueError, match="got 3 prompts and latents of 2 pictures"):
        next(diffusion.sample(tiny_pipe, PROMPTS, latents=normal(2, 4, 8, 8)))


def test_defaults():
    options = {name: p.default for name, p in inspect.signature(diffusion.sample).parameters.items()}
    assert {name: options[name] for name in ("steps", "guidance", "seed", "latents", "eta")} == {
        "steps": 25, "guidance": None, "seed": 0, "latents": None, "eta": 0.0,
    }  # fmt: skip


# ------------------------------------------------------------------------------------- inversion


class ToyUNet(nn.Module):
    """Answers ``slope * latents + offset``."""

    def __init__(self, slope: float, offset: float):
        super().__init__()
        self.slope, self.offset, self.device = slope, offset, torch.device("cpu")

    def forward(self, latents, t, **_):
        return SimpleNamespace(sample=self.slope * latents + self.offset)


def toy(pipe, monkeypatch, slope, offset):
    monkeypatch.setattr(pipe, "unet", ToyUNet(slope, offset))
    empty = torch.zeros(1, 1, 1, dtype=torch.float64)
    return diffusion.Prompts(empty, empty)


def test_inversion_is_exact_where_the_noise_is_constant(tiny_pipe, monkeypatch):
    prompts, clean = toy(tiny_pipe, monkeypatch, 0.0, 0.3), normal(1, 4, 8, 8).double()
    noise = last(diffusion.invert(tiny_pipe, clean, prompts, steps=5)).latents
    back = last(diffusion.sample(tiny_pipe, prompts, steps=5, guidance=1.0, latents=noise)).latents
    assert_close(back, clean)


def test_inversion_of_a_linear_toy_by_hand(tiny_pipe, monkeypatch):
    """Each step multiplies by s' + c (n' - s' n / s), where s and n are the roots of alpha_bar and of the rest."""
    c, clean = 0.5, normal(1, 4, 8, 8).double()
    prompts, factor = toy(tiny_pipe, monkeypatch, c, 0.0), 1.0
    for t, before in ((1, 0), (251, 1), (501, 251), (751, 501)):
        a, a_next = (tiny_pipe.scheduler.alphas_cumprod[i].item() for i in (before, t))
        ratio = (a_next / a) ** 0.5
        factor *= ratio + c * ((1 - a_next) ** 0.5 - ratio * (1 - a) ** 0.5)
    noise = last(diffusion.invert(tiny_pipe, clean, prompts, steps=4)).latents
    assert_close(noise, factor * clean)


def test_inversion_equals_the_inverse_scheduler(pipe):
    prompts, latents = diffusion.encode_prompts(pipe, PROMPTS), 0.5 * normal(3, 4, 8, 8)
    inverse = DDIMInverseScheduler.from_config(pipe.scheduler.config)
    inverse.set_timesteps(6)
    theirs = latents
    for step, t in zip(diffusion.invert(pipe, latents, prompts, steps=6, guidance=2.0), inverse.timesteps, strict=True):
        output = diffusion._output(pipe, theirs, t, prompts, 2.0).detach()
        theirs = inverse.step(output, t, theirs).prev_sample
        assert step.timestep == t
        assert_close(step.latents, theirs, atol=1e-4, rtol=1e-4)


def test_the_error_of_a_round_trip_is_one_over_the_steps(tiny_pipe):
    """The U-Net is smooth: ten times as many steps leave about a tenth of the error."""
    prompts, clean = diffusion.encode_prompts(tiny_pipe, "an owl"), 0.5 * normal(1, 4, 8, 8)
    errors = []
    for steps in (25, 250):
        noise = last(diffusion.invert(tiny_pipe, clean, prompts, steps=steps)).latents
        back = last(diffusion.sample(tiny_pipe, prompts, steps=steps, guidance=1.0, latents=noise)).latents
        errors.append((back - clean).square().mean().sqrt().item())
    assert errors[1] < 0.2 * errors[0]
    assert errors[1] < 0.1 * clean.std()


# ------------------------------------------------------------------------------------- sizes and loading


@pytest.fixture
def nothing_set(monkeypatch):
    monkeypatch.delenv(diffusion.VARIABLE, raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def test_argument_beats_variable_beats_machine(nothing_set, monkeypatch, capsys):
    assert diffusion.choose_size() == "tiny"
    assert capsys.readouterr().out == "size tiny: no CUDA GPU here\n"
    monkeypatch.setenv(diffusion.VARIABLE, "sd15")
    assert diffusion.choose_size() == "sd15"
    assert capsys.readouterr().out == "size sd15: set by STYLEMOMENTS_SIZE\n"
    assert diffusion.choose_size("sdxl") == "sdxl"
    assert capsys.readouterr().out == "size sdxl: as asked\n"


def test_a_gpu_needs_the_network_too(nothing_set, monkeypatch, capsys):
    def refuse(*args, **options):
        raise OSError("no network")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(diffusion.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(socket, "create_connection", refuse)
    assert diffusion.choose_size() == "tiny"
    assert "no network" in capsys.readouterr().out
    monkeypatch.setattr(socket, "create_connection", lambda *args, **options: socket.socket())
    assert diffusion.choose_size() == "sdxl"
    monkeypatch.setattr(diffusion.constants, "HF_HUB_OFFLINE", True)
    assert diffusion.choose_size() == "tiny"


def test_unknown_sizes_say_where_they_came_from(nothing_set, monkeypatch):
    with pytest.raises(ValueError, match=r"tiny, sd15, sdxl; got 'huge' \(as asked\)"):
        diffusion.choose_size("huge")
    monkeypatch.setenv(diffusion.VARIABLE, "big")
    with pytest.raises(ValueError, match=r"got 'big' \(set by STYLEMOMENTS_SIZE\)"):
        diffusion.choose_size()


def test_load_is_ready_to_sample(shipped, tiny_pipe, nothing_set, capfd):
    pipe = diffusion.load("tiny", device="cpu")
    out, err = capfd.readouterr()
    assert out == "size tiny: as asked\n" and err == "", "no progress bars"
    assert isinstance(pipe.scheduler, DDIMScheduler) and not pipe.scheduler.config.clip_sample
    assert not any(module.training for module in (pipe.unet, pipe.vae, pipe.text_encoder))
    assert pipe.size == "tiny" and zoo.entry("tiny-sd").guidance == 2.5
    ours, theirs = (diffusion.generate(p, "an owl", steps=2, guidance=2.0) for p in (pipe, tiny_pipe))
    assert_close(ours, theirs)


@pytest.mark.parametrize("size", ["sd15", "sdxl"])
def test_without_a_network_it_says_what_to_do(size, nothing_set, monkeypatch):
    def fail(repository, **options):
        assert options["revision"] == zoo.entry(size).revision and options["use_safetensors"]
        raise OSError(f"cannot reach {repository}")

    monkeypatch.setattr(diffusion.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(diffusion.DiffusionPipeline, "from_pretrained", fail)
    with pytest.raises(ConnectionError, match=f'size="tiny".*{zoo.entry(size).revision}'):
        diffusion.load(size)


def test_half_precision_on_a_gpu_only(nothing_set, monkeypatch):
    seen = {}

    def stop(repository, **options):
        seen.update(options)
        raise InterruptedError

    monkeypatch.setattr(diffusion, "_hub_reachable", lambda: True)
    monkeypatch.setattr(diffusion.DiffusionPipeline, "from_pretrained", stop)
    for device, dtype, variant in (("cuda", torch.float16, "fp16"), ("cpu", torch.float32, None)):
        seen.clear()
        with pytest.raises(InterruptedError):
            diffusion.load("sd15", device=device)
        assert (seen["dtype"], seen.get("variant"), seen["safety_checker"]) == (dtype, variant, None)
