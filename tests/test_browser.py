"""The built book in a real browser, on a desktop and on a phone, by eye, by keyboard and in the dark."""

import re
import tomllib
from types import SimpleNamespace

import pytest
import yaml
from conftest import NOTEBOOKS, PAGES, ROOT

WIDTHS = {1280: 900, 375: 800}  # a laptop's and a phone's, with their heights
MATH_READY = "async () => { if (window.MathJax) await MathJax.startup.promise; await document.fonts.ready }"


def visit(browser, url, width=1280):
    """Open a page and note what goes wrong on it, and every address it asks for."""
    context = browser.new_context(viewport={"width": width, "height": WIDTHS[width]}, reduced_motion="reduce")
    page = context.new_page()
    view = SimpleNamespace(page=page, width=width, errors=[], requests=[])
    view.at = f"{url.split('/', 3)[3]} at {width} px"
    page.on("console", lambda message: message.type == "error" and view.errors.append(message.text))
    page.on("pageerror", lambda error: view.errors.append(str(error)))
    page.on("request", lambda request: view.requests.append(request.url))
    page.goto(url)
    page.wait_for_selector("article")  # index.html only leads here
    page.wait_for_load_state("load")
    page.evaluate(MATH_READY)
    return view


@pytest.fixture(scope="module", params=[(p, w) for p in PAGES for w in WIDTHS], ids=lambda case: f"{case[0]}-{case[1]}")
def view(request, browser, served_book):
    """Every page at every width; the tests that only look at a page share one visit."""
    name, width = request.param
    view = visit(browser, f"{served_book}/{name}.html", width)
    yield view
    view.page.context.close()


@pytest.fixture(params=NOTEBOOKS)
def notebook(request, browser, served_book):
    """Every notebook page, opened afresh for a test that changes it."""
    view = visit(browser, f"{served_book}/{request.param}.html")
    view.name = request.param
    yield view
    view.page.context.close()


def test_console_has_no_errors(view):
    assert not view.errors, f"{view.at}: open the browser's console on this page and mend {view.errors}"


def test_page_asks_nothing_from_other_machines(view, served_book):
    outside = [url for url in view.requests if not url.startswith((served_book, "data:", "blob:"))]
    assert not outside, f"{view.at}: put a copy into book/_static instead of loading {outside}"


WIDER = """() => [...document.querySelectorAll('.bd-main *')].filter(e => {
    if (e.getBoundingClientRect().right <= innerWidth + 1) return false;
    for (let up = e; up; up = up.parentElement)
        if (getComputedStyle(up).overflowX !== 'visible' && up !== document.body) return false;
    return true;
}).slice(-3).map(e => e.outerHTML.slice(0, 120))"""


def test_page_does_not_scroll_sideways(view):
    extra = view.page.evaluate("document.documentElement.scrollWidth - innerWidth")
    wider = extra > 0 and view.page.evaluate(WIDER)
    assert extra <= 0, f"{view.at}: {extra} px too wide; shorten it or let it scroll in moments.css: {wider}"


FILE_NAME = re.compile(r"\S+\.(png|jpe?g|gif|svg|webp)|[0-9a-f]{16,}", re.IGNORECASE)


def test_images_have_alternative_text(view):
    images = view.page.evaluate("[...document.images].map(i => [i.getAttribute('alt'), i.src.slice(-80)])")
    silent = [source for alt, source in images if not (alt or "").strip() or FILE_NAME.fullmatch(alt.strip())]
    assert not silent, (
        f"{view.at}: say in words what these show (`:alt:` of a figure, `mystnb: image: alt` of a cell): {silent}"
    )


UNRENDERED = r"""() => {
    const walker = document.createTreeWalker(document.querySelector('article'), NodeFilter.SHOW_TEXT);
    const found = [];
    while (walker.nextNode()) {
        const node = walker.currentNode;
        if (!node.parentElement.closest('pre, code, script, style, mjx-container') && /\$|\\[(\[a-z]/.test(node.data))
            found.push(node.data.trim().slice(0, 80));
    }
    return found;
}"""


