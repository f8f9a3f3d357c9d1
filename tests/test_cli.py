"""The command line: a doctor who finds what is broken, and pictures that are named, told apart and never lost."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from stylemoments import adain, cli, diffusion, files, zoo
from stylemoments.vgg import VGGFeatures

CAT = "a cat in papercut art style"


@pytest.fixture
def run(shipped, tmp_path, monkeypatch):
    """Runs the command in an empty folder, with a random pipeline in place of the shipped one."""
    monkeypatch.delenv(diffusion.VARIABLE, raising=False)
    monkeypatch.chdir(tmp_path)
    return lambda *words: CliRunner().invoke(cli.app, [str(word) for word in words])


# ------------------------------------------------------------------------------------- doctor


def test_doctor_is_green(run):
    result = run("doctor")
    lines = result.stdout.splitlines()
    assert result.exit_code == 0, result.output
    assert [line.split(":")[0] for line in lines] == [
        "pass  versions", "pass  device", "pass  size", "pass  weights tiny-sd", "pass  weights tiny-clip",
        "pass  weights tiny-dino", "pass  weights tiny-subject", "pass  weights judge", "pass  weights tiny-vgg",
        "pass  weights tiny-adain", "pass  a picture",
    ]  # fmt: skip
    assert re.search(r"torch \d.*diffusers \d", lines[0])
    assert "16 x 16 pixels" in lines[-1]


def test_doctor_names_a_damaged_file_and_goes_on(run, shipped):
    (shipped / "tiny-dino" / "config.json").write_text("[]", "utf-8")
    result = run("doctor")
    assert result.exit_code == 1
    assert result.stdout.count("FAIL") == 1
    assert re.search(r"FAIL  weights tiny-dino:.*config\.json", result.stdout)
    assert "--force-reinstall" in result.stdout
    assert "pass  a picture" in result.stdout


def test_doctor_finds_an_unknown_size_and_missing_packages(run, monkeypatch):
    monkeypatch.setenv(diffusion.VARIABLE, "huge")
    needs = ["torch>=2.5", "diffusers>=99; extra == 'diffusion'", "no-such-package>=1", "nbval; extra == 'dev'"]
    monkeypatch.setattr(cli, "requires", lambda name: needs)
    result = run("doctor")
    assert result.exit_code == 1
    line = next(line for line in result.stdout.splitlines() if line.startswith("FAIL  versions"))
    assert re.search(r"diffusers>=99 is needed, \S+ is installed; no-such-package>=1 is needed, nothing is inst", line)
    assert "nbval" not in line and "run python -m pip install" in line
    assert "FAIL  size: the size must be one of tiny, sd15, sdxl; got 'huge'" in result.stdout


# ------------------------------------------------------------------------------------- sample


def test_sample_writes_named_pictures(run, tmp_path, tiny_pipe):
    result = run("sample", CAT, "-n", 2, "-o", "OUT", "--steps", 2, "--seed", 5, "--size", "tiny", "--guidance", 3)
    assert result.exit_code == 0, result.output
    paths = [tmp_path / "OUT" / f"a-cat-in-papercut-art-style-seed-{seed}.png" for seed in (5, 6)]
    assert sorted((tmp_path / "OUT").iterdir()) == paths, "nothing else is left behind"
    assert [tmp_path / line for line in result.stdout.splitlines()[-2:]] == paths
    assert "warning" not in result.stderr
    second = Image.open(paths[1])
    assert (second.info["prompt"], second.info["seed"], second.info["guidance"]) == (CAT, "6", "3.0")
    expected = diffusion.generate(tiny_pipe, CAT, steps=2, seed=6, guidance=3.0)[0] * 255
    found = list(second.convert("RGB").tobytes())
    assert max(abs(a - b) for a, b in zip(found, expected.permute(1, 2, 0).flatten().tolist(), strict=True)) <= 1


def test_sample_again_is_fine_but_another_prompt_stays(run, tmp_path):
    assert run("sample", CAT, "--steps", 1).exit_code == 0
    picture = tmp_path / "pictures" / "a-cat-in-papercut-art-style-seed-0.png"
    assert run("sample", CAT, "--steps", 1).exit_code == 0
    before = picture.read_bytes()
    result = run("sample", f"{CAT}!", "--steps", 1)  # the same name of the file
    assert result.exit_code == 1
    assert "is another picture ({'prompt': 'a cat in papercut art style'" in result.stderr
    assert run("sample", CAT, "--steps", 2).exit_code == 1, "other settings make another picture"
    assert picture.read_bytes() == before


def test_a_foreign_file_stays(run, tmp_path):
    (tmp_path / "pictures").mkdir()
    picture = tmp_path / "pictures" / "an-owl-seed-0.png"
    Image.new("RGB", (2, 2)).save(picture)
    before = picture.read_bytes()
    result = run("sample", "an owl", "--steps", 1)
    assert result.exit_code == 1 and "'prompt': 'unknown'" in result.stderr
    assert picture.read_bytes() == before


def test_unknown_words_are_named_with_the_nearest(run):
    result = run("sample", "a sailbote in papercut art style", "--steps", 1)
    assert result.exit_code == 0
    assert "does not know 'sailbote'; the nearest word it knows is 'sailboat'" in result.stderr
    assert result.stderr.count("warning") == 1


@pytest.mark.parametrize("prompt, name", [("¡Gato!", "gato"), ("猫", "猫"), ("...", "picture"), ("../../x", "x")])
def test_any_prompt_is_the_name_of_a_file(prompt, name):
    assert cli._slug(prompt) == name


@pytest.mark.parametrize(
    "words, said",
    [
        (["--size", "huge"], "tiny, sd15, sdxl; got 'huge'"),
        (["--steps", "5000"], "steps must be from 1 to 999"),
    ],
)
def test_faults_are_one_line(run, words, said):
    result = run("sample", CAT, *words)
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-1].startswith("error: ") and said in result.stderr
    assert "Traceback" not in result.output


def test_damaged_weights_stop_sampling(run, shipped):
    (shipped / "tiny-sd" / "model_index.json").write_text("{}", "utf-8")
    zoo._checked.cache_clear()
    result = run("sample", CAT)
    assert result.exit_code == 1 and "model_index.json" in result.stderr


# ------------------------------------------------------------------------------------- quick


def test_help_loads_nothing_heavy():
    code = (
        "import sys\nfrom stylemoments import cli\ntry:\n    cli.app(['--help'])\nexcept SystemExit:\n    pass\n"
        "print(*sorted({'torch', 'numpy', 'diffusers', 'transformers', 'PIL'} & set(sys.modules)), sep='|', end='.')"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "doctor" in shown and "sample" in shown
    assert shown.endswith("."), shown
    assert shown.splitlines()[-1] == ".", "import heavy packages inside the commands only"


# ------------------------------------------------------------------------------------- stylize


@pytest.fixture
def paint(tmp_path, monkeypatch):
    """Runs `stylize` in a folder with a photograph, two styles and a mask, on a decoder with random weights."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    model = adain.StyleTransfer(VGGFeatures(weights="random")).eval()
    monkeypatch.setattr(adain, "load", lambda: model)
    generator = torch.Generator().manual_seed(0)
    for name, size in {"photo": (37, 53), "red": (24, 32), "blue": (40, 32)}.items():
        files.write(f"{name}.png", torch.rand(3, *size, generator=generator))
    Image.new("L", (53, 37), 255).save("all.png")
    return lambda *words: CliRunner().invoke(cli.app, ["stylize", *(str(word) for word in words)])


