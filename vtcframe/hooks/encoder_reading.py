"""Readers of encoder blocks: needs of attention as readers of a tap, and the readings of a block."""

from dataclasses import dataclass

from torch import Tensor

from vtcframe.core.encoder_readers import EncoderTokens, Reader
from vtcframe.core.kernel_call import KernelCall
from vtcframe.core.need_bases import AttentionNeed, HiddenNeed, Need


@dataclass(frozen=True)
class NeedReader:
    """A need of attention as a reader: [B, H, T] or [B, G, T, d] float32 of one call."""

    need: AttentionNeed
    tokens: EncoderTokens

    def __call__(self, call: KernelCall) -> Tensor:
        return self.need.read_encoder(call, self.tokens)


def reader_of(need: AttentionNeed, tokens: EncoderTokens) -> NeedReader:
    """Return the reader of a need; needs that differ only in their layers have equal readers."""
    return NeedReader(need.reading(tokens), tokens)


def encoder_refusal(need: Need, tokens: EncoderTokens) -> str:
    """Return why an encoder with such tokens cannot serve a need, and the cure; "" if it can."""
    if need.site != "encoder":
        return f"it is read at the site {need.site!r}"
    if isinstance(need, AttentionNeed | HiddenNeed):
        return need.encoder_refusal(tokens)
    return f"{type(need).__name__} reads neither attention nor hidden states: extend AttentionNeed or HiddenNeed"


@dataclass(frozen=True)
class FullAttention:
    """[B, H, T, T] float32: the complete attention matrix."""

    def __call__(self, call: KernelCall) -> Tensor:
        logits = call.query.float() * call.scaling @ call.key.float().transpose(-1, -2)
        mask = call.additive_mask(slice(None))
        return (logits if mask is None else logits + mask).softmax(-1)


@dataclass(frozen=True)
class BlockReading:
    """The result of one reader in one block."""

    block: int
    reader: Reader
    axes: str  # axes of the need without L: "VHN", "VHNC"
