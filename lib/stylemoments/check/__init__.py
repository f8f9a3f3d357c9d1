r"""Visible checks of the assignments: a hint where something is wrong, never the answer.

Each assignment has a room of checks, each coding task a function in it. A check calls the student's function on inputs
drawn by a fixed seed, recognizes the usual mistakes by the values they give, and raises a :class:`Hint` that names the
mistake. If nothing is wrong it prints one line.

    >>> from stylemoments import check
    >>> check.seed("s1234567") == check.seed(" S1234567 ")
    True
"""

import copy
import hashlib
import math
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

ROOMS = ("dreambooth", "normalization", "style_aligned", "transfer")
__all__ = ["Hint", "call", "close", "compare", "passed", "seed", *ROOMS]


def __getattr__(room: str):
    if room in ROOMS:
        return import_module(f"{__name__}.{room}")
    raise AttributeError(f"stylemoments.check has no room {room!r}; its rooms are {', '.join(ROOMS)}")


def __dir__():
    return sorted([*globals(), *ROOMS])


class Hint(AssertionError):
    """What a check raises. The message names the likely mistake and never gives the answer."""


def seed(student: str) -> int:
    """The seed of a student's experiments: the same for the same student, everywhere.

    Args:
        student: a student number; case and spaces around it do not count.

    Returns:
        a whole number, at least 0 and below 2**31.

    Raises:
        Hint: the number is empty or not a string.

    Example:
        >>> 0 <= seed("s1234567") < 2**31
        True
    """
    if not isinstance(student, str):
        raise Hint(f'STUDENT must be text in quotes, such as STUDENT = "s1234567"; got {student!r}')
    name = student.strip().lower()
    if not name:
        raise Hint('write your student number into STUDENT, in the first code cell: STUDENT = "s1234567"')
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big") % 2**31


def call(function: Callable, *args: Any, like: Any = None) -> Any:
    """The result of a student's function, or a Hint that says what is wrong with its form.

    The function gets copies of the arguments, so that a check can go on using its own.

    Args:
        function: the student's.
        args: passed by position.
        like: a value with the form of a right result; its values do not count. A tensor asks for a tensor of its
            shape and dtype, a number for a finite number, a tuple, list or dict for one whose parts have the form of
            its parts. None asks for nothing.

    Returns:
        what the function returned. A tensor comes without its gradient.

    Raises:
        Hint: no function; an exception inside it; an argument changed in place; another type, shape, dtype or
            key; NaN or infinity.

    Example:
        >>> call(lambda x: 2 * x, 1.5, like=0.0)
        3.0
    """
    if not callable(function):
        raise Hint(f"a check needs your function itself, without brackets; got {type(function).__name__}")
    name = getattr(function, "__name__", "your function")
    given = copy.deepcopy(args)
    try:
        result = function(*given)
    except NotImplementedError:
        raise Hint(f"{name} is not written yet: it raises NotImplementedError") from None
    except Exception as error:
        raise Hint(f"{name} stopped with {type(error).__name__}: {error}") from error
    if not _same_arguments(args, given):
        raise Hint(f"{name} changes its input in place; make a new tensor and leave the caller's as it is")
    return result if like is None else _form(result, like, name)


def close(got: Any, wanted: Any, *, rtol: float = 1e-4, atol: float = 1e-5) -> bool:
    """Whether two results of one form have the same values, up to rounding.

    Example:
        >>> close((1.0, [2.0]), (1.0 + 1e-7, [2.0])), close(1.0, 1.1)
        (True, False)
    """
    if _is_tensor(wanted):
        import torch

        return got.shape == wanted.shape and torch.allclose(got.double(), wanted.double(), rtol=rtol, atol=atol)
    if isinstance(wanted, Mapping):
        return all(close(got[key], wanted[key], rtol=rtol, atol=atol) for key in wanted)
    if isinstance(wanted, list | tuple):
        pairs = zip(got, wanted, strict=True)
        return all(close(a, b, rtol=rtol, atol=atol) for a, b in pairs)
    if isinstance(wanted, float):
        return abs(got - wanted) <= atol + rtol * abs(wanted)
    return got == wanted


