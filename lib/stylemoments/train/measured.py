"""Long measurements in pieces: each finished piece is a file, and all together are a table of the package.

A measurement can be stopped and called again, and two terminals can share it.
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
    """Write a table: its columns are those of the longest row, its numbers have five digits."""
    with files.whole(path, force=True) as part, part.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, max(rows, key=len), lineterminator="\n")
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


def run(plan: Iterable[tuple[str, Callable[[], Rows]]], folder: Path, table: Path, *, part: str = "0/1") -> None:
    """Measure what is missing of a plan, and write the table when nothing is.

    A finished run is known by its name alone: after a change of what is measured, begin with an empty folder.

    Args:
        plan: the name of each run, different also without spaces, and what measures it.
        folder: where finished runs lie.
        table: the CSV file.
        part: ``"0/2"`` and ``"1/2"`` are the two halves of the plan.

    Raises:
        ValueError: another form of part.
    """
    number, _, parts = part.partition("/")
    if not (number.isdigit() and parts.isdigit() and int(number) < int(parts)):
        raise ValueError(f"part is the number of a share and how many there are, such as 0/2 or 1/2; got {part!r}")
    folder.mkdir(parents=True, exist_ok=True)
    plan = {folder / f"{name}.json".replace(" ", "-"): measure for name, measure in plan}
    for path, measure in tqdm([*plan.items()][int(number) :: int(parts)], desc="runs", unit="run", mininterval=1):
        if not path.exists():
            rows = measure()
            with files.whole(path, force=True) as unfinished:
                unfinished.write_text(json.dumps(rows), "utf-8")
    missing = [path.stem for path in plan if not path.exists()]
    if missing:
        print(f"{len(missing)} runs are missing, such as {missing[0]}: {table} stays as it is")
    else:
        write(table, [row for path in plan for row in json.loads(path.read_text("utf-8"))])
