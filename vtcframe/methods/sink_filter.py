"""FastV's ranking without visual attention sinks (VAR, arXiv 2503.03321)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from vtcframe.components.scorers import TextAttention
from vtcframe.core.evidence import Evidence
from vtcframe.core.method import MethodCard
from vtcframe.core.needs import Need
from vtcframe.core.pipeline import Pipeline
from vtcframe.core.verbs import Scorer
from vtcframe.methods._base import SingleLlmStage


@dataclass(frozen=True)
class SinkFilter(SingleLlmStage):
    """FastV's ranking with visual attention sinks (VAR, arXiv 2503.03321) last: they draw attention and mean nothing.

    A token is a sink where its hidden state before `layer` stands out in one of `dims`, which belong to the language
    model: 1415 and 2533 to LLaMA-2-7B, 2100 and 4743 to its 13B, whose own the authors' code never takes. VAR drops
    nothing but hands the sinks' attention to other tokens, which is not done here.
    """

    card = MethodCard(
        paper="arXiv 2503.03321",
        signal="attention of the prompt's last token, sinks last",
        selector="top-k",
        dropped="discarded",
        parity="differs: sinks are told exactly, but rank last instead of giving their attention to others",
        site="llm",
        text=True,
    )
    layer: int = 2
    dims: tuple[int, ...] = (1415, 2533)
    threshold: float = 20.0

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "dims", tuple(self.dims))

    def pipeline(self) -> Pipeline:
        return self.rank_by(DemoteSinks(TextAttention(-1), self.dims, self.threshold))


@dataclass(frozen=True)
class DemoteSinks(Scorer):
    """[S, V, N]: the maps of another scorer, in which attention sinks lie below all other tokens of their sample.

    Among themselves they keep their order. A sink is a token that exceeds `threshold` in one of `dims` of its hidden
    state, at a root mean square of 1 (VAR, arXiv 2503.03321). For stages inside the language model.
    """

    scorer: Scorer
    dims: tuple[int, ...] = (1415, 2533)
    threshold: float = 20.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "dims", tuple(self.dims))
        if not self.dims or min(self.dims) < 0:
            raise ValueError(f"dims are channels of the hidden states, counted from 0, one at least: got {self.dims}")

    @property
    def needs(self) -> tuple[Need, ...]:
        return self.scorer.needs

    def __call__(self, evidence: Evidence) -> Tensor:
        maps, valid, sample = self.scorer(evidence).float(), evidence.layout.valid, evidence.layout.sample
        owner = sample.to(maps.device)[:, None].expand(valid.shape).flatten()
        size = maps.abs().masked_fill(~valid, 0).flatten(1)
        most = size.new_zeros(len(maps), len(evidence.layout.key)).scatter_reduce(
            1, owner.expand_as(size), size, "amax"
        )
        fall = 3 * most[:, sample.to(maps.device), None] + torch.finfo(torch.float32).tiny
        return torch.where(self.sinks(evidence.tokens), maps - fall, maps)  # from at most a to -2a: none is below -a

    def sinks(self, hidden: Tensor) -> Tensor:
        """[..., D] hidden states -> [...] bool."""
        if max(self.dims) >= hidden.shape[-1]:
            raise ValueError(
                f"dims {self.dims} are none of a model with {hidden.shape[-1]} channels: they belong to one language "
                "model, give those of yours"
            )
        hidden = hidden.float()
        scale = (hidden.square().mean(-1) + 1e-6).rsqrt()
        return hidden[..., list(self.dims)].abs().amax(-1) * scale > self.threshold
