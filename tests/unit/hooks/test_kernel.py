"""The tap on attention modules outside the registry of transformers: arguments, nesting and errors."""

import threading

import pytest
import torch
from torch import nn
from torch.overrides import _get_current_function_mode_stack

from support.gates import ROW, TIMM, open_clip_model, pixels, randomised
from support.models import backbone
from vtcframe.core.encoder_readers import QueryRow
from vtcframe.hooks.tap import Tap
from vtcframe.testing import check_restored, make_inputs
from vtcframe.testing.tiny_models.llava_families import SAMPLES


def masks_of(kind, heads):
    """Keyword arguments of a MultiheadAttention over two samples of six tokens."""
    generator = torch.Generator().manual_seed(3)
    hides = torch.rand(2 * heads, 6, 6, generator=generator) > 0.6
    hides[:, range(6), range(6)] = False
    padding = torch.tensor([[False] * 6, [False] * 4 + [True] * 2])
    added = torch.zeros(hides.shape).masked_fill(hides, -torch.inf)
    return {
        "none": {},
        "bool": {"attn_mask": hides[0]},
        "additive": {"attn_mask": added[0]},
        "a mask a head": {"attn_mask": hides},
        "padding": {"key_padding_mask": padding},
        "additive padding": {"key_padding_mask": torch.zeros(2, 6).masked_fill(padding, -torch.inf)},
        "both": {"attn_mask": hides[0], "key_padding_mask": padding},
        "both, additive": {
            "attn_mask": added,
            "key_padding_mask": torch.zeros(2, 6).masked_fill(padding, -torch.inf),
        },
    }[kind]


@torch.no_grad()
@pytest.mark.parametrize("kind", ["none", "bool", "additive", "a mask a head", "padding", "additive padding", "both",
                                  "both, additive"])  # fmt: skip
@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("options", [{}, {"bias": False}, {"kdim": 12, "vdim": 12}], ids=str)
def test_rows_of_multihead_attention_under_all_its_masks(kind, batch_first, options):
    module = randomised(nn.MultiheadAttention(16, 2, batch_first=batch_first, **options))
    generator = torch.Generator().manual_seed(4)
    query = torch.randn(2, 6, 16, generator=generator)
    key = torch.randn(2, 6, 12, generator=generator) if options.get("kdim") else query
    query, key = (x if batch_first else x.transpose(0, 1) for x in (query, key))
    masks = masks_of(kind, 2)
    _, want = module(query, key, key, average_attn_weights=False, **masks)
    plain, _ = module(query, key, key, need_weights=False, **masks)
    with Tap({module: [QueryRow(2)]}) as tap:
        out, _ = module(query, key, key, need_weights=False, **masks)
    assert torch.equal(out, plain)
    torch.testing.assert_close(tap[module, QueryRow(2)], [want[:, :, 2]], atol=1e-6, rtol=0)


@torch.no_grad()
def test_multihead_attention_without_a_batch_axis_and_with_positional_masks():
    module, x = randomised(nn.MultiheadAttention(16, 2)), torch.randn(6, 16)
    hides = torch.ones(6, 6, dtype=torch.bool).triu(1)
    _, want = module(x, x, x, None, True, hides, False)
    with Tap({module: [QueryRow(2)]}) as tap:
        module(x, x, x, None, True, hides, False)
    torch.testing.assert_close(tap[module, QueryRow(2)], [want[None, :, 2]], atol=1e-6, rtol=0)


class Plain(nn.Module):
    """A third party's attention, in whatever way it calls the kernel."""

    def __init__(self, call):
        super().__init__()
        self.call = call

    def forward(self, *args):
        return self.call(nn.functional.scaled_dot_product_attention, *args)


def test_arguments_of_the_kernel_are_read_as_it_reads_them():
    generator = torch.Generator().manual_seed(5)
    q, k, v = (torch.randn(2, 4, 6, 8, generator=generator) for _ in range(3))
    allowed = torch.rand(6, 6, generator=generator) > 0.4
    allowed.fill_diagonal_(True)
    bias = torch.randn(4, 6, 6, generator=generator)
    logits = q @ k.mT
    after = torch.ones(6, 6, dtype=torch.bool).triu(1)
    for call, want in (
        (lambda f: f(q, k, v, scale=0.2), logits * 0.2),
        (lambda f: f(q, k, v, allowed), (logits * 8**-0.5).masked_fill(~allowed, -torch.inf)),
        (lambda f: f(q, k, v, attn_mask=bias), logits * 8**-0.5 + bias),
        (lambda f: f(q, k, v, allowed[None, None, :1]), (logits * 8**-0.5).masked_fill(~allowed[:1], -torch.inf)),
        (lambda f: f(q, k, v, None, 0.0, True), (logits * 8**-0.5).masked_fill(after, -torch.inf)),
        (
            lambda f: f(query=q, key=k[:, :2], value=v[:, :2], enable_gqa=True),
            q @ k[:, :2].repeat_interleave(2, 1).mT * 8**-0.5,
        ),
    ):
        module = Plain(call)
        with Tap({module: [QueryRow(2)]}) as tap:
            out = module()
        assert torch.equal(out, module())
        torch.testing.assert_close(tap[module, QueryRow(2)], [want.softmax(-1)[:, :, 2]], atol=1e-6, rtol=0)


