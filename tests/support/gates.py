"""Attention weights of timm and torch modules."""

import timm
import torch
from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg
from timm.models.eva import Eva
from torch import nn

from vtcframe.core.encoder_readers import QueryRow

ROW = QueryRow()


SMALL = {"pretrained": False, "img_size": 64, "num_classes": 0}


TIMM = {
    "vit": lambda: timm.create_model("vit_tiny_patch16_224", depth=3, **SMALL),
    "vit with qk-norm and registers": lambda: timm.create_model(
        "vit_tiny_patch16_224", depth=3, qk_norm=True, reg_tokens=3, **SMALL
    ),
    "eva, rotary": lambda: Eva(
        img_size=64, patch_size=16, embed_dim=48, depth=3, num_heads=3, num_classes=0, use_rot_pos_emb=True
    ),
    "beit, biased": lambda: timm.create_model(
        "beit_base_patch16_224", depth=3, embed_dim=48, num_heads=3, use_rel_pos_bias=True, **SMALL
    ),
}


def randomised(model):
    """Weights large enough for attention far from uniform, the same in every run."""
    torch.manual_seed(0)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
        else:
            nn.init.normal_(parameter, mean=parameter.mean().item(), std=0.1)
    return model.eval()


def pixels(side=64):
    return torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(1))


def open_clip_model(**options):
    vision = CLIPVisionCfg(layers=3, width=32, head_width=8, patch_size=8, image_size=32, **options)
    return randomised(CLIP(16, vision, CLIPTextCfg(context_length=9, vocab_size=50, width=32, heads=4, layers=2)))
