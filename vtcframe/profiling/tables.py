"""What runs cost, round by round, and the tables that tell it."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Literal

from vtcframe.profiling.timing import SURE, Estimate, Times, estimate, head, line, ratio

Unit = Literal["cpu", "wall"]
STEPS = "vision", "capture", "scoring", "selection", "splice", "prefill"
WHOLE = "answer", "run", "tokens", "s", "against unpruned", "oracle s", "of the oracle", "FLOP bound", "of the bound"
STAGES = (
    "run",
    "tokens",
    *(f"{step} ms" for step in (*STEPS, "token")),
    "judging, % of vision + prefill",
    "until pruned / vision",
)
SIZES = "run", "tokens", "tokens a layer reads", "KV MiB a sample", "GFLOP", *(f"{step} GFLOP" for step in STEPS)

_LEGEND = """\
Every run once a round, in a shuffled order; ratios are of the same round; medians [intervals].
- against unpruned: seconds of the untouched model / seconds. "faster" and "slower" where the interval leaves 1 out.
- of the oracle: oracle's seconds / seconds. The oracle is a plain encode, then the same model on a prompt of text
  alone, as long as the pruned one. 1 is as good as it gets; beyond 1 the encode was cheaper than a plain one.
- FLOP bound: FLOPs of the untouched run / FLOPs; what a run would gain if time went with them.
- Stages are timed in rounds of their own, with the device waited for between them.
  vision: a plain encode. capture: layout of the prompt and the observed encode, less vision; below 0 where blocks that
  feed nothing are left out. scoring: scorers and ensembler by themselves. selection: all of the pruning less scoring.
  splice: the shortened prompt. prefill: generate of one token; of the untouched model, less vision. token: longest less
  shortest answer, for each token between. judging: scoring + selection. until pruned: vision + capture + judging.
  What a method does inside the encoder or the language model is in capture or prefill.
- peak: what a run adds to the loaded model. On a GPU only: on a CPU nothing tells its tensors from the rest.
"""
LEGEND: dict[Unit, str] = {
    "cpu": f"Seconds are CPU seconds, of all threads.\n{_LEGEND}",
    "wall": f"Seconds are wall seconds.\n{_LEGEND}",
}


@dataclass(frozen=True)
class Series:
    """CPU and wall seconds, one of each a round."""

    cpu: list[float]
    wall: list[float]

    @classmethod
    def of(cls, times: Sequence[Times]) -> "Series":
        """Take the seconds of each round apart."""
        cpu, wall = zip(*times, strict=True)
        return cls(list(cpu), list(wall))

    def __add__(self, other: "Series") -> "Series":
        return Series(_paired(self.cpu, other.cpu, 1), _paired(self.wall, other.wall, 1))

    def __sub__(self, other: "Series") -> "Series":
        return Series(_paired(self.cpu, other.cpu, -1), _paired(self.wall, other.wall, -1))

    def __truediv__(self, count: int) -> "Series":
        return Series([x / count for x in self.cpu], [x / count for x in self.wall])

    def by(self, unit: Unit) -> list[float]:
        """Return the seconds of that unit."""
        return self.cpu if unit == "cpu" else self.wall


def _paired(values: Sequence[float], others: Sequence[float], sign: int) -> list[float]:
    return [a + sign * b for a, b in zip(values, others, strict=True)]


@dataclass(frozen=True)
class Answer:
    """Whole runs that answered with so many tokens, and the oracle beside them."""

    length: int
    times: Series
    flops: int
    peak_bytes: int | None  # that a run adds to the loaded model; None on the CPU
    oracle: Series | None = None


@dataclass(frozen=True)
class Run:
    """What one method at one budget costs, or the untouched model."""

    method: str
    tokens: float  # visual tokens of a sample that are left, mean over the batch
    answers: list[Answer]
    stages: dict[str, Series]  # by STEPS; those that it has
    flops: dict[str, int]  # of the stages
    layer_tokens: list[float]  # visual tokens that each layer of the language model reads, mean over the batch
    kv_bytes: float  # of a sample's prompt, mean over the batch
    no_oracle: str = ""  # why there is none


@dataclass(frozen=True)
class Batch:
    """All runs on so many samples; those of the same round are paired."""

    size: int
    unpruned: Run
    pruned: list[Run]


def per_token(answers: Sequence[Answer]) -> Series | None:
    """Return what a token behind the first ones takes: longest less shortest answer; None where there is but one."""
    short, long = (pick(answers, key=lambda one: one.length) for pick in (min, max))
    if short.length == long.length:
        return None
    return (long.times - short.times) / (long.length - short.length)


def verdict(speed: Estimate) -> str:
    """Say whether something so many times as fast is faster."""
    told = f"{speed.median:.2f}x [{speed.low:.2f}, {speed.high:.2f}]"
    if speed.coverage < SURE:
        return f"too few rounds to tell: {told}"
    if speed.low > 1:
        return f"faster: {told}"
    return f"slower: {told}" if speed.high < 1 else f"not shown to be faster: {told}"


def tables(batch: Batch, unit: Unit) -> list[str]:
    """Return the lines of a batch's Markdown tables: whole runs, stages, and sizes."""
    runs = [batch.unpruned, *batch.pruned]
    lines = [f"## Batch {batch.size}", "", "Whole runs.", "", *head(WHOLE)]
    for place, plain in enumerate(batch.unpruned.answers):
        lines += [line(_whole(run, run.answers[place], plain, unit)) for run in runs]
    lines += ["", *(f"No oracle of {run.method} at {run.tokens:g}: {run.no_oracle}." for run in runs if run.no_oracle)]
    lines += ["", "Stages up to the first token.", "", *head(STAGES), *(line(_stages(run, unit)) for run in runs)]
    peaks = [f"peak MiB, answer of {one.length}" for one in batch.unpruned.answers if one.peak_bytes is not None]
    lines += ["", "Sizes, whole batch unless it says otherwise.", "", *head((*SIZES, *peaks))]
    return [*lines, *(line(_sizes(run)) for run in runs), ""]


