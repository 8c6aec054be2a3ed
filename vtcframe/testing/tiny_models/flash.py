"""Emulation of FlashAttention without its kernels, on a CPU in float32, for comparison with sdpa."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

NAME = "flash_attention_2"


@contextmanager
def emulated_flash(model: nn.Module) -> Iterator[None]:
    """Run towers and language model on a kernel with the interface and the masks of FlashAttention 2.

    As with FlashAttention they pack sequences (`cu_seq_lens_q`) and pass 2-D padding masks or None. Configurations and
    registry are restored, also after an exception. Inside the `with` the entry of the registry applies to every model
    of the process.
    """
    configs = {id(config): config for config in _configs(model)}
    used = {key: config._attn_implementation_internal for key, config in configs.items()}
    before = ALL_ATTENTION_FUNCTIONS._local_mapping.get(NAME)
    try:
        ALL_ATTENTION_FUNCTIONS[NAME] = attention
        for config in configs.values():
            config._attn_implementation_internal = NAME  # the public setter requires installed kernels and recurses
        yield
    finally:
        for key, config in configs.items():
            config._attn_implementation_internal = used[key]
        if before is None:
            del ALL_ATTENTION_FUNCTIONS[NAME]
        else:
            ALL_ATTENTION_FUNCTIONS[NAME] = before


def attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    is_causal: bool | None = None,
    position_ids: Tensor | None = None,
    cu_seq_lens_q: Tensor | None = None,
    cu_seq_lens_k: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """[B, H, Q, d], [B, G, K, d] twice, [B, K] -> [B, Q, H, d], zeros at padded queries.

    A query attends to the keys of its sequence. Sequences are defined by the padding mask, else by `cu_seq_lens`, else
    by position ids that restart within a batch of size 1, else they are rows: the order of precedence of
    `_flash_attention_forward` in transformers. TypeError for a mask that FlashAttention could not take,
    NotImplementedError for a soft cap.
    """
    if softcap is not None:
        raise NotImplementedError(f"softcap={softcap} is not emulated: use sdpa")
    queries = query.shape[2]
    keys = key.shape[2]
    part = _parts(len(query), queries, keys, attention_mask, position_ids, cu_seq_lens_q, cu_seq_lens_k)
    part = part.to(query.device)
    # The causal mask and the window of the kernel count positions within a sequence, without padding.
    same = part[:, :, None] == part[:, None, :]
    place = (same & torch.ones(keys, keys, dtype=torch.bool, device=query.device).tril()).sum(-1)
    of_queries = slice(keys - queries, None)  # the last keys are those of the queries
    visible = same[:, of_queries]
    distance = place[:, of_queries, None] - place[:, None, :]
    if module.is_causal if is_causal is None else is_causal:
        visible = visible & (distance >= 0)
    if sliding_window is not None and keys > sliding_window:
        visible = visible & (distance.abs() < sliding_window)
    grouped = query.shape[1] != key.shape[1]
    out = scaled_dot_product_attention(query, key, value, visible[:, None], scale=scaling, enable_gqa=grouped)
    padding = (part[:, of_queries] < 0)[:, None, :, None]
    return out.masked_fill(padding, 0).transpose(1, 2).contiguous(), None


def _parts(
    batch: int,
    queries: int,
    keys: int,
    mask: Tensor | None,
    position_ids: Tensor | None,
    bounds: Tensor | None,
    key_bounds: Tensor | None,
) -> Tensor:
    """Return the index of the sequence of each key within its row, [B, K] int64, -1 = padding."""
    if mask is not None:
        if mask.ndim != 2:
            raise TypeError(f"FlashAttention takes a padding mask [B, K], not one of shape {tuple(mask.shape)}")
        return mask[:, -keys:].long() - 1
    if bounds is not None and key_bounds is not None:
        if not torch.equal(bounds, key_bounds):
            raise NotImplementedError("cu_seq_lens_q and cu_seq_lens_k differ, which is not emulated: use sdpa")
        return torch.bucketize(torch.arange(keys, device=bounds.device), bounds[1:], right=True).expand(batch, keys)
    if position_ids is not None and batch == 1 and queries == keys > 1 and position_ids.ndim == 2:
        return (position_ids == position_ids.min()).cumsum(-1)
    return torch.zeros(batch, keys, dtype=torch.long)


def _configs(model: nn.Module) -> Iterator[Any]:
    """Yield the configurations of all modules of a model, and the configurations inside them."""
    remaining: list[Any] = [module.config for module in model.modules() if hasattr(module, "config")]
    while remaining:
        config = remaining.pop()
        if hasattr(config, "_attn_implementation_internal"):
            yield config
            remaining += [
                getattr(config, name) for name in config.sub_configs if getattr(config, name, None) is not None
            ]
