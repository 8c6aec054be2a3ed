import json
import os
import re
import socket
import sqlite3
import subprocess
import sys
from functools import cache
from pathlib import Path

import av
import datasets
import numpy as np
import pytest
import torch
import yaml
from lmms_eval import evaluator
from lmms_eval.api import task as tasks
from lmms_eval.api.instance import Instance
from lmms_eval.caching.response_cache import ResponseCache
from lmms_eval.models import get_model
from lmms_eval.protocol import ChatMessages
from lmms_eval.tasks import TaskManager
from lmms_eval.utils import simple_parse_args_string
from loguru import logger
from PIL import Image

from vtcframe import Budget, RandomPruner, VtcCls, compress, harness_model
from vtcframe.backbone import Backbone
from vtcframe.config import UsageError, bundled
from vtcframe.data import Sample
from vtcframe.harness_chat import Chat, Film
from vtcframe.harness_model import VtcFrame
from vtcframe.harness_settings import Settings
from vtcframe.methods import FastV, UniformPruner
from vtcframe.pipeline import Stage
from vtcframe.predict import Predictor
from vtcframe.testing.backbones import film
from vtcframe.testing.families import BACKBONES

QUESTIONS = Path(bundled("vtcframe:questions"))
TINY = "pretrained=vtcframe:tiny"
VTC = f"{TINY},pruner=VtcCls,tokens=18"
COUNT = 7
ASKED = [json.loads(line) for line in (QUESTIONS / "questions.jsonl").read_text().splitlines()[:COUNT]]
TASK = {
    "task": "scenes",
    "dataset_path": "parquet",
    "dataset_kwargs": {"data_files": {"test": "scenes.parquet"}},
    "test_split": "test",
    "output_type": "generate_until",
    "doc_to_visual": "image",
    "doc_to_text": "question",
    "doc_to_target": "answer",
    "generation_kwargs": {"max_new_tokens": 4},
    "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A task on the first bundled questions, as lmms-eval's users write theirs."""
    folder = tmp_path_factory.mktemp("tasks")
    rows = [{"question": one["question"], "answer": one["answer"]} for one in ASKED]
    rows = [{**row, "image": str(QUESTIONS / one["image"])} for row, one in zip(rows, ASKED, strict=True)]
    given = datasets.Dataset.from_list(rows).cast_column("image", datasets.Image())
    given.to_parquet(str(folder / "scenes.parquet"))
    task = {**TASK, "dataset_kwargs": {"data_files": {"test": str(folder / "scenes.parquet")}}}
    (folder / "scenes.yaml").write_text(yaml.safe_dump(task))
    return folder


@pytest.fixture(autouse=True)
def at_home(monkeypatch, tmp_path_factory):
    """Leave the caches of the person who runs this alone, and filelock as it is for other tests."""
    home = str(tmp_path_factory.getbasetemp() / "datasets")
    monkeypatch.setenv("LMMS_EVAL_DATASETS_CACHE", home)
    monkeypatch.setattr(evaluator, "_enable_reentrant_filelocks", lambda: None)
    tasks._resolve_hf_datasets_cache_dir.cache_clear()
    yield
    tasks._resolve_hf_datasets_cache_dir.cache_clear()


@pytest.fixture
def log():
    """What is logged meanwhile."""
    lines = []
    number = logger.add(lambda line: lines.append(str(line)), format="{level} {message}")
    yield lines
    logger.remove(number)


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
    rows = [row for sample in samples for row in predictor.predict_step([sample.loaded()], 0)]
    assert [row.error for row in rows] == [None] * COUNT
    return [row.prediction for row in rows], rows


def model(arguments=VTC, **options):
    return get_model("vtcframe").create_from_arg_string(arguments, {"batch_size": "1", "device": None, **options})


def request(said, options=None, doc=0, task="t", kind="generate_until", **metadata):
    """Ask what `said` makes of a document, or messages themselves."""
    told = said if callable(said) else lambda doc: said
    arguments = ("", told, {"max_new_tokens": 4, **(options or {})}, doc, task, "test")
    metadata = {"task": task, "doc_id": doc, "repeats": 1, **metadata}
    return Instance(request_type=kind, arguments=arguments, idx=0, metadata=metadata)


def user(*parts):
    kinds = {str: "text", Image.Image: "image", Path: "image"}
    content = [{"type": kinds[type(part) if isinstance(part, str) else Image.Image]} for part in parts]
    for told, part in zip(content, parts, strict=True):
        told["text" if told["type"] == "text" else "url"] = str(part) if isinstance(part, Path) else part
    return [{"role": "user", "content": content}]


def scene(number):
    return Image.open(QUESTIONS / ASKED[number]["image"]).convert("RGB")


def answered(lm, *said, **options):
    lm.task_dict = {"t": {"test": list(range(len(said)))}}
    return [one.text for one in lm.generate_until([request(one, options, n) for n, one in enumerate(said)])]


# what model_args may say


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ({"pruner": "VtcCls", "tokens": 64}, {"pruner": VtcCls(3), "tokens": 64}),
        ({"pruner": "VtcCls", "pruner.last": 2, "ratio": 0.5}, {"pruner": VtcCls(2), "ratio": 0.5}),
        ({"pruner": "{name: VtcCls, last: 2}", "tokens": 5, "per": "view"}, {"pruner": VtcCls(2), "per": "view"}),
        ({"pruner": {"name": "VtcCls", "last": 2}}, {"pruner": VtcCls(2)}),
        ({"pruner": VtcCls(2)}, {"pruner": VtcCls(2)}),
        ({"batch_size": "4", "dtype": "float32"}, {"batch_size": 4, "dtype": "float32"}),
        ({"system_prompt": '"Short, please."'}, {"system_prompt": "Short, please."}),
        (
            {"stages": '[{at: "llm:2", pruner: VtcCls, budget: {tokens: 5}}]'},
            {"stages": [Stage("llm:2", VtcCls(3), Budget(5))]},
        ),
    ],
)
def test_model_args_say_a_pruner_and_its_budget(said, expected):
    made = Settings.of({"pretrained": "a", **said})
    assert {name: getattr(made, name) for name in expected} == expected


