"""Every kind of file a user may bring, against values worked out by hand; and that no file is lost or half written."""

import inspect
import os
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from torch.testing import assert_close

from stylemoments import files

WHITE = (1.0, 1.0, 1.0)
RED, GREEN, BLUE = torch.eye(3).reshape(3, 1, 3, 1, 1).unbind()
STEP = 1 / 255


def colors(picture: torch.Tensor) -> list[tuple[float, ...]]:
    """The pixels in reading order, to three digits."""
    return [tuple(round(v, 3) for v in pixel) for pixel in picture[0].flatten(1).T.tolist()]


def noise(*shape, seed=0) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


# ---------------------------------------------------------------------------------------- reading


def _saved(path, array, mode=None, **options):
    Image.fromarray(np.array(array, np.uint8), **({"mode": mode} if mode else {})).save(path, **options)
    return path


def _palette(path):
    image = Image.new("P", (3, 1))
    image.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0])
    image.putdata([0, 1, 2])
    image.save(path, transparency=2)
    return path


KINDS = {
    "gray": (lambda path: _saved(path, [[0, 51, 255]]), [(0, 0, 0), (0.2, 0.2, 0.2), WHITE]),
    "gray, transparent": (lambda path: _saved(path, [[[0, 255], [0, 0]]]), [(0, 0, 0), WHITE]),
    "color": (lambda path: _saved(path, [[[255, 0, 51]]]), [(1, 0, 0.2)]),
    "color, half transparent": (lambda path: _saved(path, [[[255, 0, 0, 51]]]), [(1, 0.8, 0.8)]),
    "color, one transparent": (
        lambda path: _saved(path, [[[255, 0, 0], [0, 255, 0]]], transparency=(0, 255, 0)), [(1, 0, 0), WHITE]),
    "palette, one transparent": (_palette, [(0, 0, 0), (1, 0, 0), WHITE]),
    "black and white": (lambda path: Image.fromarray(np.array([[False, True]])).save(path), [(0, 0, 0), WHITE]),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_png_becomes_rgb(kind, tmp_path):
    make, expected = KINDS[kind]
    make(tmp_path / "picture.png")
    picture = files.read(tmp_path / "picture.png")
    assert picture.dtype == torch.float32 and picture.shape == (1, 3, 1, len(expected))
    assert picture.is_contiguous()
    assert colors(picture) == [tuple(map(float, pixel)) for pixel in expected]


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_gray_of_16_bits_is_scaled_and_not_clipped(suffix, tmp_path):
    path = tmp_path / f"deep{suffix}"
    Image.fromarray(np.array([[0, 13107, 65535]], np.uint16)).save(path)
    assert Image.open(path).mode.startswith("I;16")
    assert colors(files.read(path)) == [(0, 0, 0), (0.2, 0.2, 0.2), WHITE]
    assert_close(files.read_mask(path).flatten(), torch.tensor([0, 0.2, 1]))


def test_gray_of_more_bits(tmp_path):
    Image.fromarray(np.array([[0, 65535]], np.int32)).save(tmp_path / "long.tif")
    Image.fromarray(np.array([[0.0, 0.5]], np.float32)).save(tmp_path / "float.tif")
    assert colors(files.read(tmp_path / "long.tif")) == [(0, 0, 0), WHITE]
    assert colors(files.read(tmp_path / "float.tif")) == [(0, 0, 0), (0.5, 0.5, 0.5)]
    Image.fromarray(np.array([[0, 70000]], np.int32)).save(tmp_path / "long.tif")
    with pytest.raises(ValueError, match=r"long\.tif cannot be read .*0 to 65535; got 0 to 70000"):
        files.read(tmp_path / "long.tif")


@pytest.mark.parametrize("suffix", [".jpg", ".tif"])
def test_cmyk(suffix, tmp_path):
    """Cyan ink takes red away; a JPEG stores the inks inverted, as Adobe does, and Pillow turns them back."""
    path = tmp_path / f"inks{suffix}"
    Image.new("CMYK", (16, 16), (255, 0, 0, 0)).save(path, **({"quality": 100} if suffix == ".jpg" else {}))
    picture = files.read(path)
    assert_close(picture, torch.tensor([0.0, 1, 1]).reshape(1, 3, 1, 1).expand(1, 3, 16, 16), atol=0.02, rtol=0)


@pytest.mark.parametrize("mode", ["RGB", "L", "I;16"])
def test_exif_orientation_is_applied(mode, tmp_path):
    """Orientation 6: the first row of the file is the right column of the picture."""
    top = 65535 if mode == "I;16" else 255
    image = Image.fromarray(np.array([[0, top], [top, top], [top, top]], np.uint16 if top > 255 else np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    (image if mode == "I;16" else image.convert(mode)).save(tmp_path / "phone.png", exif=exif)
    picture = files.read(tmp_path / "phone.png")
    assert picture.shape == (1, 3, 2, 3)
    assert picture[0, 0].tolist() == [[1, 1, 0], [1, 1, 1]]


def test_a_mask_is_white_where_it_holds(tmp_path):
    _saved(tmp_path / "mask.png", [[[255, 255, 255, 255], [0, 0, 0, 255], [255, 255, 255, 0], [255, 0, 0, 255]]])
    mask = files.read_mask(tmp_path / "mask.png")
    assert mask.shape == (1, 1, 1, 4)
    assert_close(mask.flatten(), torch.tensor([1, 0, 0, 0.299]))


def test_large_pictures_are_read_and_malicious_ones_refused(tmp_path, monkeypatch):
    """Above its limit Pillow warns, and the tests make errors of warnings; above twice the limit it refuses."""
    _saved(tmp_path / "large.png", np.zeros((30, 30)))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 600)
    assert files.read(tmp_path / "large.png").shape == (1, 3, 30, 30)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 300)
    with pytest.raises(ValueError, match=r"(?s)large\.png.*MAX_IMAGE_PIXELS = None"):
        files.read(tmp_path / "large.png")


@pytest.mark.parametrize("read", [files.read, files.read_mask, files.read_frames])
class TestFilesThatCannotBeRead:
    def test_missing(self, read, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"no file .*cat\.png; check"):
            read(tmp_path / "cat.png")

    def test_no_picture(self, read, tmp_path):
        (tmp_path / "notes.png").write_text("not a picture")
        with pytest.raises(ValueError, match=r"notes\.png is not a picture.*convert"):
            read(tmp_path / "notes.png")

    @pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp"])
    def test_cut_off(self, read, suffix, tmp_path):
        path = tmp_path / f"half{suffix}"
        files.write(path, noise(3, 64, 64))
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        with pytest.raises(ValueError, match="cannot be read|not a picture"):
            list(read(path))


def test_a_folder_is_no_picture(tmp_path):
    with pytest.raises(IsADirectoryError, match="is a folder"):
        files.read(tmp_path)


# ---------------------------------------------------------------------------------------- size


def test_resize_keeps_the_aspect():
    assert files.resize(torch.zeros(1, 3, 60, 91), 20).shape == (1, 3, 20, 30)
    assert files.resize(torch.zeros(1, 3, 91, 60), 120).shape == (1, 3, 182, 120)
    picture = noise(1, 3, 20, 30)
    assert files.resize(picture, 20) is picture


def test_resize_stays_in_range_and_keeps_flat_pictures_flat():
    edge = torch.zeros(1, 3, 8, 8)
    edge[..., 4:] = 1
    larger = files.resize(edge, 64)
    assert larger.min() == 0 and larger.max() == 1, "bicubic overshoots at edges"
    assert_close(files.resize(torch.full((1, 3, 50, 70), 0.3), 16), torch.full((1, 3, 16, 22), 0.3))


def test_resize_smooths_before_it_drops_pixels():
    checkerboard = (torch.arange(64)[:, None] + torch.arange(64)).remainder(2).float().expand(1, 3, 64, 64)
    assert_close(files.resize(checkerboard, 8), torch.full((1, 3, 8, 8), 0.5), atol=0.02, rtol=0)


def test_reading_at_a_size(tmp_path):
    files.write(tmp_path / "wide.png", noise(3, 30, 60))
    assert files.read(tmp_path / "wide.png", size=10).shape == (1, 3, 10, 20)
    with pytest.raises(ValueError, match="at least 1 pixel; got 0"):
        files.read(tmp_path / "wide.png", size=0)


# ---------------------------------------------------------------------------------------- writing


def test_png_comes_back_to_half_a_step(tmp_path):
    picture = noise(1, 3, 37, 53)
    files.write(tmp_path / "noise.png", picture)
    assert_close(files.read(tmp_path / "noise.png"), picture, atol=STEP / 2 + 1e-6, rtol=0)


@pytest.mark.parametrize("name, kind", [("a.jpg", "JPEG"), ("a.JPEG", "JPEG"), ("a.webp", "WEBP"), ("a.tif", "TIFF")])
def test_the_suffix_chooses_the_format(name, kind, tmp_path):
    smooth = torch.linspace(0, 1, 48).expand(1, 3, 40, 48)
    files.write(tmp_path / name, smooth)
    with Image.open(tmp_path / name) as image:
        assert image.format == kind
    assert_close(files.read(tmp_path / name), smooth, atol=0.02, rtol=0)


def test_one_channel_is_gray(tmp_path):
    files.write(tmp_path / "mask.png", torch.tensor([0, 0.2, 1]).reshape(1, 1, 1, 3))
    with Image.open(tmp_path / "mask.png") as image:
        assert image.mode == "L"
    assert_close(files.read_mask(tmp_path / "mask.png").flatten(), torch.tensor([0, 0.2, 1]))


def test_nothing_is_overwritten_unless_forced(tmp_path):
    path = tmp_path / "picture.png"
    files.write(path, RED)
    with pytest.raises(FileExistsError, match=r"picture\.png exists"):
        files.write(path, GREEN)
    assert colors(files.read(path)) == [(1, 0, 0)]
    files.write(path, GREEN, force=True)
    assert colors(files.read(path)) == [(0, 1, 0)]


def test_a_failed_write_leaves_what_was_there_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "picture.png"
    files.write(path, RED)

    def save(image, target, **options):
        target.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(Image.Image, "save", save)
    with pytest.raises(OSError, match="disk full"):
        files.write(path, GREEN, force=True)
    assert [file.name for file in tmp_path.iterdir()] == ["picture.png"]
    assert colors(files.read(path)) == [(1, 0, 0)]


def test_a_written_file_has_the_permissions_of_any_other(tmp_path):
    files.write(tmp_path / "picture.png", RED)
    (tmp_path / "other").touch()
    assert (tmp_path / "picture.png").stat().st_mode == (tmp_path / "other").stat().st_mode


WRONG_PICTURES = [
    (torch.zeros(2, 3, 4, 4), r"\(1, 3, H, W\).*\(2, 3, 4, 4\)"),
    (torch.zeros(4, 4, 4), r"\(4, 4, 4\)"),
    (torch.zeros(3, 4, 4, dtype=torch.uint8), "uint8"),
    (torch.full((3, 4, 4), 255.0), "got 255 to 255"),
    (torch.full((3, 4, 4), torch.nan), "got nan"),
]


@pytest.mark.parametrize("picture, says", WRONG_PICTURES, ids=range(len(WRONG_PICTURES)))
def test_no_picture_is_not_written(picture, says, tmp_path):
    with pytest.raises(ValueError, match=says):
        files.write(tmp_path / "picture.png", picture)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["picture", "picture.txt", "picture.mp4"])
