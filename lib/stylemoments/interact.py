r"""Sliders and quizzes that also work in a static page.

Both carry their own HTML with inline handlers and no outside script, so that the same cell works in a published
page, in Jupyter and on Colab. Inside a kernel a slider is also an ipywidget.
"""

import base64
import hashlib
import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from numbers import Integral

from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from PIL import Image

WIDGET = "application/vnd.jupyter.widget-view+json"

# ---------------------------------------------------------------------------------------- slider

_SLIDE = (  # inline, so that it survives where a page drops scripts; `this` is the <input>
    "const group=this.closest('[role=group]');group.querySelectorAll('img').forEach((img,i)=>{"
    "img.hidden=i!=this.value;img.style.display=img.hidden?'none':'';if(!img.hidden){"
    "group.querySelector('output').value=img.dataset.setting;"
    "this.setAttribute('aria-valuetext',img.dataset.setting)}})"
)


@dataclass(frozen=True)
class Frame:
    """One position of a slider."""

    setting: str  # as the reader sees it
    alt: str  # what the picture shows, in words
    webp: bytes  # the picture

    def html(self, *, hidden: bool = False) -> str:
        """The picture as an ``<img>`` that needs no other file."""
        source = f"data:image/webp;base64,{base64.b64encode(self.webp).decode()}"
        words = f'alt="{escape(self.alt)}" data-setting="{escape(self.setting)}"'
        style = "max-width:100%;height:auto;background:#fff"
        if hidden:  # said twice, because the style sheets of some notebooks override the attribute
            return f'<img hidden {words} style="{style};display:none" src="{source}">'
        return f'<img {words} style="{style}" src="{source}">'


@dataclass(frozen=True)
class Slider:
    """Precomputed frames: an ipywidget in a kernel, plain HTML in a page. Made by :func:`slider`."""

    label: str
    frames: tuple[Frame, ...]
    start: int

    def __repr__(self):
        first, last = self.frames[0].setting, self.frames[-1].setting
        return f"slider {self.label}: {len(self.frames)} frames, {first} … {last}"

    def html(self) -> str:
        """The slider as self-contained HTML, equal at every call."""
        label, setting = escape(self.label), escape(self.frames[self.start].setting)
        images = "\n".join(frame.html(hidden=i != self.start) for i, frame in enumerate(self.frames))
        return f"""<div role="group" aria-label="{label}" style="text-align:left">
<div style="display:flex;flex-wrap:wrap;align-items:center;gap:.5em;margin:.25em 0">
<label style="display:flex;align-items:center;gap:.5em;margin:0">{label}
<input type="range" min="0" max="{len(self.frames) - 1}" step="1" value="{self.start}" autocomplete="off"
 aria-valuetext="{setting}" style="width:14em;max-width:60vw" oninput="{_SLIDE}"></label>
<output aria-live="off">{setting}</output>
</div>
{images}
</div>"""

    def widget(self):
        """The slider as a live ipywidget, for a running kernel."""
        import ipywidgets  # here: it takes longer to import than everything else in this room

        options = [(frame.setting, i) for i, frame in enumerate(self.frames)]
        slide = ipywidgets.SelectionSlider(description=self.label, options=options, value=self.start)
        slide.style.description_width = "initial"
        picture = ipywidgets.HTML(self.frames[self.start].html())
        slide.observe(lambda change: setattr(picture, "value", self.frames[change["new"]].html()), "value")
        return ipywidgets.VBox([slide, picture])

    def _repr_mimebundle_(self, include=None, exclude=None):
        bundle = {"text/plain": repr(self), "text/html": self.html()}
        try:
            view = {"version_major": 2, "version_minor": 0, "model_id": self.widget().model_id}
        except Exception:  # widgets fail in many ways where nothing answers them; the HTML still moves
            return bundle
        return {WIDGET: view, **bundle}


def _words(setting) -> str:
    """A setting as the reader sees it: six significant digits, so 0.1 + 0.2 reads 0.3."""
    return str(setting) if isinstance(setting, str | Integral) else f"{setting:.6g}"


def _webp(picture: Figure | Image.Image) -> bytes:
    """The picture as WebP; figures are closed."""
    if isinstance(picture, Figure):
        drawing, figure = io.BytesIO(), picture
        figure.savefig(drawing, format="png")
        plt.close(figure)
        picture = Image.open(drawing)
    if not isinstance(picture, Image.Image):
        raise TypeError(f"frame(setting) must return a matplotlib Figure or a PIL image; got {type(picture).__name__}")
    webp = io.BytesIO()
    picture.save(webp, "webp", quality=90)
    return webp.getvalue()