def test_a_nested_pipeline_fits_into_braces_on_the_command_line():
    text = (
        "{name: Pipeline, scorers: [{name: ClsAttention, last: 2}], ensembler: Mean, allocator: Even, selector: TopK}"
    )
    made = Settings.of(simple_parse_args_string(f"{TINY},pruner={text},tokens=5"))
    assert made.pruner is not None
    assert str(made.pruner.scorers).startswith("(ClsAttention(last=2")
    assert made.tokens == 5


def test_what_tokens_are_meant_for_reaches_the_budget():
    plan = Settings.of({"pretrained": "a", "pruner": "VtcCls", "tokens": 5, "per": "image"}).plan
    assert plan.budget == plan.stages[0].budget == Budget(5, per="image")


def test_batch_size_and_device_come_from_the_command_line_unless_model_args_say_otherwise():
    assert (model(batch_size="3").batch_size, model(f"{VTC},batch_size=2", batch_size="3").batch_size) == (3, 2)
    assert model(f"{VTC},device=cpu", device="quantum").device == torch.device("cpu")


def test_positions_hold_for_every_stage_of_the_method():
    plan = Settings.of({"pretrained": "a", "pruner": "VtcCls", "tokens": 5, "positions": "compact"}).plan
    assert [stage.positions for stage in plan.stages] == ["compact"]
    plan = Settings.of({"pretrained": "a", "pruner": "VtcCls", "tokens": 5}).plan
    assert [stage.positions for stage in plan.stages] == ["original"]


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ("pruner=VtcCls", "required: pretrained"),
        (f"{TINY},token=3", "nothing is called 'token'. Did you mean 'tokens'?"),
        (f"{TINY},prune=VtcCls", "nothing is called 'prune'. Did you mean 'pruner'?"),
        (f"{TINY},quatsch=3", "nothing is called 'quatsch'. There are pretrained, pruner"),
        (f"{TINY},pruner=VtcCls,last=3", "Did you mean 'pruner.last'?"),
        (f"{TINY},max_new_tokens=3", "give it to --gen_kwargs"),
        (f"{TINY},pruner=VtcCl,tokens=3", "no pruner is called 'VtcCl'. Did you mean VtcCls?"),
        (f"{TINY},pruner=VtcCls,pruner.lst=3", "VtcCls has no option 'lst'. Did you mean 'last'? It has last, query"),
        (f"{TINY},pruner={{name: VtcCls, lst: 3}}", "VtcCls has no option 'lst'. Did you mean 'last'?"),
        (f"{TINY},pruner={{name: VtcCls, last: x}}", 'Parser key "last"'),
        (f"{TINY},pruner={{name: VtcCls, last: 3}},pruner.last=2", "pruner.last is given twice: 3 and 2"),
        (f"{TINY},pruner.last=3", "pruner.last belongs to a pruner"),
        (f"{TINY},pruner={{name: VtcCls", "pruner is no YAML"),
        (f"{TINY},pruner=mine.yaml", "pruner=mine.yaml is a file, of which lmms-eval's cache sees but the name"),
        (f"{TINY},stages=mine.json", "stages=mine.json is a file"),
        (f"{TINY},system_prompt={__file__}", "is a file, of which lmms-eval's cache sees but the name"),
        (f"{TINY},pruner=VtcCls,tokens=x", 'Parser key "tokens"'),
        (f"{TINY},pruner=VtcCls,tokens=0", "tokens must be at least 1, got 0"),
        (f"{TINY},pruner=VtcCls,ratio=1.5", "must lie in (0, 1], got 1.5"),
        (f"{TINY},pruner=VtcCls,ratio=nan", "must lie in (0, 1], got nan"),
        (f"{TINY},pruner=VtcCls,tokens=3,ratio=0.5", "exactly one of them: got tokens=3, ratio=0.5"),
        (f"{TINY},pruner=VtcCls,tokens=3,per=sampel", "'sample', 'image', 'view'"),
        (f"{TINY},pruner=VtcCls,per=image", "per=image without tokens or ratio"),
        (f"{TINY},pruner=VtcCls,tokens=3,positions=here", 'Parser key "positions"'),
        (f"{TINY},tokens=3", "tokens without a pruner"),
        (
            f"{TINY},stages=[{{at: projector, pruner: VtcCls, budget: {{tokens: 3}}}}],tokens=3",
            "stages say pruner, tok",
        ),
        (f"{TINY},stages=[{{at: here, pruner: VtcCls, budget: {{tokens: 3}}}}]", "no site is called 'here'"),
        (f"{TINY},stages=[]", "the stages act at nowhere"),
        (f"{TINY},dtype=fp16", "'auto', 'float32', 'bfloat16', 'float16'"),
        (f"{TINY},batch_size=auto", 'Parser key "batch_size"'),
        (f"{TINY},batch_size=0", "batch_size must be at least 1, got 0"),
        (f"{TINY},max_num_frames=0", "max_num_frames must be at least 1, got 0"),
    ],
)
def test_what_cannot_be_used_is_told_by_its_key_before_weights_are_loaded(said, message, monkeypatch):
    monkeypatch.setattr(Backbone, "load", lambda self: pytest.fail("weights were loaded"))
    with pytest.raises(UsageError, match=re.escape(message)):
        model(said)


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ("pretrained=vtcframe:large", "nothing bundled is called 'vtcframe:large'"),
        ("pretrained=/nowhere", "cannot be loaded as a checkpoint"),
        (f"{TINY},device=quantum", "there is no device 'quantum' here"),
        (f"{TINY},pruner=VtcCls", "vtcframe:tiny cannot be asked under VtcCls(last=3)"),  # no budget, not adaptive
        (f"{TINY},pruner=FastV,pruner.layer=99,tokens=9", "cannot be asked under FastV(layer=99)"),
    ],
)
def test_what_will_never_work_is_told_before_the_first_question(said, message):
    with pytest.raises(UsageError, match=re.escape(message)):
        model(said)


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
    told, encode = [], harness_model.encode
    monkeypatch.setattr(harness_model, "encode", lambda *given: told.append(given[2]) or encode(*given))
    lm = model()
    keys = told.pop().layout.key  # of the first picture
    answered(lm, user(scene(0), "what shape is purple ?"))
    answered(lm, user(scene(0), "what shape is purple ?"))
    assert [one.questions for one in told] == [("what shape is purple ?",)] * 2
    assert told[0].layout.key == told[1].layout.key != keys


