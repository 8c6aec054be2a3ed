"""Emulated flash attention beside an independent reference."""

from contextlib import suppress

import pytest
import torch
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from support.tiny_models import CASES, CLOSE, GREEDY, apart, built, logits
from vtcframe.testing.tiny_models import flash
from vtcframe.testing.tiny_models.flash import attention, emulated_flash
from vtcframe.testing.tiny_models.other_families import BACKBONES, FLASH, samples_of
from vtcframe.testing.tiny_models.samples import SAMPLES, make_inputs


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize(("family", "name"), [case for case in CASES if case[0] in FLASH])
def test_emulated_flash_answers_as_sdpa(family, name, side):
    model, processor = built(family)
    inputs = make_inputs(processor, samples_of(family)[name], side)
    want, answer = logits(model, inputs), model.generate(**inputs, **GREEDY)
    with emulated_flash(model):
        got, again = logits(model, inputs), model.generate(**inputs, **GREEDY)
    assert apart(want, got, inputs) <= CLOSE
    # Padded on the right, generate asks a padding token first: sdpa lets it look around, FlashAttention leaves it out.
    whole = inputs["attention_mask"].bool().all(1) if side == "right" else slice(None)
    assert torch.equal(answer[whole], again[whole])


def test_flash_cannot_say_that_pictures_of_gemma_3_see_both_ways():
    model, processor = built("gemma3")
    inputs = make_inputs(processor, SAMPLES["one"])
    with emulated_flash(model):
        assert apart(logits(built("gemma3")[0], inputs), logits(built("gemma3", "eager")[0], inputs), inputs) > 1e-2


@pytest.mark.parametrize("family", sorted(FLASH))
def test_emulated_flash_reaches_every_attention_module_as_flash_attention_would(family, monkeypatch):
    model, processor = built(family)
    calls = []

    def spy(module, query, key, value, attention_mask, **options):
        calls.append((module, attention_mask, options.get("cu_seq_lens_q")))
        return attention(module, query, key, value, attention_mask, **options)

    monkeypatch.setattr(flash, "attention", spy)
    inputs = make_inputs(processor, SAMPLES["ragged one"])
    with emulated_flash(model):
        logits(model, inputs)
    language = [module for module in model.get_decoder().modules() if type(module).__name__.endswith("Attention")]
    assert [module for module, *_ in calls][-len(language) :] == language
    for module, mask, bounds in calls:
        if module in language:
            assert torch.equal(mask, inputs["attention_mask"].bool())
            assert bounds is None
        elif "image_grid_thw" in inputs or family == "mistral3":
            assert bounds is not None  # pictures are packed
    towers = [module for module, *_ in calls if module not in language]
    assert len(towers) == len(set(towers)) == 4


def state(model):
    kernels = [module.config._attn_implementation for module in model.modules() if hasattr(module, "config")]
    return kernels, model.config.text_config._attn_implementation, dict(ALL_ATTENTION_FUNCTIONS._local_mapping)


@pytest.mark.parametrize("family", sorted(FLASH))
@pytest.mark.parametrize("raising", [False, True])
def test_emulated_flash_leaves_nothing_behind(family, raising):
    model, _ = BACKBONES[family]()
    before = state(model)
    assert set(before[0]) == {"sdpa"}
    with suppress(KeyError), emulated_flash(model):
        assert set(state(model)[0]) == {"flash_attention_2"}
        if raising:
            raise KeyError
    assert state(model) == before


def test_emulated_flash_nests_and_gives_back_what_stood_in_the_registry(monkeypatch):
    model, _ = BACKBONES["qwen2_vl"]()
    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._local_mapping, "flash_attention_2", len)
    before = state(model)
    with emulated_flash(model):
        inside = state(model)
        with emulated_flash(model):
            pass
        assert state(model) == inside != before
    assert state(model) == before


class Module:
    is_causal = True


def drawn(batch=1, queries=7, keys=7, heads=4, groups=2):
    generator = torch.Generator().manual_seed(0)
    shapes = (heads, queries), (groups, keys), (groups, keys)
    return [torch.randn(batch, h, n, 8, generator=generator) for h, n in shapes]


