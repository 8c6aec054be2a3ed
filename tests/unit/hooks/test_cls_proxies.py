"""Proxies for [CLS]: each reader beside a reference that computes complete matrices in float64."""

from dataclasses import replace

import pytest
import torch

from support.models import backbone
from vtcframe.core.encoder_readers import KeyStates, MeanQuery, PatchGroups, QueryRow, ReceivedAttention
from vtcframe.core.kernel_call import KernelCall
from vtcframe.hooks.tap import Tap
from vtcframe.testing import make_inputs
from vtcframe.testing.tiny_models.llava_families import SAMPLES

POISON, SKIP, LENGTH = 1e4, 1, 13  # one class token, twelve patches


SIDES = {"right": slice(LENGTH - 5, None), "left": slice(0, 5)}


def padded(side):
    """[2, K] bool: the second sample has five places of padding, so that a group of four is cut in two."""
    real = torch.ones(2, LENGTH, dtype=torch.bool)
    real[1, SIDES[side]] = False
    return real


def drawn(real, groups=2):
    """Query of four heads and key of two, which `groups` share, poison at padding."""
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(2, 4, LENGTH, 8, generator=generator)
    key = torch.randn(2, groups, LENGTH, 8, generator=generator)
    return query.masked_fill(~real[:, None, :, None], POISON), key.masked_fill(~real[:, None, :, None], POISON)


def calls():
    """Name -> (call, what each query sees [2, Q, K], which places are real [2, K])."""
    everything = torch.ones(2, LENGTH, dtype=torch.bool)
    square = torch.ones(LENGTH, LENGTH, dtype=torch.bool)
    window = square.tril() & square.triu(-2)
    built = {}
    for name, real, sees, causal, size in (
        ("none", everything, square, False, None),
        ("causal", everything, square.tril(), True, None),
        ("window", everything, window, True, 3),
        ("padded right", padded("right"), square, False, None),
        ("padded left, causal", padded("left"), square.tril(), True, None),
    ):
        sees = sees & real[:, None, :]
        masks = {"flat": real} if not real.all() else {"without": None}
        masks |= {"one row for all": real[:, None, None]} if not causal else {}
        masks["bool"] = sees[:, None]
        masks["additive"] = torch.zeros(sees[:, None].shape).masked_fill(~sees[:, None], torch.finfo(torch.float32).min)
        masks["infinite"] = torch.zeros(sees[:, None].shape).masked_fill(~sees[:, None], -torch.inf)
        for kind, mask in masks.items():
            built[f"{name}, {kind} mask"] = KernelCall(*drawn(real), mask, 0.3, causal, size), sees, real
    return built


CALLS = calls()


every_call = pytest.mark.parametrize("name", CALLS)


