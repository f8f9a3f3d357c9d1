r"""DreamBooth: teach a text-to-image model one subject from a few pictures of it.

Ruiz et al., *DreamBooth: Fine Tuning Text-to-Image Diffusion Models for Subject-Driven Generation*, 2022 (arXiv
2208.12242). The subject gets a name, a rare token before its class noun ("a sks dog"), and the loss of the model on the
subject's pictures is lowered. So that "a dog" stays any dog, pictures of the class that the frozen model drew itself
are learned beside them, with the weight :math:`\lambda`:

.. math:: \mathcal{L} = \mathbb{E}\, w_t \lVert f(x_t, t, \text{"a sks dog"}) - y \rVert^2
          + \lambda\, \mathbb{E}\, w_{t'} \lVert f(x'_{t'}, t', \text{"a dog"}) - y' \rVert^2

Low-rank adapters instead of all weights: Hu et al., *LoRA*, 2021 (arXiv 2106.09685). Weights of the times: Hang et al.,
*Min-SNR*, 2023 (arXiv 2303.09556).

What differs from the common scripts: every draw of a step comes from the seed and the step's number, so that a run
that was stopped ends with the same weights, and two processes take the steps of one; crops are drawn anew in every
step; a caption is an index into the two prompts, beside its picture, so that no batch can pair them wrongly; pictures
of the class have a size conditioning of their own.

Axes: ``B`` pictures of a step, ``C H W`` channels, rows, columns. Images are ``(B, 3, H, W)`` in [0, 1].
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

from . import diffusion, files
from .world.prompts import article

# isort: split
import torch
from accelerate import PartialState
from diffusers import DDIMScheduler, DiffusionPipeline
from diffusers.models.attention_processor import AttnProcessor
from diffusers.training_utils import EMAModel
from diffusers.utils import convert_state_dict_to_diffusers
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

TEXT = ("frozen", "token", "all")
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
ADAPTER = "dreambooth"
UNET_TARGETS = ("to_q", "to_k", "to_v", "to_out.0")
TEXT_TARGETS = ("q_proj", "k_proj", "v_proj", "out_proj")
CHECKPOINT = "checkpoint.pt"
FACTS = "dreambooth.json"
SUBJECT, CLASS = 0, 1  # numbers of the two prompts


# ---------------------------------------------------------------------------------------- settings


@dataclass(frozen=True)
class Settings:
    """What a training run does; :func:`defaults` has the values for a size.

    Raises:
        ValueError: a value outside its range; the message names it.
    """

    steps: int = 150
    batch: int = 4  # pictures of the subject per step, and as many of the class; all processes together
    rate: float = 1e-4  # learning rate of AdamW, constant
    prior_weight: float = 1.0  # lambda, 0 or more; 0 leaves the pictures of the class away
    text: str = "frozen"  # the text encoder: "frozen"; "token", only the row of the subject's token; or "all"
    rank: int | None = None  # of LoRA; None trains all weights
    alpha: float | None = None  # LoRA adds alpha / rank times its product; None is alpha = rank
    targets: tuple[str, ...] = UNET_TARGETS  # ends of the names of the U-Net's layers that LoRA adapts
    snr_gamma: float | None = None  # Min-SNR weights the times, 5 in the paper; None weighs all alike
    zoom: float = 1.1  # a fresh crop sees from 1 / zoom of the picture to all of it; 1 crops nothing but to a square
    accumulate: int = 1  # parts that a batch is computed in, one after the other: less memory, the same step
    checkpointing: bool = False  # compute activations twice instead of keeping them: less memory, about a third slower
    precision: str = "fp32"  # of the computation: "fp32", "bf16" or "fp16"; what is trained stays float32
    average: float | None = None  # decay of a moving average of the weights, such as 0.99; None takes the last
    weight_decay: float = 0.01
    clip: float = 1.0  # largest norm of the gradient
    seed: int = 0

    def __post_init__(self):
        rules = {
            "steps is 1 or more": self.steps >= 1,
            "batch is 1 or more": self.batch >= 1,
            "rate is above 0": self.rate > 0,
            "prior_weight is 0 or more": self.prior_weight >= 0,
            f"text is one of {', '.join(TEXT)}": self.text in TEXT,
            "rank is 1 or more, or None for all weights": self.rank is None or self.rank >= 1,
            "snr_gamma is above 0, or None": self.snr_gamma is None or self.snr_gamma > 0,
            "zoom is 1 or more": self.zoom >= 1,
            "accumulate divides batch": self.accumulate >= 1 and self.batch % self.accumulate == 0,
            f"precision is one of {', '.join(PRECISIONS)}": self.precision in PRECISIONS,
            "average lies in [0, 1), or is None": self.average is None or 0 <= self.average < 1,
        }
        for rule, kept in rules.items():
            if not kept:
                raise ValueError(f"{rule}; got {getattr(self, rule.split()[0])!r}" + self._beside(rule))

    def _beside(self, rule: str) -> str:
        return f" with a batch of {self.batch}" if rule.startswith("accumulate") else ""


def defaults(size: str, *, rank: int | None = None, **changes) -> Settings:
    """Settings that work for a size; what you name yourself replaces them.

    Tiny: measured in chapter 6 of the book. Full size: the values of the paper and of diffusers' examples, about 1000
    steps at 5e-6 for all weights and 500 at 1e-4 for LoRA, one picture at a time with checkpointing; not measured by
    this repository.

    Args:
        size: ``"tiny"``, ``"sd15"`` or ``"sdxl"``.
        rank: of LoRA; None trains all weights.

    Raises:
        ValueError: another size, or see :class:`Settings`.

    Example:
        >>> defaults("tiny").steps, defaults("sd15", rank=16).rate, defaults("tiny", steps=10).steps
        (150, 0.0001, 10)
    """
    if size not in diffusion.SIZES:
        raise ValueError(f"the size must be one of {', '.join(diffusion.SIZES)}; got {size!r}")
    if size == "tiny":
        known = {"steps": 150, "batch": 4, "rate": 1e-4 if rank is None else 2e-3}
    else:
        known = {"steps": 1000, "rate": 5e-6} if rank is None else {"steps": 500, "rate": 1e-4}
        half = "bf16" if torch.cuda.is_available() and torch.cuda.is_bf16_supported() else "fp16"
        known |= {"batch": 1, "checkpointing": True, "precision": half if torch.cuda.is_available() else "fp32"}
    return Settings(**known | {"rank": rank} | changes)


# ---------------------------------------------------------------------------------------- pictures of the class


def class_images(
    pipe: DiffusionPipeline,
    noun: str,
    n: int,
    folder: str | Path | None = None,
    *,
    steps: int = 25,
    guidance: float | None = None,
    seed: int = 0,
    progress: bool = False,
) -> Tensor:
    """Pictures of "a NOUN" by the model as it is: call this before training. A folder keeps them, and they are reused.

    Args:
        pipe: the pipeline, untrained.
        noun: the class noun.
        n: how many; the paper takes about 1000, and 32 do at size tiny.
        folder: where the pictures lie as PNG, with ``class.json`` that says how they were made. What is missing is
            drawn, so a run that was stopped goes on. None keeps nothing.
        steps, guidance, seed: of the sampling; picture i has the noise of seed + i.
        progress: show a bar.

    Returns:
        float32 ``(n, 3, H, W)`` in [0, 1], in steps of 1/255.

    Raises:
        ValueError: no noun, fewer than one picture, or a folder of pictures that were made otherwise.
    """
    if not noun or n < 1:
        raise ValueError(f"pictures of a class need its noun and a number of 1 or more; got {noun!r} and {n}")
    guidance = diffusion.default_guidance(pipe) if guidance is None else guidance
    made = {"prompt": article(noun), "size": getattr(pipe, "size", "")}
    made |= {"steps": steps, "guidance": guidance, "seed": seed}
    if folder is None:
        return _draw(pipe, made, range(n), progress)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    _check_made(folder / "class.json", made)
    paths = [folder / f"{number:05d}.png" for number in range(n)]
    missing = [number for number, path in enumerate(paths) if not path.exists()]
    for part in _parts(missing, 16):
        for number, image in zip(part, _draw(pipe, made, part, progress), strict=True):
            files.write(paths[number], image, force=True)
    return torch.cat([files.read(path) for path in paths])


def _parts(items: Sequence, size: int) -> Iterator[Sequence]:
    return (items[first : first + size] for first in range(0, len(items), size))


def _check_made(path: Path, made: dict) -> None:
    """Write how the pictures were made; where it stands already, it must be the same."""
    if path.exists():
        was = json.loads(path.read_text("utf-8"))
        if was != made:
            raise ValueError(f"{path.parent} holds pictures made otherwise: {was}, not {made}; choose another folder")
        return
    with files.whole(path) as part:
        part.write_text(json.dumps(made), "utf-8")


def _draw(pipe: DiffusionPipeline, made: dict, numbers: Sequence[int], progress: bool) -> Tensor:
    from tqdm import tqdm

    images = []
    options = {"steps": made["steps"], "guidance": made["guidance"]}
    for part in tqdm([*_parts(numbers, 8)], desc="class images", unit="batch", disable=not progress):
        shape = diffusion.initial_latents(pipe, 1, 0).shape[1:]
        latents = torch.cat([diffusion.initial_latents(pipe, 1, made["seed"] + i) for i in part]).reshape(-1, *shape)
        drawn = diffusion.generate(pipe, [made["prompt"]] * len(part), latents=latents, **options).cpu()
        images.append((drawn * 255).round() / 255)
    return torch.cat(images)


# ---------------------------------------------------------------------------------------- formulas


def snr_weights(alpha_bar: Tensor, prediction_type: str, gamma: float | None) -> Tensor:
    r"""The weight of each picture's loss at its time: Min-SNR (Hang et al. 2023, arXiv 2303.09556), or 1.

    With the signal-to-noise ratio :math:`s = \bar\alpha / (1 - \bar\alpha)` and :math:`m = \min(s, \gamma)` the weight
    is :math:`m` for a network that predicts the clean latents, :math:`m / s` for the noise, :math:`m / (s + 1)` for v:
    the same weight of the clean latents' error in all three.

    Args:
        alpha_bar: ``(B,)`` in (0, 1), the part of the variance that is still picture.
        prediction_type: ``"epsilon"``, ``"v_prediction"`` or ``"sample"``.
        gamma: above 0, 5 in the paper; None gives ones.

    Returns:
        ``(B,)``.

    Raises:
        ValueError: an unknown prediction type.

    Example:
        >>> snr_weights(torch.tensor([0.5, 0.9]), "epsilon", 1.0)  # the ratios are 1 and 9
        tensor([1.0000, 0.1111])
    """
    ratio = alpha_bar / (1 - alpha_bar)
    per = {"sample": torch.ones_like(ratio), "epsilon": ratio, "v_prediction": ratio + 1}
    if prediction_type not in per:
        raise ValueError(f"the prediction type must be one of {', '.join(per)}; got {prediction_type!r}")
    return torch.ones_like(ratio) if gamma is None else ratio.clamp(max=gamma) / per[prediction_type]


def training_target(clean: Tensor, noise: Tensor, alpha_bar: Tensor, prediction_type: str) -> Tensor:
    r"""What the network should say: the noise, v, or the clean latents.

    Args:
        clean, noise: ``(B, C, H, W)``.
        alpha_bar: broadcasts against them.
        prediction_type: ``"epsilon"``, ``"v_prediction"`` or ``"sample"``.

    Raises:
        ValueError: an unknown prediction type.

    Example:
        >>> clean, noise = torch.tensor([2.0]), torch.tensor([1.0])
        >>> training_target(clean, noise, torch.tensor(0.36), "v_prediction")  # 0.6 - 0.8 * 2
        tensor([-1.0000])
    """
    match prediction_type:
        case "epsilon":
            return noise
        case "v_prediction":
            return alpha_bar.sqrt() * noise - (1 - alpha_bar).sqrt() * clean
        case "sample":
            return clean
    types = ", ".join(diffusion.PREDICTION_TYPES)
    raise ValueError(f"the prediction type must be one of {types}; got {prediction_type!r}")


def dreambooth_loss(squares: Tensor, which: Tensor, prior_weight: float) -> tuple[Tensor, Tensor, Tensor | None]:
    """The loss of a batch: the mean over the subject's pictures plus ``prior_weight`` times that over the class's.

    Args:
        squares: ``(B,)``, the (weighted) mean squared error of each picture.
        which: ``(B,)``, SUBJECT or CLASS for each, in any order.
        prior_weight: lambda.

    Returns:
        the loss, the subject's part, and the class's part before weighting (None without pictures of the class).

    Example:
        >>> loss, subject, prior = dreambooth_loss(torch.tensor([1.0, 3.0, 4.0]), torch.tensor([0, 0, 1]), 0.5)
        >>> loss.item(), subject.item(), prior.item()  # (1 + 3) / 2 + 0.5 * 4
        (4.0, 2.0, 4.0)
    """
    subject = squares[which == SUBJECT].mean()
    if not (which == CLASS).any():
        return subject, subject, None
    prior = squares[which == CLASS].mean()
    return subject + prior_weight * prior, subject, prior


class Crop(NamedTuple):
    """A square piece of a picture, and what Stable Diffusion XL is told about it."""

    image: Tensor  # (3, side, side)
    time_ids: tuple[int, ...]  # height and width of the picture, top and left of the crop, height and width of the crop


def crop(image: Tensor, side: int, zoom: float, u: Tensor) -> Crop:
    """Resize a picture so that its short side is ``zoom`` times ``side``, and cut a square out.

    Args:
        image: ``(3, H, W)`` in [0, 1].
        side: of the square in pixels.
        zoom: 1 or more.
        u: two numbers in [0, 1): where the square lies between top and bottom, left and right.

    Returns:
        the square, and its size conditioning (Podell et al. 2023, arXiv 2307.01952): top and left count pixels of the
        resized picture.

    Example:
        >>> crop(torch.zeros(3, 40, 80), 20, 1.0, torch.tensor([0.0, 0.5])).time_ids
        (40, 80, 0, 10, 20, 20)
    """
    height, width = image.shape[-2:]
    resized = files.resize(image[None], round(side * zoom))[0]
    top, left = ((extent - side + 1) * float(v) for extent, v in zip(resized.shape[-2:], u, strict=True))
    top, left = int(top), int(left)
    return Crop(resized[:, top : top + side, left : left + side], (height, width, top, left, side, side))


# ---------------------------------------------------------------------------------------- the model that is trained


class Denoiser(nn.Module):
    """The U-Net with the text encoders, called with the number of each picture's prompt instead of its words."""

    def __init__(self, pipe: DiffusionPipeline, prompts: list[str], settings: Settings):
        super().__init__()
        self.unet = pipe.unet
        trained = settings.text != "frozen"
        encoders = [pipe.text_encoder, getattr(pipe, "text_encoder_2", None)]
        tokenizers = [pipe.tokenizer, getattr(pipe, "tokenizer_2", None)]
        pairs = [(t, e) for t, e in zip(tokenizers, encoders, strict=True) if e is not None]
        self.encoders = nn.ModuleList([encoder for _, encoder in pairs] if trained else [])
        self.ids = [_token_ids(tokenizer, prompts).to(pipe.device) for tokenizer, _ in pairs]
        self.encoded = None if trained else diffusion.encode_prompts(pipe, prompts)
        self.dtype = PRECISIONS[settings.precision]

    def words(self) -> tuple[Tensor, Tensor | None]:
        """Hidden states ``(prompts, tokens, d)``, and for XL pooled ones ``(prompts, p)``."""
        if self.encoded is not None:
            return self.encoded.cond, self.encoded.pooled
        if len(self.encoders) == 1:
            return self.encoders[0](self.ids[0]).last_hidden_state, None
        said = [e(ids, output_hidden_states=True) for e, ids in zip(self.encoders, self.ids, strict=True)]
        return torch.cat([output.hidden_states[-2] for output in said], -1), said[-1].text_embeds

    def forward(self, noisy: Tensor, times: Tensor, which: Tensor, time_ids: Tensor) -> Tensor:
        """The U-Net's output, float32 ``(B, C, H, W)``, for pictures whose prompts have the numbers ``which (B,)``."""
        with torch.autocast(noisy.device.type, self.dtype, enabled=self.dtype != torch.float32):
            hidden, pooled = self.words()
            added = None if pooled is None else {"text_embeds": pooled[which], "time_ids": time_ids.to(pooled.dtype)}
            output = self.unet(noisy, times, encoder_hidden_states=hidden[which], added_cond_kwargs=added).sample
        return output.float()


