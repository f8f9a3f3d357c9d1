"""Puts what the other scripts made into the package, in half precision, with the sha256 of every file.

    python -m stylemoments.train.ship runs

Weights that were not trained anew stay as they are.
"""

import shutil
from argparse import ArgumentParser
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file, save_file

from .. import zoo
from . import loop


def halve(source: Path, target: Path) -> None:
    """Copy a safetensors file with its floating-point numbers in half precision."""
    tensors = {name: x.half() if x.is_floating_point() else x for name, x in load_file(source).items()}
    save_file(tensors, target, metadata={"format": "pt"})


def finished(run: Path) -> bool:
    """Whether a run has taken all its steps."""
    if not (run / loop.CHECKPOINT).exists():
        return False
    saved = torch.load(run / loop.CHECKPOINT, map_location="cpu", weights_only=True, mmap=True)
    return saved["step"] == saved["settings"]["steps"]


def ship(runs: Path, weights: Path) -> list[str]:
    """Copy every finished run; returns the names of the weights that were."""
    done = []
    if all(finished(runs / part) for part in ("autoencoder", "clip", "denoiser")):
        pipe = StableDiffusionPipeline.from_pretrained(runs / "denoiser/pipeline", dtype=torch.float16)
        for part in (pipe, pipe.unet, pipe.vae):
            part.register_to_config(_name_or_path="tiny-sd")  # and no folder of this machine
        pipe.text_encoder.float()  # transformers computes in the precision of the file, diffusers in single
        pipe.save_pretrained(_emptied(weights / "tiny-sd"))
        shutil.copytree(runs / "clip/tokenizer", weights / "tiny-sd/tokenizer", dirs_exist_ok=True)
        for part in ("autoencoder", "denoiser"):
            shutil.copy(runs / part / loop.CURVE, weights / f"tiny-sd/curve-{part}.jsonl")
        done.append("tiny-sd")
    for name, model, config in [
        ("tiny-clip", "clip/open_clip_model.safetensors", "clip/open_clip_config.json"),
        ("tiny-dino", "dino/model.safetensors", "dino/config.json"),
        ("tiny-subject", "subject/model.safetensors", None),
        ("judge", "judge/model.safetensors", None),
        ("tiny-vgg", "vgg/model.safetensors", "vgg/figures.json"),
        ("tiny-adain", "adain/decoder.safetensors", None),
        ("tiny-control", "control/diffusion_pytorch_model.safetensors", "control/config.json"),
    ]:
        if finished((runs / model).parent):
            folder = _emptied(weights / name)
            halve(runs / model, folder / Path(model).name)
            shutil.copy((runs / model).with_name(loop.CURVE), folder)
            if config:
                shutil.copy(runs / config, folder)
            done.append(name)
    if "tiny-clip" in done:
        shutil.copytree(runs / "clip/tokenizer", weights / "tiny-clip/tokenizer")
    return done


def _emptied(folder: Path) -> Path:
    """The folder with its card only."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != zoo.CARD:
            path.unlink()
    return folder


def write_sums(weights: Path) -> None:
    """Write the sha256 of every file but the cards."""
    lines = [f"{zoo.sha256(path)}  {file}\n" for file, path in zoo.files(weights).items()]
    part = weights / f"{zoo.SUMS}.part"
    part.write_text("".join(lines), "utf-8")
    part.replace(weights / zoo.SUMS)


def main() -> None:
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", type=Path, help="the folder with the runs, each under the name of its script")
    runs = parser.parse_args().runs
    done = ship(runs, zoo.WEIGHTS)
    if not done:
        parser.error(f"{runs} holds no finished run; the scripts write runs/autoencoder, runs/clip and so on")
    write_sums(zoo.WEIGHTS)
    size = sum(path.stat().st_size for path in zoo.WEIGHTS.rglob("*.safetensors"))
    print(f"shipped {', '.join(done)}; all weights together: {size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
