"""Stages inside an encoder: tokens are dropped or merged between attention and MLP of a block.

Inside `with EncoderStages(...)`, the blocks of an encoder run in two halves, and stages act between them. The rest of
the model runs unchanged, on the tokens that remain. On exit the blocks are restored.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn.functional import pad

from vtcframe.core.encoder_readers import EncoderTokens
from vtcframe.core.evidence import Evidence
from vtcframe.core.layout import Layout
from vtcframe.core.need_bases import AttentionNeed, HiddenNeed, Need
from vtcframe.core.pruned import Pruned
from vtcframe.core.stages import Stage
from vtcframe.core.token_merging import EncoderEvidence, Merged, MergeTime, TokenMerger, fuse_attention, token_sizes
from vtcframe.hooks.encoder_blocks import SplitBlock
from vtcframe.hooks.encoder_reading import BlockReading, FullAttention, encoder_refusal, reader_of
from vtcframe.hooks.tap import Tap
from vtcframe.ops.gather import find_columns, scatter


class EncoderStages:
    """`with EncoderStages(blocks, classes, layout, stages, needs) as inside:`, run the encoder, then `inside.evidence`.

    `blocks` are all blocks of the encoder in depth order, and the output of the first `feeding` blocks is used;
    `classes` is the number of class tokens and registers in front; `layout` is the layout of the rows in the order in
    which they are encoded. `needs` are gathered of the remaining tokens. ValueError, before anything runs, for stages
    and needs that cannot be served. Inside the `with` the blocks are changed for every thread that runs them.
    """

    def __init__(
        self,
        blocks: Sequence[SplitBlock],
        classes: int,
        layout: Layout,
        stages: Sequence[Stage],
        needs: Iterable[Need] = (),
        *,
        feeding: int | None = None,
        has_class: bool | None = None,
    ) -> None:
        self.blocks = list(blocks)
        self.classes = classes
        self.feeding = len(self.blocks) if feeding is None else feeding
        self.keys = EncoderTokens(classes, None, has_class=classes > 0 if has_class is None else has_class)
        self.needs = tuple(needs)
        self.stages = {stage.layer: stage for stage in stages}
        for block, stage in self.stages.items():
            if block >= self.feeding:
                raise ValueError(
                    f"{stage.at} is none of the {self.feeding} blocks whose output is read, 0 to {self.feeding - 1}: "
                    f"choose other blocks for {type(stage.pruner).__name__} or its method"
                )
            if isinstance(stage.pruner, TokenMerger) and any(half.flash for half in self.blocks):
                raise ValueError(
                    f"{stage.pruner} gives tokens sizes, which FlashAttention cannot add to its logits: load the model "
                    "with attn_implementation='sdpa' or 'eager'"
                )
        # each reading that is needed, and the last block in which a stage or the result needs it
        self._last_use = {
            reading: block
            for block, stage in self.stages.items()
            for need in stage.pruner.needs
            for reading in self._readings(need, block + 1)
        }
        for need in self.needs:
            self._last_use |= dict.fromkeys(self._readings(need, len(self.blocks), self.feeding), len(self.blocks))
        read_blocks = {reading.block for reading in self._last_use}
        self.deepest = max([self.feeding, *(block + 1 for block in read_blocks)])
        self._first = min([*self.stages, *read_blocks])
        self._scores: list[tuple[Tensor, Tensor]] = []  # columns and scores, stage by stage
        self._now: EncoderEvidence = EncoderEvidence(torch.empty(0), layout, classes=classes)
        self._hidden = self._bias = None

    def __enter__(self) -> "EncoderStages":
        self._before = []
        for k, half in list(enumerate(self.blocks))[self._first :]:
            attributes = vars(half.block)
            self._before.append((attributes, attributes.get("forward")))
            attributes["forward"] = partial(
                self._run, k
            )  # attribute of the instance, so that hooks of the module still run
        return self

    def __exit__(self, *exception: Any) -> None:
        for attributes, forward in self._before:
            attributes.pop("forward")
            if forward is not None:
                attributes["forward"] = forward

    @torch.no_grad()
    def _run(self, k: int, hidden: Tensor, *_: Any, **__: Any) -> Tensor:
        """Run block k, and the stage that acts in it."""
        half = self.blocks[k]
        stage = self.stages.get(k)
        when = _when(stage)
        readings = [reading for reading in self._last_use if reading.block == k]
        readers = [*(reading.reader for reading in readings), *([FullAttention()] if when == "fused" else [])]
        with Tap({half.attention_module: readers} if readers else {}) as tap:
            attended = half.attention(hidden, self._bias)
        results: dict[Any, Tensor] = {reading: tap[half.attention_module, reading.reader][-1] for reading in readings}
        self._now = replace(self._now, readings={**self._now.readings, **results})
        if when in ("before", "fused"):
            count = self._now.layout.count
            hidden, pruned = self._prune(k, hidden)
            if torch.equal(count, self._now.layout.count):
                pass  # no token was merged, so the attention above holds
            elif when == "fused":
                assert isinstance(pruned, Merged), f"{stage} fuses attention and returned no Merged"
                attended = half.apply_attention(
                    hidden, fuse_attention(tap[half.attention_module, FullAttention()][-1], pruned, self.classes)
                )
            else:
                attended = half.attention(hidden, self._bias)
        hidden = half.mlp(self._prune(k, attended)[0] if when == "amid" else attended)
        if when == "after":
            hidden = self._prune(k, hidden)[0]
        if k + 1 == self.feeding:
            self._hidden = hidden
        return hidden

    def _prune(self, k: int, hidden: Tensor) -> tuple[Tensor, Pruned]:
        """Return the hidden states that remain, class tokens in front, and what the stage returned."""
        stage = self.stages[k]
        patches = hidden[:, self.classes :]
        now = self._now
        readings = {need: self._gather(need, k + 1, hidden) for need in stage.pruner.needs}
        pruned = stage.act(replace(now, tokens=patches, readings=readings))
        if len(pruned.place) != len(patches):
            raise ValueError(
                f"{stage.pruner} joins the views of a sample, but an encoder runs each: use across='view' at {stage.at}"
            )
        self._scores.append((now.layout.column, pruned.scores))
        later: Any = {reading: x for reading, x in now.readings.items() if self._last_use[cast(Any, reading)] > k}
        remaining: Any = replace(now, tokens=patches, readings=later).restrict_to(pruned)
        if isinstance(pruned, Merged) and not torch.equal(now.layout.count, remaining.layout.count):
            remaining = replace(remaining, size=pruned.size)
        self._now = remaining
        self._bias = self._padding_and_sizes()
        return torch.cat([hidden[:, : self.classes], pruned.tokens.to(hidden.dtype)], 1), pruned

    def _padding_and_sizes(self) -> Tensor | None:
        """Return the bias on the attention logits of keys, [V, T]; None without padding and token sizes."""
        layout = self._now.layout
        size = self._now.size
        if size is None and bool((layout.count == layout.column.shape[1]).all()):
            return None
        return pad(token_sizes(self._now).log().masked_fill(~layout.valid, -torch.inf), (self.classes, 0))

    def _readings(self, need: Need, run: int, feeding: int | None = None) -> list[BlockReading]:
        """Return the readings of a need after `run` blocks, of which the first `feeding` are used (None: all)."""
        if refusal := encoder_refusal(need, self.keys):
            raise ValueError(f"{need} cannot be gathered of an encoder with stages inside: {refusal}")
        if not isinstance(need, AttentionNeed):
            return []
        count = (feeding or run) if need.blocks == "feeding" else len(self.blocks)
        layers = [layer + count if layer < 0 else layer for layer in need.layers]
        if not all(0 <= layer < run for layer in layers):
            raise ValueError(f"{need} needs a block beyond the {run} that have run before: use blocks='feeding'")
        reader = reader_of(need, self.keys)
        return [BlockReading(layer, reader, need.axes[1:]) for layer in layers]

    def _gather(self, need: Need, run: int, hidden: Tensor, feeding: int | None = None) -> Tensor:
        if isinstance(need, HiddenNeed):
            return need.read_encoder(hidden[:, self.classes :], hidden[:, 0] if self.keys.has_class else None)
        readings: Mapping[Any, Tensor] = self._now.readings
        return torch.stack([readings[reading] for reading in self._readings(need, run, feeding)])

    @property
    def hidden(self) -> Tensor:
        """The output of the last block that is used, [V, T, C], class tokens in front."""
        assert self._hidden is not None, "the encoder was not run"
        return self._hidden

    def evidence(self, tokens: Tensor | None = None) -> Evidence:
        """Return evidence of the remaining tokens with `needs`; `tokens` [V, N, D] replace the hidden states."""
        hidden = self.hidden
        readings = {need: self._gather(need, len(self.blocks), hidden, self.feeding) for need in self.needs}
        return replace(self._now, tokens=hidden[:, self.classes :] if tokens is None else tokens, readings=readings)

    def scores(self, layout: Layout) -> Tensor:
        """Return the last score of each token in the layout before pruning, [V, N] float32."""
        scores = torch.zeros(layout.column.shape, device=layout.column.device, dtype=torch.float32)
        for column, stage_scores in self._scores:
            scores = scatter(scores, find_columns(column, layout), stage_scores)
        return scores.masked_fill(~layout.valid, -torch.inf)


def _when(stage: Stage | None) -> MergeTime | None:
    return None if stage is None else getattr(stage.pruner, "when", "amid")


def stacked(parts: Sequence[Evidence], order: Tensor, layout: Layout) -> Evidence:
    """Concatenate the evidence of several encoders; `order` [V] sorts its rows in the order of `layout`."""
    width = max(part.layout.column.shape[1] for part in parts)

    def stack(tensors: Sequence[Tensor], axes: str, empty: float = 0) -> Tensor:
        v, n = axes.index("V"), axes.index("N") if "N" in axes else None
        if n is not None:
            tensors = [pad(x.movedim(n, -1), (0, width - x.shape[n]), value=empty).movedim(-1, n) for x in tensors]
        return torch.cat(list(tensors), v).index_select(v, order.to(tensors[0].device))

    rows = replace(
        layout,
        grid=stack([part.layout.grid for part in parts], "VNC", -1),
        column=stack([part.layout.column for part in parts], "VN", -1),
        centre=stack([part.layout.centre for part in parts], "VNC", torch.nan),
    )
    readings = {need: stack([part[need] for part in parts], need.axes) for need in parts[0].readings}
    return Evidence(stack([part.tokens for part in parts], "VNC"), rows, readings)


def rows_of(layout: Layout, views: Tensor, device: torch.device) -> Layout:
    """Return the layout of the views [n], in that order, on a device."""
    on_cpu = {name: getattr(layout, name)[views] for name in ("sample", "image", "frame", "box")}
    on_device = {name: getattr(layout, name)[views].to(device) for name in ("grid", "column", "centre")}
    return replace(layout, **on_cpu, **on_device)
