"""Trains tiny-subject, a network that tells whether two pictures of the tiny world show the very same thing.

    python -m stylemoments.train.subject --out runs/subject

It learns by contrast: two pictures of one drawing, in two places and poses, shall be more alike than pictures of
different drawings. The loss is that of Khosla et al., *Supervised Contrastive Learning*, 2020 (arXiv 2004.11362) with
one positive for each picture, which is InfoNCE (van den Oord et al., 2018, arXiv 1807.03748) within the batch.

What it shall tell apart are subjects, drawings that no sample shows. So it learns from many identities: each drawing of
the training hands in six orders of its color channels, some of them mirrored. Four identities in each batch are of one
object, by other hands or in other colors: a subject must not be confused with others of its class. As in
:mod:`stylemoments.train.judge`, pictures are shifted, blurred and made noisy, for what a diffusion model draws is soft.
"""

import json
from collections.abc import Callable, Sequence
from itertools import permutations

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_model
from torch import Tensor, nn

from ..embed import DINO, TINY, SubjectNet
from ..world import HANDS, HELD_OUT_HAND, NOWHERE, OBJECTS, PLACES, PLAIN, STYLES, Palette, World
from ..world.drawings import SUBJECT_HANDS, drawing, pose
from ..world.styles import Picture
from . import loop
from .judge import augment

SETTINGS = loop.Settings(steps=600, batch=16, rate=2e-3, pictures=8192, weight_decay=0.05, average=0.99)
IDENTITIES = 4  # of each object in a batch
VIEWS = 2  # pictures of each identity
TEMPERATURE = 0.1
SIZE = 64
ORDERS = torch.tensor([*permutations(range(3))])  # of the color channels: 6 3
EVERYWHERE = (NOWHERE, *PLACES)
FRESH_SEED = 2  # the pictures of the figures; training has seed 1
SETS = 5  # pictures of one thing, as many as a subject has
SHOWN = 8


def grounds(n: int, seed: int) -> Tensor:
    """What is behind the object: uint8 ``(places, n, 3, 64, 64)`` of random palettes, places as in ``EVERYWHERE``."""
    rng = np.random.default_rng([seed, 0])
    return torch.stack([torch.stack([ground(place, rng) for _ in range(n)]) for place in EVERYWHERE])


def ground(place: str, rng: np.random.Generator) -> Tensor:
    """One plain picture ``(3, 64, 64)`` of a place, or of nowhere, with no object before it."""
    palette, clear = Palette(rng.random()), np.zeros((SIZE, SIZE, 4), np.float32)
    scene = None if place == NOWHERE else PLACES[place](SIZE, palette, rng)
    return _bytes(STYLES[PLAIN](Picture(clear[..., :3], clear[..., 3], scene), palette, rng))


def poses(n: int, seed: int) -> Tensor:
    """Objects by the training hands in random poses: uint8 RGBA ``(objects, hands, n, 4, 64, 64)``."""
    rng = np.random.default_rng([seed, 1])
    made = [[[posed(noun, hand, rng) for _ in range(n)] for hand in HANDS] for noun in OBJECTS]
    return torch.stack([torch.stack([torch.stack(same) for same in hands]) for hands in made])


def posed(noun: str, hand: str, rng: np.random.Generator) -> Tensor:
    """One drawing ``(4, 64, 64)`` in a pose that the world knows, outdoors or nowhere."""
    scale, down, right, turn = rng.uniform((46, -2, -2, -0.12), (61, 5, 2, 0.12))
    return _bytes(pose(drawing(noun, hand, SIZE), scale=scale / 64, down=down / 64, right=right / 64, turn=turn))


def _bytes(x: np.ndarray) -> Tensor:
    return (torch.from_numpy(x).clamp(0, 1) * 255).round().byte().permute(2, 0, 1)


def contrast(features: Tensor) -> dict[str, Tensor]:
    """The loss for unit vectors ``(identities, 2, d)``, and how often the nearest other picture is of the same thing.

    For three identities at right angles the cosines are 1 with the own, and 0 with the four others:

    >>> found = contrast(torch.eye(3)[:, None].expand(3, 2, 3))  # loss: the logarithm of 1 + 4 exp(-10)
    >>> round(found["loss"].item(), 5), found["nearest"].item()
    (0.00018, 1.0)
    """
    flat = features.flatten(0, 1)
    cosines = (flat @ flat.T).fill_diagonal_(-torch.inf)
    own = torch.arange(len(flat), device=flat.device) ^ 1  # 1 0 3 2 5 4: the other picture of a pair
    return {
        "loss": F.cross_entropy(cosines / TEMPERATURE, own),
        "nearest": (cosines.argmax(-1) == own).float().mean(),
    }


