r"""Weights by name: what they are, their license, how they were made, and whether the files are whole.

The small models ship with the package. Each of their files has its sha256 in ``weights/SHA256SUMS`` (the format of the
command ``sha256sum``), and is checked against it once per process before anything is loaded from it. The large
pipelines come from the Hugging Face Hub, each at one pinned revision; open_clip and timm fetch the full CLIP and DINO.

    >>> print(*names())
    tiny-sd tiny-clip tiny-dino tiny-subject judge tiny-vgg tiny-adain tiny-control sd15 sdxl
    >>> entry("sd15").license
    'CreativeML Open RAIL-M'
"""

import hashlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path

WEIGHTS = Path(__file__).parent / "weights"
SUMS = "SHA256SUMS"
CARD = "README.md"  # beside the files of each set of weights; nothing is loaded from it, so it has no sum


class WeightsError(RuntimeError):
    """Shipped weights that are missing, damaged or not ours."""


@dataclass(frozen=True)
class Entry:
    """One set of weights: shipped with a command that makes it, or remote with a repository and revision."""

    what: str
    license: str
    command: str | None = None  # shipped: trains it again
    repository: str | None = None  # remote: its name on the Hugging Face Hub
    revision: str | None = None  # remote: the commit that is loaded, and no other
    guidance: float | None = None  # of a text-to-image pipeline: the guidance weight it is sampled with by default


def _train(script: str, more: str = "") -> str:
    return f"python -m stylemoments.train.{script} --out runs/{script}{more}"


ENTRIES = {
    "tiny-sd": Entry(
        "a Stable Diffusion pipeline of the tiny world: 64 x 64 pixels, latents of 4 x 16 x 16",
        "Apache-2.0", _train("denoiser", " --autoencoder runs/autoencoder --clip runs/clip"), guidance=2.5,
    ),
    "tiny-clip": Entry("a CLIP of the tiny world, for open_clip", "Apache-2.0", _train("clip")),
    "tiny-dino": Entry("a self-supervised network of the tiny world", "Apache-2.0", _train("dino")),
    "tiny-subject": Entry("an encoder that tells subjects of the tiny world apart", "Apache-2.0", _train("subject")),
    "judge": Entry("a classifier of object, style, place and palette", "Apache-2.0", _train("judge")),
    "tiny-vgg": Entry("a slim VGG-19 up to relu4_1, for style transfer", "Apache-2.0", _train("vgg")),
    "tiny-adain": Entry("the decoder of AdaIN for the slim VGG", "Apache-2.0", _train("adain")),
    "tiny-control": Entry("a ControlNet of the tiny world, from edges to pictures", "Apache-2.0", _train("control")),
    "sd15": Entry(
        "Stable Diffusion 1.5: 512 x 512 pixels", "CreativeML Open RAIL-M", guidance=7.5,
        repository="stable-diffusion-v1-5/stable-diffusion-v1-5", revision="451f4fe16113bff5a5d2269ed5ad43b0592e9a14",
    ),
    "sdxl": Entry(
        "Stable Diffusion XL 1.0, base: 1024 x 1024 pixels", "CreativeML Open RAIL++-M", guidance=5.0,
        repository="stabilityai/stable-diffusion-xl-base-1.0", revision="462165984030d82259a11f4367a4eed129e94a7b",
    ),
}  # fmt: skip


def names() -> tuple[str, ...]:
    """The names of all weights, shipped ones first."""
    return tuple(ENTRIES)


def entry(name: str) -> Entry:
    """What is known of the weights of this name.

    Raises:
        ValueError: no weights have this name.
    """
    if name not in ENTRIES:
        raise ValueError(f"no weights are called {name!r}; there are {', '.join(ENTRIES)}")
    return ENTRIES[name]


def folder(name: str) -> Path:
    """The folder of shipped weights; every file in it has been checked in this process.

    Raises:
        ValueError: no weights have this name, or they are remote.
        WeightsError: a file is missing, damaged, or not listed in ``SHA256SUMS``; says which, the expected and the
            found sha256, and what to do.
    """
    if entry(name).repository:
        raise ValueError(
            f"{name} does not ship with the package, so it has no folder here; "
            f"load it from the Hugging Face Hub with stylemoments.diffusion.load({name!r})"
        )
    return _checked(WEIGHTS, name)


@cache
def _checked(weights: Path, name: str) -> Path:
    expected = _listed(weights, name)
    found = files(weights, name)
    for file in [*expected, *found]:
        was = sha256(found[file]) if file in found else "none, the file is missing"
        should = expected.get(file, f"none, {SUMS} does not list the file")
        if was != should:
            raise _broken(name, f"{weights / file}\n  expected sha256: {should}\n  found sha256:    {was}")
    return weights / name


def files(weights: Path, name: str = "") -> dict[str, Path]:
    """What has a sum, by its path in ``weights``: every file of the named weights but cards and hidden ones."""
    found = sorted(p for p in (weights / name).rglob("*") if p.is_file() and p.name != CARD and p.name[0] != ".")
    return {path.relative_to(weights).as_posix(): path for path in found if path.parent != weights}


def _listed(weights: Path, name: str) -> dict[str, str]:
    """The sha256 of every file of these weights."""
    sums = weights / SUMS
    if not sums.is_file():
        raise _broken(name, f"{sums} is missing, so no file can be checked")
    pairs = (line.split(maxsplit=1) for line in sums.read_text("utf-8").splitlines() if line.strip())
    listed = {file.lstrip("*"): digest for digest, file in pairs if file.lstrip("*").startswith(f"{name}/")}
    if not listed:
        raise _broken(name, f"{sums} lists no file of {name}")
    return listed


def sha256(path: Path) -> str:
    """The sha256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _broken(name: str, fault: str) -> WeightsError:
    return WeightsError(
        f"the weights {name} must be exactly those that shipped: {fault}\n"
        "Install the package again with pip's option --force-reinstall; in a git clone, "
        "`git restore lib/stylemoments/weights` and delete files of yours there. "
        f"The command that trains them anew: {ENTRIES[name].command}"
    )
