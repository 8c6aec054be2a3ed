"""FlashAttention's code paths without its kernels: on a CPU, in float32, against which sdpa can be compared."""

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
    """Run towers and language model as under FlashAttention 2, by a kernel with its interface and its masks.

    They pack (`cu_seq_lens_q`) and pass 2-D padding masks or None as they do there. Configurations and registry are
    restored, also after an exception. Meanwhile the registry's entry serves every model of the process.
    """
    configs = {id(config): config for config in _configs(model)}
    used = {key: config._attn_implementation_internal for key, config in configs.items()}
    before = ALL_ATTENTION_FUNCTIONS._local_mapping.get(NAME)
    try:
        ALL_ATTENTION_FUNCTIONS[NAME] = attention
        for config in configs.values():
            config._attn_implementation_internal = NAME  # the public setter is for installed kernels and recurses
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

    A query sees keys of its own sequence. What a sequence is comes from the padding mask, else from `cu_seq_lens`,
    else from position ids that start anew within a batch of one, else it is the row: the order in which
    transformers' `_flash_attention_forward` asks. TypeError for a mask that FlashAttention could not take.
    """
    if softcap is not None:
        raise NotImplementedError(f"softcap={softcap} is not emulated: use sdpa")
    queries, keys = query.shape[2], key.shape[2]
    part = _parts(len(query), queries, keys, attention_mask, position_ids, cu_seq_lens_q, cu_seq_lens_k)
    part = part.to(query.device)
    # Places are counted within a sequence, without padding: that is what the kernel's causal mask and window see.
    same = part[:, :, None] == part[:, None, :]
    place = (same & torch.ones(keys, keys, dtype=torch.bool, device=query.device).tril()).sum(-1)
    asking = slice(keys - queries, None)  # the last keys are the queries' own
    seen, behind = same[:, asking], place[:, asking, None] - place[:, None, :]
    if module.is_causal if is_causal is None else is_causal:
        seen = seen & (behind >= 0)
    if sliding_window is not None and keys > sliding_window:
        seen = seen & (behind.abs() < sliding_window)
    grouped = query.shape[1] != key.shape[1]
    out = scaled_dot_product_attention(query, key, value, seen[:, None], scale=scaling, enable_gqa=grouped)
    padding = (part[:, asking] < 0)[:, None, :, None]
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
    """[B, K] int64: which sequence of its row a key belongs to, -1 = padding."""
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
    """Every configuration that a module of the model reads, and those inside them."""
    waiting: list[Any] = [module.config for module in model.modules() if hasattr(module, "config")]
    while waiting:
        config = waiting.pop()
        if hasattr(config, "_attn_implementation_internal"):
            yield config
            waiting += [getattr(config, name) for name in config.sub_configs if getattr(config, name, None) is not None]
