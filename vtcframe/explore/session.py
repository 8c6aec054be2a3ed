"""The logic of the page of `vtcframe explore`: its controls' values in, answers and errors out."""

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
from vtcframe.drawing import Picture, enlarge_pictures
from vtcframe.errors import UsageError
from vtcframe.explore.explainer import Answers, Explainer, make_plans
from vtcframe.registry import entries

FRACTION, TOKENS, NONE = "fraction", "tokens", "none"  # kinds of budget that the page offers
EDGE = 480  # pixels of a drawn picture's longer edge
Value = TypeVar("Value")


def method_names() -> list[str]:
    """Return the names of all registered pruners, including those of plugins."""
    return sorted((entry.name for entry in entries() if entry.kind == "pruner"), key=str.casefold)


def parse_budget(kind: str, amount: float | None) -> Budget | None:
    """Return the budget of the page's controls; None for kind "none". Raises UsageError for an invalid amount."""
    if kind == NONE:
        return None
    if amount is None:
        raise UsageError(f"there is no budget: type a number, or choose {NONE!r} for methods that need no budget")
    try:
        if kind == FRACTION:
            return Budget(ratio=amount)
        if amount % 1:
            raise ValueError(f"{amount:g} is not a number of tokens: choose {FRACTION!r} for a fraction of them")
        return Budget(tokens=int(amount))
    except ValueError as error:
        raise UsageError(f"the budget: {error}") from error


@dataclass(frozen=True)
class AnswerPair:
    """The answers to one question."""

    unpruned: Prediction
    pictures: list[Picture]  # enlarged; boxes of views are fractions of them
    methods: list[tuple[str, Prediction | str]]  # the text of each method, and its answer or the error message


class Questioner:
    """Answers the questions of the page with one model."""

    def __init__(self, explainer: Explainer) -> None:
        self.explainer = explainer
        self._warm = False

    def describe(self, method: str | None, kind: str, amount: float | None) -> str:
        """Return the first sentence of a method's documentation.

        Raises UsageError if there is no such method or the model does not support it.
        """
        plan = _plan(method, parse_budget(kind, amount))
        self.explainer.predictor_for([plan])
        return (inspect.getdoc(type(plan.method)) or "").partition("\n\n")[0].replace("\n", " ").replace("`", "")

    def ask(
        self, picture: str | None, question: str | None, methods: Sequence[str | None], kind: str, amount: float | None
    ) -> AnswerPair:
        """Answer a question about a picture file with each method, at one budget.

        A method is a name, or YAML with options. A method that fails does not affect the others. Raises UsageError for
        errors that concern all methods.
        """
        if not picture:
            raise UsageError("there is no picture: upload one, or choose an example")
        question = (question or "").strip()
        if not question:
            raise UsageError("there is no question: type one, or choose an example")
        sample = load_sample(Sample(picture, question, (Path(picture),)))
        if sample.error is not None:
            raise UsageError(sample.error.replace(picture, Path(picture).name))  # hides gradio's temporary folder
        budget = parse_budget(kind, amount)
        answers, results = self._answer(sample, [_value_or_error(_plan, method, budget) for method in methods])
        if len(set(map(str, results))) == 1 and isinstance(results[0], str):
            raise UsageError(results[0])  # an error of all methods
        names = [method or "no method" for method in methods]
        return AnswerPair(
            answers.unpruned, enlarge_pictures(answers.pictures, EDGE), list(zip(names, results, strict=True))
        )

    def _answer(self, sample: Sample, plans: Sequence[Plan | str]) -> tuple[Answers, list[Prediction | str]]:
        """Answer with the unpruned model and each plan, after one encode. An error message in place of a plan stays."""
        try:
            answers = self._explain(sample, [plan for plan in plans if not isinstance(plan, str)])
            rows = iter(answers.pruned)
            return answers, [plan if isinstance(plan, str) else next(rows) for plan in plans]
        except Exception:  # run each plan alone to find the one that fails
            answers = self._explain(sample, [])
            return answers, [
                plan if isinstance(plan, str) else _value_or_error(self._predict, sample, plan) for plan in plans
            ]

    def _predict(self, sample: Sample, plan: Plan) -> Prediction:
        return self._explain(sample, [plan]).pruned[0]

    def _explain(self, sample: Sample, plans: Sequence[Plan]) -> Answers:
        answers = self.explainer.answer(sample, plans)
        if not self._warm:  # the first call includes one-time initialization, which would distort its seconds
            answers = self.explainer.answer(sample, plans)
            self._warm = True
        return answers


def _plan(method: str | None, budget: Budget | None) -> Plan:
    if not (method or "").strip():
        raise UsageError("there is no method: choose one, or type YAML with its options: {name: VtcCls, last: 3}")
    pruner = make_pruner(expand_text(method or "", Pruner, "pruner"))
    (plan,) = make_plans([pruner], budget)
    return plan


def _value_or_error(function: Callable[..., Value], *arguments: object) -> Value | str:
    """Return the function's value, or the error message; components of plugins can raise any exception."""
    try:
        return function(*arguments)
    except Exception as error:
        return describe_error(error)


def describe_error(error: Exception) -> str:
    """Return an error as one line. The traceback of an error that is no UsageError is printed to the terminal."""
    line = " ".join(str(error).split())
    if isinstance(error, UsageError):
        return line
    traceback.print_exception(error)
    return f"{type(error).__name__}: {line or 'no message'} (see the traceback in the terminal)"
