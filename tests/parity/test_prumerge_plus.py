"""LLaVA-PruMerge+: numbers recorded from the authors' own code."""

from dataclasses import dataclass, replace

import pytest
import torch

from support.recorded_cases import each_case_with, load_case
from support.recorded_merging import close, unsplit
from vtcframe import Budget, Pipeline
from vtcframe.components.allocators import Outliers
from vtcframe.components.ensemblers import Mean
from vtcframe.components.mergers import Absorb
from vtcframe.components.scorers import ClsAttention
from vtcframe.core.verbs import Selector
from vtcframe.methods.prumerge import PruMergePlus
from vtcframe.ops.gather import highest


@dataclass(frozen=True)
class Fixed(Selector):
    """PruMerge+ as VTC-CLS's repository fixes it: the `top` best and every `step`-th token but the last."""

    top: int
    step: int

    def __call__(self, scores, quota, evidence):
        index = torch.arange(scores.shape[1])
        return highest(scores, quota * 0 + self.top) | ((index % self.step == 0) & (index < scores.shape[1] - 1))


@each_case_with("prumerge_plus", "in.q_cls")
def test_prumerge_plus(path):
    tensors, params = load_case(path)
    evidence, want = unsplit(tensors, params["patches"]), tensors["out.kept_indices"].tolist()
    if "token_num" in params:  # its order is that of the fixed number of leaders; tokens come back in half precision
        scorer = ClsAttention(1, blocks="tower", heads="joined")
        selector = Fixed(*{64: (13, 11), 128: (40, 6), 256: (95, 3)}[params["token_num"]])
        pruned = Pipeline((scorer,), Mean(), Outliers(), selector, Absorb())(evidence, Budget(params["out_len"]))
        ours = pruned.place[0, :-1].tolist()
        assert sorted(ours) == sorted(want)
        order = [*(ours.index(i) for i in want), len(want)]
        close(pruned.tokens[0, order], tensors["out.tokens"], 3e-3)
    else:
        pruned = PruMergePlus(params["neighbours"])(evidence)
        assert pruned.place[0, :-1].tolist() == want
        close(pruned.tokens[0], tensors["out.tokens"])


def sample_by_hand(count, above):
    """PruMerge+'s step as its code finds it, for a number of outliers."""
    return int(int(1 / (above / count)) / 3)


@pytest.mark.parametrize("above", [1, 5, 35, 46, 57, 95, 96, 97, 144])
def test_prumerge_plus_takes_the_steps_of_its_code_but_those_that_drop_nothing(above):
    scores = torch.zeros(1, 576)
    scores[0, 1 : 1 + above] = 1 + torch.arange(above)
    evidence = unsplit({"in.hidden": torch.rand(577, 4), "in.k": torch.rand(577, 4), "in.q_cls": torch.rand(1, 4)}, 576)
    (need,) = ClsAttention(1, blocks="tower", heads="joined").needs
    pruned = PruMergePlus()(replace(evidence, readings=evidence.readings | {need: scores[None, :, None]}))
    step = sample_by_hand(576, above)
    assert step > 1 or above > 96
    kept = set(range(0, 575, max(step, 2))) | set(range(1, 1 + above))
    assert len(kept) < 576
    assert set(pruned.place[0, :-1].tolist()) == kept
