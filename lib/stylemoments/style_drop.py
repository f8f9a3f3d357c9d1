r"""StyleDrop and DreamBooth-LoRA: one picture's style, learned by training. The baselines that StyleAligned is held to.

Sohn et al., *StyleDrop: Text-to-Image Generation in Any Style*, 2023 (arXiv 2306.00983) train small adapters of the
transformer Muse. Hertz et al., *Style Aligned Image Generation via Shared Attention*, 2024 (arXiv 2312.02133) carry
this over to Stable Diffusion XL: a low-rank linear layer after each feed-forward of each attention block, trained for
400 steps on one image. With :math:`y` what the feed-forward says of each token,

.. math:: y \leftarrow y + s \, W_{\text{up}} W_{\text{down}} \, y

:math:`W_{\text{up}}` is zero at first, so training begins with the pictures of the U-Net alone. Nothing else is
trained, and what is said of the picture is its whole prompt, object and style.

The second baseline of the same paper, DreamBooth with LoRA for a style, needs no code of its own:
:func:`lora_settings` and :class:`stylemoments.dreambooth.DreamBooth` with ``prompt`` and without a token::

    settings = lora_settings("tiny")
    dream = DreamBooth(pipe, image, "", "", prompt="a cat in papercut art style", settings=settings)

What differs: rank, learning rate, initial values and the optimizer's settings were not published. Those for size tiny
are measured, see ``RATE``; for the large sizes they are guesses, the rates of LoRA that diffusers' examples have. There
is no second round on the best pictures of the first, which StyleDrop has and the comparison leaves out.

Axes: ``B`` rows of the batch, ``N`` tokens, ``d`` features, ``r`` the rank.
"""

from pathlib import Path
from typing import Any

from . import dreambooth, files
from .dreambooth import DreamBooth, Settings

# isort: split
import torch
from diffusers import DiffusionPipeline, UNet2DConditionModel
from diffusers.models.attention import BasicTransformerBlock
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

STEPS = 400  # of the paper

# Ranks and rates of size tiny: trained on the first picture of the first three of prompts.tiny_sets(), then the other
# three were drawn. Without training their hues are 98 degrees from the first's. StyleDrop of rank 8 makes this 33 at
# 2e-3 and 29 at 5e-3, where CLIP's text alignment falls from .52 to .48; of rank 16 at 1e-2 the first object takes the
# place of others; of rank 4 at 2e-3 they come to 56. LoRA of rank 8: 43 at 1e-3, 54 at 2e-3, and at 5e-3 half of the
# objects are wrong. One seed, so that differences below about 20 degrees say little.
RANK = 8
RATE = {"tiny": 2e-3, "sd15": 1e-4, "sdxl": 1e-4}
LORA_RANK = 8
LORA_RATE = {"tiny": 1e-3, "sd15": 1e-4, "sdxl": 1e-4}
NAME = "style_drop"  # of an adapter in its feed-forward


class Adapter(nn.Module):
    """The low-rank layer after one feed-forward."""

    def __init__(self, width: int, rank: int, generator: torch.Generator | None = None):
        super().__init__()
        self.down, self.up = nn.Linear(width, rank, bias=False), nn.Linear(rank, width, bias=False)
        nn.init.normal_(self.down.weight, std=width**-0.5, generator=generator)  # as large as the features, in a mean
        nn.init.zeros_(self.up.weight)

    def forward(self, y: Tensor) -> Tensor:
        """What is added to the tokens ``(B, N, d)``."""
        return self.up(self.down(y.to(self.down.weight.dtype))).to(y.dtype)


