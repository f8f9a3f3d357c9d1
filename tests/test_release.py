"""Student notebooks from masters: what is taken out, what stays, and that no solution can be found elsewhere."""

import html
import json
import os
import re
import subprocess
import sys
import tomllib
from functools import cache
from pathlib import Path

import nbformat
import pytest
from conftest import ROOT, version_controlled
from setuptools import find_packages
from test_colab import fresh_environment, publish

from stylemoments.classroom import release

sys.path.insert(0, str(ROOT / "book/_tools"))
import notebooks  # noqa: E402

SOURCE, TARGET = ROOT / release.SOURCE, ROOT / release.TARGET
try:
    MASTERS, WHY = release.masters(SOURCE), ""
except (FileNotFoundError, ValueError) as error:  # a teacher keeps them elsewhere, or locked
    MASTERS, WHY = {}, str(error)
needs_masters = pytest.mark.skipif(not MASTERS, reason=WHY)


# ------------------------------------------------------------------------------------- a toy


def cell(source: str, kind: str = "code", **info) -> str:
    """A cell in MyST; what it is to nbgrader follows."""
    info = {"grade": False, "solution": False, "locked": False, "task": False, "schema_version": 3, **info}
    header = json.dumps({"nbgrader": {**info, "cell_type": kind}})
    if kind == "markdown":
        return f"+++ {header}\n\n{source}\n\n+++\n\n"
    return f"```{{code-cell}} ipython3\n---\n{header[1:-1]}\n---\n{source}\n```\n\n"


TITLE = "# Toy\n\nDouble what you get.\n\n"
STUDENT = '```{code-cell} ipython3\nfrom stylemoments import check\n\nSTUDENT = ""\n```\n\n'
TASK = cell(
    'def twice(x):\n    """Twice x, a number."""\n'
    "    ### BEGIN SOLUTION\n    total = x + x\n    return total\n    ### END SOLUTION",
    grade_id="twice", solution=True,
)  # fmt: skip
VISIBLE = cell("assert check.call(twice, 1) == 2", grade_id="twice-check", grade=True, locked=True, points=1)
HIDDEN = cell(
    "# Hidden tests: other numbers.\n### BEGIN HIDDEN TESTS\nassert twice(21) == 42\n### END HIDDEN TESTS",
    grade_id="twice-hidden", grade=True, locked=True, points=2,
)  # fmt: skip
WORDS = cell(
    "Why? *Rubric: a reason, 3.*\n\n### BEGIN SOLUTION\nBecause a number and itself are two of it.\n### END SOLUTION",
    "markdown", grade_id="why", grade=True, solution=True, points=3,
)  # fmt: skip
OPEN = cell(
    "Find a use.\n\n=== BEGIN MARK SCHEME ===\nAny use that doubles.\n=== END MARK SCHEME ===",
    "markdown", grade_id="open", task=True, locked=True, points=4,
)  # fmt: skip
TOY = TITLE + STUDENT + TASK + VISIBLE + HIDDEN + WORDS + OPEN
SECRETS = ("total", "21", "Because a number", "Any use that doubles", "BEGIN", "END")


@pytest.fixture
def folder(tmp_path) -> Path:
    """A folder of masters with one toy."""
    (tmp_path / "source").mkdir()
    (tmp_path / "source/a0-toy.md").write_text(TOY, "utf-8")
    return tmp_path / "source"


def refused(folder: Path, text: str) -> str:
    """Why a master of this text is refused."""
    (folder / "a0-toy.md").write_text(text, "utf-8")
    with pytest.raises(ValueError) as caught:
        release.student_notebooks(release.masters(folder))
    return str(caught.value)


@pytest.fixture(scope="module")
def toy(tmp_path_factory) -> nbformat.NotebookNode:
    """The student notebook of the toy."""
    path = tmp_path_factory.mktemp("toy") / "a0-toy.md"
    path.write_text(TOY, "utf-8")
    return nbformat.reads(release.student_notebooks({"a0-toy": path}, setup="# setup")["a0-toy"], as_version=4)


def by_id(notebook) -> dict:
    return {cell.id: cell for cell in notebook.cells}


