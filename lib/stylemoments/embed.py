"""Feature extractors for metrics, CLIP and DINO, of either size behind one interface; every feature is a unit vector.

- CLIP: Radford et al., 2021 (arXiv 2103.00020). Tiny is our own, of the tiny world; full is OpenAI's ViT-L/14.
- DINO: Caron et al., 2021 (arXiv 2104.14294). Tiny is our own, of the tiny world; full is the authors' ViT-B/8, which
  StyleAligned (arXiv 2312.02133) measures with, or their ViT-S/16, which DreamBooth (arXiv 2208.12242) measures with.

    >>> clip = embed.clip()  # doctest: +SKIP
    >>> clip.images(images) @ clip.texts(["a cat in papercut art style"]).T  # doctest: +SKIP
"""

import json
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import _torchvision  # noqa: F401
from .judge import checked

SIZES = ("tiny", "full")
FULL_CLIP = ("ViT-L-14-quickgelu", "openai")  # OpenAI trained with the quick GELU; plain "ViT-L-14" has another
FULL_DINO = ("vit_base_patch8_224.dino", "vit_small_patch16_224.dino")
BATCH = 64  # pictures or texts at a time, to bound the memory


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
IMAGENET = Preprocess(256, 224, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


class DINO:
    """A network without its head (of a transformer: its class token); see :func:`dino`."""

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
        return _in_batches(lambda part: self.network(self.preprocess(part)), checked(images), self.device)


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
        return _in_batches(lambda part: self.model.encode_image(self.preprocess(part)), checked(images), self.device)

    def texts(self, texts: list[str]) -> Tensor:
        """Features of texts, float32 ``(N, D)`` on the CPU, each row of length 1.

        Raises:
            TypeError: one text instead of a list of texts.
        """
        if isinstance(texts, str):
            raise TypeError(f"texts are a list of strings; got the string {texts!r}: write [{texts!r}]")
        return _in_batches(self.model.encode_text, self.tokenize(list(texts)), self.device)


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


@torch.no_grad()
def _in_batches(features: Callable[[Tensor], Tensor], inputs: Tensor, device) -> Tensor:
    """Unit vectors ``(N, D)`` on the CPU."""
    return torch.cat([F.normalize(features(part.to(device)).float(), dim=-1).cpu() for part in inputs.split(BATCH)])


def _check_size(size: str) -> None:
    if size not in SIZES:
        raise ValueError(f"the size is one of {', '.join(SIZES)}; got {size!r}")


def _fetched(name: str, fetch: Callable[[], nn.Module]) -> nn.Module:
    try:
        return fetch()
    except Exception as error:  # the Hub's client and its HTTP library have a dozen ways to say "not there"
        raise ConnectionError(
            f"the full size needs the weights {name} on this computer, and they could not be fetched "
            f"({type(error).__name__}: {error}). Run this once with a network, which keeps them in the Hugging Face "
            'cache, or pass size="tiny", which needs none'
        ) from error
