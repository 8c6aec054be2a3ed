"""What the predictor computes, and how stages and comparisons are configured."""

import json

import pytest
import torch
from PIL import Image

from support.predict_runs import METHODS, QUESTIONS, predict, read, runs, taken
from vtcframe import (
    Budget,
    ClsAttention,
    Even,
    Mean,
    Pipeline,
    RandomPruner,
    RankFusion,
    TokenNorm,
    TopK,
    VtcCls,
    compress,
)
from vtcframe.data.decode import load_sample
from vtcframe.data.formats import read_samples
from vtcframe.data.results import accuracy
from vtcframe.inference.checkpoint import Backbone
from vtcframe.runs.comparison import Comparison
from vtcframe.runs.predictor import Predictor


def test_predictions_are_those_of_compress_and_of_the_model_itself(quickstart):
    split = runs(quickstart[2])
    model, processor = Backbone("vtcframe:tiny", dtype="float32").load()
    short = compress(model, VtcCls(last=3), ratio=0.125)
    for n in (0, 57, 131, 209):
        asked = json.loads((QUESTIONS / "questions.jsonl").read_text().splitlines()[n])
        text = [{"type": "image"}, {"type": "text", "text": asked["question"]}]
        prompt = processor.apply_chat_template([{"role": "user", "content": text}], add_generation_prompt=True)
        inputs = processor(images=Image.open(QUESTIONS / asked["image"]), text=prompt, return_tensors="pt")
        for one, run in ((model, ("unpruned", None)), (short, (METHODS[0], 0.125))):
            out = one.generate(**inputs, max_new_tokens=1, do_sample=False)
            answer = processor.decode(out[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
            assert split[run][n].id == asked["id"]
            assert split[run][n].prediction == answer


@pytest.fixture
def encoded(monkeypatch):
    """The needs of each time that pictures are encoded under observation."""
    from vtcframe_backbones.llava import Llava

    seen, encode = [], Llava.encode

    def counted(self, inputs, arrangement, needs=()):
        seen.append(needs)
        return encode(self, inputs, arrangement, needs)

    monkeypatch.setattr(Llava, "encode", counted)
    return seen


def test_pictures_are_observed_once_a_batch_with_what_all_pruners_need(tmp_path, encoded):
    assert predict(*taken(tmp_path, 6), "--data.batch_size=4", "--model.compare.pruners=[VtcCls, FasterVlm]")[0] == 0
    assert encoded == [(*VtcCls().needs, *VtcCls(last=1).needs)] * 2


def test_a_budget_that_covers_every_token_leaves_the_model_untouched(tmp_path, encoded):
    assert predict(*taken(tmp_path, 4), "--model.compare.budgets=[{tokens: 144}, {ratio: 1.0}]")[0] == 0
    assert encoded == []
    for row in read(tmp_path):
        assert row.visual_tokens == 144


def test_a_list_on_the_command_line_replaces_that_of_the_file(tmp_path):
    (tmp_path / "more.yaml").write_text("model: {compare: {pruners: [{name: VtcCls, last: 2}]}}")
    lists = "--model.compare.pruners", "[VtcCls]", "--model.compare.budgets=[{tokens: 9}, {tokens: 5}]"
    assert predict(f"--config={tmp_path}/more.yaml", *taken(tmp_path, 1), *lists)[0] == 0
    assert [(row.label, row.visual_tokens) for row in read(tmp_path)[1:]] == [
        (METHODS[0], 9),
        (METHODS[0], 5),
    ]


def test_stages_prune_without_a_comparison(tmp_path):
    stages = "--model.stages=[{at: projector, pruner: VtcCls, budget: {tokens: 9}, positions: compact}]"
    assert predict(*taken(tmp_path, 4), "--model.compare=null", stages)[0] == 0
    assert [(row.label, row.budget, row.visual_tokens) for row in read(tmp_path)] == [
        (METHODS[0], {"tokens": 9}, 9)
    ] * 4


def test_a_pruner_can_be_spelt_out_by_short_names(tmp_path):
    pruner = {
        "name": "Pipeline",
        "scorers": [{"name": "ClsAttention", "last": 2}, "TokenNorm"],
        "ensembler": {"name": "RankFusion", "k": 10},
        "allocator": "Even",
        "selector": "TopK",
    }
    assert predict(*taken(tmp_path, 2), f"--model.compare.pruners={json.dumps([pruner])}")[0] == 0
    whole = Pipeline((ClsAttention(last=2), TokenNorm()), RankFusion(k=10), Even(), TopK())
    assert read(tmp_path)[1].label == str(whole)


def test_without_stages_and_compare_the_model_answers_with_all_tokens(tmp_path):
    assert predict(*taken(tmp_path, 4), "--model.compare=null")[0] == 0
    assert [(row.label, row.budget, row.visual_tokens) for row in read(tmp_path)] == [("unpruned", None, 144)] * 4


def test_generation_options_reach_generate(tmp_path):
    three = "--model.generation.max_new_tokens=3", "--model.generation.min_new_tokens=3"
    assert predict(*taken(tmp_path, 1), "--model.compare=null", *three)[0] == 0
    assert len(read(tmp_path)[0].prediction.split()) == 3


def test_dropping_what_cls_attends_to_most_hurts_far_more_than_dropping_at_random():
    class Unattended(ClsAttention):
        def __call__(self, evidence):
            return -super().__call__(evidence)

    least = Pipeline((Unattended(last=3),), Mean(), Even(), TopK())  # keeps 108: the 36 most attended go
    budget = Budget(tokens=108)
    predictor = Predictor(
        Backbone("vtcframe:tiny", dtype="float32"),
        compare=Comparison([least, RandomPruner(seed=0)], [budget]),
        generation={"max_new_tokens": 4},
    )
    predictor.setup("predict")
    samples = read_samples(QUESTIONS / "questions.jsonl", QUESTIONS)[:200]
    with torch.no_grad():
        rows = predictor.predict_step([load_sample(sample) for sample in samples], 0)
    of = {method: accuracy([row for row in rows if row.label == method]) for method in {row.label for row in rows}}
    assert of[str(RandomPruner(seed=0))] - of[str(least)] >= 0.3
