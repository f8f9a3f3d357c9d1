"""The command ``stylemoments``: see whether all works; draw pictures and sets; restyle; teach; evaluate; grade.

Heavy packages are imported inside the commands, so that ``stylemoments --help`` answers at once.
"""

import hashlib
import io
import json
import math
import os
import platform
import re
import shlex
import shutil
import textwrap
import time
from collections.abc import Callable, Iterable
from contextlib import contextmanager, redirect_stdout
from dataclasses import asdict
from difflib import get_close_matches
from enum import StrEnum
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Annotated

import typer

from .classroom.command import grade
from .console import INSTALL, enough_memory, kind_errors, one_voice, warn
from .evaluation import command

BATCH = 8  # pictures at a time, to bound the memory
LARGE, TILE = 4_000_000, 512  # a photograph of more pixels is stylized in squares of this size

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
app.add_typer(command.app, name="evaluate")
app.command()(grade)


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
    model: Annotated[Path | None, typer.Option(help="what `stylemoments dreambooth` made, such as OUT/model")] = None,
) -> None:
    """Make pictures of a prompt: OUT/a-cat-in-papercut-art-style-seed-0.png and so on."""
    with kind_errors():
        from . import diffusion

        pipe = diffusion.load(size) if model is None else _taught(model, size)
        size = getattr(pipe, "size", None)  # not known of a pipeline that others made
        if size == "tiny":
            _warn_of_unknown_words(prompt, {} if model is None else _facts(model))
        guidance = diffusion.default_guidance(pipe) if guidance is None else guidance
        facts = {"prompt": prompt, "size": size, "steps": steps, "guidance": guidance}
        facts |= {"model": model or "base"}
        paths = {out / f"{_slug(prompt)}-seed-{seed + index}.png": facts | {"seed": seed + index} for index in range(n)}
        _refuse_to_overwrite(paths)
        images = _draw(pipe, [prompt] * n, steps, guidance, seed)
        out.mkdir(parents=True, exist_ok=True)
        for (path, known), image in zip(paths.items(), images, strict=True):
            _save(path, image, known)
            typer.echo(path)


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
            images += _pixels(pipe, latents)
    return images


def _pixels(pipe, latents) -> list:
    """Images of clean latents, as uint8 arrays (H, W, 3)."""
    from . import diffusion

    pixels = (diffusion.decode(pipe, latents) * 255).round().byte()
    return list(pixels.permute(0, 2, 3, 1).cpu().numpy())


def _taught(model: Path, size: str | None):
    """The pipeline of a DreamBooth run; the size says what a LoRA file belongs to that does not say it itself."""
    from . import diffusion, dreambooth

    return dreambooth.load(model, pipe=diffusion.load(size) if size else None)


def _facts(model: Path) -> dict:
    """What DreamBooth wrote beside the weights, where it did."""
    from .dreambooth import FACTS

    path = model / FACTS
    return json.loads(path.read_text("utf-8")) if path.exists() else {}


def _warn_of_unknown_words(prompt: str, facts: dict) -> None:
    """Facts of DreamBooth name two more words that the model knows."""
    from .train.tokens import wordings

    learned = [facts.get("token", ""), facts.get("noun", "")]
    known = sorted({word for wording in [*wordings(), *learned] for word in wording.lower().split()})
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
    with kind_errors():
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


# ---------------------------------------------------------------------------------------- dreambooth

RUN = "run.json"  # in the folder of a run: what makes it this run
CLASS_IMAGES = {"tiny": 32, "sd15": 200, "sdxl": 200}  # by default
COLUMNS = 8  # of the sheet of samples
EXAMPLES = slice(0, 20, 3)  # of DreamBooth's prompts in it, at full size: places, then clothes or colors
SAMPLE_STEPS = 25


class Text(StrEnum):
    """What of the text encoder is trained."""

    FROZEN = "frozen"
    TOKEN = "token"
    ALL = "all"


