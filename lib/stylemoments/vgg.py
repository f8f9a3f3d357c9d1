r"""Features of VGG-19 by layer name: the eyes of style transfer.

Simonyan & Zisserman 2015 (arXiv 1409.1556). Sixteen 3 × 3 convolutions in five blocks, a ReLU after each, a pooling
between the blocks; ``relu3_1`` is the first ReLU of the third block. Two sizes share this plan:

    ================  =========  ==============================  =========================================
    weights           channels   reads RGB in [0, 1] as          where they come from
    ================  =========  ==============================  =========================================
    ``tiny``          16 … 128   minus mean, by deviation        ship with the package, up to ``relu4_1``
    ``vgg19``         64 … 512   minus mean, by deviation        torchvision's, from ImageNet
    ``vgg19-adain``   64 … 512   it is, then a 1 × 1 conv        AdaIN's rescaled ("normalised") VGG-19
    ``random``        16 … 128   minus mean, by deviation        He weights, to compare with ``tiny``
    ``random-wide``   64 … 512   minus mean, by deviation        He weights, to time the full width
    ================  =========  ==============================  =========================================

Mixing the two conventions of the third column is a common fault ("the output is gray"), so each set of weights brings
its own, and you always pass RGB in [0, 1].

What differs from the paper: reflection padding where the weights were trained with it (``tiny``, ``vgg19-adain``), and
average pooling on request, which Gatys et al. (1508.06576) recommend for smoother pictures.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from urllib.error import URLError

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import zoo

BLOCKS = (2, 2, 4, 4, 4)  # convolutions per block
LAYERS = tuple(f"relu{block}_{i}" for block, n in enumerate(BLOCKS, start=1) for i in range(1, n + 1))
STYLE_LAYERS = ("relu1_1", "relu2_1", "relu3_1", "relu4_1")
DEEPEST_TINY = "relu4_1"

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet's RGB, as torchvision's weights want it
ADAIN_FILE = "vgg_normalised.pth"
ADAIN_PAGE = "https://github.com/naoto0804/pytorch-AdaIN/releases"  # the Torch original's weights, converted


def channels(layer: str, width: int = 64) -> int:
    """How many channels a layer has, where the first has ``width``.

    >>> channels("relu4_1"), channels("relu5_4"), channels("relu4_1", width=16)
    (512, 512, 128)
    """
    return width * min(2 ** (_block(layer) - 1), 8)


def _block(layer: str) -> int:
    return int(layer[4])


def _conv(layer: str) -> str:
    """The name of the convolution before a ReLU."""
    return layer.replace("relu", "conv")


def _check_layers(layers: Sequence[str], deepest: str) -> tuple[str, ...]:
    layers = (layers,) if isinstance(layers, str) else tuple(layers)
    known = LAYERS[: LAYERS.index(deepest) + 1]
    unknown = [layer for layer in layers if layer not in known]
    if unknown or not layers:
        got = ", ".join(map(str, unknown)) or "none"
        raise ValueError(f"layers must be one or more of {', '.join(known)}; got {got}")
    return tuple(sorted(set(layers), key=known.index))


class VGG(nn.Module):
    """The convolutions of VGG-19 up to a layer, to be trained; :class:`VGGFeatures` wraps trained ones.

    Args:
        width: channels of the first block: 64 in the paper.
        deepest: the last layer there is.
        padding: ``"zeros"`` as in the paper, or ``"reflect"``.
        pooling: ``"max"`` as in the paper, or ``"average"``.
        norm: builds a norm for a number of channels, put between convolution and ReLU; none in the paper.
    """

    def __init__(
        self,
        width: int = 64,
        deepest: str = LAYERS[-1],
        *,
        padding: str = "zeros",
        pooling: str = "max",
        norm: Callable[[int], nn.Module] | None = None,
    ):
        super().__init__()
        if padding not in ("zeros", "reflect") or pooling not in ("max", "average"):
            raise ValueError(f"padding is zeros or reflect, pooling is max or average; got {padding!r}, {pooling!r}")
        self.pool = F.max_pool2d if pooling == "max" else F.avg_pool2d
        seen = 3
        for layer in LAYERS[: LAYERS.index(deepest) + 1]:
            conv = nn.Conv2d(seen, channels(layer, width), 3, padding=1, padding_mode=padding)
            nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
            nn.init.zeros_(conv.bias)
            seen = conv.out_channels
            self.add_module(_conv(layer), nn.Sequential(conv, norm(seen)) if norm else conv)

    def forward(self, x: Tensor, layers: Sequence[str]) -> dict[str, Tensor]:
        """Activations after the ReLU of each of these layers; those behind the deepest are not computed."""
        found = {}
        for layer in LAYERS[: max(map(LAYERS.index, layers)) + 1]:
            if layer.endswith("_1") and layer != LAYERS[0]:
                x = self.pool(x, 2)
            x = F.relu(self.get_submodule(_conv(layer))(x))
            if layer in layers:
                found[layer] = x
        return found


class VGGFeatures(nn.Module):
    """Activations of a trained VGG at layers named after the paper, frozen and in eval mode for good.

    Args:
        layers: any of :data:`LAYERS`; the small network ends at ``relu4_1``.
        weights: see the table at the top of this room.
        padding: ``"zeros"`` or ``"reflect"``; None takes what the weights were trained with.
        pooling: ``"max"``, or ``"average"`` for smoother pictures.

    Attributes:
        layers: the layers, in the order of the network.
        channels: the number of channels of each.

    Raises:
        ValueError: a layer, weights, padding or pooling of another name.
        WeightsError: the weights are damaged, or not on this machine; says where to put which file.

    Example:
        >>> features = VGGFeatures(["relu2_1"], weights="random")
        >>> features(torch.zeros(1, 3, 32, 48))["relu2_1"].shape
        torch.Size([1, 32, 16, 24])
    """

    def __init__(
        self,
        layers: Sequence[str] = STYLE_LAYERS,
        *,
        weights: str = "tiny",
        padding: str | None = None,
        pooling: str = "max",
    ):
        super().__init__()
        if weights not in _SOURCES:
            raise ValueError(f"weights must be one of {', '.join(_SOURCES)}; got {weights!r}")
        width, deepest, trained_with, load = _SOURCES[weights]
        self.layers = _check_layers(layers, deepest)
        self.channels = {layer: channels(layer, width) for layer in self.layers}
        self.network = VGG(width, self.layers[-1], padding=padding or trained_with, pooling=pooling)
        load(self)
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True):  # noqa: ARG002
        """Stays in eval mode, whatever the network around it does."""
        return super().train(False)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Features of RGB images.

        Args:
            images: floating point ``(B, 3, H, W)``, RGB in [0, 1]; values a little outside are no error, because an
                image that is being optimized strays there.

        Returns:
            for each layer, in the order of the network, ``(B, C, h, w)``: h and w are H and W halved, rounding down,
            once per block that came before.

        Raises:
            ValueError: another shape, or images too small for the deepest layer.
        """
        smallest = 2 ** _block(self.layers[-1])  # two pixels at the deepest layer: one has no deviation
        if images.ndim != 4 or images.shape[1] != 3 or min(images.shape[2:]) < smallest:
            raise ValueError(
                f"images must be (B, 3, H, W), RGB in [0, 1], with H and W at least {smallest} for "
                f"{self.layers[-1]}; got shape {tuple(images.shape)}"
            )
        return self.network(self.enter(images), self.layers)


