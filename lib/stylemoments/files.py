r"""Pictures, masks and videos: from files to tensors and back.

Inside the package a picture is a float tensor ``(1, 3, H, W)``, RGB in [0, 1]. This room brings every other kind of
picture there: gray, transparent, indexed, CMYK, 16 bits deep, lying on its side by its EXIF orientation. A file is
written beside its place and then renamed, so that it is whole or not there, and no file is replaced unless you say so.

Color profiles are ignored: values are taken as sRGB. Of the three colors Pillow reads 8 bits; only gray keeps 16.
"""

import os
import re
import struct
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain
from pathlib import Path
from uuid import uuid4

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps, ImageSequence, UnidentifiedImageError
from torch import Tensor

VIDEOS = (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi")
ANIMATIONS = (".gif", ".webp", ".png", ".apng")
FPS = 25.0  # of frames that do not say, and of a folder
BLACK, WHITE = 0.0, 1.0

_OPTIONS = {
    "JPEG": {"quality": 95, "subsampling": 0},  # every pixel has a color of its own
    "WEBP": {"quality": 95},
}
_FAULTS = (OSError, SyntaxError, ValueError, EOFError, struct.error)  # what Pillow raises on damaged files


# ---------------------------------------------------------------------------------------- pictures


def read(path: str | Path, *, size: int | None = None) -> Tensor:
    """A picture from a file, upright, in color.

    Gray becomes three equal channels, 16-bit gray is divided by 65535, CMYK and palettes become RGB, transparent
    parts show white, and the EXIF orientation is applied. Of an animation the first frame is read.

    Args:
        path: any format that Pillow reads.
        size: length of the short side, see :func:`resize`; None keeps all pixels.

    Returns:
        float32 ``(1, 3, H, W)``, RGB in [0, 1].

    Raises:
        FileNotFoundError, IsADirectoryError: no file there.
        ValueError: no picture, a damaged one, or more pixels than Pillow's limit against malicious files.

    Example:
        >>> from sklearn.datasets import load_sample_images
        >>> read(load_sample_images().filenames[0], size=64).shape
        torch.Size([1, 3, 64, 96])
    """
    with _opened(path) as image:
        picture = _tensor(_upright(image))
    return picture if size is None else resize(picture, size)


def read_mask(path: str | Path) -> Tensor:
    """A mask from a picture: white is 1, black and transparent are 0, gray lies between.

    Returns:
        float32 ``(1, 1, H, W)`` in [0, 1]: the luma of a colored picture.

    Raises:
        FileNotFoundError, IsADirectoryError, ValueError: as :func:`read`.

    Example:
        >>> from sklearn.datasets import load_sample_images
        >>> read_mask(load_sample_images().filenames[0]).shape
        torch.Size([1, 1, 427, 640])
    """
    with _opened(path) as image:
        red, green, blue = _tensor(_upright(image), ground=BLACK).split(1, dim=1)
    return (0.299 * red + 0.587 * green + 0.114 * blue).clamp(0, 1)  # the weights of Pillow's mode L


def write(path: str | Path, image: Tensor, *, force: bool = False) -> None:
    """Write a picture; the suffix of the name chooses the format.

    Args:
        path: its folder must exist. JPEG and WebP are written at quality 95.
        image: float ``(1, 3, H, W)`` or ``(3, H, W)`` in [0, 1]; one channel instead of three is gray.
        force: replace a file that is already there.

    Raises:
        FileExistsError: there is such a file, and ``force`` is off.
        FileNotFoundError: there is no such folder.
        ValueError: another shape, values outside [0, 1], or a suffix of no known format.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     write(f"{folder}/red.png", torch.tensor([1.0, 0, 0]).reshape(3, 1, 1))
        ...     read(f"{folder}/red.png").flatten().tolist()
        [1.0, 0.0, 0.0]
    """
    picture = Image.fromarray(_bytes(image))
    kind = _format(Path(path))
    with whole(path, force=force) as part:
        picture.save(part, format=kind, **_OPTIONS.get(kind, {}))


def resize(image: Tensor, size: int) -> Tensor:
    """The picture with a short side of ``size`` pixels, its aspect kept: bicubic, antialiased, in [0, 1].

    >>> resize(torch.zeros(1, 3, 40, 60), 20).shape
    torch.Size([1, 3, 20, 30])
    """
    if size < 1:
        raise ValueError(f"the short side must be at least 1 pixel; got {size}")
    height, width = image.shape[-2:]
    short = min(height, width)
    if short == size:
        return image
    sides = [round(side * size / short) for side in (height, width)]
    return F.interpolate(image, sides, mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)


@contextmanager
def whole(path: str | Path, *, force: bool = False) -> Iterator[Path]:
    """A name beside ``path`` to write to; on success it is renamed to ``path``, after an error it is removed.

    Args:
        path: the file, or folder of frames, to be.
        force: replace a file that is already there. A folder that holds anything is never replaced.

    Raises:
        FileExistsError, FileNotFoundError: see :func:`write`; before anything is written.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     with whole(f"{folder}/notes.txt") as part:
        ...         characters = part.write_text("done")
        ...     Path(folder, "notes.txt").read_text()
        'done'
    """
    path = Path(path)
    check_target(path, force=force)
    part = path.with_name(f".{path.stem}-{uuid4().hex[:8]}{path.suffix}")
    try:
        yield part
        os.replace(part, path)
    finally:
        if part.is_dir():
            for file in part.iterdir():
                file.unlink()
            part.rmdir()
        part.unlink(missing_ok=True)


def check_target(path: str | Path, *, force: bool = False) -> None:
    """Raise what :func:`whole` would raise, before any work is done for the file; see there."""
    path = Path(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(f"the folder {path.parent} does not exist; create it first")
    if path.is_dir() and any(path.iterdir()):
        raise FileExistsError(f"{path} is a folder with files in it, which is never replaced; choose another name")
    if path.is_file() and not force:
        raise FileExistsError(f"{path} exists and is not replaced unless you force it; or choose another name")


def _exists(path: str | Path) -> Path:
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder; name a file in it")
    if not path.exists():
        raise FileNotFoundError(f"there is no file {path}; check the name and the folder you are in")
    return path


@contextmanager
def _opened(path: str | Path) -> Iterator[Image.Image]:
    """Pillow's image, not yet decoded; what goes wrong inside is told in our words."""
    path = _exists(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # large is welcome: see adain's tiles
            with Image.open(path) as image:
                yield image
    except Image.DecompressionBombError as error:
        raise ValueError(
            f"{path} is larger than Pillow reads without being told to: {error}. If you trust the file, set "
            "PIL.Image.MAX_IMAGE_PIXELS = None first"
        ) from error
    except UnidentifiedImageError as error:
        raise ValueError(
            f"{path} is not a picture that Pillow reads, such as PNG, JPEG or WebP; convert it to one of those"
        ) from error
    except _FAULTS as error:
        if isinstance(error, PermissionError):
            raise
        raise ValueError(f"{path} cannot be read ({error}); get it again, or save it anew as PNG") from error


def _upright(image: Image.Image) -> Image.Image:
    return ImageOps.exif_transpose(image)


def _tensor(image: Image.Image, ground: float = WHITE) -> Tensor:
    """Pillow's image as ``(1, 3, H, W)``; where it is transparent, the ground shows."""
    return torch.from_numpy(_rgb(image, ground)).permute(2, 0, 1)[None].contiguous()


def _rgb(image: Image.Image, ground: float) -> np.ndarray:
    """Values ``(H, W, 3)`` in [0, 1]."""
    if image.mode.startswith(("I", "F")):
        return np.repeat(_deep_gray(image)[..., None], 3, axis=-1)
    if "transparency" in image.info or {"A", "a"} & set(image.getbands()):
        rgba = np.asarray(image.convert("RGBA"), np.float32) / 255
        return rgba[..., :3] * rgba[..., 3:] + ground * (1 - rgba[..., 3:])
    return np.asarray(image.convert("RGB"), np.float32) / 255


def _deep_gray(image: Image.Image) -> np.ndarray:
    """More than 8 bits: Pillow's own conversion would clip them all to white."""
    gray = np.asarray(image).astype(np.float32)
    top = 1 if image.mode == "F" else 65535
    if not (gray.min() >= 0 and gray.max() <= top):
        raise ValueError(f"gray values of mode {image.mode} lie in 0 to {top}; got {gray.min():g} to {gray.max():g}")
    return gray / top


def _bytes(image: Tensor) -> np.ndarray:
    """A picture as uint8 ``(H, W, 3)`` or ``(H, W)``."""
    pixels = image.detach()[0] if image.ndim == 4 and len(image) == 1 else image.detach()
    if pixels.ndim != 3 or len(pixels) not in (1, 3) or not pixels.is_floating_point():
        raise ValueError(f"a picture is float (1, 3, H, W) or (3, H, W); got {image.dtype} {tuple(image.shape)}")
    low, high = pixels.min().item(), pixels.max().item()
    if not (low >= -1e-3 and high <= 1 + 1e-3):  # also false for NaN
        raise ValueError(f"pixels lie in [0, 1]; got {low:.4g} to {high:.4g}. Clamp them if you mean to clip")
    pixels = (pixels.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy()
    return pixels[..., 0] if pixels.shape[-1] == 1 else pixels


def _format(path: Path) -> str:
    """Pillow's name of the format that a suffix stands for."""
    kind = Image.registered_extensions().get(path.suffix.lower())
    if kind not in Image.SAVE:
        raise ValueError(f"the name must end in .png, .jpg, .webp or another picture's suffix; got {path.name!r}")
    return kind


# ---------------------------------------------------------------------------------------- frames


@dataclass(frozen=True)
class Clip:
    """Frames, to be iterated over once; each is float32 ``(1, 3, H, W)`` in [0, 1]."""

    frames: Iterator[Tensor]
    fps: float  # frames per second
    count: int | None  # how many, where that is known before they are read

    def __iter__(self) -> Iterator[Tensor]:
        return iter(self.frames)


def read_frames(path: str | Path, *, size: int | None = None) -> Clip:
    """The frames of a video, an animation, or a folder of pictures, one at a time.

    Videos are read with PyAV (``pip install "stylemoments[video]"``), turned upright, without their sound. Animations
    are GIF, WebP and PNG; a frame that is shown k times as long as the shortest comes k times. The pictures of a
    folder come in natural order, ``frame-2`` before ``frame-10``, at 25 frames per second.

    Args:
        path: a file, or a folder.
        size: length of the short side; None keeps all pixels.

    Raises:
        FileNotFoundError: nothing there, or no picture in the folder.
        ModuleNotFoundError: a video, but no PyAV.
        ValueError: a file that cannot be read.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     write_frames(f"{folder}/gray.png", [torch.full((3, 8, 8), i / 4) for i in range(4)], fps=10)
        ...     clip = read_frames(f"{folder}/gray.png")
        ...     clip.fps, [round(frame.mean().item(), 1) for frame in clip]
        (10.0, [0.0, 0.3, 0.5, 0.7])
    """
    path = Path(path)
    if path.is_dir():
        clip = _read_folder(path)
    elif path.suffix.lower() in VIDEOS:
        clip = _read_video(_exists(path))
    else:
        clip = _read_animation(path)
    return clip if size is None else Clip((resize(frame, size) for frame in clip), clip.fps, clip.count)


def write_frames(path: str | Path, frames: Iterable[Tensor], *, fps: float = FPS, force: bool = False) -> None:
    """Write frames as a video, an animation, or a folder of pictures; the suffix chooses.

    A suffix of ``VIDEOS`` needs PyAV: H.264 (VP9 for WebM), BT.709 colors; players want even sides, so an odd side is
    repeated once. ``.gif``, ``.webp``, ``.png`` and ``.apng`` make an animation, whose frames last a whole number of
    milliseconds (of hundredths of a second in a GIF). A name without suffix makes a folder of PNG files.

    Args:
        path: nothing appears under this name until all frames are written.
        frames: each float ``(1, 3, H, W)`` or ``(3, H, W)`` in [0, 1], all of one size; taken one at a time.
        fps: frames per second; a folder does not keep it.
        force: replace a file that is already there.

    Raises:
        FileExistsError, FileNotFoundError: see :func:`write`.
        ModuleNotFoundError: a video, but no PyAV.
        ValueError: no frames, frames of several sizes, fps not positive, or another suffix.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if not 0 < fps < float("inf"):
        raise ValueError(f"frames per second must be positive; got {fps}")
    if suffix not in ("", *VIDEOS, *ANIMATIONS):
        raise ValueError(
            f"frames go to a video ({', '.join(VIDEOS)}), an animation ({', '.join(ANIMATIONS)}) or a folder (a name "
            f"without suffix); got {path.name!r}"
        )
    into = _write_video if suffix in VIDEOS else _write_animation if suffix else _write_folder
    with whole(path, force=force) as part:
        into(part, _same_size(frames), fps)


def _same_size(frames: Iterable[Tensor]) -> Iterator[np.ndarray]:
    """Frames as uint8 ``(H, W, 3)``."""
    shape = None
    for number, frame in enumerate(frames, start=1):
        pixels = _bytes(frame)
        shape = shape or pixels.shape
        if pixels.shape != shape:
            raise ValueError(f"all frames need the size of the first, {shape}; frame {number} has {pixels.shape}")
        yield pixels
    if shape is None:
        raise ValueError("there is nothing to write: got no frames")


def natural(path: Path) -> list:
    """A key that sorts numbers in names by value.

    >>> sorted(map(Path, ["f10.png", "f9.png"]), key=natural)[0].name
    'f9.png'
    """
    return [int(part) if part.isdigit() else part.lower() for part in re.split(r"(\d+)", path.name)]


def _read_folder(path: Path) -> Clip:
    known = Image.registered_extensions()
    files = [file for file in path.iterdir() if file.suffix.lower() in known and not file.name.startswith(".")]
    if not files:
        raise FileNotFoundError(f"the folder {path} holds no pictures; name one that does, or a video")
    return Clip(map(read, sorted(files, key=natural)), FPS, len(files))


def _write_folder(part: Path, frames: Iterator[np.ndarray], fps: float) -> None:
    part.mkdir()
    for number, pixels in enumerate(frames, start=1):
        Image.fromarray(pixels).save(part / f"frame-{number:05d}.png")


def _read_animation(path: Path) -> Clip:
    with _opened(path) as image:  # a first pass for the times, which a WebP frame has once it is loaded
        times = [frame.load() and frame.info.get("duration", 0) for frame in ImageSequence.Iterator(image)]
    shortest = min((time for time in times if time > 0), default=1000 / FPS)
    repeats = [max(1, round(time / shortest)) for time in times]

    def frames() -> Iterator[Tensor]:
        with _opened(path) as image:
            for frame, repeat in zip(ImageSequence.Iterator(image), repeats, strict=True):
                picture = _tensor(_upright(frame))
                yield from [picture] * repeat

    return Clip(frames(), 1000 / shortest, sum(repeats))


def _write_animation(part: Path, frames: Iterator[np.ndarray], fps: float) -> None:
    first, *rest = map(Image.fromarray, frames)
    kind = _format(part)
    options = _OPTIONS.get(kind, {}) | {"save_all": True, "append_images": rest, "loop": 0}
    first.save(part, format=kind, duration=round(1000 / fps), **options)


def _av():
    try:
        import av
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            'videos need the package PyAV: run pip install "stylemoments[video]"; or use a GIF, or a folder of pictures'
        ) from error
    return av


def _read_video(path: Path) -> Clip:
    av = _av()
    try:
        container = av.open(str(path))
        stream = container.streams.video[0]
    except (av.FFmpegError, IndexError) as error:
        raise ValueError(f"{path} is not a video that can be read ({error}); convert it to MP4") from error

    def frames() -> Iterator[Tensor]:
        with container:
            try:
                for frame in container.decode(stream):
                    pixels = np.rot90(frame.to_ndarray(format="rgb24"), frame.rotation // 90)
                    yield torch.from_numpy(pixels / np.float32(255)).permute(2, 0, 1)[None].contiguous()
            except av.FFmpegError as error:
                raise ValueError(f"the video {path} is damaged ({error}); get it again") from error

    return Clip(frames(), float(stream.average_rate or FPS), stream.frames or None)


def _write_video(part: Path, frames: Iterator[np.ndarray], fps: float) -> None:
    av = _av()
    first = next(frames)
    height, width = first.shape[:2]
    odd = ((0, height % 2), (0, width % 2), (0, 0))
    codec, options = ("libvpx-vp9", {"crf": "24", "b": "0"}) if part.suffix == ".webm" else ("libx264", {"crf": "16"})
    with av.open(str(part), "w") as container:
        stream = container.add_stream(codec, rate=Fraction(fps).limit_denominator(1001), options=options)
        stream.width, stream.height, stream.pix_fmt = width + width % 2, height + height % 2, "yuv420p"
        context = stream.codec_context
        context.colorspace = context.color_primaries = context.color_trc = 1  # BT.709
        for pixels in chain([first], frames):
            frame = av.VideoFrame.from_ndarray(np.pad(pixels, odd, mode="edge"), format="rgb24")
            container.mux(stream.encode(frame.reformat(format="yuv420p", dst_colorspace="ITU709")))
        container.mux(stream.encode())
