"""Methods that rank by [CLS], and the baselines they are compared with."""

from dataclasses import dataclass, fields

from vtcframe.allocators import Even
from vtcframe.ensemblers import Mean
from vtcframe.needs import Stand
from vtcframe.pipeline import Facts, Method, Pipeline
from vtcframe.scorers import ClsAttention, Random
from vtcframe.selectors import Grid, TopK


class ByCls(Method):
    """A method that ranks by [CLS]; where something stands in for it, its name says so."""

    def __repr__(self) -> str:
        told = {field.name: getattr(self, field.name) for field in fields(self)}  # pyright: ignore[reportArgumentType]
        options = [f"{name}={value!r}" for name, value in told.items() if (name, value) != ("query", "cls")]
        return f"{type(self).__name__}({', '.join(options)})"


@dataclass(frozen=True, repr=False)
class VtcCls(ByCls):
    """VTC-CLS (arXiv 2412.05819): the most attended by [CLS], mean over the last blocks that feed the projector.

    The authors' code sums layers where the paper averages (the same ranking), numbers positions anew ("compact" here)
    and leaves its layer to the command line. last=3 reproduces the paper's tables according to third parties; the
    code's default, start layer 16 of CLIP-L, is last=7. `query` names what stands in for a missing [CLS] (see
    ClsAttention); that is no part of the paper.
    """

    facts = Facts("arXiv 2412.05819", "[CLS] attention, mean over the last blocks", "top-k", "gone", "exact")
    last: int = 3
    query: Stand = "cls"

    def pipeline(self) -> Pipeline:
        return Pipeline((ClsAttention(self.last, self.query),), Mean(), Even(), TopK())


@dataclass(frozen=True, repr=False)
class FasterVlm(ByCls):
    """FasterVLM (arXiv 2412.01818): the most attended by [CLS] in the last block that feeds the projector.

    The paper counts tokens for each crop: Budget(tokens, per="view"). Its code drops un-padding and newlines from
    LLaVA-NeXT prompts; here padding is no candidate and newlines stay with their rows. `query` names what stands in for
    a missing [CLS] (see ClsAttention); that is no part of the paper.
    """

    facts = Facts("arXiv 2412.01818", "[CLS] attention of one block", "top-k", "gone", "exact")
    query: Stand = "cls"

    def pipeline(self) -> Pipeline:
        return Pipeline((ClsAttention(1, self.query),), Mean(), Even(), TopK())


@dataclass(frozen=True)
class RandomPruner(Method):
    """Baseline: tokens drawn uniformly without replacement, the same for a sample in any batch."""

    facts = Facts("", "none", "at random", "gone", "no public code")
    seed: int = 0

    def pipeline(self) -> Pipeline:
        return Pipeline((Random(self.seed),), Mean(), Even(), TopK())


@dataclass(frozen=True)
class UniformPruner(Method):
    """Baseline: an even spatial grid."""

    facts = Facts("", "none", "even grid", "gone", "no public code")

    def pipeline(self) -> Pipeline:
        return Pipeline((), Mean(), Even(), Grid())
