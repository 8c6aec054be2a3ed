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
from vtcframe.faults import (
    ComponentError,
    called,
    fault,
    mask,
    needs_of,
    origin,
    quotas,
    remains,
    scores_of,
    slots_of,
    told,
)
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
        if not isinstance(self.pruner, Pruner):
            raise TypeError(f"the pruner of a stage is an object that extends vtcframe.Pruner, got {told(self.pruner)}")
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

    def act(self, evidence: Evidence) -> Pruned:
        """Let the pruner prune. ComponentError, naming it, if it raises or returns something else."""
        return remains(self.pruner, called(self.pruner, self.pruner, evidence, self.budget), evidence)


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
        needs_of(stage.pruner)  # options that make no sense are told here, and not in the midst of a run
    return Plan(encoder, projector[0] if projector else None, llm, method, budget)


def plan_for(pruner: Pruner, budget: Budget | None = None) -> Plan:
    """Plan a pruner's own stages. ValueError where it has none, or cannot have them with this budget."""
    if not isinstance(pruner, Pruner):
        raise TypeError(f"a pruner is an object that extends vtcframe.Pruner, got {told(pruner)}")
    stages = called(pruner, pruner.stages, budget)
    if not (isinstance(stages, tuple | list) and all(isinstance(stage, Stage) for stage in stages)):
        raise fault(pruner, f"has {told(stages)} for its stages: return a tuple of vtcframe.Stage")
    return planned(stages, pruner, budget)


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
        if not isinstance(self.scorers, tuple | list):
            raise TypeError(f"scorers are a tuple or list, got {told(self.scorers)}")
        object.__setattr__(self, "scorers", tuple(self.scorers))  # YAML and users give lists; a pruner is hashable
        kinds = *[Scorer] * len(self.scorers), Ensembler, Allocator, Selector, Merger
        for part, kind in zip(self.parts, kinds, strict=False):
            if not isinstance(part, kind):
                name = kind.__name__
                raise TypeError(f"{name.lower()}: an object that extends vtcframe.{name} is needed, got {told(part)}")
        if self.across not in ("view", "sample"):
            raise ValueError(f"across must be 'view' or 'sample', got {self.across!r}")

    @property
    def parts(self) -> tuple[Component, ...]:
        """In the order in which they are called."""
        merger = () if self.merger is None else (self.merger,)
        return *self.scorers, self.ensembler, self.allocator, self.selector, *merger

    @property
    def needs(self) -> tuple[Need, ...]:
        return tuple(dict.fromkeys(need for part in self.parts for need in needs_of(part)))

    @torch.no_grad()
    def __call__(self, evidence: Evidence, budget: Budget | None = None) -> Pruned:
        """Prune. ComponentError for a part that raises, or returns what its kind may not.

        It names the samples whose scores are not finite.
        """
        total = None if budget is None else budget.total(evidence.layout)
        if self.across == "sample":
            evidence = evidence.joined()
        layout = evidence.layout
        maps = [scores_of(one, called(one, one, evidence), layout, "[S, V, N]") for one in self.scorers]
        given = maps or [torch.zeros(1, *layout.column.shape, device=layout.column.device, dtype=torch.float32)]
        scores = scores_of(self.ensembler, called(self.ensembler, self.ensembler, given, layout), layout, "[V, N]")
        finite = torch.stack([m.isfinite().all(0) for m in (*maps, scores[None])])  # ranks would hide a NaN
        broken = (~finite & layout.valid).any(2)
        scores = scores.masked_fill(~layout.valid, -torch.inf)
        quota = quotas(self.allocator, called(self.allocator, self.allocator, scores, total, evidence), layout)
        slots = torch.zeros_like(quota)
        if self.merger is not None:
            slots = slots_of(self.merger, called(self.merger, self.merger.slots, quota, layout), quota)
            if total is None:  # what a merger makes comes on top of what was found worth keeping
                slots = slots.minimum(layout.count - quota)
            else:
                quota = quota - slots
        kept = mask(self.selector, called(self.selector, self.selector, scores, quota, evidence), layout)
        self._verify(broken, kept, quota, layout)
        if self.merger is None:
            return gather(kept, quota, scores, evidence)
        return remains(self.merger, called(self.merger, self.merger, kept, slots, scores, evidence), evidence)

    def _verify(self, broken: Tensor, kept: Tensor, quota: Tensor, layout: Layout) -> None:
        """Check scores [a row for each scorer, and the ensembler's] and selection in one device sync."""
        missed = (kept.sum(1) != quota.to(kept.device)) | (kept & ~layout.valid).any(1)
        *bad_scores, bad_rows = torch.cat([broken, missed[None]]).cpu()
        if any(bad.any() for bad in bad_scores):
            samples = layout.sample[torch.stack(bad_scores).any(0)].unique().tolist()
            guilty = [one for one, bad in zip(self.scorers, bad_scores[:-1], strict=True) if bad.any()]
            names = ", ".join(f"{one}{origin(one)}" for one in guilty or [self.ensembler])
            raise ComponentError(f"scores of samples {samples} are not finite: {names}")
        if bad_rows.any():
            row = int(bad_rows.nonzero()[0])
            raise fault(
                self.selector,
                f"kept {int(kept[row].sum())} tokens of row {row} where the quota is {int(quota[row])}, or kept "
                "padding: a selector keeps exactly the quota, of valid tokens only",
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
        return self._made().needs

    def __call__(self, evidence: Evidence, budget: Budget | None = None) -> Pruned:
        return self._made()(evidence, budget)

    def _made(self) -> Pruner:
        if not isinstance(made := self.pipeline(), Pruner):
            raise TypeError(f"pipeline() returned {told(made)}, and not a Pipeline")
        return made