class Contrast(nn.Module):
    """The network with its loss; pictures are ``(identities, 2, 3, 64, 64)`` in [0, 1]."""

    def __init__(self):
        super().__init__()
        self.network = SubjectNet().to(memory_format=torch.channels_last)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        with torch.autocast(images.device.type, enabled=False):
            seen = augment(images.flatten(0, 1)).contiguous(memory_format=torch.channels_last)
        features = self.network(seen * 2 - 1).float()
        with torch.autocast(images.device.type, enabled=False):  # half precision is rough over a low temperature
            return contrast(F.normalize(features, dim=-1).unflatten(0, (-1, VIEWS)))


class Task:
    """What :func:`loop.steps` trains; what that counts as pictures are objects, of which each batch shows a few."""

    pictures = len(OBJECTS)

    def __init__(self, rendered: int, seed: int = 1):
        self.poses = poses(-(-rendered // (len(OBJECTS) * len(HANDS))), seed)
        self.grounds = grounds(-(-rendered // len(EVERYWHERE)), seed)
        self.model = Contrast()

    def batch(self, rows: Tensor) -> tuple[Tensor]:
        """Two pictures of each identity, ``(identities, 2, 3, 64, 64)``, in two places."""
        kinds = torch.rand(len(rows), len(HANDS) * len(ORDERS)).argsort(-1)[:, :IDENTITIES].flatten()
        n = len(kinds)
        objects, hands, orders = rows.repeat_interleave(IDENTITIES), kinds % len(HANDS), kinds // len(HANDS)
        pick = torch.randint(self.poses.shape[2], (n, VIEWS))
        rgba = self.poses[objects[:, None], hands[:, None], pick].float() / 255  # n v c h w
        rgb = rgba.gather(2, ORDERS[orders][:, None, :, None, None].expand_as(rgba[:, :, :3]))
        first, step = torch.randint(len(EVERYWHERE), (n,)), torch.randint(1, len(EVERYWHERE), (n,))
        places = torch.stack([first, (first + step) % len(EVERYWHERE)], -1)
        behind = self.grounds[places, torch.randint(self.grounds.shape[1], (n, VIEWS))].float() / 255
        mirrored = torch.rand(n, 1, 1, 1, 1) < 0.5
        rgb, alpha = (torch.where(mirrored, x.flip(-1), x) for x in (rgb, rgba[:, :, 3:]))
        return (behind.lerp(rgb, alpha),)

    def after_step(self, model, settings, step):
        pass

    @torch.no_grad()
    def sheet(self, model: nn.Module) -> np.ndarray:
        """Left a picture, then those of a batch that the network finds nearest; the first shall show the same thing."""
        torch.manual_seed(0)
        images = self.batch(torch.arange(self.pictures))[0].flatten(0, 1)
        device = next(model.parameters()).device
        features = F.normalize(model.network(images.to(device) * 2 - 1).float(), dim=-1)
        near = (features[: 2 * VIEWS * SHOWN : 2 * VIEWS] @ features.T).topk(SHOWN).indices.cpu()
        shown = images[near].permute(0, 3, 1, 4, 2).flatten(0, 1).flatten(1, 2)  # (rows 64) (columns 64) 3
        return (shown * 255).round().byte().numpy()


def subjects() -> tuple[Tensor, Tensor]:
    """The world's subjects ``(16, 5, 3, 64, 64)``, and eight pictures of the class of each ``(16, 8, 3, 64, 64)``."""
    found = World(0).subjects()
    images = torch.stack([torch.from_numpy(subject.images) for subject in found])
    return images, torch.stack([plain(subject.noun, EVERYWHERE) for subject in found])


def held_out() -> tuple[Tensor, Tensor]:
    """Five pictures of every object by the held-out hand, and eight by the training hands."""
    places = [[EVERYWHERE[(i + k) % len(EVERYWHERE)] for k in range(SETS)] for i in range(len(OBJECTS))]
    images = [plain(noun, some, HELD_OUT_HAND) for noun, some in zip(OBJECTS, places, strict=True)]
    return torch.stack(images), torch.stack([plain(noun, EVERYWHERE) for noun in OBJECTS])


def plain(noun: str, places: Sequence[str], hand: str | None = None) -> Tensor:
    """One plain picture of the object in each of these places, ``(places, 3, 64, 64)``; fresh ones."""
    world, first = World(FRESH_SEED), OBJECTS.index(noun) * len(EVERYWHERE)
    samples = [
        world.sample(1, start=first + k, object=noun, style=PLAIN, place=place, hand=hand)
        for k, place in enumerate(places)
    ]
    return torch.cat([torch.from_numpy(sample.images) for sample in samples])


def changed() -> dict[str, Tensor]:
    """The subjects in ways that no plain picture shows them, ``(16, 5, 3, 64, 64)`` each; in styles, five palettes."""
    images = subjects()[0]
    small = F.avg_pool2d(images.flatten(0, 1), 2)
    ways = {
        "mirrored": images.flip(-1),
        "at half the resolution": F.interpolate(small, scale_factor=2, mode="bilinear").reshape(images.shape),
        "with their colors exchanged": images.roll(1, dims=2),
    }
    return ways | {f"in {style} style": in_style(style) for style in STYLES if style != PLAIN}


def in_style(style: str) -> Tensor:
    """Each subject five times in a style, ``(16, 5, 3, 64, 64)``, and nowhere."""
    rng = np.random.default_rng(FRESH_SEED)
    images = []
    for name, hand in SUBJECT_HANDS.items():
        x = pose(drawing(name, hand, SIZE), scale=57 / 64, down=0, right=0, turn=0)
        pictures = [STYLES[style](Picture(x[..., :3], x[..., 3]), Palette(hue), rng) for hue in rng.random(SETS)]
        images.append(torch.stack([_bytes(picture) for picture in pictures]) / 255)
    return torch.stack(images)


def told_apart(extract: Callable[[Tensor], Tensor], images: Tensor, others: Tensor) -> dict[str, float]:
    """How well features tell things apart.

    Args:
        extract: pictures ``(n, 3, 64, 64)`` to unit vectors ``(n, d)``.
        images: of things, ``(things, pictures, 3, 64, 64)``, two pictures of each or more.
        others: of other things of the same class, ``(things, pictures, 3, 64, 64)``.

    Returns:
        how often the ``nearest`` other picture shows the same thing; the mean cosine ``within`` a thing, ``between``
        two things, and of a thing with others of its ``class``; and the number ``n`` of pictures.
    """
    features, their = (extract(x.flatten(0, 1)).unflatten(0, x.shape[:2]) for x in (images, others))
    things, k = features.shape[:2]
    cosines = torch.einsum("skd,tld->sktl", features, features).reshape(things * k, things * k)
    own = torch.arange(things).repeat_interleave(k)
    same, itself = own[:, None] == own, torch.eye(len(own), dtype=torch.bool)
    nearest = own[cosines.masked_fill(itself, -torch.inf).argmax(-1)] == own
    found = {
        "nearest": nearest.float().mean(),
        "within": cosines[same & ~itself].mean(),
        "between": cosines[~same].mean(),
        "class": torch.einsum("skd,sld->skl", features, their).mean(),
    }
    return {name: round(value.item(), 4) for name, value in found.items()} | {"n": len(own)}


def main() -> None:
    options = loop.parser(__doc__.splitlines()[0], SETTINGS).parse_args()
    settings = loop.chosen(SETTINGS, options)
    torch.manual_seed(settings.seed)
    task = Task(settings.pictures)

    def finish():
        network = task.model.network.to(memory_format=torch.contiguous_format)
        save_model(network, options.out / "model.safetensors")
        things = {"subjects": subjects(), "held-out hand": held_out()}
        found = {kind: told_apart(DINO(network, TINY), *pictures) for kind, pictures in things.items()}
        (options.out / "figures.json").write_text(json.dumps(found, indent=2) + "\n", "utf-8")

    loop.run(task, settings, options.out, finish)


if __name__ == "__main__":
    main()
