"""ToMe (arXiv 2210.09461): every encoder block merges tokens with the most similar keys."""

from dataclasses import KW_ONLY, dataclass

import torch

from vtcframe.core.budget import Budget
from vtcframe.core.evidence import Evidence
from vtcframe.core.method import MethodCard
from vtcframe.core.need_bases import Need
from vtcframe.core.needs import AttentionKeys
from vtcframe.core.stages import Stage
from vtcframe.core.token_merging import Merged, TokenMerger, merge, token_sizes
from vtcframe.methods._base import EncoderMethod
from vtcframe.methods._matching import (
    check_signal,
    count_class_tokens,
    match_halves,
    merge_count,
    order_where_merged,
    token_index,
)
from vtcframe.ops.gather import gather_tokens
from vtcframe.ops.similarity import cosine


@dataclass(frozen=True, repr=False)
class ToMe(EncoderMethod):
    """ToMe (arXiv 2210.09461): in each block, `r` tokens merge into the tokens with the most similar keys.

    Every second token is a source, whose target is the most similar of the other tokens. The `r` most similar sources
    merge into their targets as means weighted by size (bipartite soft matching). Later blocks add the logarithm of the
    sizes to their logits (proportional attention). At most half of the tokens merge in a block. `inflect` ranges from
    -1 (r falls from 2r to 0 over the blocks) to 1 (r rises from 0 to 2r). With a budget each block merges the same
    number of tokens instead, at most half of them; ValueError for a budget out of reach. A merged token takes the place
    of its target.

    The default `blocks` are the 23 that feed LLaVA-1.5's projector; encoders of another depth need other values.
    """

    card = MethodCard(
        paper="arXiv 2210.09461",
        signal="similarity of keys",
        selector="bipartite matching in every block",
        dropped="merged, weighted by size",
        parity="exact",
        site="encoder",
    )
    r: int = 16
    inflect: float = 0.0
    _: KW_ONLY
    blocks: tuple[int, ...] = tuple(range(23))

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.r < 0 or not -1 <= self.inflect <= 1:
            raise ValueError(f"r must not be negative and inflect must lie in [-1, 1], got {self.r} and {self.inflect}")

    def rates(self) -> list[int]:
        """Return the number of tokens that merge in each block, r (1 - inflect) to r (1 + inflect), rounded down."""
        low = int(self.r * (1 - self.inflect))
        step = 2 * (self.r - low) / max(1, len(self.blocks) - 1)
        return [int(low + step * i) for i in range(len(self.blocks))]

    def stages(self, budget: Budget | None) -> tuple[Stage, ...]:
        return self.encoder_stages(
            [ToMeStep(r, remaining) for r, remaining in zip(self.rates(), self.remaining_stages, strict=True)], budget
        )


@dataclass(frozen=True)
class ToMeStep(TokenMerger):
    """One block of ToMe: `r` tokens merge; with a budget the number follows from `remaining_stages`."""

    r: int = 0
    remaining_stages: int = 1

    @property
    def needs(self) -> tuple[Need, ...]:
        return (AttentionKeys((-1,)),)

    def __call__(self, evidence: Evidence, budget: Budget | None = None) -> Merged:
        keys = evidence[self.needs[0]][0].mean(1)
        check_signal(self, keys, evidence)
        count = merge_count(self, evidence, budget, self.remaining_stages, self.r)
        even, odd = match_halves(evidence)
        pairs = cosine(gather_tokens(keys, even.index), gather_tokens(keys, odd.index)).masked_fill(
            ~even.pair_mask(odd), -torch.inf
        )
        best = pairs.max(2).values
        partner = pairs.argmax(2)
        rank = even.rank(best)
        joins = rank < count.to(rank.device)[:, None]
        leader = even.scatter(token_index(evidence), torch.where(joins, odd.index.gather(1, partner), even.index))
        order = odd.scatter(token_index(evidence), token_index(evidence).shape[1] + odd.index)
        if not count_class_tokens(
            evidence
        ):  # the order of the authors' code, on which the halves of the next block depend
            order = even.scatter(order, rank)
        scores = even.scatter(torch.ones_like(keys[..., 0]), torch.where(even.is_token, -best, 0))
        order = order_where_merged(order, count, evidence)
        return merge(evidence, leader, order, evidence.layout.count - count, token_sizes(evidence), scores)
