"""Stages inside the language model: tokens leave before one of its layers, and the layers behind read fewer.

While `LlmStages` is open, pre-hooks of the layers shorten hidden states where a stage acts and give the layers behind
rotary positions and masks of their own. The model runs as ever, its cache holds of each layer what that layer has
read, and nothing is left behind.
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
from vtcframe.core.needs import HiddenStates, Need, TextTokens, in_llm
from vtcframe.core.stages import Stage
from vtcframe.hooks.kernel import intercept_attention
from vtcframe.hooks.kernel_call import calls_of
from vtcframe.hooks.llm_needs import inner_need, layer_of, split_by_layer
from vtcframe.hooks.llm_segment import Segment, layer_kind, layer_mask
from vtcframe.hooks.text_readers import rate_text, read_need
from vtcframe.ops.compose import compose_prunings, keep_all


class _EnoughError(Exception):
    """All that is wanted has been read: what would come next need not run."""


class LlmStages:
    """`with LlmStages(decoder, evidence, column, stages) as acted:` run the prompts, then token after token.

    `decoder` is the module that has the `layers`; `evidence` tells of the visual tokens as it is to read them; `column`
    [P, L] has the own column of each slot of the prompts, padded on the left with -1. `needs` are gathered of the
    tokens that are left in the end. `blocks` [P, L] numbers pictures that see themselves in both directions, -1 = none
    (Gemma 3). Rows may be repeated for beams, each as often and next to one another; they are judged once.

    What a block showed before an earlier stage is told of the tokens left only. ValueError for a prompt that is read
    twice or in pieces. The layers are hooked for as long as it is open, for every thread that runs them.
    """

    def __init__(
        self,
        decoder: nn.Module,
        evidence: Evidence,
        column: Tensor,
        stages: Sequence[Stage] = (),
        needs: Iterable[Need] = (),
        blocks: Tensor | None = None,
    ) -> None:
        self.decoder: Any = decoder
        self.layers, self.blocks = list(self.decoder.layers), blocks
        self.stages = {stage.layer: stage for stage in sorted(stages, key=lambda stage: stage.layer)}
        self.needs = tuple(filter(in_llm, needs))
        depth = len(self.layers)
        self.segments = [Segment.first(column, evidence)]
        self.pruned = keep_all(evidence)  # what is left of `evidence`, by its layout
        self._now = evidence  # `found` holds parts of needs
        # parts of needs, and the last layer before which they are asked for; `depth` = behind all
        self._wanted: dict[Need, int] = {}
        self._ahead: dict[int, list[Need]] = {}  # those read of a layer before the stage in front of it acts
        for at, stage in self.stages.items():
            parts = [part for need in filter(in_llm, stage.pruner.needs) for part in split_by_layer(need, at)]
            self._wanted |= dict.fromkeys(parts, at)
            self._ahead[at] = [part for part in parts if layer_of(part) == at]
        self._wanted |= {part: depth for need in self.needs for part in split_by_layer(need, depth)}
        self._rates = any(getattr(inner_need(part), "query", "") == "rated" for part in self._wanted)
        self._rated: Tensor | None = None  # [P, L] of the whole prompts
        self._rotary: tuple[Tensor, Tensor] | None = None  # of the layer that runs
        self._looking, self._probing = -1, False
        self._step = 0  # forwards that are done: 0 while the prompts are read
        self._made: dict[Any, Any] = {}  # masks and rotary positions that layers of this forward share

    def __enter__(self) -> "LlmStages":
        self._stack = ExitStack()
        if not self.stages and not self.needs:
            return self
        forgets = [stage.forget for stage in self.stages.values() if stage.forget is not None]
        self._first = min([len(self.layers), *self.stages, *forgets, *(layer_of(part) for part in self._wanted)])
        self._first = 0 if self._rates else self._first
        read = {layer_of(part) for part in self._wanted if not isinstance(inner_need(part), HiddenStates)}
        self._modules = {self.layers[i].get_submodule("self_attn"): i for i in read}
        with ExitStack() as stack:
            for i, layer in list(enumerate(self.layers))[self._first :]:
                stack.callback(layer.register_forward_pre_hook(partial(self._before, i), with_kwargs=True).remove)
            stack.callback(self.decoder.register_forward_hook(self._done).remove)
            stack.enter_context(intercept_attention(self._modules.keys(), self._see))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exception: Any) -> None:
        self._stack.close()

    def found(self, need: Need) -> Tensor:
        """Return one of `needs`, of the tokens that are left."""
        return self._found(need, len(self.layers))

    @property
    def tokens_per_layer(self) -> Tensor:
        """[P, layers] visual tokens that each layer reads, structural ones not counted."""
        totals = [segment.visual.layout.total(segment.visual.layout.count) for segment in self.segments]
        return torch.stack([totals[self._of(i)] for i in range(len(self.layers))], 1)

    @property
    def structural(self) -> Tensor:
        """[P] structural tokens that are left in the end."""
        return torch.bincount(self.segments[-1].lines[0], minlength=len(self.segments[-1].column))

    @property
    def held(self) -> Tensor:
        """[P, layers] tokens of the prompt, text and all, whose keys and values each layer holds while it answers."""
        totals = [segment.real.sum(1) for segment in self.segments]
        return torch.stack([totals[self._keeps(i)] for i in range(len(self.layers))], 1)

    def _of(self, layer: int) -> int:
        """Return the segment that a layer reads; all stages have acted."""
        return sum(at <= layer for at in self.stages)

    def _keeps(self, layer: int) -> int:
        """Return the segment that a layer's cache holds while it answers."""
        stages = enumerate(self.stages.values(), 1)
        forget = [n for n, stage in stages if stage.forget is not None and stage.forget <= layer < stage.layer]
        return max([self._of(layer), *forget])

    @torch.no_grad()
    def _before(self, i: int, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        """Run before layer i."""
        hidden = args[0] if args else kwargs["hidden_states"]
        if self._step:
            if hidden.shape[1] != 1:
                raise ValueError(
                    f"{hidden.shape[1]} tokens are read behind the prompts: stages in the language model need a cache, "
                    "whole prompts, and no assistant"
                )
            return args, kwargs | self._answering(i, hidden, kwargs)
        count, length = self.segments[-1].column.shape
        if hidden.shape[1] != length or len(hidden) % count:
            raise ValueError(f"a layer reads {list(hidden.shape[:2])} tokens where the prompts are {[count, length]}")
        given, kwargs = kwargs, kwargs | self._shortened(i, hidden, kwargs)
        if i == 0 and self._rates:
            self._rated = self._rate(self._once(hidden))
        self._rotary = kwargs.get("position_embeddings")
        self._behind(i - 1, hidden)
        if i not in self.stages:
            return args, kwargs
        if self._ahead[i]:
            self._look(i, args, kwargs)
        hidden = self._prune(i, hidden)
        kwargs = given | self._shortened(i, hidden, given)
        self._rotary = kwargs.get("position_embeddings")
        return ((hidden, *args[1:]), kwargs) if args else (args, kwargs | {"hidden_states": hidden})

    def _done(self, module: nn.Module, args: tuple, out: Any) -> None:
        """Run behind the last layer."""
        if not self._step:
            self._behind(len(self.layers) - 1, out.last_hidden_state, normed=True)
        self._step += 1
        self._made.clear()

    def _once(self, x: Tensor) -> Tensor:
        """[P x beams, ...] -> [P, ...]: the first of each sample's rows."""
        return x[:: len(x) // len(self.segments[0].column)]

    def _repeated(self, x: Tensor, like: Tensor) -> Tensor:
        """[P, ...] -> [P x beams, ...] beside `like`."""
        return x.to(like.device).repeat_interleave(len(like) // len(x), 0)

    def _shortened(self, i: int, hidden: Tensor, kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """Return what layer i is to be told instead while it reads `hidden`, the prompts that are left."""
        segment = self.segments[-1]
        if len(self.segments) == 1:
            return {}
        key = len(self.segments), (kind := layer_kind(self.decoder.config, i))
        if key not in self._made:
            real = None if segment.real.all() else self._repeated(segment.real, hidden)
            blocks = None
            if self.blocks is not None:
                blocks = self.blocks.gather(1, segment.rotary).masked_fill(~segment.real, -1)
                blocks = self._repeated(blocks, hidden)
            self._made[key] = {
                "attention_mask": layer_mask(
                    self.decoder.config, i, hidden, real, kwargs.get("past_key_values"), blocks
                ),
                "position_embeddings": self._turned(kind, hidden, segment, kwargs["position_embeddings"]),
                "position_ids": self._repeated((segment.real.cumsum(1) - 1).clamp(min=0), hidden),
            }
        return self._made[key]

    def _turned(
        self, kind: str | None, hidden: Tensor, segment: Segment, whole: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Return cosine and sine of the rotary positions of a segment; `whole` are those of the prompts as given."""
        if segment.number is not None:
            return self._numbered(kind, hidden, self._repeated(segment.number, hidden))
        index = self._repeated(segment.rotary, hidden)[..., None]
        cosine, sine = (
            x.expand(len(hidden), -1, -1).gather(1, index.to(x.device).expand(-1, -1, x.shape[-1])) for x in whole
        )
        return cosine, sine

    def _numbered(self, kind: str | None, hidden: Tensor, number: Tensor) -> tuple[Tensor, Tensor]:
        rotary = self.decoder.rotary_emb
        by_kind = "layer_type" in inspect.signature(rotary.forward).parameters
        return rotary(hidden, number, kind) if by_kind else rotary(hidden, number)

    def _answering(self, i: int, hidden: Tensor, kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """Return what layer i is to be told instead while it reads the next token."""
        at, kept = self._of(i), self._keeps(i)
        if kept == 0:
            return {}
        cache, kind = kwargs["past_key_values"], layer_kind(self.decoder.config, i)
        if self._step == 1 and kept != at:
            self._forget(i, cache)
        if (key := (at, kept, kind)) not in self._made:
            real, number = self.segments[kept].real, self.segments[at].number
            real = None if real.all() else self._repeated(pad(real, (0, self._step), value=True), hidden)
            made: dict[str, Any] = {"attention_mask": layer_mask(self.decoder.config, i, hidden, real, cache)}
            if number is not None:
                now = self._repeated(number[:, -1:] + self._step, hidden)
                made["position_embeddings"] = self._numbered(kind, hidden, now)
            self._made[key] = made
        return self._made[key]

    def _forget(self, i: int, cache: Any) -> None:
        """Take from layer i's cache what later stages have dropped."""
        index = self.segments[self._keeps(i)].turned
        for n in range(self._keeps(i) - 1, self._of(i), -1):
            index = self.segments[n].turned.gather(1, index)
        layer = cache.layers[i]
        for name in ("keys", "values"):
            held = getattr(layer, name)
            rows = self._repeated(index, held)[:, None, :, None]
            setattr(layer, name, held.gather(2, rows.expand(-1, held.shape[1], -1, held.shape[3])))

    def _rate(self, hidden: Tensor) -> Tensor:
        """[P, L] bool: the slots of the text that rates the pictures."""
        segment, device = self.segments[0], hidden.device
        candidate, length = segment.sequences.candidate, hidden.shape[1]
        count = candidate.sum(1)
        index = (~candidate).long().argsort(dim=1, stable=True)[:, : int(count.max())]
        there = torch.arange(index.shape[1]) < count[:, None]
        visual = hidden.gather(1, index.to(device)[..., None].expand(-1, -1, hidden.shape[2]))
        width = max(1, int(segment.said.max()))
        said = torch.arange(length - width, length) >= (length - segment.said)[:, None]
        rated = rate_text(visual, there.to(device), hidden[:, -width:], said.to(device))
        rated[:, -1] |= ~rated.any(1)  # where none stands out the last token asks
        return pad(rated, (length - width, 0))

    def _behind(self, i: int, hidden: Tensor, normed: bool = False) -> None:
        """Read what is wanted of the hidden states behind layer i."""
        parts = [
            p
            for p, at in self._wanted.items()
            if isinstance(inner_need(p), HiddenStates) and layer_of(p) == i and at > i
        ]
        if parts:
            states = self._once(hidden) if normed else self.decoder.norm(self._once(hidden))
            self._keep({p: self._text(states) if isinstance(p, TextTokens) else self._tokens(states) for p in parts})

    def _see(
        self, module: nn.Module, query: Tensor, key: Tensor, mask: Tensor | None, options: Mapping[str, Any]
    ) -> None:
        """Read what is wanted of a layer's attention."""
        if self._step:
            return
        i = self._modules[module]
        ahead = self._looking == i
        parts = self._ahead[i] if ahead else [p for p, at in self._wanted.items() if at > i]
        parts = [p for p in parts if not isinstance(inner_need(p), HiddenStates) and layer_of(p) == i]
        mask = mask if mask is None or len(mask) < len(query) else self._once(mask)
        segment, rated = self.segments[-1], self._rated
        if rated is not None:
            rated = rated.gather(1, segment.rotary.to(rated.device)) & segment.real.to(rated.device)
        rotary = None if self._rotary is None else cast(Any, tuple(map(self._once_or_all, self._rotary)))
        sequences = replace(segment.sequences, rated=rated, rotary=rotary)
        with torch.autocast(query.device.type, enabled=False):
            (call,) = calls_of(module, self._once(query), self._once(key), mask, options)
            seen = {told: read_need(told, call, sequences) for told in {cast(Any, inner_need(p)) for p in parts}}
        self._keep({p: self._shown(p, seen[inner_need(p)]) for p in parts})
        if ahead:
            raise _EnoughError

    def _once_or_all(self, x: Tensor) -> Tensor:
        return x if len(x) < len(self.segments[0].column) else self._once(x)

    def _shown(self, part: Need, seen: Tensor) -> Tensor:
        """[P, H, L], keys [P, G, L, d] -> as the axes of a part say."""
        if isinstance(part, TextTokens):
            return self._text(seen.transpose(1, 2).flatten(2))
        return self._tokens(seen.transpose(1, 2)).transpose(1, 2)[None]

    def _tokens(self, x: Tensor) -> Tensor:
        """[P, L, ...] -> [V, N, ...] of the visual tokens, 0 at padding."""
        segment = self.segments[-1]
        sample, stand = segment.visual.layout.sample.to(x.device)[:, None], segment.stand.to(x.device)
        picked = x[sample, stand.clamp(min=0)]
        return picked.masked_fill((stand < 0).view(*stand.shape, *[1] * (picked.ndim - 2)), 0)

    def _text(self, x: Tensor) -> Tensor:
        """[P, L, C] -> [P, T, C] of what stands behind the pictures, NaN where there is less."""
        said = self.segments[-1].said
        count, length = max(1, int(said.max())), x.shape[1]
        index = torch.arange(count) + (length - said)[:, None]
        text = x.gather(1, index.clamp(max=length - 1).to(x.device)[..., None].expand(-1, -1, x.shape[2]))
        return text.float().masked_fill((index >= length).to(x.device)[..., None], torch.nan)

    def _keep(self, seen: Mapping[Need, Tensor]) -> None:
        self._now = replace(self._now, found={**self._now.found, **seen})
        if self._probing and self._wanted.keys() <= self._now.found.keys():
            raise _EnoughError

    def _look(self, i: int, args: tuple, kwargs: Mapping[str, Any]) -> None:
        """Read the attention of layer i on what enters it, without running it."""
        self._looking = i
        with suppress(_EnoughError):
            self.layers[i].forward(*args, **{**kwargs, "past_key_values": None})
        self._looking = -1

    def _prune(self, i: int, hidden: Tensor) -> Tensor:
        """Let a stage act, and return the hidden states that are left."""
        stage, before, now = self.stages[i], self.segments[-1], self._now
        tokens = self._tokens(self._once(hidden))
        found = {need: self._found(need, i) for need in stage.pruner.needs}
        pruned = stage.act(_on(hidden.device, replace(now, tokens=tokens, found=found)))
        self.pruned = compose_prunings(self.pruned, pruned)
        later: Any = {need: x for need, x in now.found.items() if self._wanted.get(need, len(self.layers)) > i}
        self._now = replace(now, tokens=tokens, found=later).after(pruned)
        segment = before.after(pruned.place.cpu(), pruned.layout.sample, stage.positions == "compact")
        self.segments.append(segment)

        index = before.slot.gather(1, segment.column.clamp(min=0)).clamp(min=0)
        left = hidden.gather(1, self._repeated(index, hidden)[..., None].expand(-1, -1, hidden.shape[2]))
        stand, rows = segment.stand, len(hidden) // len(before.column)
        real = stand >= 0
        sample = segment.visual.layout.sample[:, None].expand(stand.shape)[real].to(hidden.device)
        kept = pruned.tokens[real.to(hidden.device)].to(hidden.dtype)
        left.unflatten(0, (-1, rows))[sample, :, stand[real].to(hidden.device)] = kept[:, None]
        return left

    def _found(self, need: Need, base: int) -> Tensor:
        if not in_llm(need):
            return self._now[need]
        parts = [self._now[part] for part in split_by_layer(need, base)]
        return torch.cat(parts) if need.axes.startswith("L") else parts[0]


def _on(device: torch.device, evidence: Evidence) -> Evidence:
    """Return evidence on the device of the layer that runs: a model may lie on several."""
    layout = evidence.layout
    if layout.column.device != device:
        layout = replace(layout, **{name: getattr(layout, name).to(device) for name in ("grid", "column", "centre")})
    return replace(evidence, layout=layout, found={need: x.to(device) for need, x in evidence.found.items()})
