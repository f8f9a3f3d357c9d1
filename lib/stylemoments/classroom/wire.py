"""What crosses between the grader and a student's process: a JSON header and the raw bytes of tensors.

Nothing is unpickled and every length is checked, so that whatever the other side sends, it is a plain value or an
error. A value is None, a bool, int, float, complex or str, a list, tuple or dict with str keys of values, a tensor or
an array of numbers.
"""

import io
import json
import math
import socket
import struct
import time

HEADER, BODY = 16 << 20, 256 << 20  # bytes at most: of the JSON, of all tensors together
TEXT = 20_000  # characters of what a cell prints
SIZES = struct.Struct("!QQ")
DTYPES = (
    "bool uint8 int8 int16 int32 int64 float16 bfloat16 float32 float64 complex64 complex128 float8_e4m3fn float8_e5m2"
).split()


class Broken(Exception):
    """The other side is gone, or sent what is no frame."""


class Channel:
    """Frames over a socket, each within a number of seconds.

    Example:
        >>> here, there = map(Channel, socket.socketpair())
        >>> here.send({"do": "call", "args": (1, [2.5, None])}, seconds=1)
        >>> there.receive(seconds=1)
        {'do': 'call', 'args': (1, [2.5, None])}
    """

    def __init__(self, connection: socket.socket):
        self._socket = connection

    def send(self, value, *, seconds: float) -> None:
        """Send a value.

        Raises:
            TypeError: a value that cannot cross.
            ValueError: a value that is too large.
            Broken: the other side is gone.
            TimeoutError: it did not read in time.
        """
        tree, buffers = pack(value)
        header = json.dumps([tree, [len(buffer) for buffer in buffers]]).encode()
        body = sum(map(len, buffers))
        if len(header) > HEADER or body > BODY:
            raise ValueError(f"a value has at most {BODY >> 20} MB; got {(len(header) + body) / 1e6:.0f} MB")
        self._socket.settimeout(max(seconds, 1e-3))
        try:
            self._socket.sendall(b"".join([SIZES.pack(len(header), body), header, *buffers]))
        except TimeoutError:
            raise
        except OSError as error:
            raise Broken("the process is gone") from error

    def receive(self, *, seconds: float):
        """Wait for a value.

        Raises:
            Broken: the other side is gone, or sent what is no frame.
            TimeoutError: nothing whole came in time.
        """
        end = time.monotonic() + seconds
        header, body = SIZES.unpack(self._read(SIZES.size, end))
        if header > HEADER or body > BODY:
            raise Broken("the process sent more than an answer may have")
        try:
            tree, lengths = json.loads(self._read(header, end))
            if sum(lengths) != body or min(lengths, default=0) < 0:
                raise ValueError("lengths differ")
            return unpack(tree, [self._read(length, end) for length in lengths])
        except (ValueError, TypeError, LookupError, RecursionError, RuntimeError, AttributeError) as error:
            raise Broken("the process sent what is no answer") from error

    def _read(self, size: int, end: float) -> bytearray:
        data = bytearray(size)
        view, got = memoryview(data), 0
        while got < size:
            self._socket.settimeout(max(end - time.monotonic(), 1e-3))
            try:
                count = self._socket.recv_into(view[got:])
            except TimeoutError:
                raise
            except OSError as error:
                raise Broken("the process is gone") from error
            if not count:
                raise Broken("the process is gone")
            got += count
        return data


# ---------------------------------------------------------------------------------------- values


def pack(value) -> tuple:
    """A value as a tree for JSON and a list of bytes.

    Raises:
        TypeError: a value that cannot cross; the message names its type.

    Example:
        >>> pack({"a": (1, 2)})
        ({'dict': {'a': {'tuple': [1, 2]}}}, [])
    """
    buffers = []
    return _pack(value, buffers), buffers


