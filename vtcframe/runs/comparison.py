"""Pruners and budgets that a run compares."""

from dataclasses import dataclass

from vtcframe.core.budget import Budget
from vtcframe.core.stages import Plan, Pruner, plan_for


@dataclass(frozen=True)
class Comparison:
    """Every pruner at every budget, and the untouched model.

    Args:
        pruners: For example [{name: VtcCls, last: 3}, RandomPruner].
        budgets: For example [{ratio: 0.25}, {tokens: 64}].
    """

    pruners: list[Pruner]
    budgets: list[Budget]

    def plans(self) -> list[Plan | None]:
        """Return the plan of every run; None is the untouched model."""
        return [None, *(plan_for(pruner, budget) for pruner in self.pruners for budget in self.budgets)]
