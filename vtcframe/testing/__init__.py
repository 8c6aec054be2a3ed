"""Kit for authors of plugins, used by our own tests: tiny backbones, and each law as a function.

    from vtcframe.testing import check_scorer
    def test_laws(): check_scorer(MyScorer())

A check raises AssertionError saying which law is broken and where. Nothing is downloaded.
"""

from vtcframe.testing.adapters import check_adapter, check_restored
from vtcframe.testing.backbones import make_inputs, tiny_llava, tiny_llava_next
from vtcframe.testing.components import (
    check_allocator,
    check_ensembler,
    check_merger,
    check_pruner,
    check_scorer,
    check_selector,
)
from vtcframe.testing.evidence import make_evidence, make_layout

__all__ = [
    "check_adapter",
    "check_allocator",
    "check_ensembler",
    "check_merger",
    "check_pruner",
    "check_restored",
    "check_scorer",
    "check_selector",
    "make_evidence",
    "make_inputs",
    "make_layout",
    "tiny_llava",
    "tiny_llava_next",
]