def test_an_unknown_suffix_is_refused(name, tmp_path):
    with pytest.raises(ValueError, match=r"must end in \.png"):
        files.write(tmp_path / name, RED)


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="out does not exist; create it"):
        files.write(tmp_path / "out" / "picture.png", RED)


# ---------------------------------------------------------------------------------------- frames


def moving(n=5, height=24, width=32) -> list[torch.Tensor]:
    """A light square that moves over a dark ground, one step per frame, red first."""
    clip = []
    for i in range(n):
        frame = torch.full((1, 3, height, width), 0.2)
        frame[..., 8:16, 4 * i : 4 * i + 8] = RED[0] if i == 0 else 0.8
        clip.append(frame)
    return clip


EXACT = {"clip.png": STEP / 2, "clip.apng": STEP / 2, "folder": STEP / 2}
LOSSY = dict.fromkeys(["clip.gif", "clip.webp", "clip.mp4", "clip.mov", "clip.mkv", "clip.webm"], 0.01)


@pytest.mark.parametrize("name, mean", [*EXACT.items(), *LOSSY.items()])
def test_frames_come_back(name, mean, tmp_path):
    """Lossy formats smear the edges of the square, so the mean difference counts."""
    files.write_frames(tmp_path / name, iter(moving()), fps=10)
    clip = files.read_frames(tmp_path / name)
    assert clip.fps == (files.FPS if name == "folder" else 10)
    frames = list(clip)
    assert len(frames) == 5
    assert clip.count in (5, None)
    for frame, expected in zip(frames, moving(), strict=True):
        assert frame.shape == (1, 3, 24, 32) and frame.dtype == torch.float32
        assert (frame - expected).abs().mean() < mean
    inside = frames[0][0, :, 10:14, 2:6].mean((1, 2))
    assert_close(inside, torch.tensor([1.0, 0, 0]), atol=0.1, rtol=0, msg="a red square must not come back blue")


