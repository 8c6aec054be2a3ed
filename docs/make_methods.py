"""Make the table of methods from the registry: `python docs/make_methods.py --write` writes docs/methods.md."""

import argparse
import re
from collections.abc import Iterator
from dataclasses import MISSING, fields
from pathlib import Path

from vtcframe.pipeline import Facts, Method
from vtcframe.registry import entries

PAGE = Path(__file__).parent / "methods.md"
HEAD = """\
# Methods

Every method of ours, made from the registry by `python docs/make_methods.py --write`. Its docstring says
where it deviates from its paper or from the authors' code.

*Site* is where it acts: `projector` before the language model, `encoder:K` and `llm:K` before block K of the vision
tower and of the language model, `cache` after prefill. *Text* says whether the question matters, *batch* whether it
takes any batch: each method is tested on ragged, padded ones, where a sample must keep what it keeps alone. *Parity* is
that with numbers recorded from the authors' own code.
"""
COLUMNS = "method signal site selector dropped text batch parity options".split()


def page() -> str:
    """Return the whole page."""
    lines = [f"| {' | '.join(COLUMNS)} |", "|---" * len(COLUMNS) + "|"]
    return HEAD + "\n" + "\n".join([*lines, *rows()]) + "\n"


def rows() -> Iterator[str]:
    """Yield a line for each method by name, those without a paper last."""
    for method in sorted(methods(), key=lambda one: (not facts(one).paper, one.__name__)):
        told = facts(method)
        yes = "yes" if told.text else "no"
        cells = name(method, told.paper), told.signal, told.site, told.selector, told.dropped, yes, "any", told.parity
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in (*cells, options(method))) + " |"


def methods() -> list[type[Method]]:
    """Return those that we register, whatever else is installed."""
    ours = [entry for entry in entries() if entry.kind == "pruner" and entry.distribution.startswith("vtcframe")]
    return [found for found in (entry.load() for entry in ours) if issubclass(found, Method)]


def facts(method: type[Method]) -> Facts:
    """Return what a method says of itself, or that it does not."""
    return getattr(method, "facts", Facts("", "not told", "not told", "not told", "not told"))


def name(method: type[Method], paper: str) -> str:
    """Return the name with a link to the paper; one that is not on arXiv is named."""
    if number := re.fullmatch(r"arXiv (\d{4}\.\d{4,5})", paper):
        return f"`{method.__name__}` [{number[1]}](https://arxiv.org/abs/{number[1]})"
    return f"`{method.__name__}` {paper}".rstrip()


def options(method: type[Method]) -> str:
    """Return its fields with their defaults."""
    own = fields(method)  # pyright: ignore[reportArgumentType] (methods are dataclasses)
    return ", ".join(f"`{f.name}`" if f.default is MISSING else f"`{f.name}={f.default!r}`" for f in own)


def main() -> None:
    """Print the page, or write it."""
    parser = argparse.ArgumentParser(description="Make the table of methods from the registry.")
    parser.add_argument("--write", action="store_true", help=f"write {PAGE.name} instead of printing it")
    if parser.parse_args().write:
        PAGE.write_text(page(), encoding="utf-8")
    else:
        print(page(), end="")


if __name__ == "__main__":
    main()
