import threading

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from support.models import backbone
from vtcframe.core.encoder_readers import KeyStates, MeanQuery, PatchGroups, QueryRow, ReceivedAttention
from vtcframe.hooks.tap import Tap
from vtcframe.testing import check_restored, make_inputs
from vtcframe.testing.tiny_models.llava_families import SAMPLES

ROW = QueryRow()


def vision_attention(model):
    return [block.self_attn for block in model.base_model.vision_tower.encoder.layers]


def llm_attention(model):
    return [block.self_attn for block in model.base_model.language_model.layers]


def encode(model, inputs, **options):
    sizes = {"image_sizes": inputs["image_sizes"]} if "image_sizes" in inputs else {}
    with torch.no_grad():
        return model.base_model.get_image_features(pixel_values=inputs["pixel_values"], **sizes, **options)


def test_rows_equal_eager_attention_weights(family):
    eager, processor = backbone(family, "eager")
    sdpa, _ = backbone(family, "sdpa")
    inputs = make_inputs(processor, SAMPLES["ragged several"])
    want = encode(eager, inputs, output_attentions=True).attentions
    modules = vision_attention(sdpa)
    with Tap({module: [ROW] for module in modules}) as tap:
        out = encode(sdpa, inputs)
    for layer, module in enumerate(modules):
        (row,) = tap[module, ROW]
        assert (row - want[layer][:, :, 0]).abs().max() <= 1e-6
    for a, b in zip(out.pooler_output, encode(sdpa, inputs).pooler_output, strict=True):
        assert torch.equal(a, b)  # the tap changes nothing that it sees


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("index", [0, 7, -1])
def test_rows_of_a_causal_padded_grouped_query_model_equal_eager_weights(attention, side, index):
    model, processor = backbone("llava", attention)
    reference, _ = backbone("llava", "eager")
    inputs = make_inputs(processor, SAMPLES["ragged one"], side)
    with torch.no_grad():
        want = reference(**inputs, output_attentions=True).attentions
        modules = llm_attention(model)
        with Tap({module: [QueryRow(index)] for module in modules}) as tap:
            model(**inputs)
    at = index % inputs["input_ids"].shape[1]
    real = inputs["attention_mask"][:, at].bool()  # a padded query's row means nothing
    for layer, module in enumerate(modules):
        (row,) = tap[module, QueryRow(index)]
        assert (row[real] - want[layer][real, :, at]).abs().max() <= 1e-6


@pytest.fixture(autouse=True)
def stub():
    """A kernel that takes any arguments."""
    ALL_ATTENTION_FUNCTIONS["stub"] = lambda module, query, key, value, mask, **options: (query, None)
    yield
    del ALL_ATTENTION_FUNCTIONS["stub"]


class Kernel(nn.Module):
    """An attention module that calls whatever kernel its config names."""

    def __init__(self, name="stub", causal=False):
        super().__init__()
        self.config = type("Config", (), {"_attn_implementation": name})()
        self.is_causal = causal

    def forward(self, query, key, mask=None, **options):
        kernel = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, None)
        return kernel(self, query, key, key, mask, **options)


def drawn(queries=5, keys=5, heads=4, groups=4, batch=2, width=8):
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(batch, heads, queries, width, generator=generator)
    return query, torch.randn(batch, groups, keys, width, generator=generator)


