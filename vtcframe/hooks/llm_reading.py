"""Evidence of the language model: needs are checked, split by layer, and gathered while the layers run."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor

from vtcframe.core.evidence import Evidence
from vtcframe.core.kernel_call import KernelCall
from vtcframe.core.need_bases import AttentionNeed, HiddenNeed, LayerNeed, Need, Preparation
from vtcframe.core.pruned import Pruned
from vtcframe.core.stages import Stage
from vtcframe.hooks.llm_segment import Segment


def llm_needs(needs: Iterable[Need]) -> tuple[LayerNeed, ...]:
    """Return those of `needs` that the language model serves."""
    return tuple(cast(LayerNeed, need) for need in needs if need.site == "llm")


def split_by_layer(need: LayerNeed, base: int) -> tuple[LayerNeed, ...]:
    """Return a need of the language model split by layer; negative layers count back from `base`."""
    return tuple(need.at_layer(layer + base if layer < 0 else layer) for layer in need.layer_numbers)


def layer_of(part: LayerNeed) -> int:
    """Return the layer of a part of a split need."""
    return part.layer_numbers[0]


def check_needs(needs: Iterable[Need], depth: int, at: int | None = None) -> None:
    """Raise ValueError for needs of the language model that cannot be served at "llm:`at`", or before it (None)."""
    where = "before the language model" if at is None else f"at 'llm:{at}'"
    for need in llm_needs(needs):
        if not (isinstance(need, LayerNeed) and isinstance(need.source, AttentionNeed | HiddenNeed)):
            raise ValueError(
                f"{need} reads neither attention nor hidden states of the language model: extend AttentionNeed or "
                "HiddenNeed"
            )
        if refusal := need.llm_refusal():
            raise ValueError(f"{need}: {refusal}")
        # before layer K runs, its attention can be read, but not the hidden states that it returns
        last = depth - 1 if at is None else at - isinstance(need.source, HiddenNeed)
        for part in split_by_layer(need, depth if at is None else at):
            if not 0 <= layer_of(part) <= last:
                raise ValueError(f"{need} needs layer {layer_of(part)}: 0 to {last} can be read {where}")


class LlmReadings:
    """The readings of the language model that stages and a caller need, as far as they are gathered.

    Parts of needs, one layer each, are gathered while the layers run, and shared by all needs that contain them. When a
    stage drops tokens, the readings of the remaining tokens are kept.
    """

    def __init__(self, evidence: Evidence, stages: Mapping[int, Stage], needs: Iterable[Need], depth: int) -> None:
        self.needs = llm_needs(needs)
        self.depth = depth
        self.evidence = evidence  # its `readings` are by part
        self.last_use: dict[LayerNeed, int] = {}  # part -> the last layer before which it is needed; `depth`: after all
        self.ahead: dict[int, list[LayerNeed]] = {}  # parts of a layer that are read before the stage at it acts
        for layer, stage in stages.items():
            parts = [part for need in llm_needs(stage.pruner.needs) for part in split_by_layer(need, layer)]
            self.last_use |= dict.fromkeys(parts, layer)
            self.ahead[layer] = [part for part in parts if layer_of(part) == layer]
        self.last_use |= {part: depth for need in self.needs for part in split_by_layer(need, depth)}
        sources = [part.source for part in self.last_use]
        functions = [source.preparation for source in sources if isinstance(source, AttentionNeed)]
        self.preparations: dict[Preparation, Tensor | None] = {function: None for function in functions if function}

    @property
    def first_layer(self) -> int:
        """The first layer with readings; `depth` if there is none."""
        return 0 if self.preparations else min([self.depth, *map(layer_of, self.last_use)])

    @property
    def attention_layers(self) -> set[int]:
        """The layers with readings of attention."""
        return {layer_of(part) for part in self.last_use if isinstance(part.source, AttentionNeed)}

    @property
    def complete(self) -> bool:
        """Whether all parts have been gathered."""
        return self.last_use.keys() <= self.evidence.readings.keys()

    def prepare(self, embeddings: Tensor, segment: Segment) -> None:
        """Call the preparations of needs on the embeddings [P, L, D] that enter layer 0."""
        with torch.autocast(embeddings.device.type, enabled=False):
            self.preparations = {function: function(embeddings, segment.prompts) for function in self.preparations}

    def read_states(self, layer: int, states: Callable[[], Tensor], segment: Segment) -> None:
        """Gather the readings of hidden states after a layer; `states()` [P, L, C] applies the last norm."""
        parts = [part for part, use in self.last_use.items() if layer_of(part) == layer and use > layer]
        parts = [part for part in parts if isinstance(part.source, HiddenNeed)]
        if parts:
            hidden = states()
            results = {}
            for need in {part.source for part in parts}:
                results[need] = cast(HiddenNeed, need).read_llm(hidden, segment.prompts)
            self._add({part: self._arrange(part, results[part.source], segment) for part in parts})

    def read_attention(
        self, layer: int, call: KernelCall, segment: Segment, rotary: tuple[Tensor, Tensor] | None, ahead: bool
    ) -> None:
        """Gather the readings of the attention of a layer; with `ahead` only those of the stage before it."""
        parts = self.ahead[layer] if ahead else [part for part, use in self.last_use.items() if use > layer]
        parts = [part for part in parts if isinstance(part.source, AttentionNeed) and layer_of(part) == layer]
        prompts = replace(segment.prompts, rotary=rotary)
        results = {}
        for need in {cast(AttentionNeed, part.source) for part in parts}:
            prepared = self.preparations[need.preparation] if need.preparation else None
            prepared = None if prepared is None else segment.of_first_slots(prepared)
            results[need] = need.read_llm(call, replace(prompts, prepared=prepared))
        self._add({part: self._arrange(part, results[part.source], segment) for part in parts})

    def readings_of(self, need: Need, base: int) -> Tensor:
        """Return the readings of a need; its negative layers count back from `base`."""
        if need.site != "llm":
            return self.evidence[need]
        parts = [self.evidence[part] for part in split_by_layer(cast(LayerNeed, need), base)]
        return torch.cat(parts) if need.axes.startswith("L") else parts[0]

    def drop(self, layer: int, tokens: Tensor, pruned: Pruned) -> None:
        """Keep the readings that later stages need, of the tokens that remain after the stage at `layer`."""
        readings = self.evidence.readings.items()
        later: Any = {need: x for need, x in readings if self.last_use.get(cast(Any, need), self.depth) > layer}
        self.evidence = replace(self.evidence, tokens=tokens, readings=later).restrict_to(pruned)

    def _add(self, readings: Mapping[Any, Tensor]) -> None:
        self.evidence = replace(self.evidence, readings={**self.evidence.readings, **readings})

    def _arrange(self, part: LayerNeed, result: Tensor, segment: Segment) -> Tensor:
        """Return a result [P, H, L], [P, G, L, d] or [P, L, C] in the order of the axes of a part."""
        if isinstance(part.source, AttentionNeed):
            result = result.transpose(1, 2)  # [P, L, H(, d)]
        if part.axes == "PTC":
            return segment.text_of(result.flatten(2))
        tokens = segment.tokens_of(result)  # [V, N, ...]
        return tokens.transpose(1, 2)[None] if part.axes.startswith("L") else tokens
