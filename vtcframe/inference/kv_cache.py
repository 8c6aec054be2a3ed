"""What a language model reads and holds: visual tokens by layer, and the bytes of keys and values."""

from typing import Any

import torch
from torch import Tensor


def kv_bytes(decoder: Any, held: Tensor) -> Tensor:
    """[P, layers] tokens -> [P]: bytes of the keys and values of so many tokens in each layer.

    Layers with a sliding window hold that window at most.
    """
    config = decoder.config
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    types = getattr(config, "layer_types", None) or ()
    local = torch.tensor([kind == "sliding_attention" for kind in types] or [False] * held.shape[1])
    if window := getattr(config, "sliding_window", None):
        local = local if types else ~local
        held = torch.where(local, held.clamp(max=window - 1), held)
    groups = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    return held.sum(1) * 2 * groups * width * decoder.dtype.itemsize
