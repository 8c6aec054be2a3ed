"""Laws of components, checked on synthetic evidence: padded with large values, ragged, a sample without pictures."""

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

TOLERANCE = 1e-5  # relative to the largest value: float32 sums of different shapes round differently


def check_scorer(scorer: Scorer) -> None:
    """Check that scores are [S, V, N] float32, finite on tokens, repeatable, and depend on their sample only.

    They must be float32 for models in half precision too. AssertionError for a broken law.
    """
    needs = _check_component(scorer, Scorer)

    def score(evidence: Evidence) -> Tensor:
        scores = _tensor(scorer, _call(scorer, scorer, evidence))
        shape = list(evidence.layout.column.shape)
        is_single_map = list(scores.shape) == shape
        _hold(
            scores.ndim == 3 and list(scores.shape[1:]) == shape,
            f"{scorer} returned {list(scores.shape)}, not [S, V, N] = [S, {shape[0]}, {shape[1]}]"
            + (": give one map as scores[None]" if is_single_map else ""),
        )
        _hold(scores.dtype == torch.float32, f"{scorer} returned {scores.dtype}, not float32")
        _hold(scores[:, evidence.layout.valid].isfinite().all(), f"{scorer} returned NaN or inf on a token")
        return scores.movedim(0, -1)

    _check_batch_independence(scorer, needs, score)
    half = make_evidence(needs)
    readings = {need: x.bfloat16() if need.axes.endswith("C") else x for need, x in half.readings.items()}
    scores = _call(scorer, scorer, replace(half, tokens=half.tokens.bfloat16(), readings=readings))
    _hold(scores.dtype == torch.float32, f"{scorer} returned {scores.dtype} for a bfloat16 model: end with .float()")


def check_ensembler(ensembler: Ensembler, scorers: int = 2) -> None:
    """Check that the result is a map [V, N], finite on tokens, independent of values at padding and of the batch."""
    needs = _check_component(ensembler, Ensembler)
    for poison in (POISON, -POISON):

        def fuse(evidence: Evidence, poison: float = poison) -> Tensor:
            layers = [_noise(evidence, i, poison)[None].repeat(i + 1, 1, 1) for i in range(scorers)]
            scores = _tensor(ensembler, _call(ensembler, ensembler, layers, evidence.layout))
            _hold(scores.shape == evidence.layout.column.shape, f"{ensembler} returned {list(scores.shape)}")
            _hold(scores[evidence.layout.valid].isfinite().all(), f"{ensembler} returned NaN or inf on a token")
            return scores[..., None]

        _check_batch_independence(ensembler, needs, fuse)


def check_allocator(allocator: Allocator, shortfall: bool = False) -> None:
    """Check that quotas are between 0 and the tokens of a view and sum to the budget (`shortfall`: at most to it)."""
    needs = _check_component(allocator, Allocator)
    for budget in (Budget(tokens=1), Budget(tokens=20), Budget(ratio=0.3), Budget(tokens=10**6)):

        def share(evidence: Evidence, budget: Budget = budget) -> Tensor:
            layout = evidence.layout
            total = budget.total(layout)
            scores = _scores(evidence)
            with _unchanged(allocator, scores=scores, budget=total):
                quota = _tensor(allocator, _call(allocator, allocator, scores, total, evidence))
            _hold(
                quota.shape == layout.sample.shape and quota.device.type == "cpu",
                f"{allocator} returned no [V] on the CPU",
            )
            _hold(not quota.is_floating_point(), f"{allocator} returned {quota.dtype}, not integers")
            _hold(
                ((quota >= 0) & (quota <= layout.count)).all(), f"{allocator} returned a quota that a view cannot fill"
            )
            over = layout.total(quota) > total
            under = layout.total(quota) < total
            _hold(
                not over.any() and (shortfall or not under.any()), f"{allocator}: quotas do not sum to {total.tolist()}"
            )
            return quota[:, None, None].expand(*layout.column.shape, 1)

        _check_batch_independence(allocator, needs, share)


