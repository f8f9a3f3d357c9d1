"""Make the pictures of README and welcome page into book/_static/pictures: `make pictures`."""

from pathlib import Path

import matplotlib
import numpy as np
import torch
from skimage import data
from sklearn.datasets import load_sample_image

from stylemoments import adain, diffusion, files, gallery, norms, show
from stylemoments.prompts import tiny_sets
from stylemoments.train import measure_style_aligned
from stylemoments.train.measure_transfer import pairs
from stylemoments.world import STYLES, prompt

OUT = Path(__file__).parents[1] / "_static/pictures"


def photo(array: np.ndarray, width: int = 480, height: int = 320) -> torch.Tensor:
    """The middle of an (H, W, 3) array at 480 × 320, as a tensor (1, 3, H, W) in [0, 1]."""
    image = torch.tensor(array).permute(2, 0, 1)[None] / 255
    scale = max(width / image.shape[3], height / image.shape[2])
    image = torch.nn.functional.interpolate(image, scale_factor=scale, mode="bicubic", antialias=True).clamp(0, 1)
    top, left = (image.shape[2] - height) // 2, (image.shape[3] - width) // 2
    return image[:, :, top : top + height, left : left + width]


def adain_pixels() -> matplotlib.figure.Figure:
    """Two rows: content, style, and the content with the style's moments at α = 0.5 and 1."""
    photos = [
        (load_sample_image("china.jpg"), data.coffee()),
        (load_sample_image("china.jpg"), load_sample_image("flower.jpg")),
    ]
    images = []
    for content, style in (map(photo, pair) for pair in photos):
        full = norms.adain(content, style)
        images += [x.clamp(0, 1)[0] for x in (content, style, (content + full) / 2, full)]
    return show.grid(images, columns=4, titles=["content", "style", "α = 0.5", "α = 1"] + [""] * 4, size=2.4)


def tiny_samples() -> matplotlib.figure.Figure:
    """What the tiny model draws: four objects in every style, the first seed of each."""
    nouns = ("guitar", "dragon", "cat", "sailboat")
    prompts = [prompt(noun, style=style) for noun in nouns for style in STYLES]
    images = diffusion.generate(diffusion.load("tiny"), prompts)
    titles = [*(style.split()[0] for style in STYLES), *[""] * 27]
    return show.grid(images, columns=9, titles=titles, size=1.05)


def aligned_sets() -> matplotlib.figure.Figure:
    """Two of the evaluation sets, and below each the same prompts and noise with StyleAligned."""
    pipe, numbers = diffusion.load("tiny"), [0, 5]
    rows = [measure_style_aligned.draw(pipe, settings, numbers) for settings in (None, {})]
    titles = [noun for number in numbers for noun in tiny_sets()[number].objects]
    return show.grid(torch.stack(rows).flatten(0, 2), columns=8, titles=[*titles, *[""] * 8], size=1.25)


def adain_pairs() -> matplotlib.figure.Figure:
    """Eight photographs in the style of paintings, neither seen in training, drawn by a seed."""
    model, images = adain.load(), []
    for photograph, painting in pairs(8):
        content, style = square(photograph), square(painting)
        images += [content[0], style[0], adain.stylize(model, content, style)[0]]
    return show.grid(images, columns=6, titles=["photograph", "painting", "result"] * 2 + [""] * 18, size=2.4)


def square(name: str, side: int = 512) -> torch.Tensor:
    """The middle of a picture of the gallery, (1, 3, side, side)."""
    picture = files.resize(gallery.load(name), side)
    top, left = ((length - side) // 2 for length in picture.shape[2:])
    return picture[:, :, top : top + side, left : left + side]


def save(figure: matplotlib.figure.Figure, name: str) -> None:
    """Write a figure as webp."""
    figure.savefig(OUT / name, dpi=130, pil_kwargs={"quality": 88})
    print(f"wrote {OUT.name}/{name}")


if __name__ == "__main__":
    matplotlib.use("Agg")
    show.use_style()
    OUT.mkdir(parents=True, exist_ok=True)
    save(adain_pixels(), "adain-pixels.webp")
    save(tiny_samples(), "tiny-samples.webp")
    save(aligned_sets(), "aligned-sets.webp")
    save(adain_pairs(), "adain-pairs.webp")
