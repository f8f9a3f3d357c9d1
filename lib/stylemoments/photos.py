r"""Photographs of one subject, as DreamBooth takes them: read them all, and say what speaks against some of them.

DreamBooth (Ruiz et al. 2022, arXiv 2208.12242) learns a subject from three to five photographs. A picture that cannot
be read stops everything before it begins; what only makes the result worse, too small or twice the same, is named.

Pictures are float32 ``(1, 3, H, W)``, RGB in [0, 1].
"""

from collections.abc import Iterator, Sequence
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from . import files

USUAL = (3, 5)  # photographs of a subject in the paper
LARGEST = 2048  # short side that is kept: twice that of the largest model here
RAW = (".heic", ".heif", ".dng", ".cr2", ".cr3", ".nef", ".arw")  # what cameras write and Pillow does not read
SMALL = 16  # pixels square, at which pictures are compared
ALIKE = 0.1  # in the gallery: the same picture, made smaller and a JPEG, differs by 0.08 at most, others by 0.3 or more


class Photo(NamedTuple):
    """A photograph, and how large it was."""

    path: Path
    image: Tensor  # its short side at most LARGEST
    height: int  # in the file, upright
    width: int


def find(places: Sequence[str | Path]) -> tuple[list[Path], list[Path]]:
    """The pictures among files and folders, and the files of the folders that are none, by their suffix.

    A file that you name yourself counts as a picture. Of a folder come the files directly in it, in natural order, not
    those whose name begins with a dot.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     paths = [Path(folder, name) for name in ("10.png", "9.png", "notes.txt")]
        ...     for path in paths:
        ...         path.touch()
        ...     [[path.name for path in found] for found in find([folder])]
        [['9.png', '10.png'], ['notes.txt']]
    """
    pictures, others = [], []
    for place in map(Path, places):
        for path in _inside(place) if place.is_dir() else [place]:
            (pictures if path == place or _is_picture(path) else others).append(path)
    return pictures, others


def _inside(folder: Path) -> list[Path]:
    return sorted((path for path in folder.iterdir() if path.is_file() and path.name[0] != "."), key=files.natural)


def _is_picture(path: Path) -> bool:
    suffix = path.suffix.lower()
    Image.init()
    return suffix in RAW or Image.registered_extensions().get(suffix) in Image.OPEN


def read(paths: Sequence[str | Path]) -> list[Photo]:
    """Read all photographs, or none.

    Args:
        paths: at least one file, of any size and format that :func:`stylemoments.files.read` takes.

    Raises:
        ValueError: no path, or files that cannot be read: the message names every one of them with the reason.

    Example:
        >>> from sklearn.datasets import load_sample_images
        >>> [(photo.height, photo.width, photo.image.shape[-2:]) for photo in read(load_sample_images().filenames)][0]
        (427, 640, torch.Size([427, 640]))
    """
    if not paths:
        raise ValueError(
            f"a subject needs one photograph at least, {USUAL[0]} to {USUAL[1]} are usual; got none. Name a folder "
            "that holds some, or the files themselves"
        )
    photos, faults = [], []
    for path in map(Path, paths):
        try:
            photos.append(_photo(path))
        except (OSError, ValueError) as error:
            faults.append(f"  {error}")
    if faults:
        raise ValueError("\n".join([f"{len(faults)} of {len(paths)} photographs cannot be read:", *faults]))
    return photos


def _photo(path: Path) -> Photo:
    image = files.read(path)
    height, width = image.shape[-2:]
    return Photo(path, shrunk(image, LARGEST), height, width)


def shrunk(image: Tensor, most: int) -> Tensor:
    """The picture with a short side of at most ``most`` pixels."""
    return files.resize(image, min(most, *image.shape[-2:]))


def remarks(photos: Sequence[Photo], side: int) -> list[str]:
    """What speaks against photographs as a set: an unusual number, a short side below the model's, the same twice.

    Args:
        side: of the model's pictures, in pixels.

    Returns:
        sentences without a full stop that name the files; none where nothing is wrong.

    Example:
        >>> from sklearn.datasets import load_sample_images
        >>> remarks(read(load_sample_images().filenames * 2), 64)[0]
        'china.jpg and china.jpg show the same, which will count twice'
    """
    return [*_count(len(photos)), *_small(photos, side), *_repeated(photos)]


def _count(n: int) -> Iterator[str]:
    low, high = USUAL
    if not low <= n <= high:
        yield f"{low} to {high} photographs of a subject are usual; got {n}"


def _small(photos: Sequence[Photo], side: int) -> Iterator[str]:
    for photo in photos:
        if min(photo.height, photo.width) < side:
            yield (
                f"{photo.path.name} has {photo.width} x {photo.height} pixels, and the model draws {side} x {side}: it "
                "will be blurred"
            )


def _repeated(photos: Sequence[Photo]) -> Iterator[str]:
    small = [F.interpolate(photo.image, (SMALL, SMALL), mode="area") for photo in photos]
    for a, b in combinations(range(len(photos)), 2):
        if (small[a] - small[b]).abs().max() <= ALIKE:
            yield f"{photos[a].path.name} and {photos[b].path.name} show the same, which will count twice"
