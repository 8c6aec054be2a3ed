"""Methods inside the language model that judge by its attention: later layers run on fewer visual tokens.

They rank all visual tokens of a sample together. The text stays whole.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vtcframe.allocators import Even
from vtcframe.core import Budget, Evidence, Pruned
from vtcframe.ensemblers import Mean
from vtcframe.needs import Need, Probed, Rows
from vtcframe.pipeline import Allocator, Facts, Method, Pipeline, Positions, Pruner, Scorer, Stage, gather
from vtcframe.scorers import TextAttention
from vtcframe.selectors import TopK


class _Once(Method):
    """A method with one stage, before layer `layer`, and a budget."""

    layer: int

    def __post_init__(self) -> None:
        if self.layer < 1:
            raise ValueError(
                f"layer counts from 0, and one must have been run before it: give 1 or more, got {self.layer}"
            )

    def ranking(self, scorer: Scorer) -> Pipeline:
        """Return the pruner that keeps the highest scores of a sample."""
        return Pipeline((scorer,), Mean(), Even(), TopK(), across="sample")

    def stages(self, budget: Budget | None) -> tuple[Stage, ...]:
        if budget is None:
            raise ValueError(f"{self} says how tokens are ranked and not how many stay: give tokens or ratio")
        return (Stage(f"llm:{self.layer}", self, budget),)


@dataclass(frozen=True)
class FastV(_Once):
    """FastV (arXiv 2403.06764): before layer `layer` those stay that the last token of the prompt attends to most.

    Attention of the layer before it, mean over heads. A budget is what that layer and all later ones see: the paper's
    K=2, R=50 % is layer=2 and ratio=0.5. Tokens keep their positions, and earlier layers keep all in their caches.

    The repository has five variants. This is that of its transformers fork for LLaVA, whose round(N (1 - R)) is what a
    ratio gives. "In place" gives a number of tokens; the one for lmms-eval rounds down and runs the layer before
    `layer` twice, with its keys twice in the cache; "mask" hides tokens instead of dropping them, and ranks anew for
    every token generated; the last one hands one layer's cache to all later ones. All rank by sample 0 of a batch.
    """

    facts = Facts(
        "arXiv 2403.06764", "attention of the prompt's last token", "top-k", "gone", "exact", "llm", text=True
    )
    layer: int = 2

    def pipeline(self) -> Pipeline:
        return self.ranking(TextAttention(-1))


@dataclass(frozen=True)
class ZipCacheSaliency(_Once):
    """FastV's place with ZipCache's (arXiv 2405.14256) salience: the attention of probes, of those that see a token.

    Plain sums favour early tokens, which more queries see. ZipCache drops nothing: there it says which keys and values
    are quantised to fewer bits, for each head by itself. Here it ranks visual tokens, mean over heads.
    """

    facts = Facts(
        "arXiv 2405.14256",
        "mean attention of recent and random probes that see a token",
        "top-k",
        "gone",
        "differs: tokens go instead of bits; with the code's probes and divisor its salience is exact",
        "llm",
        text=True,
    )
    layer: int = 2

    def pipeline(self) -> Pipeline:
        return self.ranking(ProbeAttention(-1))


@dataclass(frozen=True)
class SinkFilter(_Once):
    """FastV's ranking with visual attention sinks (VAR, arXiv 2503.03321) last: they draw attention and mean nothing.

    A token is a sink where its hidden state before `layer` stands out in one of `dims`, which belong to the language
    model: 1415 and 2533 to LLaMA-2-7B, 2100 and 4743 to its 13B, whose own the authors' code never takes. VAR drops
    nothing but hands the sinks' attention to other tokens, which is not done here.
    """

    facts = Facts(
        "arXiv 2503.03321",
        "attention of the prompt's last token, sinks last",
        "top-k",
        "gone",
        "differs: sinks are told exactly, but rank last instead of giving their attention to others",
        "llm",
        text=True,
    )
    layer: int = 2
    dims: tuple[int, ...] = (1415, 2533)
    threshold: float = 20.0

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "dims", tuple(self.dims))

    def pipeline(self) -> Pipeline:
        return self.ranking(Sinkless(TextAttention(-1), self.dims, self.threshold))


@dataclass(frozen=True)
class PyramidDrop(Method):
    """PyramidDrop (arXiv 2410.17247): before each of `layers` those stay that the last token is about to attend to.

    Attention of the layer that comes next, mean over heads. Without a budget `ratios` of the untouched count stay,
    rounded down, one at least. A budget is what is left in the end; the stages before come down to it by equal ratios,
    rounded down, so that ratio=0.125 gives the published counts where they are whole. Layers 8, 16 and 24 are those of
    32.

    The authors' code numbers the tokens left anew at every stage, positions="compact", which models with M-RoPE cannot
    have. It fails for grouped queries, and takes all pictures of a prompt for its first one.
    """

    facts = Facts(
        "arXiv 2410.17247",
        "attention of the prompt's last token in the next layer",
        "top-k at several layers",
        "gone",
        "exact; whole model within 2e-4",
        "llm",
        text=True,
    )
    layers: tuple[int, ...] = (8, 16, 24)
    ratios: tuple[float, ...] = (0.5, 0.25, 0.125)  # of the untouched count, one a layer
    positions: Positions = "original"

    def __post_init__(self) -> None:
        object.__setattr__(self, "layers", ascending(self.layers))
        object.__setattr__(self, "ratios", tuple(self.ratios))
        if any(not 0 < ratio <= 1 for ratio in self.ratios) or list(self.ratios) != sorted(self.ratios, reverse=True):
            raise ValueError(
                f"ratios are fractions kept of the untouched count, (0, 1], none rising: got {self.ratios}"
            )

    def stages(self, budget: Budget | None) -> tuple[Stage, ...]:
        if budget is None and len(self.ratios) != len(self.layers):
            raise ValueError(f"{len(self.ratios)} ratios for {len(self.layers)} layers: give one a layer, or a budget")
        ratios = self.ratios if budget is None else [1.0] * len(self.layers)
        steps = [Descent(ratio, i + 1, len(self.layers)) for i, ratio in enumerate(ratios)]
        return tuple(
            Stage(
                f"llm:{layer}",
                Pipeline((TextAttention(layer),), Mean(), step, TopK(), across="sample"),
                budget,
                self.positions,
            )
            for layer, step in zip(self.layers, steps, strict=True)
        )


@dataclass(frozen=True)
class Descent(Allocator):
    """The part `ratio` of each sample's untouched count; with a budget, the `step`-th of `steps` equal ratios to it.

    Rounded down; one token at least, and never more than are left. Shared evenly by the views of a sample.
    """

    ratio: float
    step: int = 1
    steps: int = 1

    def __call__(self, scores: Tensor, budget: Tensor | None, evidence: Evidence) -> Tensor:
        layout = evidence.layout
        untouched = layout.untouched.double()
        if budget is None:
            want = (untouched * self.ratio).long().clamp(min=1)
        else:
            way = (budget / untouched.clamp(min=1)) ** (self.step / self.steps)
            want = (untouched * way + 1e-6).long().maximum(budget)  # 32 * (1 / 32) ** 0.4 comes out just below 8
        return Even()(scores, want.minimum(layout.total(layout.count)), evidence)


@dataclass(frozen=True)
class VisualExit(Method):
    """Visual tokens leave all at once, as in DyVTE (arXiv 2411.19628), without its training.

    Without a threshold they leave before the first of `layers`. With one, they leave a sample before the first of them
    at which the attention of the prompt's last token to all of them, mean over heads, was below `threshold` in each of
    the `patience` layers before. It takes no budget. DyVTE decides by a small network, trained for each model, which
    reads the text's hidden states; both rules here are ours. Tokens keep their positions.
    """

    facts = Facts(
        "arXiv 2411.19628",
        "none, or attention of the prompt's last token to all visual ones",
        "all or none of a sample",
        "gone",
        "differs: a fixed layer or a threshold in place of the trained exit",
        "llm",
        text=True,
    )
    layers: tuple[int, ...] = (16,)
    threshold: float | None = None
    patience: int = 1

    def __post_init__(self) -> None:
        object.__setattr__(self, "layers", ascending(self.layers))
        if self.threshold is not None and not 0 < self.threshold <= 1:
            raise ValueError(f"threshold is a share of attention and must lie in (0, 1], got {self.threshold}")
        if not 1 <= self.patience <= self.layers[0]:
            raise ValueError(
                f"patience counts layers before the first of `layers`, {self.layers[0]}: give 1 to {self.layers[0]}, "
                f"got {self.patience}"
            )

    def stages(self, budget: Budget | None) -> tuple[Stage, ...]:
        if budget is not None:
            raise ValueError(f"VisualExit drops all visual tokens or none and takes no budget: leave out {budget}")
        layers = self.layers if self.threshold is not None else self.layers[:1]
        return tuple(Stage(f"llm:{layer}", Exit(self.threshold, self.patience)) for layer in layers)


@dataclass(frozen=True)
class Exit(Pruner):
    """All visual tokens of a sample leave, or none: with a threshold, those of samples that pay them less.

    What counts is the sum over a sample's visual tokens, in each of the `patience` layers before the stage. The budget
    does not matter. ValueError if what was paid is not finite, naming the samples.
    """

    threshold: float | None = None
    patience: int = 1

    @property
    def needs(self) -> tuple[Need, ...]:
        if self.threshold is None:
            return ()
        return (Rows("last", tuple(range(-self.patience, 0)), tower="llm", heads="mean"),)

    @torch.no_grad()
    def __call__(self, evidence: Evidence, budget: Budget | None = None) -> Pruned:
        layout, valid = evidence.layout, evidence.layout.valid
        scores = torch.zeros(valid.shape, device=valid.device, dtype=torch.float32)
        stays = torch.zeros(len(layout.key), dtype=torch.bool)
        if self.threshold is not None:
            paid = evidence[self.needs[0]].float().mean(2).masked_fill(~valid, 0)  # [L, V, N]
            mass = paid.new_zeros(len(paid), len(layout.key))
            mass = mass.index_add_(1, layout.sample.to(paid.device), paid.sum(2)).cpu()
            if not mass.isfinite().all():
                samples = (~mass.isfinite()).any(0).nonzero()[:, 0].tolist()
                raise ValueError(f"attention of samples {samples} is not finite: {self}")
            scores, stays = paid.mean(0), (mass >= self.threshold).any(0)
        stays = stays[layout.sample]
        kept = valid & stays.to(valid.device)[:, None]
        return gather(kept, layout.count * stays, scores.masked_fill(~valid, -torch.inf), evidence)


@dataclass(frozen=True)
class ProbeAttention(Scorer):
    """[1, V, N]: mean attention that probes pay to a token, of those that see it, mean over heads (see Probed).

    ZipCache (arXiv 2405.14256). `layer` counts as in TextAttention.
    """

    layer: int = -1
    recent: float = 0.05
    random: float = 0.05
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("recent", "random"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is a share of the prompt and must lie in 0..1, got {getattr(self, name)}")

    @property
    def needs(self) -> tuple[Need, ...]:
        return (Probed((self.layer,), self.recent, self.random, self.seed),)

    def __call__(self, evidence: Evidence) -> Tensor:
        return evidence[self.needs[0]].mean(2)


@dataclass(frozen=True)
class Sinkless(Scorer):
    """[S, V, N]: the maps of another scorer, in which attention sinks lie below all other tokens of their sample.

    Among themselves they keep their order. A sink is a token that exceeds `threshold` in one of `dims` of its hidden
    state, at a root mean square of 1 (VAR, arXiv 2503.03321). For stages inside the language model.
    """

    scorer: Scorer
    dims: tuple[int, ...] = (1415, 2533)
    threshold: float = 20.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "dims", tuple(self.dims))
        if not self.dims or min(self.dims) < 0:
            raise ValueError(f"dims are channels of the hidden states, counted from 0, one at least: got {self.dims}")

    @property
    def needs(self) -> tuple[Need, ...]:
        return self.scorer.needs

    def __call__(self, evidence: Evidence) -> Tensor:
        maps, valid, sample = self.scorer(evidence).float(), evidence.layout.valid, evidence.layout.sample
        owner = sample.to(maps.device)[:, None].expand(valid.shape).flatten()
        size = maps.abs().masked_fill(~valid, 0).flatten(1)
        most = size.new_zeros(len(maps), len(evidence.layout.key)).scatter_reduce(
            1, owner.expand_as(size), size, "amax"
        )
        fall = 3 * most[:, sample.to(maps.device), None] + torch.finfo(torch.float32).tiny
        return torch.where(self.sinks(evidence.tokens), maps - fall, maps)  # from at most a to -2a: none is below -a

    def sinks(self, hidden: Tensor) -> Tensor:
        """[..., D] hidden states -> [...] bool."""
        if max(self.dims) >= hidden.shape[-1]:
            raise ValueError(
                f"dims {self.dims} are none of a model with {hidden.shape[-1]} channels: they belong to one language "
                "model, give those of yours"
            )
        hidden = hidden.float()
        scale = (hidden.square().mean(-1) + 1e-6).rsqrt()
        return hidden[..., list(self.dims)].abs().amax(-1) * scale > self.threshold


def ascending(layers: Sequence[int]) -> tuple[int, ...]:
    """Return layers before which stages act, as YAML gives them. ValueError unless they ascend from 1 up."""
    layers = tuple(layers)
    if not layers or list(layers) != sorted(set(layers)) or layers[0] < 1:
        raise ValueError(f"layers counts from 0 and ascends, from 1 up, one at least: got {layers}")
    return layers
