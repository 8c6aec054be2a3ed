"""TODO: vtcframe/methods/zipcache.py."""

from dataclasses import dataclass

from torch import Tensor

from vtcframe.core.evidence import Evidence
from vtcframe.core.method import MethodCard
from vtcframe.core.needs import Need, ProbeAttention
from vtcframe.core.pipeline import Pipeline
from vtcframe.core.verbs import Scorer
from vtcframe.methods._base import SingleLlmStage


@dataclass(frozen=True)
class ZipCacheSaliency(SingleLlmStage):
    """FastV's place with ZipCache's (arXiv 2405.14256) salience: the attention of probes, of those that see a token.

    Plain sums favour early tokens, which more queries see. ZipCache drops nothing: there it says which keys and values
    are quantised to fewer bits, for each head by itself. Here it ranks visual tokens, mean over heads.
    """

    card = MethodCard(
        "arXiv 2405.14256",
        "mean attention of recent and random probes that see a token",
        "top-k",
        "gone",
        "differs: tokens go instead of bits; with the code's probes and divisor its salience is exact",
        "llm",
        text=True,
    )
    layer: int = 2

    def pipeline(self) -> Pipeline:
        return self.ranking(ProbeSaliency(-1))


@dataclass(frozen=True)
class ProbeSaliency(Scorer):
    """[1, V, N]: mean attention that probes pay to a token, of those that see it, mean over heads (see Probed).

    ZipCache (arXiv 2405.14256). `layer` counts as in TextAttention.
    """

    layer: int = -1
    recent: float = 0.05
    random: float = 0.05
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("recent", "random"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is a share of the prompt and must lie in 0..1, got {getattr(self, name)}")

    @property
    def needs(self) -> tuple[Need, ...]:
        return (ProbeAttention((self.layer,), self.recent, self.random, self.seed),)

    def __call__(self, evidence: Evidence) -> Tensor:
        return evidence[self.needs[0]].mean(2)
