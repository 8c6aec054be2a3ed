"""Methods that act twice, before the language model and inside it; and one that asks it before it reads.

What acts inside ranks what is left by text that the model itself has read.
"""

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

    A picture without crops is its own crop. Parts of a token are rounded down. Of a budget overviews take what they
    hold, and all crops of a sample share the rest by their number of tokens; a budget too small for the overviews is
    shared among these in the same way, and the crops are gone. Scores must compare across the crops of a picture.
    """

    ratio: float = 0.5

    def __post_init__(self) -> None:
        check_ratio("ratio", self.ratio)

    def __call__(self, scores: Tensor, budget: Tensor | None, evidence: Evidence) -> Tensor:
        layout = evidence.layout
        index, count = torch.arange(len(layout.sample)), layout.count
        spared = torch.isin(index, overview_of(layout))
        picture = [layout.sample, layout.image, layout.frame, torch.where(spared, index, -1)]
        group = torch.stack(picture, 1).unique(dim=0, return_inverse=True)[1]
        if budget is None:
            size = torch.zeros_like(index).index_add_(0, group, count)
            total = (size.double() * self.ratio).long()
            total[group[spared]] = count[spared]
        else:
            first = layout.total(count * spared).minimum(budget)
            quota = apportion(first, count * spared, layout) + apportion(budget - first, count * ~spared, layout)
            total = torch.zeros_like(index).index_add_(0, group, quota)
        return Joint()(scores, total, replace(evidence, layout=replace(layout, sample=group, key=index)))


@dataclass(frozen=True)
class MiniMonkeyScm(Method):
    """Scale compression of Mini-Monkey (arXiv 2408.02034): of a picture's crops stays what is asked for after them.

    The first layers of the language model up to `layer` read everything once, and what they made is thrown away. Of
    the crops of a picture those `ratio` tokens stay, rounded down, to which the prompt behind pays most, mean over
    queries and heads; its overview stays whole, and a picture without crops is treated as one crop. With a budget,
    overviews stay whole and the crops share what it leaves for them (see Crops).

    The code drops the token behind the crops, too, by a slip; here it stays. It numbers positions anew, which is
    positions="compact" of a Stage. Its crops of a second, coarser scale stay; here there is one scale.
    """

    card = MethodCard(
        paper="arXiv 2408.02034",
        signal="attention of all that follows, in an early layer of the LLM",
        selector="top-k of a picture's crops",
        dropped="discarded",
        parity="exact; differs: the code loses one token more",
        text=True,
    )
    ratio: float = 0.5
    layer: int = 1

    def pipeline(self) -> Pipeline:
        return Pipeline((TextAttention(self.layer, "after"),), Mean(), Crops(self.ratio), TopK())
