"""Size of the KV cache of a language model."""

from typing import Any

import torch
from torch import Tensor


def kv_bytes(decoder: Any, tokens: Tensor) -> Tensor:
    """Return the bytes of keys and values [P] for a number of `tokens` [P, layers] in each layer.

    Layers with a sliding window cache at most the window.
    """
    config = decoder.config
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    types = getattr(config, "layer_types", None) or ()
    local = torch.tensor([kind == "sliding_attention" for kind in types] or [False] * tokens.shape[1])
    if window := getattr(config, "sliding_window", None):
        local = local if types else ~local
        tokens = torch.where(local, tokens.clamp(max=window - 1), tokens)
    groups = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    return tokens.sum(1) * 2 * groups * width * decoder.dtype.itemsize