class TestStudentNotebook:
    def test_the_setup_stands_before_the_first_code(self, toy):
        assert [cell.source.partition("\n")[0] for cell in toy.cells[:3]] == [
            "# Toy", "# setup", "from stylemoments import check",
        ]  # fmt: skip

    def test_a_task_keeps_signature_and_docstring(self, toy):
        assert by_id(toy)["twice"].source == (
            'def twice(x):\n    """Twice x, a number."""\n    # YOUR CODE HERE\n    raise NotImplementedError()'
        )

    def test_of_hidden_tests_a_comment_stays(self, toy):
        assert by_id(toy)["twice-hidden"].source == "# Hidden tests: other numbers."

    def test_words_keep_question_and_rubric(self, toy):
        assert by_id(toy)["why"].source == "Why? *Rubric: a reason, 3.*\n\nYOUR ANSWER HERE"
        assert by_id(toy)["open"].source.strip() == "Find a use."

    @pytest.mark.parametrize("secret", SECRETS)
    def test_nothing_secret_is_anywhere_in_the_file(self, toy, secret):
        assert secret not in nbformat.writes(toy)

    def test_checks_are_locked_and_answers_are_not(self, toy):
        editable = {name: cell.metadata.get("editable", True) for name, cell in by_id(toy).items()}
        kept = {name: cell.metadata.get("deletable", True) for name, cell in by_id(toy).items()}
        graded = {"twice", "twice-check", "twice-hidden", "why", "open"}
        assert {name for name in editable if not editable[name]} == {"twice-check", "twice-hidden", "open"}
        assert {name for name in kept if not kept[name]} == graded, "students must not delete graded cells"

    def test_checksums_are_those_of_the_student_text(self, toy):
        from nbgrader.utils import compute_checksum

        for name in ("twice", "twice-check", "twice-hidden", "why", "open"):
            cell = by_id(toy)[name]
            assert cell.metadata.nbgrader.checksum == compute_checksum(cell), name

    def test_has_the_metadata_of_a_chapter(self, toy):
        chapter = nbformat.read(next((ROOT / "notebooks").glob("*.ipynb")), as_version=4)
        assert toy.metadata == chapter.metadata

    def test_has_not_run(self, toy):
        assert all(cell.outputs == [] and cell.execution_count is None for cell in toy.cells if "outputs" in cell)


class TestMaking:
    """The command behind `make assignments`, on the toy."""

    def test_the_same_masters_give_the_same_bytes(self, folder, tmp_path):
        first, again = (release.release(folder, tmp_path / name, setup="# setup") for name in ("one", "two"))
        assert [path.name for path in first] == ["a0-toy.ipynb"]
        assert first[0].read_bytes() == again[0].read_bytes()
        assert first[0].read_bytes().endswith(b"}\n")

    def test_where_one_fails_none_is_written(self, folder, tmp_path):
        release.release(folder, tmp_path / "out", setup="")
        before = (tmp_path / "out/a0-toy.ipynb").read_bytes()
        (folder / "a0-toy.md").write_text(TOY.replace("Double", "Triple"), "utf-8")
        (folder / "a1-bad.md").write_text(TOY.replace("### END SOLUTION", ""), "utf-8")
        with pytest.raises(ValueError, match="a1-bad"):
            release.release(folder, tmp_path / "out", setup="")
        assert [path.name for path in (tmp_path / "out").iterdir()] == ["a0-toy.ipynb"]
        assert (tmp_path / "out/a0-toy.ipynb").read_bytes() == before

    def test_leaves_path_and_folder_as_they_were(self, folder, tmp_path, monkeypatch):
        monkeypatch.setenv("PATH", os.defpath)  # an environment that is not activated has no alembic there
        before = (os.getcwd(), os.environ["PATH"])
        release.student_notebooks(release.masters(folder))
        assert (os.getcwd(), os.environ["PATH"]) == before

    def test_ids_stay_where_an_answer_changes(self, folder):
        path = folder / "a0-toy.md"
        before = [cell.id for cell in release.read_master(path).cells]
        path.write_text(TOY.replace("total = x + x", "total = 2 * x"), "utf-8")
        assert [cell.id for cell in release.read_master(path).cells] == before

    def test_cells_that_repeat_have_ids_of_their_own(self, folder):
        path = folder / "a0-toy.md"
        path.write_text(TOY + STUDENT + STUDENT, "utf-8")
        ids = [cell.id for cell in release.read_master(path).cells]
        assert len(set(ids)) == len(ids)
        nbformat.validate(release.read_master(path))

    def test_command_says_what_it_wrote(self, folder, tmp_path):
        words = ["--source", folder, "--target", tmp_path / "out"]
        said = command(*words)
        assert (said.returncode, said.stdout) == (0, f"wrote {(tmp_path / 'out/a0-toy.ipynb').as_posix()}\n")
        written = nbformat.read(tmp_path / "out/a0-toy.ipynb", as_version=4)
        assert written.cells[1].source == notebooks.setup_source(), "the Colab setup must be that of the chapters"

    def test_command_says_in_a_line_what_to_mend(self, tmp_path):
        said = command("--source", tmp_path)
        assert (said.returncode, said.stdout) == (1, "")
        assert said.stderr.startswith("error: no master in") and "classroom/README.md" in said.stderr