@app.command()
def dreambooth(
    photographs: Annotated[list[Path], typer.Argument(metavar="PHOTOS...", help="a folder of photographs, or files")],
    noun: Annotated[str, typer.Option("--class", help='what they show, such as "dog"')],
    out: Annotated[Path, typer.Option("-o", "--out", help="folder of this run")],
    token: Annotated[str, typer.Option(help="the name to learn: a rare word")] = "sks",
    size: Annotated[str | None, typer.Option(help="tiny, sd15 or sdxl (default: what runs here)")] = None,
    lora: Annotated[bool, typer.Option("--lora", help="train low-rank adapters instead of all weights")] = False,
    rank: Annotated[int | None, typer.Option(min=1, help="of --lora (default: 8)")] = None,
    text: Annotated[
        Text | None, typer.Option(help="of the text encoder train nothing, one row, or all (default: that of the size)")
    ] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="default: that of the size")] = None,
    prior_weight: Annotated[float, typer.Option(min=0, help="of the pictures of the class; 0 is none")] = 1.0,
    class_images: Annotated[int | None, typer.Option(min=1, help="how many (default: 32 if tiny, else 200)")] = None,
    seed: Annotated[int, typer.Option(min=0, help="of everything that is drawn at random")] = 0,
    force: Annotated[bool, typer.Option("--force", help="replace another run in OUT")] = False,
) -> None:
    """Teach the model one subject from a few photographs. Stopped, the same command goes on."""
    with kind_errors(), one_voice() as state, kind_errors(), _stoppable(out):
        from . import diffusion

        subject = _read_photographs(photographs)
        size = diffusion.choose_size(size)
        settings = _settings(
            size,
            state.num_processes,
            lora,
            rank,
            prior_weight=prior_weight,
            seed=seed,
            text=text and text.value,
            steps=steps,
        )
        n = (class_images or CLASS_IMAGES[size]) if prior_weight else 0
        run = _run_facts(subject, token, noun, size, n, settings)
        _check_run(out, run, force)
        dream = _prepared(subject, token, noun, size, settings, state)
        _say_plan(dream, n)
        with state.main_process_first():
            if state.is_main_process:
                _open_run(out, run)
            if n:
                dream.class_images = _class_images(dream, n, out / "class")
        _train(dream, out)
        if state.is_main_process:
            with diffusion.quiet():
                dream.save(out / "model")
            _draw_samples(dream, out / "samples.png")
            typer.echo(f"{out / 'model'}\n{out / 'samples.png'}")
            command = ["stylemoments", "sample", f"{dream.prompt} in the snow", "--model", str(out / "model")]
            typer.echo(f"Draw it: {' '.join(map(_quoted, command))}")


@contextmanager
def _stoppable(out: Path):
    """Ctrl-C, and a GPU that is too small, end with a line that says what to do next."""
    from .dreambooth import CHECKPOINT

    try:
        with enough_memory("--lora, a smaller --size, or a GPU with more"):
            yield
    except KeyboardInterrupt as stop:
        (out / f"{CHECKPOINT}.part").unlink(missing_ok=True)
        typer.echo(f"\nstopped{''.join(map(str, stop.args))}; the same command goes on from there", err=True)
        raise typer.Exit(130) from None


def _read_photographs(places: list[Path]) -> list:
    from . import photos

    paths, others = photos.find(places)
    subject = photos.read(paths)
    if others:
        warn(f"no pictures, left out: {', '.join(path.name for path in others)}")
    return subject


