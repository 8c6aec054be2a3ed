import contextlib
import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image

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
    UniformPruner,
    compress,
)
from vtcframe.backbone import Backbone
from vtcframe.cli import main
from vtcframe.config import UsageError, bundled
from vtcframe.data import Sample, read_samples
from vtcframe.methods import VtcCls
from vtcframe.metrics import Row, accuracy, columns, table
from vtcframe.pictures import sheet
from vtcframe.pipeline import Stage, planned
from vtcframe.predict import Comparison, Predictor, _views
from vtcframe.testing.backbones import SAMPLES, draw, make_inputs
from vtcframe.testing.families import BACKBONES
from vtcframe.writer import NOTE

QUICKSTART = str(Path(__file__).parent.parent / "configs" / "quickstart.yaml")
METHODS = tuple(str(pruner) for pruner in (VtcCls(last=3), RandomPruner(seed=0), UniformPruner()))
QUESTIONS = Path(bundled("vtcframe:questions"))


def predict(*arguments):
    """Exit status, standard output, standard error."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = main(["predict", "--config", QUICKSTART, *arguments])
    return status, out.getvalue(), err.getvalue()


def read(folder):
    return [Row(**json.loads(line)) for line in (folder / "predictions.jsonl").read_text().splitlines()]


def taken(folder, count):
    """Write the first bundled questions as a file of their own and return the options that read it."""
    lines = [json.loads(line) for line in (QUESTIONS / "questions.jsonl").read_text().splitlines()[:count]]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "asked.jsonl").write_text(text)
    return f"--data.path={folder}/asked.jsonl", f"--data.images={QUESTIONS}", f"--writer.folder={folder}"


@pytest.fixture(scope="module")
def quickstart(tmp_path_factory):
    folder = tmp_path_factory.mktemp("quickstart")
    status, out, err = predict(f"--writer.folder={folder}")
    assert status == 0, err
    return folder, out, read(folder)


def runs(rows):
    split = {}
    for row in rows:
        split.setdefault((row.method, None if row.budget is None else row.budget["ratio"]), []).append(row)
    return split


def test_the_quickstart_answers_well_unpruned_and_vtc_cls_beats_random_at_an_eighth(quickstart):
    of = {run: accuracy(columns(rows)["attributes"]) for run, rows in runs(quickstart[2]).items()}
    assert of["unpruned", None] >= 0.90
    assert of[METHODS[0], 0.125] - of[METHODS[1], 0.125] >= 0.08


def test_every_question_has_one_row_for_each_method_and_budget_in_the_order_of_the_file(quickstart):
    ids = [json.loads(line)["id"] for line in (QUESTIONS / "questions.jsonl").read_text().splitlines()]
    split = runs(quickstart[2])
    assert list(split) == [
        ("unpruned", None),
        *((method, ratio) for method in METHODS for ratio in (0.5, 0.25, 0.125, 0.0625)),
    ]
    for (_, ratio), rows in split.items():
        assert [row.id for row in rows] == ids
        assert {row.visual_tokens for row in rows} == {round(144 * (ratio or 1))}
        assert {(row.visual_tokens_before, row.structural_tokens, row.error) for row in rows} == {(144, 0, None)}


def test_the_table_is_printed_and_the_finished_file_stands_alone(quickstart):
    folder, out, rows = quickstart
    assert out == (f"{table(rows)}\n{NOTE}\nwritten to {folder}/predictions.jsonl, 4 sheets to {folder}/pictures\n")
    assert sorted(path.name for path in folder.iterdir()) == ["pictures", "predictions.jsonl", "run.json"]


def test_every_row_has_its_seconds_and_pruned_ones_their_share_of_the_encoding(quickstart):
    batches = {}
    for row in quickstart[2]:
        assert row.seconds > 0
        assert (row.encode_seconds > 0) == (row.method != "unpruned")
        batches.setdefault(row.batch, []).append(row)
    assert sorted(batches) == list(range(-(-671 // 30)))
    for rows in batches.values():
        assert len({row.encode_seconds for row in rows if row.method != "unpruned"}) == 1
        assert len({row.seconds for row in rows if row.method == "unpruned"}) == 1


def test_sheets_are_drawn_for_the_first_samples_only_and_rows_hold_no_masks_unless_asked(quickstart):
    folder, _, rows = quickstart
    ids = list(dict.fromkeys(row.id for row in rows))[:4]
    assert sorted(path.name for path in (folder / "pictures").iterdir()) == sorted(f"{name}.png" for name in ids)
    with Image.open(folder / "pictures" / f"{ids[0]}.png") as drawn:
        assert drawn.width > 5 * 384  # a score map and four budgets, each four times the picture's 96 pixels
    assert {row.views for row in rows} == {None}


def test_masks_tell_row_by_row_what_was_kept_and_how_it_was_scored(tmp_path):
    assert predict(*taken(tmp_path, 3), "--data.batch_size=2", "--writer.masks=true", "--writer.pictures=0")[0] == 0
    assert not (tmp_path / "pictures").exists()
    model, processor = Backbone("vtcframe:tiny", dtype="float32").load()
    short, rows = compress(model, VtcCls(last=3), ratio=0.125), read(tmp_path)
    assert all(row.views is None for row in rows if row.method == "unpruned")
    for row in (row for row in rows if row.method == METHODS[0] and row.budget == {"ratio": 0.125}):
        text = [{"type": "image"}, {"type": "text", "text": row.question}]
        prompt = processor.apply_chat_template([{"role": "user", "content": text}], add_generation_prompt=True)
        inputs = processor(images=Image.open(QUESTIONS / "images/scene-000.png"), text=prompt, return_tensors="pt")
        short.generate(**inputs, max_new_tokens=1, do_sample=False)
        (view,) = row.views
        assert (view["image"], view["frame"], view["box"]) == (0, 0, [0, 0, 1, 1])
        assert [kept for line in view["kept"] for kept in line] == short.last.kept[0].tolist()
        assert [x for line in view["scores"] for x in line] == pytest.approx(short.last.scores[0].tolist(), rel=1e-4)
        assert [len(line) for line in view["kept"]] == [12] * 12


def test_views_of_a_pruner_that_joins_them_are_told_one_by_one(llava_next):
    from vtcframe import Budget, RandomPruner, adapter_for
    from vtcframe.allocators import Even
    from vtcframe.ensemblers import Mean
    from vtcframe.pipeline import Pipeline
    from vtcframe.scorers import Random
    from vtcframe.selectors import TopK

    model, processor = llava_next
    evidence = adapter_for(model).observe(make_inputs(processor, SAMPLES["ragged several"][:2]))
    joined = Pipeline((Random(0),), Mean(), Even(), TopK(), across="sample")
    for pruner in (joined, RandomPruner()):
        pruned = pruner(evidence, Budget(tokens=7))
        for p in (0, 1):
            views = _views(evidence.layout, pruned, p)
            kept = [kept for view in views for line in view["kept"] for kept in line]
            assert sum(map(bool, kept)) == 7
            assert sum(one is not None for one in kept) == evidence.layout.untouched[p]


def test_a_picture_that_is_cut_is_shown_as_the_model_sees_it(tmp_path):
    predictor = Predictor(Backbone("vtcframe:tiny", dtype="float32"))
    predictor.setup("predict")
    wide = Image.new("RGB", (192, 96), "red")
    wide.paste("blue", (48, 0, 144, 96))
    (shown,) = predictor.shown(Sample("a", "?", (), pictures=(wide,)))
    assert shown.size == (96, 96)
    assert shown.getpixel((5, 50))[2] > 200 > 50 > shown.getpixel((5, 50))[0]


def test_a_sheet_that_cannot_be_finished_leaves_no_half_one_and_no_row_is_lost(tmp_path, monkeypatch):
    from vtcframe import writer

    class Torn:
        def save(self, path, format):
            path.write_bytes(b"half")
            raise OSError("no space left")

    monkeypatch.setattr(writer, "sheet", lambda *_: Torn())
    with pytest.raises(OSError, match="no space left"):
        predict(*taken(tmp_path, 2))
    assert [path.name for path in (tmp_path / "pictures").iterdir() if path.suffix == ".png"] == []
    _, *samples = (tmp_path / "parts" / "0001-00000.jsonl").read_text().splitlines()
    assert [len(json.loads(rows)) for rows in samples] == [13, 13]


def test_the_printed_configuration_loads_again_and_uses_short_names(tmp_path):
    first, again = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(first), pytest.raises(SystemExit, match="0"):
        main(["predict", "--config", QUICKSTART, "--print_config"])
    printed = yaml.safe_load(first.getvalue())["model"]["compare"]["pruners"][0]
    assert (printed["name"], printed["last"]) == ("VtcCls", 3)
    (tmp_path / "printed.yaml").write_text(first.getvalue())
    with contextlib.redirect_stdout(again), pytest.raises(SystemExit, match="0"):
        main(["predict", "--config", str(tmp_path / "printed.yaml"), "--print_config"])
    assert again.getvalue() == first.getvalue()


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
    assert [(row.method, row.visual_tokens) for row in read(tmp_path)[1:]] == [
        (METHODS[0], 9),
        (METHODS[0], 5),
    ]


def test_stages_prune_without_a_comparison(tmp_path):
    stages = "--model.stages=[{at: projector, pruner: VtcCls, budget: {tokens: 9}, positions: compact}]"
    assert predict(*taken(tmp_path, 4), "--model.compare=null", stages)[0] == 0
    assert [(row.method, row.budget, row.visual_tokens) for row in read(tmp_path)] == [
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
    assert read(tmp_path)[1].method == str(whole)


def test_without_stages_and_compare_the_model_answers_with_all_tokens(tmp_path):
    assert predict(*taken(tmp_path, 4), "--model.compare=null")[0] == 0
    assert [(row.method, row.budget, row.visual_tokens) for row in read(tmp_path)] == [("unpruned", None, 144)] * 4


def test_generation_options_reach_generate(tmp_path):
    three = "--model.generation.max_new_tokens=3", "--model.generation.min_new_tokens=3"
    assert predict(*taken(tmp_path, 1), "--model.compare=null", *three)[0] == 0
    assert len(read(tmp_path)[0].prediction.split()) == 3


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
    assert err == "vtcframe: 3 samples failed, their rows say why: lost, torn, worn\n"
    assert [row.id for row in rows] == ["lost", "torn", "worn", *["whole"] * 13]
    assert "lost.png: FileNotFoundError" in rows[0].error
    assert "corrupt.png: UnidentifiedImageError" in rows[1].error
    assert rows[0].method is rows[0].prediction is rows[0].visual_tokens is None
    assert rows[3].prediction == "square"
    assert out.startswith(table(rows))
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
    monkeypatch.chdir(Path(__file__).parent.parent)
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


def test_help_list_and_a_typo_are_answered_without_importing_torch():
    code = f"""
