"""Make the tables of the site from the registry: `python docs/make_tables.py` writes them into their pages.

Methods, components and adapters say what they are themselves; the columns on backbones are asked of a tiny model of
each family with its real processor.
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
    """Yield the table of methods by name, those without a paper last."""
    columns = "method signal site selector dropped text batch parity options".split()
    found = [method for method in map(Entry.load, ours("pruner")) if issubclass(method, Method)]
    lines = []
    for method in sorted(found, key=lambda one: (not facts(one).paper, one.__name__)):
        told = facts(method)
        yes = "yes" if told.text else "no"
        cells = paper(method, told.paper), told.signal, told.site, told.selector, told.dropped, yes, "any", told.parity
        lines.append([*cells, options(method)])
    yield from table(columns, lines)


def components() -> Iterator[str]:
    """Yield a table for each kind but methods and adapters, which have pages of their own."""
    for kind in KINDS:
        mine = [entry for entry in ours(kind) if not issubclass(entry.load(), Method | EncoderAdapter)]
        if mine:
            yield f"\n## {kind.capitalize()}s\n\n"
            named = [(f"`{entry.name}`", summary(entry.load()), options(entry.load())) for entry in mine]
            yield from table((kind, "what it does", "options"), sorted(named))


def backbones() -> Iterator[str]:
    """Yield a line for each adapter of ours, in the order in which they are asked."""
    columns = "adapter|[CLS]|videos|structural tokens|positions|stages in the tower|views and tokens".split("|")
    seen = {type(adapter): told for adapter, told in map(look, BACKBONES)}
    lines = [
        (f"`{entry.name}`", *seen.get(entry.load(), ["-"] * (len(columns) - 2)), summary(entry.load()))
        for entry in ours("adapter")
    ]
    yield from table(columns, lines)


PAGES: dict[str, Callable[[], Iterator[str]]] = {
    "methods.md": methods,
    "components.md": components,
    "backbones.md": backbones,
}


def page(name: str) -> str:
    """Return a whole page with what is made in it made anew."""
    before, _, rest = (DOCS / name).read_text(encoding="utf-8").partition(BEGIN)
    return before + BEGIN + "\n" + "".join(PAGES[name]()).strip("\n") + "\n\n" + END + rest.partition(END)[2]


def ours(kind: str) -> list[Entry]:
    """Return what we register, whatever else is installed."""
    return [entry for entry in entries() if entry.kind == kind and entry.distribution.startswith("vtcframe")]


def table(columns: Iterable[str], lines: Iterable[Iterable[str]]) -> Iterator[str]:
    """Yield the lines of a Markdown table."""
    columns = list(columns)
    yield f"| {' | '.join(columns)} |\n"
    yield "|---" * len(columns) + "|\n"
    for line in lines:
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n"


def facts(method: type[Method]) -> MethodCard:
    """Return what a method says of itself, or that it does not."""
    return getattr(
        method,
        "card",
        MethodCard(paper="", signal="not told", selector="not told", dropped="not told", parity="not told"),
    )


def paper(method: type[Method], told: str) -> str:
    """Return the name with a link to the paper; one that is not on arXiv is named."""
    if number := re.fullmatch(r"arXiv (\d{4}\.\d{4,5})", told):
        return f"`{method.__name__}` [{number[1]}](https://arxiv.org/abs/{number[1]})"
    return f"`{method.__name__}` {told}".rstrip()


def summary(component: type) -> str:
    """Return the first line of its docstring."""
    return (component.__doc__ or "").strip().partition("\n")[0]


def options(component: Any) -> str:
    """Return its fields with their defaults."""
    own = fields(component) if is_dataclass(component) else ()
    return ", ".join(f"`{f.name}`" if f.default is MISSING else f"`{f.name}={f.default!r}`" for f in own)


def look(family: str) -> tuple[Adapter, list[str]]:
    """Return the adapter of a family's tiny model, and what that shows of the columns between."""
    model, processor = BACKBONES[family]()
    adapter: Any = adapter_for(model, processor)
    samples = samples_of(family)
    inputs = {name: make_inputs(processor, samples[name]) for name in ("one", "video") if name in samples}
    lines = {name: adapter.arrange(given).structural for name, given in inputs.items()}
    try:
        adapter.observe(inputs["one"], [AttentionRows("cls", (-1,))])
        own = "its own"
    except ValueError:
        own = "proxy"
    structural = [name for name, told in lines.items() if told is not None and len(told.sample)]
    return adapter, [
        own,
        "yes" if "video" in samples else "no",
        " and ".join({"one": "pictures", "video": "videos"}[name] for name in structural) or "none",
        "M-RoPE" if hasattr(model.base_model, "get_rope_index") else "1-D",
        "no" if adapter.no_encoder_stages_because else "yes",
    ]


if __name__ == "__main__":
    for name in PAGES:
        (DOCS / name).write_text(page(name), encoding="utf-8")