def test_unsupported_modules_are_errors_and_are_restored():
    q, k = torch.randn(1, 2, 3, 8), torch.randn(1, 2, 5, 8)
    for call in (lambda f: f(q, k, k, is_causal=True), lambda f: f(q[None], q[None], q[None])):
        module = Plain(call)
        with check_restored(module), pytest.raises(ValueError, match=r"only \[B, H, Q, d\]"), Tap({module: [ROW]}):
            module()
        assert _get_current_function_mode_stack() == []


@pytest.mark.parametrize("kind", ["timm", "open_clip"])
@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt])
def test_modules_are_restored_after_an_exception(kind, error):
    model = TIMM["vit"]() if kind == "timm" else open_clip_model()
    blocks = model.blocks if kind == "timm" else model.visual.transformer.resblocks
    module = blocks[1].attn

    def fail(*_):
        raise error

    hook = (module.proj if kind == "timm" else blocks[1].mlp).register_forward_pre_hook(fail)
    with check_restored(model), pytest.raises(error), Tap({module: [ROW]}) as tap:
        model(pixels(64 if kind == "timm" else 32))
    assert len(tap[module, ROW]) == 1
    assert _get_current_function_mode_stack() == []
    hook.remove()


@torch.no_grad()
def test_taps_over_modules_nest_and_may_close_in_any_order():
    model = randomised(TIMM["vit"]())
    module = model.blocks[0].attn
    with check_restored(model):
        outer, inner = Tap({module: [ROW]}), Tap({module: [ROW], model.blocks[1].attn: [ROW]})
        outer.__enter__()
        model(pixels())
        inner.__enter__()
        model(pixels())
        outer.__exit__(None, None, None)
        model(pixels())
        inner.__exit__(None, None, None)
        model(pixels())
    assert len(outer[module, ROW]) == 2
    assert len(inner[module, ROW]) == 2
    assert torch.equal(outer[module, ROW][1], inner[module, ROW][0])


@torch.no_grad()
def test_a_replaced_forward_is_called_and_restored():
    model, calls = randomised(TIMM["vit"]()), []
    module = model.blocks[0].attn
    original = module.forward
    module.forward = replacement = lambda *args, **options: calls.append(1) or original(*args, **options)
    with Tap({module: [ROW]}) as tap:
        model(pixels())
    assert len(calls) == len(tap[module, ROW]) == 1
    assert vars(module)["forward"] is replacement


def test_the_forward_of_another_thread_is_ignored_for_timm():
    model = randomised(TIMM["vit"]())
    module = model.blocks[0].attn
    with Tap({module: [ROW]}) as tap:
        thread = threading.Thread(target=model, args=(pixels(),))
        thread.start()
        thread.join()
        with pytest.raises(LookupError, match="has no readings"):
            tap[module, ROW]


@torch.no_grad()
def test_one_tap_spans_modules_of_several_libraries():
    llava, processor = backbone("llava")
    vit, clip = randomised(TIMM["vit"]()), open_clip_model()
    modules = [
        llava.base_model.vision_tower.encoder.layers[0].self_attn,
        vit.blocks[0].attn,
        clip.visual.transformer.resblocks[0].attn,
    ]
    tap = Tap({module: [ROW] for module in modules})
    with check_restored(llava), check_restored(vit), check_restored(clip), tap:
        llava.base_model.get_image_features(pixel_values=make_inputs(processor, SAMPLES["one"])["pixel_values"])
        vit(pixels())
        clip.encode_image(pixels(32))
    assert [tap[module, ROW][0].shape[2] for module in modules] == [17, 17, 17]


def test_modules_that_call_no_kernel_are_refused_with_the_cure():
    vit = TIMM["vit"]()
    vit.blocks[0].attn.fused_attn = False
    with (
        check_restored(vit),
        pytest.raises(ValueError, match=r"fused_attn=False .* set fused_attn=True"),
        Tap({vit.blocks[1].attn: [ROW], vit.blocks[0].attn: [ROW]}),
    ):
        pass
    extra = nn.MultiheadAttention(8, 2, add_bias_kv=True)
    with pytest.raises(ValueError, match="build it without add_bias_kv"), Tap({extra: [ROW]}):
        pass
    with pytest.raises(TypeError, match="Block is no attention module"), Tap({vit.blocks[0]: [ROW]}):
        pass


@torch.no_grad()
def test_rows_of_other_libraries_are_float32_under_autocast():
    vit, clip = randomised(TIMM["vit"]()), open_clip_model()
    modules = vit.blocks[0].attn, clip.visual.transformer.resblocks[0].attn
    with Tap({module: [ROW] for module in modules}) as exact:
        vit(pixels())
        clip.encode_image(pixels(32))
    with torch.autocast("cpu", torch.bfloat16), Tap({module: [ROW] for module in modules}) as tap:
        plain = clip.encode_image(pixels(32))
        vit(pixels())
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(clip.encode_image(pixels(32)), plain)
    for module in modules:
        (row,) = tap[module, ROW]
        assert row.dtype == torch.float32
        assert not row.equal(row.bfloat16().float())
        assert (row - exact[module, ROW][0]).abs().max() < 0.1
