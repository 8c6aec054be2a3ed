"""The pipeline: a pruner that calls scorers, an ensembler, an allocator, a selector and a merger in this order."""

from dataclasses import KW_ONLY, dataclass
from typing import Literal

import torch
from torch import Tensor

from vtcframe.core.budget import Budget
from vtcframe.core.contracts import (
    call_component,
    check_mask,
    check_pruned,
    check_quotas,
    check_scores,
    check_slots,
    component_error,
    describe_type,
    needs_of,
    provider,
)
from vtcframe.core.evidence import Evidence
from vtcframe.core.layout import Layout
from vtcframe.core.needs import Need
from vtcframe.core.pruned import Pruned
from vtcframe.core.stages import Pruner
from vtcframe.core.verbs import Allocator, Component, Ensembler, Merger, Scorer, Selector
from vtcframe.errors import ComponentError


@dataclass(frozen=True)
class Pipeline(Pruner):
    """A pruner of five kinds of components, applied to each view or to all views of a sample joined."""

    scorers: tuple[Scorer, ...]  # without scorers every score is 0
    ensembler: Ensembler
    allocator: Allocator
    selector: Selector
    merger: Merger | None = None
    _: KW_ONLY
    across: Literal["view", "sample"] = "view"

    def __post_init__(self) -> None:
        if not isinstance(self.scorers, tuple | list):
            raise TypeError(f"scorers are a tuple or list, got {describe_type(self.scorers)}")
        object.__setattr__(self, "scorers", tuple(self.scorers))  # a tuple is hashable; YAML and users give lists
        kinds = *[Scorer] * len(self.scorers), Ensembler, Allocator, Selector, Merger
        for part, kind in zip(self.parts, kinds, strict=False):
            if not isinstance(part, kind):
                name = kind.__name__
                raise TypeError(
                    f"{name.lower()}: an object that extends vtcframe.{name} is needed, got {describe_type(part)}"
                )
        if self.across not in ("view", "sample"):
            raise ValueError(f"across must be 'view' or 'sample', got {self.across!r}")

    @property
    def parts(self) -> tuple[Component, ...]:
        """The components, in the order in which they are called."""
        merger = () if self.merger is None else (self.merger,)
        return *self.scorers, self.ensembler, self.allocator, self.selector, *merger

    @property
    def needs(self) -> tuple[Need, ...]:
        return tuple(dict.fromkeys(need for part in self.parts for need in needs_of(part)))

    @torch.no_grad()
    def __call__(self, evidence: Evidence, budget: Budget | None = None) -> Pruned:
        """Return the remaining tokens.

        ComponentError if a component raises or returns a wrong result. The error about scores that are not finite
        names their samples.
        """
        total = None if budget is None else budget.total(evidence.layout)
        if self.across == "sample":
            evidence = evidence.join_views()
        layout = evidence.layout
        maps = [
            check_scores(scorer, call_component(scorer, scorer, evidence), layout, "[S, V, N]")
            for scorer in self.scorers
        ]
        inputs = maps or [torch.zeros(1, *layout.column.shape, device=layout.column.device, dtype=torch.float32)]
        scores = check_scores(
            self.ensembler, call_component(self.ensembler, self.ensembler, inputs, layout), layout, "[V, N]"
        )
        finite = torch.stack([m.isfinite().all(0) for m in (*maps, scores[None])])  # ranks would hide a NaN of a map
        broken = (~finite & layout.valid).any(2)
        scores = scores.masked_fill(~layout.valid, -torch.inf)
        quota = check_quotas(
            self.allocator, call_component(self.allocator, self.allocator, scores, total, evidence), layout
        )
        slots = torch.zeros_like(quota)
        if self.merger is not None:
            slots = check_slots(self.merger, call_component(self.merger, self.merger.slots, quota, layout), quota)
            if total is None:  # without a budget the merger's tokens are added to the selected ones
                slots = slots.minimum(layout.count - quota)
            else:
                quota = quota - slots
        kept = check_mask(self.selector, call_component(self.selector, self.selector, scores, quota, evidence), layout)
        self._verify(broken, kept, quota, layout)
        if self.merger is None:
            return gather(kept, quota, scores, evidence)
        return check_pruned(
            self.merger, call_component(self.merger, self.merger, kept, slots, scores, evidence), evidence
        )

    def _verify(self, broken: Tensor, kept: Tensor, quota: Tensor, layout: Layout) -> None:
        """Check the scores and the selection with a single device synchronisation.

        `broken` [S + 1, V] marks the views whose scores are not finite, for each scorer and then for the ensembler.
        """
        wrong = (kept.sum(1) != quota.to(kept.device)) | (kept & ~layout.valid).any(1)
        *bad_scores, bad_rows = torch.cat([broken, wrong[None]]).cpu()
        if any(bad.any() for bad in bad_scores):
            samples = layout.sample[torch.stack(bad_scores).any(0)].unique().tolist()
            scorers = [scorer for scorer, bad in zip(self.scorers, bad_scores[:-1], strict=True) if bad.any()]
            names = ", ".join(f"{component}{provider(component)}" for component in scorers or [self.ensembler])
            raise ComponentError(f"scores of samples {samples} are not finite: {names}")
        if bad_rows.any():
            row = int(bad_rows.nonzero()[0])
            raise component_error(
                self.selector,
                f"kept {int(kept[row].sum())} tokens of row {row} where the quota is {int(quota[row])}, or kept "
                "padding: a selector keeps exactly the quota, of valid tokens only",
            )


def gather(kept: Tensor, quota: Tensor, scores: Tensor, evidence: Evidence) -> Pruned:
    """Return the kept tokens unchanged, in raster order; row v of kept [V, N] has quota[v] True values."""
    width = int(quota.max()) if len(quota) else 0
    place = (~kept).long().argsort(dim=1, stable=True)[:, :width]
    empty = torch.arange(width, device=kept.device) >= quota.to(kept.device)[:, None]
    tokens = evidence.tokens.gather(1, place[..., None].expand(-1, -1, evidence.tokens.shape[2]))
    return Pruned(tokens, place.masked_fill(empty, -1), scores, evidence.layout)