def entries_of(cache):
    with sqlite3.connect(cache / "cache.db") as base:
        return dict(base.execute("select cache_key, response from responses"))


def test_the_response_cache_serves_the_same_settings_again_and_no_others(folder, tmp_path, monkeypatch, log):
    asked, batch = [], VtcFrame._batch
    monkeypatch.setattr(VtcFrame, "_batch", lambda self, q: asked.extend(q) or batch(self, q))

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


# conversations


@cache
def tiny():
    return Backbone("vtcframe:tiny").load()


def by_hand(text, pictures, tokens=None, new=4):
    """What transformers answers, under VtcCls where tokens are given."""
    lm, processor = tiny()
    given = {"images": [pictures]} if pictures else {}
    inputs = processor(text=[text], return_tensors="pt", **given)
    asked = lm if tokens is None else compress(lm, VtcCls(3), tokens=tokens)
    out = asked.generate(**inputs, max_new_tokens=new, do_sample=False)
    return processor.batch_decode(out[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)[0].strip()


TEXT = "user : is there a red square ? assistant :"
ONE = "user : <image> what shape is purple ? assistant :"
TWO = "user : <image> <image> how many shapes are there ? assistant :"


@pytest.mark.parametrize("batch_size", ["1", "2", "5"])
def test_text_one_picture_and_two_are_answered_in_their_order_whatever_the_batch(batch_size):
    lm = model(f"{TINY},pruner=VtcCls,tokens=9", batch_size=batch_size)
    said = {
        (TEXT, ()): user("is there a red square ?"),
        (ONE, (0,)): user(scene(0), "what shape is purple ?"),
        (TWO, (0, 6)): user(scene(0), scene(6), "how many shapes are there ?"),
        (ONE, (6,)): user(QUESTIONS / ASKED[6]["image"], "what shape is purple ?"),  # a path, as some tasks give
    }
    expected = [by_hand(text, [scene(n) for n in numbers], 9 if numbers else None) for text, numbers in said]
    assert answered(lm, *said.values()) == expected
    assert lm.sums["with pictures"] == 3
    assert lm.sums["without pictures"] == 1
    assert (lm.sums["before"], lm.sums["after"]) == (4 * 144, 3 * 9)


def test_a_picture_with_transparency_or_one_channel_is_shown_in_rgb():
    lm = model()
    grey = scene(0).convert("L")
    assert answered(lm, user(grey, "what shape is purple ?")) == [by_hand(ONE, [grey.convert("RGB")], 18)]
    assert not lm.sums["failed"]


def test_turns_and_system_prompts_reach_the_template_and_the_setting_takes_the_tasks_place():
    system = {"role": "system", "content": [{"type": "text", "text": "red"}]}
    before = [{"role": "assistant", "content": [{"type": "text", "text": "square"}]}]
    said = [system, *user(scene(0), "what shape is purple ?"), *before, *user("what shape is red ?")]
    processor = tiny()[1]
    chat = Chat.of(ChatMessages(messages=said).messages, 8)
    turns = "user : <image> what shape is purple ? assistant : square user : what shape is red ? assistant :"
    assert chat.prompt(processor) == f"system : red {turns}"
    assert chat.question == "what shape is red ?"
    assert Chat.of(ChatMessages(messages=said).messages, 8, "blue").prompt(processor) == f"system : blue {turns}"
    assert answered(model(f"{VTC},system_prompt=blue"), said) == [by_hand(f"system : blue {turns}", [scene(0)], 18)]


def test_without_a_template_placeholders_and_text_are_joined():
    class Bare:
        image_token = "<image>"

    chat = Chat([{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "hm ?"}]}], [scene(0)], [])
    assert chat.prompt(Bare()) == "<image> hm ?"


