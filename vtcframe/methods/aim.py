"""AIM (arXiv 2412.03248): similar tokens merge before the language model, whose layers then drop tokens."""

from dataclasses import KW_ONLY, dataclass, replace

import torch
from torch import Tensor

from vtcframe.components.allocators import Even, Joint
from vtcframe.components.ensemblers import Mean
from vtcframe.components.selectors import TopK
from vtcframe.core.budget import Budget
from vtcframe.core.evidence import Evidence
from vtcframe.core.kernel_call import KernelCall
from vtcframe.core.layout import Layout
from vtcframe.core.method import Method, MethodCard
from vtcframe.core.need_bases import AttentionNeed, Need
from vtcframe.core.pipeline import Pipeline
from vtcframe.core.pruned import Pruned
from vtcframe.core.stages import Positions, Pruner, Stage
from vtcframe.core.text_readers import PromptTokens
from vtcframe.core.verbs import Allocator, Scorer
from vtcframe.ops.gather import gather_tokens, kept_places, scatter
from vtcframe.ops.similarity import cosine, group_sums


@dataclass(frozen=True)
class AttentionPageRank(AttentionNeed):
    """The distribution over tokens after a random walk along the attention of a language model's layer.

    AIM (arXiv 2412.03248): the walk starts at all n tokens of a sample with probability 1/n each and takes `steps`
    steps d <- d M, where M is the softmax of the logits divided by `temperature`. Layers count as in AttentionRows. The
    whole attention matrix is computed `steps` times, in chunks of rows.
    """

    layers: tuple[int, ...]
    _: KW_ONLY
    temperature: float = 0.1
    steps: int = 5
    tower = "llm"

    def read_llm(self, call: KernelCall, prompts: PromptTokens) -> Tensor:
        """[P, H, L] float32: the probability of each token after the walk, 0 at padding."""
        return page_rank(call, self.temperature, self.steps)


def page_rank(call: KernelCall, temperature: float, steps: int) -> Tensor:
    """[B, H, K] float32: the distribution after `steps` steps along the attention of one call, 0 at padding.

    The walk starts at each of a sample's n tokens with probability 1/n. A step is d <- d M, where M is the softmax of
    the masked logits divided by the temperature (AIM, arXiv 2412.03248, without damping). Padding is neither query nor
    key. M is recomputed in every step, so that memory is linear in K. ValueError for a call that does not cover a whole
    prompt.
    """
    count, length = call.query.shape[2], call.key.shape[2]
    if count != length:
        raise ValueError(f"a walk needs the whole prompt in one call, got {count} queries of {length} tokens")
    is_token = call.is_token()
    if is_token is None:
        is_token = torch.ones(1, length, dtype=torch.bool, device=call.key.device)
    else:  # padding may hold NaN, and the mask is added to it
        call = replace(call, key=call.key.float().masked_fill(~is_token[:, None, :, None], 0))
    start = is_token.float() / is_token.sum(1, keepdim=True).clamp(min=1)
    distribution = start[:, None].expand(*call.query.shape[:2], length)
    for _ in range(steps):
        following = torch.zeros_like(distribution)
        for rows in call.row_chunks():
            transition = (call.logits(rows) / temperature).softmax(-1).masked_fill(~is_token[:, None, rows, None], 0)
            following += (distribution[:, :, None, rows] @ transition)[:, :, 0]
        distribution = following
    return distribution


