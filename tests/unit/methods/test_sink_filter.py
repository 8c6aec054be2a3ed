"""SinkFilter: twins in plain Python."""

import math
from dataclasses import replace

import torch

from support.llm_methods import DIMS, LAST, SINKLESS
from vtcframe.testing import make_evidence


def test_sinks_rank_below_all_others_of_their_sample_and_keep_their_order():
    evidence = make_evidence(SINKLESS.needs)
    evidence = replace(evidence, tokens=evidence.tokens * 2 - 1)  # channels stand out on either side
    for shift in (0.0, -0.5, -7.0):  # scores need not be positive
        found = {LAST: evidence[LAST] + shift}
        maps, plain = SINKLESS(replace(evidence, readings=found))[0], found[LAST][0, :, 0]
        told = 0
        for p, views in enumerate([[0], [1, 2, 3], [], [4, 5]]):
            sinks, others = [], []
            for v in views:
                for n in range(int(evidence.layout.count[v])):
                    h = evidence.tokens[v, n].double().tolist()
                    length = math.sqrt(sum(x * x for x in h) / len(h) + 1e-6)
                    own = sinks if max(abs(h[d]) / length for d in DIMS) > 1.5 else others
                    own.append((float(plain[v, n]), float(maps[v, n])))
            assert bool(views) == bool(sinks) == bool(others), p
            assert all(before == after for before, after in others)
            if views:
                assert max(after for _, after in sinks) < min(after for _, after in others)
            assert [after for _, after in sorted(sinks)] == sorted({after for _, after in sinks})
            told += len(sinks)
        assert told > 20


def test_sinks_of_zero_or_equal_scores_are_below_too():
    evidence = make_evidence((LAST,))
    for level in (0.0, 1e-8, 3.0, -2.0):
        maps = SINKLESS(replace(evidence, readings={LAST: torch.full_like(evidence[LAST], level)}))[0]
        sinks = SINKLESS.find_sinks(evidence.tokens) & evidence.layout.valid
        assert sinks.any()
        assert (maps[sinks] < level).all()
        assert (maps[~sinks & evidence.layout.valid] == level).all()