def slider(frame: Callable, settings: Sequence, *, label: str, alt: Callable[..., str], start: int = 0) -> Slider:
    """A slider over precomputed pictures that moves in a kernel and in a static page alike.

    Args:
        frame: ``frame(setting)`` returns a matplotlib Figure, which is then closed, or a PIL image. It is
            called once per setting.
        settings: numbers or strings, in the order of the slider.
        label: what the slider sets, such as "α".
        alt: ``alt(setting)`` says in words what that picture shows.
        start: index of the setting shown first.

    Raises:
        ValueError: no settings, ``start`` out of range, or an empty alternative text.
        TypeError: a frame that is neither Figure nor PIL image.

    Example:
        >>> slider(lambda g: Image.new("L", (8, 8), g), [0, 128, 255], label="gray", alt=lambda g: f"gray {g}")
        slider gray: 3 frames, 0 … 255
    """
    settings = list(settings)
    if not settings:
        raise ValueError("slider needs at least one setting; got an empty list")
    if start not in range(len(settings)):
        raise ValueError(f"start is an index from 0 to {len(settings) - 1}; got {start}")
    alts = [alt(setting) for setting in settings]
    for setting, text in zip(settings, alts, strict=True):
        if not (isinstance(text, str) and text.strip()):
            raise ValueError(f"alt(setting) must say in words what the picture shows; got {text!r} for {setting!r}")
    frames = (Frame(_words(s), text, _webp(frame(s))) for s, text in zip(settings, alts, strict=True))
    return Slider(label, tuple(frames), start)


# ---------------------------------------------------------------------------------------- quiz


def _rich(text: str) -> str:
    """Text as HTML, with `code` between backticks."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text))


def _check(number: int, question: dict) -> None:
    name = f"question {number} ({question.get('ask')!r})"
    if set(question) != {"ask", "options", "answer"}:
        raise ValueError(f"{name} needs the keys ask, options, answer; got {', '.join(question)}")
    if not (isinstance(question["ask"], str) and question["ask"].strip()):
        raise ValueError(f"{name} needs a text to ask")
    options = question["options"]
    if len(options) < 2 or not all(len(o) == 2 and all(isinstance(t, str) for t in o) for o in options):
        raise ValueError(f"{name} needs two or more options, each a pair (text, feedback); got {options!r}")
    if question["answer"] not in range(len(options)):
        raise ValueError(f"{name} needs an answer from 0 to {len(options) - 1}, an index; got {question['answer']!r}")


@dataclass(frozen=True)
class Quiz:
    """Questions with feedback on every option. Made by :func:`quiz`."""

    questions: tuple[dict, ...]

    def __repr__(self):
        lines = []
        for number, question in enumerate(self.questions, start=1):
            options = [f"   {chr(ord('a') + i)}) {text}" for i, (text, _) in enumerate(question["options"])]
            lines += [f"{number}. {question['ask']}", *options]
        return "\n".join(lines)

    def _repr_html_(self):
        return "\n".join(map(_fieldset, self.questions))


def _fieldset(question: dict) -> str:
    group = "quiz-" + hashlib.sha256(question["ask"].encode()).hexdigest()[:8]
    options = []
    for i, (text, feedback) in enumerate(question["options"]):
        verdict = "Right." if i == question["answer"] else "Not yet."
        says = escape(f"<strong>{verdict}</strong> {_rich(feedback)}")
        options.append(
            f'<label style="display:block;margin:.3em 0"><input type="radio" name="{group}" autocomplete="off"'
            f' data-says="{says}"> {_rich(text)}</label>'
        )
    choices = "\n".join(options)
    return f"""<fieldset style="min-width:0;margin:0 0 1em;text-align:left"
 onchange="this.querySelector('[aria-live]').innerHTML=event.target.dataset.says">
<legend style="float:none;font-size:1em;font-weight:600">{_rich(question["ask"])}</legend>
{choices}
<p aria-live="polite" style="margin:.3em 0;min-height:1.5em"></p>
</fieldset>"""


def quiz(questions: Sequence[dict]) -> Quiz:
    """A self-check quiz that answers in a static page, in Jupyter and on Colab, without a server.

    Args:
        questions: dicts ``{"ask": str, "options": [(text, feedback), …], "answer": index}``. All texts are
            plain, except that `code` between backticks is set as code.

    Raises:
        ValueError: no question, the same question twice, or a question that lacks a part; the message names it.

    Example:
        >>> quiz([{"ask": "Is 2 even?", "options": [("yes", "2 = 2·1"), ("no", "Halve it.")], "answer": 0}])
        1. Is 2 even?
           a) yes
           b) no
    """
    if not questions:
        raise ValueError("quiz needs at least one question; got an empty list")
    for number, question in enumerate(questions, start=1):
        _check(number, question)
        if question["ask"] in [other["ask"] for other in questions[: number - 1]]:
            raise ValueError(f"question {number} ({question['ask']!r}) is asked twice; reword one of them")
    return Quiz(tuple(questions))
