"""Patterns in random colors: styles in any number, where paintings in the public domain are few.

Each is noise stretched along one direction and bent, as brush strokes are, and then dyed with a few colors, flat or
shaded. All of it is drawn from torch's random bits.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

COLORS = 5


def patterns(n: int, size: int) -> Tensor:
    """``(n, 3, size, size)`` in [0, 1].

    >>> patterns(2, 32).shape
    torch.Size([2, 3, 32, 32])
    """
    coarse, fine = bent(strokes(n, size)), bent(strokes(n, size))
    shade = 0.12 * torch.rand(n, 1, 1, 1) * fine
    return (dyed(coarse) + shade).clamp(0, 1)


def strokes(n: int, size: int) -> Tensor:
    """White noise under a Gaussian of its own length, width and direction: ``(n, 1, size, size)``, standardized."""
    turn = math.pi * torch.rand(n, 1, 1)
    length = 2 * 16 ** torch.rand(n, 1, 1)  # 2 to 32 pixels
    width = 1 + 3 * torch.rand(n, 1, 1)  # 1 to 4 pixels
    rows, columns = torch.fft.fftfreq(size)[:, None], torch.fft.rfftfreq(size)
    along, across = columns * turn.cos() + rows * turn.sin(), rows * turn.cos() - columns * turn.sin()
    response = torch.exp(-2 * math.pi**2 * ((along * length) ** 2 + (across * width) ** 2))
    noise = torch.fft.irfft2(torch.fft.rfft2(torch.randn(n, size, size)) * response, s=(size, size))
    deviation, mean = torch.std_mean(noise, dim=(1, 2), keepdim=True)
    return ((noise - mean) / deviation)[:, None]


def bent(images: Tensor) -> Tensor:
    """Each picture pulled here and there by up to a quarter of its side."""
    n = len(images)
    pull = F.interpolate(torch.randn(n, 2, 4, 4), images.shape[-2:], mode="bicubic", align_corners=False)
    pull = 0.25 * torch.rand(n, 1, 1, 1) * pull
    straight = F.affine_grid(torch.eye(2, 3).expand(n, 2, 3), list(images.shape), align_corners=False)
    return F.grid_sample(images, straight + pull.permute(0, 2, 3, 1), padding_mode="reflection", align_corners=False)


def dyed(values: Tensor) -> Tensor:
    """Values of deviation one as colors of a palette of five: ``(n, 3, H, W)``; half of the pictures in flat steps."""
    n = len(values)
    spread = torch.rand(n, 1, 3) * torch.randn(n, COLORS, 3) / 2
    palette = (torch.rand(n, 1, 3) + spread).clamp(0, 1)
    place = torch.sigmoid(1.5 * values[:, 0]) * (COLORS - 1)  # n H W
    below = place.floor().clamp(0, COLORS - 2)
    steepness = torch.where(torch.rand(n, 1, 1) < 0.5, 12.0, 1.0)
    above = ((place - below - 0.5) * steepness + 0.5).clamp(0, 1)
    index = below.long().flatten(1)[..., None].expand(-1, -1, 3)  # n HW 3
    low, high = (palette.gather(1, i).transpose(1, 2).unflatten(2, values.shape[2:]) for i in (index, index + 1))
    return low.lerp(high, above[:, None])
