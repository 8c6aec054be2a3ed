"""Scorers: (evidence) -> scores [S, V, N] float32."""

from dataclasses import dataclass
from typing import get_args

import torch
from torch import Tensor

from vtcframe.core import Evidence
from vtcframe.needs import Need, Rows, Similarity, Stand
from vtcframe.pipeline import Scorer


@dataclass(frozen=True)
class ClsAttention(Scorer):
    """[last, V, N]: attention that [CLS] pays to each token, one map for each of the `last` blocks, mean over heads.

    VTC-CLS (arXiv 2412.05819). Softmax runs over all keys, [CLS] itself included, and is not normalised again. Only
    blocks that feed the projector are counted. For towers without a class token `query` names what stands in for it:
    "mean", "received" or "head", or "proxy", which is [CLS] where there is one and "mean" where there is none (see
    Rows). Proxies are shares of the attention within a picture: those of large pictures are smaller.
    """

    last: int = 3
    query: Stand = "cls"

    def __post_init__(self) -> None:
        if self.last < 1:
            raise ValueError(f"last counts blocks and must be at least 1, got {self.last}")
        if self.query not in get_args(Stand):
            raise ValueError(f"query must be one of {', '.join(map(repr, get_args(Stand)))}, got {self.query!r}")

    @property
    def needs(self) -> tuple[Need, ...]:
        return (Rows(self.query, tuple(range(-self.last, 0))),)

    def __call__(self, evidence: Evidence) -> Tensor:
        return evidence[self.needs[0]].mean(2)


@dataclass(frozen=True)
class WitnessAttention(Scorer):
    """[last, V, N]: as ClsAttention, of another encoder that looks at the same picture.

    `model` is "timm:NAME" or "open_clip:NAME/WEIGHTS" (see vtcframe.witness); the pictures are asked of the backbone's
    processor. The last blocks of the whole encoder are counted.
    """

    model: str
    last: int = 1

    def __post_init__(self) -> None:
        if self.last < 1:
            raise ValueError(f"last counts blocks and must be at least 1, got {self.last}")

    @property
    def needs(self) -> tuple[Need, ...]:
        return (Rows("cls", tuple(range(-self.last, 0)), tower=self.model),)

    def __call__(self, evidence: Evidence) -> Tensor:
        return evidence[self.needs[0]].mean(2)


@dataclass(frozen=True)
class QuestionSimilarity(Scorer):
    """[1, V, N]: cosine of each token and the question in a space they share (see Similarity)."""

    model: str

    @property
    def needs(self) -> tuple[Need, ...]:
        return (Similarity(self.model),)

    def __call__(self, evidence: Evidence) -> Tensor:
        return evidence[self.needs[0]][None]


@dataclass(frozen=True)
class TokenNorm(Scorer):
    """[1, V, N]: Euclidean length of each token as the language model would read it; a baseline without attention."""

    def __call__(self, evidence: Evidence) -> Tensor:
        return evidence.tokens.float().norm(dim=-1)[None]


@dataclass(frozen=True)
class Random(Scorer):
    """[1, V, N]: uniform in [0, 1), a hash of (seed, the sample's key, the token's column in the prompt).

    The same on every device and rank, in any batch, at any padding; nested over budgets.
    """

    seed: int = 0

    def __call__(self, evidence: Evidence) -> Tensor:
        layout = evidence.layout
        key = _mix(layout.key ^ _mix(torch.tensor(self.seed)))[layout.sample]
        bits = _mix(key.to(layout.column.device)[:, None] + layout.column)
        return ((bits >> 40) & 0xFFFFFF).float()[None] / 2**24


def _mix(x: Tensor) -> Tensor:
    """SplitMix64's finaliser (Steele et al., OOPSLA 2014) on wrapping int64."""
    for shift, factor in ((30, -0x40A7B892E31B1A47), (27, -0x6B2FB644ECCEEE15), (31, 1)):
        x = (x ^ ((x >> shift) & ((1 << (64 - shift)) - 1))) * factor
    return x