def command(*words):
    line = [sys.executable, "-m", "stylemoments.classroom.release", *words]
    return subprocess.run(line, cwd=ROOT, capture_output=True, text=True)


class TestRefusals:
    """A master is refused where nbgrader would show what it should hide, or could not grade what comes back."""

    PAIRS = "BEGIN {0} and END {0} must come in pairs".format

    @pytest.mark.parametrize(
        ("old", "new", "why"),
        [
            ("    ### END SOLUTION", "", "twice: " + PAIRS("SOLUTION")),
            ("    ### BEGIN SOLUTION", "    ### BEGN SOLUTION", "twice: " + PAIRS("SOLUTION")),
            ("### BEGIN HIDDEN TESTS\n", "", "twice-hidden: " + PAIRS("HIDDEN TESTS")),
            ("=== END MARK SCHEME ===", "", "open: " + PAIRS("MARK SCHEME")),
            ('"task": true', '"task": false', "nbgrader refuses the master a0-toy: Mark"),
            ('"locked": true, "task": true', '"locked": false, "task": true', "open: a task cell must have locked"),
            ('"grade_id": "why"', '"grade_id": "why so"', "why so: grade_id must be 1 to 64 letters, digits, - or _"),
            ('"grade_id": "why"', '"grade_id": "twice"', "Duplicate grade id: twice"),
            ("assert check.call(twice, 1) == 2", "assert twice(1) == 2", "twice-check: a test must call a visible"),
        ],
    )  # fmt: skip
    def test_says_where_and_why(self, folder, old, new, why):
        assert old in TOY
        assert why in refused(folder, TOY.replace(old, new, 1))

    def test_a_solution_without_region_would_lose_its_signature(self, folder):
        bare = TOY.replace("    ### BEGIN SOLUTION\n", "").replace("    ### END SOLUTION\n", "")
        assert "twice: a solution without BEGIN SOLUTION is taken out whole" in refused(folder, bare)

    def test_a_solution_outside_of_an_answer(self, folder):
        loose = "```{code-cell} ipython3\n### BEGIN SOLUTION\nx = 1\n### END SOLUTION\n```\n"
        said = refused(folder, TOY + loose)
        assert "nbgrader refuses the master a0-toy: Solution region detected in a non-solution cell" in said

    def test_all_faults_are_told_at_once(self, folder):
        said = refused(folder, TOY.replace("=== END MARK SCHEME ===", "").replace("### BEGIN HIDDEN TESTS\n", ""))
        assert "twice-hidden" in said and "open" in said and "a0-toy.md" in said

    def test_an_empty_folder(self, tmp_path):
        with pytest.raises(FileNotFoundError, match="classroom/README.md"):
            release.masters(tmp_path)

    def test_an_encrypted_master(self, folder):
        (folder / "a0-toy.md").write_bytes(b"\0GITCRYPT\0\x8f\x01")
        with pytest.raises(ValueError, match="git-crypt unlock"):
            release.masters(folder)


@pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SAWarning")  # nbgrader 0.9.6 with SQLAlchemy 2.1; scores are right
def test_nbgrader_itself_grades_what_comes_back(folder, tmp_path, monkeypatch):
    from nbgrader.api import Gradebook
    from nbgrader.converters import Autograde
    from nbgrader.coursedir import CourseDirectory
    from traitlets.config import Config

    paths, course = release.masters(folder), tmp_path / "course"
    release.generate(paths, course)
    answers = {"good": "return 2 * x", "poor": "return 2"}
    for student, answer in answers.items():
        text = (course / "release/a0-toy/a0-toy.ipynb").read_text("utf-8")
        path = course / "submitted" / student / "a0-toy/a0-toy.ipynb"
        path.parent.mkdir(parents=True)
        path.write_text(text.replace("raise NotImplementedError()", answer), "utf-8")
        settings = {"root": str(course), "assignment_id": "a0-toy", "student_id": student}
        Autograde(coursedir=CourseDirectory(config=Config(CourseDirectory=settings))).start()
    with Gradebook(f"sqlite:///{course / 'gradebook.db'}") as book:
        scores = {student: book.find_submission("a0-toy", student).score for student in answers}
        assert book.find_submission("a0-toy", "good").max_score == 1 + 2 + 3 + 4
    assert scores == {"good": 3, "poor": 1}, "nbgrader must restore the hidden test and run it"


# ------------------------------------------------------------------------------------- the four assignments


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> dict[str, bytes]:
    """What `make assignments` would write now."""
    folder = tmp_path_factory.mktemp("assignments")
    written = release.release(SOURCE, folder, setup=notebooks.setup_source())
    return {path.name: path.read_bytes() for path in written}


@needs_masters
class TestAssignments:
    def test_are_what_the_masters_give(self, made):
        committed = {path.name: path.read_bytes() for path in TARGET.glob("*.ipynb")}
        assert committed.keys() == made.keys(), "assignments/ holds other files than the masters give"
        changed = [name for name in made if made[name] != committed[name]]
        assert not changed, f"run `make assignments` and commit what it writes: {changed}"

    @pytest.mark.parametrize("name", MASTERS)
    def test_points_add_up_to_the_table(self, name):
        master = release.read_master(MASTERS[name])
        points = sum(cell.metadata.get("nbgrader", {}).get("points", 0) for cell in master.cells)
        promised = re.search(r"\*\*total\*\*[ |]*\*\*(\d+)\*\*", "\n".join(cell.source for cell in master.cells), re.I)
        assert promised, "end the table of points with a row | **total** | **100** |"
        assert points == int(promised[1]), "the points of the cells are not those of the table"

    @pytest.mark.parametrize("name", MASTERS)
    def test_begins_with_the_student_number(self, name):
        first = next(cell for cell in release.read_master(MASTERS[name]).cells if cell.cell_type == "code")
        assert 'STUDENT = ""' in first.source and "SEED = check.seed(STUDENT)" in first.source


OPENED = """
import nbformat, sys
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
notebook = nbformat.read(sys.argv[1], as_version=4)
for cell in notebook.cells:
    cell.source = cell.source.replace('STUDENT = ""', 'STUDENT = "s1234567"')
try:
    NotebookClient(notebook, timeout=150, kernel_name="python3").execute()
except CellExecutionError as error:
    failed = next(c for c in notebook.cells if any(o.output_type == "error" for o in c.get("outputs", [])))
    print(error.ename, failed.metadata.get("nbgrader", {}).get("grade_id"))
"""


def run_all(python, notebook: Path, **options) -> list[str]:
    """What stops a student who opens a notebook, writes a number and runs all cells: the error, and in which cell."""
    result = subprocess.run([python, "-c", OPENED, notebook], capture_output=True, text=True, **options)
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout.split()


def first_test(name: str) -> str:
    """The grade_id of the first task or its check: where a notebook with no answer in it must stop."""
    infos = [cell.metadata.get("nbgrader", {}) for cell in release.read_master(MASTERS[name]).cells]
    return next(info["grade_id"] for info in infos if info.get("grade") and info["cell_type"] == "code")


@needs_masters
@pytest.mark.parametrize("name", MASTERS)
def test_opens_in_plain_jupyter_and_stops_at_the_first_check(made, name, tmp_path):
    (tmp_path / f"{name}.ipynb").write_bytes(made[f"{name}.ipynb"])
    assert run_all(sys.executable, tmp_path / f"{name}.ipynb", cwd=tmp_path) == ["Hint", first_test(name)]


