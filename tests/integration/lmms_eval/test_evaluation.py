"""The model of lmms-eval in its own evaluation: answers, the response cache, several processes."""

import json
import os
import socket
import sqlite3
import subprocess
import sys

import numpy as np
import pytest
import torch
from lmms_eval import evaluator
from lmms_eval.caching.response_cache import ResponseCache
from lmms_eval.models import get_model
from lmms_eval.tasks import TaskManager
from vtcframe_lmms_eval import model as harness_model
from vtcframe_lmms_eval.model import VtcFrame

from support.lmms_eval_cases import ASKED, COUNT, QUESTIONS, TINY, VTC, answered, model, scene, user
from vtcframe import Budget, FastV, RandomPruner, UniformPruner, VtcCls
from vtcframe.core.stages import Stage
from vtcframe.data.decode import load_sample
from vtcframe.data.sample import Sample
from vtcframe.errors import UsageError
from vtcframe.inference.checkpoint import Backbone
from vtcframe.inference.session import Session
from vtcframe.runs.predictor import Predictor


def evaluate(folder, model_args, **options):
    manager = TaskManager("ERROR", include_path=str(folder), include_defaults=False, model_name="vtcframe")
    options = {"model": "vtcframe", "tasks": ["scenes"], "task_manager": manager, "bootstrap_iters": 0, **options}
    return evaluator.simple_evaluate(model_args=model_args, **options)


def responses(results):
    samples = results["samples"]["scenes"]
    return [one["filtered_resps"][0] for one in sorted(samples, key=lambda one: one["doc_id"])]


def predicted(stages, name="scenes test {}"):
    """The answers of our own Predictor, and its rows."""
    predictor = Predictor(Backbone("vtcframe:tiny"), stages=stages, generation={"max_new_tokens": 4})
    predictor.setup("predict")
    predictor.eval()
    samples = [Sample(name.format(n), one["question"], (QUESTIONS / one["image"],)) for n, one in enumerate(ASKED)]
    rows = [row for sample in samples for row in predictor.predict_step([load_sample(sample)], 0)]
    assert [row.error for row in rows] == [None] * COUNT
    return [row.prediction for row in rows], rows


# what lmms-eval sees of it


def test_the_installed_entry_point_names_the_model_and_imports_nothing_heavy():
    look = "import sys, lmms_eval.models as m; print('vtcframe' in m.list_available_models(), 'torch' in sys.modules)"
    said = subprocess.run([sys.executable, "-c", look], capture_output=True, text=True, timeout=120, check=True)
    assert said.stdout.split() == ["True", "False"]
    assert get_model("vtcframe") is VtcFrame


PLANS = {
    TINY: None,
    VTC: [Stage("projector", VtcCls(3), Budget(18))],
    f"{TINY},pruner=RandomPruner,pruner.seed=3,ratio=0.125": [Stage("projector", RandomPruner(3), Budget(ratio=0.125))],
    f"{TINY},pruner=UniformPruner,tokens=9,positions=compact": [
        Stage("projector", UniformPruner(), Budget(9), positions="compact")
    ],
    f"{TINY},pruner=FastV,tokens=9": list(FastV().stages(Budget(9))),
}


@pytest.mark.parametrize("arguments", PLANS)
def test_lmms_eval_gets_the_answers_and_token_counts_of_our_own_predictor(arguments, folder, log):
    expected, rows = predicted(PLANS[arguments])
    results = evaluate(folder, arguments, batch_size="3")
    assert responses(results) == expected
    right = np.mean([answer == one["answer"] for answer, one in zip(expected, ASKED, strict=True)])
    assert results["results"]["scenes"]["exact_match,none"] == pytest.approx(right)
    told = results["throughput"]
    assert told["avg_visual_tokens_before"] == 144
    assert told["avg_visual_tokens"] == np.mean([row.visual_tokens for row in rows])
    assert told["avg_layer_tokens"] == pytest.approx(np.mean([np.mean(row.layer_tokens) for row in rows]))
    assert told["avg_failed"] == 0
    (said,) = [line for line in log if "visual tokens each before" in line]
    assert f"{COUNT} questions with pictures, 144.0 visual tokens each before and" in said


def test_batches_of_one_have_the_answers_of_batches_of_three(folder):
    one, three = (evaluate(folder, VTC, batch_size=size) for size in (1, 3))
    assert responses(one) == responses(three) == predicted(PLANS[VTC])[0]


def test_pruners_are_told_the_question_without_the_chat_around_it_and_an_id_that_is_the_same_in_every_batch(
    monkeypatch,
):
    told, encode = [], Session.encode
    monkeypatch.setattr(Session, "encode", lambda *arguments: told.append(arguments[2]) or encode(*arguments))
    lm = model()
    keys = told.pop().layout.key  # of the first picture
    answered(lm, user(scene(0), "what shape is purple ?"))
    answered(lm, user(scene(0), "what shape is purple ?"))
    assert [one.questions for one in told] == [("what shape is purple ?",)] * 2
    assert told[0].layout.key == told[1].layout.key != keys


def entries_of(cache):
    with sqlite3.connect(cache / "cache.db") as base:
        return dict(base.execute("select cache_key, response from responses"))


