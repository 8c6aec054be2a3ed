"""Third-party components that break their contract in a run: the others continue."""

import contextlib
import io
import json
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import yaml

from support.broken_components import NEEDS, TARGETS, generated
from support.predict_runs import GROUPS
from vtcframe import Budget, Pruner, RandomPruner
from vtcframe.assets import bundled
from vtcframe.cli import main
from vtcframe.data.decode import load_sample
from vtcframe.data.results import Prediction
from vtcframe.errors import ComponentError
from vtcframe.runs.table import format_table

# From the command line


def predict(folder, *pruners, stage=None, limit=4, more=None):
    """Exit status, rows, standard output and standard error of a run on bundled questions."""
    model = {"backbone": {"path": "vtcframe:tiny", "dtype": "float32"}, "generation": {"max_new_tokens": 1}}
    if stage is None:
        model["compare"] = {"pruners": list(pruners), "budgets": [{"ratio": 0.25}, {"ratio": 0.5}]}
    else:
        model["stages"] = [{"at": "projector", "pruner": stage, "budget": {"tokens": 4}}]
    told = {
        "model": model,
        "data": {"path": "vtcframe:questions", "limit": limit, "batch_size": 2},
        "trainer": {"accelerator": "cpu"},
        "writer": {"folder": str(folder)},
    }
    for section, options in (more or {}).items():
        told[section] |= {"limit": 2} | options if section == "data" else options
        told["data"]["limit"] = 2
    folder.mkdir(exist_ok=True)
    (folder / "asked.yaml").write_text(yaml.safe_dump(told))
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = main(["predict", "--config", str(folder / "asked.yaml")])
    path = Path(folder) / "predictions.jsonl"
    rows = [Prediction(**json.loads(line)) for line in path.read_text().splitlines()] if path.exists() else []
    return status, rows, out.getvalue(), err.getvalue()


def spelt(**parts):
    whole = {"name": "Pipeline", "scorers": ["Random"], "ensembler": "Mean", "allocator": "Even", "selector": "TopK"}
    return whole | parts


def test_one_that_fails_in_a_comparison_leaves_the_answers_of_the_others(broken, tmp_path):
    status, rows, out, err = predict(tmp_path, "RandomPruner", spelt(scorers=["BadKey"]), "Attributes", "VtcCls")
    assert status == 1
    failed = [row for row in rows if row.error is not None]
    assert {row.label.partition("(")[0] for row in failed} == {"Pipeline", "Attributes"}
    assert len(failed) == 2 * 2 * 4
    assert len(rows) - len(failed) == (1 + 2 * 2) * 4
    for row in failed:
        assert row.prediction is row.visual_tokens is None
        assert row.error.startswith(f"{row.label} at {row.budget['ratio']} fails on vtcframe:tiny: ")
        assert "of broken 1.2 raised" in row.error
    for row in rows:
        assert row.error is not None or row.prediction is not None
    warned = [line for line in err.splitlines() if line.startswith("vtcframe: warning: ")]
    assert len(warned) == 2
    assert "scorer BadKey() of broken 1.2 raised KeyError: 'x'" in warned[0]
    assert "pruner Attributes() of broken 1.2 raised AttributeError" in warned[1]
    assert "Traceback" not in err
    assert out.startswith(format_table(rows, groups=GROUPS))
    lines = [line.split() for line in out.splitlines()]
    assert lines[0][6:8] == ["KV", "MiB"]
    at = out.splitlines()[0].index("failed")
    assert [line[at : at + 6].split()[0] for line in out.splitlines()[2:11]] == "0 0 0 4 4 4 4 0 0".split()


def test_one_that_fails_in_stages_gets_rows_that_say_why(broken, tmp_path):
    status, rows, _, err = predict(tmp_path, stage="NoPruned")
    assert status == 1
    assert len(rows) == 4
    (reason,) = {row.error for row in rows}
    assert reason == (
        "NoPruned() at 4 tokens fails on vtcframe:tiny: pruner NoPruned() of broken 1.2 returned None, and not a Pruned"
    )
    assert err.count("NoPruned()") == 2  # the method and the pruner, in one line
    assert "4 samples failed, their rows say why" in err


def test_a_run_that_fails_on_all_samples_of_a_batch_is_not_tried_on_each_of_the_next(broken, tmp_path, monkeypatch):
    from vtcframe.components.scorers import Random

    calls = []

    def fails(self, evidence):
        calls.append(len(evidence.layout.key))
        raise KeyError("always")

    monkeypatch.setattr(Random, "__call__", fails)
    status, rows, _, _ = predict(tmp_path, stage=spelt(), limit=6)
    assert status == 1
    assert calls == [2, 1, 1, 2, 2]
    assert len(rows) == 6
    assert all("always" in row.error for row in rows)


def test_what_fails_for_one_sample_of_a_batch_fails_for_that_one_only(broken, tmp_path, monkeypatch):
    from vtcframe.components.scorers import Random

    calls, whole = [], Random.__call__

    def fails_in_batches_and_once(self, evidence):
        calls.append(len(evidence.layout.key))
        if calls[-1] > 1 or calls.count(1) == 1:
            raise KeyError("x")
        return whole(self, evidence)

    monkeypatch.setattr(Random, "__call__", fails_in_batches_and_once)
    status, rows, _, _ = predict(tmp_path, stage=spelt(), limit=2)
    assert status == 1
    assert calls == [2, 1, 1]
    assert [row.error is None for row in rows] == [False, True]
    assert rows[1].visual_tokens == 4


