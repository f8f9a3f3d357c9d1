"""The command line: a doctor who finds what is broken, and pictures and runs that are told apart and never lost."""

import json
import os
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from stylemoments import adain, attention, cli, diffusion, dreambooth, editing, files, world, zoo
from stylemoments.style_aligned import StyleAligned
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
        "pass  weights tiny-adain", "pass  weights tiny-control", "pass  a picture",
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


# ------------------------------------------------------------------------------------- dreambooth


@pytest.fixture
def photographs(tmp_path):
    """Three photographs of different sizes in a folder."""
    folder = tmp_path / "dog"
    folder.mkdir()
    generator = torch.Generator().manual_seed(0)
    for name, size in {"1": (20, 24), "2": (40, 30), "3": (16, 16)}.items():
        smooth = files.resize(torch.rand(1, 3, 4, 4, generator=generator), max(size))  # as photographs are
        files.write(folder / f"{name}.png", smooth[..., : size[0], : size[1]])
    return folder


@pytest.fixture
def teach(run, photographs, monkeypatch):
    """Runs `dreambooth` on them with few steps and pictures of the class; words of your own replace all of these."""
    monkeypatch.setattr(cli, "SAMPLE_STEPS", 1)

    def teach(*words, steps=2, out="OUT"):
        few = ["--class", "dog", "--size", "tiny", "--class-images", 2, "--steps", steps, "-o", out]
        return run("dreambooth", *few, *(words or [photographs]))

    return teach


def interrupt(monkeypatch, step: int) -> None:
    """The next training is stopped by Ctrl-C after that step."""
    whole = dreambooth.DreamBooth.train

    def train(self, *arguments, **options):
        for record in whole(self, *arguments, **options):
            yield record
            if record.step == step:
                raise KeyboardInterrupt

    monkeypatch.setattr(dreambooth.DreamBooth, "train", train)