def _pack(value, buffers: list):
    if value is None or isinstance(value, bool | int | float | str):
        return _plain(value)
    if isinstance(value, complex):
        return {"complex": [value.real, value.imag]}
    if isinstance(value, list | tuple):
        items = [_pack(item, buffers) for item in value]
        return {"tuple": items} if isinstance(value, tuple) else items
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {"dict": {str(key): _pack(item, buffers) for key, item in value.items()}}
    return _pack_array(value, buffers)


def _plain(value):
    """The value itself, of exactly the plain type."""
    for kind in (bool, int, float, str):
        if isinstance(value, kind):
            return kind(value)
    return None


def _pack_array(value, buffers: list) -> dict:
    import numpy as np
    import torch

    if isinstance(value, torch.Tensor):
        name = str(value.dtype).removeprefix("torch.")
        if value.layout != torch.strided or name not in DTYPES:
            raise TypeError(f"a tensor that crosses is dense, of a type out of {', '.join(DTYPES)}; got {name}")
        flat = value.detach().cpu().resolve_conj().resolve_neg().contiguous().reshape(-1)
        buffers.append(bytearray(flat.view(torch.uint8).numpy()))
        return {"tensor": name, "shape": list(value.shape)}
    if isinstance(value, np.generic):
        return _pack(value.item(), buffers)
    if isinstance(value, np.ndarray) and value.dtype.kind in "biufc":
        value = value.astype(value.dtype.newbyteorder("="))
        buffers.append(value.tobytes())
        return {"array": value.dtype.str, "shape": list(value.shape)}
    raise TypeError(
        f"got a {type(value).__name__}; a function takes and returns numbers, strings, tensors, arrays, and lists, "
        "tuples and dicts (with str keys) of those"
    )


def unpack(tree, buffers: list):
    """The value that :func:`pack` packed.

    Raises:
        ValueError, TypeError, LookupError, RecursionError, RuntimeError: it was not packed by :func:`pack`.

    Example:
        >>> unpack(*pack([1, (2.5, {"a": None})]))
        [1, (2.5, {'a': None})]
    """
    return _unpack(tree, iter(buffers))


def _unpack(tree, buffers):
    if isinstance(tree, list):
        return [_unpack(item, buffers) for item in tree]
    if not isinstance(tree, dict):
        return tree
    if "tuple" in tree:
        return tuple(_unpack(item, buffers) for item in tree["tuple"])
    if "dict" in tree:
        return {key: _unpack(item, buffers) for key, item in tree["dict"].items()}
    if "complex" in tree:
        return complex(*tree["complex"])
    return _unpack_array(tree, next(buffers, b""))


def _unpack_array(tree: dict, data):
    import numpy as np
    import torch

    shape = [int(side) for side in tree["shape"]]
    if len(shape) > 32 or min(shape, default=0) < 0:
        raise ValueError(f"no shape: {shape}")
    if "array" in tree:
        dtype = np.dtype(str(tree["array"]))
        if dtype.kind not in "biufc":
            raise ValueError(f"no array of numbers: {dtype}")
        return np.frombuffer(data, dtype).reshape(shape).copy()
    if tree["tensor"] not in DTYPES:
        raise ValueError(f"no type of a tensor: {tree['tensor']}")
    dtype = getattr(torch, tree["tensor"])
    if math.prod(shape) * dtype.itemsize != len(data):
        raise ValueError("shape and length differ")
    return (torch.frombuffer(data, dtype=dtype) if len(data) else torch.empty(0, dtype=dtype)).reshape(shape)


# ---------------------------------------------------------------------------------------- what is printed


class Bounded(io.TextIOBase):
    r"""A text that keeps its beginning.

    >>> printed = Bounded(limit=4)
    >>> printed.write("abcdef")
    6
    >>> printed.text()
    'abcd\n[2 more characters]'
    """

    def __init__(self, limit: int = TEXT):
        self.limit, self.kept, self.room, self.more = limit, [], limit, 0

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        kept = text[: self.room]
        if kept:
            self.kept.append(kept)
            self.room -= len(kept)
        self.more += len(text) - len(kept)
        return len(text)

    def text(self) -> str:
        return "".join(self.kept) + (f"\n[{self.more} more characters]" if self.more else "")
