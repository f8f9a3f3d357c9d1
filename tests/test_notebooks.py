"""What every chapter and its notebook must have. nbval runs the notebooks themselves (`make test`)."""

import re
import sys

import jupytext
import nbformat
import pytest
import yaml
from conftest import ROOT

sys.path.insert(0, str(ROOT / "book/_tools"))
import claims  # noqa: E402
import notebooks  # noqa: E402

CHAPTERS = sorted((ROOT / "book/chapters").glob("*.md"))
NOTEBOOKS = [ROOT / "notebooks" / f"{path.stem}.ipynb" for path in CHAPTERS]
NAMES = [path.stem for path in CHAPTERS]
RERUN = "Run `make notebooks`."


def read(path):
    return nbformat.read(path, as_version=4)


def code_cells(path):
    return [cell for cell in read(path).cells if cell.cell_type == "code"]


def test_chapter_and_notebook_have_the_same_cells():
    assert notebooks.differing() == [], f"Chapter and notebook differ. {RERUN}"


def test_the_comparison_sees_a_changed_cell(tmp_path, monkeypatch):
    changed = read(NOTEBOOKS[0])
    changed.cells[-1].source += "!"
    nbformat.write(changed, tmp_path / NOTEBOOKS[0].name)
    monkeypatch.setattr(notebooks, "NOTEBOOKS", tmp_path)
    assert NAMES[0] in notebooks.differing()


def test_a_notebook_without_chapter_is_named(tmp_path, monkeypatch):
    for path in NOTEBOOKS:
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "99-orphan.ipynb").write_bytes(NOTEBOOKS[0].read_bytes())
    monkeypatch.setattr(notebooks, "NOTEBOOKS", tmp_path)
    assert notebooks.differing() == ["99-orphan"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=NAMES)
class TestNotebook:
    def test_first_code_cell_is_the_colab_setup(self, path):
        assert code_cells(path)[0].source == notebooks.setup_source(), RERUN

    def test_ids_are_made_from_the_cells(self, path):
        fresh = notebooks.read_chapter(ROOT / f"book/chapters/{path.stem}.md")
        assert [cell.id for cell in read(path).cells] == [cell.id for cell in fresh.cells], RERUN

    def test_ran_from_top_to_bottom(self, path):
        counts = [cell.execution_count for cell in code_cells(path)]
        assert counts == list(range(1, len(counts) + 1)), f"Stored outputs must come from one whole run. {RERUN}"

    def test_keeps_no_picture_no_widget_and_no_error(self, path):
        allowed = {"text/plain", claims.MIME}
        for cell in code_cells(path):
            for output in cell.outputs:
                assert output.output_type in ("stream", "execute_result", "display_data"), f"{RERUN}\n{cell.source}"
                assert set(output.get("data", {})) <= allowed, f"{RERUN}\n{cell.source}"
                assert output.get("name", "stdout") == "stdout", f"{RERUN}\n{cell.source}"
        assert "widgets" not in read(path).metadata, RERUN

    def test_checked_cells_have_something_to_check(self, path):
        checked = [cell for cell in code_cells(path) if "nbval-check-output" in cell.metadata.get("tags", [])]
        assert checked, "Give the tag nbval-check-output to a cell that prints rounded numbers or a verdict."
        for cell in checked:
            text = "".join(output.get("text", "") for output in cell.outputs)
            assert text.strip(), f"A checked cell must print something; {RERUN}\n{cell.source}"
            assert cell.execution_count, f"nbval compares nothing where execution_count is missing. {RERUN}"


