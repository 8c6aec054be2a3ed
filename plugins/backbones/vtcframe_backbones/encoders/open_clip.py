"""Adapter to the image towers of open_clip."""

from typing import Any

import torch
from torch import Tensor, nn

from vtcframe.hooks.encoder_blocks import SplitBlock, by_heads
from vtcframe_backbones.encoders.base import Encoder
from vtcframe_backbones.encoders.timm import TimmVit
from vtcframe_backbones.encoders.vit import Vit, is_instance


class OpenClipVit(Vit):
    """VisionTransformer of open_clip, pooling and projection included."""

    def __init__(self, module: Any) -> None:
        if not is_instance(module, "open_clip.transformer", "VisionTransformer"):
            raise ValueError(
                f"open_clip's {type(module).__name__} cannot be pruned: only ViTs have a sequence of tokens"
            )
        if module.attn_pool is None and module.pool_type == "none":
            raise ValueError(
                "this VisionTransformer has pool_type='none' and pools no features: create it with another pool_type"
            )
        super().__init__(module, module.transformer.resblocks, 1, True)

    def grid(self, pixels: Tensor) -> tuple[int, int]:
        return tuple(self.module.grid_size)

    def begin(self, pixels: Tensor, site: int, deepest: int) -> Tensor:
        output = self.module.forward_intermediates(
            pixels,
            indices=[site - 1, deepest - 1],
            stop_early=True,
            intermediates_only=True,
            output_fmt="NLC",
            output_extra_tokens=True,
        )
        return torch.cat([output["image_intermediates_prefix"][0], output["image_intermediates"][0]], 1)

    def split(self, block: Any) -> SplitBlock:
        return _SplitOpenClipBlock(self, block)

    def mask(self, bias: Tensor, block: Any) -> Tensor:
        width = bias.shape[1]  # MultiheadAttention takes a mask for each sample only if it has heads and queries too
        return bias[:, None].expand(-1, width, -1).repeat_interleave(block.attn.num_heads, 0)

    def pooled(self, hidden: Tensor) -> Tensor:
        pooled = self.module._pool(hidden)[0]  # there is no public function
        return pooled if self.module.proj is None else pooled @ self.module.proj


class _SplitOpenClipBlock(SplitBlock):
    def __init__(self, vit: Vit, block: Any) -> None:
        super().__init__(block, block.attn)
        self.vit = vit

    def attention(self, hidden: Tensor, bias: Tensor | None) -> Tensor:
        block = self.block
        normed = block.ln_1(hidden)
        mask = None if bias is None else self.vit.mask(bias.to(hidden.dtype), block)
        if isinstance(self.attention_module, nn.MultiheadAttention):
            return hidden + block.ls_1(block.attention(q_x=normed, attn_mask=mask))
        return hidden + block.ls_1(block.ln_attn(self.attention_module(normed, attn_mask=mask)))

    def apply_attention(self, hidden: Tensor, weights: Tensor) -> Tensor:
        attention = self.attention_module
        if not isinstance(attention, nn.MultiheadAttention):
            raise ValueError(
                f"{type(attention).__name__} of {type(self.block).__name__} takes no precomputed attention weights, "
                "so they cannot be merged: let it compute them after merging, when='before'"
            )
        bias = None if attention.in_proj_bias is None else attention.in_proj_bias.chunk(3)[2]
        values = torch.nn.functional.linear(self.block.ln_1(hidden), attention.in_proj_weight.chunk(3)[2], bias)
        return hidden + self.block.ls_1(attention.out_proj(by_heads(values, weights)))

    def mlp(self, hidden: Tensor) -> Tensor:
        return hidden + self.block.ls_2(self.block.mlp(self.block.ln_2(hidden)))


class OpenClipTrunk(TimmVit):
    """A timm ViT inside an open_clip model (SigLIP and others)."""

    def __init__(self, module: Any) -> None:
        super().__init__(module.trunk)
        self.head = module.head

    def pooled(self, hidden: Tensor) -> Tensor:
        return self.head(super().pooled(hidden))


class OpenClip(Encoder):
    """The image tower of an open_clip model; `features` are those of `encode_image`."""

    @classmethod
    def matches(cls, model: nn.Module) -> bool:
        """Match every model of open_clip; `part` explains why a model cannot be pruned."""
        return is_instance(model, "open_clip") and hasattr(model, "visual")

    @staticmethod
    def part(model: Any) -> Vit:
        """Return the image tower."""
        if type(model).__name__ not in ("CLIP", "CustomTextCLIP"):
            raise ValueError(f"open_clip's {type(model).__name__} has no adapter: use a CLIP or CustomTextCLIP")
        return OpenClipTrunk(model.visual) if hasattr(model.visual, "trunk") else OpenClipVit(model.visual)

    def untouched(self, pixels: Tensor) -> Tensor:
        """Call `encode_image`."""
        return self.model.encode_image(pixels)
