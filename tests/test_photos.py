"""Photographs of a subject: all of them or none, and what speaks against each by name."""

import pytest
import torch
from PIL import Image

from stylemoments import files, photos


def noise(*shape, seed=0) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def photo(name: str, image: torch.Tensor) -> photos.Photo:
    return photos.Photo(photos.Path(name), image, *image.shape[-2:])


def test_finds_pictures_in_natural_order_and_names_the_rest(tmp_path):
    for name in ("p10.JPG", "p9.jpeg", "p1.webp", "phone.HEIC", "movie.mp4", "paper.pdf", "notes.txt", ".hidden.png"):
        (tmp_path / name).touch()
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "deep.png").touch()
    pictures, others = photos.find([tmp_path])
    assert [path.name for path in pictures] == ["p1.webp", "p9.jpeg", "p10.JPG", "phone.HEIC"]
    assert [path.name for path in others] == ["movie.mp4", "notes.txt", "paper.pdf"]


def test_a_file_that_is_named_counts_as_a_picture(tmp_path):
    named = [tmp_path / "notes.txt", tmp_path / "not-there.png"]
    assert photos.find(named) == (named, [])


def test_reads_sizes_as_they_are_and_keeps_no_more_than_it_needs(tmp_path, monkeypatch):
    monkeypatch.setattr(photos, "LARGEST", 20)
    files.write(tmp_path / "large.png", noise(3, 40, 60))
    files.write(tmp_path / "small.png", noise(3, 10, 12))
    large, small = photos.read([tmp_path / "large.png", tmp_path / "small.png"])
    assert (large.height, large.width, tuple(large.image.shape)) == (40, 60, (1, 3, 20, 30))
    assert (small.height, small.width, tuple(small.image.shape)) == (10, 12, (1, 3, 10, 12))


def test_a_photograph_stands_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # lying on its side
    Image.new("RGB", (30, 20)).save(tmp_path / "side.jpg", exif=exif)
    (upright,) = photos.read([tmp_path / "side.jpg"])
    assert (upright.height, upright.width) == (30, 20)


def test_names_every_file_that_cannot_be_read(tmp_path):
    files.write(tmp_path / "good.png", noise(3, 8, 8))
    (tmp_path / "cut.png").write_bytes((tmp_path / "good.png").read_bytes()[:60])
    (tmp_path / "text.jpg").write_text("no picture", "utf-8")
    with pytest.raises(ValueError, match=r"^3 of 4 photographs cannot be read:\n") as error:
        photos.read([tmp_path / name for name in ("good.png", "cut.png", "text.jpg", "missing.png")])
    assert [name in str(error.value) for name in ("cut.png", "text.jpg", "missing.png", "good.png")] == [True] * 3 + [
        False
    ]


def test_no_photograph_is_an_error():
    with pytest.raises(ValueError, match="needs one photograph at least, 3 to 5 are usual; got none"):
        photos.read([])


@pytest.mark.parametrize(("n", "unusual"), [(1, True), (2, True), (3, False), (5, False), (6, True)])
def test_says_how_many_are_usual(n, unusual):
    found = photos.remarks([photo(f"{i}.png", noise(1, 3, 32, 32, seed=i)) for i in range(n)], side=32)
    assert found == ([f"3 to 5 photographs of a subject are usual; got {n}"] if unusual else [])


def test_names_what_is_smaller_than_the_model():
    images = [photo(f"{i}.png", noise(1, 3, *size, seed=i)) for i, size in enumerate([(64, 64), (63, 90), (90, 63)])]
    found = photos.remarks(images, side=64)
    assert [line.split(",")[0] for line in found] == ["1.png has 90 x 63 pixels", "2.png has 63 x 90 pixels"]
    assert photos.remarks(images, side=63) == []


def test_names_pairs_that_show_the_same(tmp_path):
    smooth = files.resize(noise(1, 3, 12, 16), 120)  # like a photograph, neighbors are alike
    files.write(tmp_path / "a.png", smooth)
    files.write(tmp_path / "b.jpg", files.resize(smooth, 60))
    files.write(tmp_path / "c.png", smooth.flip(-1))
    found = photos.remarks(photos.read([tmp_path / name for name in ("a.png", "b.jpg", "c.png")]), side=32)
    assert found == ["a.png and b.jpg show the same, which will count twice"]