def _token_ids(tokenizer, prompts: list[str]) -> Tensor:
    options = {"padding": "max_length", "truncation": True, "return_tensors": "pt"}
    return tokenizer(prompts, max_length=tokenizer.model_max_length, **options).input_ids


def _one_token(pipe: DiffusionPipeline, token: str) -> list[int]:
    """The number of the token for each tokenizer."""
    numbers = []
    for tokenizer in (pipe.tokenizer, getattr(pipe, "tokenizer_2", None)):
        if tokenizer is not None:
            ids = tokenizer(token, add_special_tokens=False).input_ids
            if len(ids) != 1:
                raise ValueError(
                    f'text="token" trains the row of one token, and {token!r} is {len(ids)} tokens for this model; '
                    'take a word that is one, such as "sks"'
                )
            numbers += ids
    return numbers


# ---------------------------------------------------------------------------------------- training


class Record(NamedTuple):
    """One training step."""

    step: int  # counted from 1
    loss: float  # subject + prior_weight * prior
    subject: float  # its own part
    prior: float | None  # of the class's pictures, before weighting; None where the prior weight is 0
    image: Tensor | None = None  # (1, 3, H, W) in [0, 1], in the steps where one was asked for


class Batch(NamedTuple):
    """Everything that a step draws, for all processes together."""

    noisy: Tensor  # (B, C, H, W) latents
    target: Tensor  # of their shape
    times: Tensor  # (B,)
    which: Tensor  # (B,) SUBJECT or CLASS
    time_ids: Tensor  # (B, 6)
    weights: Tensor  # (B,)


