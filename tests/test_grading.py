"""The command `stylemoments grade`: a class of fake students gets the grades it has earned, and does no harm."""

import csv
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest
from conftest import ROOT
from fake_class import MAKERS, Class, Fake, find, packed
from typer.testing import CliRunner

from stylemoments import cli
from stylemoments.classroom import assignment as room
from stylemoments.classroom import grading, marks, release, report, sandbox, similar, submissions

MASTER = Path(__file__).with_name("toy_master.md")
LOOP = "for weight in (0.0, 1.0, 7.5):"  # in a hidden test
TOKEN = "TOKEN-OF-THE-TEACHER"
WRONG = {  # the variance as E[x²] - E[x]²: the right value, but not far from zero
    "moments": (
        "def moments(x):\n    return x.mean((2, 3)), (x * x).mean((2, 3)) - x.mean((2, 3)) ** 2",
        {"moments-hidden-far"},
    )
}
NAMES = [make.__name__.replace("_", "-") for make in MAKERS]
LIMITS = ["--cell-seconds", "5", "--notebook-seconds", "240", "--memory", "2"]


def grade(*arguments, **settings):
    """Run the command; its result."""
    return CliRunner().invoke(cli.app, ["grade", *map(str, arguments)], **settings)


def table(path: Path) -> list[dict]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="session")
def fakes() -> dict[str, Fake]:
    return {fake.student: fake for fake in Class(MASTER, wrong=WRONG).fakes()}


@pytest.fixture(scope="session")
def graded(fakes, needs_sandbox, tmp_path_factory) -> Path:
    """The folder in which the whole class was graded by the command, as a teacher calls it."""
    folder = tmp_path_factory.mktemp("course")
    folder.chmod(0o700)
    (folder / "files").mkdir()
    for fake in fakes.values():
        (folder / "files" / fake.name).write_bytes(fake.data)
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "stylemoments.cli", "grade", "files", "-o", "grades.csv", "--master", MASTER, *LIMITS],
        cwd=folder, env=os.environ | {"TOKEN": TOKEN}, capture_output=True, text=True,
    )  # fmt: skip
    (folder / "said").write_text(f"{done.stdout}\n{done.stderr}\n{time.monotonic() - began:.0f} s\n")
    assert done.returncode == 0, done.stderr
    return folder


def record(graded: Path, student: str) -> dict:
    return json.loads((graded / "grades/records" / f"{student}.json").read_text("utf-8"))


class TestClass:
    @pytest.mark.parametrize("student", NAMES)
    def test_each_gets_what_it_has_earned(self, graded, fakes, student):
        fake, known = fakes[student], record(graded, student)
        for cell in known["graded"]:
            if cell["kind"] == "test" and cell["id"] not in fake.unsure:
                wanted = cell["of"] if cell["id"] in fake.earns else 0
                assert cell["points"] == wanted, f"{cell['id']}: {cell['message']}\n{known['flags']}"

    @pytest.mark.parametrize("student", NAMES)
    def test_what_a_teacher_should_see_is_flagged(self, graded, fakes, student):
        flags = "; ".join(record(graded, student)["flags"])
        assert fakes[student].flagged in flags
        if not fakes[student].flagged:
            assert "restored" not in flags and "deleted" not in flags

    @pytest.mark.parametrize("student", NAMES)
    def test_nothing_of_the_teachers_is_found(self, graded, fakes, student):
        known = record(graded, student)
        printed = "".join(f"{cell['text']} {cell['error']}" for cell in known["notebook"])
        assert not [words for words in fakes[student].never if words in printed]
        assert TOKEN not in json.dumps(known)

    def test_it_takes_less_than_15_minutes(self, graded):
        assert float((graded / "said").read_text().split()[-2]) < 900

    def test_who_fails_is_told_why(self, graded, fakes):
        for student in fakes:
            for cell in record(graded, student)["graded"]:
                assert cell["points"] is None or cell["points"] == cell["of"] or len(cell["message"]) > 5

    def test_no_page_or_table_shows_a_hidden_test(self, graded):
        secrets = ["torch.rand(1, 5, 8, 2", "correction=0).float()", "Two draws of noise"]
        for path in [*(graded / "grades").rglob("*"), graded / "grades.csv"]:
            if path.is_file():
                text = path.read_text("utf-8", errors="replace")
                assert not [secret for secret in secrets if secret in text], path

    def test_no_process_is_left(self, graded):
        left = [Path(f"/proc/{pid}/cmdline").read_text() for pid in sandbox.descendants(os.getpid())]
        assert not [command for command in left if "stylemoments.classroom" in command]

    def test_copies_are_listed_and_the_poor_are_not(self, graded):
        pairs = {frozenset((row["student"], row["other"])) for row in table(graded / "grades/similar.csv")}
        assert {"perfect", "copies"} in pairs
        assert not [pair for pair in pairs if "untouched" in pair or "prints-results" in pair]

    def test_the_tables_agree(self, graded, fakes):
        rows = {row["student"]: row for row in table(graded / "grades.csv")}
        assert set(rows) == set(fakes)
        assert (rows["perfect"]["points by tests"], rows["perfect"]["still open"], rows["perfect"]["of"]) == (
            "18",
            "12",
            "30",
        )
        assert rows["empty"]["points so far"] == rows["empty"]["still open"] == "0"
        canvas = {row["SIS User ID"]: row for row in table(graded / "grades/canvas.csv")}
        assert canvas["perfect"]["toy_master"] == "18" and canvas[""]["toy_master"] == "30"
        moodle = {row["Identifier"]: row for row in table(graded / "grades/moodle.csv")}
        assert moodle["Participant perfect"]["Grade"] == "18"

    def test_pages_are_text_whatever_students_write(self, graded):
        page = (graded / "grades/feedback/perfect.html").read_text("utf-8")
        assert "18 of 30 points" in page and "12 more are still to be given by hand" in page
        assert "<script" not in page and "Content-Security-Policy" in page
        summary = (graded / "grades/summary.html").read_text("utf-8")
        assert f"{len(NAMES)} submissions" in summary and "guide-hidden" in summary

    def test_a_second_run_grades_nothing_again(self, graded):
        before = {path: path.stat().st_mtime_ns for path in (graded / "grades/records").iterdir()}
        result = grade(graded / "files", "-o", graded / "grades.csv", "--master", MASTER, *LIMITS)
        assert result.exit_code == 0, result.output
        assert before == {path: path.stat().st_mtime_ns for path in (graded / "grades/records").iterdir()}


