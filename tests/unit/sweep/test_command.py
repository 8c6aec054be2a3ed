"""Sweeps: what is run, what is not run again, and what a kill leaves of the report."""

import json
import os
import re
import signal
import sys
import threading
import time
from pathlib import Path

import pytest
import yaml

pytest.importorskip("scipy", reason="the extra `report` is not installed")
pytest.importorskip("jinja2", reason="the extra `report` is not installed")

import workers
from vtcframe import sweep
from vtcframe.cli import main as command
from vtcframe.config import UnfinishedError, UsageError, bundled
from vtcframe.predict import Predictor
from vtcframe.sweep_file import asked
from vtcframe.sweep_plan import plan
from vtcframe.testing.families import BACKBONES

QUESTIONS = Path(bundled("vtcframe:questions"))
CONFIG = Path(__file__).parent.parent / "configs" / "sweep.yaml"
TINY = {"path": "vtcframe:tiny", "dtype": "float32"}


def written(folder, **keys):
    """The file of a sweep over the first questions: two pruners, two budgets, two seeds."""
    told = {
        "models": {"tiny": TINY},
        "data": {"toys": {"path": "vtcframe:questions", "batch_size": 4, "limit": 12}},
        "pruners": [{"name": "VtcCls", "last": 3}, "RandomPruner"],
        "budgets": [{"ratio": 0.25}, {"tokens": 9}],
        "seeds": [0, 1],
        "baselines": False,
        "generation": {"max_new_tokens": 4},
        "trainer": {"accelerator": "cpu", "devices": 1},
        "folder": str(folder / "sweep"),
    }
    (folder / "sweep.yaml").write_text(yaml.safe_dump(told | keys, sort_keys=False))
    return f"--config={folder}/sweep.yaml"


def planned(folder, *options, **keys):
    """What would be run: folder and methods at budgets, or that it goes on."""
    read = asked(written(folder, **keys).removeprefix("--config="), options)
    place = folder / "sweep"
    return [(run.folder.relative_to(place).as_posix(), str(run).partition(": ")[2]) for run in plan(read)]


@pytest.fixture
def pretended(monkeypatch):
    """The configurations that predict is given; it leaves a finished run, and the exit status that a test puts in."""
    ran, statuses = [], {}

    def predict(file):
        config = yaml.safe_load(file.read_text())
        ran.append(config)
        status = statuses.get(config["writer"]["folder"].rpartition("sweep/")[2], 0)
        told = {"run": {}, "merged": "now" if status in (0, 1) else None, "attempts": []}
        (file.parent / "run.json").write_text(json.dumps(told))
        (file.parent / "predictions.jsonl").write_text("")  # also where it is not over: those of a run that it replaces
        return status

    monkeypatch.setattr(sweep, "predict", predict)
    monkeypatch.setattr(sweep, "write", lambda folders, out: [out])
    return ran, statuses


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
    assert "tiny: no Downsample at tokens 9 beside: LlavaProcessor makes 144 tokens" in capsys.readouterr().out


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
    assert "at tokens 9 is left out: SparseVlm has numbers for 192" in capsys.readouterr().out


def test_downsampling_stands_in_the_report_beside_pruning(tmp_path, monkeypatch):
    for part in BACKBONES["qwen2_5_vl"]():
        part.save_pretrained(tmp_path / "qwen")
    monkeypatch.setattr(sweep, "predict", lambda file: command(["predict", "--config", str(file)]))
    data = {"toys": {"path": "vtcframe:questions", "limit": 3}}
    keys = {"models": [str(tmp_path / "qwen")], "budgets": [{"ratio": 0.5}], "baselines": True, "data": data}
    assert sweep.main([written(tmp_path, **keys, pruners=[])]) == 0
    text = (tmp_path / "sweep" / "report.md").read_text()
    assert "| Downsample | 0.5 | 1 | 3 |" in text
    assert "not run beside" not in text


def test_every_model_is_asked_every_set_of_questions_and_names_are_folders(tmp_path):
    data = {"a": {"path": "a.jsonl"}, "b": {"path": "b.jsonl"}}
    runs = planned(tmp_path, models=["vtcframe:tiny", {"path": "other/model-7b"}], data=data)
    assert [place for place, _ in runs] == ["tiny/a/01", "tiny/b/01", "model-7b/a/01", "model-7b/b/01"]


