"""Auxiliary encoders and questions through adapters: they encode the original picture; values lie on its tokens."""

import math

import numpy as np
import pytest
import torch
from PIL import Image

from support.auxiliary_encoders import LONG, saved_clip, saved_open_clip, saved_timm
from support.models import backbone
from vtcframe import (
    AttentionRows,
    AuxiliaryClsAttention,
    Budget,
    Even,
    Mean,
    Pipeline,
    QuestionSimilarity,
    Similarity,
    TopK,
    adapter_for,
    compress,
)
from vtcframe.adapters.auxiliary_encoders import auxiliary_encoder
from vtcframe.adapters.auxiliary_evidence import _original_images
from vtcframe.testing.laws.adapters import inputs_for
from vtcframe.testing.tiny_models.other_families import samples_of
from vtcframe.testing.tiny_models.samples import SAMPLES

SIDES = {"llava": (56, 56), "llava_next": (112, 112), "llava_onevision": (112, 112), "video_llava": (56, 56)}
SIDES |= {"internvl": (112, 56), "qwen2_vl": (84, 112), "qwen2_5_vl": (84, 112), "qwen3_vl": (84, 112)}


@pytest.fixture(scope="module")
def named(tmp_path_factory):
    root = tmp_path_factory.mktemp("encoders")
    return {
        "timm": saved_timm(root / "timm")[0],
        "open_clip": saved_open_clip(root / "open_clip")[0],
        "clip": saved_clip(root / "clip")[0],
    }


def scene(height, width):
    """A smooth picture without symmetry, which survives resizing."""
    y, x = np.mgrid[0:height, 0:width] / np.array([height, width]).reshape(2, 1, 1)
    channels = 255 * y, 255 * x, 127 + 127 * np.sin(5 * x + 2 * y)
    return Image.fromarray(np.stack(channels, -1).astype(np.uint8))


def small(picture, size):
    return torch.from_numpy(np.array(picture.resize(size[::-1]))).permute(2, 0, 1) / 255


@pytest.mark.parametrize("family", SIDES)
def test_an_auxiliary_encoder_gets_the_original_picture(family):
    model, processor = backbone(family)
    pictures = [scene(*SIDES[family]), scene(*SIDES[family]).transpose(Image.Transpose.ROTATE_180)]
    inputs = inputs_for(model, processor, [("<image> ?", pictures[:1]), ("what ?", []), ("<image> ?", pictures[1:])])
    adapter = adapter_for(model, processor)
    arrangement = adapter.arrange(inputs)
    images, of = _original_images(AttentionRows("cls", (-1,), tower="timm:any"), adapter, inputs, arrangement)
    assert of.tolist() == [0 if p == 0 else 1 for p in arrangement.layout.sample.tolist()]
    for picture, image in zip(pictures, images, strict=True):
        apart = (image - small(picture, tuple(image.shape[1:]))).abs()
        assert apart.mean() < 0.02


@pytest.mark.parametrize("family", ["video_llava", "llava_onevision", "internvl", "qwen2_5_vl"])
def test_an_auxiliary_encoder_gets_each_frame(family):
    model, processor = backbone(family)
    frames = [Image.new("RGB", (56, 56), (60 * i, 20, 40)) for i in range(4)]
    inputs = inputs_for(model, processor, [("<video> ?", [frames])])
    adapter = adapter_for(model, processor)
    arrangement = adapter.arrange(inputs)
    images, of = _original_images(AttentionRows("cls", (-1,), tower="timm:any"), adapter, inputs, arrangement)
    assert of.tolist() == arrangement.layout.frame.tolist() == list(range(len(images)))
    reds = [round(255 * float(image[0].mean())) for image in images]
    assert reds == pytest.approx([30, 150] if family == "qwen2_5_vl" else [0, 60, 120, 180], abs=2)


@pytest.mark.parametrize("family", ["video_llava", "llava_onevision", "internvl", "qwen3_vl"])
def test_an_auxiliary_encoder_gets_pictures_and_videos_of_one_prompt_in_their_places(family):
    """Towers encode all images of a batch, then all videos; views stand in the order of the prompts."""
    model, processor = backbone(family)

    def plain(*reds):
        return [Image.new("RGB", (56, 56), (red, 20, 40)) for red in reds]

    samples = [("<video> and <image> ?", [plain(30, 60, 90, 120), *plain(200)]), ("<image> ?", plain(250))]
    inputs, adapter = inputs_for(model, processor, samples), adapter_for(model, processor)
    arrangement = adapter.arrange(inputs)
    images, of = _original_images(AttentionRows("cls", (-1,), tower="timm:any"), adapter, inputs, arrangement)
    reds = [round(255 * float(images[i][0].mean())) for i in dict.fromkeys(of.tolist())]
    assert reds == pytest.approx([45, 105, 200, 250] if family == "qwen3_vl" else [30, 60, 90, 120, 200, 250], abs=2)


