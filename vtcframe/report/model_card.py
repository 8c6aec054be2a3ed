"""The figures of a report as a section of a Hugging Face model card, with the metadata that the Hub reads."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import yaml
from huggingface_hub import EvalResult
from huggingface_hub.repocard_data import eval_results_to_model_index

import vtcframe
from vtcframe.core.budget import Budget
from vtcframe.core.serialization import component_from_data, constructor_call, stage_data
from vtcframe.core.stages import plan_for
from vtcframe.data.results import format_budget
from vtcframe.registry import entries as registered
from vtcframe.report.page import escape_line
from vtcframe.report.runs import UNPRUNED, LoadedRuns, Run
from vtcframe.report.sections import NONE
from vtcframe.report.statistics import MethodResult, collect_results, split_by_data
from vtcframe.report.wording import join_names, label, write_sentences
from vtcframe.runs.baselines import BASELINES

TASK = "image-text-to-text"
USE = """\
With `model` and `processor` loaded by transformers:

```python
from vtcframe import {names}
compressed = compress(model, {how}, processor=processor)
```

`compressed.generate` has the arguments and return value of `model.generate`; `compressed` can replace the model in a
pipeline.
"""


def card(loaded: LoadedRuns) -> str:
    """Return a README.md: the metadata `model-index` if there are scores, followed by one section.

    It contains only information that the runs contain.
    """
    results = collect_results(loaded.runs)
    parts = ["## Visual token compression", "Pruned without training and measured with vtcframe."]
    for (model, data), group in split_by_data(results).items():
        parts += [f"### {escape_line(model)}: {escape_line(data)}", _table(group)]
        runs = [run for run in loaded.runs if (run.model, run.data) == (model, data)]
        parts.append(_list(_setup(runs, group)))
    if (use := _use(loaded.runs)) is not None:
        parts += ["### Usage", use.rstrip("\n")]
    parts += ["### Conclusions and limits", _list(write_sentences(loaded, results))]
    index = _model_index(results)
    front_matter = yaml.safe_dump({"model-index": index}, sort_keys=False, allow_unicode=True)
    return (f"---\n{front_matter}---\n\n" if index else "") + "\n\n".join(parts) + "\n"


def _table(results: Sequence[MethodResult]) -> str:
    heads = ["method", "budget", f"score ({_headline(results[0])})", "minus unpruned", "95 % interval"]
    rows = [[*heads, "visual tokens", "tokens per layer", "seconds", "seconds / unpruned"]]
    for result in results:
        difference = result.against_unpruned
        interval = difference and difference.interval
        paired = result.time_ratio is not None and result.same_run
        rows.append([
            result.method,
            NONE if result.method == UNPRUNED else result.budget,
            _figure(result.value),
            f"{difference.mean:+.3f}" if difference else NONE,
            "{:+.3f} to {:+.3f}".format(*interval) if interval else NONE,
            f"{result.tokens_kept:.1f}",
            f"{result.tokens_per_layer:.1f}",
            f"{result.seconds:.4f}" if paired else NONE,
            f"{result.time_ratio:.2f}" if paired else NONE,
        ])  # fmt: skip
    rows.insert(1, ["---", "---", *["---:"] * (len(rows[0]) - 2)])
    return "\n".join(f"| {' | '.join(map(escape_line, row))} |" for row in rows)


def _figure(value: float | None) -> str:
    return NONE if value is None else format(value, ".3f" if abs(value) <= 1 else ".1f")  # MME scores reach 2000


def _headline(result: MethodResult) -> str:
    return list(result.scores)[-1] if result.scores else NONE


def _list(lines: Sequence[str] | Iterator[str]) -> str:
    return "\n".join(f"- {escape_line(line)}" for line in lines)


def _setup(runs: Sequence[Run], results: Sequence[MethodResult]) -> Iterator[str]:
    """Yield sentences about the measurement of one model on one set of questions."""
    facts = runs[0].facts
    backbone = facts["model.backbone"]
    revision = f", revision {backbone['revision']}" if backbone.get("revision") else ""
    weights = ", ".join(str(part) for part in (backbone.get("dtype"), facts["trainer.precision"]) if part)
    yield f"Model: {backbone['path']}{revision}; weights and precision: {weights}."
    counts = [len(result.grades) for result in results]
    questions = f"{min(counts)}" if min(counts) == max(counts) else f"{min(counts)} to {max(counts)}"
    options = ", ".join(f"{name} {value}" for name, value in facts["model.generation"].items())
    yield f"Questions with a reference answer: {questions}; options of generate: {options}."
    if seeds := [f"{label(result)} ({len(result.values)})" for result in results if len(result.values) > 1]:
        yield f"Means over seeds: {join_names(seeds)}."
    if baselines := [name for name in BASELINES if any(result.name == name for result in results)]:
        yield f"Baselines: {join_names(baselines)}."
    if any(result.against_unpruned for result in results):
        yield (
            "Differences are in the mean grade of a question (0..1), paired with the unpruned model; intervals are "
            "95 % percentiles of 2000 bootstrap resamples over pictures or questions."
        )
    if any(result.seconds is not None and result.same_run for result in results):
        yield "Seconds are a sample's share of its batch, given only if the unpruned model ran in the same run."
    if machines := {attempt["machine"] for run in runs for attempt in run.manifest["attempts"] if "machine" in attempt}:
        yield f"Hardware: {'; '.join(sorted(machines))}."
    versions = {
        f"{key.removeprefix('version of ')} {value}"
        for run in runs
        for key, value in run.facts.items()
        if key.startswith("version of ")
    }
    if versions:
        yield f"Versions: {join_names(sorted(versions))}."


def _model_index(results: Sequence[MethodResult]) -> list[dict[str, Any]]:
    """Return the Hub's model-index, with one entry for each method and budget that has a score."""
    index = []
    for model in dict.fromkeys(result.model for result in results):
        evaluations = [
            EvalResult(
                task_type=TASK,
                dataset_type=result.data,
                dataset_name=result.data,
                metric_type=_metric(result),
                metric_name=f"{_headline(result)}, {label(result)}",
                metric_value=float(_figure(result.value)),
            )
            for result in results
            if result.model == model and result.value is not None
        ]
        if evaluations:
            index += eval_results_to_model_index(model, evaluations)
    return index


