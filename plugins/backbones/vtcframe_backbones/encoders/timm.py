"""Adapter to the VisionTransformer of timm."""

from typing import Any

import torch
from torch import Tensor, nn

from vtcframe.hooks.encoder_blocks import SplitBlock, by_heads
from vtcframe_backbones.encoders.base import Encoder
from vtcframe_backbones.encoders.vit import Vit, is_instance


class TimmVit(Vit):
    """VisionTransformer of timm, with class token, registers or neither; head included."""

    def __init__(self, module: Any) -> None:
        kind = type(module).__name__
        if not is_instance(module, "timm.models.vision_transformer", "VisionTransformer"):
            raise ValueError(
                f"timm's {kind} cannot be pruned: only VisionTransformer has a sequence of tokens with full "
                "attention in each block, and no windows, convolutions or rotary positions"
            )
        if not module.global_pool:
            raise ValueError(f"{kind} has global_pool='' and pools no features: call reset_classifier(0, 'avg')")
        super().__init__(module, module.blocks, module.num_prefix_tokens, module.cls_token is not None)

    def grid(self, pixels: Tensor) -> tuple[int, int]:
        return tuple(self.module.patch_embed.dynamic_feat_size(pixels.shape[-2:]))

    def begin(self, pixels: Tensor, site: int, deepest: int) -> Tensor:
        output = self.module.forward_intermediates(
            pixels,
            indices=[site - 1, deepest - 1],
            return_prefix_tokens=True,
            stop_early=True,
            output_fmt="NLC",
            intermediates_only=True,
        )[0]
        return torch.cat([output[1], output[0]], 1) if self.prefix else output

    def split(self, block: Any) -> SplitBlock:
        if not is_instance(block, "timm.models.vision_transformer", "Block") or not hasattr(block, "norm1"):
            raise ValueError(
                f"a {type(block).__name__} cannot be pruned inside: only timm's Block has attention and MLP in "
                "sequence, each after its norm. Use stages at 'projector'"
            )
        return _SplitTimmBlock(self, block)

    def mask(self, bias: Tensor, block: Any) -> Tensor:
        return bias[:, None, None]

    def pooled(self, hidden: Tensor) -> Tensor:
        return self.module.forward_head(self.module.norm(hidden))


class _SplitTimmBlock(SplitBlock):
    def __init__(self, vit: Vit, block: Any) -> None:
        super().__init__(block, block.attn)
        self.vit = vit

    def attention(self, hidden: Tensor, bias: Tensor | None) -> Tensor:
        mask = None if bias is None else self.vit.mask(bias.to(hidden.dtype), self.block)
        return hidden + self.block.drop_path1(
            self.block.ls1(self.attention_module(self.block.norm1(hidden), attn_mask=mask))
        )

    def apply_attention(self, hidden: Tensor, weights: Tensor) -> Tensor:
        attention = self.attention_module
        normed = self.block.norm1(hidden)
        attended = attention.norm(by_heads(attention.qkv(normed).chunk(3, -1)[2], weights))
        if attention.gate is not None:
            attended = attended * attention.gate(normed).sigmoid()
        return hidden + self.block.drop_path1(self.block.ls1(attention.proj(attended)))

    def mlp(self, hidden: Tensor) -> Tensor:
        return hidden + self.block.drop_path2(self.block.ls2(self.block.mlp(self.block.norm2(hidden))))


class Timm(Encoder):
    """A VisionTransformer of timm: class-token, average and attention pooling, with or without a classifier."""

    @classmethod
    def matches(cls, model: nn.Module) -> bool:
        """Match every model of timm; `part` explains why a model cannot be pruned."""
        return is_instance(model, "timm.models")

    @staticmethod
    def part(model: Any) -> Vit:
        """Return the model itself."""
        return TimmVit(model)

    def untouched(self, pixels: Tensor) -> Tensor:
        """Call the model."""
        return self.model(pixels)
