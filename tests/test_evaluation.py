"""The protocols of the papers: what all methods share, one process or two, stopped or not, and the numbers by hand."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import random_pipeline
from typer.testing import CliRunner

from stylemoments import cli, prompts
from stylemoments.evaluation import dreambooth as subjects
from stylemoments.evaluation import records
from stylemoments.evaluation import style_aligned as sets

QUICK = {"steps": 2, "training_steps": 1}
NUMBERS = ("text", "consistency", "palette", "leak", "diversity")


class Flat:
    """Features that a reader can compute: the colors of a picture's quarters, and the letters of a text."""

    def __call__(self, images):
        return torch.nn.functional.adaptive_avg_pool2d(images, 2).flatten(1)

    images = __call__

    def texts(self, texts):
        return torch.tensor([[1.0 + text.lower().count(letter) for letter in "aeiounrstlmd"] for text in texts])


@pytest.fixture(scope="module")
def pipe():
    pipe = random_pipeline("sd15")
    pipe.size = "tiny"
    return pipe


@pytest.fixture
def quick_eyes(monkeypatch):
    see = sets.Eyes(Flat(), Flat(), Flat(), None)
    monkeypatch.setattr(sets, "eyes", lambda size, device="cpu": see)
    return see


def task(pipe, number=0, **changes):
    protocol = sets.protocol(pipe.size, **QUICK | changes)
    asked = sets.sets(pipe.size)[number]
    return sets.Task(pipe, asked, sets.noises(pipe, number, len(asked.prompts), protocol), protocol)


def without_time(rows):
    return [{name: value for name, value in row.items() if name not in ("seconds", "training")} for row in rows]


# ------------------------------------------------------------------------------------- what methods share


def test_noise_is_that_of_the_set_and_the_draw(pipe):
    protocol = sets.protocol("tiny", draws=3)
    noise, other = (sets.noises(pipe, number, 4, protocol) for number in (7, 8))
    assert torch.equal(noise[1:, 0], noise[:1, 0].expand(2, -1, -1, -1))
    different = [noise[0, 0], *noise[:, 1:].flatten(0, 1), *other[0]]
    assert len({x.sum().item() for x in different}) == len(different)


@pytest.mark.parametrize("method", [name for name in sets.METHODS if name != "full sharing"])
def test_the_first_picture_is_the_same_for_every_method(pipe, method):
    """But for rounding, in both draws; the others differ."""
    plain = sets.METHODS["no sharing"](task(pipe))
    drawn = sets.METHODS[method](task(pipe))
    assert drawn.images.shape == (2, 4, 3, 16, 16)
    torch.testing.assert_close(drawn.images[:, 0], plain.images[:1, 0].expand(2, -1, -1, -1), atol=1e-4, rtol=0)
    assert (drawn.images[0, 1:] - drawn.images[1, 1:]).abs().amax((1, 2, 3)).min() > 1e-3
    if method != "no sharing":
        assert (drawn.images[:, 1:] - plain.images[:, 1:]).abs().max() > 1e-6


def test_in_full_sharing_the_first_picture_looks_at_the_others(pipe):
    plain, full = (sets.METHODS[name](task(pipe)).images[0, 0] for name in ("no sharing", "full sharing"))
    assert (plain - full).abs().max() > 1e-4


@pytest.mark.parametrize("method", sets.METHODS)
def test_the_pipeline_is_as_before(pipe, method):
    before = {name: x.clone() for name, x in pipe.unet.state_dict().items()}
    modules, processors = [name for name, _ in pipe.unet.named_modules()], pipe.unet.attn_processors
    drawn = sets.METHODS[method](task(pipe, draws=1))
    assert (
        drawn.images.shape[0] == 1
        and drawn.seconds > 0
        and (drawn.training > 0) == ("Drop" in method or "LoRA" in method)
    )
    after = pipe.unet.state_dict()
    assert [*after] == [*before] and all(torch.equal(after[name], x) for name, x in before.items())
    assert [name for name, _ in pipe.unet.named_modules()] == modules
    assert {k: type(p) for k, p in pipe.unet.attn_processors.items()} == {k: type(p) for k, p in processors.items()}
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in pipe.unet.modules())


