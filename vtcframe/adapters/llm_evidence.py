"""Evidence of the language model for tokens that it has not read yet, from a run of its first layers."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from vtcframe.adapters.prompt import Prompt
from vtcframe.core.evidence import Evidence
from vtcframe.core.need_bases import Need
from vtcframe.hooks.llm import LlmStages
from vtcframe.hooks.llm_reading import check_needs
from vtcframe.ops.compose import keep_all


@torch.no_grad()
def probe(
    adapter: Any, inputs: Mapping[str, Any], evidence: Evidence, needs: Iterable[Need], prompt: Prompt | None = None
) -> dict[Need, Tensor]:
    """Gather needs of the language model for the tokens of `evidence`, from its first layers, run on all of them."""
    needs = tuple(needs)
    check_needs(needs, len(adapter.llm_layers()))
    spliced, column = adapter.splice_with_columns(inputs, evidence, keep_all(evidence), prompt=prompt)
    blocks = adapter.blocks(spliced)
    acted = LlmStages(adapter.decoder(), evidence, column, (), needs, blocks, stop_when_read=True)
    with acted:
        adapter.model(**spliced, use_cache=False)
    return {need: acted.found(need) for need in needs}
