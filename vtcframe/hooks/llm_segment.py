"""TODO: vtcframe/hooks/llm_segment.py."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, cast

import torch
from torch import Tensor
from transformers.masking_utils import (
    LAYER_PATTERN_TO_MASK_FUNCTION_MAPPING,
    blockwise_overlay,
    create_causal_mask,
    create_sliding_window_causal_mask,
    sliding_window_overlay,
)

from vtcframe.core.evidence import Evidence
from vtcframe.core.layout import Structural, reading_order
from vtcframe.core.pruned import Pruned
from vtcframe.hooks.text_readers import PromptTokens
from vtcframe.ops.views import overview_of


def layer_types(config: Any) -> Sequence[str] | None:
    return getattr(config, "layer_types", None)


@dataclass(frozen=True)
class Segment:
    """What layers in succession read: prompts padded on the left. All on the CPU: the numbers are small."""

    column: Tensor  # [P, L] own column of each slot, -1 = padding
    columns: int  # of the longest prompt, before anything was dropped
    visual: Evidence  # the layout of the visual tokens in it; tokens without channels
    structural: Structural | None  # newlines and their like, of the whole prompts
    rotary: Tensor  # [P, L] the slot of the first segment whose rotary position is taken
    turned: Tensor  # [P, L] that slot in the segment before
    number: Tensor | None = None  # [P, L] its place, where a stage has numbered anew

    @classmethod
    def first(cls, column: Tensor, evidence: Evidence) -> "Segment":
        """Lay out prompts [P, L] of which `evidence` tells the visual tokens."""
        layout, structural = evidence.layout, evidence.structural
        places = {name: getattr(layout, name).cpu() for name in ("grid", "column", "centre")}
        visual = Evidence(torch.zeros(*layout.column.shape, 0, dtype=torch.float32), replace(layout, **places))
        ends = [column] if structural is None else [column, structural.column, structural.last]
        columns = 1 + max(int(end.max()) for end in ends if end.numel())
        slot = torch.arange(column.shape[1]).expand(column.shape)
        return cls(column, columns, visual, structural, slot, slot)

    @cached_property
    def real(self) -> Tensor:
        """[P, L] bool, False at padding."""
        return self.column >= 0

    @cached_property
    def slot(self) -> Tensor:
        """[P, columns] the slot of each column of the prompts, -1 where it is gone."""
        slot = torch.full((len(self.column), self.columns + 1), -1)
        index = torch.arange(self.column.shape[1]).expand(self.column.shape)
        return slot.scatter_(1, self.column % (self.columns + 1), index)[:, :-1]  # padding goes to the last

    @cached_property
    def stand(self) -> Tensor:
        """[V, N] the slot of each visual token, -1 at padding."""
        column = reading_order(self.visual.layout.column)
        return self.slot[self.visual.layout.sample[:, None], column].masked_fill(column < 0, -1)

    @cached_property
    def lines(self) -> tuple[Tensor, Tensor]:
        """[U] each, samples and slots of the structural tokens that are left."""
        if self.structural is None:
            return torch.zeros(0, dtype=torch.long), torch.zeros(0, dtype=torch.long)
        slot = self.slot[self.structural.sample, self.structural.column]
        return self.structural.sample[slot >= 0], slot[slot >= 0]

    @cached_property
    def said(self) -> Tensor:
        """[P] how many tokens are behind the last visual one; all where there is none."""
        last = self.real.long().argmax(1) - 1
        if self.stand.numel():
            last = last.scatter_reduce(0, self.visual.layout.sample, self.stand.amax(1), "amax")
        return self.column.shape[1] - 1 - last.scatter_reduce(0, *self.lines, "amax")

    @cached_property
    def sequences(self) -> PromptTokens:
        """What readers of attention must know."""
        layout, stand, (count, length) = self.visual.layout, self.stand, self.column.shape
        candidate = torch.zeros(count, length + 1, dtype=torch.bool)
        behind = torch.full((count, length + 1), length - 1)
        sample, index = layout.sample[:, None].expand(stand.shape), stand % (length + 1)  # padding goes to the last
        candidate[sample, index] = True
        if stand.numel():
            crop = overview_of(layout) >= 0  # crops of a picture end together, with the last of them
            picture = torch.stack([layout.sample, layout.image, layout.frame], 1)
            alike = (picture[:, None] == picture).all(-1) & crop[:, None] & crop
            alike |= torch.eye(len(crop), dtype=torch.bool)
            end = stand.amax(1).expand(alike.shape).masked_fill(~alike, -1).amax(1, keepdim=True)
            behind[sample, index] = (end + 1).clamp(max=length - 1).expand(stand.shape)
        text = (length - self.said).clamp(max=length - 1)
        return PromptTokens(self.column, layout.key, candidate[:, :-1], text, behind[:, :-1])

    def after(self, place: Tensor, sample: Tensor, compact: bool) -> "Segment":
        """Return what is left behind a stage, by place [V, M] and sample [V] of its `Pruned`, on the CPU."""
        joins = not torch.equal(self.visual.layout.sample, sample)
        old = replace(self, visual=self.visual.joined()) if joins else self
        pruned = Pruned(
            torch.zeros(*place.shape, 0, dtype=torch.float32),
            place,
            torch.zeros(old.stand.shape, dtype=torch.float32),
            old.visual.layout,
        )
        stand = reading_order(pruned.column)
        owner, real = sample[:, None].expand(place.shape), place >= 0
        here = torch.zeros(len(self.column), self.columns, dtype=torch.bool)
        here[owner[real], stand[real]] = True
        if self.structural is not None:
            stays = self.structural.stays(here)
            here[self.structural.sample[stays], self.structural.column[stays]] = True
        text = self.real & ~self.sequences.candidate
        text[self.lines] = False
        here[text.nonzero()[:, 0], self.column[text]] = True
        # which slot's position each column takes: a merger may give a token the place of another
        taken = self.slot.clone()
        taken[owner[real], stand[real]] = old.stand.gather(1, place.clamp(min=0))[real]

        length = here.sum(1)
        width = int(length.max())
        at = torch.arange(width) - (width - length)[:, None]
        column = (~here).long().argsort(dim=1, stable=True)[:, :width].gather(1, at.clamp(min=0))
        turned = taken.gather(1, column).masked_fill(at < 0, 0)
        column = column.masked_fill(at < 0, -1)
        number = at.clamp(min=0) if compact else None if self.number is None else self.number.gather(1, turned)
        visual = self.visual.after(pruned)
        return Segment(column, self.columns, visual, self.structural, self.rotary.gather(1, turned), turned, number)


def layer_kind(config: Any, i: int) -> str | None:
    types = layer_types(config)
    return types[i] if types else None


def layer_mask(
    config: Any, i: int, hidden: Tensor, real: Tensor | None, cache: Any, blocks: Tensor | None = None
) -> Tensor | None:
    """Return the mask of layer i as the model's own kernel takes it; real [P, keys] bool, None if all are."""
    kind, window = layer_kind(config, i), getattr(config, "sliding_window", None)
    given = {
        "config": config,
        "inputs_embeds": hidden,
        "attention_mask": real,
        "past_key_values": cache,
        "layer_idx": i,
    }
    sliding = kind == "sliding_attention" or (kind is None and window is not None)
    if blocks is not None:
        own = sliding_window_overlay(cast(int, window)) if sliding else None
        return create_causal_mask(**given, or_mask_function=blockwise_overlay(blocks), and_mask_function=own)
    if sliding:
        return create_sliding_window_causal_mask(**given)
    return cast(Any, LAYER_PATTERN_TO_MASK_FUNCTION_MAPPING[kind or "full_attention"])(**given)