import sys
from vtcframe.cli import main
statuses = [main(["--help"]), main(["list"]), main(["predit"])]
statuses.append(main(["predict", "--config", {QUICKSTART!r}, "--model.compare.pruners=[VtcCsl]"]))
assert not {{"torch", "lightning", "transformers"}} & sys.modules.keys(), "too much was imported"
print(statuses)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[0, 0, 2, 2]"
    assert ["pruner", "VtcCls", "vtcframe"] in [line.split()[:3] for line in done.stdout.splitlines()]
    assert "no command is called 'predit'. Did you mean predict?" in done.stderr
    assert "no pruner is called 'VtcCsl'. Did you mean VtcCls?" in done.stderr


def test_the_lightning_command_predicts_and_hands_everything_else_on(tmp_path, monkeypatch, capsys):
    import vtcframe_lightning

    class Point:
        value = "lightning_sdk.cli:main"

        def load(self):
            return lambda: 5

    class Ours(Point):
        value = vtcframe_lightning.OURS

    monkeypatch.setattr(sys, "argv", ["lightning", "predict", "--config", QUICKSTART, *taken(tmp_path, 2)])
    assert vtcframe_lightning.main() == 0
    assert len(read(tmp_path)) == 26
    monkeypatch.setattr(sys, "argv", ["lightning", "login"])
    monkeypatch.setattr(vtcframe_lightning, "entry_points", lambda **_: [Ours(), Point()])
    assert vtcframe_lightning.main() == 5
    monkeypatch.setattr(vtcframe_lightning, "entry_points", lambda **_: [Ours()])
    assert vtcframe_lightning.main() == 2
    assert "no installed distribution knows 'login'" in capsys.readouterr().err