def test_mathematics_renders(view):
    page = view.page
    bare = page.evaluate(
        "[...document.querySelectorAll('.math')].filter(m => !m.querySelector('mjx-container')).length"
    )
    assert bare == 0, f"{view.at}: {bare} formulas are not set: is book/_static/mathjax complete?"
    wrong = page.locator("mjx-merror, mjx-container [data-mjx-error], mjx-container [style*='color: red']")
    formulas = wrong.evaluate_all("parts => parts.map(part => part.closest('mjx-container').innerText)")
    assert not formulas, f"{view.at}: MathJax does not know something in these; mend them: {formulas}"
    raw = page.evaluate(UNRENDERED)
    assert not raw, f"{view.at}: raw TeX in the text; close the dollars or write \\$ for a dollar: {raw}"


CONTRAST = """() => {
    const parse = color => { const [r, g, b, a = 1] = color.match(/[\\d.]+/g).map(Number); return [r, g, b, a] };
    const over = ([r, g, b, a], under) => [r, g, b].map((c, i) => a * c + (1 - a) * under[i]);
    const ground = e => e ? over(parse(getComputedStyle(e).backgroundColor), ground(e.parentElement)) : [255, 255, 255];
    const light = rgb => rgb.map(c => (c /= 255) <= .04045 ? c / 12.92 : ((c + .055) / 1.055) ** 2.4)
        .reduce((sum, c, i) => sum + c * [.2126, .7152, .0722][i], 0);
    const walker = document.createTreeWalker(document.querySelector('article'), NodeFilter.SHOW_TEXT);
    const found = new Set();
    while (walker.nextNode()) {
        const e = walker.currentNode.parentElement, text = walker.currentNode.data.trim();
        if (!text || !e.checkVisibility({visibilityProperty: true, opacityProperty: true})) continue;
        const under = ground(e), ink = light(over(parse(getComputedStyle(e).color), under)), paper = light(under);
        const ratio = (Math.max(ink, paper) + .05) / (Math.min(ink, paper) + .05);
        if (ratio < 4.5) found.add(`${ratio.toFixed(1)}: ${text.slice(0, 40)}`);
    }
    return [...found];
}"""


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_text_is_readable(view, theme):
    view.page.evaluate(f"document.documentElement.dataset.theme = '{theme}'")
    faint = view.page.evaluate(CONTRAST)
    assert not faint, f"{view.at}, {theme}: contrast below 4.5; choose colors in moments.css: {faint[:5]}"


# Outline and shadow of the focused element and of what it holds, with the focus and without it.
FOCUS = """() => {
    const e = document.activeElement, parts = [e, ...e.querySelectorAll('*')];
    const look = () => parts.map(p => getComputedStyle(p)).map(s =>
        (s.outlineStyle === 'none' ? '' : s.outlineWidth + s.outlineStyle + s.outlineColor) + s.boxShadow).join();
    const focused = look(), box = e.getBoundingClientRect();
    e.blur();
    const marked = focused !== look();
    e.focus({preventScroll: true});
    const seen = box.width > 0 && box.right > 0 && box.left < innerWidth && box.bottom > 0 && box.top < innerHeight;
    return [e === document.body || (marked && seen), e.outerHTML.slice(0, 120)];
}"""


def test_keyboard_focus_is_visible(view):
    for _ in range(15):
        view.page.keyboard.press("Tab")
        visible, element = view.page.evaluate(FOCUS)
        assert visible, (
            f"{view.at}: the Tab key reaches this and nothing shows it; outline it in moments.css: {element}"
        )


