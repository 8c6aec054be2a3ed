"""The predict loop: the untouched model, a pruned one, or several plans to compare answer questions."""

import copy
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from typing import Any

import torch
from lightning import LightningModule
from torch import Tensor

from vtcframe.adapters.arrangement import Arrangement
from vtcframe.adapters.base import adapter_for
from vtcframe.core.contracts import RESOURCE_ERRORS
from vtcframe.core.serialization import UNPRUNED, budget_data, stage_data
from vtcframe.core.stages import Plan, Stage, plan_from_stages
from vtcframe.data.datamodule import Questions
from vtcframe.data.processor import processor_inputs
from vtcframe.data.progress import RunProgress
from vtcframe.data.results import Prediction, format_budget
from vtcframe.data.sample import Sample
from vtcframe.errors import ComponentError, UsageError
from vtcframe.inference.checkpoint import Backbone
from vtcframe.inference.checks import check_options
from vtcframe.inference.outcome import Outcome
from vtcframe.inference.session import EncodedBatch, PrunedGeneration, Session
from vtcframe.inference.stopwatch import Stopwatch
from vtcframe.runs.comparison import Comparison
from vtcframe.runs.rows import make_row, run_fields, view_records

LOGGER = logging.getLogger(__name__)
DEFAULTS = {"do_sample": False, "max_new_tokens": 32}
HALF = {"bf16-true": "bfloat16", "16-true": "float16"}  # precision of the trainer -> data type of the weights
REFUSED = {
    "max_length": "pruned prompts are shorter, so give max_new_tokens",
    "min_length": "pruned prompts are shorter, so give min_new_tokens",
    "num_return_sequences": "a row holds one answer",
    "return_dict_in_generate": "a row holds an answer, no scores",
}


@dataclass(frozen=True)
class PredictBatch:
    """Samples that are answered together, and what the runs share.

    Attributes:
        samples: The samples.
        inputs: What `generate` takes, on the model's device.
        arrangement: The arrangement of the inputs.
        pruning: The sessions that drop something of these samples.
        arrange_seconds: Seconds of the arrangement, per sample.
        encoded: Stages inside the encoder -> the encoded batch, and seconds per sample.
    """

    samples: Sequence[Sample]
    inputs: Mapping[str, Any]
    arrangement: Arrangement
    pruning: Sequence[Session]
    arrange_seconds: float
    encoded: dict[tuple[Stage, ...], tuple[EncodedBatch, float]] = field(default_factory=dict)


class _RefusedError(ValueError):
    """A batch that cannot be answered, because of one of its samples or because of the processor."""


