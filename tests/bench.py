"""Speed as ratios: `make bench` prints a Markdown table.

Each case is measured against a named baseline, turn by turn in one run, and the medians are compared.
Below 1 is faster than the baseline. Times depend on the machine; ratios much less.
"""

import math
import os
import platform
import re
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import nbformat
import torch
from nbclient import NotebookClient
from torch import nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count
from tqdm import tqdm

from stylemoments import adain, diffusion, dreambooth, norms
from stylemoments.prompts import tiny_sets
from stylemoments.style_aligned import StyleAligned
from stylemoments.train import denoiser, loop
from stylemoments.transfer import stylize_by_optimization
from stylemoments.vgg import VGGFeatures
from stylemoments.world import World

ROOT = Path(__file__).parents[1]
CHAPTER_LIMIT = 150  # seconds a chapter may take


def seconds(call: Callable) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def compare(ours: Callable, baseline: Callable, repeats: int) -> tuple[float, float]:
    """Median seconds of both, measured in turns after one call each to warm up."""
    ours(), baseline()
    pairs = [(seconds(ours), seconds(baseline)) for _ in range(repeats)]
    return tuple(statistics.median(times) for times in zip(*pairs, strict=True))


def readable(duration: float) -> str:
    return f"{duration:.1f} s" if duration >= 1 else f"{1e3 * duration:.1f} ms"


def multiply_adds(call: Callable) -> int:
    """Of a call's matrix products, convolutions and attention."""
    uncounted = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu  # PyTorch counts that of GPUs alone
    counting = {uncounted: lambda q, k, v, *_, **__: sdpa_flop_count(q, k, v)}
    with FlopCounterMode(display=False, custom_mapping=counting) as counter:
        call()
    return counter.get_total_flops() // 2


def peak() -> float:
    """Most memory of this process so far, in MB."""
    status = Path("/proc/self/status")
    if status.exists():  # Linux, where getrusage of a new process begins with what its parent held
        return int(re.search(r"VmHWM:\s+(\d+)", status.read_text())[1]) / 1e3
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e6 if platform.system() == "Darwin" else 1e3)


def reset_peak() -> None:
    """Forget what loading took, where the system can (Linux)."""
    if (clear := Path("/proc/self/clear_refs")).exists():
        clear.write_text("5")


def in_new_process(code: str) -> float:
    """The number that some code prints last, where ``bench`` is this file."""
    code = f"import sys; sys.path.insert(0, {str(ROOT / 'tests')!r}); import bench; {code}"
    found = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, check=True, text=True)
    return float(found.stdout.split()[-1])


def most_memory(call: str, times: int = 1) -> float:
    """MB that a call takes beyond what making it took, median of three processes; ``call`` makes it, as code."""
    code = f"call = bench.{call}; bench.reset_peak(); before = bench.peak(); [call() for _ in range({times})]"
    return statistics.median(in_new_process(f"{code}; print(bench.peak() - before)") for _ in range(3))


def training_step(layer: Callable, *inputs: torch.Tensor) -> Callable:
    """Forward and backward."""
    return lambda: layer(*inputs).square().sum().backward()


