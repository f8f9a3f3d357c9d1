"""The training loop that every script here shares: `accelerate`, a moving average, checkpoints, a curve and sheets.

What a step does depends on the seed, the number of the step and the number of processes: its pictures, its noise, its
learning rate. So a run that was stopped and continued ends with the weights of a run that was not: on a CPU bit for
bit, on a GPU but for the order of its sums. Losses that compare the pictures of a batch (clip, dino) compare those of
one process.
"""

import json
import os
import time
from argparse import ArgumentParser
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from accelerate import Accelerator
from PIL import Image
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

CHECKPOINT = "checkpoint.pt"
CURVE = "curve.jsonl"


@dataclass(frozen=True)
class Settings:
    """How long and how fast to train; the defaults of a script are those of the shipped weights."""

    steps: int
    batch: int  # pictures per step, all processes together
    rate: float  # the learning rate between warm-up and cool-down
    seed: int = 0
    pictures: int = 65536  # training pictures
    inputs: str = ""  # tells other weights that the run starts from apart
    warmup: int = 100  # steps in which the rate rises from zero
    cooldown: float = 0.3  # last share of the steps, in which the rate falls to zero
    weight_decay: float = 0.01
    average: float = 0.999  # decay of the moving average of the weights, once there are many to average
    save_every: int = 200  # steps between checkpoints and sheets
    log_every: int = 20  # steps that one line of the curve averages


class Task(Protocol):
    """What a script brings: a model that returns its own losses, and the batches to call it with."""

    model: nn.Module  # forward(*batch) -> dict of scalar losses; the first one is minimised
    pictures: int  # how many training pictures there are

    def batch(self, rows: Tensor) -> tuple[Tensor, ...]:
        """The arguments of the model for these pictures, on the CPU."""

    def sheet(self, model: nn.Module) -> np.ndarray:
        """A picture ``(H, W, 3)`` uint8 that shows how well the averaged model does."""

    def after_step(self, model: nn.Module, settings: Settings, step: int) -> None:
        """Whatever must follow an update of the weights."""


@dataclass(frozen=True)
class Record:
    """One training step."""

    step: int  # counted from 1
    losses: dict[str, float]
    seconds: float  # since this process began


def rate(settings: Settings, step: int) -> float:
    """The learning rate of a step: up, level, down to zero.

    >>> settings = Settings(steps=1000, batch=1, rate=2.0)
    >>> rate(settings, 49), rate(settings, 500), rate(settings, 850)
    (1.0, 2.0, 1.0)
    """
    up = (step + 1) / settings.warmup
    down = (settings.steps - step) / (settings.cooldown * settings.steps)
    return settings.rate * min(up, 1.0, down)


def precision() -> str:
    """``"bf16"`` where the device computes in it; a processor that only imitates it is up to a hundred times slower."""
    processor = torch.cpu.get_capabilities()
    fast = torch.cuda.is_available() or any(processor.get(unit) for unit in ("avx512_bf16", "amx_bf16", "bf16"))
    return "bf16" if fast else "no"


def rows(settings: Settings, pictures: int, step: int) -> Tensor:
    """The numbers of the pictures of a step: every picture once per epoch, in a new order each time."""
    per_epoch = pictures // settings.batch
    epoch, place = divmod(step, per_epoch)
    order = np.random.default_rng([settings.seed, epoch]).permutation(pictures)
    return torch.from_numpy(order[place * settings.batch : (place + 1) * settings.batch])


def steps(task: Task, settings: Settings, out: Path | None = None) -> Iterator[Record]:
    """Train ``task.model``, one record per step; afterwards it holds the moving average of its weights.

    Args:
        task: see :class:`Task`.
        settings: see :class:`Settings`.
        out: a folder for checkpoints, the curve and sheets; a checkpoint found there is continued. None keeps nothing.

    Raises:
        ValueError: more pictures per step than there are, a batch that the processes cannot share evenly, or a
            checkpoint of other settings than these.
    """
    if settings.batch > task.pictures:
        raise ValueError(f"a batch of {settings.batch} needs as many pictures; there are {task.pictures}")
    accelerator = Accelerator(mixed_precision=precision())
    if settings.batch % accelerator.num_processes:
        raise ValueError(
            f"a batch must be a multiple of the {accelerator.num_processes} processes; got {settings.batch}"
        )
    decay, no_decay = _by_weight_decay(task.model)
    optimizer = torch.optim.AdamW([{"params": decay, "weight_decay": settings.weight_decay},
                                   {"params": no_decay, "weight_decay": 0.0}], betas=(0.9, 0.99))  # fmt: skip
    average = AveragedModel(task.model, multi_avg_fn=_moving_average(settings.average), use_buffers=True)
    done = _restore(out, settings, task.model, average, optimizer)
    if out and accelerator.is_main_process:
        _cut(out / CURVE, done)
    model, optimizer = accelerator.prepare(task.model, optimizer)
    average.to(accelerator.device)
    began, recent = time.perf_counter(), []
    for step in range(done, settings.steps):
        model.train()
        losses = _step(task, settings, accelerator, model, optimizer, step)
        task.after_step(task.model, settings, step)
        average.update_parameters(task.model)
        record = Record(step + 1, losses, time.perf_counter() - began)
        recent.append(record)
        if out and accelerator.is_main_process:
            if record.step % settings.log_every == 0:
                _log(out, recent)
                recent = []
            if record.step % settings.save_every == 0 or record.step == settings.steps:
                _save(out, settings, record.step, task.model, average, optimizer)
                save_picture(out / f"sheet-{record.step:06d}.png", task.sheet(average.module.eval()))
        yield record
    task.model.load_state_dict(average.module.state_dict())
    task.model.eval()


