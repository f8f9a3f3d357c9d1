"""The command ``stylemoments``: see whether everything works, make pictures, and give them a style.

Heavy packages are imported inside the commands, so that ``stylemoments --help`` answers at once.
"""

import io
import os
import platform
import re
import time
from collections.abc import Callable
from contextlib import contextmanager, redirect_stdout
from difflib import get_close_matches
from enum import StrEnum
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Annotated

import typer

INSTALL = "run python -m pip install -r requirements.txt -e . in the folder of the book; on Colab, its first cell again"
BATCH = 8  # pictures at a time, to bound the memory
LARGE, TILE = 4_000_000, 512  # a photograph of more pixels is stylized in squares of this size

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


@app.callback()
def main() -> None:
    """Moments of Style: from batch normalization to style-aligned diffusion."""


# ---------------------------------------------------------------------------------------- doctor


@app.command()
def doctor() -> None:
    """Check versions, device, size and weights, and make a picture; say for each fault what to do."""
    from . import zoo

    shipped = [name for name in zoo.names() if zoo.entry(name).command]
    checks = [("versions", _versions), ("device", _device), ("size", _size)]
    checks += [(f"weights {name}", lambda name=name: _weights(name)) for name in shipped]
    checks += [("a picture", _picture)]
    passed = [_report(name, check) for name, check in checks]
    if not all(passed):
        raise typer.Exit(1)


def _report(name: str, check: Callable[[], str]) -> bool:
    """Run a check, print its line, and say whether it passed."""
    try:
        typer.echo(f"pass  {name}: {check()}")
        return True
    except Exception as error:  # whatever is broken, the next check still runs
        typer.echo(f"FAIL  {name}: {str(error).replace(chr(10), chr(10) + ' ' * 6)}")
        return False


def _versions() -> str:
    from packaging.requirements import Requirement

    found, faults = [f"Python {platform.python_version()}", f"stylemoments {version('stylemoments')}"], []
    for need in map(Requirement, requires("stylemoments")):
        if need.marker and not need.marker.evaluate({"extra": "diffusion"}):
            continue
        has = _installed(need.name)
        found.append(f"{need.name} {has}")
        if has is None or not need.specifier.contains(has, prereleases=True):
            faults.append(f"{need.name}{need.specifier} is needed, {has or 'nothing'} is installed")
    if faults:
        raise RuntimeError(f"{'; '.join(faults)}; {INSTALL}")
    return ", ".join(found)


def _installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _device() -> str:
    import torch

    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"CPU, {os.cpu_count()} cores (no CUDA GPU)"


def _size() -> str:
    from . import diffusion

    with redirect_stdout(io.StringIO()) as said:
        diffusion.choose_size()
    return said.getvalue().strip().removeprefix("size ")


def _weights(name: str) -> str:
    from . import zoo

    files = [path for path in zoo.folder(name).rglob("*") if path.is_file()]
    return f"{len(files)} files, {sum(path.stat().st_size for path in files) / 1e6:.1f} MB, sha256 as listed"


def _picture() -> str:
    from . import diffusion

    with redirect_stdout(io.StringIO()):
        pipe = diffusion.load("tiny")
    began = time.perf_counter()
    images = diffusion.generate(pipe, "a cat in papercut art style")
    taken = time.perf_counter() - began
    if not images.std() > 0.01:  # nor where it is not a number
        raise RuntimeError(f"the picture is of one color, or of no numbers; install everything again: {INSTALL}")
    return f"{images.shape[-1]} x {images.shape[-2]} pixels of the tiny model in {taken:.1f} s"


# ---------------------------------------------------------------------------------------- sample


@app.command()
def sample(
    prompt: Annotated[str, typer.Argument(help='what to draw, such as "a cat in papercut art style"')],
    n: Annotated[int, typer.Option("-n", min=1, help="how many pictures")] = 1,
    out: Annotated[Path, typer.Option("-o", "--out", help="folder for the pictures")] = Path("pictures"),
    steps: Annotated[int, typer.Option(min=1, help="DDIM steps")] = 25,
    guidance: Annotated[float | None, typer.Option(help="guidance weight (default: that of the size)")] = None,
    seed: Annotated[int, typer.Option(min=0, help="seed of the first picture; each next one has the next")] = 0,
    size: Annotated[str | None, typer.Option(help="tiny, sd15 or sdxl (default: what runs here)")] = None,
) -> None:
    """Make pictures of a prompt: OUT/a-cat-in-papercut-art-style-seed-0.png and so on."""
    with _kind_errors():
        from . import diffusion

        pipe = diffusion.load(size)
        if pipe.size == "tiny":
            _warn_of_unknown_words(prompt)
        guidance = diffusion.default_guidance(pipe) if guidance is None else guidance
        facts = {"prompt": prompt, "size": pipe.size, "steps": steps, "guidance": guidance}
        paths = {out / f"{_slug(prompt)}-seed-{seed + index}.png": facts | {"seed": seed + index} for index in range(n)}
        _refuse_to_overwrite(paths)
        images = _draw(pipe, [prompt] * n, steps, guidance, seed)
        out.mkdir(parents=True, exist_ok=True)
        for (path, known), image in zip(paths.items(), images, strict=True):
            _save(path, image, known)
            typer.echo(path)


