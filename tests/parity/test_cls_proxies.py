"""Proxies for [CLS]: numbers recorded from the authors' own code."""

import json

import torch
from safetensors.torch import load_file

from support.recorded_cases import GOLDEN
from vtcframe.core.encoder_readers import MeanQuery, PatchGroups, ReceivedAttention
from vtcframe.core.kernel_call import KernelCall

FOLDER = GOLDEN / "qwen_cls_proxy"


def recorded(name):
    return load_file(FOLDER / f"{name}.safetensors"), json.loads((FOLDER / f"{name}.json").read_text())["params"]


def test_mean_query_of_each_temporal_slice_equals_fastvid():
    tensors, params = recorded("fastvid_mean_query")
    frames, rows, columns = params["grid_thw"]
    query, key = (
        tensors[name].unflatten(0, (frames, rows * columns)).transpose(1, 2) for name in ("q_rotated", "k_rotated")
    )
    found = MeanQuery(heads="mean", pool=PatchGroups(4))(
        KernelCall(query, key, None, params["head_dim"] ** -0.5, False, None)
    )
    torch.testing.assert_close(found[:, 0], tensors["score"], atol=1e-7, rtol=1e-5)


def test_received_pooled_and_put_in_raster_order_equals_vscan():
    tensors, params = recorded("vscan_received_attention")
    n, heads = params["patches"], params["heads"]
    # Logits that give the recorded weights back: their logarithms, as queries of keys that are unit vectors.
    call = KernelCall(tensors["attn"].log()[None], torch.eye(n).expand(1, heads, n, n), None, 1.0, False, None)
    found = ReceivedAttention(pool=PatchGroups(params["merge"]))(call)[0].sum(0)
    torch.testing.assert_close(found[tensors["reverse_indices"]], tensors["score"], atol=1e-7, rtol=1e-5)
