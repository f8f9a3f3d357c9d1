"""Files as students and platforms make them: whose each is, and the cells of a notebook however it was saved."""

import csv
import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path

from .assignment import CODE, TEXT, Cell

LARGEST = 200 << 20  # bytes of a file
CELLS, CHARACTERS, IMAGES = 2000, 2_000_000, 10 << 20  # of a notebook: cells; of all code and words; of attached images
PATTERNS = (
    # Moodle, a folder per student or the same as the beginning of the file's name
    ("moodle", r"(?P<name>[^/]*)_(?P<student>\d+)_assignsubmission_file(_[^/]*)?(/.*)?"),
    # Canvas: name, LATE where it was, number of the student, number of the file, name of the file
    ("canvas", r"(.*/)?(?P<name>[^/_]+)(_LATE)?_(?P<student>\d+)_\d+_[^/]*"),
)


class Unreadable(ValueError):
    """A file that is no notebook; the message says why, for the student."""


@dataclass(frozen=True)
class Submission:
    """A file, and whose it is."""

    path: Path
    student: str  # as the file's name or the table says
    name: str  # as the platform writes it, or empty
    platform: str  # "canvas", "moodle", "table", "pattern" or "name"

    @property
    def number(self) -> bool:
        """Whether ``student`` is what the student would write into STUDENT; a platform has numbers of its own."""
        return self.platform in ("table", "pattern", "name")

    @property
    def slug(self) -> str:
        """A name for files about this student: plain, and of nobody else."""
        plain = re.sub(r"[^A-Za-z0-9-]+", "-", self.student).strip("-")[:60]
        if plain == self.student:
            return plain
        return f"{plain}-{hashlib.sha256(self.student.encode(errors='replace')).hexdigest()[:8]}".lstrip("-")