@pytest.mark.parametrize("family", ["llava", "llava_next", "qwen2_5_vl", "llava_onevision"])
def test_attention_of_an_auxiliary_encoder_is_sampled_at_the_tokens(family, named):
    model, processor = backbone(family)
    picture = scene(*SIDES[family])
    inputs = inputs_for(model, processor, [("<image> ?", [picture])])
    need = AttentionRows("cls", (-2, -1), tower=named["timm"])
    adapter = adapter_for(model, processor)
    evidence = adapter.observe(inputs, (need,))
    layout = evidence.layout
    assert evidence[need].shape == (2, len(layout.sample), 4, layout.column.shape[1])
    image = _original_images(need, adapter, inputs, adapter.arrange(inputs))[0]
    maps = auxiliary_encoder(named["timm"]).rows(image, (-2, -1))[:, 0]  # [L, H, 4, 4]
    for v in range(len(layout.sample)):
        for n in layout.valid[v].nonzero()[:, 0].tolist():
            at = [min(max(float(c) * 4 - 0.5, 0), 3) for c in layout.centre[v, n]]
            (y, x), (low_y, low_x) = at, [min(math.floor(c), 2) for c in at]
            b, a = y - low_y, x - low_x
            square = maps[..., low_y : low_y + 2, low_x : low_x + 2]
            want = (1 - b) * ((1 - a) * square[..., 0, 0] + a * square[..., 0, 1]) + b * (
                (1 - a) * square[..., 1, 0] + a * square[..., 1, 1]
            )
            torch.testing.assert_close(evidence[need][:, v, :, n], want, atol=1e-6, rtol=1e-5)


def test_pruners_with_auxiliary_encoders_are_the_same_alone_and_in_a_batch(named):
    pruner = Pipeline(
        (AuxiliaryClsAttention(named["timm"], last=2), QuestionSimilarity(named["open_clip"])), Mean(), Even(), TopK()
    )
    for family in ("llava_next", "internvl", "qwen3_vl", "video_llava"):
        model, processor = backbone(family)
        for samples in ("ragged several", "videos"):
            if samples not in samples_of(family):
                continue
            adapter = adapter_for(model, processor)
            together = pruner(adapter.observe(inputs_for(model, processor, SAMPLES[samples]), pruner.needs), Budget(5))
            for p, sample in enumerate(SAMPLES[samples]):
                if sample[1]:
                    alone = adapter.observe(inputs_for(model, processor, [sample]), pruner.needs)
                    assert torch.equal(pruner(alone, Budget(5)).sequence(0)[1], together.sequence(p)[1])


def test_the_question_is_compared_with_each_token_sample_by_sample(named):
    model, processor = backbone("llava")
    inputs = inputs_for(model, processor, SAMPLES["ragged several"])
    need = Similarity(named["open_clip"])
    adapter = adapter_for(model, processor)
    evidence = adapter.observe(inputs, (need,))
    encoder = auxiliary_encoder(named["open_clip"])
    pictures, of = _original_images(need, adapter, inputs, adapter.arrange(inputs))
    dense = encoder.dense(pictures)
    questions = ["USER : and which of the two ? ASSISTANT :", "USER : what ? ASSISTANT :"]
    for v, p in enumerate(evidence.layout.sample.tolist()):
        words = encoder.text([questions[p]])[0]
        for n in range(16):  # both grids are 4 x 4
            patch = dense[int(of[v]), n // 4, n % 4]
            want = torch.nn.functional.cosine_similarity(patch[None], words).mean()
            assert float(evidence[need][v, n]) == pytest.approx(float(want), abs=1e-5)


def test_questions_that_the_caller_names_replace_the_prompts(named):
    from dataclasses import replace

    model, processor = backbone("llava")
    inputs, need = inputs_for(model, processor, SAMPLES["one"]), Similarity(named["open_clip"])
    adapter = adapter_for(model, processor)
    arrangement = adapter.arrange(inputs)
    readings = [
        adapter.encode(inputs, replace(arrangement, questions=(q,)), (need,))[need] for q in ("a dog", LONG, "")
    ]
    assert not torch.allclose(readings[0], readings[1])
    assert all(x.isfinite().all() for x in readings)


def test_the_clip_of_the_backbone_compares_the_features_of_the_backbone(named):
    model, processor = backbone("llava")
    inputs, need = inputs_for(model, processor, SAMPLES["several"]), Similarity(named["clip"])
    evidence = adapter_for(model, processor).observe(inputs, (need,))
    assert list(evidence.readings) == [need]
    encoder = auxiliary_encoder(named["clip"])
    with torch.no_grad():
        hidden = model.base_model.get_image_features(inputs["pixel_values"]).hidden_states[-2][:, 1:]
    words = encoder.text(["USER : and which of the two ? ASSISTANT :"])[0]
    torch.testing.assert_close(evidence[need], encoder.similarity(encoder.embed(hidden), words))
    with pytest.raises(ValueError, match=r"cannot gather Similarity\(model='clip'\).*no published CLIP's shape"):
        adapter_for(model, processor).observe(inputs, (Similarity(),))
    wide, processor = backbone("internvl")
    inputs = inputs_for(wide, processor, SAMPLES["one"])
    with pytest.raises(ValueError, match="32 wide, the patches are 128 wide"):
        adapter_for(wide, processor).observe(inputs, (need,))


def test_evidence_of_original_pictures_or_questions_requires_the_processor(named):
    model, processor = backbone("qwen2_5_vl")
    inputs = inputs_for(model, processor, SAMPLES["ragged several"])
    for scorer in (AuxiliaryClsAttention(named["timm"]), QuestionSimilarity(named["open_clip"])):
        pruner = Pipeline((scorer,), Mean(), Even(), TopK())
        with pytest.raises(ValueError, match=r"give compress\(..., processor=processor\)"):
            compress(model, pruner, tokens=3).generate(**inputs, max_new_tokens=1)
        compressed = compress(model, pruner, tokens=3, processor=processor)
        compressed.generate(**inputs, max_new_tokens=1)
        assert compressed.last.tokens_after.tolist() == [3, 3, 0]
    with pytest.raises(ValueError, match="an auxiliary encoder serves AttentionRows"):
        adapter_for(model, processor).observe(inputs, (AttentionRows("mean", (-1,), tower=named["timm"]),))
