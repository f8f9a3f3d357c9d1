"""Training pictures, rendered once and kept on disk: reading is some hundred times faster than drawing."""

import json
import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from ..world import World

CHUNK = 500
FACTS = ("prompts", "objects", "hands", "styles", "places", "hues")


@dataclass(frozen=True)
class Pictures:
    """Pictures of the world's training split and what is true of them."""

    pixels: np.ndarray  # (n, 3, 64, 64) uint8, read from disk as needed
    facts: dict[str, list]  # per name of FACTS, a list of n

    def __len__(self) -> int:
        return len(self.pixels)

    def images(self, rows: Tensor) -> Tensor:
        """float32 ``(len(rows), 3, 64, 64)`` in [0, 1]."""
        return torch.from_numpy(self.pixels[rows.numpy()]).float() / 255


def render(n: int, folder: Path, seed: int = 1) -> Pictures:
    """The first ``n`` training pictures of a seed; kept in ``folder`` and read from there the next time."""
    folder.mkdir(parents=True, exist_ok=True)
    pixels, facts = (folder / f"world-{seed}-{n}{suffix}" for suffix in (".npy", ".json"))
    if not facts.exists():  # written last
        _render_to(pixels, facts, n, seed)
    return Pictures(np.load(pixels, mmap_mode="r"), json.loads(facts.read_text("utf-8")))


def _render_to(pixels: Path, facts: Path, n: int, seed: int) -> None:
    part = Path(f"{pixels}.{os.getpid()}.part")
    store = np.lib.format.open_memmap(part, "w+", np.uint8, (n, 3, 64, 64))
    known: dict[str, list] = {name: [] for name in FACTS}
    starts = range(0, n, CHUNK)
    pool = ProcessPoolExecutor(mp_context=get_context("spawn"))  # forking beside torch's threads may hang
    with pool, tqdm(total=n, desc="rendering", unit="picture") as bar:
        chunks = (pool.map if len(starts) > 1 else map)(partial(_chunk, n, seed), starts)
        for start, (chunk, facts_of_chunk) in zip(starts, chunks, strict=True):
            store[start : start + CHUNK] = chunk
            for name in FACTS:
                known[name] += facts_of_chunk[name]
            bar.update(len(chunk))
    del store  # writes it, and closes it: Windows moves no open file
    os.replace(part, pixels)
    Path(f"{part}.json").write_text(json.dumps(known), "utf-8")
    os.replace(f"{part}.json", facts)


def _chunk(n: int, seed: int, start: int) -> tuple[np.ndarray, dict]:
    sample = World(seed).sample(min(CHUNK, n - start), start=start, split="train")
    facts = {name: list(getattr(sample, name)) for name in FACTS}
    facts["hues"] = [float(hue) for hue in sample.hues]
    return (sample.images * 255).round().astype(np.uint8), facts
