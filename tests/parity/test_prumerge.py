"""LLaVA-PruMerge: numbers recorded from the authors' own code."""

from support.recorded_cases import each_case_with, load_case
from support.recorded_merging import close, unsplit
from vtcframe.methods.prumerge import PruMerge


@each_case_with("prumerge", "in.q_cls")
def test_prumerge(path):
    tensors, params = load_case(path)
    pruned = PruMerge(params["neighbours"])(unsplit(tensors, params["patches"]))
    assert pruned.place[0, :-1].tolist() == tensors["out.kept_indices"].tolist()
    close(pruned.tokens[0], tensors["out.tokens"])
    close(pruned.scores[0], tensors["out.cls_attn"], 1e-7)
