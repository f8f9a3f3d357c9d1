"""The gallery: pictures by name, whose author and license are known, in two splits that do not meet."""

import csv

import pytest
import torch

from stylemoments import gallery

FREE = {"public domain", "CC0-1.0", "CC BY 2.0"}


def test_kinds_and_splits_divide_the_names():
    parts = [set(gallery.names(kind, split)) for kind in gallery.KINDS for split in gallery.SPLITS]
    assert sum(map(len, parts)) == len(set().union(*parts)) == len(gallery.names()) > 80
    assert all(len(part) >= 3 for part in parts)
    assert list(gallery.names()) == sorted(gallery.names())


def test_every_picture_is_there_and_free():
    for name in gallery.names():
        known = gallery.entry(name)
        assert known.license in FREE and known.author and known.source and known.title, name
        picture = gallery.load(name, size=32)
        assert picture.shape[:2] == (1, 3) and min(picture.shape[2:]) == 32, name
        assert picture.dtype == torch.float32 and 0 <= picture.min() < picture.max() <= 1, name


def test_no_file_without_a_row():
    with (gallery.FOLDER / "index.csv").open(encoding="utf-8", newline="") as file:
        listed = {row["name"] for row in csv.DictReader(file)}
    assert listed == {path.stem for path in gallery.FOLDER.glob("*.webp")}


def test_the_aspect_is_kept():
    whole, small = gallery.image("temple"), gallery.load("temple", 100)
    assert whole.size == (640, 427)
    assert small.shape == (1, 3, 100, 150)
    assert gallery.load("temple").shape == (1, 3, 427, 640)


def test_colors_are_red_green_blue():
    red, green, blue = gallery.load("scarlet-macaw", 64)[0, :, 20:50, 20:40].mean((1, 2)).tolist()
    assert red > green and red > blue


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: gallery.entry("starry-night"), "no picture is called 'starry-night'"),
        (lambda: gallery.load("temple", 0), "at least 1; got 0"),
        (lambda: gallery.names("sculpture"), "kind must be one of photograph, painting.*'sculpture'"),
        (lambda: gallery.names(split="dev"), "split must be one of train, test.*'dev'"),
    ],
)
def test_errors_say_what_to_do(call, said):
    with pytest.raises(ValueError, match=said):
        call()
