"""PyramidDrop: numbers recorded from the authors' own code, of stages and of whole models."""

from dataclasses import replace

import pytest
import torch
from transformers import DynamicCache, LlamaConfig, LlamaModel

from support.recorded_cases import GOLDEN, each_case_with, layout_of, load_case
from vtcframe import AttentionRows, Evidence, PyramidDrop
from vtcframe.hooks.llm import LlmStages


@each_case_with("pyramiddrop", "q_proj")
def test_a_stage_of_pyramid_drop_keeps_what_was_recorded(path):
    tensors, params = load_case(path)
    heads, width, n = params["heads"], params["head_dim"], params["image_len"]
    x = tensors["features"]
    x = x * (x.square().mean(-1, keepdim=True) + params["rms_norm_eps"]).rsqrt() * tensors["input_layernorm"]
    query, key = (
        (x @ tensors[name].T).unflatten(-1, (-1, width)).transpose(1, 2) for name in ("q_proj", "k_proj")
    )  # [B, H, L, d]
    key = key.repeat_interleave(heads // key.shape[1], 1)
    turn = torch.arange(x.shape[1])[:, None] * params["rope_theta"] ** (-torch.arange(0, width, 2) / width)
    half = torch.cat([turn, turn], -1)

    def rotated(y):
        low, high = y.chunk(2, -1)
        return y * half.cos() + torch.cat([-high, low], -1) * half.sin()

    logits = rotated(query) @ rotated(key).transpose(2, 3) / width**0.5
    seen = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).tril() & tensors["attention_mask"].bool()[:, None]
    paid = logits.masked_fill(~seen[:, None], -torch.inf).softmax(-1).mean(1)
    layer, ratio = params["rank_layer"], params["ratio_list"]
    rows, columns = [], []
    for b, (start, asks) in enumerate(zip(params["image_start"], params["query_row"], strict=True)):
        rows.append(paid[b, asks, start : start + n])
        columns.append(start + torch.arange(n))
    stages = PyramidDrop(tuple(range(1, len(ratio))), tuple(ratio[1:])).stages(None)
    where = layout_of([(1, n)] * len(rows), columns=torch.stack(columns))
    stage = next(stage for stage in stages if stage.layer == layer)
    (need,) = stage.pruner.needs
    assert need == AttentionRows("last", (layer,), tower="llm", heads="mean")
    pruned = stage.pruner(Evidence(torch.zeros(len(rows), n, 1), where, {need: torch.stack(rows)[None, :, None]}))
    for b, start in enumerate(params["image_start"]):
        length = params["prompt_len_without_placeholder"][b] + n
        text = [i for i in range(length) if not start <= i < start + n]
        kept = tensors["kept_indices"][b]
        assert sorted(text + pruned.column[b].tolist()) == kept[kept >= 0].tolist()
        positions = tensors["new_position_ids"][b][: int((kept >= 0).sum())]
        assert positions.tolist() == list(range(len(positions)))  # "compact"


WHOLE = sorted((GOLDEN / "pyramiddrop").glob("e2e*.safetensors"))


@pytest.mark.skipif(not WHOLE, reason="whole models are too large for the repository: VTCFRAME_GOLDEN names them")
@pytest.mark.parametrize("path", WHOLE, ids=lambda path: path.stem)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@torch.no_grad()
def test_pyramiddrop_is_the_authors_own_through_a_whole_model(path, attention):
    tensors, params = load_case(path)
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
    evidence = Evidence(visual, replace(layout_of([(1, count)]), column=column[:, start : start + count]))
    method = PyramidDrop(tuple(params["layer_list"]), tuple(params["ratio_list"][1:]), positions="compact")
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
