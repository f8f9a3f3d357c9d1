"""Trains the decoder of AdaIN on the slim VGG: photographs in the styles of photographs, paintings and patterns.

    python -m stylemoments.train.adain --out runs/adain

Huang & Belongie 2017 (arXiv 1703.06868), and the method is theirs: a frozen encoder, AdaIN, a decoder without norms,
a content loss against what AdaIN asked for and a style loss on four layers. Deviations: the encoder is the shipped slim
VGG; instead of 80,000 photographs and 80,000 paintings there are seventy-odd pictures and the patterns of
``train/patterns.py``, all of them in changing colors; crops of 96 pixels, not 256; a larger learning rate, because
the network is small; a smaller weight of the style, because the small VGG's features spread more around their mean of
one; and a second task, to give photographs back as they are, without which this little training leaves colored fringes.
"""

import json
from dataclasses import replace

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from .. import gallery, zoo
from ..adain import StyleTransfer, losses
from . import loop
from .patterns import patterns
from .vgg import Crops, augmented

SETTINGS = loop.Settings(steps=2800, batch=8, rate=1e-3, weight_decay=0.0, save_every=500)
SCALING = "mean"
STYLE = 4.0  # weight of the style loss; the published one of this scaling is 10
BACK = 20.0  # weight of the mean absolute error of photographs that are decoded as they are
SIDE = 96  # pixels of a crop
SHARE = {"photographs": 3, "paintings": 2, "patterns": 3}  # of the eight styles of a batch
SHEET = 192  # pixels


class Stylizing(nn.Module):
    """The network with its losses; only the decoder learns."""

    def __init__(self):
        super().__init__()
        self.net = StyleTransfer()

    def forward(self, content: Tensor, style: Tensor) -> dict[str, Tensor]:
        found = losses(self.net, content, style, scaling=SCALING)
        found["back"] = (self.net.decoder(self.net.encode(content)) - content).abs().mean()
        return {"loss": found["content"] + STYLE * found["style"] + BACK * found["back"], **found}


class Task:
    """What :func:`loop.steps` trains."""

    def __init__(self, settings: loop.Settings):
        self.pictures, self.model = settings.pictures, Stylizing()
        self.photographs = Crops(gallery.names("photograph", "train"), SIDE)
        self.paintings = Crops(gallery.names("painting", "train"), SIDE)

    def batch(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        n = len(rows)
        kinds = torch.arange(n) * sum(SHARE.values()) // n
        photographs = int((kinds < SHARE["photographs"]).sum())
        paintings = int((kinds < SHARE["photographs"] + SHARE["paintings"]).sum()) - photographs
        pick = torch.randint(2**31, (n,))
        found = torch.cat([self.photographs(pick[:photographs]), self.paintings(pick[photographs:][:paintings])])
        style = torch.cat([augmented(found), patterns(n - len(found), SIDE)])
        return augmented(self.photographs(rows)), style

    def after_step(self, model, settings, step):
        pass

    @torch.no_grad()
    def sheet(self, model: Stylizing) -> np.ndarray:
        """Test photographs down, test paintings across."""
        contents = [square(name) for name in gallery.names("photograph", "test")[:6]]
        styles = [square(name) for name in gallery.names("painting", "test")]
        rows = [torch.cat([torch.ones_like(contents[0]), *styles], -1)]
        rows += [torch.cat([c, *(model.net(c, s).clamp(0, 1) for s in styles)], -1) for c in contents]
        return (torch.cat(rows, -2)[0].permute(1, 2, 0) * 255).round().byte().numpy()


def square(name: str) -> Tensor:
    """The middle of a picture, ``(1, 3, SHEET, SHEET)``."""
    picture = gallery.load(name, SHEET)
    top, left = ((side - SHEET) // 2 for side in picture.shape[2:])
    return picture[:, :, top : top + SHEET, left : left + SHEET]


@torch.no_grad()
def figures(net: StyleTransfer, n: int) -> dict[str, float]:
    """Both losses on crops of test photographs in the styles of test paintings."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        content = Crops(gallery.names("photograph", "test"))(torch.arange(n))
        style = Crops(gallery.names("painting", "test"))(torch.arange(n))
    parts = [losses(net, c, s, scaling=SCALING) for c, s in zip(content.split(8), style.split(8), strict=True)]
    return {name: float(np.mean([part[name] for part in parts])) for name in parts[0]} | {"n": n}


def main() -> None:
    options = loop.parser(__doc__.splitlines()[0], SETTINGS).parse_args()
    encoder = zoo.sha256(zoo.folder("tiny-vgg") / "model.safetensors")
    settings = replace(loop.chosen(SETTINGS, options), inputs=encoder)
    torch.manual_seed(settings.seed)
    task = Task(settings)

    def finish():
        net = task.model.net
        save_file({k: v.contiguous() for k, v in net.decoder.state_dict().items()}, options.out / "decoder.safetensors")
        found = figures(net, n=16 if options.smoke else 200)
        (options.out / "figures.json").write_text(json.dumps(found, indent=2) + "\n", "utf-8")
        print(json.dumps(found, indent=2))

    loop.run(task, settings, options.out, finish)


if __name__ == "__main__":
    main()
