"""AIM: numbers recorded from the authors' own code."""

import re
from dataclasses import replace

import torch

from support.aim import FLOW
from support.recorded_cases import each_case, layout_of, load_case
from vtcframe import Budget, Evidence
from vtcframe.core.kernel_call import KernelCall
from vtcframe.methods.aim import Aim, BipartiteMerge, TokenPageRank, page_rank

# recorded


@each_case("aim")
def test_aim(path):
    tensors, params = load_case(path)
    kinds = {"x": bipartite, "logits": importance, "mask_entering_layer": schedule}
    (check,) = (check for name, check in kinds.items() if name in tensors)
    check(tensors, params)


def bipartite(tensors, params):
    x = tensors.pop("x")
    evidence = Evidence(x, layout_of([(1, x.shape[1])] * len(x)))
    for want in tensors.values():
        got = BipartiteMerge()(evidence, Budget(want.shape[1]))
        torch.testing.assert_close(got.tokens, want, atol=2e-5, rtol=2e-5)


def importance(tensors, params):
    logits = tensors["logits"][None]  # as queries that read off a key each
    call = KernelCall(logits, torch.eye(logits.shape[2])[None, None], None, 1.0, True, None)
    scorer = TokenPageRank(0, temperature=params["tau_imp"], steps=params["iters"])
    assert params["d"] == 0
    n = logits.shape[2]
    evidence = Evidence(
        torch.zeros(1, n, 1),
        layout_of([(1, n)]),
        {scorer.needs[0]: page_rank(call, scorer.temperature, scorer.steps)[None]},
    )
    torch.testing.assert_close(scorer(evidence)[0, 0], tensors["importance"], atol=1e-6, rtol=2e-5)


def schedule(tensors, params):
    start, end, _ = params["boundaries"]
    found = re.fullmatch(r"max\(0,1-\(l-(\d+)\)/(\d+)\) for l>=(\d+) else 1", params["retain"])
    before, span, first = map(int, found.groups())
    assert first == before + 1
    n, seen = end - start, tensors["mask_entering_layer"].bool()
    _, *inside = Aim(first + 1, span).stages(None)
    own = replace(layout_of([(1, n)]), untouched=torch.tensor([4 * n]))  # of which merging has left a quarter
    evidence = Evidence(torch.zeros(1, n, 1), own)
    stages = {stage.layer: stage for stage in inside if stage.layer < params["layers"]}
    for layer in range(params["layers"]):
        if layer in stages:
            judged = tensors["importance"][layer - 1, start:end]
            left = evidence.layout.column[0]
            evidence = replace(evidence, readings={FLOW: judged[left][None, None, None]})
            evidence = evidence.restrict_to(stages[layer].pruner(evidence, stages[layer].budget))
        assert evidence.layout.column[0].tolist() == seen[layer, start:end].nonzero()[:, 0].tolist()