@pytest.mark.parametrize("method", ["StyleDrop", "DreamBooth-LoRA"])
def test_what_trains_sees_the_first_picture_alone(pipe, method, monkeypatch):
    """More steps come closer to the picture, and the seed of the training is that of the protocol."""
    one, same, more = (sets.METHODS[method](task(pipe, training_steps=n)).images[0, 1:] for n in (1, 1, 5))
    assert torch.equal(one, same) and (one - more).abs().max() > 1e-6


@pytest.mark.parametrize("kind", ["sdxl"])
@pytest.mark.parametrize("method", sets.METHODS)
def test_every_method_runs_at_full_size(kind, method, quick_eyes):
    """On random weights: the paper's prompts, five objects in its second set."""
    pipe = random_pipeline(kind)
    pipe.size = kind
    (row,) = sets.measure(pipe, method, 1, sets.protocol(kind, **QUICK))
    assert row["method"] == method and row["set"] == 1 and "hue" not in row
    assert np.isfinite([row[name] for name in NUMBERS]).all()


def test_the_second_set_of_the_paper_has_five_objects():
    assert [len(each.prompts) for each in sets.sets("sdxl")[:3]] == [4, 5, 4]
    assert all(len(each.prompts) == 4 for each in sets.sets("tiny")) and len(sets.sets("tiny")) == 100


# ------------------------------------------------------------------------------------- the numbers


def test_scores_by_hand(quick_eyes):
    """Four gray pictures: every pair has the cosine 1, the palette distance is that of the grays."""
    grays = torch.tensor([0.5, 0.5, 0.25, 1.0]).view(4, 1, 1, 1).expand(4, 3, 8, 8)
    asked = prompts.style_aligned_sets()[0]
    found = sets.scores(quick_eyes, grays, asked)
    assert found["consistency"] == pytest.approx(1)
    assert found["palette"] == pytest.approx(3**0.5 * (0 + 0.25 + 0.5) / 3, abs=1e-6)


def test_text_is_that_of_the_object_alone(quick_eyes, monkeypatch):
    heard = []
    monkeypatch.setattr(Flat, "texts", lambda self, texts: heard.extend(texts) or torch.ones(len(texts), 12))
    asked = prompts.style_aligned_sets()[3]
    sets.scores(quick_eyes, torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0)), asked)
    assert heard == [*asked.objects] and asked.style not in " ".join(heard)


def test_six_pairs_make_a_set(quick_eyes, monkeypatch):
    """Orthogonal but for one pair: one cosine of six is 1."""
    rows = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1], [0, 0, 2]])
    quick_eyes = sets.Eyes(Flat(), lambda images: rows, Flat(), None)
    images = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    assert sets.scores(quick_eyes, images, prompts.style_aligned_sets()[0])["consistency"] == pytest.approx(1 / 6)


def test_leakage_at_full_size_is_that_of_clip(monkeypatch):
    """A target whose features are those of the reference's text has leaked; those of its own have not."""

    class Words(Flat):
        def images(self, images):
            return torch.tensor([[1.0, 0, 0, 0], [1.0, 0, 0, 0], [0, 0, 1.0, 0], [0, 0, 0, 1.0]])

        def texts(self, texts):
            return torch.eye(4)

    see = sets.Eyes(Words(), Flat(), Flat(), None)
    images = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    assert sets.scores(see, images, prompts.style_aligned_sets()[0])["leak"] == pytest.approx(1 / 3, abs=1e-6)


def test_diversity_is_that_of_the_targets(quick_eyes):
    images = torch.zeros(2, 3, 3, 8, 8)
    images[1, 0] = 1  # the reference does not count
    assert sets.diversity(quick_eyes, images) == pytest.approx(0)
    images[1, 1] = 0.5  # twelve features, each 0.5 apart: 3, over two targets
    assert sets.diversity(quick_eyes, images) == pytest.approx(1.5)


