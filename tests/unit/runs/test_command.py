"""`vtcframe predict` as a command: interrupted runs, configurations that are refused, help."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from support.predict_runs import QUESTIONS, QUICKSTART, predict, read, taken
from vtcframe.errors import UsageError
from vtcframe.inference.checkpoint import Backbone
from vtcframe.runs.predictor import Predictor
from vtcframe.runs.table import format_table


def test_unreadable_images_fail_their_samples_and_no_others(tmp_path):
    (tmp_path / "corrupt.png").write_bytes(b"\x89PNG torn")
    whole = str(QUESTIONS / "images" / "scene-000.png")
    lines = [
        {"id": name, "image": image, "question": "what shape is purple ?", "type": "shape", "answer": "square"}
        for name, image in (("lost", "lost.png"), ("torn", "corrupt.png"), ("worn", "corrupt.png"), ("whole", whole))
    ]
    (tmp_path / "asked.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    options = f"--data.path={tmp_path}/asked.jsonl", f"--writer.folder={tmp_path}", "--data.batch_size=2"
    status, out, err = predict(*options)
    rows = read(tmp_path)
    assert status == 1
    assert err == "vtcframe: error: 3 samples failed, their rows say why: lost, torn, worn\n"
    assert [row.id for row in rows] == ["lost", "torn", "worn", *["whole"] * 13]
    assert "lost.png: FileNotFoundError" in rows[0].error
    assert "corrupt.png: UnidentifiedImageError" in rows[1].error
    assert rows[0].method is rows[0].label is rows[0].prediction is rows[0].visual_tokens is None
    assert rows[3].prediction == "square"
    assert out.startswith(format_table(rows))
    assert "unpruned" in out


def test_a_run_that_breaks_keeps_its_rows_apart_from_an_earlier_finished_file(tmp_path, monkeypatch):
    options = (*taken(tmp_path, 4), "--data.batch_size=2", "--model.compare.pruners=[]")
    assert predict(*options)[0] == 0
    finished, part = tmp_path / "predictions.jsonl", tmp_path / "parts" / "0002-00000.jsonl"
    before, answer = finished.read_text(), Predictor._answer

    def broken(self, samples):
        if len(part.read_text().splitlines()) > 1:  # the first batch is there
            raise RuntimeError("out of memory")
        return answer(self, samples)

    monkeypatch.setattr(Predictor, "_answer", broken)
    with pytest.raises(RuntimeError, match="out of memory"):
        predict(*options)
    assert finished.read_text() == before
    assert [json.loads(rows)[0]["id"] for rows in part.read_text().splitlines()[1:]] == [
        json.loads(line)["id"] for line in before.splitlines()[:2]
    ]
    monkeypatch.setattr(Predictor, "_answer", answer)
    status, out, _ = predict(*options, "--writer.existing=resume")
    assert status == 0
    assert "2 of 4 samples were answered earlier" in out
    assert [json.loads(line)["id"] for line in finished.read_text().splitlines()] == [
        json.loads(line)["id"] for line in before.splitlines()
    ]
    assert not part.parent.exists()


@pytest.mark.parametrize(
    ("arguments", "messages"),
    [
        (["--model.compare.pruners=[{name: VtcCls, last: three}]"], ["model.compare", "last", "'int'", "three"]),
        (["--model.compare.pruners=[{name: VtcCls, lst: 3}]"], ["model.compare", "pruners", "VtcCls", "'lst'"]),
        (["--model.compare.pruners=[VtcCls, {name: VtcCls, last: 0}]"], ["last counts blocks", "got 0"]),
        (["--model.compare.pruners=[{name: VtcCls, last: 9}]"], ["vtcframe:tiny", "a block beyond the 3"]),
        (["--model.compare.budgets=[{ratio: 2}]"], ["ratio is the fraction of tokens kept", "got 2"]),
        (["--model.stages=[{at: projector, pruner: VtcCls}]"], ["give stages or compare, not both"]),
        (["--model.compare=null", "--model.stages=[{at: cache, pruner: VtcCls}]"], ["act at cache", "at 'projector'"]),
        (["--model.backbone.path=vtcframe:tinny"], ["nothing bundled is called 'vtcframe:tinny'"]),
        (["--model.backbone.path=tests"], ["the backbone 'tests' cannot be loaded as a checkpoint"]),
        (["--model.generation.max_length=9"], ["generation cannot have max_length", "max_new_tokens"]),
        (["--model.generation.max_new_token=9"], ["generation has options", "max_new_token"]),
        (["--model.generation.max_new_tokens=-1"], ["max_new_tokens", "-1"]),
        (["--data.batch_size=0"], ["batch_size must be at least 1, got 0"]),
        (["--writer.pictures=-1"], ["pictures is a number of samples, got -1"]),
        (["--data.path=nothing.jsonl"], ["cannot read the questions nothing.jsonl"]),
        (["--trainr.devices=2"], ["--trainr.devices=2"]),
    ],
)
def test_a_configuration_that_cannot_be_used_is_told_in_a_few_lines(tmp_path, monkeypatch, arguments, messages):
    monkeypatch.chdir(Path(__file__).parents[3])
    status, out, err = predict(f"--writer.folder={tmp_path}/run", *arguments)
    assert (status, out) == (2, "")
    assert err.startswith("vtcframe: error: ")
    assert len(err.splitlines()) <= 7
    for message in messages:
        assert message in err
    assert not (tmp_path / "run" / "predictions.jsonl").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model: [1", "quick.yaml is no YAML: .*line"),
        (
            yaml.safe_dump({"model": {"compare": {"pruners": [{"name": "VtcCsl"}]}}}),
            "quick.yaml: model.compare.pruners: no pruner is called 'VtcCsl'. Did you mean VtcCls?",
        ),
        (
            yaml.safe_dump({"model": {"stages": [{"pruner": {"name": "Pipeline", "selector": "Topk"}}]}}),
            "quick.yaml: model.stages.pruner.selector: no selector is called 'Topk'. Did you mean TopK?",
        ),
    ],
)
def test_a_configuration_file_that_cannot_be_read_is_named(tmp_path, text, message):
    (tmp_path / "quick.yaml").write_text(text)
    status, _, err = predict(f"--config={tmp_path}/quick.yaml")
    assert status == 2
    assert message.split(".*")[0] in err
    assert message.split(".*")[-1] in err


def test_help_list_and_an_unknown_command_are_answered_without_importing_torch():
    code = """
