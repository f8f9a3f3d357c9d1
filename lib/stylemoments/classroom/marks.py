"""Points that a person gives: one table, which grading makes and fills with what is known, and reads again.

A row is one answer of one student; sorted by answer, since one question after the other is graded more evenly.
"""

import csv
from collections.abc import Collection
from pathlib import Path

from ..files import whole

BY_HAND = "graded by hand"
COLUMNS = ("grade_id", "student", "points", "of", "comment")


def read(path: Path) -> list[dict]:
    """The rows of a table; none where there is no file.

    Raises:
        ValueError: a column is missing.
    """
    if not path.exists():
        return []
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    missing = {"grade_id", "student", "points"} - set(rows[0] if rows else COLUMNS)
    if missing:
        raise ValueError(f"{path} must have the columns grade_id, student and points; {', '.join(missing)} is missing")
    return rows


def give(records: list[dict], rows: list[dict], *, absent: Collection[str] = ()) -> list[dict]:
    """Write points and comments of a table into records; a later row counts.

    Args:
        records: see :meth:`stylemoments.classroom.grading.Grader.grade`; changed in place.
        rows: those of :func:`read`. Rows without points and comment are passed over.
        absent: students who have no record this time.

    Returns:
        the rows of those students, to be kept.

    Raises:
        ValueError: an unknown student or answer, points that are no number or more than there are.
    """
    known = {(record["student"], cell["id"]): cell for record in records for cell in record["graded"]}
    kept = []
    for row in rows:
        student, name = plain(row["student"].strip()), row["grade_id"].strip()
        said, comment = (row["points"] or "").strip().replace(",", "."), (row.get("comment") or "").strip()
        if student in absent:
            kept.append(row)
        elif said or comment:
            where = f"marks, {student}, {name}"
            _give(known.get((student, name)), said, plain(comment), where)
    return kept


def _give(cell: dict | None, said: str, comment: str, where: str) -> None:
    if cell is None or cell["kind"] == "test":
        raise ValueError(f"{where}: no such student or answer; tests are not graded by hand")
    cell["comment"] = comment
    if said:
        cell |= {"points": _points(said, cell["of"], where), "message": BY_HAND}


def _points(said: str, most: float, where: str) -> float:
    try:
        points = float(said)
    except ValueError:
        points = -1.0
    if not 0 <= points <= most:
        raise ValueError(f"{where}: points are a number from 0 to {most:g}; got {said!r}")
    return points


def write(path: Path, records: list[dict], kept: list[dict]) -> None:
    """The table of all answers that a person grades or has graded, empty where points are still to be given."""
    rows = kept + [_row(record, cell) for record in records for cell in record["graded"] if by_hand(cell)]
    with whole(path, force=True) as part, part.open("w", encoding="utf-8-sig", errors="replace", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(sorted(rows, key=lambda row: row["grade_id"]))


def by_hand(cell: dict) -> bool:
    """Whether a person grades this, or has graded or commented on it."""
    return cell["kind"] != "test" and (cell["points"] is None or cell["message"] == BY_HAND or "comment" in cell)


def _row(record: dict, cell: dict) -> dict:
    points = "" if cell["points"] is None else f"{cell['points']:g}"
    return {"grade_id": cell["id"], "student": safe(record["student"]), "points": points, "of": f"{cell['of']:g}",
            "comment": safe(cell.get("comment", ""))}  # fmt: skip


def safe(text: str) -> str:
    """Text that no spreadsheet takes for a formula; :func:`plain` undoes it.

    >>> safe("=1+1"), plain(safe("=1+1")), safe("Ada")
    ("'=1+1", '=1+1', 'Ada')
    """
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r")) else text


def plain(text: str) -> str:
    """What :func:`safe` was given."""
    return text[1:] if safe(text[1:]) != text[1:] and text.startswith("'") else text
