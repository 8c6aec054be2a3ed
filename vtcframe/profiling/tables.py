"""Measured costs of runs, one value per round, and the Markdown tables that report them."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Literal

from vtcframe.profiling.timing import SURE, Estimate, Times, estimate, format_head, format_row, ratio

Unit = Literal["cpu", "wall"]
STEPS = "vision", "capture", "scoring", "selection", "splice", "prefill"
COMPLETE_RUNS = (
    "answer",
    "run",
    "tokens",
    "s",
    "against unpruned",
    "oracle s",
    "of the oracle",
    "FLOP bound",
    "of the bound",
)
STAGES = (
    "run",
    "tokens",
    *(f"{step} ms" for step in (*STEPS, "token")),
    "scoring + selection, % of vision + prefill",
    "until pruned / vision",
)
SIZES = "run", "tokens", "tokens per layer", "KV MiB per sample", "GFLOP", *(f"{step} GFLOP" for step in STEPS)

_LEGEND = """\
Every run is executed once per round, in shuffled order. Ratios compare runs of the same round. Values are
medians [intervals].
- against unpruned: seconds of the unpruned model / seconds of the run. The verdict is "faster" or "slower" if the
  interval excludes 1.
- of the oracle: seconds of the oracle / seconds of the run. The oracle is a plain encode followed by the same model on
  a text-only prompt of the pruned length. 1 is the best possible value. Values above 1 mean that the run's encode was
  cheaper than a plain one.
- FLOP bound: FLOPs of the unpruned run / FLOPs of the run: the speedup if time were proportional to FLOPs.
- Stages are timed in separate rounds, and the device is synchronized between them.
  vision: a plain encode.
  capture: layout of the prompt and the encode that captures evidence, minus vision. It is negative if encoder blocks
  whose output is unused are skipped.
  scoring: scorers and ensembler alone. selection: the whole pruning step minus scoring.
  splice: construction of the shortened prompt.
  prefill: generation of one token; for the unpruned model, minus vision.
  token: time per additional token, from the longest and the shortest answer.
  until pruned: vision + capture + scoring + selection.
  Work that a method does inside the encoder counts as capture; inside the language model it counts as prefill.
- peak: memory that a run adds to the loaded model. It is measured on GPUs only.
"""
LEGEND: dict[Unit, str] = {
    "cpu": f"Seconds are CPU seconds of all threads.\n{_LEGEND}",
    "wall": f"Seconds are wall seconds.\n{_LEGEND}",
}


@dataclass(frozen=True)
class Series:
    """CPU and wall seconds of each round."""

    cpu: list[float]
    wall: list[float]

    @classmethod
    def of(cls, times: Sequence[Times]) -> "Series":
        """Build a series from one (CPU, wall) pair per round."""
        cpu, wall = zip(*times, strict=True)
        return cls(list(cpu), list(wall))

    def __add__(self, other: "Series") -> "Series":
        return Series(_paired(self.cpu, other.cpu, 1), _paired(self.wall, other.wall, 1))

    def __sub__(self, other: "Series") -> "Series":
        return Series(_paired(self.cpu, other.cpu, -1), _paired(self.wall, other.wall, -1))

    def __truediv__(self, count: int) -> "Series":
        return Series([x / count for x in self.cpu], [x / count for x in self.wall])

    def by(self, unit: Unit) -> list[float]:
        """Return the seconds in the unit `unit`."""
        return self.cpu if unit == "cpu" else self.wall


def _paired(values: Sequence[float], others: Sequence[float], sign: int) -> list[float]:
    return [a + sign * b for a, b in zip(values, others, strict=True)]


@dataclass(frozen=True)
class Answer:
    """Costs of complete runs that generate `length` tokens, and the times of the corresponding oracle."""

    length: int
    times: Series
    flops: int
    peak_bytes: int | None  # peak memory that a run adds to the loaded model; None on the CPU
    oracle: Series | None = None


@dataclass(frozen=True)
class RunTimings:
    """Costs of one method at one budget, or of the unpruned model."""

    method: str
    tokens: float  # visual tokens kept per sample, mean over the batch
    answers: list[Answer]
    stages: dict[str, Series]  # by name, a subset of STEPS
    flops: dict[str, int]  # FLOPs of each stage
    layer_tokens: list[float]  # visual tokens in each layer of the language model, mean over the batch
    kv_bytes: float  # KV cache size of one sample's prompt, mean over the batch
    no_oracle: str = ""  # reason why the run has no oracle; empty if it has one


@dataclass(frozen=True)
class BatchTimings:
    """All runs on batches of `size` samples. Values of the same round are paired."""

    size: int
    unpruned: RunTimings
    pruned: list[RunTimings]


def per_token(answers: Sequence[Answer]) -> Series | None:
    """Return the time per additional token, from the longest and the shortest answer; None if they are equal."""
    shortest = min(answers, key=lambda answer: answer.length)
    longest = max(answers, key=lambda answer: answer.length)
    if shortest.length == longest.length:
        return None
    return (longest.times - shortest.times) / (longest.length - shortest.length)


def format_verdict(speed: Estimate) -> str:
    """Return a verdict on a speedup: faster, slower, not shown to be faster, or too few rounds."""
    text = f"{speed.median:.2f}x [{speed.low:.2f}, {speed.high:.2f}]"
    if speed.coverage < SURE:
        return f"too few rounds to tell: {text}"
    if speed.low > 1:
        return f"faster: {text}"
    return f"slower: {text}" if speed.high < 1 else f"not shown to be faster: {text}"


def format_tables(batch: BatchTimings, unit: Unit) -> list[str]:
    """Return the lines of a batch's Markdown tables: complete runs, stages, and sizes."""
    runs = [batch.unpruned, *batch.pruned]
    lines = [f"## Batch {batch.size}", "", "Complete runs.", "", *format_head(COMPLETE_RUNS)]
    for i, baseline in enumerate(batch.unpruned.answers):
        lines += [format_row(_run_cells(run, run.answers[i], baseline, unit)) for run in runs]
    lines += ["", *(f"No oracle of {run.method} at {run.tokens:g}: {run.no_oracle}." for run in runs if run.no_oracle)]
    lines += ["", "Stages up to the first token.", "", *format_head(STAGES)]
    lines += [format_row(_stage_cells(run, unit)) for run in runs]
    peaks = [
        f"peak MiB, answer of {answer.length}" for answer in batch.unpruned.answers if answer.peak_bytes is not None
    ]
    lines += ["", "Sizes, for the complete batch unless stated otherwise.", "", *format_head((*SIZES, *peaks))]
    return [*lines, *(format_row(_size_cells(run)) for run in runs), ""]


