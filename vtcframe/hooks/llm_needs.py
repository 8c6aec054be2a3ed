"""TODO: vtcframe/hooks/llm_needs.py."""

from collections.abc import Iterable
from dataclasses import replace
from typing import Any, cast

from vtcframe.core.needs import Asking, Features, Flow, Keys, Need, Probed, Rows, Text, in_llm


def parts_of(need: Need, base: int) -> tuple[Need, ...]:
    """Return a need of the language model layer by layer; negative layers count back from `base`."""
    match need:
        case Rows() | Keys() | Flow() | Probed():
            return tuple(replace(need, layers=(layer + base if layer < 0 else layer,)) for layer in need.layers)
        case Features():
            return (replace(need, layer=need.layer + base if need.layer < 0 else need.layer),)
    return tuple(Text(cast(Keys | Features, part)) for part in parts_of(cast(Text, need).what, base))


def _told(part: Need) -> Rows | Keys | Flow | Probed | Features:
    return cast(Any, part.what if isinstance(part, Text) else part)


def _layer(part: Need) -> int:
    told = _told(part)
    return told.layer if isinstance(told, Features) else told.layers[0]


def check_needs(needs: Iterable[Need], depth: int, at: int | None = None) -> None:
    """ValueError for needs of the language model that cannot be served at "llm:`at`", or before it (None)."""
    where = "before the language model" if at is None else f"at 'llm:{at}'"
    for need in filter(in_llm, needs):
        if isinstance(need, Text) and not in_llm(need.what):
            raise ValueError(f"{need} tells of text: say it of the language model, tower='llm'")
        told = _told(need)
        if isinstance(told, Rows) and told.query not in Asking.__args__:
            raise ValueError(f"{need}: the language model is asked by {', '.join(map(repr, Asking.__args__))}")
        if isinstance(told, Rows | Keys) and (told.of != "feeding" or getattr(told, "heads", "") == "joined"):
            raise ValueError(f"{need}: of='tower' and heads='joined' are said of vision towers only")
        parts = parts_of(need, depth if at is None else at)
        if isinstance(need, Text) and len(parts) != 1:
            raise ValueError(f"{need} is to be of one layer")
        # attention of layer K itself can be read before it is run, what it makes of the tokens cannot
        last = depth - 1 if at is None else at - isinstance(told, Features)
        for part in parts:
            if not 0 <= _layer(part) <= last:
                raise ValueError(f"{need} asks for layer {_layer(part)}: 0 to {last} can be read {where}")
