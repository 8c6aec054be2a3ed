"""Tiny models that all tests share."""

import torch

from vtcframe.registry import entries
from vtcframe.testing.laws.adapters import inputs_for
from vtcframe.testing.tiny_models.llava_families import SAMPLES, tiny_llava, tiny_llava_next
from vtcframe.testing.tiny_models.other_families import BACKBONES

BUILDERS = {"llava": tiny_llava, "llava_next": tiny_llava_next}  # whose every detail test_llava knows
FAMILIES = {getattr(entry.load(), "family", None) for entry in entries() if entry.kind == "adapter"}
SERVED = [family for family in BACKBONES if family in FAMILIES]
_built = {}


def backbone(family: str, attention: str = "sdpa", dtype: torch.dtype = torch.float32):
    """A tiny model that has run once, and its processor; shared by all tests."""
    if (family, attention, dtype) not in _built:
        model, processor = BACKBONES[family](attention)
        model = model.to(dtype)
        model.generate(**inputs_for(model, processor, SAMPLES["one"]), max_new_tokens=1)
        _built[family, attention, dtype] = model, processor
    return _built[family, attention, dtype]


def exact_backbone(family: str, attention: str = "sdpa"):
    """The same in float64, where the laws compare logits to 1e-6 of the largest one."""
    return backbone(family, attention, torch.float64)


def tolerance_of(family: str) -> float | None:
    """How far apart logits of `exact_backbone` may be, None for the tolerance of float64.

    GLM-4.1V's encoder rounds sums of two float32 numbers to float32, which lie in the middle between two others: the
    last bit of float64 decides, and logits are 2e-6 apart.
    """
    return 1e-5 if family == "glm4v" else None


def has_mrope(family):
    return hasattr(backbone(family)[0].base_model, "get_rope_index")