def test_search_finds_a_word(browser, served_book):
    page = visit(browser, f"{served_book}/{PAGES[0]}.html").page
    page.keyboard.press("Control+k")
    page.keyboard.type("normalization")
    page.keyboard.press("Enter")
    page.wait_for_selector("#search-results li a", timeout=10_000)
    found = page.locator("#search-results li a").all_inner_texts()
    assert any("Normalization" in title for title in found), f"searching for normalization found only {found}"
    page.context.close()


def test_switch_makes_the_page_dark(browser, served_book):
    page = visit(browser, f"{served_book}/{PAGES[0]}.html").page
    switch = page.locator(".theme-switch-button:visible").first
    for _ in ("light", "auto", "dark"):
        if page.evaluate("document.documentElement.dataset.theme") != "dark":
            switch.click()
    assert page.evaluate("document.documentElement.dataset.theme") == "dark", "the switch never reached dark"
    red, green, blue = page.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)")[:3]
    assert max(red, green, blue) < 64, f"dark mode has a ground of {red, green, blue}"
    page.context.close()


def test_colab_button_opens_the_notebook_at_the_tag(notebook):
    repository = yaml.safe_load((ROOT / "_config.yml").read_text("utf-8"))["repository"]["url"]
    version = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["version"]
    path = repository.removeprefix("https://github.com/")
    expected = f"https://colab.research.google.com/github/{path}/blob/v{version}/{notebook.name}.ipynb"
    links = notebook.page.locator("a[href*='colab']").evaluate_all("links => links.map(a => a.href)")
    assert expected in links, f"{notebook.at}: no Colab button to {expected}, only {links}; see book/_ext/moments.py"


def test_code_cells_have_copy_buttons(notebook):
    cells = notebook.page.locator(".cell_input .highlight")
    buttons = notebook.page.locator(".cell_input .highlight button.copybtn")
    assert buttons.count() == cells.count() > 0, f"{notebook.at}: {buttons.count()} buttons, {cells.count()} cells"


def test_sliders_move_by_keyboard(notebook):
    for output in notebook.page.locator(".cell_output .text_html:has(input[type=range])").all():
        slider, picture = output.locator("input"), output.locator("img:visible")
        before = slider.get_attribute("aria-valuetext"), picture.get_attribute("src")
        slider.press("ArrowLeft" if slider.input_value() == slider.get_attribute("max") else "ArrowRight")
        after = slider.get_attribute("aria-valuetext"), picture.get_attribute("src")
        assert before[0] != after[0] and before[1] != after[1], f"{notebook.at}: a slider at {before[0]} is stuck"


def test_quiz_answers_by_keyboard(notebook):
    for question in notebook.page.locator(".cell_output fieldset").all():
        question.locator("input[type=radio]").first.press("Space")
        feedback = question.locator("[aria-live]").inner_text()
        ask = question.locator("legend").inner_text()
        assert feedback.startswith(("Right.", "Not yet.")), f"{notebook.at}: no feedback to {ask!r}"


def test_book_has_sliders_and_a_quiz(built_book):
    """Otherwise the two tests above would pass on nothing."""
    html = "".join((built_book / f"{name}.html").read_text("utf-8") for name in NOTEBOOKS)
    assert 'type="range"' in html and "<fieldset" in html


def test_book_opens_from_disk(browser, built_book):
    view = visit(browser, (built_book / "index.html").as_uri())
    assert view.page.url.endswith(f"{PAGES[0]}.html"), f"index.html leads to {view.page.url}"
    assert not view.errors, f"opened from disk, the welcome page reports {view.errors}"
    assert all(url.startswith(("file:", "data:")) for url in view.requests), view.requests
    fonts = view.page.evaluate("[...document.fonts].filter(f => f.status === 'loaded').map(f => f.family)")
    assert any("MJX" in font for font in fonts), f"the fonts of formulas did not load: {fonts}"
    assert view.page.locator(".navbar-brand img:visible").bounding_box()["height"] == 64, "moments.css did not load"
    view.page.context.close()
