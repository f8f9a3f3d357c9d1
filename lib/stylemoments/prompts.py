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

from .world import HELD_OUT, OBJECTS, PLACES, PLAIN, STYLES
from .world import prompt as world_prompt
from .world.prompts import article

DATA = Path(__file__).parent / "data"
LIVE = ("cat", "dog")  # the classes of DreamBooth's live subjects
CLASSES = "prompts_and_classes.txt"  # of DreamBooth's data set: which class each folder shows


@dataclass(frozen=True)
class StyleSet:
    """A few objects to be drawn in one style: one picture per object, all of which should match."""

    objects: tuple[str, ...]  # their names
    style: str  # its name
    texts: tuple[str, ...]  # what to say for each object alone: text alignment is measured against these
    prompts: tuple[str, ...]  # what to say for each object in the style


@dataclass(frozen=True)
class SubjectPrompt:
    """One prompt for subjects that a token names."""

    kind: str  # DreamBooth's are for "live" subjects or an "object"; the tiny world's ask for "place", "style", "plain"
    template: str  # with {token} and {class}

    def fill(self, token: str, noun: str) -> str:
        """The prompt for a subject; an empty noun leaves the token alone.

        >>> dreambooth_prompts()[0].fill("sks", "backpack"), dreambooth_prompts()[0].fill("ohwx", "")
        ('a sks backpack in the jungle', 'an ohwx in the jungle')
        """
        return self._naming(f"{token} {noun}".strip())

    def without_token(self, noun: str) -> str:
        """The prompt for any object of the class: text alignment (CLIP-T) is measured against this.

        >>> tiny_subject_prompts()[0].fill("sks", "elephant"), tiny_subject_prompts()[0].without_token("elephant")
        ('a sks elephant in the snow', 'an elephant in the snow')
        """
        return self._naming(noun)

    def _naming(self, name: str) -> str:
        return self.template.replace("a {token} {class}", article(name)).replace("{token} {class}", name)


@dataclass(frozen=True)
class DreamBoothSubject:
    """One of DreamBooth's thirty subjects."""

    name: str  # of its folder in the data set
    noun: str  # the class noun

    @property
    def kind(self) -> str:
        """Which prompts it is tested with: ``"live"`` or ``"object"``."""
        return "live" if self.noun in LIVE else "object"


@dataclass(frozen=True)
class PhotographedSubject(DreamBoothSubject):
    """A subject with its photographs."""

    paths: tuple[Path, ...]  # in the order of their names


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
    """DreamBooth's 30 subjects; their photographs are not part of this package: see :func:`read_dreambooth_folder`."""
    return tuple(DreamBoothSubject(row["subject"], row["class"]) for row in _rows("dreambooth_subjects.csv"))


def read_dreambooth_folder(root: str | Path) -> list[PhotographedSubject]:
    """The subjects of DreamBooth's data set, or of your own in its layout, sorted by name.

    The layout is that of github.com/google/dreambooth: a folder of photographs per subject, and beside them
    ``prompts_and_classes.txt`` with a line ``subject,class`` each. Without that file the classes are those of the
    paper's subjects.

    Args:
        root: a clone of that repository, its folder ``dataset``, or a folder like it.

    Raises:
        FileNotFoundError: no such folder, or no folder of photographs in it.
        ValueError: a folder whose class is not known.

    Example:
        >>> subjects = read_dreambooth_folder("dreambooth")  # doctest: +SKIP
        >>> subjects[0].name, subjects[0].noun, len(subjects[0].paths)  # doctest: +SKIP
        ('backpack', 'backpack', 6)
    """
    from .photos import find

    root = Path(root)
    root = root / "dataset" if (root / "dataset").is_dir() else root
    folders = sorted(path for path in root.iterdir() if path.is_dir()) if root.is_dir() else []
    found = {folder.name: tuple(paths) for folder in folders if (paths := find([folder])[0])}
    if not found:
        raise FileNotFoundError(
            f"a data set like DreamBooth's has a folder of photographs per subject; {root} "
            f"{'has none' if root.is_dir() else 'is not there'}. Clone github.com/google/dreambooth and pass its folder"
        )
    nouns = _classes(root / CLASSES)
    unknown = [name for name in found if name not in nouns]
    if unknown:
        raise ValueError(
            f"each subject needs its class, and {', '.join(unknown)} has none; add the line "
            f"{unknown[0]},NOUN to {root / CLASSES}"
        )
    return [PhotographedSubject(name, nouns[name], paths) for name, paths in found.items()]


def _classes(file: Path) -> dict[str, str]:
    """Which class each subject has: the lines ``subject,class`` up to the heading "Prompts"."""
    if not file.is_file():
        return {subject.name: subject.noun for subject in dreambooth_subjects()}
    lines = file.read_text("utf-8-sig").partition("\nPrompts")[0].splitlines()
    pairs = (line.split(",", 1) for line in lines if "," in line)
    return {name.strip(): noun.strip() for name, noun in pairs}


@cache
def tiny_subject_prompts() -> tuple[SubjectPrompt, ...]:
    """What DreamBooth's prompts are in the words of the tiny world: its seven places, its eight styles, and plainly.

    >>> [prompt.template for prompt in tiny_subject_prompts()[6:8]]
    ['a {token} {class} under water', 'a {token} {class} in papercut art style']
    """
    subject = "{token} {class}"
    places = [SubjectPrompt("place", world_prompt(subject, place=place)) for place in PLACES]
    styles = [SubjectPrompt("style", world_prompt(subject, style=style)) for style in STYLES if style != PLAIN]
    return (*places, *styles, SubjectPrompt("plain", world_prompt(subject)))


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
