"""The book as files: links, outputs, and how `make book` fails, recovers and remembers."""

import json
import re
import shutil
import subprocess
import sys
import time
from functools import cache
from pathlib import Path
from urllib.parse import unquote, urldefrag

import pytest
from bs4 import BeautifulSoup
from conftest import NOTEBOOKS, PAGES, ROOT

# ------------------------------------------------------------------------- the book that was built


@cache
def parsed(file: Path) -> BeautifulSoup:
    return BeautifulSoup(file.read_text("utf-8"), "html.parser")


@cache
def anchors(file: Path) -> set[str]:
    return {tag[key] for tag in parsed(file).find_all(True) for key in ("id", "name") if tag.has_attr(key)}


def broken(file: Path, link: str) -> bool:
    """Whether a link from a file leads to a missing file, or to an anchor that its file lacks."""
    path, anchor = urldefrag(link)
    target = (file.parent / unquote(path.partition("?")[0])).resolve() if path else file
    if target.suffix != ".html" or not target.is_file():
        return not target.is_file()
    return bool(anchor) and unquote(anchor) not in anchors(target)


def addresses(file: Path) -> list[str]:
    tags = parsed(file).find_all(lambda tag: tag.has_attr("href") or tag.has_attr("src"))
    return [tag.get("href", tag.get("src")) for tag in tags]


@pytest.mark.parametrize("page", [*PAGES, "index", "search", "genindex"])
def test_links_inside_the_book_resolve(built_book, page):
    file = built_book / f"{page}.html"
    inside = [link for link in addresses(file) if not re.match(r"[a-z]+:|//", link)]
    lost = sorted({link for link in inside if broken(file, link)})
    assert not lost, f"{page}: nothing there; mend these links: {lost}"


@pytest.mark.parametrize("page", PAGES)
def test_page_loads_nothing_from_outside(built_book, page):
    """Only a link that a reader clicks, `<a href>`, may lead out of the book."""
    loading = parsed(built_book / f"{page}.html").find_all(["script", "link", "img", "iframe", "source", "video"])
    sources = [tag.get("src") or tag.get("href") or "" for tag in loading]
    outside = [source for source in sources if re.match(r"https?:|//", source)]
    assert not outside, f"{page}: put a copy into book/_static instead of loading {outside}"


@pytest.mark.parametrize("page", NOTEBOOKS)
def test_notebook_page_shows_what_running_it_made(built_book, page):
    """Notebooks are stored without their pictures, so a picture on the page comes from a run."""
    pictures = parsed(built_book / f"{page}.html").select(".cell_output img")
    assert pictures, f"{page}: no picture in its outputs; does `execute` in _config.yml still say cache?"


# -------------------------------------------------------------------- how building a book behaves

BUILD = re.search(r"jupyter-book (build .*)", (ROOT / "Makefile").read_text("utf-8"))[1].split()
CELL = "import os; print('run', os.urandom(8).hex())"  # a new number at each run
CLAIMS = """
- {id: a, statement: One., source: huang2017, chapter: one, measure: Points,
   measured: {effect: 2.5, low: -0.5, high: 4.0, unit: points, n: 5, over: seeds 0–4, holds: false}}
- {id: b, statement: Two., chapter: one, measure: Points,
   measured: {effect: 3.0, low: 1.0, high: 5.0, unit: steps, n: 6, over: pairs, holds: true}}
- {id: c, statement: Three., chapter: one, measure: Points}
"""
FILES = {
    "_toc.yml": "format: jb-book\nroot: book/welcome\nchapters:\n- file: book/claims\n- file: notebooks/one\n",
    "book/welcome.md": "# Welcome\n\n[Code]({{ repository }}/tree/{{ tag }})\n\n```sh\ngit clone {{repository}}\n```\n",
    "book/claims.md": "# Claims\n\n```{claims-ledger}\n```\n\n```{bibliography}\n```\n",
    "book/claims.yml": CLAIMS,
    "lib/stylemoments/__init__.py": "",
    ".venv/lib/README.md": "# Not a page of the book\n",
}


def write(book: Path, name: str, text: str):
    (book / name).parent.mkdir(parents=True, exist_ok=True)
    (book / name).write_text(text, "utf-8")


def notebook(*sources: str) -> str:
    cells = [{"cell_type": "markdown", "id": "title", "metadata": {}, "source": "# One"}]
    for number, source in enumerate(sources):
        code = {"cell_type": "code", "id": f"c{number}", "execution_count": None, "outputs": [], "metadata": {}}
        cells.append(code | {"source": source})
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    return json.dumps({"nbformat": 4, "nbformat_minor": 5, "metadata": kernel, "cells": cells})


