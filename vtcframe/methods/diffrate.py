"""DiffRate (arXiv 2305.17997): encoder blocks drop the tokens that [CLS] attends to least, then merge other tokens."""

from dataclasses import KW_ONLY, dataclass

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

    Tokens are sorted by falling [CLS] attention of the block. The tokens after the first `prune` are dropped. The
    tokens after the first `merge` join the most similar of the first `merge` tokens, by cosine of hidden states; groups
    become unweighted means. The size of a token grows by the size of each joining token times its similarity. `prune`
    and `merge` hold one number of tokens for each block and count class tokens, as in the released models. A merged
    token takes the place of the token that the others join.

    Deviations: the paper learns the rates, with labels, for ImageNet models of 197 or 257 tokens, and none exist for
    the towers of multimodal models. With a budget, which excludes rates, each block removes the same number of tokens,
    half of them by pruning; this schedule is ours. The code sorts the tokens in every block, which an encoder ignores;
    here they stay in raster order. In the code negative similarities make sizes fall below 1; here they count as 0.
    `query` selects a proxy for towers without [CLS].
    """

    card = MethodCard(
        paper="arXiv 2305.17997",
        signal="[CLS] attention of the block, similarity",
        selector="top-k in every block, at given rates",
        dropped="partly discarded, partly merged into the most similar",
        parity="exact; differs: negative similarities add nothing to sizes, as in training",
        site="encoder",
    )
    prune: tuple[int, ...] = ()
    merge: tuple[int, ...] = ()
    _: KW_ONLY
    blocks: tuple[int, ...] = tuple(range(1, 23))
    query: ClsProxy = "cls"

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("prune", "merge"):
            rates = tuple(getattr(self, name))
            object.__setattr__(self, name, rates)
            if rates and (len(rates) != len(self.blocks) or min(rates) < 2):
                raise ValueError(
                    f"{name} has {rates} for {len(self.blocks)} blocks: give one number for each block, each at least 2"
                )
        if bool(self.prune) != bool(self.merge):
            raise ValueError("prune and merge are the rates of one schedule: give both, or neither and a budget")

    def stages(self, budget: Budget | None) -> tuple[Stage, ...]:
        if (budget is None) != bool(self.prune):
            raise ValueError(
                "DiffRate takes either a budget or rates: give tokens or ratio, or prune and merge, but not both"
            )
        rates = zip(self.prune, self.merge, strict=True) if self.prune else [(None, None)] * len(self.blocks)
        steps = [
            DiffRateStep(prune, merge, remaining_stages=remaining, query=self.query)
            for (prune, merge), remaining in zip(rates, self.remaining_stages, strict=True)
        ]
        return self.encoder_stages([*steps], budget)


@dataclass(frozen=True)
class DiffRateStep(TokenMerger):
    """One block of DiffRate; `remaining_stages` counts the stages from this one to the last, for a budget."""

    prune: int | None = None
    merge: int | None = None
    _: KW_ONLY
    remaining_stages: int = 1
    query: ClsProxy = "cls"

    @property
    def needs(self) -> tuple[Need, ...]:
        return (AttentionRows(self.query, (-1,)),)

    def __call__(self, evidence: Evidence, budget: Budget | None = None) -> Merged:
        scores = evidence[self.needs[0]][0].mean(1)
        check_signal(self, scores, evidence)
        layout = evidence.layout
        index = token_index(evidence)
        scores = scores.masked_fill(~layout.valid, -torch.inf)
        if budget is None:
            if self.prune is None or self.merge is None:
                raise ValueError("DiffRate needs rates or a budget: give prune and merge, or tokens or ratio")
            kept_count = layout.count.clamp(max=self.prune - count_class_tokens(evidence))
            quota = kept_count.clamp(max=self.merge - count_class_tokens(evidence))
        else:
            final = Even()(scores, budget.total(layout), evidence)
            surplus = (layout.count - final + self.remaining_stages - 1) // self.remaining_stages
            quota = layout.count - surplus
            kept_count = layout.count - surplus // 2
            kept_count = torch.where(quota > 0, kept_count, 0)  # without targets no token merges
        by_rank = scores.argsort(dim=1, descending=True, stable=True)
        rank = by_rank.argsort(1)
        width = max(1, int(quota.max())) if len(quota) else 1
        is_target = torch.arange(width, device=rank.device) < quota.to(rank.device)[:, None]
        tokens = evidence.tokens.float()
        similarity = cosine(tokens, gather_tokens(tokens, by_rank[:, :width]))
        similarity = similarity.masked_fill(~is_target[:, None], -torch.inf)
        best = similarity.max(2).values
        partner = similarity.argmax(2)
        kept = rank < quota.to(rank.device)[:, None]
        is_pruned = rank >= kept_count.to(rank.device)[:, None]
        leader = torch.where(kept, index, by_rank.gather(1, partner)).masked_fill(is_pruned, -1)
        gain = token_sizes(evidence) * torch.where(kept, 1, best.clamp(min=0))
        return merge(evidence, leader, index, quota, torch.ones_like(gain), scores, gain=gain)
