"""How runs are measured: whole ones beside the untouched model and the oracle, and their stages from the inside."""

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
from vtcframe.profiling.tables import Answer, Batch, Run, Series
from vtcframe.profiling.timing import now, rounds, shuffled

Value = TypeVar("Value")
Inputs = Mapping[str, Any]
Reading = Callable[[], Sequence[float]]  # of clocks, or of a counter


def answer(model: Any, inputs: Inputs, length: int) -> Tensor:
    """Let a model, or a compressed one, generate exactly so many tokens."""
    return model.generate(**inputs, min_new_tokens=length, max_new_tokens=length, do_sample=False)


def encode_pictures(model: Any, inputs: Inputs) -> Any:
    """Encode the pictures as the untouched model does."""
    encoder = model.base_model.get_image_features
    named = inspect.signature(encoder).parameters
    return encoder(**{name: given for name, given in inputs.items() if name in named})


def oracle(model: Any, inputs: Inputs, prompts: Sequence[int], length: int) -> Tensor:
    """Encode the pictures, then answer prompts of text alone, which have as many tokens as the pruned ones."""
    encode_pictures(model, inputs)
    own = torch.tensor(prompts, device=model.device)[:, None]
    mask = (torch.arange(max(prompts), device=model.device) >= max(prompts) - own).long()
    text = inputs["input_ids"][:, -1:].expand_as(mask)  # what a prompt ends with
    return answer(model, {"input_ids": text, "attention_mask": mask}, length)


def no_oracle(plan: Plan) -> str:
    """Say why a plan has no oracle; "" where it has one."""
    if plan.encoder:
        return "it shortens the encoding itself, so that a plain one is no limit"
    return "its layers read prompts of several lengths, which no model does natively" if plan.llm else ""


def pipeline_of(plan: Plan) -> Pipeline | None:
    """Return the parts that judge before the language model; None where nothing does, or something without parts."""
    pruner = None if plan.projector is None else plan.projector.pruner
    if isinstance(pruner, Method) and type(pruner).__call__ is Method.__call__:
        pruner = pruner.pipeline()
    return pruner if isinstance(pruner, Pipeline) else None


def score(pipeline: Pipeline, evidence: Evidence) -> Tensor | None:
    """Run the scorers and the ensembler by themselves."""
    evidence = evidence.join_views() if pipeline.across == "sample" else evidence
    maps = [scorer(evidence).float() for scorer in pipeline.scorers]
    return pipeline.ensembler(maps, evidence.layout) if maps else None


def run_steps(model: Any, inputs: Inputs, read: Reading) -> dict[str, list[float]]:
    """Go to the first token and return what a reading grew by in each step.

    A compressed model goes the way of its `generate`, and what judges is run once more by itself. The untouched one
    encodes the pictures, and then goes its whole way.
    """
    meter = _ReadingMeter(read)
    if not isinstance(model, Compressed):
        encode_pictures(model, inputs)
        meter.lap("vision")
        answer(model, inputs, 1)
        meter.lap("whole")
        return meter.growth
    session, plan = model.session, model.plan
    arrangement = session.arrange(inputs)
    meter.lap("arrange")
    encoded = session.encode(inputs, arrangement)
    meter.lap("encode")
    if (pipeline := pipeline_of(plan)) is not None:
        score(pipeline, encoded.evidence)
        meter.lap("scoring")
    prepared = session.prepare(inputs, arrangement, encoded, meter)
    session.generate(inputs, partial(answer, model.model, length=1), arrangement, prepared, meter)
    return meter.growth


class _ReadingMeter:
    """Takes by how much a reading grows in each step of a run."""

    seconds: Mapping[str, float] = {}  # nothing is timed but the reading

    def __init__(self, read: Reading) -> None:
        self._read, self._start = read, read()
        self.growth: dict[str, list[float]] = {}

    def lap(self, name: str) -> None:
        """End the step `name`."""
        self.growth[name] = [after - before for before, after in zip(self._start, self._read(), strict=True)]
        self._start = self._read()


def stages(taken: Mapping[str, Any], vision: Any) -> dict[str, Any]:
    """Make stages of steps, be it seconds or FLOPs that they took; `vision` is what a plain encode took."""
    if "whole" in taken:
        return {"vision": vision, "prefill": taken["whole"] - vision}
    judging = {"selection": taken["prune"]}
    if "scoring" in taken:
        judging = {"scoring": taken["scoring"], "selection": taken["prune"] - taken["scoring"]}
    capture = taken["arrange"] + taken["encode"] - vision
    return {"vision": vision, "capture": capture, **judging, "splice": taken["splice"], "prefill": taken["generate"]}