class DreamBooth:
    """Fine-tunes a pipeline **in place** on a subject; deep-copy a pipeline that you want to keep.

    Args:
        pipe: a Stable Diffusion pipeline, 1, 2 or XL. Weights that are trained must be float32; with LoRA the frozen
            ones may be half precision.
        subject_images: three to five pictures, ``(3, H, W)`` or ``(1, 3, H, W)`` in [0, 1], of any size, or one batch
            ``(n, 3, H, W)``.
        token: the subject's name, a rare token such as ``"sks"``.
        class_noun: what it is, such as ``"dog"``; empty for none.
        class_images: ``(m, 3, side, side)`` in [0, 1], from :func:`class_images`; needed unless the prior weight is 0.
        settings: see :class:`Settings`; None takes :func:`defaults` for the pipeline's size.

    Raises:
        ValueError: no pictures, pictures of another shape or range, no pictures of the class where the settings ask
            for them, half-precision weights to train, a pipeline that has a ``dreambooth`` adapter already, or with
            ``text="token"`` a name of more than one token.

    Example:
        >>> pipe = diffusion.load("tiny", device="cpu")
        size tiny: as asked
        >>> settings = defaults("tiny", steps=1, batch=1, prior_weight=0)
        >>> dream = DreamBooth(pipe, [torch.rand(3, 64, 64)], "sks", "dog", settings=settings)
        >>> dream.prompt, [record.step for record in dream.train()]
        ('a sks dog', [1])
    """

    def __init__(
        self,
        pipe: DiffusionPipeline,
        subject_images: Tensor | Sequence[Tensor],
        token: str,
        class_noun: str,
        *,
        class_images: Tensor | None = None,
        settings: Settings | None = None,
    ):
        self.pipe, self.token, self.noun = pipe, token, class_noun
        self.settings = settings or defaults(getattr(pipe, "size", "tiny"))
        self.images = [_checked(image) for image in subject_images]
        if not self.images:
            raise ValueError("DreamBooth needs pictures of the subject, three to five; got none")
        self.side = diffusion._sides(pipe)[0] * pipe.vae_scale_factor
        self.class_images = self._checked_class(class_images) if self.settings.prior_weight else None
        self._encoded = {}  # size conditioning, mean and deviation of the class pictures seen so far
        self.prompt = article(" ".join(filter(None, (token, class_noun))))
        prompts = [self.prompt] + ([article(class_noun)] if self.settings.prior_weight else [])
        _freeze(pipe)
        self._open(self.settings)
        self.denoiser = Denoiser(pipe, prompts, self.settings)

    def _checked_class(self, images: Tensor | None) -> Tensor:
        if images is None or not self.noun:
            raise ValueError(
                f"a prior weight of {self.settings.prior_weight} needs a class noun and pictures of the class: pass "
                "class_images=class_images(pipe, noun, n), or set prior_weight=0"
            )
        for image in images:
            _checked(image)
        if images.shape[-2:] != (self.side, self.side):
            raise ValueError(f"pictures of the class are {self.side} pixels square here; got {tuple(images.shape)}")
        return images

    def _open(self, settings: Settings) -> None:
        """Let the gradients go where they should."""
        unet = self.pipe.unet
        encoders = _encoders(self.pipe) if settings.text == "all" else []
        if settings.text == "token":
            _open_token(self.pipe, self.token)
        if settings.rank is None:
            for module in (unet, *encoders):
                module.requires_grad_(True)
        else:
            _add_lora(unet, settings, settings.targets)
            for encoder in encoders:
                _add_lora(encoder, settings, TEXT_TARGETS)
        half = {p.dtype for p in self.parameters().values()} - {torch.float32}
        if half:
            raise ValueError(
                f"weights are trained in float32, and these are {', '.join(map(str, half))}: load the pipeline with "
                "dtype=torch.float32, or train LoRA (rank=16)"
            )

    def parameters(self) -> dict[str, nn.Parameter]:
        """What is trained, by name."""
        modules = {"unet": self.pipe.unet} | {f"text_{i}": e for i, e in enumerate(_encoders(self.pipe))}
        named = ((f"{part}.{name}", p) for part, module in modules.items() for name, p in module.named_parameters())
        return {name: p for name, p in named if p.requires_grad}

    def memory(self) -> dict[str, int]:
        """Bytes that training needs at least: weights, gradients, AdamW's two moments, average; activations on top."""
        frozen = [*self.pipe.vae.parameters(), *self.pipe.unet.parameters()]
        frozen += [p for encoder in _encoders(self.pipe) for p in encoder.parameters()]
        trained = sum(4 * p.numel() for p in self.parameters().values())
        return {
            "weights": sum(p.numel() * p.element_size() for p in frozen),
            "gradients": trained,
            "optimizer": 2 * trained,
            "average": 0 if self.settings.average is None else trained,
        }

    # ------------------------------------------------------------------------------------ one step

    def batch(self, step: int, share: slice = slice(None)) -> Batch:
        """What step number ``step``, from 0, learns from: a function of the seed and the step alone.

        Args:
            step: from 0.
            share: which of the pictures to encode and return; their draws do not depend on it.
        """
        generator = torch.Generator().manual_seed(self.settings.seed * 2**32 + step)
        n = self.settings.batch
        kinds = [SUBJECT] * n + [CLASS] * (n if self.class_images is not None else 0)
        places = torch.rand(len(kinds), 3, generator=generator)
        shape = diffusion._latent_shape(self.pipe)
        noise, spread = torch.randn(2, len(kinds), *shape, generator=generator)
        levels = self.pipe.scheduler.alphas_cumprod
        times = torch.randint(len(levels), (len(kinds),), generator=generator)
        mine = [*range(len(kinds))[share]]
        numbers = [step * n + i % n for i in mine]  # every picture in turn
        parts = [self._of_class(j) if kinds[i] == CLASS else self._of_subject(j, places[i])
                 for i, j in zip(mine, numbers, strict=True)]  # fmt: skip
        time_ids, mean, deviation = (list(part) for part in zip(*parts, strict=True))
        device = self.pipe.device
        clean = torch.stack(mean) + torch.stack(deviation) * spread[mine].to(device)
        noise, alpha_bar = noise[mine].to(device), levels[times[mine]].to(device)
        wide = alpha_bar[:, None, None, None]
        kind = self.pipe.scheduler.config.prediction_type
        return Batch(
            wide.sqrt() * clean + (1 - wide).sqrt() * noise,
            training_target(clean, noise, wide, kind),
            times[mine].to(device),
            torch.tensor([kinds[i] for i in mine], device=device),
            torch.tensor(time_ids, device=device),
            snr_weights(alpha_bar, kind, self.settings.snr_gamma),
        )

    def _of_subject(self, number: int, u: Tensor) -> tuple[tuple[int, ...], Tensor, Tensor]:
        """Size conditioning and latent distribution of a fresh crop."""
        zoom = 1 + (self.settings.zoom - 1) * float(u[2])
        piece = crop(self.images[number % len(self.images)], self.side, zoom, u[:2])
        return piece.time_ids, *self._posterior(piece.image)

    def _of_class(self, number: int) -> tuple[tuple[int, ...], Tensor, Tensor]:
        """The same of a whole picture of the class, encoded once."""
        number %= len(self.class_images)
        if number not in self._encoded:
            piece = crop(self.class_images[number], self.side, 1.0, torch.zeros(2))
            self._encoded[number] = piece.time_ids, *self._posterior(piece.image)
        return self._encoded[number]

    @torch.no_grad()
    def _posterior(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and deviation of one picture's latents; one at a time, so that no bit depends on its neighbors."""
        with diffusion._float32(self.pipe.vae) as vae:
            posterior = vae.encode(image[None].to(vae.device) * 2 - 1).latent_dist
            return tuple(part[0] * vae.config.scaling_factor for part in (posterior.mean, posterior.std))

    def loss(self, batch: Batch, model: nn.Module | None = None) -> tuple[Tensor, Tensor, Tensor | None]:
        """See :func:`dreambooth_loss`."""
        output = (model or self.denoiser)(batch.noisy, batch.times, batch.which, batch.time_ids)
        squares = batch.weights * (output - batch.target).square().mean((1, 2, 3))
        return dreambooth_loss(squares, batch.which, self.settings.prior_weight)

    # ------------------------------------------------------------------------------------ all steps

    def train(
        self,
        folder: str | Path | None = None,
        *,
        save_every: int = 100,
        validate_every: int = 0,
        validation_prompt: str | None = None,
    ) -> Iterator[Record]:
        """Train, one record per step. Afterwards ``pipe`` draws the subject; between steps, what it knows by then.

        On several processes (``accelerate launch``) each computes its share of the batch and the records say the same
        in all of them.

        Args:
            folder: keeps a checkpoint; one found there is continued, and on a CPU the run ends with the weights of a
                run that was never stopped, bit for bit. None keeps nothing.
            save_every: steps between checkpoints; the last step always has one.
            validate_every: steps between pictures in the records; 0 for none.
            validation_prompt: what they show; None is the subject's own prompt.

        Raises:
            ValueError: a checkpoint of another run than this, or a batch that the processes cannot share evenly.
        """
        state = PartialState(cpu=self.pipe.device.type == "cpu")
        parts = state.num_processes * self.settings.accumulate
        if self.settings.batch % parts:
            raise ValueError(
                f"a batch must be a multiple of processes times accumulate, {state.num_processes} x "
                f"{self.settings.accumulate}; got {self.settings.batch}"
            )
        run = _Run(self, state)
        for step in range(run.restore(folder), self.settings.steps):
            with _training(self.pipe, self.settings):
                record = run.step(step)
            last = record.step == self.settings.steps
            if last:
                run.finish()
            if folder is not None and (last or record.step % save_every == 0):
                run.save(folder, record.step)
            if validate_every and record.step % validate_every == 0:
                prompt = validation_prompt or self.prompt
                image = diffusion.generate(self.pipe, prompt, seed=self.settings.seed).cpu()
                record = record._replace(image=image)
            yield record

    def save(self, folder: str | Path) -> None:
        """Write what was learned as diffusers reads it: a pipeline, or with LoRA ``pytorch_lora_weights.safetensors``.

        The folder is written beside its place and renamed. ``dreambooth.json`` in it says token, noun and settings.

        Raises:
            FileExistsError: the folder is there and holds something else than an earlier result.
        """
        folder = Path(folder)
        if folder.exists() and any(folder.iterdir()) and not (folder / FACTS).exists():
            raise FileExistsError(f"{folder} holds other files; choose another folder")
        part = folder.with_name(f"{folder.name}.{os.getpid()}.part")
        part.mkdir(parents=True)
        try:
            self._write(part)
            if folder.exists():
                shutil.rmtree(folder)
            os.replace(part, folder)
        finally:
            shutil.rmtree(part, ignore_errors=True)

    def _write(self, folder: Path) -> None:
        if self.settings.rank is None:
            self.pipe.save_pretrained(folder, safe_serialization=True)
        else:
            self.pipe.save_lora_weights(folder, **_lora_layers(self.pipe, self.settings))
        facts = {
            "prompt": self.prompt, "token": self.token, "noun": self.noun, "images": len(self.images),
            "size": getattr(self.pipe, "size", None), "settings": asdict(self.settings),
        }  # fmt: skip
        (folder / FACTS).write_text(json.dumps(facts, indent=1), "utf-8")

    def fingerprint(self) -> str:
        """Eight hexadecimal digits of prompts, pictures and settings but their number of steps."""
        digest = hashlib.sha256(json.dumps([self.prompt, asdict(self.settings) | {"steps": 0}]).encode())
        for image in [*self.images, *(self.class_images if self.class_images is not None else [])]:
            digest.update(image.contiguous().numpy().tobytes())
        return digest.hexdigest()[:8]


def load(folder: str | Path, *, pipe: DiffusionPipeline | None = None, strength: float = 1.0) -> DiffusionPipeline:
    """A pipeline with what :meth:`DreamBooth.save` wrote, or with a LoRA file that diffusers' scripts wrote.

    Args:
        folder: what was written.
        pipe: for LoRA, the base model, changed in place; None loads the size that the folder names.
        strength: of LoRA, from 0, the base model, to 1.

    Raises:
        FileNotFoundError: neither a pipeline nor a LoRA file.
        ValueError: a LoRA file that does not say its base model, and no ``pipe``.
    """
    folder = Path(folder)
    facts = json.loads((folder / FACTS).read_text("utf-8")) if (folder / FACTS).exists() else {}
    size = facts.get("size")
    if (folder / "model_index.json").exists():
        pipe = DiffusionPipeline.from_pretrained(folder, local_files_only=True, use_safetensors=True)
        pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, clip_sample=False, thresholding=False)
        pipe.set_progress_bar_config(disable=True)
        pipe.size = size
        return pipe
    if not [*folder.glob("*.safetensors")]:
        raise FileNotFoundError(f"{folder} holds neither a pipeline (model_index.json) nor a LoRA file (*.safetensors)")
    if pipe is None:
        if size is None:
            raise ValueError(f"{folder} does not say which model its LoRA belongs to; pass pipe=diffusion.load(size)")
        pipe = diffusion.load(size)
    pipe.load_lora_weights(folder, adapter_name=ADAPTER)
    pipe.set_adapters(ADAPTER, strength)
    return pipe


