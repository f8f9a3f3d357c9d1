"""Importing the package is cheap: rooms, and what they lean on, load when they are first touched."""

import subprocess
import sys

import pytest

import stylemoments

HEAVY = {"torch", "numpy", "matplotlib", "scipy", "PIL", "ipywidgets", "IPython"}


def loaded_after(code: str) -> set[str]:
    result = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport sys; print(*sys.modules)"], capture_output=True, text=True, check=True
    )
    return set(result.stdout.split())


def test_import_loads_nothing_heavy():
    assert loaded_after("import stylemoments") & HEAVY == set(), "import heavy packages inside the rooms only"


@pytest.mark.parametrize("room", stylemoments.__all__)
def test_every_room_opens_when_touched(room):
    assert f"stylemoments.{room}" in loaded_after(f"import stylemoments; stylemoments.{room}")


def test_the_rooms_are_the_files():
    import pkgutil

    files = {module.name for module in pkgutil.iter_modules(stylemoments.__path__)}
    assert {name for name in files if not name.startswith("_")} == set(stylemoments.__all__)


def test_an_unknown_room_is_named_with_the_known_ones():
    with pytest.raises(AttributeError, match="attic.*norms"):
        stylemoments.attic  # noqa: B018
