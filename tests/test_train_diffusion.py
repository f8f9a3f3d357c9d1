"""Training the tiny pipeline: losses worked out by hand, weights in other people's code, the scripts at work."""

import json
import math
import shutil
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image
from safetensors.torch import load_file
from transformers import CLIPTokenizer

from stylemoments import diffusion, zoo
from stylemoments.train import autoencoder, clip, denoiser, loop, measure, ship, tokens
from stylemoments.train.pictures import render


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The three scripts, one after the other, with --smoke."""
    folder = tmp_path_factory.mktemp("runs")
    parts = {
        "autoencoder": [],
        "clip": [],
        "denoiser": ["--autoencoder", folder / "autoencoder", "--clip", folder / "clip"],
    }
    for script, options in parts.items():
        command = [sys.executable, "-m", f"stylemoments.train.{script}", "--out", folder / script, "--smoke", *options]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    return folder


def steps_of_curve(run):
    return [json.loads(line)["step"] for line in (run / loop.CURVE).read_text("utf-8").splitlines()]


# ------------------------------------------------------------------------------------- tokens


def test_every_word_of_the_world_is_one_token():
    tokenizer = tokens.tokenizer()
    for text in tokens.wordings():
        assert [token.removesuffix("</w>") for token in tokenizer.tokenize(text)] == text.split()


def test_a_word_the_world_lacks_falls_apart_into_known_letters():
    tokenizer = tokens.tokenizer()
    assert "".join(tokenizer.tokenize("zebra")) == "zebra</w>"
    assert tokenizer.unk_token_id not in tokenizer("zebra", add_special_tokens=False).input_ids


def test_rare_words_are_in_no_prompt():
    prompts = tokens.wordings()[: -len(tokens.RARE_WORDS)]
    assert not {word for text in prompts for word in text.split()} & set(tokens.RARE_WORDS)


def test_ids_begin_with_the_start_and_are_filled_up_with_the_end():
    tokenizer = tokens.tokenizer()
    (ids,) = tokens.token_ids(tokenizer, ["a cat"]).tolist()
    assert len(ids) == tokens.CONTEXT
    assert ids[0] == tokenizer.bos_token_id
    assert ids[3:] == [tokenizer.eos_token_id] * 13
    assert tokenizer.eos_token_id == len(tokenizer) - 1, "open_clip finds the end by its being the largest number"


@pytest.mark.parametrize("files", [("tokenizer.json",), ("vocab.json", "merges.txt")])
def test_the_saved_tokenizer_is_the_same_in_both_formats(tmp_path, files):
    tokenizer = tokens.tokenizer()
    tokens.save(tokenizer, tmp_path)
    for other in {"tokenizer.json", "vocab.json", "merges.txt"} - set(files):
        (tmp_path / other).unlink()
    loaded = CLIPTokenizer.from_pretrained(tmp_path)
    text = "a cat at night by sks"
    assert loaded(text).input_ids == tokenizer(text).input_ids


# ------------------------------------------------------------------------------------- losses


def test_error_of_an_even_difference():
    """No edges: its size counts once for the pixels and once after blurring."""
    made, true = torch.full((1, 3, 8, 8), 0.75), torch.full((1, 3, 8, 8), 0.5)
    assert autoencoder.pixel_error(made, true).item() == pytest.approx(2 * 0.25)


def test_error_of_a_checkerboard():
    """Each pixel errs by 1, each neighbor by 2 less or more, and blurred nothing is left."""
    rows, columns = torch.meshgrid(torch.arange(8), torch.arange(8), indexing="ij")
    board = (1.0 - 2 * ((rows + columns) % 2)).expand(1, 3, 8, 8)
    assert autoencoder.pixel_error(board, torch.zeros(1, 3, 8, 8)).item() == pytest.approx(1 + 2)


def test_contrast_of_pictures_that_are_all_alike():
    """Nothing to tell apart: the loss is that of guessing evenly among n, log n."""
    torch.manual_seed(0)
    model = clip.Contrast().eval()
    ids = tokens.token_ids(tokens.tokenizer(), ["a cat"] * 5)
    losses = model(torch.full((5, 3, 64, 64), 0.5), ids)
    assert losses["loss"].item() == pytest.approx(math.log(5), rel=1e-4)
    assert losses["found"].item() == 1, "every text is the right one"


def test_text_encoder_is_the_text_tower_of_open_clip():
    torch.manual_seed(0)
    tokenizer, model = tokens.tokenizer(), clip.create().eval()
    ids = tokens.token_ids(tokenizer, ["a cat", "an owl at night in pixel art style"])
    with torch.no_grad():
        ours = clip.text_encoder(model, tokenizer)(ids).pooler_output @ model.text_projection
        torch.testing.assert_close(ours, model.encode_text(ids), atol=1e-5, rtol=1e-5)


def test_the_denoiser_is_asked_for_v():
    """A U-Net that answers nothing has the mean square of v as its loss, 1 for latents of variance 1."""
    torch.manual_seed(0)
    model = denoiser.Denoising()

    class Silent(torch.nn.Module):
        def forward(self, noisy, times, words):
            return SimpleNamespace(sample=torch.zeros_like(noisy))

    model.unet = Silent()
    loss = model(torch.randn(256, 4, 16, 16), torch.zeros(256, 16, 128))["loss"]
    assert loss.item() == pytest.approx(1, abs=0.02)  # 262144 draws


# ------------------------------------------------------------------------------------- the scripts


def test_the_pipeline_loads_with_plain_diffusers_and_draws(runs):
    pipe = StableDiffusionPipeline.from_pretrained(runs / "denoiser/pipeline", local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    image = pipe("a cat in papercut art style", num_inference_steps=2).images[0]
    assert image.size == (64, 64)


def test_the_curve_has_every_step(runs):
    for script in ("autoencoder", "clip", "denoiser"):
        assert steps_of_curve(runs / script) == [1, 2, 3, 4]


def test_sheets_show_something(runs):
    for script in ("autoencoder", "clip", "denoiser"):
        assert np.asarray(Image.open(runs / script / "sheet-000004.png")).std() > 1, script


def test_latents_have_the_variance_that_the_schedule_expects(runs):
    pictures = render(64, runs / "pictures")
    vae = StableDiffusionPipeline.from_pretrained(runs / "denoiser/pipeline").vae
    means, spreads = denoiser.encoded(vae, pictures).float()
    latents = means + spreads * torch.randn(means.shape, generator=torch.Generator().manual_seed(0))
    assert latents.std().item() == pytest.approx(1, abs=0.05)


def test_one_prompt_in_ten_is_left_empty(runs):
    pipe = StableDiffusionPipeline.from_pretrained(runs / "denoiser/pipeline")
    pictures = render(64, runs / "pictures")
    task = denoiser.Task(pictures, torch.zeros(2, 64, 4, 16, 16), pipe.vae, pipe.text_encoder, pipe.tokenizer)
    torch.manual_seed(0)
    _, words = task.batch(torch.arange(64).repeat(40))
    empty = (words == task.words[0]).all(-1).all(-1).float().mean().item()
    assert empty == pytest.approx(denoiser.EMPTY, abs=0.02)  # 2560 draws, three deviations


def test_several_processes_share_the_work(tmp_path):
    """Two CPU processes, as `accelerate launch` starts them, finish with one result."""
    launch = ["accelerate.commands.launch", "--cpu", "--num_processes", "2", "--mixed_precision", "bf16"]
    script = ["-m", "stylemoments.train.autoencoder", "--out", tmp_path / "autoencoder", "--smoke"]
    command = [sys.executable, "-m", *launch, *script]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "autoencoder/vae/diffusion_pytorch_model.safetensors").exists()
    assert steps_of_curve(tmp_path / "autoencoder") == [1, 2, 3, 4], "each step once, by one process"


# ------------------------------------------------------------------------------------- shipping


@pytest.fixture
def weights(runs, tmp_path, monkeypatch):
    monkeypatch.setattr(zoo, "WEIGHTS", tmp_path / "weights")
    done = ship.ship(runs, zoo.WEIGHTS)
    ship.write_sums(zoo.WEIGHTS)
    assert done == ["tiny-sd", "tiny-clip"]
    return zoo.WEIGHTS


def test_what_is_shipped_names_no_machine(weights, runs):
    assert not [path for path in weights.rglob("*.json") if str(runs) in path.read_text("utf-8")]


def test_an_unfinished_run_is_not_shipped(runs, tmp_path):
    shutil.copytree(runs / "clip", tmp_path / "clip")
    assert ship.ship(tmp_path, tmp_path / "weights") == ["tiny-clip"]
    (tmp_path / "clip" / loop.CHECKPOINT).unlink()
    assert ship.ship(tmp_path, tmp_path / "weights") == []


def test_what_is_shipped_is_whole_and_draws(weights):
    pipe = diffusion.load("tiny")
    assert diffusion.generate(pipe, "a cat", steps=2).shape == (1, 3, 64, 64)


def test_shipped_in_half_precision(weights, runs):
    ours = load_file(weights / "tiny-clip/open_clip_model.safetensors")
    for name, whole in load_file(runs / "clip/open_clip_model.safetensors").items():
        if whole.is_floating_point():
            assert ours[name].dtype == torch.float16
            torch.testing.assert_close(ours[name].float(), whole, atol=1e-3, rtol=1e-3)


def test_shipping_again_keeps_the_card_and_drops_the_rest(weights, runs):
    (weights / "tiny-clip" / zoo.CARD).write_text("by hand")
    (weights / "tiny-clip/old.bin").write_text("left over")
    ship.ship(runs, weights)
    assert (weights / "tiny-clip" / zoo.CARD).read_text() == "by hand"
    assert not (weights / "tiny-clip/old.bin").exists()


def test_figures_go_between_the_marks(weights):
    card = weights / "tiny-clip" / zoo.CARD
    card.write_text(f"before\n{measure.START}\nold\n{measure.END}\nafter\n", "utf-8")
    measure.write("tiny-clip", {"what": "1 %"})
    text = card.read_text("utf-8")
    assert text.startswith("before\n") and text.endswith("after\n")
    assert "| what | 1 % |" in text and "old" not in text
    assert "| step | loss | found |" in text, "the training curve stands below the figures"