@needs_masters
@pytest.mark.skipif(os.name == "nt" or not (ROOT / ".git").exists(), reason="needs a git checkout on Linux or macOS")
def test_opens_on_colab_and_stops_at_the_first_check(made, tmp_path):
    """As test_colab does for a chapter: the setup cell installs this checkout, then the cells run."""
    name = next(iter(MASTERS))
    (tmp_path / f"{name}.ipynb").write_bytes(made[f"{name}.ipynb"])
    repository = publish(tmp_path / "published")
    environment = {
        **os.environ,
        "GIT_CONFIG_COUNT": "1",
        "GIT_CONFIG_KEY_0": f"url.file://{repository}.insteadOf",
        "GIT_CONFIG_VALUE_0": notebooks.setup_source().partition("git+")[2].rpartition("@")[0],
        "PIP_NO_INDEX": "1",
        "PIP_NO_BUILD_ISOLATION": "0",
        "PYTHONPATH": "",
    }
    python = fresh_environment(tmp_path / "colab")
    stopped = run_all(python, tmp_path / f"{name}.ipynb", cwd=tmp_path, env=environment)
    assert stopped == ["Hint", first_test(name)]


# ------------------------------------------------------------------------------------- the search for leaks
# A needle is a piece of a solution, a hidden test or a mark scheme that is found nowhere by chance: a long line, two
# lines in a row, a sentence. Needles are searched in everything that students can reach, and every single line, short
# ones too, in what they are given.

LONG = 40  # letters of a line or sentence that nobody writes twice by chance
REGION = re.compile(rf"^[^\n]*BEGIN ({'|'.join(release.REGIONS)})[^\n]*\n(.*?)^[^\n]*END \1[^\n]*$", re.M | re.S)


def plain(text: str) -> str:
    """Text on one line, without the marks that a page or a file format adds or drops."""
    return " ".join(re.sub(r"[*`_\\\"'“”‘’]", "", text).split())


def regions(master: str) -> list[list[str]]:
    """The lines of each part of a master's text that students must not see, imports and blank lines left out."""
    found = [match[2].splitlines() for match in REGION.finditer(master)]
    return [[line.strip() for line in lines if tells(line.strip())] for lines in found]


def tells(line: str) -> bool:
    return bool(line) and not re.match(r"(import|from) ", line)


def visible(master: str) -> str:
    """A master's text without what students must not see."""
    return REGION.sub("", master)


def needles(lines: list[str]) -> set[str]:
    """What to search for, of one region: long sentences and lines, neighbors, or all there is."""
    pairs = [f"{one} {two}" for one, two in zip(lines, lines[1:], strict=False)]
    sentences = [part for line in lines for part in re.split(r"(?<=[.!?:;])\s+", line)]
    pieces = [plain(piece) for piece in [*lines, *sentences, *pairs, " ".join(lines)]]
    return {piece for piece in pieces if len(piece) >= LONG} or {max(pieces, key=len)}


@cache
def secrets() -> dict[str, set[str]]:
    """The needles of each master; what students see in any of them is none."""
    texts = {name: path.read_text("utf-8") for name, path in MASTERS.items()}
    seen = plain("\n".join(map(visible, texts.values())))
    return {
        name: {needle for lines in regions(text) if lines for needle in needles(lines) if needle not in seen}
        for name, text in texts.items()
    }


def readable(name: str, content: bytes) -> str:
    """A file as a reader sees it: the cells and outputs of a notebook, the text of a page; nothing of a picture."""
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError:
        return ""
    if name.endswith(".ipynb"):
        return "\n".join(strings(json.loads(text)))
    if name.endswith((".html", ".svg", ".xml")):
        return html.unescape(re.sub(r"<[^>]*>", "", text))
    return text


def strings(part) -> list[str]:
    """All strings in what JSON holds; lists of lines, as notebooks have them, are joined."""
    if isinstance(part, str):
        return [part]
    if isinstance(part, list) and all(isinstance(item, str) for item in part):
        return ["".join(part)]
    inner = part.values() if isinstance(part, dict) else part if isinstance(part, list) else []
    return [text for item in inner for text in strings(item)]


def leaks(files: dict[str, bytes]) -> list[str]:
    """Which needles stand in which files."""
    found = []
    for name, content in files.items():
        text = plain(readable(name, content))
        found += [f"{name}: {n!r} of {m}" for m, pieces in secrets().items() for n in pieces if n in text]
    return found


def read(paths) -> dict[str, bytes]:
    return {path.relative_to(ROOT).as_posix(): path.read_bytes() for path in paths if path.is_file()}


