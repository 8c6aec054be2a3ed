"""FastV: numbers recorded from the authors' own code."""

import torch

from support.llm_methods import LAST
from support.recorded_cases import each_case_with, layout_of, load_case
from vtcframe import Budget, Evidence
from vtcframe.methods.fastv import FastV

# Recorded numbers


def one_picture(start, n):
    return layout_of([(1, n)], columns=start + torch.arange(n)[None])


@each_case_with("fastv", "kept_indices")
def test_fastv_keeps_what_was_recorded(path):
    tensors, params = load_case(path)
    row, kept = tensors["attn_last_row"], tensors["kept_indices"]
    start, n = params.get("image_start", params.get("sys_length")), params["image_len"]
    assert row.shape[1] == params["seq_len"]
    if "attention_rank" in params:
        budget, layer = Budget(params["attention_rank"]), params["agg_layer"]
    elif "fastv_r" in params:
        budget, layer = Budget(ratio=1 - params["fastv_r"]), params["fastv_k"]
    else:
        budget, layer = Budget(int(n * params["ratio"])), params["K"]
    (stage,) = FastV(layer).stages(budget)
    assert stage.at == f"llm:{layer}"
    found = {LAST: row.mean(0)[None, None, None, start : start + n]}
    pruned = stage.pruner(Evidence(torch.zeros(1, n, 1), one_picture(start, n), found), stage.budget)
    text = [i for i in range(params["seq_len"]) if not start <= i < start + n]
    assert sorted(text + pruned.column[0].tolist()) == kept.tolist()
    if "position_ids_after" in tensors:  # "original"
        assert torch.equal(tensors["position_ids_after"], kept)
    if "kv_cache_lengths" in tensors:  # 35 text tokens in front, 30 behind; the code runs one layer twice
        lengths = tensors["kv_cache_lengths"].tolist()
        before, after = params["seq_len"], len(text) + pruned.place.shape[1]
        assert lengths == [before] * (layer - 1) + [2 * before] + [after] * (len(lengths) - layer)
