"""The grader's handle on a student's notebook: cells run and functions are called in a sandbox, tests run here.

A test cell is executed in this process, with the names that it does not define itself taken from the student's:
functions become proxies, whose calls run in the sandbox, and data is copied. So nothing that the student's code does to
torch, to the checks or to the files can change what a test does; the code decides about its own answers alone.

A process that dies is started anew, and the cells that ran before are run again, so that one bad cell does not cost
the tasks after it.
"""

import builtins
import signal
import time
from contextlib import contextmanager, redirect_stdout

from . import sandbox, wire

GRACE = 5  # seconds after a limit in which the student's process may still stop by itself
RESTARTS = 2
TEST = 120  # seconds of a test cell
SLOW = 2  # calls of a function that took too long, after which it is not called again
ENDED = "stopped: "  # how a message begins that says why a process was ended
STOPPING = (StopIteration, StopAsyncIteration, GeneratorExit)  # raised into a loop of a test, they would end it early


class StudentError(Exception):
    """An error of the student's code that is none of Python's own."""


class Fault(BaseException):
    """The grader's own, which must cost no student a point; not an Exception, so that no test takes it for theirs."""


class TestTookTooLong(BaseException):
    """Not an Exception, so that a test does not take it for an error of the student's function."""

    __test__ = False  # nothing for pytest to collect


class Student:
    """A student's notebook in a sandbox.

    Args:
        way: a name in ``sandbox.WAYS``.
        limits: what it may use.
        fonts: see :func:`sandbox.fonts`.
    """

    def __init__(self, way: str, limits: sandbox.Limits, *, fonts: dict | None = None):
        self.way, self.limits, self.fonts = way, limits, fonts
        self.left = limits.notebook  # seconds
        self._sandbox, self._starts, self._asked, self._ran, self._slow = None, 0, 0, [], {}

    def __enter__(self):
        self._start()
        return self

    def __exit__(self, *_):
        self._end()

    def run(self, source: str) -> dict:
        """Run a cell: what it printed, its pictures as base64, its error or None, its seconds."""
        try:
            answer = self._cell(source)
        except Stopped as stop:
            return {"text": "", "pictures": [], "error": stop.as_error(), "seconds": 0.0}
        self._ran.append(source)
        return answer

    def get(self, name: str):
        """The value of a variable, or a proxy of a function.

        Raises:
            NameError: there is none.
            TypeError: it is of a kind that cannot cross.
            StudentError: the process is gone for good.
        """
        answer = self._ask(self.limits.call, do="get", name=name)
        kind = answer.get("kind")
        if kind == "value":
            return answer["value"]
        if kind == "function":
            return self._proxy(name)
        if kind == "missing":
            raise NameError(f"name {name!r} is not defined; did you rename or delete it, or did its cell fail?")
        if "error" in answer:  # it has a kind, but is too large
            raise as_exception(answer["error"])
        raise TypeError(f"{name} is a {answer.get('type')}; a test can use functions, numbers, strings and tensors")

    def call(self, name: str, args: tuple, kwargs: dict):
        """Call a function of the student's with plain values and tensors.

        Raises:
            TypeError: an argument that cannot cross.
            Exception: what the function raised, where it is Python's own; else StudentError.
        """
        if self._slow.get(name, 0) >= SLOW:
            raise TimeoutError(f"{name} took longer than {self.limits.call:g} s before, and was not called again")
        wire.pack((args, kwargs))  # a fault of the test shows here
        answer = self._ask(self.limits.call, do="call", name=name, args=args, kwargs=kwargs)
        if "error" not in answer:
            write_back(args, answer.get("args"))
            return answer.get("value")
        if answer["error"]["type"] == "TimeoutError":
            self._slow[name] = self._slow.get(name, 0) + 1
        raise as_exception(answer["error"])

    def _proxy(self, name: str):
        def proxy(*args, **kwargs):
            return self.call(name, args, kwargs)

        proxy.__name__ = proxy.__qualname__ = name
        return proxy

    # ------------------------------------------------------------------------------------ the process

    def _ask(self, most: float, **order) -> dict:
        """An answer; an exception of the kind of a student's error where there is none."""
        try:
            self._revive()
            return self._exchange(order, most)
        except Stopped as stop:
            if order["do"] == "call" and stop.late:
                self._slow[order["name"]] = self._slow.get(order["name"], 0) + 1
            raise as_exception(stop.as_error()) from None

    def _cell(self, source: str) -> dict:
        self._revive()
        began = time.monotonic()
        answer = self._exchange({"do": "run", "source": source}, self.limits.cell)
        return cell_outputs(answer) | {"seconds": round(time.monotonic() - began, 2)}

    def _revive(self) -> None:
        """Have a process in which all cells so far have run, but for those that ended one."""
        if self._sandbox is not None:
            return
        if self._starts > RESTARTS:
            raise Stopped("not run: the code ended its process too often")
        self._start()
        for source in [*self._ran]:
            try:
                self._exchange({"do": "run", "source": source}, self.limits.cell)
            except Stopped:
                self._ran.remove(source)  # it ran once; now it does not
                raise

    def _start(self) -> None:
        self._starts += 1
        self._sandbox = sandbox.Sandbox(self.way, self.limits, fonts=self.fonts)
        import torch  # noqa: F401 - while the sandbox does the same

        try:
            self._sandbox.channel.receive(seconds=sandbox.START)
        except (wire.Broken, TimeoutError) as error:
            complaint = self._sandbox.complaint() or str(error)
            self._end()
            raise Fault(f"the sandbox did not start: {complaint}") from None
        except BaseException:
            self._end()
            raise

    def _exchange(self, order: dict, most: float) -> dict:
        """Send an order and wait for the answer; where none comes in time, end the process."""
        seconds = min(most, self.left)
        if seconds <= 0:
            raise Stopped(f"not run: the notebook has used up its {self.limits.notebook:g} s", late=True)
        self._asked += 1
        order = order | {"number": self._asked} | ({} if order["do"] == "get" else {"seconds": seconds})
        began = time.monotonic()
        try:
            self._sandbox.channel.send(order, seconds=seconds + GRACE)
            answer = self._sandbox.channel.receive(seconds=seconds + GRACE)
            number = answer.get("number") if isinstance(answer, dict) else None
            if type(number) is not int or number != self._asked:
                raise wire.Broken("the process sent what is no answer")
            return answer
        except TimeoutError:
            self._end()
            raise Stopped(f"{ENDED}it took longer than {seconds:.0f} s", late=True) from None
        except wire.Broken as error:
            reason = self._sandbox.killed or f"{error}: it ended itself, or wrote where it must not"
            self._end()
            raise Stopped(f"{ENDED}{reason}") from None
        except BaseException:  # a test's own limit: the answer would come to the next question
            self._end()
            raise
        finally:
            self.left -= time.monotonic() - began

    def _end(self) -> None:
        if self._sandbox is not None:
            self._sandbox.close()
            self._sandbox = None