@pytest.mark.parametrize("suffix", [".mp4", ".webm", ".gif", ".webp", ".png"])
@pytest.mark.parametrize("color", [RED, GREEN, BLUE], ids=["red", "green", "blue"])
def test_pure_colors_stay_what_they_are(suffix, color, tmp_path):
    files.write_frames(tmp_path / f"clip{suffix}", [color.expand(1, 3, 32, 32)] * 2)
    for frame in files.read_frames(tmp_path / f"clip{suffix}"):
        assert_close(frame, color.expand(1, 3, 32, 32), atol=0.03, rtol=0)


@pytest.mark.parametrize("fps", [24, 25, 29.97, 30, 12.5])
def test_a_video_keeps_its_speed(fps, tmp_path):
    files.write_frames(tmp_path / "clip.mp4", moving(3), fps=fps)
    assert files.read_frames(tmp_path / "clip.mp4").fps == pytest.approx(fps, rel=1e-4)


def test_frames_that_stand_still_are_not_lost(tmp_path):
    """Pillow writes equal frames of an animation once, with a longer time."""
    clip = [RED.expand(1, 3, 8, 8)] * 3 + [BLUE.expand(1, 3, 8, 8)]
    for name in ("clip.gif", "clip.png"):
        files.write_frames(tmp_path / name, clip, fps=20)
        back = files.read_frames(tmp_path / name)
        assert back.fps == 20 and back.count == 4
        assert_close(torch.cat(list(back)), torch.cat(clip))


