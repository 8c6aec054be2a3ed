"""What `vtcframe predict` writes: rows, the table, sheets and masks."""

import contextlib
import io
import json

import pytest
import yaml
from PIL import Image

from support.predict_runs import GROUPS, METHODS, QUESTIONS, QUICKSTART, predict, read, runs, taken
from vtcframe import (
    Budget,
    RandomPruner,
    VtcCls,
    compress,
)
from vtcframe.cli import main
from vtcframe.data.results import accuracy, columns
from vtcframe.data.sample import Sample
from vtcframe.inference.checkpoint import Backbone
from vtcframe.runs.crops import crop_pictures
from vtcframe.runs.predictor import Predictor
from vtcframe.runs.rows import view_records
from vtcframe.runs.table import format_table
from vtcframe.runs.writer import NOTE
from vtcframe.testing.tiny_models.llava_families import SAMPLES, make_inputs


def test_the_quickstart_answers_well_unpruned_and_vtc_cls_beats_random_at_an_eighth(quickstart):
    of = {run: accuracy(columns(rows, GROUPS)["attributes"]) for run, rows in runs(quickstart[2]).items()}
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
    assert out == (
        f"{format_table(rows, groups=GROUPS)}\n{NOTE}\n"
        f"written to {folder}/predictions.jsonl, 4 sheets to {folder}/pictures\n"
    )
    assert sorted(path.name for path in folder.iterdir()) == ["pictures", "predictions.jsonl", "run.json"]


def test_every_row_has_its_seconds_and_pruned_ones_their_share_of_the_encoding(quickstart):
    batches = {}
    for row in quickstart[2]:
        assert row.seconds > 0
        assert (row.encode_seconds > 0) == (row.label != "unpruned")
        batches.setdefault(row.batch, []).append(row)
    assert sorted(batches) == list(range(-(-671 // 30)))
    for rows in batches.values():
        assert len({row.encode_seconds for row in rows if row.label != "unpruned"}) == 1
        assert len({row.seconds for row in rows if row.label == "unpruned"}) == 1


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
    assert all(row.views is None for row in rows if row.label == "unpruned")
    for row in (row for row in rows if row.label == METHODS[0] and row.budget == {"ratio": 0.125}):
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
    from vtcframe import adapter_for
    from vtcframe.components.allocators import Even
    from vtcframe.components.ensemblers import Mean
    from vtcframe.components.scorers import Random
    from vtcframe.components.selectors import TopK
    from vtcframe.core.pipeline import Pipeline

    model, processor = llava_next
    evidence = adapter_for(model).observe(make_inputs(processor, SAMPLES["ragged several"][:2]))
    joined = Pipeline((Random(0),), Mean(), Even(), TopK(), across="sample")
    for pruner in (joined, RandomPruner()):
        pruned = pruner(evidence, Budget(tokens=7))
        for p in (0, 1):
            views = view_records(evidence.layout, pruned, p)
            kept = [kept for view in views for line in view["kept"] for kept in line]
            assert sum(map(bool, kept)) == 7
            assert sum(one is not None for one in kept) == evidence.layout.untouched[p]


def test_a_picture_that_is_cut_is_shown_as_the_model_sees_it(tmp_path):
    predictor = Predictor(Backbone("vtcframe:tiny", dtype="float32"))
    predictor.setup("predict")
    wide = Image.new("RGB", (192, 96), "red")
    wide.paste("blue", (48, 0, 144, 96))
    (shown,) = crop_pictures(predictor.processor, Sample("a", "?", (), pictures=(wide,)))
    assert shown.size == (96, 96)
    assert shown.getpixel((5, 50))[2] > 200 > 50 > shown.getpixel((5, 50))[0]


def test_a_sheet_that_cannot_be_finished_leaves_no_half_one_and_no_row_is_lost(tmp_path, monkeypatch):
    from vtcframe.runs import writer

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