def test_stylize_writes_a_picture_of_the_same_size(paint, tmp_path):
    result = paint("photo.png", "red.png", "-o", "out.png")
    assert result.exit_code == 0, result.output
    assert Image.open("out.png").size == (53, 37)
    assert result.stdout.strip().endswith("out.png")
    made = files.read("out.png")
    wanted = adain.stylize(adain.load(), files.read("photo.png"), files.read("red.png", size=512))
    torch.testing.assert_close(made, wanted, atol=1 / 255, rtol=0)


def test_stylize_takes_every_option(paint):
    several = ("red.png", "blue.png", "--weights", "0.7, 0.3", "--alpha", 0.5, "--size", 32, "--keep-colour", "coral")
    assert paint("photo.png", *several, "-o", "a.jpg").exit_code == 0
    assert min(Image.open("a.jpg").size) == 32
    masks = ("red.png", "blue.png", "--mask", "all.png", "--mask", "all.png", "--keep-color", "luminance", "--tile", 64)
    assert paint("photo.png", *masks, "-o", "b.webp").exit_code == 0
    gray = files.read("photo.png")
    assert Image.open("b.webp").size == tuple(reversed(gray.shape[2:]))


def test_stylize_never_overwrites(paint):
    assert paint("photo.png", "red.png", "-o", "out.png").exit_code == 0
    before = Path("out.png").read_bytes()
    result = paint("photo.png", "blue.png", "-o", "out.png")
    assert result.exit_code == 1 and "out.png exists" in result.stderr
    assert Path("out.png").read_bytes() == before
    assert paint("photo.png", "blue.png", "-o", "out.png", "--force").exit_code == 0
    assert Path("out.png").read_bytes() != before


def test_stylize_styles_frames(paint):
    frames = torch.rand(3, 3, 24, 32, generator=torch.Generator().manual_seed(1))
    files.write_frames("clip.webp", frames, fps=10)
    result = paint("clip.webp", "red.png", "--video", "-o", "styled.mp4")
    assert result.exit_code == 0, result.output
    clip = files.read_frames("styled.mp4")
    assert clip.fps == 10 and len(list(clip)) == 3


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("missing.png", "red.png", "-o", "x.png"), "there is no file missing.png"),
        (("photo.png", "red.png", "-o", "no/folder/x.png"), "folder .* does not exist"),
        (("photo.png", "red.png", "-o", "x.docx"), r"must end in .png"),
        (("photo.png", "red.png", "blue.png", "--weights", "1;2", "-o", "x.png"), "numbers with commas.*'1;2'"),
        (("photo.png", "red.png", "blue.png", "--weights", "1", "-o", "x.png"), "one weight per style"),
        (("photo.png", "red.png", "blue.png", "--mask", "all.png", "-o", "x.png"), "one mask"),
        (("photo.png", "red.png", "--tile", "12", "-o", "x.png"), "multiple of 8"),
    ],
)
def test_stylize_says_what_is_wrong_and_writes_nothing(paint, words, said):
    before = sorted(Path().iterdir())
    result = paint(*words)
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-1].startswith("error: ") and re.search(said, result.stderr), result.stderr
    assert sorted(Path().iterdir()) == before


@pytest.mark.parametrize("words", [("photo.png",), ("photo.png", "red.png"), ("photo.png", "red.png", "--alpha", "2")])
def test_stylize_refuses_wrong_usage(paint, words):
    assert paint(*words, *(["-o", "x.png"] if "--alpha" in words else [])).exit_code == 2