@pytest.mark.slow
def test_the_response_cache_serves_the_same_settings_again_and_no_others(folder, tmp_path, monkeypatch, log):
    asked, batch = [], VtcFrame._answer_batch
    monkeypatch.setattr(VtcFrame, "_answer_batch", lambda self, q: asked.extend(q) or batch(self, q))

    def count(arguments, **options):
        asked.clear()
        results = evaluate(folder, arguments, use_cache=str(tmp_path), batch_size=4, **options)
        return len(asked) - (not isinstance(options.get("model"), VtcFrame)), responses(results)  # without the first

    first = count(VTC)
    assert first[0] == COUNT
    kept = entries_of(tmp_path)
    assert len(kept) == COUNT
    assert count(VTC) == (0, first[1])
    assert any("the response cache had every answer" in line for line in log)
    assert count(VTC.replace("18", "9"))[0] == COUNT
    assert len(entries_of(tmp_path)) == 2 * COUNT
    lm = VtcFrame(pretrained="vtcframe:tiny", pruner=VtcCls(3), tokens=3)
    assert count(None, model=lm)[0] == COUNT
    assert len(entries_of(tmp_path)) == 3 * COUNT


def test_no_two_settings_have_one_name_in_the_response_cache(tmp_path):
    named = {"pretrained": "vtcframe:tiny", "pruner": {"name": "VtcCls", "last": 1}, "tokens": 5}  # as in --config
    several = [
        VTC,
        VTC.replace("18", "9"),
        f"{VTC},pruner.last=2",
        f"{VTC},positions=compact",
        f"{VTC},dtype=bfloat16",
        f"{VTC},system_prompt=red",
        f"{TINY},pruner={{name: VtcCls, last: 1}},tokens=18",
        f"{TINY},pruner={{name: VtcCls, last: 2}},tokens=18",
        f"{TINY},stages=[{{at: projector, pruner: VtcCls, budget: {{tokens: 1}}}}]",
        f"{TINY},stages=[{{at: projector, pruner: VtcCls, budget: {{tokens: 2}}}}]",
        TINY,
        named,
        {**named, "pruner": {"name": "VtcCls", "last": 2}},
    ]
    names = [ResponseCache.create(str(tmp_path), model="vtcframe", model_args=told) for told in several]
    made = [VtcFrame(pretrained="vtcframe:tiny", pruner=VtcCls(last), tokens=n) for last, n in ((3, 3), (3, 4), (2, 3))]
    names += [ResponseCache.create(str(tmp_path), model=lm, model_args=None) for lm in made]
    assert len({name._model_fingerprint_hash for name in names}) == len(names)
    for name in names:
        name.close()
    again = VtcFrame(pretrained="vtcframe:tiny", pruner=VtcCls(3), tokens=3)
    assert repr(again) == repr(made[0])  # in another process too: it is no address


@pytest.mark.slow
def test_the_command_line_in_two_processes_answers_each_question_once(folder, tmp_path):
    expected, _ = predicted(PLANS[VTC])
    command = [sys.executable, "-m", "lmms_eval", "eval", "--model", "vtcframe", "--model_args", f"{VTC},pruner.last=3"]
    command += ["--tasks", "scenes", "--include_path", str(folder), "--batch_size", "3", "--log_samples"]
    command += ["--output_path", str(tmp_path)]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    here = {
        **os.environ,
        "CUDA_VISIBLE_DEVICES": "",
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
    }
    logs = [tmp_path / f"{rank}.log" for rank in range(2)]
    ranks = []
    for rank, log in enumerate(logs):
        with log.open("w") as out:
            env = {**here, "RANK": str(rank), "LOCAL_RANK": str(rank)}
            ranks.append(subprocess.Popen(command, env=env, stdout=out, stderr=subprocess.STDOUT))
    for rank in ranks:
        rank.wait(timeout=600)
    first, second = (log.read_text() for log in logs)
    assert [rank.returncode for rank in ranks] == [0, 0], first + second
    assert f"{COUNT} questions with pictures, 144.0 visual tokens each before and 18.0 after" in first
    assert "questions with pictures" not in second
    (found,) = tmp_path.rglob("*_samples_scenes.jsonl")
    samples = sorted(map(json.loads, found.read_text().splitlines()), key=lambda one: one["doc_id"])
    assert [one["filtered_resps"] for one in samples] == expected
    assert all(one["token_counts"][0]["input_tokens"] < 144 for one in samples)
    (found,) = tmp_path.rglob("*_results.json")
    results = json.loads(found.read_text())
    assert results["throughput"]["avg_visual_tokens"] == 18
    right = np.mean([answer == one["answer"] for answer, one in zip(expected, ASKED, strict=True)])
    assert results["results"]["scenes"]["exact_match,none"] == pytest.approx(right)


def test_with_several_processes_a_device_of_another_kind_is_refused():
    assert harness_model._device(None, torch.device("cuda:1"), 2) == torch.device("cuda:1")
    assert harness_model._device("cpu", torch.device("cpu"), 2) == torch.device("cpu")
    with pytest.raises(UsageError, match="2 processes run on cuda here, not on cpu: leave device out"):
        harness_model._device("cpu", torch.device("cuda:1"), 2)
