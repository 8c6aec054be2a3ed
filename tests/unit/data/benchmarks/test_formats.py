"""Benchmark files in their downloaded formats, at a small size."""

import json
import pickle

import pytest

from support.benchmark_files import MMBENCH, gqa, mm_vet, mmbench, mme, pope, science_qa, seed, text_vqa, vqa
from support.question_files import levels, picture, saved, table
from vtcframe import Gqa, MmBench, Mme, MmVet, Pope, ScienceQa, SeedBench, TextVqa, VqaV2
from vtcframe.config.short_names import expand
from vtcframe.data.benchmarks.base import ImageFolder
from vtcframe.data.datamodule import Questions
from vtcframe.errors import UsageError
from vtcframe.registry import entries

SHORT = "\nAnswer the question using a single word or phrase."


LETTER = "\nAnswer with the option's letter from the given choices directly."


def test_a_benchmark_is_named_in_the_configuration_by_its_class():
    hints = {"data": Questions}
    assert expand({"data": {"benchmark": {"name": "Pope", "prompt": "?"}}}, hints)["data"]["benchmark"] == {
        "class_path": "vtcframe.data.benchmarks.yes_or_no.Pope",
        "init_args": {"prompt": "?"},
    }
    with pytest.raises(UsageError, match=r"data.benchmark: no benchmark is called 'POPE'. .*Installed: .*TextVqa"):
        expand({"data": {"benchmark": "POPE"}}, hints)


def test_pope_is_read_from_its_three_files_or_from_one(tmp_path):
    samples = Pope().read(pope(tmp_path / "coco"), tmp_path / "val2014")
    ids = ["random/1", "random/2", "popular/1", "popular/2", "adversarial/1", "adversarial/2"]
    assert [sample.id for sample in samples] == ids
    assert samples[3].question == "Is there a cat in the image?" + SHORT
    assert (samples[3].answer, samples[3].type) == ("no", "popular")
    assert samples[3].images == (tmp_path / "val2014" / "COCO_val2014_2.jpg",)
    (sample, _) = Pope(prompt=" ?").read(tmp_path / "coco" / "coco_pope_popular.json", None)
    assert (sample.id, sample.question[-2:], sample.images[0].parent) == ("popular/1", " ?", tmp_path / "coco")


def test_mme_is_read_from_both_of_its_layouts(tmp_path):
    samples = Mme().read(mme(tmp_path), None)
    assert [sample.id for sample in samples] == ["count/0001/1", "count/0001/2", "landmark/ab/1", "landmark/ab/2"]
    assert [levels(sample) for sample in samples] == [[1], [1], [2], [2]]
    assert [sample.answer for sample in samples] == ["Yes", "No"] * 2
    assert samples[3].question == "Is it a dog?" + SHORT
    assert samples[3].meta == {"picture": "ab.jpg", "question": "Is it a dog? Please answer yes or no."}
    (first, *_) = Mme().read(tmp_path, tmp_path / "elsewhere")
    assert first.images == (tmp_path / "elsewhere" / "count" / "0001.jpg",)


def test_vqa_v2_is_read_with_the_annotations_beside_it(tmp_path):
    (sample,) = VqaV2().read(vqa(tmp_path), None)
    assert (sample.id, sample.question, sample.answer, sample.type) == ("42000", "what is it?" + SHORT, "cat", "other")
    assert sample.images == (tmp_path / "COCO_val2014_000000000042.jpg",)
    assert sample.meta == {"answers": ["cat"] * 10}
    (unknown,) = VqaV2().read(vqa(tmp_path / "separate", annotated=False), None)
    assert (unknown.answer, unknown.type, unknown.meta) == (None, None, {})
    questions = {"data_subtype": "test-dev2015", "questions": [{"image_id": 1, "question": "?", "question_id": 10}]}
    (test,) = VqaV2().read(saved(tmp_path / "v2_OpenEnded_mscoco_test-dev2015_questions.json", questions), None)
    assert test.images == (tmp_path / "COCO_test2015_000000000001.jpg",)


