r"""Student notebooks from the teacher's masters, by nbgrader's own converter.

    python -m stylemoments.classroom.release            classroom/source/NAME.md to assignments/NAME.ipynb

A master is MyST text with code cells, written like a chapter, with nbgrader's metadata on the cells that are graded.
nbgrader takes out solutions, hidden tests and mark schemes, locks the checks and writes the checksums by which it knows
an answer that was not touched. What is added here: the Colab setup of the chapters before the first code cell, cell
ids that stay, and a refusal of masters that would show a solution or could not be graded.
"""

import argparse
import hashlib
import logging
import os
import re
import runpy
import sysconfig
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SOURCE, TARGET = Path("classroom/source"), Path("assignments")
REGIONS = ("SOLUTION", "HIDDEN TESTS", "MARK SCHEME")  # what nbgrader takes out stands between BEGIN and END of these
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
    "colab": {"provenance": []},
}
ENCRYPTED = b"\0GITCRYPT\0"


def masters(folder: Path | str = SOURCE) -> dict[str, Path]:
    """The masters of a folder by name, in the order of their names.

    Raises:
        FileNotFoundError: the folder holds no master.
        ValueError: a master is encrypted by git-crypt, and this clone has not been unlocked.
    """
    found = {path.stem: path for path in sorted(Path(folder).glob("*.md"))}
    if not found:
        raise FileNotFoundError(f"no master in {folder}: put the folder of the teacher there (see classroom/README.md)")
    for path in found.values():
        with path.open("rb") as file:
            if file.read(len(ENCRYPTED)) == ENCRYPTED:
                raise ValueError(f"{path} is encrypted: run `git-crypt unlock` with your key, then try again")
    return found


def read_master(path: Path | str, *, setup: str = ""):
    r"""A master as a notebook: solutions, hidden tests and mark schemes included, nothing run.

    Args:
        path: the MyST file.
        setup: source of a code cell to put before the first one; none where it is empty.

    Returns:
        A notebook (``nbformat.NotebookNode``). A cell of nbgrader has its ``grade_id`` as cell id, any other cell an id
        made from its contents; so ids stay while contents stay.

    Raises:
        ValueError: nbgrader would show what it should hide, or could not grade it; says where and why.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder) / "a0.md"
    ...     _ = path.write_text("# A0\n\n```{code-cell} ipython3\nprint(1)\n```\n", "utf-8")
    ...     [cell.source for cell in read_master(path, setup="# setup").cells]
    ['# A0', '# setup', 'print(1)']
    """
    import jupytext
    from nbformat.v4 import new_code_cell

    notebook = jupytext.read(path)
    if setup:
        first = next((i for i, cell in enumerate(notebook.cells) if cell.cell_type == "code"), len(notebook.cells))
        notebook.cells.insert(first, new_code_cell(setup))
    _name_cells(notebook)
    notebook.metadata = METADATA
    faults = [fault for cell in notebook.cells for fault in _faults(cell)]
    if faults:
        raise ValueError(f"{path} cannot be handed out. Mend in it:\n" + "\n".join(f"  {fault}" for fault in faults))
    return notebook


def _name_cells(notebook) -> None:
    """Give every cell an id: its grade_id, or one made from its contents and, where those repeat, its turn."""
    seen = {}
    for cell in notebook.cells:
        name = cell.metadata.get("nbgrader", {}).get("grade_id")
        name = name or hashlib.sha256(f"{cell.cell_type}\n{cell.source}".encode()).hexdigest()[:8]
        seen[name] = seen.get(name, 0) + 1
        cell.id = name if seen[name] == 1 else f"{name}-{seen[name]}"


def _faults(cell) -> Iterator[str]:
    """What nbgrader would do silently and wrong with a cell."""
    info = cell.metadata.get("nbgrader", {})
    name = info.get("grade_id") or repr(cell.source.strip().partition("\n")[0][:60])
    for region in REGIONS:
        if len(re.findall(f"BEGIN {region}", cell.source)) != len(re.findall(f"END {region}", cell.source)):
            yield f"{name}: BEGIN {region} and END {region} must come in pairs, each on a line of its own"
    if not info:
        return
    if not re.fullmatch(r"[\w-]{1,64}", info.get("grade_id", ""), re.ASCII):
        yield f"{name}: grade_id must be 1 to 64 letters, digits, - or _: it becomes the id of the cell"
    if info.get("task") and not info.get("locked"):
        yield f"{name}: a task cell must have locked: true, or no submission can be graded"
    if cell.cell_type == "code":
        yield from _code_faults(cell.source, info, name)


def _code_faults(source: str, info: dict, name: str) -> Iterator[str]:
    if info.get("solution") and "BEGIN SOLUTION" not in source:
        yield f"{name}: a solution without BEGIN SOLUTION is taken out whole, the signature too; mark its region"
    if info.get("grade") and not info.get("solution") and not re.search(r"BEGIN HIDDEN TESTS|\bcheck\.", source):
        yield f"{name}: a test must call a visible check or hide its body between BEGIN and END HIDDEN TESTS"