def compare(got: Any, wanted: Any, mistakes: Mapping[str, Any], *, otherwise: str, **tolerance: float) -> None:
    """Nothing where the values are right, else a Hint that names the mistake they fit.

    Args:
        got, wanted: two results of one form.
        mistakes: for each sentence the value that this mistake gives. A value that is close to the right one cannot be
            told from it and is passed over.
        otherwise: the sentence when no mistake fits.
        tolerance: rtol and atol of :func:`close`.

    Raises:
        Hint: the values are not right.

    Example:
        >>> compare(4.0, 2.0, {"the square, not the root": 4.0}, otherwise="another number")
        Traceback (most recent call last):
        ...
        stylemoments.check.Hint: the square, not the root
    """
    if close(got, wanted, **tolerance):
        return
    for sentence, value in mistakes.items():
        if close(got, value, **tolerance) and not close(value, wanted, **tolerance):
            raise Hint(sentence)
    raise Hint(otherwise)


def passed(task: str) -> None:
    """The one line of a check that found nothing wrong.

    Example:
        >>> passed("moments")
        moments: no mistake found
    """
    print(f"{task}: no mistake found")


# ---------------------------------------------------------------------------------------- helpers


def _is_tensor(value: Any) -> bool:
    return type(value).__module__.partition(".")[0] == "torch" and hasattr(value, "dtype")


def _same_arguments(before: tuple, after: tuple) -> bool:
    pairs = [(a, b) for a, b in zip(before, after, strict=True) if _is_tensor(a)]
    return all(a.shape == b.shape and bool(((a == b) | (a != a)).all()) for a, b in pairs)


def _form(got: Any, like: Any, name: str) -> Any:
    """The result, or a Hint: its type, shape, dtype, keys and finiteness are those of ``like``."""
    if _is_tensor(like):
        return _tensor(got, like, name)
    if isinstance(like, Mapping):
        return _dict(got, like, name)
    if isinstance(like, list | tuple):
        return _sequence(got, like, name)
    if isinstance(like, bool | str) or like is None:
        if not isinstance(got, type(like)):
            raise Hint(f"{name} must return a {type(like).__name__}; got {type(got).__name__}")
        return got
    return _number(got, like, name)


def _tensor(got: Any, like: Any, name: str) -> Any:
    if not _is_tensor(got):
        raise Hint(f"{name} must return a tensor; got {type(got).__name__}")
    if tuple(got.shape) != tuple(like.shape):
        raise Hint(f"{name} must return shape {tuple(like.shape)} here; got shape {tuple(got.shape)}")
    if got.dtype != like.dtype:
        raise Hint(f"{name} must return {like.dtype} here, the type of its input; got {got.dtype}")
    got = got.detach()
    if got.is_floating_point() and not bool(got.isfinite().all()):
        raise Hint(f"{name} returns NaN or infinity; look for a division by zero or the root of a negative number")
    return got


def _number(got: Any, like: float, name: str) -> Any:
    wanted = "whole number (int)" if isinstance(like, int) else "plain number (float)"
    if isinstance(got, bool) or not isinstance(got, int if isinstance(like, int) else int | float):
        raise Hint(f"{name} must return a {wanted}; got {type(got).__name__}. A tensor of one element has .item()")
    if not math.isfinite(got):
        raise Hint(f"{name} returns {got}; look for a division by zero or the root of a negative number")
    return got


def _sequence(got: Any, like: list | tuple, name: str) -> Any:
    kind = type(like).__name__
    if not isinstance(got, list | tuple) or len(got) != len(like):
        found = f"{len(got)} of them" if isinstance(got, list | tuple) else type(got).__name__
        raise Hint(f"{name} must return a {kind} of {len(like)} here; got {found}")
    return type(like)(_form(a, b, f"{name}, result {i},") for i, (a, b) in enumerate(zip(got, like, strict=True)))


def _dict(got: Any, like: Mapping, name: str) -> dict:
    if not isinstance(got, Mapping):
        raise Hint(f"{name} must return a dict; got {type(got).__name__}")
    if set(got) != set(like):
        raise Hint(f"{name} must return a dict with the keys {sorted(like)}; got {sorted(map(str, got))}")
    return {key: _form(got[key], like[key], f"{name}, key {key!r},") for key in like}
