"""Models of the further families."""

import functools

import torch
from transformers import SmolVLMConfig, SmolVLMForConditionalGeneration

from vtcframe.testing.tiny_models.llava_families import randomised
from vtcframe.testing.tiny_models.other_families import BACKBONES, samples_of

FAMILIES = ["mistral3", "llava_next_video", "idefics3", "smolvlm", "gemma3", "glm4v"]


@functools.cache
def built(family, attention="sdpa"):
    if family == "smolvlm":
        model, processor = BACKBONES["idefics3"]()
        config = SmolVLMConfig(**{k: v for k, v in model.config.to_dict().items() if k != "model_type"})
        return randomised(SmolVLMForConditionalGeneration._from_config(config, attn_implementation=attention), 0), (
            processor
        )
    model, processor = BACKBONES[family](attention)
    if family == "gemma3":  # windows are counted in tokens that are there: see the test of them
        model.config.text_config.sliding_window = 64
    return model, processor


def samples_by_name(family):
    return samples_of("idefics3" if family == "smolvlm" else family)


def blocks(model):
    base = model.model
    if model.config.vision_config.model_type == "pixtral":
        return [layer.attention for layer in base.vision_tower.transformer.layers]
    if hasattr(base, "visual"):
        return [block.attn for block in base.visual.blocks]
    return [layer.self_attn for layer in (getattr(base, "vision_model", None) or base.vision_tower).encoder.layers]


@torch.no_grad()
def calls(family, inputs, monkeypatch):
    """What each block's eager attention made of each sequence: [(query, key, weights)], without batch axis."""
    model, _ = built(family, "eager")
    modules = blocks(model)
    told = type(modules[0]).forward.__globals__
    eager, seen = told["eager_attention_forward"], {id(module): [] for module in modules}

    def record(module, query, key, value, *args, **kwargs):
        out, weights = eager(module, query, key, value, *args, **kwargs)
        if id(module) in seen:
            seen[id(module)] += list(zip(query, key, weights, strict=True))
        return out, weights

    with monkeypatch.context() as patch:
        patch.setitem(told, "eager_attention_forward", record)
        model(**inputs)
    return [seen[id(module)] for module in modules]


def members(family, columns, patches):
    """The patches of each token, of a picture that many patches wide."""
    if family == "glm4v":  # the processor puts them behind one another
        return [[4 * t + i for i in range(4)] for t in range(patches // 4)]
    return [
        [(2 * i + a) * columns + 2 * j + b for a in range(2) for b in range(2)]
        for i in range(patches // columns // 2)
        for j in range(columns // 2)
    ]


def reference_reading(need, query, key, weights, tokens, classes, real=None):
    """[H, T] in plain loops. `real` says which patches are none of padding."""
    heads, count, width = query.shape
    patches = [i for i in range(classes, count) if real is None or real[i - classes]]
    out = torch.zeros(heads, len(tokens))
    for h in range(heads):
        if need.query == "received":
            for t, own in enumerate(tokens):
                out[h, t] = sum(weights[h, q, classes + p] for q in patches for p in own) / len(patches) / len(own)
        else:
            mean = sum(query[h, q] for q in patches) / len(patches)
            logits = {}
            for t, own in enumerate(tokens):
                mine = [classes + p for p in own if classes + p in patches]
                if mine:
                    logits[t] = mean @ (sum(key[h, p] for p in mine) / len(mine)) * width**-0.5
            paid = torch.stack(list(logits.values())).softmax(0)
            out[h, list(logits)] = paid
    return out
