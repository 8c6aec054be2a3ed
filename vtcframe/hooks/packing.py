"""Conversion of a call of a kernel to `KernelCall`s, one for each sequence that is packed in it."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from vtcframe.core.kernel_call import KernelCall


@dataclass(frozen=True)
class PackedSequences:
    """Sequences that are concatenated in every call and attend only to themselves (Pixtral)."""

    lengths: Sequence[int]
    order: Tensor  # [K] an order of keys within each sequence in which the patches of a token are consecutive


def calls_of(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    mask: Tensor | None,
    options: Mapping[str, Any],
    packed: PackedSequences | None = None,
) -> Iterator[KernelCall]:
    """Yield the arguments of a kernel as `KernelCall`s, one for each packed sequence."""
    scaling = options.get("scaling")
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    causal = options.get("is_causal")
    causal = getattr(module, "is_causal", False) if causal is None else causal
    bounds = options.get("cu_seq_lens_q")
    if packed is not None:
        order, lengths = packed.order.to(query.device), list(packed.lengths)
        query, key = query[:, :, order], key[:, :, order]
    elif bounds is not None:  # concatenated sequences, as for FlashAttention
        lengths = bounds.diff().tolist()
    else:
        yield KernelCall(query, key, mask, scaling, causal, options.get("sliding_window"))
        return
    for q, k in zip(query.split(lengths, 2), key.split(lengths, 2), strict=True):
        yield KernelCall(q, k, None, scaling, causal, options.get("sliding_window"))
