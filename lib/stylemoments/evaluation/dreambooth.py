"""How well DreamBooth learns subjects: each subject, every prompt, the five numbers of the paper.

Ruiz et al., *DreamBooth*, 2022 (arXiv 2208.12242), sections 4 and 5: DINO and CLIP-I, how alike drawn and real pictures
of the subject are; CLIP-T, how well the prompts are followed; PRES, how alike drawn pictures of the *class* and the
subject are (lower is better); DIV, how different pictures of the class are.

The paper draws four pictures of each of 25 prompts for each of 30 subjects, whose photographs are not part of this
package: see :func:`stylemoments.prompts.read_dreambooth_folder`. In the tiny world there are 16 subjects and 16
prompts, its own encoder of subjects plays DINO's part, and subjects are compared in the prompts that name no style:
drawn in a style, a subject is far from its plain pictures also where it is drawn well.
"""

import copy
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cache, partial
from pathlib import Path

from .. import diffusion, dreambooth, embed, metrics, photos, prompts, world
from ..world.prompts import article
from . import records

# isort: split
import torch
from torch import Tensor

TEXTS = ("subject", "noun")  # the columns that are not numbers
MEASURES = ("dino", "clip_i", "clip_t", "pres", "div", "real_dino", "real_clip_i")
TOKEN = "sks"
AT_ONCE = 8  # pictures in one batch

#: Tables 1 and 3 of the paper: DINO, CLIP-I and CLIP-T on Stable Diffusion; PRES and DIV on Imagen.
PUBLISHED = dict(zip(MEASURES, (0.668, 0.803, 0.305, 0.493, 0.391, 0.774, 0.885), strict=True))


@dataclass(frozen=True)
class Protocol:
    """What all subjects share; :func:`protocol` has the values for a size."""

    size: str
    steps: int  # of the sampling
    pictures: int  # of each prompt
    class_images: int  # for the prior, and as many for PRES and DIV up to 8 * pictures
    training: dict  # settings of dreambooth


def protocol(size: str, *, rank: int | None = None, **changes) -> Protocol:
    """The protocol of a size.

    Args:
        size: ``"tiny"``, ``"sd15"`` or ``"sdxl"``.
        rank: of LoRA; None trains all weights.
        changes: of the settings of training, see :class:`stylemoments.dreambooth.Settings`.

    Raises:
        ValueError: another size, or settings out of their range.

    Example:
        >>> protocol("tiny").steps, protocol("sd15").pictures
        (12, 4)
    """
    settings = asdict(dreambooth.defaults(size, rank=rank, **changes))
    tiny = size == "tiny"
    settings["targets"] = [*settings["targets"]]  # as JSON gives it back
    return Protocol(size, 12 if tiny else 50, 1 if tiny else 4, 32 if tiny else 200, settings)


@dataclass(frozen=True)
class Subject:
    """What is learned from which pictures, and the prompts it is tested with."""

    name: str
    noun: str
    images: list[Tensor]  # (3, H, W) in [0, 1] each
    prompts: tuple[prompts.SubjectPrompt, ...]


def subjects(size: str, photographs: Path | None = None) -> list[Subject]:
    """All subjects of a size.

    Args:
        size: tiny has its own.
        photographs: the folder of DreamBooth's data set, or one like it; needed for other sizes.

    Raises:
        ValueError: photographs are missing, or not needed.
        FileNotFoundError: see :func:`stylemoments.prompts.read_dreambooth_folder`.
    """
    if (size == "tiny") != (photographs is None):
        raise ValueError(
            "the tiny world has its own subjects, and the large sizes need a folder of photographs: clone "
            f"github.com/google/dreambooth and name its folder; got size {size!r} and photographs {photographs}"
        )
    if photographs is None:
        asked = prompts.tiny_subject_prompts()
        tiny = world.World(0).subjects()
        return [Subject(each.name, each.noun, [*torch.from_numpy(each.images)], asked) for each in tiny]
    found = []
    for each in prompts.read_dreambooth_folder(photographs):
        asked = tuple(prompt for prompt in prompts.dreambooth_prompts() if prompt.kind == each.kind)
        found.append(Subject(each.name, each.noun, [photo.image[0] for photo in photos.read(each.paths)], asked))
    return found


@dataclass(frozen=True)
class Eyes:
    """The networks that measure."""

    dino: embed.DINO
    clip: embed.CLIP
    perceptual: embed.Perceptual