def _metric(result: MethodResult) -> str:
    """Return "accuracy" for the mean over all questions, else the name of the benchmark's headline figure."""
    return "accuracy" if _headline(result) == "all" else _headline(result)


def _use(runs: Sequence[Run]) -> str | None:
    """Return code for the first method that is not a baseline; None if two lines cannot reproduce its run."""
    for run in runs:
        rows = [row for row in run.rows if row.error is None and row.method is not None and row.budget is not None]
        for row in {(row.label, format_budget(row.budget)): row for row in reversed(rows)}.values():
            method, budget = row.method or {}, row.budget or {}
            if "stages" in method or method["name"] in BASELINES or run.downsampled:
                continue
            if (use := _code(method, budget, run.facts["model.runs"])) is not None:
                return use
    return None


def _code(method: Mapping[str, Any], budget: Mapping[str, Any], runs: Sequence[Mapping[str, Any]]) -> str | None:
    """Return usage text with two lines of Python for a method; None if they do not reproduce the stages of the run."""
    names = sorted(_names(method))
    if not set(names) <= {entry.name for entry in registered()} & set(dir(vtcframe)):
        return None
    try:
        pruner = component_from_data(method)
        plan = plan_for(pruner, Budget(**budget))
    except (LookupError, ImportError, TypeError, ValueError):
        return None
    if {"stages": [stage_data(stage) for stage in plan.stages]} not in runs:
        return None
    names = sorted({*names, "compress"}, key=lambda name: (name == "compress", name))
    call = constructor_call(pruner)
    amount = ", ".join(f"{key}={value!r}" for key, value in budget.items())
    if set(budget) <= {"tokens", "ratio"}:
        return USE.format(names=", ".join(names), how=f"{call}, {amount}")
    return USE.format(names=", ".join(["Budget", *names]), how=f"stages={call}.stages(Budget({amount}))")


def _names(data: Any) -> set[str]:
    """Return the names of all components in the data of a component."""
    if isinstance(data, Mapping):
        names = {data["name"]} if "name" in data else set()
        return names.union(*(_names(value) for value in data.values()))
    return set().union(*map(_names, data)) if isinstance(data, list) else set()