@pytest.mark.parametrize("path", CHAPTERS, ids=NAMES)
class TestChapter:
    def test_has_the_closing_sections(self, path):
        text = path.read_text(encoding="utf-8")
        for section in ("**Summary**", "## Check yourself", "## Exercises", "## Further reading"):
            assert section in text, f"Every chapter ends with {section}."
        assert text.count("show.quiz(") == 1, "Every chapter has one quiz: show.quiz([...])."

    def test_has_six_exercises_each_with_a_solution(self, path):
        text = path.read_text(encoding="utf-8")
        exercises = re.findall(r"^\*\*Exercise (\d+)", text, flags=re.M)
        solutions = re.findall(r"^<details><summary>Solution</summary>\n\n.+?\n\n</details>$", text, flags=re.M | re.S)
        assert exercises == [str(n) for n in range(1, len(exercises) + 1)], "Number the exercises from 1."
        assert len(exercises) == len(solutions) >= 6, "Write at least six exercises, each with a solution in <details>."

    def test_code_fits_the_page(self, path):
        for cell in jupytext.read(path).cells:
            for line in cell.source.splitlines() if cell.cell_type == "code" else ():
                assert len(line) <= 92, f"Break this line before column 93:\n{line}"

    def test_metadata_names_no_jupytext_version(self, path):
        header = path.read_text(encoding="utf-8").split("---")[1]
        assert "jupytext_version" not in header, "Drop jupytext_version from the header: it changes without need."

    def test_cites_known_works(self, path):
        known = set(
            re.findall(r"^@\w+\{([^,]+),", (ROOT / "book/references.bib").read_text(encoding="utf-8"), flags=re.M)
        )
        cited = re.findall(r"\{cite:[pt]\}`([^`]+)`", path.read_text(encoding="utf-8"))
        assert {key.strip() for keys in cited for key in keys.split(",")} <= known, (
            "Add the work to book/references.bib."
        )


class TestLedger:
    def test_holds_what_the_notebooks_measured(self):
        written = {(claim["chapter"], claim["id"]): claim["measured"] for claim in claims.ledger()}
        assert written == claims.measured(), "Ledger and notebooks differ. Run `make claims`."

    def test_ids_are_unique_and_words_are_there(self):
        ledger = claims.ledger()
        assert len({claim["id"] for claim in ledger}) == len(ledger), "Two claims have one id."
        for claim in ledger:
            assert claim["statement"] and claim["measure"], f"{claim['id']} needs a statement and how it is measured."

    def test_a_claim_out_of_nowhere_is_refused(self, tmp_path, monkeypatch):
        orphan = {"id": "nobody-measures-me", "chapter": NAMES[0], "statement": "x", "measure": "y"}
        (tmp_path / "claims.yml").write_text(yaml.safe_dump([*claims.ledger(), orphan]))
        monkeypatch.setattr(claims, "LEDGER", tmp_path / "claims.yml")
        with pytest.raises(SystemExit, match="nobody-measures-me"):
            claims.main()

    def test_a_measurement_without_words_is_refused(self, tmp_path, monkeypatch):
        first, *others = claims.ledger()
        (tmp_path / "claims.yml").write_text(yaml.safe_dump(others))
        monkeypatch.setattr(claims, "LEDGER", tmp_path / "claims.yml")
        with pytest.raises(SystemExit, match=first["id"]):
            claims.main()


class TestMaking:
    """The command behind `make notebooks`, on a small chapter."""

    CHAPTER = (
        """# Title\n\n```{code-cell} ipython3\nprint("first")\n```\n\n```{code-cell} ipython3\nOPTIONS BODY\n```\n"""
    )
    DRAW = "%matplotlib inline\nfrom matplotlib import pyplot as plt\nplt.plot([1, 2]);"
    ALT = "---\nmystnb:\n  image:\n    alt: a line\n---\n"

    @pytest.fixture
    def make(self, tmp_path, monkeypatch):
        monkeypatch.setattr(notebooks, "NOTEBOOKS", tmp_path)
        monkeypatch.setattr(notebooks, "ROOT", tmp_path)
        monkeypatch.setattr(notebooks, "setup_source", lambda: "# setup")

        def run(body, options=""):
            (tmp_path / "x.md").write_text(self.CHAPTER.replace("OPTIONS ", options).replace("BODY", body))
            notebooks.make(tmp_path / "x.md")
            return read(tmp_path / "x.ipynb").cells

        return run

    def test_adds_the_setup_and_keeps_text(self, make):
        cells = make("1 + 1")
        assert [cell.source for cell in cells] == ["# Title", "# setup", 'print("first")', "1 + 1"]
        assert cells[2].outputs[0].text == "first\n"
        assert cells[3].outputs[0].data == {"text/plain": "2"}

    def test_drops_pictures_that_have_alt_text(self, make):
        assert make(self.DRAW, self.ALT)[3].outputs == []

    def test_refuses_pictures_without(self, make, tmp_path):
        with pytest.raises(SystemExit, match="alt text"):
            make(self.DRAW)
        assert not (tmp_path / "x.ipynb").exists()

    def test_a_failing_cell_leaves_the_old_notebook(self, make, tmp_path):
        make("1 + 1")
        before = (tmp_path / "x.ipynb").read_bytes()
        with pytest.raises(Exception, match="ZeroDivisionError"):
            make("1 / 0")
        assert (tmp_path / "x.ipynb").read_bytes() == before
