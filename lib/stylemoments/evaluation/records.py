"""Long measurements in pieces: each finished piece is a file, and all together are a table of the package.

A measurement can be stopped and called again, and several processes can share it.
"""

import csv
import json
from argparse import ArgumentParser
from collections.abc import Callable, Iterable
from pathlib import Path

from tqdm import tqdm

from .. import files

Rows = list[dict]


def read(path: Path, *, texts: tuple[str, ...]) -> Rows:
    """The rows of a table; numbers are numbers, and what was not measured is absent.

    Args:
        path: of the CSV file.
        texts: the columns that are not numbers.
    """
    with path.open(encoding="utf-8", newline="") as file:
        rows = [{name: text for name, text in row.items() if text} for row in csv.DictReader(file)]
    return [{name: text if name in texts else float(text) for name, text in row.items()} for row in rows]


def write(path: Path, rows: Rows) -> None:
    """Write a table: its columns are those of all rows, its numbers have five digits."""
    with files.whole(path, force=True) as part, part.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, dict.fromkeys(name for row in rows for name in row), lineterminator="\n")
        writer.writeheader()
        for row in rows:
            writer.writerow({name: f"{v:.5g}" if isinstance(v, float) else v for name, v in row.items()})


def shared(a: dict, b: dict) -> tuple[list[float], list[float]]:
    """Two measures over the keys that both have, in one order."""
    both = [key for key in a if key in b]
    return [a[key] for key in both], [b[key] for key in both]


def options(description: str) -> ArgumentParser:
    """What every measurement is told."""
    parser = ArgumentParser(description=description)
    parser.add_argument("--out", type=Path, required=True, help="folder for the finished runs")
    parser.add_argument("--part", default="0/1", help="which share of the runs: 0/2 and 1/2 are two halves")
    return parser


def open_folder(folder: Path, facts: dict) -> None:
    """Write what all runs of a folder have in common; where it is written already, it must be the same.

    Args:
        folder: is made where it is not there.
        facts: as JSON takes them.

    Raises:
        ValueError: the folder holds runs of another kind; the message says what differs.
    """
    path = folder / "settings.json"
    folder.mkdir(parents=True, exist_ok=True)
    if path.exists():
        was = json.loads(path.read_text("utf-8"))
        differs = [
            f"{name} {was.get(name)}, now {facts.get(name)}" for name in was | facts if was.get(name) != facts.get(name)
        ]
        if differs:
            raise ValueError(f"{folder} holds another measurement: {'; '.join(differs)}. Choose another folder")
        return
    with files.whole(path, force=True) as part:
        part.write_text(json.dumps(facts, indent=1), "utf-8")


Plan = Iterable[tuple[str, Callable[[], Rows]]]  # the name of each run and what measures it


def run(plan: Plan, folder: Path, table: Path, *, part: str = "0/1") -> None:
    """Measure what is missing of a plan, and write the table when nothing is.

    A finished run is known by its name: :func:`open_folder` sees to it that the folder has runs of one kind.

    Args:
        plan: the name of each run, different also without spaces, and what measures it.
        folder: where finished runs lie.
        table: the CSV file.
        part: ``"0/2"`` and ``"1/2"`` are the two halves of the plan.

    Raises:
        ValueError: another form of part.
    """
    plan = [*plan]
    measure(plan, folder, part=part)
    gather(plan, folder, table)


def measure(plan: Plan, folder: Path, *, part: str = "0/1") -> None:
    """The first half of :func:`run`: measure what is missing of a part of the plan, under a bar."""
    number, _, parts = part.partition("/")
    if not (number.isdigit() and parts.isdigit() and int(number) < int(parts)):
        raise ValueError(f"part is the number of a share and how many there are, such as 0/2 or 1/2; got {part!r}")
    folder.mkdir(parents=True, exist_ok=True)
    share = [*_files(plan, folder).items()][int(number) :: int(parts)]
    missing = [(path, piece) for path, piece in share if not path.exists()]
    done, total = len(share) - len(missing), len(share)
    for path, piece in tqdm(missing, desc="runs", unit="run", mininterval=1, initial=done, total=total):
        rows = piece()
        with files.whole(path, force=True) as unfinished:
            unfinished.write_text(json.dumps(rows), "utf-8")


def gather(plan: Plan, folder: Path, table: Path) -> bool:
    """The second half of :func:`run`: write the table and say True, or say what is missing."""
    paths = _files(plan, folder)
    missing = [path.stem for path in paths if not path.exists()]
    if missing:
        print(f"{len(missing)} runs are missing, such as {missing[0]}: {table} stays as it is")
        return False
    write(table, [row for path in paths for row in json.loads(path.read_text("utf-8"))])
    return True


def _files(plan: Plan, folder: Path) -> dict[Path, Callable[[], Rows]]:
    return {folder / f"{name}.json".replace(" ", "-"): piece for name, piece in plan}