@pytest.fixture
def book(tmp_path):
    """A book of three pages with the tooling of this one."""
    for name in ("_config.yml", "pyproject.toml", "requirements.txt", "book/references.bib"):
        write(tmp_path, name, (ROOT / name).read_text("utf-8"))
    for name in ("book/_ext", "book/_static"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__", "pictures"))
    for name, text in FILES.items():
        write(tmp_path, name, text)
    write(tmp_path, "notebooks/one.ipynb", notebook("1 + 1", CELL))
    return tmp_path


def command(book: Path) -> dict:
    """What the Makefile runs, in another folder, as arguments of `subprocess`."""
    program = [Path(sys.executable).with_name("jupyter-book"), *BUILD]
    return {"args": program, "cwd": book, "stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}


def build(book: Path) -> tuple[int, str]:
    """Build and give the exit status and the messages."""
    done = subprocess.run(**command(book), timeout=60)
    return done.returncode, done.stderr


def run_number(book: Path) -> str:
    return re.search("run [0-9a-f]{16}", (book / "_build/html/notebooks/one.html").read_text("utf-8"))[0]


def test_notebooks_run_again_only_when_they_or_the_library_change(book):
    assert build(book)[0] == 0
    first = run_number(book)
    write(book, "book/_static/moments.css", "/* new */")
    assert build(book)[0] == 0
    assert run_number(book) == first, "nothing that a notebook runs on has changed, and it was run again"
    assert "new" in (book / "_build/html/_static/moments.css").read_text("utf-8"), "a changed style was left out"
    write(book, "lib/stylemoments/__init__.py", "answer = 42")
    assert build(book)[0] == 0
    assert run_number(book) != first, "the library has changed, and the notebook was not run again"


def test_pages_know_repository_and_tag(book):
    write(book, "_toc.yml", "format: jb-book\nroot: book/welcome\n")
    config = (book / "_config.yml").read_text("utf-8")
    write(book, "_config.yml", re.sub(r"url: https://github.com/\S+", "url: https://github.com/some/where", config))
    write(book, "pyproject.toml", '[project]\nversion = "7.8.9"')
    assert build(book)[0] == 0
    page = BeautifulSoup((book / "_build/html/book/welcome.html").read_text("utf-8"), "html.parser").article
    assert page.p.a["href"] == "https://github.com/some/where/tree/v7.8.9"
    assert page.pre.text == "git clone https://github.com/some/where\n"


def test_ledger_shows_verdicts_in_words(book):
    assert build(book)[0] == 0
    page = BeautifulSoup((book / "_build/html/book/claims.html").read_text("utf-8"), "html.parser").article
    text = " ".join(page.text.split())
    assert "3 claims: 1 holds, 1 does not hold, 1 not measured yet." in text
    assert "2.5 points (95 % interval −0.5 to 4), n = 5 (seeds 0–4)" in text
    assert [verdict.text for verdict in page.select(".verdict")] == ["Does not hold", "Holds", "Not measured yet"]
    assert page.select_one("h2").text.startswith("One") and page.select_one("#a") and page.select("a[href$='one.html']")
    assert "Huang and Belongie" in text


def test_broken_cell_fails_every_build(book):
    write(book, "notebooks/one.ipynb", notebook("1 / 0"))
    for attempt in ("first", "second"):
        status, messages = build(book)
        assert status != 0 and "ZeroDivisionError" in messages, f"{attempt} build: status {status}\n{messages}"


def test_warning_fails_every_build(book):
    write(book, "book/welcome.md", "# Welcome\n\n[lost](nowhere.md)\n")
    for attempt in ("first", "second"):
        status, messages = build(book)
        assert status != 0 and "nowhere.md" in messages, f"{attempt} build: status {status}\n{messages}"


def test_killed_build_can_be_run_again(book):
    begun = book / "begun"
    sleep = f"import pathlib, time\nbegun = pathlib.Path({str(begun)!r})\n"
    sleep += "if not begun.exists():\n    begun.touch(); time.sleep(50)"
    write(book, "notebooks/one.ipynb", notebook(sleep, CELL))
    process = subprocess.Popen(**command(book))
    while not begun.exists() and process.poll() is None:
        time.sleep(0.1)
    process.kill()
    process.communicate()
    assert process.returncode < 0, "the build ended before it could be killed"
    status, messages = build(book)
    assert status == 0, messages
    assert run_number(book)
