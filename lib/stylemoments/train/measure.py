"""Measures the shipped weights and writes the figures into their cards.

    python -m stylemoments.train.measure

All pictures are fresh: the training had another seed. A card is the README.md beside the weights; what stands in it
between the two marks is written here, the rest by hand.
"""

import json
import re
from argparse import ArgumentParser
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch
from scipy.stats import binomtest
from torch import Tensor
from tqdm import tqdm

from .. import control, diffusion, embed, judge, zoo
from ..metrics import hue_distance, subject_fidelity
from ..world import HELD_OUT, OBJECTS, PLAIN, STYLES, Sample, World, prompt
from . import dino, measure_transfer, subject
from . import judge as judging
from .pictures import Pictures, render

START, END = "<!-- measured: python -m stylemoments.train.measure -->", "<!-- end of measured -->"
SEED = 3  # of the pictures and of the samples
STEPS = 25
BATCH = 50
CONTROLLED = 64  # drawn pictures per figure of tiny-control


def percent(hits) -> str:
    """Share of hits with its 95 % interval (Wilson 1927), which stays honest near 0 and 100 %.

    >>> percent([True, True, True, False])
    '75.0 % [30.1, 95.4], n = 4'
    """
    low, high = binomtest(int(np.sum(hits)), len(hits)).proportion_ci(method="wilson")
    return f"{100 * np.mean(hits):.1f} % [{100 * low:.1f}, {100 * high:.1f}], n = {len(hits)}"


def equal(a, b) -> np.ndarray:
    """Where two lists agree."""
    return np.array(a) == np.array(b)


def reconstruction(pipe, critic, n: int) -> dict[str, str]:
    """What the autoencoder keeps: judged on the pictures that the judge gets right to begin with."""
    sample = World(SEED).sample(n)
    images = torch.from_numpy(sample.images)
    back = torch.cat([diffusion.decode(pipe, diffusion.encode(pipe, part)) for part in images.split(BATCH)])
    before, after = critic(images), critic(back)
    rows = {}
    for name in ("objects", "styles", "places"):
        known = equal(getattr(before, name), getattr(sample, name))
        kept = equal(getattr(after, name), getattr(sample, name))[known]
        rows[f"autoencoder: {name} still judged right"] = percent(kept)
    noise = (back - images).square().mean((1, 2, 3))
    rows["autoencoder: peak signal-to-noise ratio"] = f"{-10 * noise.log10().mean():.1f} dB"
    return rows


def drawn(pipe, prompts: list[str], net=None, conditions: Tensor | None = None) -> Tensor:
    """One picture per prompt, guidance as shipped; with conditions, under the control of ``net``."""
    parts = []
    for start in tqdm(range(0, len(prompts), BATCH), desc="drawing", unit="batch"):
        rows = slice(start, start + BATCH)
        block = nullcontext() if conditions is None else control.Controlled(pipe, net, conditions[rows])
        with block:
            parts.append(diffusion.generate(pipe, prompts[rows], steps=STEPS, seed=SEED + start))
    return torch.cat(parts)


def drawing(pipe, critic, n: int) -> dict[str, str]:
    """How often a drawn picture has the object and the style that were asked for."""
    rng = np.random.default_rng(SEED)
    trained = [(noun, style) for noun in OBJECTS for style in STYLES if HELD_OUT[noun] != style]
    rows = {}
    for name, pairs in {"trained": trained, "held-out": [*HELD_OUT.items()]}.items():
        chosen = [pairs[i] for i in rng.permutation(n) % len(pairs)]
        said = critic(drawn(pipe, [prompt(noun, style=style) for noun, style in chosen]))
        nouns, styles = zip(*chosen, strict=True)
        rows[f"object right, {name} pairs"] = percent(equal(said.objects, nouns))
        rows[f"style right, {name} pairs"] = percent(equal(said.styles, styles))
    return rows


def palettes(pipe, critic, n: int) -> dict[str, str]:
    """How far apart the hues of a set of one style are; 90° is what independent hues give."""
    rng = np.random.default_rng(SEED)
    apart = []
    for style in STYLES:
        if style != PLAIN:
            nouns = rng.choice(list(OBJECTS), n, replace=False)
            hues = critic(drawn(pipe, [prompt(noun, style=style) for noun in nouns])).hues
            apart.append(hue_distance(hues[:, None], hues)[np.triu_indices(n, 1)].mean())
    return {"distance of two hues in a set of one style": f"{np.mean(apart):.0f}° (independent: 90°)"}


