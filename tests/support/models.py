"""Tiny models that all tests share."""

from vtcframe.registry import entries
from vtcframe.testing.tiny_models.llava_families import SAMPLES, make_inputs, tiny_llava, tiny_llava_next
from vtcframe.testing.tiny_models.other_families import BACKBONES

BUILDERS = {"llava": tiny_llava, "llava_next": tiny_llava_next}  # whose every detail test_llava knows
FAMILIES = {getattr(entry.load(), "family", None) for entry in entries() if entry.kind == "adapter"}
SERVED = [family for family in BACKBONES if family in FAMILIES]
_built = {}


def backbone(family: str, attention: str = "sdpa"):
    """A tiny model that has run once, and its processor; shared by all tests."""
    if (family, attention) not in _built:
        model, processor = BACKBONES[family](attention)
        model.generate(**make_inputs(processor, SAMPLES["one"]), max_new_tokens=1)
        _built[family, attention] = model, processor
    return _built[family, attention]


def has_mrope(family):
    return hasattr(backbone(family)[0].base_model, "get_rope_index")