import sys
from vtcframe.cli import main
statuses = [main(["--help"]), main(["list"]), main(["predit"])]
assert not {"torch", "lightning", "transformers"} & sys.modules.keys(), "too much was imported"
print(statuses)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[0, 0, 2]"
    assert ["pruner", "VtcCls", "vtcframe"] in [line.split()[:3] for line in done.stdout.splitlines()]
    assert "no command is called 'predit'. Did you mean predict?" in done.stderr


def test_a_misspelled_pruner_is_answered_with_its_key_and_the_nearest_name():
    status, _, err = predict("--model.compare.pruners=[VtcCsl]")
    assert status == 2
    assert "model.compare.pruners: no pruner is called 'VtcCsl'. Did you mean VtcCls?" in err


def test_the_lightning_command_predicts_and_hands_everything_else_on(tmp_path, monkeypatch, capsys):
    import vtcframe_lightning

    class Point:
        value = "lightning_sdk.cli:main"

        def load(self):
            return lambda: 5

    class Ours(Point):
        value = vtcframe_lightning.ENTRY_POINT

    monkeypatch.setattr(sys, "argv", ["lightning", "predict", "--config", QUICKSTART, *taken(tmp_path, 2)])
    assert vtcframe_lightning.main() == 0
    assert len(read(tmp_path)) == 26
    monkeypatch.setattr(sys, "argv", ["lightning", "login"])
    monkeypatch.setattr(vtcframe_lightning, "entry_points", lambda **_: [Ours(), Point()])
    assert vtcframe_lightning.main() == 5
    monkeypatch.setattr(vtcframe_lightning, "entry_points", lambda **_: [Ours()])
    assert vtcframe_lightning.main() == 2
    assert "no installed distribution has the command 'login'" in capsys.readouterr().err


def test_a_question_with_words_that_the_model_was_never_taught_fails_and_says_what_may_be_asked(tmp_path):
    told = {
        "vocabulary": ["what", "color", "is", "the", "ring", "?"],
        "forms": {"color": "what color is the {shape} ?"},
    }
    (tmp_path / "questions.json").write_text(json.dumps(told))
    vocabulary = Backbone(str(tmp_path)).question_vocabulary()
    assert vocabulary.describe_unknown_words("What color is the ring?") is None
    says = "the model does not know 'dog', '!'; it can be asked: what color is the {shape} ?"
    assert vocabulary.describe_unknown_words("what color is the dog !") == says
    (tmp_path / "questions.json").write_text('["what"]')
    with pytest.raises(UsageError, match=r"questions.json must hold `vocabulary`, a list, and `forms`"):
        Backbone(str(tmp_path)).question_vocabulary()
    assert Backbone("llava-hf/llava-1.5-7b-hf").question_vocabulary() is None
    options = taken(tmp_path, 2)
    lines = [json.loads(line) for line in (tmp_path / "asked.jsonl").read_text().splitlines()]
    lines[0]["question"] = "what color is the dog ?"
    (tmp_path / "asked.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    status, _, err = predict(*options)
    assert status == 1
    rows = [row for row in read(tmp_path) if row.id == lines[0]["id"]]
    assert len(rows) == 1
    assert "does not know 'dog'; it can be asked: " in rows[0].error
    assert lines[0]["id"] in err
    assert any(row.prediction for row in read(tmp_path) if row.id == lines[1]["id"])
