"""TODO: plugins/backbones/vtcframe_backbones/encoders/vit.py."""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

from vtcframe.hooks.encoder_blocks import SplitBlock


class Vit(ABC):
    """A ViT in the parts that pruning runs one by one. Hidden states [B, prefix + patches, C] have prefix in front."""

    def __init__(self, module: nn.Module, blocks: Iterable[nn.Module], prefix: int, has_class: bool) -> None:
        self.module: Any = module
        self.blocks = list(blocks)
        self.prefix = prefix  # class token, registers
        self.has_class = has_class

    @abstractmethod
    def grid(self, pixels: Tensor) -> tuple[int, int]:
        """Return rows and columns of patches that [B, 3, h, w] becomes."""

    @abstractmethod
    def begin(self, pixels: Tensor, site: int, deepest: int) -> Tensor:
        """[B, 3, h, w] -> hidden states behind `site` blocks; `deepest` >= site of them are run."""

    @abstractmethod
    def halves(self, block: Any) -> SplitBlock:
        """Return a block as stages inside it take it. ValueError where nothing lies between attention and MLP."""

    @abstractmethod
    def mask(self, bias: Tensor, block: Any) -> Tensor:
        """[B, T] what is added to the logits of keys -> the mask by which a block does."""

    @abstractmethod
    def pooled(self, hidden: Tensor) -> Tensor:
        """Hidden states behind the last block -> [B, D], by the model's own norm, pooling and head."""


def is_instance(model: nn.Module, package: str, name: str | None = None) -> bool:
    """Tell whether a class of `package` made the model, without importing that package."""
    return any(
        (kind.__module__ + ".").startswith(package + ".") and name in (None, kind.__name__)
        for kind in type(model).__mro__
    )
