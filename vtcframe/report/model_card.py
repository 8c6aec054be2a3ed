"""The same figures as a section of a model card of the Hugging Face Hub, with the metadata that the Hub reads."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import yaml
from huggingface_hub import EvalResult
from huggingface_hub.repocard_data import eval_results_to_model_index

import vtcframe
from vtcframe.core.budget import Budget
from vtcframe.core.component_data import component_from_data, constructor_call, stage_data
from vtcframe.core.stages import plan_for
from vtcframe.data.results import format_budget
from vtcframe.registry import entries as registered
from vtcframe.report.page import in_a_line
from vtcframe.report.runs import UNPRUNED, LoadedRuns, Run
from vtcframe.report.sections import NONE
from vtcframe.report.statistics import MethodResult, entries, sets
from vtcframe.report.wording import labelled, listed, sentences
from vtcframe.runs.baselines import BASELINES

TASK = "image-text-to-text"
USE = """\
With `model` and `processor` as transformers loads them:

```python
from vtcframe import {names}
compressed = compress(model, {how}, processor=processor)
```

`compressed.generate` takes and returns what `model.generate` does; `compressed` can stand for the model in a pipeline.
"""


def card(found: LoadedRuns) -> str:
    """Return a README.md: the metadata `model-index` where there are scores, then one section.

    What the runs do not say is not in it.
    """
    made = entries(found.runs)
    parts = ["## Fewer visual tokens", "Pruned without training, and measured, by vtcframe."]
    for (model, data), own in sets(made).items():
        parts += [f"### {in_a_line(model)}: {in_a_line(data)}", _table(own)]
        parts.append(_listed(_how([run for run in found.runs if (run.model, run.data) == (model, data)], own)))
    if (use := _use(found.runs)) is not None:
        parts += ["### Use it", use.rstrip("\n")]
    parts += ["### Read it with care", _listed(sentences(found, made))]
    index = _index(made)
    front = yaml.safe_dump({"model-index": index}, sort_keys=False, allow_unicode=True)
    return (f"---\n{front}---\n\n" if index else "") + "\n\n".join(parts) + "\n"


def _table(own: Sequence[MethodResult]) -> str:
    heads = ["method", "budget", f"score ({_headline(own[0])})", "to unpruned", "95 % interval", "visual tokens"]
    lines = [[*heads, "tokens a layer", "seconds", "times unpruned"]]
    for one in own:
        beside, interval = one.against_unpruned, one.against_unpruned and one.against_unpruned.interval
        paired = one.pace is not None and one.same_run
        lines.append([
            one.method,
            NONE if one.method == UNPRUNED else one.budget,
            _figure(one.value),
            f"{beside.mean:+.3f}" if beside else NONE,
            "{:+.3f} to {:+.3f}".format(*interval) if interval else NONE,
            f"{one.left:.1f}",
            f"{one.layer:.1f}",
            f"{one.seconds:.4f}" if paired else NONE,
            f"{one.pace:.2f}" if paired else NONE,
        ])  # fmt: skip
    lines.insert(1, ["---", "---", *["---:"] * (len(lines[0]) - 2)])
    return "\n".join(f"| {' | '.join(map(in_a_line, line))} |" for line in lines)


def _figure(value: float | None) -> str:
    return NONE if value is None else format(value, ".3f" if abs(value) <= 1 else ".1f")  # MME's figures go to 2000


def _headline(one: MethodResult) -> str:
    return list(one.scores)[-1] if one.scores else NONE


def _listed(lines: Sequence[str] | Iterator[str]) -> str:
    return "\n".join(f"- {in_a_line(line)}" for line in lines)


def _how(runs: Sequence[Run], own: Sequence[MethodResult]) -> Iterator[str]:
    """Yield how the figures of one model and one set of questions were measured."""
    facts, backbone = runs[0].facts, runs[0].facts["model.backbone"]
    revision = f", revision {backbone['revision']}" if backbone.get("revision") else ""
    weights = ", ".join(str(each) for each in (backbone.get("dtype"), facts["trainer.precision"]) if each)
    yield f"Model: {backbone['path']}{revision}; weights and precision: {weights}."
    least, most = min(len(one.grades) for one in own), max(len(one.grades) for one in own)
    asked = f"{least}" if least == most else f"{least} to {most}"
    options = ", ".join(f"{name} {value}" for name, value in facts["model.generation"].items())
    yield f"Questions with a known answer: {asked}; options of generate: {options}."
    if several := [f"{labelled(one)} ({len(one.values)})" for one in own if len(one.values) > 1]:
        yield f"Means over seeds: {listed(several)}."
    if beside := [name for name in BASELINES if any(one.name == name for one in own)]:
        yield f"Baselines beside: {listed(beside)}."
    if any(one.against_unpruned for one in own):
        yield (
            "Differences are in the mean grade of a question (0..1), paired with the untouched model's; intervals are "
            "of 95 %, percentiles of 2000 bootstraps over pictures or questions."
        )
    if any(one.seconds is not None and one.same_run for one in own):
        yield "Seconds are a sample's share of its batch, told where the untouched model was asked in the same run."
    if places := {one["machine"] for run in runs for one in run.told["attempts"] if "machine" in one}:
        yield f"Hardware: {'; '.join(sorted(places))}."
    versions = {
        f"{key.removeprefix('version of ')} {value}"
        for run in runs
        for key, value in run.facts.items()
        if key.startswith("version of ")
    }
    if versions:
        yield f"Versions: {listed(sorted(versions))}."


def _index(made: Sequence[MethodResult]) -> list[dict[str, Any]]:
    """Return the Hub's model-index: one result for each method and budget that has a score."""
    index = []
    for model in dict.fromkeys(one.model for one in made):
        results = [
            EvalResult(
                task_type=TASK,
                dataset_type=one.data,
                dataset_name=one.data,
                metric_type=_metric(one),
                metric_name=f"{_headline(one)}, {labelled(one)}",
                metric_value=float(_figure(one.value)),
            )
            for one in made
            if one.model == model and one.value is not None
        ]
        if results:
            index += eval_results_to_model_index(model, results)
    return index


