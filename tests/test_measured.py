"""Long measurements in pieces, and what StyleAligned is measured by: truth that is known beforehand."""

import json

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from stylemoments import diffusion, prompts
from stylemoments.evaluation import records as measured
from stylemoments.train import measure_dreambooth, measure_style_aligned
from stylemoments.world import World

TABLES = [measure_style_aligned, measure_dreambooth]


# ------------------------------------------------------------------------------------- pieces


def test_a_table_reads_as_it_was_written(tmp_path):
    rows = [{"variant": "a", "set": 3}, {"variant": "b", "set": 4, "hue": 12.345678}]
    measured.write(tmp_path / "t.csv", rows)
    assert measured.read(tmp_path / "t.csv", texts=("variant",)) == [
        {"variant": "a", "set": 3.0},
        {"variant": "b", "set": 4.0, "hue": 12.346},
    ]


def test_only_shared_keys_are_compared():
    assert measured.shared({3: 1.0, 1: 2.0, 2: 3.0}, {1: 5.0, 3: 4.0}) == ([1.0, 2.0], [4.0, 5.0])


def test_stopped_shared_and_continued(tmp_path, capsys):
    """Two halves, one of them stopped: nothing is measured twice, and the table comes with the last piece."""
    done, table, broken = [], tmp_path / "table.csv", True

    def measure(number):
        if number == 2 and broken:
            raise KeyboardInterrupt
        done.append(number)
        return [{"number": number}]

    plan = [(f"run {number}", lambda number=number: measure(number)) for number in range(4)]
    with pytest.raises(KeyboardInterrupt):
        measured.run(plan, tmp_path / "runs", table, part="0/2")
    measured.run(plan, tmp_path / "runs", table, part="1/2")
    assert done == [0, 1, 3] and not table.exists() and "1 runs are missing, such as run-2" in capsys.readouterr().out
    broken = False
    measured.run(plan, tmp_path / "runs", table)
    assert done == [0, 1, 3, 2] and [row["number"] for row in measured.read(table, texts=())] == [0, 1, 2, 3]
    assert json.loads((tmp_path / "runs/run-3.json").read_text()) == [{"number": 3}]


# ------------------------------------------------------------------------------------- the stored tables


@pytest.mark.parametrize("room", TABLES, ids=lambda room: room.__name__.split(".")[-1])
def test_every_variant_is_in_the_table(room):
    names = [variant.name for variant in room.VARIANTS]
    assert len(set(names)) == len(names)
    assert set(names) <= {row["variant"] for row in room.table()}
    with pytest.raises(ValueError, match="no 'hue' was measured for 'nothing'.* variants"):
        room.column("hue", "nothing")


def test_the_table_has_as_many_sets_as_the_variants_say():
    for variant in measure_style_aligned.VARIANTS:
        assert [*measure_style_aligned.column("hue", variant.name)] == [*range(variant.sets)]
    assert measure_style_aligned.ALL == len(prompts.tiny_sets())


def test_pairs_are_the_sets_that_both_drew():
    one, two = measure_style_aligned.paired("text", "no sharing", "queries")
    assert len(one) == len(two) == measure_style_aligned.SOME


# ------------------------------------------------------------------------------------- what measures StyleAligned


def pictures(objects, hues, style="papercut art"):
    """Pictures of the world whose palette is known: of each object the one whose hue comes nearest."""
    chosen = []
    for noun, hue in zip(objects, hues, strict=True):
        sample = World(5).sample(60, object=noun, style=style, place="nowhere")
        distance = np.abs((sample.hues - hue + 0.5) % 1 - 0.5)
        chosen.append(sample.images[distance.argmin()])
    return torch.from_numpy(np.stack(chosen))


def test_scores_know_matching_sets_from_others():
    asked = prompts.tiny_sets()[0]
    alike, apart = (pictures(asked.objects, hues) for hues in ([0.3] * 4, [0.0, 0.5, 0.25, 0.75]))
    one, two = (measure_style_aligned.scores(images, asked) for images in (alike, apart))
    assert one["hue"] < 15 and two["hue"] == pytest.approx(120, abs=15)  # 180, 90 and 90 degrees
    assert one["consistency"] > two["consistency"] + 0.05
    assert one["object_right"] == one["style_right"] == 1 and one["leak"] < 0.01
    swapped = pictures([asked.objects[0]] * 4, [0.3] * 4)
    leaked = measure_style_aligned.scores(swapped, asked)
    assert leaked["leak"] > 0.95 and leaked["object_right"] == 0.25 and leaked["text"] < one["text"] - 0.1


def test_diversity_is_that_of_the_targets_across_seeds():
    asked = prompts.tiny_sets()[0]
    one, two = (pictures(asked.objects, [hue] * 4) for hue in (0.1, 0.6))
    assert measure_style_aligned.diversity(torch.stack([one, one])) == pytest.approx(0, abs=1e-9)
    both = torch.stack([one, two])
    assert measure_style_aligned.diversity(both) > 0.5
    other_reference = torch.stack([one, torch.cat([two[:1], one[1:]])])
    assert measure_style_aligned.diversity(other_reference) == pytest.approx(0, abs=1e-9)


def test_every_variant_draws_from_the_same_noise(monkeypatch):
    """Of each set the noise depends on its number and the seed alone; several sets in a batch are each their own."""
    pipe = diffusion.load("tiny", device="cpu")
    monkeypatch.setattr(measure_style_aligned, "STEPS", 2)
    both = measure_style_aligned.draw(pipe, {}, [3, 7], seed=1)
    assert both.shape == (2, 4, 3, 64, 64)
    assert_close(measure_style_aligned.draw(pipe, {}, [7], seed=1)[0], both[1], atol=1e-4, rtol=1e-3)
    alone = measure_style_aligned.draw(pipe, None, [3, 7], seed=1)
    assert_close(alone[:, 0], both[:, 0], atol=1e-4, rtol=1e-3)  # the references
    assert (alone[:, 1:] - both[:, 1:]).abs().amax((1, 2, 3, 4)).min() > 0.01
    assert (measure_style_aligned.draw(pipe, None, [3], seed=0)[0] - alone[0]).abs().max() > 0.1
