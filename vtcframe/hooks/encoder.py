"""Stages inside an encoder: tokens leave it, or become one, between attention and MLP of a block.

While `Inside` is open, the blocks of an encoder are run in two halves, and stages act between them. Everything else of
the model runs as ever, on the tokens that are left. Nothing is left behind.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn.functional import pad

from vtcframe.core.evidence import Evidence
from vtcframe.core.layout import Layout
from vtcframe.core.needs import (
    AttentionKeys,
    AttentionReceived,
    AttentionRows,
    ClassToken,
    EncoderNeed,
    HiddenStates,
    Need,
)
from vtcframe.core.pruned import Pruned
from vtcframe.core.stages import Stage
from vtcframe.core.token_merging import EncoderEvidence, Merged, MergeTime, TokenMerger, fuse_attention, sizes
from vtcframe.hooks.encoder_blocks import (
    AllQueries,
    BlockReading,
    FullAttention,
    SplitBlock,
    missing_evidence_hint,
    reader_of,
)
from vtcframe.hooks.tap import Tap
from vtcframe.ops.gather import find_columns, scatter


class EncoderStages:
    """`with Inside(blocks, classes, layout, stages, needs) as inside:` and run the encoder; then `inside.evidence`.

    `blocks` are all of the encoder in depth order, the first `feeding` of which make what is read; `layout` is that of
    the rows as they are encoded. `needs` are gathered of the tokens that are left. ValueError for what cannot be done,
    before anything runs. The blocks are changed for as long as it is open, for every thread that runs them.
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
        self.blocks, self.classes = list(blocks), classes
        self.feeding = len(self.blocks) if feeding is None else feeding
        self.has_class = classes > 0 if has_class is None else has_class
        self.needs, self.stages = tuple(needs), {stage.layer: stage for stage in stages}
        for at, stage in self.stages.items():
            if at >= self.feeding:
                raise ValueError(
                    f"{stage.at} is none of the {self.feeding} blocks that make what is read, 0 to {self.feeding - 1}: "
                    f"give {type(stage.pruner).__name__} or the method it is of other blocks"
                )
            if isinstance(stage.pruner, TokenMerger) and any(half.flash for half in self.blocks):
                raise ValueError(
                    f"{stage.pruner} gives tokens sizes, which FlashAttention cannot add to its logits: load the model "
                    "with attn_implementation='sdpa' or 'eager'"
                )
        # which readings are wanted, and behind which block by none any more
        self._wanted = {x: at for at, stage in self.stages.items() for n in stage.pruner.needs for x in self._of(n, at)}
        for need in self.needs:
            self._wanted |= dict.fromkeys(self._readings(need, len(self.blocks), self.feeding), len(self.blocks))
        read = {reading.block for reading in self._wanted}
        self.deepest = max([self.feeding, *(block + 1 for block in read)])
        self._first = min([*self.stages, *read])
        self._judged: list[tuple[Tensor, Tensor]] = []  # columns and scores, stage by stage
        self._now: EncoderEvidence = EncoderEvidence(torch.empty(0), layout, classes=classes)  # `found` holds readings
        self._hidden = self._bias = None

    def __enter__(self) -> "EncoderStages":
        self._before = []
        for k, half in list(enumerate(self.blocks))[self._first :]:
            own = vars(half.block)
            self._before.append((own, own.get("forward")))
            own["forward"] = partial(self._run, k)  # of the instance: hooks of the module run as ever
        return self

    def __exit__(self, *exception: Any) -> None:
        for own, before in self._before:
            own.pop("forward")
            if before is not None:
                own["forward"] = before

    @torch.no_grad()
    def _run(self, k: int, hidden: Tensor, *_: Any, **__: Any) -> Tensor:
        """Run block k, and the stage that acts in it."""
        half, stage = self.blocks[k], self.stages.get(k)
        when = _when(stage)
        readings = [reading for reading in self._wanted if reading.block == k]
        readers = [*(reading.reader for reading in readings), *([FullAttention()] if when == "fused" else [])]
        with Tap({half.attention_module: readers} if readers else {}) as tap:
            paid = half.attention(hidden, self._bias)
        seen: dict[Any, Tensor] = {reading: tap[half.attention_module, reading.reader][-1] for reading in readings}
        self._now = replace(self._now, found={**self._now.found, **seen})
        if when in ("before", "fused"):
            count = self._now.layout.count
            hidden, pruned = self._prune(k, hidden)
            if torch.equal(count, self._now.layout.count):
                pass  # what was computed holds
            elif when == "fused":
                assert isinstance(pruned, Merged), f"{stage} fuses attention and returned no Merged"
                paid = half.apply_attention(
                    hidden, fuse_attention(tap[half.attention_module, FullAttention()][-1], pruned, self.classes)
                )
            else:
                paid = half.attention(hidden, self._bias)
        hidden = half.mlp(self._prune(k, paid)[0] if when == "amid" else paid)
        if when == "after":
            hidden = self._prune(k, hidden)[0]
        if k + 1 == self.feeding:
            self._hidden = hidden
        return hidden

    def _prune(self, k: int, hidden: Tensor) -> tuple[Tensor, Pruned]:
        """Return the hidden states that are left, class tokens in front."""
        stage, patches, now = self.stages[k], hidden[:, self.classes :], self._now
        found = {need: self._found(need, k + 1, hidden) for need in stage.pruner.needs}
        pruned = stage.act(replace(now, tokens=patches, found=found))
        if len(pruned.place) != len(patches):
            raise ValueError(
                f"{stage.pruner} joins a sample's views, which an encoder reads one by one: across='view' at {stage.at}"
            )
        self._judged.append((now.layout.column, pruned.scores))
        later: Any = {reading: x for reading, x in now.found.items() if self._wanted[cast(Any, reading)] > k}
        left: Any = replace(now, tokens=patches, found=later).after(pruned)
        if isinstance(pruned, Merged) and not torch.equal(now.layout.count, left.layout.count):
            left = replace(left, size=pruned.size)
        self._now = left
        self._bias = self._padding_and_sizes()
        return torch.cat([hidden[:, : self.classes], pruned.tokens.to(hidden.dtype)], 1), pruned

    def _padding_and_sizes(self) -> Tensor | None:
        """[V, T] what is added to the logits of keys; None where that is nothing."""
        layout, size = self._now.layout, self._now.size
        if size is None and bool((layout.count == layout.column.shape[1]).all()):
            return None
        return pad(sizes(self._now).log().masked_fill(~layout.valid, -torch.inf), (self.classes, 0))

    def _of(self, need: EncoderNeed, block: int) -> list[BlockReading]:
        """Return what serves a need of the stage in `block`."""
        return self._readings(need, block + 1)

    def _readings(self, need: EncoderNeed, run: int, feeding: int | None = None) -> list[BlockReading]:
        """Return what serves a need when `run` blocks are run, of which `feeding` feed (all)."""
        if isinstance(need, AttentionReceived) and feeding is None:
            return [BlockReading(run - 1, AllQueries(self.classes), "VHN")]
        if need == HiddenStates() or (isinstance(need, ClassToken) and self.has_class):
            return []
        reader = None if isinstance(need, AttentionReceived) else reader_of(need, self.classes, None, self.has_class)
        if reader is None or not isinstance(need, AttentionRows | AttentionKeys):
            told = "" if isinstance(need, AttentionReceived) else missing_evidence_hint(need)
            raise ValueError(f"{need} cannot be gathered of an encoder that is pruned inside{told}")
        count = (feeding or run) if need.blocks == "feeding" else len(self.blocks)
        layers = [layer + count if layer < 0 else layer for layer in need.layers]
        if not all(0 <= layer < run for layer in layers):
            raise ValueError(f"{need} asks for a block beyond the {run} that are run by then: leave blocks='feeding'")
        return [BlockReading(layer, reader, "VHNC" if isinstance(need, AttentionKeys) else "VHN") for layer in layers]

    def _found(self, need: EncoderNeed, run: int, hidden: Tensor, feeding: int | None = None) -> Tensor:
        if isinstance(need, ClassToken):
            return hidden[:, 0]
        if isinstance(need, HiddenStates):
            return hidden[:, self.classes :]
        seen: Mapping[Any, Tensor] = self._now.found
        maps = [seen[reading] for reading in self._readings(need, run, feeding)]
        return maps[0][:, 0] if isinstance(need, AttentionReceived) else torch.stack(maps)

    @property
    def hidden(self) -> Tensor:
        """[V, T, C] what the last feeding block made, class tokens in front."""
        assert self._hidden is not None, "the encoder was not run"
        return self._hidden

    def evidence(self, tokens: Tensor | None = None) -> Evidence:
        """Return `needs` of what is left; `tokens` [V, N, D] are what became of the patches' hidden states."""
        hidden = self.hidden
        found = {need: self._found(need, len(self.blocks), hidden, self.feeding) for need in self.needs}
        return replace(self._now, tokens=hidden[:, self.classes :] if tokens is None else tokens, found=found)

    def scores(self, layout: Layout) -> Tensor:
        """[V, N] float32 by the whole `layout`: the last score that each token got."""
        scores = torch.zeros(layout.column.shape, device=layout.column.device, dtype=torch.float32)
        for column, judged in self._judged:
            scores = scatter(scores, find_columns(column, layout), judged)
        return scores.masked_fill(~layout.valid, -torch.inf)


