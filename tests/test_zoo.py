"""Weights by name: whole files pass, any other says which file, what was expected, what was found, what to do."""

import dataclasses
import hashlib
import re

import pytest

from stylemoments import zoo


def sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


@pytest.fixture
def weights(tmp_path, monkeypatch):
    """A folder of two sets of weights, as it would ship."""
    files = {"judge/model.safetensors": "weights", "judge/deep/er/config.json": "{}", "tiny-clip/a.json": "[]"}
    for file, text in files.items():
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text(text, "utf-8")
    lines = [f"{sha256(text)}  {file}\n" for file, text in files.items()]
    (tmp_path / zoo.SUMS).write_text("".join(lines), "utf-8")
    monkeypatch.setattr(zoo, "WEIGHTS", tmp_path)
    return tmp_path


def fault(name: str = "judge") -> str:
    with pytest.raises(zoo.WeightsError) as error:
        zoo.folder(name)
    return str(error.value)


def test_whole_files_pass(weights):
    assert zoo.folder("judge") == weights / "judge"


def test_the_format_is_that_of_sha256sum(weights):
    sums = weights / zoo.SUMS
    sums.write_text(sums.read_text("utf-8").replace("  ", " *") + "\n", "utf-8")  # as written in its binary mode
    assert zoo.folder("judge") == weights / "judge"


def test_files_are_read_once(weights, monkeypatch):
    zoo.folder("judge")
    monkeypatch.setattr(zoo, "sha256", lambda path: pytest.fail("read again"))
    assert zoo.folder("judge") == weights / "judge"


def test_a_damaged_file(weights):
    (weights / "judge/model.safetensors").write_text("weighty", "utf-8")
    said = fault()
    for part in ("model.safetensors", sha256("weights"), sha256("weighty"), "--force-reinstall", "stylemoments.train"):
        assert part in said
    assert zoo.folder("tiny-clip"), "the others are whole"


def test_a_missing_file(weights):
    (weights / "judge/deep/er/config.json").unlink()
    said = fault()
    assert "config.json" in said and sha256("{}") in said and "the file is missing" in said


def test_an_unlisted_file(weights):
    (weights / "judge/extra.bin").write_text("what is this", "utf-8")
    said = fault()
    assert "extra.bin" in said and "does not list" in said and sha256("what is this") in said


@pytest.mark.parametrize("name", [".DS_Store", zoo.CARD])
def test_hidden_files_and_cards_do_not_matter(weights, name):
    (weights / "judge" / name).write_text("folder", "utf-8")
    assert zoo.folder("judge") == weights / "judge"


def test_weights_that_did_not_ship(weights):
    assert "lists no file of tiny-dino" in fault("tiny-dino")
    (weights / zoo.SUMS).unlink()
    assert "SHA256SUMS is missing" in fault()


def test_unknown_and_remote_names(weights):
    with pytest.raises(ValueError, match="'huge'.*tiny-sd, tiny-clip"):
        zoo.folder("huge")
    with pytest.raises(ValueError, match=r"diffusion\.load\('sdxl'\)"):
        zoo.folder("sdxl")


@pytest.mark.parametrize("name", zoo.names())
def test_an_entry_is_shipped_or_remote(name):
    entry = zoo.entry(name)
    assert entry.what and entry.license
    if entry.repository:
        assert entry.command is None
        assert re.fullmatch("[0-9a-f]{40}", entry.revision), "a commit, not a branch, or it may change"
        assert isinstance(entry.guidance, float)
    else:
        assert entry.revision is None and entry.command.startswith("python -m stylemoments.train.")
    with pytest.raises(dataclasses.FrozenInstanceError):
        entry.license = "mine"


@pytest.mark.parametrize("name", [name for name in zoo.names() if zoo.entry(name).command])
def test_what_ships_is_whole(name):
    assert zoo.folder(name).is_dir()