def test_text_vqa_is_read_with_or_without_ocr_tokens(tmp_path):
    path = text_vqa(tmp_path)
    (sample,) = TextVqa().read(path, tmp_path / "train_images")
    assert (sample.id, sample.question, sample.answer) == ("5", "what brand?" + SHORT, None)
    assert sample.images == (tmp_path / "train_images" / "abc.jpg",)
    assert sample.meta == {"answers": ["nous"] * 10}
    ocr = saved(tmp_path / "ocr.json", {"data": [{"image_id": "abc", "ocr_tokens": ["NOUS", "les"]}]})
    (sample,) = TextVqa(ocr=str(ocr)).read(path, None)
    assert sample.question == "what brand?\nReference OCR token: NOUS, les" + SHORT
    saved(path, {"data": [{"question_id": 5, "question": "?", "image_id": "abc"}]})
    assert TextVqa().read(path, None)[0].meta == {}


def test_gqa_is_read_with_its_balanced_questions_only(tmp_path):
    (sample,) = Gqa().read(gqa(tmp_path), tmp_path / "images")
    assert (sample.id, sample.question, sample.type) == ("201307251", "Is it overcast?" + SHORT, "verify")
    assert (sample.answer, sample.images) == ("no", (tmp_path / "images" / "n1.jpg",))
    bare = saved(tmp_path / "submission_all_questions.json", {"9": {"imageId": "n1", "question": "?"}})
    (unknown,) = Gqa().read(bare, None)
    assert (unknown.id, unknown.answer, unknown.type) == ("9", None, None)


def test_mm_vet_is_read(tmp_path):
    (sample,) = MmVet().read(mm_vet(tmp_path), None)
    assert (sample.id, sample.question, sample.answer) == ("v1_0", "What is x?", "-1")
    assert sample.images == (tmp_path / "images" / "v1_0.png",)


def test_science_qa_is_read_with_the_questions_of_a_split_that_have_a_picture(tmp_path):
    first, second = ScienceQa().read(science_qa(tmp_path), None)
    assert (first.id, first.answer, first.type) == ("5", "B", "NAT")
    assert first.question == "Context: Look.\nWhich one?\nA. left\nB. right" + LETTER
    assert second.question == "Which one?\nA. left\nB. right" + LETTER
    assert first.images == (tmp_path / "images" / "test" / "5" / "image.png",)
    assert first.meta == {"options": ["left", "right"], "hint": True, "grade": 7}
    (train,) = ScienceQa(split="train").read(tmp_path, tmp_path / "train")
    assert (train.id, train.images) == ("8", (tmp_path / "train" / "8" / "image.png",))


def test_seed_bench_is_read_with_its_questions_about_images(tmp_path):
    (sample,) = SeedBench().read(seed(tmp_path), None)
    assert (sample.id, sample.answer, sample.type) == ("101669", "C", "Instances Counting")
    assert sample.question == "How many?\nA. One\nB. Two\nC. Three\nD. 4" + LETTER
    assert sample.images == (tmp_path / "SEED-Bench-image" / "14_25",)


def test_mmbench_is_read_with_a_rotation_for_each_option(tmp_path):
    samples = MmBench().read(mmbench(tmp_path), None)
    assert [sample.id for sample in samples] == ["7", "1000007", "2000007", "9", "1000009", "2000009"]
    assert [sample.meta["options"] for sample in samples[:3]] == [["x", "y", "z"], ["y", "z", "x"], ["z", "x", "y"]]
    assert [sample.answer for sample in samples[:3]] == ["B", "A", "C"]  # the letter of y in each rotation
    assert samples[1].question == "Which?\nA. y\nB. z\nC. x" + LETTER
    assert samples[3].question.startswith("Look.\nWhich?\nA. x")
    assert [levels(sample) for sample in samples] == [[6]] * 6  # question 9 uses the image of 7
    assert {(sample.type, sample.meta["l2"], sample.meta["rounds"]) for sample in samples} == {("ocr", "fine", 3)}


