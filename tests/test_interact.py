import io
from textwrap import dedent

import ipywidgets
import nbclient
import nbformat
import numpy as np
import pytest
from bs4 import BeautifulSoup
from matplotlib import pyplot as plt
from PIL import Image

from stylemoments.interact import WIDGET, Slider, quiz, slider


def gray(level):
    return Image.new("L", (6, 4), int(level))


def words(level):
    return f'gray "{level}" & <plain>'


@pytest.fixture
def levels():
    return slider(gray, [0, 128, 255], label="level", alt=words, start=1)


def bundle(shown):
    return shown._repr_mimebundle_()


def parse(shown):
    html = bundle(shown)["text/html"] if isinstance(shown, Slider) else shown._repr_html_()
    return BeautifulSoup(html, "html.parser")


class TestSlider:
    def test_gives_a_live_and_a_static_rendering(self, levels):
        assert set(bundle(levels)) == {WIDGET, "text/html", "text/plain"}
        assert bundle(levels)[WIDGET]["model_id"]

    def test_plain_text_is_one_line(self, levels):
        assert bundle(levels)["text/plain"] == "slider level: 3 frames, 0 … 255"

    @pytest.mark.parametrize(
        ("settings", "shown"),
        [
            ([0, 0.1 + 0.2, 1.0], "0 0.3 1"),
            (np.geomspace(1e-5, 0.1, 3), "1e-05 0.001 0.1"),
            (np.arange(2), "0 1"),
            (["off", "on"], "off on"),
        ],
    )
    def test_settings_read_well(self, settings, shown):
        made = slider(lambda setting: gray(0), settings, label="x", alt=str)
        assert " ".join(frame.setting for frame in made.frames) == shown

    def test_each_frame_is_rendered_once(self):
        calls = []
        made = slider(lambda level: calls.append(level) or gray(level), [1, 2], label="level", alt=words)
        bundle(made), bundle(made)
        assert calls == [1, 2]

    def test_frames_are_webp_of_the_picture(self, levels):
        for frame, level in zip(levels.frames, [0, 128, 255], strict=True):
            picture = Image.open(io.BytesIO(frame.webp))
            assert (picture.format, picture.size) == ("WEBP", (6, 4))
            assert abs(np.asarray(picture).astype(int) - level).max() <= 3

    def test_figures_are_closed_after_rendering(self):
        made = slider(lambda w: plt.figure(figsize=(w, 1), dpi=50), [1, 2], label="width", alt=str)
        assert [Image.open(io.BytesIO(frame.webp)).size for frame in made.frames] == [(50, 50), (100, 50)]
        assert plt.get_fignums() == [], "close figures after rendering or every notebook shows them again"

    def test_page_shows_only_the_start(self, levels):
        images = parse(levels).select("img")
        assert [image.has_attr("hidden") for image in images] == [True, False, True]
        assert ["display:none" in image["style"] for image in images] == [True, False, True]

    def test_page_has_alternative_text_per_frame(self, levels):
        assert [image["alt"] for image in parse(levels).select("img")] == [words(v) for v in (0, 128, 255)]

    def test_page_control_is_labeled_and_at_the_start(self, levels):
        page = parse(levels)
        control = page.select_one("label input[type=range]")
        assert (control["min"], control["max"], control["value"]) == ("0", "2", "1")
        assert control["aria-valuetext"] == page.output.text == "128"
        assert page.label.text.strip() == "level"

    def test_page_needs_nothing_else(self, levels):
        page = parse(levels)
        assert not page.select("script, style, link, [id]")
        assert all(image["src"].startswith("data:image/webp;base64,") for image in page.select("img"))
        assert all("max-width:100%" in image["style"] for image in page.select("img"))

    def test_page_escapes_label_and_settings(self):
        page = parse(slider(lambda _: gray(0), ['<b>"&'], label="<i>&", alt=str))
        assert not page.select("b, i")
        assert (page.label.text.strip(), page.output.text) == ("<i>&", '<b>"&')
        assert page.img["data-setting"] == '<b>"&'

    def test_page_is_equal_at_every_build(self, levels):
        again = slider(gray, [0, 128, 255], label="level", alt=words, start=1)
        assert levels.html() == again.html()

    def test_widget_moves_the_picture_and_its_text(self, levels):
        slide, picture = levels.widget().children
        assert (slide.description, slide.label) == ("level", "128")
        slide.value = 2
        assert picture.value == levels.frames[2].html()
        assert BeautifulSoup(picture.value, "html.parser").img["alt"] == words(255)

    def test_page_comes_even_if_widgets_fail(self, levels, monkeypatch):
        def broken(*args, **kwargs):
            raise RuntimeError("no comm")

        monkeypatch.setattr(ipywidgets, "VBox", broken)
        assert set(bundle(levels)) == {"text/html", "text/plain"}

    def test_no_settings(self):
        with pytest.raises(ValueError, match="at least one setting"):
            slider(gray, [], label="level", alt=words)

    @pytest.mark.parametrize("start", [-1, 2])
    def test_start_out_of_range(self, start):
        with pytest.raises(ValueError, match=f"from 0 to 1; got {start}"):
            slider(gray, [0, 1], label="level", alt=words, start=start)

    @pytest.mark.parametrize("text", ["", "  ", None])
    def test_missing_alternative_text_names_the_setting(self, text):
        with pytest.raises(ValueError, match=r"say in words.* for 7"):
            slider(gray, [7], label="level", alt=lambda level: text)

    def test_frame_of_another_kind(self):
        with pytest.raises(TypeError, match="Figure or a PIL image; got ndarray"):
            slider(lambda level: np.zeros((2, 2)), [0], label="level", alt=words)


