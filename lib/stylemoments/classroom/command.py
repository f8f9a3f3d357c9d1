"""The command ``stylemoments grade``: a folder of submissions to tables, a page per student, and a summary.

Each finished grade is a file, so that a run that was stopped goes on with the same command.
"""

import json
import os
from pathlib import Path
from typing import Annotated

import typer

from ..console import kind_errors

MASTERS = Path("classroom/source")


def grade(
    folder: Annotated[Path, typer.Argument(metavar="SUBMISSIONS", help="folder of the students' files")],
    out: Annotated[Path, typer.Option("-o", "--out", help="the table of grades; all else goes to a folder beside it")],
    master: Annotated[Path, typer.Option(help="the master, or a folder of them: the one that fits is taken")] = MASTERS,
    pattern: Annotated[str | None, typer.Option(help="of files' names: a regular expression, (?P<student>...)")] = None,
    students: Annotated[Path | None, typer.Option(help="a CSV with columns file and student, and perhaps name")] = None,
    manual: Annotated[Path | None, typer.Option(help="points given by hand (default: marks.csv in the folder)")] = None,
    jobs: Annotated[int, typer.Option(min=1, help="submissions at a time")] = 2,
    cell_seconds: Annotated[float, typer.Option(min=1, help="a cell may take")] = 120,
    notebook_seconds: Annotated[float, typer.Option(min=1, help="a notebook may take")] = 900,
    memory: Annotated[float, typer.Option(min=1, help="GB that a submission may use")] = 4,
    sandbox: Annotated[str | None, typer.Option(help="bubblewrap, unshare, user or rlimits; default: the best")] = None,
) -> None:
    """Grade notebooks: tests run outside of the students' processes, which run in a sandbox without network.

    GRADES.csv is the table of everything; the folder GRADES beside it has canvas.csv and moodle.csv to import, a page
    per student in feedback, summary.html, similar.csv, and marks.csv: fill in points for answers in words there, and
    run the same command again.
    """
    with kind_errors():
        from . import sandbox as rooms

        limits = rooms.Limits(cell_seconds, notebook_seconds, memory=int(memory * rooms.GIGABYTE))
        run = _Run(folder, out, pattern, students)
        assignment = run.assignment(master)
        way = rooms.choose(run.secrets(master), wanted=sandbox)
        typer.echo(f"sandbox: {rooms.WAYS[way].name}")
        records = run.records(assignment, way, limits, jobs)
        run.report(records, assignment, manual, rooms.WAYS[way].name)
        if run.ungraded:
            raise typer.Exit(1)


