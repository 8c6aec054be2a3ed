"""DiffRate: in encoder blocks the tokens least attended to by [CLS] are dropped, then others merge, at fixed rates."""

from dataclasses import dataclass

import torch

from vtcframe.components.allocators import Even
from vtcframe.core.budget import Budget
from vtcframe.core.evidence import Evidence
from vtcframe.core.method import MethodCard
from vtcframe.core.need_bases import Need
from vtcframe.core.needs import AttentionRows, ClsProxy
from vtcframe.core.stages import Stage
from vtcframe.core.token_merging import Merged, TokenMerger, merge, token_sizes
from vtcframe.methods._base import EncoderMethod
from vtcframe.methods._matching import check_signal, count_class_tokens, token_index
from vtcframe.ops.gather import gather_tokens
from vtcframe.ops.similarity import cosine


@dataclass(frozen=True, repr=False)
class DiffRate(EncoderMethod):
    """DiffRate (arXiv 2305.17997) at fixed rates: each block drops the tokens that [CLS] attends to least, then merges.

    Of the tokens in descending [CLS] attention of the block, the first `prune` stay, and of them the first `merge`;
    those between join the most alike of the latter, by cosine of hidden states, as plain means. Sizes grow by the size
    of each joining token times its similarity. Both are numbers of tokens with the class tokens, one for each block, as
    released. The code sorts the tokens in every block, which means nothing to an encoder: here they stay in raster
    order.

    The paper learns the rates, with labels, for ImageNet models of 197 or 257 tokens: there are none for towers of
    multimodal models. With a budget, and then without rates, each block removes the same number, half of it by
    pruning; that schedule is ours. In the code negative similarities make sizes fall below 1; here they count as 0.
    `query` names what stands in for a missing [CLS]. A merged token takes the place of the one that others joined.
    """

    card = MethodCard(
        paper="arXiv 2305.17997",
        signal="[CLS] attention of the block, similarity",
        selector="top-k in every block, at given rates",
        dropped="part gone, part merged into the most alike",
        parity="exact; differs: negative similarities add nothing to sizes, as in training",
        site="encoder",
    )
    prune: tuple[int, ...] = ()
    merge: tuple[int, ...] = ()
    blocks: tuple[int, ...] = tuple(range(1, 23))
    query: ClsProxy = "cls"

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("prune", "merge"):
            rates = tuple(getattr(self, name))
            object.__setattr__(self, name, rates)
            if rates and (len(rates) != len(self.blocks) or min(rates) < 2):
                raise ValueError(f"{name} has {rates} for {len(self.blocks)} blocks: give one a block, each at least 2")
        if bool(self.prune) != bool(self.merge):
            raise ValueError("give prune and merge, or neither and a budget: they are the rates of one schedule")

    def stages(self, budget: Budget | None) -> tuple[Stage, ...]:
        if (budget is None) != bool(self.prune):
            raise ValueError("DiffRate takes a budget or rates: give tokens or ratio, or prune and merge, but not both")
        rates = zip(self.prune, self.merge, strict=True) if self.prune else [(None, None)] * len(self.blocks)
        steps = [
            DiffRateStep(prune, merge, remaining, self.query)
            for (prune, merge), remaining in zip(rates, self.remaining_stages, strict=True)
        ]
        return self.encoder_stages([*steps], budget)


@dataclass(frozen=True)
class DiffRateStep(TokenMerger):
    """One block of DiffRate; with a budget it is `left` steps before the end."""

    prune: int | None = None
    merge: int | None = None
    remaining_stages: int = 1
    query: ClsProxy = "cls"

    @property
    def needs(self) -> tuple[Need, ...]:
        return (AttentionRows(self.query, (-1,)),)

    def __call__(self, evidence: Evidence, budget: Budget | None = None) -> Merged:
        scores = evidence[self.needs[0]][0].mean(1)
        check_signal(self, scores, evidence)
        layout, index = evidence.layout, token_index(evidence)
        scores = scores.masked_fill(~layout.valid, -torch.inf)
        if budget is None:
            if self.prune is None or self.merge is None:
                raise ValueError("DiffRate has neither rates nor a budget: give prune and merge, or tokens or ratio")
            stay = layout.count.clamp(max=self.prune - count_class_tokens(evidence))
            quota = stay.clamp(max=self.merge - count_class_tokens(evidence))
        else:
            final = Even()(scores, budget.total(layout), evidence)
            gone = (layout.count - final + self.remaining_stages - 1) // self.remaining_stages
            quota, stay = layout.count - gone, layout.count - gone // 2
            stay = torch.where(quota > 0, stay, 0)  # without a token to join, none merges
        by_rank = scores.argsort(dim=1, descending=True, stable=True)
        rank = by_rank.argsort(1)
        width = max(1, int(quota.max())) if len(quota) else 1
        heads = torch.arange(width, device=rank.device) < quota.to(rank.device)[:, None]
        tokens = evidence.tokens.float()
        alike = cosine(tokens, gather_tokens(tokens, by_rank[:, :width])).masked_fill(~heads[:, None], -torch.inf)
        best, partner = alike.max(2).values, alike.argmax(2)
        kept = rank < quota.to(rank.device)[:, None]
        cut = rank >= stay.to(rank.device)[:, None]
        leader = torch.where(kept, index, by_rank.gather(1, partner)).masked_fill(cut, -1)
        gain = token_sizes(evidence) * torch.where(kept, 1, best.clamp(min=0))
        return merge(evidence, leader, index, quota, torch.ones_like(gain), scores, gain=gain)
