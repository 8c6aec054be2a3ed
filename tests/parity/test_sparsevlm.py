"""SparseVLM: numbers recorded from the authors' own code."""

from dataclasses import replace

import pytest
import torch
from transformers import DynamicCache, LlamaConfig, LlamaModel

from support.recorded_cases import GOLDEN, layout_of, load_case
from support.sparsevlm import RATED
from vtcframe import Budget, Evidence
from vtcframe.core.kernel_call import KernelCall
from vtcframe.core.text_readers import PromptTokens
from vtcframe.hooks.llm import LlmStages
from vtcframe.methods.sparsevlm import Recycle, SparseVlm, TextRaters


def cases(kind):
    """Parametrise over the recorded cases of one kind; those of whole models and many heads are too large to carry."""
    folder = GOLDEN / "sparsevlm"
    assert any(folder.glob("*.safetensors")), f"{GOLDEN} has no recorded case of sparsevlm"
    files = sorted(folder.glob(f"{kind}*.safetensors"))
    return pytest.mark.parametrize("path", files, ids=lambda path: path.stem)


@cases("cluster_merge")
def test_clusters(path):
    tensors, params = load_case(path)
    x, count = tensors["x"], params["cluster_num"]
    evidence = Evidence(x, layout_of([(1, params["N"])]))
    none = torch.zeros(x.shape[:2], dtype=torch.bool)
    pruned = Recycle(1.0)(none, torch.tensor([count]), torch.zeros(x.shape[:2]), evidence)
    assert pruned.place[0].tolist() == list(range(params["N"] - count, params["N"]))
    torch.testing.assert_close(pruned.tokens, tensors["merged"], atol=2e-5, rtol=0)


def asked(rows, start, visual, raters, need):
    """What `paid` makes of recorded attention [H, T, L]: queries whose logits are its logarithms."""
    heads, text, length = rows.shape
    query = torch.zeros(1, heads, length, length)
    query[0, :, start : start + text] = rows.clamp(min=1e-37).log()
    call = KernelCall(query, torch.eye(length).expand(1, heads, -1, -1), None, 1.0, False, None)
    at = torch.arange(length)[None]
    candidate, rated = (at >= visual) & (at < start), torch.isin(at, raters)
    sequences = PromptTokens(at, torch.zeros(1), candidate, torch.tensor([start]), at * 0 + start, rated)
    return need.read_llm(call, sequences)[None, ..., visual:start]


@cases("topk")
def test_the_best_stay(path):
    tensors, params = load_case(path)
    start, first, n = params["text_token_start"], params["v_token_start"], params["v_token_num"]
    rows = asked(tensors["attn_text_rows"], start, first, tensors["rater_offsets"] + start, RATED)
    stage = SparseVlm().stages(Budget(params["retain"]))[(2, 6, 15).index(params["layer_idx"])]
    evidence = Evidence(torch.randn(1, n, 4), layout_of([(1, n)]), {RATED: rows})
    pruned = stage.pruner(evidence, stage.budget)
    torch.testing.assert_close(pruned.scores[0], tensors["relation"], atol=1e-6, rtol=1e-5)
    keeps = stage.budget.tokens
    assert params["n_keep"] == min(keeps, n - 1)
    if n > keeps:  # where the number covers all, the code still drops one and ours none
        assert pruned.place[0, :keeps].tolist() == tensors["kept_mask"].nonzero()[:, 0].tolist()


@cases("v2_head")
def test_the_heads_that_look_most_are_averaged(path):
    tensors, params = load_case(path)
    start, first = params["text_token_start"], params["v_token_start"]
    need = replace(RATED, heads="split")
    found = asked(tensors["attn_text_rows"], start, first, tensors["rater_rows_absolute"], need)
    evidence = Evidence(torch.zeros(1, start - first, 4), layout_of([(1, start - first)]), {need: found})
    score = TextRaters(-1, params["n_selected"])(evidence)[0, 0]
    rows = tensors["attn_text_rows"][tensors["selected_heads"]][:, tensors["rater_rows_absolute"] - start, first:start]
    torch.testing.assert_close(score, rows.mean((0, 1)), atol=1e-6, rtol=1e-5)


