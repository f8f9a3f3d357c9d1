"""Measures DreamBooth on the subjects of the tiny world, ablation by ablation, for chapter 6 of the book.

    python -m stylemoments.train.measure_dreambooth --out runs/dreambooth

About 80 trainings, an hour and a half on two cores. Each finished one is a file in the folder: stop it, call it again,
and it goes on; ``--part 0/2`` and ``--part 1/2`` in two terminals share the work. When all are done, the rows are
written to the package's ``data/dreambooth.csv``.

Each row is one model, measured after Ruiz et al. 2022 (arXiv 2208.12242): pictures of the 16 prompts of
:func:`stylemoments.prompts.tiny_subject_prompts`, one each, and eight of the class.
"""

import copy
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path

import torch
from torch import Tensor

from .. import diffusion, dreambooth, embed, judge, metrics, prompts, world
from ..evaluation import records

DATA = prompts.DATA / "dreambooth.csv"
TOKEN = "sks"
COMMON = "neon"  # a token that means something: a style
WRONG = "house"  # the class noun of no subject
CLASS_IMAGES = 32
STEPS = 12  # of the sampling
SEED = 1000  # of the sampling
FEW = 5  # subjects of an ablation
ORDER = (0, 3, 6, 9, 12, 15, 2, 5, 8, 11, 14, 1, 4, 7, 10, 13)  # fewer subjects are the first of these


@dataclass(frozen=True)
class Variant:
    """One way to train, and when to measure."""

    name: str
    changes: dict = field(default_factory=dict)  # of the settings
    token: str = TOKEN
    noun: str | None = None  # None is the right one
    images: int | None = None  # None is all five
    measured: tuple[int, ...] = ()  # steps at which to measure too; the last is always measured
    strengths: tuple[float, ...] = (1.0,)  # of LoRA
    subjects: int = FEW


LONG = {"steps": 200}
CURVE = (10, 25, 50, 100)
VARIANTS = [
    Variant("default", subjects=12),
    Variant("no prior", {"prior_weight": 0.0}, subjects=8),
    Variant("LoRA 4", {"rank": 4}, strengths=(0.25, 0.5, 0.75, 1.0)),
    Variant("long", LONG, measured=CURVE),
    Variant("no noun, no prior", {"prior_weight": 0.0}, noun=""),
    Variant("wrong noun, no prior", {"prior_weight": 0.0}, noun=WRONG),
    Variant("common token", token=COMMON),
    Variant("1 image", images=1),
    Variant("frozen text", {"text": "frozen"}),
    Variant("prior 3", {"prior_weight": 3.0}),
    Variant("LoRA 16", {"rank": 16}),
    Variant("LoRA 1", {"rank": 1}),
    Variant("2 images", images=2),
    Variant("prior 0.3", {"prior_weight": 0.3}),
]


# ---------------------------------------------------------------------------------------- reading the table


@cache
def table() -> records.Rows:
    """The rows of ``data/dreambooth.csv``."""
    return records.read(DATA, texts=("variant", "name"))


def column(measure: str, variant: str, *, step: int | None = None, strength: float = 1.0) -> dict[str, float]:
    """One measure of one variant for each subject.

    Args:
        measure: such as ``"subject"``; see :func:`scores`.
        variant: of ``VARIANTS``, or ``"base"``, or ``"real"``.
        step: None is the last one measured.
        strength: of LoRA.

    Raises:
        ValueError: nothing of that kind was measured.
    """
    rows = [row for row in table() if row["variant"] == variant and row["strength"] == strength and measure in row]
    last = max((row["step"] for row in rows), default=None)
    found = {row["name"]: row[measure] for row in rows if row["step"] == (last if step is None else step)}
    if not found:
        names = sorted({row["variant"] for row in table()})
        raise ValueError(
            f"no {measure!r} was measured for {variant!r} at step {step}, strength {strength}; variants: {names}"
        )
    return found


def paired(measure: str, variant: str, other: str, **where) -> tuple[list[float], list[float]]:
    """One measure of two variants, over the subjects that both were measured on, in one order.

    Args:
        measure, variant: as :func:`column`.
        other: the variant to compare with, at its own last step.
        where: step and strength of ``variant``.
    """
    return records.shared(column(measure, variant, **where), column(measure, other))


# ---------------------------------------------------------------------------------------- measuring


@dataclass(frozen=True)
class Eyes:
    """The networks that measure."""

    subject: object
    clip: object
    perceptual: object
    judge: object


@cache
def eyes() -> Eyes:
    """The networks that measure, loaded once."""
    return Eyes(embed.subject(), embed.clip(), embed.perceptual("tiny"), judge.load())


def pictures(pipe, said: list[str], seed: int) -> Tensor:
    """One picture per prompt; picture i has the noise of seed + i."""
    parts = [said[first : first + 8] for first in range(0, len(said), 8)]
    drawn = [diffusion.generate(pipe, part, steps=STEPS, seed=seed + 8 * i) for i, part in enumerate(parts)]
    return torch.cat(drawn)


def measure(pipe, subject: world.Subject, token: str, noun: str) -> dict[str, float]:
    """The numbers of one model.

    Args:
        pipe: the model.
        subject: what it learned.
        token, noun: the words it learned it by.
    """
    asked = prompts.tiny_subject_prompts()
    own = pictures(pipe, [each.fill(token, noun) for each in asked], SEED)
    kind = pictures(pipe, [world.prompt(subject.noun)] * 8, SEED)
    return scores(own, kind, subject)


