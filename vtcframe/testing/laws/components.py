"""The laws of components, on evidence made by hand: padded with poison, ragged, one sample without a picture."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor

from vtcframe.core.budget import Budget
from vtcframe.core.contracts import call_component, describe_type, needs_of
from vtcframe.core.evidence import Evidence
from vtcframe.core.need_bases import Need
from vtcframe.core.pruned import Pruned
from vtcframe.core.stages import Pruner
from vtcframe.core.verbs import Allocator, Component, Ensembler, Merger, Scorer, Selector
from vtcframe.errors import ComponentError
from vtcframe.ops.gather import highest
from vtcframe.testing.laws.closeness import relative_distance
from vtcframe.testing.laws.needs import unserved_because
from vtcframe.testing.tiny_models.evidence import POISON, SAMPLES, make_evidence

TOLERANCE = 1e-5  # of the largest value: float32 sums of other shapes round otherwise


def check_scorer(scorer: Scorer) -> None:
    """Scores are [S, V, N] float32, finite on tokens, repeatable, and those of a sample depend on it alone.

    They are float32 also where the model is of half precision.
    """
    needs = _asked(scorer, Scorer)

    def score(evidence: Evidence) -> Tensor:
        scores = _tensor(scorer, _called(scorer, scorer, evidence))
        shape = list(evidence.layout.column.shape)
        alike = list(scores.shape) == shape
        _hold(
            scores.ndim == 3 and list(scores.shape[1:]) == shape,
            f"{scorer} gave {list(scores.shape)}, not [S, V, N] = [S, {shape[0]}, {shape[1]}]"
            + (": give one map as scores[None]" if alike else ""),
        )
        _hold(scores.dtype == torch.float32, f"{scorer} gave {scores.dtype}, not float32")
        _hold(scores[:, evidence.layout.valid].isfinite().all(), f"{scorer} gave NaN or inf on a token")
        return scores.movedim(0, -1)

    _check_alone_as_in_batch(scorer, needs, score)
    half = make_evidence(needs)
    found = {need: x.bfloat16() if need.axes.endswith("C") else x for need, x in half.readings.items()}
    scores = _called(scorer, scorer, replace(half, tokens=half.tokens.bfloat16(), readings=found))
    _hold(scores.dtype == torch.float32, f"{scorer} gave {scores.dtype} of a bfloat16 model: end with .float()")


def check_ensembler(ensembler: Ensembler, scorers: int = 2) -> None:
    """One map [V, N], finite on tokens; padding, whatever it holds, and batch mates change nothing."""
    needs = _asked(ensembler, Ensembler)
    for poison in (POISON, -POISON):

        def fuse(evidence: Evidence, poison: float = poison) -> Tensor:
            layers = [_noise(evidence, i, poison)[None].repeat(i + 1, 1, 1) for i in range(scorers)]
            scores = _tensor(ensembler, _called(ensembler, ensembler, layers, evidence.layout))
            _hold(scores.shape == evidence.layout.column.shape, f"{ensembler} gave {list(scores.shape)}")
            _hold(scores[evidence.layout.valid].isfinite().all(), f"{ensembler} gave NaN or inf on a token")
            return scores[..., None]

        _check_alone_as_in_batch(ensembler, needs, fuse)


def check_allocator(allocator: Allocator, shortfall: bool = False) -> None:
    """Quotas lie between 0 and a view's tokens and sum to the budget (with `shortfall`, to less at most)."""
    needs = _asked(allocator, Allocator)
    for budget in (Budget(tokens=1), Budget(tokens=20), Budget(ratio=0.3), Budget(tokens=10**6)):

        def share(evidence: Evidence, budget: Budget = budget) -> Tensor:
            layout, total = evidence.layout, budget.total(evidence.layout)
            scores = _scores(evidence)
            with _unchanged(allocator, scores=scores, budget=total):
                quota = _tensor(allocator, _called(allocator, allocator, scores, total, evidence))
            _hold(
                quota.shape == layout.sample.shape and quota.device.type == "cpu", f"{allocator} gave no [V] on the CPU"
            )
            _hold(not quota.is_floating_point(), f"{allocator} gave {quota.dtype}, not whole numbers")
            _hold(
                ((quota >= 0) & (quota <= layout.count)).all(), f"{allocator} gave a view a quota that it cannot fill"
            )
            over, under = layout.total(quota) > total, layout.total(quota) < total
            _hold(
                not over.any() and (shortfall or not under.any()), f"{allocator}: quotas do not sum to {total.tolist()}"
            )
            return quota[:, None, None].expand(*layout.column.shape, 1)

        _check_alone_as_in_batch(allocator, needs, share)


