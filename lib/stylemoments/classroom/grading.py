"""Grade one submission, or all of a folder: each in a process of its own, which starts the sandbox of the student's.

    python -m stylemoments.classroom.grading JOB RESULT

is that process. It writes a line of JSON for each cell as soon as it has run, so that what stops it, such as a result
of gigabytes, costs the tests after it and no others. Grades are decided outside of it, from those lines.
"""

import hashlib
import json
import os
import resource
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict
from pathlib import Path

from . import assignment as room
from . import sandbox, student, submissions
from .assignment import TEST, Assignment, Cell

ONE_THREAD = dict.fromkeys(sandbox.THREADS, "1")  # submissions share the cores, not their tensors
SPARE = 2  # times the memory of a student's that a grader may take


class NotGraded(Exception):
    """The machine is at fault, not the student: nothing is recorded, and the next run tries again."""


# ---------------------------------------------------------------------------------------- the process


def main() -> None:
    """Run the cells of a job in order."""
    job = json.loads(Path(sys.argv[1]).read_text("utf-8"))
    limits = sandbox.Limits(**job["limits"])
    resource.setrlimit(resource.RLIMIT_DATA, (SPARE * limits.memory,) * 2)
    try:
        with Path(sys.argv[2]).open("w", encoding="utf-8") as out:
            for line in _lines(job, limits):
                print(json.dumps(line), file=out, flush=True)
    except student.Fault as fault:
        print(fault, file=sys.stderr)
        sys.exit(1)


def _lines(job: dict, limits: sandbox.Limits) -> Iterator[dict]:
    with student.Student(job["way"], limits, fonts=job["fonts"]) as theirs:
        for index, kind, source in job["cells"]:
            ran = student.test(source, theirs) if kind == TEST else theirs.run(source)
            yield {"cell": index} | ran
        yield {"said": {name: _variable(theirs, name) for name in ("STUDENT", "SEED")}}


def _variable(theirs: student.Student, name: str) -> str | int | None:
    try:
        value = theirs.get(name)
    except Exception:  # not there, or the process is gone
        return None
    return value[:200] if isinstance(value, str) else value if type(value) is int and abs(value) < 1 << 63 else None


# ---------------------------------------------------------------------------------------- one submission


