"""What tests share: the built book, a server for it, and a browser."""

import re
import shutil
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = re.findall(r"^[\s-]*(?:root|file): (\S+)", (ROOT / "_toc.yml").read_text("utf-8"), re.MULTILINE)
NOTEBOOKS = [page for page in PAGES if page.startswith("notebooks/")]
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


@pytest.fixture(scope="session")
def built_book() -> Path:
    """The folder that `make book` fills."""
    book = ROOT / "_build" / "html"
    if not (book / "index.html").exists():
        pytest.fail("the book is not built: run `make book` first", pytrace=False)
    return book


@pytest.fixture(scope="session")
def served_book(built_book):
    """The address of the built book on this machine, without a slash at its end."""
    server = ThreadingHTTPServer(("localhost", 0), partial(QuietHandler, directory=built_book))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://localhost:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="session")
def browser():
    """The system's Chromium or Chrome, driven by Playwright."""
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        pytest.skip(f"no browser ({', '.join(BROWSERS)}): install one, e.g. `sudo apt-get install chromium`")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield browser
        browser.close()
