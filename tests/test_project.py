"""What the files around the package promise each other: one address, one version, one set of requirements."""

import re
import subprocess
import tomllib
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import skimage.data
import sklearn.datasets
import yaml
from conftest import version_controlled
from packaging.requirements import Requirement
from PIL import Image

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
README = (ROOT / "README.md").read_text("utf-8")
SETUP = (ROOT / "book/setup.md").read_text("utf-8")
MAKEFILE = (ROOT / "Makefile").read_text("utf-8")


def load(path: str):
    return yaml.safe_load((ROOT / path).read_text("utf-8"))


PYTHONS = load(".github/workflows/tests.yml")["jobs"]["test"]["strategy"]["matrix"]["python"]


def block(text: str, language: str) -> str:
    """The first fenced block of a language."""
    return re.search(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)[1]


@pytest.fixture(scope="module")
def texts() -> dict[str, str]:
    """Every text file that is, or is about to be, under version control, without what others wrote."""
    found = {}
    for name in version_controlled():
        path = ROOT / name
        if path.is_file() and not name.startswith("book/_static/mathjax/"):
            found[name] = path.read_text("utf-8", errors="ignore")
    return found


# ------------------------------------------------------------------------------------- requirements


def requirement_lines() -> list[str]:
    lines = (ROOT / "requirements.txt").read_text("utf-8").splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def test_environment_repeats_the_requirements():
    pip = load("environment.yml")["dependencies"][-1]["pip"]
    assert pip == requirement_lines(), "make the pip section of environment.yml equal requirements.txt, line by line"


def test_conda_gets_a_supported_python():
    python = Requirement(load("environment.yml")["dependencies"][0].replace("=", "=="))
    assert python.name == "python"
    assert str(python.specifier)[2:] in PYTHONS, f"environment.yml must pin one of Python {PYTHONS}"


@pytest.mark.parametrize("line", requirement_lines())
def test_requirement_is_what_is_installed(line):
    pinned = Requirement(line)
    installed = version(pinned.name)
    assert str(pinned.specifier).startswith("=="), f"pin the tested version in requirements.txt: {line}"
    assert pinned.specifier.contains(installed), f"{pinned.name} {installed} is installed, not {line}: run `make setup`"


@pytest.mark.parametrize("bound", [*PROJECT["dependencies"], *sum(PROJECT["optional-dependencies"].values(), [])])
def test_requirements_satisfy_the_package(bound):
    bound = Requirement(bound)
    pins = {pin.name: str(pin.specifier)[2:] for pin in map(Requirement, requirement_lines())}
    assert bound.name in pins, f"pyproject.toml needs {bound.name}: add the tested version to requirements.txt"
    assert bound.specifier.contains(pins[bound.name]), f"pyproject.toml wants {bound}, requirements.txt has another"


# ------------------------------------------------------------------------------------- one address, no machine


def test_address_stands_in_the_config_only(texts):
    slug = "/".join(load("_config.yml")["repository"]["url"].rstrip("/").split("/")[-2:])
    made = re.compile(r"(notebooks|assignments)/.*\.ipynb$")  # their setup cell reads it from there
    places = {name for name, text in texts.items() if slug in text and not made.match(name)}
    assert places == {"_config.yml"}, "read the address from _config.yml; in pages write {{ repository }}"


@pytest.mark.parametrize(
    "pattern",
    [
        r"(?<![\w.~:)}-])/(work|tmp|home|root|Users|private|mnt)/\w",
        r"\b(pypi\.org|pythonhosted\.org|npmjs\.(org|com)|download\.pytorch\.org)\b",
        r"--(extra-)?index-url|\.\./shared\b",
    ],
)
def test_no_file_names_a_machine_or_a_registry(texts, pattern):
    found = [
        f"{name}: {match[0]}"
        for name, text in texts.items()
        if ROOT / name != Path(__file__)
        for match in [re.search(pattern, text)]
        if match
    ]
    assert not found, f"these would be wrong on any other machine, take them out: {found}"


# ------------------------------------------------------------------------------------- README


def tree() -> dict[str, str]:
    """README's tree as path -> phrase; two spaces of indent are one level."""
    entries, parents = {}, []
    for line in block(README, "text").splitlines():
        level = (len(line) - len(line.lstrip())) // 2
        name, _, phrase = line.strip().partition(" ")
        parents = [*parents[:level], name]
        entries["".join(parents)] = phrase.strip()
    return entries


@pytest.mark.parametrize("path", tree())
def test_tree_names_what_exists(path):
    assert (ROOT / path).is_dir() == path.endswith("/"), f"README's tree: fix {path} (folders end in /)"
    assert (ROOT / path).exists(), f"README's tree names {path}, which is not there"
    assert tree()[path], f"README's tree: say in a phrase what {path} is"


def test_tree_is_complete(texts):
    top = {name.split("/")[0] + "/" * ("/" in name) for name in texts}
    rooms = {name for name in texts if re.match(r"lib/stylemoments/[a-z]\w*\.py$", name)}
    pages = {name for name in texts if re.match(r"book/[^/]+$", name)}
    missing = (top | rooms | pages) - tree().keys()
    assert not missing, f"add to the tree of README.md, with a phrase each: {sorted(missing)}"


@pytest.mark.parametrize("page", sorted(path.name for path in ROOT.glob("*.md")))
def test_links_to_files_resolve(page):
    links = re.findall(r"\]\((?!https?:)([^)#]+)", (ROOT / page).read_text("utf-8"))
    missing = [link for link in links if not (ROOT / link).exists()]
    assert not missing, f"{page} links to files that are not there: {missing}"


