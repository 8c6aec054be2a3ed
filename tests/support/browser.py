"""A real browser for pages of ours: headless Chromium, and what a page says and asks for."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = Path("/usr/bin/chromium")
QUIET = "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"
NARROW, WIDE = 360, 1280  # pixels across: a phone, a screen


@contextmanager
def started() -> Iterator[Any]:
    """Start it; the tests that want it are skipped where there is none."""
    driver = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if not CHROMIUM.exists():
        pytest.skip(f"there is no {CHROMIUM}")
    with (
        driver.sync_playwright() as playwright,
        playwright.chromium.launch(executable_path=str(CHROMIUM), args=list(QUIET)) as chromium,
    ):
        yield chromium


@contextmanager
def watched(browser: Any, width: int = NARROW) -> Iterator[tuple[Any, list[str], list[str]]]:
    """Open an empty page; with it come what it says (console, errors) and every address that it asks for."""
    page = browser.new_page(viewport={"width": width, "height": 780})
    said: list[str] = []
    asked: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    yield page, said, asked
    page.close()
