r"""Latent diffusion at any size: load a pipeline, sample step by step, guide it, run it backwards.

A pipeline of diffusers keeps an image autoencoder, a text encoder and a U-Net. The loops here are ours, written out and
short, and call ``pipe.unet`` directly: whatever patches the U-Net acts on them. Their pictures equal those of the
pipeline's own call with the same latents, steps and guidance.

With :math:`\bar\alpha_t` the share of the clean signal's variance that is left at timestep t,

.. math:: x_t = \sqrt{\bar\alpha_t}\, x_0 + \sqrt{1 - \bar\alpha_t}\, \varepsilon

Axes: ``B`` pictures, ``C H W`` channels, rows, columns; latents are ``(B, 4, H / f, W / f)``, images ``(B, 3, H, W)``
in [0, 1]. Latents keep their dtype (float32 unless you bring others), the U-Net computes in its own.

Sources: latent diffusion 2112.10752, DDIM 2010.02502, DDPM 2006.11239, guidance 2207.12598, v-prediction 2202.00512
(arXiv). What differs: guidance weights below 1 are honoured, where diffusers ignores them.
"""

import os
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit
from urllib.request import getproxies

from . import _torchvision, zoo  # noqa: F401

# isort: split
import diffusers
import torch
from diffusers import DDIMScheduler, DiffusionPipeline
from huggingface_hub import constants
from torch import Tensor

SIZES = ("tiny", "sd15", "sdxl")
VARIABLE = "STYLEMOMENTS_SIZE"
PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")


# ---------------------------------------------------------------------------------------- loading


def choose_size(size: str | None = None) -> str:
    """One of ``SIZES``: the argument, else the environment variable ``STYLEMOMENTS_SIZE``, else what runs here.

    Prints one line that says which and why. Left to itself it takes ``"sdxl"`` where there is a CUDA GPU and the Hub
    can be reached, and ``"tiny"``, which needs neither, everywhere else.

    Raises:
        ValueError: an unknown size.

    Example:
        >>> choose_size("tiny")
        size tiny: as asked
        'tiny'
    """
    if size is not None:
        why = "as asked"
    elif size := os.environ.get(VARIABLE):
        why = f"set by {VARIABLE}"
    else:
        size, why = _automatic_size()
    if size not in SIZES:
        raise ValueError(f"the size must be one of {', '.join(SIZES)}; got {size!r} ({why})")
    print(f"size {size}: {why}")
    return size


def _automatic_size() -> tuple[str, str]:
    if not torch.cuda.is_available():
        return "tiny", "no CUDA GPU here"
    if not _hub_reachable():
        return "tiny", "a CUDA GPU, but no network to the Hugging Face Hub"
    return "sdxl", "a CUDA GPU and a network"


def _hub_reachable() -> bool:
    if constants.HF_HUB_OFFLINE:
        return False
    try:
        url = urlsplit(getproxies().get("https") or constants.ENDPOINT)
        address = url.hostname, url.port or (80 if url.scheme == "http" else 443)
        socket.create_connection(address, timeout=3).close()
        return True
    except OSError:
        return False


def load(
    size: str | None = None, *, device: str | torch.device | None = None, dtype: torch.dtype | None = None
) -> DiffusionPipeline:
    """A diffusers pipeline of a size, ready to sample: DDIM scheduler, evaluation mode, no progress bars.

    Its attribute ``size`` says which size it is.
    The pictures of sd15 are not filtered: its safety checker, which no other size has, is not loaded.

    Args:
        size: one of ``SIZES``; None lets :func:`choose_size` choose.
        device: where to compute; None is the CUDA GPU where there is one, else the CPU.
        dtype: of the weights; None is float16 on a GPU for sd15 and sdxl, else float32.

    Raises:
        ValueError: an unknown size.
        WeightsError: the shipped files of tiny are damaged.
        ConnectionError: sd15 or sdxl is not on this machine and cannot be downloaded.
    """
    size = choose_size(size)
    if size == "tiny":
        return _ready(lambda dtype: _saved(zoo.folder("tiny-sd"), dtype), size, device, dtype)
    return _ready(lambda dtype: _remote(size, dtype), size, device, dtype)


