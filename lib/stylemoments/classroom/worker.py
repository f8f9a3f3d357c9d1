"""The student's side of grading: runs inside the sandbox, and does what the grader asks for over a socket.

Everything here can be changed by the student's code, so nothing here decides a grade: the grader takes what comes back
as the student's answer, and trusts none of it. The grader starts it as ``python -I -m stylemoments.classroom.worker
FD`` and sends first what :func:`main` reads.
"""

import os
import resource
import signal
import socket
import sys
import traceback
from pathlib import Path

from . import wire
from .sandbox import die_with_parent

PICTURE, PICTURES = 1 << 20, 16  # characters of a picture; pictures in all
MESSAGE = 2000  # characters of an error


class TookTooLong(BaseException):
    """Not an Exception, so that ``except Exception`` in a loop does not swallow it."""


def main() -> None:
    """Read how to start, give up rights, answer until the grader hangs up."""
    channel = wire.Channel(socket.socket(fileno=int(sys.argv[1])))
    order = channel.receive(seconds=60)
    _give_up_rights(order["uid"])
    _limit(order["limits"])
    if order["secrets"] is not None:
        channel.send(_probe(order["secrets"]), seconds=60)
        return
    _write_fonts(order["fonts"])
    session = Session()
    channel.send({"ready": True}, seconds=60)
    _be_silent()
    answers, own = {"run": session.run, "get": session.get, "call": session.call}, os.getpid()
    while True:
        order = channel.receive(seconds=3600)
        number = order.pop("number")
        answer = answers[order.pop("do")](**order)
        if os.getpid() != own:  # a child that the student's code forked and that has come back from it
            os._exit(0)
        try:
            channel.send(answer | {"number": number}, seconds=60)
        except (TypeError, ValueError, RecursionError) as error:
            channel.send({"error": _error(error), "number": number}, seconds=60)


# ---------------------------------------------------------------------------------------- limits


def _give_up_rights(uid: int | None) -> None:
    if uid is not None:
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
    die_with_parent()  # asked of the kernel anew, since a change of user forgets it


def _limit(limits: dict) -> None:
    """Hard limits that no process below this one can raise again."""
    running = sum(_is_mine(entry) for entry in os.scandir("/proc") if entry.name.isdigit())
    for name, most in {
        "RLIMIT_DATA": limits["memory"],
        "RLIMIT_FSIZE": limits["file"],
        "RLIMIT_NPROC": running + limits["processes"],
        "RLIMIT_NOFILE": 512,
        "RLIMIT_CORE": 0,
    }.items():
        resource.setrlimit(getattr(resource, name), (most, most))
    try:
        Path("/proc/self/oom_score_adj").write_text("1000")  # where memory runs out, this process goes first
    except OSError:
        pass


def _is_mine(entry: os.DirEntry) -> bool:
    try:
        return entry.stat().st_uid == os.getuid()
    except OSError:  # it ended meanwhile
        return False


def _probe(secrets: list[str]) -> dict:
    """What this process could do: the secrets it can list or read, and whether it has a network."""
    import torch  # noqa: F401 - so that an installation that cannot be read is seen here

    readable = [path for path in secrets if _readable(Path(path))]
    return {"readable": readable, "network": {name for _, name in socket.if_nameindex()} - {"lo"} != set()}


def _readable(path: Path) -> bool:
    try:
        return path.is_dir() and bool(os.listdir(path)) or path.is_file() and bool(path.read_bytes())
    except OSError:
        return False


def _write_fonts(fonts: dict[str, str]) -> None:
    """The list of fonts that Matplotlib would otherwise take seconds to make."""
    folder = Path(os.environ["MPLCONFIGDIR"])
    folder.mkdir(exist_ok=True)
    for name, text in fonts.items():
        (folder / name).write_text(text, "utf-8")


def _be_silent() -> None:
    """What is printed past Python goes nowhere."""
    nothing = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(nothing, number)


# ---------------------------------------------------------------------------------------- cells and calls