def plain_adain(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """AdaIN as most people write it: one call of torch.var_mean each."""
    (vx, mx), (vy, my) = (torch.var_mean(t, (2, 3), keepdim=True) for t in (x, y))
    return (x - mx) * ((vy + 1e-5) / (vx + 1e-5)).sqrt() + my


def layer_pairs(shape: torch.Size) -> dict[str, tuple]:
    """Ours and torch's, for images of C, H, W."""
    channels = shape[0]
    return {
        "BatchNorm2d": (norms.BatchNorm2d(channels), nn.BatchNorm2d(channels)),
        "LayerNorm": (norms.LayerNorm(shape), nn.LayerNorm(shape)),
        "InstanceNorm2d": (norms.InstanceNorm2d(channels), nn.InstanceNorm2d(channels)),
        "GroupNorm": (norms.GroupNorm(8, channels), nn.GroupNorm(8, channels)),
    }


def print_errors() -> None:
    """Largest error of a float32 output where the mean is ten thousand times the spread; float64 is the truth."""
    x = torch.randn(8, 64, 64, 64, generator=torch.Generator().manual_seed(0)) + 1e4
    print("\n| float32 at mean 1e4, spread 1 | error, ours | error, torch.nn |\n|---|--:|--:|")
    for name, (ours, torchs) in layer_pairs(x.shape[1:]).items():
        outputs = [layer(x) for layer in (ours, torchs)]
        truth = torchs.double()(x.double())
        print(f"| {name} |", " | ".join(f"{(out - truth).abs().max().item():.0e}" for out in outputs), "|")


def norm_cases() -> list[tuple]:
    """(case, baseline, seconds of ours, seconds of the baseline) for every layer, forward and backward."""
    x = torch.randn(8, 64, 64, 64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    y = torch.randn(8, 64, 48, 48, generator=torch.Generator().manual_seed(1))
    rows = []
    for name, layers in tqdm(layer_pairs(x.shape[1:]).items(), desc="norms"):
        rows.append(
            (f"{name}, training step", f"torch.nn.{name}", *compare(*(training_step(m, x) for m in layers), 30))
        )
    steps = (training_step(f, x, y) for f in (norms.adain, plain_adain))
    return [*rows, ("adain, training step", "torch.var_mean formula", *compare(*steps, 30))]


def import_case() -> tuple:
    """What `import stylemoments` adds to the start of Python."""
    ours, bare = ([sys.executable, "-c", code] for code in ("import stylemoments", "pass"))
    return (
        "import stylemoments",
        "python -c pass",
        *compare(lambda: subprocess.run(ours), lambda: subprocess.run(bare), 20),
    )


def world_case() -> tuple:
    """500 pictures of the tiny world, against one second."""
    World(0).sample(50)  # decodes the drawings
    times = [seconds(lambda start=start: World(0).sample(500, start=start)) for start in range(0, 2500, 500)]
    return ("World.sample(500)", "500 images a second", statistics.median(times), 1.0)


def diffusion_cases() -> list[tuple]:
    """Seconds per picture beside the pipeline's own call, one picture and four at once, 25 steps each."""
    pipe, rows = diffusion.load("tiny", device="cpu"), []
    for n in tqdm((1, 4), desc="diffusion"):
        prompts, latents = ["a cat in papercut art style"] * n, diffusion.initial_latents(pipe, n, 0)
        options = {"num_inference_steps": 25, "guidance_scale": 4.0, "output_type": "pt"}
        times = compare(
            lambda: diffusion.generate(pipe, prompts, guidance=4.0, latents=latents),  # noqa: B023
            lambda: pipe(prompts, latents=latents, **options),  # noqa: B023
            7,
        )
        case = f"generate, per picture of {n}"
        rows.append((case, "the pipeline's own call", *(time / n for time in times)))
    return [*rows, training_case()]


def training_case() -> tuple:
    """A training step of the U-Net as its script takes it, beside one as diffusers builds the network."""
    from accelerate import Accelerator
    from diffusers.models.attention_processor import AttnProcessor2_0  # after stylemoments: see its room _torchvision

    accelerator = Accelerator(mixed_precision=loop.precision())
    latents, words = (torch.randn(16, *shape, device=accelerator.device) for shape in ((4, 16, 16), (16, 128)))
    ours, plain = accelerator.prepare(denoiser.Denoising()), denoiser.Denoising().to(accelerator.device)
    plain.unet.set_attn_processor(AttnProcessor2_0())

    def step(model: nn.Module) -> Callable:
        return lambda: accelerator.backward(model(latents, words)["loss"])

    name = {"bf16": "bfloat16", "no": "float32"}[loop.precision()]
    case = f"training step of the U-Net, batch 16, {name}"
    return (case, "float32, fused attention", *compare(step(ours), step(plain), 5))


# StyleAligned: what is changed of its defaults
ALIGNED = {
    "StyleAligned": {},
    "StyleAligned, reference_shift log 2": {"reference_shift": math.log(2)},
    "StyleAligned, share_group_norm": {"share_group_norm": True},
}


def sampling(n: int, aligned: dict | None = None) -> Callable:
    """25 steps of n pictures with guidance, in a block of StyleAligned with these settings; None is without."""
    pipe = diffusion.load("tiny", device="cpu")
    words = diffusion.encode_prompts(pipe, tiny_sets()[0].prompts[:n])
    latents = diffusion.initial_latents(pipe, n, 0)

    def sample():
        with nullcontext() if aligned is None else StyleAligned(pipe, **aligned) as block:
            for _ in diffusion.sample(pipe, words, steps=25, latents=latents):
                pass
        return block

    return sample


def style_aligned_cases() -> list[tuple]:
    """Seconds of all steps, with the same ratio in multiply-adds: what would be left if nothing else took time."""
    kept = sampling(1, {"keep": True})().kept
    cases = [(f"{name}, 4 pictures", 4, aligned) for name, aligned in ALIGNED.items()]
    cases.append(("StyleAligned, 3 pictures after a kept reference", 3, {"reference": kept}))
    rows = []
    for name, n, aligned in tqdm(cases, desc="StyleAligned"):
        ours, plain = sampling(n, aligned), sampling(n)
        floor = multiply_adds(ours) / multiply_adds(plain)
        case = f"{name}; multiply-adds alone {floor:.2f}"
        rows.append((case, "plain sampling, same batch", *compare(ours, plain, 7)))
    return rows


def print_style_aligned_memory() -> None:
    """Most memory of a process that samples four pictures, beyond the loaded model."""
    settings = {"plain sampling": None, **ALIGNED, "StyleAligned, keep": {"keep": True}}
    print("\n| 4 pictures, 25 steps | most memory |\n|---|--:|")
    for name, aligned in settings.items():
        print(f"| {name} | {most_memory(f'sampling(4, {aligned})'):.0f} MB |")


SDXL = {
    "sample_size": 128,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "block_out_channels": (320, 640, 1280),
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),  # diffusers means the number of heads
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}


@torch.no_grad()
def print_full_size(config: dict = SDXL, device: str = "cuda") -> None:
    """One call of a U-Net as large as SDXL's, of random weights: four pictures of 1024 pixels with guidance."""
    from diffusers import UNet2DConditionModel

    side, projected = config["sample_size"], config["projection_class_embeddings_input_dim"]
    with torch.device(device):
        unet = UNet2DConditionModel(**config).half().eval()
        latents = torch.randn(4, 4, side, side).half().repeat(2, 1, 1, 1)
        words = torch.randn(8, 77, config["cross_attention_dim"]).half()
        pooled = torch.randn(8, projected - 6 * config["addition_time_embed_dim"]).half()
        added = {"text_embeds": pooled, "time_ids": torch.zeros(8, 6).half()}

    def calling(aligned: dict | None) -> Callable:
        def call():
            with nullcontext() if aligned is None else StyleAligned(SimpleNamespace(unet=unet), **aligned):
                unet(latents, 500, words, added_cond_kwargs=added)
            torch.cuda.synchronize()

        return call

    plain = calling(None)
    print(f"\n{torch.cuda.get_device_name()}, float16, {sum(p.numel() for p in unet.parameters()) / 1e9:.2f} billion\n")
    print(
        "| one call, 4 pictures with guidance | takes | ratio | multiply-adds alone | most memory beyond the weights |"
    )
    print("|---|--:|--:|--:|--:|")
    for name, aligned in {"plain": None, **ALIGNED}.items():
        call = calling(aligned)
        ours, reference = compare(call, plain, 7)
        floor = multiply_adds(call) / multiply_adds(plain)
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        memory = (torch.cuda.max_memory_allocated() - before) / 1e9
        print(f"| {name} | {readable(ours)} | {ours / reference:.2f} | {floor:.2f} | {memory:.1f} GB |")


def transfer_cases() -> list[tuple]:
    """AdaIN with its style encoded once, and one step of Gatys' method, both beside the width of VGG-19."""
    wide = adain.StyleTransfer(VGGFeatures(weights="random-wide")).eval()
    generator, rows = torch.Generator().manual_seed(0), []
    for size in tqdm((256, 512), desc="transfer"):
        content, style = torch.rand(2, 1, 3, size, size, generator=generator)
        calls = [stylizing(model, content, model.encode_style(style)) for model in (adain.load(), wide)]
        rows.append((f"AdaIN, {size} px", "as wide as VGG-19", *compare(*calls, 5)))
        calls = [optimizing(weights, content, style) for weights in ("tiny", "random-wide")]
        rows.append((f"Gatys' method, one step, {size} px", "as wide as VGG-19", *compare(*calls, 3)))
    return rows


def stylizing(model, content: torch.Tensor, style) -> Callable:
    """One picture."""
    return lambda: adain.stylize(model, content, style)


def optimizing(weights: str, content: torch.Tensor, style: torch.Tensor) -> Callable:
    """The next step of Gatys' method."""
    steps = stylize_by_optimization(content, style, vgg=weights, steps=10**6)
    return lambda: next(steps)


DREAMBOOTH = {"all weights": None, "LoRA, rank 4": 4}


def dreambooth_step(rank: int | None) -> Callable:
    """The next step of DreamBooth on the tiny model: four pictures of the subject and four of the class."""
    generator = torch.Generator().manual_seed(0)
    settings = dreambooth.defaults("tiny", rank=rank, steps=10**6)
    pipe = diffusion.load("tiny", device="cpu")
    images, classes = torch.rand(2, 8, 3, 64, 64, generator=generator)
    dream = dreambooth.DreamBooth(pipe, images, "sks", "dog", class_images=classes, settings=settings)
    steps = dream.train()
    return lambda: next(steps)


def diffusers_step(rank: int | None) -> Callable:
    """The same as diffusers' examples train_dreambooth.py and train_dreambooth_lora.py take it, restated."""
    from peft import LoraConfig

    pipe = diffusion.load("tiny", device="cpu")
    scheduler, unet, vae = pipe.scheduler, pipe.unet.train(), pipe.vae.requires_grad_(False)
    encoder = pipe.text_encoder.requires_grad_(False)
    if rank is not None:
        unet.requires_grad_(False)
        ends = ["to_k", "to_q", "to_v", "to_out.0"]
        unet.add_adapter(LoraConfig(r=rank, lora_alpha=rank, init_lora_weights="gaussian", target_modules=ends))
    trained = [p for p in unet.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, weight_decay=1e-2)
    pixels = torch.rand(8, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    prompts = ["a sks dog"] * 4 + ["a dog"] * 4
    ids = pipe.tokenizer(prompts, padding="max_length", truncation=True, return_tensors="pt").input_ids

    def step():
        latents = vae.encode(pixels).latent_dist.sample() * vae.config.scaling_factor
        noise = torch.randn_like(latents)
        times = torch.randint(len(scheduler.alphas_cumprod), (8,))
        output = unet(scheduler.add_noise(latents, noise, times), times, encoder(ids)[0]).sample
        target = scheduler.get_velocity(latents, noise, times)
        subject, prior = (nn.functional.mse_loss(*pair) for pair in zip(output.chunk(2), target.chunk(2), strict=True))
        (subject + prior).backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def dreambooth_cases() -> list[tuple]:
    """Seconds per training step beside diffusers' example scripts: float32, prior preservation, AdamW."""
    rows = []
    for name, rank in tqdm(DREAMBOOTH.items(), desc="dreambooth"):
        times = compare(dreambooth_step(rank), diffusers_step(rank), 15)
        rows.append((f"DreamBooth, {name}, one step of 4 + 4", "diffusers' example script", *times))
    return rows


def print_dreambooth_memory() -> None:
    """Most memory of a process in three training steps, beyond the loaded model."""
    print("\n| DreamBooth, 4 + 4 pictures | most memory, ours | diffusers' example script |\n|---|--:|--:|")
    for name, rank in DREAMBOOTH.items():
        found = [most_memory(f"{step}({rank})", times=3) for step in ("dreambooth_step", "diffusers_step")]
        print(f"| {name} |", " | ".join(f"{memory:.0f} MB" for memory in found), "|")


def print_memory() -> None:
    """Most memory of a process that stylizes one picture of 512 pixels, beyond one that stylizes one of 64."""
    print("\n| AdaIN, 512 px | most memory beyond 64 px |\n|---|--:|")
    for weights in ("tiny", "random-wide"):
        small, large = (
            in_new_process(f"bench.stylize_noise({weights!r}, {size}); print(bench.peak())") for size in (64, 512)
        )
        print(f"| {weights} | {large - small:.0f} MB |")


def stylize_noise(weights: str, size: int) -> None:
    """One picture."""
    x = torch.rand(1, 3, size, size)
    adain.stylize(adain.StyleTransfer(VGGFeatures(weights=weights)), x, x)


def chapter_cases() -> list[tuple]:
    """Each notebook run once, against the time a chapter may take."""
    rows = []
    for path in tqdm(sorted((ROOT / "notebooks").glob("*.ipynb")), desc="chapters"):
        notebook = nbformat.read(path, as_version=4)
        client = NotebookClient(notebook, timeout=4 * CHAPTER_LIMIT, kernel_name="python3")
        rows.append((f"chapter {path.stem}", f"the limit of {CHAPTER_LIMIT} s", seconds(client.execute), CHAPTER_LIMIT))
    return rows


def pages_case() -> tuple:
    """The pages of the book, all notebooks already run."""
    jupyter_book = Path(sys.executable).parent / "jupyter-book"

    def build():
        subprocess.run([jupyter_book, "build", ROOT, "--all", "--quiet"], check=True, capture_output=True)

    build()  # fills the cache where it is empty
    return ("all pages, notebooks cached", f"the limit of {CHAPTER_LIMIT} s", seconds(build), CHAPTER_LIMIT)


GROUPS = (
    norm_cases, import_case, world_case, transfer_cases, diffusion_cases, style_aligned_cases, dreambooth_cases,
    chapter_cases, pages_case,
)  # fmt: skip


def main() -> None:
    print(f"\n{os.cpu_count()} cores ({platform.machine()}), torch {torch.__version__}\n")
    print("| case | baseline | ours takes | baseline takes | ratio |\n|---|---|--:|--:|--:|")
    for group in GROUPS:  # each is printed as soon as it is measured: the whole takes a quarter of an hour
        rows = group()
        for case, baseline, ours, reference in rows if isinstance(rows, list) else [rows]:
            print(
                f"| {case} | {baseline} | {readable(ours)} | {readable(reference)} | {ours / reference:.2f} |",
                flush=True,
            )
    print_errors()
    print_memory()
    print_dreambooth_memory()
    print_style_aligned_memory()
    print(f"\nmost memory of this process, all of the above but the chapters: {peak() / 1e3:.1f} GB")
    if torch.cuda.is_available():
        print_full_size()


if __name__ == "__main__":
    main()