def _standardize(self: VGGFeatures) -> None:
    """Enter by ImageNet's mean and deviation."""
    self.register_buffer("mean", torch.tensor(MEAN)[:, None, None], persistent=False)
    self.register_buffer("std", torch.tensor(STD)[:, None, None], persistent=False)
    self.enter = lambda images: (images - self.mean) / self.std


def _load_random(self: VGGFeatures) -> None:
    _standardize(self)
    generator = torch.Generator().manual_seed(0)
    for conv in self.network.children():
        nn.init.kaiming_normal_(conv.weight, nonlinearity="relu", generator=generator)


def _load_tiny(self: VGGFeatures) -> None:
    from safetensors.torch import load_file

    _standardize(self)
    _fill(self.network, load_file(zoo.folder("tiny-vgg") / "model.safetensors"))


def _load_vgg19(self: VGGFeatures) -> None:
    from . import _torchvision  # noqa: F401 - before torchvision
    from torchvision.models import VGG19_Weights  # isort: skip

    _standardize(self)
    url = VGG19_Weights.IMAGENET1K_V1.url  # the name of the file holds its sha256, which is checked
    target = Path(torch.hub.get_dir()) / "checkpoints" / Path(url).name
    try:
        state = torch.hub.load_state_dict_from_url(url, check_hash=True, weights_only=True)
    except (URLError, OSError) as error:
        raise zoo.WeightsError(
            f"the weights vgg19 are not on this machine and could not be fetched ({error}). "
            f'Bring the file {url} to {target}, or take weights="tiny", which need no network'
        ) from error
    _fill(self.network, _by_position(state, "features."))


def _load_adain(self: VGGFeatures) -> None:
    target = Path(torch.hub.get_dir()) / "checkpoints" / ADAIN_FILE
    if not target.is_file():
        raise zoo.WeightsError(
            f"the weights vgg19-adain are not on this machine. Bring the file {ADAIN_FILE} from {ADAIN_PAGE} to "
            f'{target}, or take weights="tiny", which need no network'
        )
    state = torch.load(target, map_location="cpu", weights_only=True)
    self.enter = nn.Conv2d(3, 3, 1)
    self.enter.load_state_dict({name: state.pop(f"0.{name}") for name in ("weight", "bias")})
    _fill(self.network, _by_position(state))


def _by_position(state: dict[str, Tensor], prefix: str = "") -> dict[str, Tensor]:
    """The convolutions of a numbered sequence under their names: the n-th to come is the n-th of VGG-19."""
    numbers = {name.removeprefix(prefix).split(".")[0] for name in state if name.startswith(prefix)}
    pairs = zip(sorted(numbers, key=int), LAYERS, strict=False)
    return {f"{_conv(layer)}.{part}": state[f"{prefix}{n}.{part}"] for n, layer in pairs for part in ("weight", "bias")}


def _fill(network: VGG, state: dict[str, Tensor]) -> None:
    """Load what the network has; it may end before the file does."""
    network.load_state_dict({name: state[name].float() for name in network.state_dict()})


#: width of the first block, the deepest layer, the padding of the training, and what loads them
_SOURCES = {
    "tiny": (16, DEEPEST_TINY, "reflect", _load_tiny),
    "vgg19": (64, LAYERS[-1], "zeros", _load_vgg19),
    "vgg19-adain": (64, LAYERS[-1], "reflect", _load_adain),
    "random": (16, DEEPEST_TINY, "reflect", _load_random),
    "random-wide": (64, LAYERS[-1], "reflect", _load_random),
}