def test_mmbench_uses_existing_rotations_and_groups_them(tmp_path):
    rotated = MMBENCH | {"index": 1000007, "A": "y", "B": "x", "answer": "A"}
    single = MMBENCH | {"index": 8, "answer": ""}
    samples = MmBench().read(mmbench(tmp_path, MMBENCH, single, rotated), None)
    assert [(sample.id, sample.answer) for sample in samples] == [("7", "B"), ("1000007", "A"), ("8", None)]
    assert [(sample.meta["group"], sample.meta["rounds"]) for sample in samples] == [(7, 2), (7, 2), (8, 1)]


def _missing_problem(folder):
    """Write a split with a question that is not among the problems."""
    return saved(folder / "pid_splits.json", {"test": ["9"]}).parent


BROKEN = [  # benchmark, function that writes its files, error message
    (
        Pope(),
        lambda f: pope(f, label="maybe"),
        r"coco_pope_random.json, line 1: the label must be yes or no, got 'maybe'",
    ),
    (
        Pope(),
        lambda f: pope(f, question_id=1),
        r"_random.json, line 2: the id 'random/1' is also that of .*, line 1",
    ),
    (Pope(), lambda f: pope(f, image=3), r"line 1: the field 'image' must be str, got 3"),
    (Pope(), lambda f: pope(f, strategies=()), r"holds no questions"),
    (
        Pope(),
        lambda f: saved(f / "coco_pope_random.json", "[1]"),
        r"line 1: a JSON object with the field 'question_id'",
    ),
    (
        Mme(),
        lambda f: saved(f / "count" / "1.txt", "Is it? Yes\nIs it?\tNo").parent.parent,
        r"1.txt, line 1: a line must hold",
    ),
    (Mme(), lambda f: saved(f / "count" / "1.txt", "Is it?\tMaybe\nOr?\tNo").parent.parent, r"Yes or No, got 'Is it\?"),
    (
        Mme(),
        lambda f: saved(f / "count" / "1.txt", "Is it?\tNo").parent.parent,
        r"1.txt holds 1 questions: each picture must have two",
    ),
    (Mme(), lambda f: f, r"holds no questions"),
    (VqaV2(), lambda f: saved(f / "q.json", "{"), r"q.json is no JSON: "),
    (VqaV2(), lambda f: f / "q.json", r"cannot read the questions .*q.json"),
    (
        VqaV2(),
        lambda f: saved(f / "q.json", {"data_subtype": "x"}),
        r"q.json: there is no field 'questions', only 'data_sub",
    ),
    (TextVqa(), lambda f: text_vqa(f, answers=["a"] * 9), r"val.json, question 1: .* ten reference answers, .*\['a'"),
    (TextVqa(), lambda f: text_vqa(f, answers=[1] * 10), r"question 1: a question needs ten reference answers"),
    (TextVqa(), lambda f: text_vqa(f, question=None), r"question 1: the field 'question' must be str, got None"),
    (Gqa(), lambda f: gqa(f, types={}), r"question 201307251: there is no field 'structural', only nothing"),
    (Gqa(), lambda f: gqa(f, answer=3), r"question 201307251: the field 'answer' must be .*, got 3"),
    (Gqa(), lambda f: saved(f / "q.json", {"1": 3}), r"question 1: a JSON object with .* 'imageId' .* this is a int"),
    (Gqa(), lambda f: saved(f / "q.json", []), r"q.json holds a list, and not an object of questions"),
    (MmVet(), lambda f: mm_vet(f, imagename=None), r"mm-vet.json, question v1_0: the field 'imagename' must be str"),
    (ScienceQa(), lambda f: science_qa(f, answer=2), r"pid_splits.json, question 5: the answer must be the index"),
    (
        ScienceQa(),
        lambda f: science_qa(f, subject="art"),
        r"question 5: not a subject and grade of ScienceQA: 'art', 'gr",
    ),
    (ScienceQa(split="val"), science_qa, r"pid_splits.json: there is no field 'val', only 'train', 'test'"),
    (
        ScienceQa(),
        lambda f: _missing_problem(science_qa(f)),
        r"question 9: a JSON object with the field 'question' .* NoneType",
    ),
    (SeedBench(), lambda f: saved(f / "q.json", {"questions": []}), r"q.json: there is no field 'question_type'"),
    (
        SeedBench(),
        lambda f: seed(f, answer="E"),
        r"SEED-Bench.json, question 1: not an answer and type of SEED-Bench: 'E'",
    ),
    (SeedBench(), lambda f: seed(f, answer="AB"), r"question 1: not an answer and type of SEED-Bench: 'AB'"),
    (SeedBench(), lambda f: seed(f, question_type_id=3), r"question 1: not an answer and type of SEED-Bench: 'C', 3"),
    (MmBench(), lambda f: mmbench(f, MMBENCH | {"answer": "D"}), r"tsv, row 1: the answer must be one of ABC, got 'D'"),
    (
        MmBench(),
        lambda f: mmbench(f, MMBENCH | {"index": "x"}),
        r"tsv, row 1: the column index must hold the number of the question, got 'x'",
    ),
    (
        MmBench(),
        lambda f: mmbench(f, MMBENCH | {"image": "3"}),
        r"row 1: .* row with the index 3, which does not exist",
    ),
    (
        MmBench(),
        lambda f: mmbench(f, MMBENCH, MMBENCH),
        r"row 2: the id '7' is also that of .*mmbench_dev.tsv, row 1",
    ),
    (
        MmBench(),
        lambda f: mmbench(f, MMBENCH | {"B": "nan"}),
        r"row 1: a question needs at least the options A and B, .*\['x'\]",
    ),
    (MmBench(), lambda f: table(f / "q.tsv", {"index": 1, "A": "x", "B": "y"}), r"row 1: there is no field 'question'"),
]