def test_answers_end_before_a_stop_and_go_on_over_the_paragraph_that_every_task_has():
    lm, said = model(), user(scene(0), "what shape is purple ?")
    (whole,) = answered(lm, said)
    assert len(whole) > 2
    assert answered(lm, said, until=["zzz", whole[2:]]) == [whole[:2]]
    assert answered(lm, said, until=whole[1:]) == [whole[:1]]
    assert (
        answered(lm, said, until=None) == answered(lm, said, until=[]) == answered(lm, said, until=["\n\n"]) == [whole]
    )
    assert harness_model._cut("one\n\ntwo STOP three", ["\n\n", "STOP"]) == "one\n\ntwo"
    assert harness_model._cut("one", [""]) == "one"


def test_options_of_generate_are_greedy_unless_a_temperature_says_otherwise(log):
    lm = model()

    def sampling(**options):
        config = lm._config(options)
        return config.do_sample, config.temperature

    assert sampling() == sampling(temperature=0) == sampling(temperature=0.0, do_sample=True) == (False, None)
    assert sampling(temperature=0.7) == sampling(temperature=0.7, do_sample=True) == (True, 0.7)
    assert sampling(temperature=0.7, do_sample=False) == (False, None)
    assert sampling(do_sample=True)[0]
    assert lm._config({}).max_new_tokens == 1024
    config = lm._config({"max_new_tokens": 3, "num_beams": 2, "top_p": None, "until": ["x"]})
    assert (config.max_new_tokens, config.num_beams) == (3, 2)
    for _ in range(2):
        lm._config({"image_aspect_ratio": "pad", "num_return_sequences": 3})
    passed = [line for line in log if "passed over" in line]
    assert len(passed) == 2
    assert lm._config({"num_return_sequences": 3}).num_return_sequences in (None, 1)