@dataclass(frozen=True)
class TokenPageRank(Scorer):
    """[1, V, N]: the AttentionPageRank of each token, as the root mean square over heads.

    AIM (arXiv 2412.03248): the walk starts at all tokens with the same probability, text included, and takes `steps`
    steps; `temperature` sharpens the attention. `layer` counts as in TextAttention. Causal attention leads the walk
    towards early tokens, so of two tokens with equal attention the earlier one ranks higher.
    """

    layer: int = -1
    _: KW_ONLY
    temperature: float = 0.1
    steps: int = 5

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise ValueError(f"temperature must be positive, got {self.temperature}")
        if self.steps < 1:
            raise ValueError(f"steps must be at least 1, got {self.steps}: before the first step all tokens are equal")

    @property
    def needs(self) -> tuple[Need, ...]:
        return (AttentionPageRank((self.layer,), temperature=self.temperature, steps=self.steps),)

    def __call__(self, evidence: Evidence) -> Tensor:
        return evidence[self.needs[0]].float().square().mean(2).sqrt()


@dataclass(frozen=True)
class BipartiteMerge(Pruner):
    """Merges similar tokens in rounds, each of which keeps at least half of a view, until the budget is reached.

    From AIM (arXiv 2412.03248). In a round every second token, from the first on, is a source. Its target is the most
    similar of the other tokens, by cosine of the tokens that the language model would read; ties go to the first. The
    most similar pairs merge, as many as the budget requires. A target becomes the unweighted mean of itself and its
    sources, however many tokens these already represent, and keeps its place. As in the authors' code the remaining
    sources come first, the most similar in front, then the targets; the halves of the next round depend on this order.
    Every view of a sample keeps the same number of tokens, as far as it has them. A view that keeps all its tokens
    keeps its order; a view whose share is 0 is dropped.
    """

    @torch.no_grad()
    def __call__(self, evidence: Evidence, budget: Budget | None = None) -> Pruned:
        if budget is None:
            raise ValueError(f"{self} merges down to a budget: give tokens or ratio")
        layout = evidence.layout
        quota = Even()(layout.column, budget.total(layout), evidence)
        count = layout.count * (quota > 0)
        is_kept = (quota > 0).to(layout.column.device)[:, None]
        place = kept_places(layout.valid & is_kept)
        scores = is_kept.float().repeat(1, layout.column.shape[1])
        tokens = gather_tokens(evidence.tokens.float(), place).masked_fill((place < 0)[..., None], 0)
        while (surplus := (count - quota).minimum(count // 2)).any():
            tokens, place, source_scores = _merge_round(tokens, place, surplus.to(place.device)[:, None])
            scores = scatter(scores, *source_scores)
            count = count - surplus
        scores = scores.masked_fill(~layout.valid, -torch.inf)
        return Pruned(tokens.to(evidence.tokens.dtype), place, scores, layout)


def _merge_round(tokens: Tensor, place: Tensor, count: Tensor) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]]:
    """Return tokens [V, M', D] and places [V, M'] after one round, and places and scores [V, E] of the sources.

    The input is tokens [V, M, D] with M at least 2, their places [V, M], -1 = padding, and `count` [V, 1], the number
    of sources that merge. The score of a source is minus its highest cosine.
    """
    even = slice(0, None, 2)
    odd = slice(1, None, 2)
    has_merges = count > 0
    similarity = cosine(tokens[:, even], tokens[:, odd]).masked_fill((place < 0)[:, None, odd], -torch.inf)
    best, target = similarity.max(2)
    rank = best.masked_fill(place[:, even] < 0, -torch.inf).argsort(dim=1, descending=True, stable=True).argsort(1)
    joins = rank < count
    total, joined = group_sums(tokens[:, even], target, joins, tokens.shape[1] // 2)
    tokens = tokens.clone()
    tokens[:, odd] = (tokens[:, odd] + total) / (1 + joined)
    order = torch.arange(place.shape[1], device=place.device).repeat(len(place), 1)
    order[:, odd] += has_merges * place.shape[1]
    order[:, even] = torch.where(has_merges, rank, order[:, even])
    remains = place >= 0
    remains[:, even] &= ~joins
    source = torch.where(has_merges, place[:, even], -1), -best
    index = kept_places(remains, -order.float())
    return gather_tokens(tokens, index), place.gather(1, index.clamp(min=0)).masked_fill(index < 0, -1), source


@dataclass(frozen=True)
class LinearSchedule(Allocator):
    """Keeps `remaining` / `span` of a sample's tokens at entry to the language model, rounded down.

    The number at entry is the one that `entry_budget` allows. The highest scores of all views of a sample stay. A
    sample from which `entry_budget` drops nothing keeps all its tokens.
    """

    _: KW_ONLY
    remaining: int
    span: int
    entry_budget: Budget

    def __call__(self, scores: Tensor, budget: Tensor | None, evidence: Evidence) -> Tensor:
        layout = evidence.layout
        total = count_entry_tokens(self.entry_budget, layout)
        part = total * self.remaining // self.span
        return Joint()(scores, torch.where(total < layout.untouched, part, layout.total(layout.count)), evidence)


def count_entry_tokens(budget: Budget, layout: Layout) -> Tensor:
    """[P] on the CPU: the tokens that a budget allows each untouched sample, whatever has been dropped since."""
    index = torch.arange(int(layout.untouched.max()) if len(layout.key) else 0)
    column = torch.where(index < layout.untouched[:, None], index, -1)
    return budget.total(replace(layout, sample=torch.arange(len(layout.key)), column=column))


@dataclass(frozen=True)
class Aim(Method):
    """AIM (arXiv 2412.03248): merges similar tokens before the language model, and drops the rest over its layers.

    A budget counts the tokens after merging (see BipartiteMerge). The default is a quarter, as for the paper's videos:
    the 196 tokens of a frame become 98, then 49. LLaVA-1.5's 576 -> 288 -> 252 is tokens=252. Before each of the `span`
    layers from `first` on, 1 / span of these tokens is dropped, and before the last of them all that remain. The number
    of kept tokens is rounded down. The kept tokens have the highest PageRank in the attention of the layer before (see
    TokenPageRank). A sample from which the budget drops nothing keeps all tokens in the language model too. `first` is
    the authors' value for Qwen2-7B with 28 layers; their code uses 14 for LLaVA-1.5 with 32 layers.

    Deviations from the authors' code: the code hides tokens instead of dropping them, so that its walk also starts at
    hidden tokens. It renumbers the tokens after merging ("compact" here). It compares LLaVA-1.5's tokens by their keys,
    whereas this class compares the tokens themselves. It protects only the text of a batch's first sample; here all
    text stays.
    """

    card = MethodCard(
        paper="arXiv 2412.03248",
        signal="cosine of tokens, then PageRank along the LLM's attention",
        selector="bipartite matching, then top-k",
        dropped="averaged in, then discarded",
        parity="exact; differs: walks start at the remaining tokens, in the code at dropped tokens too",
        site="projector, llm",
        text=True,
    )
    first: int = 15
    span: int = 8
    _: KW_ONLY
    temperature: float = 0.1
    steps: int = 5
    positions: Positions = "original"

    def __post_init__(self) -> None:
        if self.first < 1 or self.span < 1:
            raise ValueError(
                "first is a layer numbered from 0 with at least one layer before it, and span is at least 1: got "
                f"first={self.first} and span={self.span}"
            )

    def stages(self, budget: Budget | None) -> tuple[Stage, ...]:
        budget = Budget(ratio=0.25) if budget is None else budget
        if budget.per != "sample":
            raise ValueError(
                f"Aim's later stages cannot reconstruct a budget of {budget.tokens} for each {budget.per}: give ratio, "
                "or tokens for each sample"
            )
        scorers = (TokenPageRank(-1, temperature=self.temperature, steps=self.steps),)
        layers = []
        for step in range(1, self.span + 1):
            schedule = LinearSchedule(remaining=self.span - step, span=self.span, entry_budget=budget)
            layers.append(Stage(f"llm:{self.first + step - 1}", Pipeline(scorers, Mean(), schedule, TopK()), budget))
        return (Stage("projector", BipartiteMerge(), budget, positions=self.positions), *layers)
