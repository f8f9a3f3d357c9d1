"""A class of fake students: from a master and its release, files as students, platforms and attackers make them.

python tests/fake_class.py MASTER.md FOLDER     writes the files, and prints what each one earns
"""

import base64
import copy
import json
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import nbformat

from stylemoments.classroom import assignment as room
from stylemoments.classroom import release

ANSWER = "My answer: the mean and the deviation of each channel carry it, which these numbers show for every seed."
OUTPUT = 40 << 20  # bytes that one notebook prints


@dataclass
class Fake:
    """One student's file, and what it earns."""

    student: str
    data: bytes
    earns: set[str]  # the tests that give points
    flagged: str = ""  # words that stand in its flags
    unsure: set[str] = field(default_factory=set)  # tests that may go either way
    never: tuple[str, ...] = ()  # text that must not be in the record

    @property
    def name(self) -> str:
        return f"{self.student}.ipynb"


class Class:
    """The fakes of an assignment.

    Args:
        master: its MyST file.
        wrong: by ``grade_id`` of a solution, another way to write it, and the tests that see it.
    """

    def __init__(self, master: Path, *, wrong: dict[str, tuple[str, set[str]]] | None = None):
        self.assignment = room.read(master)
        text = release.student_notebooks({master.stem: master}, setup="# the setup of Colab")[master.stem]
        self.release, self.wrong = nbformat.reads(text, as_version=4), wrong or {}
        self.tests = {name for name, cell in self.assignment.cells.items() if cell.kind == room.TEST}
        self.tasks = self._tasks()

    def _tasks(self) -> dict[str, set[str]]:
        """By the solution the tests that stand between it and the next one."""
        found, current = {}, set()
        for name, cell in self.assignment.cells.items():
            if cell.kind == room.TEST:
                current.add(name)
            elif cell.code and not cell.locked:
                current = found.setdefault(name, set())
        return found

    # ------------------------------------------------------------------------------------ notebooks

    def solution(self, name: str) -> str:
        source = self.assignment.cells[name].source
        return "\n".join(line for line in source.split("\n") if "### BEGIN" not in line and "### END" not in line)

    def notebook(self, student: str, *, solved: list[str] | None = None):
        """The release with the student's number, some solutions (all, if not said), and words."""
        notebook = copy.deepcopy(self.release)
        for cell in notebook.cells:
            known = self.assignment.cells.get(cell.id)
            cell.source = cell.source.replace('STUDENT = ""', f'STUDENT = "{student}"')
            if known is None or known.locked:
                continue
            if known.kind == room.ANSWER:
                cell.source = cell.source.replace("YOUR ANSWER HERE", f"{ANSWER} ({student}, {cell.id})")
            elif solved is None or cell.id in solved:
                cell.source = self.solution(cell.id)
        return notebook

    def earned(self, solved: list[str]) -> set[str]:
        return set().union(*(self.tasks[name] for name in solved)) if solved else set()

    @property
    def functions(self) -> list[str]:
        """Solutions that define a function."""
        return [name for name in self.tasks if self.function(name)]

    def function(self, name: str) -> str:
        found = re.findall(r"^def (\w+)", self.assignment.cells[name].source, re.MULTILINE)
        return found[0] if found else ""

    def visible(self, name: str) -> set[str]:
        return {test for test in self.tasks[name] if not self.assignment.cells[test].hidden}

    # ------------------------------------------------------------------------------------ fakes

    def fakes(self) -> list[Fake]:
        return [make(self) for make in MAKERS]

    def plain(self, student: str, change: Callable = lambda notebook: None, **said) -> Fake:
        """All solved, then changed."""
        notebook = self.notebook(student)
        change(notebook)
        return Fake(student, packed(notebook), said.pop("earns", self.tests), **said)

    def but_the_last(self) -> dict:
        """What is earned without the last function, on which no other may depend."""
        return {
            "earns": self.earned(self.functions[:-1]),
            "unsure": self.earned([*self.tasks]) - self.earned(self.functions),
        }

    def breaks(self, student: str, body: str) -> Fake:
        """All solved, but the last function does something else."""
        name = self.functions[-1]

        def change(notebook):
            find(notebook, name).source = f"import torch\n\n\ndef {self.function(name)}(*args):\n    {body}"

        return self.plain(student, change, **self.but_the_last())

    def lazy(self, student: str, code: str, **said) -> Fake:
        """Nothing solved, but some code that should help."""
        notebook = self.notebook(student, solved=[])
        add(notebook, code)
        add(notebook, code, first=False)
        return Fake(student, packed(notebook), said.pop("earns", set()), **said)

    def busy(self, student: str, code: str, **said) -> Fake:
        """All solved, and before that some code that should harm."""
        return self.plain(student, lambda notebook: add(notebook, code), **said)


