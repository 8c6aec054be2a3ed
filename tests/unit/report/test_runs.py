"""The runs that a report compares, and the folders that it rejects."""

import json

import pytest

from support.report_runs import QUARTER, folder, results_of, rows
from vtcframe.data.transforms import Downsample
from vtcframe.errors import UsageError
from vtcframe.report import command as report
from vtcframe.report.runs import load_runs
from vtcframe.report.statistics import collect_results

pytest.importorskip("scipy", reason="the extra `report` is not installed")


pytest.importorskip("jinja2", reason="the extra `report` is not installed")


def test_a_run_on_downsampled_pictures_is_compared_as_a_baseline(tmp_path):
    full = folder(tmp_path / "1", rows("unpruned", "1111"), rows("UniformPruner()", "1110", QUARTER))
    facts = {"model.runs": ["unpruned"], "data.transforms": [str(Downsample(ratio=0.25))]}
    downsampled = folder(tmp_path / "2", rows("unpruned", "1100", seconds=0.2), **facts)
    result = results_of(full, downsampled)["tiny", "toys", "Downsample", "0.25"]
    assert (result.value, result.percent, result.against_unpruned.mean) == (0.5, 50, -0.5)
    assert (result.time_ratio, result.same_run) == (pytest.approx(2), False)
    assert result.baseline == "UniformPruner"
    tokens = folder(tmp_path / "3", rows("unpruned", "1"), **facts | {"data.transforms": [str(Downsample(tokens=9))]})
    assert ("tiny", "toys", "Downsample", "9 tokens") in results_of(full, tokens)


def test_different_models_and_questions_get_different_names(tmp_path):
    paths = [
        folder(tmp_path / "a", rows("unpruned", "11")),
        folder(tmp_path / "b", rows("unpruned", "11"), **{"trainer.precision": "bf16-true"}),
        folder(tmp_path / "c", rows("unpruned", "11"), **{"digest of the questions": "b"}),
    ]
    assert [(result.model, result.data) for result in collect_results(load_runs(paths).runs)] == [
        ("tiny", "toys"),
        ("tiny (2)", "toys"),
        ("tiny", "toys (2)"),
    ]


def test_unfinished_runs_are_named_and_left_out(tmp_path):
    folder(tmp_path / "x" / "a", rows("unpruned", "11"))
    folder(tmp_path / "x" / "b", rows("unpruned", "00"), merged=None)
    assert [run.name for run in load_runs([tmp_path / "x"]).runs] == ["a"]
    assert load_runs([tmp_path / "x"]).unfinished == ["b"]
    report.write([tmp_path / "x"], tmp_path / "out")
    assert "Unfinished runs, not included: b." in (tmp_path / "out.md").read_text()


def test_nested_folders_are_read_once(tmp_path):
    folder(tmp_path / "x" / "a", rows("unpruned", "11"))
    assert len(load_runs([tmp_path, tmp_path / "x", tmp_path / "x" / "a"]).runs) == 1


def remove_fact(manifest, key):
    manifest_data = json.loads(manifest.read_text())
    del manifest_data["run"][key]
    manifest.write_text(json.dumps(manifest_data))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: (path / "run.json").write_text("{"), "is not a valid run manifest"),
        (lambda path: (path / "run.json").write_text('{"merged": 1}'), "is not a valid run manifest"),
        (lambda path: remove_fact(path / "run.json", "model.runs"), "is not a valid run manifest"),
        (lambda path: (path / "predictions.jsonl").write_text('{"id": 1, "x": 2}\n'), "line 1, is not a row"),
        (lambda path: (path / "run.json").unlink(), "there is no finished run below"),
        (lambda path: (path / "predictions.jsonl").unlink(), r"\(1 are not finished\)"),
    ],
)
def test_damaged_folders_are_rejected(tmp_path, damage, message):
    damage(folder(tmp_path / "a", rows("unpruned", "11")))
    with pytest.raises(UsageError, match=message):
        report.main([str(tmp_path)])


def test_a_benchmark_that_is_not_installed_is_named(tmp_path):
    folder(tmp_path / "a", rows("unpruned", "11"), **{"data.benchmark": {"name": "Popé"}})
    with pytest.raises(UsageError, match=r"(?s)cannot be loaded: no benchmark is called 'Popé'"):
        report.main([str(tmp_path)])


def test_a_missing_folder_and_a_missing_extra_are_reported(tmp_path, monkeypatch):
    with pytest.raises(UsageError, match="there is no folder"):
        report.main([str(tmp_path / "no")])
    monkeypatch.setattr(report, "find_spec", lambda name: None if name == "scipy" else object())
    with pytest.raises(UsageError, match=r"a report needs scipy: run pip install 'vtcframe\[report\]'"):
        report.main([str(tmp_path)])
