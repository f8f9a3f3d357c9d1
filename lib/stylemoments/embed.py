"""Feature extractors for metrics, of either size behind one interface: unit vectors of CLIP and DINO, and LPIPS.

- CLIP: Radford et al., 2021 (arXiv 2103.00020). Tiny is our own, of the tiny world; full is OpenAI's ViT-L/14.
- DINO: Caron et al., 2021 (arXiv 2104.14294). Tiny is our own, of the tiny world; full is the authors' ViT-B/8, which
  StyleAligned (arXiv 2312.02133) measures with, or their ViT-S/16, which DreamBooth (arXiv 2208.12242) measures with.
- Subject: is this the very same thing? Tiny is our own tiny-subject, for tiny-dino cannot tell; full is DINO ViT-S/16.
- Perceptual: LPIPS, Zhang et al., 2018 (arXiv 1801.03924), as features whose squared distance it is. Tiny takes our
  slim VGG, full the authors' AlexNet.

    >>> clip = embed.clip()  # doctest: +SKIP
    >>> clip.images(images) @ clip.texts(["a cat in papercut art style"]).T  # doctest: +SKIP
"""

import json
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import _torchvision  # noqa: F401
from .judge import Block, checked

SIZES = ("tiny", "full")
FULL_CLIP = ("ViT-L-14-quickgelu", "openai")  # OpenAI trained with the quick GELU; plain "ViT-L-14" has another
FULL_DINO = ("vit_base_patch8_224.dino", "vit_small_patch16_224.dino")
BATCH = 64  # pictures or texts at a time, to bound the memory
EPSILON = 1e-10  # of LPIPS, against a division by zero


@dataclass(frozen=True)
class Preprocess:
    """Pictures in [0, 1] to what a network was trained on."""

    resize: int  # pixels of the shorter side, bicubic with antialiasing
    crop: int  # pixels of each side, from the middle
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def __call__(self, images: Tensor) -> Tensor:
        """``(n, 3, H, W)`` in [0, 1] to ``(n, 3, crop, crop)``, shifted by the mean and divided by the deviation."""
        height, width = images.shape[-2:]
        if min(height, width) != self.resize:
            scale = self.resize / min(height, width)
            size = [max(self.resize, int(side * scale)) for side in (height, width)]  # the longer side rounded down
            images = F.interpolate(images, size, mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)
        top, left = (round((side - self.crop) / 2) for side in images.shape[-2:])
        images = images[..., top : top + self.crop, left : left + self.crop]
        mean, std = (images.new_tensor(values)[:, None, None] for values in (self.mean, self.std))
        return (images - mean) / std


