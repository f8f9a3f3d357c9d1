"""Make the notebooks: run book/chapters/NAME.md and write notebooks/NAME.ipynb without pictures.

    python book/_tools/notebooks.py all                  every chapter
    python book/_tools/notebooks.py 01-normalization     one
    python book/_tools/notebooks.py --check              run nothing; say which pairs differ, by content

The notebook has the cells of the chapter, plus one: before the first code cell stands the Colab setup, the same in
every notebook. It installs the package from the address in _config.yml, at the tag of the version in pyproject.toml.
"""

import argparse
import hashlib
import sys
import tomllib
from pathlib import Path

import jupytext
import nbformat
import yaml
from nbclient import NotebookClient

from stylemoments.claims import MIME

ROOT = Path(__file__).parents[2]
CHAPTERS, NOTEBOOKS = ROOT / "book/chapters", ROOT / "notebooks"
CELL_TIMEOUT = 150  # seconds

SETUP = """\
# On Colab this installs the book's package; anywhere else it does nothing.
import importlib.util
import sys

if "google.colab" in sys.modules and importlib.util.find_spec("stylemoments") is None:
    %pip install --quiet "stylemoments[diffusion] @ git+{address}@{tag}"
"""


def setup_source() -> str:
    """The Colab setup cell of every notebook."""
    address = yaml.safe_load((ROOT / "_config.yml").read_text())["repository"]["url"]
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    return SETUP.format(address=address, tag=f"v{version}").strip()


def read_chapter(path: Path) -> nbformat.NotebookNode:
    """The chapter as a notebook that has not run: the setup cell added, ids made from the cells' contents."""
    notebook = jupytext.read(path)
    first = next(i for i, cell in enumerate(notebook.cells) if cell.cell_type == "code")
    notebook.cells.insert(first, nbformat.v4.new_code_cell(setup_source()))
    seen = {}
    for cell in notebook.cells:
        digest = hashlib.sha256(f"{cell.cell_type}\n{cell.source}".encode()).hexdigest()[:8]
        seen[digest] = seen.get(digest, 0) + 1
        cell.id = digest if seen[digest] == 1 else f"{digest}-{seen[digest]}"
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
        "colab": {"provenance": []},
    }
    return notebook


def keep_text(output) -> bool:
    """Reduce an output to its text (and a claim's record); False where nothing of it is kept."""
    if output.output_type == "stream":
        return output.name == "stdout"
    if output.output_type == "error" or "image/png" in output.data:
        return False
    output.data = {mime: value for mime, value in output.data.items() if mime in ("text/plain", MIME)}
    output.metadata = {}
    return bool(output.data)


def clean(notebook: nbformat.NotebookNode) -> None:
    """Drop pictures, widgets and times; refuse a picture without alt text."""
    for cell in notebook.cells:
        if cell.cell_type != "code":
            continue
        drawn = any("image/png" in output.get("data", {}) for output in cell.outputs)
        if drawn and not cell.metadata.get("mystnb", {}).get("image", {}).get("alt"):
            raise SystemExit(
                "This cell draws a picture and has no alt text. Give the cell the metadata\n"
                f"  mystnb: {{image: {{alt: what a reader who cannot see it should know}}}}\n\n{cell.source}"
            )
        cell.outputs = [output for output in cell.outputs if keep_text(output)]
        cell.metadata.pop("execution", None)
    notebook.metadata["language_info"] = {"name": "python"}
    notebook.metadata.pop("widgets", None)


def make(path: Path) -> None:
    """Run one chapter and write its notebook; an interrupted or failing run leaves the old notebook."""
    notebook = read_chapter(path)
    NotebookClient(
        notebook, timeout=CELL_TIMEOUT, kernel_name="python3", resources={"metadata": {"path": NOTEBOOKS}}
    ).execute()
    clean(notebook)
    target = NOTEBOOKS / f"{path.stem}.ipynb"
    new = target.with_suffix(".ipynb.new")
    nbformat.write(notebook, new)
    new.replace(target)
    print(f"wrote {target.relative_to(ROOT)}")


def cells(notebook: nbformat.NotebookNode) -> list[tuple]:
    """What makes two notebooks the same: kind, source and metadata of each cell."""
    return [(cell.cell_type, cell.source, dict(cell.metadata)) for cell in notebook.cells]


def differing() -> list[str]:
    """Names of the chapters whose notebook is missing or has other cells, and of notebooks without a chapter."""
    sources, targets = ({path.stem: path for path in folder.glob(f"*.{end}")}
                        for folder, end in ((CHAPTERS, "md"), (NOTEBOOKS, "ipynb")))  # fmt: skip
    both = sources.keys() & targets.keys()
    changed = {n for n in both if cells(read_chapter(sources[n])) != cells(nbformat.read(targets[n], as_version=4))}
    return sorted((sources.keys() ^ targets.keys()) | changed)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="chapters to run, or all")
    parser.add_argument("--check", action="store_true", help="run nothing; fail where chapter and notebook differ")
    options = parser.parse_args()
    known = sorted(path.stem for path in CHAPTERS.glob("*.md"))
    if options.check:
        names = differing()
        sys.exit(f"chapter and notebook differ: {', '.join(names)}. Run `make notebooks`" if names else 0)
    unknown = set(options.names) - {"all", *known}
    if unknown or not options.names:
        parser.error(f"name chapters to run, out of: all, {', '.join(known)}; got {', '.join(unknown) or 'none'}")
    for name in known:
        if name in options.names or "all" in options.names:
            make(CHAPTERS / f"{name}.md")


if __name__ == "__main__":
    main()
