import sys
from pathlib import Path

import numpy as np
import pytest


@pytest.fixture
def video(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "tiny"))
    import video

    yield video
    for name in ("video", "scenes"):
        sys.modules.pop(name, None)


def test_one_of_four_frames_shows_the_objects_and_no_question_is_about_counting(video):
    questions = list(video.video_questions(1, 3))
    repeated = list(video.video_questions(1, 3))
    assert {question.scene for question in questions} == {0, 1, 2}
    assert all(len(question.sample.pictures) == 4 for question in questions)
    assert all(question.sample.type != "count" for question in questions)
    for question, other in zip(questions, repeated, strict=True):
        assert [p.tobytes() for p in question.sample.pictures] == [p.tobytes() for p in other.sample.pictures]


def test_the_table_has_every_method_at_every_budget_with_intervals(video, capsys):
    video.main(["--scenes=1"])
    lines = capsys.readouterr().out.splitlines()
    count = len(list(video.video_questions(video.SEED, 1)))
    assert lines[0] == f"{count} questions about 1 scenes, 4 frames, compact positions."
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[4:]]
    assert [row[0] for row in rows] == ["576", *(str(tokens) for tokens in (144, 72, 36) for _ in range(3))]
    assert [row[1] for row in rows[1:4]] == list(video.PRUNERS)
    assert all(0 <= float(row[2]) <= 1 for row in rows)
    assert all(bool(row[3]) == row[1].startswith("VtcCls") for row in rows)


def test_the_interval_is_paired_and_resamples_scenes(video):
    scene = np.repeat(np.arange(50), 4)
    noise = np.random.default_rng(0).random(200)
    low, high = video.difference(noise + 0.25, noise, scene)
    assert low == pytest.approx(0.25)
    assert high == pytest.approx(0.25)
    grades = np.repeat(np.random.default_rng(1).random(50) < 0.5, 4).astype(
        float
    )  # all questions of a scene have the same grade
    low, high = video.difference(grades, np.zeros(200), scene)
    assert high - low == pytest.approx(2 * 1.96 * 0.5 / 50**0.5, rel=0.15)
