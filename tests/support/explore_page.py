"""The page of `vtcframe explore`, served by a separate process.

`python tests/support/explore_page.py docs/images/explore.png` regenerates the screenshot of docs/explore.md.
"""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from vtcframe import Pruner, RandomPruner

pytest.importorskip("gradio", reason="the extra `explore` is not installed")


CHROMIUM = Path("/usr/bin/chromium")


QUIET = "--no-sandbox --disable-gpu --disable-background-networking --disable-component-update".split()


SERVER = """
import signal
import sys

signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored by default in background processes

def audit(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo", "webbrowser.open"):
        print("AUDIT", event, arguments[1] if event == "socket.connect" else arguments[:2], file=sys.stderr, flush=True)

sys.addaudithook(audit)
from vtcframe.explore.command import main

sys.exit(main(sys.argv[1:]))
"""


@dataclass(frozen=True)
class Breaks(Pruner):
    """A third-party pruner that fails."""

    def __call__(self, evidence, budget=None):
        return 1 / 0


@dataclass(frozen=True)
class Alone(Pruner):
    """A pruner that fails if another call is running."""

    def __call__(self, evidence, budget=None):
        assert BUSY.acquire(blocking=False), "two calls at a time"
        try:
            time.sleep(0.3)
            return RandomPruner()(evidence, budget)
        finally:
            BUSY.release()


BUSY = threading.Lock()


@contextmanager
def serving(folder):
    """Yield the page's address and the lines that its process has printed; gradio stores its files in `folder`."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    proxy = "http://127.0.0.1:9"  # an unused address: requests through the proxy would fail
    environment = os.environ | {
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "HTTP_PROXY": proxy,
        "HTTPS_PROXY": proxy,
        "GRADIO_TEMP_DIR": str(folder),
    }
    environment["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-c", SERVER, "--port", port, "--no-browser"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
    ) as process:
        lines = []
        reader = threading.Thread(target=lambda: lines.extend(process.stdout))
        reader.start()
        try:
            for _ in range(1200):
                if any("Serving" in line for line in lines) or process.poll() is not None:
                    break
                time.sleep(0.1)
            yield f"http://127.0.0.1:{port}/", lines
        finally:
            process.send_signal(signal.SIGINT)
            try:
                assert process.wait(timeout=60) == 0
            finally:
                process.kill()
                reader.join()


def answer_panels(page):
    """Press the button and return the panels of the new answer."""
    page.evaluate("document.querySelectorAll('.vtc-answers').forEach(panel => panel.setAttribute('data-old', ''))")
    page.get_by_role("button", name="Ask").click()
    page.locator(".vtc-answers:not([data-old])").wait_for()
    return page.get_by_role("region", name="Answers")


def draw(path):
    """Write the screenshot of docs/explore.md."""
    from playwright.sync_api import sync_playwright

    with TemporaryDirectory() as folder, serving(folder) as (address, _), sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=str(CHROMIUM), args=QUIET)
        page = chromium.new_page(viewport={"width": 1120, "height": 900})
        page.goto(address)
        answer_panels(page)
        page.screenshot(path=path, full_page=True)
        chromium.close()


if __name__ == "__main__":
    draw(sys.argv[1])
