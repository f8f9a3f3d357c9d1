"""Speed as ratios: `make bench` prints a Markdown table.

Each case is measured against a named baseline, turn by turn in one run, and the medians are compared.
Below 1 is faster than the baseline. Times depend on the machine; ratios much less.
"""

import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import nbformat
import torch
from nbclient import NotebookClient
from torch import nn
from tqdm import tqdm

from stylemoments import adain, diffusion, dreambooth, norms
from stylemoments.train import denoiser
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
    from diffusers.models.attention_processor import AttnProcessor2_0  # after stylemoments: see its room _torchvision

    latents, words = torch.randn(16, 4, 16, 16), torch.randn(16, 16, 128)
    ours, plain = denoiser.Denoising(), denoiser.Denoising()
    plain.unet.set_attn_processor(AttnProcessor2_0())

    def step():
        with torch.autocast("cpu", torch.bfloat16):
            ours(latents, words)["loss"].backward()

    times = compare(step, lambda: plain(latents, words)["loss"].backward(), 5)
    return ("training step of the U-Net, batch 16", "float32, fused attention", *times)


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
    code = (
        "import resource, sys; sys.path.insert(0, sys.argv[1]); import bench\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "step = getattr(bench, sys.argv[2])(int(sys.argv[3]) or None); before = peak()\n"
        "step(), step(), step(); print(peak() - before)"
    )
    print("\n| DreamBooth, 4 + 4 pictures | most memory, ours | diffusers' example script |\n|---|--:|--:|")
    unit = 1e6 if platform.system() == "Darwin" else 1e3
    for name, rank in DREAMBOOTH.items():
        runs = [[sys.executable, "-c", code, ROOT / "tests", step, str(rank or 0)]
                for step in ("dreambooth_step", "diffusers_step")]  # fmt: skip
        found = [
            int(subprocess.run(run, capture_output=True, check=True, text=True).stdout.split()[-1]) for run in runs
        ]
        print(f"| {name} |", " | ".join(f"{peak / unit:.0f} MB" for peak in found), "|")


def print_memory() -> None:
    """Most memory of a process that stylizes one picture of 512 pixels, beyond one that only loads the model."""
    code = (
        "import resource, sys, torch; from stylemoments import adain; from stylemoments.vgg import VGGFeatures\n"
        "model = adain.StyleTransfer(VGGFeatures(weights=sys.argv[1]))\n"
        "x = torch.rand(1, 3, int(sys.argv[2]), int(sys.argv[2])); adain.stylize(model, x, x)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    print("\n| AdaIN, 512 px | most memory beyond 64 px |\n|---|--:|")
    for weights in ("tiny", "random-wide"):
        runs = [[sys.executable, "-c", code, weights, size] for size in ("64", "512")]
        small, large = (int(subprocess.run(run, capture_output=True, check=True).stdout) for run in runs)
        unit = 1e6 if platform.system() == "Darwin" else 1e3
        print(f"| {weights} | {(large - small) / unit:.0f} MB |")


def chapter_cases() -> list[tuple]:
    """Each notebook run once, against the time a chapter may take."""
    rows = []
    for path in tqdm(sorted((ROOT / "notebooks").glob("*.ipynb")), desc="chapters"):
        notebook = nbformat.read(path, as_version=4)
        client = NotebookClient(notebook, timeout=CHAPTER_LIMIT, kernel_name="python3")
        rows.append((f"chapter {path.stem}", f"the limit of {CHAPTER_LIMIT} s", seconds(client.execute), CHAPTER_LIMIT))
    return rows


def pages_case() -> tuple:
    """The pages of the book, all notebooks already run."""
    jupyter_book = Path(sys.executable).parent / "jupyter-book"

    def build():
        subprocess.run([jupyter_book, "build", ROOT, "--all", "--quiet"], check=True, capture_output=True)

    build()  # fills the cache where it is empty
    return ("all pages, notebooks cached", f"the limit of {CHAPTER_LIMIT} s", seconds(build), CHAPTER_LIMIT)


def main() -> None:
    rows = [*norm_cases(), import_case(), world_case(), *transfer_cases()]
    rows += [*diffusion_cases(), *dreambooth_cases(), *chapter_cases(), pages_case()]
    print(f"\n{os.cpu_count()} cores ({platform.machine()}), torch {torch.__version__}\n")
    print("| case | baseline | ours takes | baseline takes | ratio |\n|---|---|--:|--:|--:|")
    for case, baseline, ours, reference in rows:
        print(f"| {case} | {baseline} | {readable(ours)} | {readable(reference)} | {ours / reference:.2f} |")
    print_errors()
    print_memory()
    print_dreambooth_memory()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e9 if platform.system() == "Darwin" else 1e6)
    print(f"\nmost memory of this process, all of the above but the chapters: {peak:.1f} GB")


if __name__ == "__main__":
    main()
