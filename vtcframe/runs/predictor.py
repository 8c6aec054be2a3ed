"""The predict loop: questions answered by the untouched model, by a pruned one, or by several to compare."""

import copy
import logging
from collections.abc import Iterable, Mapping, Sequence
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
from vtcframe.core.component_data import UNPRUNED, budget_data, stage_data
from vtcframe.core.contracts import RESOURCE_ERRORS
from vtcframe.core.stages import Plan, Pruner, Stage, plan_for, plan_from_stages
from vtcframe.data.datamodule import Questions
from vtcframe.data.processor import processor_inputs, visible_region
from vtcframe.data.progress import RunProgress
from vtcframe.data.results import Prediction, format_budget
from vtcframe.data.sample import Sample
from vtcframe.drawing import Picture
from vtcframe.errors import ComponentError, UsageError
from vtcframe.inference.checkpoint import Backbone
from vtcframe.inference.checks import check_options
from vtcframe.inference.outcome import Outcome
from vtcframe.inference.session import EncodedBatch, PrunedGeneration, Session
from vtcframe.inference.stopwatch import Stopwatch
from vtcframe.runs.rows import make_row, run_fields, view_records

LOGGER = logging.getLogger(__name__)
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
    pruning: Sequence[Session]  # the runs that drop something
    arrange_seconds: float  # a sample
    # encodings that runs share, and seconds a sample, by the stages inside the encoder
    encoded: dict[tuple[Stage, ...], tuple[EncodedBatch, float]] = field(default_factory=dict)


class _RefusedError(ValueError):
    """A batch that cannot be asked, because of one sample of it or because of the processor."""


