"""The verbs, each an abstract class with one `__call__`, and the pruner made of them.

Components are frozen dataclasses: their fields are their options, their class name is their public name.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from vtcframe.core import Budget, Evidence, Layout, Pruned
from vtcframe.needs import Need, in_llm

Positions = Literal["original", "compact"]


class Component(ABC):  # noqa: B024 (the kinds add the abstract call)
    """Anything that may ask for evidence."""

    @property
    def needs(self) -> tuple[Need, ...]:
        """What must be gathered before this is called."""
        return ()


class Scorer(Component):
    """Says how much each token matters."""

    @abstractmethod
    def __call__(self, evidence: Evidence) -> Tensor:
        """Return scores [S, V, N] float32, finite wherever there is a token."""


class Ensembler(Component):
    """Makes one map of several, be they layers or scorers."""

    @abstractmethod
    def __call__(self, maps: list[Tensor], layout: Layout) -> Tensor:
        """One [S, V, N] a scorer -> [V, N]. Padding must not reach ranks or minima."""


class Allocator(Component):
    """Splits each sample's budget over its views."""

    @abstractmethod
    def __call__(self, scores: Tensor, budget: Tensor | None, evidence: Evidence) -> Tensor:
        """Scores [V, N] (-inf at padding), budget [P] -> quota [V] on the CPU; 0 is allowed.

        Without a budget an adaptive allocator decides by itself how many stay; the others raise ValueError.
        """


class Selector(Component):
    """Chooses which tokens stay."""

    @abstractmethod
    def __call__(self, scores: Tensor, quota: Tensor, evidence: Evidence) -> Tensor:
        """Scores [V, N] (-inf at padding), quota [V] -> kept [V, N] bool with quota[v] True in row v."""


class Merger(Component):
    """Saves something of the dropped tokens."""

    def slots(self, quota: Tensor, layout: Layout) -> Tensor:
        """Quota [V] -> [V] output tokens that are not selected ones; never more than the quota."""
        return torch.zeros_like(quota)

    @abstractmethod
    def __call__(self, kept: Tensor, slots: Tensor, scores: Tensor, evidence: Evidence) -> Pruned:
        """Kept [V, N] bool, slots [V], scores [V, N] -> what is left; a new token takes the place of a dropped one."""


class Pruner(Component):
    """Anything that turns evidence and a budget into Pruned."""

    @abstractmethod
    def __call__(self, evidence: Evidence, budget: Budget | None = None) -> Pruned:
        """Return what is left of `evidence`."""

    def stages(self, budget: Budget | None) -> tuple["Stage", ...]:
        """Return where it acts when nothing else is said: once, before the language model."""
        return (Stage("projector", self, budget),)


@dataclass(frozen=True)
class Stage:
    """Where a pruner acts, with which budget and positions.

    Sites: "encoder:K" (in the vision tower, between attention and MLP of its block K, from 0), "projector" (before the
    language model), "llm:K" (before its layer K), "cache" (keys and values after prefill). Positions: "original", each
    token left keeps its rotary position, or "compact", the tokens left are numbered anew from here on. Of stages inside
    the encoder and at the projector the last one's count. `forget` is the first of the layers before K whose caches
    lose what leaves, once the prompt is read; None: they keep it, as each layer keeps what it has read.
    """

    at: str
    pruner: Pruner
    budget: Budget | None = None
    positions: Positions = "original"
    forget: int | None = None

    def __post_init__(self) -> None:
        site, _, layer = self.at.partition(":")
        if not (layer.isdecimal() if site in ("encoder", "llm") else self.at in ("projector", "cache")):
            raise ValueError(f"no site is called {self.at!r}: use 'encoder:K', 'projector', 'llm:K' or 'cache'")
        if site == "llm" and int(layer) < 1:
            raise ValueError("nothing of the language model is run before layer 0: use 'projector', or 'llm:1'")
        if self.positions not in ("original", "compact"):
            raise ValueError(f"positions must be 'original' or 'compact', got {self.positions!r}")
        if self.forget is not None and (site != "llm" or not 0 <= self.forget < int(layer)):
            raise ValueError(f"forget names a layer before K of a stage at 'llm:K', got {self.forget} at {self.at!r}")

    @property
    def layer(self) -> int:
        """K of "encoder:K" or "llm:K"."""
        return int(self.at.partition(":")[2])