def _settings(size: str, processes: int, lora: bool, rank: int | None, **changes):
    """The settings of a size, changed where a change is not None, with a batch that the processes can share."""
    from . import dreambooth

    if rank and not lora:
        raise ValueError(f"--rank is of LoRA; got --rank {rank} without it: add --lora, or leave --rank out")
    rank = (rank or 8) if lora else None
    batch = -(-dreambooth.defaults(size, rank=rank).batch // processes) * processes
    changes = {name: value for name, value in changes.items() if value is not None}
    return dreambooth.defaults(size, rank=rank, batch=batch, **changes)


def _prepared(subject: list, token: str, noun: str, size: str, settings, state):
    """The trainer on a fresh pipeline, yet without pictures of the class; says what is odd about subject and words."""
    import torch

    from . import diffusion, dreambooth, photos

    half = settings.rank and settings.text != "token"  # only frozen weights may be half precision
    with redirect_stdout(io.StringIO()):  # the size has been said
        pipe = diffusion.load(size, device=state.device, dtype=None if half else torch.float32)
    side = pipe.unet.config.sample_size * pipe.vae_scale_factor
    for remark in [*photos.remarks(subject, side), *_odd_words(pipe, token, noun)]:
        warn(remark)
    images = [photos.shrunk(photo.image, 2 * side) for photo in subject]  # enough for every crop, and fast to crop
    stand_in = torch.zeros(1, 3, side, side) if settings.prior_weight else None
    return dreambooth.DreamBooth(pipe, images, token, noun, class_images=stand_in, settings=settings)


def _odd_words(pipe, token: str, noun: str) -> Iterable[str]:
    from .train.tokens import RARE_WORDS
    from .world import OBJECTS, SUBJECT_NOUNS

    if pipe.size == "tiny" and noun not in OBJECTS:
        near = [SUBJECT_NOUNS[noun]] if noun in SUBJECT_NOUNS else get_close_matches(noun, OBJECTS, n=1) or OBJECTS
        yield f"the tiny model does not know {noun!r}; the nearest class that it knows: {', '.join(near)}"
    pieces = len(pipe.tokenizer(token, add_special_tokens=False).input_ids)
    if pieces != 1:
        yield f"the model reads the name {token!r} as {pieces} tokens; names that are one: {', '.join(RARE_WORDS[:3])}"


def _run_facts(subject: list, token: str, noun: str, size: str, n: int, settings) -> dict:
    """What makes a run this run: everything but its number of steps."""
    digests = [hashlib.sha256(photo.image.numpy().tobytes()).hexdigest()[:16] for photo in subject]
    facts = {"photographs": digests, "token": token, "class": noun, "size": size, "class_images": n}
    facts |= {name: value for name, value in asdict(settings).items() if name != "steps"}
    return json.loads(json.dumps(facts))


def _run_in(out: Path) -> dict | None:
    path = out / RUN
    return json.loads(path.read_text("utf-8")) if path.exists() else None


def _check_run(out: Path, run: dict, force: bool) -> None:
    """A folder may be new, empty, or of this run; with force also of another."""
    was = _run_in(out)
    if was is None and out.exists() and (out.is_file() or any(out.iterdir())):
        raise FileExistsError(f"{out} is no folder of a DreamBooth run, and is never replaced; choose another with -o")
    differs = [name for name in run if was and was.get(name) != run[name]]
    if differs and not force:
        said = [f"{name} {was.get(name)}, now {run[name]}" if name != "photographs" else name for name in differs]
        raise FileExistsError(
            f"{out} holds another run; different are {'; '.join(said)}. Choose another folder with -o, or replace the "
            "run with --force"
        )


def _open_run(out: Path, run: dict) -> None:
    """Make the folder; another run in it goes, but for its pictures of the class where they serve this run too."""
    from . import files
    from .dreambooth import CHECKPOINT

    was = _run_in(out)
    if was == run:
        return
    if was is not None:
        for name in (RUN, CHECKPOINT, "samples.png"):
            (out / name).unlink(missing_ok=True)
        shutil.rmtree(out / "model", ignore_errors=True)
        if any(was.get(name) != run[name] for name in ("class", "size", "seed")):
            shutil.rmtree(out / "class", ignore_errors=True)
    out.mkdir(parents=True, exist_ok=True)
    with files.whole(out / RUN) as part:
        part.write_text(json.dumps(run, indent=1), "utf-8")


def _say_plan(dream, n: int) -> None:
    import torch

    settings, memory = dream.settings, dream.memory()
    beside = f", beside {n} pictures of {dream.noun!r} by the model itself" if n else ""
    typer.echo(f"subject: {dream.prompt!r} from {len(dream.images)} photographs{beside}")
    what = "all weights of the U-Net" if settings.rank is None else f"LoRA of rank {settings.rank}"
    what += {"frozen": "", "token": ", and the name's row", "all": ", and the text encoder"}[settings.text]
    batch = f"{settings.batch} + {settings.batch}" if n else f"{settings.batch}"
    typer.echo(f"training: {what}; {settings.steps} steps of {batch} pictures")
    needs = sum(memory.values()) / 1e9
    parts = ", ".join(f"{name} {size / 1e9:.2f}" for name, size in memory.items() if size)
    typer.echo(f"memory: {needs:.2f} GB at least ({parts}); the activations come on top")
    if dream.pipe.device.type == "cuda":
        has = torch.cuda.get_device_properties(dream.pipe.device).total_memory / 1e9
        if needs > has:
            warn(f"the GPU has {has:.1f} GB, less than that; take --lora or a smaller --size")


def _class_images(dream, n: int, folder: Path):
    from . import dreambooth

    return dreambooth.class_images(dream.pipe, dream.noun, n, folder, seed=dream.settings.seed, progress=True)


def _train(dream, out: Path) -> None:
    """All steps that are left, under a bar that knows the time they will take."""
    from tqdm import tqdm

    settings, kept = dream.settings, 0
    every = 25 if settings.rank or dream.pipe.size == "tiny" else 100  # a checkpoint of all weights is large
    with tqdm(total=settings.steps, desc="training", unit="step") as bar:
        try:
            for record in dream.train(out, save_every=every):
                if bar.n == 0 and record.step > 1:
                    bar.initial = bar.n = kept = record.step - 1
                    bar.write(f"going on after step {kept}")
                kept = record.step if record.step % every == 0 else kept
                bar.set_postfix_str(f"loss {record.loss:.3f}", refresh=False)
                bar.update()
            if bar.n == 0:
                bar.write("all steps are done already")
        except KeyboardInterrupt:
            raise KeyboardInterrupt(f"; {kept} of {settings.steps} steps are kept in {out}") from None


def _draw_samples(dream, path: Path) -> None:
    """A sheet: the photographs, then the subject as it was learned, plainly and in other places and styles."""
    import torch

    from . import diffusion, files, show
    from .dreambooth import crop

    prompts = _sample_prompts(dream)
    drawn = _draw(dream.pipe, prompts, SAMPLE_STEPS, diffusion.default_guidance(dream.pipe), dream.settings.seed)
    middle = torch.tensor([0.5, 0.5])
    photos = [crop(image, dream.side, 1.0, middle).image for image in dream.images[:COLUMNS]]
    blank = [torch.ones_like(photos[0])] * (COLUMNS - len(photos))
    titles = ["photograph"] * len(photos) + [""] * len(blank)
    titles += [textwrap.fill(prompt.removeprefix(f"{dream.prompt} "), 18) for prompt in prompts]
    figure = show.grid([*photos, *blank, *drawn], columns=COLUMNS, titles=titles)
    with files.whole(path, force=True) as part:
        figure.savefig(part)


def _sample_prompts(dream) -> list[str]:
    """In the tiny world its places and styles; at full size seven of DreamBooth's prompts for it."""
    from . import prompts

    if dream.pipe.size == "tiny":
        *known, plain = prompts.tiny_subject_prompts()
        return [prompt.fill(dream.token, dream.noun) for prompt in (plain, *known)]
    kind = "live" if dream.noun in prompts.LIVE else "object"
    known = [prompt for prompt in prompts.dreambooth_prompts() if prompt.kind == kind]
    return [dream.prompt, *(prompt.fill(dream.token, dream.noun) for prompt in known[EXAMPLES])]


def _quoted(word: str) -> str:
    """A word for the shell; double quotes where they do, for they work on Windows, too.

    >>> _quoted("a sks dog"), _quoted("sample")
    ('"a sks dog"', 'sample')
    """
    quoted = shlex.quote(word)
    return f'"{word}"' if quoted == f"'{word}'" and not set(word) & set('"$`\\!') else quoted


# ---------------------------------------------------------------------------------------- align

SHEET, SET = "sheet.png", "settings.json"  # beside the pictures of a set


@app.command()
def align(
    objects: Annotated[list[str], typer.Argument(metavar="OBJECT...", help='two or more, such as "a cat" "a guitar"')],
    style: Annotated[
        str,
        typer.Option(
            help='of all pictures, such as "papercut art". The prompt is "OBJECT in STYLE style", or "OBJECT in STYLE" '
            'where STYLE has the word style in it; in the tiny world "plain" goes without saying'
        ),
    ],
    out: Annotated[Path, typer.Option("-o", "--out", help="folder for the pictures, sheet.png and settings.json")],
    reference: Annotated[
        int, typer.Option(min=0, help="which object the others follow, counted from 0: 0 is the first")
    ] = 0,
    picture: Annotated[
        Path | None,
        typer.Option(help="a picture of your own to follow; the reference's object says what it shows"),
    ] = None,
    steps: Annotated[int, typer.Option(min=1, help="DDIM steps")] = 25,
    guidance: Annotated[float | None, typer.Option(help="guidance weight (default: that of the size)")] = None,
    seed: Annotated[int, typer.Option(min=0, help="seed of the first picture; each next one has the next")] = 0,
    size: Annotated[str | None, typer.Option(help="tiny, sd15 or sdxl (default: what runs here)")] = None,
    scale: Annotated[
        float, typer.Option(help="factor of the reference's keys: lower where it is copied too much, 0 to about 1.5")
    ] = 1.0,
    shift: Annotated[
        float, typer.Option(help="added to what decides how much the reference is looked at: lower is less")
    ] = 0.0,
    layers: Annotated[
        str,
        typer.Option(
            help="which self-attention layers share: a fraction from 0 to 1, spread evenly, or names with commas, "
            "such as mid_block,up_blocks"
        ),
    ] = "1",
    adain: Annotated[bool, typer.Option("--adain/--no-adain", help="give queries and keys the reference's moments")] = (
        True
    ),
    values: Annotated[bool, typer.Option("--values", help="give the values the reference's moments, too")] = False,
    full: Annotated[
        bool,
        typer.Option(
            "--full",
            help="every picture looks at all others, without reference or moments; all in one batch, however many",
        ),
    ] = False,
    group_norm: Annotated[
        bool, typer.Option("--group-norm", help="normalize groups by the moments of reference and target together")
    ] = False,
    layer_norm: Annotated[
        bool, typer.Option("--layer-norm", help="the same for layers, as in the public code; changes nothing")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="replace the set in OUT")] = False,
) -> None:
    """Draw several objects as a set of one style, with StyleAligned: OUT/0-a-cat.png, OUT/1-a-guitar.png and so on."""
    with kind_errors(), enough_memory("fewer objects, a smaller --size, or a GPU with more"):
        from . import diffusion, files
        from .style_aligned import StyleAligned

        _check_objects(objects, style, reference)
        if full and (reference or values or picture):
            raise ValueError("with --full there is no reference; leave --reference, --values and --picture out")
        own = None if picture is None else files.read(picture)
        names = [f"{index}-{_slug(thing)}.png" for index, thing in enumerate(objects)]
        _check_place(out, [*names, SHEET, SET], force)
        pipe = diffusion.load(size)
        prompts = [_in_style(thing, style, pipe.size) for thing in objects]
        if pipe.size == "tiny":
            _warn_of_unknown_words(" ".join(prompts), {})
        guidance = diffusion.default_guidance(pipe) if guidance is None else guidance
        _check_finite(guidance=guidance, scale=scale, shift=shift)
        aligned = StyleAligned(
            pipe,
            adain_queries=adain and not full,
            adain_keys=adain and not full,
            adain_values=values,
            full_attention=full,
            share_group_norm=group_norm,
            share_layer_norm=layer_norm,
            reference_scale=scale,
            reference_shift=shift,
            layers=_layers(layers),
        )
        common = {"style": style, "size": pipe.size, "steps": steps, "guidance": guidance}
        common |= {"style_aligned": aligned.settings() | {"reference": reference}, "version": version("stylemoments")}
        pictures = [
            {"file": name, "object": thing, "prompt": prompt, "seed": seed + index}
            for index, (name, thing, prompt) in enumerate(zip(names, objects, prompts, strict=True))
        ]
        batches = [list(range(len(prompts)))] if full else _batches(len(prompts), reference)
        replay = {}
        if picture is not None:
            pictures[reference] |= {"picture": picture.name}
            replay = _replay(pipe, own, prompts[reference], steps)
        images = _draw_set(aligned, prompts, batches, steps, guidance, seed, replay)
        for path in _write_set(out, images, pictures, common):
            typer.echo(path)


