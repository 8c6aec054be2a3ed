"""TODO: vtcframe/core/stages.py."""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
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
            raise TypeError(
                f"the pruner of a stage is an object that extends vtcframe.Pruner, got {describe_type(self.pruner)}"
            )
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
        return check_pruned(self.pruner, call_component(self.pruner, self.pruner, evidence, self.budget), evidence)


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
        later = (need for stage in self.llm for need in stage.pruner.needs if need.site != "llm")
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
        raise TypeError(f"a pruner is an object that extends vtcframe.Pruner, got {describe_type(pruner)}")
    stages = call_component(pruner, pruner.stages, budget)
    if not (isinstance(stages, tuple | list) and all(isinstance(stage, Stage) for stage in stages)):
        raise component_error(pruner, f"has {describe_type(stages)} for its stages: return a tuple of vtcframe.Stage")
    return planned(stages, pruner, budget)
