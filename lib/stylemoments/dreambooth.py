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
from types import SimpleNamespace
from typing import NamedTuple
from uuid import uuid4

from . import diffusion, files
from .world.prompts import article

# isort: split
import numpy as np
import torch
from accelerate import PartialState
from diffusers import DiffusionPipeline
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0
from diffusers.training_utils import EMAModel
from diffusers.utils import convert_state_dict_to_diffusers
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

TEXT = ("frozen", "token", "all")
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
ADAPTER = "dreambooth"
UNET_TARGETS = ("to_q", "to_k", "to_v", "to_out.0")
TEXT_TARGETS = ("q_proj", "k_proj", "v_proj", "out_proj")
CHECKPOINT = "checkpoint.pt"
FACTS = "dreambooth.json"
ROWS = "token_rows.safetensors"  # of text="token" beside LoRA, which has no place for them
SUBJECT, CLASS = 0, 1  # numbers of the two prompts
ALONE = SimpleNamespace(process_index=0, num_processes=1, is_main_process=True)


# ---------------------------------------------------------------------------------------- settings


@dataclass(frozen=True)
class Settings:
    """What a training run does; :func:`defaults` has the values for a size.

    Raises:
        ValueError: a value outside its range; the message names it.
    """

    steps: int = 80
    batch: int = 4  # pictures of the subject per step, and as many of the class; all processes together
    rate: float = 2e-4  # learning rate of AdamW, constant
    prior_weight: float = 1.0  # lambda, 0 or more; 0 leaves the pictures of the class away
    text: str = "frozen"  # the text encoder: "frozen"; "token", only the row of the subject's token; or "all"
    rank: int | None = None  # of LoRA; None trains all weights
    alpha: float | None = None  # LoRA adds alpha / rank times its product; None is alpha = rank
    targets: tuple[str, ...] = UNET_TARGETS  # ends of the names of the U-Net's layers that LoRA adapts
    snr_gamma: float | None = None  # Min-SNR weights the times, 5 in the paper; None weighs all alike
    zoom: float = 1.1  # a fresh crop sees from 1 / zoom of the picture to all of it; 1 crops nothing but to a square
    accumulate: int = 1  # parts that a batch is computed in, one after the other: less memory, the same step
    checkpointing: bool = False  # compute activations twice instead of keeping them: less memory, about a third slower
    precision: str = "fp32"  # "fp32", "bf16" or "fp16"; a half-precision U-Net has its own; what is trained is float32
    average: float | None = None  # decay of a moving average of the weights, such as 0.99; None takes the last
    weight_decay: float = 0.01
    clip: float = 1.0  # largest norm of the gradient
    seed: int = 0  # of every draw

    def __post_init__(self):
        rules = {
            "steps is 1 or more": self.steps >= 1,
            "batch is 1 or more": self.batch >= 1,
            "rate is above 0": self.rate > 0,
            "prior_weight is 0 or more": self.prior_weight >= 0,
            f"text is one of {', '.join(TEXT)}": self.text in TEXT,
            "rank is 1 or more, or None for all weights": self.rank is None or self.rank >= 1,
            "alpha is above 0, or None for the rank": self.alpha is None or self.alpha > 0,
            "targets are names, one or more": not isinstance(self.targets, str) and len(self.targets) > 0,
            "snr_gamma is above 0, or None": self.snr_gamma is None or self.snr_gamma > 0,
            "zoom is 1 or more": self.zoom >= 1,
            "accumulate divides batch": self.accumulate >= 1 and self.batch % self.accumulate == 0,
            f"precision is one of {', '.join(PRECISIONS)}": self.precision in PRECISIONS,
            "average lies in [0, 1), or is None": self.average is None or 0 <= self.average < 1,
            "weight_decay is 0 or more": self.weight_decay >= 0,
            "clip is above 0": self.clip > 0,
            "seed is 0 or more": self.seed >= 0,
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
        (80, 0.0001, 10)
    """
    if size not in diffusion.SIZES:
        raise ValueError(f"the size must be one of {', '.join(diffusion.SIZES)}; got {size!r}")
    if size == "tiny":
        known = {"steps": 80, "batch": 4, "rate": 2e-4 if rank is None else 2e-3, "text": "all"}
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
        return torch.cat([image for _, image in _draw(pipe, made, range(n), progress)])
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    _check_made(folder / "class.json", made)
    paths = [folder / f"{number:05d}.png" for number in range(n)]
    missing = [number for number, path in enumerate(paths) if not path.exists()]
    for number, image in _draw(pipe, made, missing, progress):
        files.write(paths[number], image, force=True)
    return torch.cat([files.read(path) for path in paths])


def _check_made(path: Path, made: dict) -> None:
    """Write how the pictures were made; where it stands already, it must be the same."""
    if path.exists():
        was = json.loads(path.read_text("utf-8"))
        if was != made:
            raise ValueError(f"{path.parent} holds pictures made otherwise: {was}, not {made}; choose another folder")
        return
    with files.whole(path, force=True) as part:
        part.write_text(json.dumps(made), "utf-8")


def _draw(pipe: DiffusionPipeline, made: dict, numbers: Sequence[int], progress: bool) -> Iterator[tuple[int, Tensor]]:
    """Eight at a time: the number of each picture and the picture, ``(1, 3, H, W)``."""
    from tqdm import tqdm

    options = {"steps": made["steps"], "guidance": made["guidance"]}
    with tqdm(total=len(numbers), desc="class images", unit="image", disable=not progress) as bar:
        for first in range(0, len(numbers), 8):
            part = numbers[first : first + 8]
            latents = torch.cat([diffusion.initial_latents(pipe, 1, made["seed"] + number) for number in part])
            drawn = diffusion.generate(pipe, [made["prompt"]] * len(part), latents=latents, **options).cpu()
            yield from zip(part, ((drawn * 255).round() / 255).split(1), strict=True)
            bar.update(len(part))


# ---------------------------------------------------------------------------------------- formulas


def snr_weights(alpha_bar: Tensor, prediction_type: str, gamma: float | None) -> Tensor:
    r"""The weight of each picture's loss at its time: Min-SNR (Hang et al. 2023, arXiv 2303.09556), or 1.

    With the signal-to-noise ratio :math:`s = \bar\alpha / (1 - \bar\alpha)` and :math:`m = \min(s, \gamma)` the weight
    is :math:`m` for a network that predicts the clean latents, :math:`m / s` for the noise, :math:`m / (s + 1)` for v:
    the same weight of the clean latents' error in all three. Where nothing is left of the picture, :math:`s = 0`, the
    noise has the weight 1, the limit.

    Args:
        alpha_bar: ``(B,)`` in [0, 1), the part of the variance that is still picture.
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
    if prediction_type not in diffusion.PREDICTION_TYPES:
        raise _unknown(prediction_type)
    if gamma is None:
        return torch.ones_like(alpha_bar)
    ratio = alpha_bar / (1 - alpha_bar)
    if prediction_type == "epsilon":
        return (gamma / ratio).clamp(max=1)  # min(s, gamma) / s
    return ratio.clamp(max=gamma) / (1 if prediction_type == "sample" else ratio + 1)


def _unknown(prediction_type: str) -> ValueError:
    types = ", ".join(diffusion.PREDICTION_TYPES)
    return ValueError(f"the prediction type must be one of {types}; got {prediction_type!r}")


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
        >>> round(training_target(clean, noise, torch.tensor(0.36), "v_prediction").item(), 4)  # 0.6 - 0.8 * 2
        -1.0
    """
    match prediction_type:
        case "epsilon":
            return noise
        case "v_prediction":
            return alpha_bar.sqrt() * noise - (1 - alpha_bar).sqrt() * clean
        case "sample":
            return clean
    raise _unknown(prediction_type)


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
        self.ids = [_token_ids(tokenizer, prompts) for tokenizer, _ in pairs]
        self.encoded = None if trained else diffusion.encode_prompts(pipe, prompts)
        own = pipe.unet.dtype
        self.dtype = PRECISIONS[settings.precision] if own == torch.float32 else own

    def words(self) -> tuple[Tensor, Tensor | None]:
        """Hidden states ``(prompts, tokens, d)``, and for XL pooled ones ``(prompts, p)``."""
        device = next(self.unet.parameters()).device  # unet.device takes as long as some of its layers
        if self.encoded is not None:
            pooled = self.encoded.pooled
            return self.encoded.cond.to(device), None if pooled is None else pooled.to(device)
        pairs = [(encoder, ids.to(device)) for encoder, ids in zip(self.encoders, self.ids, strict=True)]
        if len(pairs) == 1:
            return pairs[0][0](pairs[0][1]).last_hidden_state, None
        said = [encoder(ids, output_hidden_states=True) for encoder, ids in pairs]
        return torch.cat([output.hidden_states[-2] for output in said], -1), said[-1].text_embeds

    def forward(self, noisy: Tensor, times: Tensor, which: Tensor, time_ids: Tensor) -> Tensor:
        """The U-Net's output, float32 ``(B, C, H, W)``, for pictures whose prompts have the numbers ``which (B,)``."""
        own = next(self.unet.parameters()).dtype
        with torch.autocast(noisy.device.type, self.dtype, enabled=self.dtype != torch.float32):
            hidden, pooled = self.words()
            added = None if pooled is None else {"text_embeds": pooled[which], "time_ids": time_ids.float()}
            words = hidden[which].to(own)
            output = self.unet(noisy.to(own), times, encoder_hidden_states=words, added_cond_kwargs=added).sample
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
        prompt: what is said of the subject's pictures; None is the token before the noun. With a prompt and a prior
            weight of 0, token and noun may be empty.
        adapters: modules that lie in the U-Net already, such as :class:`stylemoments.style_drop.StyleDrop`: they alone
            are trained, neither weights nor LoRA nor text encoders. They are float32, the U-Net may be half precision.

    Raises:
        ValueError: before the pipeline is changed. Neither token nor prompt, no pictures, pictures of another shape or
            range, no pictures of the class where the settings ask for them; half-precision weights to train, a pipeline
            that has adapters already, or is no Stable Diffusion with square pictures; LoRA targets that no layer has;
            with ``text="token"`` a name of more than one token; ``adapters`` that are not in the U-Net, or settings
            that would train something beside them.

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
        prompt: str | None = None,
        adapters: nn.Module | None = None,
    ):
        self.pipe, self.token, self.noun, self.adapters = pipe, token, class_noun, adapters
        self.settings = settings or defaults(getattr(pipe, "size", None) or "tiny")
        self.side = _checked_side(pipe)
        self.images = [_checked(image) for image in subject_images]
        said = token if prompt is None else prompt
        if not self.images or not said.strip():
            raise ValueError(
                "DreamBooth needs pictures of the subject, three to five, and a token as its name, such as 'sks'; got "
                f"{len(self.images)} pictures and {said!r}. (A prompt of your own needs no token)"
            )
        self.class_images = class_images
        self.prompt = article(" ".join(filter(None, (token, class_noun)))) if prompt is None else prompt
        prompts = [self.prompt] + ([article(class_noun)] if self.settings.prior_weight else [])
        _check_trainable(pipe, self.settings, adapters)
        self._rows = _token_rows(pipe, token) if self.settings.text == "token" else []
        self._open()
        self.denoiser = Denoiser(pipe, prompts, self.settings)

    @property
    def class_images(self) -> Tensor | None:
        """The pictures of the class, float32 on the CPU; None where the prior weight is 0."""
        return self._class_images

    @class_images.setter
    def class_images(self, images: Tensor | None) -> None:
        self._class_images = self._checked_class(images) if self.settings.prior_weight else None
        self._encoded = {}  # size conditioning, mean and deviation of those seen so far

    def _checked_class(self, images: Tensor | None) -> Tensor:
        if images is None or not len(images) or not self.noun:
            raise ValueError(
                f"a prior weight of {self.settings.prior_weight} needs a class noun and pictures of the class: pass "
                "class_images=class_images(pipe, noun, n), or set prior_weight=0"
            )
        for image in images:
            _checked(image)
        if images.shape[-2:] != (self.side, self.side):
            raise ValueError(f"pictures of the class are {self.side} pixels square here; got {tuple(images.shape)}")
        return images.detach().float().cpu()

    def _open(self) -> None:
        """Let the gradients go where they should."""
        pipe, settings = self.pipe, self.settings
        for module in (pipe.vae, pipe.unet, *_encoders(pipe)):
            module.requires_grad_(False)
        for table, _ in self._rows:
            table.requires_grad_(True)
        encoders = _encoders(pipe) if settings.text == "all" else []
        if self.adapters is not None:
            self.adapters.requires_grad_(True)
            return
        if settings.rank is None:
            for module in (pipe.unet, *encoders):
                module.requires_grad_(True)
            return
        _add_lora(pipe.unet, settings, settings.targets)
        for encoder in encoders:
            _add_lora(encoder, settings, TEXT_TARGETS)

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
        kinds = [SUBJECT] if self.class_images is None else [SUBJECT, CLASS]
        drawn = zip(*(self._draws(step, kind) for kind in kinds), strict=True)
        which, numbers, places, times, noise, spread = (torch.cat(parts)[share] for parts in drawn)
        seen = [
            self._of_class(number) if kind == CLASS else self._of_subject(number, u)
            for kind, number, u in zip(which.tolist(), numbers.tolist(), places, strict=True)
        ]
        time_ids, mean, deviation = (torch.stack(parts) for parts in zip(*seen, strict=True))
        device, kind = next(self.pipe.unet.parameters()).device, self.pipe.scheduler.config.prediction_type
        noise, alpha_bar = noise.to(device), _levels(self.pipe)[times].to(device)
        clean, wide = mean + deviation * spread.to(device), alpha_bar[:, None, None, None]
        return Batch(
            wide.sqrt() * clean + (1 - wide).sqrt() * noise,
            training_target(clean, noise, wide, kind),
            times.to(device),
            which.to(device),
            time_ids.to(device),
            snr_weights(alpha_bar, kind, self.settings.snr_gamma),
        )

    def _draws(self, step: int, kind: int) -> tuple[Tensor, ...]:
        """For n pictures of one kind: the kind, which picture in turn, three numbers in [0, 1), time, two noises."""
        n, shape = self.settings.batch, diffusion.latent_shape(self.pipe)
        random = np.random.default_rng([self.settings.seed, step, kind])
        places = torch.from_numpy(random.random((n, 3), np.float32))
        times = torch.from_numpy(random.integers(len(_levels(self.pipe)), size=n))
        noises = torch.from_numpy(random.standard_normal((2, n, *shape), np.float32))
        return torch.full((n,), kind), torch.arange(step * n, step * n + n), places, times, *noises

    def _of_subject(self, number: int, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Size conditioning and latent distribution of a fresh crop; where no crop can differ, of the picture."""
        if self.settings.zoom == 1 and self.images[number % len(self.images)].shape[-2:] == (self.side, self.side):
            return self._whole(SUBJECT, number, self.images)
        zoom = 1 + (self.settings.zoom - 1) * float(u[2])
        return self._posterior(crop(self.images[number % len(self.images)], self.side, zoom, u[:2]))

    def _of_class(self, number: int) -> tuple[Tensor, Tensor, Tensor]:
        """The same of a whole picture of the class."""
        return self._whole(CLASS, number, self.class_images)

    def _whole(self, kind: int, number: int, images: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """The same of a whole picture, encoded once."""
        key = kind, number % len(images)
        if key not in self._encoded:
            self._encoded[key] = self._posterior(crop(images[key[1]], self.side, 1.0, torch.zeros(2)))
        return self._encoded[key]

    @torch.no_grad()
    def _posterior(self, seen: Crop) -> tuple[Tensor, Tensor, Tensor]:
        """Also mean and deviation of the latents; one picture at a time, so that no bit depends on its neighbors."""
        with diffusion.in_float32(self.pipe.vae) as vae:
            posterior = vae.encode(seen.image[None].to(vae.device) * 2 - 1).latent_dist
            mean, deviation = (part[0] * vae.config.scaling_factor for part in (posterior.mean, posterior.std))
        return torch.tensor(seen.time_ids), mean, deviation

    def loss(self, batch: Batch, model: nn.Module | None = None) -> tuple[Tensor, Tensor, Tensor | None]:
        """See :func:`dreambooth_loss`."""
        model = self.denoiser if model is None else model
        output = model(batch.noisy, batch.times, batch.which, batch.time_ids)
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
        alone: bool = False,
    ) -> Iterator[Record]:
        """Train, one record per step. Afterwards ``pipe`` draws the subject; between steps, what it knows by then.

        On several processes (``accelerate launch``) each computes its share of the batch and the records say the same
        in all of them, unless each is to train by itself.

        Args:
            folder: keeps a checkpoint; one found there is continued, and on a CPU the run ends with the weights of a
                run that was never stopped, bit for bit. Without one training starts from the weights as they are.
                None keeps nothing.
            save_every: steps between checkpoints; the last step always has one; 0 for that one alone.
            validate_every: steps between pictures in the records; 0 for none.
            validation_prompt: what they show; None is the subject's own prompt.
            alone: train in this process by itself; the others may do something else meanwhile.

        Raises:
            ValueError: a checkpoint of another run than this, or a batch that the processes cannot share evenly.
        """
        steps, run = self.settings.steps, _Run(self, alone)
        done = run.restore(folder)
        if done == steps:
            run.finish()
        for step in range(done, steps):
            with run.training():
                record = run.step(step)
            if folder is not None and (record.step == steps or _due(record.step, save_every)):
                run.save(folder, record.step)
            if record.step == steps:
                run.finish()
            if _due(record.step, validate_every):
                prompt = validation_prompt or self.prompt
                image = diffusion.generate(self.pipe, prompt, seed=self.settings.seed).cpu()
                record = record._replace(image=image)
            yield record

    def save(self, folder: str | Path) -> None:
        """Write what was learned as diffusers reads it: a pipeline, or with LoRA ``pytorch_lora_weights.safetensors``.

        The folder is written beside its place and renamed: it is whole or not there. ``dreambooth.json`` in it says
        token, noun and settings. With LoRA and ``text="token"`` the row of the token lies beside the adapters, for
        :func:`load`: diffusers' LoRA files have no place for it. Of several processes only the first one writes.

        Raises:
            FileExistsError: the folder is there and holds something else than an earlier result.
            RuntimeError: the training was of ``adapters``.
        """
        if self.adapters is not None:
            raise RuntimeError(
                "the pipeline itself was not trained: save its adapters by their own method, such as StyleDrop.save"
            )
        folder = Path(folder)
        if not _state(self.pipe).is_main_process:
            return
        if others := _others(folder):
            raise FileExistsError(f"{folder} holds other files, such as {others[0]}; choose another folder")
        part = folder.with_name(f".{folder.name}-{uuid4().hex[:8]}")
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
            self.pipe.save_lora_weights(folder, **_lora_layers(self.pipe))
            rows = {f"text_{i}": table[number].detach().clone() for i, (table, number) in enumerate(self._rows)}
            if rows:
                save_file(rows, folder / ROWS)
        facts = {
            "prompt": self.prompt, "token": self.token, "noun": self.noun, "images": len(self.images),
            "size": getattr(self.pipe, "size", None), "settings": asdict(self.settings),
            "files": [*_files(folder)],
        }  # fmt: skip
        (folder / FACTS).write_text(json.dumps(facts, indent=1), "utf-8")

    def fingerprint(self) -> str:
        """Eight hexadecimal digits of prompts, pictures, settings but their number of steps, and what is trained."""
        shapes = {name: list(p.shape) for name, p in self.parameters().items()}
        facts = [self.prompt, self.noun, asdict(self.settings) | {"steps": 0}, getattr(self.pipe, "size", None), shapes]
        digest = hashlib.sha256(json.dumps(facts).encode())
        for image in [*self.images, *(self.class_images if self.class_images is not None else [])]:
            digest.update(f"{tuple(image.shape)}".encode() + image.contiguous().numpy().tobytes())
        return digest.hexdigest()[:8]


def load(folder: str | Path, *, pipe: DiffusionPipeline | None = None, strength: float = 1.0) -> DiffusionPipeline:
    """A pipeline with what :meth:`DreamBooth.save` wrote, or with a LoRA file that diffusers' scripts wrote.

    Args:
        folder: what was written, or one LoRA file.
        pipe: for LoRA, the base model, changed in place; None loads the size that the folder names. A whole pipeline
            is loaded to the device, and in the dtype, that :func:`diffusion.load` chooses.
        strength: of LoRA, from 0, the base model, to 1.

    Raises:
        FileNotFoundError: neither a pipeline nor a LoRA file.
        ValueError: a LoRA file that does not say its base model, and no ``pipe``; or a ``pipe`` that has one already.
    """
    folder = Path(folder)
    facts = json.loads((folder / FACTS).read_text("utf-8")) if (folder / FACTS).exists() else {}
    if (folder / "model_index.json").exists():
        return diffusion.load_folder(folder, facts.get("size"))
    if folder.suffix != ".safetensors" and not [*folder.glob("*.safetensors")]:
        raise FileNotFoundError(f"{folder} holds neither a pipeline (model_index.json) nor a LoRA file (*.safetensors)")
    if pipe is None:
        if facts.get("size") is None:
            raise ValueError(f"{folder} does not say which model its LoRA belongs to; pass pipe=diffusion.load(size)")
        pipe = diffusion.load(facts["size"])
    _load_lora(pipe, folder)
    pipe.set_adapters(ADAPTER, strength)
    if (folder / ROWS).exists():
        _load_rows(pipe, folder / ROWS, facts["token"], strength)
    return pipe


def _load_lora(pipe: DiffusionPipeline, path: Path) -> None:
    if ADAPTER in _adapters(pipe):
        raise ValueError(f"this pipeline has a {ADAPTER!r} adapter already; load a fresh one, or unload_lora_weights()")
    folder, name = (path.parent, path.name) if path.is_file() else (path, None)
    with diffusion.quiet():
        pipe.load_lora_weights(str(folder), weight_name=name, adapter_name=ADAPTER)


@torch.no_grad()
def _load_rows(pipe: DiffusionPipeline, path: Path, token: str, strength: float) -> None:
    rows = load_file(path)
    for i, (table, number) in enumerate(_token_rows(pipe, token)):
        table[number] = table[number].lerp(rows[f"text_{i}"].to(table), strength)


# ---------------------------------------------------------------------------------------- parts


class _Run:
    """A training run: the optimizer and what else changes from step to step."""

    def __init__(self, dream: DreamBooth, alone: bool = False):
        self.dream, self.state, settings = dream, ALONE if alone else _state(dream.pipe), dream.settings
        parts = self.state.num_processes * settings.accumulate
        if settings.batch % parts:
            raise ValueError(
                f"a batch must be a multiple of processes times accumulate, {self.state.num_processes} x "
                f"{settings.accumulate}; got {settings.batch}"
            )
        self.run = None  # the fingerprint; it takes a while, and is not needed without a folder
        self.model, unet = dream.denoiser, dream.pipe.unet
        self.modules = [part for module in (unet, *_encoders(dream.pipe)) for part in module.modules()]
        layers = unet.modules() if dream.pipe.device.type == "cpu" else ()
        self.fused = [part for part in layers if type(getattr(part, "processor", None)) is AttnProcessor2_0]
        if self.state.num_processes > 1:
            self.model = DistributedDataParallel(self.model, find_unused_parameters=settings.text != "frozen")
        self.named = dream.parameters()
        words = [table for table, _ in dream._rows]
        others = [p for p in self.named.values() if all(p is not word for word in words)]
        groups = [{"params": others, "weight_decay": settings.weight_decay}]
        groups += [{"params": words, "weight_decay": 0.0}] if words else []  # the other tokens must not decay
        self.optimizer = torch.optim.AdamW(groups, lr=settings.rate, fused=True)
        half = dream.denoiser.dtype == torch.float16  # its range is small: small gradients need to be scaled
        self.scaler = torch.amp.GradScaler(dream.pipe.device.type, enabled=half)
        self.average = None
        if settings.average is not None:
            self.average = EMAModel([*self.named.values()], decay=settings.average, use_ema_warmup=True, power=1.0)

    @contextmanager
    def training(self) -> Iterator[None]:
        """For one step: training mode, and on a CPU plain attention, whose backward pass is faster there.

        Afterwards all is as it was.
        """
        unet, modes = self.dream.pipe.unet, [part.training for part in self.modules]
        processors = [part.processor for part in self.fused]
        recompute = self.dream.settings.checkpointing and not unet.is_gradient_checkpointing
        try:
            if recompute:
                unet.enable_gradient_checkpointing()
            for part in self.fused:
                part.processor = AttnProcessor()
            for part in self.modules:
                vars(part)["training"] = True  # part.training = True would search the tables of nn.Module first
            yield
        finally:
            for part, mode in zip(self.modules, modes, strict=True):
                vars(part)["training"] = mode
            for part, processor in zip(self.fused, processors, strict=True):
                part.processor = processor
            if recompute:
                unet.disable_gradient_checkpointing()

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
            sums += torch.stack([loss, *(x if x is not None else loss * 0 for x in parts)]).detach().cpu()
        self._update()
        loss, subject, prior = self._mean_over_processes(sums / settings.accumulate).tolist()
        return Record(step + 1, loss, subject, None if self.dream.class_images is None else prior)

    def _update(self) -> None:
        for table, number in self.dream._rows:
            row = table.grad[number].clone()
            table.grad.zero_()[number] = row  # AdamW leaves rows alone that never had a gradient
        self.scaler.unscale_(self.optimizer)
        torch.nn.utils.clip_grad_norm_([*self.named.values()], self.dream.settings.clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.average:
            self.average.step([*self.named.values()])

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
        """After the last step."""
        self.optimizer.zero_grad()
        if self.average:
            self.average.copy_to([*self.named.values()])

    def save(self, folder: str | Path, step: int) -> None:
        if not self.state.is_main_process:
            return
        path = Path(folder) / CHECKPOINT
        path.parent.mkdir(parents=True, exist_ok=True)
        saved = {
            "run": self._fingerprint(),
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
        if saved["run"] != self._fingerprint() or saved["step"] > self.dream.settings.steps:
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
            self.average.to(self.dream.pipe.device)
        return saved["step"]

    def _fingerprint(self) -> str:
        self.run = self.run or self.dream.fingerprint()
        return self.run


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


def _levels(pipe: DiffusionPipeline) -> Tensor:
    """The share of the clean signal's variance at each time, ``(times,)``: all that training needs of a scheduler."""
    return pipe.scheduler.alphas_cumprod.float().cpu()


def _state(pipe: DiffusionPipeline) -> PartialState:
    """The processes that train together."""
    return PartialState(cpu=pipe.device.type == "cpu")


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def _adapters(pipe: DiffusionPipeline) -> set[str]:
    return {name for module in (pipe.unet, *_encoders(pipe)) for name in getattr(module, "peft_config", {})}


def _checked_side(pipe: DiffusionPipeline) -> int:
    """Length in pixels of the pictures that the pipeline is trained on."""
    height, width = diffusion.latent_sides(pipe)
    if height != width:
        raise ValueError(f"training takes square pictures; the U-Net of this pipeline is made for {height} x {width}")
    kind = pipe.scheduler.config.get("prediction_type", "none")
    if kind not in diffusion.PREDICTION_TYPES or not hasattr(pipe.scheduler, "alphas_cumprod"):
        raise ValueError(
            f"training needs the noise schedule of Stable Diffusion 1, 2 or XL; got {type(pipe.scheduler).__name__} "
            f"with the prediction type {kind!r}: set pipe.scheduler to a DDIMScheduler"
        )
    return height * pipe.vae_scale_factor


def _check_trainable(pipe: DiffusionPipeline, settings: Settings, own: nn.Module | None) -> None:
    if adapters := _adapters(pipe):
        raise ValueError(
            f"this pipeline has adapters already ({', '.join(sorted(adapters))}); load a fresh one, or call "
            "pipe.unload_lora_weights()"
        )
    if own is not None:
        _check_own(pipe, settings, own)
    whole = [pipe.unet if own is None else own] if settings.rank is None else []
    whole += _encoders(pipe) if settings.rank is None and settings.text == "all" else []
    whole += [encoder.get_input_embeddings() for encoder in _encoders(pipe) if settings.text == "token"]
    half = {p.dtype for module in whole for p in module.parameters()} - {torch.float32}
    if half:
        raise ValueError(
            f"weights are trained in float32, and these are {', '.join(map(str, half))}: load the pipeline with "
            "dtype=torch.float32, or train LoRA (rank=16)"
        )
    names = [name for name, _ in pipe.unet.named_modules()]
    missing = [end for end in settings.targets if not any(f".{name}".endswith(f".{end}") for name in names)]
    if settings.rank is not None and missing:
        raise ValueError(f"targets are ends of names of the U-Net's layers, and none ends in {missing[0]!r}")


def _check_own(pipe: DiffusionPipeline, settings: Settings, adapters: nn.Module) -> None:
    if settings.rank is not None or settings.text != "frozen":
        raise ValueError(
            "adapters are trained alone, so the settings need rank=None and text='frozen'; got "
            f"rank={settings.rank} and text={settings.text!r}"
        )
    inside, weights = {id(p) for p in pipe.unet.parameters()}, [*adapters.parameters()]
    if not weights or any(id(p) not in inside for p in weights):
        raise ValueError(
            f"adapters to train lie in the U-Net, and those of {type(adapters).__name__} do not: enter their block "
            "(with StyleDrop(pipe) as adapters: ...) first"
        )


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


def _token_rows(pipe: DiffusionPipeline, token: str) -> list[tuple[nn.Parameter, int]]:
    """The embeddings of each text encoder, and the number of the token's row in them."""
    tables = [encoder.get_input_embeddings().weight for encoder in _encoders(pipe)]
    return [*zip(tables, _one_token(pipe, token), strict=True)]


def _lora_layers(pipe: DiffusionPipeline) -> dict:
    """The arguments of ``pipe.save_lora_weights``: adapters by module, and their rank and alpha."""
    layers = {}
    for name in ("unet", "text_encoder", "text_encoder_2"):
        module = getattr(pipe, name, None)
        config = getattr(module, "peft_config", {}).get(ADAPTER)
        if config is not None:
            weights = get_peft_model_state_dict(module, adapter_name=ADAPTER)
            facts = {key: sorted(x) if isinstance(x, set) else x for key, x in config.to_dict().items()}
            layers[f"{name}_lora_layers"] = convert_state_dict_to_diffusers(weights)
            layers[f"{name}_lora_adapter_metadata"] = facts
    return layers


def _files(folder: Path) -> Iterator[str]:
    return (path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*")) if path.is_file())


def _others(folder: Path) -> list[str]:
    """The files in a folder that :meth:`DreamBooth.save` did not write."""
    facts = folder / FACTS
    written = {FACTS, *json.loads(facts.read_text("utf-8")).get("files", [])} if facts.exists() else set()
    return [name for name in _files(folder) if name not in written]