def check_selector(selector: Selector) -> None:
    """Row v has quota[v] True, none of them padding, also for quota 0, all, tied, constant and huge scores."""
    needs = _asked(selector, Selector)
    for scale, levels in ((1.0, 0), (1.0, 3), (0.0, 0), (1e30, 0)):
        for fraction in (0.0, 0.1, 0.5, 1.0):

            def select(
                evidence: Evidence, scale: float = scale, levels: int = levels, part: float = fraction
            ) -> Tensor:
                layout, scores = evidence.layout, _scores(evidence)
                scores = (scores * levels).round() if levels else scores
                scores = (scores * scale).masked_fill(~layout.valid, -torch.inf)
                quota = (layout.count * part).ceil().long()
                with _unchanged(selector, scores=scores, quota=quota):
                    kept = _tensor(selector, _called(selector, selector, scores, quota, evidence))
                _hold(kept.shape == scores.shape and kept.dtype == torch.bool, f"{selector} gave no bool [V, N]")
                _hold(not (kept & ~layout.valid).any(), f"{selector} kept padding")
                _hold(
                    (kept.sum(1) == quota).all(),
                    f"{selector} kept {kept.sum(1).tolist()}, the quota is {quota.tolist()}",
                )
                return kept[..., None]

            _check_alone_as_in_batch(selector, needs, select)


def check_merger(merger: Merger) -> None:
    """Slots never exceed the quota; every output token has a place of its own, kept tokens theirs."""
    needs = _asked(merger, Merger)
    for fraction in (0.05, 0.5, 1.0):

        def merge(evidence: Evidence, part: float = fraction) -> Tensor:
            layout, scores = evidence.layout, _scores(evidence)
            quota = (layout.count * part).ceil().long()
            slots = _tensor(merger, _called(merger, merger.slots, quota, layout))
            _hold(
                ((slots >= 0) & (slots <= quota)).all(), f"{merger}: slots {slots.tolist()} of quotas {quota.tolist()}"
            )
            kept = highest(scores, quota - slots)
            with _unchanged(merger, kept=kept, slots=slots, scores=scores):
                pruned = _called(merger, merger, kept, slots, scores, evidence)
            _check_pruned(merger, pruned, layout.total(quota))
            _hold(not (kept & ~pruned.kept).any(), f"{merger} lost the slot of a kept token")
            return _scattered(pruned, evidence)

        _check_alone_as_in_batch(merger, needs, merge)


def check_pruner(pruner: Pruner, budgets: Iterable[Budget | None] = (Budget(20), Budget(ratio=0.3), Budget(1))) -> None:
    """As many tokens as budgeted stay (None: adaptive), the same alone as in a batch; NaN is an error; all fits all."""
    needs, budgets = _asked(pruner, Pruner), tuple(budgets)
    for budget in budgets:

        def prune(evidence: Evidence, budget: Budget | None = budget) -> Tensor:
            pruned = _called(pruner, pruner, evidence, budget)
            _check_pruned(pruner, pruned, None if budget is None else budget.total(evidence.layout))
            _hold(len(pruned.place) in (len(evidence.layout.sample), len(evidence.layout.key)), f"{pruner} lost rows")
            return _scattered(
                pruned, evidence if len(pruned.place) == len(evidence.layout.sample) else evidence.join_views()
            )

        _check_alone_as_in_batch(pruner, needs, prune, joined_too=False)
    evidence = make_evidence(needs)
    if needed := [need for need in needs if "N" in need.axes]:
        found = {need: x.clone() for need, x in evidence.readings.items()}
        found[needed[0]].movedim((needed[0].axes.index("V"), needed[0].axes.index("N")), (0, 1))[-1, 0] = torch.nan
        try:
            pruner(replace(evidence, readings=found), budgets[0])
        except ValueError as error:
            _hold("3" in str(error), f"{pruner}: the error does not name sample 3: {error}")
        else:
            _hold(False, f"{pruner} took NaN in {needed[0]} without an error")


def _check_pruned(source: object, pruned: Any, total: Tensor | None) -> None:
    _hold(isinstance(pruned, Pruned), f"{source} returned {describe_type(pruned)}, not a Pruned")
    layout, real = pruned.layout, pruned.place >= 0
    count = real.sum(1)
    _hold(pruned.scores.dtype == torch.float32, f"{source}: scores are {pruned.scores.dtype}, not float32")
    _hold((pruned.scores[~layout.valid] == -torch.inf).all(), f"{source}: scores at padding are not -inf")
    _hold((pruned.kept.sum(1) == count).all(), f"{source} gave two output tokens the same place")
    _hold(not (pruned.kept & ~layout.valid).any(), f"{source} took padding")
    _hold(pruned.tokens[real].isfinite().all(), f"{source} made NaN or inf tokens")
    _hold(pruned.tokens[real].abs().lt(POISON / 2).all(), f"{source} let padding into tokens")
    if total is not None:
        got = layout.total(count)
        _hold(torch.equal(got, total), f"{source} kept {got.tolist()} tokens of samples budgeted {total.tolist()}")