@pytest.mark.parametrize(
    ("benchmark", "write_files", "message"), BROKEN, ids=lambda value: getattr(value, "__name__", str(value)[:30])
)
def test_errors_in_a_benchmarks_file_name_the_file_and_the_question(tmp_path, benchmark, write_files, message):
    with pytest.raises(UsageError, match=message):
        benchmark.read(write_files(tmp_path), None)


def test_vqa_v2_rejects_annotations_of_other_questions(tmp_path):
    path = vqa(tmp_path)
    saved(tmp_path / "v2_mscoco_val2014_annotations.json", {"annotations": [{"question_id": 1, "answers": []}]})
    with pytest.raises(UsageError, match=r"question 1: question_id 42000 is not in the annotations"):
        VqaV2().read(path, None)
    saved(tmp_path / "v2_mscoco_val2014_annotations.json", {"annotations": [{}]})
    with pytest.raises(UsageError, match=r"annotations.json: there is no field 'question_id'"):
        VqaV2().read(path, None)


def test_text_vqa_rejects_ocr_tokens_of_other_pictures(tmp_path):
    ocr = saved(tmp_path / "ocr.json", {"data": []})
    with pytest.raises(UsageError, match=r"question 1: .*ocr.json has no entry for the picture 'abc'"):
        TextVqa(ocr=str(ocr)).read(text_vqa(tmp_path), None)
    saved(ocr, {"data": [{"image_id": 3}]})
    with pytest.raises(UsageError, match=r"ocr.json: the field 'image_id' must be str, got 3"):
        TextVqa(ocr=str(ocr)).read(text_vqa(tmp_path), None)


MAKERS = {"Pope": pope, "Mme": mme, "VqaV2": vqa, "TextVqa": text_vqa, "Gqa": gqa, "MmVet": mm_vet, "MmBench": mmbench}


MAKERS |= {"ScienceQa": science_qa, "SeedBench": seed}


@pytest.mark.parametrize(
    "entry", [entry for entry in entries() if entry.kind == "benchmark"], ids=lambda entry: entry.name
)
def test_samples_of_every_registered_benchmark_can_be_pickled_and_written_as_json(tmp_path, entry):
    if entry.name == "ImageFolder":
        samples = ImageFolder("?").read(saved(tmp_path / "a.png", picture()).parent, None)
    else:
        samples = entry.load()().read(MAKERS[entry.name](tmp_path), None)
    assert pickle.loads(pickle.dumps(samples)) == samples
    assert [json.loads(json.dumps(sample.meta)) for sample in samples] == [sample.meta for sample in samples]
    assert len({sample.id for sample in samples}) == len(samples) > 0
