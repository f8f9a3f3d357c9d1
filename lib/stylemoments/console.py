"""How the commands speak: faults that the user can mend are a line, and of several processes one is heard."""

import os
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from datetime import timedelta

import typer

INSTALL = "run python -m pip install -r requirements.txt -e . in the folder of the book; on Colab, its first cell again"
PATIENCE = timedelta(days=7)  # of a process that has finished, for the others


@contextmanager
def kind_errors():
    """Faults that the user can mend are a line, not a traceback."""
    from .zoo import WeightsError

    try:
        yield
    except ModuleNotFoundError as error:
        typer.echo(f"error: {error}; {INSTALL}", err=True)
        raise typer.Exit(1) from None
    except (OSError, ValueError, WeightsError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from None


@contextmanager
def one_voice():
    """The state of the processes that ``accelerate launch`` started, one otherwise; only the first of them is heard."""
    import torch
    from accelerate import PartialState

    state = PartialState(cpu=not torch.cuda.is_available(), timeout=PATIENCE)
    if state.is_main_process:
        yield state
        return
    with open(os.devnull, "w") as nothing, redirect_stdout(nothing), redirect_stderr(nothing):
        yield state


@contextmanager
def enough_memory(remedy: str):
    """A GPU that is too small is a fault that the user can mend."""
    import torch

    try:
        yield
    except torch.OutOfMemoryError as error:
        said = f"the memory of the GPU ran out; take {remedy}"
        raise OSError(f"{said} ({str(error).splitlines()[0]})") from None


def warn(said: str) -> None:
    """A line to stderr about what is odd, but no fault."""
    typer.echo(f"warning: {said}", err=True)
