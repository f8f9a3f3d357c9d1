"""The decks: their marks find what they name, pictures come from the book's runs, and a browser shows the pages."""

import base64
import io
import re
import shutil
import sys
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pytest
from bs4 import BeautifulSoup
from conftest import ROOT
from jupyter_cache import get_cache
from jupyter_cache.base import CacheBundleIn
from PIL import Image
from test_browser import CONTRAST

sys.path.insert(0, str(ROOT / "book/_tools"))
import slides  # noqa: E402

DECKS = sorted((ROOT / "book/slides").glob("*.md"))
NAMES = [path.stem for path in DECKS]


def lines(kind: str) -> list[tuple[str, str]]:
    """The marks of a kind in all decks: deck and what it names."""
    return [
        (path.stem, mark)
        for path in DECKS
        for mark in re.findall(rf"^{kind}: *(.+?) *$", path.read_text("utf-8"), re.MULTILINE)
    ]


@cache
def placeholder(chapter: str = "", cell: int = 0) -> str:
    """A picture of the size of most figures, in place of the one that a run would draw."""
    file = io.BytesIO()
    Image.new("RGB", (990, 420), "#dddddd").save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


# -------------------------------------------------------------------------------- what is in the decks


@pytest.mark.parametrize(("deck", "mark"), lines("figure"))
def test_every_mark_finds_one_figure(deck, mark):
    try:
        slides.find(mark)
    except LookupError as error:
        pytest.fail(f"book/slides/{deck}.md: {error}", pytrace=False)


@pytest.mark.parametrize(("deck", "name"), lines("claim"))
def test_every_claim_is_in_the_ledger(deck, name):
    try:
        slides.claim_html(name)
    except LookupError as error:
        pytest.fail(f"book/slides/{deck}.md: {error}", pytrace=False)


@cache
def formulas(path: Path) -> set[str]:
    """The displayed formulas of a text, without spaces."""
    return {"".join(found.split()) for found in re.findall(r"\$\$(.+?)\$\$", path.read_text("utf-8"), re.DOTALL)}


@pytest.mark.parametrize("path", DECKS, ids=NAMES)
def test_formulas_are_those_of_the_chapters(path):
    known = set().union(*map(formulas, (ROOT / "book/chapters").glob("*.md")))
    changed = formulas(path) - known
    assert not changed, f"{path.name}: no chapter has these formulas; write them as the chapter does: {changed}"


@pytest.mark.parametrize("path", DECKS, ids=NAMES)
def test_deck_has_ten_to_twenty_slides_with_a_heading_and_notes(path):
    deck = path.read_text("utf-8").split("---\n", 2)[2].split("\n+++\n")
    assert 10 <= len(deck) + 1 <= 20, f"{path.name} has {len(deck)} slides, and one that is added at its end"
    for slide in deck:
        at = f"{path.name}, slide:\n{slide}"
        assert re.match(r"##? .+", slide.strip()), f"begin each slide with a heading. {at}"
        assert slide.count("\nnotes:\n") == 1, f"tell the speaker what to ask, once, under `notes:`. {at}"


# -------------------------------------------------------------------------------- how a deck is read

ALT = "A cat,\n  twice."
PICTURE = f"import base64\nfrom IPython.display import Image\nImage(data=base64.b64decode('{placeholder()}'))"


def figure_cell(source: str, alt: str) -> nbformat.NotebookNode:
    return nbformat.v4.new_code_cell(source, metadata={"mystnb": {"image": {"alt": alt}}})


@pytest.fixture
def chapter(tmp_path, monkeypatch):
    """A book of one chapter with two figures, and nothing in the cache."""
    monkeypatch.setattr(slides, "NOTEBOOKS", tmp_path)
    monkeypatch.setattr(slides, "cache_folder", lambda: tmp_path / "cache")
    slides.executed.cache_clear()
    cells = [nbformat.v4.new_markdown_cell("# One"), figure_cell(PICTURE, ALT), figure_cell("1", "A dog, twice.")]
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=kernel), tmp_path / "one.ipynb")
    yield tmp_path / "one.ipynb"
    slides.executed.cache_clear()


def test_mark_names_a_figure_by_words_of_its_alt_text(chapter):
    assert slides.find("one / A cat, twice") == ("one", 1, "A cat, twice.")
    assert slides.find("one/dog")[1] == 2


