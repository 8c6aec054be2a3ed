"""Which runs a report compares, and which folders it refuses."""

import json

import pytest

from support.report_runs import QUARTER, folder, made, rows
from vtcframe.data.transforms import Downsample
from vtcframe.errors import UsageError
from vtcframe.report import command as report
from vtcframe.report.runs import load_runs
from vtcframe.report.statistics import entries

pytest.importorskip("scipy", reason="the extra `report` is not installed")


pytest.importorskip("jinja2", reason="the extra `report` is not installed")


def test_a_run_of_shrunk_pictures_is_downsampling_beside_the_others(tmp_path):
    whole = folder(tmp_path / "1", rows("unpruned", "1111"), rows("UniformPruner()", "1110", QUARTER))
    facts = {"model.runs": ["unpruned"], "data.transforms": [str(Downsample(ratio=0.25))]}
    shrunk = folder(tmp_path / "2", rows("unpruned", "1100", seconds=0.2), **facts)
    one = made(whole, shrunk)["tiny", "toys", "Downsample", "0.25"]
    assert (one.value, one.percent, one.against_unpruned.mean) == (0.5, 50, -0.5)
    assert (one.pace, one.same_run) == (pytest.approx(2), False)
    assert one.baseline == "UniformPruner"
    tokens = folder(tmp_path / "3", rows("unpruned", "1"), **facts | {"data.transforms": [str(Downsample(tokens=9))]})
    assert ("tiny", "toys", "Downsample", "9 tokens") in made(whole, tokens)


def test_what_differs_is_not_mixed(tmp_path):
    paths = [
        folder(tmp_path / "a", rows("unpruned", "11")),
        folder(tmp_path / "b", rows("unpruned", "11"), **{"trainer.precision": "bf16-true"}),
        folder(tmp_path / "c", rows("unpruned", "11"), **{"digest of the questions": "b"}),
    ]
    assert [(one.model, one.data) for one in entries(load_runs(paths).runs)] == [
        ("tiny", "toys"),
        ("tiny (2)", "toys"),
        ("tiny", "toys (2)"),
    ]


# What is there


def test_runs_that_are_not_over_are_named_and_left_out(tmp_path):
    folder(tmp_path / "x" / "a", rows("unpruned", "11"))
    folder(tmp_path / "x" / "b", rows("unpruned", "00"), merged=None)
    assert [run.name for run in load_runs([tmp_path / "x"]).runs] == ["a"]
    assert load_runs([tmp_path / "x"]).unfinished == ["b"]
    report.write([tmp_path / "x"], tmp_path / "out")
    assert "Not finished, and not in here: b." in (tmp_path / "out.md").read_text()


def test_folders_that_lie_in_each_other_are_read_once(tmp_path):
    folder(tmp_path / "x" / "a", rows("unpruned", "11"))
    assert len(load_runs([tmp_path, tmp_path / "x", tmp_path / "x" / "a"]).runs) == 1


def told_without(manifest, key):
    told = json.loads(manifest.read_text())
    del told["run"][key]
    manifest.write_text(json.dumps(told))


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (lambda path: (path / "run.json").write_text("{"), "does not say what run it is of"),
        (lambda path: (path / "run.json").write_text('{"merged": 1}'), "does not say what run it is of"),
        (lambda path: told_without(path / "run.json", "model.runs"), "does not say what run it is of"),
        (lambda path: (path / "predictions.jsonl").write_text('{"id": 1, "x": 2}\n'), "line 1, is no row"),
        (lambda path: (path / "run.json").unlink(), "there is no finished run below"),
        (lambda path: (path / "predictions.jsonl").unlink(), r"\(1 are not finished\)"),
    ],
)
def test_folders_that_cannot_be_read_are_refused(tmp_path, harm, words):
    harm(folder(tmp_path / "a", rows("unpruned", "11")))
    with pytest.raises(UsageError, match=words):
        report.main([str(tmp_path)])


def test_a_benchmark_that_is_not_installed_is_named(tmp_path):
    folder(tmp_path / "a", rows("unpruned", "11"), **{"data.benchmark": {"name": "Popé"}})
    with pytest.raises(UsageError, match=r"(?s)whose rules cannot be had: no benchmark is called 'Popé'"):
        report.main([str(tmp_path)])


def test_a_folder_that_is_not_there_and_an_extra_that_is_missing_are_told(tmp_path, monkeypatch):
    with pytest.raises(UsageError, match="there is no folder"):
        report.main([str(tmp_path / "no")])
    monkeypatch.setattr(report, "find_spec", lambda name: None if name == "scipy" else object())
    with pytest.raises(UsageError, match=r"a report needs scipy: pip install 'vtcframe\[report\]'"):
        report.main([str(tmp_path)])
