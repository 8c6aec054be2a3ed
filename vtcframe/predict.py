"""The predict loop: questions answered by the untouched model, by a pruned one, or by several to compare."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from lightning import LightningModule
from torch import Tensor

from vtcframe.adapter import Arrangement, adapter_for
from vtcframe.backbone import Backbone
from vtcframe.config import UsageError
from vtcframe.core import Budget, Evidence
from vtcframe.data import Sample
from vtcframe.metrics import Row
from vtcframe.pipeline import Pruner, Stage, only_stage

DEFAULTS = {"do_sample": False, "max_new_tokens": 32}
REFUSED = {
    "max_length": "pruned prompts are shorter, so give max_new_tokens",
    "min_length": "pruned prompts are shorter, so give min_new_tokens",
    "num_return_sequences": "a row holds one answer",
    "return_dict_in_generate": "a row holds an answer, no scores",
}


@dataclass(frozen=True)
class Comparison:
    """Every pruner at every budget, beside the untouched model.

    Args:
        pruners: For example [{name: VtcCls, last: 3}, RandomPruner].
        budgets: For example [{ratio: 0.25}, {tokens: 64}].
    """

    pruners: list[Pruner]
    budgets: list[Budget]

    def runs(self) -> list[Stage | None]:
        """Return what is to be run; None is the untouched model."""
        return [None, *(only_stage(pruner.stages(budget)) for pruner in self.pruners for budget in self.budgets)]


class Predictor(LightningModule):
    """Answers questions with fewer visual tokens; without `stages` and `compare`, with all of them.

    Args:
        backbone: The model.
        stages: Where it is pruned: [{at: projector, pruner: {name: VtcCls, last: 3}, budget: {tokens: 64}}].
        compare: Pruners and budgets to compare with each other and with the untouched model.
        generation: Options of transformers' generate; greedy, max_new_tokens 32, unless they say otherwise.
    """

    def __init__(
        self,
        backbone: Backbone,
        stages: list[Stage] | None = None,
        compare: Comparison | None = None,
        generation: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if stages is not None and compare is not None:
            raise ValueError("give stages or compare, not both: compare puts its pruners at stages of their own")
        for name in REFUSED.keys() & (generation or {}).keys():
            raise ValueError(f"generation cannot have {name}: {REFUSED[name]}")
        self.backbone, self.generation = backbone, DEFAULTS | (generation or {})
        self.runs = compare.runs() if compare is not None else [only_stage(stages) if stages else None]
        self.needs = tuple(dict.fromkeys(need for stage in self.runs if stage for need in stage.pruner.needs))
        self.model: Any = None

    def setup(self, stage: str) -> None:
        """Load the backbone. UsageError for what cannot be loaded, has no adapter, or does not know an option."""
        self.model, self.processor = self.backbone.load()
        self.options = copy.deepcopy(self.model.generation_config)
        try:
            unknown = self.options.update(**self.generation)
            self.adapter = adapter_for(self.model)
        except (ValueError, LookupError) as error:
            raise UsageError(str(error)) from error
        if unknown:
            raise UsageError(f"generation has options that transformers does not know: {', '.join(unknown)}")

    def predict_step(self, batch: list[Sample], batch_idx: int) -> list[Row]:
        """Answer each sample in every run. One that could not be loaded gets a single row, with its error."""
        loaded = [sample for sample in batch if sample.error is None]
        answers = iter(self._answer(loaded) if loaded else ())
        return [
            row
            for sample in batch
            for row in (next(answers) if sample.error is None else [_row(sample, error=sample.error)])
        ]

    def _answer(self, samples: Sequence[Sample]) -> list[list[Row]]:
        """Return the rows of each sample, one a run. Pictures are encoded once for all the runs that prune."""
        inputs = self._inputs(samples)
        arrangement = self.adapter.arrange(inputs, [sample.id for sample in samples])
        layout = arrangement.layout
        pruning = [stage for stage in self.runs if stage and not (stage.budget and stage.budget.covers(layout))]
        evidence = self._encode(inputs, arrangement) if pruning else None
        rows: list[list[Row]] = [[] for _ in samples]
        for stage in self.runs:
            given, kept = inputs, layout.untouched  # where nothing is to be dropped the model is called as it is
            if evidence is not None and stage in pruning:
                pruned = stage.pruner(evidence, stage.budget)
                given = self.adapter.splice(inputs, evidence, pruned, stage.positions)
                kept = pruned.total
            structural = self.adapter.prompt(given).visual.sum(1) - kept
            for p, prediction in enumerate(self._generate(given)):
                row = _row(
                    samples[p],
                    method="unpruned" if stage is None else str(stage.pruner),
                    budget=None if stage is None else _written(stage.budget),
                    prediction=prediction,
                    visual_tokens=int(kept[p]),
                    visual_tokens_before=int(layout.untouched[p]),
                    structural_tokens=int(structural[p]),
                )
                rows[p].append(row)
        return rows

    def _inputs(self, samples: Sequence[Sample]) -> dict[str, Any]:
        """Put every question behind its pictures, in the checkpoint's own chat template."""
        prompts = self.processor.apply_chat_template(
            [[{"role": "user", "content": _content(sample)}] for sample in samples], add_generation_prompt=True
        )
        start = self.processor.tokenizer.bos_token
        inputs = self.processor(
            images=[list(sample.pictures) for sample in samples],
            text=prompts,
            add_special_tokens=start is None or not prompts[0].startswith(start),  # some templates write it themselves
            padding=True,
            return_tensors="pt",
        )
        return dict(inputs.to(self.device, self.model.dtype))

    def _encode(self, inputs: Mapping[str, Any], arrangement: Arrangement) -> Evidence:
        try:
            return self.adapter.encode(inputs, arrangement, self.needs)
        except ValueError as error:
            raise UsageError(f"{self.backbone.path} cannot show what the pruners look at: {error}") from error

    def _generate(self, inputs: Mapping[str, Any]) -> list[str]:
        out: Tensor = self.model.generate(**inputs, generation_config=self.options)
        answers = self.processor.batch_decode(out[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        return [answer.strip() for answer in answers]


def _content(sample: Sample) -> list[dict[str, str]]:
    return [{"type": "image"} for _ in sample.pictures] + [{"type": "text", "text": sample.question}]


def _written(budget: Budget | None) -> dict[str, Any] | None:
    """Return a budget as one writes it in the configuration."""
    if budget is None:
        return None
    return {k: v for k, v in asdict(budget).items() if v is not None and (k, v) != ("per", "sample")}


def _row(sample: Sample, **outcome: Any) -> Row:
    return Row(sample.id, sample.type, sample.question, sample.answer, **outcome)
