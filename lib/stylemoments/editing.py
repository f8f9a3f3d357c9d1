r"""From a picture that exists: SDEdit, and the trajectory that DDIM inversion finds for it, to be played back.

**SDEdit** (Meng et al. 2022, arXiv 2108.01073) noises the picture up to a share of the schedule and lets another prompt
draw it anew from there: the more noise, the less is left.

**Replay** makes a real picture the reference of StyleAligned (Hertz et al. 2023, arXiv 2312.02133, section 4.4): DDIM
inversion (Song et al. 2021, arXiv 2010.02502) finds noisy versions of the picture, one for each step of the sampler. In
the row of the reference these are put in the place of what the sampler makes, so that the U-Net sees at each step the
features of *this* picture, however inexact the inversion is.

The paper's settings are 50 steps, guidance 2 for the inversion, and an offset of 5 for the replay. What differs from
the public code: its replay stands still one entry later, after the first step; here the offset alone says where.

Axes: latents ``C H W``, images ``(B, 3, H, W)`` in [0, 1].
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from . import diffusion, files

# isort: split
import torch
from diffusers import DiffusionPipeline
from torch import Tensor

GUIDANCE = 2.0  # of the inversion, in StyleAligned's public code


def fitted(pipe: DiffusionPipeline, image: Tensor) -> Tensor:
    """The middle of a picture, as large as the pipeline draws.

    Args:
        pipe: a Stable Diffusion pipeline.
        image: ``(1, 3, H, W)`` in [0, 1], of any size; :func:`stylemoments.files.read` reads one from a file.

    Returns:
        ``(1, 3, h, w)``: what is outside of the middle is cut off, and nothing is stretched.

    Raises:
        ValueError: another shape.

    Example:
        >>> pipe = diffusion.load("tiny", device="cpu")
        size tiny: as asked
        >>> fitted(pipe, torch.rand(1, 3, 100, 300)).shape
        torch.Size([1, 3, 64, 64])
    """
    if image.ndim != 4 or image.shape[:2] != (1, 3):
        raise ValueError(f"a picture has the shape (1, 3, H, W); got {tuple(image.shape)}")
    height, width = (side * pipe.vae_scale_factor for side in diffusion.latent_sides(pipe))
    scale = max(height / image.shape[-2], width / image.shape[-1])
    sides = max(height, round(image.shape[-2] * scale)), max(width, round(image.shape[-1] * scale))
    resized = files.resize(image, min(sides))
    top, left = (resized.shape[-2] - height) // 2, (resized.shape[-1] - width) // 2
    return resized[..., top : top + height, left : left + width]


# ---------------------------------------------------------------------------------------- SDEdit


def sdedit(
    pipe: DiffusionPipeline,
    images: Tensor,
    prompts: str | Sequence[str] | diffusion.Prompts,
    *,
    strength: float = 0.8,
    steps: int = 25,
    guidance: float | None = None,
    seed: int = 0,
    latents: Tensor | None = None,
) -> Iterator[diffusion.Step]:
    """Draw prompts over pictures, step by step; the last step's latents are those to decode.

    Args:
        pipe: a Stable Diffusion pipeline, 1, 2 or XL, with a DDIM scheduler.
        images: ``(B, 3, H, W)`` in [0, 1], or one for all prompts.
        prompts: B of them, what to draw.
        strength: the share of the steps that is drawn anew, above 0; at 1 nothing is left of the picture but what the
            last bit of signal in the noisiest step says.
        steps: of the whole schedule; ``strength`` of them are taken, one at least.
        guidance, seed: as in :func:`stylemoments.diffusion.sample`.
        latents: the noise to add, ``(B, C, H, W)``; None draws that of the seed.

    Raises:
        ValueError: a strength out of its range, or see :func:`stylemoments.diffusion.sample`.
    """
    if not 0 < strength <= 1:
        raise ValueError(f"strength is the share of the steps to draw anew, above 0 and up to 1; got {strength}")
    prompts = prompts if isinstance(prompts, diffusion.Prompts) else diffusion.encode_prompts(pipe, prompts)
    clean = diffusion.encode(pipe, images)
    clean = clean.expand(len(prompts), -1, -1, -1) if len(clean) == 1 else clean
    noise = diffusion.initial_latents(pipe, len(prompts), seed) if latents is None else latents.to(clean)
    start = steps - max(1, round(strength * steps))
    level = diffusion.schedule(pipe, steps)[start]
    noisy = level.alpha_bar**0.5 * clean + (1 - level.alpha_bar) ** 0.5 * noise
    return diffusion.sample(pipe, prompts, steps=steps, guidance=guidance, latents=noisy, start=start)


# ---------------------------------------------------------------------------------------- replay


@dataclass(frozen=True)
class Trajectory:
    """A picture as noisy as each step of the sampler takes it."""

    latents: Tensor  # (steps + 1, C, H, W), the noisiest first, the clean ones last
    prompt: str  # what it was inverted with, and should be played back with
    guidance: float  # of the inversion

    @property
    def steps(self) -> int:
        """Of the sampler that it belongs to."""
        return len(self.latents) - 1

    def offset(self, n: int) -> "Trajectory":
        """Begin n entries later and stand still there until step n: the noisiest entries are the least exact.

        Args:
            n: from 0 to ``steps``; 5 of 50 in the public code.

        Raises:
            ValueError: another n.

        Example:
            >>> path = Trajectory(torch.arange(4.0).view(4, 1, 1, 1), "a cat", 1.0)
            >>> path.offset(2).latents.flatten().tolist()
            [2.0, 2.0, 2.0, 3.0]
        """
        if n not in range(self.steps + 1):
            raise ValueError(f"the offset is from 0 to the {self.steps} steps; got {n}")
        places = torch.arange(len(self.latents)).clamp(min=n)
        return replace(self, latents=self.latents[places])


def trajectory(
    pipe: DiffusionPipeline, image: Tensor, prompt: str, *, steps: int = 50, guidance: float = GUIDANCE
) -> Trajectory:
    """Invert a picture, and keep the way.

    Args:
        pipe: a Stable Diffusion pipeline, 1, 2 or XL, with a DDIM scheduler.
        image: ``(1, 3, H, W)`` in [0, 1], as large as the pipeline draws: see :func:`fitted`.
        prompt: what it shows, its style included.
        steps: of the sampling in which it will be replayed.
        guidance: see :func:`stylemoments.diffusion.invert`: the higher, the less exact.

    Raises:
        ValueError: not one picture, or see :func:`stylemoments.diffusion.invert`.

    Example:
        >>> pipe = diffusion.load("tiny", device="cpu")
        size tiny: as asked
        >>> path = trajectory(pipe, torch.rand(1, 3, 64, 64), "a cat", steps=2)
        >>> images = diffusion.generate(pipe, ["a cat", "a dog"], steps=2, replay={0: path.latents})
        >>> bool((images[:1] - diffusion.decode(pipe, path.latents[-1:])).abs().max() < 1e-5)
        True
    """
    if image.shape[:1] != (1,):
        raise ValueError(f"one picture has one trajectory; got images of shape {tuple(image.shape)}")
    clean = diffusion.encode(pipe, image)
    found = [step.latents[0] for step in diffusion.invert(pipe, clean, prompt, steps=steps, guidance=guidance)]
    return Trajectory(torch.stack([*found[::-1], clean[0]]), prompt, guidance)
