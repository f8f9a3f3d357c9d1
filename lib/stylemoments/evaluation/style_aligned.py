r"""Ways to draw a set of pictures in one style, measured side by side, as StyleAligned's paper does.

Hertz et al., *Style Aligned Image Generation via Shared Attention*, 2024 (arXiv 2312.02133), section 5. A set is a few
objects in one style. Every method draws all sets from the same noise; the first picture of a set is the same for every
method but full sharing, in which it looks at the others. Methods that train do so on this picture, and draw the other
objects. What is said to all of them are the set's prompts, object and style.

What is measured on each set: the cosine of every picture with the text of its *object* (CLIP), the mean cosine of the
six pairs (DINO), whether the reference's object is seen in the others, how far their colors are from the reference's,
how different two draws of the same prompt are, and the time. A high consistency alone is no success: four copies of the
first picture have the highest.

What differs from the paper, which left it open: which noise, what a baseline is told, the rank and rate of its
adapters. The figures that were published are in ``PUBLISHED``; they are of another model.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

from .. import color, diffusion, dreambooth, editing, embed, judge, metrics, prompts, style_drop
from ..style_aligned import StyleAligned
from . import records

# isort: split
import torch
from torch import Tensor

DATA = prompts.DATA / "evaluation.csv"
TEXTS = ("method", "style")  # the columns that are not numbers
MEASURES = ("text", "consistency", "leak", "palette", "hue", "diversity", "seconds", "training")
BASE = "StyleAligned"  # what the others are compared with

#: Table 1 of the paper, on Stable Diffusion XL: text alignment and set consistency, mean and deviation over 100 sets.
PUBLISHED = {
    "StyleAligned": ((0.287, 0.03), (0.51, 0.14)),
    "no AdaIN": ((0.289, 0.03), (0.428, 0.14)),
    "full sharing": ((0.28, 0.03), (0.55, 0.15)),
    "StyleDrop": ((0.272, 0.04), (0.529, 0.15)),
    "DreamBooth-LoRA": ((0.276, 0.03), (0.537, 0.17)),
}


@dataclass(frozen=True)
class Protocol:
    """What all methods share; :func:`protocol` has the values for a size."""

    size: str
    steps: int  # of the sampling
    draws: int = 2  # of each set; the first picture has the same noise in all of them
    training_steps: int = 400  # of the methods that train
    strength: float = 0.8  # of SDEdit, the default of diffusers
    seed: int = 0


def protocol(size: str, **changes) -> Protocol:
    """The protocol of a size: 12 steps of the tiny pipeline, 50 of the large ones.

    Args:
        size: ``"tiny"``, ``"sd15"`` or ``"sdxl"``.
        changes: see :class:`Protocol`.

    Raises:
        ValueError: another size, or numbers out of range.

    Example:
        >>> protocol("tiny").steps, protocol("sdxl", draws=1).steps
        (12, 50)
    """
    if size not in diffusion.SIZES:
        raise ValueError(f"the size must be one of {', '.join(diffusion.SIZES)}; got {size!r}")
    chosen = Protocol(**{"size": size, "steps": 12 if size == "tiny" else 50} | changes)
    if min(chosen.steps, chosen.draws, chosen.training_steps) < 1:
        raise ValueError(f"steps, draws and training_steps are 1 or more; got {chosen}")
    return chosen


def sets(size: str) -> tuple[prompts.StyleSet, ...]:
    """The hundred sets of a size: those of the tiny world, or those of the paper."""
    return prompts.tiny_sets() if size == "tiny" else prompts.style_aligned_sets()


# ---------------------------------------------------------------------------------------- drawing


def noises(pipe, number: int, n: int, protocol: Protocol) -> Tensor:
    """The noise of a set's pictures in each draw, ``(draws, n, C, H, W)``: the same for every method.

    The first picture has the noise of the first draw in all of them.
    """
    seeds = (10_000 * (protocol.seed + draw) + 10 * number for draw in range(protocol.draws))
    noise = torch.stack([diffusion.initial_latents(pipe, n, seed) for seed in seeds])
    noise[1:, 0] = noise[0, 0]
    return noise


@dataclass(frozen=True)
class Drawn:
    """A set as one method drew it."""

    images: Tensor  # (draws, n, 3, H, W) in [0, 1], the reference first
    seconds: float  # for each draw
    training: float = 0.0  # seconds, before the first draw


@dataclass(frozen=True)
class Task:
    """One set to draw."""

    pipe: object
    asked: prompts.StyleSet
    noise: Tensor  # of noises()
    protocol: Protocol

    def generate(self, draw: int, which: slice = slice(None)) -> Tensor:
        """Pictures of one draw, by the pipeline as it now is."""
        said, noise = self.asked.prompts[which], self.noise[draw, which]
        return diffusion.generate(self.pipe, said, steps=self.protocol.steps, latents=noise).cpu()

    def first(self) -> Tensor:
        """The reference, ``(1, 3, H, W)``."""
        return self.generate(0, slice(1))

    def draws(self) -> range:
        return range(self.protocol.draws)


def shared(task: Task, settings: dict | None) -> Drawn:
    """Under :class:`StyleAligned` with some settings; None draws without it."""
    began = time.perf_counter()
    if settings is None:
        images = [task.generate(draw) for draw in task.draws()]
    else:
        with StyleAligned(task.pipe, **settings):
            images = [task.generate(draw) for draw in task.draws()]
    return Drawn(torch.stack(images), _each(began, task))


def edited(task: Task) -> Drawn:
    """By SDEdit: each other prompt is drawn over the first picture."""
    first, (_, *said) = task.first(), task.asked.prompts
    options = {"steps": task.protocol.steps, "strength": task.protocol.strength}
    began, images = time.perf_counter(), []
    for draw in task.draws():
        *_, last = editing.sdedit(task.pipe, first, said, latents=task.noise[draw, 1:], **options)
        images.append(torch.cat([first, diffusion.decode(task.pipe, last.latents).cpu()]))
    return Drawn(torch.stack(images), _each(began, task))


def style_dropped(task: Task) -> Drawn:
    """By StyleDrop's adapters, trained on the first picture."""
    first, began = task.first(), time.perf_counter()
    steps = {"steps": task.protocol.training_steps, "seed": task.protocol.seed}
    with style_drop.StyleDrop(task.pipe) as adapters:
        for _ in style_drop.trainer(adapters, first, task.asked.prompts[0], **steps).train(alone=True):
            pass
        return _trained(task, first, time.perf_counter() - began)