@cache
def eyes(size: str, device: str = "cpu") -> Eyes:
    """The networks of a size, loaded once; those of the full size are fetched from the Hugging Face Hub."""
    kind = "tiny" if size == "tiny" else "full"
    return Eyes(*(find(kind, device=device) for find in (embed.subject, embed.clip, embed.perceptual)))


def pictures(pipe, said: list[str], steps: int, seed: int = 1000) -> Tensor:
    """One picture for each prompt, ``(n, 3, H, W)``; picture i has the noise of seed + i."""
    drawn = [
        diffusion.generate(pipe, said[first : first + AT_ONCE], steps=steps, seed=seed + first).cpu()
        for first in range(0, len(said), AT_ONCE)
    ]
    return torch.cat(drawn)


def scores(see: Eyes, own: Tensor, kind: Tensor, subject: Subject) -> dict[str, float]:
    """The numbers of one subject.

    Args:
        see: of :func:`eyes`.
        own: ``(prompts * pictures, 3, H, W)`` in [0, 1], all pictures of the first prompt first.
        kind: ``(n, 3, H, W)``, of the class alone, two or more.
        subject: what was learned.

    Returns:
        see ``MEASURES``; ``real_dino`` and ``real_clip_i`` are those of the real pictures among themselves.
    """
    each = len(own) // len(subject.prompts)
    asked = [prompt for prompt in subject.prompts for _ in range(each)]
    texts = see.clip.texts([prompt.without_token(subject.noun) for prompt in asked])
    plain = own[[prompt.kind != "style" for prompt in asked]]
    real = [image[None] for image in subject.images]  # of different sizes
    dino_real, clip_real = (torch.cat([*map(features, real)]) for features in (see.dino, see.clip.images))
    return {
        "dino": metrics.subject_fidelity(see.dino(plain), dino_real),
        "clip_i": metrics.subject_fidelity(see.clip.images(plain), clip_real),
        "clip_t": metrics.text_alignment(see.clip.images(own), texts),
        "pres": metrics.subject_fidelity(see.dino(kind), dino_real),
        "div": metrics.diversity(see.perceptual(kind)),
        "real_dino": metrics.set_consistency(dino_real),
        "real_clip_i": metrics.set_consistency(clip_real),
    }


def measure(base, subject: Subject, seed: int, protocol: Protocol, out: Path) -> records.Rows:
    """Learn one subject, draw every prompt, and measure: one row.

    Args:
        base: the untrained pipeline; a copy of it is trained.
        subject: what to learn.
        seed: of the training.
        protocol: what all subjects share.
        out: keeps pictures of the class, which subjects of one class share.
    """
    settings = dreambooth.Settings(**protocol.training | {"seed": seed, "targets": tuple(protocol.training["targets"])})
    drawn = None
    if settings.prior_weight:
        folder = out / "class" / subject.noun
        drawn = dreambooth.class_images(base, subject.noun, protocol.class_images, folder, steps=protocol.steps)
    pipe = copy.deepcopy(base)
    dream = dreambooth.DreamBooth(pipe, subject.images, TOKEN, subject.noun, class_images=drawn, settings=settings)
    for _ in dream.train(alone=True):
        pass
    said = [prompt.fill(TOKEN, subject.noun) for prompt in subject.prompts for _ in range(protocol.pictures)]
    own = pictures(pipe, said, protocol.steps)
    kind = pictures(pipe, [article(subject.noun)] * 8 * protocol.pictures, protocol.steps)
    found = scores(eyes(protocol.size, base.device.type), own, kind, subject)
    return [{"subject": subject.name, "noun": subject.noun, "seed": seed} | found]


def plan(base, learned: list[Subject], protocol: Protocol, out: Path) -> Iterator[tuple]:
    """Every piece of the evaluation with its name."""
    for seed, subject in enumerate(learned):
        yield subject.name, partial(measure, base, subject, seed, protocol, out)


def summary(rows: records.Rows) -> records.Rows:
    """For each measure its ``mean``, ``deviation`` and 95 % interval (``low``, ``high``) over ``n`` subjects."""
    found = []
    for name in MEASURES:
        own = [row[name] for row in rows]
        row = {"measure": name, "mean": sum(own) / len(own), "n": len(own)}
        if len(own) > 1:
            interval = metrics.mean_interval(own)
            row |= {"deviation": float(torch.tensor(own).std()), "low": interval.low, "high": interval.high}
        found.append(row)
    return found
