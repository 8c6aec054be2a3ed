import functools
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import Glm4vForConditionalGeneration, SmolVLMConfig, SmolVLMForConditionalGeneration
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from covering import pairs
from vtcframe import Budget, Pipeline, RandomPruner
from vtcframe.adapter import adapter_for
from vtcframe.allocators import Even
from vtcframe.compress import compress
from vtcframe.ensemblers import Mean
from vtcframe.needs import Features, Keys, Rows
from vtcframe.pipeline import Scorer
from vtcframe.selectors import TopK
from vtcframe.testimony import _portraits
from vtcframe.testing.adapters import check_adapter, check_removed_is_masked, inputs_for
from vtcframe.testing.backbones import randomised
from vtcframe.testing.families import BACKBONES, samples_of
from vtcframe.testing.samples import SAMPLES, make_inputs

FAMILIES = ["mistral3", "llava_next_video", "idefics3", "smolvlm", "gemma3", "glm4v"]
GREEDY: dict[str, Any] = {"do_sample": False, "max_new_tokens": 4}
BEAMS = GREEDY | {"num_beams": 3}
OPTIONS = {"greedy": GREEDY, "beams": BEAMS, "sequences": BEAMS | {"num_return_sequences": 2}}


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


def taken(family):
    return samples_of("idefics3" if family == "smolvlm" else family)


@dataclass(frozen=True)
class Asked(Scorer):
    query: str

    @property
    def needs(self):
        return (Rows(self.query, (-2, -1), heads="mean"),)

    def __call__(self, evidence):
        return evidence[self.needs[0]].mean(2)


def pruner(query):
    return Pipeline((Asked(query),), Mean(), Even(), TopK())


def right_expansion(self, input_ids, mm_encoder_output, expand_size=1, inputs_embeds=None):
    """What transformers' expansion of GLM-4.1V is meant to do: the features of a sample, again for each beam."""
    for outputs in mm_encoder_output.values():
        counts = (input_ids == self.config.image_token_id).sum(1).tolist()
        own = torch.cat(list(outputs.pooler_output)).split(counts)
        outputs.pooler_output = [part for part in own for _ in range(expand_size)]
    return mm_encoder_output


CASES = [
    (family, *case.values())
    for family in FAMILIES
    for case in pairs(
        {
            "attention": ["sdpa", "eager"],
            "samples": list(taken(family)),
            "side": ["left", "right"],
            "positions": ["original"] if family == "glm4v" else ["original", "compact"],
            "options": list(OPTIONS),
            "pruner": ["random", "mean", "received"],
        }
    )
]


@pytest.mark.parametrize(("family", "attention", "samples", "side", "positions", "options", "query"), CASES)
def test_laws_hold_for_every_pair_of_axis_values(
    family, attention, samples, side, positions, options, query, monkeypatch
):
    if family == "glm4v":  # whose own beams the reference could not be: see the test of them
        monkeypatch.setattr(Glm4vForConditionalGeneration, "_expand_multimodal_outputs", right_expansion)
    judge = RandomPruner() if query == "random" else pruner(query)
    model, processor = built(family, attention)
    check_adapter(
        model, processor, taken(family)[samples], (judge,), Budget(ratio=0.4), positions, side, OPTIONS[options]
    )


@pytest.mark.parametrize("options", ["beams", "sequences"])
@pytest.mark.parametrize("samples", ["ragged several", "videos"])
def test_beams_of_glm_are_right_with_the_expansion_that_transformers_has(samples, options, monkeypatch):
    model, processor = built("glm4v")
    inputs, few = make_inputs(processor, SAMPLES[samples]), compress(model, RandomPruner(), ratio=0.4)
    with_theirs = few.generate(**inputs, **OPTIONS[options])
    monkeypatch.setattr(Glm4vForConditionalGeneration, "_expand_multimodal_outputs", right_expansion)
    assert torch.equal(with_theirs, few.generate(**inputs, **OPTIONS[options]))


