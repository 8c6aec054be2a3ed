"""Tiny encoders of timm and open_clip."""

import timm
import torch
from open_clip.model import CLIP, CustomTextCLIP

SIDE, PATCH, DEPTH = 64, 16, 4


TIMM = {
    "class token": {},
    "class token, no classifier": {"num_classes": 0},
    "class token and registers": {"reg_tokens": 2},
    "average": {"global_pool": "avg", "class_token": False, "fc_norm": True},
    "average beside a class token": {"global_pool": "avg"},
    "average and registers alone": {"global_pool": "avg", "class_token": False, "reg_tokens": 2},
    "attention pooling": {"global_pool": "map", "class_token": False},
}


VISION = {"image_size": SIDE, "patch_size": PATCH, "width": 32, "layers": DEPTH, "head_width": 8}


OPEN_CLIP = {
    "tok": VISION,
    "avg": {**VISION, "pool_type": "avg"},
    "norm behind pooling": {**VISION, "pool_type": "avg", "final_ln_after_pool": True},
    "custom blocks": {**VISION, "block_type": "custom"},
    "timm trunk": {"image_size": SIDE, "timm_model_name": "test_vit", "timm_pool": "token", "timm_proj": "linear"},
}


WORDS = {"context_length": 12, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2}


def shaken(model, seed=0):
    """Random weights that are large enough for every part of the model to matter."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(torch.randn(weight.shape, generator=generator) * 0.3)
    return model.eval()


def timm_vit(name="class token", seed=0, **options):
    sizes = {"img_size": SIDE, "patch_size": PATCH, "embed_dim": 32, "depth": DEPTH, "num_heads": 4, "num_classes": 5}
    return shaken(timm.models.VisionTransformer(**(sizes | TIMM[name] | options)), seed)


def clip(name="tok", seed=0, kind=CLIP):
    if "timm_model_name" in OPEN_CLIP[name]:
        kind = CustomTextCLIP
    model = shaken(kind(24, OPEN_CLIP[name], WORDS), seed)
    if hasattr(model.visual, "trunk"):
        model.visual.trunk.set_input_size(img_size=SIDE)
    return model


MODELS = [("timm", name) for name in TIMM] + [("open_clip", name) for name in OPEN_CLIP]


def pictures(count=3, seed=0):
    return torch.randn(count, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(seed))


def untouched(model, pixels):
    with torch.no_grad():
        return model.encode_image(pixels) if hasattr(model, "encode_image") else model(pixels)


def averaged(patches, kept):
    return (patches * kept[..., None]).sum(1) / kept.sum(1, keepdim=True)