@pytest.mark.parametrize(
    ("mark", "message"),
    [
        ("two / cat", "no chapter 'two' in notebooks/; name one of one"),
        ("one / bird", "stands in 0. Take words that only one of these has:\n  A cat, twice.\n  A dog, twice."),
        ("one / twice", "stands in 2"),
        ("one", "stands in 0"),
    ],
)
def test_lost_mark_says_what_there_is(chapter, mark, message):
    with pytest.raises(LookupError, match=re.escape(message)):
        slides.find(mark)


def test_unknown_claim_names_the_known_ones():
    with pytest.raises(LookupError, match="no-such: no such claim.*bn-evens-gradients"):
        slides.claim_html("no-such")


def test_claim_has_statement_verdict_and_result():
    text = BeautifulSoup(slides.claim_html("bn-small-batches-regularize"), "html.parser").text
    assert "regularizes" in text and "Does not hold" in text and "95 % interval" in text


def test_notes_come_before_the_answer_so_that_they_do_not_wait_for_it(chapter):
    cells = slides.pieces("## Why?\n\nanswer:\n\nfigure: one / cat\n\nnotes:\nAsk.", placeholder)
    assert [cell.metadata["slideshow"]["slide_type"] for cell in cells] == ["slide", "notes", "fragment"]
    assert cells[0].source == "## Why?" and cells[1].source == "Ask."
    assert 'alt="A cat, twice."' in cells[2].source


def test_deck_with_code_is_refused(tmp_path):
    path = tmp_path / "deck.md"
    path.write_text("# Deck\n\n```{code-cell} ipython3\n1 + 1\n```\n", "utf-8")
    with pytest.raises(ValueError, match=r"deck\.md: a deck has text only[\s\S]*1 \+ 1"):
        slides.read_deck(path)


# -------------------------------------------------------------------------------- where pictures come from


def test_cache_is_the_one_that_the_book_is_built_from():
    config = SimpleNamespace(html_theme_options={"repository_url": ""}, html_title="")
    slides.moments.configure(SimpleNamespace(srcdir=ROOT, outdir=ROOT / "_build/html"), config)
    assert Path(config.nb_execution_cache_path) == slides.cache_folder()


def test_picture_is_taken_from_the_cache(chapter, monkeypatch):
    monkeypatch.setattr(slides, "single_nb_execution", lambda *args, **options: pytest.fail("it ran again"))
    run = nbformat.read(chapter, 4)
    run.cells[1].outputs = [nbformat.v4.new_output("display_data", {"image/png": "kept\n"})]
    get_cache(slides.cache_folder()).cache_notebook_bundle(CacheBundleIn(run, str(chapter)), check_validity=False)
    assert slides.picture("one", 1) == "kept"


def test_missing_run_is_made_once_and_kept(chapter, monkeypatch):
    assert slides.picture("one", 1) == placeholder()
    slides.executed.cache_clear()
    monkeypatch.setattr(slides, "single_nb_execution", lambda *args, **options: pytest.fail("it ran again"))
    assert slides.picture("one", 1) == placeholder()


def test_chapter_that_fails_is_named(chapter):
    chapter.write_text(chapter.read_text("utf-8").replace('"1"', '"1 / 0"'), "utf-8")
    with pytest.raises(SystemExit, match=r"^one does not run to its end[\s\S]*ZeroDivisionError"):
        slides.picture("one", 1)


# -------------------------------------------------------------------------------- the pages


@pytest.fixture(scope="module")
def pages(tmp_path_factory) -> Path:
    """The folder with all decks; their pictures are placeholders."""
    out = tmp_path_factory.mktemp("slides")
    for path in DECKS:
        slides.make(path, out, placeholder)
    return out


@pytest.mark.parametrize("name", NAMES)
def test_page_loads_what_lies_beside_it(pages, name):
    page = BeautifulSoup((pages / f"{name}.html").read_text("utf-8"), "html.parser")
    sources = [tag.get("src") or tag.get("href") for tag in page.find_all(["script", "link", "img"])]
    files = [source for source in sources if source and not source.startswith("data:")]
    lost = [source for source in files if not (pages / source).is_file()]
    assert not lost, f"{name}: the deck would ask another machine, or nobody, for {lost}"
    assert page.html["lang"] == "en" and page.title.text.endswith("Moments of Style")