def _check_objects(objects: list[str], style: str, reference: int) -> None:
    if len(objects) < 2:
        raise ValueError(f"a set has two objects at least; got {len(objects)}. One picture: stylemoments sample")
    if not all(said.strip() for said in (*objects, style)):
        raise ValueError("every object, and the style, needs a word; one of them is empty")
    if reference >= len(objects):
        raise ValueError(f"--reference counts from 0, so it is 0 to {len(objects) - 1} here; got {reference}")


def _check_place(out: Path, names: list[str], force: bool) -> None:
    """The folder may be new, or hold anything but files of these names; with force also those."""
    nearest = next(path for path in (out, *out.absolute().parents) if path.exists())
    if not nearest.is_dir():
        raise NotADirectoryError(f"{nearest} is a file; name a folder with -o")
    there = [name for name in names if (out / name).exists()]
    if there and not force:
        raise FileExistsError(
            f"{out} has {', '.join(there)} already; choose another folder with -o, or replace the set with --force"
        )


def _check_finite(**numbers: float) -> None:
    for name, number in numbers.items():
        if not math.isfinite(number):
            raise ValueError(f"--{name} is a finite number; got {number}")


def _in_style(thing: str, style: str, size: str) -> str:
    """The prompt of an object: in the tiny world exactly as its model was taught.

    >>> _in_style("a cat", "papercut art", "tiny"), _in_style("a cat", "papercut art style", "tiny")
    ('a cat in papercut art style', 'a cat in papercut art style')
    >>> _in_style("a cat", "plain", "tiny"), _in_style("a cat", "plain", "sdxl")
    ('a cat', 'a cat in plain style')
    """
    from .world import PLAIN

    thing, style = (" ".join(said.split()) for said in (thing, style))
    words = style.lower().split()
    if size == "tiny" and words in ([PLAIN], [PLAIN, "style"]):
        return thing
    return f"{thing} in {style}" if "style" in words else f"{thing} in {style} style"