def matrix(call, sees):
    """[B, H, Q, K] float64, rows of padding meaningless."""
    key = call.key.double().repeat_interleave(call.query.shape[1] // call.key.shape[1], 1)
    raw_attention = torch.einsum("bhqd,bhkd->bhqk", call.query.double(), key) * call.scaling
    return raw_attention.masked_fill(~sees[:, None], -torch.inf).softmax(-1)


def grouped(values):
    """Mean of each four patches behind the class token, in plain Python."""
    groups = [[SKIP + 4 * i + j for j in range(4)] for i in range((LENGTH - SKIP) // 4)]
    return torch.stack([sum(values[..., j] for j in group) / 4 for group in groups], -1)


def close(computed, want):
    assert computed.dtype == torch.float32
    torch.testing.assert_close(computed.double(), want, atol=1e-6, rtol=0)


@every_call
def test_row_leaves_class_tokens_out_and_pools_behind_the_softmax(name):
    call, sees, _ = CALLS[name]
    whole = matrix(call, sees)[:, :, 6]
    close(QueryRow(6, skip=SKIP)(call), whole[..., SKIP:])
    close(QueryRow(6, skip=SKIP, pool=PatchGroups(4))(call), grouped(whole))
    close(QueryRow(6, heads="mean", skip=SKIP, pool=PatchGroups(4))(call), grouped(whole).mean(1, keepdim=True))


def received_by_hand(call, sees, real):
    whole = matrix(call, sees)
    computed = torch.zeros(2, 4, LENGTH, dtype=torch.double)
    for b in range(2):
        queries = [q for q in range(SKIP, LENGTH) if real[b, q]]
        for q in queries:
            computed[b] += whole[b, :, q] / len(queries)
    return computed


@pytest.mark.parametrize("elements", [1, 150, 2**20], ids=["row by row", "few rows", "many"])
@every_call
def test_received_is_the_mean_over_the_rows_of_patches(name, elements):
    call, sees, real = CALLS[name]
    call = replace(call, max_elements=elements)
    want = received_by_hand(call, sees, real)
    close(ReceivedAttention(skip=SKIP)(call), want[..., SKIP:])
    close(ReceivedAttention(skip=SKIP, pool=PatchGroups(4))(call), grouped(want))
    close(ReceivedAttention(heads="mean", skip=SKIP, pool=PatchGroups(4))(call), grouped(want).mean(1, keepdim=True))
    assert not ReceivedAttention(skip=SKIP)(call)[(~real)[:, None, SKIP:].expand(2, 4, -1)].any()


def mean_query_by_hand(call, real, size):
    """Logits [B, H, T] float64, -inf where a token has no patch."""
    raw_attention = torch.full((2, 4, (LENGTH - SKIP) // size), -torch.inf, dtype=torch.double)
    for b in range(2):
        query = torch.stack([call.query[b, :, q].double() for q in range(SKIP, LENGTH) if real[b, q]]).mean(0)
        for t in range(raw_attention.shape[2]):
            patches = [k for k in range(SKIP + t * size, SKIP + (t + 1) * size) if real[b, k]]
            for h in range(4 if patches else 0):
                key = sum(call.key[b, h // 2, k].double() for k in patches) / len(patches)
                raw_attention[b, h, t] = (query[h] @ key) * call.scaling
    return raw_attention


@every_call
def test_mean_query_attends_to_the_mean_keys_of_the_tokens(name):
    call, _, real = CALLS[name]
    close(MeanQuery(skip=SKIP)(call), mean_query_by_hand(call, real, 1).softmax(-1))
    logits = mean_query_by_hand(call, real, 4)
    close(MeanQuery(skip=SKIP, pool=PatchGroups(4))(call), logits.softmax(-1))
    mean = logits.softmax(-1).mean(1, keepdim=True)
    close(MeanQuery(heads="mean", skip=SKIP, pool=PatchGroups(4))(call), mean)
    computed = MeanQuery(pre_softmax=True, skip=SKIP, pool=PatchGroups(4))(call).double()
    close(computed[logits.isfinite()].float(), logits[logits.isfinite()])
    assert (computed[logits.isinf()] < -1e30).all()


def test_mean_query_of_joined_heads_is_that_of_one_wide_head():
    real = torch.ones(2, LENGTH, dtype=torch.bool)
    query, key = drawn(real, groups=4)
    wide = [x.transpose(1, 2).flatten(2)[:, None] for x in (query, key)]
    want = MeanQuery(skip=SKIP, pool=PatchGroups(4))(KernelCall(*wide, None, 32**-0.5, False, None))
    computed = MeanQuery(heads="joined", skip=SKIP, pool=PatchGroups(4))(KernelCall(query, key, None, 0.3, False, None))
    close(computed, want.double())


def test_key_states_are_means_of_groups_behind_the_class_token():
    call, _, _ = CALLS["none, without mask"]
    assert torch.equal(KeyStates(skip=SKIP)(call), call.key[:, :, SKIP:])
    want = grouped(call.key.double().transpose(2, 3)).transpose(2, 3)
    close(KeyStates(SKIP, PatchGroups(4))(call), want)


def test_a_padded_sample_reads_the_same_alone_without_its_padding():
    call, _, real = CALLS["padded right, bool mask"]
    n = int(real[1].sum())
    alone = KernelCall(call.query[1:, :, :n], call.key[1:, :, :n], None, call.scaling, False, None)
    for reader in (QueryRow(3, skip=SKIP), MeanQuery(skip=SKIP), ReceivedAttention(skip=SKIP)):
        close(reader(call)[1:, :, : n - SKIP], reader(alone).double())


def test_a_probe_outside_the_sequence_is_a_query_too():
    call, _, real = CALLS["padded right, flat mask"]
    probe = KernelCall(call.query[:, :, 2:3], call.key, real, call.scaling, False, None)
    want = matrix(probe, real[:, None])[:, :, 0]
    close(ReceivedAttention()(probe), want)
    close(MeanQuery()(probe), want)
    close(ReceivedAttention(skip=SKIP)(probe), want[..., SKIP:])


def test_behind_a_cache_class_tokens_are_counted_from_its_beginning():
    call, sees, _ = CALLS["causal, without mask"]
    last = KernelCall(call.query[:, :, -4:], call.key, None, call.scaling, True, None)
    whole = matrix(call, sees)
    close(ReceivedAttention(skip=SKIP)(last), whole[:, :, -4:, SKIP:].mean(2))
    close(ReceivedAttention(skip=LENGTH - 3)(last), whole[:, :, -3:, LENGTH - 3 :].mean(2))
    padded, sees, real = CALLS["padded left, causal, bool mask"]
    last = KernelCall(padded.query[:, :, -10:], padded.key, padded.mask[:, :, -10:], padded.scaling, True, None)
    whole = matrix(padded, sees)
    real_queries = [[q for q in range(LENGTH - 10, LENGTH) if real[b, q]] for b in range(2)]
    close(ReceivedAttention()(last), torch.stack([whole[b][:, real_queries[b]].mean(1) for b in range(2)]))


def test_patches_that_make_no_whole_groups_are_an_error():
    call, _, _ = CALLS["none, without mask"]
    with pytest.raises(ValueError, match="13 patches make no groups of 4"):
        ReceivedAttention(pool=PatchGroups(4))(call)


def test_readers_with_the_same_pool_are_one_reader():
    for kind in (QueryRow, MeanQuery, ReceivedAttention, KeyStates):
        assert len({kind(skip=1, pool=PatchGroups(4)), kind(skip=1, pool=PatchGroups(4)), kind(skip=1)}) == 2


def encode(model, inputs, **options):
    sizes = {"image_sizes": inputs["image_sizes"]} if "image_sizes" in inputs else {}
    with torch.no_grad():
        return model.base_model.get_image_features(pixel_values=inputs["pixel_values"], **sizes, **options)


def test_readers_of_a_tower_equal_those_of_eager_weights(family):
    eager, processor = backbone(family, "eager")
    model, _ = backbone(family, "sdpa")
    inputs = make_inputs(processor, SAMPLES["ragged several"])
    whole = encode(eager, inputs, output_attentions=True, output_hidden_states=True)
    blocks = list(model.base_model.vision_tower.encoder.layers)
    received, mean = ReceivedAttention(skip=1, pool=PatchGroups(4)), MeanQuery(skip=1)
    with Tap({block.self_attn: [received, mean] for block in blocks}) as tap:
        encode(model, inputs)
    for block, weights, hidden in zip(blocks, whole.attentions, whole.hidden_states, strict=False):
        want = weights.double()[:, :, 1:, 1:].mean(2)
        close(tap[block.self_attn, received][0], want.unflatten(-1, (-1, 4)).mean(-1))
        with torch.no_grad():
            x = block.layer_norm1(hidden)
            query, key = (
                projection(x).double().unflatten(-1, (block.self_attn.num_heads, -1)).transpose(1, 2)[:, :, 1:]
                for projection in (block.self_attn.q_proj, block.self_attn.k_proj)
            )
        raw_attention = (query * query.shape[-1] ** -0.5 @ key.transpose(-1, -2)).mean(
            2
        )  # the mean of a linear function
        close(tap[block.self_attn, mean][0], raw_attention.softmax(-1))


@pytest.mark.parametrize("kind", ["sdpa", "eager"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_received_in_a_causal_padded_grouped_query_model_equals_that_of_eager_weights(kind, side):
    model, processor = backbone("llava", kind)
    reference, _ = backbone("llava", "eager")
    inputs = make_inputs(processor, SAMPLES["ragged one"], side)
    real = inputs["attention_mask"].bool()
    modules = [block.self_attn for block in model.base_model.language_model.layers]
    with torch.no_grad():
        whole = reference(**inputs, output_attentions=True).attentions
        with Tap({module: [ReceivedAttention()] for module in modules}) as tap:
            model(**inputs)
    assert not real.all()
    for module, weights in zip(modules, whole, strict=True):
        want = torch.stack(
            [of_batch[:, is_real].double().mean(1) for of_batch, is_real in zip(weights, real, strict=True)]
        )
        close(tap[module, ReceivedAttention()][0], want)