def test_the_summary_by_hand():
    rows = [
        {"method": method, "set": number, "text": value}
        for method, values in {"StyleAligned": (0.1, 0.2, 0.3), "SDEdit": (0.3, 0.4, 0.5)}.items()
        for number, value in enumerate(values)
    ]
    base, other = sets.summary(rows)
    assert base == {
        "method": "StyleAligned",
        "measure": "text",
        "mean": pytest.approx(0.2),
        "n": 3,
        "deviation": pytest.approx(0.1),
    }
    assert other["mean"] == pytest.approx(0.4)
    assert [other[name] for name in ("difference", "low", "high")] == pytest.approx([0.2] * 3)


def test_sets_are_compared_with_themselves():
    """In another order, and where one method lacks a set."""
    rows = [{"method": "StyleAligned", "set": n, "text": float(n)} for n in range(5)]
    rows += [{"method": "SDEdit", "set": n, "text": float(n) + 1} for n in (3, 1, 2)]
    other = sets.summary(rows)[1]
    assert other["n"] == 3 and [other[name] for name in ("difference", "low", "high")] == pytest.approx([1.0] * 3)


@pytest.mark.parametrize(("names", "fault"), [(["SDedit", "style"], "got style"), ([], "got none")])
def test_methods_are_known_by_name(names, fault):
    assert sets.known_methods(["dreambooth_lora", "No AdaIN"]) == ["no AdaIN", "DreamBooth-LoRA"]
    with pytest.raises(ValueError, match=f"methods are some of no sharing.*{fault}"):
        sets.known_methods(names)


def test_protocols_are_checked(pipe):
    with pytest.raises(ValueError, match="size must be one of"):
        sets.protocol("huge")
    with pytest.raises(ValueError, match="1 or more"):
        sets.protocol("tiny", draws=0)
    with pytest.raises(ValueError, match="there are 100 sets"):
        [*sets.plan(pipe, ["SDEdit"], 101, sets.protocol("tiny"))]


# ------------------------------------------------------------------------------------- pieces of it


def plan(pipe, **changes):
    methods = ["no sharing", "StyleAligned", "StyleDrop"]
    return [*sets.plan(pipe, methods, 2, sets.protocol("tiny", **QUICK | changes))]


def test_processes_that_take_turns_share_the_slow_methods(pipe):
    names = [name for name, _ in sets.plan(pipe, ["SDEdit", "StyleDrop"], 4, sets.protocol("tiny"))]
    for share in (names[::2], names[1::2]):
        assert sum(name.startswith("StyleDrop") for name in share) == 2


def test_two_processes_make_the_table_of_one(pipe, quick_eyes, tmp_path):
    records.run(plan(pipe), tmp_path / "one", tmp_path / "one.csv")
    for part in ("1/2", "0/2"):
        records.measure(plan(pipe), tmp_path / "two", part=part)
    assert records.gather(plan(pipe), tmp_path / "two", tmp_path / "two.csv")
    one, two = (records.read(tmp_path / name, texts=sets.TEXTS) for name in ("one.csv", "two.csv"))
    assert len(one) == 6 and without_time(one) == without_time(two)


def test_stopped_it_goes_on(pipe, quick_eyes, tmp_path, monkeypatch):
    count, measure = [], sets.measure

    def stopped(*args):
        count.append(args[1:3])
        if len(count) == 4:
            raise KeyboardInterrupt
        return measure(*args)

    monkeypatch.setattr(sets, "measure", stopped)
    with pytest.raises(KeyboardInterrupt):
        records.run(plan(pipe), tmp_path / "records", tmp_path / "table.csv")
    assert not (tmp_path / "table.csv").exists() and len([*(tmp_path / "records").iterdir()]) == 3
    records.run(plan(pipe), tmp_path / "records", tmp_path / "table.csv")
    assert len(count) == 7 and len(set(count)) == 6
    monkeypatch.undo()
    monkeypatch.setattr(sets, "eyes", lambda size, device="cpu": quick_eyes)
    records.run(plan(pipe), tmp_path / "again", tmp_path / "again.csv")
    one, two = (records.read(tmp_path / name, texts=sets.TEXTS) for name in ("table.csv", "again.csv"))
    assert without_time(one) == without_time(two)