def test_odd_sides_of_a_video_are_padded(tmp_path):
    files.write_frames(tmp_path / "clip.mp4", [RED.expand(1, 3, 37, 53)] * 2)
    assert next(iter(files.read_frames(tmp_path / "clip.mp4"))).shape == (1, 3, 38, 54)


def test_a_phones_video_is_turned_upright(tmp_path):
    """Held upright, a phone writes rows as columns and, into the header, the matrix that turns them back."""

    def matrix(*rows):
        return np.array([*rows, 0, 0, 1 << 30], ">i4").tobytes()

    frame = torch.full((1, 3, 16, 32), 0.1)
    frame[..., :8, :8] = 0.9  # top left, to be top right after a quarter turn clockwise
    path = tmp_path / "phone.mp4"
    files.write_frames(path, [frame] * 2)
    one = 1 << 16
    before, track = path.read_bytes().split(b"tkhd")
    path.write_bytes(before + b"tkhd" + track.replace(matrix(one, 0, 0, 0, one, 0), matrix(0, one, 0, -one, 0, 0)))
    upright = next(iter(files.read_frames(path)))
    assert_close(upright, frame.mT.flip(-1), atol=0.1, rtol=0)


def test_a_folder_is_read_in_natural_order(tmp_path):
    for number in (10, 2, 1):
        files.write(tmp_path / f"frame{number}.png", torch.full((3, 4, 4), number / 255))
    (tmp_path / "notes.txt").write_text("no picture")
    clip = files.read_frames(tmp_path)
    assert clip.count == 3
    assert [round(frame.mean().item() * 255) for frame in clip] == [1, 2, 10]


def test_frames_at_a_size(tmp_path):
    files.write_frames(tmp_path / "clip.gif", moving())
    assert {frame.shape for frame in files.read_frames(tmp_path / "clip.gif", size=12)} == {(1, 3, 12, 16)}