def looped_attention(query, key, value, sees):
    """Return [B, Q, H, d], computed by plain loops; `sees(b, q, k)` numbers queries as the last keys."""
    batch, heads, queries, width = query.shape
    out = torch.zeros(batch, queries, heads, width)
    for b in range(batch):
        for h in range(heads):
            for q in range(queries):
                visible = [k for k in range(key.shape[2]) if sees(b, q + key.shape[2] - queries, k)]
                if visible:
                    of = h * key.shape[1] // heads
                    weights = (key[b, of, visible] @ query[b, h, q] * width**-0.5).softmax(0)
                    out[b, q, h] = weights @ value[b, of, visible]
    return out


MASK = torch.tensor([[0, 0, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 0, 0]])


@pytest.mark.parametrize(
    ("options", "sees"),
    [
        ({}, lambda b, q, k: k <= q),
        ({"is_causal": False}, lambda b, q, k: True),
        ({"sliding_window": 3}, lambda b, q, k: q - 3 < k <= q),
        ({"sliding_window": 7}, lambda b, q, k: k <= q),
        ({"sliding_window": 3, "is_causal": False}, lambda b, q, k: abs(q - k) < 3),
        ({"attention_mask": MASK}, lambda b, q, k: k <= q and MASK[b, k] and MASK[b, q]),
        ({"attention_mask": MASK, "is_causal": False}, lambda b, q, k: MASK[b, k] and MASK[b, q]),
        ({"position_ids": torch.tensor([[0, 1, 2, 3, 0, 1, 2]] * 2)}, lambda b, q, k: k <= q),  # a batch is not packed
    ],
)
def test_the_kernel_has_the_masks_of_flash_attention(options, sees):
    query, key, value = drawn(batch=2)
    got, weights = attention(Module(), query, key, value, options.pop("attention_mask", None), **options)
    assert weights is None
    assert torch.allclose(got, looped_attention(query, key, value, sees), atol=1e-6)


@pytest.mark.parametrize(
    "options",
    [
        {"cu_seq_lens_q": torch.tensor([0, 3, 7]), "cu_seq_lens_k": torch.tensor([0, 3, 7])},
        {"position_ids": torch.tensor([[4, 5, 6, 4, 5, 6, 7]])},
    ],
)
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("window", [None, 2])
def test_packed_sequences_do_not_see_each_other(options, causal, window):
    query, key, value = drawn()

    def sees(b, q, k):
        return (q < 3) == (k < 3) and (k <= q or not causal) and (window is None or abs(q - k) < window)

    got, _ = attention(Module(), query, key, value, None, is_causal=causal, sliding_window=window, **options)
    assert torch.allclose(got, looped_attention(query, key, value, sees), atol=1e-6)


def test_positions_with_gaps_are_one_sequence():
    query, key, value = drawn()
    got, _ = attention(Module(), query, key, value, None, position_ids=torch.tensor([[0, 1, 4, 5, 9, 10, 11]]))
    assert torch.allclose(got, looped_attention(query, key, value, lambda b, q, k: k <= q), atol=1e-6)


def test_a_decoded_token_sees_the_whole_cache_but_no_padding():
    query, key, value = drawn(batch=2, queries=1)
    mask = torch.tensor([[0, 0, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0, 1]])
    got, _ = attention(Module(), query, key, value, mask, position_ids=torch.tensor([[4], [3]]))
    assert torch.allclose(got, looped_attention(query, key, value, lambda b, q, k: mask[b, k]), atol=1e-6)


@pytest.mark.parametrize(
    ("error", "says", "options"),
    [
        (TypeError, r"shape \(1, 1, 7, 7\)", {"attention_mask": torch.ones(1, 1, 7, 7)}),
        (NotImplementedError, "softcap=30", {"softcap": 30.0}),
        (
            NotImplementedError,
            "cu_seq_lens_k differ",
            {"cu_seq_lens_q": torch.tensor([0, 3, 7]), "cu_seq_lens_k": torch.tensor([0, 4, 7])},
        ),
    ],
)
def test_the_kernel_refuses_what_it_does_not_emulate(error, says, options):
    with pytest.raises(error, match=says):
        attention(Module(), *drawn(), options.pop("attention_mask", None), **options)