def _when(stage: Stage | None) -> MergeTime | None:
    return None if stage is None else getattr(stage.pruner, "when", "amid")


def stacked(parts: Sequence[Evidence], order: Tensor, layout: Layout) -> Evidence:
    """Make one evidence of several encoders' rows; `order` [V] puts them into the order of `layout`."""
    width = max(part.layout.column.shape[1] for part in parts)

    def whole(tensors: Sequence[Tensor], axes: str, empty: float = 0) -> Tensor:
        v, n = axes.index("V"), axes.index("N") if "N" in axes else None
        if n is not None:
            tensors = [pad(x.movedim(n, -1), (0, width - x.shape[n]), value=empty).movedim(-1, n) for x in tensors]
        return torch.cat(list(tensors), v).index_select(v, order.to(tensors[0].device))

    rows = replace(
        layout,
        grid=whole([part.layout.grid for part in parts], "VNC", -1),
        column=whole([part.layout.column for part in parts], "VN", -1),
        centre=whole([part.layout.centre for part in parts], "VNC", torch.nan),
    )
    found = {need: whole([part[need] for part in parts], need.axes) for need in parts[0].found}
    return Evidence(whole([part.tokens for part in parts], "VNC"), rows, found)


def rows_of(layout: Layout, views: Tensor, device: torch.device) -> Layout:
    """Return the layout of some views [n], in that order, on a device."""
    own = {name: getattr(layout, name)[views] for name in ("sample", "image", "frame", "box")}
    tensors = {name: getattr(layout, name)[views].to(device) for name in ("grid", "column", "centre")}
    return replace(layout, **own, **tensors)
