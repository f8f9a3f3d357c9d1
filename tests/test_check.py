"""What all visible checks share: seeds, calls of a student's function, comparisons, and rooms imported lazily."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from stylemoments import check

MASTERS = Path(__file__).parents[1] / "classroom/source"
CELL = re.compile(r"^```{code-cell} ipython3\n---\n(.*?)\n---\n(.*?)\n```$", re.MULTILINE | re.DOTALL)


def master(name):
    """The code cells of an assignment's master by grade id, or a skip where masters are kept elsewhere."""
    if not (MASTERS / name).exists():
        pytest.skip(f"the master {name} is kept elsewhere")
    found = [(yaml.safe_load(header), source) for header, source in CELL.findall((MASTERS / name).read_text("utf-8"))]
    return {header["nbgrader"]["grade_id"]: source for header, source in found}


def solved(cells, assignment, tasks):
    """The master's own functions, by name."""
    found = {"torch": torch}
    for task in tasks:
        exec(cells[f"{assignment}-{task.replace('_', '-')}"], found)
    return found


def run_hidden(cells, task, functions):
    """Run the hidden tests of a task on functions by name."""
    hidden = [source for name, source in cells.items() if name.startswith(f"{task}-hidden")]
    assert hidden, f"no hidden tests of {task}"
    for source in hidden:
        exec(source, dict(functions))


class TestSeed:
    def test_is_stable_and_ignores_case_and_spaces(self):
        assert check.seed("s1234567") == check.seed("  S1234567\n") == 37197428
        assert check.seed("s1234567") != check.seed("s1234568")

    def test_is_in_range(self):
        seeds = {check.seed(f"student {i}") for i in range(300)}
        assert len(seeds) == 300 and min(seeds) >= 0 and max(seeds) < 2**31

    @pytest.mark.parametrize("empty", ["", "  ", "\t\n"])
    def test_asks_for_the_number(self, empty):
        with pytest.raises(check.Hint, match="student number into STUDENT"):
            check.seed(empty)

    def test_asks_for_quotes(self):
        with pytest.raises(check.Hint, match="text in quotes"):
            check.seed(1234567)


class TestCall:
    x = torch.tensor([[1.0, 2.0], [3.0, 4.0]])

    def hint(self, function, like=None, *args):
        with pytest.raises(check.Hint) as caught:
            check.call(function, *(args or (self.x,)), like=self.x if like is None else like)
        return str(caught.value)

    def test_returns_what_the_function_returns(self):
        assert torch.equal(check.call(lambda x: x + 1, self.x, like=self.x), self.x + 1)
        assert check.call(lambda: "anything at all") == "anything at all"
        assert check.call(lambda x: {"a": [1, x]}, 2.0, like={"a": [0, 0.0]}) == {"a": [1, 2.0]}
        assert check.call(lambda x: [x, True, None], 2, like=(0.0, False, None)) == (2, True, None)

    def test_a_gradient_is_left_behind(self):
        assert not check.call(lambda x: x.requires_grad_() * 2, self.x, like=self.x).requires_grad

    def test_a_list_is_as_good_as_a_tuple(self):
        first, second = check.call(lambda x: [x, 1.0], self.x, like=(self.x, 0.0))
        assert torch.equal(first, self.x) and second == 1.0

    def test_names_what_is_no_function(self):
        assert "needs your function itself" in self.hint(3)

    def test_names_exceptions(self):
        def broken(x):
            return x.nothing

        def unwritten(x):
            raise NotImplementedError

        assert "broken stopped with AttributeError" in self.hint(broken)
        assert "unwritten is not written yet" in self.hint(unwritten)
        assert "stopped with TypeError" in self.hint(lambda: 1)

    def test_names_a_change_in_place(self):
        def in_place(x):
            x -= 1
            return x

        assert "in_place changes its input in place" in self.hint(in_place)
        assert self.x[0, 0] == 1.0

    @pytest.mark.parametrize(
        ("result", "sentence"),
        [
            (None, "must return a tensor; got NoneType"),
            (torch.zeros(2), r"must return shape (2, 2) here; got shape (2,)"),
            (torch.zeros(2, 2, dtype=torch.float64), "must return torch.float32"),
            (torch.full((2, 2), torch.nan), "NaN or infinity"),
        ],
    )
    def test_names_wrong_tensors(self, result, sentence):
        assert sentence in self.hint(lambda x: result)

    @pytest.mark.parametrize(
        ("result", "like", "sentence"),
        [
            (torch.tensor(1.0), 0.0, "must return a plain number (float); got Tensor"),
            (True, 0.0, "must return a plain number (float); got bool"),
            (1.5, 0, "must return a whole number (int); got float"),
            (float("nan"), 0.0, "returns nan"),
            (1, "", "must return a str; got int"),
            (1, True, "must return a bool; got int"),
            ((1, 2), (1, 2, 3), "must return a tuple of 3 here; got 2 of them"),
            (5, [1], "must return a list of 1 here; got int"),
            ([1.0, "a"], [0.0, 0.0], "result 1, must return a plain number"),
            (5, {"a": 1}, "must return a dict; got int"),
            ({"b": 1}, {"a": 1}, "the keys ['a']; got ['b']"),
            ({"a": "x"}, {"a": 1.0}, "key 'a', must return a plain number"),
        ],
    )
    def test_names_wrong_values(self, result, like, sentence):
        assert sentence in self.hint(lambda x: result, like)


class TestCompare:
    def test_close(self):
        tensor = torch.arange(3.0)
        assert check.close({"a": [tensor, 1.0, "x", 2]}, {"a": [tensor + 1e-7, 1.0, "x", 2]})
        assert not check.close({"a": [tensor, 1.0, "x", 2]}, {"a": [tensor, 1.0, "x", 3]})
        assert not check.close(tensor, tensor[:2])
        assert check.close(1.2, 1.0, atol=0.3) and not check.close(1.2, 1.0, atol=0.1)

    def test_right_values_pass(self):
        check.compare(1.0, 1.0, {"never": 1.0}, otherwise="never")

    def test_names_the_mistake_whose_value_it_is(self):
        with pytest.raises(check.Hint, match="^two$"):
            check.compare(2.0, 1.0, {"one": 1.0, "two": 2.0}, otherwise="other")

    def test_a_mistake_that_is_right_here_is_passed_over(self):
        with pytest.raises(check.Hint, match="^other$"):
            check.compare(1.00015, 1.0, {"the same": 1.0 + 5e-5}, otherwise="other")

    def test_passed_prints_one_line(self, capsys):
        check.passed("task")
        assert capsys.readouterr().out == "task: no mistake found\n"


class TestRooms:
    def test_an_unknown_room(self):
        with pytest.raises(AttributeError, match="its rooms are dreambooth, normalization"):
            check.nothing  # noqa: B018

    def test_all_names_are_there(self):
        assert set(check.__all__) <= set(dir(check))

    def test_rooms_come_when_touched(self):
        code = (
            "import sys; from stylemoments import check; check.seed('a')\n"
            "assert not [m for m in sys.modules if m.startswith(('torch.', 'stylemoments.check.'))], 'heavy'\n"
            "check.normalization.normalize, check.transfer.restyle\n"
        )
        subprocess.run([sys.executable, "-c", code], check=True)