class StyleDrop(nn.Module):
    """In this block the adapters act, and can be trained; after it the U-Net is bit for bit as before.

    In the block they are submodules of the feed-forwards ``...transformer_blocks.i.ff``, so that ``pipe.unet`` lists
    their weights among its own. They are float32 in a U-Net of half precision, too. LoRA, ControlNets and
    :class:`stylemoments.style_aligned.StyleAligned` act as always beside them.

    Args:
        pipe: with a ``.unet`` of diffusers' class ``UNet2DConditionModel``: Stable Diffusion 1, 2 or XL, the tiny
            pipeline, your own.
        rank: of the adapters, 1 or more.
        strength: factor of what they add; 0 is the U-Net alone, 1 is how they are trained.
        seed: of their first values.

    Raises:
        TypeError: a pipeline without such a U-Net.
        ValueError: a rank below 1, or a strength that is not finite.
        RuntimeError: on entry, a U-Net that is compiled, or has such adapters already.

    Example:
        >>> from . import diffusion
        >>> pipe = diffusion.load("tiny", device="cpu")
        size tiny: as asked
        >>> image = torch.rand(1, 3, 64, 64)
        >>> with StyleDrop(pipe) as adapters:
        ...     dream = trainer(adapters, image, "a cat in papercut art style", steps=2)
        ...     losses = [record.loss for record in dream.train()]
        ...     picture = diffusion.generate(pipe, "a dog in papercut art style", steps=2)
        >>> len(losses), picture.shape
        (2, torch.Size([1, 3, 64, 64]))
    """

    def __init__(self, pipe: Any, rank: int = RANK, strength: float = 1.0, *, seed: int = 0):
        super().__init__()
        if not isinstance(unet := getattr(pipe, "unet", None), UNet2DConditionModel):
            raise TypeError(
                "StyleDrop needs a pipeline whose .unet is a UNet2DConditionModel, such as Stable Diffusion's, not "
                f"compiled; got {type(pipe).__name__} with {type(unet).__name__}"
            )
        if rank < 1 or not -float("inf") < strength < float("inf"):
            raise ValueError(f"rank is 1 or more and strength a finite factor; got rank={rank}, strength={strength}")
        self.pipe, self.rank, self.strength, self.prompt = pipe, rank, strength, None
        blocks = {k: m for k, m in unet.named_modules() if isinstance(m, BasicTransformerBlock)}
        self.places = [f"{name}.ff" for name in blocks]
        generator = torch.Generator().manual_seed(seed)
        self.adapters = nn.ModuleList([Adapter(_width(b.ff), rank, generator) for b in blocks.values()])
        self.to(unet.device)

    def __enter__(self):
        unet = self.pipe.unet
        if unet._compiled_call_impl is not None:
            raise RuntimeError("a compiled U-Net may not see new layers; use StyleDrop with one that is not compiled")
        parts = [unet.get_submodule(place) for place in self.places]
        if any(hasattr(part, NAME) for part in parts):
            raise RuntimeError("this U-Net has StyleDrop's adapters already; leave the other block first")
        self._handles = []
        for part, adapter in zip(parts, self.adapters.to(unet.device), strict=True):
            part.register_module(NAME, adapter)
            self._handles.append(part.register_forward_hook(self._add))
        return self

    def __exit__(self, *exception):
        for handle, place in zip(self._handles, self.places, strict=True):
            handle.remove()
            delattr(self.pipe.unet.get_submodule(place), NAME)

    def _add(self, part: nn.Module, args: tuple, output: Tensor) -> Tensor:
        return output + self.strength * getattr(part, NAME)(output)

    def weights(self) -> dict[str, Tensor]:
        """The adapters' weights by the names that they have in the U-Net."""
        pairs = zip(self.places, self.adapters, strict=True)
        return {f"{place}.{NAME}.{k}": p.detach() for place, each in pairs for k, p in each.named_parameters()}

    def save(self, path: str | Path, *, force: bool = False) -> None:
        """Write the adapters as safetensors, with their rank, the prompt they learned and the size of the pipeline.

        Args:
            path: ends in ``.safetensors``; whole or not there.
            force: replace a file that is already there.

        Raises:
            FileExistsError, FileNotFoundError: see :func:`stylemoments.files.whole`.
        """
        facts = {"rank": str(self.rank), "prompt": self.prompt or "", "size": getattr(self.pipe, "size", "")}
        weights = {name: weight.cpu().contiguous() for name, weight in self.weights().items()}
        with files.whole(path, force=force) as part:
            save_file(weights, part, {"format": NAME} | facts)


def _width(part: nn.Module) -> int:
    """Features of what a feed-forward says."""
    return [layer for layer in part.net if not isinstance(layer, nn.Dropout)][-1].out_features