def _whole(run: Run, own: Answer, plain: Answer, unit: Unit) -> list[object]:
    taken, base = own.times.by(unit), plain.times.by(unit)
    cells: list[object] = [own.length, run.method, f"{run.tokens:g}", estimate(taken)]
    if own is plain:
        return [*cells, *"-----"]
    speed, bound = ratio(base, taken), plain.flops / own.flops
    cells.append(verdict(speed))
    cells += ["-", "-"] if own.oracle is None else [estimate(own.oracle.by(unit)), ratio(own.oracle.by(unit), taken)]
    return [*cells, f"{bound:.2f}x", f"{speed.median / bound:.2f}"]


def _stages(run: Run, unit: Unit) -> list[object]:
    times = {step: series.by(unit) for step, series in run.stages.items()}
    if (token := per_token(run.answers)) is not None:
        times["token"] = token.by(unit)
    cells: list[object] = [run.method, f"{run.tokens:g}"]
    cells += [f"{1000 * estimate(times[step]).median:.2f}" if step in times else "-" for step in (*STEPS, "token")]
    if "selection" not in times:
        return [*cells, "-", "-"]
    judging = [sum(parts) for parts in zip(*(times[s] for s in ("scoring", "selection") if s in times), strict=True)]
    rest = _paired(times["vision"], times["prefill"], 1)
    until = _paired(_paired(times["vision"], times["capture"], 1), judging, 1)
    return [*cells, ratio([100 * x for x in judging], rest), ratio(until, times["vision"])]


def _sizes(run: Run) -> list[object]:
    layers = ", ".join(f"{len(list(same))} x {count:g}" for count, same in groupby(run.layer_tokens))
    cells: list[object] = [
        run.method,
        f"{run.tokens:g}",
        layers,
        f"{run.kv_bytes / 2**20:.1f}",
        f"{run.answers[0].flops / 1e9:.1f}",
    ]
    cells += [f"{run.flops[step] / 1e9:.3f}" if step in run.flops else "-" for step in STEPS]
    return cells + [f"{one.peak_bytes / 2**20:.0f}" for one in run.answers if one.peak_bytes is not None]
