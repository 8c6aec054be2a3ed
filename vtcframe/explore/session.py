"""What the page of `vtcframe explore` is asked and answers, without its looks."""

import inspect
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from vtcframe.config.parser import make_pruner
from vtcframe.config.short_names import expand_text
from vtcframe.core.budget import Budget
from vtcframe.core.stages import Plan, Pruner
from vtcframe.data.decode import load_sample
from vtcframe.data.results import Prediction
from vtcframe.data.sample import Sample
from vtcframe.drawing import Picture, enlarged
from vtcframe.errors import UsageError
from vtcframe.explore.explain import Answers, Explainer, plans
from vtcframe.registry import entries

FRACTION, TOKENS, NONE = "fraction", "tokens", "none"  # what a budget is given as
EDGE = 480  # pixels of a drawn picture's longer edge
Made = TypeVar("Made")


def methods() -> list[str]:
    """Return the names of all registered pruners, those of plugins among them."""
    return sorted((entry.name for entry in entries() if entry.kind == "pruner"), key=str.casefold)


def budget_of(kind: str, amount: float | None) -> Budget | None:
    """Return a budget as the page's controls give it; None leaves it to the method. UsageError for what is none."""
    if kind == NONE:
        return None
    if amount is None:
        raise UsageError(f"there is no budget: type a number, or choose {NONE!r} for methods that decide by themselves")
    try:
        if kind == FRACTION:
            return Budget(ratio=amount)
        if amount % 1:
            raise ValueError(f"{amount:g} is no number of tokens: choose {FRACTION!r} for a part of them")
        return Budget(tokens=int(amount))
    except ValueError as error:
        raise UsageError(f"the budget: {error}") from error


@dataclass(frozen=True)
class Outcome:
    """What became of one question."""

    unpruned: Prediction
    pictures: list[Picture]  # enlarged; boxes of views lie in them
    methods: list[tuple[str, Prediction | str]]  # as typed, and the answer or the reason why there is none


class Questioner:
    """Asks one model what people put into the page's controls."""

    def __init__(self, explainer: Explainer) -> None:
        self.explainer = explainer
        self._warm = False

    def about(self, method: str | None, kind: str, amount: float | None) -> str:
        """Say in a sentence what a method is. UsageError where it is none, or the model has no place for it."""
        plan = _plan(method, budget_of(kind, amount))
        self.explainer.prepared([plan])
        return (inspect.getdoc(type(plan.method)) or "").partition("\n\n")[0].replace("\n", " ").replace("`", "")

    def ask(
        self, picture: str | None, question: str | None, asked: Sequence[str | None], kind: str, amount: float | None
    ) -> Outcome:
        """Ask about the picture in a file, at one budget with each of some methods: names, or YAML with options.

        One that fails does not keep the others from answering. UsageError for what concerns all of them.
        """
        if not picture:
            raise UsageError("there is no picture: upload one, or choose an example")
        question = (question or "").strip()
        if not question:
            raise UsageError("there is no question: type one, or choose an example")
        sample = load_sample(Sample(picture, question, (Path(picture),)))
        if sample.error is not None:
            raise UsageError(sample.error.replace(picture, Path(picture).name))  # the folder is gradio's
        budget = budget_of(kind, amount)
        answers, found = self._found(sample, [_tried(_plan, method, budget) for method in asked])
        if len(set(map(str, found))) == 1 and isinstance(found[0], str):
            raise UsageError(found[0])  # it is no single method's
        named = [method or "no method" for method in asked]
        return Outcome(answers.unpruned, enlarged(answers.pictures, EDGE), list(zip(named, found, strict=True)))

    def _found(self, sample: Sample, planned: Sequence[Plan | str]) -> tuple[Answers, list[Prediction | str]]:
        """Answer untouched and by each plan, all after one encoding; a reason in place of a plan stays what it is."""
        try:
            answers = self._answers(sample, [plan for plan in planned if not isinstance(plan, str)])
            rows = iter(answers.pruned)
            return answers, [plan if isinstance(plan, str) else next(rows) for plan in planned]
        except Exception:  # whose it is, is seen when each is asked alone
            answers = self._answers(sample, [])
            return answers, [plan if isinstance(plan, str) else _tried(self._row, sample, plan) for plan in planned]

    def _row(self, sample: Sample, plan: Plan) -> Prediction:
        return self._answers(sample, [plan]).pruned[0]

    def _answers(self, sample: Sample, planned: Sequence[Plan]) -> Answers:
        answers = self.explainer.answers(sample, planned)
        if not self._warm:  # what is done once was paid by whatever ran first, and that is the untouched model
            answers = self.explainer.answers(sample, planned)
            self._warm = True
        return answers


def _plan(method: str | None, budget: Budget | None) -> Plan:
    if not (method or "").strip():
        raise UsageError("there is no method: choose one, or type YAML with its options: {name: VtcCls, last: 3}")
    pruner = make_pruner(expand_text(method or "", Pruner, "pruner"))
    (plan,) = plans([pruner], budget)
    return plan


def _tried(make: Callable[..., Made], *given: object) -> Made | str:
    """Return what is made, or why it is not: components of plugins raise anything."""
    try:
        return make(*given)
    except Exception as error:
        return told(error)


def told(error: Exception) -> str:
    """Return an error in a line. One that nobody can mend by what they type leaves its trace in the terminal."""
    line = " ".join(str(error).split())
    if isinstance(error, UsageError):
        return line
    traceback.print_exception(error)
    return f"{type(error).__name__}: {line or 'it says no more'} (the terminal shows where)"