def load(path: str | Path, pipe: DiffusionPipeline, *, strength: float = 1.0) -> StyleDrop:
    """What :meth:`StyleDrop.save` wrote, for a pipeline of the same shape; enter its block to use it.

    Args:
        path: the file.
        pipe: the pipeline that the adapters were trained in, unchanged.
        strength: see :class:`StyleDrop`.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a file of something else, or of adapters for another U-Net.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"there is no file {path}; StyleDrop.save writes one")
    try:
        with safe_open(path, "pt") as file:
            facts, found = file.metadata() or {}, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{path} is no whole file of safetensors ({error}); get it again") from error
    if facts.get("format") != NAME:
        raise ValueError(f"{path} has no adapters of StyleDrop; name a file that StyleDrop.save wrote")
    dropped = StyleDrop(pipe, int(facts["rank"]), strength)
    own = dropped.weights()
    _check_fit(path, facts, {k: tuple(v.shape) for k, v in found.items()}, {k: tuple(v.shape) for k, v in own.items()})
    for name, weight in own.items():
        weight.copy_(found[name])
    dropped.prompt = facts["prompt"] or None
    return dropped


def _check_fit(path: str | Path, facts: dict[str, str], found: dict[str, tuple], own: dict[str, tuple]) -> None:
    wrong = [f"{name} is missing" for name in own if name not in found]
    wrong += [f"{name} has no place" for name in found if name not in own]
    wrong += [f"{k} is {found[k]}, not {own[k]}" for k in own if k in found and found[k] != own[k]]
    if wrong:
        size = f" of size {facts['size']}" if facts["size"] else ""
        raise ValueError(
            f"{path} has adapters of another U-Net{size}: {wrong[0]}"
            + (f", and {len(wrong) - 1} more" if len(wrong) > 1 else "")
            + "; load the pipeline they were trained in"
        )


# ---------------------------------------------------------------------------------------- training


def defaults(size: str, **changes) -> Settings:
    """How StyleDrop is trained at a size, one picture at a time; what you name yourself replaces it.

    Args:
        size: ``"tiny"``, ``"sd15"`` or ``"sdxl"``.
        changes: see :class:`stylemoments.dreambooth.Settings`.

    Raises:
        ValueError: another size, or see :class:`stylemoments.dreambooth.Settings`.

    Example:
        >>> settings = defaults("tiny", seed=3)
        >>> settings.steps, settings.batch, settings.prior_weight, settings.text, settings.rank
        (400, 1, 0, 'frozen', None)
    """
    return _one_picture(size, RATE, None, changes)


def lora_settings(size: str, *, rank: int = LORA_RANK, **changes) -> Settings:
    """The same for the baseline "DreamBooth-LoRA": adapters of the attention layers instead of StyleDrop's.

    Example:
        >>> settings = lora_settings("tiny")
        >>> settings.steps, settings.batch, settings.prior_weight, settings.text
        (400, 1, 0, 'frozen')
    """
    return _one_picture(size, LORA_RATE, rank, changes)


def _one_picture(size: str, rates: dict[str, float], rank: int | None, changes: dict) -> Settings:
    alone = {"steps": STEPS, "batch": 1, "prior_weight": 0, "zoom": 1, "text": "frozen"}
    if size in rates:  # if not, defaults says so
        alone["rate"] = rates[size]
    return dreambooth.defaults(size, rank=rank, **alone | changes)


def trainer(adapters: StyleDrop, image: Tensor, prompt: str, **changes) -> DreamBooth:
    """A training run of adapters on one picture; call its ``train()`` in the block of the adapters.

    Everything that :meth:`stylemoments.dreambooth.DreamBooth.train` does is there: checkpoints that are continued
    exactly, pictures between steps.

    Args:
        adapters: entered.
        image: ``(3, H, W)`` or ``(1, 3, H, W)`` in [0, 1].
        prompt: what the picture shows, object and style.
        changes: to :func:`defaults` for the pipeline's size.

    Raises:
        ValueError: adapters that were not entered; or see :class:`stylemoments.dreambooth.DreamBooth`.
    """
    pipe, images = adapters.pipe, [image]
    settings = defaults(getattr(pipe, "size", None) or "tiny", **changes)
    dream = DreamBooth(pipe, images, "", "", settings=settings, prompt=prompt, adapters=adapters)
    adapters.prompt = prompt
    return dream