class Grader:
    """What all submissions of a run share.

    Args:
        assignment: the master.
        way: a name in ``sandbox.WAYS``.
        limits: what a submission may use.
    """

    def __init__(self, assignment: Assignment, way: str, limits: sandbox.Limits | None = None):
        self.assignment, self.way, self.limits = assignment, way, limits or sandbox.Limits()
        self.fonts = sandbox.fonts()
        self._running, self._stopped = set(), threading.Event()

    def key(self, submission: submissions.Submission) -> str:
        """Of the file, the master and the limits: a record with the same key needs no second run."""
        parts = [submission.path.read_bytes(), self.assignment.source.encode(), repr(self.limits).encode()]
        return hashlib.sha256(b"\0".join(hashlib.sha256(part).digest() for part in parts)).hexdigest()

    def grade(self, submission: submissions.Submission) -> dict:
        """The record of a submission: points, messages, and the notebook as it ran; all that reports are made from.

        Raises:
            NotGraded: the machine is at fault.
        """
        try:
            cells = submissions.read(submission.path)
        except submissions.Unreadable as error:
            zeros = [_verdict(cell, 0.0, str(error)) for cell in self.assignment.cells.values() if cell.points]
            return self._record(submission, zeros, [], [str(error)], None)
        flags = [*_signs(self.assignment, cells)]
        cells = room.arrange(self.assignment, cells)
        ran, said = self._run(cells)
        graded = [_graded(cell, ran.get(index)) for index, cell in enumerate(cells) if cell.points]
        notebook = [_shown(cell, ran.get(index)) for index, cell in enumerate(cells)]
        return self._record(submission, graded, notebook, flags + [*_doubts(submission, cells, ran, said)], said)

    def _record(self, submission, graded: list[dict], notebook: list[dict], flags: list[str], said: dict | None):
        order = [*self.assignment.cells]
        return {
            "student": submission.student, "name": submission.name, "platform": submission.platform,
            "file": submission.path.name, "key": self.key(submission), "assignment": self.assignment.name,
            "graded": sorted(graded, key=lambda verdict: order.index(verdict["id"])), "notebook": notebook,
            "flags": flags, "said": (said or {}).get("STUDENT"),
            "seconds": round(sum(cell.get("seconds", 0.0) for cell in notebook), 1),
        }  # fmt: skip

    def check_master(self, folder: Path) -> None:
        """Grade the master itself, which must get all points of its tests.

        Raises:
            ValueError: it does not; says which tests and why.
            NotGraded: the machine is at fault.
        """
        import nbformat

        from . import release

        path = folder / f"{self.assignment.name}.ipynb"
        master = folder / f"{self.assignment.name}.md"
        master.write_text(self.assignment.source, "utf-8")
        notebook = release.read_master(master)
        for cell in notebook.cells:
            cell.source = cell.source.replace('STUDENT = ""', 'STUDENT = "the master"', 1)
        nbformat.write(notebook, path)
        record = self.grade(submissions.Submission(path, "the master", "", "name"))
        failed = [f"  {cell['id']}: {cell['message']}" for cell in record["graded"]
                  if cell["kind"] == TEST and cell["points"] != cell["of"]]  # fmt: skip
        if failed:
            raise ValueError("the master fails its own tests, so no submission is graded:\n" + "\n".join(failed))

    def _run(self, cells: list[Cell]) -> tuple[dict[int, dict], dict]:
        """What ran, by the index of the cell, and what the notebook says of its student."""
        code = [[index, cell.kind, cell.source] for index, cell in enumerate(cells) if cell.code]
        job = {"way": self.way, "limits": asdict(self.limits), "fonts": self.fonts, "cells": code}
        tests = sum(cell.kind == TEST for cell in cells)
        seconds = 2 * self.limits.notebook + tests * student.TEST + 3 * sandbox.START
        with tempfile.TemporaryDirectory(prefix="stylemoments-") as folder:
            order, result = Path(folder, "job.json"), Path(folder, "result.jsonl")
            order.write_text(json.dumps(job), "utf-8")
            self._process(order, result, seconds)
            lines = [json.loads(line) for line in result.read_text("utf-8").splitlines()]
        said = next((line["said"] for line in lines if "said" in line), {})
        return {line.pop("cell"): line for line in lines if "cell" in line}, said

    def _process(self, order: Path, result: Path, seconds: float) -> None:
        """Run the process of a submission to its end, or to the end of its time."""
        result.touch()
        command = [sys.executable, "-P", "-m", "stylemoments.classroom.grading", str(order), str(result)]
        with subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL,
                              env=os.environ | ONE_THREAD, start_new_session=True) as process:  # fmt: skip
            self._running.add(process.pid)
            try:
                if self._stopped.is_set():
                    raise NotGraded("stopped")
                complaint = process.communicate(timeout=seconds)[1].decode(errors="replace").strip()
            except subprocess.TimeoutExpired:
                complaint = ""
            finally:
                if process.poll() is None:
                    sandbox.kill_all(process.pid)
                self._running.discard(process.pid)
        if self._stopped.is_set():
            raise NotGraded("stopped")
        if process.returncode > 0:  # below 0 it was killed, which a result of gigabytes can bring about
            raise NotGraded(complaint.splitlines()[-1] if complaint else "the grading process failed")

    def stop(self) -> None:
        """End all that runs; their ``grade`` raises NotGraded."""
        self._stopped.set()
        for pid in [*self._running]:
            sandbox.kill_all(pid)

    def grade_all(self, todo: list[submissions.Submission], *, jobs: int) -> Iterator[tuple]:
        """Records as they are finished, ``jobs`` at a time: the submission, and its record or NotGraded."""
        with ThreadPoolExecutor(jobs) as pool:
            futures = {pool.submit(self.grade, submission): submission for submission in todo}
            try:
                for future in as_completed(futures):
                    yield futures[future], _result(future)
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                self.stop()
                raise


