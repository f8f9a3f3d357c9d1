"""What this book needs beyond Jupyter Book: its version, its cache, its scripts and its ledger of claims.

Settings that follow from other files are derived here, so that nobody has to write them twice:
the tag that Colab buttons open, the words ``{{ repository }}``, ``{{ version }}`` and ``{{ tag }}`` in
pages, and the folder of the execution cache.
"""

import hashlib
import json
import re
import tomllib
from pathlib import Path

import yaml
from docutils import nodes
from sphinx.util.docutils import SphinxDirective

WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"
# Scripts that pages never use: live code through an outside server, and the state of widgets.
UNUSED_SCRIPTS = re.compile(r"thebe|application/vnd\.jupyter\.widget-state\+json", re.IGNORECASE)


def configure(app, config):
    """Derive settings from ``pyproject.toml``, ``_config.yml`` and the sources of the library."""
    root = Path(app.srcdir)
    version = tomllib.loads((root / "pyproject.toml").read_text("utf-8"))["project"]["version"]
    options = config.html_theme_options
    options["repository_branch"] = f"v{version}"
    options["logo"] = {"text": config.html_title, "alt_text": "Two bell curves, one narrow and one wide"}
    config.myst_substitutions = {
        "repository": options["repository_url"],
        "version": version,
        "tag": f"v{version}",
    }
    # The notebook cache looks at the notebooks' own code only: a change of the library needs a new one.
    library = fingerprint(root, "requirements.txt", "lib/**/*.py")
    config.nb_execution_cache_path = str(Path(app.outdir).parent / ".jupyter_cache" / library)
    config.nb_mime_priority_overrides = [("*", WIDGET_VIEW, None)]  # sliders bring text/html of their own
    config.nb_ipywidgets_js = {}


def fingerprint(root: Path, *patterns: str) -> str:
    """Hash the files below ``root`` that match the patterns, names and contents, to 16 hex digits."""
    digest = hashlib.sha256()
    for path in sorted(file for pattern in patterns for file in root.glob(pattern) if file.is_file()):
        content = path.read_bytes()
        digest.update(f"{path.relative_to(root).as_posix()} {len(content)}\n".encode() + content)
    return digest.hexdigest()[:16]


def begin(app, config):
    """Read every page again unless the last build finished without warnings and had this same tooling.

    Sphinx by itself keeps what a killed build left, passes the second time ``-W`` is run on the same
    warning, and leaves out style sheets that change when no page does.
    """
    tooling = fingerprint(Path(app.srcdir), "book/_ext/**/*.py", "book/_static/**/*")
    finished = Path(app.doctreedir) / "finished"
    if not finished.exists() or finished.read_text("utf-8") != tooling:
        (Path(app.doctreedir) / "environment.pickle").unlink(missing_ok=True)
    finished.unlink(missing_ok=True)
    app.connect("build-finished", lambda app, error: error or app._warncount or finished.write_text(tooling))


def substitute(app, docname, source):
    """Fill in ``{{ repository }}`` and the like also where MyST does not: in links and in code blocks."""
    for word, value in app.config.myst_substitutions.items():
        source[0] = re.sub(rf"{{{{\s*{word}\s*}}}}", value, source[0])


def tidy_scripts(app, pagename, templatename, context, doctree):
    """Keep one copy of every script of a page and none that it never uses."""
    tidy = {}
    for script in context["script_files"]:
        key = (str(script.filename or ""), str(sorted(script.attributes.items())))
        if not UNUSED_SCRIPTS.search(" ".join(key)):
            tidy.setdefault(key, script)
    context["script_files"] = list(tidy.values())


class ClaimsLedger(SphinxDirective):
    """``{claims-ledger}``: the claims of ``claims.yml``, which lies beside the page, a section per chapter."""

    def run(self):
        file = Path(self.env.doc2path(self.env.docname)).with_name("claims.yml")
        self.env.note_dependency(str(file))
        claims = yaml.safe_load(file.read_text("utf-8"))
        chapters = dict.fromkeys(claim["chapter"] for claim in claims)
        return self.parse_text_to_nodes(summary(claims)) + [self.section(name, claims) for name in chapters]

    def section(self, chapter, claims):
        notebook = Path(self.env.srcdir, "notebooks", f"{chapter}.ipynb")
        self.env.note_dependency(str(notebook))
        texts = [f"Measured in {{doc}}`/notebooks/{chapter}`."]
        texts += [card(claim) for claim in claims if claim["chapter"] == chapter]
        title = nodes.title(text=heading(notebook))
        return nodes.section("", title, *self.parse_text_to_nodes("\n\n".join(texts)), ids=[f"claims-{chapter}"])


def heading(notebook: Path) -> str:
    """Read the title of a notebook: the ``# `` line of its first Markdown cell that has one."""
    cells = json.loads(notebook.read_text("utf-8"))["cells"]
    text = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
    return re.search(r"^# (.+)$", text, re.MULTILINE)[1]


def summary(claims: list[dict]) -> str:
    """Count the verdicts, e.g. ``"3 claims: 1 holds, 1 does not hold, 1 not measured yet."``."""
    verdicts = [claim.get("measured", {}).get("holds") for claim in claims]
    held, failed, waiting = (verdicts.count(verdict) for verdict in (True, False, None))
    text = f"{len(claims)} claims: {held} {'holds' if held == 1 else 'hold'}"
    text += f", {failed} {'does' if failed == 1 else 'do'} not hold"
    return text + (f", {waiting} not measured yet." if waiting else ".")


def card(claim: dict) -> str:
    """Write one claim as MyST text: its statement, verdict, source, measure and result."""
    source = f"{{cite:t}}`{claim['source']}`" if "source" in claim else "This book"
    verdict, result = outcome(claim.get("measured"))
    return f"""({claim["id"]})=
::::{{container}} claim
**{claim["statement"]}** [{verdict}]{{.verdict .{verdict.lower().replace(" ", "-")}}}

Source
: {source}

Measure
: {claim["measure"]}

Result
: {result}
::::"""


def outcome(measured: dict | None) -> tuple[str, str]:
    """Put in words: ``("Holds", "31.2 points (95 % interval 28.1 to 34), n = 5 (seeds 0–4)")``."""
    if not measured:
        return "Not measured yet", "Run `make claims` to measure it."
    numbers = (f"{measured[key]:g}".replace("-", "\N{MINUS SIGN}") for key in ("effect", "low", "high"))
    result = "{} {unit} (95 % interval {} to {}), n = {n} ({over})".format(*numbers, **measured)
    return "Holds" if measured["holds"] else "Does not hold", result


def setup(app):
    app.add_directive("claims-ledger", ClaimsLedger)
    app.connect("config-inited", configure)
    app.connect("config-inited", begin)
    app.connect("source-read", substitute)
    app.connect("html-page-context", tidy_scripts, priority=900)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