@dataclass(frozen=True)
class Plan:
    """Stages by where they act, in their order; at least one."""

    encoder: tuple[Stage, ...]
    projector: Stage | None = None
    llm: tuple[Stage, ...] = ()
    method: Pruner | None = None  # that the stages are of, where they were not given one by one
    nominal: Budget | None = None  # and what it was given

    @property
    def before(self) -> tuple[Stage, ...]:
        """Those that act before the language model, in their order."""
        return (*self.encoder, *([self.projector] if self.projector else []))

    @property
    def stages(self) -> tuple[Stage, ...]:
        """All of them, in the order in which they act."""
        return (*self.before, *self.llm)

    @property
    def needs(self) -> tuple[Need, ...]:
        """What must be gathered of the tokens that the language model would read, for this stage and those after it."""
        later = (need for stage in self.llm for need in stage.pruner.needs if not in_llm(need))
        return tuple(dict.fromkeys((*(self.projector.pruner.needs if self.projector else ()), *later)))

    @property
    def positions(self) -> Positions:
        """Those of the last stage before the language model."""
        return self.before[-1].positions if self.before else "original"

    @property
    def budget(self) -> Budget | None:
        """What a method was given, whatever it made of it, or that of the last stage: what is left."""
        return self.nominal or self.stages[-1].budget

    def covers(self, layout: Layout) -> bool:
        """Tell whether no stage would drop anything of what every sample has at first."""
        return all(stage.budget is not None and stage.budget.covers(layout) for stage in self.stages)

    def __str__(self) -> str:
        return " + ".join(map(str, [self.method] if self.method else [stage.pruner for stage in self.stages]))


def planned(stages: Sequence[Stage], method: Pruner | None = None, budget: Budget | None = None) -> Plan:
    """Sort stages by where they act; `method` and `budget` are what they came from.

    ValueError for none, for a site this version has not, or for a wrong order.
    """
    encoder, projector, llm = (
        tuple(stage for stage in stages if stage.at.startswith(site)) for site in ("encoder:", "projector", "llm:")
    )
    sites = ", ".join(stage.at for stage in stages) or "nowhere"
    if not stages or len(encoder) + len(projector) + len(llm) < len(stages) or len(projector) > 1:
        raise ValueError(
            f"the stages act at {sites}: this version prunes inside the encoder, once at 'projector', and "
            "inside the language model"
        )
    ordered = all([stage.layer for stage in part] == sorted({stage.layer for stage in part}) for part in (encoder, llm))
    if (*encoder, *projector, *llm) != tuple(stages) or not ordered:
        raise ValueError(f"the stages act at {sites}: give them in the order in which they act, one a block or layer")
    for stage in stages:
        _ = stage.pruner.needs  # options that make no sense are told here, and not in the midst of a run
    return Plan(encoder, projector[0] if projector else None, llm, method, budget)


