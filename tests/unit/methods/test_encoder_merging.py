"""Methods that merge inside the encoder, beside twins in plain Python."""

import math
from dataclasses import replace

import pytest
import torch

from support.encoder_stages import best_of, cos, drawn, ranked, tome_by_hand
from vtcframe.methods.diffrate import DiffRateStep
from vtcframe.methods.mctf import MctfStep
from vtcframe.methods.tome import ToMeStep


def mctf_by_hand(step, tokens, attended, size, classes):
    n = len(tokens)
    r = int(n * step.r) if step.r < 1 else min(int(step.r), max(0, n + classes - 10))
    r = min(r, n // 2)
    if not r:
        return list(range(n)), list(range(n))
    even = [i for i in range(n) if (i + classes) % 2 == 0]
    odd = [i for i in range(n) if (i + classes) % 2]
    inverse, small = [1 / a for a in attended], [1 / s for s in size]
    inverse, small = [x / max(inverse) for x in inverse], [x / max(small) for x in small]
    pairs = {i: {} for i in even}
    for i in even:
        for j in odd:
            score = 1.0
            for value, tau in zip(
                ((1 + cos(tokens[i], tokens[j])) / 2, inverse[i] * inverse[j], small[i] * small[j]),
                step.temperatures,
                strict=True,
            ):
                score *= value ** (1 / tau) if tau else 1
            pairs[i][j] = math.log(score)
    forth = r // 2 if step.two_way else r
    to, best = {}, {}
    for i in even:
        to[i], best[i] = best_of(pairs, i, odd)
    order = ranked(even, best)
    gone, stay = order[:forth], order[forth:]
    if classes:
        stay.sort()
    leader = [to[i] if i in gone else i for i in range(n)]
    if not step.two_way:
        return stay + odd, leader
    turned = {j: {i: pairs[i][j] for i in even} for j in odd}
    back, top = {}, {}
    for j in odd:
        back[j], top[j] = best_of(turned, j, sorted(stay))
    rest = ranked(odd, top)
    for j in rest[: r - forth]:
        leader = [back[j] if lead == j else lead for lead in leader]
    return stay + rest[r - forth :], leader


def equal_to_twin(merged, evidence, twin, weight, pooling="mean", gain=None):
    """`twin(v, n)` gives the leaders in order and the leader of each, None = gone."""
    weight = weight.tolist()
    for v in range(len(evidence.layout.sample)):
        n = int(evidence.layout.count[v])
        order, leader = twin(v, n)
        assert merged.place[v, : len(order)].tolist() == order, v
        assert (merged.place[v, len(order) :] == -1).all()
        for row, lead in enumerate(order):
            members = [i for i in range(n) if leader[i] == lead]
            total = sum(weight[v][i] for i in members)
            for c in range(evidence.tokens.shape[2]):
                values = [float(evidence.tokens[v, i, c]) for i in members]
                want = (
                    max(values)
                    if pooling == "max"
                    else sum(weight[v][i] * x for i, x in zip(members, values, strict=True)) / total
                )
                assert float(merged.tokens[v, row, c]) == pytest.approx(want, abs=1e-5)
            grown = sum(float(evidence.size[v, i]) if gain is None else gain(v, i, lead) for i in members)
            assert float(merged.size[v, row]) == pytest.approx(grown, abs=1e-4)
            assert all(int(merged.group[v, i]) == row for i in members)
        assert all(int(merged.group[v, i]) == -1 for i in range(n) if leader[i] is None)
        assert (merged.group[v, n:] == -1).all()


def lists(values, v, n):
    return values[v, :n].tolist()


@pytest.mark.parametrize("levels", [0, 1, 2])
@pytest.mark.parametrize("classes", [0, 1, 2])
@pytest.mark.parametrize("r", [0, 1, 3, 99])
def test_tome_equals_its_twin(r, classes, levels):
    step = ToMeStep(r)
    for seed in range(3):
        evidence = drawn(step.needs, seed, levels, classes)
        keys = evidence[step.needs[0]][0].mean(1)
        equal_to_twin(
            step(evidence), evidence, lambda v, n, k=keys: tome_by_hand(lists(k, v, n), r, classes), evidence.size
        )


@pytest.mark.parametrize("levels", [0, 1, 2])
@pytest.mark.parametrize("classes", [0, 1])
@pytest.mark.parametrize(
    "step",
    [
        MctfStep(0.35),
        MctfStep(0.5, temperatures=(2, 5, 10), pooling="size"),
        MctfStep(16, temperatures=(1, 0, 4), two_way=False, pooling="max"),
        MctfStep(3, temperatures=(0, 3, 2), pooling="mean"),
        MctfStep(0.45, two_way=False),
    ],
    ids=str,
)
def test_mctf_equals_its_twin(step, classes, levels):
    for seed in range(3):
        evidence = drawn(step.needs, seed, levels, classes)
        attended = evidence[step.needs[0]][0, :, 0]

        def twin(v, n, evidence=evidence, attended=attended):
            parts = (lists(x, v, n) for x in (evidence.tokens, attended, evidence.size))
            return mctf_by_hand(step, *parts, classes)

        ones = torch.ones_like(attended)
        weight = {"attention": attended * evidence.size, "size": evidence.size}.get(step.pooling, ones)
        equal_to_twin(step(evidence), evidence, twin, weight, step.pooling)


@pytest.mark.parametrize("levels", [0, 2])
@pytest.mark.parametrize("classes", [0, 1])
@pytest.mark.parametrize(("prune", "keep"), [(99, 99), (6, 6), (99, 4), (8, 5), (3, 2), (4, 9)])
def test_diffrate_equals_its_twin(prune, keep, classes, levels):
    step = DiffRateStep(prune, keep)
    for seed in range(3):
        evidence = drawn(step.needs, seed, levels, classes)
        evidence = replace(evidence, tokens=evidence.tokens - 0.5 * evidence.layout.valid[..., None])
        scores = evidence[step.needs[0]][0].mean(1)

        def twin(v, n, evidence=evidence, scores=scores):
            tokens = lists(evidence.tokens, v, n)
            order = sorted(range(n), key=lambda i: (-float(scores[v, i]), i))
            kept = order[: min(prune - classes, keep - classes)]
            leader: list = [None] * n
            for i in order[: prune - classes]:
                near = [cos(tokens[i], tokens[k]) for k in kept]
                leader[i] = i if i in kept else kept[next(k for k, x in enumerate(near) if x >= max(near) - 1e-6)]
            return sorted(kept), leader

        def gain(v, i, lead, evidence=evidence):
            alike = 1 if i == lead else max(0, cos(evidence.tokens[v, i].tolist(), evidence.tokens[v, lead].tolist()))
            return alike * float(evidence.size[v, i])

        equal_to_twin(step(evidence), evidence, twin, torch.ones_like(scores), gain=gain)