def test_a_question_with_words_that_the_model_was_never_taught_fails_and_says_what_may_be_asked(tmp_path):
    told = {
        "vocabulary": ["what", "color", "is", "the", "ring", "?"],
        "forms": {"color": "what color is the {shape} ?"},
    }
    (tmp_path / "questions.json").write_text(json.dumps(told))
    language = Backbone(str(tmp_path)).language()
    assert language.misunderstood("What color is the ring?") is None
    says = "the model does not know 'dog', '!'; it can be asked: what color is the {shape} ?"
    assert language.misunderstood("what color is the dog !") == says
    assert Backbone("llava-hf/llava-1.5-7b-hf").language() is None
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
        rows = predictor.predict_step([sample.loaded() for sample in samples], 0)
    of = {method: accuracy([row for row in rows if row.method == method]) for method in {row.method for row in rows}}
    assert of[str(RandomPruner(seed=0))] - of[str(least)] >= 0.3


TEMPLATE = """{% for part in messages[0]['content'] -%}
{% if part['type'] == 'image' %}IMAGE {% elif part['type'] == 'video' %}VIDEO {% else %}{{ part['text'] }}{% endif %}
{%- endfor %}"""


def predictor_of(monkeypatch, family, *pruners, tokens=3):
    """A predictor on a random model of a family, with a chat template."""
    model, processor = BACKBONES[family]()
    image, video = processor.image_token, getattr(processor, "video_token", "")
    around = (lambda one: f"<|vision_start|>{one}<|vision_end|>") if "qwen" in family else (lambda one: one)
    processor.chat_template = TEMPLATE.replace("IMAGE", around(image)).replace("VIDEO", around(video))
    monkeypatch.setattr(Backbone, "load", lambda self: (model, processor))
    predictor = Predictor(
        Backbone("some/checkpoint"),
        compare=Comparison(list(pruners), [Budget(tokens=tokens)]),
        generation={"max_new_tokens": 3},
    )
    predictor.setup("predict")
    predictor.viewed = lambda sample: True
    return predictor