# ---------------------------------------------------------------------------------------- the command


class TestCommand:
    @pytest.fixture
    def course(self, tmp_path, fakes, needs_sandbox) -> Path:
        """Two students, by names of Canvas and Moodle."""
        tmp_path.chmod(0o700)
        files = tmp_path / "files"
        (files / "Ada Lovelace_77_assignsubmission_file").mkdir(parents=True)
        (files / "Ada Lovelace_77_assignsubmission_file/toy.ipynb").write_bytes(fakes["perfect"].data)
        (files / "turingalan_LATE_815_9_toy.ipynb").write_bytes(fakes["untouched"].data)
        return tmp_path

    def test_marks_by_hand_are_added_and_kept(self, course):
        run = [course / "files", "-o", course / "out.csv", "--master", MASTER, *LIMITS]
        assert "to be graded by hand" in grade(*run).output
        marked = course / "out/marks.csv"
        rows = table(marked)
        assert [(row["grade_id"], row["student"]) for row in rows] == [("open", "77"), ("open", "815"), ("why", "77")]
        rows[0] |= {"points": "6,5", "comment": "=good"}
        rows[2] |= {"points": "5"}
        with marked.open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)
        for _ in range(2):
            assert grade(*run).exit_code == 0
            known = {row["student"]: row for row in table(course / "out.csv")}
            assert (known["77"]["points so far"], known["77"]["still open"]) == ("29.5", "0")
            assert known["815"]["still open"] == "7"
        assert "=good" in (course / "out/feedback/77.html").read_text("utf-8")

    def test_canvas_and_moodle_find_their_students(self, course):
        assert grade(course / "files", "-o", course / "out.csv", "--master", MASTER, *LIMITS).exit_code == 0
        canvas = table(course / "out/canvas.csv")
        assert [(row["Student"], row["ID"], row["SIS User ID"]) for row in canvas[1:]] == [
            ("Ada Lovelace", "", "77"), ("turingalan", "815", ""),
        ]  # fmt: skip
        assert table(course / "out/moodle.csv")[0]["Full name"] == "Ada Lovelace"

    def test_the_master_is_found_in_a_folder(self, course):
        (course / "masters").mkdir()
        (course / "masters/toy.md").write_bytes(MASTER.read_bytes())
        other = (
            MASTER.read_text("utf-8")
            .replace("grade_id: ", "grade_id: other-")
            .replace('"grade_id": "', '"grade_id": "other-')
        )
        (course / "masters/other.md").write_text(other, "utf-8")
        result = grade(course / "files", "-o", course / "out.csv", "--master", course / "masters", *LIMITS)
        assert result.exit_code == 0, result.output
        assert table(course / "out.csv")[0]["points by tests"] == "18"

    def test_a_master_that_fails_its_own_tests_stops_all(self, course):
        broken = course / "broken.md"
        broken.write_text(MASTER.read_text("utf-8").replace("weight * (cond - uncond)", "weight * cond"), "utf-8")
        result = grade(course / "files", "-o", course / "out.csv", "--master", broken, *LIMITS)
        assert result.exit_code == 1 and "fails its own tests" in result.output and "guide-check" in result.output

    @pytest.mark.parametrize("arguments, said", [
        (["nowhere", "-o", "g.csv"], "is no folder"), ([".", "-o", "g.csv"], "no file that ends in .ipynb"),
        ([".", "-o", "g.txt"], "ends in .csv"),
    ])  # fmt: skip
    def test_wrong_calls_say_what_to_do(self, tmp_path, monkeypatch, arguments, said):
        monkeypatch.chdir(tmp_path)
        result = grade(*arguments, "--master", MASTER)
        assert result.exit_code == 1 and said in result.output

    def test_what_the_machine_spoils_is_not_graded(self, course, monkeypatch):
        def fails(self, submission):
            raise grading.NotGraded("no memory")

        monkeypatch.setattr(grading.Grader, "check_master", lambda self, folder: None)
        monkeypatch.setattr(grading.Grader, "grade", fails)
        result = grade(course / "files", "-o", course / "out.csv", "--master", MASTER)
        assert result.exit_code == 1 and "no memory" in result.output
        assert not [*(course / "out/records").iterdir()]


