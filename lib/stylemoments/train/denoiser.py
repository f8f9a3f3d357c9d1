"""Trains the U-Net of the tiny pipeline on the latents of the autoencoder, and puts the whole pipeline together.

    python -m stylemoments.train.denoiser --out runs/denoiser --autoencoder runs/autoencoder --clip runs/clip

Rombach et al. 2022 (arXiv 2112.10752), at a twentieth of the size. As later work does: the network predicts v (Salimans
and Ho 2022, arXiv 2202.00512), the noise follows a cosine (Nichol and Dhariwal 2021, arXiv 2102.09672), and the
timesteps are drawn from a logistic normal (Esser et al. 2024, arXiv 2403.03206). The text tower stays as it is.
"""

import copy
import hashlib
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm import tqdm
from transformers import CLIPTextModel, CLIPTokenizer

from .. import zoo
from ..world import prompt
from . import loop, tokens
from .pictures import Pictures, render

CHANNELS = (64, 128, 256)
CONFIG = {
    "sample_size": 16,
    "down_block_types": ("CrossAttnDownBlock2D",) * 3,
    "up_block_types": ("CrossAttnUpBlock2D",) * 3,
    "block_out_channels": CHANNELS,
    "layers_per_block": 1,
    "cross_attention_dim": 128,
    "attention_head_dim": tuple(width // 32 for width in CHANNELS),  # diffusers means the number of heads
    "norm_num_groups": 16,
}
SCHEDULE = {
    "beta_schedule": "squaredcos_cap_v2",
    "prediction_type": "v_prediction",
    "timestep_spacing": "trailing",
    "clip_sample": False,
    "steps_offset": 1,
}
SETTINGS = loop.Settings(steps=2200, batch=64, rate=8e-4)
EMPTY = 0.1  # share of the prompts that are left empty, for guidance
TIME_MEAN, TIME_SPREAD = 0.3, 1.0  # of the logit of the time drawn
SHOWN = [
    prompt(noun, style=style)
    for noun in ("guitar", "dragon", "sailboat", "cat")
    for style in ("plain", "papercut art", "watercolor painting", "neon light", "line drawing", "pixel art")
]


def noised(schedule: DDIMScheduler, latents: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Clean latents ``(n, 4, 16, 16)`` at random times: the noisy ones, their times ``(n,)``, and the v to predict."""
    u = torch.sigmoid(TIME_MEAN + TIME_SPREAD * torch.randn(len(latents), device=latents.device))
    times = (u * schedule.config.num_train_timesteps).long()
    noise = torch.randn_like(latents)
    return schedule.add_noise(latents, noise, times), times, schedule.get_velocity(latents, noise, times)


class Denoising(nn.Module):
    """The U-Net with its loss: the squared error of the predicted v at random times."""

    def __init__(self, config: dict = CONFIG):
        super().__init__()
        self.unet = UNet2DConditionModel(**config)
        self.unet.set_attn_processor(AttnProcessor())  # on a CPU its backward pass is faster than the fused one's
        self.schedule = DDIMScheduler(**SCHEDULE)

    def forward(self, latents: Tensor, words: Tensor) -> dict[str, Tensor]:
        noisy, times, target = noised(self.schedule, latents)
        return {"loss": F.mse_loss(self.unet(noisy, times, words).sample.float(), target)}


class Task:
    """What :func:`loop.steps` trains."""

    def __init__(self, pictures: Pictures, latents: Tensor, vae, text_encoder, tokenizer):
        self.pictures, self.parts = len(pictures), (vae, text_encoder, tokenizer)
        self.means, self.spreads = latents  # n 4 16 16 each
        prompts = ["", *dict.fromkeys(pictures.facts["prompts"])]
        self.words = hidden_states(text_encoder, tokenizer, prompts)
        numbers = {text: number for number, text in enumerate(prompts)}
        self.prompt = torch.tensor([numbers[text] for text in pictures.facts["prompts"]])
        self.model = Denoising()

    def batch(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        means, spreads = self.means[rows].float(), self.spreads[rows].float()
        said = self.prompt[rows] * (torch.rand(len(rows)) >= EMPTY)  # prompt 0 is the empty one
        return means + spreads * torch.randn_like(means), self.words[said]

    def after_step(self, model, settings, step):
        pass

    def sheet(self, model: nn.Module) -> np.ndarray:
        """Objects down, styles across."""
        pipe = assemble(model.unet, *self.parts).to(model.unet.device)
        pipe.set_progress_bar_config(disable=True)
        noise = torch.randn(len(SHOWN), 4, 16, 16, generator=torch.Generator().manual_seed(0)).to(pipe.device)
        images = pipe(SHOWN, latents=noise, num_inference_steps=12, guidance_scale=3.0, output_type="np").images
        n, size = len(images), images.shape[1]
        pixels = images.reshape(4, n // 4, size, size, 3).swapaxes(1, 2).reshape(4 * size, -1, 3)
        return (pixels * 255).round().astype(np.uint8)


@torch.no_grad()
def encoded(vae: AutoencoderKL, pictures: Pictures) -> Tensor:
    """Mean and deviation of every picture's latent, scaled to unit variance: float16 ``(2, n, 4, 16, 16)``."""
    vae = copy.deepcopy(vae).to(memory_format=torch.channels_last)
    parts = []
    for rows in tqdm(torch.arange(len(pictures)).split(128), desc="encoding", unit="batch", mininterval=1):
        images = pictures.images(rows).to(vae.device, memory_format=torch.channels_last)
        with torch.autocast(vae.device.type, torch.bfloat16):
            latents = vae.encode(images * 2 - 1).latent_dist
        parts.append((torch.stack([latents.mean, latents.std]) * vae.config.scaling_factor).half().cpu())
    return torch.cat(parts, 1).contiguous()


def kept(path: Path, make: Callable[[], Tensor]) -> Tensor:
    """The tensor in a file; made and written first where there is none."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        part = Path(f"{path}.{os.getpid()}.part")
        save_file({"tensor": make()}, part)
        os.replace(part, path)
    return load_file(path)["tensor"]


def digest(*folders: Path) -> str:
    """Eight hexadecimal digits that change when a file in these folders does."""
    files = sorted(path for folder in folders for path in folder.rglob("*") if path.is_file())
    return hashlib.sha256("".join(map(zoo.sha256, files)).encode()).hexdigest()[:8]


@torch.no_grad()
def hidden_states(text_encoder: CLIPTextModel, tokenizer: CLIPTokenizer, prompts: list[str]) -> Tensor:
    """What the U-Net attends to: float32 ``(len(prompts), CONTEXT, 128)``."""
    ids = tokens.token_ids(tokenizer, prompts)
    return torch.cat([text_encoder(part).last_hidden_state for part in ids.split(256)])


def assemble(unet, vae, text_encoder, tokenizer) -> StableDiffusionPipeline:
    """The pipeline as diffusers knows it."""
    return StableDiffusionPipeline(
        vae=vae, text_encoder=text_encoder, tokenizer=tokenizer, unet=unet, scheduler=DDIMScheduler(**SCHEDULE),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip


def main() -> None:
    parser = loop.parser(__doc__.splitlines()[0], SETTINGS)
    parser.add_argument("--autoencoder", type=Path, required=True, help="what stylemoments.train.autoencoder wrote")
    parser.add_argument("--clip", type=Path, required=True, help="what stylemoments.train.clip wrote")
    options = parser.parse_args()
    inputs = digest(options.autoencoder / "vae", options.clip / "text_encoder", options.clip / "tokenizer")
    settings = replace(loop.chosen(SETTINGS, options), inputs=inputs)
    pictures = render(settings.pictures, options.out.parent / "pictures")
    vae = AutoencoderKL.from_pretrained(options.autoencoder / "vae").eval()
    text_encoder = CLIPTextModel.from_pretrained(options.clip / "text_encoder").eval()
    tokenizer = CLIPTokenizer.from_pretrained(options.clip / "tokenizer")
    torch.manual_seed(settings.seed)
    latents = kept(options.out / f"latents-{inputs}-{len(pictures)}.safetensors", lambda: encoded(vae, pictures))
    task = Task(pictures, latents, vae, text_encoder, tokenizer)

    def finish():
        assemble(task.model.unet, *task.parts).save_pretrained(options.out / "pipeline")

    loop.run(task, settings, options.out, finish)


if __name__ == "__main__":
    main()