class Stopped(Exception):
    """The student's process is gone, and why."""

    def __init__(self, reason: str, *, late: bool = False):
        super().__init__(reason)
        self.late = late

    def as_error(self) -> dict:
        return {"type": "TimeoutError" if self.late else "Stopped", "message": str(self), "where": ""}


def write_back(args: tuple, changed) -> None:
    """Give tensors the values that the function left in them, so that a test sees a change in place."""
    import torch

    if not isinstance(changed, tuple) or len(changed) != len(args):
        return
    for mine, theirs in zip(args, changed, strict=True):
        if isinstance(mine, torch.Tensor) and isinstance(theirs, torch.Tensor) and mine.shape == theirs.shape:
            mine.detach().copy_(theirs)


def cell_outputs(answer: dict) -> dict:
    """What a worker says of a cell, each part of the kind and size that it should be."""
    error, pictures = answer.get("error"), answer.get("pictures")
    return {
        "text": _text(answer.get("text"), 30_000),
        "pictures": [picture for picture in pictures if is_picture(picture)][:16] if isinstance(pictures, list) else [],
        "error": None if error is None else as_error(error),
    }


def as_error(error) -> dict:
    """Type, message and place, whatever came."""
    known = error if isinstance(error, dict) else {}
    return {key: _text(known.get(key), 2000) for key in ("type", "message", "where")}


def _text(value, most: int) -> str:
    return value[:most] if isinstance(value, str) else ""


def is_picture(text) -> bool:
    """Whether this is a PNG in base64 of bounded size.

    >>> is_picture("iVBORw0KGgo="), is_picture("<script>")
    (True, False)
    """
    known = isinstance(text, str) and text.startswith("iVBORw0KGgo") and len(text) <= 2 << 20
    return known and text.replace("+", "").replace("/", "").replace("\n", "").rstrip("=").isalnum() and text.isascii()


def as_exception(error: dict) -> Exception:
    """Python's own exception of that name, or StudentError with the name in its message.

    >>> as_exception({"type": "ValueError", "message": "no"})
    ValueError('no')
    >>> as_exception({"type": "StopIteration", "message": ""})
    StudentError('StopIteration')
    """
    error = as_error(error)
    kind = getattr(builtins, error["type"], None)
    if isinstance(kind, type) and issubclass(kind, Exception) and not issubclass(kind, (*STOPPING, UnicodeError)):
        return kind(error["message"])
    return StudentError(": ".join(filter(None, (error["type"], error["message"]))))


# ---------------------------------------------------------------------------------------- tests


class Names(dict):
    """The names of a test cell; those that it does not define are the student's."""

    def __init__(self, student: Student):
        super().__init__(__name__="__main__", __builtins__=builtins)
        self._student = student

    def __missing__(self, name: str):
        if hasattr(builtins, name):
            raise KeyError(name)  # so that Python takes its own, whatever the student called so
        value = self[name] = self._student.get(name)
        return value


def test(source: str, student: Student, *, seconds: float = TEST) -> dict:
    """Execute a test cell in this process: what it printed, and its error or None.

    Args:
        source: the teacher's code; it imports what it needs, and uses names of the student's freely.
        student: where those names come from.
        seconds: how long it may take, calls of the student's functions included.
    """
    printed, error, began = wire.Bounded(), None, time.monotonic()
    try:
        with redirect_stdout(printed), _clock(seconds):
            exec(compile(source, "<test>", "exec"), names := Names(student), names)
    except TestTookTooLong:
        error = {"type": "TimeoutError", "message": f"the test took longer than {seconds:g} s", "where": ""}
    except BaseException as fault:
        if isinstance(fault, KeyboardInterrupt | Fault):
            raise
        error = as_error({"type": type(fault).__name__, "message": _message(fault)})
    return {"text": printed.text(), "pictures": [], "error": error, "seconds": round(time.monotonic() - began, 2)}


test.__test__ = False


def _message(error: BaseException) -> str:
    """What an error says; of an assertion without words, that it failed."""
    return str(error).strip() or ("the result is not what it should be" if isinstance(error, AssertionError) else "")


@contextmanager
def _clock(seconds: float):
    def ring(*_):
        raise TestTookTooLong

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
