"""Batches of prompts by column, padded on either side."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Prompt:
    """A batch of P prompts by column: the position in the prompt of a sample, without batch padding. On the CPU."""

    ids: Tensor  # [P, C]
    real: Tensor  # [P, C] bool, False after the end of a prompt
    kind: Tensor  # [P, C] index of the placeholder in each column, -1 = text

    @classmethod
    def of(cls, inputs: Mapping[str, Any], placeholders: Sequence[int]) -> "Prompt":
        """Return the prompts of `input_ids` and `attention_mask`, padded on either side; no mask means no padding.

        `placeholders` are token ids, one for each kind of visual. ValueError for a mask of another shape.
        """
        ids = inputs["input_ids"].cpu()
        real = prompt_mask(inputs)
        if real.shape != ids.shape:
            raise ValueError(f"attention_mask is {list(real.shape)}, input_ids {list(ids.shape)}: give a 2-D mask")
        ids, real = align_columns(ids, real), align_columns(real, real)
        kind = torch.full_like(ids, -1)
        for number, placeholder in enumerate(placeholders):
            kind[real & (ids == placeholder)] = number
        return cls(ids, real, kind)

    @property
    def visual(self) -> Tensor:
        """[P, C] bool, True at placeholders of any kind."""
        return self.kind >= 0


def prompt_mask(inputs: Mapping[str, Any]) -> Tensor:
    """[P, L] bool on the CPU, False at padding."""
    mask = inputs.get("attention_mask")
    return torch.ones_like(inputs["input_ids"].cpu(), dtype=torch.bool) if mask is None else mask.cpu().bool()


def align_columns(values: Tensor, real: Tensor) -> Tensor:
    """[..., P, L] padded on either side, real [P, L] -> [..., P, C], padded at the end."""
    order = (~real).long().argsort(dim=1, stable=True)[:, : int(real.sum(1).max())]
    return values.gather(-1, order.expand(*values.shape[:-2], *order.shape))