def tuned(task: Task) -> Drawn:
    """By DreamBooth with LoRA, trained on the first picture."""
    first, began = task.first(), time.perf_counter()
    settings = style_drop.lora_settings(task.protocol.size, steps=task.protocol.training_steps, seed=task.protocol.seed)
    dream = dreambooth.DreamBooth(task.pipe, first, "", "", prompt=task.asked.prompts[0], settings=settings)
    try:
        for _ in dream.train(alone=True):
            pass
        return _trained(task, first, time.perf_counter() - began)
    finally:
        task.pipe.unload_lora_weights()


def _trained(task: Task, first: Tensor, training: float) -> Drawn:
    began = time.perf_counter()
    images = [torch.cat([first, task.generate(draw, slice(1, None))]) for draw in task.draws()]
    return Drawn(torch.stack(images), _each(began, task), training)


def _each(began: float, task: Task) -> float:
    return (time.perf_counter() - began) / task.protocol.draws


#: Every method by its name. AdaIN has two switches, of queries and of keys: "no AdaIN", "AdaIN of queries", "AdaIN of
#: keys" and StyleAligned are their four positions.
METHODS: dict[str, Callable[[Task], Drawn]] = {
    "no sharing": partial(shared, settings=None),
    "StyleAligned": partial(shared, settings={}),
    "no AdaIN": partial(shared, settings={"adain_queries": False, "adain_keys": False}),
    "AdaIN of queries": partial(shared, settings={"adain_keys": False}),
    "AdaIN of keys": partial(shared, settings={"adain_queries": False}),
    "full sharing": partial(shared, settings={"full_attention": True}),
    "public defaults": partial(shared, settings={"share_group_norm": True, "share_layer_norm": True}),
    "SDEdit": edited,
    "StyleDrop": style_dropped,
    "DreamBooth-LoRA": tuned,
}


