"""What a sandbox holds back, what crosses the wire, and what a test cell sees of a student's process."""

import os
import socket
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from stylemoments.classroom import sandbox, student, wire

MEGABYTE = 1 << 20
SHORT = sandbox.Limits(cell=3, notebook=60, call=2, memory=2 * sandbox.GIGABYTE, file=64 * MEGABYTE)


@pytest.fixture(scope="module")
def way() -> str:
    """The best way of this machine."""
    try:
        return sandbox.choose([])
    except sandbox.NoSandbox as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def shared(way):
    """One student's process for tests that leave it running."""
    with student.Student(way, sandbox.Limits(cell=20, notebook=300, call=5, memory=2 * sandbox.GIGABYTE)) as theirs:
        yield theirs


def error_of(ran: dict) -> str:
    return f"{ran['error']['type']}: {ran['error']['message']}" if ran["error"] else ""


class TestWire:
    @pytest.mark.parametrize("value", [
        None, True, 3, -(2**80), 2.5, float("inf"), "ä\ud800", [], (1, [2.0, (None,)]), {"a": {"b": [1]}}, 1 + 2j,
    ])  # fmt: skip
    def test_plain_values_come_back(self, value):
        back = wire.unpack(*wire.pack(value))
        assert back == value and type(back) is type(value)

    @pytest.mark.parametrize("name", wire.DTYPES)
    @pytest.mark.parametrize("shape", [(), (0, 3), (2, 3)])
    def test_tensors_come_back(self, name, shape):
        value = torch.arange(6)[: max(torch.Size(shape).numel(), 0)].reshape(shape).to(getattr(torch, name))
        back = wire.unpack(*wire.pack(value))
        assert back.dtype == value.dtype and back.shape == value.shape
        assert torch.equal(back.to(torch.complex128), value.to(torch.complex128))

    def test_a_view_and_a_gradient_come_as_values(self):
        value = torch.rand(3, 4, requires_grad=True)
        back = wire.unpack(*wire.pack(value.T))
        assert torch.equal(back, value.T.detach()) and not back.requires_grad

    @pytest.mark.parametrize("value", [np.arange(6.0).reshape(2, 3), np.array(3, ">i4"), np.zeros((0, 2), bool)])
    def test_arrays_come_back(self, value):
        back = wire.unpack(*wire.pack(value))
        assert back.shape == value.shape and np.array_equal(back, value) and isinstance(back, np.ndarray)

    @pytest.mark.parametrize("value", [
        object(), {1: 2}, {1}, lambda: 0, np.array([object()]), torch.zeros(2).to_sparse(), torch.nn.ReLU(),
    ])  # fmt: skip
    def test_other_things_do_not_cross(self, value):
        with pytest.raises(TypeError):
            wire.pack([value])

    @pytest.mark.parametrize("frame", [
        wire.SIZES.pack(1 << 60, 0),
        wire.SIZES.pack(4, 0) + b"nope",
        wire.SIZES.pack(9, 0) + b"[[], [5]]",
        wire.SIZES.pack(100_000, 0) + b"[" * 100_000,
    ])  # fmt: skip
    def test_no_frame_is_broken(self, frame):
        here, there = socket.socketpair()
        with here, there:
            there.sendall(frame)
            with pytest.raises(wire.Broken):
                wire.Channel(here).receive(seconds=1)

    @pytest.mark.parametrize("tree", [
        {"tensor": "float32", "shape": [1 << 40]}, {"tensor": "float32", "shape": [-1]},
        {"tensor": "load", "shape": []}, {"array": "O", "shape": [1]}, {"array": "<f4", "shape": [7]},
        {"tensor": "qint8", "shape": [4]}, {"x": 1},
    ])  # fmt: skip
    def test_false_tensors_are_broken(self, tree):
        here, there = socket.socketpair()
        header = wire.json.dumps([tree, [4]]).encode()
        with here, there:
            there.sendall(wire.SIZES.pack(len(header), 4) + header + b"1234")
            with pytest.raises(wire.Broken):
                wire.Channel(here).receive(seconds=1)

    def test_silence_and_half_a_frame_run_out_of_time(self):
        here, there = socket.socketpair()
        with here, there:
            there.sendall(wire.SIZES.pack(100, 0) + b"[")
            with pytest.raises(TimeoutError):
                wire.Channel(here).receive(seconds=0.1)

    def test_what_is_too_large_is_not_sent(self):
        here, there = socket.socketpair()
        with here, there, pytest.raises(ValueError, match="at most"):
            wire.Channel(here).send(torch.zeros(wire.BODY + 1, dtype=torch.uint8), seconds=1)


