"""Transforms of pictures and videos."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from support.models import backbone
from vtcframe import Budget, Even, Mean, Pipeline, compress
from vtcframe.cli import main
from vtcframe.data.decode import apply_transforms
from vtcframe.data.processor import processor_inputs
from vtcframe.data.sample import Sample
from vtcframe.data.transforms import Downsample, FramesAsPictures, Thumbnail, count_placeholders
from vtcframe.methods.ts_llava import BySpacing, Spaced, TsLlava
from vtcframe.testing import check_allocator, check_pruner, check_selector, make_evidence


def noise(width, height, seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8))


def film(frames, width=40, height=30):
    return tuple(noise(width, height, seed) for seed in range(frames))


# Downsample


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl", "internvl", "mistral3"])
@pytest.mark.parametrize("wanted", [Downsample(tokens=6), Downsample(ratio=0.4)])
def test_a_picture_shrinks_to_the_largest_size_within_the_budget(family, wanted):
    _, processor = backbone(family)
    picture = noise(400, 300)
    budget = wanted.tokens or round(0.4 * count_placeholders(processor, picture.size))
    (small,) = wanted.fitted(processor)(picture)
    assert count_placeholders(processor, small.size) <= budget
    assert max(small.size) < 400
    assert abs(small.width * 3 - small.height * 4) <= 4  # its aspect stays, to half a pixel an edge
    sizes = [(edge, round(edge * 3 / 4)) for edge in range(11, 401)]
    if family != "internvl":  # whose tiles come and go with the aspect
        assert max(e for e, h in sizes if count_placeholders(processor, (e, h)) <= budget) == small.width


def test_placeholders_are_those_that_the_model_replaces():
    for family, kind in (("internvl", "image"), ("mistral3", "image"), ("gemma3", "image"), ("qwen2_5_vl", "video")):
        model, processor = backbone(family)
        frames = 4 if kind == "video" else 0
        shown = {"videos": (film(4, 80, 60),)} if frames else {"pictures": (noise(80, 60),)}
        ids = processor_inputs(processor, [replace(Sample("", "", ()), **shown)])["input_ids"]
        count = int((ids == getattr(model.config, f"{kind}_token_id")).sum())
        assert count_placeholders(processor, (80, 60), frames) == count > 1


def test_what_fits_is_left_as_it_is_and_a_video_shrinks_frame_by_frame():
    _, processor = backbone("qwen2_5_vl")
    picture, video = noise(60, 60), film(4, 112, 84)
    assert Downsample(tokens=1000).fitted(processor)(picture)[0] is picture
    assert Downsample(ratio=1.0).fitted(processor)(video)[0] is video
    (small,) = Downsample(ratio=0.5).fitted(processor)(video)
    assert len(small) == 4
    assert count_placeholders(processor, small[0].size, 4) <= count_placeholders(processor, (112, 84), 4) / 2


def test_a_model_of_fixed_resolution_is_named_with_what_to_do_instead():
    _, processor = backbone("llava")
    with pytest.raises(ValueError, match=r"LlavaProcessor makes 16 tokens .*, more than the budget of 4: .*Pool"):
        Downsample(tokens=4).fitted(processor)(noise(90, 60))
    with pytest.raises(ValueError, match=r"call fitted\(processor\) first"):
        Downsample(tokens=4)(noise(90, 60))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: Downsample(), "give tokens or ratio"),
        (lambda: Downsample(tokens=0), "at least 1, got 0"),
        (lambda: Downsample(ratio=1.5), "got 1.5"),
        (lambda: Thumbnail(frames=0), "frames must be at least 1, got 0"),
        (lambda: Thumbnail(frames=6, edge=5), "edge must be at least 6 pixels, .* got 5"),
        (lambda: Thumbnail(beside="behind"), "beside must be 'first', 'last' or left out, got 'behind'"),
        (lambda: Spaced("all"), "whole must be 'first', 'last' or omitted, got 'all'"),
        (lambda: BySpacing("all"), "whole must be 'first', 'last' or omitted, got 'all'"),
    ],
)
def test_nonsense_is_named(wrong, message):
    with pytest.raises(ValueError, match=message):
        wrong()


def test_a_thumbnail_shows_evenly_spaced_frames_row_by_row():
    video = film(10, 60, 30)
    ((grid,), (first, same), (other, last)) = (Thumbnail(4, 64, beside)(video) for beside in (None, "first", "last"))
    assert (same, other) == (video, video)
    for one in (grid, first, last):
        pixels = np.asarray(one)
        assert pixels.shape == (64, 64, 3)
        for cell, index in enumerate((0, 3, 6, 9)):
            row, column = cell // 2 * 32, cell % 2 * 32
            frame = torch.from_numpy(np.array(video[index])).permute(2, 0, 1).float()
            by_hand = torch.nn.functional.adaptive_avg_pool2d(frame, 32).round()
            found = torch.from_numpy(pixels[row : row + 32, column : column + 32].copy()).permute(2, 0, 1)
            assert torch.equal(found.float(), by_hand)
    (one,) = Thumbnail(6, 64)(video[:3])  # no more frames than there are
    assert one.size == (64, 63)
    picture = noise(5, 5)
    assert Thumbnail()(picture) == FramesAsPictures()(picture) == (picture,)
    assert FramesAsPictures()(video) == video


def points_by_hand(total, budget):
    return [round(i * (total - 1) / (budget - 1)) if budget > 1 else 0 for i in range(budget)]


@pytest.mark.parametrize(("count", "wanted"), [(28800, 28799), (65536, 65535), (100_003, 99_001), (5, 5), (9, 1)])
def test_no_token_is_spaced_out_twice_where_float32_is_coarse(count, wanted):
    evidence = make_evidence(samples={1: [(1, count)]}, channels=1)
    pruned = Pipeline((), Mean(), BySpacing(), Spaced())(evidence, Budget(wanted))
    assert int(pruned.total) == wanted
    exact = torch.tensor(points_by_hand(count, wanted))
    assert (pruned.place[0] - exact).abs().max() <= 1


@pytest.mark.parametrize("whole", [None, "first", "last"])
@pytest.mark.parametrize("budget", [1, 2, 7, 12, 13, 29, 40, 41])
def test_spaced_tokens_equal_their_twin_on_ragged_views(whole, budget):
    sizes = {3: [4, 12, 1, 9, 15], 4: [], 8: [30], 9: [6, 6]}
    evidence = make_evidence(samples={key: [(1, n) for n in own] for key, own in sizes.items()})
    pruned = Pipeline((), Mean(), BySpacing(whole), Spaced(whole))(evidence, Budget(budget))
    kept, v = pruned.kept, 0
    for own in sizes.values():
        served = {"first": 0, "last": len(own) - 1}.get(whole or "", -1)
        left, rows = min(budget, sum(own)), list(range(len(own)))
        want = {row: set() for row in rows}
        for group in ([r for r in rows if r == served], [r for r in rows if r != served]):
            flat = [(row, n) for row in group for n in range(own[row])]
            for at in points_by_hand(len(flat), min(left, len(flat))):
                want[flat[at][0]].add(flat[at][1])
            left -= min(left, len(flat))
        for row in rows:
            assert set(kept[v + row].nonzero()[:, 0].tolist()) == want[row]
        v += len(own)


def test_spaced_keeps_quotas_that_others_gave():
    evidence = make_evidence(samples={1: [(1, 10), (1, 30)]})
    pruned = Pipeline((), Mean(), Even(), Spaced())(evidence, Budget(16))
    assert (pruned.place >= 0).sum(1).tolist() == [8, 8]
    assert pruned.place[1].diff().max() <= 8


@pytest.mark.parametrize("whole", [None, "first", "last"])
def test_laws_hold(whole):
    check_allocator(BySpacing(whole))
    check_selector(Spaced(whole))
    check_pruner(Pipeline((), Mean(), BySpacing(whole), Spaced(whole), across="sample"))
    if whole:
        check_pruner(TsLlava(whole))
    with pytest.raises(ValueError, match="BySpacing shares out a budget"):
        TsLlava()(make_evidence())


@pytest.mark.parametrize("order", ["first", "last"])
def test_a_video_is_answered_by_a_model_that_takes_none(order, monkeypatch):
    model, processor = backbone("llava")
    transforms = [Thumbnail(6, 56, beside=order), FramesAsPictures()]
    sample = apply_transforms(Sample("a", "what is in the image ?", (), videos=(film(8, 60, 45),)), transforms)
    assert (len(sample.pictures), sample.videos) == (9, ())
    small = compress(model, TsLlava(order), tokens=16 + 10)
    small.generate(**processor_inputs(processor, [sample]), max_new_tokens=2, do_sample=False)
    assert small.last is not None
    kept = small.last.kept.sum(1).tolist()
    thumbnail = 0 if order == "first" else 8
    assert kept.pop(thumbnail) == 16
    assert sum(kept) == 10
    assert max(kept) <= 2


def test_transforms_stand_in_the_configuration(tmp_path, capsys):
    names = []
    for i in range(8):
        noise(60, 60, i).save(tmp_path / f"{i}.png")
        names.append(f"{i}.png")
    questions = tmp_path / "questions.jsonl"
    lines = [
        {"id": "film", "video": names, "question": "what color is the ring ?", "answer": "red"},
        {"id": "still", "image": "0.png", "question": "what color is the ring ?", "answer": "red"},
    ]
    questions.write_text("".join(json.dumps(line) + "\n" for line in lines))

    def predict(*transforms):
        given = [
            {"class_path": f"vtcframe.data.transforms.{name}", "init_args": options} for name, options in transforms
        ]
        arguments = {
            "model.backbone.path": "vtcframe:tiny",
            "data.path": questions,
            "data.transforms": json.dumps(given),
            "trainer.accelerator": "cpu",
            "writer.folder": tmp_path / "out",
            "writer.existing": "replace",
        }
        status = main(["predict", *(f"--{name}={value}" for name, value in arguments.items())])
        rows = (tmp_path / "out" / "predictions.jsonl").read_text().splitlines()
        return status, {row["id"]: row for row in map(json.loads, rows)}

    status, rows = predict(("Thumbnail", {"frames": 4, "edge": 96}))
    assert status == 0
    assert rows["film"]["visual_tokens"] == rows["still"]["visual_tokens"] == 144
    status, rows = predict(("Thumbnail", {"frames": 4, "beside": "last"}), ("FramesAsPictures", {}))
    assert rows["film"]["visual_tokens"] == 9 * 144
    status, rows = predict(("Downsample", {"tokens": 16}))
    assert status == 1
    assert "LlavaProcessor makes 144 tokens" in rows["still"]["error"]
    capsys.readouterr()