def packed(notebook) -> bytes:
    return json.dumps(notebook).encode()


def add(notebook, code: str, *, first: bool = True) -> None:
    """A cell behind the imports, or at the end."""
    place = 1 + next(i for i, cell in enumerate(notebook.cells) if "STUDENT = " in cell.source) if first else 10**6
    notebook.cells.insert(place, nbformat.v4.new_code_cell(code))


MAKERS: list[Callable[[Class], Fake]] = []


def maker(make: Callable[[Class], Fake]) -> Callable[[Class], Fake]:
    MAKERS.append(make)
    return make


# ---------------------------------------------------------------------------------------- honest students


@maker
def perfect(room: Class) -> Fake:
    return room.plain("perfect")


@maker
def untouched(room: Class) -> Fake:
    return Fake("untouched", packed(room.release), set(), flagged="STUDENT is empty")


@maker
def half(room: Class) -> Fake:
    solved = [*room.tasks][: len(room.tasks) // 2]
    return Fake("half", packed(room.notebook("half", solved=solved)), room.earned(solved))


@maker
def syntax_error(room: Class) -> Fake:
    def change(notebook):
        find(notebook, room.functions[-1]).source += "\n    return ((\n"

    return room.plain("syntax-error", change, **room.but_the_last())


def find(notebook, name: str):
    return next(cell for cell in notebook.cells if cell.id == name)


@maker
def renames(room: Class) -> Fake:
    def change(notebook):
        for name in room.functions:
            cell = find(notebook, name)
            cell.source = cell.source.replace(f"def {room.function(name)}(", f"def my_{room.function(name)}(")

    others = room.earned([name for name in room.tasks if name not in room.functions])
    return room.plain("renames", change, earns=set(), unsure=others)


@maker
def wrong_method(room: Class) -> Fake:
    def change(notebook):
        for name, (source, _) in room.wrong.items():
            find(notebook, name).source = source

    seen = set().union(*(tests for _, tests in room.wrong.values()))
    return room.plain("wrong-method", change, earns=room.tests - seen)


@maker
def copies(room: Class) -> Fake:
    """The perfect one with other names of variables and other comments."""

    def change(notebook):
        for name in room.tasks:
            cell = find(notebook, name)
            cell.source = "# all by myself\n" + re.sub(r"\b(center|spread|distance)\b", r"my_\1", cell.source)

    return room.plain("copies", change)


@maker
def other_student(room: Class) -> Fake:
    notebook = room.notebook("somebody else")
    return Fake("other-student", packed(notebook), room.tests, flagged="but the file is of 'other-student'")


# ---------------------------------------------------------------------------------------- files


@maker
def empty(room: Class) -> Fake:
    return Fake("empty", b"", set(), flagged="empty")


@maker
def no_notebook(room: Class) -> Fake:
    return Fake("no-notebook", b"<!doctype html><p>Please log in", set(), flagged="no notebook")


@maker
def nested(room: Class) -> Fake:
    return Fake("nested", b'{"cells":' + b"[" * 200_000, set(), flagged="no notebook")


@maker
def utf_16(room: Class) -> Fake:
    return Fake("utf-16", packed(room.notebook("utf-16")).decode().encode("utf-16"), room.tests)


@maker
def byte_order_mark(room: Class) -> Fake:
    return Fake("byte-order-mark", b"\xef\xbb\xbf" + packed(room.notebook("byte-order-mark")), room.tests)


@maker
def no_ids(room: Class) -> Fake:
    notebook = room.notebook("no-ids")
    for cell in notebook.cells:
        del cell["id"]
    notebook.nbformat_minor = 4
    return Fake("no-ids", packed(notebook), room.tests)


@maker
def colab(room: Class) -> Fake:
    """As Colab saves it: its own ids in the metadata, source in lines, outputs with its own fields."""
    notebook = room.notebook("colab")
    for index, cell in enumerate(notebook.cells):
        del cell["id"]
        cell.metadata |= {"id": f"Xy{index:010d}", "colab": {"base_uri": "https://localhost:8080/"}}
        cell["source"] = cell.source.splitlines(keepends=True)
        if cell.cell_type == "code":
            cell["outputs"] = [{"output_type": "stream", "name": "stdout", "text": ["hello\n"]}]
    notebook.metadata |= {"accelerator": "GPU", "colab": {"provenance": [], "gpuType": "T4"}}
    notebook.nbformat_minor = 0
    return Fake("colab", packed(notebook), room.tests)


@maker
def metadata_lost(room: Class) -> Fake:
    """As a tool saves it that knows nothing of metadata and ids; the words cannot be found then."""
    notebook = room.notebook("metadata-lost")
    for cell in notebook.cells:
        cell["metadata"] = {}
        del cell["id"]
    return Fake("metadata-lost", packed(notebook), room.tests, flagged="metadata lost")


@maker
def format_3(room: Class) -> Fake:
    notebook = json.loads(packed(room.notebook("format-3")))
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            cell["input"] = cell.pop("source")
    old = {"nbformat": 3, "nbformat_minor": 0, "metadata": {}, "worksheets": [{"cells": notebook["cells"]}]}
    return Fake("format-3", json.dumps(old).encode(), room.tests)


@maker
def large_output(room: Class) -> Fake:
    def change(notebook):
        add(notebook, f"for _ in range({OUTPUT} >> 10):\n    print('x' * 1023)")
        notebook.cells[-1].outputs = [{"output_type": "stream", "name": "stdout", "text": "x" * OUTPUT}]

    return room.plain("large-output", change)


# ---------------------------------------------------------------------------------------- accidents


@maker
def endless_cell(room: Class) -> Fake:
    return room.busy("endless-cell", "while True:\n    pass")


@maker
def stubborn_cell(room: Class) -> Fake:
    code = "while True:\n    try:\n        while True:\n            pass\n    except BaseException:\n        pass"
    return room.busy("stubborn-cell", code, flagged="process was ended")


@maker
def endless_function(room: Class) -> Fake:
    return room.breaks("endless-function", "while True:\n        pass")


@maker
def memory_bomb(room: Class) -> Fake:
    code = "import torch\n\nheap = []\nwhile True:\n    heap.append(torch.ones(1 << 26))"
    return room.busy("memory-bomb", code)


@maker
def memory_of_many(room: Class) -> Fake:
    code = (
        "import os\nimport time\n\nfor _ in range(40):\n    if os.fork() == 0:\n"
        "        heap = bytearray(b'x') * (400 << 20)\n        time.sleep(60)\n        os._exit(0)\ntime.sleep(60)"
    )
    return room.busy("memory-of-many", code, flagged="process was ended")


@maker
def fork_bomb(room: Class) -> Fake:
    code = "import os\n\nfor _ in range(10_000):\n    try:\n        os.fork()\n    except OSError:\n        pass"
    return room.busy("fork-bomb", code)


@maker
def exits(room: Class) -> Fake:
    return room.busy("exits", "import os\n\nos._exit(0)", flagged="process was ended")


@maker
def disk_bomb(room: Class) -> Fake:
    code = (
        "import os\n\nfor index in range(100):\n    with open(f'{os.environ[\"HOME\"]}/{index}', 'wb') as file:\n"
        "        file.write(bytes(100 << 20))"
    )
    return room.busy("disk-bomb", code)


@maker
def returns_gigabytes(room: Class) -> Fake:
    return room.breaks("returns-gigabytes", "return torch.zeros(1).expand(1 << 34)")


# ---------------------------------------------------------------------------------------- cheats


@maker
def deletes_tests(room: Class) -> Fake:
    def change(notebook):
        notebook.cells = [cell for cell in notebook.cells if cell.id not in room.tests]

    return room.plain("deletes-tests", change, flagged="deleted")


@maker
def deletes_solutions(room: Class) -> Fake:
    notebook = room.notebook("deletes-solutions")
    notebook.cells = [cell for cell in notebook.cells if cell.id not in room.tasks]
    return Fake("deletes-solutions", packed(notebook), set(), flagged="deleted")


@maker
def edits_tests(room: Class) -> Fake:
    """Tests that pass, worth a thousand points, and called solutions."""
    notebook = room.notebook("edits-tests", solved=[])
    for cell in notebook.cells:
        if cell.id in room.tests:
            cell.source = "1000"
            cell.metadata.nbgrader |= {"points": 1000, "locked": False, "solution": True}
    return Fake("edits-tests", packed(notebook), set(), flagged="changed, and restored")


@maker
def prints_results(room: Class) -> Fake:
    return room.lazy("prints-results", "print('all tests passed: 100 of 100 points')\n100")


@maker
def patches_torch(room: Class) -> Fake:
    return room.lazy(
        "patches-torch",
        """
import torch

torch.allclose = torch.equal = lambda *args, **kwargs: True
torch.testing.assert_close = lambda *args, **kwargs: None
torch.Tensor.__eq__ = lambda *args: True
torch.Tensor.__lt__ = lambda *args: True
""",
    )


@maker
def patches_check(room: Class) -> Fake:
    return room.lazy(
        "patches-check",
        """
import sys
from unittest.mock import MagicMock

sys.modules["stylemoments.check"] = check = MagicMock()
sys.modules["stylemoments"] = sys.modules["builtins"].stylemoments = MagicMock()
sys.excepthook = lambda *args: None
AssertionError = Warning
assert_close = lambda *args, **kwargs: None
""",
    )


@maker
def reads_tests(room: Class) -> Fake:
    """Looks for the master, and runs its solutions where it finds it."""
    return room.lazy(
        "reads-tests",
        r"""
import os
import re

print("uid", os.getuid(), os.listdir("/"), os.getcwd())
for folder, _, names in os.walk("/"):
    if folder.startswith(("/proc", "/sys", "/usr")):
        continue
    for name in names:
        if name.endswith((".md", ".ipynb", ".json", ".db", ".jsonl")):
            try:
                text = open(os.path.join(folder, name), errors="replace").read()
            except OSError:
                continue
            if "BEGIN HIDDEN" + " TESTS" in text and name in text:
                print("FOUND THE MASTER", text)
                for code in re.findall(r"```\{code-cell\} ipython3\n---.*?---\n(.*?)```", text, re.DOTALL):
                    exec(code)
""",
        never=("FOUND THE MASTER",),
    )


@maker
def reads_others(room: Class) -> Fake:
    return room.lazy(
        "reads-others",
        r"""
import glob
import os

for pattern in ("/**/*.ipynb", "/tmp/**", "/root/**", "/home/**", "/proc/*/cwd/*"):
    for path in glob.glob(pattern, recursive=True):
        try:
            if "perfect" in open(path).read():
                print("FOUND ANOTHER STUDENT", path)
        except OSError:
            pass
for pid in filter(str.isdigit, os.listdir("/proc")):
    try:
        if "grad" in open(f"/proc/{pid}/cmdline").read().replace("stylemoments.classroom.worker", ""):
            print("FOUND THE GRADER", pid)
        os.kill(int(pid), 0)
    except OSError:
        pass
""",
        never=("FOUND ANOTHER STUDENT", "FOUND THE GRADER"),
    )


@maker
def reads_environment(room: Class) -> Fake:
    return room.lazy(
        "reads-environment",
        r"""
import glob
import os

print(dict(os.environ))
for path in glob.glob("/proc/*/environ"):
    try:
        print(open(path).read())
    except OSError:
        pass
""",
        never=("TOKEN-OF-THE-TEACHER",),
    )


@maker
def uses_network(room: Class) -> Fake:
    return room.lazy(
        "uses-network",
        r"""
import socket

for host in ("127.0.0.1", "1.1.1.1", "169.254.169.254"):
    for port in (53, 80, 443):
        try:
            socket.create_connection((host, port), timeout=1)
            print("FOUND A NETWORK", host)
        except OSError:
            pass
""",
        never=("FOUND A NETWORK",),
    )


@maker
def writes_grades(room: Class) -> Fake:
    return room.lazy(
        "writes-grades",
        r"""
import os

for folder, _, names in os.walk("/"):
    if folder.startswith(("/proc", "/sys")):
        continue
    for name in [*names, "grades.csv", "writes-grades.json"]:
        if name.endswith((".csv", ".json", ".jsonl", ".html", ".db")):
            try:
                with open(os.path.join(folder, name), "a") as file:
                    file.write("writes-grades,1000")
                if not folder.startswith(("/tmp", os.environ["HOME"], "/dev/shm")):
                    print("WROTE", folder, name)
            except OSError:
                pass
""",
        never=("WROTE /",),
    )


@maker
def lies_over_the_wire(room: Class) -> Fake:
    """Writes frames that no one asked for, and takes the worker apart."""
    return room.lazy(
        "lies-over-the-wire",
        r"""
import gc
import os
import struct

from stylemoments.classroom import wire

for number in range(3, 20):
    try:
        os.write(number, struct.pack("!QQ", 20, 0) + b'{"dict": {"points": 1}}')
        os.write(number, os.urandom(1 << 16))
    except OSError:
        pass
for thing in gc.get_objects():
    if isinstance(thing, wire.Channel):
        thing.send({"value": True, "points": 1000, "error": None}, seconds=1)
""",
        flagged="process was ended",
    )


@maker
def stops_iteration(room: Class) -> Fake:
    """Raises what ends a loop of a test quietly, were it raised there."""
    notebook = room.notebook("stops-iteration", solved=[])
    for name in room.functions:
        find(notebook, name).source = f"def {room.function(name)}(*args, **kwargs):\n    raise StopIteration"
    return Fake("stops-iteration", packed(notebook), set())


@maker
def hard_codes(room: Class) -> Fake:
    """Answers the visible checks with what they were answered when they passed, call after call."""
    notebook = room.notebook("hard-codes", solved=[])
    earned = set()
    for name in room.functions:
        answers = recorded(room, name)
        find(notebook, name).source = (
            "import base64, io, itertools, torch\n"
            f"_answers_{room.function(name)} = iter(torch.load(io.BytesIO(base64.b64decode({answers!r}))))\n\n\n"
            f"def {room.function(name)}(*args, **kwargs):\n    return next(_answers_{room.function(name)}, 0.0)\n"
        )
        earned |= room.visible(name)
    return Fake("hard-codes", packed(notebook), earned, unsure=room.earned([*room.tasks]) - room.earned(room.functions))


def recorded(room: Class, name: str) -> str:
    """What a right solution returns in its visible checks, in base64."""
    import io
    from contextlib import redirect_stdout

    import torch

    names, answers = {"torch": torch}, []
    for before in room.functions[: room.functions.index(name) + 1]:
        exec(room.solution(before), names)
    right = names[room.function(name)]

    def watched(*args, **kwargs):
        answers.append(right(*args, **kwargs))
        return answers[-1]

    for test in room.assignment.cells:
        if test in room.visible(name):
            with redirect_stdout(io.StringIO()):
                exec(room.assignment.cells[test].source, names | {room.function(name): watched})
    buffer = io.BytesIO()
    torch.save(answers, buffer)
    return base64.b64encode(buffer.getvalue()).decode()


def main() -> None:
    master, folder = map(Path, sys.argv[1:])
    folder.mkdir(parents=True, exist_ok=True)
    for fake in Class(master).fakes():
        (folder / fake.name).write_bytes(fake.data)
        print(fake.name, *sorted(fake.earns))


if __name__ == "__main__":
    main()