# ---------------------------------------------------------------------------------------- parts


class _Run:
    """A training run: the optimizer and what else changes from step to step."""

    def __init__(self, dream: DreamBooth, state: PartialState):
        self.dream, self.state, settings = dream, state, dream.settings
        self.model = dream.denoiser.to(dream.pipe.device)
        if state.num_processes > 1:
            self.model = DistributedDataParallel(self.model, find_unused_parameters=settings.text != "frozen")
        self.named = dream.parameters()
        words = [p for name, p in self.named.items() if settings.text == "token" and name.startswith("text_")]
        others = [p for p in self.named.values() if all(p is not word for word in words)]
        groups = [{"params": others, "weight_decay": settings.weight_decay}]
        groups += [{"params": words, "weight_decay": 0.0}] if words else []  # the other tokens must not decay
        self.optimizer = torch.optim.AdamW(groups, lr=settings.rate, fused=True)
        self.scaler = torch.amp.GradScaler(dream.pipe.device.type, enabled=settings.precision == "fp16")
        self.average = None
        if settings.average is not None:
            self.average = EMAModel([*self.named.values()], decay=settings.average, use_ema_warmup=True, power=1.0)

    def step(self, step: int) -> Record:
        settings, state = self.dream.settings, self.state
        self.optimizer.zero_grad()
        sums = torch.zeros(3)
        for part in range(settings.accumulate):
            first = state.process_index * settings.accumulate + part
            batch = self.dream.batch(step, slice(first, None, state.num_processes * settings.accumulate))
            with self._unsynchronized(part):
                loss, *parts = self.dream.loss(batch, self.model)
                self.scaler.scale(loss / settings.accumulate).backward()
            sums += torch.tensor([float("nan") if x is None else x.item() for x in (loss, *parts)])
        self.scaler.unscale_(self.optimizer)
        torch.nn.utils.clip_grad_norm_([*self.named.values()], settings.clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.average:
            self.average.step([*self.named.values()])
        loss, subject, prior = self._mean_over_processes(sums / settings.accumulate).tolist()
        return Record(step + 1, loss, subject, None if prior != prior else prior)

    def _unsynchronized(self, part: int):
        """Processes exchange gradients after the last part only."""
        wait = self.state.num_processes > 1 and part < self.dream.settings.accumulate - 1
        return self.model.no_sync() if wait else nullcontext()

    def _mean_over_processes(self, values: Tensor) -> Tensor:
        if self.state.num_processes == 1:
            return values
        values = values.to(self.dream.pipe.device)
        torch.distributed.all_reduce(values)
        return values.cpu() / self.state.num_processes

    def finish(self) -> None:
        if self.average:
            self.average.copy_to([*self.named.values()])

    def save(self, folder: str | Path, step: int) -> None:
        if not self.state.is_main_process:
            return
        path = Path(folder) / CHECKPOINT
        path.parent.mkdir(parents=True, exist_ok=True)
        saved = {
            "run": self.dream.fingerprint(),
            "step": step,
            "weights": {name: p.detach() for name, p in self.named.items()},
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "average": self.average.state_dict() if self.average else None,
        }
        torch.save(saved, f"{path}.part")
        os.replace(f"{path}.part", path)

    def restore(self, folder: str | Path | None) -> int:
        """The number of steps already done."""
        if folder is None or not (Path(folder) / CHECKPOINT).exists():
            return 0
        saved = torch.load(Path(folder) / CHECKPOINT, map_location="cpu", weights_only=True)
        if saved["run"] != self.dream.fingerprint() or saved["step"] > self.dream.settings.steps:
            raise ValueError(
                f"{folder} holds step {saved['step']} of another run (pictures, prompt or settings differ); continue "
                "with those, or choose another folder"
            )
        with torch.no_grad():
            for name, p in self.named.items():
                p.copy_(saved["weights"][name])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.scaler.load_state_dict(saved["scaler"])
        if self.average:
            self.average.load_state_dict(saved["average"])
        return saved["step"]


def _checked(image: Tensor) -> Tensor:
    """One picture as float32 ``(3, H, W)`` on the CPU."""
    image = torch.as_tensor(image)
    if image.ndim == 4 and len(image) == 1:
        image = image[0]
    if image.ndim != 3 or image.shape[0] != 3 or not image.is_floating_point():
        raise ValueError(f"pictures are float (3, H, W) in [0, 1]; got {image.dtype} {tuple(image.shape)}")
    if not (image.min() >= 0 and image.max() <= 1):
        raise ValueError(f"pictures lie in [0, 1]; got {image.min():.3g} to {image.max():.3g}: rescale or clamp them")
    return image.detach().float().cpu()


def _encoders(pipe: DiffusionPipeline) -> list[nn.Module]:
    return [e for e in (pipe.text_encoder, getattr(pipe, "text_encoder_2", None)) if e is not None]


def _freeze(pipe: DiffusionPipeline) -> None:
    if ADAPTER in getattr(pipe.unet, "peft_config", {}):
        raise ValueError(f"this pipeline has a {ADAPTER!r} adapter already; load a fresh one, or unload it first")
    for module in (pipe.vae, pipe.unet, *_encoders(pipe)):
        module.requires_grad_(False)


def _add_lora(module: nn.Module, settings: Settings, targets: Sequence[str]) -> None:
    config = LoraConfig(
        r=settings.rank, lora_alpha=settings.alpha or settings.rank, target_modules=[*targets],
        init_lora_weights="gaussian",
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        module.add_adapter(config, adapter_name=ADAPTER)
    for name, parameter in module.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data.float()


def _open_token(pipe: DiffusionPipeline, token: str) -> None:
    """Gradients for one row of each embedding; AdamW leaves rows alone that never had one."""
    for encoder, number in zip(_encoders(pipe), _one_token(pipe, token), strict=True):
        table = encoder.get_input_embeddings().weight
        table.requires_grad_(True)
        row = torch.zeros(len(table), 1, device=table.device)
        row[number] = 1
        table.register_hook(lambda gradient, row=row: gradient * row.to(gradient.device))


def _lora_layers(pipe: DiffusionPipeline, settings: Settings) -> dict:
    """The arguments of ``pipe.save_lora_weights``; the metadata keep alpha."""
    modules = {"unet": pipe.unet}
    if settings.text == "all":
        modules |= {f"text_encoder{'_2' if i else ''}": encoder for i, encoder in enumerate(_encoders(pipe))}
    layers = {
        f"{name}_lora_layers": convert_state_dict_to_diffusers(get_peft_model_state_dict(module, adapter_name=ADAPTER))
        for name, module in modules.items()
    }
    return layers


@contextmanager
def _training(pipe: DiffusionPipeline, settings: Settings) -> Iterator[None]:
    """For one step: the modules in training mode, and on a CPU plain attention, whose backward pass is faster there."""
    processors = pipe.unet.attn_processors
    modules = (pipe.unet, *_encoders(pipe))
    if settings.checkpointing:
        pipe.unet.enable_gradient_checkpointing()
    if pipe.device.type == "cpu":
        pipe.unet.set_attn_processor(AttnProcessor())
    for module in modules:
        module.train()
    try:
        yield
    finally:
        for module in modules:
            module.eval()
        pipe.unet.set_attn_processor(processors)
        if settings.checkpointing:
            pipe.unet.disable_gradient_checkpointing()