def retrieval(clip, n: int) -> dict[str, str]:
    """How often the nearest of all texts is the picture's own."""
    rows = {}
    texts = [prompt(noun, style=style) for noun in OBJECTS for style in STYLES]
    read = clip.texts(texts)
    for name in ("train", "held-out"):
        sample: Sample = World(SEED).sample(n, split=name, place="nowhere")
        seen = clip.images(torch.from_numpy(sample.images))
        nearest = [texts[i] for i in (seen @ read.T).argmax(-1)]
        label = {"train": "trained", "held-out": "held-out"}[name]
        rows[f"own text is nearest of {len(texts)}, {label} pairs"] = percent(equal(nearest, sample.prompts))
    return rows


def of_judge(figures: dict) -> dict[str, str]:
    """The judge's figures as rows."""
    return {
        f"{kind}: object / style / place right, hue error": (
            f"{100 * got['objects']:.1f} / {100 * got['styles']:.1f} / {100 * got['places']:.1f} %, "
            f"{got['hue_error']:.1f}° (n = {got['n']})"
        )
        for kind, got in figures.items()
    }


def of_dino(bank: Pictures) -> dict[str, str]:
    """What neighbors share, and how alike pairs are, beside the same network with random weights."""
    torch.manual_seed(SEED)
    nets = {"tiny-dino": embed.dino("tiny").network, "random weights": dino.network()[0].eval()}
    rows = {}
    for net, found in dino.figures(nets, bank, 2000).items():
        near = found["neighbors"]
        rows[f"{net}: style / object / place by neighbors, hue error"] = (
            f"{100 * near['styles']:.1f} / {100 * near['objects']:.1f} / {100 * near['places']:.1f} %, "
            f"{near['hue_error']:.0f}° (n = {near['n']})"
        )
        for kind, pair in found["pairs"].items():
            rows[f"{net}: cosine of pairs, {kind}"] = f"{pair['cosine']:.2f} (n = {pair['n']})"
    return rows


def of_subject(pipe) -> dict[str, str]:
    """What tells subjects apart, on drawings that no network has seen: tiny-subject beside the other small ones."""
    torch.manual_seed(SEED)
    nets = {
        "tiny-subject": embed.subject(),
        "tiny-dino": embed.dino(),
        "tiny-clip": embed.clip().images,
        "random weights": embed.DINO(embed.SubjectNet(), embed.TINY),
    }
    images, others = subject.subjects()
    back = (diffusion.decode(pipe, diffusion.encode(pipe, x.flatten(0, 1))).reshape(x.shape) for x in (images, others))
    things = {"subjects": (images, others), "autoencoded": tuple(back), "held-out hand": subject.held_out()}
    rows = {}
    for kind, pictures in things.items():
        for net, extract in nets.items():
            found = subject.told_apart(extract, *pictures)
            rows[f"{kind}, {net}: nearest is the same; cosine within / between / class"] = (
                f"{100 * found['nearest']:.1f} %; {found['within']:.2f} / {found['between']:.2f} / {found['class']:.2f}"
                f" (n = {found['n']})"
            )
    real = nets["tiny-subject"](images.flatten(0, 1)).unflatten(0, images.shape[:2])
    for way, pictures in subject.changed().items():
        features = nets["tiny-subject"](pictures.flatten(0, 1)).unflatten(0, pictures.shape[:2])
        scores = [subject_fidelity(a, b) for a, b in zip(features, real, strict=True)]
        rows[f"subjects {way}, tiny-subject: cosine with the real pictures"] = f"{np.mean(scores):.2f}"
    return rows


def correlation(edges: Tensor, others: Tensor) -> Tensor:
    """Of each picture's edges with the other's, over all places.

    >>> a = torch.tensor([0.0, 1.0, 0.0, 1.0]).expand(1, 3, 1, 4)
    >>> correlation(a, 0.5 * a).item(), correlation(a, 1 - a).item()
    (1.0, -1.0)
    """
    centered = [x[:, 0].flatten(1) - x[:, 0].flatten(1).mean(1, keepdim=True) for x in (edges, others)]
    return torch.cosine_similarity(*centered)


