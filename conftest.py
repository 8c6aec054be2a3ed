"""Every example of README and docs is checked: tests/support/page_examples.py."""

import os

from sybil import Sybil

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing here may reach a network

from support.page_examples import close, parse

collect_ignore_glob = ["docs/examples/*/tests"]  # want their distribution installed: test_third_party runs them there
PAGES = ["README.md", "CONTRIBUTING.md", "docs/*.md", "docs/examples/*/README.md"]
pytest_collect_file = Sybil(parsers=[parse], patterns=PAGES, teardown=close).pytest()


def pytest_terminal_summary(terminalreporter, config):
    """Print which tests the default run leaves out, and how to run them."""
    if deselected := len(terminalreporter.stats.get("deselected", [])):
        terminalreporter.write_line(
            f"{deselected} tests left out by -m {config.option.markexpr!r}; python3 dev.py test -m slow runs those in "
            "several processes, and python3 dev.py test -m matrix the full product of each law's axes"
        )
