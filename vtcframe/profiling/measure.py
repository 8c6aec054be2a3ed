"""Measurement of complete runs (pruned, unpruned and oracle) and of their stages, in seconds, FLOPs and bytes."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from vtcframe.core.evidence import Evidence
from vtcframe.core.method import Method
from vtcframe.core.pipeline import Pipeline
from vtcframe.core.stages import Plan
from vtcframe.inference.compressed import Compressed
from vtcframe.profiling.tables import Answer, BatchTimings, RunTimings, Series
from vtcframe.profiling.timing import read_clocks, run_rounds, time_rounds

Value = TypeVar("Value")
Inputs = Mapping[str, Any]
Meter = Callable[[], Sequence[float]]  # returns the current values of clocks or of a counter


def generate_answer(model: Any, inputs: Inputs, length: int) -> Tensor:
    """Generate exactly `length` tokens, greedily, with a model or a compressed model."""
    return model.generate(**inputs, min_new_tokens=length, max_new_tokens=length, do_sample=False)


def encode_pictures(model: Any, inputs: Inputs) -> Any:
    """Encode the pictures as the unpruned model does."""
    encoder = model.base_model.get_image_features
    parameters = inspect.signature(encoder).parameters
    return encoder(**{name: value for name, value in inputs.items() if name in parameters})


def run_oracle(model: Any, inputs: Inputs, prompt_lengths: Sequence[int], length: int) -> Tensor:
    """Encode the pictures, then generate `length` tokens from text-only prompts of the lengths `prompt_lengths`."""
    encode_pictures(model, inputs)
    longest = max(prompt_lengths)
    lengths = torch.tensor(prompt_lengths, device=model.device)[:, None]
    mask = (torch.arange(longest, device=model.device) >= longest - lengths).long()
    text = inputs["input_ids"][:, -1:].expand_as(mask)  # the last token of each prompt, repeated
    return generate_answer(model, {"input_ids": text, "attention_mask": mask}, length)


def no_oracle_because(plan: Plan) -> str:
    """Return the reason why a plan has no oracle, or "" if it has one."""
    if plan.encoder:
        return "it shortens the encoding itself, so that a plain encode is no limit"
    return "its layers process prompts of several lengths, which no model does natively" if plan.llm else ""


def pipeline_of(plan: Plan) -> Pipeline | None:
    """Return the pipeline that prunes before the language model; None without such a stage or without a pipeline."""
    pruner = None if plan.projector is None else plan.projector.pruner
    if isinstance(pruner, Method) and type(pruner).__call__ is Method.__call__:
        pruner = pruner.pipeline()
    return pruner if isinstance(pruner, Pipeline) else None


def run_scorers(pipeline: Pipeline, evidence: Evidence) -> Tensor | None:
    """Run only the scorers and the ensembler of a pipeline; None if it has no scorers."""
    evidence = evidence.join_views() if pipeline.across == "sample" else evidence
    maps = [scorer(evidence).float() for scorer in pipeline.scorers]
    return pipeline.ensembler(maps, evidence.layout) if maps else None


def run_steps(model: Any, inputs: Inputs, meter: Meter) -> dict[str, list[float]]:
    """Run a model up to the first token and return the increase of the meter in each step.

    A compressed model runs the steps of its `generate`, and its scorers run once more alone. The unpruned model first
    encodes the pictures alone, and then runs completely.
    """
    recorder = _StepRecorder(meter)
    if not isinstance(model, Compressed):
        encode_pictures(model, inputs)
        recorder.lap("vision")
        generate_answer(model, inputs, 1)
        recorder.lap("complete")
        return recorder.increases
    session = model.session
    plan = model.plan
    arrangement = session.arrange(inputs)
    recorder.lap("arrange")
    encoded = session.encode(inputs, arrangement)
    recorder.lap("encode")
    if (pipeline := pipeline_of(plan)) is not None:
        run_scorers(pipeline, encoded.evidence)
        recorder.lap("scoring")
    prepared = session.prepare(inputs, arrangement, encoded, recorder)
    session.generate(inputs, partial(generate_answer, model.model, length=1), arrangement, prepared, recorder)
    return recorder.increases


class _StepRecorder:
    """Records the increase of a meter in each step of a run. It replaces the session's stopwatch."""

    seconds: Mapping[str, float] = {}  # the session's own timing is not used

    def __init__(self, meter: Meter) -> None:
        self._meter = meter
        self._start = meter()
        self.increases: dict[str, list[float]] = {}

    def lap(self, name: str) -> None:
        """End the step `name`."""
        self.increases[name] = [end - start for start, end in zip(self._start, self._meter(), strict=True)]
        self._start = self._meter()


def stages_of(steps: Mapping[str, Any], vision: Any) -> dict[str, Any]:
    """Convert costs of steps into costs of stages, in seconds or FLOPs; `vision` is the cost of a plain encode."""
    if "complete" in steps:
        return {"vision": vision, "prefill": steps["complete"] - vision}
    pruning = {"selection": steps["prune"]}
    if "scoring" in steps:
        pruning = {"scoring": steps["scoring"], "selection": steps["prune"] - steps["scoring"]}
    capture = steps["arrange"] + steps["encode"] - vision
    return {"vision": vision, "capture": capture, **pruning, "splice": steps["splice"], "prefill": steps["generate"]}


