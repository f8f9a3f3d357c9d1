"""The evaluation sets: as many as the papers say, word for word, and a tiny one in the world's own words."""

import dataclasses

import pytest

from stylemoments import prompts
from stylemoments.world import HELD_OUT, OBJECTS, PLACES, PLAIN, STYLES, SUBJECT_NOUNS, prompt


def test_the_papers_hundred_sets():
    sets = prompts.style_aligned_sets()
    assert len(sets) == 100
    assert [number for number, one in enumerate(sets, 1) if len(one.objects) != 4] == [2], "row 2 has five objects"
    assert len(sets[1].objects) == 5
    assert sets[29].prompts == (
        "A guitar in papercut art style",
        "A hot air balloon in papercut art style",
        "A sailboat in papercut art style",
        "A mountain in papercut art style",
    )
    assert sets[24].style == "3D render, animation studio style", "a comma inside a style"
    assert sets[28].objects[1] == "A set of d0rums", "the authors' spelling"
    assert all(one.texts == one.objects and one.style for one in sets)


def test_dreambooth_prompts():
    found = prompts.dreambooth_prompts()
    assert [one.kind for one in found] == ["object"] * 25 + ["live"] * 25
    assert all("{token} {class}" in one.template for one in found)
    assert found[-1].fill("sks", "dog") == "a cube shaped sks dog"


def test_dreambooth_subjects():
    found = prompts.dreambooth_subjects()
    assert len(found) == len({one.name for one in found}) == 30
    assert sum(one.kind == "live" for one in found) == 9, "two cats and seven dogs"
    assert dataclasses.astuple(found[2]) == ("bear_plushie", "stuffed animal")
    assert {one.kind for one in found} == {one.kind for one in prompts.dreambooth_prompts()}


@pytest.mark.parametrize(
    "template, noun, says",
    [
        ("a {token} {class} in the jungle", "dog", "a dog in the jungle"),
        ("a {token} {class} on the beach", "elephant", "an elephant on the beach"),
        ("a {token} {class}", "unicorn", "a unicorn"),
        ("a cube shaped {token} {class}", "octopus", "a cube shaped octopus"),
    ],
)
def test_prompts_for_text_alignment_have_no_token(template, noun, says):
    assert prompts.SubjectPrompt("object", template).without_token(noun) == says


def test_no_prompt_keeps_a_placeholder():
    for one in (*prompts.dreambooth_prompts(), *prompts.tiny_subject_prompts()):
        assert "{" not in one.without_token("airplane") + one.fill("sks", "airplane")


def test_tiny_subject_prompts_are_the_worlds():
    """Seven places, eight styles, and plainly; without the token they are what the world says itself."""
    found = prompts.tiny_subject_prompts()
    assert [one.kind for one in found] == ["place"] * 7 + ["style"] * 8 + ["plain"]
    styles = [style for style in STYLES if style != PLAIN]
    for noun in SUBJECT_NOUNS.values():
        said = [one.without_token(noun) for one in found]
        assert said[:7] == [prompt(noun, place=place) for place in PLACES]
        assert said[7:] == [*(prompt(noun, style=style) for style in styles), prompt(noun)]
    assert found[7].fill("sks", "dog") == "a sks dog in papercut art style"
    assert found[-1].fill("sks", "elephant") == "a sks elephant"


# ------------------------------------------------------------------------------------- the data set's folder


def photographs(folder, *names):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")


def test_the_data_set_as_it_is_cloned(tmp_path):
    """Folders in the order of their names; the classes end where the prompts begin, which have commas, too."""
    data = tmp_path / "dataset"
    photographs(data, "toy/01.jpg", "toy/00.jpg", "bear/00.JPG", "toy/notes.txt")
    lines = "Classes\n\nsubject_name,class\ntoy,toy\nbear,stuffed animal\n\nPrompts\n\ntoy,a {0} {1}\n"
    (data / prompts.CLASSES).write_text(lines, "utf-8")
    bear, toy = prompts.read_dreambooth_folder(tmp_path)
    assert (bear.name, bear.noun, bear.kind, len(bear.paths)) == ("bear", "stuffed animal", "object", 1)
    assert toy.paths == (data / "toy/00.jpg", data / "toy/01.jpg")
    assert prompts.read_dreambooth_folder(data) == [bear, toy]


def test_without_the_file_the_classes_are_the_papers(tmp_path):
    photographs(tmp_path, "dog6/00.jpg", "colorful_sneaker/00.jpg")
    found = prompts.read_dreambooth_folder(str(tmp_path))
    assert [(one.name, one.noun, one.kind) for one in found] == [
        ("colorful_sneaker", "sneaker", "object"),
        ("dog6", "dog", "live"),
    ]


def test_folders_that_are_no_data_set_say_what_to_do(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"(?s)nowhere is not there\. Clone github.com/google/dreambooth"):
        prompts.read_dreambooth_folder(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="folder of photographs .* has none"):
        prompts.read_dreambooth_folder(tmp_path)
    photographs(tmp_path, "my-mug/00.jpg")
    with pytest.raises(ValueError, match="my-mug has none; add the line my-mug,NOUN to .*prompts_and_classes.txt"):
        prompts.read_dreambooth_folder(tmp_path)


# ------------------------------------------------------------------------------------- the tiny world's sets


def test_tiny_sets_are_the_worlds():
    sets = prompts.tiny_sets()
    assert len(sets) == len(set(sets)) == 100
    for one in sets:
        assert len(set(one.objects)) == 4 and set(one.objects) <= set(OBJECTS)
        assert one.style in STYLES and one.style != PLAIN
        assert all(HELD_OUT.get(noun) != one.style for noun in one.objects)
        assert all(said == f"{text} in {one.style} style" for said, text in zip(one.prompts, one.texts, strict=True))
    counts = [sum(one.style == style for one in sets) for style in STYLES if style != PLAIN]
    assert max(counts) - min(counts) <= 1, "every style as often as any other"
    assert {noun for one in sets for noun in one.objects} == set(OBJECTS)


def test_tiny_sets_never_change():
    assert prompts.tiny_sets()[0].objects == FIRST
    assert prompts.tiny_sets()[99].objects == LAST


@pytest.mark.parametrize("record", [prompts.tiny_sets()[0], prompts.dreambooth_prompts()[0]])
def test_records_are_frozen(record):
    with pytest.raises(dataclasses.FrozenInstanceError):
        record.style = "another"


FIRST = ("octopus", "dragon", "rocket", "turtle")
LAST = ("hat", "train", "umbrella", "airplane")