class Predictor(LightningModule):
    """Answers questions with fewer visual tokens; without `stages` and `compare`, with all of them.

    Args:
        backbone: The model.
        stages: Stages that prune: [{at: projector, pruner: {name: VtcCls, last: 3}, budget: {tokens: 64}}].
        compare: Pruners and budgets to compare with each other and with the untouched model.
        generation: Options of transformers' generate, in addition to do_sample=False and max_new_tokens=32.
        progress: Which samples are pending and which get view records; set by the writer of the run. By default every
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
            raise ValueError("give stages or compare, not both: the pruners of compare choose their own stages")
        for name in REFUSED.keys() & (generation or {}).keys():
            raise ValueError(f"generation cannot have {name}: {REFUSED[name]}")
        self.backbone, self.generation = backbone, DEFAULTS | (generation or {})
        self.runs = compare.plans() if compare is not None else [plan_from_stages(stages) if stages else None]
        self.model: Any = None
        self.exact: dict[str, Tensor] = {}
        self.progress = RunProgress.opened() if progress is None else progress
        self._loaded: tuple[Any, Any] | None = None  # model and processor, if the caller has loaded them
        self._failing: set[str] = set()  # methods whose failure was reported
        self._disabled: list[Session] = []  # sessions that failed on every sample of a batch

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

        `backbone` is the checkpoint of the model, for its vocabulary and for error messages. With `views` every row of
        a pruned sample gets view records.
        """
        predictor = cls(backbone, generation=generation, progress=RunProgress.opened(views=views))
        predictor.runs, predictor._loaded = list(plans), (model, processor)
        predictor.setup("predict")
        return predictor

    def setup(self, stage: str) -> None:
        """Load the backbone. UsageError if it cannot be loaded, has no adapter, or does not know an option."""
        data = getattr(self._trainer, "datamodule", None)
        if isinstance(data, Questions) and not self.progress.pending(data.samples):
            return  # every question is answered
        precision = HALF.get(getattr(self._trainer, "precision", ""))
        backbone = replace(self.backbone, dtype=precision) if precision else self.backbone
        self.model, self.processor = self._loaded or backbone.load()
        self.exact = {name: buffer for name, buffer in self.model.named_buffers() if buffer.dtype == torch.float32}
        self.vocabulary = self.backbone.question_vocabulary()
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
        """Restore buffers, as rotary frequencies, that models keep in float32 and Lightning's half precisions cast."""
        for name, buffer in self.exact.items():
            module, _, leaf = name.rpartition(".")
            setattr(self.model.get_submodule(module), leaf, buffer.to(self.device))

    def facts(self) -> dict[str, Any]:
        """Return what the answers depend on: key of the configuration, or version of a distribution -> value."""
        runs = [
            UNPRUNED if plan is None else {"stages": [stage_data(stage) for stage in plan.stages]} for plan in self.runs
        ]
        return {
            "model.backbone": {**asdict(self.backbone), "revision": self.backbone.revision()},
            "model.runs": runs,
            "model.generation": self.generation,
        } | {f"version of {name}": version(name) for name in ("vtcframe", "torch", "transformers")}

    def predict_step(self, batch: Iterable[Sample], batch_idx: int) -> list[Prediction]:
        """Return the rows of a batch, for each sample one row per run. A sample that could not be loaded has one row.

        If a component fails, the rows of its run have the error, and the other runs go on.
        """
        batch = [self._with_vocabulary_error(sample) for sample in batch]
        loaded = [sample for sample in batch if sample.error is None]
        answers = iter(self._answer_or_refuse(loaded) if loaded else ())
        return [
            replace(row, batch=batch_idx)
            for sample in batch
            for row in (next(answers) if sample.error is None else [make_row(sample, error=sample.error)])
        ]

    def on_predict_batch_end(self, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Log the first failure of each method at once: a run may take all night."""
        for row in outputs:
            if row.error is not None and row.label is not None and row.label not in self._failing:
                self._failing.add(row.label)
                if self.trainer.is_global_zero:
                    LOGGER.warning("%s", row.error)

    def _with_vocabulary_error(self, sample: Sample) -> Sample:
        """Return a sample with an error if its question has words that the model does not know."""
        if self.vocabulary is None or sample.error is not None:
            return sample
        return replace(sample, error=self.vocabulary.describe_unknown_words(sample.question))

    def _answer_or_refuse(self, samples: Sequence[Sample]) -> list[list[Prediction]]:
        """Answer a batch. A sample that the processor or the adapter refuses has one row, with the error."""
        try:
            return self._answer(samples)
        except _RefusedError as error:
            if len(samples) > 1:
                return [rows for sample in samples for rows in self._answer_or_refuse([sample])]
            return [[make_row(samples[0], error=f"{self.backbone.path} cannot answer this question: {error}")]]

    def _answer(self, samples: Sequence[Sample], sessions: Sequence[Session] | None = None) -> list[list[Prediction]]:
        """Return the rows of each sample, one for each of `sessions`, by default of all runs.

        Pictures are encoded once for all runs with the same stages inside the encoder. A run that fails on a batch is
        tried on each of its samples, so that one sample does not fail the others. It is not tried again on single
        samples after it has failed on all samples of a batch.
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
                if len(samples) > 1 and session not in self._disabled:
                    answers = [self._answer([sample], [session])[0][0] for sample in samples]
                    if all(row.error is not None for row in answers):
                        self._disabled.append(session)
                else:
                    answers = [
                        make_row(sample, **run_fields(session.plan), error=self._describe_failure(session.plan, error))
                        for sample in samples
                    ]
            for sample_rows, row in zip(rows, answers, strict=True):
                sample_rows.append(row)
        return rows

    def _run(self, session: Session, batch: "PredictBatch") -> list[Prediction]:
        """Return the row of each sample in one run. ComponentError if one of its components fails."""
        inputs = batch.inputs
        layout = batch.arrangement.layout
        encoded, encode_seconds = None, 0.0  # if nothing is dropped, the untouched model encodes in generate
        if session in batch.pruning:
            encoded, encode_seconds = self._encode(session, batch)
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
                seconds=sum(outcome.seconds.values()) / len(batch.samples),
                encode_seconds=encode_seconds,
                views=view_records(layout, outcome.pruned, p)
                if outcome.pruned and self.progress.needs_views(sample)
                else None,
            )
            for p, sample in enumerate(batch.samples)
        ]

    def _encode(self, session: Session, batch: "PredictBatch") -> tuple[EncodedBatch, float]:
        """Encode a batch once for all runs with the same encoder stages; return it with seconds per sample."""
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

    def _describe_failure(self, plan: Plan | None, error: Exception) -> str:
        budget = None if plan is None else budget_data(plan.budget)
        at = "" if budget is None else f" at {format_budget(budget)}"
        return f"{plan}{at} fails on {self.backbone.path}: {error}"

    def _inputs(self, samples: Sequence[Sample]) -> dict[str, Any]:
        """Return the arguments of generate, on the model's device."""
        try:
            inputs = processor_inputs(self.processor, samples)
        except Exception as error:  # processors raise errors of any type
            reason = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
            raise _RefusedError(f"its processor refuses: {reason}") from error
        return dict(inputs.to(self.device, self.model.dtype))

    def _arrange(self, inputs: Mapping[str, Any], samples: Sequence[Sample]) -> Arrangement:
        ids = [sample.id for sample in samples]
        questions = [sample.question for sample in samples]
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
        except Exception as error:  # positions outside the evidence, for example
            raise ComponentError(f"its pruning cannot be used: {type(error).__name__}: {error}") from error

    def _generate(
        self, session: Session, batch: "PredictBatch", prepared: PrunedGeneration | None, meter: Stopwatch
    ) -> Outcome:
        """Return the outcome of a run, with the answers as text for its output."""

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