def time_stages(models: Sequence[Any], inputs: Inputs, count: int) -> list[dict[str, Series]]:
    """Return the times of each model's stages over `count` rounds. The first model is the unpruned one.

    The device is synchronized between steps.
    """
    meter = partial(read_clocks, inputs["input_ids"].device)
    rounds_of_model = run_rounds({i: partial(run_steps, model, inputs, meter) for i, model in enumerate(models)}, count)
    steps_of_models = []
    for i in range(len(models)):
        model_rounds = rounds_of_model[i]
        steps_of_models.append({step: Series.of([times[step] for times in model_rounds]) for step in model_rounds[0]})
    return [stages_of(steps, steps_of_models[0]["vision"]) for steps in steps_of_models]


def count_stage_flops(models: Sequence[Any], inputs: Inputs) -> list[dict[str, int]]:
    """Return the FLOPs of each model's stages. The first model is the unpruned one."""
    steps_of_models = []
    for model in models:
        with FlopCounterMode(display=False) as counter:
            increases = run_steps(model, inputs, lambda counter=counter: (counter.get_total_flops(),))
        steps_of_models.append({step: count for step, (count,) in increases.items()})
    return [stages_of(steps, steps_of_models[0]["vision"]) for steps in steps_of_models]


def count_flops(call: Callable[[], object]) -> int:
    """Return the FLOPs of matrix products, convolutions and attention in a call; a multiply-add counts as 2."""
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


def measure_peak_bytes(call: Callable[[], object], device: torch.device) -> int | None:
    """Return the peak memory in bytes that a call adds; None on the CPU, where tensor memory cannot be isolated."""
    if device.type != "cuda":
        return None
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    call()
    return torch.cuda.max_memory_allocated(device) - before


def measure_answers(
    models: Sequence[Any], limits: Sequence[tuple[int, ...] | None], inputs: Inputs, lengths: Sequence[int], count: int
) -> list[list[Answer]]:
    """Measure complete runs of each model, and its oracle, for each answer length.

    `limits` holds the prompt lengths of each model's oracle, or None for a model without one. The first model is the
    unpruned one. Returns for each model one `Answer` per length.
    """
    calls: dict[Any, Callable[[], object]] = {}
    for n in lengths:
        calls |= {(i, n): partial(generate_answer, model, inputs, n) for i, model in enumerate(models)}
        calls |= {(limit, n): partial(run_oracle, models[0], inputs, limit, n) for limit in limits if limit}
    device = inputs["input_ids"].device
    times = {key: Series.of(pairs) for key, pairs in time_rounds(calls, count, device).items()}
    return [
        [
            Answer(
                n,
                times[i, n],
                count_flops(calls[i, n]),
                measure_peak_bytes(calls[i, n], device),
                times.get((limit, n)),
            )
            for n in lengths
        ]
        for i, limit in enumerate(limits)
    ]


@torch.no_grad()
def measure_batch(
    model: Any, cases: Sequence[Compressed], inputs: Inputs, lengths: Sequence[int], count: int
) -> BatchTimings:
    """Measure the unpruned model and `cases` on one batch, with answers of each of `lengths` tokens.

    Complete runs and stages are measured in separate rounds, `count` of each, because stages need synchronization.
    """
    for case in cases:
        generate_answer(case, inputs, 1)  # fills case.last with the token counts
    results: list[Any] = [case.last for case in cases]
    limits = [None if no_oracle_because(case.plan) else prompt_lengths(inputs, case.last) for case in cases]
    models = [model, *cases]
    unpruned, *pruned = zip(
        measure_answers(models, [None, *limits], inputs, lengths, count),
        time_stages(models, inputs, count),
        count_stage_flops(models, inputs),
        strict=True,
    )
    first = results[0]
    before = _mean(first.tokens_before)
    return BatchTimings(
        len(inputs["input_ids"]),
        RunTimings(
            "unpruned", before, *unpruned, [before] * first.tokens_per_layer.shape[1], _mean(first.kv_bytes_before)
        ),
        [
            RunTimings(
                str(case.plan),
                _mean(result.tokens_after),
                *costs,
                result.tokens_per_layer.double().mean(0).tolist(),
                _mean(result.kv_bytes),
                no_oracle_because(case.plan),
            )
            for case, result, costs in zip(cases, results, pruned, strict=True)
        ],
    )


def prompt_lengths(inputs: Inputs, result: Any) -> tuple[int, ...]:
    """Return the number of tokens of each prompt after pruning."""
    removed = result.tokens_before - result.tokens_after + result.structural_before - result.structural_after
    return tuple((inputs["attention_mask"].sum(1).cpu() - removed).tolist())


def _mean(values: Tensor) -> float:
    return values.double().mean().item()
