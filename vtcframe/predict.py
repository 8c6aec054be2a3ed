"""The predict loop: questions answered by the untouched model, by a pruned one, or by several to compare."""

import copy
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from lightning import LightningModule
from PIL import Image
from torch import Tensor

from vtcframe.adapter import Arrangement, adapter_for
from vtcframe.backbone import Backbone
from vtcframe.config import UsageError
from vtcframe.core import Budget, Evidence, Layout, Pruned
from vtcframe.data import Sample
from vtcframe.metrics import Row, View
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
        self.viewed = 0.0  # how many of the samples to come get their views: a writer that wants them says so

    def setup(self, stage: str) -> None:
        """Load the backbone. UsageError for what cannot be loaded, has no adapter, or does not know an option."""
        self.model, self.processor = self.backbone.load()
        self.language = self.backbone.language()
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
        batch = [self._understood(sample) for sample in batch]
        loaded = [sample for sample in batch if sample.error is None]
        answers = iter(self._answer(loaded) if loaded else ())
        return [
            replace(row, batch=batch_idx)
            for sample in batch
            for row in (next(answers) if sample.error is None else [_row(sample, error=sample.error)])
        ]

    def _understood(self, sample: Sample) -> Sample:
        """Return it with an error where the model knows some of its words not at all: any answer would mean nothing."""
        if self.language is None or sample.error is not None:
            return sample
        return replace(sample, error=self.language.misunderstood(sample.question))

    def shown(self, sample: Sample) -> list[Image.Image]:
        """Return the pictures that boxes of views lie in: as the processor crops them where it makes one view of each.

        Pictures that become several views are told of as they are.
        """
        made = self.processor.image_processor(
            list(sample.pictures), do_rescale=False, do_normalize=False, return_tensors="pt"
        )["pixel_values"]
        if made.ndim != 4 or len(made) != len(sample.pictures):
            return list(sample.pictures)
        pixels = made.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)
        return [Image.fromarray(picture) for picture in pixels.numpy()]

    def _answer(self, samples: Sequence[Sample]) -> list[list[Row]]:
        """Return the rows of each sample, one a run. Pictures are encoded once for all the runs that prune."""
        inputs = self._inputs(samples)
        start = time.perf_counter()
        arrangement = self.adapter.arrange(inputs, [sample.id for sample in samples])
        layout = arrangement.layout
        pruning = [stage for stage in self.runs if stage and not (stage.budget and stage.budget.covers(layout))]
        evidence = self._encode(inputs, arrangement) if pruning else None
        encoding = self._since(start) / len(samples)
        rows: list[list[Row]] = [[] for _ in samples]
        viewed = min(self.viewed, len(samples))
        self.viewed -= viewed
        for stage in self.runs:
            start, pruned = time.perf_counter(), None
            given, kept = inputs, layout.untouched  # where nothing is to be dropped the model is called as it is
            if evidence is not None and stage in pruning:
                pruned = stage.pruner(evidence, stage.budget)
                given = self.adapter.splice(inputs, evidence, pruned, stage.positions)
                kept = pruned.total
            predictions = self._generate(given)
            seconds = self._since(start) / len(samples)
            structural = self.adapter.prompt(given).visual.sum(1) - kept
            for p, prediction in enumerate(predictions):
                row = _row(
                    samples[p],
                    method="unpruned" if stage is None else str(stage.pruner),
                    budget=None if stage is None else _written(stage.budget),
                    prediction=prediction,
                    visual_tokens=int(kept[p]),
                    visual_tokens_before=int(layout.untouched[p]),
                    structural_tokens=int(structural[p]),
                    seconds=seconds,
                    encode_seconds=0.0 if pruned is None else encoding,  # otherwise generate itself encodes
                    views=None if pruned is None or p >= viewed else _views(layout, pruned, p),
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

    def _since(self, start: float) -> float:
        """Seconds until all that was launched is done."""
        if self.device.type != "cpu":
            torch.accelerator.synchronize(self.device)
        return time.perf_counter() - start


def _content(sample: Sample) -> list[dict[str, str]]:
    return [{"type": "image"} for _ in sample.pictures] + [{"type": "text", "text": sample.question}]


def _written(budget: Budget | None) -> dict[str, Any] | None:
    """Return a budget as one writes it in the configuration."""
    if budget is None:
        return None
    return {k: v for k, v in asdict(budget).items() if v is not None and (k, v) != ("per", "sample")}


def _views(layout: Layout, pruned: Pruned, p: int) -> list[View]:
    """Return what became of a sample's views in `layout`; `pruned` may have joined them."""
    rows = pruned.layout.sample == p
    column = pruned.layout.column.cpu()[rows]
    kept, scores = (x.cpu()[rows][column >= 0].tolist() for x in (pruned.kept, pruned.scores))
    fate = dict(zip(column[column >= 0].tolist(), zip(kept, scores, strict=True), strict=True))
    views = []
    for v in (layout.sample == p).nonzero()[:, 0].tolist():
        height, width = (layout.grid[v].amax(0) + 1).tolist()
        view = View(
            image=int(layout.image[v]),
            frame=int(layout.frame[v]),
            box=layout.box[v].tolist(),
            kept=[[None] * width for _ in range(height)],
            scores=[[None] * width for _ in range(height)],
        )
        for (y, x), at in zip(layout.grid[v].tolist(), layout.column[v].tolist(), strict=True):
            if at >= 0 and y >= 0:  # neither padding nor of no picture
                view["kept"][y][x], score = fate[at]
                view["scores"][y][x] = float(f"{score:.6g}")
        views.append(view)
    return views


def _row(sample: Sample, **outcome: Any) -> Row:
    return Row(sample.id, sample.type, sample.question, sample.answer, **outcome)