def _layers(text: str) -> float | list[str]:
    """A fraction, or names.

    >>> _layers("0.5"), _layers("mid_block, up_blocks")
    (0.5, ['mid_block', 'up_blocks'])
    """
    try:
        return float(text)
    except ValueError:
        return [name.strip() for name in text.split(",")]


def _batches(n: int, reference: int) -> list[list[int]]:
    """Which pictures are drawn together: the reference first, and again in each batch.

    To draw it again takes some time, to keep what it left behind would take the memory of every step: 20 GB for SDXL.

    >>> _batches(10, 1)
    [[1, 0, 2, 3, 4, 5, 6, 7], [1, 8, 9]]
    """
    others = [index for index in range(n) if index != reference]
    return [[reference, *others[first : first + BATCH - 1]] for first in range(0, len(others), BATCH - 1)]


def _replay(pipe, picture, prompt: str, steps: int) -> dict:
    """A picture's noisy versions, for the first row of each batch, as far behind their step as in the public code."""
    from . import editing

    path = editing.trajectory(pipe, editing.fitted(pipe, picture), prompt, steps=steps)
    return {0: path.offset(round(0.1 * steps)).latents}


def _draw_set(
    aligned, prompts: list[str], batches: list[list[int]], steps: int, guidance: float, seed: int, replay: dict
) -> list:
    """Images as uint8 arrays, one per prompt; a picture's noise is that of its place, whatever its batch."""
    from tqdm import tqdm

    from . import diffusion

    noise, images = diffusion.initial_latents(aligned.pipe, len(prompts), seed), {}
    options = {"steps": steps, "guidance": guidance, "replay": replay}
    with aligned, tqdm(total=steps * sum(map(len, batches)), desc="sampling", unit="step") as bar:
        for batch in batches:
            said = [prompts[index] for index in batch]
            for step in diffusion.sample(aligned.pipe, said, latents=noise[batch], **options):
                latents = step.latents
                bar.update(len(batch))
            images |= zip(batch, _pixels(aligned.pipe, latents), strict=True)
    return [images[index] for index in range(len(prompts))]


