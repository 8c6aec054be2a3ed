"""MCTF: in encoder blocks, pairs of tokens merge that are alike, little attended to, and small."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from vtcframe.core.budget import Budget
from vtcframe.core.encoder_readers import EncoderTokens, ReceivedAttention
from vtcframe.core.evidence import Evidence
from vtcframe.core.kernel_call import KernelCall
from vtcframe.core.method import MethodCard
from vtcframe.core.need_bases import AttentionNeed, Need
from vtcframe.core.stages import Stage
from vtcframe.core.token_merging import Merged, MergeTime, Pooling, TokenMerger, merge, token_sizes
from vtcframe.methods._base import EncoderMethod
from vtcframe.methods._matching import (
    TINY,
    MatchHalf,
    check_signal,
    count_class_tokens,
    match_halves,
    merge_count,
    order_where_merged,
    token_index,
)
from vtcframe.ops.gather import gather_tokens
from vtcframe.ops.similarity import cosine


@dataclass(frozen=True)
class AttentionReceived(AttentionNeed):
    """Attention that a token receives in an encoder block, mean over heads (H = 1) and over all queries.

    Class tokens are queries too; AttentionRows("received") leaves them out.
    """

    layers: tuple[int, ...] = (-1,)

    def read_encoder(self, call: KernelCall, tokens: EncoderTokens) -> Tensor:
        """[B, 1, T] float32 from one call of a block."""
        return tokens.of_values(ReceivedAttention(heads="mean")(call))


@dataclass(frozen=True, repr=False)
class Mctf(EncoderMethod):
    """MCTF (arXiv 2403.10030): pairs merge that are alike, little attended to, and small.

    A pair's score is the product of the three criteria, each to the power of 1 / temperature (0: the criterion is
    off): (1 + cosine) / 2 of hidden states, inverse attention received (mean over heads and all queries), inverse
    size. Of r tokens half merge from the even ones into the odd ones, the rest the other way (`two_way`).
    `pooling` of a group: "attention" received times size as weights, "size", "max" or "mean". `when`: "fused", before a
    block's attention, scored by that attention, whose map is merged too (one-step-ahead attention); "before", where it
    is computed anew; or "after" the MLP. At least 10 tokens stay, and half of them; r below 1 is a fraction.
    With a budget each block merges the same number instead, at most half of its tokens. A merged token takes the place
    of the one it was merged into; several have no single place.

    Blocks 1 to 22 are ours for the 23 that feed LLaVA-1.5's projector, those released 1 to 11 of 12; fast: r=0.35 in
    (3, 6, 9). Three cases in which the code fails work here: few tokens (its r falls below 0), cosines rounded below -1
    (it computes NaN), and several class tokens, of which it protects the wrong ones.
    The blocks of "fused" compute the whole attention matrix, so the larger the picture, the less "fused" saves.
    """

    card = MethodCard(
        paper="arXiv 2403.10030",
        signal="similarity, attention received and size",
        selector="bipartite matching in both directions",
        dropped="merged, weighted by attention received",
        parity="exact",
        site="encoder",
    )
    r: float = 16.0
    blocks: tuple[int, ...] = tuple(range(1, 23))
    temperatures: tuple[float, float, float] = (1.0, 20.0, 40.0)  # of similarity, attention, size
    two_way: bool = True
    pooling: Literal["attention", "size", "max", "mean"] = "attention"
    when: Literal["fused", "before", "after"] = "fused"

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "temperatures", tuple(self.temperatures))
        if self.r < 0 or (self.r >= 1 and self.r != int(self.r)):
            raise ValueError(f"r is a number of tokens, or below 1 the part of them that merges: got {self.r}")
        if len(self.temperatures) != 3 or min(self.temperatures) < 0:
            raise ValueError(f"temperatures are three, none negative, 0 for off: got {self.temperatures}")
        if self.pooling not in ("attention", "size", "max", "mean"):
            raise ValueError(f"pooling must be 'attention', 'size', 'max' or 'mean', got {self.pooling!r}")
        if self.when not in ("fused", "before", "after"):
            raise ValueError(f"when must be 'fused', 'before' or 'after', got {self.when!r}")

    def stages(self, budget: Budget | None) -> tuple[Stage, ...]:
        options = self.temperatures, self.two_way, self.pooling, self.when
        return self.encoder_stages(
            [MctfStep(self.r, remaining, *options) for remaining in self.remaining_stages], budget
        )


@dataclass(frozen=True)
class MctfStep(TokenMerger):
    """One block of MCTF; with a budget it is `left` steps before the end."""

    r: float = 0.0
    remaining_stages: int = 1
    temperatures: tuple[float, float, float] = (1.0, 20.0, 40.0)
    two_way: bool = True
    pooling: Literal["attention", "size", "max", "mean"] = "attention"
    when: MergeTime = "fused"

    @property
    def needs(self) -> tuple[Need, ...]:
        return (AttentionReceived(),)

    def __call__(self, evidence: Evidence, budget: Budget | None = None) -> Merged:
        attended, size = evidence[self.needs[0]][0, :, 0], token_sizes(evidence)
        check_signal(self, attended, evidence)
        gone = merge_count(self, evidence, budget, self.remaining_stages, self.published(evidence))
        forth = gone // 2 if self.two_way else gone
        even, odd, index = *match_halves(evidence), token_index(evidence)
        pairs = self.pairs(evidence, even, odd).masked_fill(~even.pair_mask(odd), -torch.inf)
        best, partner = pairs.max(2).values, pairs.argmax(2)
        rank = even.rank(best)
        joins = rank < forth.to(rank.device)[:, None]
        leader = even.scatter(index, torch.where(joins, odd.index.gather(1, partner), even.index))
        order = odd.scatter(
            index if count_class_tokens(evidence) else even.scatter(index, rank), index.shape[1] + odd.index
        )
        scores = even.scatter(torch.zeros_like(attended), torch.where(even.is_token, -best, 0))
        if self.two_way:  # by the scores before the first merge, without the tokens that have merged
            back = pairs.masked_fill(joins[..., None], -torch.inf)
            best, partner = back.max(1).values, back.argmax(1)
            rank = odd.rank(best)
            joins = rank < (gone - forth).to(rank.device)[:, None]
            leader = odd.scatter(index, torch.where(joins, even.index.gather(1, partner), odd.index)).gather(1, leader)
            order = odd.scatter(order, index.shape[1] + rank)
            scores = odd.scatter(scores, torch.where(odd.is_token & best.isfinite(), -best, 0))
        weight = {"attention": attended.clamp(min=TINY) * size, "size": size}.get(self.pooling, torch.ones_like(size))
        order = order_where_merged(order, gone, evidence)
        pooling: Pooling = "max" if self.pooling == "max" else "mean"
        return merge(evidence, leader, order, evidence.layout.count - gone, weight, scores, pooling=pooling)

    def pairs(self, evidence: Evidence, even: "MatchHalf", odd: "MatchHalf") -> Tensor:
        """[V, E, O] the logarithm of each pair's score, up to a constant of its view."""
        tokens, (similarity, attention, mass) = evidence.tokens.float(), self.temperatures
        score = torch.zeros(*even.index.shape, odd.index.shape[1], device=tokens.device, dtype=torch.float32)
        if similarity:
            alike = (1 + cosine(gather_tokens(tokens, even.index), gather_tokens(tokens, odd.index))) / 2
            score = alike.clamp(min=TINY).log() / similarity
        for values, temperature in ((evidence[self.needs[0]][0, :, 0], attention), (token_sizes(evidence), mass)):
            if temperature:
                log = values.clamp(min=TINY).log() / temperature
                score = score - log.gather(1, even.index)[:, :, None] - log.gather(1, odd.index)[:, None]
        return score

    def published(self, evidence: Evidence) -> Tensor:
        """[V] how many tokens merge without a budget: at least 10, class tokens included, stay."""
        count = evidence.layout.count
        if self.r < 1:
            return (count * self.r).long()
        return (count + count_class_tokens(evidence) - 10).clamp(min=0, max=int(self.r))
