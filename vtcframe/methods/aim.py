"""AIM: similar tokens merge before the language model, and inside it tokens are dropped layer by layer."""

from dataclasses import dataclass, replace

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

    AIM (arXiv 2412.03248): the walk starts at all n tokens of a sample with 1/n each and takes `steps` steps d <- d M,
    where M is the softmax of the logits divided by `temperature`. Layers count as in AttentionRows. The whole
    attention is computed `steps` times, a chunk of rows at a time.
    """

    layers: tuple[int, ...]
    temperature: float = 0.1
    steps: int = 5
    tower = "llm"

    def read_llm(self, call: KernelCall, prompts: PromptTokens) -> Tensor:
        """[P, H, L] float32: the probability of each token after the walk, 0 at padding."""
        return page_rank(call, self.temperature, self.steps)


def page_rank(call: KernelCall, temperature: float, steps: int) -> Tensor:
    """[B, H, K] float32: the distribution after `steps` steps along one call's attention, 0 at padding.

    The walk starts at each of a sample's n tokens with 1/n. A step is d <- d M, where M is the softmax of the logits,
    masked and then divided by the temperature (AIM, arXiv 2412.03248, without damping). Padding is neither query nor
    key. M is computed anew in every step, so that memory is linear in K. ValueError for a call that is not of a whole
    prompt.
    """
    count, length = call.query.shape[2], call.key.shape[2]
    if count != length:
        raise ValueError(f"a walk needs the whole prompt in one call, got {count} queries of {length} tokens")
    is_token = call.is_token()
    if is_token is None:
        is_token = torch.ones(1, length, dtype=torch.bool, device=call.key.device)
    else:  # padding may hold NaN, and the mask adds to it
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
    """[1, V, N]: the AttentionPageRank of each token, root mean square over heads.

    AIM (arXiv 2412.03248): the walk starts at all tokens alike, text included, and takes `steps` steps; attention is
    sharpened by `temperature`. `layer` counts as in TextAttention. Causal attention leads to early tokens, so of
    equally attended ones these are the more important.
    """

    layer: int = -1
    temperature: float = 0.1
    steps: int = 5

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise ValueError(f"temperature must be positive, got {self.temperature}")
        if self.steps < 1:
            raise ValueError(f"steps must be at least 1, got {self.steps}: after none every token is the same")

    @property
    def needs(self) -> tuple[Need, ...]:
        return (AttentionPageRank((self.layer,), self.temperature, self.steps),)

    def __call__(self, evidence: Evidence) -> Tensor:
        return evidence[self.needs[0]].float().square().mean(2).sqrt()


@dataclass(frozen=True)
class BipartiteMerge(Pruner):
    """Merges similar tokens, in rounds that leave at least half of a view, until its budget is reached.

    Of AIM (arXiv 2412.03248). In a round every other token, starting with the first, is a source, whose target is the
    most similar of the others, by cosine of the tokens as the language model would read them; of equals the first. The
    closest pairs merge, as many as the budget requires: a target becomes the plain mean of itself and its sources,
    however many tokens those stood for before, and keeps its place. As in the code the remaining sources come first,
    the closest of them in front, then the targets; the next round's halves depend on that order. Every view of a sample
    keeps the same number, as far as it has tokens; one that keeps all keeps its order, and one whose share is 0 is
    dropped whole.
    """

    @torch.no_grad()
    def __call__(self, evidence: Evidence, budget: Budget | None = None) -> Pruned:
        if budget is None:
            raise ValueError(f"{self} merges down to a budget: give tokens or ratio")
        layout = evidence.layout
        left = Even()(layout.column, budget.total(layout), evidence)
        count = layout.count * (left > 0)
        stays = (left > 0).to(layout.column.device)[:, None]
        place, scores = kept_places(layout.valid & stays), stays.float().repeat(1, layout.column.shape[1])
        tokens = gather_tokens(evidence.tokens.float(), place).masked_fill((place < 0)[..., None], 0)
        while (gone := (count - left).minimum(count // 2)).any():
            tokens, place, joined = _merged(tokens, place, gone.to(place.device)[:, None])
            scores, count = scatter(scores, *joined), count - gone
        scores = scores.masked_fill(~layout.valid, -torch.inf)
        return Pruned(tokens.to(evidence.tokens.dtype), place, scores, layout)


def _merged(tokens: Tensor, place: Tensor, gone: Tensor) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]]:
    """Return tokens [V, M', D] and places [V, M'] after one round, and of sources [V, E] places and scores.

    Input are tokens [V, M, D], M at least 2, places [V, M], -1 = padding, and how many merge, `gone` [V, 1]. The score
    of a source is minus its highest cosine.
    """
    even, odd, merges = slice(0, None, 2), slice(1, None, 2), gone > 0
    alike = cosine(tokens[:, even], tokens[:, odd]).masked_fill((place < 0)[:, None, odd], -torch.inf)
    best, to = alike.max(2)
    rank = best.masked_fill(place[:, even] < 0, -torch.inf).argsort(dim=1, descending=True, stable=True).argsort(1)
    joins = rank < gone
    total, joined = group_sums(tokens[:, even], to, joins, tokens.shape[1] // 2)
    tokens = tokens.clone()
    tokens[:, odd] = (tokens[:, odd] + total) / (1 + joined)
    order = torch.arange(place.shape[1], device=place.device).repeat(len(place), 1)
    order[:, odd] += merges * place.shape[1]
    order[:, even] = torch.where(merges, rank, order[:, even])
    stays = place >= 0
    stays[:, even] &= ~joins
    source = torch.where(merges, place[:, even], -1), -best
    at = kept_places(stays, -order.float())
    return gather_tokens(tokens, at), place.gather(1, at.clamp(min=0)).masked_fill(at < 0, -1), source


@dataclass(frozen=True)
class LinearSchedule(Allocator):
    """The fraction `left` / `of` of the tokens that the budget `entered` leaves of a sample, rounded down.

    The highest scores of all its views together. A sample that `entered` leaves whole keeps all its tokens.
    """

    left: int
    of: int
    entered: Budget

    def __call__(self, scores: Tensor, budget: Tensor | None, evidence: Evidence) -> Tensor:
        layout = evidence.layout
        total = entering(self.entered, layout)
        part = total * self.left // self.of
        return Joint()(scores, torch.where(total < layout.untouched, part, layout.total(layout.count)), evidence)


def entering(budget: Budget, layout: Layout) -> Tensor:
    """[P] on the CPU: the tokens that a budget leaves of each untouched sample, whatever was dropped since."""
    index = torch.arange(int(layout.untouched.max()) if len(layout.key) else 0)
    column = torch.where(index < layout.untouched[:, None], index, -1)
    return budget.total(replace(layout, sample=torch.arange(len(layout.key)), column=column))


@dataclass(frozen=True)
class Aim(Method):
    """AIM (arXiv 2412.03248): merges similar tokens before the language model, and drops the rest over its layers.

    A budget counts the tokens after merging (see BipartiteMerge); without one it is a quarter, as for the paper's
    videos: of 196 tokens of a frame 98, then 49. LLaVA-1.5's 576, 288, 252 are tokens=252. Before each of the `span`
    layers from `first` on, 1 / span of these tokens is dropped, and before the last of them the rest; the number that
    stays is rounded down, and the tokens that stay have the highest PageRank in the attention of the layer before (see
    TokenPageRank). A sample that the budget leaves whole keeps all tokens, inside too. `first` is that of Qwen2-7B's 28
    layers; the code's for LLaVA-1.5's 32 is 14.

    The code hides tokens and drops none, so its walk also starts at hidden ones; it numbers tokens anew after merging
    ("compact" here), and compares LLaVA-1.5's tokens by keys where this compares the tokens themselves. It protects the
    text of a batch's first sample only. Here all text stays.
    """

    card = MethodCard(
        paper="arXiv 2412.03248",
        signal="cosine of tokens, then where a walk along the LLM's attention ends",
        selector="bipartite matching, then top-k",
        dropped="averaged in, then gone",
        parity="exact; differs: walks start at the tokens left, the code's at those gone too",
        site="projector, llm",
        text=True,
    )
    first: int = 15
    span: int = 8
    temperature: float = 0.1
    steps: int = 5
    positions: Positions = "original"

    def __post_init__(self) -> None:
        if self.first < 1 or self.span < 1:
            raise ValueError(
                "first counts layers from 0, one of which must have been run, and span is at least 1, got "
                f"first={self.first} and span={self.span}"
            )

    def stages(self, budget: Budget | None) -> tuple[Stage, ...]:
        budget = Budget(ratio=0.25) if budget is None else budget
        if budget.per != "sample":
            raise ValueError(
                f"Aim's later stages cannot tell what {budget.tokens} for each {budget.per} were: give ratio, or "
                "tokens for each sample"
            )
        scorers, layers = (TokenPageRank(-1, self.temperature, self.steps),), []
        for step in range(1, self.span + 1):
            fading = LinearSchedule(self.span - step, self.span, budget)
            layers.append(Stage(f"llm:{self.first + step - 1}", Pipeline(scorers, Mean(), fading, TopK()), budget))
        return (Stage("projector", BipartiteMerge(), budget, positions=self.positions), *layers)