def load_folder(folder: str | Path, size: str | None = None) -> DiffusionPipeline:
    """A pipeline that ``save_pretrained`` wrote, ready to sample; device and dtype are those :func:`load` takes.

    Args:
        folder: with ``model_index.json``.
        size: what it was made from, one of ``SIZES``; None where that is not known.
    """
    return _ready(lambda dtype: _saved(folder, dtype), size, None, None)


def _ready(read: Callable[[torch.dtype], DiffusionPipeline], size: str | None, device, dtype) -> DiffusionPipeline:
    """What ``read`` reads in a dtype, with the scheduler that the loops here need."""
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    half = device.type == "cuda" and size in ("sd15", "sdxl")
    with quiet():
        pipe = read(dtype or (torch.float16 if half else torch.float32))
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, clip_sample=False, thresholding=False)
    pipe.set_progress_bar_config(disable=True)
    if size is not None:
        pipe.size = size
    return pipe.to(device)


def _entry(size: str) -> zoo.Entry:
    return zoo.entry("tiny-sd" if size == "tiny" else size)


def _saved(folder: str | Path, dtype: torch.dtype) -> DiffusionPipeline:
    return DiffusionPipeline.from_pretrained(folder, dtype=dtype, local_files_only=True, use_safetensors=True)


def _remote(size: str, dtype: torch.dtype) -> DiffusionPipeline:
    entry = zoo.entry(size)
    options = {"variant": "fp16"} if dtype == torch.float16 else {}
    if size == "sd15":
        options |= {"safety_checker": None, "requires_safety_checker": False}
    try:
        return DiffusionPipeline.from_pretrained(
            entry.repository, revision=entry.revision, dtype=dtype, use_safetensors=True, **options
        )
    except Exception as error:  # the Hub's client and its HTTP library have a dozen ways to say "not there"
        if _hub_reachable():
            raise
        cached = f"{constants.HF_HUB_CACHE}/models--{entry.repository.replace('/', '--')}/snapshots/{entry.revision}"
        raise ConnectionError(
            f"size {size} needs {entry.repository} from the Hugging Face Hub, which cannot be reached. Connect to "
            f'the network; or choose size="tiny", which needs none; or put a copy of revision {entry.revision} '
            f"into {cached}"
        ) from error


@contextmanager
def quiet():
    """No progress bars while weights are read from disk."""
    from transformers.utils import logging as transformers_logging

    logs = [log for log in (diffusers.utils.logging, transformers_logging) if log.is_progress_bar_enabled()]
    for log in logs:
        log.disable_progress_bar()
    try:
        yield
    finally:
        for log in logs:
            log.enable_progress_bar()


# ---------------------------------------------------------------------------------------- text and pictures


@dataclass(frozen=True)
class Prompts:
    """Encoded prompts: what the U-Net reads. The last three are None but for Stable Diffusion XL."""

    cond: Tensor  # (B, tokens, d)
    uncond: Tensor  # (B, tokens, d), of the negative prompt
    pooled: Tensor | None = None  # (B, p)
    pooled_uncond: Tensor | None = None  # (B, p)
    time_ids: Tensor | None = None  # (B, 6): height, width, top, left, height, width in pixels

    def __len__(self) -> int:
        return len(self.cond)


@torch.no_grad()
def encode_prompts(pipe: DiffusionPipeline, prompts: str | Sequence[str], *, negative: str = "") -> Prompts:
    """Encode prompts, and the negative prompt that guidance moves away from.

    Args:
        pipe: a Stable Diffusion pipeline, 1, 2 or XL.
        prompts: one or more.
        negative: for all of them; where it is empty, XL takes zeros, as it was trained.

    Raises:
        ValueError: no prompts.
    """
    prompts = [prompts] if isinstance(prompts, str) else list(prompts)
    if not prompts:
        raise ValueError("encode_prompts needs at least one prompt; got an empty list")
    cond, uncond, *pooled = pipe.encode_prompt(
        prompts, device=pipe.device, num_images_per_prompt=1, do_classifier_free_guidance=True,
        negative_prompt=[negative] * len(prompts) if negative else None,
    )  # fmt: skip
    if not pooled:
        return Prompts(cond, uncond)
    height, width = (side * pipe.vae_scale_factor for side in latent_sides(pipe))
    time_ids = torch.tensor([[height, width, 0, 0, height, width]], dtype=cond.dtype, device=cond.device)
    return Prompts(cond, uncond, *pooled, time_ids.repeat(len(prompts), 1))