def known_methods(names: Sequence[str]) -> list[str]:
    """Methods by names that may be written otherwise, in the order of ``METHODS``.

    Raises:
        ValueError: a name that no method has.

    Example:
        >>> known_methods(["sdedit", "no-sharing"])
        ['no sharing', 'SDEdit']
    """
    plain = {_plain(name): name for name in METHODS}
    unknown = [name for name in names if _plain(name) not in plain]
    if unknown or not names:
        raise ValueError(f"methods are some of {', '.join(METHODS)}; got {', '.join(unknown) or 'none'}")
    asked = {plain[_plain(name)] for name in names}
    return [name for name in METHODS if name in asked]


def _plain(name: str) -> str:
    return name.lower().replace("-", "").replace("_", "").replace(" ", "")


# ---------------------------------------------------------------------------------------- measuring


@dataclass(frozen=True)
class Eyes:
    """The networks that measure."""

    clip: embed.CLIP
    dino: embed.DINO
    perceptual: embed.Perceptual
    judge: judge.Judge | None  # of the tiny world, where truth is known


@cache
def eyes(size: str, device: str = "cpu") -> Eyes:
    """The networks of a size, loaded once; those of the full size are fetched from the Hugging Face Hub."""
    kind = "tiny" if size == "tiny" else "full"
    networks = (embed.clip(kind, device=device), embed.dino(kind, device=device), embed.perceptual(kind, device=device))
    return Eyes(*networks, judge.load() if size == "tiny" else None)


def scores(see: Eyes, images: Tensor, asked: prompts.StyleSet) -> dict[str, float]:
    """The numbers of one set.

    Args:
        see: of :func:`eyes`.
        images: ``(n, 3, H, W)`` in [0, 1], the reference first.
        asked: what they should show.

    Returns:
        ``text``, the mean cosine of CLIP with the texts of the objects; ``consistency``, that of DINO between the
        pictures; ``leak``, see :func:`stylemoments.metrics.leakage`, by the judge or, at full size, by CLIP among the
        objects of the set; ``palette``, the mean :func:`stylemoments.color.palette_distance` of the targets from the
        reference. In the tiny world also ``hue``, how far the targets' hues are from the reference's in degrees, and
        ``object_right`` and ``style_right``, the shares of pictures in which the judge sees the right one.
    """
    of_images, of_texts = see.clip.images(images), see.clip.texts(list(asked.texts))
    found = {
        "text": metrics.text_alignment(of_images, of_texts),
        "consistency": metrics.set_consistency(see.dino(images)),
        "palette": color.palette_distance(images[1:], images[:1]).mean().item(),
    }
    if see.judge is None:
        seen = (100 * of_images @ of_texts.mT).softmax(-1)  # the temperature that CLIP was trained with
        return found | {"leak": metrics.leakage(seen, range(len(images)))}
    said = see.judge(images)
    objects = [judge.NAMES["objects"].index(noun) for noun in asked.objects]
    return found | {
        "leak": metrics.leakage(said.probabilities["objects"], objects),
        "hue": float(metrics.hue_distance(said.hues[1:], said.hues[0]).mean()),
        "object_right": sum(a == b for a, b in zip(said.objects, asked.objects, strict=True)) / len(images),
        "style_right": sum(style == asked.style for style in said.styles) / len(images),
    }