def tree(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_dreambooth_learns_a_subject_and_sample_draws_it(teach, run, tmp_path):
    result = teach()
    assert result.exit_code == 0, result.output
    assert tree(tmp_path / "OUT") == ["checkpoint.pt", "class", "model", "run.json", "samples.png"]
    assert tree(tmp_path / "OUT" / "class") == ["00000.png", "00001.png", "class.json"]
    said = " ".join(result.stdout.split())
    assert "subject: 'a sks dog' from 3 photographs, beside 2 pictures of 'dog' by the model itself" in said
    assert "2 steps of 4 + 4 pictures" in said and "GB at least" in said and "activations come on top" in said
    assert "warning" not in result.stderr
    told = re.search(r'Draw it: stylemoments (sample) "(.*)" (--model) (\S+)', result.stdout).groups()
    drawn = run(*told, "--steps", 1)
    assert drawn.exit_code == 0, drawn.output
    assert "warning" not in drawn.stderr
    picture = Image.open("pictures/a-sks-dog-in-the-snow-seed-0.png")
    assert picture.info["model"] == str(Path("OUT/model"))
    plain = diffusion.generate(dreambooth.load("OUT/model"), "a sks dog in the snow", steps=1, seed=0)[0]
    wanted = (plain * 255).permute(1, 2, 0).flatten()
    assert (torch.tensor(list(picture.convert("RGB").tobytes())) - wanted).abs().max() <= 1
    again = run("sample", told[1], "--steps", 1)
    assert again.exit_code == 1, "the untaught model draws another picture, which must not replace this one"


def test_dreambooth_shows_photographs_places_and_styles(teach, monkeypatch):
    from stylemoments import show

    seen = []
    whole = show.grid
    monkeypatch.setattr(
        show, "grid", lambda images, **options: seen.append((images, options)) or whole(images, **options)
    )
    assert teach(steps=1).exit_code == 0
    ((images, options),) = seen
    titles = [title.replace("\n", " ") for title in options["titles"]]
    assert titles[:8] == ["photograph"] * 3 + [""] * 5
    assert titles[8:10] == ["a sks dog", "in the snow"] and titles[-1] == "in blueprint style"
    assert len(images) == 8 + 1 + 7 + 8 and options["columns"] == 8


def test_full_size_draws_the_prompts_of_the_paper(tiny_pipe, monkeypatch):
    class Dream:
        pipe, token, noun, prompt = tiny_pipe, "sks", "dog", "a sks dog"

    monkeypatch.setattr(tiny_pipe, "size", "sd15", raising=False)
    plain, first, *_ = prompts = cli._sample_prompts(Dream)
    assert (plain, first, len(prompts)) == ("a sks dog", "a sks dog in the jungle", 8)
    assert any("wearing" in prompt for prompt in prompts), "a dog is a live subject"
    Dream.noun, Dream.prompt = "vase", "a sks vase"
    assert not any("wearing" in prompt for prompt in cli._sample_prompts(Dream))


def test_a_stopped_run_goes_on_and_ends_as_if_it_had_not(teach, monkeypatch, tmp_path):
    assert teach(steps=28, out="whole").exit_code == 0
    with monkeypatch.context() as patch:
        interrupt(patch, step=27)
        stopped = teach(steps=28)
    assert stopped.exit_code == 130
    assert "stopped; 25 of 28 steps are kept in OUT; the same command goes on" in stopped.stderr
    assert tree(tmp_path / "OUT") == ["checkpoint.pt", "class", "run.json"]
    made = {path: path.stat().st_mtime_ns for path in Path("OUT/class").iterdir()}
    result = teach(steps=28)
    assert result.exit_code == 0, result.output
    assert "going on after step 25" in result.output
    assert {path: path.stat().st_mtime_ns for path in Path("OUT/class").iterdir()} == made, "pictures are used again"
    weights = "model/unet/diffusion_pytorch_model.safetensors"
    assert Path("OUT", weights).read_bytes() == Path("whole", weights).read_bytes()
    finished = teach(steps=28)
    assert finished.exit_code == 0 and "all steps are done already" in finished.output


def test_a_run_stopped_before_it_trains_leaves_nothing_half(teach, monkeypatch, tmp_path):
    def stop(*arguments, **options):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(diffusion, "load", stop)
        result = teach()
    assert result.exit_code == 130 and not (tmp_path / "OUT").exists()
    with monkeypatch.context() as patch:
        patch.setattr(dreambooth.DreamBooth, "save", stop)
        assert teach().exit_code == 130
    assert tree(tmp_path / "OUT") == ["checkpoint.pt", "class", "run.json"]
    assert teach().exit_code == 0


def test_another_run_is_refused_unless_it_may_go(teach, photographs, tmp_path):
    assert teach(photographs, "--seed", 1, steps=1).exit_code == 0
    before = Path("OUT/checkpoint.pt").read_bytes()
    refused = teach(photographs, "--seed", 2, "--token", "zwx", steps=1)
    assert refused.exit_code == 1
    assert "OUT holds another run; different are token sks, now zwx; seed 1, now 2" in refused.stderr
    (photographs / "3.png").unlink()
    assert "different are photographs." in teach(photographs, "--seed", 1, steps=1).stderr
    assert Path("OUT/checkpoint.pt").read_bytes() == before
    drawn = Path("OUT/class/00000.png").read_bytes()
    assert teach(photographs, "--seed", 2, "--force", steps=1).exit_code == 0
    assert Path("OUT/checkpoint.pt").read_bytes() != before and Path("OUT/class/00000.png").read_bytes() != drawn


def test_more_steps_continue_a_finished_run(teach):
    assert teach(steps=1).exit_code == 0
    result = teach(steps=3)
    assert result.exit_code == 0 and "going on after step 1" in result.output


def test_a_folder_of_something_else_is_never_replaced(teach, photographs):
    before = tree(photographs)
    result = teach(photographs, "--force", out=photographs)
    assert result.exit_code == 1 and "is no folder of a DreamBooth run, and is never replaced" in result.stderr
    assert tree(photographs) == before


def test_every_unreadable_photograph_is_named_and_nothing_done(teach, photographs, tmp_path):
    whole = (photographs / "1.png").read_bytes()
    (photographs / "cut.png").write_bytes(whole[: len(whole) // 2])
    (photographs / "phone.heic").write_bytes(b"not read by Pillow")
    result = teach(photographs, "missing.png")
    assert result.exit_code == 1
    assert "error: 3 of 6 photographs cannot be read:" in result.stderr
    assert all(name in result.stderr for name in ("cut.png", "phone.heic", "missing.png"))
    assert "Traceback" not in result.output and not (tmp_path / "OUT").exists()


def test_what_speaks_against_photographs_and_words_is_named(teach, photographs):
    (photographs / "3-again.jpg").write_bytes(b"")
    files.write(photographs / "3-again.jpg", files.resize(files.read(photographs / "3.png"), 12), force=True)
    (photographs / "notes.txt").write_text("no picture", "utf-8")
    result = teach(photographs, "--token", "fluffy", "--class", "poodle", steps=1)
    warnings = [line for line in result.stderr.splitlines() if line.startswith("warning")]
    assert [re.sub(r"'fluffy' as \d+", "'fluffy' as N", line) for line in warnings] == [
        "warning: no pictures, left out: notes.txt",
        "warning: 3-again.jpg has 12 x 12 pixels, and the model draws 16 x 16: it will be blurred",
        "warning: 3-again.jpg and 3.png show the same, which will count twice",
        "warning: the tiny model does not know 'poodle'; the nearest class that it knows: dog",
        "warning: the model reads the name 'fluffy' as N tokens; names that are one: sks, zwx, ohwx",
    ]


@pytest.mark.parametrize(
    "words, said",
    [
        (["empty"], "a subject needs one photograph at least, 3 to 5 are usual; got none"),
        (["dog", "--rank", 4], "add --lora, or leave --rank out"),
        (["dog", "--size", "huge"], "tiny, sd15, sdxl; got 'huge'"),
        (["dog", "--text", "token", "--token", "fluffy"], 'text="token" trains the row of one token'),
        (["dog", "-o", "dog/1.png"], "is never replaced"),
    ],
)
def test_dreambooth_says_what_is_wrong_and_writes_nothing(teach, words, said):
    Path("empty").mkdir()
    before = sorted(Path().rglob("*"))
    result = teach(*words)
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-1].startswith("error: ") and said in result.stderr, result.stderr
    assert sorted(Path().rglob("*")) == before


def test_nearest_class_is_named_by_spelling_or_all_are(tiny_pipe, monkeypatch):
    monkeypatch.setattr(tiny_pipe, "size", "tiny", raising=False)
    assert list(cli._odd_words(tiny_pipe, "sks", "dog")) == []
    assert next(iter(cli._odd_words(tiny_pipe, "sks", "elefant"))).endswith("it knows: elephant")
    assert "airplane, apple" in next(iter(cli._odd_words(tiny_pipe, "sks", "zzz")))


def test_lora_is_written_small_and_sample_loads_it(teach, run, photographs):
    result = teach(photographs, "--lora", "--rank", 2, "--text", "all", "--prior-weight", 0, steps=1)
    assert result.exit_code == 0, result.output
    assert tree(Path("OUT/model")) == ["dreambooth.json", "pytorch_lora_weights.safetensors"]
    assert not Path("OUT/class").exists(), "without prior loss no pictures of the class are drawn"
    assert "LoRA of rank 2, and the text encoder; 1 steps of 4 pictures" in result.stdout
    for size in ([], ["--size", "tiny"]):
        drawn = run("sample", "a sks dog", "--model", "OUT/model", "--steps", 1, *size)
        assert drawn.exit_code == 0, drawn.output


def test_the_words_of_a_model_are_known_words(teach, run, photographs):
    assert teach(photographs, "--token", "fluffy", "--class", "poodle", steps=1).exit_code == 0
    drawn = run("sample", "a fluffy poodle in the snou", "--model", "OUT/model", "--steps", 1)
    assert drawn.exit_code == 0, drawn.output
    assert "does not know 'snou'" in drawn.stderr and drawn.stderr.count("warning") == 1


def test_a_missing_model_is_one_line(run):
    result = run("sample", CAT, "--model", "nowhere")
    assert result.exit_code == 1
    assert result.stderr.startswith("error: ") and "nowhere" in result.stderr


def test_a_gpu_that_is_too_small_ends_with_advice(teach, monkeypatch):
    def full(*arguments, **options):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nmore")

    monkeypatch.setattr(dreambooth.DreamBooth, "train", full)
    result = teach()
    assert result.exit_code == 1
    assert "error: the memory of the GPU ran out; take --lora" in result.stderr and "2 GiB" in result.stderr


@pytest.mark.skipif(os.name == "nt", reason="two processes talk through gloo's Linux and macOS builds")
def test_two_processes_speak_with_one_voice_and_write_one_result(shipped, photographs, tmp_path):
    """Two CPU processes; `accelerate launch` starts as many on GPUs, but only one on CPUs without MPI."""
    lines = ["from pathlib import Path", "from stylemoments import cli, zoo", f"zoo.WEIGHTS = Path({str(shipped)!r})"]
    (tmp_path / "program.py").write_text("\n".join([*lines, "cli.SAMPLE_STEPS = 1", "cli.app()"]), "utf-8")
    launch = ["torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    words = ["dreambooth", photographs, "--class", "dog", "--size", "tiny", "--class-images", 2, "--steps", 2]
    command = [sys.executable, "-m", *launch, "program.py", *map(str, words), "-o", "OUT"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("subject:") == done.stdout.count("Draw it:") == done.stdout.count("size tiny") == 1
    assert tree(tmp_path / "OUT") == ["checkpoint.pt", "class", "model", "run.json", "samples.png"]


# ------------------------------------------------------------------------------------- align

FOUR = ("a cat", "a guitar", "an owl", "a cat")
FILES = ["0-a-cat.png", "1-a-guitar.png", "2-an-owl.png", "3-a-cat.png", "settings.json", "sheet.png"]


@pytest.fixture
def match(run):
    """Runs `align` on four objects with two steps; words of your own come after."""

    def match(*words, objects=FOUR, style="papercut art", out="OUT"):
        return run("align", *objects, "--style", style, "--size", "tiny", "--steps", 2, "-o", out, *words)

    return match


def wanted(pipe, objects, *, seed=0, guidance=2.5, **settings):
    """The pictures of the set by the library itself, in one batch, uint8 values."""
    prompts = [f"{thing} in papercut art style" for thing in objects]
    with StyleAligned(pipe, **settings):
        images = diffusion.generate(pipe, prompts, steps=2, seed=seed, guidance=guidance)
    return (images * 255).permute(0, 2, 3, 1).flatten(1)


def drawn(folder="OUT"):
    """The pictures of a set in their order, values (n, H W 3)."""
    paths = sorted(Path(folder).glob("[0-9]*.png"), key=files.natural)
    return torch.tensor([list(Image.open(path).convert("RGB").tobytes()) for path in paths]).float()


def assert_same(found, expected):
    """Equal but for the last bit that two sizes of a batch may round differently."""
    torch.testing.assert_close(found, expected, atol=1, rtol=0)


def settings(folder="OUT"):
    return json.loads(Path(folder, "settings.json").read_text("utf-8"))


def test_align_writes_a_set_with_all_its_facts(match, tiny_pipe):
    result = match("--seed", 5)
    assert result.exit_code == 0, result.output
    assert tree(Path("OUT")) == FILES, "nothing else is left behind"
    assert sorted(Path(line).name for line in result.stdout.splitlines()[-6:]) == FILES
    assert "warning: the tiny model does not know 'owl'" in result.stderr and result.stderr.count("warning") == 1
    assert_same(drawn(), wanted(tiny_pipe, FOUR, seed=5))
    assert (drawn()[0] - drawn()[3]).abs().max() > 1, "the same object again has noise of its own"
    known = settings()
    assert {name: known[name] for name in ("style", "size", "steps", "guidance", "version")} == {
        "style": "papercut art", "size": "tiny", "steps": 2, "guidance": 2.5, "version": version("stylemoments"),
    }  # fmt: skip
    assert known["style_aligned"] == StyleAligned(tiny_pipe).settings()
    assert known["pictures"][3] == {
        "file": "3-a-cat.png", "object": "a cat", "prompt": "a cat in papercut art style", "seed": 8,
    }  # fmt: skip
    inside = Image.open("OUT/3-a-cat.png").info
    assert (inside["prompt"], inside["seed"], inside["style"]) == ("a cat in papercut art style", "8", "papercut art")
    assert json.loads(inside["style_aligned"]) == known["style_aligned"]
    assert Image.open("OUT/sheet.png").width > 4 * 16


def test_another_picture_can_be_the_reference(match, tiny_pipe):
    assert match("--reference", 2).exit_code == 0
    assert_same(drawn(), wanted(tiny_pipe, FOUR, reference=2))
    assert (drawn() - wanted(tiny_pipe, FOUR))[[0, 1, 3]].abs().max() > 1
    assert settings()["style_aligned"]["reference"] == 2


def test_a_picture_of_your_own_can_be_the_reference(match, tiny_pipe):
    """It is played back, and the others follow it."""
    Image.frombytes("RGB", (30, 20), bytes(i * 37 % 256 for i in range(1800))).save("mine.png")
    result = match("--picture", "mine.png", "--reference", 1)
    assert result.exit_code == 0, result.output
    fitted = editing.fitted(tiny_pipe, files.read("mine.png"))
    prompts = [f"{thing} in papercut art style" for thing in FOUR]
    path = editing.trajectory(tiny_pipe, fitted, prompts[1], steps=2)
    with StyleAligned(tiny_pipe, reference=1):
        expected = diffusion.generate(tiny_pipe, prompts, steps=2, seed=0, guidance=2.5, replay={1: path.latents})
    assert_same(drawn(), (expected * 255).permute(0, 2, 3, 1).flatten(1))
    itself = diffusion.decode(tiny_pipe, diffusion.encode(tiny_pipe, fitted))
    assert_same(drawn()[1:2], (itself * 255).permute(0, 2, 3, 1).flatten(1))
    assert settings()["pictures"][1]["picture"] == "mine.png" and "picture" not in settings()["pictures"][0]


def test_the_noisiest_versions_of_a_picture_are_left_out(tiny_pipe):
    """One of ten, as 5 of 50 in the public code."""
    image = torch.rand(1, 3, 20, 30, generator=torch.Generator().manual_seed(0))
    path = editing.trajectory(tiny_pipe, editing.fitted(tiny_pipe, image), CAT, steps=10)
    assert torch.equal(cli._replay(tiny_pipe, image, CAT, 10)[0], path.offset(1).latents)
    assert not torch.equal(path.offset(1).latents, path.latents)


def test_the_reference_is_drawn_as_without_followers(match, run):
    assert match().exit_code == 0
    assert run("sample", CAT, "--size", "tiny", "--steps", 2, "--guidance", 2.5).exit_code == 0
    alone = Image.open("pictures/a-cat-in-papercut-art-style-seed-0.png").convert("RGB")
    assert_same(drawn()[0], torch.tensor(list(alone.tobytes())).float())


@pytest.mark.parametrize("reference", [0, 4])
def test_batches_change_no_picture(match, tiny_pipe, monkeypatch, reference):
    monkeypatch.setattr(cli, "BATCH", 3)
    objects = ["a cat", "a dog", "a tree", "a house", "a car", "a key"]
    result = match("--reference", reference, "--group-norm", objects=objects)
    assert result.exit_code == 0, result.output
    assert_same(drawn(), wanted(tiny_pipe, objects, reference=reference, share_group_norm=True))


def test_batches_hold_every_picture_and_always_the_reference():
    assert cli._batches(2, 1) == [[1, 0]]
    assert cli._batches(8, 0) == [list(range(8))], "as many as a batch holds"
    assert cli._batches(9, 0) == [[0, 1, 2, 3, 4, 5, 6, 7], [0, 8]]


def test_full_attention_is_one_batch(match, tiny_pipe, monkeypatch):
    monkeypatch.setattr(cli, "BATCH", 2)
    assert match("--full").exit_code == 0
    assert_same(drawn(), wanted(tiny_pipe, FOUR, full_attention=True))
    known = settings()["style_aligned"]
    assert known["full_attention"] and not known["adain_queries"] and not known["adain_keys"]


def test_every_option_arrives(match, tiny_pipe):
    *_, last = attention.layers(tiny_pipe.unet)
    options = ["--scale", 0.8, "--shift", -1, "--no-adain", "--values", "--group-norm", "--layer-norm"]
    result = match(*options, "--layers", f"mid_block, {last}", "--guidance", 1, "--seed", 3)
    assert result.exit_code == 0, result.output
    asked = {
        "reference_scale": 0.8, "reference_shift": -1.0, "adain_queries": False, "adain_keys": False,
        "adain_values": True, "share_group_norm": True, "share_layer_norm": True, "layers": ["mid_block", last],
    }  # fmt: skip
    assert settings()["style_aligned"] == StyleAligned(tiny_pipe, **asked).settings()
    assert_same(drawn(), wanted(tiny_pipe, FOUR, seed=3, guidance=1.0, **asked))
    assert match("--layers", "0.5", "--force").exit_code == 0
    assert settings()["style_aligned"]["layers"] == 0.5


@pytest.mark.parametrize("there", FILES)
def test_a_set_is_refused_before_anything_is_drawn_where_a_file_stands(match, monkeypatch, there):
    Path("OUT").mkdir()
    Path("OUT", there).write_text("mine", "utf-8")
    monkeypatch.setattr(diffusion, "load", lambda size: pytest.fail("nothing is loaded or drawn"))
    result = match()
    assert result.exit_code == 1
    assert result.stderr.startswith(f"error: OUT has {there} already;") and "--force" in result.stderr
    assert tree(Path("OUT")) == [there] and Path("OUT", there).read_text("utf-8") == "mine"


def test_force_replaces_the_set_and_nothing_else(match):
    assert match().exit_code == 0
    Path("OUT/9-mine.png").write_bytes(b"mine")
    before = Path("OUT/0-a-cat.png").read_bytes()
    assert match("--seed", 1, objects=["a cat", "a dog"]).exit_code == 1
    assert Path("OUT/0-a-cat.png").read_bytes() == before
    assert match("--seed", 1, "--force", objects=["a cat", "a dog"]).exit_code == 0
    assert tree(Path("OUT")) == ["0-a-cat.png", "1-a-dog.png", "9-mine.png", "settings.json", "sheet.png"]
    assert Path("OUT/0-a-cat.png").read_bytes() != before and len(settings()["pictures"]) == 2


@pytest.mark.parametrize("foreign", ["no json", "[]", '{"pictures": [{"file": "../kept.png"}]}'])
def test_force_removes_no_file_that_a_foreign_file_names(match, foreign):
    Path("OUT").mkdir()
    Path("OUT/settings.json").write_text(foreign, "utf-8")
    for place in (Path("kept.png"), Path("OUT/kept.png")):
        place.write_bytes(b"mine")
    assert match("--force").exit_code == 0
    assert settings()["style"] == "papercut art"
    assert Path("kept.png").exists() and Path("OUT/kept.png").exists()


def test_a_set_that_fails_leaves_nothing(match, monkeypatch):
    def full(*arguments, **options):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nmore")

    monkeypatch.setattr(diffusion, "decode", full)
    result = match()
    assert result.exit_code == 1 and not Path("OUT").exists()
    assert "error: the memory of the GPU ran out; take fewer objects" in result.stderr and "2 GiB" in result.stderr


@pytest.mark.parametrize("style", [style for style in world.STYLES if style != world.PLAIN])
def test_prompts_of_the_tiny_world_are_those_it_was_taught(style):
    taught = world.prompt("cat", style=style)
    for said in (style, f"{style} style", f" {style}  style "):
        assert cli._in_style("a cat", said, "tiny") == taught


@pytest.mark.parametrize(
    "style, prompt",
    [
        ("sticker style", "A house in sticker style"),  # as in the paper
        ("sticker", "A house in sticker style"),
        ("food photography style for a menu", "A house in food photography style for a menu"),
        ("freestyle", "A house in freestyle style"),
        ("plain", "A house in plain style"),
    ],
)
def test_prompts_name_the_style_once(style, prompt):
    assert cli._in_style("A house", style, "sdxl") == prompt


def test_plain_goes_without_saying_in_the_tiny_world(match):
    result = match(style="plain", objects=["a cat", "a dog"])
    assert result.exit_code == 0 and "warning" not in result.stderr
    assert [picture["prompt"] for picture in settings()["pictures"]] == ["a cat", "a dog"]


def test_unknown_words_of_a_set_are_named_once(match):
    result = match(style="papercat art", objects=["a sailbote", "a cat", "a dog"])
    assert result.exit_code == 0
    assert "does not know 'sailbote'; the nearest word it knows is 'sailboat'" in result.stderr
    assert "does not know 'papercat'; the nearest word it knows is 'papercut'" in result.stderr
    assert result.stderr.count("warning") == 2


@pytest.mark.parametrize(
    "words, said",
    [
        (["--reference", 4], "--reference counts from 0, so it is 0 to 3 here; got 4"),
        (["--style", " "], "needs a word; one of them is empty"),
        (["--size", "huge"], "tiny, sd15, sdxl; got 'huge'"),
        (["--layers", "mid_blok"], "no self-attention layer is called 'mid_blok'"),
        (["--layers", "2"], "a fraction from 0 to 1, or a list of names; got 2"),
        (["--scale", -1], "finite factor, 0 or more; got -1"),
        (["--shift", "-inf"], "--shift is a finite number; got -inf"),
        (["--guidance", "nan"], "--guidance is a finite number; got nan"),
        (["--steps", 5000], "steps must be from 1 to 999"),
        (["--full", "--reference", 1], "leave --reference, --values and --picture out"),
        (["--picture", "no.png"], "no.png"),
        (["--full", "--scale", 0.5], "there is no reference for reference_scale"),
        (["-o", "file"], "file is a file; name a folder with -o"),
        (["-o", "file/OUT"], "file is a file; name a folder with -o"),
    ],
)
def test_align_says_what_is_wrong_and_writes_nothing(match, words, said):
    Path("file").write_text("mine", "utf-8")
    before = sorted(Path().rglob("*"))
    result = match(*words)
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-1].startswith("error: ") and said in result.stderr, result.stderr
    assert sorted(Path().rglob("*")) == before


def test_one_object_is_no_set(match):
    result = match(objects=["a cat"])
    assert result.exit_code == 1 and not Path("OUT").exists()
    assert result.stderr == "error: a set has two objects at least; got 1. One picture: stylemoments sample\n"


def test_align_needs_a_style(run):
    assert run("align", "a cat", "a dog", "-o", "OUT").exit_code == 2
