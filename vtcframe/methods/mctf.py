"""MCTF (arXiv 2403.10030): encoder blocks merge similar, small tokens that receive little attention."""

from dataclasses import KW_ONLY, dataclass
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

    Class tokens are among the queries; AttentionRows("received") excludes them.
    """

    layers: tuple[int, ...] = (-1,)

    def read_encoder(self, call: KernelCall, tokens: EncoderTokens) -> Tensor:
        """[B, 1, T] float32 from one call of a block."""
        return tokens.of_values(ReceivedAttention(heads="mean")(call))


@dataclass(frozen=True, repr=False)
class Mctf(EncoderMethod):
    """MCTF (arXiv 2403.10030): merges pairs of tokens that are similar, receive little attention and are small.

    The score of a pair is the product of three criteria, each to the power of 1 / temperature (0 disables the
    criterion): (1 + cosine) / 2 of hidden states, inverse attention received (mean over heads and all queries), and
    inverse size. `temperatures` are in this order. With `two_way`, half of the `r` tokens merge from the even tokens
    into the odd ones and the rest in the other direction. An `r` below 1 is a fraction of the tokens. At least 10
    tokens stay, and at least half of them.

    `pooling` sets the weights in a group: "attention" received times size, "size", "max" or "mean". `when` sets the
    point in a block: "fused" merges before the attention, scores by that attention and merges its map too
    (one-step-ahead attention); "before" computes the attention again after the merge; "after" merges after the MLP.
    With a budget each block merges the same number of tokens instead, at most half of them. A merged token takes the
    place of its target.

    The default blocks 1 to 22 are our choice for the 23 blocks that feed LLaVA-1.5's projector; the released models use
    1 to 11 of 12, and the fast variant r=0.35 in (3, 6, 9). The authors' code fails in three cases that work here: few
    tokens (its r becomes negative), cosines rounded below -1 (NaN), and several class tokens (it protects the wrong
    ones). "fused" blocks compute the whole attention matrix, so "fused" saves less for larger pictures.
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
    _: KW_ONLY
    temperatures: tuple[float, float, float] = (1.0, 20.0, 40.0)  # of similarity, attention, size
    two_way: bool = True
    pooling: Literal["attention", "size", "max", "mean"] = "attention"
    when: Literal["fused", "before", "after"] = "fused"

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "temperatures", tuple(self.temperatures))
        if self.r < 0 or (self.r >= 1 and self.r != int(self.r)):
            raise ValueError(f"r is a number of tokens, or below 1 a fraction of them: got {self.r}")
        if len(self.temperatures) != 3 or min(self.temperatures) < 0:
            raise ValueError(
                f"temperatures must be three numbers, none negative (0 disables a criterion): got {self.temperatures}"
            )
        if self.pooling not in ("attention", "size", "max", "mean"):
            raise ValueError(f"pooling must be 'attention', 'size', 'max' or 'mean', got {self.pooling!r}")
        if self.when not in ("fused", "before", "after"):
            raise ValueError(f"when must be 'fused', 'before' or 'after', got {self.when!r}")

    def stages(self, budget: Budget | None) -> tuple[Stage, ...]:
        options = {
            "temperatures": self.temperatures,
            "two_way": self.two_way,
            "pooling": self.pooling,
            "when": self.when,
        }
        return self.encoder_stages(
            [MctfStep(self.r, remaining, **options) for remaining in self.remaining_stages], budget
        )


@dataclass(frozen=True)
class MctfStep(TokenMerger):
    """One block of MCTF; `remaining_stages` counts the stages from this one to the last, for a budget."""

    r: float = 0.0
    remaining_stages: int = 1
    _: KW_ONLY
    temperatures: tuple[float, float, float] = (1.0, 20.0, 40.0)
    two_way: bool = True
    pooling: Literal["attention", "size", "max", "mean"] = "attention"
    when: MergeTime = "fused"

    @property
    def needs(self) -> tuple[Need, ...]:
        return (AttentionReceived(),)

    def __call__(self, evidence: Evidence, budget: Budget | None = None) -> Merged:
        attended = evidence[self.needs[0]][0, :, 0]
        size = token_sizes(evidence)
        check_signal(self, attended, evidence)
        count = merge_count(self, evidence, budget, self.remaining_stages, self.published_count(evidence))
        forward_count = count // 2 if self.two_way else count
        even, odd = match_halves(evidence)
        index = token_index(evidence)
        pairs = self.score_pairs(evidence, even, odd).masked_fill(~even.pair_mask(odd), -torch.inf)
        best = pairs.max(2).values
        partner = pairs.argmax(2)
        rank = even.rank(best)
        joins = rank < forward_count.to(rank.device)[:, None]
        leader = even.scatter(index, torch.where(joins, odd.index.gather(1, partner), even.index))
        order = odd.scatter(
            index if count_class_tokens(evidence) else even.scatter(index, rank), index.shape[1] + odd.index
        )
        scores = even.scatter(torch.zeros_like(attended), torch.where(even.is_token, -best, 0))
        if self.two_way:  # by the scores before the first merge, without the merged tokens
            back = pairs.masked_fill(joins[..., None], -torch.inf)
            best = back.max(1).values
            partner = back.argmax(1)
            rank = odd.rank(best)
            joins = rank < (count - forward_count).to(rank.device)[:, None]
            leader = odd.scatter(index, torch.where(joins, even.index.gather(1, partner), odd.index)).gather(1, leader)
            order = odd.scatter(order, index.shape[1] + rank)
            scores = odd.scatter(scores, torch.where(odd.is_token & best.isfinite(), -best, 0))
        weight = {"attention": attended.clamp(min=TINY) * size, "size": size}.get(self.pooling, torch.ones_like(size))
        order = order_where_merged(order, count, evidence)
        pooling: Pooling = "max" if self.pooling == "max" else "mean"
        return merge(evidence, leader, order, evidence.layout.count - count, weight, scores, pooling=pooling)

    def score_pairs(self, evidence: Evidence, even: "MatchHalf", odd: "MatchHalf") -> Tensor:
        """[V, E, O] the logarithm of each pair's score, up to a constant per view."""
        tokens = evidence.tokens.float()
        similarity, attention, size = self.temperatures
        score = torch.zeros(*even.index.shape, odd.index.shape[1], device=tokens.device, dtype=torch.float32)
        if similarity:
            closeness = (1 + cosine(gather_tokens(tokens, even.index), gather_tokens(tokens, odd.index))) / 2
            score = closeness.clamp(min=TINY).log() / similarity
        for values, temperature in ((evidence[self.needs[0]][0, :, 0], attention), (token_sizes(evidence), size)):
            if temperature:
                log = values.clamp(min=TINY).log() / temperature
                score = score - log.gather(1, even.index)[:, :, None] - log.gather(1, odd.index)[:, None]
        return score

    def published_count(self, evidence: Evidence) -> Tensor:
        """[V] the number of tokens that merge without a budget; at least 10 tokens, class tokens included, stay."""
        count = evidence.layout.count
        if self.r < 1:
            return (count * self.r).long()
        return (count + count_class_tokens(evidence) - 10).clamp(min=0, max=int(self.r))