EVEN = {
    "ask": "Is `2 < 3` & <true>?",
    "options": [("`yes`", "As `2 + 1` <is> 3."), ("no & never", 'Count "again".')],
    "answer": 0,
}
ODD = {"ask": "Is 3 odd?", "options": [("no", "Halve it."), ("yes", "3 = 2 + 1")], "answer": 1}


class TestQuiz:
    def test_plain_text_lists_options_without_answers(self):
        text = "1. Is 3 odd?\n   a) no\n   b) yes\n2. Is `2 < 3` & <true>?\n   a) `yes`\n   b) no & never"
        assert repr(quiz([ODD, EVEN])) == text

    def test_one_fieldset_per_question(self):
        page = parse(quiz([EVEN, ODD]))
        assert [legend.text for legend in page.select("fieldset > legend")] == ["Is 2 < 3 & <true>?", "Is 3 odd?"]
        assert [len(field.select("label > input[type=radio]")) for field in page.select("fieldset")] == [2, 2]
        assert [spot.text for spot in page.select("fieldset > [aria-live=polite]")] == ["", ""]

    def test_feedback_says_right_only_for_the_answer(self):
        says = [option["data-says"] for option in parse(quiz([EVEN, ODD])).select("input")]
        assert [text.partition("</strong>")[0] for text in says] == [
            f"<strong>{verdict}" for verdict in ("Right.", "Not yet.", "Not yet.", "Right.")
        ]

    def test_all_text_is_escaped_and_backticks_are_code(self):
        page = parse(quiz([EVEN]))
        assert not page.select("true, is")
        assert [code.text for code in page.select("code")] == ["2 < 3", "yes"]
        feedback = BeautifulSoup(page.input["data-says"], "html.parser")
        assert feedback.text == "Right. As 2 + 1 <is> 3."
        assert feedback.code.text == "2 + 1"

    def test_groups_are_apart_and_equal_at_every_build(self):
        names = [option["name"] for option in parse(quiz([EVEN, ODD])).select("input")]
        assert names[0] == names[1] != names[2] == names[3]
        assert names == [option["name"] for option in parse(quiz([EVEN, ODD])).select("input")]
        assert names[2] == "quiz-a5a7ef82", "names must not change between Python processes"

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"ask": " "}, "needs a text to ask"),
            ({"options": [("yes", "so")]}, "two or more options"),
            ({"options": ["yes", "no"]}, "each a pair"),
            ({"options": [("yes", 1), ("no", 2)]}, "each a pair"),
            ({"answer": 2}, "from 0 to 1, an index; got 2"),
            ({"answer": "yes"}, "from 0 to 1, an index; got 'yes'"),
            ({"hint": "think"}, "needs the keys ask, options, answer; got ask, options, answer, hint"),
        ],
    )
    def test_faults_name_the_question(self, change, message):
        with pytest.raises(ValueError, match=rf"question 2 \('.*'\) .*{message}"):
            quiz([EVEN, ODD | change])

    def test_no_question(self):
        with pytest.raises(ValueError, match="at least one question"):
            quiz([])

    def test_same_question_twice(self):
        with pytest.raises(ValueError, match="question 2 .* is asked twice"):
            quiz([ODD, ODD])


def test_notebook_holds_both_renderings():
    source = """
        import numpy as np
        from PIL import Image
        from stylemoments.show import grid, quiz, slider
        display(grid(np.zeros((1, 2, 2, 3))))
        display(quiz([{"ask": "Is 3 odd?", "options": [("yes", "3 = 2 + 1"), ("no", "Halve it.")], "answer": 0}]))
        slider(lambda g: Image.new("L", (2, 2), g), [0, 255], label="gray", alt=str)
    """
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(dedent(source))])
    nbclient.NotebookClient(notebook, timeout=60).execute()
    kinds = [set(output.data) for output in notebook.cells[0].outputs]
    assert kinds == [{"image/png", "text/plain"}, {"text/html", "text/plain"}, {WIDGET, "text/html", "text/plain"}]


class TestBrowser:
    @pytest.fixture
    def page(self, browser, levels):
        page = browser.new_page(viewport={"width": 375, "height": 700})
        wide = slider(lambda _: Image.new("L", (900, 90)), ["wide"], label="a label", alt=str)
        page.set_content(f"{levels.html()}{quiz([EVEN, ODD])._repr_html_()}{wide.html()}")
        yield page
        page.close()

    def test_arrow_key_changes_picture_setting_and_spoken_value(self, page):
        page.get_by_role("slider", name="level", exact=True).focus()
        for key, setting, level in [("ArrowRight", "255", 255), ("ArrowLeft", "128", 128), ("Home", "0", 0)]:
            page.keyboard.press(key)
            group = page.get_by_role("group", name="level", exact=True)
            assert group.locator("img:visible").evaluate_all("all => all.map(i => i.alt)") == [words(level)]
            assert group.locator("output").inner_text() == setting
            assert group.locator("input").get_attribute("aria-valuetext") == setting

    def test_quiz_answers_the_keyboard_one_question_at_a_time(self, page):
        page.get_by_role("radio", name="no & never").focus()
        page.keyboard.press("Space")
        first, second = page.locator("[aria-live=polite]").all()
        assert (first.inner_text(), second.inner_text()) == ('Not yet. Count "again".', "")
        page.get_by_role("group", name="Is 3 odd?").get_by_role("radio", name="yes").check()
        assert second.inner_text() == "Right. 3 = 2 + 1"
        page.get_by_role("radio", name="no & never").focus()
        page.keyboard.press("ArrowUp")
        assert first.inner_text() == "Right. As 2 + 1 <is> 3."

    def test_phone_is_wide_enough(self, page):
        assert page.evaluate("document.documentElement.scrollWidth") <= 375
