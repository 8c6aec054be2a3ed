"""Mini-Monkey (arXiv 2408.02034): scale compression, which runs the first LLM layers to rank the tokens of crops."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from vtcframe.components.allocators import Joint, check_ratio
from vtcframe.components.ensemblers import Mean
from vtcframe.components.scorers import TextAttention
from vtcframe.components.selectors import TopK
from vtcframe.core.evidence import Evidence
from vtcframe.core.method import Method, MethodCard
from vtcframe.core.pipeline import Pipeline
from vtcframe.core.verbs import Allocator
from vtcframe.ops.quotas import apportion
from vtcframe.ops.views import overview_of


@dataclass(frozen=True)
class Crops(Allocator):
    """Adaptive: the crops of a picture keep `ratio` of their tokens, ranked together; its overview keeps all.

    A picture without crops counts as a single crop. Numbers are rounded down. With a budget the overviews keep all
    their tokens, and all crops of a sample share the rest in proportion to their number of tokens. A budget too small
    for the overviews is shared between them in the same way, and the crops are dropped. Scores must be comparable
    across the crops of a picture.
    """

    ratio: float = 0.5

    def __post_init__(self) -> None:
        check_ratio("ratio", self.ratio)

    def __call__(self, scores: Tensor, budget: Tensor | None, evidence: Evidence) -> Tensor:
        layout = evidence.layout
        index = torch.arange(len(layout.sample))
        count = layout.count
        is_overview = torch.isin(index, overview_of(layout))
        picture = [layout.sample, layout.image, layout.frame, torch.where(is_overview, index, -1)]
        group = torch.stack(picture, 1).unique(dim=0, return_inverse=True)[1]
        if budget is None:
            size = torch.zeros_like(index).index_add_(0, group, count)
            total = (size.double() * self.ratio).long()
            total[group[is_overview]] = count[is_overview]
        else:
            first = layout.total(count * is_overview).minimum(budget)
            quota = apportion(first, count * is_overview, layout)
            quota = quota + apportion(budget - first, count * ~is_overview, layout)
            total = torch.zeros_like(index).index_add_(0, group, quota)
        return Joint()(scores, total, replace(evidence, layout=replace(layout, sample=group, key=index)))


@dataclass(frozen=True)
class MiniMonkeyScm(Method):
    """Scale compression of Mini-Monkey (arXiv 2408.02034): prunes crops by the attention of the later prompt tokens.

    The layers of the language model up to `layer` run once on all tokens, and only their attention is used. The crops
    of a picture keep the fraction `ratio` of their tokens, rounded down: those that the prompt after them attends to
    most, mean over queries and heads. The overview keeps all tokens, and a picture without crops counts as one crop.
    With a budget, overviews keep all tokens and crops share the rest (see Crops).

    Deviations from the authors' code: by an off-by-one error the code also drops the token after the crops; here it
    stays. The code renumbers positions, which is positions="compact" of a Stage. It keeps the crops of a second,
    coarser scale; here there is one scale.
    """

    card = MethodCard(
        paper="arXiv 2408.02034",
        signal="attention of all later prompt tokens in an early layer of the LLM",
        selector="top-k of a picture's crops",
        dropped="discarded",
        parity="exact; differs: the code drops one token more",
        text=True,
    )
    ratio: float = 0.5
    layer: int = 1

    def pipeline(self) -> Pipeline:
        return Pipeline((TextAttention(self.layer, "after"),), Mean(), Crops(self.ratio), TopK())
