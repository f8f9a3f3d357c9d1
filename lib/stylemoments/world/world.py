"""The tiny world itself: pictures with their prompts and everything that is true of them, by seed and number."""

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches

import numpy as np

from .drawings import HANDS, HELD_OUT_HAND, OBJECTS, SUBJECT_HANDS, SUBJECT_NOUNS, drawing, pose
from .palette import Palette
from .places import PLACES
from .prompts import NOWHERE, PLAIN, prompt
from .styles import STYLES, Picture

SPLITS = ("train", "held-out", "all")
PLACE_SHARE = 0.3  # of the samples; the rest has no place
SUBJECT_IMAGES = 5
_NAMED = [words for words in STYLES if words != PLAIN]

#: For each object the one style that the training split never shows it in; plain pictures are never held out.
HELD_OUT: dict[str, str] = {noun: _NAMED[i % len(_NAMED)] for i, noun in enumerate(OBJECTS)}


@dataclass(frozen=True)
class Sample:
    """Pictures and what is true of them; entry ``i`` of each field belongs to picture ``i``."""

    images: np.ndarray  # (n, 3, size, size) float32 in [0, 1], multiples of 1/255
    prompts: list[str]
    objects: list[str]  # of OBJECTS
    hands: list[str]  # of HANDS, or HELD_OUT_HAND
    styles: list[str]  # of STYLES
    places: list[str]  # of PLACES, or NOWHERE
    hues: np.ndarray  # (n,) float64 in [0, 1): the palette's, which no prompt names


@dataclass(frozen=True)
class Subject:
    """One thing to learn from a few pictures, as in DreamBooth: a drawing that no sample shows."""

    name: str
    noun: str  # of OBJECTS: the class a model knows it by
    images: np.ndarray  # (5, 3, size, size) float32 in [0, 1], plain style, each in another place and pose
    places: list[str]  # of PLACES, or NOWHERE


def known(kind: str, name: str, names: Sequence[str]) -> str:
    """The name itself if it is one of the names; else a ValueError that says the nearest ones."""
    if name in names:
        return name
    near = get_close_matches(str(name), names) or names
    raise ValueError(f"the tiny world has no {kind} {name!r}; choose {', '.join(map(repr, near))}")


def render(picture: Picture, style: str, palette: Palette, rng: np.random.Generator) -> np.ndarray:
    """A picture in a style, uint8 ``(H, W, 3)``."""
    rgb = STYLES[style](picture, palette, rng)
    return (np.clip(rgb, 0, 1) * np.float32(255) + np.float32(0.5)).astype(np.uint8)


def _generator(seed: int, i: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=np.array([seed, i], dtype=np.uint64)))


def _pick(names: Sequence[str], u: float) -> str:
    return names[int(u * len(names))]


def _stack(images: list[np.ndarray], size: int) -> np.ndarray:
    pixels = np.array(images, np.uint8).reshape(-1, size, size, 3)
    return np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)) / np.float32(255)