def sample(name, pictures=(), frames=0, size=(70, 90)):
    film = tuple(draw(*size, 20 + f) for f in range(frames))
    return Sample(name, "what ?", (), pictures=tuple(pictures), videos=(film,) if frames else ())


def answered(predictor, *samples):
    with torch.no_grad():
        rows = predictor.predict_step(list(samples), 0)
    return {name: [row for row in rows if row.id == name] for name in (one.id for one in samples)}


@pytest.mark.parametrize("family", ["llava_onevision", "internvl", "video_llava", "qwen2_5_vl", "qwen3_vl"])
def test_pictures_and_videos_are_answered_together_as_they_are_alone(monkeypatch, family):
    predictor = predictor_of(monkeypatch, family, RandomPruner())
    batch = [
        sample("picture", [draw(60, 90, 1)]),
        sample("film", frames=4),
        sample("both", [draw(60, 90, 2)], frames=4),
    ]
    together = answered(predictor, *batch)
    merged = 2 if "qwen" in family else 1
    for one in batch:
        unpruned, pruned = together[one.id]
        assert unpruned.error is None
        assert (pruned.visual_tokens, pruned.visual_tokens_before) == (3, unpruned.visual_tokens)
        again = answered(predictor, one)[one.id]
        assert [(row.prediction, row.views) for row in again] == [
            (row.prediction, row.views) for row in (unpruned, pruned)
        ]
        want = {(i, 0) for i in range(len(one.pictures))}
        want |= {(len(one.pictures), f) for frames in one.videos for f in range(len(frames) // merged)}
        assert {(view["image"], view["frame"]) for view in pruned.views} == want
        shown = predictor.shown(one)
        assert len(shown) == len(one.pictures) + len(one.videos)
        assert [len(frames) for frames in shown[len(one.pictures) :]] == [4 // merged for _ in one.videos]
        sheet(shown, together[one.id])


def test_a_video_for_a_model_that_takes_none_fails_alone(monkeypatch):
    predictor = predictor_of(monkeypatch, "llava", RandomPruner())
    rows = answered(predictor, sample("picture", [draw(60, 90, 1)]), sample("film", frames=2))
    assert [row.error for row in rows["picture"]] == [None, None]
    (row,) = rows["film"]
    assert "some/checkpoint cannot be asked this" in row.error
    assert "LlavaProcessor takes no videos: give the frames as `images`" in row.error


def test_what_a_processor_refuses_fails_alone(monkeypatch):
    predictor = predictor_of(monkeypatch, "qwen2_vl", RandomPruner())
    rows = answered(predictor, sample("line", [draw(3, 900, 1)]), sample("picture", [draw(60, 90, 1)]))
    assert [row.error for row in rows["picture"]] == [None, None]
    assert "aspect ratio" in rows["line"][0].error


def test_a_processor_of_another_model_fails_every_sample_and_says_so(monkeypatch):
    predictor = predictor_of(monkeypatch, "llava", RandomPruner())
    predictor.processor.patch_size = 28
    rows = answered(predictor, sample("a", [draw(60, 90, 1)]), sample("b", [draw(60, 90, 2)]))
    for (row,) in rows.values():
        assert "its processor belongs to another model" in row.error


def test_what_a_pruner_refuses_is_told(monkeypatch):
    predictor = predictor_of(monkeypatch, "qwen2_vl", RandomPruner())
    predictor.runs = [planned([Stage("projector", RandomPruner(), Budget(tokens=3), "compact")])]
    with pytest.raises(UsageError, match=r"RandomPruner\(seed=0\) cannot prune some/checkpoint: .*use 'original'"):
        answered(predictor, sample("a", [draw(60, 90, 1)]))


def test_questions_about_videos_run_from_a_file(tmp_path, monkeypatch):
    predictor_of(monkeypatch, "video_llava")
    for f in range(6):
        draw(60, 90, f).save(tmp_path / f"{f}.png")
    lines = [
        {"id": "film", "video": [f"{f}.png" for f in range(6)], "question": "what ?"},
        {"id": "none", "video": [], "question": "what ?"},
    ]
    (tmp_path / "asked.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    given = f"--data.path={tmp_path}/asked.jsonl", f"--writer.folder={tmp_path}", "--data.frames=3"
    status, _, err = predict(*given, "--writer.pictures=1", "--model.compare.budgets=[{tokens: 4, per: view}]")
    rows = read(tmp_path)
    assert status == 1
    assert "none" in err
    assert [(row.id, row.visual_tokens, row.visual_tokens_before) for row in rows if row.budget] == [
        ("film", 12, 48)
    ] * 3
    assert "has no frames" in rows[-1].error
    assert (tmp_path / "pictures" / "film.png").exists()


def test_half_precision_of_the_trainer_is_that_of_the_backbone(tmp_path):
    """Rotary frequencies stay in float32, and scores are float32."""
    rows = []
    for name, option in (("trainer", "--trainer.precision=bf16-true"), ("backbone", "--model.backbone.dtype=bfloat16")):
        (tmp_path / name).mkdir()
        options = (
            *taken(tmp_path / name, 12),
            "--writer.masks=true",
            "--model.compare.pruners=[DivPrune, {name: FastV, layer: 2}]",
        )
        assert predict(*options, option)[0] == 0
        rows.append([(row.prediction, row.views) for row in read(tmp_path / name)])
    assert rows[0] == rows[1]
    assert predict(*taken(tmp_path, 12), "--trainer.precision=bf16-mixed")[0] == 0
    assert [row.error for row in read(tmp_path)] == [None] * (12 * 13)