def find(folder: Path, *, pattern: str | None = None, table: Path | None = None) -> tuple[list[Submission], list[str]]:
    """The submissions of a folder and of those in it, one per student, and what to tell the teacher.

    Args:
        folder: where the platform's archive was unpacked.
        pattern: a regular expression with a group ``student``, for the path below the folder.
        table: a CSV with the columns ``file`` (path below the folder, its last part, or the number or name by which
            the platform knows the student) and ``student``, and perhaps ``name``.

    Raises:
        FileNotFoundError: no such folder or table, or no notebook.
        ValueError: a pattern without the group, or a table without the columns.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is no folder; name the one that holds the students' files")
    paths = sorted((path for path in folder.rglob("*.ipynb") if _counts(path.relative_to(folder))), key=_natural)
    if not paths:
        raise FileNotFoundError(f"{folder} and the folders in it hold no file that ends in .ipynb")
    compiled, rows = _compiled(pattern), _rows(table)
    found, notes = {}, []
    for path in paths:
        submission = _whose(path, path.relative_to(folder).as_posix(), compiled, rows)
        if submission.student in found:
            notes.append(f"{found[submission.student].path.name!r} is not graded: {path.name!r} is of the same student")
        found[submission.student] = submission
    return list(found.values()), notes


def _counts(path: Path) -> bool:
    return not any(part.startswith((".", "__MACOSX")) for part in path.parts)


def _natural(path: Path) -> list:
    """So that of `a-2` and `a-10` the second is the later."""
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in re.split(r"(\d+)", path.as_posix())]


def _compiled(pattern: str | None) -> re.Pattern | None:
    if pattern is None:
        return None
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise ValueError(f"the pattern {pattern!r} is no regular expression: {error}") from None
    if "student" not in compiled.groupindex:
        raise ValueError(f"a pattern has a group (?P<student>...); got {pattern!r}")
    return compiled


def _rows(table: Path | None) -> dict[str, dict]:
    if table is None:
        return {}
    with table.open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    if not rows or not {"file", "student"} <= set(rows[0]):
        raise ValueError(f"{table} must have the columns file and student")
    return {row["file"].strip(): row for row in rows}


def _whose(path: Path, below: str, pattern: re.Pattern | None, rows: dict[str, dict]) -> Submission:
    """Whose a file is: by the table, where it knows the file or what the name says; else by the name."""
    platform, groups = _named(below, pattern)
    student, name = groups.get("student") or path.stem, (groups.get("name") or "").strip("_ ")
    row = next((rows[key] for key in (below, path.name, path.stem, student, name) if key in rows), None)
    if row is not None:
        return Submission(path, row["student"].strip(), (row.get("name") or name).strip(), "table")
    return Submission(path, student, name, platform)


def _named(below: str, pattern: re.Pattern | None) -> tuple[str, dict]:
    """Which way of naming files fits a path, and what it says.

    >>> _named("Ada Lovelace_4711_assignsubmission_file/a1.ipynb", None)[0]
    'moodle'
    >>> _named("lovelaceada_LATE_815_99_a1-normalization.ipynb", None)[1]["student"]
    '815'
    >>> _named("s1234567.ipynb", None)
    ('name', {})
    """
    if pattern is not None:
        match = pattern.search(below)
        return ("pattern", match.groupdict()) if match else ("name", {})
    for platform, known in PATTERNS:
        if match := re.fullmatch(known, below):
            return platform, match.groupdict()
    return "name", {}


# ---------------------------------------------------------------------------------------- notebooks


def read(path: Path) -> list[Cell]:
    """The cells of a notebook: code and words, and which cell of the master each says it is. All else is left.

    Reads UTF-8 and UTF-16, with or without a byte order mark, and all versions of the format.

    Raises:
        Unreadable: it is empty, too large, no notebook, or damaged.
    """
    notebook = _parsed(path)
    if isinstance(notebook.get("worksheets"), list):  # before version 4
        notebook = {"cells": [cell for sheet in notebook["worksheets"] if isinstance(sheet, dict)
                              for cell in sheet.get("cells") or []]}  # fmt: skip
    cells = notebook.get("cells")
    if not isinstance(cells, list):
        raise Unreadable("the file is JSON, but no notebook: it has no cells. Save the notebook itself as .ipynb")
    if len(cells) > CELLS:
        raise Unreadable(f"a notebook has at most {CELLS} cells; this has {len(cells)}")
    found = [_cell(cell) for cell in cells if isinstance(cell, dict)]
    if not found:
        raise Unreadable("the notebook has no cells")
    if sum(len(cell.source) for cell in found) > CHARACTERS:
        raise Unreadable(f"code and words of a notebook have at most {CHARACTERS} characters")
    return found


def _parsed(path: Path) -> dict:
    size = path.stat().st_size
    if size > LARGEST:
        raise Unreadable(f"the file has {size >> 20} MB; clear the outputs (Edit, Clear all outputs) and hand in again")
    text = decoded(path.read_bytes())
    if not text.strip("\0 \r\n\t"):
        raise Unreadable("the file is empty")
    try:
        notebook = json.loads(text)
    except (ValueError, RecursionError):
        raise Unreadable("the file is no notebook, or a damaged one; download it again as .ipynb") from None
    if not isinstance(notebook, dict):
        raise Unreadable("the file is JSON, but no notebook")
    return notebook


def decoded(data: bytes) -> str:
    """Text of bytes in UTF-8 or UTF-16; what cannot be read is replaced.

    >>> [decoded("ä".encode(kind)) for kind in ("utf-8", "utf-8-sig", "utf-16")]
    ['ä', 'ä', 'ä']
    >>> decoded("{}".encode("utf-16-le")), decoded("{}".encode("utf-16-be"))
    ('{}', '{}')
    """
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        return data.decode("utf-16", "replace")
    if data[1:2] == b"\0" or data[:1] == b"\0":  # a notebook begins with a brace or a space
        return data.decode("utf-16-le" if data[1:2] == b"\0" else "utf-16-be", "replace")
    return data.decode("utf-8-sig", "replace")


def _cell(cell: dict) -> Cell:
    source = cell.get("source", cell.get("input", ""))
    source = "".join(map(str, source)) if isinstance(source, list) else str(source)
    code = cell.get("cell_type") == "code"
    images = {} if code else _images(cell.get("attachments"))
    return Cell(source, code, CODE if code else TEXT, id=_says(cell), images=images)


def _says(cell: dict) -> str:
    """Which cell of the master it says it is: by nbgrader's metadata, else by its id, which a release gave it."""
    metadata = cell.get("metadata") if isinstance(cell.get("metadata"), dict) else {}
    info = metadata.get("nbgrader") if isinstance(metadata.get("nbgrader"), dict) else {}
    colab = metadata.get("id")
    return next((str(name) for name in (info.get("grade_id"), cell.get("id"), colab) if isinstance(name, str)), "")


def _images(attachments) -> dict[str, str]:
    """Images pasted into words, as base64 of PNG."""
    from .student import is_picture

    found, room = {}, IMAGES
    for name, kinds in attachments.items() if isinstance(attachments, dict) else ():
        data = kinds.get("image/png") if isinstance(kinds, dict) else None
        if is_picture(data) and len(data) <= room:
            found[str(name)] = data
            room -= len(data)
    return found
