"""Make the tables of the site from the registry: `python docs/make_tables.py` writes them into their pages.

The texts come from cards and docstrings of methods, components and adapters. The columns on backbones are read from a
tiny model of each family with its real processor.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any

from vtcframe import Adapter, AttentionRows, EncoderAdapter, adapter_for
from vtcframe.core.method import Method, MethodCard
from vtcframe.registry import KINDS, Entry, entries
from vtcframe.testing import BACKBONES, make_inputs, samples_of

DOCS = Path(__file__).parent
BEGIN, END = "<!-- made by make_tables.py -->\n", "<!-- end of what is made -->\n"


def methods() -> Iterator[str]:
    """Yield the table of methods, sorted by name, with those without a paper last."""
    columns = "method signal site selector dropped text batch parity options".split()
    pruners = [method for method in map(Entry.load, own_entries("pruner")) if issubclass(method, Method)]
    lines = []
    for method in sorted(pruners, key=lambda method: (not card_of(method).paper, method.__name__)):
        card = card_of(method)
        text = "yes" if card.text else "no"
        cells = card.signal, card.site, card.selector, card.dropped, text, "any", card.parity, options(method)
        lines.append([link_paper(method, card.paper), *cells])
    yield from table(columns, lines)


def components() -> Iterator[str]:
    """Yield a table for each kind of component, without methods and adapters, which have other pages."""
    for kind in KINDS:
        listed = [entry for entry in own_entries(kind) if not issubclass(entry.load(), Method | EncoderAdapter)]
        if listed:
            yield f"\n## {kind.capitalize()}s\n\n"
            lines = [(f"`{entry.name}`", summary(entry.load()), options(entry.load())) for entry in listed]
            yield from table((kind, "what it does", "options"), sorted(lines))


def backbones() -> Iterator[str]:
    """Yield the table of adapters, in the order in which they are tried."""
    columns = "adapter|[CLS]|videos|structural tokens|positions|stages in the tower|views and tokens".split("|")
    cells = {type(adapter): line for adapter, line in map(describe_family, BACKBONES)}
    lines = [
        (f"`{entry.name}`", *cells.get(entry.load(), ["-"] * (len(columns) - 2)), summary(entry.load()))
        for entry in own_entries("adapter")
    ]
    yield from table(columns, lines)


PAGES: dict[str, Callable[[], Iterator[str]]] = {
    "methods.md": methods,
    "components.md": components,
    "backbones.md": backbones,
}


def page(name: str) -> str:
    """Return a page with a new table."""
    before, _, rest = (DOCS / name).read_text(encoding="utf-8").partition(BEGIN)
    return before + BEGIN + "\n" + "".join(PAGES[name]()).strip("\n") + "\n\n" + END + rest.partition(END)[2]


def own_entries(kind: str) -> list[Entry]:
    """Return the components that distributions of vtcframe register."""
    return [entry for entry in entries() if entry.kind == kind and entry.distribution.startswith("vtcframe")]


def table(columns: Iterable[str], lines: Iterable[Iterable[str]]) -> Iterator[str]:
    """Yield the lines of a Markdown table."""
    columns = list(columns)
    yield f"| {' | '.join(columns)} |\n"
    yield "|---" * len(columns) + "|\n"
    for line in lines:
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n"


def card_of(method: type[Method]) -> MethodCard:
    """Return the card of a method, or an empty one."""
    return getattr(
        method,
        "card",
        MethodCard(paper="", signal="not told", selector="not told", dropped="not told", parity="not told"),
    )


def link_paper(method: type[Method], paper: str) -> str:
    """Return the name of a method with a link to its paper on arXiv, or with the name of another paper."""
    if number := re.fullmatch(r"arXiv (\d{4}\.\d{4,5})", paper):
        return f"`{method.__name__}` [{number[1]}](https://arxiv.org/abs/{number[1]})"
    return f"`{method.__name__}` {paper}".rstrip()


def summary(component: type) -> str:
    """Return the first line of its docstring."""
    return (component.__doc__ or "").strip().partition("\n")[0]


def options(component: Any) -> str:
    """Return its fields with their defaults."""
    listed = fields(component) if is_dataclass(component) else ()
    return ", ".join(f"`{f.name}`" if f.default is MISSING else f"`{f.name}={f.default!r}`" for f in listed)


def describe_family(family: str) -> tuple[Adapter, list[str]]:
    """Return the adapter of a tiny model of a family, and its cells between the first and the last column."""
    model, processor = BACKBONES[family]()
    adapter: Any = adapter_for(model, processor)
    samples = samples_of(family)
    inputs = {name: make_inputs(processor, samples[name]) for name in ("one", "video") if name in samples}
    lines = {name: adapter.arrange(batch).structural for name, batch in inputs.items()}
    try:
        adapter.observe(inputs["one"], [AttentionRows("cls", (-1,))])
        cls = "its own"
    except ValueError:
        cls = "proxy"
    structural = [name for name, tokens in lines.items() if tokens is not None and len(tokens.sample)]
    return adapter, [
        cls,
        "yes" if "video" in samples else "no",
        " and ".join({"one": "pictures", "video": "videos"}[name] for name in structural) or "none",
        "M-RoPE" if hasattr(model.base_model, "get_rope_index") else "1-D",
        "no" if adapter.no_encoder_stages_because else "yes",
    ]


if __name__ == "__main__":
    for name in PAGES:
        (DOCS / name).write_text(page(name), encoding="utf-8")
