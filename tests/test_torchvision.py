"""torchvision beside a torch it was not compiled for: declared where it must be, left alone where it loads.

Each case runs in a process of its own, for what torch has once been told cannot be taken back.
"""

import subprocess
import sys

import pytest

#: A stand-in for torchvision: a package with or without a compiled library, which declares what the real one does.
GOOD = """
import torch
library = torch.library.Library("torchvision", "DEF")
library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
"""


def python(code: str, folder=None) -> str:
    """What the code prints; the folder comes first on the path."""
    path = f"import sys; sys.path.insert(0, {str(folder)!r})\n" if folder else ""
    done = subprocess.run([sys.executable, "-c", path + code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture
def broken(tmp_path):
    """A torchvision whose compiled library does not load."""
    package = tmp_path / "torchvision"
    package.mkdir()
    (package / "__init__.py").write_text("", "utf-8")
    (package / "_C.so").write_text("compiled for another torch", "utf-8")
    return tmp_path


@pytest.fixture
def good(broken):
    """A torchvision whose compiled library loads; `load_library` is replaced, for there is no compiler here."""
    code = f"import torch\nkept = {{}}\ntorch.ops.load_library = lambda path: exec({GOOD!r}, kept)"
    (broken / "good.py").write_text(code, "utf-8")
    return broken


NMS = "torch.ops.torchvision.nms.default._schema"


def test_a_broken_torchvision_is_declared_for(broken):
    said = python(f"import torch\nfrom stylemoments import _torchvision as t\nprint(t.KEPT is not None, {NMS})", broken)
    assert said == "True torchvision::nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"


def test_a_second_import_declares_nothing(broken):
    code = "from stylemoments import _torchvision as t\nprint(t.declare_missing())"
    assert python(code, broken) == "None"


def test_beside_a_good_torchvision_nothing_is_declared(good):
    code = f"import good, torch\nfrom stylemoments import _torchvision as t\nprint(t.KEPT, {NMS}.name)"
    assert python(code, good) == "None torchvision::nms"


def test_declaring_beside_a_good_one_would_fail(good):
    """Why the guard is there."""
    code = (
        f"import torch\nexec({GOOD!r})\nfrom stylemoments import _torchvision as t\nprint(t.KEPT)\n"
        "second = torch.library.Library('torchvision', 'FRAGMENT')\n"
        "try:\n    second.define(t.SCHEMAS[0])\nexcept RuntimeError as error:\n    print('refused')"
    )
    assert python(code, good).split() == ["None", "refused"]


def test_without_torchvision_nothing_is_said_to_load(tmp_path):
    code = (
        "import importlib.util\nfind = importlib.util.find_spec\n"
        "importlib.util.find_spec = lambda name: None if name == 'torchvision' else find(name)\n"
        "from stylemoments import _torchvision as t\nprint(t.compiled_operators_load())"
    )
    assert python(code) == "False"


def test_the_installed_torchvision_imports():
    code = "from stylemoments import _torchvision\nimport torchvision\nprint(torchvision.ops.nms.__name__)"
    assert python(code) == "nms"
