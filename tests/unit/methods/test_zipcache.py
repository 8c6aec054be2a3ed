"""ZipCache: twins in plain Python."""

import math
from dataclasses import replace

import pytest
import torch

from vtcframe.core.kernel_call import KernelCall
from vtcframe.core.text_readers import PromptTokens
from vtcframe.methods.zipcache import ProbeAttention, ProbeSaliency, sum_attention
from vtcframe.testing import make_evidence

# Probes


def test_probe_attention_is_the_mean_over_heads():
    scorer = ProbeSaliency(3, 0.1, 0.2, seed=5)
    (need,) = scorer.needs
    assert need == ProbeAttention((3,), 0.1, 0.2, seed=5)
    evidence = make_evidence(scorer.needs)
    by_hand = sum(float(x) for x in evidence[need][0, 2, :, 9]) / 4
    assert float(scorer(evidence)[0, 2, 9]) == pytest.approx(by_hand, abs=1e-6)


def prompts(lengths, gaps=False, heads=4, groups=2, width=8):
    """A causal call over prompts padded on the left, poison at padding; its columns and the samples' keys."""
    longest = max(lengths)
    query, key = (torch.full((len(lengths), h, longest, width), 1e4) for h in (heads, groups))
    column, keys = torch.full((len(lengths), longest), -1), torch.tensor([1000 + n for n in lengths])
    for b, n in enumerate(lengths):
        generator = torch.Generator().manual_seed(n)
        query[b, :, longest - n :] = torch.randn(heads, n, width, generator=generator)
        key[b, :, longest - n :] = torch.randn(groups, n, width, generator=generator)
        at = torch.arange(n)
        column[b, longest - n :] = at + (at > n // 3) * 7 if gaps else at
    real = column >= 0
    seen = torch.ones(longest, longest, dtype=torch.bool).tril() & real[:, None]
    seen |= torch.eye(longest, dtype=torch.bool)  # a row of padding sees itself
    return KernelCall(query, key, seen[:, None], 0.3, False, None), column, keys


def probe_attention(call, need, column, keys):
    """The need's reading; of the prompts it takes columns and hashes only."""
    return need.read_llm(call, PromptTokens(column, keys, column >= 0, keys, column))


def attention(call, b, h, row):
    """One row of softmax over the keys that it sees, the rest 0."""
    group = h // (call.query.shape[1] // call.key.shape[1])
    q = call.query[b, h, row].double().tolist()
    mask = call.mask[b, 0, row].tolist()
    logits = [
        sum(x * y for x, y in zip(q, k, strict=True)) * call.scaling for k in call.key[b, group].double().tolist()
    ]
    top = max(x for x, m in zip(logits, mask, strict=True) if m)
    weights = [math.exp(x - top) if m else 0.0 for x, m in zip(logits, mask, strict=True)]
    return [w / sum(weights) for w in weights]


@pytest.mark.parametrize(
    "need", [ProbeAttention((0,), 0.2, 0.3), ProbeAttention((0,), 0.0, 0.5, seed=3), ProbeAttention((0,), 0.3, 0.0)]
)
def test_probed_equals_its_twin(need):
    lengths = [23, 40, 3]
    call, column, keys = prompts(lengths)
    got, asking = probe_attention(call, need, column, keys), need.probes(column, keys)
    assert got.dtype == torch.float32
    for b, n in enumerate(lengths):
        rows = asking[b].nonzero()[:, 0].tolist()
        recent = max(1, int(need.recent * n))
        assert rows[-recent:] == list(range(40 - recent, 40))
        assert len(rows) == recent + int(need.random * n)
        assert all(row >= 40 - n for row in rows)
        for h in range(4):
            paid = [attention(call, b, h, row) for row in rows]
            for j in range(40):
                seeing = sum(row >= j >= 40 - n for row in rows)
                want = sum(row[j] for row in paid) / seeing if seeing else 0.0
                assert float(got[b, h, j]) == pytest.approx(want, abs=1e-6), (b, h, j)


def test_probes_of_a_sample_are_the_same_in_any_batch_and_by_no_more_than_its_hash_and_seed():
    need = ProbeAttention((0,), 0.1, 0.4)
    call, column, keys = prompts([31, 50, 17], gaps=True)
    whole = need.probes(column, keys)
    paid = probe_attention(call, need, column, keys)
    for b, n in enumerate([31, 50, 17]):
        alone, own, key = prompts([n], gaps=True)
        assert torch.equal(whole[b, 50 - n :], need.probes(own, key)[0])
        assert not whole[b, : 50 - n].any()
        one = probe_attention(alone, need, own, key)
        torch.testing.assert_close(paid[b, :, 50 - n :], one[0], atol=1e-6, rtol=1e-5)
        assert (paid[b, :, : 50 - n] == 0).all()
    assert not torch.equal(whole, replace(need, seed=1).probes(column, keys))
    assert not torch.equal(whole, need.probes(column, keys + 1))
    everyone = ProbeAttention((0,), 0.5, 1.0).probes(column, keys)
    assert torch.equal(everyone, column >= 0)  # never more than there are


def test_masks_of_every_kind_say_the_same_and_chunks_change_nothing():
    need = ProbeAttention((0,), 0.2, 0.3)
    call, column, keys = prompts([40])
    want = probe_attention(call, need, column, keys)
    additive = torch.zeros(call.mask.shape).masked_fill(~call.mask, torch.finfo(torch.float16).min)
    for same in (
        replace(call, mask=additive),
        replace(call, mask=additive.half()),
        replace(call, mask=None, causal=True),
        replace(call, mask=column >= 0, causal=True),
        replace(call, mask=call.mask.expand(-1, 4, -1, -1)),
    ):
        torch.testing.assert_close(probe_attention(same, need, column, keys), want, atol=1e-6, rtol=1e-5)
    small = replace(call, max_elements=500)
    torch.testing.assert_close(probe_attention(small, need, column, keys), want, atol=1e-6, rtol=1e-5)
    free = replace(call, mask=None)  # every query sees every key
    rows = need.probes(column, keys)[0].nonzero()[:, 0]
    _, seen = sum_attention(free, rows)
    assert seen.unique().tolist() == [len(rows)]


def test_no_more_than_probe_rows_are_computed(monkeypatch):
    call, column, keys = prompts([60, 44])
    counts, logits = [], KernelCall.logits

    def count_rows(call, rows, heads="split"):
        counts.append(len(rows))
        return logits(call, rows, heads)

    monkeypatch.setattr(KernelCall, "logits", count_rows)
    probe_attention(call, ProbeAttention((0,)), column, keys)
    assert counts == [3 + 3, 2 + 2]