@torch.no_grad()
def through(model, method, params, embeds):
    """Run a model under its stages: the tokens each layer reads, the positions of some, the last hidden state."""
    first, n = params["image_start"], params["image_len"]
    column = torch.arange(embeds.shape[1])[None]
    where = replace(layout_of([(1, n)]), column=column[:, first : first + n])
    evidence = Evidence(embeds[:, first : first + n], where)
    seen, hooks = {}, []
    cosine, sine = model.rotary_emb(embeds, column)
    every = torch.cat([cosine, sine], -1)[0]

    def look(i):
        def hook(module, args, kwargs):
            own = torch.cat(kwargs["position_embeddings"], -1)[0]
            away = torch.cdist(own, every, compute_mode="donot_use_mm_for_euclid_dist")
            assert away.amin(1).max() < 1e-5
            seen[i] = away.argmin(1)

        return hook

    with LlmStages(model, evidence, column, method.stages(Budget(params["RETAIN_TOKN"]))):
        for i, layer in enumerate(model.layers):  # behind the stages' own hooks
            hooks.append(layer.register_forward_pre_hook(look(i), with_kwargs=True))
        out = model(inputs_embeds=embeds, past_key_values=DynamicCache(config=model.config)).last_hidden_state
        for hook in hooks:
            hook.remove()
    return seen, out


def llama(params, **options):
    sizes = {"hidden_size": params["hidden"], "num_hidden_layers": params["layers"], "vocab_size": 16}
    heads = {"num_attention_heads": params["heads"], "num_key_value_heads": params["heads"]}
    return LlamaModel(LlamaConfig(**sizes, **heads, max_position_embeddings=2048, **options)).eval()


@cases("e2e_v1")
def test_a_whole_model_of_version_1(path):
    tensors, params = load_case(path)
    sizes = {"intermediate_size": params["intermediate"], "rms_norm_eps": params["rms_norm_eps"]}
    model = llama(params, **sizes, rope_parameters={"rope_type": "default", "rope_theta": params["rope_theta"]})
    weights = {name.removeprefix("w."): x for name, x in tensors.items() if name.startswith("w.")}
    model.load_state_dict(weights)
    method = SparseVlm(tuple(layer + 1 for layer in params["pruning_layers"]), positions="compact")
    seen, out = through(model, method, params, tensors["inputs_embeds"])
    assert [len(seen[i]) for i in range(params["layers"])] == tensors["seq_len_per_layer"].tolist()
    assert seen[params["layers"] - 1].tolist() == tensors["position_ids_last_layer"].tolist()
    torch.testing.assert_close(out, tensors["last_hidden_state"], atol=2e-4, rtol=0)


@cases("e2e_v2")
def test_a_whole_model_of_version_2(path):
    tensors, params = load_case(path)  # no weights are recorded: lengths, and which positions there can be
    torch.manual_seed(0)
    model = llama(params, intermediate_size=32)
    first, stop = params["image_start"], params["image_start"] + params["image_len"]
    seen, _ = through(
        model, SparseVlm(version=2), params, torch.randn(1, int(tensors["seq_len_per_layer"][0]), params["hidden"])
    )
    assert [len(seen[i]) for i in range(params["layers"])] == tensors["seq_len_per_layer"].tolist()
    for i, want in ((3, "position_ids_layer3"), (params["layers"] - 1, "position_ids_last_layer")):
        ours, theirs = seen[i], tensors[want]
        assert ours.diff().min() > 0
        assert theirs.diff().min() > 0
        text = [(ids < first) | (ids >= stop) for ids in (ours, theirs)]
        assert ours[text[0]].tolist() == theirs[text[1]].tolist()
    assert set(seen[params["layers"] - 1].tolist()) < set(seen[3].tolist())
