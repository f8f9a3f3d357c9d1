"""The evaluation sets: as many as the papers say, word for word, and a tiny one in the world's own words."""

import dataclasses

import pytest

from stylemoments import prompts
from stylemoments.world import HELD_OUT, OBJECTS, PLAIN, STYLES


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