def scores(own: Tensor, kind: Tensor, subject: world.Subject) -> dict[str, float]:
    """The numbers of pictures of the 16 prompts, and of eight pictures of the class.

    A subject drawn in a style is far from its plain pictures, also where it is drawn well, so the subject's scores are
    taken over the eight prompts that name no style; ``in_styles`` is over the other eight.

    Args:
        own: ``(16, 3, H, W)`` in [0, 1], in the order of the prompts.
        kind: ``(8, 3, H, W)``, of the class alone.
        subject: what was learned.

    Returns:
        ``subject`` and ``in_styles``, mean cosines of tiny-subject with the real pictures, and ``clip_i``, of
        tiny-clip; ``clip_t``, with the texts of all 16 prompts; ``followed``, the share of places and styles that the
        judge finds; of the class ``pres``, the mean cosine of tiny-subject with the real pictures, ``div``, the mean
        perceptual distance of two, and ``class_kept``, the share in which the judge sees the class.
    """
    see, real = eyes(), torch.from_numpy(subject.images)
    asked = prompts.tiny_subject_prompts()
    texts = see.clip.texts([each.without_token(subject.noun) for each in asked])
    said, of_class = see.judge(own), see.judge(kind)
    styled, plain = (own[[(each.kind == "style") is style for each in asked]] for style in (True, False))
    verdicts = zip(asked, said.places, said.styles, strict=True)
    right = [(place if each.kind == "place" else style) in each.template for each, place, style in verdicts]
    return {
        "subject": metrics.subject_fidelity(see.subject(plain), see.subject(real)),
        "in_styles": metrics.subject_fidelity(see.subject(styled), see.subject(real)),
        "clip_i": metrics.subject_fidelity(see.clip.images(plain), see.clip.images(real)),
        "clip_t": metrics.text_alignment(see.clip.images(own), texts),
        "followed": sum(right) / (len(asked) - 1),  # the plain prompt names no place or style
        "pres": metrics.subject_fidelity(see.subject(kind), see.subject(real)),
        "div": metrics.diversity(see.perceptual(kind)),
        "class_kept": sum(noun == subject.noun for noun in of_class.objects) / len(kind),
    }


def ceiling(subject: world.Subject) -> dict[str, float]:
    """What the real pictures score against each other."""
    see, real = eyes(), torch.from_numpy(subject.images)
    return {
        "subject": metrics.set_consistency(see.subject(real)),
        "clip_i": metrics.set_consistency(see.clip.images(real)),
    }


# ---------------------------------------------------------------------------------------- the runs


def chosen(variant: Variant) -> list[tuple[int, world.Subject]]:
    """The subjects of a variant with their numbers, which are the seeds of their runs."""
    subjects = world.World(0).subjects()
    return [(number, subjects[number]) for number in ORDER[: variant.subjects]]


def run(base, variant: Variant, seed: int, subject: world.Subject, out: Path) -> list[dict]:
    """Train once and measure: one row per time or strength."""
    noun = subject.noun if variant.noun is None else variant.noun
    settings = dreambooth.defaults("tiny", **{"seed": seed} | variant.changes)
    drawn = None
    if settings.prior_weight:
        drawn = dreambooth.class_images(base, noun, CLASS_IMAGES, out / "class" / noun, steps=STEPS)
    pipe = copy.deepcopy(base)
    images = torch.from_numpy(subject.images)[: variant.images]
    dream = dreambooth.DreamBooth(pipe, images, variant.token, noun, class_images=drawn, settings=settings)
    rows = []

    def note(step: int, strength: float = 1.0) -> None:
        key = {"variant": variant.name, "name": subject.name, "seed": seed, "step": step, "strength": strength}
        rows.append(key | measure(pipe, subject, variant.token, noun))

    for record in dream.train():
        if record.step in variant.measured:
            note(record.step)
    for strength in variant.strengths:
        if settings.rank:
            pipe.set_adapters(dreambooth.ADAPTER, strength)
        note(settings.steps, strength)
    return rows


def untrained(base, seed: int, subject: world.Subject) -> list[dict]:
    """The rows of the real pictures, and of the base model with the same words."""
    key = {"name": subject.name, "seed": seed, "step": 0, "strength": 1.0}
    rows = [{"variant": "real"} | key | ceiling(subject)]
    return rows + [{"variant": "base"} | key | measure(base, subject, TOKEN, subject.noun)]


def plan(base, out: Path) -> Iterator[tuple]:
    """Every run with its name, the widest variants first."""
    for seed, subject in chosen(VARIANTS[0]):
        yield f"untrained--{subject.name}", partial(untrained, base, seed, subject)
    for variant in VARIANTS:
        for seed, subject in chosen(variant):
            yield f"{variant.name}--{subject.name}", partial(run, base, variant, seed, subject, out)


def main() -> None:
    options = records.options(__doc__.splitlines()[0]).parse_args()
    base = diffusion.load("tiny", device="cpu")
    records.run(plan(base, options.out), options.out / "runs", DATA, part=options.part)


if __name__ == "__main__":
    main()