def test_failing_deck_leaves_the_old_page(tmp_path):
    path = tmp_path / "deck.md"
    path.write_text("# Deck\n\nOne\n", "utf-8")
    page = slides.make(path, tmp_path, placeholder)
    old = page.read_text("utf-8")
    path.write_text("# Deck\n\nfigure: no-chapter / x\n", "utf-8")
    with pytest.raises(LookupError):
        slides.make(path, tmp_path, placeholder)
    assert page.read_text("utf-8") == old
    shutil.rmtree(tmp_path / "_static")
    assert {file.name for file in tmp_path.iterdir()} == {"deck.md", "deck.html"}


@pytest.fixture(params=NAMES)
def deck(request, pages, browser):
    """A deck, opened from the disk as a teacher would; what it asked for and complained of is in `seen`."""
    page = browser.new_context(viewport={"width": 1280, "height": 720}).new_page()
    page.seen = []
    page.on("request", lambda request: page.seen.append(request.url))
    page.on("console", lambda message: message.type == "error" and page.seen.append(message.text))
    page.on("pageerror", lambda error: page.seen.append(str(error)))
    page.goto((pages / f"{request.param}.html").as_uri())
    page.wait_for_function("window.MathJax?.startup?.promise && Reveal.isReady()")
    page.evaluate("MathJax.startup.promise")
    page.name = request.param
    yield page
    page.context.close()


# The present slide: its heading, by how many pixels it is too high or too wide, and how high its figures are.
SLIDE = """() => {
    const slide = Reveal.getCurrentSlide();
    const figures = [...slide.querySelectorAll('figure')];
    return {
        title: slide.querySelector('h1, h2').innerText,
        overflow: slide.scrollHeight - slide.clientHeight,
        width: slide.scrollWidth - slide.clientWidth,
        figures: figures.map(f => f.offsetHeight),
    };
}"""


def test_deck_is_shown_by_keys_alone_and_fits(deck):
    seen = []
    while not deck.evaluate("Reveal.isLastSlide()"):
        found = deck.evaluate(SLIDE)
        if found not in seen:
            seen.append(found)
        deck.keyboard.press("ArrowRight")
    assert len(seen) >= 10
    large = [found["title"] for found in seen if found["overflow"] > 0 or found["width"] > 0]
    assert not large, f"{deck.name}: too much on these slides, shorten them: {large}"
    small = [(found["title"], found["figures"]) for found in seen if min(found["figures"], default=200) < 200]
    assert not small, f"{deck.name}: too little room for the figure (pixels), shorten the text: {small}"


def test_deck_asks_nothing_from_other_machines_and_has_no_errors(deck):
    outside = [text for text in deck.seen if not text.startswith(("file:", "data:", "blob:"))]
    assert not outside, f"{deck.name}: {outside}"


def test_formulas_are_set(deck):
    assert deck.locator("mjx-container").count() > 0
    wrong = deck.locator("mjx-merror").evaluate_all("parts => parts.map(part => part.outerHTML)")
    assert not wrong, f"{deck.name}: MathJax cannot set {wrong}"
    text = deck.evaluate("document.querySelector('.slides').textContent")
    assert "$" not in text, f"{deck.name}: raw TeX near {re.findall('.{30}[$].{30}', text)[:3]}"


def test_pictures_have_alternative_text(deck):
    assert deck.evaluate("[...document.images].every(image => image.alt.length > 20)")


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_deck_is_readable_in_light_and_dark(deck, theme):
    deck.emulate_media(color_scheme=theme)
    contrast = CONTRAST.replace("article", "section.present")
    faint = {}
    while not deck.evaluate("Reveal.isLastSlide()"):
        faint |= dict.fromkeys(deck.evaluate(contrast))
        deck.keyboard.press("ArrowRight")
    assert not faint, f"{deck.name}, {theme}: contrast below 4.5; choose colors in slides.css: {[*faint][:5]}"
    ground = "getComputedStyle(document.body).backgroundColor"
    before = deck.evaluate(ground)
    deck.keyboard.press("d")
    assert deck.evaluate(ground) != before, "the key D should exchange light and dark"


def test_speaker_sees_notes_in_a_second_window(deck):
    with deck.expect_popup() as popup:
        deck.keyboard.press("s")
    notes = deck.evaluate("Reveal.getCurrentSlide().querySelector('aside.notes').textContent.trim().slice(0, 20)")
    popup.value.wait_for_function("start => document.body.innerText.includes(start)", arg=notes)