def test_a_folder_has_one_protocol(tmp_path):
    records.open_folder(tmp_path / "new", {"steps": 3, "size": "tiny"})
    records.open_folder(tmp_path / "new", {"steps": 3, "size": "tiny"})
    with pytest.raises(ValueError, match="holds another measurement: steps 3, now 4. Choose another folder"):
        records.open_folder(tmp_path / "new", {"steps": 4, "size": "tiny"})


# ------------------------------------------------------------------------------------- DreamBooth


@pytest.fixture
def quick_subject_eyes(monkeypatch):
    see = subjects.Eyes(Flat(), Flat(), Flat())
    monkeypatch.setattr(subjects, "eyes", lambda size, device="cpu": see)
    return see


def toy_subject(n=2):
    images = torch.rand(n, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    asked = tuple(prompts.tiny_subject_prompts()[i] for i in (0, 8, -1))  # a place, a style, plain
    return subjects.Subject("toy", "cat", [*images], asked)


def test_the_numbers_of_a_subject_by_hand(quick_subject_eyes):
    """Pictures of the subject equal a real one: DINO is the cosine of that with all; a style does not count."""
    subject = toy_subject()
    a, b = (Flat()(image[None])[0] for image in subject.images)
    cosine = torch.nn.functional.cosine_similarity(a, b, dim=0).item()
    own = torch.stack([subject.images[0], torch.zeros(3, 16, 16) + 0.01, subject.images[0]])
    kind = torch.stack([subject.images[1], subject.images[1]])
    found = subjects.scores(quick_subject_eyes, own, kind, subject)
    assert found["dino"] == found["clip_i"] == pytest.approx((1 + cosine) / 2, abs=1e-6)
    assert found["pres"] == pytest.approx((1 + cosine) / 2, abs=1e-6)
    assert found["real_dino"] == found["real_clip_i"] == pytest.approx(cosine, abs=1e-6)
    assert found["div"] == pytest.approx(0, abs=1e-9)


def test_prompts_are_measured_without_the_token(quick_subject_eyes, monkeypatch):
    heard = []
    monkeypatch.setattr(Flat, "texts", lambda self, texts: heard.extend(texts) or torch.ones(len(texts), 12))
    subject = toy_subject()
    pictures = torch.rand(6, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    subjects.scores(quick_subject_eyes, pictures, pictures, subject)
    said = [prompt.without_token("cat") for prompt in subject.prompts]
    assert heard == [text for text in said for _ in range(2)]


def test_a_subject_from_end_to_end(pipe, quick_subject_eyes, tmp_path):
    protocol = subjects.protocol("tiny", steps=1, batch=1)
    protocol = subjects.Protocol(**vars(protocol) | {"steps": 2, "class_images": 2})
    before = {name: x.clone() for name, x in pipe.unet.state_dict().items()}
    plan = [*subjects.plan(pipe, [toy_subject()], protocol, tmp_path)]
    records.run(plan, tmp_path / "records", tmp_path / "table.csv")
    (row,) = records.read(tmp_path / "table.csv", texts=subjects.TEXTS)
    assert row["subject"] == "toy" and np.isfinite([row[name] for name in subjects.MEASURES]).all()
    assert all(torch.equal(pipe.unet.state_dict()[name], x) for name, x in before.items())
    assert len([*(tmp_path / "class" / "cat").glob("*.png")]) == 2


def test_subjects_of_both_sizes(tmp_path):
    assert len(subjects.subjects("tiny")) == 16
    assert {len(each.prompts) for each in subjects.subjects("tiny")} == {16}
    from PIL import Image

    (tmp_path / "dog7").mkdir()
    Image.new("RGB", (40, 30), "red").save(tmp_path / "dog7" / "a.png")
    (found,) = subjects.subjects("sd15", tmp_path)
    assert found.noun == "dog" and len(found.prompts) == 25 and found.images[0].shape[0] == 3
    for size, place in [("tiny", tmp_path), ("sdxl", None)]:
        with pytest.raises(ValueError, match="need a folder of photographs"):
            subjects.subjects(size, place)


def test_the_summary_of_subjects_by_hand():
    rows = [{name: float(i) for name in subjects.MEASURES} for i in (1, 2, 3)]
    first = subjects.summary(rows)[0]
    assert first["measure"] == "dino" and first["mean"] == 2 and first["deviation"] == pytest.approx(1)
    assert (first["low"], first["high"]) == pytest.approx((-0.484, 4.484), abs=1e-3)


# ------------------------------------------------------------------------------------- the command


@pytest.fixture
def evaluate(shipped, quick_eyes, quick_subject_eyes, tmp_path, monkeypatch):
    """Runs the command in an empty folder, with a random pipeline in place of the shipped one."""
    monkeypatch.chdir(tmp_path)
    return lambda *words: CliRunner().invoke(cli.app, ["evaluate", *map(str, words)])


FEW = ("style-aligned", "--size", "tiny", "--sets", 2, "--steps", 2, "--training-steps", 1, "-o", "OUT")


def test_the_command_writes_records_table_and_summary(evaluate):
    result = evaluate(*FEW, "--methods", "styledrop,stylealigned")
    assert result.exit_code == 0, result.output
    assert sorted(path.name for path in Path("OUT").iterdir()) == [
        "records",
        "settings.json",
        "summary.csv",
        "table.csv",
    ]
    rows = records.read(Path("OUT/table.csv"), texts=sets.TEXTS)
    assert [(row["method"], row["set"]) for row in rows] == [
        ("StyleAligned", 0), ("StyleDrop", 0), ("StyleDrop", 1), ("StyleAligned", 1),
    ]  # fmt: skip
    assert "published, of another model" in result.stdout and "0.287 ± 0.03" in result.stdout
    assert "difference from StyleAligned" in result.stdout
    assert json.loads(Path("OUT/settings.json").read_text())["training_steps"] == 1


def test_the_command_refuses_another_protocol(evaluate):
    assert evaluate(*FEW, "--methods", "stylealigned").exit_code == 0
    result = evaluate(*FEW, "--methods", "stylealigned", "--draws", 1)
    assert result.exit_code == 1 and "error: OUT holds another measurement: draws 2, now 1" in result.stderr
    result = evaluate(*FEW, "--methods", "magic")
    assert result.exit_code == 1 and "error: methods are some of" in result.stderr


def test_the_command_says_what_to_do_after_a_stop(evaluate, monkeypatch):
    monkeypatch.setattr(sets, "measure", lambda *args: (_ for _ in ()).throw(KeyboardInterrupt))
    result = evaluate(*FEW, "--methods", "stylealigned")
    assert result.exit_code == 130 and "the same command goes on" in result.stderr


def test_subjects_by_command(evaluate):
    words = ("dreambooth", "--size", "tiny", "--subjects", 1, "--training-steps", 1, "-o", "OUT")
    result = evaluate(*words)
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert "published" in lines[1] and lines[3].startswith("dino") and lines[3].endswith("0.668")


def test_two_real_processes(shipped, tmp_path):
    """They share the sets, each trains by itself, one of them speaks, and the table is whole."""
    for name in ("tiny-clip", "tiny-dino", "judge", "tiny-vgg"):
        assert (shipped / name).is_dir()
    program = [
        "import sys; from pathlib import Path",
        f"sys.path.insert(0, {str(Path(__file__).parent)!r})",
        "from stylemoments import cli, zoo",
        f"zoo.WEIGHTS = Path({str(shipped)!r})",
        "from stylemoments.evaluation import style_aligned as sets",
        "from test_evaluation import Flat",
        "sets.eyes = lambda size, device='cpu': sets.Eyes(Flat(), Flat(), Flat(), None)",
        "cli.app()",
    ]
    (tmp_path / "program.py").write_text("\n".join(program), "utf-8")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "program.py"]
    words = [*map(str, FEW), "--methods", "StyleAligned,SDEdit,StyleDrop,DreamBooth-LoRA"]
    done = subprocess.run([*launch, "evaluate", *words], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("size tiny") == done.stdout.count("published") == 1
    assert len(records.read(tmp_path / "OUT/table.csv", texts=sets.TEXTS)) == 8
