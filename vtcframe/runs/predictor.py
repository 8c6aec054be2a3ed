"""The predict loop: questions answered by the untouched model, by a pruned one, or by several to compare."""

import copy
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from typing import Any

import torch
from lightning import LightningModule
from PIL import Image
from torch import Tensor

from vtcframe.adapters.arrangement import Arrangement
from vtcframe.adapters.base import adapter_for
from vtcframe.core.budget import Budget
from vtcframe.core.contracts import RESOURCE_ERRORS
from vtcframe.core.evidence import Evidence
from vtcframe.core.layout import Layout
from vtcframe.core.pruned import Pruned
from vtcframe.core.stages import Plan, Pruner, Stage, plan_for, planned
from vtcframe.data.datamodule import Questions
from vtcframe.data.processor import processor_inputs, visible_region
from vtcframe.data.results import Prediction, ViewRecord, format_budget
from vtcframe.data.sample import Sample
from vtcframe.drawing import Picture
from vtcframe.errors import ComponentError, UsageError
from vtcframe.inference.checkpoint import Backbone
from vtcframe.inference.kv_cache import kv_bytes
from vtcframe.inference.session import PrunedGeneration, check_options, check_sites, encode, prune

DEFAULTS = {"do_sample": False, "max_new_tokens": 32}
HALF = {"bf16-true": "bfloat16", "16-true": "float16"}  # the trainer's precision -> the type that weights are loaded in
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

    def runs(self) -> list[Plan | None]:
        """Return what is to be run; None is the untouched model."""
        return [None, *(plan_for(pruner, budget) for pruner in self.pruners for budget in self.budgets)]


@dataclass(frozen=True)
class PredictBatch:
    """Samples that are answered together, and what runs share of them."""

    samples: Sequence[Sample]
    inputs: Mapping[str, Any]
    arrangement: Arrangement
    pruning: Sequence[Plan]  # the runs that drop something
    arranging: float  # seconds a sample
    # by the stages inside the encoder: evidence, what they left, seconds a sample
    encoded: dict[tuple[Stage, ...], tuple[Evidence, Pruned | None, float]] = field(default_factory=dict)


