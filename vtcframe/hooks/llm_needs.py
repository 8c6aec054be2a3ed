"""TODO: vtcframe/hooks/llm_needs.py."""

from collections.abc import Iterable
from dataclasses import replace
from typing import Any, cast

from vtcframe.core.needs import (
    AttentionKeys,
    AttentionPageRank,
    AttentionRows,
    HiddenStates,
    Need,
    ProbeAttention,
    TextQuery,
    TextTokens,
    in_llm,
)


def split_by_layer(need: Need, base: int) -> tuple[Need, ...]:
    """Return a need of the language model layer by layer; negative layers count back from `base`."""
    match need:
        case AttentionRows() | AttentionKeys() | AttentionPageRank() | ProbeAttention():
            return tuple(replace(need, layers=(layer + base if layer < 0 else layer,)) for layer in need.layers)
        case HiddenStates():
            return (replace(need, layer=need.layer + base if need.layer < 0 else need.layer),)
    return tuple(
        TextTokens(cast(AttentionKeys | HiddenStates, part))
        for part in split_by_layer(cast(TextTokens, need).what, base)
    )


def inner_need(part: Need) -> AttentionRows | AttentionKeys | AttentionPageRank | ProbeAttention | HiddenStates:
    return cast(Any, part.what if isinstance(part, TextTokens) else part)


def layer_of(part: Need) -> int:
    told = inner_need(part)
    return told.layer if isinstance(told, HiddenStates) else told.layers[0]


def check_needs(needs: Iterable[Need], depth: int, at: int | None = None) -> None:
    """ValueError for needs of the language model that cannot be served at "llm:`at`", or before it (None)."""
    where = "before the language model" if at is None else f"at 'llm:{at}'"
    for need in filter(in_llm, needs):
        if isinstance(need, TextTokens) and not in_llm(need.what):
            raise ValueError(f"{need} tells of text: say it of the language model, tower='llm'")
        told = inner_need(need)
        if isinstance(told, AttentionRows) and told.query not in TextQuery.__args__:
            raise ValueError(f"{need}: the language model is asked by {', '.join(map(repr, TextQuery.__args__))}")
        if isinstance(told, AttentionRows | AttentionKeys) and (
            told.blocks != "feeding" or getattr(told, "heads", "") == "joined"
        ):
            raise ValueError(f"{need}: blocks='tower' and heads='joined' are said of vision towers only")
        parts = split_by_layer(need, depth if at is None else at)
        if isinstance(need, TextTokens) and len(parts) != 1:
            raise ValueError(f"{need} is to be of one layer")
        # attention of layer K itself can be read before it is run, what it makes of the tokens cannot
        last = depth - 1 if at is None else at - isinstance(told, HiddenStates)
        for part in parts:
            if not 0 <= layer_of(part) <= last:
                raise ValueError(f"{need} asks for layer {layer_of(part)}: 0 to {last} can be read {where}")