def test_requests_of_different_options_are_not_answered_in_one_batch():
    lm = model(batch_size="8")
    lm.task_dict = {"t": {"test": [0, 1]}}
    said, whole = user(scene(0), "what shape is purple ?"), by_hand(ONE, [scene(0)], 18)
    one, two = lm.generate_until([request(said), request(said, {"until": [whole[2:]]}, 1)])
    assert (one.text, two.text) == (whole, whole[:2])


def test_token_counts_are_of_the_prompt_as_read_and_of_the_answer_up_to_its_end():
    for arguments, visual in ((VTC, 18), (TINY, 144)):
        lm = model(arguments)
        lm.task_dict = {"t": {"test": [0, 1]}}
        said = user(scene(0), "what shape is purple ?"), user("is there a red square ?")
        shown, bare = lm.generate_until([request(one, {"max_new_tokens": 9}, n) for n, one in enumerate(said)])
        processor = tiny()[1]
        text = len(processor.tokenizer(ONE.replace("<image> ", ""))["input_ids"])
        assert shown.token_counts.input_tokens == visual + text
        assert bare.token_counts.input_tokens == len(processor.tokenizer(TEXT)["input_ids"])
        assert shown.token_counts.output_tokens == 2  # "square" and the end


def test_an_answer_ends_with_its_first_end_token_or_with_the_batch():
    new = torch.tensor([[5, 9, 0, 9], [5, 6, 7, 8], [9, 0, 0, 0]])
    assert harness_model._lengths(new, 9) == harness_model._lengths(new, [9, 3]) == [2, 4, 1]
    assert harness_model._lengths(new, None) == [4, 4, 4]