def test_ten_lines_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    program = block(README, "python")
    exec(program, {})
    restyled = np.asarray(Image.open("restyled.png")).mean((0, 1))
    content, style = (sklearn.datasets.load_sample_image(name).mean((0, 1)) for name in ("china.jpg", "flower.jpg"))
    # Clamping to [0, 1] keeps the means from arriving in full.
    assert np.all(np.abs(restyled - style) < 0.25 * np.abs(content - style)), "README's program: not the style's colors"
    assert len([line for line in program.splitlines() if line]) <= 10, "README promises ten lines"


# ------------------------------------------------------------------------------------- versions


def test_citation_has_the_version_and_no_address():
    citation = load("CITATION.cff")
    assert citation["cff-version"] == "1.2.0"
    assert citation["version"] == PROJECT["version"], "set the version of pyproject.toml in CITATION.cff"
    assert not {"repository", "repository-code", "url"} & citation.keys(), "the address belongs in _config.yml alone"


def test_changelog_and_readme_have_the_version():
    newest = re.search(r"^## \[(.+)\] - (.+)$", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.MULTILINE)
    assert newest[1] == PROJECT["version"], "head the newest section of CHANGELOG.md with the version of pyproject.toml"
    assert newest[2] == load("CITATION.cff")["date-released"], "CHANGELOG.md and CITATION.cff must agree on the date"
    assert f"version {PROJECT['version']}" in README, "set the version in the citation of README.md"


def test_promised_pythons_are_tested():
    promise = "Python {}, {} or {}".format(*PYTHONS)
    assert promise in README and promise in SETUP, f"README.md and book/setup.md must say: {promise}"
    assert PROJECT["requires-python"] == f">={PYTHONS[0]}", "pyproject.toml must ask for the oldest Python of tests.yml"


# ------------------------------------------------------------------------------------- commands


def targets() -> set[str]:
    return set(re.search(r"^\.PHONY: (.*)$", MAKEFILE, re.MULTILINE)[1].split())


def test_every_target_has_a_line_of_help():
    rules = set(re.findall(r"^([a-z][\w-]*):", MAKEFILE, re.MULTILINE))
    assert rules == targets(), "name exactly the targets of the Makefile in .PHONY"
    shown = subprocess.run(
        ["make", "--no-print-directory", "help"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    assert {line.split()[0] for line in shown.splitlines() if len(line.split()) > 1} == targets(), (
        "give every target of the Makefile a help text after ##"
    )


def test_ci_runs_what_the_readme_says():
    commands = block(README, "sh").splitlines()
    assert commands == ["make book", "make test"]
    script = (ROOT / ".ci/run").read_text("utf-8").splitlines()
    assert [line for line in script if line.startswith("make")] == commands, "let .ci/run run README's two commands"
    assert script[-2:] == commands, ".ci/run must end with them, so that pytest's closing line comes last"


def test_every_command_in_the_texts_exists(texts):
    spoken = r"(?:`|^|\n|run: |[ ]{2}|&& )(?:\w+=\w+ )?make ([a-z]+)"
    named = {name: set(re.findall(spoken, text)) for name, text in texts.items() if re.search(r"\.(md|ya?ml)$", name)}
    unknown = {name: found - targets() for name, found in named.items() if found - targets()}
    assert named["README.md"] >= {"book", "test"}
    assert not unknown, f"these are no targets of the Makefile: {unknown}"


@pytest.mark.parametrize("target", ["book", "test"])
def test_windows_users_type_what_make_runs(target):
    recipe = re.search(rf"^{target}:.*\n\t(?:\w+=\w+ )?\S+ ?(.*)$", MAKEFILE, re.MULTILINE)[1]
    typed = block(SETUP, "powershell").splitlines()
    assert any(line.endswith(f" {recipe}") for line in typed), f"book/setup.md, Windows: `make {target}` runs {recipe}"


# ------------------------------------------------------------------------------------- licenses


def test_both_licenses_are_there_in_full():
    text = " ".join((ROOT / "LICENSE").read_text("utf-8").split())
    ends = ["APPENDIX: How to apply the Apache License to your work.", "may be contacted at creativecommons.org."]
    assert all(end in text for end in ends), "LICENSE must carry the whole texts of Apache-2.0 and CC BY 4.0"


def test_what_others_made_is_listed(texts):
    sources = "".join(
        text
        for name, text in texts.items()
        if re.match(r"book/(chapters|_tools)/|classroom/|README|lib/(?!stylemoments/gallery/index.csv)", name)
    )  # the gallery's index names author and license itself, and tests/test_gallery.py checks it
    photographs = set(re.findall(r"\b\w+\.jpg\b", sources)) - {"photo.jpg", "PHOTO.jpg", "PAINTING.jpg"}  # yours
    loaders = set(re.findall(r"\bload_\w+(?=\()", sources)) & set(sklearn.datasets.__all__)
    images = set(re.findall(r"\bdata\.([a-z_]+)\(", sources)) & set(skimage.data.__all__)
    vendored = {folder.relative_to(ROOT).as_posix() for folder in (ROOT / "book/_static").glob("*/")}
    missing = {name for name in photographs | loaders | images | vendored if name not in texts["DATA_LICENSES.md"]}
    assert not missing, f"add to DATA_LICENSES.md who made these and under which license: {sorted(missing)}"