def _scattered(pruned: Pruned, evidence: Evidence) -> Tensor:
    """[V, N, 1 + D] where each output token was put, and itself."""
    real = pruned.place >= 0
    row = torch.arange(len(real))[:, None].expand(real.shape)[real]
    out = torch.zeros(*evidence.layout.column.shape, 1 + pruned.tokens.shape[-1])
    out[row, pruned.place[real], 0] = 1
    out[row, pruned.place[real], 1:] = pruned.tokens[real].float()
    return out


def _check_alone_as_in_batch(
    part: object, needs: Iterable[Need], call: Callable[[Evidence], Tensor], joined_too: bool = True
) -> None:
    """`call` gives [R, N, ...]; each sample's rows must be the same alone, in the batch, and in a second call."""
    needs = tuple(needs)
    for joined in (False, True) if joined_too else (False,):
        whole = make_evidence(needs)
        whole = whole.join_views() if joined else whole
        layout = {field.name: getattr(whole.layout, field.name) for field in fields(whole.layout)}
        with _unchanged(part, tokens=whole.tokens, **layout, **{str(need): x for need, x in whole.readings.items()}):
            together, again = call(whole), call(whole)
        valid = _rows_valid(together, whole)
        _hold(torch.equal(together[valid], again[valid]), f"{part} gave another result in a second call")
        for p, (key, grids) in enumerate(SAMPLES.items()):
            single = make_evidence(needs, {key: grids})
            single = single.join_views() if joined else single
            if not grids:
                continue
            alone = call(single)
            mine = together[_rows_of(together, whole, p)]
            count = min(mine.shape[1], alone.shape[1])
            a, b = mine[:, :count][valid[_rows_of(together, whole, p)][:, :count]], alone[_rows_valid(alone, single)]
            same = a.shape == b.shape and (
                a.numel() == 0 or torch.equal(a, b) or relative_distance(a.float(), b.float()) <= TOLERANCE
            )
            _hold(same, f"{part}: sample {key} differs alone and in a batch")


def _rows_of(out: Tensor, evidence: Evidence, sample: int) -> Tensor:
    layout = evidence.layout
    return layout.sample == sample if len(out) == len(layout.sample) else torch.arange(len(out)) == sample


def _rows_valid(out: Tensor, evidence: Evidence) -> Tensor:
    return (evidence if len(out) == len(evidence.layout.sample) else evidence.join_views()).layout.valid


def _scores(evidence: Evidence) -> Tensor:
    return _noise(evidence, 0, 0.0).masked_fill(~evidence.layout.valid, -torch.inf)


def _noise(evidence: Evidence, salt: int, padding: float) -> Tensor:
    """[V, N] scores that depend on a sample alone."""
    first = evidence.tokens.float()[..., salt % evidence.tokens.shape[-1]]
    return (first + salt).masked_fill(~evidence.layout.valid, padding)


def _asked(part: Any, kind: type[Component]) -> tuple[Need, ...]:
    """Return the needs of what is to be checked."""
    _hold(isinstance(part, kind), f"check an object that extends vtcframe.{kind.__name__}, not {describe_type(part)}")
    plain = is_dataclass(part) or not getattr(part, "__dict__", None)
    _hold(plain, f"{type(part).__name__} has fields but is no dataclass: write @dataclass(frozen=True) above it")
    try:
        needs = needs_of(part)
    except ComponentError as error:
        raise AssertionError(str(error)) from error
    for need in needs:
        reason = unserved_because(need)
        _hold(not reason, f"{part} needs {need}, which no adapter can serve: {reason}")
    return needs


def _called(part: Any, function: Callable[..., Any], *given: Any) -> Any:
    try:
        return call_component(part, function, *given)
    except ComponentError as error:
        raise AssertionError(str(error)) from error


def _tensor(part: Any, made: Any) -> Tensor:
    _hold(isinstance(made, Tensor), f"{part} returned {describe_type(made)}, not a tensor")
    return made


@contextmanager
def _unchanged(part: Any, **given: Tensor) -> Iterator[None]:
    """Others are given the same tensors: what a component computes in place, they get to see."""
    before = {name: x.clone() for name, x in given.items()}
    yield
    for name, x in given.items():
        same = torch.allclose(x, before[name], rtol=0, atol=0, equal_nan=True)
        _hold(same, f"{part} changed the evidence or what else it was given, {name}, in place: others read it too")


def _hold(law: object, broken: str) -> None:
    if not law:
        raise AssertionError(broken)
