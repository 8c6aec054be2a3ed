"""TODO: vtcframe/hooks/encoder_blocks.py."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from vtcframe.core.needs import AttentionKeys, AttentionRows, ClassToken, Need
from vtcframe.hooks.kernel_call import KernelCall
from vtcframe.hooks.readers import KeyStates, MeanQuery, QueryRow, Reader, ReceivedAttention


class SplitBlock(ABC):
    """A pre-norm block as the two halves between which stages act: attention and MLP, each with its residual."""

    def __init__(self, block: nn.Module, attention: nn.Module) -> None:
        self.block: Any = block
        self.attention_module: Any = attention

    @abstractmethod
    def attention(self, hidden: Tensor, bias: Tensor | None) -> Tensor:
        """[B, T, C] -> [B, T, C] behind attention; `bias` [B, T] is added to the logits of keys, -inf hides one."""

    @abstractmethod
    def apply_attention(self, hidden: Tensor, paid: Tensor) -> Tensor:
        """Do as `attend`, by attention [B, H, T, T] that is given."""

    @abstractmethod
    def mlp(self, hidden: Tensor) -> Tensor:
        """[B, T, C] -> [B, T, C] behind the MLP."""

    @property
    def flash(self) -> bool:
        """Whether the kernel takes no bias, only which keys are padding."""
        return "flash" in (getattr(getattr(self.attention_module, "config", None), "_attn_implementation", None) or "")


def by_heads(values: Tensor, paid: Tensor) -> Tensor:
    """[B, T, H x d] values, [B, H, T, T] attention -> [B, T, H x d]."""
    heads = values.unflatten(-1, (paid.shape[1], -1)).transpose(1, 2)
    return (paid.to(values.dtype) @ heads).transpose(1, 2).flatten(2)


def reader_of(
    need: Need, skip: int = 0, pool: Callable[[Tensor], Tensor] | None = None, has_class: bool = True
) -> Reader | None:
    """Return what an attention module of an encoder is read by for a need, or None where it cannot serve it."""
    match need:
        case AttentionRows(query="cls" | "proxy", tower="vision", reduce="mean") if has_class:
            return QueryRow(0, need.pre_softmax, need.heads, skip, pool)
        case AttentionRows(query="mean" | "proxy", tower="vision", reduce="mean"):
            return MeanQuery(need.pre_softmax, need.heads, skip, pool)
        case AttentionRows(
            query="received", tower="vision", reduce="mean", pre_softmax=False, heads=("split" | "mean") as heads
        ):
            return ReceivedAttention(heads, skip, pool)
        case AttentionKeys(tower="vision"):
            return KeyStates(skip, pool)
    return None


def missing_evidence_hint(need: Need) -> str:
    """Say what can be done about a need that a tower does not serve."""
    if isinstance(need, ClassToken) or (
        isinstance(need, AttentionRows) and need.query == "cls" and need.tower == "vision"
    ):
        return ": it has no class token. Use a proxy, query='mean' or 'received', or the class token of a witness"
    if isinstance(need, AttentionRows) and need.query == "head":
        return ": it has no attention-pooling head, or layers is not (-1,)"
    return ""


@dataclass(frozen=True)
class AllQueries:
    """[B, 1, T]: attention that keys get from all queries."""

    skip: int

    def __call__(self, call: KernelCall) -> Tensor:
        return ReceivedAttention("mean")(call)[..., self.skip :]


@dataclass(frozen=True)
class FullAttention:
    """[B, H, T, T] float32: the whole attention matrix."""

    def __call__(self, call: KernelCall) -> Tensor:
        paid = call.query.float() * call.scaling @ call.key.float().transpose(-1, -2)
        hidden = call.additive_mask(slice(None))
        return (paid if hidden is None else paid + hidden).softmax(-1)


@dataclass(frozen=True)
class BlockReading:
    """What one block showed one reader."""

    block: int
    reader: Reader
    axes: str  # "VHN", of keys "VHNC"