def timed_stages(models: Sequence[Any], inputs: Inputs, count: int) -> list[dict[str, Series]]:
    """Return the stages of each model; the first is the untouched one. Between steps the device is waited for."""
    read = partial(now, inputs["input_ids"].device)
    found = shuffled({i: partial(run_steps, model, inputs, read) for i, model in enumerate(models)}, count)
    taken = [{step: Series.of([times[step] for times in found[i]]) for step in found[i][0]} for i in range(len(models))]
    return [stages(one, taken[0]["vision"]) for one in taken]


def counted_stages(models: Sequence[Any], inputs: Inputs) -> list[dict[str, int]]:
    """Return the FLOPs of the stages of each model; the first is the untouched one."""
    taken = []
    for model in models:
        with FlopCounterMode(display=False) as counter:
            found = run_steps(model, inputs, lambda counter=counter: (counter.get_total_flops(),))
        taken.append({step: count for step, (count,) in found.items()})
    return [stages(one, taken[0]["vision"]) for one in taken]


def operations(call: Callable[[], object]) -> int:
    """Return the FLOPs of a call: of products, convolutions and attention, 2 for a multiplication and its addition."""
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


def peak(call: Callable[[], object], device: torch.device) -> int | None:
    """Return the bytes that a call adds at its peak; None on the CPU, where nothing tells its tensors from the rest."""
    if device.type != "cuda":
        return None
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    call()
    return torch.cuda.max_memory_allocated(device) - before


def answers(
    models: Sequence[Any], limits: Sequence[tuple[int, ...] | None], inputs: Inputs, lengths: Sequence[int], count: int
) -> list[list[Answer]]:
    """Run each model whole, with answers of so many tokens, and beside it the oracle of such prompts, where it has one.

    The first is the untouched one.
    """
    calls: dict[Any, Callable[[], object]] = {}
    for n in lengths:
        calls |= {(i, n): partial(answer, model, inputs, n) for i, model in enumerate(models)}
        calls |= {(limit, n): partial(oracle, models[0], inputs, limit, n) for limit in limits if limit}
    device = inputs["input_ids"].device
    times = {at: Series.of(taken) for at, taken in rounds(calls, count, device).items()}
    return [
        [
            Answer(n, times[i, n], operations(calls[i, n]), peak(calls[i, n], device), times.get((limit, n)))
            for n in lengths
        ]
        for i, limit in enumerate(limits)
    ]


@torch.no_grad()
def measure(model: Any, cases: Sequence[Compressed], inputs: Inputs, lengths: Sequence[int], count: int) -> Batch:
    """Measure the untouched model and `cases` on a batch, with answers of so many tokens each.

    Whole runs and stages are taken in rounds of their own, `count` of each, because stages are waited for.
    """
    for case in cases:
        answer(case, inputs, 1)  # tells what it reads
    results: list[Any] = [case.last for case in cases]
    limits = [None if no_oracle(case.plan) else prompts(inputs, case.last) for case in cases]
    models, first = [model, *cases], results[0]
    unpruned, *pruned = zip(
        answers(models, [None, *limits], inputs, lengths, count),
        timed_stages(models, inputs, count),
        counted_stages(models, inputs),
        strict=True,
    )
    before = _mean(first.tokens_before)
    return Batch(
        len(inputs["input_ids"]),
        Run("unpruned", before, *unpruned, [before] * first.tokens_per_layer.shape[1], _mean(first.kv_bytes_before)),
        [
            Run(
                str(case.plan),
                _mean(result.tokens_after),
                *costs,
                result.tokens_per_layer.double().mean(0).tolist(),
                _mean(result.kv_bytes),
                no_oracle(case.plan),
            )
            for case, result, costs in zip(cases, results, pruned, strict=True)
        ],
    )


def prompts(inputs: Inputs, result: Any) -> tuple[int, ...]:
    """Return how many tokens each prompt has once it is pruned."""
    gone = result.tokens_before - result.tokens_after + result.structural_before - result.structural_after
    return tuple((inputs["attention_mask"].sum(1).cpu() - gone).tolist())


def _mean(values: Tensor) -> float:
    return values.double().mean().item()