def test_a_question_that_fails_costs_no_other_its_answer_and_is_told(folder, tmp_path, log):
    lm = model(f"{TINY},pruner=VtcCls,tokens=9", batch_size="4")
    good = user(scene(0), "what shape is purple ?")
    broken = user(tmp_path / "gone.png", "what shape is purple ?")
    sound = [{"role": "user", "content": [{"type": "audio", "url": "a.wav"}, {"type": "text", "text": "which ?"}]}]

    def raising(doc):
        raise KeyError("no such field")

    expected = by_hand(ONE, [scene(0)], 9)
    assert answered(lm, good, broken, raising, sound, good) == [expected, "", "", "", expected]
    failed = [line for line in log if "has no answer" in line]
    assert [re.search(r"t test \d", line).group() for line in failed] == ["t test 1", "t test 2", "t test 3"]
    assert "KeyError: 'no such field'" in failed[1]
    assert "audio cannot be shown" in failed[2]
    assert (lm.sums["failed"], lm.sums["with pictures"]) == (3, 2)  # those of the batch that failed are counted once


def test_a_device_that_is_broken_ends_the_run_and_one_out_of_memory_does_not(monkeypatch):
    lm, generated = model(batch_size="2"), VtcFrame._generated
    said, expected = user(scene(0), "what shape is purple ?"), by_hand(ONE, [scene(0)], 18)

    def full(self, chats, *rest):
        if len(chats) > 1:
            raise torch.OutOfMemoryError("no room for two")
        return generated(self, chats, *rest)

    monkeypatch.setattr(VtcFrame, "_generated", full)
    assert answered(lm, said, said) == [expected, expected]
    if hasattr(torch, "AcceleratorError"):

        def broken(*given):
            raise torch.AcceleratorError("illegal memory access")

        monkeypatch.setattr(VtcFrame, "_generated", broken)
        with pytest.raises(torch.AcceleratorError):
            answered(lm, said, said)


def test_unknown_words_are_told_once_of_a_model_that_was_taught_few(log):
    lm = model(batch_size="2")
    answered(lm, user(scene(0), "where is the zebra ?"), user(scene(0), "who is the zebra ?"))
    assert len([line for line in log if "the model does not know" in line]) == 1


def test_requests_that_only_fill_a_process_up_are_not_asked(monkeypatch):
    lm = model()
    lm.task_dict = {"t": {"test": [0]}}
    said = user(scene(0), "what shape is purple ?")
    filling = request(said, __padding_only__=True)
    first, last = lm.generate_until([filling, request(said)])
    assert (first.text, last.text) == ("", by_hand(ONE, [scene(0)], 18))
    assert lm.sums["with pictures"] == 1


def test_a_task_of_several_rounds_makes_each_question_from_the_answers_before():
    lm = model(batch_size="2")
    lm.task_dict = {"t": {"test": ["a", "b", "c"]}}
    asked = []

    def said(doc, round_idx=None, previous_output=None, previous_round_info=None):
        asked.append((doc, round_idx, previous_output, previous_round_info))
        if round_idx is None:
            return user(scene(0), "what shape is purple ?")
        if doc == "c":  # a task of one round
            return "nothing more"
        if round_idx == (2 if doc == "a" else 3):
            return None, True, [*previous_output, "end"] if doc == "b" else previous_output, None
        return user(scene(6), "what shape is purple ?"), False, previous_output, f"{doc}{round_idx}"

    requests = [request(said, doc=n, kind="generate_until_multi_round") for n in range(3)]
    one, other = (by_hand(ONE, [scene(n)], 18) for n in (0, 6))
    assert lm.generate_until_multi_round(requests) == [[one, other], [one, other, other, "end"], [one]]
    assert ("b", 2, [one, other], "b1") in asked
    assert lm.generate_until_multi_round([request(said, __padding_only__=True)]) == [[]]