def generate(paths: dict[str, Path], course: Path | str, *, setup: str = "") -> None:
    """Fill a course folder of nbgrader from masters.

    Args:
        paths: the masters by name, as :func:`masters` gives them. The name is that of assignment and notebook.
        course: a folder, made where it is missing. It gets ``source/NAME/NAME.ipynb`` (the master),
            ``release/NAME/NAME.ipynb`` (what students get) and ``gradebook.db`` (what is restored when grading).
        setup: as in :func:`read_master`.

    Raises:
        ValueError: a master cannot be handed out, or nbgrader refuses it; says why.
    """
    import nbformat

    course = Path(course).resolve()
    for name, path in paths.items():
        source = course / "source" / name / f"{name}.ipynb"
        source.parent.mkdir(parents=True, exist_ok=True)
        nbformat.write(read_master(path, setup=setup), source)
    for name in paths:
        _convert(course, name)


def _convert(course: Path, name: str) -> None:
    """nbgrader's generate_assignment for one assignment of a course folder; an error says what nbgrader logged."""
    from nbgrader.converters import GenerateAssignment
    from nbgrader.converters.base import NbGraderException
    from nbgrader.coursedir import CourseDirectory
    from traitlets.config import Config

    log = logging.Logger(f"{__name__}.{name}")  # of its own: nbgrader says the reason of a failure only there
    said = _Heard(log)
    folder = CourseDirectory(config=Config(CourseDirectory={"root": str(course), "assignment_id": name}), log=log)
    converter = GenerateAssignment(coursedir=folder, log=log)
    converter.force = True
    try:
        with _alembic_on_path():
            converter.start()
    except NbGraderException as error:
        raise ValueError(f"nbgrader refuses the master {name}: {said.reason() or error}") from None


class _Heard(logging.Handler):
    """Keeps the errors that a logger gets."""

    def __init__(self, log: logging.Logger):
        super().__init__(logging.ERROR)
        self.messages = []
        log.addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage().strip())

    def reason(self) -> str:
        """The last line of the first traceback, without the name of the exception."""
        lines = [said.splitlines()[-1] for said in self.messages if said.startswith("Traceback")]
        return lines[0].partition(": ")[2] if lines else ""


@contextmanager
def _alembic_on_path():
    """nbgrader calls the command alembic, which only an activated environment has on its PATH."""
    before = os.environ.get("PATH", "")
    os.environ["PATH"] = os.pathsep.join([sysconfig.get_path("scripts"), before])
    try:
        yield
    finally:
        os.environ["PATH"] = before


def student_notebooks(paths: dict[str, Path], *, setup: str = "") -> dict[str, str]:
    """What students get, as the text of each notebook's file; the same masters give the same text.

    Args:
        paths: the masters by name.
        setup: as in :func:`read_master`.

    Raises:
        ValueError: as in :func:`generate`.
    """
    with tempfile.TemporaryDirectory() as course:
        generate(paths, course, setup=setup)
        return {name: _finished(Path(course) / "release" / name / f"{name}.ipynb") for name in paths}


def _finished(path: Path) -> str:
    """nbgrader's notebook, checked once more."""
    import nbformat

    notebook = nbformat.read(path, as_version=4)
    notebook.metadata = METADATA
    nbformat.validate(notebook)
    return nbformat.writes(notebook) + "\n"


def release(source: Path | str = SOURCE, target: Path | str = TARGET, *, setup: str) -> list[Path]:
    """Make every student notebook, then write them: all of them or, where one fails, none.

    Args:
        source: the folder of the masters.
        target: the folder of the student notebooks, made where it is missing.
        setup: as in :func:`read_master`; students on Colab need it.

    Returns:
        The files written.

    Raises:
        FileNotFoundError: there is no master.
        ValueError: a master is encrypted, or cannot be handed out; says why.
    """
    texts = student_notebooks(masters(source), setup=setup)
    target = Path(target)
    target.mkdir(parents=True, exist_ok=True)
    new = {target / f"{name}.ipynb": target / f"{name}.ipynb.new" for name in texts}
    for path, text in zip(new.values(), texts.values(), strict=True):
        path.write_text(text, "utf-8", newline="\n")
    for path, written in new.items():
        written.replace(path)
    return list(new)


def main() -> None:
    """Make ``assignments/``, or say in one line why not."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--source", type=Path, default=SOURCE, help=f"the folder of the masters; {SOURCE}")
    parser.add_argument("--target", type=Path, default=TARGET, help=f"the folder for students; {TARGET}")
    options = parser.parse_args()
    setup = runpy.run_path("book/_tools/notebooks.py")["setup_source"]()  # one text for chapters and assignments
    try:
        written = release(options.source, options.target, setup=setup)
    except (FileNotFoundError, ValueError) as error:
        parser.exit(1, f"error: {error}\n")
    for path in written:
        print(f"wrote {path.as_posix()}")


if __name__ == "__main__":
    main()