def wheel() -> dict[str, bytes]:
    """The files that a wheel holds: packages as pyproject.toml finds them, their data, license files and README."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    tools, project = settings["tool"]["setuptools"], settings["project"]
    (where,) = tools["packages"]["find"]["where"]
    found = [ROOT / name for name in (*project["license-files"], project["readme"])]
    for package in find_packages(ROOT / where):
        folder = ROOT / where / package.replace(".", "/")
        patterns = ["*.py", *tools["package-data"].get(package, [])]
        found += [path for pattern in patterns for path in folder.glob(pattern)]
    return read(found)


@needs_masters
class TestNoLeak:
    """A solution line that stands elsewhere by chance: write it in other words in the master."""

    def test_every_secret_region_is_searched_for(self):
        for name, path in MASTERS.items():
            text = path.read_text("utf-8")
            assert len(REGION.findall(text)) == text.count("### BEGIN") + text.count("=== BEGIN")
            assert len(secrets()[name]) > 20, f"{name}: hardly anything to search for; are its regions marked?"

    def test_in_the_wheel(self):
        files = wheel()
        assert {"lib/stylemoments/norms.py", "lib/stylemoments/check/__init__.py"} <= files.keys()
        assert not leaks(files)

    def test_in_book_notebooks_and_everything_else_under_version_control(self):
        names = [name for name in version_controlled() if not name.startswith("classroom/source/")]
        assert {"book/chapters/01-normalization.md", "notebooks/01-normalization.ipynb"} <= set(names)
        assert not leaks(read(ROOT / name for name in names))

    def test_in_the_built_book(self):
        built = ROOT / "_build/html"
        if not (built / "index.html").exists():
            pytest.skip("the book is not built: run `make book` first")
        files = read(built.rglob("*"))
        assert {"_build/html/_sources/notebooks/01-normalization.ipynb", "_build/html/searchindex.js"} <= files.keys()
        assert not [name for name in files if "/classroom/" in name], "exclude classroom in _config.yml"
        assert not leaks(files)

    def test_line_by_line_in_what_students_get(self, made):
        texts = [path.read_text("utf-8") for path in MASTERS.values()]
        seen = {line.strip() for text in texts for line in visible(text).splitlines()}
        secret = {line for text in texts for lines in regions(text) for line in lines if len(line) > 3} - seen
        assert len(secret) > 100
        for name, content in [*made.items(), *read(TARGET.glob("*")).items()]:
            given = {line.strip() for text in strings(json.loads(content)) for line in text.splitlines()}
            assert not secret & given, name
        assert not leaks({**made, **read(TARGET.glob("*"))})


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("a.py", lambda code: code),
        ("a.md", lambda code: f"text\n\n```python\n{code}\n```\n"),
        ("a.ipynb", lambda code: json.dumps({"cells": [{"source": code.splitlines(keepends=True)}]})),
        ("b.ipynb", lambda code: json.dumps({"cells": [{"outputs": [{"text": code}]}]})),
        ("a.html", lambda code: "<pre>" + re.sub(r"(\w+)", r'<span class="n">\1</span>', html.escape(code)) + "</pre>"),
        ("b.html", lambda code: f"<pre>{html.escape(code)}</pre>"),
        ("sources.txt", lambda code: code.replace("\n", "\r\n        ")),
    ],
)
class TestTheSearch:
    """It finds what is planted, however the format writes it."""

    CODE = '''\
    gap = x["mean"] - y  # < 0 where
    z = gap * 2
    assert z.shape == (3, 4), "a wrong shape & it is long"'''
    WORDS = "Both curves of the *memory* are flat, since no digit sees its “neighbors” (no. 7). It isn't so: 1 < 2."

    @pytest.fixture(autouse=True)
    def masters(self, monkeypatch):
        code = needles([line.strip() for line in self.CODE.splitlines()])
        monkeypatch.setitem(globals(), "secrets", lambda: {"code": code, "words": needles([self.WORDS])})

    def test_finds_code(self, name, write):
        found = leaks({name: write(self.CODE).encode()})
        assert len(found) >= 3, "a long line and two pairs of lines"

    def test_finds_words(self, name, write):
        assert leaks({name: write(self.WORDS).encode()})

    def test_finds_a_single_long_line(self, name, write):
        assert leaks({name: write(self.CODE.splitlines()[-1]).encode()})

    def test_a_short_line_elsewhere_is_chance(self, name, write):
        assert not leaks({name: write("def f(gap):\n    z = gap * 2\n    return z").encode()})