TINY = Preprocess(64, 64, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
OPENAI = Preprocess(224, 224, (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
#: As the authors of DINO measure it (their eval_knn.py); timm's settings for these networks resize to 248 instead.
IMAGENET = Preprocess(256, 224, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
TINY_VGG = Preprocess(64, 64, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))  # VGGFeatures brings its own mean and deviation
LPIPS = Preprocess(256, 256, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


class DINO:
    """A network without its head (of a transformer: its class token); see :func:`dino` and :func:`subject`."""

    def __init__(self, network: nn.Module, preprocess: Preprocess, *, device: str | torch.device = "cpu"):
        self.network, self.preprocess, self.device = network.eval().to(device), preprocess, device

    def __call__(self, images: Tensor) -> Tensor:
        """Features of pictures.

        Args:
            images: float ``(N, 3, H, W)`` in [0, 1], of any size.

        Returns:
            float32 ``(N, D)`` on the CPU, each row of length 1.

        Raises:
            ValueError: another shape, or values outside [0, 1].
        """
        return _directions(lambda part: self.network(self.preprocess(part)), checked(images), self.device)


class SubjectNet(nn.Module):
    """A residual network like the judge's; its output says which thing a picture shows. :func:`subject` has it trained.

    >>> SubjectNet()(torch.zeros(2, 3, 64, 64)).shape  # pictures in [-1, 1]
    torch.Size([2, 128])
    """

    WIDTHS = (32, 64, 128, 192)  # channels at 32, 16, 8, 4 pixels on a side
    FEATURES = 128

    def __init__(self):
        super().__init__()
        first = self.WIDTHS[0]
        self.stem = nn.Sequential(nn.Conv2d(3, first, 4, 2, padding=1, bias=False), nn.BatchNorm2d(first), nn.ReLU())
        pairs = zip((first, *self.WIDTHS), self.WIDTHS, (1, 2, 2, 2), strict=False)
        self.body = nn.Sequential(*(Block(channels, out, stride) for channels, out, stride in pairs))
        self.head = nn.Linear(self.WIDTHS[-1], self.FEATURES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(self.stem(x)).mean((-2, -1)))


class CLIP:
    """Pictures and texts in one space; see :func:`clip`."""

    def __init__(
        self, model: nn.Module, preprocess: Preprocess, tokenize: Callable, *, device: str | torch.device = "cpu"
    ):
        self.model, self.preprocess, self.device = model.eval().to(device), preprocess, device
        self.tokenize = tokenize  # a list of texts to their token ids, int64 (N, context length)

    def images(self, images: Tensor) -> Tensor:
        """Features of pictures.

        Args:
            images: float ``(N, 3, H, W)`` in [0, 1], of any size.

        Returns:
            float32 ``(N, D)`` on the CPU, each row of length 1.

        Raises:
            ValueError: another shape, or values outside [0, 1].
        """
        return _directions(lambda part: self.model.encode_image(self.preprocess(part)), checked(images), self.device)

    def texts(self, texts: list[str]) -> Tensor:
        """Features of texts, float32 ``(N, D)`` on the CPU, each row of length 1.

        Raises:
            TypeError: one text instead of a list of texts.
        """
        if isinstance(texts, str):
            raise TypeError(f"texts are a list of strings; got the string {texts!r}: write [{texts!r}]")
        return _directions(self.model.encode_text, self.tokenize(list(texts)), self.device)


class Perceptual:
    """Activations, scaled so that the squared distance between two pictures is LPIPS; see :func:`perceptual`."""

    def __init__(
        self,
        network: Callable[[Tensor], list[Tensor]],
        preprocess: Preprocess,
        weights: list[Tensor] | None = None,
        *,
        device: str | torch.device = "cpu",
    ):
        self.network, self.preprocess, self.weights, self.device = network, preprocess, weights, device

    def __call__(self, images: Tensor) -> Tensor:
        """Features of pictures.

        Args:
            images: float ``(N, 3, H, W)`` in [0, 1], of any size.

        Returns:
            float32 ``(N, D)`` on the CPU; the D are as many as the network has activations, so mind the memory: half a
            megabyte per picture (tiny) or two and a half (full).

        Raises:
            ValueError: another shape, or values outside [0, 1].
        """
        return _in_batches(
            lambda part: scaled(self.network(self.preprocess(part)), self.weights), checked(images), self.device
        )


def scaled(maps: list[Tensor], weights: list[Tensor] | None = None) -> Tensor:
    r"""Activations as vectors whose squared distance is that of LPIPS.

    LPIPS is :math:`\sum_l \frac{1}{H_l W_l} \sum_{h,w} \sum_c w_{lc} (\hat x_{lchw} - \hat y_{lchw})^2`: at each
    position of each layer the channels are scaled to a vector of length 1; the squared differences are weighted by
    channel, averaged over the positions and summed over the layers.

    Args:
        maps: per layer ``(N, C, H, W)``.
        weights: per layer ``(C,)``, none negative; None weighs every channel 1.

    Returns:
        ``(N, D)``, D the activations of all layers.

    Example:
        >>> maps = torch.tensor([[3.0, 4.0], [5.0, 0.0]])[..., None, None]  # one position: (0.6, 0.8) and (1, 0)
        >>> a, b = scaled([maps])
        >>> round((a - b).square().sum().item(), 4)  # 0.4² + 0.8²
        0.8
    """
    rows = []
    for layer, x in enumerate(maps):
        x = x / (x.norm(dim=-3, keepdim=True) + EPSILON)
        if weights is not None:
            x = x * weights[layer].sqrt()[:, None, None]
        rows.append((x / (x.shape[-2] * x.shape[-1]) ** 0.5).flatten(1))
    return torch.cat(rows, -1)


def clip(size: str = "tiny", *, device: str | torch.device = "cpu") -> CLIP:
    """The CLIP of a size.

    Args:
        size: ``"tiny"`` ships with the package and knows the tiny world; ``"full"`` is OpenAI's ViT-L/14, 1.7 GB,
            fetched once from the Hugging Face Hub.
        device: where the network runs.

    Raises:
        ValueError: another size.
        ConnectionError: the full weights are not on this computer and cannot be fetched.
        stylemoments.zoo.WeightsError: the shipped weights are damaged.
    """
    _check_size(size)
    import open_clip

    if size == "full":
        model = _fetched(FULL_CLIP[0], lambda: open_clip.create_model(FULL_CLIP[0], pretrained=FULL_CLIP[1]))
        return CLIP(model, OPENAI, open_clip.get_tokenizer(FULL_CLIP[0]), device=device)
    from safetensors.torch import load_model
    from transformers import CLIPTokenizer

    from . import zoo
    from .train.tokens import token_ids

    folder = zoo.folder("tiny-clip")
    model = open_clip.CLIP(**json.loads((folder / "open_clip_config.json").read_text("utf-8"))["model_cfg"])
    load_model(model, folder / "open_clip_model.safetensors")
    tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
    return CLIP(model, TINY, lambda texts: token_ids(tokenizer, texts), device=device)


def dino(size: str = "tiny", *, name: str = FULL_DINO[0], device: str | torch.device = "cpu") -> DINO:
    """The DINO of a size.

    Args:
        size: ``"tiny"`` ships with the package and knows the tiny world; ``"full"`` is one of the authors' networks,
            fetched once from the Hugging Face Hub.
        name: which of ``FULL_DINO``, where the size is full: ViT-B/8, or ViT-S/16.
        device: where the network runs.

    Raises:
        ValueError: another size or name.
        ConnectionError: the full weights are not on this computer and cannot be fetched.
        stylemoments.zoo.WeightsError: the shipped weights are damaged.
    """
    _check_size(size)
    if name not in FULL_DINO:
        raise ValueError(f"the full DINO is one of {', '.join(FULL_DINO)}; got {name!r}")
    import timm

    if size == "full":
        return DINO(_fetched(name, lambda: timm.create_model(name, pretrained=True)), IMAGENET, device=device)
    from safetensors.torch import load_model

    from . import zoo

    folder = zoo.folder("tiny-dino")
    network = timm.create_model(**json.loads((folder / "config.json").read_text("utf-8")))
    load_model(network, folder / "model.safetensors")
    return DINO(network, TINY, device=device)


def subject(size: str = "tiny", *, device: str | torch.device = "cpu") -> DINO:
    """What tells a subject from others, to measure how well it was kept: see ``metrics.subject_fidelity``.

    Args:
        size: ``"tiny"`` is tiny-subject, which ships with the package and learned to tell drawings of the tiny world
            apart; ``"full"`` is DINO ViT-S/16, as DreamBooth (arXiv 2208.12242) measures.
        device: where the network runs.

    Raises:
        ValueError: another size.
        ConnectionError: the full weights are not on this computer and cannot be fetched.
        stylemoments.zoo.WeightsError: the shipped weights are damaged.
    """
    _check_size(size)
    if size == "full":
        return dino("full", name=FULL_DINO[1], device=device)
    from safetensors.torch import load_model

    from . import zoo

    network = SubjectNet()
    load_model(network, zoo.folder("tiny-subject") / "model.safetensors")  # half precision on disk, single in memory
    return DINO(network, TINY, device=device)


def perceptual(size: str = "tiny", *, device: str | torch.device = "cpu") -> Perceptual:
    """What people see as alike: features whose squared distance is LPIPS, for ``metrics.diversity``.

    LPIPS depends on the size of the pictures, and papers rarely give it. Here the shorter side is resized, bicubic with
    antialiasing, and the middle is cut out.

    Args:
        size: ``"tiny"`` has the form of LPIPS on the slim VGG, ``relu1_1`` to ``relu4_1``, at 64 × 64 pixels, and every
            channel weighs 1: nobody was asked which pictures of the tiny world look alike. ``"full"`` is LPIPS 0.1 on
            AlexNet with the weights that its authors fitted to people's answers, at 256 × 256; it needs the package
            lpips, and fetches torchvision's AlexNet once, 244 MB.
        device: where the network runs.

    Raises:
        ValueError: another size.
        ModuleNotFoundError: the full size without the package lpips.
        ConnectionError: the full weights are not on this computer and cannot be fetched.
        stylemoments.zoo.WeightsError: the shipped weights are damaged.
    """
    _check_size(size)
    if size == "full":
        return lpips_features(_fetched("of torchvision's AlexNet", _lpips), device=device)
    from .vgg import VGGFeatures

    network = VGGFeatures(weights="tiny").to(device)
    return Perceptual(lambda images: [*network(images).values()], TINY_VGG, device=device)


def lpips_features(model: nn.Module, *, device: str | torch.device = "cpu") -> Perceptual:
    """The extractor for an ``lpips.LPIPS``, whose own network, scaling and channel weights it takes.

    Args:
        model: of any of its networks; its weights of the channels must not be negative, as trained ones are not.
        device: where the network runs.
    """
    model = model.eval().to(device)
    weights = [layer.model[-1].weight.detach().flatten() for layer in model.lins]
    return Perceptual(lambda images: [*model.net(model.scaling_layer(images))], LPIPS, weights, device=device)


def _lpips() -> nn.Module:
    try:
        from lpips import LPIPS as Model
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            'the full perceptual distance needs the package lpips, and it is not there. Run "python -m pip install '
            'lpips", or pass size="tiny", which needs none'
        ) from error
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it calls torchvision in a way that is to go
        return Model(net="alex", verbose=False)


def _directions(features: Callable[[Tensor], Tensor], inputs: Tensor, device) -> Tensor:
    """Unit vectors ``(N, D)`` on the CPU."""
    return F.normalize(_in_batches(features, inputs, device), dim=-1)


@torch.no_grad()
def _in_batches(features: Callable[[Tensor], Tensor], inputs: Tensor, device) -> Tensor:
    """Features ``(N, D)`` on the CPU."""
    return torch.cat([features(part.to(device)).float().cpu() for part in inputs.split(BATCH)])


def _check_size(size: str) -> None:
    if size not in SIZES:
        raise ValueError(f"the size is one of {', '.join(SIZES)}; got {size!r}")


def _fetched(name: str, fetch: Callable[[], nn.Module]) -> nn.Module:
    try:
        return fetch()
    except ModuleNotFoundError:
        raise
    except Exception as error:  # the Hub's client and its HTTP library have a dozen ways to say "not there"
        raise ConnectionError(
            f"the full size needs the weights {name} on this computer, and they could not be fetched "
            f"({type(error).__name__}: {error}). Run this once with a network, which keeps them in a cache, or "
            'pass size="tiny", which needs none'
        ) from error
