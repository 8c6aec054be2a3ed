"""Interface of a ViT whose blocks run separately, so that patches can be pruned between them."""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

from vtcframe.hooks.encoder_blocks import SplitBlock


class Vit(ABC):
    """A ViT in parts that run one by one. Hidden states are [B, prefix + patches, C], the prefix in front."""

    def __init__(self, module: nn.Module, blocks: Iterable[nn.Module], prefix: int, has_class: bool) -> None:
        self.module: Any = module
        self.blocks = list(blocks)
        self.prefix = prefix  # number of class tokens and registers
        self.has_class = has_class

    @abstractmethod
    def grid(self, pixels: Tensor) -> tuple[int, int]:
        """Return the rows and columns of patches of pixels [B, 3, h, w]."""

    @abstractmethod
    def begin(self, pixels: Tensor, site: int, deepest: int) -> Tensor:
        """[B, 3, h, w] -> hidden states after `site` blocks; `deepest` >= site blocks run."""

    @abstractmethod
    def split(self, block: Any) -> SplitBlock:
        """Return a block split into attention and MLP. ValueError if they do not run in sequence."""

    @abstractmethod
    def mask(self, bias: Tensor, block: Any) -> Tensor:
        """Convert a bias [B, T] on the attention logits of keys to the mask that a block takes."""

    @abstractmethod
    def pooled(self, hidden: Tensor) -> Tensor:
        """Apply norm, pooling and head of the model to hidden states after the last block -> [B, D]."""


def is_instance(model: nn.Module, package: str, name: str | None = None) -> bool:
    """Return whether a class of `package` (called `name`, if given) is a base of the model, without importing it."""
    return any(
        (kind.__module__ + ".").startswith(package + ".") and name in (None, kind.__name__)
        for kind in type(model).__mro__
    )