class _Run:
    """One call of the command."""

    def __init__(self, folder: Path, out: Path, pattern: str | None, students: Path | None):
        from . import submissions

        if out.suffix != ".csv":
            raise ValueError(f"the table of grades ends in .csv; got {out.name!r}")
        self.out, self.folder = out, out.with_suffix("")
        if self.folder.resolve() == folder.resolve():
            raise ValueError(f"{self.folder} is for what grading writes, and holds the submissions; choose another -o")
        self.submissions, self.notes = submissions.find(folder, pattern=pattern, table=students)
        self.ungraded = []
        for part in ("records", "feedback"):
            (self.folder / part).mkdir(parents=True, exist_ok=True)
        os.chmod(self.folder, 0o700)  # grades are nobody else's

    def secrets(self, master: Path) -> list[Path]:
        """What no student's code may read."""
        masters = [master] if master.is_file() else [*master.glob("*.md")]
        return [*masters, *(submission.path for submission in self.submissions), self.folder]

    def assignment(self, master: Path):
        """The assignment that most of the submissions are of."""
        from . import assignment, release

        if master.is_file():
            return assignment.read(master)
        found = release.masters(master)
        return assignment.read(found[self._fitting(found)])

    def _fitting(self, masters: dict[str, Path]) -> str:
        from . import release, submissions

        known = {name: {cell.id for cell in release.read_master(path).cells if "nbgrader" in cell.metadata}
                 for name, path in masters.items()}  # fmt: skip
        votes = dict.fromkeys(known, 0)
        for submission in self.submissions:
            try:
                ids = {cell.id for cell in submissions.read(submission.path)}
            except submissions.Unreadable:
                continue
            best = max(known, key=lambda name: len(known[name] & ids))
            votes[best] += bool(known[best] & ids)
        best = max(votes, key=votes.get)
        if not votes[best]:
            raise ValueError(f"no submission is of an assignment of {', '.join(known)}; name its master with --master")
        return best

    def records(self, assignment, way: str, limits, jobs: int) -> list[dict]:
        """A record for each submission: the one that is there, or a new one."""
        from tempfile import TemporaryDirectory

        from .grading import Grader

        grader = Grader(assignment, way, limits)
        done = {submission: self._finished(grader, submission) for submission in self.submissions}
        todo = [submission for submission, record in done.items() if record is None]
        if todo:
            with TemporaryDirectory() as folder:
                grader.check_master(Path(folder))
            self._grade(grader, todo, done, jobs)
        return [record for record in done.values() if record is not None]

    def _finished(self, grader, submission) -> dict | None:
        try:
            record = json.loads(self._record(submission).read_text("utf-8"))
        except (OSError, ValueError):
            return None
        return record if record.get("key") == grader.key(submission) else None

    def _record(self, submission) -> Path:
        return self.folder / "records" / f"{submission.slug}.json"

    def _grade(self, grader, todo: list, done: dict, jobs: int) -> None:
        from tqdm import tqdm

        from ..files import whole

        try:
            for submission, record in tqdm(grader.grade_all(todo, jobs=jobs), total=len(todo), desc="grading"):
                if not isinstance(record, dict):
                    self.ungraded.append(f"{submission.path.name}: {record}")
                    continue
                with whole(self._record(submission), force=True) as part:
                    part.write_text(json.dumps(record), "utf-8")
                done[submission] = record
        except KeyboardInterrupt:
            typer.echo(f"\nstopped; finished grades are kept in {self.folder}, and the same command goes on", err=True)
            raise typer.Exit(130) from None

    def report(self, records: list[dict], assignment, manual: Path | None, way: str) -> None:
        """Write all tables and pages, and say what to do next."""
        from . import marks, report, similar

        table = self.folder / "marks.csv"
        if manual is not None and not manual.exists():
            raise FileNotFoundError(f"there is no file {manual}; leave --manual out to use {table}")
        rows = [*marks.read(table), *(marks.read(manual) if manual else [])]
        absent = {submission.student for submission in self.submissions} - {record["student"] for record in records}
        kept = marks.give(records, rows, absent=absent)
        marks.write(table, records, kept)
        report.write_grades(self.out, records)
        report.write_canvas(self.folder / "canvas.csv", records)
        report.write_moodle(self.folder / "moodle.csv", records)
        pairs = similar.pairs(records, assignment.handed_out)
        report.write_similar(self.folder / "similar.csv", pairs)
        slugs = {submission.student: submission.slug for submission in self.submissions}
        for record in records:
            page = self.folder / "feedback" / f"{slugs[record['student']]}.html"
            report.write_feedback(page, record, assignment.handed_out)
        notes = [*self.notes, *(f"not graded: {said}" for said in self.ungraded)]
        report.write_summary(self.folder / "summary.html", records, notes=notes, way=way)
        self._say(records, pairs, notes, table)

    def _say(self, records: list[dict], pairs: list[dict], notes: list[str], table: Path) -> None:
        from . import report

        for note in notes:
            typer.echo(f"note: {note}", err=True)
        still = sum(report.total(record)["open"] > 0 for record in records)
        if still:
            typer.echo(f"{still} submissions have answers to be graded by hand: fill in {table}, and run this again")
        flagged = sum(bool(record["flags"]) for record in records)
        typer.echo(f"{len(records)} graded, {flagged} to look at, {len(pairs)} pairs nearly the same")
        for path in (self.out, self.folder / "summary.html"):
            typer.echo(path)