def test_what_is_there_is_not_run_again_and_what_is_missing_is(tmp_path, pretended, capsys):
    assert sweep.main([written(tmp_path)]) == 0
    assert planned(tmp_path) == []
    assert planned(tmp_path, pruners=["VtcCls"]) == []  # last=3 is its default
    assert planned(tmp_path, seeds=[0, 1, 2]) == [("tiny/toys/02", "RandomPruner(seed=2) at ratio 0.25, tokens 9")]
    assert planned(tmp_path, budgets=[{"ratio": 0.5}, {"tokens": 9}], pruners=["VtcCls", "Pool"]) == [
        ("tiny/toys/02", "VtcCls(last=3) at ratio 0.5"),
        ("tiny/toys/03", "Pool() at ratio 0.5, tokens 9"),
    ]
    capsys.readouterr()
    assert sweep.main([written(tmp_path)]) == 0
    assert "all of it is there" in capsys.readouterr().out
    assert len(pretended[0]) == 1


def test_a_dry_run_only_tells(tmp_path, pretended, capsys):
    assert sweep.main([written(tmp_path), "--dry_run", "--seeds=[4]"]) == 0
    assert "tiny/toys/01: VtcCls(last=3), RandomPruner(seed=4) at" in capsys.readouterr().out
    assert pretended[0] == []
    assert not (tmp_path / "sweep").exists()


def test_options_stand_for_keys_of_the_file_at_any_depth(tmp_path, pretended):
    options = "--data.toys.limit=3", "--generation.max_new_tokens=7", "--pruners=[Pool]", "--trainer.precision=32"
    assert sweep.main([written(tmp_path), *options]) == 0
    (config,) = pretended[0]
    assert config["data"] == {"path": "vtcframe:questions", "batch_size": 4, "limit": 3}
    assert config["model"]["generation"] == {"max_new_tokens": 7}
    assert config["model"]["compare"]["pruners"] == ["Pool"]


def test_a_run_that_fails_does_not_keep_the_others_from_running(tmp_path, pretended, capsys):
    ran, statuses = pretended
    keys = {"data": {name: {"path": "vtcframe:questions"} for name in "abcd"}}
    for statuses_, status in (({"b": 1}, 1), ({"b": 2, "a": 1}, 2), ({"c": -9, "b": 2}, 3), ({"c": 3}, 3)):
        folder = tmp_path / str(len(ran))
        folder.mkdir()
        statuses |= dict.fromkeys((f"tiny/{name}/01" for name in "abcd"), 0)
        statuses |= {f"tiny/{name}/01": status for name, status in statuses_.items()}
        before = len(ran)
        assert sweep.main([written(folder, **keys)]) == status
        assert len(ran) == before + 4
    told = capsys.readouterr().err
    assert "tiny/b/01: some samples failed, the report says why" in told
    assert "tiny/b/01: cannot be run as it is" in told
    assert "tiny/c/01: broke off (exit status -9): the same command goes on with it" in told


def test_unfinished_runs_go_on_with_their_own_configuration_before_new_ones_begin(tmp_path, pretended):
    ran, statuses = pretended
    statuses["tiny/toys/01"] = 3
    assert sweep.main([written(tmp_path)]) == 3
    told = "VtcCls(last=3), RandomPruner(seed=0), RandomPruner(seed=1) at ratio 0.25, tokens 9"
    assert planned(tmp_path, seeds=[0, 1, 2]) == [
        ("tiny/toys/01", f"goes on with {told}"),
        ("tiny/toys/02", "RandomPruner(seed=2) at ratio 0.25, tokens 9"),
    ]
    statuses.clear()
    assert sweep.main([written(tmp_path, seeds=[0, 1, 2])]) == 0
    assert ran[1] == ran[0]
    assert planned(tmp_path, seeds=[0, 1, 2]) == []


