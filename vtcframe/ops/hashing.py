"""A deterministic integer hash on tensors, the same on every device."""

from torch import Tensor


def mix_hash(x: Tensor) -> Tensor:
    """Return SplitMix64's finaliser (Steele et al., OOPSLA 2014) of int64 values, with wrap-around."""
    for shift, factor in ((30, -0x40A7B892E31B1A47), (27, -0x6B2FB644ECCEEE15), (31, 1)):
        x = (x ^ ((x >> shift) & ((1 << (64 - shift)) - 1))) * factor
    return x