class TestGrader:
    def grader(self, tmp_path, change=lambda text: text):
        tmp_path.chmod(0o700)
        (tmp_path / "toy.md").write_text(change(MASTER.read_text("utf-8")), "utf-8")
        toy = Class(tmp_path / "toy.md")
        limits = sandbox.Limits(cell=20, memory=2 * sandbox.GIGABYTE)
        return toy, grading.Grader(toy.assignment, sandbox.choose([]), limits)

    def grade(self, grader, notebook, tmp_path) -> dict:
        path = tmp_path / "s.ipynb"
        path.write_bytes(packed(notebook))
        known = grader.grade(submissions.Submission(path, "s", "", "name"))
        return {cell["id"]: cell["points"] for cell in known["graded"]}

    def test_a_result_that_would_fill_the_memory_costs_its_test_alone(self, tmp_path, needs_sandbox):
        careless = "assert (guide(1, 0, 2) - torch.zeros(1, 1 << 24)).sum() == 0"
        toy, grader = self.grader(tmp_path, lambda text: text.replace(LOOP, careless + "\nif False:"))
        notebook = toy.notebook("s")
        find(notebook, "guide").source = "def guide(*args):\n    return torch.zeros(1 << 24, 1)"
        points = self.grade(grader, notebook, tmp_path)
        assert (points["guide-hidden"], points["gap-hidden"]) == (0, 2)

    def test_a_grader_that_is_killed_costs_the_tests_after_it(self, tmp_path, needs_sandbox):
        deadly = "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)\nif False:"
        toy, grader = self.grader(tmp_path, lambda text: text.replace(LOOP, deadly))
        points = self.grade(grader, toy.notebook("s"), tmp_path)
        assert (points["guide-check"], points["guide-hidden"], points["gap-hidden"]) == (1, 0, 0)

    def test_a_sandbox_that_does_not_start_is_nobodys_fault(self, tmp_path, needs_sandbox):
        toy, grader = self.grader(tmp_path)
        grader.limits = sandbox.Limits(memory=50 << 20)  # too little to import anything
        with pytest.raises(grading.NotGraded):
            self.grade(grader, toy.notebook("s"), tmp_path)


# ---------------------------------------------------------------------------------------- parts