def test_an_unfinished_run_of_what_is_not_asked_for_any_more_is_left(tmp_path, pretended, capsys):
    pretended[1]["tiny/toys/01"] = 2
    assert sweep.main([written(tmp_path)]) == 2
    assert planned(tmp_path, seeds=[0]) == [
        ("tiny/toys/02", "VtcCls(last=3), RandomPruner(seed=0) at ratio 0.25, tokens 9")
    ]
    assert "01 is left unfinished: it asks for what is not asked for any more" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("keys", "difference"),
    [
        ({"generation": {"max_new_tokens": 5}}, "{'max_new_tokens': 4} there, {'max_new_tokens': 5} here"),
        ({"models": {"tiny": "vtcframe:tiny"}}, "model.backbone: "),
        ({"trainer": {"precision": "bf16-true"}}, "trainer.precision: None there, 'bf16-true' here"),
        ({"data": {"toys": {"path": "other.jsonl", "limit": 12}}}, "data.path: 'vtcframe:questions' there"),
        ({"data": {"toys": {"path": "vtcframe:questions"}}}, "data.limit: 12 there, None here"),
        (
            {"data": {"toys": {"path": "vtcframe:questions", "limit": 12, "transforms": ["FramesAsPictures"]}}},
            "data.transforms: [] there, ['FramesAsPictures'] here",
        ),
    ],
)  # fmt: skip
def test_a_folder_of_another_sweep_is_refused(tmp_path, pretended, keys, difference):
    sweep.main([written(tmp_path)])
    with pytest.raises(UsageError, match=f"(?s)01 is of another sweep:.*{re.escape(difference)}.*give another folder"):
        planned(tmp_path, **keys)


def test_batches_and_workers_may_change(tmp_path, pretended):
    sweep.main([written(tmp_path)])
    data = {"toys": {"path": "vtcframe:questions", "limit": 12, "batch_size": 1, "num_workers": 2}}
    assert planned(tmp_path, data=data) == []


# What is refused


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"pruners": ["VtcCl"]}, "no pruner is called 'VtcCl'. Did you mean VtcCls"),
        ({"pruners": [{"name": "VtcCls", "lst": 3}]}, "Option 'lst' is not accepted"),
        ({"pruners": []}, "there is nothing to run"),
        ({"budgets": []}, "budgets is empty"),
        ({"budgets": [{"ratio": 2}]}, "budgets: ratio is the fraction of tokens kept"),
        ({"pruners": ["SparseVlm"], "budgets": [{"tokens": 9}]}, "can be run at none of the budgets: SparseVlm has"),
        ({"models": {}}, "models is empty"),
        ({"models": ["vtcframe:tiny", "a/tiny"]}, "two models are called 'tiny'"),
        ({"models": 3}, "models is a list of backbones"),
        ({"models": [3]}, "a model is a path or"),
        ({"models": {"tiny": {"path": "vtcframe:tiny", "dtyp": 1}}}, "models.tiny: "),
        ({"models": {"../tiny": TINY}}, "'../tiny' cannot be a folder's name"),
        ({"data": {"a/b": {"path": "a"}}}, "'a/b' cannot be a folder's name"),
        ({"seeds": []}, "seeds is empty"),
        ({"seeds": "x"}, "seeds"),
        ({"budgts": []}, "Option 'budgts' is not accepted"),
    ],
)
def test_what_no_sweep_can_be_is_refused_before_anything_runs(tmp_path, pretended, keys, words):
    with pytest.raises(UsageError, match=re.escape(words)):
        sweep.main([written(tmp_path, **keys)])
    assert pretended[0] == []


@pytest.mark.parametrize("option", ["word", "--flag", "--folder.deep.er=1"])
def test_options_that_are_none_are_refused(tmp_path, option):
    with pytest.raises(UsageError, match=re.escape(repr(option))):
        sweep.main([written(tmp_path), option])


def test_a_file_that_is_no_mapping_is_refused(tmp_path):
    (tmp_path / "sweep.yaml").write_text("[]")
    with pytest.raises(UsageError, match="holds a list, and not the keys of a sweep"):
        sweep.main([f"--config={tmp_path}/sweep.yaml"])


def test_a_folder_that_cannot_be_written_is_told(tmp_path, pretended):
    (tmp_path / "sweep").write_text("a file")
    with pytest.raises(UsageError, match=r"cannot write .*: Not a directory"):
        sweep.main([written(tmp_path)])


def test_the_bundled_configuration_can_be_run():
    read = asked(str(CONFIG), [])
    assert len(read.methods()) == 5 + 2 + 2


# Processes


@pytest.fixture
def program(tmp_path, monkeypatch):
    """Stands for the interpreter that runs predict: a script that a test writes."""

    def write(lines):
        path = tmp_path / "python"
        path.write_text(f"#!/bin/sh\n{lines}\n")
        path.chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(path))

    return write


