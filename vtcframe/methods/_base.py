"""Base classes of the methods: ranking by [CLS], stages in the encoder, one stage in the language model."""

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from vtcframe.components.allocators import Even
from vtcframe.components.ensemblers import Mean
from vtcframe.components.selectors import TopK
from vtcframe.core.budget import Budget
from vtcframe.core.method import Method
from vtcframe.core.pipeline import Pipeline
from vtcframe.core.stages import Pruner, Stage
from vtcframe.core.verbs import Scorer


def _option_values(method: Any) -> dict[str, Any]:
    """Return the options of a method, which is a dataclass, by name."""
    return {field.name: getattr(method, field.name) for field in fields(method)}


class ClsScored(Method):
    """A method that ranks tokens by [CLS] attention; its repr names `query` only where a proxy replaces [CLS]."""

    def __repr__(self) -> str:
        values = _option_values(self)
        options = [f"{name}={value!r}" for name, value in values.items() if (name, value) != ("query", "cls")]
        return f"{type(self).__name__}({', '.join(options)})"


class EncoderMethod(Method):
    """A method with one stage in each of the encoder blocks `blocks`, which are numbered from 0."""

    blocks: tuple[int, ...]

    def __post_init__(self) -> None:
        blocks = tuple(self.blocks)
        object.__setattr__(self, "blocks", blocks)
        if not blocks or list(blocks) != sorted(set(blocks)) or blocks[0] < 0:
            raise ValueError(f"blocks are numbered from 0 and must ascend: give at least one, got {blocks}")

    def __repr__(self) -> str:
        values = _option_values(self)
        first, last = self.blocks[0], self.blocks[-1]
        if last - first + 1 == len(self.blocks) > 3:
            values["blocks"] = f"{first}-{last}"
        return f"{type(self).__name__}({', '.join(f'{name}={value}' for name, value in values.items())})"

    def encoder_stages(self, steps: list[Pruner], budget: Budget | None) -> tuple[Stage, ...]:
        """Return one stage for each block, with its pruner from `steps`."""
        return tuple(Stage(f"encoder:{k}", step, budget) for k, step in zip(self.blocks, steps, strict=True))

    @property
    def remaining_stages(self) -> range:
        """For each block, the number of stages from it to the last one, itself included."""
        return range(len(self.blocks), 0, -1)


class SingleLlmStage(Method):
    """A method with a budget and one stage, before layer `layer` of the language model."""

    layer: int

    def __post_init__(self) -> None:
        if self.layer < 1:
            raise ValueError(
                f"layer is numbered from 0 and at least one layer must run before the stage: give 1 or more, "
                f"got {self.layer}"
            )

    def rank_by(self, scorer: Scorer) -> Pipeline:
        """Return the pruner that keeps the tokens with the highest scores in each sample."""
        return Pipeline((scorer,), Mean(), Even(), TopK(), across="sample")

    def stages(self, budget: Budget | None) -> tuple[Stage, ...]:
        if budget is None:
            raise ValueError(f"{self} ranks tokens and needs to know how many to keep: give tokens or ratio")
        return (Stage(f"llm:{self.layer}", self, budget),)


def check_layers(layers: Sequence[int]) -> tuple[int, ...]:
    """Return the layers before which stages act as a tuple (YAML gives lists).

    ValueError unless there is at least one layer, the layers ascend, and the first is 1 or higher.
    """
    layers = tuple(layers)
    if not layers or list(layers) != sorted(set(layers)) or layers[0] < 1:
        raise ValueError(
            f"layers are numbered from 0 and must ascend from 1 or higher: give at least one, got {layers}"
        )
    return layers
