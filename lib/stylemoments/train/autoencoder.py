"""Trains the autoencoder of the tiny pipeline: 64 × 64 pixels to a 16 × 16 latent of 4 channels and back.

    python -m stylemoments.train.autoencoder --out runs/autoencoder

Rombach et al., *High-Resolution Image Synthesis with Latent Diffusion Models*, 2022 (arXiv 2112.10752). Deviations: no
adversary and no perceptual network, but the plain, the blurred and the edge error of the pixels.
"""

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor, nn

from . import loop
from .pictures import Pictures, render

CONFIG = {
    "down_block_types": ("DownEncoderBlock2D",) * 3,
    "up_block_types": ("UpDecoderBlock2D",) * 3,
    "block_out_channels": (32, 64, 64),
    "layers_per_block": 1,
    "latent_channels": 4,
    "norm_num_groups": 8,
    "mid_block_add_attention": False,
    "sample_size": 64,
}
SETTINGS = loop.Settings(steps=2000, batch=16, rate=1e-3)
KL_WEIGHT = 1e-3  # per latent number, against errors per color value
SHOWN = 16


def pixel_error(made: Tensor, true: Tensor) -> Tensor:
    """Mean absolute error of the pixels, of their differences to the right and below, and after blurring."""
    error = made - true
    edges = (error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()) / 2
    return error.abs().mean() + edges + F.avg_pool2d(error, 4).abs().mean()


class Autoencoding(nn.Module):
    """The autoencoder with its losses."""

    def __init__(self, config: dict = CONFIG):
        super().__init__()
        self.vae = AutoencoderKL(**config)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        images = images * 2 - 1
        posterior = self.vae.encode(images).latent_dist
        error = pixel_error(self.vae.decode(posterior.sample()).sample.float(), images)
        kl = posterior.kl().mean() / posterior.mean[0].numel()
        return {"loss": error + KL_WEIGHT * kl, "pixels": error, "kl": kl}


class Task:
    """What :func:`loop.steps` trains."""

    def __init__(self, pictures: Pictures):
        self.data, self.pictures, self.model = pictures, len(pictures), Autoencoding()

    def batch(self, rows: Tensor) -> tuple[Tensor]:
        return (self.data.images(rows),)

    def after_step(self, model, settings, step):
        pass

    @torch.no_grad()
    def sheet(self, model: nn.Module) -> np.ndarray:
        """Originals above, what comes back below."""
        images = self.data.images(torch.arange(SHOWN)).to(next(model.parameters()).device)
        back = model.vae(images * 2 - 1).sample / 2 + 0.5
        rows = torch.cat([images, back]).clamp(0, 1).unflatten(0, (-1, SHOWN))  # 2 n C H W
        pixels = rows.permute(0, 3, 1, 4, 2).reshape(-1, SHOWN * 64, 3)
        return (pixels * 255).round().byte().cpu().numpy()


def scaling_factor(vae, images: Tensor) -> float:
    """One over the standard deviation of the latents, as in Stable Diffusion."""
    with torch.no_grad():
        posterior = vae.encode(images.to(vae.device) * 2 - 1).latent_dist
    return (posterior.mean.var() + posterior.var.mean()).rsqrt().item()  # the total variance; nothing is drawn


def main() -> None:
    options = loop.parser(__doc__.splitlines()[0], SETTINGS).parse_args()
    settings = loop.chosen(SETTINGS, options)
    torch.manual_seed(settings.seed)
    task = Task(render(settings.pictures, options.out.parent / "pictures"))

    def finish():
        vae = task.model.vae
        some = task.data.images(torch.arange(min(512, task.pictures)))
        vae.register_to_config(scaling_factor=scaling_factor(vae, some))
        vae.save_pretrained(options.out / "vae")

    loop.run(task, settings, options.out, finish)


if __name__ == "__main__":
    main()
