"""Samples of every kind in one batch of the predictor, and samples that fail."""

import json

import pytest
import torch

from support.predict_runs import predict, read, sample, taken
from vtcframe import Budget, RandomPruner
from vtcframe.core.stages import Stage, plan_from_stages
from vtcframe.data.progress import RunProgress
from vtcframe.drawing import sheet
from vtcframe.errors import UsageError
from vtcframe.inference.checkpoint import Backbone
from vtcframe.inference.session import Session
from vtcframe.runs.comparison import Comparison
from vtcframe.runs.crops import crop_pictures
from vtcframe.runs.predictor import Predictor
from vtcframe.testing.tiny_models.llava_families import draw
from vtcframe.testing.tiny_models.other_families import BACKBONES

TEMPLATE = """{% for part in messages[0]['content'] -%}
{% if part['type'] == 'image' %}IMAGE {% elif part['type'] == 'video' %}VIDEO {% else %}{{ part['text'] }}{% endif %}
{%- endfor %}"""


def predictor_of(monkeypatch, family, *pruners, tokens=3):
    """A predictor on a random model of a family, with a chat template."""
    model, processor = BACKBONES[family]()
    image, video = processor.image_token, getattr(processor, "video_token", "")
    around = (lambda one: f"<|vision_start|>{one}<|vision_end|>") if "qwen" in family else (lambda one: one)
    processor.chat_template = TEMPLATE.replace("IMAGE", around(image)).replace("VIDEO", around(video))
    monkeypatch.setattr(Backbone, "load", lambda self: (model, processor))
    predictor = Predictor(
        Backbone("some/checkpoint"),
        compare=Comparison(list(pruners), [Budget(tokens=tokens)]),
        generation={"max_new_tokens": 3},
        progress=RunProgress.opened(views=True),
    )
    predictor.setup("predict")
    return predictor


def answered(predictor, *samples):
    with torch.no_grad():
        rows = predictor.predict_step(list(samples), 0)
    return {name: [row for row in rows if row.id == name] for name in (one.id for one in samples)}


@pytest.mark.parametrize("family", ["llava_onevision", "internvl", "video_llava", "qwen2_5_vl", "qwen3_vl"])
def test_pictures_and_videos_are_answered_together_as_they_are_alone(monkeypatch, family):
    predictor = predictor_of(monkeypatch, family, RandomPruner())
    batch = [
        sample("picture", [draw(60, 90, 1)]),
        sample("film", frames=4),
        sample("both", [draw(60, 90, 2)], frames=4),
    ]
    together = answered(predictor, *batch)
    merged = 2 if "qwen" in family else 1
    for one in batch:
        unpruned, pruned = together[one.id]
        assert unpruned.error is None
        assert (pruned.visual_tokens, pruned.visual_tokens_before) == (3, unpruned.visual_tokens)
        again = answered(predictor, one)[one.id]
        assert [(row.prediction, row.views) for row in again] == [
            (row.prediction, row.views) for row in (unpruned, pruned)
        ]
        want = {(i, 0) for i in range(len(one.pictures))}
        want |= {(len(one.pictures), f) for frames in one.videos for f in range(len(frames) // merged)}
        assert {(view["image"], view["frame"]) for view in pruned.views} == want
        shown = crop_pictures(predictor.processor, one)
        assert len(shown) == len(one.pictures) + len(one.videos)
        assert [len(frames) for frames in shown[len(one.pictures) :]] == [4 // merged for _ in one.videos]
        sheet(shown, together[one.id])


def test_a_video_for_a_model_that_takes_none_fails_alone(monkeypatch):
    predictor = predictor_of(monkeypatch, "llava", RandomPruner())
    rows = answered(predictor, sample("picture", [draw(60, 90, 1)]), sample("film", frames=2))
    assert [row.error for row in rows["picture"]] == [None, None]
    (row,) = rows["film"]
    assert "some/checkpoint cannot answer this question" in row.error
    assert "LlavaProcessor takes no videos: give the frames as `images`" in row.error


def test_what_a_processor_refuses_fails_alone(monkeypatch):
    predictor = predictor_of(monkeypatch, "qwen2_vl", RandomPruner())
    rows = answered(predictor, sample("line", [draw(3, 900, 1)]), sample("picture", [draw(60, 90, 1)]))
    assert [row.error for row in rows["picture"]] == [None, None]
    assert "aspect ratio" in rows["line"][0].error


def test_a_processor_of_another_model_fails_every_sample_and_says_so(monkeypatch):
    predictor = predictor_of(monkeypatch, "llava", RandomPruner())
    predictor.processor.patch_size = 28
    rows = answered(predictor, sample("a", [draw(60, 90, 1)]), sample("b", [draw(60, 90, 2)]))
    for (row,) in rows.values():
        assert "its processor belongs to another model" in row.error


def test_what_a_pruner_refuses_is_told(monkeypatch):
    predictor = predictor_of(monkeypatch, "qwen2_vl", RandomPruner())
    plan = plan_from_stages([Stage("projector", RandomPruner(), Budget(tokens=3), positions="compact")])
    predictor.sessions = [Session(predictor.adapter, plan)]
    with pytest.raises(UsageError, match=r"RandomPruner\(seed=0\) cannot prune some/checkpoint: .*use 'original'"):
        answered(predictor, sample("a", [draw(60, 90, 1)]))


def test_questions_about_videos_run_from_a_file(tmp_path, monkeypatch):
    predictor_of(monkeypatch, "video_llava")
    for f in range(6):
        draw(60, 90, f).save(tmp_path / f"{f}.png")
    lines = [
        {"id": "film", "video": [f"{f}.png" for f in range(6)], "question": "what ?"},
        {"id": "none", "video": [], "question": "what ?"},
    ]
    (tmp_path / "asked.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    given = f"--data.path={tmp_path}/asked.jsonl", f"--writer.folder={tmp_path}", "--data.frames=3"
    status, _, err = predict(*given, "--writer.pictures=1", "--model.compare.budgets=[{tokens: 4, per: view}]")
    rows = read(tmp_path)
    assert status == 1
    assert "none" in err
    assert [(row.id, row.visual_tokens, row.visual_tokens_before) for row in rows if row.budget] == [
        ("film", 12, 48)
    ] * 3
    assert "has no frames" in rows[-1].error
    assert (tmp_path / "pictures" / "film.png").exists()


def test_half_precision_of_the_trainer_is_that_of_the_backbone(tmp_path):
    """Rotary frequencies stay in float32, and scores are float32."""
    rows = []
    for name, option in (("trainer", "--trainer.precision=bf16-true"), ("backbone", "--model.backbone.dtype=bfloat16")):
        (tmp_path / name).mkdir()
        options = (
            *taken(tmp_path / name, 12),
            "--writer.masks=true",
            "--model.compare.pruners=[DivPrune, {name: FastV, layer: 2}]",
        )
        assert predict(*options, option)[0] == 0
        rows.append([(row.prediction, row.views) for row in read(tmp_path / name)])
    assert rows[0] == rows[1]
    assert predict(*taken(tmp_path, 12), "--trainer.precision=bf16-mixed")[0] == 0
    assert [row.error for row in read(tmp_path)] == [None] * (12 * 13)
