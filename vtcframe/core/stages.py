"""Stages: where pruners act and with which budgets; plans sort the stages by the place where they act."""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Literal

from vtcframe.core.budget import Budget
from vtcframe.core.contracts import call_component, check_pruned, component_error, describe_type, needs_of
from vtcframe.core.evidence import Evidence
from vtcframe.core.layout import Layout
from vtcframe.core.need_bases import Need
from vtcframe.core.pruned import Pruned
from vtcframe.core.verbs import Component

Positions = Literal["original", "compact"]


class Pruner(Component):
    """A component that prunes: it turns evidence and a budget into `Pruned`."""

    @abstractmethod
    def __call__(self, evidence: Evidence, budget: Budget | None = None) -> Pruned:
        """Return the tokens of `evidence` that remain."""

    def stages(self, budget: Budget | None) -> tuple["Stage", ...]:
        """Return the stages at which the pruner acts; by default a single one before the language model."""
        return (Stage("projector", self, budget),)


@dataclass(frozen=True)
class Stage:
    """The place where a pruner acts, with its budget and the positions of the remaining tokens.

    Sites: "encoder:K" (in the vision tower, between attention and MLP of its block K, from 0), "projector" (before the
    language model), "llm:K" (before its layer K), "cache" (keys and values after prefill).

    Positions: with "original" each remaining token keeps its rotary position. With "compact" the remaining tokens are
    numbered anew from this stage on. If several stages act before the language model, the last one's positions apply.

    `forget`: once the prompt is processed, layers from `forget` up to K evict the dropped tokens from their KV caches.
    With None the layers before K keep the tokens in their caches.
    """

    at: str
    pruner: Pruner
    budget: Budget | None = None
    _: KW_ONLY
    positions: Positions = "original"
    forget: int | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.pruner, Pruner):
            raise TypeError(
                f"the pruner of a stage is an object that extends vtcframe.Pruner, got {describe_type(self.pruner)}"
            )
        site, _, layer = self.at.partition(":")
        if not (layer.isdecimal() if site in ("encoder", "llm") else self.at in ("projector", "cache")):
            raise ValueError(f"no site is called {self.at!r}: use 'encoder:K', 'projector', 'llm:K' or 'cache'")
        if site == "llm" and int(layer) < 1:
            raise ValueError(f"no layer of the language model runs before {self.at!r}: use 'projector', or 'llm:1'")
        if self.positions not in ("original", "compact"):
            raise ValueError(f"positions must be 'original' or 'compact', got {self.positions!r}")
        if self.forget is not None and (site != "llm" or not 0 <= self.forget < int(layer)):
            raise ValueError(f"forget names a layer before K of a stage at 'llm:K', got {self.forget} at {self.at!r}")

    @property
    def layer(self) -> int:
        """The number K of a site "encoder:K" or "llm:K"."""
        return int(self.at.partition(":")[2])

    def act(self, evidence: Evidence) -> Pruned:
        """Prune the evidence. ComponentError, which names the pruner, if it raises or does not return `Pruned`."""
        return check_pruned(self.pruner, call_component(self.pruner, self.pruner, evidence, self.budget), evidence)


@dataclass(frozen=True)
class Plan:
    """All stages of a run, at least one, sorted by the place where they act."""

    encoder: tuple[Stage, ...]
    projector: Stage | None = None
    llm: tuple[Stage, ...] = ()
    method: Pruner | None = None  # the pruner that defines the stages; None for stages listed by the user
    nominal: Budget | None = None  # the budget of `method`

    @property
    def before(self) -> tuple[Stage, ...]:
        """The stages that act before the language model, in the order in which they act."""
        return (*self.encoder, *([self.projector] if self.projector else []))

    @property
    def stages(self) -> tuple[Stage, ...]:
        """All stages, in the order in which they act."""
        return (*self.before, *self.llm)

    @property
    def needs(self) -> tuple[Need, ...]:
        """The evidence to gather at the projector, for its stage and for the stages in the language model."""
        later = (need for stage in self.llm for need in stage.pruner.needs if need.site != "llm")
        return tuple(dict.fromkeys((*(self.projector.pruner.needs if self.projector else ()), *later)))

    @property
    def positions(self) -> Positions:
        """The positions of the last stage before the language model."""
        return self.before[-1].positions if self.before else "original"

    @property
    def budget(self) -> Budget | None:
        """The budget of the method, whatever its stages use; else the budget of the last stage."""
        return self.nominal or self.stages[-1].budget

    def covers(self, layout: Layout) -> bool:
        """Return whether the budgets of all stages allow every sample to keep all of its tokens."""
        return all(stage.budget is not None and stage.budget.covers(layout) for stage in self.stages)

    def __str__(self) -> str:
        return " + ".join(map(str, [self.method] if self.method else [stage.pruner for stage in self.stages]))


def plan_from_stages(stages: Sequence[Stage], method: Pruner | None = None, budget: Budget | None = None) -> Plan:
    """Sort stages by the place where they act; `method` and `budget` are those that defined the stages.

    ValueError without stages, for a site that this version does not support, and for a wrong order.
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
        raise ValueError(
            f"the stages act at {sites}: give them in the order in which they act, one for each block or layer"
        )
    for stage in stages:
        needs_of(stage.pruner)  # invalid options raise an error here and not in the middle of a run
    return Plan(encoder, projector[0] if projector else None, llm, method, budget)


def plan_for(pruner: Pruner, budget: Budget | None = None) -> Plan:
    """Return the plan of a pruner's stages. ValueError if it has none, or cannot act with this budget."""
    if not isinstance(pruner, Pruner):
        raise TypeError(f"a pruner is an object that extends vtcframe.Pruner, got {describe_type(pruner)}")
    stages = call_component(pruner, pruner.stages, budget)
    if not (isinstance(stages, tuple | list) and all(isinstance(stage, Stage) for stage in stages)):
        raise component_error(pruner, f"has {describe_type(stages)} for its stages: return a tuple of vtcframe.Stage")
    return plan_from_stages(stages, pruner, budget)