class TestSubmissions:
    @pytest.mark.parametrize("path, student, platform", [
        ("s123.ipynb", "s123", "name"),
        ("turingalan_815_99_a1-normalization-2.ipynb", "815", "canvas"),
        ("turingalan_LATE_815_99_a1.ipynb", "815", "canvas"),
        ("Ada Lovelace_77_assignsubmission_file_/a1.ipynb", "77", "moodle"),
        ("Ada Lovelace_77_assignsubmission_file_a1.ipynb", "77", "moodle"),
    ])  # fmt: skip
    def test_names_of_platforms(self, tmp_path, path, student, platform):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(b"")
        found, notes = submissions.find(tmp_path)
        assert [(one.student, one.platform) for one in found] == [(student, platform)] and not notes

    def test_a_pattern_and_a_table(self, tmp_path):
        (tmp_path / "x-s1-a1.ipynb").write_bytes(b"")
        (tmp_path / "lovelaceada_77_1_a1.ipynb").write_bytes(b"")
        (tmp_path / "table.csv").write_text("file,student,name\n77,s2,Ada\n", "utf-8")
        found, _ = submissions.find(tmp_path, table=tmp_path / "table.csv")
        assert {one.student: one.name for one in found} == {"s2": "Ada", "x-s1-a1": ""}
        found, _ = submissions.find(tmp_path, pattern=r"-(?P<student>s\d)-")
        assert {one.student for one in found} == {"s1", "lovelaceada_77_1_a1"}
        with pytest.raises(ValueError, match="group"):
            submissions.find(tmp_path, pattern="x")

    def test_of_two_files_the_later_counts(self, tmp_path):
        for number in (9, 10):
            (tmp_path / f"lovelaceada_77_1_a1-{number}.ipynb").write_bytes(b"")
        found, notes = submissions.find(tmp_path)
        assert [one.path.name for one in found] == ["lovelaceada_77_1_a1-10.ipynb"] and "a1-9.ipynb" in notes[0]

    def test_a_name_cannot_leave_the_folder(self):
        wild = submissions.Submission(Path("x"), "../../etc/passwd", "", "table")
        assert "/" not in wild.slug and ".." not in wild.slug
        assert wild.slug != submissions.Submission(Path("x"), "etc passwd", "", "table").slug

    @pytest.mark.parametrize("data", [
        b"", b"\0\0\0", b"[]", b"{}", b'{"cells": 3}', b'{"cells": []}', b"\x89PNG\r\n", b'{"cells":' + b"[" * 10**5,
        b'{"cells": ' + str([{}] * 3000).encode() + b"}",
    ])  # fmt: skip
    def test_no_notebook_says_why(self, tmp_path, data):
        (tmp_path / "a.ipynb").write_bytes(data)
        with pytest.raises(submissions.Unreadable):
            submissions.read(tmp_path / "a.ipynb")

    @pytest.mark.parametrize("cell", [
        {"cell_type": "code", "source": None}, {"cell_type": 5, "metadata": [], "source": {}},
        {"metadata": {"nbgrader": 3}}, {"id": []}, {"cell_type": "markdown", "source": ["a", 3]},
        {"cell_type": "markdown", "attachments": {"x": 5, "y": {"image/png": "<script>"}}},
    ])  # fmt: skip
    def test_any_cell_is_read(self, tmp_path, cell):
        (tmp_path / "a.ipynb").write_text(json.dumps({"cells": [cell, 7]}))
        (found,) = submissions.read(tmp_path / "a.ipynb")
        assert isinstance(found.source, str) and isinstance(found.id, str) and found.images == {}


@pytest.fixture(scope="module")
def toy() -> Class:
    return Class(MASTER)


class TestArrange:
    def arranged(self, toy, notebook, tmp_path):
        (tmp_path / "a.ipynb").write_bytes(packed(notebook))
        return room.arrange(toy.assignment, submissions.read(tmp_path / "a.ipynb"))

    def test_the_release_becomes_the_master_but_for_answers(self, toy, tmp_path):
        cells = self.arranged(toy, toy.release, tmp_path)
        assert [cell.id for cell in cells if cell.id] == [*toy.assignment.cells]
        assert all(cell.source == toy.assignment.cells[cell.id].source for cell in cells if cell.kind == room.TEST)
        assert "NotImplementedError" in next(cell for cell in cells if cell.id == "guide").source

    def test_of_a_copied_cell_the_last_counts_and_both_run(self, toy, tmp_path):
        notebook = toy.notebook("x")
        notebook.cells.insert(0, find(notebook, "guide-check").copy())
        cells = self.arranged(toy, notebook, tmp_path)
        assert (cells[0].kind, cells[0].id) == (room.CODE, "")
        assert sum(cell.id == "guide-check" for cell in cells) == 1

    def test_an_answer_made_code_is_words_again(self, toy, tmp_path):
        notebook = toy.notebook("x")
        find(notebook, "why").cell_type = "code"
        why = next(cell for cell in self.arranged(toy, notebook, tmp_path) if cell.id == "why")
        assert not why.code and room.points(why, None) is None

    def test_an_answer_not_given_is_zero_and_one_given_is_open(self, toy, tmp_path):
        def why(notebook):
            cells = self.arranged(toy, notebook, tmp_path)
            return room.points(next(cell for cell in cells if cell.id == "why"), None)

        gone = toy.notebook("x")
        gone.cells = [cell for cell in gone.cells if cell.id != "why"]
        assert (why(toy.release), why(gone), why(toy.notebook("x"))) == (0, 0, None)

    def test_points_agree_with_nbgrader(self, toy):
        total = sum(cell.points for cell in toy.assignment.cells.values())
        assert total == 30 == toy.assignment.points

    def test_the_toy_can_be_handed_out(self, toy):
        assert "correction=0)).sqrt" not in nbformat.writes(toy.release)
        assert release.read_master(MASTER).cells


