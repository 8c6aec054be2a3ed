"""TODO: vtcframe/methods/_base.py."""

from collections.abc import Sequence
from dataclasses import fields

from vtcframe.components.allocators import Even
from vtcframe.components.ensemblers import Mean
from vtcframe.components.selectors import TopK
from vtcframe.core.budget import Budget
from vtcframe.core.method import Method
from vtcframe.core.pipeline import Pipeline
from vtcframe.core.stages import Pruner, Stage
from vtcframe.core.verbs import Scorer


class ClsScored(Method):
    """A method that ranks by [CLS]; where something stands in for it, its name says so."""

    def __repr__(self) -> str:
        told = {field.name: getattr(self, field.name) for field in fields(self)}  # pyright: ignore[reportArgumentType]
        options = [f"{name}={value!r}" for name, value in told.items() if (name, value) != ("query", "cls")]
        return f"{type(self).__name__}({', '.join(options)})"


class EncoderMethod(Method):
    """A method with a stage in each of `blocks`, which count from 0."""

    blocks: tuple[int, ...]

    def __post_init__(self) -> None:
        blocks = tuple(self.blocks)
        object.__setattr__(self, "blocks", blocks)
        if not blocks or list(blocks) != sorted(set(blocks)) or blocks[0] < 0:
            raise ValueError(f"blocks counts from 0 and ascends, one at least: got {blocks}")

    def __repr__(self) -> str:
        told = {field.name: getattr(self, field.name) for field in fields(self)}  # pyright: ignore[reportArgumentType]
        first, last = self.blocks[0], self.blocks[-1]
        if last - first + 1 == len(self.blocks) > 3:
            told["blocks"] = f"{first}-{last}"
        return f"{type(self).__name__}({', '.join(f'{name}={value}' for name, value in told.items())})"

    def at(self, steps: list[Pruner], budget: Budget | None) -> tuple[Stage, ...]:
        """Return a stage for each block."""
        return tuple(Stage(f"encoder:{k}", step, budget) for k, step in zip(self.blocks, steps, strict=True))

    @property
    def left(self) -> range:
        """How many stages are to come at each block, itself counted."""
        return range(len(self.blocks), 0, -1)


class SingleLlmStage(Method):
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


def ascending(layers: Sequence[int]) -> tuple[int, ...]:
    """Return layers before which stages act, as YAML gives them. ValueError unless they ascend from 1 up."""
    layers = tuple(layers)
    if not layers or list(layers) != sorted(set(layers)) or layers[0] < 1:
        raise ValueError(f"layers counts from 0 and ascends, from 1 up, one at least: got {layers}")
    return layers
