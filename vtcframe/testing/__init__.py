"""Test kit for authors of plugins, used by the tests of vtcframe: tiny backbones, and each law as a function.

    from vtcframe.testing import check_scorer
    def test_laws(): check_scorer(MyScorer())

A check raises AssertionError with the broken law and its place. Nothing is downloaded.
"""

from vtcframe.testing.laws.adapters import check_adapter, check_restored
from vtcframe.testing.laws.alignment import check_aligned
from vtcframe.testing.laws.components import (
    check_allocator,
    check_ensembler,
    check_merger,
    check_pruner,
    check_scorer,
    check_selector,
)
from vtcframe.testing.laws.needs import check_need
from vtcframe.testing.tiny_models.evidence import make_evidence, make_layout
from vtcframe.testing.tiny_models.flash import emulated_flash
from vtcframe.testing.tiny_models.llava_families import (
    tiny_llava,
    tiny_llava_next,
    tiny_llava_next_video,
    tiny_llava_onevision,
    tiny_video_llava,
)
from vtcframe.testing.tiny_models.other_families import (
    BACKBONES,
    samples_of,
    tiny_gemma3,
    tiny_glm4v,
    tiny_idefics3,
    tiny_internvl,
    tiny_mistral3,
    tiny_qwen2_5_vl,
    tiny_qwen2_vl,
    tiny_qwen3_vl,
)
from vtcframe.testing.tiny_models.published import PUBLISHED, on_meta
from vtcframe.testing.tiny_models.samples import make_inputs

__all__ = [
    "BACKBONES",
    "PUBLISHED",
    "check_adapter",
    "check_aligned",
    "check_allocator",
    "check_ensembler",
    "check_merger",
    "check_need",
    "check_pruner",
    "check_restored",
    "check_scorer",
    "check_selector",
    "emulated_flash",
    "make_evidence",
    "make_inputs",
    "make_layout",
    "on_meta",
    "samples_of",
    "tiny_gemma3",
    "tiny_glm4v",
    "tiny_idefics3",
    "tiny_internvl",
    "tiny_llava",
    "tiny_llava_next",
    "tiny_llava_next_video",
    "tiny_llava_onevision",
    "tiny_mistral3",
    "tiny_qwen2_5_vl",
    "tiny_qwen2_vl",
    "tiny_qwen3_vl",
    "tiny_video_llava",
]
