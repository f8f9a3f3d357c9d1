"""The command ``stylemoments evaluate``: the protocols of two papers, on one process or on many.

Every process that ``accelerate launch`` or ``torchrun`` starts measures its share of the sets or subjects; each
finished piece is a file, so that a run that was stopped goes on with the same command.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import asdict
from io import StringIO
from pathlib import Path
from typing import Annotated

import typer

from ..console import enough_memory, kind_errors, one_voice

SIZE_HELP = "tiny, sd15 or sdxl (default: what runs here)"
OUT_HELP = "folder for records, table.csv and summary.csv; one that was begun goes on"

app = typer.Typer(
    no_args_is_help=True,
    help="Measure by the protocols of StyleAligned and DreamBooth. Processes share the work: on two cores torchrun "
    "--nproc_per_node 2 -m stylemoments.cli evaluate ..., on GPUs accelerate launch.",
)


@app.command("style-aligned")
def style_aligned(
    out: Annotated[Path, typer.Option("-o", "--out", help=OUT_HELP)],
    size: Annotated[str | None, typer.Option(help=SIZE_HELP)] = None,
    sets: Annotated[int, typer.Option(min=1, help="how many of the hundred")] = 100,
    methods: Annotated[str | None, typer.Option(help="with commas, such as StyleAligned,SDEdit (default: all)")] = None,
    draws: Annotated[int, typer.Option(min=1, help="of each set; two or more measure diversity")] = 2,
    steps: Annotated[int | None, typer.Option(min=1, help="DDIM steps (default: 12 if tiny, else 50)")] = None,
    training_steps: Annotated[int, typer.Option(min=1, help="of the methods that train on the first picture")] = 400,
    strength: Annotated[float | None, typer.Option(help="of SDEdit, above 0 and up to 1 (default: 0.8)")] = None,
    seed: Annotated[int, typer.Option(min=0, help="of everything that is drawn at random")] = 0,
) -> None:
    """Draw sets of one style by every method, and measure text alignment, consistency, leakage, colors and time."""
    with _pieces(out) as process:
        from . import style_aligned as room

        pipe = process.pipe(size)
        changes = {"steps": steps, "draws": draws, "training_steps": training_steps, "strength": strength, "seed": seed}
        protocol = room.protocol(pipe.size, **{name: value for name, value in changes.items() if value is not None})
        names = room.known_methods(methods.split(",") if methods else [*room.METHODS])
        plan = [*room.plan(pipe, names, sets, protocol)]
        process.evaluate(room, plan, {"evaluation": "style-aligned"} | asdict(protocol), _style_aligned_lines)


@app.command()
def dreambooth(
    out: Annotated[Path, typer.Option("-o", "--out", help=OUT_HELP)],
    size: Annotated[str | None, typer.Option(help=SIZE_HELP)] = None,
    photographs: Annotated[
        Path | None, typer.Option("--photos", help="DreamBooth's data set, or a folder like it; tiny has its own")
    ] = None,
    subjects: Annotated[int | None, typer.Option(min=1, help="how many (default: all)")] = None,
    rank: Annotated[int | None, typer.Option(min=1, help="of LoRA (default: train all weights)")] = None,
    training_steps: Annotated[int | None, typer.Option(min=1, help="default: that of the size")] = None,
) -> None:
    """Teach the model subject after subject, and measure DINO, CLIP-I, CLIP-T, PRES and DIV."""
    with _pieces(out) as process:
        from . import dreambooth as room

        base = process.pipe(size, full_precision=rank is None)
        protocol = room.protocol(base.size, rank=rank, **{"steps": training_steps} if training_steps else {})
        learned = room.subjects(base.size, photographs)[:subjects]
        plan = [*room.plan(base, learned, protocol, out)]
        process.evaluate(room, plan, {"evaluation": "dreambooth"} | asdict(protocol), _dreambooth_lines)


# ---------------------------------------------------------------------------------------- one of the processes


class _Process:
    """This process among those that measure together."""

    def __init__(self, state, out: Path):
        self.state, self.out = state, out

    def pipe(self, size: str | None, *, full_precision: bool = False):
        """The pipeline of a size, on the device of this process."""
        import torch

        from .. import diffusion

        size = diffusion.choose_size(size)
        with redirect_stdout(StringIO()):  # the size has been said
            return diffusion.load(size, device=self.state.device, dtype=torch.float32 if full_precision else None)

    def evaluate(self, room, plan: list, facts: dict, lines: Callable[[list, dict], Iterator[str]]) -> None:
        """Measure the share of this process, wait for the others, write table and summary, and print the summary."""
        from . import records

        folder, table = self.out / "records", self.out / "table.csv"
        records.open_folder(self.out, facts)
        records.measure(plan, folder, part=f"{self.state.process_index}/{self.state.num_processes}")
        self.state.wait_for_everyone()
        if self.state.is_main_process and records.gather(plan, folder, table):
            summary = room.summary(records.read(table, texts=room.TEXTS))
            records.write(self.out / "summary.csv", summary)
            for line in lines(summary, room.PUBLISHED):
                typer.echo(line)


@contextmanager
def _pieces(out: Path) -> Iterator[_Process]:
    with kind_errors(), one_voice() as state, kind_errors(), enough_memory("a smaller --size, or a GPU with more"):
        try:
            yield _Process(state, out)
        except KeyboardInterrupt:
            typer.echo(f"\nstopped; what is finished is kept in {out}, and the same command goes on", err=True)
            raise typer.Exit(130) from None


# ---------------------------------------------------------------------------------------- what is said


def _style_aligned_lines(summary: list[dict], published: dict) -> Iterator[str]:
    """Means and deviations over the sets, differences from StyleAligned, and what the paper published."""
    measures = [*dict.fromkeys(row["measure"] for row in summary)]
    cells = {(row["method"], row["measure"]): row for row in summary}
    methods = [*dict.fromkeys(row["method"] for row in summary)]
    yield "mean ± deviation over the sets"
    yield from _table(["method", *measures], [[m, *(_spread(cells.get((m, x))) for x in measures)] for m in methods])
    differ = [m for m in methods if any("difference" in cells.get((m, x), {}) for x in measures)]
    if differ:
        yield "\ndifference from StyleAligned, set by set, with its 95 % bootstrap interval"
        rows = [[m, *(_interval(cells.get((m, x))) for x in measures)] for m in differ]
        yield from _table(["method", *measures], rows)
    yield "\npublished, of another model: Stable Diffusion XL, mean ± deviation of 100 sets (arXiv 2312.02133, table 1)"
    rows = [[m, *(f"{mean:g} ± {spread:g}" for mean, spread in both)] for m, both in published.items()]
    yield from _table(["method", "text", "consistency"], rows)


def _dreambooth_lines(summary: list[dict], published: dict) -> Iterator[str]:
    """Means over the subjects with their intervals, and what the paper published."""
    yield "mean over the subjects with its 95 % interval; published: other models (arXiv 2208.12242)"
    rows = [[row["measure"], f"{row['mean']:.3g}", _bounds(row), f"{published[row['measure']]:g}"] for row in summary]
    yield from _table(["measure", "mean", "interval", "published"], rows)


def _spread(row: dict | None) -> str:
    if row is None:
        return ""
    return f"{row['mean']:.3g}" + (f" ± {row['deviation']:.2g}" if "deviation" in row else "")


def _interval(row: dict | None) -> str:
    return f"{row['difference']:+.2g} {_bounds(row)}" if row and "difference" in row else ""


def _bounds(row: dict) -> str:
    return f"[{row['low']:.2g}, {row['high']:.2g}]" if "low" in row else ""


def _table(head: list[str], rows: list[list[str]]) -> Iterator[str]:
    r"""Lines of cells, one column under the other.

    >>> print("\n".join(_table(["a", "b"], [["long", "1"], ["x", "22"]])))
    a     b
    long  1
    x     22
    """
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    for row in [head, *rows]:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
