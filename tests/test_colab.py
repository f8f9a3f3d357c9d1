"""A run as on Colab: a fresh environment, a stub of google.colab, and the notebook's own setup cell.

Colab has torch and the rest installed already; here the fresh environment borrows them from this one. The address in
the setup cell is redirected by git to a copy of this checkout, so that the cell runs unchanged and without a network.
"""

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest
from conftest import ROOT

sys.path.insert(0, str(ROOT / "book/_tools"))
import notebooks  # noqa: E402

RUN = """
import nbformat, sys
from nbclient import NotebookClient
notebook = nbformat.read(sys.argv[1], as_version=4)
for source in sys.argv[2:]:
    notebook.cells.append(nbformat.v4.new_code_cell(source))
NotebookClient(notebook, timeout=150, kernel_name="python3").execute()
print("".join(output.text for cell in notebook.cells[-2:] for output in cell.outputs))
"""


def git(*words, cwd):
    command = ["git", "-c", "user.name=t", "-c", "user.email=t@example.org", *words]
    return subprocess.run(command, cwd=cwd, check=True, capture_output=True, text=True).stdout


def publish(folder: Path) -> Path:
    """A repository with the files of this checkout, as they are now, at the tag that the setup cell asks for."""
    for name in git("ls-files", "-co", "--exclude-standard", "-z", cwd=ROOT).split("\0"):
        if name and (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    git("init", "-q", cwd=folder)
    git("add", "-A", cwd=folder)
    git("commit", "-qm", "published", cwd=folder)
    git("tag", notebooks.setup_source().rpartition("@")[2].rstrip('"'), cwd=folder)
    return folder


def fresh_environment(folder: Path) -> Path:
    """Its Python: no stylemoments, but what Colab has, and google.colab imported at start as Colab's kernels do."""
    venv.create(folder, with_pip=True)
    site = Path(sysconfig.get_path("purelib", vars={"base": str(folder), "platbase": str(folder)}))
    python = folder / "bin/python"
    subprocess.run([python, "-m", "pip", "uninstall", "-qqy", "setuptools"], check=True)  # old, and hides this one's
    (site / "what_colab_has.pth").write_text(sysconfig.get_path("purelib") + "\n")
    (site / "google/colab").mkdir(parents=True)
    (site / "google/colab/__init__.py").touch()
    (site / "sitecustomize.py").write_text("import google.colab\n")
    return python


@pytest.mark.skipif(os.name == "nt" or not (ROOT / ".git").exists(), reason="needs a git checkout on Linux or macOS")
def test_the_setup_cell_installs_this_checkout_and_the_notebook_runs(tmp_path):
    repository = publish(tmp_path / "published")
    python = fresh_environment(tmp_path / "colab")
    address = notebooks.setup_source().partition("git+")[2].rpartition("@")[0]
    environment = {
        **os.environ,
        "GIT_CONFIG_COUNT": "1",
        "GIT_CONFIG_KEY_0": f"url.file://{repository}.insteadOf",
        "GIT_CONFIG_VALUE_0": address,
        "PIP_NO_INDEX": "1",
        "PIP_NO_BUILD_ISOLATION": "0",  # pip reads 0 as "do not isolate": building needs no download
        "PYTHONPATH": "",
    }
    missing = subprocess.run([python, "-c", "import stylemoments"], env=environment, capture_output=True, cwd=tmp_path)
    assert missing.returncode != 0, "the fresh environment must not have the package before the setup cell ran"
    where = "import stylemoments, torch; print(stylemoments.__file__, torch.__version__)"
    result = subprocess.run(
        [python, "-c", RUN, ROOT / "notebooks/01-normalization.ipynb", where, notebooks.setup_source()],
        env=environment, cwd=tmp_path, capture_output=True, text=True,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-3000:]
    import torch

    file, version = result.stdout.split()  # the setup cell, run again at the end, prints nothing: it does nothing
    assert Path(file).is_relative_to(tmp_path / "colab"), "the package must come from the setup cell"
    assert version == torch.__version__, "the setup cell must not change torch"