def _metric(one: MethodResult) -> str:
    """Return "accuracy" for the mean over all questions, else what a benchmark calls its figure."""
    return "accuracy" if _headline(one) == "all" else _headline(one)


def _use(runs: Sequence[Run]) -> str | None:
    """Return how the first method that is no baseline is used; None where two lines cannot say what was run."""
    for run in runs:
        rows = [row for row in run.rows if row.error is None and row.method is not None and row.budget is not None]
        for row in {(row.label, format_budget(row.budget)): row for row in reversed(rows)}.values():
            method, budget = row.method or {}, row.budget or {}
            if "stages" in method or method["name"] in BASELINES or run.downsampled:
                continue
            if (use := _lines(method, budget, run.facts["model.runs"])) is not None:
                return use
    return None


def _lines(method: Mapping[str, Any], budget: Mapping[str, Any], runs: Sequence[Mapping[str, Any]]) -> str | None:
    """Return two lines of Python for a method, if they make the stages that the run was of."""
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
    label = constructor_call(pruner)
    amount = ", ".join(f"{key}={value!r}" for key, value in budget.items())
    if set(budget) <= {"tokens", "ratio"}:
        return USE.format(names=", ".join(names), how=f"{label}, {amount}")
    return USE.format(names=", ".join(["Budget", *names]), how=f"stages={label}.stages(Budget({amount}))")


def _names(data: Any) -> set[str]:
    """Return the names of all components in data of one."""
    if isinstance(data, Mapping):
        own = {data["name"]} if "name" in data else set()
        return own.union(*(_names(value) for value in data.values()))
    return set().union(*map(_names, data)) if isinstance(data, list) else set()