def test_a_single_picture_is_a_clip_of_one_frame(tmp_path):
    files.write(tmp_path / "one.jpg", noise(3, 16, 16))
    clip = files.read_frames(tmp_path / "one.jpg")
    assert (clip.count, clip.fps, len(list(clip))) == (1, files.FPS, 1)


def test_frames_are_read_and_written_one_at_a_time(tmp_path):
    files.write_frames(tmp_path / "clip.mp4", moving())
    first = next(iter(files.read_frames(tmp_path / "clip.mp4")))
    assert first.shape == (1, 3, 24, 32)

    def endless():
        yield from moving(2)
        raise RuntimeError("stopped by the user")

    for name in ("new.mp4", "new.gif", "new"):
        with pytest.raises(RuntimeError, match="stopped by the user"):
            files.write_frames(tmp_path / name, endless())
    assert [file.name for file in tmp_path.iterdir()] == ["clip.mp4"], "half a clip was left"


def test_a_clip_is_not_overwritten_unless_forced(tmp_path):
    for name in ("clip.mp4", "clip.gif"):
        files.write_frames(tmp_path / name, moving(2))
        with pytest.raises(FileExistsError, match="exists"):
            files.write_frames(tmp_path / name, moving(3))
        files.write_frames(tmp_path / name, moving(3), force=True)
        assert len(list(files.read_frames(tmp_path / name))) == 3


def test_a_folder_with_files_is_never_replaced(tmp_path):
    files.write_frames(tmp_path / "frames", moving(2))
    for force in (False, True):
        with pytest.raises(FileExistsError, match="never replaced"):
            files.write_frames(tmp_path / "frames", moving(3), force=force)
    assert len(os.listdir(tmp_path / "frames")) == 2


def test_an_empty_folder_may_be_filled(tmp_path):
    (tmp_path / "frames").mkdir()
    files.write_frames(tmp_path / "frames", moving(2))
    assert sorted(os.listdir(tmp_path / "frames")) == ["frame-00001.png", "frame-00002.png"]


WRONG_CLIPS = [
    ("clip.mp4", [], {}, "no frames"),
    ("clip.gif", [], {}, "no frames"),
    ("clip.gif", [torch.zeros(3, 4, 4), torch.zeros(3, 4, 5)], {}, "frame 2 has"),
    ("clip.mp4", moving(2), {"fps": 0}, "positive; got 0"),
    ("clip.mp4", moving(2), {"fps": float("inf")}, "positive; got inf"),
    ("clip.jpg", moving(2), {}, "a video .*an animation .*a folder"),
]


@pytest.mark.parametrize("name, frames, options, says", WRONG_CLIPS, ids=range(len(WRONG_CLIPS)))
def test_no_clip_is_not_written(name, frames, options, says, tmp_path):
    with pytest.raises(ValueError, match=says):
        files.write_frames(tmp_path / name, frames, **options)
    assert not any(tmp_path.iterdir())


def test_videos_that_cannot_be_read(tmp_path):
    (tmp_path / "notes.mp4").write_text("not a video")
    with pytest.raises(ValueError, match=r"notes\.mp4 is not a video"):
        files.read_frames(tmp_path / "notes.mp4")
    with pytest.raises(FileNotFoundError, match=r"no file .*gone\.mp4"):
        files.read_frames(tmp_path / "gone.mp4")
    with pytest.raises(FileNotFoundError, match="holds no pictures"):
        (tmp_path / "empty").mkdir()
        files.read_frames(tmp_path / "empty")


def test_without_pyav_the_error_says_what_to_install(tmp_path, monkeypatch):
    files.write_frames(tmp_path / "clip.mp4", moving(2))
    monkeypatch.setitem(sys.modules, "av", None)
    for call in (files.read_frames, lambda path: files.write_frames(path, moving(2), force=True)):
        with pytest.raises(ModuleNotFoundError, match=r'pip install "stylemoments\[video\]"'):
            call(tmp_path / "clip.mp4")


def test_defaults_have_the_types_they_should():
    """A stray comma once made a famous default a tuple."""
    expected = {"force": bool, "fps": float, "size": type(None)}
    for function in (files.read, files.write, files.read_frames, files.write_frames, files.whole):
        for name, parameter in inspect.signature(function).parameters.items():
            if name in expected and parameter.default is not parameter.empty:
                assert type(parameter.default) is expected[name], f"{function.__name__}({name})"