def check_selector(selector: Selector) -> None:
    """Check that row v has quota[v] True and none at padding, for any quota and for tied, constant and huge scores."""
    needs = _check_component(selector, Selector)
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
                    kept = _tensor(selector, _call(selector, selector, scores, quota, evidence))
                _hold(kept.shape == scores.shape and kept.dtype == torch.bool, f"{selector} returned no bool [V, N]")
                _hold(not (kept & ~layout.valid).any(), f"{selector} kept padding")
                _hold(
                    (kept.sum(1) == quota).all(),
                    f"{selector} kept {kept.sum(1).tolist()}, the quota is {quota.tolist()}",
                )
                return kept[..., None]

            _check_batch_independence(selector, needs, select)


def check_merger(merger: Merger) -> None:
    """Check that slots do not exceed the quota, output tokens have distinct places, and kept tokens keep theirs."""
    needs = _check_component(merger, Merger)
    for fraction in (0.05, 0.5, 1.0):

        def merge(evidence: Evidence, part: float = fraction) -> Tensor:
            layout, scores = evidence.layout, _scores(evidence)
            quota = (layout.count * part).ceil().long()
            slots = _tensor(merger, _call(merger, merger.slots, quota, layout))
            _hold(
                ((slots >= 0) & (slots <= quota)).all(), f"{merger}: slots {slots.tolist()} of quotas {quota.tolist()}"
            )
            kept = highest(scores, quota - slots)
            with _unchanged(merger, kept=kept, slots=slots, scores=scores):
                pruned = _call(merger, merger, kept, slots, scores, evidence)
            _check_pruned(merger, pruned, layout.total(quota))
            _hold(not (kept & ~pruned.kept).any(), f"{merger} lost the slot of a kept token")
            return _scatter(pruned, evidence)

        _check_batch_independence(merger, needs, merge)


def check_pruner(pruner: Pruner, budgets: Iterable[Budget | None] = (Budget(20), Budget(ratio=0.3), Budget(1))) -> None:
    """Check that a pruner keeps as many tokens as budgeted, the same alone and in a batch, and raises an error for NaN.

    A budget of None is for adaptive pruners. AssertionError for a broken law.
    """
    needs = _check_component(pruner, Pruner)
    budgets = tuple(budgets)
    for budget in budgets:

        def prune(evidence: Evidence, budget: Budget | None = budget) -> Tensor:
            pruned = _call(pruner, pruner, evidence, budget)
            _check_pruned(pruner, pruned, None if budget is None else budget.total(evidence.layout))
            _hold(
                len(pruned.place) in (len(evidence.layout.sample), len(evidence.layout.key)),
                f"{pruner} dropped rows of the result",
            )
            return _scatter(
                pruned, evidence if len(pruned.place) == len(evidence.layout.sample) else evidence.join_views()
            )

        _check_batch_independence(pruner, needs, prune, with_joined=False)
    evidence = make_evidence(needs)
    if token_needs := [need for need in needs if "N" in need.axes]:
        readings = {need: x.clone() for need, x in evidence.readings.items()}
        need = token_needs[0]
        readings[need].movedim((need.axes.index("V"), need.axes.index("N")), (0, 1))[-1, 0] = torch.nan
        try:
            pruner(replace(evidence, readings=readings), budgets[0])
        except ValueError as error:
            _hold("3" in str(error), f"{pruner}: the error does not name sample 3: {error}")
        else:
            _hold(False, f"{pruner} took NaN in {need} without an error")