class TestChoose:
    def test_a_way_without_walls_is_not_taken_by_itself(self, monkeypatch):
        monkeypatch.setattr(sandbox, "_try", lambda name, secrets: {"readable": ["/secret"], "network": True})
        monkeypatch.setattr(sandbox.shutil, "which", lambda tool: f"/usr/bin/{tool}")
        with pytest.raises(sandbox.NoSandbox, match="could read /secret"):
            sandbox.choose([Path("/secret")])
        assert sandbox.choose([Path("/secret")], wanted="rlimits") == "rlimits"

    def test_an_unknown_way_is_refused(self):
        with pytest.raises(ValueError, match="one of bubblewrap"):
            sandbox.choose([], wanted="prayer")

    def test_the_trial_reads_what_is_open(self, tmp_path):
        secret = tmp_path / "secret"
        secret.write_text("x")
        assert sandbox._try("rlimits", [secret])["readable"] == [str(secret)]

    def test_the_best_way_hides_a_file(self, way, tmp_path):
        secret = tmp_path / "secret"
        secret.write_text("x")
        tmp_path.chmod(0o700)
        assert sandbox._try(way, [secret, tmp_path]) == {"readable": [], "network": False}


class TestStudent:
    def test_cells_share_names_print_and_draw(self, shared):
        assert shared.run("a = 3\nprint('hello')")["text"] == "hello\n"
        assert "4" in shared.run("a + 1")["text"]
        drawn = shared.run("from matplotlib import pyplot as plt\nplt.plot([1, 2])\nplt.show()")
        assert drawn["error"] is None and len(drawn["pictures"]) == 1

    def test_magics_run(self, shared):
        assert error_of(shared.run("%matplotlib inline\n%time x = 1")) == ""

    @pytest.mark.parametrize("source, said", [
        ("def f(:", "SyntaxError"), ("1 / 0", "ZeroDivisionError: division by zero"),
        ("raise SystemExit(3)", "SystemExit"),
        ("class E(Exception):\n    def __str__(self):\n        raise ValueError\nraise E", "E: "),
    ])  # fmt: skip
    def test_errors_are_said_and_do_no_harm(self, shared, source, said):
        assert error_of(shared.run(source)).startswith(said)
        assert shared.run("print(7)")["text"] == "7\n"

    def test_output_is_bounded(self, shared):
        ran = shared.run("for _ in range(100):\n    print('y' * 100_000)")
        assert len(ran["text"]) < wire.TEXT + 100 and "more characters" in ran["text"]

    def test_values_are_copied_and_functions_are_called(self, shared):
        shared.run("import torch\nw = torch.arange(3)\ndef double(x, *, by=2):\n    return {'x': x * by}")
        assert shared.get("w").tolist() == [0, 1, 2]
        double = shared.get("double")
        assert double.__name__ == "double"
        assert double(torch.ones(2), by=3)["x"].tolist() == [3.0, 3.0]

    def test_a_change_in_place_is_seen(self, shared):
        shared.run("def bad(x):\n    x += 1\n    return x")
        x = torch.zeros(2)
        shared.get("bad")(x)
        assert x.tolist() == [1.0, 1.0]

    @pytest.mark.parametrize("body, error", [
        ("raise ValueError('no')", ValueError), ("raise NotImplementedError", NotImplementedError),
        ("raise StopIteration", student.StudentError), ("raise SystemExit", student.StudentError),
        ("return open", TypeError), ("return f(x)", RecursionError),
        ("return torch.zeros(1).expand(1 << 33)", RuntimeError),
    ])  # fmt: skip
    def test_errors_of_functions_are_raised_here(self, shared, body, error):
        shared.run(f"import torch\ndef f(x):\n    {body}")
        with pytest.raises(error):
            shared.get("f")(1)
        assert shared.run("print(8)")["text"] == "8\n"

    def test_missing_names_and_modules_say_so(self, shared):
        with pytest.raises(NameError, match="did you rename"):
            shared.get("nothing_like_it")
        shared.run("import torch as tool")
        with pytest.raises(TypeError, match="module"):
            shared.get("tool")

    def test_a_long_call_is_ended_and_after_two_no_more_tried(self, way):
        with student.Student(way, SHORT) as theirs:
            theirs.run("def f():\n    while True: pass")
            for _ in range(2):
                with pytest.raises(TimeoutError):
                    theirs.call("f", (), {})
            began = time.monotonic()
            with pytest.raises(TimeoutError, match="not called again"):
                theirs.call("f", (), {})
            assert time.monotonic() - began < 1

    def test_a_process_that_ends_comes_back_with_the_cells_before(self, way):
        with student.Student(way, SHORT) as theirs:
            theirs.run("a = 5")
            assert "ended itself" in error_of(theirs.run("import os\nos._exit(3)"))
            assert theirs.get("a") == 5

    def test_after_too_many_ends_nothing_runs(self, way):
        with student.Student(way, SHORT) as theirs:
            for _ in range(student.RESTARTS + 1):
                theirs.run("import os\nos._exit(3)")
            assert "too often" in error_of(theirs.run("1"))

    def test_a_notebook_uses_up_its_time(self, way):
        with student.Student(way, sandbox.Limits(cell=2, notebook=1)) as theirs:
            theirs.run("import time\ntime.sleep(5)")
            assert "used up" in error_of(theirs.run("1"))

    def test_nothing_is_left_behind(self, way):
        before = sandbox.descendants(os.getpid())
        with student.Student(way, SHORT) as theirs:
            theirs.run("import os, time\nif os.fork() == 0:\n    os.setsid()\n    os.fork()\n    time.sleep(99)")
            folder = theirs._sandbox.folder
        assert {*sandbox.descendants(os.getpid())} <= {*before} and not folder.exists()