def row_by_hand(query, key, i, scaling, sees):
    """One softmax at a time, in plain Python."""
    out = torch.zeros(query.shape[0], query.shape[1], key.shape[2])
    share = query.shape[1] // key.shape[1]
    for b in range(query.shape[0]):
        for h in range(query.shape[1]):
            visible = [j for j in range(key.shape[2]) if sees(b, j)]
            weights = [float(query[b, h, i].double() @ key[b, h // share, j].double()) * scaling for j in visible]
            top = max(weights)
            total = sum(torch.tensor(p - top).exp().item() for p in weights)
            for j, p in zip(visible, weights, strict=True):
                out[b, h, j] = torch.tensor(p - top).exp().item() / total
    return out


def observe(module, reader, *args, **options):
    with Tap({module: [reader]}) as tap:
        module(*args, **options)
    return tap[module, reader]


def test_row_equals_a_plain_python_softmax_with_grouped_queries():
    query, key = drawn(groups=2)
    (row,) = observe(Kernel(), QueryRow(3), query, key, scaling=0.3)
    torch.testing.assert_close(row, row_by_hand(query, key, 3, 0.3, lambda b, j: True), atol=1e-6, rtol=0)


def test_row_honours_boolean_additive_and_padding_masks():
    query, key = drawn()
    allowed = torch.rand(2, 1, 5, 5, generator=torch.Generator().manual_seed(1)) > 0.4
    allowed[..., 0] = True
    want = row_by_hand(query, key, 2, 8**-0.5, lambda b, j: bool(allowed[b, 0, 2, j]))
    additive = torch.zeros(allowed.shape).masked_fill(~allowed, torch.finfo(torch.float32).min)
    for mask in (allowed, additive):
        torch.testing.assert_close(observe(Kernel(), QueryRow(2), query, key, mask)[0], want, atol=1e-6, rtol=0)
    padding = torch.tensor([[0, 1, 1, 1, 1], [1, 1, 1, 1, 1]])
    (row,) = observe(Kernel(), QueryRow(2), query, key, padding)
    want = row_by_hand(query, key, 2, 8**-0.5, lambda b, j: bool(padding[b, j]))
    torch.testing.assert_close(row, want, atol=1e-6, rtol=0)


def test_row_of_a_causal_kernel_sees_no_later_key_and_no_key_before_its_window():
    query, key = drawn(queries=3, keys=5)  # two keys come from a cache
    (row,) = observe(Kernel(causal=True), QueryRow(1), query, key)
    torch.testing.assert_close(row, row_by_hand(query, key, 1, 8**-0.5, lambda b, j: j <= 3), atol=1e-6, rtol=0)
    (row,) = observe(Kernel(causal=True), QueryRow(1), query, key, sliding_window=2)
    torch.testing.assert_close(row, row_by_hand(query, key, 1, 8**-0.5, lambda b, j: 1 < j <= 3), atol=1e-6, rtol=0)


@pytest.mark.parametrize("kind", [QueryRow, MeanQuery, ReceivedAttention, KeyStates])
@pytest.mark.parametrize("causal", [False, True])
def test_packed_sequences_are_read_as_if_alone(kind, causal):
    query, key = drawn(queries=14, keys=14, groups=2, batch=1)
    module, reader = Kernel(causal=causal), kind(skip=1, pool=PatchGroups(2))
    results = observe(module, reader, query, key, cu_seq_lens_q=torch.tensor([0, 5, 14], dtype=torch.int32))
    for segment, (start, end) in zip(results, ((0, 5), (5, 14)), strict=True):
        assert torch.equal(segment, observe(module, reader, query[:, :, start:end], key[:, :, start:end])[0])


def test_packed_sequences_give_one_row_a_segment():
    query, key = drawn(queries=7, keys=7, batch=1)
    rows = observe(Kernel(), QueryRow(-1), query, key, cu_seq_lens_q=torch.tensor([0, 3, 7], dtype=torch.int32))
    for row, (start, end) in zip(rows, ((0, 3), (3, 7)), strict=True):
        want = row_by_hand(query[:, :, start:end], key[:, :, start:end], end - start - 1, 8**-0.5, lambda b, j: True)
        torch.testing.assert_close(row, want, atol=1e-6, rtol=0)


def test_heads_are_split_averaged_or_joined_and_logits_come_before_the_softmax():
    query, key = drawn()
    split = row_by_hand(query, key, 0, 8**-0.5, lambda b, j: True)
    torch.testing.assert_close(observe(Kernel(), QueryRow(heads="mean"), query, key)[0], split.mean(1, keepdim=True))
    wide = [x.transpose(1, 2).flatten(2)[:, None] for x in (query, key)]
    joined = row_by_hand(*wide, 0, 32**-0.5, lambda b, j: True)
    torch.testing.assert_close(observe(Kernel(), QueryRow(heads="joined"), query, key)[0], joined, atol=1e-6, rtol=0)
    (logits,) = observe(Kernel(), QueryRow(pre_softmax=True), query, key)
    torch.testing.assert_close(logits.softmax(-1), split, atol=1e-6, rtol=0)
    assert not torch.allclose(logits, split)
    assert torch.equal(observe(Kernel(), KeyStates(), query, key)[0], key)


def test_rows_are_float32_under_autocast_and_from_half_precision():
    query, key = (x.bfloat16() for x in drawn())
    want = row_by_hand(query, key, 0, 8**-0.5, lambda b, j: True)
    with torch.autocast("cpu", torch.bfloat16):
        (row,) = observe(Kernel(), ROW, query, key)
    assert row.dtype == torch.float32
    torch.testing.assert_close(row, want, atol=1e-6, rtol=0)  # bfloat16 products would be 1e-3 off


@pytest.mark.parametrize(
    "reader", [MeanQuery(), MeanQuery(pool=PatchGroups(5)), ReceivedAttention(), QueryRow(pool=PatchGroups(5))]
)
def test_every_reader_is_float32_under_autocast_and_from_half_precision(reader):
    query, key = (x.bfloat16() for x in drawn())
    (want,) = observe(Kernel(), reader, query.float(), key.float())
    with torch.autocast("cpu", torch.bfloat16):
        (results,) = observe(Kernel(), reader, query, key)
    assert results.dtype == torch.float32
    torch.testing.assert_close(results, want, atol=1e-6, rtol=0)
    assert observe(Kernel(), KeyStates(), query, key)[0].dtype == torch.float32


def test_taps_nest_over_the_same_module_and_close_in_order():
    model, processor = backbone("llava")
    inputs, module = make_inputs(processor, SAMPLES["one"]), vision_attention(model)[1]
    with check_restored(model):
        with Tap({module: [ROW]}) as outer:
            encode(model, inputs)
            with Tap({module: [ROW]}) as inner:
                encode(model, inputs)
            encode(model, inputs)
        encode(model, inputs)
    assert len(outer[module, ROW]) == 3
    assert len(inner[module, ROW]) == 1
    assert torch.equal(outer[module, ROW][1], inner[module, ROW][0])


def test_modules_are_restored_after_an_exception():
    model, _ = backbone("llava", "eager")
    with check_restored(model), pytest.raises(ZeroDivisionError), Tap({vision_attention(model)[0]: [ROW]}):
        raise ZeroDivisionError


def test_a_replaced_kernel_is_called_and_restored():
    calls = []
    plain = ALL_ATTENTION_FUNCTIONS["sdpa"]
    ALL_ATTENTION_FUNCTIONS["sdpa"] = lambda *args, **options: calls.append(1) or plain(*args, **options)
    try:
        replacement = ALL_ATTENTION_FUNCTIONS["sdpa"]
        observe(Kernel("sdpa"), ROW, *drawn())
        assert calls
        assert ALL_ATTENTION_FUNCTIONS["sdpa"] is replacement
    finally:
        del ALL_ATTENTION_FUNCTIONS["sdpa"]


def test_the_forward_of_another_thread_is_ignored():
    module, (query, key) = Kernel(), drawn()
    with Tap({module: [ROW]}) as tap:
        thread = threading.Thread(target=module, args=(query, key))
        thread.start()
        thread.join()
        with pytest.raises(LookupError, match="has no readings"):
            tap[module, ROW]
        module(query, key)
    assert len(tap[module, ROW]) == 1


def test_a_module_without_a_kernel_name_is_refused():
    with pytest.raises(TypeError, match="Linear is no attention module"), Tap({nn.Linear(2, 2): [ROW]}):
        pass


class Squares(TorchDispatchMode):
    """Counts tensors with two axes of a length."""

    def __init__(self, length):
        super().__init__()
        self.length, self.functions = length, []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for x in out if isinstance(out, tuple | list) else [out]:
            if isinstance(x, torch.Tensor) and list(x.shape).count(self.length) > 1:
                self.functions.append(str(function))
        return out


class Largest(TorchDispatchMode):
    """The number of elements of the largest tensor made."""

    elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for x in out if isinstance(out, tuple | list) else [out]:
            if isinstance(x, torch.Tensor):
                self.elements = max(self.elements, x.numel())
        return out


@pytest.mark.parametrize("reader", [QueryRow(), MeanQuery(), ReceivedAttention(), KeyStates()])
@pytest.mark.parametrize("length", [2, 17, 1800])
@pytest.mark.parametrize("causal", [False, True])
def test_readers_hold_no_square_matrix_however_long_the_sequence(reader, length, causal):
    query, key = drawn(queries=length, keys=length, heads=3, groups=3, batch=3, width=1)
    with Squares(length) as squares, Largest() as largest:
        observe(Kernel(causal=causal), reader, query, key)
    assert squares.functions == []
    assert largest.elements <= 2**21  # one head's matrix of 1800 x 1800 has more, one sample's five times as many


def test_no_square_matrix_is_made_and_no_implementation_switched(family):
    from vtcframe import Budget, VtcCls, adapter_for

    tokens = 17  # 16 patches and [CLS]; no other size in the model is 17
    model, processor = backbone(family)
    inputs, adapter = make_inputs(processor, SAMPLES["ragged several"]), adapter_for(model)
    with check_restored(model), Squares(tokens) as squares:
        evidence = adapter.observe(inputs, VtcCls().needs)
        VtcCls()(evidence, Budget(tokens=5))
    assert squares.functions == []
    eager, _ = backbone(family, "eager")
    with Squares(tokens) as squares:
        encode(eager, inputs)
    assert squares.functions  # the detector works: eager attention makes them