def _write_set(out: Path, images: list, pictures: list[dict], common: dict) -> list[Path]:
    """Write the pictures, the sheet, and at last the settings, each whole; what an older set left behind goes."""
    from . import files

    sheet = _sheet(images, pictures, common["style_aligned"])
    out.mkdir(parents=True, exist_ok=True)
    _remove_set(out)
    for picture, image in zip(pictures, images, strict=True):
        facts = {name: fact for name, fact in picture.items() if name != "file"}
        settings = json.dumps(common["style_aligned"])
        _save(out / picture["file"], image, facts | common | {"style_aligned": settings})
    with files.whole(out / SHEET, force=True) as part:
        sheet.savefig(part, dpi=200)
    with files.whole(out / SET, force=True) as part:
        part.write_text(json.dumps(common | {"pictures": pictures}, indent=1, ensure_ascii=False), "utf-8")
    return [*(out / picture["file"] for picture in pictures), out / SHEET, out / SET]


def _remove_set(out: Path) -> None:
    """Remove the settings of the set that was here, and then the pictures that they name."""
    try:
        known = json.loads((out / SET).read_text("utf-8"))
        names = [Path(picture["file"]).name for picture in known["pictures"] if known["style_aligned"]]
    except (OSError, ValueError, LookupError, TypeError):  # not there, or not ours
        names = []
    for name in (SET, *(name for name in names if name.endswith(".png"))):
        (out / name).unlink(missing_ok=True)


def _sheet(images: list, pictures: list[dict], settings: dict):
    """A figure of all pictures with their objects; above the reference it says so."""
    from . import show

    titles = [textwrap.fill(picture["object"], 18) for picture in pictures]
    if not settings["full_attention"]:
        titles[settings["reference"]] += "\n(reference)"
    rows = -(-len(images) // COLUMNS)
    return show.grid(images, columns=-(-len(images) // rows), titles=titles)


if __name__ == "__main__":
    app()
