"""Blocks of an encoder, split into two halves between which stages act."""

from abc import ABC, abstractmethod
from typing import Any

from torch import Tensor, nn


class SplitBlock(ABC):
    """A pre-norm block as the two halves between which stages act: attention and MLP, each with its residual."""

    def __init__(self, block: nn.Module, attention: nn.Module) -> None:
        self.block: Any = block
        self.attention_module: Any = attention

    @abstractmethod
    def attention(self, hidden: Tensor, bias: Tensor | None) -> Tensor:
        """[B, T, C] -> [B, T, C] after attention; `bias` [B, T] is added to the logits of keys, -inf hides one."""

    @abstractmethod
    def apply_attention(self, hidden: Tensor, weights: Tensor) -> Tensor:
        """[B, T, C] -> [B, T, C] after attention with precomputed attention weights [B, H, T, T]."""

    @abstractmethod
    def mlp(self, hidden: Tensor) -> Tensor:
        """[B, T, C] -> [B, T, C] after the MLP."""

    @property
    def flash(self) -> bool:
        """Whether the kernel takes no bias, only which keys are padding."""
        return "flash" in (getattr(getattr(self.attention_module, "config", None), "_attn_implementation", None) or "")


def by_heads(values: Tensor, weights: Tensor) -> Tensor:
    """[B, T, H x d] values, [B, H, T, T] attention weights -> [B, T, H x d]."""
    heads = values.unflatten(-1, (weights.shape[1], -1)).transpose(1, 2)
    return (weights.to(values.dtype) @ heads).transpose(1, 2).flatten(2)
