"""The site: it builds without a warning, its links lead somewhere, and its pages work in a browser, offline."""

import os
import re
import subprocess
import sys
import threading
from functools import partial
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

pytest.importorskip("mkdocs", reason="the dependency group `docs` is not installed")

from markdown.extensions.toc import slugify
from mkdocs.config import load_config

from support.browser import NARROW, WIDE, started, watched
from support.page_commands import commands_of_dev
from support.page_folder import ROOT

NAME = "vtcframe"
LOADED = {"img", "script", "source", "iframe", "video", "audio", "embed", "object"}


class Html(HTMLParser):
    """What a page links to, what it loads, its ids, and its pictures without words."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.ids: set[str] = set()
        self.wordless: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        told = {name: value or "" for name, value in attrs}
        self.ids |= {told[name] for name in ("id", "name") if name in told}
        if tag == "a" and "href" in told:
            self.links.append(told["href"])
        if tag == "link" and told.get("rel") != "canonical":
            self.loads.append(told["href"])
        if tag in LOADED:
            self.loads += [told[name] for name in ("src", "data", "poster") if name in told]
        if tag == "img" and not told.get("alt"):
            self.wordless.append(told.get("src", ""))


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The folder of the site, as `python3 dev.py docs build` makes it, and what was said about it."""
    folder = tmp_path_factory.mktemp("site")
    (command,) = commands_of_dev(["docs", "build", "--strict", "--site-dir", str(folder)])
    quiet = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run([sys.executable, *command[1:]], cwd=ROOT, capture_output=True, text=True, env=quiet)
    assert done.returncode == 0, done.stderr
    return folder, done.stdout + done.stderr


@pytest.fixture(scope="module")
def site(built):
    return built[0]


@pytest.fixture(scope="module")
def pages(site):
    """File of each page -> what is in it."""
    return {path: Html(path) for path in sorted(site.rglob("*.html"))}


def titles(nav):
    """Return the file of each page of the navigation -> its title there, None where that is its heading."""
    told = {}
    for entry in nav:
        title, inner = next(iter(entry.items())) if isinstance(entry, dict) else (None, entry)
        if isinstance(inner, list):
            told |= titles(inner)
        else:
            told[inner.removesuffix("index.md") if inner.endswith("index.md") else f"{inner.removesuffix('.md')}/"] = (
                title
            )
    return told


def test_nothing_is_said_of_a_build_but_that_it_was_done(built):
    usual = re.compile(r"INFO +- +(Cleaning site directory|Building documentation to|Documentation built in)")
    unusual = [line for line in built[1].splitlines() if line and not usual.match(line)]
    assert not unusual, "\n".join(unusual)


def test_every_link_leads_to_a_file_of_the_site_and_an_id_in_it(site, pages):
    broken = []
    for path, page in pages.items():
        for link in page.links + page.loads:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            start = site if parts.path.startswith("/") else path.parent
            file = (start / unquote(parts.path).lstrip("/")).resolve() if parts.path else path
            file = file / "index.html" if file.is_dir() else file
            inside = file.is_relative_to(site) and file.is_file()
            if not inside or (parts.fragment and file in pages and unquote(parts.fragment) not in pages[file].ids):
                broken.append(f"{path.relative_to(site)}: {link}")
    assert not broken, "\n".join(broken)


def test_nothing_but_links_for_readers_points_elsewhere(site, pages):
    for page in pages.values():
        assert {urlsplit(link).scheme for link in page.links} <= {"", "http", "https"}
        assert [link for link in page.loads if urlsplit(link).netloc or urlsplit(link).scheme not in ("", "data")] == []
    for style in site.rglob("*.css"):
        assert re.findall(r"""(?:url\(|@import)\s*["']?(?:https?:)?//""", style.read_text(encoding="utf-8")) == []


def test_every_picture_has_words(pages):
    assert [link for page in pages.values() for link in page.wordless] == []


def prose(text):
    """Return Markdown without its code."""
    return re.sub(r"`[^`]*`", "", re.sub(r"(?ms)^```.*?^```", "", text))


def anchors(path):
    headings = re.findall(r"(?m)^#+ (.*)$", re.sub(r"(?ms)^```.*?^```", "", path.read_text(encoding="utf-8")))
    return {slugify(heading, "-") for heading in headings}


@pytest.mark.parametrize("name", ["README.md", "CHANGELOG.md", "CONTRIBUTING.md"])
def test_links_between_files_of_the_repository_lead_somewhere(name):
    for link in re.findall(r"\]\(<?([^)\s>]+)", prose((ROOT / name).read_text(encoding="utf-8"))):
        parts = urlsplit(link)
        if parts.scheme in ("http", "https"):
            continue
        path = ROOT / unquote(parts.path) if parts.path else ROOT / name
        assert path.exists(), link
        assert not parts.fragment or parts.fragment in anchors(path), link


# In a browser


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *words):
        pass


@pytest.fixture(scope="module")
def address(site):
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(site))) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def browser():
    with started() as chromium:
        yield chromium


def test_every_page_works_in_a_browser_and_asks_nobody_else(browser, address, site, pages):
    headed = titles(load_config(str(ROOT / "mkdocs.yml"))["nav"])
    wrong = []
    with watched(browser, WIDE) as (page, said, asked):
        for path in pages:
            name = path.relative_to(site).as_posix().removesuffix("index.html")
            page.set_viewport_size({"width": WIDE, "height": 780})
            page.goto(address + name)
            wrong += [f"{name}: {words}" for words in said]
            wrong += [f"{name} asks for {url}" for url in asked if not url.startswith((address, "data:", "blob:"))]
            lost = "all => all.filter(one => !one.complete || !one.naturalWidth).map(one => one.src)"
            wrong += [f"{name} does not show {picture}" for picture in page.eval_on_selector_all("img", lost)]
            heading = headed.get(name) or page.locator("h1").first.evaluate("one => one.firstChild.textContent")
            if name in headed and page.title() != (f"{heading} - {NAME}" if name else NAME):
                wrong.append(f"{name} is titled {page.title()}, not {heading}")
            for width in (WIDE, NARROW):
                page.set_viewport_size({"width": width, "height": 780})
                if (across := page.evaluate("document.documentElement.scrollWidth")) > width:
                    wrong.append(f"{name} is {across} pixels across on a screen of {width}")
            said.clear()
            asked.clear()
    assert not wrong, "\n".join(wrong)
    assert {path.relative_to(site).as_posix().removesuffix("index.html") for path in pages} >= set(headed)


def test_a_word_is_found_and_the_first_result_has_it(browser, address):
    with watched(browser, WIDE) as (page, said, _):
        page.goto(address)
        page.get_by_role("textbox", name="Search").click()
        page.keyboard.type("budget")
        found = page.locator("a.md-search-result__link")
        found.first.wait_for()
        assert found.count() > 2
        leads = found.first.evaluate("one => one.href")
        found.first.click()
        page.wait_for_url(leads)
        assert page.url != address
        assert "budget" in page.locator("article").inner_text().lower()
        assert said == []