class Predictor(LightningModule):
    """Answers questions with fewer visual tokens; without `stages` and `compare`, with all of them.

    Args:
        backbone: The model.
        stages: Where it is pruned: [{at: projector, pruner: {name: VtcCls, last: 3}, budget: {tokens: 64}}].
        compare: Pruners and budgets to compare with each other and with the untouched model.
        generation: Options of transformers' generate; greedy, max_new_tokens 32, unless they say otherwise.
        progress: Which samples are pending and which get view records, as the run's writer says; without one every
            sample is pending and none gets view records.
    """

    def __init__(
        self,
        backbone: Backbone,
        stages: list[Stage] | None = None,
        compare: Comparison | None = None,
        generation: dict[str, Any] | None = None,
        progress: RunProgress | None = None,
    ) -> None:
        super().__init__()
        if stages is not None and compare is not None:
            raise ValueError("give stages or compare, not both: compare puts its pruners at stages of their own")
        for name in REFUSED.keys() & (generation or {}).keys():
            raise ValueError(f"generation cannot have {name}: {REFUSED[name]}")
        self.backbone, self.generation = backbone, DEFAULTS | (generation or {})
        self.runs = compare.runs() if compare is not None else [plan_from_stages(stages) if stages else None]
        self.model: Any = None
        self.exact: dict[str, Tensor] = {}
        self.progress = RunProgress.opened() if progress is None else progress
        self._loaded: tuple[Any, Any] | None = None  # model and processor, where the caller has loaded them
        self._failing: set[str] = set()  # methods of which it was told that they fail
        self._lost: list[Session] = []  # runs that failed on every sample of a batch

    @classmethod
    def with_model(
        cls,
        model: Any,
        processor: Any,
        plans: Sequence[Plan | None],
        *,
        backbone: Backbone,
        generation: dict[str, Any] | None = None,
        views: bool = False,
    ) -> "Predictor":
        """Return a predictor that is set up with a loaded model; None among the plans is the untouched model.

        `backbone` is where the model was loaded from, for its vocabulary and for error messages. With `views` every
        row of a pruned sample gets view records.
        """
        predictor = cls(backbone, generation=generation, progress=RunProgress.opened(views=views))
        predictor.runs, predictor._loaded = list(plans), (model, processor)
        predictor.setup("predict")
        return predictor

    def setup(self, stage: str) -> None:
        """Load the backbone. UsageError for what cannot be loaded, has no adapter, or does not know an option."""
        data = getattr(self._trainer, "datamodule", None)
        if isinstance(data, Questions) and not self.progress.pending(data.samples):
            return  # every answer is there
        precision = HALF.get(getattr(self._trainer, "precision", ""))
        backbone = replace(self.backbone, dtype=precision) if precision else self.backbone
        self.model, self.processor = self._loaded or backbone.load()
        self.exact = {name: own for name, own in self.model.named_buffers() if own.dtype == torch.float32}
        self.language = self.backbone.language()
        self.options = copy.deepcopy(self.model.generation_config)
        try:
            unknown = self.options.update(**self.generation)
            self.adapter = adapter_for(self.model, self.processor)
            self.sessions = [Session(self.adapter, plan) for plan in self.runs]
            if any(plan is not None and plan.llm for plan in self.runs):
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
        runs = [
            UNPRUNED if plan is None else {"stages": [stage_data(stage) for stage in plan.stages]} for plan in self.runs
        ]
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
            if row.error is not None and row.label is not None and row.label not in self._failing:
                self._failing.add(row.label)
                if self.trainer.is_global_zero:
                    LOGGER.warning("%s", row.error)

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

    def _answer(self, samples: Sequence[Sample], sessions: Sequence[Session] | None = None) -> list[list[Prediction]]:
        """Return the rows of each sample, one a run; all runs unless they are given.

        Pictures are encoded once for all the runs that prune at the same stages inside the encoder, or at none. A run
        that fails on a batch is tried on each of its samples, so that one of them does not fail the others; one that
        has failed on all of them is not again.
        """
        sessions = self.sessions if sessions is None else sessions
        inputs = self._inputs(samples)
        meter = self.sessions[0].stopwatch(inputs)
        arrangement = self._arrange(inputs, samples)
        meter.lap("arrange")
        pruning = [session for session in sessions if session.prunes(arrangement)]
        batch = PredictBatch(samples, inputs, arrangement, pruning, sum(meter.seconds.values()) / len(samples))
        rows: list[list[Prediction]] = [[] for _ in samples]
        for session in sessions:
            try:
                answers = self._run(session, batch)
            except ComponentError as error:
                if len(samples) > 1 and session not in self._lost:
                    answers = [self._answer([sample], [session])[0][0] for sample in samples]
                    if all(row.error is not None for row in answers):
                        self._lost.append(session)
                else:
                    answers = [
                        make_row(sample, **run_fields(session.plan), error=self._failed(session.plan, error))
                        for sample in samples
                    ]
            for own, row in zip(rows, answers, strict=True):
                own.append(row)
        return rows

    def _run(self, session: Session, batch: "PredictBatch") -> list[Prediction]:
        """Return the row of each sample in one run. ComponentError where one of its components fails."""
        inputs, layout, count = batch.inputs, batch.arrangement.layout, len(batch.samples)
        encoded, encode_seconds = None, 0.0  # where nothing is dropped the untouched model encodes within generate
        if session in batch.pruning:
            encoded, encode_seconds = self._encoded(session, batch)
        meter = session.stopwatch(inputs)
        prepared = None if encoded is None else self._prepare(session, batch, encoded, meter)
        outcome = self._generate(session, batch, prepared, meter)
        return [
            make_row(
                sample,
                **run_fields(session.plan),
                prediction=outcome.output[p],
                visual_tokens_before=int(outcome.tokens_before[p]),
                visual_tokens=int(outcome.tokens_after[p]),
                structural_tokens=int(outcome.structural_after[p]),
                layer_tokens=outcome.tokens_per_layer[p].tolist(),
                kv_bytes=int(outcome.kv_bytes[p]),
                seconds=sum(outcome.seconds.values()) / count,
                encode_seconds=encode_seconds,
                views=view_records(layout, outcome.pruned, p)
                if outcome.pruned and self.progress.needs_views(sample)
                else None,
            )
            for p, sample in enumerate(batch.samples)
        ]

    def _encoded(self, session: Session, batch: "PredictBatch") -> tuple[EncodedBatch, float]:
        """Encode, unless a run with the same stages inside the encoder has done so; return seconds a sample, too."""
        assert session.plan is not None
        stages = session.plan.encoder
        if stages not in batch.encoded:
            meter = session.stopwatch(batch.inputs)
            plans = [other.plan for other in batch.pruning if other.plan is not None and other.plan.encoder == stages]
            needs = tuple(dict.fromkeys(need for plan in plans for need in plan.needs))
            try:
                encoded = session.encode(batch.inputs, batch.arrangement, needs)
            except ComponentError:
                raise
            except ValueError as error:
                raise UsageError(f"{self.backbone.path} cannot show what the pruners look at: {error}") from error
            meter.lap("encode")
            seconds = batch.arrange_seconds + sum(meter.seconds.values()) / len(batch.samples)
            batch.encoded[stages] = encoded, seconds
        return batch.encoded[stages]

    def _failed(self, plan: Plan | None, error: Exception) -> str:
        budget = None if plan is None else budget_data(plan.budget)
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
        ids, questions = [sample.id for sample in samples], [sample.question for sample in samples]
        try:
            return self.sessions[0].arrange(inputs, ids, questions)
        except ValueError as error:
            raise _RefusedError(
                f"{error}. Either its processor belongs to another model, or its chat template writes no placeholders"
            ) from error

    def _prepare(
        self, session: Session, batch: "PredictBatch", encoded: EncodedBatch, meter: Stopwatch
    ) -> PrunedGeneration:
        try:
            return session.prepare(batch.inputs, batch.arrangement, encoded, meter)
        except (ComponentError, *RESOURCE_ERRORS):
            raise
        except ValueError as error:
            raise UsageError(f"{session.plan} cannot prune {self.backbone.path}: {error}") from error
        except Exception as error:  # places outside the evidence, for example
            raise ComponentError(f"what it left cannot be read: {type(error).__name__}: {error}") from error

    def _generate(
        self, session: Session, batch: "PredictBatch", prepared: PrunedGeneration | None, meter: Stopwatch
    ) -> Outcome:
        """Return the outcome of a run; its output are the answers as text."""

        def answer(arguments: dict[str, Any]) -> list[str]:
            out: Tensor = self.model.generate(**arguments, generation_config=self.options)
            new = out[:, arguments["input_ids"].shape[1] :]
            return [text.strip() for text in self.processor.batch_decode(new, skip_special_tokens=True)]

        try:
            return session.generate(batch.inputs, answer, batch.arrangement, prepared, meter)
        except (ComponentError, *RESOURCE_ERRORS):
            raise
        except (ValueError, IndexError) as error:  # IndexError: a token that the model has no embedding of
            inside = f" under {session.plan}" if session.plan is not None and session.plan.llm else ""
            raise UsageError(
                f"{self.backbone.path} cannot answer{inside}: {error}. Look at the options of generate, and whether "
                "the processor is the model's own"
            ) from error
        except Exception as error:
            if prepared is None:
                raise
            raise ComponentError(f"{type(error).__name__}: {error}") from error
