"""Trains tiny-clip, an open_clip model of the tiny world, whose text tower conditions the tiny pipeline.

    python -m stylemoments.train.clip --out runs/clip

Radford et al., *Learning Transferable Visual Models From Natural Language Supervision*, 2021 (arXiv 2103.00020).
Deviation: pictures of a batch with the same prompt share the target evenly (as in Yang et al., *Unified Contrastive
Learning*, 2022, arXiv 2204.03610), for the world has few prompts and each is in a batch more than once.
"""

import json

import numpy as np
import open_clip
import torch
import torch.nn.functional as F
from safetensors.torch import save_model
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel

from . import loop, tokens
from .pictures import Pictures, render

#: The model, in open_clip's own format.
CONFIG = {
    "embed_dim": 128,
    "vision_cfg": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 20, "head_width": 32},
    "text_cfg": {"context_length": tokens.CONTEXT, "vocab_size": 776, "width": 128, "heads": 4, "layers": 4},
}
SETTINGS = loop.Settings(steps=850, batch=128, rate=1e-3, weight_decay=0.1, average=0.0)  # cooling down is enough
SHOWN = 24


def create(config: dict = CONFIG) -> open_clip.CLIP:
    """The model with fresh weights."""
    model = open_clip.CLIP(**config)
    model.attn_mask.clamp_(min=-1e9)  # minus infinity has no average; softmax takes both to zero
    return model


class Contrast(nn.Module):
    """The model with its loss; pictures are in [0, 1] and shifted to [-1, 1] here."""

    def __init__(self, config: dict = CONFIG):
        super().__init__()
        self.clip = create(config)

    def forward(self, images: Tensor, ids: Tensor) -> dict[str, Tensor]:
        seen, read, scale = self.clip(images * 2 - 1, ids)
        logits = scale * seen.float() @ read.float().T
        same = (ids[:, None] == ids[None]).all(-1).float()
        target = same / same.sum(-1, keepdim=True)
        loss = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
        found = same.gather(1, logits.argmax(-1, keepdim=True)).mean()
        return {"loss": loss, "found": found}


class Task:
    """What :func:`loop.steps` trains."""

    def __init__(self, pictures: Pictures):
        self.data, self.pictures, self.tokenizer = pictures, len(pictures), tokens.tokenizer()
        self.ids = tokens.token_ids(self.tokenizer, pictures.facts["prompts"])
        self.model = Contrast()

    def batch(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        return self.data.images(rows), self.ids[rows]

    def after_step(self, model, settings, step):
        model.clip.logit_scale.data.clamp_(max=np.log(100))

    @torch.no_grad()
    def sheet(self, model: nn.Module) -> np.ndarray:
        """Cosines of the first pictures (rows) and their prompts (columns), white is 1: the diagonal should shine."""
        images, ids = (part.to(model.clip.logit_scale.device) for part in self.batch(torch.arange(SHOWN)))
        seen, read, _ = model.clip(images * 2 - 1, ids)
        cosines = (seen @ read.T).clamp(0, 1).cpu().numpy()
        return np.kron((cosines * 255).astype(np.uint8), np.ones((8, 8), np.uint8))[..., None].repeat(3, -1)


def text_encoder(clip: open_clip.CLIP, tokenizer) -> CLIPTextModel:
    """The text tower as the class that diffusers' pipelines expect; the outputs are the same."""
    cfg = CONFIG["text_cfg"]
    config = CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=cfg["width"], intermediate_size=4 * cfg["width"],
        projection_dim=CONFIG["embed_dim"], num_hidden_layers=cfg["layers"], num_attention_heads=cfg["heads"],
        max_position_embeddings=cfg["context_length"], hidden_act="gelu", bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    model = CLIPTextModel(config).eval()
    missing = model.load_state_dict(_renamed(clip.state_dict()), strict=False)
    if missing.unexpected_keys or any("position_ids" not in key for key in missing.missing_keys):
        raise RuntimeError(f"the text tower does not fit: {missing}")
    return model


def _renamed(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """open_clip's names of the text tower in transformers' words; the joint projection is split in three."""
    plain = {
        "token_embedding.weight": "embeddings.token_embedding.weight",
        "positional_embedding": "embeddings.position_embedding.weight",
        "ln_final.weight": "final_layer_norm.weight",
        "ln_final.bias": "final_layer_norm.bias",
    }
    words = {"ln_1": "layer_norm1", "ln_2": "layer_norm2", "attn.out_proj": "self_attn.out_proj",
             "mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2"}  # fmt: skip
    renamed = {new: state[old] for old, new in plain.items()}
    for name, value in state.items():
        if not name.startswith("transformer.resblocks."):
            continue
        layer, rest = name.removeprefix("transformer.resblocks.").split(".", 1)
        part, kind = rest.rsplit("_" if "in_proj" in rest else ".", 1)
        if part == "attn.in_proj":
            for which, third in zip("qkv", value.chunk(3), strict=True):
                renamed[f"encoder.layers.{layer}.self_attn.{which}_proj.{kind}"] = third
        else:
            renamed[f"encoder.layers.{layer}.{words[part]}.{kind}"] = value
    return renamed


def main() -> None:
    options = loop.parser(__doc__.splitlines()[0], SETTINGS).parse_args()
    settings = loop.chosen(SETTINGS, options)
    torch.manual_seed(settings.seed)
    task = Task(render(settings.pictures, options.out.parent / "pictures"))

    def finish():
        save_model(task.model.clip, options.out / "open_clip_model.safetensors")
        (options.out / "open_clip_config.json").write_text(json.dumps({"model_cfg": CONFIG}, indent=2), "utf-8")
        text_encoder(task.model.clip, task.tokenizer).save_pretrained(options.out / "text_encoder")
        tokens.save(task.tokenizer, options.out / "tokenizer")

    loop.run(task, settings, options.out, finish)


if __name__ == "__main__":
    main()