def _step(task, settings, accelerator, model, optimizer, step) -> dict[str, float]:
    for group in optimizer.param_groups:
        group["lr"] = rate(settings, step)
    share = rows(settings, task.pictures, step)[accelerator.process_index :: accelerator.num_processes]
    torch.manual_seed(settings.seed * 2**40 + step * accelerator.num_processes + accelerator.process_index)
    losses = model(*(tensor.to(accelerator.device) for tensor in task.batch(share)))
    optimizer.zero_grad()
    accelerator.backward(next(iter(losses.values())))
    accelerator.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    return {name: loss.item() for name, loss in losses.items()}


def _moving_average(decay: float) -> Callable:
    """Forgets the random start soon: after n steps the decay is (1 + n) / (10 + n), until that is above ``decay``."""
    return lambda averages, weights, n: get_ema_multi_avg_fn(min(decay, (1 + int(n)) / (10 + int(n))))(
        averages, weights, n
    )


def _by_weight_decay(model: nn.Module) -> tuple[list, list]:
    """Matrices and kernels decay; gains, biases and other vectors do not."""
    trained = [p for p in model.parameters() if p.requires_grad]
    return [p for p in trained if p.ndim > 1], [p for p in trained if p.ndim < 2]


def _restore(out: Path | None, settings: Settings, model, average, optimizer) -> int:
    """The number of steps already done."""
    if out is None:
        return 0
    out.mkdir(parents=True, exist_ok=True)
    if not (out / CHECKPOINT).exists():
        return 0
    saved = torch.load(out / CHECKPOINT, map_location="cpu", weights_only=True)
    was = asdict(settings) | saved["settings"] | {"steps": settings.steps}
    if was != asdict(settings) or saved["step"] > settings.steps:
        raise ValueError(
            f"{out} holds step {saved['step']} of a run with other settings, {saved['settings']}; "
            "continue with those or choose another folder"
        )
    model.load_state_dict(saved["model"])
    average.load_state_dict(saved["average"])
    optimizer.load_state_dict(saved["optimizer"])
    return saved["step"]


def _cut(curve: Path, done: int) -> None:
    """Drop the lines of steps that will be taken again."""
    if curve.exists():
        lines = curve.read_text("utf-8").splitlines(keepends=True)
        part = curve.with_suffix(".part")
        part.write_text("".join(line for line in lines if json.loads(line)["step"] <= done), "utf-8")
        os.replace(part, curve)


def _save(out: Path, settings: Settings, step: int, model, average, optimizer) -> None:
    state = {"step": step, "settings": asdict(settings), "model": model.state_dict(),
             "average": average.state_dict(), "optimizer": optimizer.state_dict()}  # fmt: skip
    torch.save(state, out / f"{CHECKPOINT}.part")
    os.replace(out / f"{CHECKPOINT}.part", out / CHECKPOINT)


def _log(out: Path, recent: list[Record]) -> None:
    means = {name: float(np.mean([r.losses[name] for r in recent])) for name in recent[0].losses}
    with (out / CURVE).open("a", encoding="utf-8") as file:
        file.write(json.dumps({"step": recent[-1].step, "seconds": round(recent[-1].seconds, 1), **means}) + "\n")


def save_picture(path: Path, pixels: np.ndarray) -> None:
    """Write ``(H, W, 3)`` uint8 as PNG, whole or not at all."""
    part = path.with_suffix(".part")
    Image.fromarray(pixels).save(part, format="PNG")
    os.replace(part, path)


def parser(description: str, settings: Settings) -> ArgumentParser:
    """The options that all scripts have."""
    options = ArgumentParser(description=description)
    options.add_argument("--out", type=Path, required=True, help="folder for checkpoints, sheets and the result")
    options.add_argument("--steps", type=int, default=settings.steps)
    options.add_argument("--batch", type=int, default=settings.batch, help="pictures per step, all processes together")
    options.add_argument("--rate", type=float, default=settings.rate, help="highest learning rate")
    options.add_argument("--seed", type=int, default=settings.seed)
    options.add_argument("--pictures", type=int, default=settings.pictures, help="training pictures to render")
    options.add_argument("--smoke", action="store_true", help="a few steps on a few pictures, to see that it works")
    return options


def chosen(settings: Settings, options) -> Settings:
    """The script's settings with the user's options; ``--smoke`` makes them small."""
    names = ("steps", "batch", "rate", "seed", "pictures")
    settings = replace(settings, **{name: getattr(options, name) for name in names})
    small = {"steps": 4, "batch": 8, "pictures": 64, "warmup": 1, "save_every": 2, "log_every": 1}
    return replace(settings, **small) if options.smoke else settings


def run(task: Task, settings: Settings, out: Path, finish: Callable[[], None]) -> None:
    """Train with a progress bar, then write the result."""
    records = steps(task, settings, out)
    main = os.environ.get("RANK", "0") == "0"
    with tqdm(total=settings.steps, desc=out.name, unit="step", disable=not main, mininterval=1) as bar:
        for record in records:
            bar.update(record.step - bar.n)
            bar.set_postfix({name: f"{loss:.4f}" for name, loss in record.losses.items()}, refresh=False)
    if main:
        finish()
