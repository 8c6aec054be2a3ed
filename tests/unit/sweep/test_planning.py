"""Sweeps: the runs that a configuration makes."""

import pytest

from support.sweeps import planned, written
from vtcframe.cli import main as command
from vtcframe.sweep import command as sweep
from vtcframe.testing.tiny_models.other_families import BACKBONES

pytest.importorskip("scipy", reason="the extra `report` is not installed")


pytest.importorskip("jinja2", reason="the extra `report` is not installed")


# What is run


def test_pruners_with_a_seed_are_drawn_with_each_unless_they_were_given_one(tmp_path):
    told = "VtcCls(last=3), RandomPruner(seed=0), RandomPruner(seed=1) at ratio 0.25, tokens 9"
    assert planned(tmp_path) == [("tiny/toys/01", told)]
    given = [{"name": "RandomPruner", "seed": 7}]
    assert planned(tmp_path, pruners=given) == [("tiny/toys/01", "RandomPruner(seed=7) at ratio 0.25, tokens 9")]


def test_baselines_come_first_and_once(tmp_path, capsys):
    ((_, told),) = planned(tmp_path, baselines=True, pruners=["UniformPruner", "VtcCls"], budgets=[{"tokens": 9}])
    names = "RandomPruner(seed=0), RandomPruner(seed=1), UniformPruner(), Pool(), VtcCls(last=3)"
    assert told == f"{names} at tokens 9"
    assert "tiny: Downsample at tokens 9 is left out: LlavaProcessor makes 144 tokens" in capsys.readouterr().out


def test_models_of_flexible_resolution_are_shrunk_to_each_budget_in_runs_of_their_own(tmp_path, monkeypatch, pretended):
    _, processor = BACKBONES["qwen2_5_vl"]()
    monkeypatch.setattr("transformers.AutoProcessor.from_pretrained", lambda *_, **__: processor)
    keys = {
        "baselines": True,
        "budgets": [{"tokens": 16}, {"ratio": 0.25, "per": "image"}],
        "seeds": [0],
        "pruners": [],
    }
    thumbnail = {"toys": {"path": "vtcframe:questions", "transforms": ["FramesAsPictures"]}}
    told = [
        ("tiny/toys/01", "RandomPruner(seed=0), UniformPruner(), Pool() at tokens 16, per image, ratio 0.25"),
        ("tiny/toys/02", "Downsample at tokens 16"),
        ("tiny/toys/03", "Downsample at ratio 0.25"),
    ]
    assert planned(tmp_path, **keys, data=thumbnail) == told
    assert sweep.main([written(tmp_path, **keys, data=thumbnail)]) == 0
    first, second, third = pretended[0]
    assert first["data"]["transforms"] == ["FramesAsPictures"]
    assert second["data"]["transforms"] == ["FramesAsPictures", {"name": "Downsample", "tokens": 16}]
    assert third["data"]["transforms"][1] == {"name": "Downsample", "ratio": 0.25}
    assert "compare" not in second["model"]
    assert planned(tmp_path, **keys, data=thumbnail) == []


def test_a_budget_that_a_method_does_not_serve_is_left_out(tmp_path, capsys):
    budgets = [{"tokens": 64}, {"tokens": 9}]
    (first, second) = planned(tmp_path, pruners=["SparseVlm", "VtcCls"], budgets=budgets)
    assert first[1].startswith("SparseVlm(")
    assert first[1].endswith(") at tokens 64")
    assert second[1] == "VtcCls(last=3) at tokens 64, tokens 9"
    assert "at tokens 9 is left out: SparseVlm has published numbers only for 192" in capsys.readouterr().out


def test_downsampling_stands_in_the_report_beside_pruning(tmp_path, monkeypatch):
    for part in BACKBONES["qwen2_5_vl"]():
        part.save_pretrained(tmp_path / "qwen")
    monkeypatch.setattr(sweep, "predict", lambda file: command(["predict", "--config", str(file)]))
    data = {"toys": {"path": "vtcframe:questions", "limit": 3}}
    keys = {"models": [str(tmp_path / "qwen")], "budgets": [{"ratio": 0.5}], "baselines": True, "data": data}
    assert command(["sweep", written(tmp_path, **keys, pruners=[])]) == 0
    text = (tmp_path / "sweep" / "report.md").read_text()
    assert "| Downsample | 0.5 | 1 | 3 |" in text
    assert "missing baselines" not in text


def test_every_model_is_asked_every_set_of_questions_and_names_are_folders(tmp_path):
    data = {"a": {"path": "a.jsonl"}, "b": {"path": "b.jsonl"}}
    runs = planned(tmp_path, models=["vtcframe:tiny", {"path": "other/model-7b"}], data=data)
    assert [place for place, _ in runs] == ["tiny/a/01", "tiny/b/01", "model-7b/a/01", "model-7b/b/01"]
