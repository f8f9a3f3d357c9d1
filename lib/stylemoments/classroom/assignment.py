"""An assignment as grading needs it: what each cell of the master is, and a student's notebook put in order by it.

nbgrader's own OverwriteCells trusts the metadata of the notebook that it restores: a cell marked otherwise stops it,
and so does a missing one. Here the master alone says what a cell is; the student's metadata only says which.
"""

from dataclasses import dataclass, field
from pathlib import Path

from . import release

TEST, ANSWER, TASK, CODE, TEXT = "test", "answer", "task", "code", "text"


@dataclass
class Cell:
    """A cell of a master, or of a student's notebook."""

    source: str
    code: bool
    kind: str  # TEST (graded by running), ANSWER and TASK (graded by hand), CODE, TEXT
    id: str = ""  # nbgrader's grade_id; empty for cells that the student added
    points: float = 0.0
    locked: bool = False
    shown: str = ""  # the source that students get
    hidden: bool = False  # whether students get less than the source
    touched: bool = True  # whether a student's answer differs from what was handed out
    images: dict = field(default_factory=dict)  # attached to words: name to base64


@dataclass(frozen=True)
class Assignment:
    """A master."""

    name: str
    cells: dict[str, Cell]  # those of nbgrader, by grade_id, in order
    source: str  # of the whole, to see whether it has changed
    handed_out: tuple[str, ...]  # the sources of all cells that students get

    @property
    def points(self) -> float:
        return sum(cell.points for cell in self.cells.values())


def read(path: Path) -> Assignment:
    """The assignment of a master.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it cannot be handed out; see :func:`stylemoments.classroom.release.read_master`.
    """
    import nbformat

    source = path.read_text("utf-8")
    master = release.read_master(path)
    shown = nbformat.reads(release.student_notebooks({path.stem: path})[path.stem], as_version=4)
    shown = {cell.id: cell.source for cell in shown.cells}
    known = [_known(cell, shown[cell.id]) for cell in master.cells if "nbgrader" in cell.metadata]
    return Assignment(path.stem, {cell.id: cell for cell in known}, source, (*shown.values(),))


def _known(cell, shown: str) -> Cell:
    """A cell of nbgrader's as what it is."""
    info = cell.metadata.nbgrader
    code = cell.cell_type == "code"
    if info.get("task"):
        kind = TASK
    elif info.grade:
        kind = ANSWER if info.solution else TEST
    else:
        kind = CODE if code else TEXT
    points = float(info.get("points", 0)) if kind in (TEST, ANSWER, TASK) else 0.0
    locked = not info.solution and (info.grade or info.locked)
    return Cell(cell.source, code, kind, info.grade_id, points, locked, shown, hidden=shown != cell.source)


def arrange(assignment: Assignment, cells: list[Cell]) -> list[Cell]:
    """A student's notebook with the master's locked cells as the master has them.

    A test that was deleted comes back at the end, other cells of the master where they were. Of a cell that was copied
    the last counts, as in nbgrader; the others are the student's own.

    Args:
        assignment: the master.
        cells: those of the student, with an ``id`` where they say one.

    Returns:
        new cells, in the order in which they run.
    """
    last = {cell.id: index for index, cell in enumerate(cells)}
    found = []
    for index, cell in enumerate(cells):
        master = assignment.cells.get(cell.id) if last[cell.id] == index else None
        found.append(_own(cell) if master is None else _restored(master, cell))
    there = {cell.id for cell in found}
    for cell in assignment.cells.values():
        if cell.id not in there:
            found.insert(len(found) if cell.kind == TEST else _place(assignment, cell, found), _missing(cell))
    return found


def _own(cell: Cell) -> Cell:
    return Cell(cell.source, cell.code, CODE if cell.code else TEXT, images=cell.images)


def _restored(master: Cell, cell: Cell) -> Cell:
    """The student's cell, as the kind that the master says; locked, with the master's text."""
    touched = cell.source.strip() != master.shown.strip()
    source = master.source if master.locked and master.code else master.shown if master.locked else cell.source
    return Cell(source, master.code, master.kind, master.id, master.points, master.locked, master.shown,
                master.hidden, touched, {} if master.locked else cell.images)  # fmt: skip


def _missing(master: Cell) -> Cell:
    cell = _restored(master, Cell(master.shown, master.code, master.kind))
    if not master.locked:
        cell.source = ""
    return cell


def _place(assignment: Assignment, cell: Cell, found: list[Cell]) -> int:
    """Behind the nearest cell that stands before it in the master."""
    order = [*assignment.cells]
    before = set(order[: order.index(cell.id)])
    return max((index + 1 for index, known in enumerate(found) if known.id in before), default=0)


# ---------------------------------------------------------------------------------------- points


def points(cell: Cell, error: dict | None) -> float | None:
    """The points of a cell by nbgrader's rule, None where a person decides.

    Args:
        cell: a test, an answer or a task, as :func:`arrange` gives it.
        error: of a test, where it failed.

    Example:
        >>> test = Cell("assert True", True, TEST, "t", points=3)
        >>> points(test, None), points(test, {"type": "AssertionError", "message": "no", "where": ""})
        (3.0, 0.0)
        >>> points(Cell("my words", False, ANSWER, "w", points=2), None)
    """
    from nbformat import v4
    from nbgrader.utils import compute_checksum, determine_grade

    if cell.kind == TASK:
        return None
    info = {"grade": True, "solution": cell.kind == ANSWER, "locked": cell.locked, "points": cell.points}
    info |= {"grade_id": cell.id, "schema_version": 3, "task": False}
    made = (v4.new_code_cell if cell.code else v4.new_markdown_cell)(cell.source, metadata={"nbgrader": info})
    if error is not None and cell.code:
        made.outputs = [v4.new_output("error", ename=error["type"], evalue=error["message"], traceback=[])]
    if cell.kind == ANSWER and (not cell.touched or not cell.source.strip()):
        made.metadata.nbgrader.checksum = compute_checksum(made)  # nbgrader's mark of an answer that was not given
    given, _ = determine_grade(made)
    return None if given is None else float(given)
