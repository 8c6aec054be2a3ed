"""FastV's ranking with visual attention sinks (VAR, arXiv 2503.03321) last."""

from dataclasses import KW_ONLY, dataclass

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
    """FastV's ranking with visual attention sinks (VAR, arXiv 2503.03321) last: they attract attention without meaning.

    A token is a sink if its hidden state before `layer` exceeds a threshold in one of the channels `dims` (see
    DemoteSinks). The channels depend on the language model: 1415 and 2533 for LLaMA-2-7B, 2100 and 4743 for
    LLaMA-2-13B, which the authors' code never uses. Deviation: VAR drops no token but redistributes the attention of
    the sinks to other tokens; this class does not redistribute attention.
    """

    card = MethodCard(
        paper="arXiv 2503.03321",
        signal="attention of the prompt's last token, sinks last",
        selector="top-k",
        dropped="discarded",
        parity="differs: sinks are detected exactly, but rank last; their attention is not redistributed",
        site="llm",
        text=True,
    )
    layer: int = 2
    dims: tuple[int, ...] = (1415, 2533)
    _: KW_ONLY
    threshold: float = 20.0

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "dims", tuple(self.dims))

    def pipeline(self) -> Pipeline:
        return self.rank_by(DemoteSinks(TextAttention(-1), dims=self.dims, threshold=self.threshold))


@dataclass(frozen=True)
class DemoteSinks(Scorer):
    """[S, V, N]: the maps of another scorer, with attention sinks below all other tokens of their sample.

    Sinks keep their order. A sink is a token whose hidden state, scaled to a root mean square of 1, exceeds `threshold`
    in one of the channels `dims` (VAR, arXiv 2503.03321). For stages inside the language model.
    """

    scorer: Scorer
    dims: tuple[int, ...] = (1415, 2533)
    _: KW_ONLY
    threshold: float = 20.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "dims", tuple(self.dims))
        if not self.dims or min(self.dims) < 0:
            raise ValueError(
                f"dims are channels of the hidden states, numbered from 0: give at least one, got {self.dims}"
            )

    @property
    def needs(self) -> tuple[Need, ...]:
        return self.scorer.needs

    def __call__(self, evidence: Evidence) -> Tensor:
        maps = self.scorer(evidence).float()
        valid = evidence.layout.valid
        sample = evidence.layout.sample
        token_sample = sample.to(maps.device)[:, None].expand(valid.shape).flatten()
        magnitude = maps.abs().masked_fill(~valid, 0).flatten(1)
        largest = magnitude.new_zeros(len(maps), len(evidence.layout.key)).scatter_reduce(
            1, token_sample.expand_as(magnitude), magnitude, "amax"
        )
        offset = 3 * largest[:, sample.to(maps.device), None] + torch.finfo(torch.float32).tiny
        # With a the largest magnitude of a sample, a sink falls to -2a at most and all other tokens are at least -a.
        return torch.where(self.find_sinks(evidence.tokens), maps - offset, maps)

    def find_sinks(self, hidden: Tensor) -> Tensor:
        """[..., D] hidden states -> [...] bool, True for sinks. ValueError if `dims` exceed the model's channels."""
        if max(self.dims) >= hidden.shape[-1]:
            raise ValueError(
                f"dims {self.dims} do not all exist in a model with {hidden.shape[-1]} channels: they depend on the "
                "language model, give those of this model"
            )
        hidden = hidden.float()
        scale = (hidden.square().mean(-1) + 1e-6).rsqrt()
        return hidden[..., list(self.dims)].abs().amax(-1) * scale > self.threshold