class Session:
    """The student's notebook as it runs, in IPython without a kernel."""

    def __init__(self):
        import torch  # noqa: F401 - once, before the clock of a cell runs
        from IPython.core.displaypub import CapturingDisplayPublisher
        from IPython.core.interactiveshell import InteractiveShell
        from traitlets.config import Config

        settings = Config()
        settings.HistoryManager.enabled = False
        self.shell = InteractiveShell.instance(config=settings)
        for name in ("showtraceback", "showsyntaxerror", "showindentationerror", "enable_gui"):
            setattr(self.shell, name, lambda *_, **__: None)  # the error itself is sent, and there are no windows
        self.publisher = CapturingDisplayPublisher()
        self.shell.display_pub = self.publisher
        self.pictures = 0
        signal.signal(signal.SIGALRM, _too_long)

    def run(self, source: str, seconds: float) -> dict:
        """Run a cell; what it printed and drew, and its error."""
        self.publisher.outputs.clear()
        printed = wire.Bounded()
        try:
            with _Clock(seconds), _Printed(printed):
                result = self.shell.run_cell(source, store_history=False)
            error = result.error_before_exec or result.error_in_exec
        except BaseException as fault:  # the clock rang outside of the cell, or the code broke IPython
            error = fault
        return {
            "text": printed.text(),
            "pictures": list(self._drawn()),
            "error": _error(error) if error is not None else None,
        }

    def _drawn(self):
        """Pictures as base64 of PNG."""
        for output in self.publisher.outputs:
            picture = output.get("data", {}).get("image/png")
            if isinstance(picture, bytes):
                from base64 import b64encode

                picture = b64encode(picture).decode()
            if isinstance(picture, str) and len(picture) <= PICTURE and self.pictures < PICTURES:
                self.pictures += 1
                yield picture

    def get(self, name: str) -> dict:
        """A variable: its value, or that it is a function, missing, or of a kind that cannot cross."""
        if name not in self.shell.user_ns:
            return {"kind": "missing"}
        value = self.shell.user_ns[name]
        try:
            wire.pack(value)
        except Exception:
            return {"kind": "function" if callable(value) else "other", "type": type(value).__name__}
        return {"kind": "value", "value": value}

    def call(self, name: str, args: tuple, kwargs: dict, seconds: float) -> dict:
        """Call a function; its result or its error, and the arguments where it changed them in place."""
        before = wire.pack(args)
        try:
            with _Clock(seconds), _Printed(wire.Bounded()):
                value = self.shell.user_ns[name](*args, **kwargs)
                wire.pack(value)
                return {"value": value} | ({} if wire.pack(args) == before else {"args": args})
        except BaseException as error:  # the student's sys.exit is an error of the student's
            return {"error": _error(error)}


def _too_long(*_) -> None:
    raise TookTooLong


class _Clock:
    """A limit on the seconds inside; the grader has its own, for code that stops this one."""

    def __init__(self, seconds: float):
        self.seconds = seconds

    def __enter__(self):
        signal.setitimer(signal.ITIMER_REAL, self.seconds, 2)  # again and again, until it is heard

    def __exit__(self, *_):
        signal.setitimer(signal.ITIMER_REAL, 0)


class _Printed:
    """Send what is printed inside to a place."""

    def __init__(self, place):
        self.place = place

    def __enter__(self):
        self.before = sys.stdout, sys.stderr
        sys.stdout = sys.stderr = self.place

    def __exit__(self, *_):
        sys.stdout, sys.stderr = self.before


def _error(error: BaseException) -> dict:
    """Type, message and the student's lines of a traceback, each of bounded length."""
    try:
        message = str(error)
    except BaseException:  # its __str__ is the student's
        message = ""
    if isinstance(error, TookTooLong):
        return {"type": "TimeoutError", "message": "it took longer than it may", "where": ""}
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "ipython-input" in frame.filename]
    where = "\n".join(f"line {frame.lineno}, in {frame.name}: {frame.line or ''}" for frame in frames[-3:])
    return {"type": type(error).__name__, "message": message[:MESSAGE], "where": where[:MESSAGE]}


if __name__ == "__main__":
    try:
        main()
    except (wire.Broken, TimeoutError):  # the grader has gone
        pass
