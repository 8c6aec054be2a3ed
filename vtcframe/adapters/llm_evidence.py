"""Evidence of the language model about tokens before they are pruned, from a run of its first layers."""

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
    """Return what the language model shows about the tokens of `evidence` for each need.

    Its first layers run on all tokens, as far as the needs require. ValueError for a need that it cannot serve.
    """
    needs = tuple(needs)
    check_needs(needs, len(adapter.llm_layers()))
    spliced, column = adapter.splice_with_columns(inputs, evidence, keep_all(evidence), prompt=prompt)
    blocks = adapter.blocks(spliced)
    stages = LlmStages(adapter.decoder(), evidence, column, (), needs, blocks, stop_early=True)
    with stages:
        adapter.model(**spliced, use_cache=False)
    return {need: stages.readings_of(need) for need in needs}
