"""Stages inside the language model: tokens are dropped before a layer, and later layers process fewer tokens.

Inside `with LlmStages(...)`, pre-hooks of the layers shorten hidden states where a stage acts, and give later layers
rotary positions and masks of the remaining tokens. The model itself runs unchanged, its KV cache has for each layer the
tokens that this layer has processed, and on exit all hooks are removed.
"""

import inspect
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from vtcframe.core.evidence import Evidence
from vtcframe.core.need_bases import Need
from vtcframe.core.stages import Stage
from vtcframe.hooks.kernel import intercept_attention
from vtcframe.hooks.llm_reading import LlmReadings
from vtcframe.hooks.llm_segment import Segment, layer_kind, layer_mask
from vtcframe.hooks.packing import calls_of
from vtcframe.ops.compose import compose_prunings, keep_all


class _CompleteError(Exception):
    """All readings are complete, so the rest of the forward is not needed."""


class LlmStages:
    """`with LlmStages(decoder, evidence, column, stages) as acted:` run the prompts, then one token after the other.

    `decoder` is the module that has the `layers`; `evidence` is the evidence of the visual tokens in its prompts;
    `column` [P, L] is the position of each slot in the original prompt, padded on the left with -1. `needs` are
    gathered of the tokens that remain after all stages. `blocks` [P, L] numbers pictures whose tokens attend to each
    other in both directions, -1 = none (Gemma 3). For beam search rows may be repeated, each as often and next to each
    other; they are pruned once. With `stop_early` the model stops as soon as all `needs` are gathered, and the `with`
    ends there.

    Readings of layers before an earlier stage are kept of the remaining tokens only. ValueError for a prompt that is
    processed twice or in chunks. Inside the `with` the layers have hooks for every thread that runs them.
    """

    def __init__(
        self,
        decoder: nn.Module,
        evidence: Evidence,
        column: Tensor,
        stages: Sequence[Stage] = (),
        needs: Iterable[Need] = (),
        blocks: Tensor | None = None,
        *,
        stop_early: bool = False,
    ) -> None:
        self.decoder: Any = decoder
        self.layers = list(self.decoder.layers)
        self.blocks = blocks
        self.stages = {stage.layer: stage for stage in sorted(stages, key=lambda stage: stage.layer)}
        self.segments = [Segment.first(column, evidence)]
        self.pruned = keep_all(evidence)  # the remaining tokens, in the layout of `evidence`
        self._readings = LlmReadings(evidence, self.stages, needs, len(self.layers))
        self._rotary: tuple[Tensor, Tensor] | None = None  # of the layer that runs
        self._read_ahead = -1
        self._stop_early = stop_early
        self._step = 0  # number of completed forwards: 0 during prefill
        self._shared: dict[Any, Any] = {}  # masks and rotary positions that layers of this forward share

    def __enter__(self) -> "LlmStages":
        self._stack = ExitStack()
        if not self.stages and not self._readings.needs:
            return self
        forgets = [stage.forget for stage in self.stages.values() if stage.forget is not None]
        first = min([self._readings.first_layer, *self.stages, *forgets])
        self._modules = {self.layers[i].get_submodule("self_attn"): i for i in self._readings.attention_layers}
        with ExitStack() as stack:
            for i, layer in list(enumerate(self.layers))[first:]:
                stack.callback(layer.register_forward_pre_hook(partial(self._before, i), with_kwargs=True).remove)
            stack.callback(self.decoder.register_forward_hook(self._after_forward).remove)
            stack.enter_context(intercept_attention(self._modules.keys(), self._read_attention))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, *exception: Any) -> bool:
        self._stack.close()
        return self._stop_early and kind is _CompleteError

    def readings_of(self, need: Need) -> Tensor:
        """Return the readings of one of `needs`, of the remaining tokens."""
        return self._readings.readings_of(need, len(self.layers))

    @property
    def tokens_per_layer(self) -> Tensor:
        """[P, layers] number of visual tokens that each layer processes, without structural tokens."""
        totals = [segment.visual.layout.total(segment.visual.layout.count) for segment in self.segments]
        return torch.stack([totals[self.segment_at(i)] for i in range(len(self.layers))], 1)

    @property
    def structural(self) -> Tensor:
        """[P] number of structural tokens that remain after all stages."""
        return torch.bincount(self.segments[-1].structural_slots[0], minlength=len(self.segments[-1].column))

    @property
    def cached_tokens(self) -> Tensor:
        """[P, layers] number of tokens of the prompt, text included, in the KV cache of each layer during decoding."""
        totals = [segment.real.sum(1) for segment in self.segments]
        return torch.stack([totals[self.segment_cached(i)] for i in range(len(self.layers))], 1)

    def segment_at(self, layer: int) -> int:
        """Return the index of the segment that a layer processes; call it after all stages have acted."""
        return sum(at <= layer for at in self.stages)

    def segment_cached(self, layer: int) -> int:
        """Return the index of the segment that is in the KV cache of a layer during decoding."""
        stages = enumerate(self.stages.values(), 1)
        forget = [n for n, stage in stages if stage.forget is not None and stage.forget <= layer < stage.layer]
        return max([self.segment_at(layer), *forget])

    @torch.no_grad()
    def _before(self, i: int, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        """Run before layer i."""
        hidden = args[0] if args else kwargs["hidden_states"]
        if self._step:
            if hidden.shape[1] != 1:
                raise ValueError(
                    f"{hidden.shape[1]} tokens are processed after the prompts: stages in the language model need a KV "
                    "cache, complete prompts, and no assistant"
                )
            return args, kwargs | self._next_token_inputs(i, hidden, kwargs)
        count, length = self.segments[-1].column.shape
        if hidden.shape[1] != length or len(hidden) % count:
            raise ValueError(
                f"a layer gets {list(hidden.shape[:2])} tokens, prompts have {[count, length]}: run complete prompts"
            )
        model_kwargs, kwargs = kwargs, kwargs | self._prompt_inputs(i, hidden, kwargs)
        if i == 0 and self._readings.preparations:
            self._readings.prepare(self._first_beams(hidden), self.segments[-1])
        self._rotary = kwargs.get("position_embeddings")
        self._read_states(i - 1, hidden)
        if i not in self.stages:
            return args, kwargs
        if self._readings.ahead[i]:
            self._read_attention_ahead(i, args, kwargs)
        hidden = self._prune(i, hidden)
        kwargs = model_kwargs | self._prompt_inputs(i, hidden, model_kwargs)
        self._rotary = kwargs.get("position_embeddings")
        return ((hidden, *args[1:]), kwargs) if args else (args, kwargs | {"hidden_states": hidden})

    def _after_forward(self, module: nn.Module, args: tuple, out: Any) -> None:
        """Run after the last layer."""
        if not self._step:
            self._read_states(len(self.layers) - 1, out.last_hidden_state, normed=True)
        self._step += 1
        self._shared.clear()

    def _first_beams(self, x: Tensor) -> Tensor:
        """[P x beams, ...] -> [P, ...]: the first row of each sample; fewer than P rows are returned unchanged."""
        count = len(self.segments[0].column)
        return x if len(x) < count else x[:: len(x) // count]

    def _repeat(self, x: Tensor, like: Tensor) -> Tensor:
        """[P, ...] -> [P x beams, ...] on the device of `like`."""
        return x.to(like.device).repeat_interleave(len(like) // len(x), 0)

    def _prompt_inputs(self, i: int, hidden: Tensor, kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """Return the inputs of layer i that change for `hidden`, the remaining tokens of the prompts."""
        segment = self.segments[-1]
        if len(self.segments) == 1:
            return {}
        key = len(self.segments), (kind := layer_kind(self.decoder.config, i))
        if key not in self._shared:
            real = None if segment.real.all() else self._repeat(segment.real, hidden)
            blocks = None
            if self.blocks is not None:
                blocks = self.blocks.gather(1, segment.first_slot).masked_fill(~segment.real, -1)
                blocks = self._repeat(blocks, hidden)
            self._shared[key] = {
                "attention_mask": layer_mask(
                    self.decoder.config, i, hidden, real, kwargs.get("past_key_values"), blocks
                ),
                "position_embeddings": self._rotary_of(kind, hidden, segment, kwargs["position_embeddings"]),
                "position_ids": self._repeat((segment.real.cumsum(1) - 1).clamp(min=0), hidden),
            }
        return self._shared[key]

    def _rotary_of(
        self, kind: str | None, hidden: Tensor, segment: Segment, original: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Return cosine and sine of the rotary positions of a segment; `original` are those of the original prompts."""
        if segment.new_position is not None:
            return self._rotary_at(kind, hidden, self._repeat(segment.new_position, hidden))
        index = self._repeat(segment.first_slot, hidden)[..., None]
        cosine, sine = (
            x.expand(len(hidden), -1, -1).gather(1, index.to(x.device).expand(-1, -1, x.shape[-1])) for x in original
        )
        return cosine, sine

    def _rotary_at(self, kind: str | None, hidden: Tensor, position: Tensor) -> tuple[Tensor, Tensor]:
        rotary = self.decoder.rotary_emb
        by_kind = "layer_type" in inspect.signature(rotary.forward).parameters
        return rotary(hidden, position, kind) if by_kind else rotary(hidden, position)

    def _next_token_inputs(self, i: int, hidden: Tensor, kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """Return the inputs of layer i that change for the next token."""
        at = self.segment_at(i)
        cached = self.segment_cached(i)
        if cached == 0:
            return {}
        cache = kwargs["past_key_values"]
        kind = layer_kind(self.decoder.config, i)
        if self._step == 1 and cached != at:
            self._evict(i, cache)
        if (key := (at, cached, kind)) not in self._shared:
            real, position = self.segments[cached].real, self.segments[at].new_position
            real = None if real.all() else self._repeat(pad(real, (0, self._step), value=True), hidden)
            inputs: dict[str, Any] = {"attention_mask": layer_mask(self.decoder.config, i, hidden, real, cache)}
            if position is not None:
                position = self._repeat(position[:, -1:] + self._step, hidden)
                inputs["position_embeddings"] = self._rotary_at(kind, hidden, position)
            self._shared[key] = inputs
        return self._shared[key]

    def _evict(self, i: int, cache: Any) -> None:
        """Evict from the KV cache of layer i the tokens that later stages have dropped."""
        index = self.segments[self.segment_cached(i)].previous_slot
        for n in range(self.segment_cached(i) - 1, self.segment_at(i), -1):
            index = self.segments[n].previous_slot.gather(1, index)
        layer = cache.layers[i]
        for name in ("keys", "values"):
            states = getattr(layer, name)
            rows = self._repeat(index, states)[:, None, :, None]
            setattr(layer, name, states.gather(2, rows.expand(-1, states.shape[1], -1, states.shape[3])))

    def _read_states(self, i: int, hidden: Tensor, normed: bool = False) -> None:
        """Gather the readings of hidden states after layer i."""

        def states() -> Tensor:
            prompts = self._first_beams(hidden)
            return prompts if normed else self.decoder.norm(prompts)

        self._readings.read_states(i, states, self.segments[-1])
        self._stop()

    def _read_attention(
        self, module: nn.Module, query: Tensor, key: Tensor, mask: Tensor | None, options: Mapping[str, Any]
    ) -> None:
        """Gather the readings of the attention of a layer."""
        if self._step:
            return
        i = self._modules[module]
        ahead = self._read_ahead == i
        mask = mask if mask is None or len(mask) < len(query) else self._first_beams(mask)
        rotary = None if self._rotary is None else cast(Any, tuple(map(self._first_beams, self._rotary)))
        with torch.autocast(query.device.type, enabled=False):
            (call,) = calls_of(module, self._first_beams(query), self._first_beams(key), mask, options)
            self._readings.read_attention(i, call, self.segments[-1], rotary, ahead)
        if ahead:
            raise _CompleteError
        self._stop()

    def _stop(self) -> None:
        if self._stop_early and self._readings.complete:
            raise _CompleteError

    def _read_attention_ahead(self, i: int, args: tuple, kwargs: Mapping[str, Any]) -> None:
        """Gather the readings of the attention of layer i for its inputs, without running the layer."""
        self._read_ahead = i
        with suppress(_CompleteError):
            self.layers[i].forward(*args, **{**kwargs, "past_key_values": None})
        self._read_ahead = -1

    def _prune(self, i: int, hidden: Tensor) -> Tensor:
        """Run a stage, and return the remaining hidden states."""
        stage = self.stages[i]
        before = self.segments[-1]
        evidence = self._readings.evidence
        tokens = before.tokens_of(self._first_beams(hidden))
        readings = {need: self._readings.readings_of(need, i) for need in stage.pruner.needs}
        pruned = stage.act(_on(hidden.device, replace(evidence, tokens=tokens, readings=readings)))
        self.pruned = compose_prunings(self.pruned, pruned)
        self._readings.drop(i, tokens, pruned)
        segment = before.after(pruned.place.cpu(), pruned.layout.sample, stage.positions == "compact")
        self.segments.append(segment)

        index = before.slot.gather(1, segment.column.clamp(min=0)).clamp(min=0)
        remaining = hidden.gather(1, self._repeat(index, hidden)[..., None].expand(-1, -1, hidden.shape[2]))
        slot = segment.slot_of_token
        beams = len(hidden) // len(before.column)
        real = slot >= 0
        sample = segment.visual.layout.sample[:, None].expand(slot.shape)[real].to(hidden.device)
        kept = pruned.tokens[real.to(hidden.device)].to(hidden.dtype)
        remaining.unflatten(0, (-1, beams))[sample, :, slot[real].to(hidden.device)] = kept[:, None]
        return remaining


def _on(device: torch.device, evidence: Evidence) -> Evidence:
    """Return evidence on the device of the current layer: a model may be distributed over several devices."""
    layout = evidence.layout
    if layout.column.device != device:
        layout = replace(layout, **{name: getattr(layout, name).to(device) for name in ("grid", "column", "centre")})
    return replace(evidence, layout=layout, readings={need: x.to(device) for need, x in evidence.readings.items()})