@dataclass(frozen=True)
class World:
    """An endless, numbered supply of pictures: picture ``i`` of a seed is the same on every machine, in every order.

    >>> sample = World(0).sample(2, object="cat", style="papercut art", place=NOWHERE)
    >>> sample.prompts, sample.images.shape
    (['a cat in papercut art style', 'a cat in papercut art style'], (2, 3, 64, 64))
    """

    seed: int = 0  # 0 to 2**63 - 1
    size: int = 64  # pixels on a side, at least 16; the drawings are sharp up to 128

    def __post_init__(self):
        if not 0 <= operator.index(self.seed) < 2**63:
            raise ValueError(f"a seed is a whole number from 0 to 2**63 - 1; got {self.seed}")
        if operator.index(self.size) < 16:
            raise ValueError(f"pictures need at least 16 pixels on a side; got size={self.size}")

    def sample(
        self,
        n: int,
        *,
        start: int = 0,
        object: str | None = None,
        style: str | None = None,
        place: str | None = None,
        hand: str | None = None,
        split: str = "all",
    ) -> Sample:
        """Pictures number ``start`` to ``start + n - 1``.

        What you do not fix is drawn per picture: objects evenly, then the styles allowed with it evenly, no place in
        seven of ten pictures, one of three hands. Palette, pose and strokes are drawn always.

        Args:
            n: how many.
            start: number of the first; a training run draws its batches with growing ``start``.
            object: one of ``OBJECTS``.
            style: one of ``STYLES``; ``"plain"`` for none.
            place: one of ``PLACES``, or ``"nowhere"`` for none.
            hand: one of ``HANDS``, or ``HELD_OUT_HAND`` for drawings that are never drawn otherwise.
            split: ``"train"`` leaves out the pairs of object and style in ``HELD_OUT``, ``"held-out"`` draws only
                those, ``"all"`` draws from both.

        Raises:
            ValueError: a name the world does not have (the message gives the nearest), or no pair left in the split.
        """
        if min(n, start) < 0:
            raise ValueError(f"n and start must not be negative; got n={n}, start={start}")
        pairs = _pairs(object, style, known("split", split, SPLITS))
        place = place and known("place", place, [NOWHERE, *PLACES])
        hand = hand and known("hand", hand, [*HANDS, HELD_OUT_HAND])
        rows = [self._draw(i, pairs, place, hand) for i in range(start, start + n)]
        images, objects, hands, styles, places, hues = map(list, zip(*rows, strict=True)) if rows else [[]] * 6
        prompts = [prompt(o, style=s, place=p) for o, s, p in zip(objects, styles, places, strict=True)]
        hues = np.array(hues, np.float64)
        return Sample(_stack(images, self.size), prompts, objects, hands, styles, places, hues)

    def _draw(self, i: int, pairs: dict[str, list[str]], place: str | None, hand: str | None) -> tuple:
        rng = _generator(self.seed, i)
        u = rng.random(6).tolist()
        noun = _pick([*pairs], u[0])
        style = _pick(pairs[noun], u[1])
        place = place or (_pick([*PLACES], u[2] / PLACE_SHARE) if u[2] < PLACE_SHARE else NOWHERE)
        hand = hand or _pick(HANDS, u[3])
        return self._render(noun, hand, style, place, u[4], rng), noun, hand, style, place, u[4]

    def _render(self, name: str, hand: str, style: str, place: str, hue: float, rng) -> np.ndarray:
        scale, down, right, turn = (rng.random(4) * 2 - 1).tolist()
        outdoors = place != NOWHERE
        posed = pose(
            drawing(name, hand, self.size),
            scale=(50 if outdoors else 57) / 64 + scale * 4 / 64,
            down=(3 if outdoors else 0) / 64 + down * 2 / 64,
            right=right * 2 / 64,
            turn=turn * 0.12,
        )
        palette = Palette(hue)
        scene = PLACES[place](self.size, palette, rng) if outdoors else None
        return render(Picture(posed[..., :3], posed[..., 3], scene), style, palette, rng)

    def subjects(self) -> list[Subject]:
        """Every subject, five pictures each. Their drawings occur in no sample.

        >>> fox = next(subject for subject in World(0).subjects() if subject.name == "fox")
        >>> fox.noun, fox.images.shape
        ('dog', (5, 3, 64, 64))
        """
        return [self._subject(k, name) for k, name in enumerate(SUBJECT_NOUNS)]

    def _subject(self, k: int, name: str) -> Subject:
        rng = _generator(self.seed, 2**63 + k)  # beyond the numbers of samples
        everywhere = [NOWHERE, *PLACES]
        places = [everywhere[j] for j in np.argsort(rng.random(len(everywhere)), kind="stable")[:SUBJECT_IMAGES]]
        images = [self._render(name, SUBJECT_HANDS[name], PLAIN, place, rng.random(), rng) for place in places]
        return Subject(name, SUBJECT_NOUNS[name], _stack(images, self.size), places)


def _pairs(object: str | None, style: str | None, split: str) -> dict[str, list[str]]:
    """For each object that may be drawn, the styles it may be drawn in."""
    objects = OBJECTS if object is None else [known("object", object, OBJECTS)]
    styles = [*STYLES] if style is None else [known("style", style, [*STYLES])]
    pairs = {o: [s for s in styles if split == "all" or (HELD_OUT[o] == s) == (split == "held-out")] for o in objects}
    pairs = {o: allowed for o, allowed in pairs.items() if allowed}
    if not pairs:
        held = f"{object or 'an object'} in {style or 'any style'}"
        raise ValueError(
            f"the split {split!r} has no picture of {held}; pass split='all', or leave object or style free"
        )
    return pairs