def test_local_windows_of_gemma_count_the_tokens_that_are_there():
    model, processor = BACKBONES["gemma3"]()
    model.config.text_config.sliding_window = 20
    for samples, holds in (("one", True), ("several", False)):  # 16 and 22 tokens
        inputs = make_inputs(processor, SAMPLES[samples])
        check = functools.partial(
            check_removed_is_masked, model, inputs, RandomPruner(), Budget(ratio=0.4), "original", GREEDY
        )
        if holds:
            check()
        else:
            with pytest.raises(AssertionError, match="logits are"):
                check()


def test_types_of_gemma_are_shortened_with_the_prompt():
    model, processor = built("gemma3")
    inputs = make_inputs(processor, SAMPLES["ragged several"], "right")
    adapter = adapter_for(model)
    evidence = adapter.observe(inputs)
    pruned = RandomPruner()(evidence, Budget(tokens=3))
    spliced = adapter.splice(inputs, evidence, pruned)
    image = spliced["input_ids"] == model.config.image_token_id
    assert torch.equal(spliced["token_type_ids"], image.long())
    assert image.sum(1).tolist() == [3, 3, 0]


@pytest.mark.parametrize("family", ["idefics3", "smolvlm"])
def test_llm_layers_are_those_of_the_language_model(family):
    model, _ = built(family)
    assert list(adapter_for(model).llm_layers()) == list(model.model.text_model.layers)


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


def twin(need, query, key, weights, tokens, classes, real=None):
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


@pytest.mark.parametrize("query", ["mean", "received"])
@pytest.mark.parametrize(
    ("family", "samples"),
    [
        ("llava_next_video", "video"),
        ("idefics3", "ragged several"),
        ("smolvlm", "one"),
        ("gemma3", "several"),
        ("glm4v", "ragged several"),
        ("glm4v", "video"),
    ],
)
def test_proxies_are_those_of_a_twin_from_eager_weights(family, samples, query, monkeypatch):
    model, processor = built(family)
    inputs = make_inputs(processor, SAMPLES[samples])
    need = Rows(query, (0, -1))
    found = adapter_for(model).observe(inputs, [need])
    depth, classes = (3, 1) if family == "llava_next_video" else (4, 0)
    every = calls(family, inputs, monkeypatch)
    for at, block in enumerate((0, depth - 1)):
        assert len(every[block]) == len(found.layout.sample)
        for v, (q, k, weights) in enumerate(every[block]):
            tokens = members(family, 4, q.shape[1] - classes)
            want = twin(need, q, k, weights, tokens, classes)
            assert torch.allclose(found[need][at, v, :, : len(tokens)], want, atol=1e-6)