@dataclass(frozen=True)
class Pipeline(Pruner):
    """The usual pruner: the five verbs in their order, over each view or over all views of a sample joined."""

    scorers: tuple[Scorer, ...]  # none: every score is 0
    ensembler: Ensembler
    allocator: Allocator
    selector: Selector
    merger: Merger | None = None
    across: Literal["view", "sample"] = "view"

    def __post_init__(self) -> None:
        object.__setattr__(self, "scorers", tuple(self.scorers))  # YAML and users give lists; a pruner is hashable
        if self.across not in ("view", "sample"):
            raise ValueError(f"across must be 'view' or 'sample', got {self.across!r}")

    @property
    def needs(self) -> tuple[Need, ...]:
        parts = (*self.scorers, self.ensembler, self.allocator, self.selector, *([self.merger] if self.merger else []))
        return tuple(dict.fromkeys(need for part in parts for need in part.needs))

    @torch.no_grad()
    def __call__(self, evidence: Evidence, budget: Budget | None = None) -> Pruned:
        """Prune. ValueError if a score is not finite, naming the samples, or if a selector misses its quota."""
        total = None if budget is None else budget.total(evidence.layout)
        if self.across == "sample":
            evidence = evidence.joined()
        layout = evidence.layout
        maps = [scorer(evidence).float() for scorer in self.scorers]
        scores = self.ensembler(
            maps or [torch.zeros(1, *layout.column.shape, device=layout.column.device, dtype=torch.float32)], layout
        )
        finite = torch.stack([m.isfinite().all(0) for m in (*maps, scores[None])]).all(0)  # ranks would hide a NaN
        broken = (~finite & layout.valid).any(1)
        scores = scores.masked_fill(~layout.valid, -torch.inf)
        quota = self.allocator(scores, total, evidence).minimum(layout.count)
        slots = torch.zeros_like(quota)
        if self.merger is not None:
            slots = self.merger.slots(quota, layout)
            if total is None:  # what a merger makes comes on top of what was found worth keeping
                slots = slots.minimum(layout.count - quota)
            else:
                quota = quota - slots
        kept = self.selector(scores, quota, evidence)
        self._verify(broken, kept, quota, layout)
        if self.merger is None:
            return gather(kept, quota, scores, evidence)
        return self.merger(kept, slots, scores, evidence)

    def _verify(self, broken: Tensor, kept: Tensor, quota: Tensor, layout: Layout) -> None:
        """Check scores and selection in one device sync."""
        missed = (kept.sum(1) != quota.to(kept.device)) | (kept & ~layout.valid).any(1)
        bad_scores, bad_rows = torch.stack([broken, missed]).cpu()
        if bad_scores.any():
            samples = layout.sample[bad_scores].unique().tolist()
            raise ValueError(f"scores of samples {samples} are not finite: {', '.join(map(str, self.scorers))}")
        if bad_rows.any():
            row = int(bad_rows.nonzero()[0])
            raise ValueError(
                f"{self.selector} kept {int(kept[row].sum())} tokens of row {row} where the quota is "
                f"{int(quota[row])}, or kept padding: a selector keeps exactly the quota, of valid tokens only"
            )


def gather(kept: Tensor, quota: Tensor, scores: Tensor, evidence: Evidence) -> Pruned:
    """Return the kept tokens unchanged, in raster order; quota [V] says how many a row of kept [V, N] has."""
    width = int(quota.max()) if len(quota) else 0
    place = (~kept).long().argsort(dim=1, stable=True)[:, :width]
    empty = torch.arange(width, device=kept.device) >= quota.to(kept.device)[:, None]
    tokens = evidence.tokens.gather(1, place[..., None].expand(-1, -1, evidence.tokens.shape[2]))
    return Pruned(tokens, place.masked_fill(empty, -1), scores, evidence.layout)


@dataclass(frozen=True)
class Facts:
    """What a table of methods says of one; docs/methods.md is made of these."""

    paper: str  # "arXiv 2412.05819", or "" for a baseline
    signal: str  # what tokens are judged by
    selector: str
    dropped: str  # what becomes of the dropped tokens
    parity: str  # "exact", "within 2e-5", "differs: ..." with what and why, or "no public code"
    site: str = "projector"
    text: bool = False  # whether the question matters


class Method(Pruner):
    """A published pruner: its own few plain fields, its paper in the docstring.

    Override `pipeline`; override `stages` too where it acts at another site or at several.
    """

    facts: ClassVar[Facts]

    def pipeline(self) -> Pipeline:
        """Return the parts it is made of."""
        raise TypeError(f"{type(self).__name__} acts at several stages: give it as the method, not inside a stage")

    @property
    def needs(self) -> tuple[Need, ...]:
        return self.pipeline().needs

    def __call__(self, evidence: Evidence, budget: Budget | None = None) -> Pruned:
        return self.pipeline()(evidence, budget)