def latent_sides(pipe: DiffusionPipeline) -> tuple[int, int]:
    """Rows and columns of the latents that the U-Net was trained on."""
    side = pipe.unet.config.sample_size
    return (side, side) if isinstance(side, int) else tuple(side)


@contextmanager
def in_float32(vae):
    """The autoencoder in float32: half precision overflows in that of Stable Diffusion XL."""
    dtype = vae.dtype
    try:
        yield torch.nn.Module.to(vae, torch.float32)  # diffusers' own `to` warns whenever it is given a dtype
    finally:
        torch.nn.Module.to(vae, dtype)


@torch.no_grad()
def decode(pipe: DiffusionPipeline, latents: Tensor) -> Tensor:
    """Images, float32 ``(B, 3, H, W)`` in [0, 1], of clean latents."""
    with in_float32(pipe.vae) as vae:
        images = vae.decode(latents.to(vae.device, torch.float32) / vae.config.scaling_factor).sample
    return (images / 2 + 0.5).clamp(0, 1)


@torch.no_grad()
def encode(pipe: DiffusionPipeline, images: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
    """Clean latents, float32, of images ``(B, 3, H, W)`` in [0, 1].

    Args:
        generator: None takes the mean of the autoencoder's posterior; a generator draws from it.

    Raises:
        ValueError: not a batch of images with three channels.
    """
    if images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(f"encode needs images of shape (B, 3, H, W) in [0, 1]; got shape {tuple(images.shape)}")
    with in_float32(pipe.vae) as vae:
        posterior = vae.encode(images.to(vae.device, torch.float32) * 2 - 1).latent_dist
    latents = posterior.mode() if generator is None else posterior.sample(generator)
    return latents * pipe.vae.config.scaling_factor


# ---------------------------------------------------------------------------------------- formulas


def to_clean_and_noise(
    output: Tensor, latents: Tensor, alpha_bar: float | Tensor, prediction_type: str
) -> tuple[Tensor, Tensor]:
    r"""The clean latents and the noise that an output of the U-Net stands for.

    .. math:: x_0 = \frac{x_t - \sqrt{1 - \bar\alpha}\,\varepsilon}{\sqrt{\bar\alpha}}, \qquad
              v = \sqrt{\bar\alpha}\,\varepsilon - \sqrt{1 - \bar\alpha}\, x_0

    Args:
        output: what the U-Net said, of the shape of ``latents``.
        latents: the noisy latents it saw.
        alpha_bar: in (0, 1), or a tensor that broadcasts; 0 is allowed for v-prediction, 1 for epsilon.
        prediction_type: ``"epsilon"`` the noise, ``"v_prediction"`` v, ``"sample"`` the clean latents.

    Returns:
        clean latents and noise.

    Raises:
        ValueError: an unknown prediction type.

    Example:
        >>> x0, eps = torch.tensor([2.0]), torch.tensor([1.0])
        >>> x = 0.36**0.5 * x0 + 0.64**0.5 * eps
        >>> clean, noise = to_clean_and_noise(eps, x, 0.36, "epsilon")
        >>> round(clean.item(), 4), noise.item()
        (2.0, 1.0)
    """
    signal, spread = alpha_bar**0.5, (1 - alpha_bar) ** 0.5
    match prediction_type:
        case "epsilon":
            return (latents - spread * output) / signal, output
        case "v_prediction":
            return signal * latents - spread * output, signal * output + spread * latents
        case "sample":
            return output, (latents - signal * output) / spread
    raise ValueError(f"the prediction type must be one of {', '.join(PREDICTION_TYPES)}; got {prediction_type!r}")


def ddim_step(
    clean: Tensor,
    noise: Tensor,
    alpha_bar_next: float,
    *,
    eta: float = 0.0,
    alpha_bar: float | None = None,
    fresh: Tensor | None = None,
) -> Tensor:
    r"""The latents of the next, less noisy step (Song et al. 2021, arXiv 2010.02502, equations 12 and 16).

    .. math:: x' = \sqrt{\bar\alpha'}\, x_0 + \sqrt{1 - \bar\alpha' - \sigma^2}\,\varepsilon + \sigma z, \qquad
              \sigma^2 = \eta^2\, \frac{1 - \bar\alpha'}{1 - \bar\alpha} \left(1 - \frac{\bar\alpha}{\bar\alpha'}\right)

    Args:
        clean, noise: the prediction at the present step.
        alpha_bar_next: of the step to go to.
        eta: 0 is deterministic (DDIM), 1 draws as much new noise as ancestral sampling (DDPM).
        alpha_bar: of the present step; needed where eta is not 0.
        fresh: z, standard normal, of the shape of ``clean``; needed where eta is not 0.

    Raises:
        ValueError: eta outside [0, 1], or not 0 without ``alpha_bar`` and ``fresh``.

    Example:
        >>> ddim_step(torch.tensor([2.0]), torch.tensor([1.0]), 0.64).item()  # 0.8 * 2 + 0.6 * 1
        2.200000047683716
    """
    if not 0 <= eta <= 1:
        raise ValueError(f"eta lies between 0, for DDIM, and 1, for ancestral sampling; got {eta}")
    if eta == 0:
        return alpha_bar_next**0.5 * clean + (1 - alpha_bar_next) ** 0.5 * noise
    if alpha_bar is None or fresh is None:
        raise ValueError(f"eta = {eta} draws new noise: pass alpha_bar, of the present step, and fresh, the noise")
    variance = eta**2 * (1 - alpha_bar_next) / (1 - alpha_bar) * (1 - alpha_bar / alpha_bar_next)
    kept = (1 - alpha_bar_next - variance) ** 0.5
    return alpha_bar_next**0.5 * clean + kept * noise + variance**0.5 * fresh


class Level(NamedTuple):
    """One step of a schedule."""

    timestep: int
    alpha_bar: float  # at the timestep
    alpha_bar_next: float  # one step closer to the clean picture


def schedule(pipe: DiffusionPipeline, steps: int) -> list[Level]:
    """The steps from noise to picture, as the pipeline's DDIM scheduler spaces them.

    Raises:
        ValueError: another scheduler than DDIM, one that clips, or a number of steps that it has no timesteps for.
    """
    scheduler = pipe.scheduler
    config = scheduler.config
    if not isinstance(scheduler, DDIMScheduler) or config.clip_sample or config.thresholding:
        raise ValueError(
            f"sampling needs a DDIMScheduler that does not clip; got {type(scheduler).__name__}. Set pipe.scheduler = "
            "DDIMScheduler.from_config(pipe.scheduler.config, clip_sample=False, thresholding=False)"
        )
    alpha_bars, stride = scheduler.alphas_cumprod.tolist(), 0
    if 1 <= steps <= len(alpha_bars):
        scheduler.set_timesteps(steps)
        stride = len(alpha_bars) // steps
    if stride == 0 or scheduler.timesteps.max() >= len(alpha_bars):
        most = len(alpha_bars) - config.steps_offset * (config.timestep_spacing == "leading")
        raise ValueError(f"steps must be from 1 to {most} with this scheduler; got {steps}")
    last = scheduler.final_alpha_cumprod.item()
    return [
        Level(t, alpha_bars[t], alpha_bars[t - stride] if t >= stride else last) for t in scheduler.timesteps.tolist()
    ]


# ---------------------------------------------------------------------------------------- the loops


class Prediction(NamedTuple):
    """What the U-Net takes the noisy latents to be made of."""

    clean: Tensor
    noise: Tensor


class Step(NamedTuple):
    """One step of a loop."""

    index: int  # from 0
    timestep: int  # at which the U-Net was called
    latents: Tensor  # after the step
    clean: Tensor  # the clean latents predicted in it


def _output(pipe: DiffusionPipeline, latents: Tensor, t: int, prompts: Prompts, guidance: float) -> Tensor:
    """The guided output of one call of the U-Net, in the dtype of the latents."""
    halves = [(prompts.uncond, prompts.pooled_uncond)] if guidance != 1 else []
    halves += [(prompts.cond, prompts.pooled)] if guidance != 0 else []
    hidden, pooled = zip(*halves, strict=True)
    added = None
    if prompts.time_ids is not None:
        added = {"text_embeds": torch.cat(pooled), "time_ids": torch.cat([prompts.time_ids] * len(halves))}
    hidden = torch.cat(hidden)
    seen = torch.cat([latents] * len(halves)).to(hidden.dtype)  # prompts are encoded in the dtype of the U-Net
    output = pipe.unet(seen, t, encoder_hidden_states=hidden, added_cond_kwargs=added).sample
    output = output.to(latents.dtype)
    if len(halves) == 1:
        return output
    uncond, cond = output.chunk(2)
    return uncond + guidance * (cond - uncond)


@torch.no_grad()
def predict(pipe: DiffusionPipeline, latents: Tensor, t: int, prompts: Prompts, *, guidance: float) -> Prediction:
    """What the U-Net predicts at one timestep, with classifier-free guidance (Ho & Salimans 2022, arXiv 2207.12598).

    Guidance g is ``uncond + g (cond - uncond)``. For g = 1 the U-Net sees the batch once with the prompts, for g = 0
    once without, for any other g once as a doubled batch, ``[uncond; cond]``.

    Args:
        latents: (B, C, H, W), noisy as at timestep t.
        t: a timestep that the U-Net was trained on.
        prompts: B of them.
        guidance: the weight g.
    """
    output = _output(pipe, latents, t, prompts, guidance)
    alpha_bar = pipe.scheduler.alphas_cumprod[t].item()
    return Prediction(*to_clean_and_noise(output, latents, alpha_bar, pipe.scheduler.config.prediction_type))


def _generators(n: int, seed: int) -> list[torch.Generator]:
    """One per picture, on the CPU, so that a picture depends neither on the device nor on its neighbors."""
    return [torch.Generator().manual_seed(seed + index) for index in range(n)]


def _noise(pipe: DiffusionPipeline, generators: list[torch.Generator], shape: Sequence[int]) -> Tensor:
    return torch.stack([torch.randn(tuple(shape), generator=generator) for generator in generators]).to(pipe.device)


def latent_shape(pipe: DiffusionPipeline) -> tuple[int, int, int]:
    """Channels, rows and columns of the latents that the U-Net was trained on."""
    return (pipe.unet.config.in_channels, *latent_sides(pipe))


def initial_latents(pipe: DiffusionPipeline, n: int, seed: int) -> Tensor:
    """Standard normal latents ``(n, C, H, W)``, float32; picture i has the noise of seed + i."""
    return _noise(pipe, _generators(n, seed), latent_shape(pipe))


def default_guidance(pipe: DiffusionPipeline) -> float:
    """The guidance weight stored with the size that :func:`load` loaded, else that of the pipeline's class."""
    like = "sdxl" if hasattr(pipe, "text_encoder_2") else "sd15"
    return _entry(getattr(pipe, "size", like)).guidance


@torch.no_grad()
def sample(
    pipe: DiffusionPipeline,
    prompts: str | Sequence[str] | Prompts,
    *,
    steps: int = 25,
    guidance: float | None = None,
    seed: int = 0,
    latents: Tensor | None = None,
    eta: float = 0.0,
    start: int = 0,
    replay: Mapping[int, Tensor] | None = None,
) -> Iterator[Step]:
    """Sample one picture per prompt, step by step; the last step's latents are those to :func:`decode`.

    Args:
        pipe: a Stable Diffusion pipeline, 1, 2 or XL, with a DDIM scheduler.
        prompts: one or more, or :class:`Prompts` that :func:`encode_prompts` made.
        steps: how many; 25 is where most pictures stop changing visibly.
        guidance: see :func:`predict`. None is the weight stored with the size: 2.5 for tiny, 7.5 for sd15, 5 for sdxl.
        seed: picture i draws all its noise from seed + i, so it does not depend on how many others there are.
        latents: noise to begin with, (B, C, H, W); None draws :func:`initial_latents`.
        eta: see :func:`ddim_step`.
        start: how many of the steps to leave out at the noisy end; ``latents`` are then as noisy as the next one takes.
        replay: pictures that are not sampled but played back: the index of each, and its latents before each step and
            after the last, ``(steps + 1, C, H, W)``, such as :class:`stylemoments.editing.Trajectory` has. The U-Net
            sees them beside the others.

    Raises:
        ValueError: see :func:`schedule`, :func:`ddim_step`; not as many latents as prompts; a start without latents or
            out of range; or a replay of a picture that is not there, or of other steps or sides.
    """
    if not 0 <= start < steps or (start and latents is None):
        raise ValueError(
            f"start is 0 to {steps - 1} for {steps} steps, and above 0 it needs latents as noisy as there; got {start}"
        )
    prompts = prompts if isinstance(prompts, Prompts) else encode_prompts(pipe, prompts)
    guidance = default_guidance(pipe) if guidance is None else guidance
    generators = _generators(len(prompts), seed)
    drawn = _noise(pipe, generators, latent_shape(pipe) if latents is None else latents.shape[1:])
    latents = _matching(drawn if latents is None else latents.to(pipe.device), prompts)
    replay = {} if replay is None else _checked_replay(replay, latents, steps)
    latents = _replayed(latents, replay, start)
    for index, (t, alpha_bar, alpha_bar_next) in enumerate(schedule(pipe, steps)[start:], start):
        clean, noise = predict(pipe, latents, t, prompts, guidance=guidance)
        fresh = _noise(pipe, generators, latents.shape[1:]).to(latents.dtype) if eta > 0 else None
        latents = ddim_step(clean, noise, alpha_bar_next, eta=eta, alpha_bar=alpha_bar, fresh=fresh)
        latents = _replayed(latents, replay, index + 1)
        yield Step(index, t, latents, clean)


def _checked_replay(replay: Mapping[int, Tensor], latents: Tensor, steps: int) -> dict[int, Tensor]:
    shape = (steps + 1, *latents.shape[1:])
    for picture, played in replay.items():
        if picture not in range(len(latents)) or tuple(played.shape) != shape:
            raise ValueError(
                f"{steps} steps of {len(latents)} pictures replay latents of shape {shape} for pictures 0 to "
                f"{len(latents) - 1}; got shape {tuple(played.shape)} for picture {picture}"
            )
    return {picture: played.to(latents) for picture, played in replay.items()}


def _replayed(latents: Tensor, replay: Mapping[int, Tensor], index: int) -> Tensor:
    """The latents before a step, with those that are played back in their rows."""
    if not replay:
        return latents
    latents = latents.clone()
    for picture, played in replay.items():
        latents[picture] = played[index]
    return latents


def _matching(latents: Tensor, prompts: Prompts) -> Tensor:
    if len(latents) != len(prompts):
        raise ValueError(f"one prompt per picture: got {len(prompts)} prompts and latents of {len(latents)} pictures")
    return latents


def generate(pipe: DiffusionPipeline, prompts: str | Sequence[str] | Prompts, **options) -> Tensor:
    """Images, float32 ``(B, 3, H, W)`` in [0, 1]: the end of :func:`sample`, which takes the same options."""
    *_, last = sample(pipe, prompts, **options)
    return decode(pipe, last.latents)


@torch.no_grad()
def invert(
    pipe: DiffusionPipeline,
    latents: Tensor,
    prompts: str | Sequence[str] | Prompts,
    *,
    steps: int = 50,
    guidance: float = 1.0,
) -> Iterator[Step]:
    """DDIM inversion: from clean latents to the noise that :func:`sample` would bring back to them.

    The steps of :func:`sample` backwards. Each needs the noise predicted at its noisier end, which is not known yet; it
    is predicted from the latents at the other end instead. The result is exact where the predicted noise does not
    depend on the latents, and gets better with more steps. Keep the steps to have the whole trajectory.

    Args:
        latents: clean, (B, C, H, W), from :func:`encode`.
        prompts: B of them, describing the pictures.
        steps: of the sampling to invert.
        guidance: see :func:`predict`; the higher, the less exact.

    Yields:
        Step: ``latents`` as noisy as at its ``timestep``; the last are the noise to sample from.

    Raises:
        ValueError: see :func:`schedule`; or not as many latents as prompts.
    """
    prompts = prompts if isinstance(prompts, Prompts) else encode_prompts(pipe, prompts)
    latents = _matching(latents.to(pipe.device), prompts)
    kind = pipe.scheduler.config.prediction_type
    for index, (t, alpha_bar, alpha_bar_before) in enumerate(reversed(schedule(pipe, steps))):
        output = _output(pipe, latents, t, prompts, guidance)
        clean, noise = to_clean_and_noise(output, latents, alpha_bar_before, kind)
        latents = ddim_step(clean, noise, alpha_bar)
        yield Step(index, t, latents, clean)
