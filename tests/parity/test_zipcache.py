"""ZipCache: numbers recorded from the authors' own code."""

import torch

from support.recorded_cases import each_case_with, load_case
from vtcframe.core.kernel_call import KernelCall
from vtcframe.methods.zipcache import sum_attention


@each_case_with("zipcache", "saliency")
def test_salience_of_zipcache_with_its_own_probes_and_divisor(path):
    tensors, params = load_case(path)
    query, key, length = tensors["q"], tensors["k"], params["S"]
    call = KernelCall(query[None], key[None], None, query.shape[-1] ** -0.5, True, None)
    total, seen = sum_attention(call, tensors["probe_ids"])
    later = length - torch.arange(length)  # all queries that see a token, probes or not
    salience = (total[0] / later).unflatten(0, (-1, params["groups"])).sum(1)
    torch.testing.assert_close(salience, tensors["saliency"], atol=2e-6, rtol=2e-5)
    low = salience.argsort(dim=1, stable=True)[:, : params["n_unimportant"]].sort(1).values
    assert torch.equal(low, tensors["unimportant_ids"].sort(1).values)
    assert seen[0, 0].tolist() == [int((tensors["probe_ids"] >= j).sum()) for j in range(length)]
