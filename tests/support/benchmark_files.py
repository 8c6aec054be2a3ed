"""Small downloads of each benchmark, as they are published."""

import json

from support.question_files import encoded, picture, saved, table

SHORT = "\nAnswer the question using a single word or phrase."


def pope(folder, strategies=("random", "popular", "adversarial"), **change):
    for strategy in strategies:
        lines = [
            {"question_id": number, "image": f"COCO_val2014_{number}.jpg", "text": "Is there a cat in the image?"}
            | {"label": label}
            | change
            for number, label in ((1, "yes"), (2, "no"))
        ]
        saved(folder / f"coco_pope_{strategy}.json", "".join(json.dumps(line) + "\n" for line in lines))
    return folder


def mme(folder):
    lines = "Is it a cat? Please answer yes or no.\tYes\nIs it a dog? Please answer yes or no.\tNo"
    saved(folder / "count" / "0001.txt", lines)
    saved(folder / "count" / "0001.png", picture(1))
    saved(folder / "landmark" / "questions_answers_YN" / "ab.txt", lines + "\n")
    saved(folder / "landmark" / "images" / "ab.jpg", picture(2))
    saved(folder / "eval_tool" / "0001.txt", "ignored")
    return folder


def vqa(folder, annotated=True):
    questions = [{"image_id": 42, "question": "what is it?", "question_id": 42000}]
    path = saved(
        folder / "v2_OpenEnded_mscoco_val2014_questions.json", {"data_subtype": "val2014", "questions": questions}
    )
    answers = [{"answer": "cat", "answer_confidence": "yes", "answer_id": n} for n in range(1, 11)]
    note = {"question_id": 42000, "answers": answers, "multiple_choice_answer": "cat", "answer_type": "other"}
    if annotated:
        saved(folder / "v2_mscoco_val2014_annotations.json", {"annotations": [note]})
    return path


def text_vqa(folder, **change):
    question = {"question_id": 5, "question": "what brand?", "image_id": "abc", "answers": ["nous"] * 10} | change
    return saved(folder / "TextVQA_0.5.1_val.json", {"dataset_type": "val", "data": [question]})


def gqa(folder, **change):
    question = {"imageId": "n1", "question": "Is it overcast?", "answer": "no", "isBalanced": True}
    question |= {"types": {"structural": "verify", "semantic": "global"}} | change
    return saved(
        folder / "testdev_balanced_questions.json", {"201307251": question, "2": question | {"isBalanced": False}}
    )


def mm_vet(folder, **change):
    question = {
        "imagename": "v1_0.png",
        "question": "What is x?",
        "answer": "-1",
        "capability": ["ocr", "math"],
    } | change
    return saved(folder / "mm-vet.json", {"v1_0": question})


def science_qa(folder, **change):
    problem = {
        "question": "Which one?",
        "choices": ["left", "right"],
        "answer": 1,
        "hint": "Look.",
        "image": "image.png",
    }
    problem |= {"subject": "natural science", "grade": "grade7"} | change
    saved(
        folder / "problems.json",
        {"5": problem, "6": problem | {"image": None}, "7": problem | {"hint": ""}, "8": problem},
    )
    saved(folder / "pid_splits.json", {"train": ["8"], "test": ["5", "6", "7"]})
    return folder


def seed(folder, **change):
    question = {
        "question_id": "101669",
        "question": "How many?",
        "data_id": "14_25",
        "data_type": "image",
        "answer": "C",
    }
    question |= {
        "choice_a": "One",
        "choice_b": "Two",
        "choice_c": "Three",
        "choice_d": 4,
        "question_type_id": 5,
    } | change
    kinds = {"Scene Understanding": 1, "Instances Counting": 5}
    return saved(folder / "SEED-Bench.json", {"questions": [question, {"data_type": "video"}], "question_type": kinds})


MMBENCH = {"index": 7, "question": "Which?", "hint": "", "A": "x", "B": "y", "C": "z", "D": "", "answer": "B"}


MMBENCH |= {"category": "ocr", "l2-category": "fine", "image": encoded(6), "source": "s", "comment": "", "split": "dev"}


def mmbench(folder, *rows):
    return table(
        folder / "mmbench_dev.tsv", *(rows or (MMBENCH, MMBENCH | {"index": 9, "hint": "Look.", "image": "7"}))
    )
