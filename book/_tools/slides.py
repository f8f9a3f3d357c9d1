"""Make the slide decks: book/slides/NAME.md becomes _build/slides/NAME.html, with the figures of the chapters.

    python book/_tools/slides.py

A deck is a MyST notebook that has text only; `+++` begins the next slide. Four kinds of line do more than text:

    figure: 01-normalization / phrase     the figure of that chapter whose alt text has the phrase
    claim: the-id                         a claim of book/claims.yml, with its verdict and result
    answer:                               what follows appears at the next press of a key
    notes:                                what follows, to the end of the slide, is for the speaker

No picture is stored. They come from the runs that `make book` keeps in _build/.jupyter_cache; a chapter that is not
there is run, and kept there, too.
"""

import base64
import html
import re
import shutil
import struct
import sys
import tomllib
from collections.abc import Callable
from functools import cache
from pathlib import Path

import jupytext
import nbformat
import yaml
from jupyter_cache import get_cache
from jupyter_cache.base import CacheBundleIn
from jupyter_cache.executors.utils import single_nb_execution
from nbconvert import SlidesExporter

ROOT = Path(__file__).parents[2]
DECKS, NOTEBOOKS, OUT = ROOT / "book/slides", ROOT / "notebooks", ROOT / "_build/slides"
sys.path.insert(0, str(ROOT / "book/_ext"))
import moments  # noqa: E402 - the book's extension is no package

KINDS = {"answer": "fragment", "notes": "notes"}  # in the words of nbconvert


def alts(chapter: str) -> dict[int, str]:
    """The alt texts of a chapter's figures, by the number of their cell."""
    path = NOTEBOOKS / f"{chapter}.ipynb"
    if not path.exists():
        known = ", ".join(sorted(path.stem for path in NOTEBOOKS.glob("*.ipynb")))
        raise LookupError(f"there is no chapter {chapter!r} in notebooks/; name one of {known}")
    cells = enumerate(nbformat.read(path, 4).cells)
    found = {i: cell.metadata.get("mystnb", {}).get("image", {}).get("alt") for i, cell in cells}
    return {i: " ".join(alt.split()) for i, alt in found.items() if alt}


def find(mark: str) -> tuple[str, int, str]:
    """The chapter, the cell and the alt text of the figure that a mark, ``"chapter / phrase"``, names.

    Raises LookupError unless exactly one figure of that chapter has the phrase in its alt text.
    """
    chapter, _, phrase = (part.strip() for part in mark.partition("/"))
    known = alts(chapter)
    found = [i for i, alt in known.items() if phrase and phrase in alt]
    if len(found) != 1:
        raise LookupError(
            f"figure: {mark}: the phrase must stand in the alt text of one figure of {chapter}, and stands in "
            f"{len(found)}. Take words that only one of these has:\n" + "\n".join(f"  {alt}" for alt in known.values())
        )
    return chapter, found[0], known[found[0]]


def cache_folder() -> Path:
    """Where `make book` keeps the runs of the chapters."""
    return ROOT / "_build/.jupyter_cache" / moments.fingerprint(ROOT, "requirements.txt", "lib/**/*.py")


@cache
def executed(chapter: str) -> nbformat.NotebookNode:
    """The chapter with its outputs, from the cache that the book is built from; run and kept there if it is missing."""
    runs = get_cache(cache_folder())
    path = NOTEBOOKS / f"{chapter}.ipynb"
    notebook = nbformat.read(path, 4)
    try:
        return runs.merge_match_into_notebook(notebook)[1]
    except KeyError:
        print(f"running {chapter}, which takes a minute or two", flush=True)
    timeout = yaml.safe_load((ROOT / "_config.yml").read_text("utf-8"))["execute"]["timeout"]
    result = single_nb_execution(notebook, cwd=str(NOTEBOOKS), timeout=timeout, allow_errors=False)
    if result.err:
        raise SystemExit(f"{chapter} does not run to its end, so its figures are missing:\n{result.exc_string}")
    bundle = CacheBundleIn(notebook, str(path), data={"execution_seconds": result.time})
    runs.cache_notebook_bundle(bundle, check_validity=False, overwrite=True)
    return notebook


def picture(chapter: str, cell: int) -> str:
    """The picture that a cell of a chapter drew, a PNG in base64."""
    pictures = [output.data["image/png"] for output in executed(chapter).cells[cell].outputs if "data" in output]
    return "".join(pictures[0].split())


