"""Measures StyleAligned on the sets of the tiny world, setting by setting, for chapters 7 and 8 of the book.

    python -m stylemoments.train.measure_style_aligned --out runs/style-aligned

About 12 000 pictures, less than an hour on two cores. Eight sets at a time are a file in the folder: stop it, call it
again, and it goes on; ``--part 0/2`` and ``--part 1/2`` in two terminals share the work. When all are done, the rows
are written to the package's ``data/style_aligned.csv``.

Each row is one set of :func:`stylemoments.prompts.tiny_sets` under one variant: four pictures, drawn with two seeds.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache, partial
from math import log

import torch
from torch import Tensor

from .. import diffusion, prompts
from ..evaluation import records
from ..evaluation import style_aligned as evaluation
from ..style_aligned import StyleAligned

DATA = prompts.DATA / "style_aligned.csv"
STEPS = 12  # of the sampling
SEEDS = 2  # pictures of each prompt
ALL, SOME = 100, 56  # sets of a variant: those of the paper's table, and those of the ablations
AT_ONCE = 8  # sets in one batch


@dataclass(frozen=True)
class Variant:
    """One way to draw a set."""

    name: str
    settings: dict | None = field(default_factory=dict)  # of StyleAligned; None is without it
    sets: int = SOME


OFF = {"adain_queries": False, "adain_keys": False}
ALONE = {"share_attention": False}
VARIANTS = [
    Variant("no sharing", None, ALL),
    Variant("StyleAligned", {}, ALL),
    Variant("no AdaIN", OFF, ALL),
    Variant("full sharing", {"full_attention": True}, ALL),
    Variant("StyleAligned + layer norm + group norm", {"share_layer_norm": True, "share_group_norm": True}),
    Variant("StyleAligned + layer norm", {"share_layer_norm": True}),
    Variant("AdaIN alone", ALONE),
    Variant("group norm alone", ALONE | OFF | {"share_group_norm": True}),
    Variant("queries", {"adain_keys": False}),
    Variant("keys", {"adain_queries": False}),
    Variant("queries, keys, values", {"adain_values": True}),
    *(Variant(f"scale {x:g}", {"reference_scale": x}) for x in (0.5, 0.8, 1.2)),
    *(Variant(f"shift {x:g}", {"reference_shift": x}) for x in (-2.0, -1.0)),
    Variant("shift log 2", {"reference_shift": log(2)}),
    Variant("shift 2", {"reference_shift": 2.0}),
    *(Variant(f"layers {x:g}", {"layers": x}) for x in (0.25, 0.5, 0.75)),
    *(Variant(f"layers {x}", {"layers": [f"{x}_blocks"]}) for x in ("down", "up")),
    Variant("layers mid", {"layers": ["mid_block"]}),
]


# ---------------------------------------------------------------------------------------- reading the table


@cache
def table() -> records.Rows:
    """The rows of ``data/style_aligned.csv``."""
    return records.read(DATA, texts=("variant", "style"))


def column(measure: str, variant: str) -> dict[int, float]:
    """One measure of one variant for each set, by its number.

    Args:
        measure: such as ``"hue"``; see :func:`scores`.
        variant: the name of one of ``VARIANTS``.

    Raises:
        ValueError: nothing of that kind was measured.
    """
    found = {int(row["set"]): row[measure] for row in table() if row["variant"] == variant and measure in row}
    if not found:
        names = ", ".join(sorted({row["variant"] for row in table()}))
        raise ValueError(f"no {measure!r} was measured for {variant!r}; the variants are {names}")
    return found


def paired(measure: str, variant: str, other: str) -> tuple[list[float], list[float]]:
    """One measure of two variants, over the sets that both were measured on, in one order."""
    return records.shared(column(measure, variant), column(measure, other))


# ---------------------------------------------------------------------------------------- drawing


def latents(pipe, number: int, n: int, seed: int) -> Tensor:
    """The noise of a set's pictures: every set and seed has its own, and every variant the same."""
    return diffusion.initial_latents(pipe, n, 10_000 * seed + 10 * number)


def draw(pipe, settings: dict | None, numbers: list[int], seed: int = 0) -> Tensor:
    """The pictures of some sets in one batch.

    Args:
        pipe: the tiny pipeline.
        settings: of :class:`StyleAligned`; None draws without it.
        numbers: of the sets, as in ``tiny_sets()``.
        seed: another one draws other pictures.

    Returns:
        ``(sets, 4, 3, H, W)`` in [0, 1]; the first of each set is its reference.
    """
    sets = [prompts.tiny_sets()[number] for number in numbers]
    said = [prompt for each in sets for prompt in each.prompts]
    drawn = zip(numbers, sets, strict=True)
    noise = torch.cat([latents(pipe, number, len(each.prompts), seed) for number, each in drawn])
    follow = [4 * place for place in range(len(sets)) for _ in range(4)]
    generate = partial(diffusion.generate, pipe, said, steps=STEPS, latents=noise)
    if settings is None:
        images = generate()
    else:
        with StyleAligned(pipe, reference=follow, **settings):
            images = generate()
    return images.unflatten(0, (len(sets), -1))


# ---------------------------------------------------------------------------------------- measuring


def eyes() -> evaluation.Eyes:
    """The networks that measure, loaded once."""
    return evaluation.eyes("tiny")


def scores(images: Tensor, asked: prompts.StyleSet) -> dict[str, float]:
    """The numbers of one set: see :func:`stylemoments.evaluation.style_aligned.scores`."""
    return evaluation.scores(eyes(), images, asked)


def diversity(images: Tensor) -> float:
    """How different the pictures of one prompt are: see :func:`stylemoments.evaluation.style_aligned.diversity`."""
    return evaluation.diversity(eyes(), images)


def measure(pipe, variant: Variant, numbers: list[int]) -> records.Rows:
    """One row for each of some sets: means over the seeds, and the diversity across them."""
    images = torch.stack([draw(pipe, variant.settings, numbers, seed) for seed in range(SEEDS)], 1)
    rows = []
    for number, of_set in zip(numbers, images, strict=True):
        asked = prompts.tiny_sets()[number]
        each = [scores(drawn, asked) for drawn in of_set]
        means = {name: sum(one[name] for one in each) / SEEDS for name in each[0]}
        key = {"variant": variant.name, "set": number, "style": asked.style}
        rows.append(key | means | {"diversity": diversity(of_set)})
    return rows


def plan(pipe) -> Iterator[tuple]:
    """Every run with its name, the first sets of all variants first."""
    for first in range(0, ALL, AT_ONCE):
        for variant in VARIANTS:
            numbers = [*range(first, min(first + AT_ONCE, variant.sets))]
            if numbers:
                yield f"{variant.name}--{first}", partial(measure, pipe, variant, numbers)


def main() -> None:
    chosen = records.options(__doc__.splitlines()[0]).parse_args()
    pipe = diffusion.load("tiny", device="cpu")
    records.run(plan(pipe), chosen.out / "runs", DATA, part=chosen.part)


if __name__ == "__main__":
    main()
