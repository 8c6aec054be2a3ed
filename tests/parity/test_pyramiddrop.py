"""Whole models, recorded from the authors' own code, run by stages inside a plain language model of transformers."""

from dataclasses import replace

import pytest
import torch
from test_parity import GOLDEN, layout, read
from transformers import DynamicCache, LlamaConfig, LlamaModel

from vtcframe import Evidence
from vtcframe.llm_stage import LlmStages
from vtcframe.methods import PyramidDrop

WHOLE = sorted((GOLDEN / "pyramiddrop").glob("e2e*.safetensors"))


@pytest.mark.skipif(not WHOLE, reason="whole models are too large for the repository: VTCFRAME_GOLDEN names them")
@pytest.mark.parametrize("path", WHOLE, ids=lambda path: path.stem)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@torch.no_grad()
def test_pyramiddrop_is_the_authors_own_through_a_whole_model(path, attention):
    tensors, params = read(path)
    config = LlamaConfig(
        hidden_size=params["hidden"],
        intermediate_size=params["intermediate"],
        num_hidden_layers=params["layers"],
        num_attention_heads=params["heads"],
        vocab_size=8,
        rms_norm_eps=params["rms_norm_eps"],
    )
    model = LlamaModel._from_config(config, attn_implementation=attention).eval()
    weights = {name.removeprefix("w."): x for name, x in tensors.items() if name.startswith("w.")}
    assert model.load_state_dict(weights, strict=False).missing_keys == ["embed_tokens.weight"]
    embeds, start, count = tensors["inputs_embeds"], params["image_start"], params["image_len"]
    column = torch.arange(embeds.shape[1])[None]
    visual = embeds[:, start : start + count]
    evidence = Evidence(visual, replace(layout([(1, count)]), column=column[:, start : start + count]))
    method = PyramidDrop(tuple(params["layer_list"]), tuple(params["ratio_list"][1:]), "compact")
    seen = []
    with LlmStages(model, evidence, column, method.stages(None)):
        hooks = [
            layer.register_forward_pre_hook(lambda _, args, kwargs: seen.append((args[0], kwargs)), with_kwargs=True)
            for layer in model.layers
        ]
        out = model(inputs_embeds=embeds, past_key_values=DynamicCache())
    for hook in hooks:
        hook.remove()
    assert [hidden.shape[1] for hidden, _ in seen] == tensors["seq_len_per_layer"].tolist()
    numbers = tensors["position_ids_last_layer"][None]
    for got, want in zip(seen[-1][1]["position_embeddings"], model.rotary_emb(embeds, numbers), strict=True):
        torch.testing.assert_close(got, want)
    torch.testing.assert_close(out.last_hidden_state, tensors["last_hidden_state"], atol=2e-4, rtol=0)
