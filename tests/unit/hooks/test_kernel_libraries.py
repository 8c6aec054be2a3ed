"""The tap on attention modules of timm and open_clip."""

import copy

import pytest
import torch
from torch import nn

from support.gates import ROW, TIMM, open_clip_model, pixels, randomised
from vtcframe.core.encoder_readers import MeanQuery, QueryRow, ReceivedAttention
from vtcframe.hooks.tap import Tap
from vtcframe.testing import check_restored


@pytest.fixture(params=TIMM)
def encoder(request):
    return randomised(TIMM[request.param]())


def attentions(model, modules, switch, *args):
    """Return complete matrices [B, H, Q, K], which a copy of the modules computes without its fused kernel."""
    names = {module: name for name, module in model.named_modules()}
    model, matrices = copy.deepcopy(model), []
    for module in modules:
        copied = model.get_submodule(names[module])
        setattr(copied, switch, False)
        copied.attn_drop.register_forward_hook(lambda module, args, out: matrices.append(out))
    with torch.no_grad():
        model(*args)
    return matrices


@torch.no_grad()
def test_rows_of_timm_equal_its_attention_weights_and_its_features_stay_bit_equal(encoder):
    modules = [block.attn for block in encoder.blocks]
    plain, want = encoder(pixels()), attentions(encoder, modules, "fused_attn", pixels())
    received = ReceivedAttention(skip=encoder.num_prefix_tokens)
    with check_restored(encoder), Tap({module: [ROW, received] for module in modules}) as tap:
        assert torch.equal(encoder(pixels()), plain)
    for module, weights in zip(modules, want, strict=True):
        assert weights.max() > 0.15  # else everything would be near everything
        torch.testing.assert_close(tap[module, ROW], [weights[:, :, 0]], atol=1e-6, rtol=0)
        prefix = encoder.num_prefix_tokens
        torch.testing.assert_close(tap[module, received], [weights[:, :, prefix:, prefix:].mean(2)], atol=1e-6, rtol=0)
    assert encoder(pixels()).equal(plain)


def multihead_weights(model, modules, run):
    """Return the attention weights that the modules themselves return for their inputs."""
    matrices = []

    def ask(module, args, options):
        matrices.append(module(*args, **options | {"need_weights": True, "average_attn_weights": False})[1])

    for module in modules:
        inside = []

        def hook(module, args, options, inside=inside):
            if not inside:  # asking runs the module, and so this hook, once more
                inside.append(1)
                ask(module, args, options)

        handle = module.register_forward_pre_hook(hook, with_kwargs=True)
        run()
        handle.remove()
    return matrices


@torch.no_grad()
@pytest.mark.parametrize("tower", ["visual", "text"])
def test_rows_of_open_clip_equal_its_attention_weights_and_its_features_stay_bit_equal(tower):
    model = open_clip_model()
    words = torch.randint(1, 49, (2, 9), generator=torch.Generator().manual_seed(2))

    def run():
        return model.encode_image(pixels(32)) if tower == "visual" else model.encode_text(words)

    blocks = model.visual.transformer.resblocks if tower == "visual" else model.transformer.resblocks
    modules = [block.attn for block in blocks]
    plain, want = run(), multihead_weights(model, modules, run)
    readers = [ROW, QueryRow(5), MeanQuery(skip=1), ReceivedAttention(skip=1)]
    with check_restored(model), Tap({module: readers for module in modules}) as tap:
        assert torch.equal(run(), plain)
    for module, weights in zip(modules, want, strict=True):
        assert weights[:, :, 5].max() > 0.15
        torch.testing.assert_close(tap[module, ROW], [weights[:, :, 0]], atol=1e-6, rtol=0)
        torch.testing.assert_close(tap[module, QueryRow(5)], [weights[:, :, 5]], atol=1e-6, rtol=0)
        torch.testing.assert_close(
            tap[module, ReceivedAttention(skip=1)], [weights[:, :, 1:, 1:].mean(2)], atol=1e-6, rtol=0
        )
        assert tap[module, MeanQuery(skip=1)][0].shape == weights[:, :, 0, 1:].shape


@torch.no_grad()
def test_rows_of_open_clips_own_attention_equal_its_attention_weights():
    model = open_clip_model(qk_norm=True)
    modules = [block.attn for block in model.visual.transformer.resblocks]
    assert not isinstance(modules[0], nn.MultiheadAttention)
    # There bmm is asked for 4-D tensors: the kernel is all that works, so the weights are made by hand.
    outputs = []
    for module in modules:
        module.register_forward_hook(lambda module, args, out: outputs.append(args[0]))
    plain = model.encode_image(pixels(32))
    want = []
    for module, x in zip(modules, outputs, strict=True):
        q, k, _ = nn.functional.linear(x, module.in_proj_weight, module.in_proj_bias).chunk(3, -1)
        q, k = (y.unflatten(-1, (module.num_heads, -1)).transpose(1, 2) for y in (q, k))
        logits = module.ln_q(q).double() @ module.ln_k(k).double().mT * module.head_dim**-0.5
        want.append(logits.softmax(-1)[:, :, 0].float())
    with Tap({module: [ROW] for module in modules}) as tap:
        assert torch.equal(model.encode_image(pixels(32)), plain)
    for module, row in zip(modules, want, strict=True):
        torch.testing.assert_close(tap[module, ROW], [row], atol=1e-6, rtol=0)
