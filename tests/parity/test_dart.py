"""DART: numbers recorded from the authors' own code."""

import torch

from support.recorded_cases import each_case, layout_of, load_case
from vtcframe import Budget, Evidence
from vtcframe.components.scorers import KeyNorm
from vtcframe.core.needs import TextTokens
from vtcframe.methods.dart import KEYS, STATES, Dart, PivotDissimilarity


@each_case("dart")
def test_dart(path):
    tensors, params = load_case(path)
    start, n = params["image_start"], params["image_len"]
    keys, states, order = tensors["k_states"], tensors["normed_hidden"], tensors["pivot_order"].tolist()
    image, behind = slice(start, start + n), slice(start + n, None)
    found = {
        KEYS: keys[None, None, :, image],
        TextTokens(KEYS): keys[:, behind].movedim(0, 1).flatten(1)[None],
        STATES: states[None, image],
        TextTokens(STATES): states[None, behind],
    }
    evidence = Evidence(states[None, image], layout_of([(1, n)]), found)
    selector, quota = PivotDissimilarity(params["pivot_image"], params["pivot_text"]), torch.tensor([params["n_kept"]])
    scores = KeyNorm(tower="llm")(evidence)[0]
    kept, pivots, there = selector.find_pivots(scores, quota, evidence)
    assert there.all()
    assert (kept[0].nonzero()[:, 0] + start).tolist() == sorted(i for i in order if i < start + n)
    # the recorded order is that of a Python set: bring ours, by falling length, into it
    ours = [(pivot == states).all(1).nonzero().item() for pivot in pivots[0]]
    assert sorted(ours) == sorted(order)
    pivots = pivots[:, [ours.index(i) for i in order]]
    chosen = selector.select_around(kept, pivots, there, quota, evidence)
    assert (chosen[0].nonzero()[:, 0] + start).tolist() == tensors["kept_indices"].tolist()
    assert params["n_kept"] == params["pivot_image"] + len(order) * params["per_pivot"]
    method = Dart(2, image_pivots=params["pivot_image"], text_pivots=params["pivot_text"])
    whole = method(evidence, Budget(params["n_kept"]))
    assert whole.total.tolist() == [params["n_kept"]]
    assert not (kept & ~whole.kept).any()
