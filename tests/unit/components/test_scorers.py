"""Scorers compared with references in plain Python."""

import math
from dataclasses import replace

import pytest
import torch

from vtcframe import AttentionKeys, AttentionRows, ClsAttention
from vtcframe.components.scorers import KeyNorm, Uniqueness
from vtcframe.ops.views import first_frames
from vtcframe.testing import check_scorer, make_evidence


@pytest.mark.parametrize(
    "scorer",
    [KeyNorm(), Uniqueness(), ClsAttention(layers=(0, 5), blocks="tower", pre_softmax=True, heads="joined")],
    ids=str,
)
def test_laws_hold(scorer):
    check_scorer(scorer)


def test_cls_attention_reads_the_blocks_as_published():
    assert ClsAttention(3).needs == (AttentionRows("cls", (-3, -2, -1)),)
    assert ClsAttention(1, "proxy").needs == (AttentionRows("proxy", (-1,)),)
    assert ClsAttention(layers=(0,)).needs == (AttentionRows("cls", (0,)),)
    scorer = ClsAttention(1, blocks="tower", pre_softmax=True, heads="joined")
    assert scorer.needs == (AttentionRows("cls", (-1,), blocks="tower", pre_softmax=True, heads="joined"),)
    assert ClsAttention(layers=(4, 22)) == ClsAttention(layers=[4, 22])  # as YAML gives them
    evidence = make_evidence(scorer.needs)
    torch.testing.assert_close(scorer(evidence), evidence[scorer.needs[0]][:, :, 0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"last": 0}, "last counts blocks and must be at least 1, got 0"),
        ({"layers": ()}, "layers names no block: give at least one"),
        ({"blocks": "llm"}, "blocks must be 'feeding' or 'tower', got 'llm'"),
        ({"heads": "mean"}, "heads must be 'split' or 'joined', got 'mean'"),
        ({"query": "clss"}, "query must be one of 'cls'"),
    ],
)
def test_invalid_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        ClsAttention(**options)


def test_key_norm_is_the_l1_length_over_all_heads():
    need = AttentionKeys((2,))
    evidence = make_evidence((need,))
    by_hand = sum(abs(float(x)) for head in evidence[need][0, 3, :, 100] for x in head)
    assert float(KeyNorm(2)(evidence)[0, 3, 100]) == pytest.approx(by_hand, abs=1e-5)


def video(lengths, channels=6):
    """Two samples: a video and a picture, a video of the same frames in another."""
    evidence = make_evidence(samples={p: [(2, n)] * frames for p, (frames, n) in enumerate(lengths)}, channels=channels)
    frame = torch.cat([torch.arange(frames) for frames, _ in lengths])
    return replace(evidence, layout=replace(evidence.layout, image=torch.zeros_like(frame), frame=frame))


def test_frames_follow_one_another_in_a_video_only():
    layout = video([(3, 2), (2, 3)]).layout
    assert first_frames(layout).tolist() == [True, False, False, True, False]
    pictures = replace(layout, image=torch.tensor([0, 1, 2, 0, 1]))
    assert first_frames(pictures).tolist() == [True] * 5
    assert first_frames(replace(layout, frame=torch.zeros(5, dtype=torch.long))).tolist() == [True] * 5


def test_uniqueness_equals_its_reference():
    evidence = video([(3, 2), (1, 4)])
    got = Uniqueness()(evidence)
    frames = [evidence.tokens[v, :n].double().tolist() for v, n in enumerate(evidence.layout.count.tolist())]
    for views in ([0, 1, 2], [3]):
        every = [x for v in views for x in frames[v]]
        channels = list(zip(*every, strict=True))
        spread = [sum((a - sum(c) / len(c)) ** 2 for a in c) for c in channels]
        steady = sorted(range(6), key=lambda c: spread[c])[:3]

        def short(x, steady=steady):
            x = [x[c] for c in steady]
            return [a / math.sqrt(sum(b * b for b in x)) for a in x]

        def mean(xs):
            return [sum(c) / len(c) for c in zip(*xs, strict=True)]

        def like(x, m):
            away = sum((a - b) ** 2 for a, b in zip(x, m, strict=True))
            return sum(math.exp(-away / (2 * a)) for a in (1 / 8, 1 / 4, 1 / 2, 1, 2))

        video_mean = mean([short(x) for x in every])
        for v in views:
            frame_mean = mean([short(x) for x in frames[v]])
            for n, x in enumerate(frames[v]):
                assert float(got[0, v, n]) == pytest.approx(-like(short(x), video_mean), abs=1e-5)
                assert float(got[1, v, n]) == pytest.approx(-like(short(x), frame_mean), abs=1e-5)
