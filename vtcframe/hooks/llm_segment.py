"""The prompts of consecutive layers of the language model between stages, and the masks of these layers."""

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
from vtcframe.core.text_readers import PromptTokens
from vtcframe.ops.views import overview_of


def layer_types(config: Any) -> Sequence[str] | None:
    """Return the kind of attention of each layer, None if the configuration names none."""
    return getattr(config, "layer_types", None)


@dataclass(frozen=True)
class Segment:
    """The prompts of consecutive layers, padded on the left. All tensors are small and on the CPU."""

    column: Tensor  # [P, L] the position of each slot in the original prompt, -1 = padding
    columns: int  # number of columns of the longest original prompt
    visual: Evidence  # layout of the visual tokens; its tokens have no channels
    structural: Structural | None  # structural tokens of the original prompts
    first_slot: Tensor  # [P, L] the slot of the first segment whose rotary position a slot has
    previous_slot: Tensor  # [P, L] the same slot in the previous segment
    new_position: Tensor | None = None  # [P, L] position of each slot after a stage with compact positions

    @classmethod
    def first(cls, column: Tensor, evidence: Evidence) -> "Segment":
        """Return the segment of prompts [P, L] with the visual tokens of `evidence`."""
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
        """[P, columns] the slot of each column of the prompts, -1 where its token was dropped."""
        slot = torch.full((len(self.column), self.columns + 1), -1)
        index = torch.arange(self.column.shape[1]).expand(self.column.shape)
        return slot.scatter_(1, self.column % (self.columns + 1), index)[
            :, :-1
        ]  # padding is written to an extra column

    @cached_property
    def slot_of_token(self) -> Tensor:
        """[V, N] the slot of each visual token, -1 at padding."""
        column = reading_order(self.visual.layout.column)
        return self.slot[self.visual.layout.sample[:, None], column].masked_fill(column < 0, -1)

    @cached_property
    def structural_slots(self) -> tuple[Tensor, Tensor]:
        """[U] each, samples and slots of the structural tokens that remain."""
        if self.structural is None:
            return torch.zeros(0, dtype=torch.long), torch.zeros(0, dtype=torch.long)
        slot = self.slot[self.structural.sample, self.structural.column]
        return self.structural.sample[slot >= 0], slot[slot >= 0]

    @cached_property
    def text_after(self) -> Tensor:
        """[P] number of tokens after the last visual token; all tokens if there is none."""
        last = self.real.long().argmax(1) - 1
        if self.slot_of_token.numel():
            last = last.scatter_reduce(0, self.visual.layout.sample, self.slot_of_token.amax(1), "amax")
        return self.column.shape[1] - 1 - last.scatter_reduce(0, *self.structural_slots, "amax")

    @cached_property
    def prompts(self) -> PromptTokens:
        """The prompts in the form that needs get."""
        layout, token_slot, (count, length) = self.visual.layout, self.slot_of_token, self.column.shape
        candidate = torch.zeros(count, length + 1, dtype=torch.bool)
        after_view = torch.full((count, length + 1), length - 1)
        sample = layout.sample[:, None].expand(token_slot.shape)
        index = token_slot % (length + 1)  # padding is written to an extra column
        candidate[sample, index] = True
        if token_slot.numel():
            crop = overview_of(layout) >= 0  # all crops of a picture end with the last crop
            picture = torch.stack([layout.sample, layout.image, layout.frame], 1)
            together = (picture[:, None] == picture).all(-1) & crop[:, None] & crop
            together |= torch.eye(len(crop), dtype=torch.bool)
            end = token_slot.amax(1).expand(together.shape).masked_fill(~together, -1).amax(1, keepdim=True)
            after_view[sample, index] = (end + 1).clamp(max=length - 1).expand(token_slot.shape)
        text_start = (length - self.text_after).clamp(max=length - 1)
        return PromptTokens(self.column, layout.key, candidate[:, :-1], text_start, after_view[:, :-1])

    def of_first_slots(self, x: Tensor) -> Tensor:
        """[P, L0, ...] at the slots of the first segment -> [P, L, ...] at the slots of this one, 0 at padding."""
        slot, real = self.first_slot.to(x.device), self.real.to(x.device)
        trailing = [1] * (x.ndim - 2)
        picked = x.gather(1, slot.view(*slot.shape, *trailing).expand(*slot.shape, *x.shape[2:]))
        return picked.masked_fill(~real.view(*real.shape, *trailing), 0)

    def tokens_of(self, x: Tensor) -> Tensor:
        """[P, L, ...] -> [V, N, ...] at the visual tokens, 0 at padding."""
        sample, slot = self.visual.layout.sample.to(x.device)[:, None], self.slot_of_token.to(x.device)
        picked = x[sample, slot.clamp(min=0)]
        return picked.masked_fill((slot < 0).view(*slot.shape, *[1] * (picked.ndim - 2)), 0)

    def text_of(self, x: Tensor) -> Tensor:
        """[P, L, C] -> [P, T, C] at the tokens after the last visual token, NaN if a prompt has fewer."""
        count, length = max(1, int(self.text_after.max())), x.shape[1]
        index = torch.arange(count) + (length - self.text_after)[:, None]
        text = x.gather(1, index.clamp(max=length - 1).to(x.device)[..., None].expand(-1, -1, x.shape[2]))
        return text.float().masked_fill((index >= length).to(x.device)[..., None], torch.nan)

    def after(self, place: Tensor, sample: Tensor, compact: bool) -> "Segment":
        """Return the segment after a stage, from place [V, M] and sample [V] of its `Pruned`, on the CPU."""
        joins = not torch.equal(self.visual.layout.sample, sample)
        old = replace(self, visual=self.visual.join_views()) if joins else self
        pruned = Pruned(
            torch.zeros(*place.shape, 0, dtype=torch.float32),
            place,
            torch.zeros(old.slot_of_token.shape, dtype=torch.float32),
            old.visual.layout,
        )
        token_column = reading_order(pruned.column)
        owner, real = sample[:, None].expand(place.shape), place >= 0
        stays = torch.zeros(len(self.column), self.columns, dtype=torch.bool)
        stays[owner[real], token_column[real]] = True
        if self.structural is not None:
            structural_stays = self.structural.stays(stays)
            stays[self.structural.sample[structural_stays], self.structural.column[structural_stays]] = True
        text = self.real & ~self.prompts.candidate
        text[self.structural_slots] = False
        stays[text.nonzero()[:, 0], self.column[text]] = True
        # the slot whose position each column takes: a merged token may take the place of another token
        slot = self.slot.clone()
        slot[owner[real], token_column[real]] = old.slot_of_token.gather(1, place.clamp(min=0))[real]

        length = stays.sum(1)
        width = int(length.max())
        index = torch.arange(width) - (width - length)[:, None]
        column = (~stays).long().argsort(dim=1, stable=True)[:, :width].gather(1, index.clamp(min=0))
        previous = slot.gather(1, column).masked_fill(index < 0, 0)
        column = column.masked_fill(index < 0, -1)
        position = None if self.new_position is None else self.new_position.gather(1, previous)
        position = index.clamp(min=0) if compact else position
        visual, first = self.visual.restrict_to(pruned), self.first_slot.gather(1, previous)
        return Segment(column, self.columns, visual, self.structural, first, previous, position)


def layer_kind(config: Any, i: int) -> str | None:
    """Return the kind of attention of layer i, None if the configuration names none."""
    types = layer_types(config)
    return types[i] if types else None


def layer_mask(
    config: Any, i: int, hidden: Tensor, real: Tensor | None, cache: Any, blocks: Tensor | None = None
) -> Tensor | None:
    """Return the mask of layer i in the form of its kernel; `real` [P, keys] bool is None without padding."""
    kind = layer_kind(config, i)
    window = getattr(config, "sliding_window", None)
    options = {
        "config": config,
        "inputs_embeds": hidden,
        "attention_mask": real,
        "past_key_values": cache,
        "layer_idx": i,
    }
    sliding = kind == "sliding_attention" or (kind is None and window is not None)
    if blocks is not None:
        overlay = sliding_window_overlay(cast(int, window)) if sliding else None
        return create_causal_mask(**options, or_mask_function=blockwise_overlay(blocks), and_mask_function=overlay)
    if sliding:
        return create_sliding_window_causal_mask(**options)
    return cast(Any, LAYER_PATTERN_TO_MASK_FUNCTION_MAPPING[kind or "full_attention"])(**options)
