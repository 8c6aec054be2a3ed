"""TODO: vtcframe/adapters/llm_evidence.py."""

from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

from vtcframe.core.evidence import Evidence
from vtcframe.core.needs import Need
from vtcframe.hooks.llm import LlmStages, _EnoughError
from vtcframe.hooks.llm_needs import check_needs
from vtcframe.ops.compose import keep_all


@torch.no_grad()
def probe(adapter: Any, inputs: Mapping[str, Any], evidence: Evidence, needs: Iterable[Need]) -> dict[Need, Tensor]:
    """Gather needs of the language model for the tokens of `evidence`, by its first layers, run on all of them."""
    needs = tuple(needs)
    check_needs(needs, len(adapter.llm_layers()))
    spliced, column = adapter.splice_with_columns(inputs, evidence, keep_all(evidence))
    acted = LlmStages(adapter.decoder(), evidence, column, (), needs, adapter.blocks(spliced))
    acted._probing = True
    with acted, suppress(_EnoughError):
        adapter.model(**spliced, use_cache=False)
    return {need: acted.found(need) for need in needs}