def figure_html(mark: str, draw: Callable[[str, int], str]) -> str:
    """A figure of a chapter as HTML, in the place of its mark."""
    chapter, cell, alt = find(mark)
    data = draw(chapter, cell)
    width, height = struct.unpack(">II", base64.b64decode(data[:32])[16:24])  # the header of a PNG
    kind = "wide" if width > 2 * height else "tall"  # beside a tall one there is room for text
    image = f'<img src="data:image/png;base64,{data}" alt="{html.escape(alt)}">'
    return f'\n<figure class="{kind}" style="aspect-ratio: {width} / {height}">{image}</figure>\n'


def claim_html(name: str) -> str:
    """A claim of the ledger as HTML, in the place of its mark."""
    claims = {claim["id"]: claim for claim in yaml.safe_load((ROOT / "book/claims.yml").read_text("utf-8"))}
    if name not in claims:
        raise LookupError(f"claim: {name}: no such claim in book/claims.yml; take one of {', '.join(claims)}")
    verdict, result = moments.outcome(claims[name].get("measured"))
    kind = verdict.lower().replace(" ", "-")
    statement = html.escape(claims[name]["statement"])
    return f'\n<p class="claim">{statement} <b class="{kind}">{verdict}</b><br>{html.escape(result)}</p>\n'


def pieces(slide: str, draw: Callable[[str, int], str]) -> list[nbformat.NotebookNode]:
    """A slide as cells of nbconvert: what is seen at once, the notes, what appears with the next keys."""
    first, *rest = re.split(rf"^({'|'.join(KINDS)}):[ ]*$", slide, flags=re.MULTILINE)
    parts = [("slide", first), *((KINDS[word], text) for word, text in zip(rest[::2], rest[1::2], strict=True))]
    parts[1:] = sorted(parts[1:], key=lambda part: part[0] != "notes")  # notes of a fragment would appear with it
    cells = []
    for kind, text in parts:
        text = re.sub(r"^figure: *(.+?) *$", lambda mark: figure_html(mark[1], draw), text, flags=re.MULTILINE)
        text = re.sub(r"^claim: *(.+?) *$", lambda mark: claim_html(mark[1]), text, flags=re.MULTILINE)
        cells.append(nbformat.v4.new_markdown_cell(text.strip(), metadata={"slideshow": {"slide_type": kind}}))
    return cells


def read_deck(path: Path, draw: Callable[[str, int], str] = picture) -> nbformat.NotebookNode:
    """The deck as a notebook that nbconvert takes; ``draw`` gives the picture of a chapter's cell."""
    deck = jupytext.read(path, fmt="md:myst")
    code = [cell.source for cell in deck.cells if cell.cell_type != "markdown"]
    if code:
        raise ValueError(f"{path.name}: a deck has text only, and this cell has code; move it to a chapter:\n{code[0]}")
    cells = [cell for slide in deck.cells for cell in pieces(slide.source, draw)]
    config = yaml.safe_load((ROOT / "_config.yml").read_text("utf-8"))
    version = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["version"]
    metadata = {
        "title": re.search(r"^# (.+)$", deck.cells[0].source, re.MULTILINE)[1],
        "book": config["title"],
        "credits": f"{config['repository']['url']}/blob/v{version}/DATA_LICENSES.md",
    }
    return nbformat.v4.new_notebook(cells=cells, metadata=metadata)


def make(path: Path, out: Path = OUT, draw: Callable[[str, int], str] = picture) -> Path:
    """Write one deck and what it loads, and give the path of its page; a failing deck leaves the old page."""
    exporter = SlidesExporter(template_name="template", extra_template_basedirs=[str(DECKS)], exclude_anchor_links=True)
    page, _ = exporter.from_notebook_node(read_deck(path, draw))
    for name in ("mathjax", "reveal"):
        shutil.copytree(ROOT / "book/_static" / name, out / "_static" / name, dirs_exist_ok=True)
    shutil.copy(DECKS / "slides.css", out / "_static")
    new = out / f"{path.stem}.html.new"
    new.write_text(page, "utf-8")
    return new.replace(out / f"{path.stem}.html")


if __name__ == "__main__":
    for deck in sorted(DECKS.glob("*.md")):
        print(f"wrote {make(deck).relative_to(ROOT)}")