def _check_pruned(source: object, pruned: Any, total: Tensor | None) -> None:
    _hold(isinstance(pruned, Pruned), f"{source} returned {describe_type(pruned)}, not a Pruned")
    layout = pruned.layout
    real = pruned.place >= 0
    count = real.sum(1)
    _hold(pruned.scores.dtype == torch.float32, f"{source}: scores are {pruned.scores.dtype}, not float32")
    _hold((pruned.scores[~layout.valid] == -torch.inf).all(), f"{source}: scores at padding are not -inf")
    _hold((pruned.kept.sum(1) == count).all(), f"{source} put two output tokens at the same place")
    _hold(not (pruned.kept & ~layout.valid).any(), f"{source} kept padding")
    _hold(pruned.tokens[real].isfinite().all(), f"{source} returned NaN or inf tokens")
    _hold(pruned.tokens[real].abs().lt(POISON / 2).all(), f"{source} let padding into tokens")
    if total is not None:
        kept = layout.total(count)
        _hold(torch.equal(kept, total), f"{source} kept {kept.tolist()} tokens of samples budgeted {total.tolist()}")


def _scatter(pruned: Pruned, evidence: Evidence) -> Tensor:
    """Return [V, N, 1 + D]: 1 at the place of each output token, and the token."""
    real = pruned.place >= 0
    row = torch.arange(len(real))[:, None].expand(real.shape)[real]
    out = torch.zeros(*evidence.layout.column.shape, 1 + pruned.tokens.shape[-1])
    out[row, pruned.place[real], 0] = 1
    out[row, pruned.place[real], 1:] = pruned.tokens[real].float()
    return out


def _check_batch_independence(
    part: object, needs: Iterable[Need], call: Callable[[Evidence], Tensor], with_joined: bool = True
) -> None:
    """Check that rows of each sample in `call` -> [R, N, ...] are equal alone, in the batch and in a second call."""
    needs = tuple(needs)
    for joined in (False, True) if with_joined else (False,):
        batch = make_evidence(needs)
        batch = batch.join_views() if joined else batch
        layout = {field.name: getattr(batch.layout, field.name) for field in fields(batch.layout)}
        with _unchanged(part, tokens=batch.tokens, **layout, **{str(need): x for need, x in batch.readings.items()}):
            together = call(batch)
            again = call(batch)
        valid = _rows_valid(together, batch)
        _hold(torch.equal(together[valid], again[valid]), f"{part} returned another result in a second call")
        for p, (key, grids) in enumerate(SAMPLES.items()):
            single = make_evidence(needs, {key: grids})
            single = single.join_views() if joined else single
            if not grids:
                continue
            alone = call(single)
            rows = _rows_of(together, batch, p)
            in_batch = together[rows]
            count = min(in_batch.shape[1], alone.shape[1])
            a = in_batch[:, :count][valid[rows][:, :count]]
            b = alone[_rows_valid(alone, single)]
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
    """Return scores [V, N] that depend on their sample only."""
    first = evidence.tokens.float()[..., salt % evidence.tokens.shape[-1]]
    return (first + salt).masked_fill(~evidence.layout.valid, padding)


def _check_component(part: Any, kind: type[Component]) -> tuple[Need, ...]:
    """Check that `part` is a component of a kind with needs that can be served; return the needs."""
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


def _call(part: Any, function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a component; its contract errors become AssertionError."""
    try:
        return call_component(part, function, *arguments)
    except ComponentError as error:
        raise AssertionError(str(error)) from error


def _tensor(part: Any, result: Any) -> Tensor:
    _hold(isinstance(result, Tensor), f"{part} returned {describe_type(result)}, not a tensor")
    return result


@contextmanager
def _unchanged(part: Any, **tensors: Tensor) -> Iterator[None]:
    """Check that a component does not change its arguments in place, because other components get the same tensors."""
    before = {name: x.clone() for name, x in tensors.items()}
    yield
    for name, x in tensors.items():
        same = torch.allclose(x, before[name], rtol=0, atol=0, equal_nan=True)
        _hold(same, f"{part} changed the evidence or another argument, {name}, in place: other components use it too")


def _hold(law: object, message: str) -> None:
    if not law:
        raise AssertionError(message)
