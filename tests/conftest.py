"""What tests share: the built book, a server for it, and a browser."""

import re
import shutil
import subprocess
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from stylemoments import _torchvision  # noqa: F401 - before anything that imports torchvision

ROOT = Path(__file__).parents[1]
PAGES = re.findall(r"^[\s-]*(?:root|file): (\S+)", (ROOT / "_toc.yml").read_text("utf-8"), re.MULTILINE)
NOTEBOOKS = [page for page in PAGES if page.startswith("notebooks/")]
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]


def version_controlled() -> list[str]:
    """What is, or is about to be, under version control; a skip where there is no clone."""
    listing = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    if listing.returncode:
        pytest.skip("needs a git clone: the files under version control are listed by git")
    return [name for name in listing.stdout.split("\0") if name]


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


@pytest.fixture(scope="session")
def built_book() -> Path:
    """The folder that `make book` fills."""
    book = ROOT / "_build" / "html"
    if not (book / "index.html").exists():
        pytest.fail("the book is not built: run `make book` first", pytrace=False)
    return book


@pytest.fixture(scope="session")
def served_book(built_book):
    """The address of the built book on this machine, without a slash at its end."""
    server = ThreadingHTTPServer(("localhost", 0), partial(QuietHandler, directory=built_book))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://localhost:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="session")
def browser():
    """The system's Chromium or Chrome, driven by Playwright."""
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        pytest.skip(f"no browser ({', '.join(BROWSERS)}): install one, e.g. `sudo apt-get install chromium`")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield browser
        browser.close()


# ------------------------------------------------------------------------------------- random pipelines


def _unet(**kind):
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=8, block_out_channels=(8, 16), norm_num_groups=4, layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        **kind,
    )  # fmt: skip


def _vae():
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        block_out_channels=(8, 8), norm_num_groups=4, latent_channels=4, sample_size=16, scaling_factor=0.18,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
    )  # fmt: skip


def _text_encoder(tokenizer, cls):
    from transformers import CLIPTextConfig

    return cls(CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=tokenizer.model_max_length, projection_dim=12, bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )).eval()  # fmt: skip


def _scheduler(prediction_type: str):
    from diffusers import DDIMScheduler

    return DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False,
        steps_offset=1, timestep_spacing="leading", prediction_type=prediction_type,
    )  # fmt: skip


def random_pipeline(kind: str):
    """A pipeline of diffusers with few channels and random weights, 16 x 16 pixels: "sd15", "sd2" (v) or "sdxl"."""
    import torch

    from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline  # isort: skip
    from transformers import CLIPTextModel, CLIPTextModelWithProjection  # isort: skip

    from stylemoments.train import tokens

    torch.manual_seed(0)
    tokenizer = tokens.tokenizer()
    parts = {"vae": _vae().eval(), "tokenizer": tokenizer, "text_encoder": _text_encoder(tokenizer, CLIPTextModel)}
    if kind == "sdxl":
        unet = _unet(
            cross_attention_dim=32, attention_head_dim=(2, 4), use_linear_projection=True,
            transformer_layers_per_block=2, addition_embed_type="text_time", addition_time_embed_dim=4,
            projection_class_embeddings_input_dim=12 + 6 * 4,
        )  # fmt: skip
        second = {"text_encoder_2": _text_encoder(tokenizer, CLIPTextModelWithProjection), "tokenizer_2": tokenizer}
        pipe = StableDiffusionXLPipeline(
            **parts, **second, unet=unet.eval(), scheduler=_scheduler("epsilon"), add_watermarker=False
        )
    else:
        unet = _unet(cross_attention_dim=16, attention_head_dim=2, use_linear_projection=kind == "sd2")
        pipe = StableDiffusionPipeline(
            **parts, unet=unet.eval(), scheduler=_scheduler("v_prediction" if kind == "sd2" else "epsilon"),
            safety_checker=None, feature_extractor=None, requires_safety_checker=False,
        )  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="session", params=["sd15", "sd2", "sdxl"])
def pipe(request):
    """Each kind of pipeline in turn; tests leave it as it was."""
    return random_pipeline(request.param)


@pytest.fixture(scope="session")
def tiny_pipe():
    """One pipeline, shaped like the shipped one."""
    return random_pipeline("sd15")


@pytest.fixture
def shipped(tiny_pipe, tmp_path, monkeypatch):
    """The random pipeline as if it had shipped, with a scheduler that is not DDIM, in a folder of its own."""
    from diffusers import EulerDiscreteScheduler

    from stylemoments import zoo

    folder = tmp_path / "weights" / "tiny-sd"
    tiny_pipe.save_pretrained(folder)
    EulerDiscreteScheduler.from_config(tiny_pipe.scheduler.config).save_pretrained(folder / "scheduler")
    index = folder / "model_index.json"
    index.write_text(index.read_text("utf-8").replace("DDIMScheduler", "EulerDiscreteScheduler"), "utf-8")
    for name in ("tiny-clip", "tiny-dino", "tiny-subject", "judge", "tiny-vgg", "tiny-adain", "tiny-control"):
        (folder.parent / name).mkdir()
        (folder.parent / name / "config.json").write_text("{}", "utf-8")
    files = [path for path in folder.parent.rglob("*") if path.is_file()]
    lines = [f"{zoo.sha256(path)}  {path.relative_to(folder.parent).as_posix()}" for path in files]
    (folder.parent / zoo.SUMS).write_text("\n".join(lines), "utf-8")
    monkeypatch.setattr(zoo, "WEIGHTS", folder.parent)
    return folder.parent


@pytest.fixture(scope="session")
def needs_sandbox() -> str:
    """The name of the best way to hold code in; a skip where there is none."""
    from stylemoments.classroom import sandbox

    try:
        return sandbox.choose([])
    except sandbox.NoSandbox as error:
        pytest.skip(str(error))