def _result(future) -> dict | NotGraded:
    try:
        return future.result()
    except NotGraded as fault:
        return fault


# ---------------------------------------------------------------------------------------- what is recorded


def _graded(cell: Cell, ran: dict | None) -> dict:
    """Points of a cell and why."""
    if cell.kind == TEST and ran is None:
        return _verdict(cell, 0.0, "not run: the grading process ended before this test")
    error = ran["error"] if ran and cell.kind == TEST else None
    given = room.points(cell, error)
    return _verdict(cell, given, _message(cell, error, given))


def _verdict(cell: Cell, given: float | None, message: str) -> dict:
    """Points of a cell, None where a person decides."""
    return {"id": cell.id, "kind": cell.kind, "points": given, "of": cell.points, "message": message}


def _message(cell: Cell, error: dict | None, given: float | None) -> str:
    if cell.kind != TEST:
        return "to be graded by hand" if given is None else "no answer in this cell"
    if error is None:
        return ""
    said = error["message"] or "the test failed"
    return said if error["type"] in ("Hint", "AssertionError", "Stopped", "") else f"{error['type']}: {said}"


def _shown(cell: Cell, ran: dict | None) -> dict:
    """A cell as the student may see it: of a hidden test only its comment."""
    source = cell.shown if cell.kind == TEST and cell.hidden else cell.source
    shown = {"source": source, "code": cell.code, "kind": cell.kind, "id": cell.id, "images": cell.images}
    return shown | (ran or {"text": "", "pictures": [], "error": None, "seconds": 0.0})


def _signs(assignment: Assignment, handed_in: list[Cell]) -> Iterator[str]:
    """What the file itself shows that a teacher should know."""
    there = {cell.id: cell for cell in handed_in if cell.id in assignment.cells}
    if not there:
        yield f"no cell of {assignment.name}: another assignment, or all metadata lost"
        return
    gone = [name for name in assignment.cells if name not in there]
    changed = [name for name, cell in there.items() if _changed(assignment.cells[name], cell)]
    if gone:
        yield f"deleted: {', '.join(gone)}"
    if changed:
        yield f"changed, and restored: {', '.join(changed)}"


def _changed(master: Cell, cell: Cell) -> bool:
    sources = {master.shown.strip(), master.source.strip()}
    return master.locked and master.code and cell.source.strip() not in sources


def _doubts(submission, cells: list[Cell], ran: dict[int, dict], said: dict) -> Iterator[str]:
    """What a run shows that a teacher should know."""
    said_why = [line["error"]["message"] for line in ran.values() if line["error"]]
    stopped = [message for message in said_why if message.startswith(student.ENDED)]
    if stopped:
        yield f"its process was ended: {stopped[0].removeprefix(student.ENDED)}"
    if ran and len(ran) < sum(cell.code for cell in cells):
        yield "graded in part: the grading process ended early, which a result of many gigabytes can do"
    yield from _whose(submission, said.get("STUDENT"), said.get("SEED")) if ran else ()


def _whose(submission, number, seed) -> Iterator[str]:
    """Whether the notebook says the student and the seed that it should."""
    from .. import check

    if not isinstance(number, str) or not number.strip():
        yield "STUDENT is empty"
        return
    if submission.number and _plain(number) != _plain(submission.student):
        yield f"STUDENT is {number!r}, but the file is of {submission.student!r}"
    if seed is not None and seed != check.seed(number):
        yield "SEED is not the seed of STUDENT"


def _plain(number: str) -> str:
    return number.strip().lower()


if __name__ == "__main__":
    main()