class TestMarks:
    RECORD = {"student": "a", "graded": [
        {"id": "why", "kind": "answer", "points": None, "of": 5.0, "message": ""},
        {"id": "t", "kind": "test", "points": 1.0, "of": 1.0, "message": ""},
    ]}  # fmt: skip

    @pytest.mark.parametrize("row, said", [
        ({"student": "a", "grade_id": "why", "points": "6"}, "0 to 5"),
        ({"student": "a", "grade_id": "why", "points": "nan"}, "0 to 5"),
        ({"student": "a", "grade_id": "t", "points": "1"}, "no such"),
        ({"student": "b", "grade_id": "why", "points": "1"}, "no such"),
    ])  # fmt: skip
    def test_wrong_marks_are_refused(self, row, said):
        with pytest.raises(ValueError, match=said):
            marks.give([json.loads(json.dumps(self.RECORD))], [row])

    def test_marks_of_absent_students_are_kept(self):
        row = {"student": "b", "grade_id": "why", "points": "1"}
        assert marks.give([], [row], absent={"b"}) == [row]


class TestReport:
    def test_what_a_student_writes_is_never_markup(self, tmp_path):
        evil = "<script>alert(1)</script>"
        cell = {"source": evil, "code": True, "kind": "code", "id": evil, "text": evil, "pictures": [], "images": {},
                "error": {"type": evil, "message": evil, "where": evil}, "seconds": 0.0}  # fmt: skip
        verdict = {"id": "t", "kind": "test", "points": 0.0, "of": 1.0, "message": evil}
        known = {"student": f"={evil}", "name": evil, "platform": "name", "file": evil, "assignment": "a",
                 "flags": [evil], "graded": [verdict], "notebook": [cell], "seconds": 0.0, "said": evil}  # fmt: skip
        report.write_feedback(tmp_path / "a.html", known, [])
        report.write_feedback(tmp_path / "folded.html", known, [evil])
        report.write_summary(tmp_path / "s.html", [known], notes=[evil], way=evil)
        report.write_grades(tmp_path / "g.csv", [known])
        assert not [path for path in tmp_path.glob("*.html") if "<script" in path.read_text()]
        assert table(tmp_path / "g.csv")[0]["student"].startswith("'=")

    def test_what_was_handed_out_is_folded_unless_it_was_graded(self, tmp_path):
        cells = [{"source": source, "code": False, "kind": "code", "id": source, "text": "", "pictures": [],
                  "images": {}, "error": None} for source in ("## Task 1\nWrite", "## Mine", "check")]  # fmt: skip
        verdict = {"id": "check", "kind": "test", "points": 1.0, "of": 1.0, "message": ""}
        known = {"student": "s", "assignment": "a", "flags": [], "graded": [verdict], "notebook": cells}
        report.write_feedback(tmp_path / "a.html", known, ["## Task 1\nWrite\n", "check"])
        page = (tmp_path / "a.html").read_text()
        assert page.count("<details>") == 1 and "<summary>## Task 1</summary>" in page

    def test_names_hide_no_copy(self):
        given = "def f(x):\n    pass"
        ours = "def f(x):\n" + "".join(f"    v{i} = x.sum() * {i} + {i * i}\n" for i in range(20))
        theirs = ours.replace("v", "value_").replace("\n", "  # mine\n")
        other = "def f(x):\n" + "".join(f"    for k in range({i}):\n        x = x / {i}\n" for i in range(20))

        def known(student, source):
            return {"student": student, "notebook": [{"id": "f", "kind": "code", "code": True, "source": source}]}

        records = [known("a", ours), known("b", theirs), known("c", other), known("d", given)]
        assert [(pair["student"], pair["other"]) for pair in similar.pairs(records, [given])] == [("a", "b")]


def test_the_command_is_described():
    result = grade("--help")
    assert result.exit_code == 0 and "marks.csv" in result.output
    assert (ROOT / "lib/stylemoments/classroom/worker.py").exists()
