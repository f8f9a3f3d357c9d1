r"""The evaluation sets as data: what the papers asked for, and the same in the words of the tiny world.

Sources: the 100 sets of StyleAligned are those of its appendix (Hertz et al. 2023, arXiv 2312.02133), in the authors'
spelling. The prompts and subjects of DreamBooth are those of its data set (Ruiz et al. 2022, arXiv 2208.12242).

    >>> style_aligned_sets()[0].prompts[0], tiny_sets()[0].style
    ('A house in sticker style', 'papercut art')
"""

import csv
import hashlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from .world import HELD_OUT, OBJECTS, PLAIN, STYLES
from .world import prompt as world_prompt

DATA = Path(__file__).parent / "data"
LIVE = ("cat", "dog")  # the classes of DreamBooth's live subjects


@dataclass(frozen=True)
class StyleSet:
    """A few objects to be drawn in one style: one picture per object, all of which should match."""

    objects: tuple[str, ...]  # their names
    style: str  # its name
    texts: tuple[str, ...]  # what to say for each object alone: text alignment is measured against these
    prompts: tuple[str, ...]  # what to say for each object in the style


@dataclass(frozen=True)
class SubjectPrompt:
    """One of DreamBooth's prompts, for live subjects or for objects."""

    kind: str  # "live" or "object"
    template: str  # with {token} and {class}

    def fill(self, token: str, noun: str) -> str:
        """The prompt for a subject.

        >>> dreambooth_prompts()[0].fill("sks", "backpack")
        'a sks backpack in the jungle'
        """
        return self.template.format(**{"token": token, "class": noun})


@dataclass(frozen=True)
class DreamBoothSubject:
    """One of DreamBooth's thirty subjects."""

    name: str  # of its folder in the data set
    noun: str  # the class noun

    @property
    def kind(self) -> str:
        """Which prompts it is tested with: ``"live"`` or ``"object"``."""
        return "live" if self.noun in LIVE else "object"


def _rows(name: str) -> list[dict[str, str]]:
    with (DATA / name).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@cache
def style_aligned_sets() -> tuple[StyleSet, ...]:
    """The 100 sets of StyleAligned, four objects each; the second set has five, as in the paper."""
    return tuple(_paper_set(row["objects"].split("; "), row["style"]) for row in _rows("style_aligned_prompts.csv"))


def _paper_set(objects: list[str], style: str) -> StyleSet:
    return StyleSet(tuple(objects), style, tuple(objects), tuple(f"{text} in {style}" for text in objects))


@cache
def dreambooth_prompts() -> tuple[SubjectPrompt, ...]:
    """DreamBooth's 25 prompts for objects, then its 25 for live subjects."""
    return tuple(SubjectPrompt(**row) for row in _rows("dreambooth_prompts.csv"))


@cache
def dreambooth_subjects() -> tuple[DreamBoothSubject, ...]:
    """DreamBooth's 30 subjects; their photographs are not part of this package."""
    return tuple(DreamBoothSubject(row["subject"], row["class"]) for row in _rows("dreambooth_subjects.csv"))


@cache
def tiny_sets() -> tuple[StyleSet, ...]:
    """100 sets of four objects in one style of the tiny world, the styles in turn, the same on every machine.

    No set has an object in the style that was held out for it, so that what is measured is alignment and not
    composition.
    """
    styles = [style for style in STYLES if style != PLAIN]
    return tuple(_tiny_set(number, styles[number % len(styles)]) for number in range(100))


def _tiny_set(number: int, style: str) -> StyleSet:
    """The objects whose names, hashed with the number of the set, come first: chance without a random generator."""
    known = [noun for noun in OBJECTS if HELD_OUT.get(noun) != style]
    nouns = sorted(known, key=lambda noun: hashlib.sha256(f"{number} {noun}".encode()).digest())[:4]
    texts = tuple(world_prompt(noun) for noun in nouns)
    return StyleSet(tuple(nouns), style, texts, tuple(world_prompt(noun, style=style) for noun in nouns))