class TestTestCells:
    def test_names_come_from_the_student_and_modules_from_here(self, shared):
        shared.run("torch = None\nn = 3\ndef add(x):\n    return x + n")
        ran = student.test("import torch\nassert add(torch.ones(2)).tolist() == [4, 4]\nprint(n)", shared)
        assert ran["error"] is None and ran["text"] == "3\n"

    def test_functions_of_the_test_see_the_names_too(self, shared):
        shared.run("n = 3")
        source = "def see():\n    return [n for _ in range(2)]\nassert see() == [3, 3]"
        assert student.test(source, shared)["error"] is None

    def test_builtins_are_the_teachers(self, shared):
        shared.run("sum = all = lambda *args: True\nAssertionError = Warning")
        assert student.test("assert all([False]), 'no'", shared)["error"]["message"] == "no"

    def test_a_loop_cannot_be_ended_by_the_student(self, shared):
        shared.run("def f(x):\n    raise StopIteration")
        assert student.test("for y in map(f, [1, 2]):\n    assert y == 0", shared)["error"] is not None

    def test_a_long_test_is_ended_and_the_next_one_runs(self, shared):
        shared.run("import time\ndef f():\n    time.sleep(3)\nn = 1")
        assert student.test("f()", shared, seconds=0.5)["error"]["type"] == "TimeoutError"
        assert student.test("assert n == 1", shared)["error"] is None