def test_predict_is_a_process_of_its_own_whose_status_is_told(tmp_path, program):
    program(f'echo "$@" > {tmp_path}/given; exit 2')
    assert sweep.predict(tmp_path / "config.yaml") == 2
    assert (tmp_path / "given").read_text().split() == [
        "-m",
        "vtcframe",
        "predict",
        "--config",
        f"{tmp_path}/config.yaml",
    ]


def test_a_sweep_that_is_asked_to_stop_stops_its_run_and_begins_no_other(tmp_path, program):
    program(f"trap 'touch {tmp_path}/left; exit 3' TERM; touch {tmp_path}/there; while :; do sleep 0.05; done")

    def ask():
        while not (tmp_path / "there").exists():
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    asking = threading.Thread(target=ask)
    asking.start()
    with pytest.raises(UnfinishedError, match="it was asked to stop"):
        sweep.predict(tmp_path / "config.yaml")
    asking.join()
    assert (tmp_path / "left").exists()
    assert signal.getsignal(signal.SIGTERM) == before


# Killed


def swept(arguments, out, slow):
    """Sweep in this process, its runs too, with seconds that are always the same."""
    file = os.open(out, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(file, 1)
    os.dup2(file, 2)
    Predictor._since = lambda self, start: 0.25  # pyright: ignore[reportAttributeAccessIssue]
    Predictor.predict_step = workers._slowed(Predictor.predict_step, slow, None)  # pyright: ignore[reportAttributeAccessIssue]
    sweep.predict = lambda file: command(["predict", "--config", str(file)])
    status = sweep.main(arguments)
    sys.stdout.flush()
    os._exit(status)


def started(context, folder, slow=0.0):
    data = {
        "toys": {"path": "vtcframe:questions", "batch_size": 4, "limit": 20},
        "more": {"path": str(folder / "more.jsonl"), "images": str(QUESTIONS), "batch_size": 4},
    }
    lines = (QUESTIONS / "questions.jsonl").read_text().splitlines(keepends=True)
    (folder / "more.jsonl").write_text("".join(lines[20:40]))
    out = folder / "said.txt"
    process = context.Process(target=swept, args=([written(folder, data=data, pictures=1)], out, slow))
    process.start()
    return process, out


def figures(folder):
    """The report without what tells of attempts."""
    return (folder / "sweep" / "report.md").read_text().partition("\n## Runs\n")[0]


def answered(folder, run):
    return sum(path.read_bytes().count(b"\n") for path in (folder / "sweep" / run / "parts").glob("*.jsonl"))


def test_a_sweep_that_was_killed_in_the_middle_and_started_again_gives_the_same_report(tmp_path):
    context = workers.forking()
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    whole.mkdir()
    killed.mkdir()
    process, out = started(context, whole)
    process.join()
    assert process.exitcode == 0, out.read_text()
    for run in ("tiny/toys/01", "tiny/more/01"):
        process, out = started(context, killed, slow=0.3)
        while answered(killed, run) < 9:
            assert process.is_alive(), out.read_text()
            time.sleep(0.02)
        process.kill()
        process.join()
    process, out = started(context, killed)
    process.join()
    assert process.exitcode == 0, out.read_text()
    assert "tiny/more/01: goes on with VtcCls(last=3)" in out.read_text()
    assert "samples were answered earlier" in out.read_text()
    assert figures(killed) == figures(whole)
    text = figures(whole)
    assert "## tiny: mean over 2 sets" in text
    assert "| RandomPruner() | 0.25 | 2 | 20 |" in text
    assert len(re.findall("What was kept of", text)) == 2
    assert not list(killed.rglob("parts"))


def test_a_run_that_a_killed_sweep_left_at_work_is_waited_for(tmp_path, pretended, capsys):
    from vtcframe.shards import Lock

    parts = tmp_path / "sweep" / "tiny" / "toys" / "01" / "parts"
    pretended[1]["tiny/toys/01"] = 3
    sweep.main([written(tmp_path)])
    pretended[1].clear()
    parts.mkdir()
    lock = Lock(parts / "lock")
    assert lock.take()
    threading.Timer(1, lock.give).start()
    began = time.monotonic()
    assert sweep.main([written(tmp_path)]) == 0
    assert time.monotonic() - began > 0.9
    assert "is being run by another process: waiting for it" in capsys.readouterr().out