@contextmanager
def _kind_errors():
    """Faults that the user can mend are a line, not a traceback."""
    from .zoo import WeightsError

    try:
        yield
    except ModuleNotFoundError as error:
        typer.echo(f"error: {error}; {INSTALL}", err=True)
        raise typer.Exit(1) from None
    except (OSError, ValueError, WeightsError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from None


def _slug(prompt: str) -> str:
    """The prompt as the name of a file.

    >>> _slug("A cat, in papercut art style!")
    'a-cat-in-papercut-art-style'
    """
    return "-".join(re.findall(r"\w+", prompt.lower()))[:100] or "picture"


def _refuse_to_overwrite(paths: dict[Path, dict]) -> None:
    """The same picture may be made again; any other file stays."""
    from PIL import Image

    for path, facts in paths.items():
        if path.exists():
            with Image.open(path) as picture:
                was = {name: picture.info.get(name, "unknown") for name in facts}
            if was != {name: str(value) for name, value in facts.items()}:
                raise FileExistsError(f"{path} is another picture ({was}); choose another folder with -o, or --seed")


def _draw(pipe, prompts: list[str], steps: int, guidance: float, seed: int) -> list:
    """Images as uint8 arrays; each depends on its own seed alone, so they come in parts that fit the memory."""
    from tqdm import tqdm

    from . import diffusion

    images = []
    with tqdm(total=steps * len(prompts), desc="sampling", unit="step") as bar:
        for first in range(0, len(prompts), BATCH):
            part = prompts[first : first + BATCH]
            for step in diffusion.sample(pipe, part, steps=steps, guidance=guidance, seed=seed + first):
                latents = step.latents
                bar.update(len(part))
            pixels = (diffusion.decode(pipe, latents) * 255).round().byte()
            images += list(pixels.permute(0, 2, 3, 1).cpu().numpy())
    return images


def _warn_of_unknown_words(prompt: str) -> None:
    from .train.tokens import wordings

    known = sorted({word for wording in wordings() for word in wording.split()})
    for word in dict.fromkeys(re.findall(r"[\w']+", prompt.lower())):
        if word not in known:
            nearest = get_close_matches(word, known, n=1, cutoff=0)[0]
            said = f"warning: the tiny model does not know {word!r}; the nearest word it knows is {nearest!r}"
            typer.echo(said, err=True)


def _save(path: Path, image, facts: dict) -> None:
    """Write a PNG with the facts inside, whole or not at all."""
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    for name, value in facts.items():
        info.add_itxt(name, str(value))
    part = path.with_suffix(f".{os.getpid()}.part")
    Image.fromarray(image).save(part, format="PNG", pnginfo=info)
    os.replace(part, path)


# ---------------------------------------------------------------------------------------- stylize


class KeepColor(StrEnum):
    """Ways to keep the colors of the photograph."""

    CORAL = "coral"
    LUMINANCE = "luminance"


@app.command()
def stylize(
    photo: Annotated[Path, typer.Argument(help="a photograph; with --video a video, an animation or a folder")],
    styles: Annotated[list[Path], typer.Argument(metavar="STYLE...", help="one or more pictures to take the style of")],
    out: Annotated[Path, typer.Option("-o", "--out", help="the picture to write; its suffix chooses the format")],
    alpha: Annotated[float, typer.Option(min=0, max=1, help="how much style, 0 to 1")] = 1.0,
    weights: Annotated[str | None, typer.Option(help="of several styles: numbers with commas, such as 0.7,0.3")] = None,
    mask: Annotated[list[Path] | None, typer.Option(help="where a style goes, white on black; one per style")] = None,
    keep_color: Annotated[
        KeepColor | None, typer.Option("--keep-color", "--keep-colour", help="keep the photograph's colors")
    ] = None,
    size: Annotated[int | None, typer.Option(min=16, help="short side of the result (default: that of PHOTO)")] = None,
    style_size: Annotated[int, typer.Option(min=16, help="short side of the styles: larger makes finer strokes")] = 512,
    tile: Annotated[int | None, typer.Option(help="compute in squares of this size, to bound the memory")] = None,
    video: Annotated[bool, typer.Option("--video", help="PHOTO has frames: style them all")] = False,
    smoothing: Annotated[float, typer.Option(min=0, max=0.99, help="of frames: more flickers less, 0 is none")] = 0.8,
    force: Annotated[bool, typer.Option("--force", help="replace OUT if it exists")] = False,
) -> None:
    """Give a photograph, or every frame of a video, the style of one or more pictures."""
    with _kind_errors():
        from . import adain, files

        files.check_target(out, force=force)
        options = {
            "alpha": alpha,
            "weights": None if weights is None else _numbers(weights),
            "masks": [files.read_mask(path) for path in mask] if mask else None,
            "color": keep_color.value if keep_color else "style",
        }
        pictures = [files.read(path, size=style_size) for path in styles]
        model = adain.load()
        if video:
            _stylize_video(model, photo, pictures, out, options | {"smoothing": smoothing}, size, force)
        else:
            content = files.read(photo, size=size)
            if tile is None and content[0, 0].numel() > LARGE:
                tile = TILE
            with _bar("stylizing", "tile") as tick:
                result = adain.stylize(model, content, pictures, tile=tile, progress=tick, **options)
            files.write(out, result, force=force)
        typer.echo(out)


def _stylize_video(model, source: Path, styles: list, out: Path, options: dict, size: int | None, force: bool) -> None:
    from tqdm import tqdm

    from . import files
    from .video import stylize_frames

    clip = files.read_frames(source, size=size)
    frames = stylize_frames(model, clip, styles, **options)
    files.write_frames(out, tqdm(frames, total=clip.count, desc="stylizing", unit="frame"), fps=clip.fps, force=force)


def _numbers(text: str) -> list[float]:
    """Numbers with commas between them.

    >>> _numbers("0.7, 0.3")
    [0.7, 0.3]
    """
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise ValueError(f"--weights takes numbers with commas between them, such as 0.7,0.3; got {text!r}") from None


@contextmanager
def _bar(what: str, unit: str):
    """A progress bar as a function of (done, total)."""
    from tqdm import tqdm

    with tqdm(desc=what, unit=unit) as bar:

        def tick(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield tick