def _run_cells(run: RunTimings, answer: Answer, baseline: Answer, unit: Unit) -> list[object]:
    seconds = answer.times.by(unit)
    cells: list[object] = [answer.length, run.method, f"{run.tokens:g}", estimate(seconds)]
    if answer is baseline:
        return [*cells, *"-----"]
    speed = ratio(baseline.times.by(unit), seconds)
    bound = baseline.flops / answer.flops
    cells.append(format_verdict(speed))
    if answer.oracle is None:
        cells += ["-", "-"]
    else:
        oracle = answer.oracle.by(unit)
        cells += [estimate(oracle), ratio(oracle, seconds)]
    return [*cells, f"{bound:.2f}x", f"{speed.median / bound:.2f}"]


def _stage_cells(run: RunTimings, unit: Unit) -> list[object]:
    times = {step: series.by(unit) for step, series in run.stages.items()}
    if (token := per_token(run.answers)) is not None:
        times["token"] = token.by(unit)
    cells: list[object] = [run.method, f"{run.tokens:g}"]
    cells += [f"{1000 * estimate(times[step]).median:.2f}" if step in times else "-" for step in (*STEPS, "token")]
    if "selection" not in times:
        return [*cells, "-", "-"]
    pruning_steps = [times[step] for step in ("scoring", "selection") if step in times]
    pruning = [sum(seconds) for seconds in zip(*pruning_steps, strict=True)]
    model = _paired(times["vision"], times["prefill"], 1)
    until_pruned = _paired(_paired(times["vision"], times["capture"], 1), pruning, 1)
    return [*cells, ratio([100 * x for x in pruning], model), ratio(until_pruned, times["vision"])]


def _size_cells(run: RunTimings) -> list[object]:
    layers = ", ".join(f"{len(list(group))} x {count:g}" for count, group in groupby(run.layer_tokens))
    cells: list[object] = [
        run.method,
        f"{run.tokens:g}",
        layers,
        f"{run.kv_bytes / 2**20:.1f}",
        f"{run.answers[0].flops / 1e9:.1f}",
    ]
    cells += [f"{run.flops[step] / 1e9:.3f}" if step in run.flops else "-" for step in STEPS]
    return cells + [f"{answer.peak_bytes / 2**20:.0f}" for answer in run.answers if answer.peak_bytes is not None]