class _RefusedError(ValueError):
    """A batch that cannot be asked, because of one sample of it or because of the processor."""


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
        self.runs = compare.runs() if compare is not None else [planned(stages) if stages else None]
        self.model: Any = None
        self.exact: dict[str, Tensor] = {}
        self.viewed: Callable[[Sample], bool] = lambda sample: False  # a writer says which samples get their views
        self._failing: set[str] = set()  # methods of which it was told that they fail
        self._lost: list[Plan | None] = []  # runs that failed on every sample of a batch

    def setup(self, stage: str) -> None:
        """Load the backbone. UsageError for what cannot be loaded, has no adapter, or does not know an option."""
        data = getattr(self._trainer, "datamodule", None)
        if isinstance(data, Questions) and not data.asked:
            return  # every answer is there
        precision = HALF.get(getattr(self._trainer, "precision", ""))
        self.model, self.processor = (replace(self.backbone, dtype=precision) if precision else self.backbone).load()
        self.exact = {name: own for name, own in self.model.named_buffers() if own.dtype == torch.float32}
        self.language = self.backbone.language()
        self.options = copy.deepcopy(self.model.generation_config)
        try:
            unknown = self.options.update(**self.generation)
            self.adapter = adapter_for(self.model, self.processor)
            for plan in self.runs:
                if plan is not None:
                    check_sites(self.adapter, plan)
                    if plan.llm:
                        check_options({}, self.options)
        except (ValueError, LookupError) as error:
            raise UsageError(str(error)) from error
        if unknown:
            raise UsageError(f"generation has options that transformers does not know: {', '.join(unknown)}")

    def on_predict_start(self) -> None:
        """Undo what Lightning's half precisions do to rotary frequencies, which models keep in float32 on purpose."""
        for name, own in self.exact.items():
            module, _, leaf = name.rpartition(".")
            setattr(self.model.get_submodule(module), leaf, own.to(self.device))

    def facts(self) -> dict[str, Any]:
        """Return what its answers depend on, by the keys of the configuration."""
        runs = ["unpruned" if plan is None else ", ".join(map(str, plan.stages)) for plan in self.runs]
        return {
            "model.backbone": {**asdict(self.backbone), "revision": self.backbone.revision()},
            "model.runs": runs,
            "model.generation": self.generation,
        } | {f"version of {name}": version(name) for name in ("vtcframe", "torch", "transformers")}

    def predict_step(self, batch: Iterable[Sample], batch_idx: int) -> list[Prediction]:
        """Answer each sample in every run. One that could not be loaded gets a single row, with its error.

        Where a component fails, the rows of its run have the error, and the other runs go on.
        """
        batch = [self._understood(sample) for sample in batch]
        loaded = [sample for sample in batch if sample.error is None]
        answers = iter(self._answered(loaded) if loaded else ())
        return [
            replace(row, batch=batch_idx)
            for sample in batch
            for row in (next(answers) if sample.error is None else [make_row(sample, error=sample.error)])
        ]

    def on_predict_batch_end(self, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Tell once of each method that fails, when it does so first: a run may take all night."""
        for row in outputs:
            if row.error is not None and row.method is not None and row.method not in self._failing:
                self._failing.add(row.method)
                if self.trainer.is_global_zero:
                    print(f"vtcframe: warning: {row.error}", file=sys.stderr)

    def _understood(self, sample: Sample) -> Sample:
        """Return it with an error where the model knows some of its words not at all: any answer would mean nothing."""
        if self.language is None or sample.error is not None:
            return sample
        return replace(sample, error=self.language.misunderstood(sample.question))

    def shown(self, sample: Sample) -> list[Picture]:
        """Return the pictures that boxes of views lie in, as the processor crops them, then its videos' frames."""
        alone = len(sample.pictures) == 1
        pictures: list[Picture] = [self._crop(picture, alone=alone) for picture in sample.pictures]
        return pictures + [[self._crop(frame, True) for frame in frames[:: self.merged]] for frames in sample.videos]

    @property
    def merged(self) -> int:
        """How many frames of a video become one view: Qwen's towers merge two."""
        return getattr(getattr(self.processor, "video_processor", None), "temporal_patch_size", 1)

    def _crop(self, picture: Image.Image, video: bool = False, alone: bool = True) -> Image.Image:
        top, left, bottom, right = visible_region(self.processor, (picture.height, picture.width), video, alone)
        x, y = round(left * picture.width), round(top * picture.height)
        width, height = round((right - left) * picture.width), round((bottom - top) * picture.height)
        return picture.crop((x, y, x + max(width, 1), y + max(height, 1)))

    def _answered(self, samples: Sequence[Sample]) -> list[list[Prediction]]:
        """Answer a batch. A sample that processor or adapter refuses gets a row with the error, the others answers."""
        try:
            return self._answer(samples)
        except _RefusedError as error:
            if len(samples) > 1:
                return [rows for sample in samples for rows in self._answered([sample])]
            return [[make_row(samples[0], error=f"{self.backbone.path} cannot be asked this: {error}")]]

    def _answer(self, samples: Sequence[Sample], runs: Sequence[Plan | None] | None = None) -> list[list[Prediction]]:
        """Return the rows of each sample, one a run; all runs unless they are given.

        Pictures are encoded once for all the runs that prune at the same stages inside the encoder, or at none. A run
        that fails on a batch is tried on each of its samples, so that one of them does not fail the others; one that
        has failed on all of them is not again.
        """
        runs = self.runs if runs is None else runs
        inputs = self._inputs(samples)
        start = time.perf_counter()
        arrangement = self._arrange(inputs, samples)
        pruning = [plan for plan in runs if plan and not plan.covers(arrangement.layout)]
        batch = PredictBatch(samples, inputs, arrangement, pruning, self._since(start) / len(samples))
        rows: list[list[Prediction]] = [[] for _ in samples]
        for plan in runs:
            try:
                answers = self._run(plan, batch)
            except ComponentError as error:
                if len(samples) > 1 and plan not in self._lost:
                    answers = [self._answer([sample], [plan])[0][0] for sample in samples]
                    if all(row.error is not None for row in answers):
                        self._lost.append(plan)
                else:
                    answers = [
                        make_row(sample, **run_fields(plan), error=self._failed(plan, error)) for sample in samples
                    ]
            for own, row in zip(rows, answers, strict=True):
                own.append(row)
        return rows

    def _run(self, plan: Plan | None, batch: "PredictBatch") -> list[Prediction]:
        """Return the row of each sample in one run. ComponentError where one of its components fails."""
        inputs, layout, count = batch.inputs, batch.arrangement.layout, len(batch.samples)
        passage, encoding = None, 0.0  # where nothing is to be dropped the model is called as it is, and encodes
        start = time.perf_counter()
        if plan is not None and plan in batch.pruning:
            evidence, left, encoding = self._encoded(plan, batch)
            start = time.perf_counter()
            passage = self._passage(plan, inputs, evidence, left)
        predictions = self._generate(inputs, plan, passage)
        seconds = self._since(start) / count
        told = self._told(inputs, layout, passage)
        return [
            make_row(
                sample,
                **run_fields(plan),
                prediction=predictions[p],
                visual_tokens_before=int(layout.untouched[p]),
                seconds=seconds,
                encode_seconds=encoding,
                views=view_records(layout, passage.pruned, p) if passage and self.viewed(sample) else None,
                **{name: values[p].tolist() for name, values in told.items()},
            )
            for p, sample in enumerate(batch.samples)
        ]

    def _encoded(self, plan: Plan, batch: "PredictBatch") -> tuple[Evidence, Pruned | None, float]:
        """Encode, unless a run with the same stages inside the encoder has done so."""
        if plan.encoder not in batch.encoded:
            start = time.perf_counter()
            alike = [other for other in batch.pruning if other.encoder == plan.encoder]
            evidence, left = self._encode(batch.inputs, batch.arrangement, alike)
            seconds = batch.arranging + self._since(start) / len(batch.samples)
            batch.encoded[plan.encoder] = evidence, left, seconds
        return batch.encoded[plan.encoder]

    def _failed(self, plan: Plan | None, error: Exception) -> str:
        budget = None if plan is None else budget_fields(plan.budget)
        at = "" if budget is None else f" at {format_budget(budget)}"
        return f"{plan}{at} fails on {self.backbone.path}: {error}"

    def _inputs(self, samples: Sequence[Sample]) -> dict[str, Any]:
        """Return what generate takes, on the model's device."""
        try:
            made = processor_inputs(self.processor, samples)
        except Exception as error:  # processors raise whatever a picture makes them stumble over
            reason = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
            raise _RefusedError(f"its processor refuses: {reason}") from error
        return dict(made.to(self.device, self.model.dtype))

    def _arrange(self, inputs: Mapping[str, Any], samples: Sequence[Sample]) -> Arrangement:
        try:
            arrangement = self.adapter.arrange(inputs, [sample.id for sample in samples])
        except ValueError as error:
            raise _RefusedError(
                f"{error}. Either its processor belongs to another model, or its chat template writes no placeholders"
            ) from error
        return replace(arrangement, questions=tuple(sample.question for sample in samples))

    def _encode(
        self, inputs: Mapping[str, Any], arrangement: Arrangement, plans: Sequence[Plan]
    ) -> tuple[Evidence, Pruned | None]:
        """Encode for plans that have the same stages inside the encoder."""
        needs = tuple(dict.fromkeys(need for plan in plans for need in plan.needs))
        try:
            return encode(self.adapter, inputs, arrangement, plans[0], needs)
        except ComponentError:
            raise
        except ValueError as error:
            raise UsageError(f"{self.backbone.path} cannot show what the pruners look at: {error}") from error

    def _passage(
        self, plan: Plan, inputs: Mapping[str, Any], evidence: Evidence, left: Pruned | None
    ) -> PrunedGeneration:
        try:
            return PrunedGeneration(self.adapter, inputs, plan, evidence, *prune(plan, evidence, left))
        except (ComponentError, *RESOURCE_ERRORS):
            raise
        except ValueError as error:
            raise UsageError(f"{plan} cannot prune {self.backbone.path}: {error}") from error
        except Exception as error:  # places that are none, for example
            raise ComponentError(f"what it left cannot be read: {type(error).__name__}: {error}") from error

    def _generate(self, inputs: Mapping[str, Any], plan: Plan | None, passage: PrunedGeneration | None) -> list[str]:
        given = inputs if passage is None else passage.generate_kwargs
        try:
            with passage or nullcontext():
                out: Tensor = self.model.generate(**given, generation_config=self.options)
        except (ComponentError, *RESOURCE_ERRORS):
            raise
        except (ValueError, IndexError) as error:  # IndexError: a token that the model has no embedding of
            inside = f" under {plan}" if plan is not None and plan.llm else ""
            raise UsageError(
                f"{self.backbone.path} cannot answer{inside}: {error}. Look at the options of generate, and whether "
                "the processor is the model's own"
            ) from error
        except Exception as error:
            if passage is None:
                raise
            raise ComponentError(f"{type(error).__name__}: {error}") from error
        answers = self.processor.batch_decode(out[:, given["input_ids"].shape[1] :], skip_special_tokens=True)
        return [answer.strip() for answer in answers]

    def _told(self, inputs: Mapping[str, Any], layout: Layout, passage: PrunedGeneration | None) -> dict[str, Tensor]:
        """Return [P, ...] of what the language model read, by the names of a row's fields."""
        prompt, depth, decoder = self.adapter.prompt(inputs), len(self.adapter.llm_layers()), self.adapter.decoder()
        if passage is not None:
            read = passage.stages
            kept, structural, layers, held = passage.pruned.total, read.structural, read.tokens_per_layer, read.held
        else:
            kept, structural = layout.untouched, prompt.visual.sum(1) - layout.untouched
            layers, held = (x[:, None].expand(-1, depth) for x in (kept, prompt.real.sum(1)))
        return {
            "visual_tokens": kept,
            "structural_tokens": structural,
            "layer_tokens": layers,
            "kv_bytes": kv_bytes(decoder, held),
        }

    def _since(self, start: float) -> float:
        """Seconds until all that was launched is done."""
        if self.device.type != "cpu":
            torch.accelerator.synchronize(self.device)
        return time.perf_counter() - start


def run_fields(plan: Plan | None) -> dict[str, Any]:
    """Return what a row says of its run."""
    if plan is None:
        return {"method": "unpruned", "budget": None}
    return {"method": str(plan), "budget": budget_fields(plan.budget)}


def budget_fields(budget: Budget | None) -> dict[str, Any] | None:
    """Return a budget as one writes it in the configuration."""
    if budget is None:
        return None
    return {k: v for k, v in asdict(budget).items() if v is not None and (k, v) != ("per", "sample")}


def view_records(layout: Layout, pruned: Pruned, p: int) -> list[ViewRecord]:
    """Return what became of a sample's views in `layout`; `pruned` may have joined them."""
    rows = pruned.layout.sample == p
    column = pruned.layout.column.cpu()[rows]
    kept, scores = (x.cpu()[rows][column >= 0].tolist() for x in (pruned.kept, pruned.scores))
    fate = dict(zip(column[column >= 0].tolist(), zip(kept, scores, strict=True), strict=True))
    views = []
    for v in (layout.sample == p).nonzero()[:, 0].tolist():
        height, width = (layout.grid[v].amax(0) + 1).tolist()
        view = ViewRecord(
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


def make_row(sample: Sample, **outcome: Any) -> Prediction:
    images = [str(image) for image in (*sample.images, *(clip[0] for clip in sample.clips if clip))]
    return Prediction(
        sample.id, sample.type, sample.question, sample.answer, images=images, meta=sample.meta, **outcome
    )
