"""Trains the ControlNet of the tiny pipeline: from the edges of a picture to pictures like it.

    python -m stylemoments.train.control --out runs/control

Zhang, Rao, Agrawala 2023 (arXiv 2302.05543), and the method is theirs: a copy of the first half of the frozen U-Net,
convolutions that are zero at first, half of the prompts left empty, so that the edges alone must tell what is drawn.
Deviations: the edges are those of :func:`stylemoments.control.edges`, not Canny's; all is at the size of the tiny
pipeline, with its loss for v; a larger learning rate, that rises and falls.
"""

from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import diffusion, zoo
from ..control import Controlled, edges
from ..world import World
from . import loop
from .denoiser import digest, encoded, hidden_states, kept, noised
from .pictures import Pictures, render

# isort: split
from diffusers import ControlNetModel, DiffusionPipeline
from diffusers.models.attention_processor import AttnProcessor

SETTINGS = loop.Settings(steps=3600, batch=16, rate=1e-3, pictures=16384, save_every=100)
CHANNELS = (16, 32, 64)  # of what reads the condition: each but the first halves its sides, from 64 to 16 pixels
EMPTY = 0.5  # share of the prompts that are left empty, as in the paper
FRESH_SEED = 2  # the pictures of the sheets; training has seed 1
SHOWN = 8


class Controlling(nn.Module):
    """The frozen U-Net and its ControlNet with the loss; only the ControlNet learns."""

    def __init__(self, pipe: DiffusionPipeline):
        super().__init__()
        self.schedule = pipe.scheduler
        self.unet = pipe.unet.requires_grad_(False)
        self.controlnet = ControlNetModel.from_unet(self.unet, conditioning_embedding_out_channels=CHANNELS)
        for net in (self.unet, self.controlnet):
            net.set_attn_processor(AttnProcessor())  # on a CPU its backward pass is faster than the fused one's

    def forward(self, latents: Tensor, words: Tensor, condition: Tensor) -> dict[str, Tensor]:
        noisy, times, target = noised(self.schedule, latents)
        down, mid = self.controlnet(noisy, times, words, condition, return_dict=False)
        output = self.unet(
            noisy, times, words, down_block_additional_residuals=down, mid_block_additional_residual=mid
        ).sample
        return {"loss": F.mse_loss(output.float(), target)}


class Task:
    """What :func:`loop.steps` trains."""

    def __init__(self, pictures: Pictures, latents: Tensor, pipe: DiffusionPipeline):
        self.images, self.pictures, self.pipe = pictures, len(pictures), pipe
        self.means, self.spreads = latents  # n 4 16 16 each
        prompts = ["", *dict.fromkeys(pictures.facts["prompts"])]
        self.words = hidden_states(pipe.text_encoder, pipe.tokenizer, prompts)
        numbers = {text: number for number, text in enumerate(prompts)}
        self.prompt = torch.tensor([numbers[text] for text in pictures.facts["prompts"]])
        self.model = Controlling(pipe)
        sample = World(FRESH_SEED).sample(SHOWN)
        self.shown, self.condition = sample.prompts, edges(torch.from_numpy(sample.images))
        self.free = self.drawn()

    def batch(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        means, spreads = self.means[rows].float(), self.spreads[rows].float()
        said = self.prompt[rows] * (torch.rand(len(rows)) >= EMPTY)  # prompt 0 is the empty one
        return means + spreads * torch.randn_like(means), self.words[said], edges(self.images.images(rows))

    def after_step(self, model, settings, step):
        pass

    def drawn(self) -> Tensor:
        """The prompts of the sheet, ``(n, 3, 64, 64)``."""
        return diffusion.generate(self.pipe, self.shown, steps=12, seed=FRESH_SEED).cpu()

    def sheet(self, model: Controlling) -> np.ndarray:
        """Fresh pictures across; the edges, what is drawn without them, and with them, down."""
        self.pipe.to(model.unet.device)
        with Controlled(self.pipe, model.controlnet, self.condition):
            rows = torch.stack([self.condition, self.free, self.drawn()])  # 3 n 3 64 64
        pixels = rows.permute(0, 3, 1, 4, 2).flatten(2, 3).flatten(0, 1)
        return (pixels * 255).round().byte().numpy()


def main() -> None:
    options = loop.parser(__doc__.splitlines()[0], SETTINGS).parse_args()
    shipped = zoo.folder("tiny-sd")
    inputs = digest(*(shipped / part for part in ("unet", "vae", "text_encoder", "tokenizer", "scheduler")))
    settings = replace(loop.chosen(SETTINGS, options), inputs=inputs)
    pictures = render(settings.pictures, options.out.parent / "pictures")
    pipe = diffusion.load("tiny", device="cpu")
    torch.manual_seed(settings.seed)
    latents = kept(options.out / f"latents-{inputs}-{len(pictures)}.safetensors", lambda: encoded(pipe.vae, pictures))
    task = Task(pictures, latents, pipe)

    def finish():
        task.model.controlnet.register_to_config(_name_or_path="tiny-control")  # and no folder of this machine
        task.model.controlnet.save_pretrained(options.out)

    loop.run(task, settings, options.out, finish)


if __name__ == "__main__":
    main()