def test_answers_of_places_that_are_none_fail_their_run_only(tmp_path):
    from vtcframe.data.formats import read_samples
    from vtcframe.inference.checkpoint import Backbone
    from vtcframe.runs.comparison import Comparison
    from vtcframe.runs.predictor import Predictor

    @dataclass(frozen=True)
    class Far(Pruner):
        def __call__(self, evidence, budget=None):
            pruned = RandomPruner()(evidence, budget)
            return type(pruned)(pruned.tokens, pruned.place + 10**6, pruned.scores, pruned.layout)

    comparison = Comparison([Far(), RandomPruner()], [Budget(4)])
    predictor = Predictor(Backbone("vtcframe:tiny", dtype="float32"), compare=comparison)
    predictor.setup("predict")
    folder = Path(bundled("vtcframe:questions"))
    sample = load_sample(read_samples(folder / "questions.jsonl", folder)[0])
    with torch.no_grad():
        untouched, far, drawn = predictor.predict_step([sample], 0)
    assert untouched.error is drawn.error is None
    assert "Far() at 4 tokens fails on vtcframe:tiny: its pruning cannot be used: " in far.error


@pytest.mark.parametrize("name", NEEDS)
def test_a_configuration_that_can_never_work_ends_before_the_first_batch(broken, tmp_path, name):
    status, rows, out, err = predict(tmp_path, "RandomPruner", spelt(scorers=[name]))
    assert (status, rows, out) == (2, [], "")
    assert err.startswith(f"vtcframe: error: scorer {name}() of broken 1.2 ")
    assert len(err.splitlines()) == 1


def test_list_and_help_are_not_disturbed(broken, capsys):
    assert main(["list"]) == main(["--help"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["scorer", "Boom", "broken", "1.2", "ok"] in lines  # nothing is imported before it is used


# What is wrong outside of the pruners, and what is told by other modules


@pytest.mark.parametrize("at", ["encoder:1", "llm:1"])
def test_a_whole_pruner_is_told_inside_the_model_too(broken, at):
    for name in ("Attributes", "NoPruned"):
        with pytest.raises(ComponentError, match=rf"pruner {name}\(\) of broken 1.2 "):
            generated(getattr(broken, name)(), at)


@pytest.mark.parametrize("name", sorted(TARGETS.keys() - {"Numbers"}))  # a selector bears that name, too
def test_a_target_that_cannot_be_used_ends_the_command_in_one_line(broken, tmp_path, name):
    status, rows, out, err = predict(tmp_path, "RandomPruner", spelt(scorers=[name]))
    assert (status, rows, out) == (2, [], "")
    assert TARGETS[name][1] in err
    assert len(err.splitlines()) == 1


def test_what_a_component_says_of_its_options_is_told_with_whose_it_is(broken, tmp_path):
    status, _, _, err = predict(tmp_path, "RandomPruner", {"name": "Picky", "last": -1})
    assert (status, err) == (2, "vtcframe: error: broken 1.2: last must be positive, got -1\n")


def test_samples_that_fail_in_several_runs_are_counted_once_and_drawn_where_they_did_not(broken, tmp_path):
    drawn = {"writer": {"pictures": 2}}
    status, _, _, err = predict(tmp_path, "Attributes", "RandomPruner", more=drawn)
    assert status == 1
    assert "2 samples failed, their rows say why: scene-000-shape, scene-000-count\n" in err
    assert len(list((tmp_path / "pictures").iterdir())) == 2


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"benchmark": "NoFile"}, "benchmark NoFile() of broken 1.2 raised KeyError: 'questions' (broken_parts, line "),
        ({"benchmark": "NoScore"}, "benchmark NoScore() of broken 1.2 raised ZeroDivisionError: "),
    ],
)
def test_a_benchmark_that_raises_ends_the_command_in_one_line(broken, tmp_path, more, says):
    status, _, _, err = predict(tmp_path, "RandomPruner", more={"data": more})
    assert status == 2
    assert err.startswith(f"vtcframe: error: {says}")
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("Torn", "transform Torn() of broken 1.2 raised TypeError: "),
        ("Lost", "transform Lost() of broken 1.2 returned None, and not a tuple of pictures"),
    ],
)
def test_a_transform_that_raises_fails_its_samples(broken, tmp_path, name, says):
    status, rows, _, err = predict(tmp_path, "RandomPruner", more={"data": {"transforms": [name]}})
    assert status == 1
    assert len(rows) == 2
    assert all(row.error.startswith(says) for row in rows)
    assert "Traceback" not in err


def test_explain_tells_what_fails_in_one_line(broken, tmp_path, capsys):
    picture = Path(bundled("vtcframe:questions")) / "images" / "scene-000.png"
    given = ["--image", str(picture), "--question", "what shape is purple ?", "--tokens", "4"]
    status = main(["explain", *given, "--pruner", "Attributes", "--out", str(tmp_path / "a.png")])
    err = capsys.readouterr().err
    assert status == 2
    assert "pruner Attributes() of broken 1.2 raised AttributeError" in err
    assert len(err.splitlines()) == 1


def test_the_report_counts_the_answers_that_are_there(broken, tmp_path):
    predict(tmp_path / "run", "Attributes", "RandomPruner")
    with contextlib.redirect_stdout(io.StringIO()):
        assert main(["report", str(tmp_path / "run"), "--out", str(tmp_path / "page")]) == 0
    page = (tmp_path / "page.md").read_text()
    assert "RandomPruner" in page
    assert page.count("Attributes() at 0.25 fails on vtcframe:tiny: pruner Attributes() of broken 1.2 raised") == 1