def of_control(pipe, critic, n: int) -> dict[str, str]:
    """How well a drawing keeps to its edges, and whether it shows what was asked for, with the ControlNet and without.

    The edges are those of pictures of the world. The prompts are theirs; or empty; or, for edges of plain pictures, of
    the same object in another style.
    """
    net, own, plain = control.load(), World(SEED).sample(n), World(SEED).sample(n, style=PLAIN)
    styles = np.random.default_rng(SEED).choice([style for style in STYLES if style != PLAIN], n).tolist()
    words = zip(plain.objects, styles, plain.places, strict=True)
    restyled = [prompt(noun, style=style, place=place) for noun, style, place in words]
    images = torch.from_numpy(own.images)
    back = diffusion.decode(pipe, diffusion.encode(pipe, images))
    rows = {"edges of a picture after the autoencoder: correlation with its own": followed(back, images)}
    for case, sample, prompts, wanted in (
        ("own prompt", own, own.prompts, own.styles),
        ("no prompt", own, [""] * n, own.styles),
        ("edges of a plain picture, prompt of another style", plain, restyled, styles),
    ):
        asked = torch.from_numpy(sample.images)
        for way, conditions in {"without": None, "with ControlNet": control.edges(asked)}.items():
            found = drawn(pipe, prompts, net, conditions)
            said = critic(found)
            rows[f"{case}, {way}: correlation of edges"] = followed(found, asked)
            rows[f"{case}, {way}: object right"] = percent(equal(said.objects, sample.objects))
            rows[f"{case}, {way}: style right"] = percent(equal(said.styles, wanted))
    return rows


def followed(images: Tensor, asked: Tensor) -> str:
    """The mean correlation of the edges of two batches."""
    return measure_transfer.interval(correlation(control.edges(images), control.edges(asked)).tolist())


def curve(path: Path, shown: int = 10) -> str:
    """A training curve as a table of about ten rows."""
    lines = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    picked = [lines[i] for i in np.unique(np.linspace(0, len(lines) - 1, shown).round().astype(int))]
    columns = [name for name in picked[0] if name != "seconds"]
    head = f"| {' | '.join(columns)} |\n|{'--:|' * len(columns)}\n"
    return head + "".join(f"| {' | '.join(f'{line[name]:.4g}' for name in columns)} |\n" for line in picked)


def write(name: str, rows: dict[str, str]) -> None:
    """Put a table of the figures, and the training curves, into a card between the marks."""
    folder = zoo.WEIGHTS / name
    table = "| measured | |\n|---|--:|\n" + "".join(f"| {what} | {value} |\n" for what, value in rows.items())
    curves = [f"Training curve, `{path.name}`:\n\n{curve(path)}" for path in sorted(folder.glob("curve*.jsonl"))]
    block = "\n\n".join([START, table.strip(), *(text.strip() for text in curves), END])
    card = folder / "README.md"
    text, places = re.subn(
        f"{re.escape(START)}.*{re.escape(END)}", lambda _: block, card.read_text("utf-8"), flags=re.S
    )
    if places != 1:
        raise ValueError(f"{card} needs these two lines once, and has them {places} times:\n{START}\n{END}")
    part = card.with_suffix(".part")
    part.write_text(text, "utf-8")
    part.replace(card)
    print(f"\n{name}\n{table}")


def main() -> None:
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    shipped = [name for name in zoo.names() if zoo.entry(name).command]
    parser.add_argument("--only", choices=shipped, help="one card, not all")
    parser.add_argument("-n", type=int, default=500, help="drawn pictures per figure of tiny-sd")
    parser.add_argument("--rendered", type=Path, default=Path("runs/pictures"), help="folder of rendered pictures")
    options = parser.parse_args()

    def tiny_sd():
        pipe, critic = diffusion.load("tiny"), judge.load()
        return reconstruction(pipe, critic, 2000) | drawing(pipe, critic, options.n) | palettes(pipe, critic, 16)

    measures: dict[str, Callable[[], dict]] = {
        "judge": lambda: of_judge(judging.figures(judge.load(), 2000)),
        "tiny-clip": lambda: retrieval(embed.clip("tiny"), 2000),
        "tiny-dino": lambda: of_dino(render(8000, options.rendered)),
        "tiny-subject": lambda: of_subject(diffusion.load("tiny")),
        "tiny-sd": tiny_sd,
        "tiny-vgg": lambda: measure_transfer.of_vgg(400),
        "tiny-adain": lambda: measure_transfer.of_adain(8),
        "tiny-control": lambda: of_control(diffusion.load("tiny"), judge.load(), CONTROLLED),
    }
    for name, measure in measures.items():
        if options.only in (None, name):
            write(name, measure())


if __name__ == "__main__":
    main()