def test_given_answers_are_not_scored_and_the_error_names_the_cure():
    with pytest.raises(NotImplementedError, match="output_type: generate_until"):
        model().loglikelihood([])


def test_a_model_that_was_made_lets_go_of_its_weights_when_lmms_eval_is_done():
    lm = model()
    held = lm._model
    lm.clean()
    assert not any(isinstance(value, torch.nn.Module) for value in vars(lm).values())
    assert not hasattr(lm, "adapter")
    assert held is not None


# videos


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """Twenty frames at 10 a second, each brighter than the one before."""
    path = tmp_path_factory.mktemp("video") / "clip.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        for number in range(20):
            frame = av.VideoFrame.from_ndarray(np.full((64, 64, 3), 12 * number, np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return str(path)


def shades(found):
    return [round(np.asarray(frame).mean() / 12) for frame in found.frames]


def test_frames_of_a_file_are_evenly_spaced_within_the_seconds_asked_for(clip):
    assert shades(Film.of(clip, 4)) == [2, 7, 12, 17]
    assert shades(Film.of(clip, 99)) == list(range(20))
    within = Film.of(clip, 2, start=1.0, end=1.4)
    assert shades(within) == within.metadata["frames_indices"] == [11, 13]
    assert (within.metadata["fps"], within.metadata["total_num_frames"]) == (10, 20)
    assert shades(Film.of(clip, 2, start=99.0)) == [19]


def test_frames_in_a_list_or_a_folder_are_shown_as_they_are(tmp_path):
    frames = [Image.new("RGB", (8, 8), (12 * number,) * 3) for number in range(6)]
    for number, frame in enumerate(frames):
        frame.save(tmp_path / f"{number}.png")
    for source in (frames, [str(tmp_path / f"{number}.png") for number in range(6)], str(tmp_path)):
        assert shades(Film.of(source, 3)) == [1, 3, 5]
        assert Film.of(source, 3).metadata == {"fps": 2.0, "total_num_frames": 3, "frames_indices": [0, 1, 2]}
    with pytest.raises(ValueError, match="seconds are told of an encoded video"):
        Film.of(frames, 3, start=1.0)
    with pytest.raises(ValueError, match="cannot read the video"):
        Film.of(str(tmp_path / "gone.gif"), 3)


@pytest.mark.parametrize("family", ["qwen2_5_vl", "video_llava", "internvl"])
def test_videos_are_answered_as_our_own_predictor_answers_them(family, monkeypatch, log):
    made = BACKBONES[family]()
    monkeypatch.setattr(Backbone, "load", lambda self: made)
    frames = film(5, 56, 56)
    frames = [Image.fromarray(frame) if isinstance(frame, np.ndarray) else frame for frame in frames][:4]
    lm = model("pretrained=tiny,pruner=UniformPruner,ratio=0.5,max_num_frames=4")
    question = "what is in the video ?"
    content = [{"type": "video", "url": frames}, {"type": "text", "text": question}]
    got = answered(lm, [{"role": "user", "content": content}])
    predictor = Predictor(
        Backbone("tiny"),
        stages=[Stage("projector", UniformPruner(), Budget(ratio=0.5))],
        generation={"max_new_tokens": 4},
    )
    predictor.setup("predict")
    (row,) = predictor.predict_step([Sample("v", question, (), videos=(tuple(frames),))], 0)
    assert row.error is None
    assert got == [row.prediction], log
    assert (lm.sums["before"], lm.sums["after"]) == (row.visual_tokens_before, row.visual_tokens)


def test_a_video_for_a_model_of_pictures_is_told(clip, log):
    content = [{"type": "video", "url": clip}, {"type": "text", "text": "what shape is purple ?"}]
    assert answered(model(), [{"role": "user", "content": content}]) == [""]
    assert any("takes no videos: give the frames as `images`" in line for line in log)
