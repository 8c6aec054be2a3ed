"""The way of a batch through a plan: stages in the encoder, at the projector, and inside the language model."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from vtcframe.core import Evidence, Pruned
from vtcframe.llm_stage import LlmStages, check_plan
from vtcframe.needs import Need
from vtcframe.pipeline import Plan
from vtcframe.remains import composed, everything


def check_open(adapter: Any, plan: Plan) -> None:
    """ValueError where a plan has stages that an adapter's encoder or language model has no place for."""
    reason = getattr(adapter, "closed", "it has no encoder whose blocks are known")
    if plan.encoder and reason:
        raise ValueError(
            f"{type(adapter).__name__} cannot be pruned at {plan.encoder[0].at}: {reason}. Use stages at 'projector'"
        )
    check_plan(adapter, plan)


def encode(
    adapter: Any, inputs: Mapping[str, Any], arrangement: Any, plan: Plan, needs: Iterable[Need]
) -> tuple[Evidence, Pruned | None]:
    """Encode with a plan's stages inside the encoder: evidence of what is left, and the same by the first layout."""
    if plan.encoder:
        return adapter.within(inputs, arrangement, needs, plan.encoder)
    return adapter.encode(inputs, arrangement, needs), None


def prune(plan: Plan, evidence: Evidence, left: Pruned | None) -> tuple[Pruned, Evidence]:
    """Act before the language model on what `encode` returned.

    Return what it is to read, by the first layout, and what a stage inside it still knows of that.
    """
    if plan.projector is None:
        return left or everything(evidence), evidence
    pruned = plan.projector.act(evidence)
    if not plan.llm:
        evidence = replace(evidence, found={}, deepstack=None)  # nobody will ask
    return pruned if left is None else composed(left, pruned), evidence.after(pruned)


class Passage:
    """A batch in front of the language model: `given` is what `generate` takes, to be called inside a `with`.

    `read` and `known` are what `prune` made of `evidence`. Make a new one for every call: `generate` changes what it
    is given.
    """

    def __init__(
        self, adapter: Any, inputs: Mapping[str, Any], plan: Plan, evidence: Evidence, read: Pruned, known: Evidence
    ) -> None:
        self._read = read
        self.given, column = adapter.spliced(inputs, evidence, read, plan.positions)
        self.stages = LlmStages(adapter.decoder(), known, column, plan.llm, (), adapter.blocks(self.given))

    def __enter__(self) -> "Passage":
        self.stages.__enter__()
        return self

    def __exit__(self, *exception: Any) -> None:
        self.stages.__exit__(*exception)

    @property
    def pruned(self) -> Pruned:
        """What is left in the end, by the layout that the encoder saw; behind the `with`."""
        return composed(self._read, self.stages.pruned) if self.stages.stages else self._read
