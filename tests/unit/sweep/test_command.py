"""Sweeps: what is run, what is resumed and what is refused."""

import os
import re
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

from support.sweeps import TINY, planned, written
from vtcframe.errors import UnfinishedError, UsageError
from vtcframe.sweep import command as sweep
from vtcframe.sweep.config import read_sweep

pytest.importorskip("scipy", reason="the extra `report` is not installed")


pytest.importorskip("jinja2", reason="the extra `report` is not installed")


CONFIG = Path(__file__).parents[3] / "configs" / "sweep.yaml"


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
    assert "every run is finished" in capsys.readouterr().out
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


def test_a_run_that_fails_does_not_keep_the_others_from_running(tmp_path, pretended, caplog):
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
    told = caplog.text
    assert "tiny/b/01: some samples failed, the report says why" in told
    assert "tiny/b/01: its configuration cannot be used" in told
    assert "tiny/c/01: interrupted (exit status -9): rerun the same command to resume" in told


def test_unfinished_runs_go_on_with_their_own_configuration_before_new_ones_begin(tmp_path, pretended):
    ran, statuses = pretended
    statuses["tiny/toys/01"] = 3
    assert sweep.main([written(tmp_path)]) == 3
    told = "VtcCls(last=3), RandomPruner(seed=0), RandomPruner(seed=1) at ratio 0.25, tokens 9"
    assert planned(tmp_path, seeds=[0, 1, 2]) == [
        ("tiny/toys/01", f"resumes {told}"),
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
    assert "01 is not resumed: it has methods or budgets that the sweep no longer includes" in capsys.readouterr().out


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
    with pytest.raises(UsageError, match="holds a list, and not the keys of a configuration"):
        sweep.main([f"--config={tmp_path}/sweep.yaml"])


def test_a_folder_that_cannot_be_written_is_told(tmp_path, pretended):
    (tmp_path / "sweep").write_text("a file")
    with pytest.raises(UsageError, match=r"cannot write .*: Not a directory"):
        sweep.main([written(tmp_path)])


def test_the_bundled_configuration_can_be_run():
    sweep_config = read_sweep(str(CONFIG), [])
    assert len(sweep_config.methods()) == 5 + 2 + 2


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
    with pytest.raises(UnfinishedError, match="the sweep received SIGTERM"):
        sweep.predict(tmp_path / "config.yaml")
    asking.join()
    assert (tmp_path / "left").exists()
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_run_that_a_killed_sweep_left_at_work_is_waited_for(tmp_path, pretended, capsys):
    from vtcframe.runs.shards import Lock

    parts = tmp_path / "sweep" / "tiny" / "toys" / "01" / "parts"
    pretended[1]["tiny/toys/01"] = 3
    sweep.main([written(tmp_path)])
    pretended[1].clear()
    parts.mkdir()
    lock = Lock(parts / "lock")
    assert lock.acquire()
    released = []

    def release() -> None:
        released.append(True)
        lock.release()

    threading.Timer(1, release).start()
    assert sweep.main([written(tmp_path)]) == 0
    assert released, "the sweep did not wait"
    assert "is being run by another process: waiting for it" in capsys.readouterr().out