@pytest.mark.parametrize("query", ["mean", "received"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_padded_patches_neither_ask_nor_answer(attention, query, monkeypatch):
    model, processor = built("idefics3", attention)
    inputs = make_inputs(processor, SAMPLES["one"])
    inputs["pixel_attention_mask"] = inputs["pixel_attention_mask"].clone()
    inputs["pixel_attention_mask"][0, 0, :, 14:] = 0  # one column of patches is left, half of two tokens
    inputs["pixel_values"][0, 0, :, :, 14:] = 1e4
    need = Rows(query, (-1,))
    found = adapter_for(model).observe(inputs, [need])
    real = [p % 4 == 0 for p in range(16)]
    q, k, weights = calls("idefics3", inputs, monkeypatch)[-1][0]
    want = twin(need, q, k, weights, members("idefics3", 4, 16), 0, real)
    assert torch.allclose(found[need][0, 0], want, atol=1e-6)
    assert (found[need][0, 0][:, [1, 3]] == 0).all()
    assert (found.layout.count == 4).all()


@pytest.mark.parametrize("family", FAMILIES)
def test_features_and_keys_go_the_way_of_the_tokens(family):
    model, processor = built(family)
    for samples in taken(family).values():
        inputs = make_inputs(processor, samples)
        if family == "llava_next_video" and "pixel_values" in inputs:
            continue  # as in LLaVA-NeXT
        evidence = adapter_for(model).observe(inputs, [Features(), Keys((-1,))])
        valid = evidence.layout.valid
        assert evidence.project is not None
        again = evidence.project(evidence[Features()])
        assert torch.allclose(again[valid], evidence.tokens[valid], atol=1e-5)
        assert evidence[Keys((-1,))].shape[1:4:2] == valid.shape


def silent(module, query, key, value, *args, **kwargs):
    return torch.zeros_like(query).transpose(1, 2), None


def one_bright(height, width, at=None):
    """A grey picture, with a bright square of 4 x 4 pixels around `at` (row, column)."""
    picture = Image.new("RGB", (width, height), (90, 90, 90))
    if at is not None:
        picture.paste((250, 240, 20), (at[1] - 2, at[0] - 2, at[1] + 2, at[0] + 2))
    return picture


def lit(family, samples, blank):
    """The layout, and which of its tokens [V, N] differ from those of the blank samples."""
    model, processor = built(family)
    found = [adapter_for(model).observe(make_inputs(processor, given)) for given in (samples, blank)]
    assert torch.equal(found[0].layout.column, found[1].layout.column)
    return found[0].layout, (found[0].tokens != found[1].tokens).any(-1)


def covering(layout, image, at):
    """[V, N] the tokens of a picture, or of one frame of it, whose cell covers the place (row, column), 0..1."""
    size = layout.grid.amax(1) + 1
    half = (layout.box[:, 2:] - layout.box[:, :2]) / size / 2
    inside = ((layout.centre - torch.tensor(at)).abs() < half[:, None]).all(-1)
    return inside & layout.valid & (layout.image == image)[:, None]


@pytest.mark.parametrize(
    ("family", "height", "width", "views"),
    [
        ("idefics3", 56, 112, 3),
        ("idefics3", 112, 56, 3),
        ("idefics3", 112, 112, 5),
        ("smolvlm", 112, 112, 5),
        ("gemma3", 56, 56, 1),
        ("glm4v", 56, 112, 1),
        ("glm4v", 84, 56, 1),
        ("llava_next_video", 112, 112, 5),
    ],
)
def test_a_bright_patch_lights_up_the_tokens_that_cover_it(family, height, width, views, monkeypatch):
    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._local_mapping, "sdpa", silent)
    other = one_bright(56, 56, (14, 42))
    text = "USER : <image> and <image> ?"
    blank = one_bright(height, width)
    step = 14 if family == "llava_next_video" else 28  # pixels of a token, in a tile
    for row in range(step // 2, height, step):
        for column in range(step // 2, width, step):
            picture = one_bright(height, width, (row, column))
            for nth in range(2):
                order = [other, picture] if nth else [picture, other]
                none = [other, blank] if nth else [blank, other]
                layout, changed = lit(family, [(text, order)], [(text, none)])
                assert int((layout.image == nth).sum()) == views
                want = covering(layout, nth, (row / height, column / width))
                assert torch.equal(changed, want)
                assert int(want.sum()) == (2 if views > 1 else 1)  # in the overview too


@pytest.mark.parametrize(("family", "frames"), [("llava_next_video", 1), ("glm4v", 2)])
def test_a_bright_patch_in_a_frame_lights_up_the_token_that_covers_it(family, frames, monkeypatch):
    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._local_mapping, "sdpa", silent)
    size = 56 if family == "llava_next_video" else 84
    blank, text = [one_bright(56, size)] * 4, "USER : <video> ?"
    for at in range(4):
        for row in range(14, 56, 28):
            for column in range(14, size, 28):
                video = [*blank[:at], one_bright(56, size, (row, column)), *blank[at + 1 :]]
                samples = [(text, [blank]), (text, [video])]
                layout, changed = lit(family, samples, [(text, [blank])] * 2)
                want = covering(layout, 0, (row / 56, column / size))
                want &= ((layout.frame == at // frames) & (layout.sample == 1))[:, None]
                assert torch.equal(changed, want)
                assert int(want.sum()) == 1


def test_pictures_of_idefics_that_are_not_split_are_one_tile(monkeypatch):
    model, processor = built("idefics3")
    monkeypatch.setattr(processor.image_processor, "do_image_splitting", False)
    layout = adapter_for(model).observe(make_inputs(processor, SAMPLES["ragged several"])).layout
    assert layout.sample.tolist() == [0, 0, 1]
    assert layout.image.tolist() == [0, 1, 0]
    assert layout.box.tolist() == [[0, 0, 1, 1]] * 3


def test_a_tile_of_idefics_lies_where_it_was_cut():
    model, processor = built("idefics3")
    inputs = make_inputs(processor, SAMPLES["ragged several"])  # 60 x 60: 2 x 2 tiles; 160 x 80: 2 x 1; 60 x 64: 2 x 2
    layout = adapter_for(model).observe(inputs).layout
    assert layout.sample.tolist() == [0] * 8 + [1] * 5
    assert layout.image.tolist() == [0] * 5 + [1] * 3 + [0] * 5
    whole = [0, 0, 1, 1]
    square = [[0, 0, 0.5, 0.5], [0, 0.5, 0.5, 1], [0.5, 0, 1, 0.5], [0.5, 0.5, 1, 1], whole]
    assert layout.box.tolist() == [*square, [0, 0, 0.5, 1], [0.5, 0, 1, 1], whole, *square]


def shown(family, samples):
    """What a witness sees, [3, h, w] in 0..1 each, and which of them each view shows."""
    model, processor = built(family)
    adapter, inputs = adapter_for(model, processor), make_inputs(processor, samples)
    return _portraits(Rows("cls", (-1,), tower="timm:any"), adapter, inputs, adapter.arrange(inputs))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_witness_is_shown_each_picture(family):
    colours = [(200, 30, 90), (10, 240, 60), (120, 120, 250)]
    first, second, third = (Image.new("RGB", (112, 112), colour) for colour in colours)
    portraits, of = shown(family, [("<image> and <image> ?", [first, second]), ("what ?", []), ("<image> ?", [third])])
    assert [round(255 * float(x)) for p in portraits for x in p.mean((1, 2))] == pytest.approx(sum(colours, ()), abs=2)
    assert of.tolist() == sorted(of.tolist())
    assert set(of.tolist()) == {0, 1, 2}
    half = Image.new("RGB", (112, 112))
    half.paste((255, 255, 255), (0, 0, 56, 112))
    ((portrait,), _) = shown(family, [("<image> ?", [half])])
    left, right = portrait.chunk(2, 2)
    assert left.mean() > 0.9
    assert right.mean() < 0.1


@pytest.mark.parametrize(("family", "reds"), [("llava_next_video", [0, 60, 120, 180]), ("glm4v", [30, 150])])
def test_a_witness_is_shown_each_frame(family, reds):
    portraits, of = shown(family, [("<video> ?", [[Image.new("RGB", (56, 56), (60 * i, 20, 40)) for i in range(4)]])])
    assert of.tolist() == list(range(len(reds)))
    assert [round(255 * float(p[0].mean())) for p in portraits] == pytest.approx(reds, abs=2)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_batch_without_pictures_is_answered_by_the_model_as_it_is(family):
    model, processor = built(family)
    inputs = make_inputs(processor, [("USER : where are they ?", [])])
    with pytest.raises(ValueError, match="nothing to prune: call the model itself"):
        adapter_for(model).arrange(inputs)
    compressed = compress(model, RandomPruner(), tokens=3)
    answer = compressed.generate(**inputs, max_new_tokens=2, do_sample=False)
    assert torch.equal(answer, model.generate(**inputs, max_new_tokens=2, do_sample=False))
    assert compressed.last is None


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("cut", ["first", "half"])
def test_truncated_placeholders_say_so(family, cut):
    model, processor = built(family)
    for samples in taken(family).values():
        inputs = inputs_for(model, processor, samples)
        visual = inputs["input_ids"] == model.config.image_token_id
        if "pixel_values_videos" in inputs and family == "llava_next_video":
            visual |= inputs["input_ids"] == model.config.video_token_id
        last = int(visual.any(0).nonzero().max())
        end = last if cut == "first" else last - int(visual.sum()) // 2
        for name in ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids"):
            if name in inputs:
                inputs[name] = inputs[name][:, :end]
        with pytest.raises(ValueError, match="model's own processor returned, not truncated"):
            adapter_for(model).observe(inputs)


@pytest.mark.parametrize(
    ("family", "samples", "missing", "says"),
    [
        ("llava_next_video", "one", "image_sizes", "inputs hold no image_sizes"),
        ("glm4v", "one", "image_grid_thw", "inputs hold no image_grid_thw"),
        ("glm4v", "video", "video_grid_thw", "inputs hold no video_grid_thw"),
        ("glm4v", "one", "mm_token_type_ids", "inputs hold no mm_token_type_ids"),
    ],
)
def test_what_the_processor_returns_and_is_missing_is_named(family, samples, missing, says):
    model, processor = built(family)
    inputs = make_inputs(processor, SAMPLES[samples])
    del inputs[missing]
    with pytest.raises(ValueError, match=says):
        compress(model, RandomPruner(), tokens=2).generate(**inputs)


def test_glm_refuses_images_and_videos_in_one_batch():
    model, processor = built("glm4v")
    inputs = make_inputs(processor, SAMPLES["image and video"])
    with pytest.raises(ValueError, match="images and videos in batches of their own"):
        compress(model, RandomPruner(), tokens=2).generate(**inputs)


@pytest.mark.parametrize("family", sorted(set(FAMILIES) - {"llava_next_video"}))
def test_a_tower_without_a_class_token_names_the_proxies(family):
    model, processor = built(family)
    with pytest.raises(ValueError, match="it has no class token"):
        adapter_for(model).observe(make_inputs(processor, SAMPLES["one"]), [Rows("cls", (-1,))])


@pytest.mark.parametrize("query", ["mean", "received"])
def test_pictures_packed_in_one_sequence_have_rows_of_their_own(query, monkeypatch):
    model, processor = built("mistral3")
    inputs = make_inputs(processor, SAMPLES["ragged several"])
    need = Rows(query, (0, -1))
    found = adapter_for(model).observe(inputs, [need])
    every = calls("mistral3", inputs, monkeypatch)
    sizes = (inputs["image_sizes"] // 14).tolist()
    for at, block in enumerate((0, 3)):
        ((q, k, weights),) = every[block]
        start = 0
        for v, (rows, columns) in enumerate(sizes):
            own = slice(start, start + rows * columns)
            start += rows * columns
            tokens = members("mistral3", columns, rows * columns)
            want = twin(need, q[:, own], k[:, own], weights[:, own, own], tokens, 0)
            assert torch.allclose(found[need][at, v, :, : len(tokens)], want, atol=1e-6)
            assert weights[:, own, : own.start].sum() == 0


@pytest.mark.parametrize(("height", "width"), [(56, 112), (84, 56), (112, 112)])
def test_pixtral_lights(height, width, monkeypatch):
    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._local_mapping, "sdpa", silent)
    other = one_bright(56, 84, (14, 42))
    text = "USER : <image> and <image> ?"
    blank = one_bright(height, width)
    for row in range(14, height, 28):
        for column in range(14, width, 28):
            picture = one_bright(height, width, (row, column))
            for nth in range(2):
                order = [other, picture] if nth else [picture, other]
                none = [other, blank] if nth else [blank, other]
                layout, changed = lit("mistral3", [(text, order)], [(text, none)])
                want = covering(layout, nth, (row / height, column / width))
                assert torch.equal(changed, want)
                assert int(want.sum()) == 1