def diversity(see: Eyes, images: Tensor) -> float:
    """How different the draws of one prompt are: the mean over a set's targets.

    Args:
        images: ``(draws, n, 3, H, W)`` in [0, 1], two draws or more.
    """
    targets = range(1, images.shape[1])
    return sum(metrics.diversity(see.perceptual(images[:, i])) for i in targets) / len(targets)


def measure(pipe, method: str, number: int, protocol: Protocol) -> records.Rows:
    """Draw one set by one method, and measure it: one row.

    Args:
        pipe: the pipeline of the protocol's size; as before afterwards.
        method: of ``METHODS``.
        number: of the set.
        protocol: what all methods share.
    """
    asked = sets(protocol.size)[number]
    task = Task(pipe, asked, noises(pipe, number, len(asked.prompts), protocol), protocol)
    drawn, see = METHODS[method](task), eyes(protocol.size, pipe.device.type)
    each = [scores(see, images, asked) for images in drawn.images]
    means = {name: sum(one[name] for one in each) / len(each) for name in each[0]}
    if protocol.draws > 1:
        means["diversity"] = diversity(see, drawn.images)
    key = {"method": method, "set": number, "style": asked.style}
    return [key | means | {"seconds": drawn.seconds + drawn.training, "training": drawn.training}]


def plan(pipe, methods: Sequence[str], n: int, protocol: Protocol) -> Iterator[tuple]:
    """Every piece of the evaluation with its name: the first set by all methods, then the next.

    Each set begins with another method, so that processes that take turns share the slow ones.

    Raises:
        ValueError: more sets than there are, or none.
    """
    most = len(sets(protocol.size))
    if not 1 <= n <= most:
        raise ValueError(f"there are {most} sets, and 1 at least is needed; got {n}")
    for number in range(n):
        first = number % len(methods)
        for method in [*methods[first:], *methods[:first]]:
            yield f"{method}--{number:03d}", partial(measure, pipe, method, number, protocol)


# ---------------------------------------------------------------------------------------- reading the table


@cache
def table(path: Path = DATA) -> records.Rows:
    """The rows of a table: one for each method and set. Without a path, those that this repository measured."""
    return records.read(path, texts=TEXTS)


def column(rows: records.Rows, measure: str, method: str) -> dict[int, float]:
    """One measure of one method for each set, by its number.

    Raises:
        ValueError: nothing of that kind was measured.
    """
    found = {int(row["set"]): row[measure] for row in rows if row["method"] == method and measure in row}
    if not found:
        names = ", ".join(dict.fromkeys(row["method"] for row in rows))
        raise ValueError(f"no {measure!r} was measured for {method!r}; the methods are {names}")
    return found


def summary(rows: records.Rows, *, base: str = BASE) -> records.Rows:
    """One row for each method and measure.

    Args:
        rows: of :func:`table`.
        base: the method that the others are compared with, set by set.

    Returns:
        ``mean`` and ``deviation`` over the sets, ``n`` of them; for other methods than the base also the mean
        ``difference`` from it with the bounds ``low`` and ``high`` of its 95 % bootstrap interval over the sets.
    """
    found = []
    for method in dict.fromkeys(row["method"] for row in rows):
        for name in MEASURES:
            if any(name in row for row in rows if row["method"] == method):
                found.append({"method": method, "measure": name} | _summary(rows, name, method, base))
    return found


def _summary(rows: records.Rows, name: str, method: str, base: str) -> dict[str, float]:
    own = torch.tensor([*column(rows, name, method).values()], dtype=torch.float64)
    found = {"mean": own.mean().item(), "n": len(own)}
    found |= {"deviation": own.std().item()} if len(own) > 1 else {}
    if method == base or not any(row["method"] == base for row in rows):
        return found
    pair = records.shared(column(rows, name, method), column(rows, name, base))
    if len(pair[0]) < 2:
        return found
    interval = metrics.paired_bootstrap(*pair)
    return found | {"difference": interval.mean, "low": interval.low, "high": interval.high}
