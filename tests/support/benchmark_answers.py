"""Rows of benchmarks and values of scores."""

from vtcframe.data.results import Prediction


def row(prediction, answer=None, kind=None, name="1", **meta):
    return Prediction(name, kind, "?", answer, "unpruned", prediction=prediction, meta=meta)


def values(scores):
    return {name: score.value for name, score in scores.items()}


def mme(prediction, answer, kind="count", picture="1.jpg"):
    return row(prediction, answer, kind, picture=picture, question="Is it?")


def rotation(prediction, answer, group, turn, kind="ocr", rounds=3, l2="fine"):
    """Return a row of the question `group` with its options w, x, y, ... rotated by `turn`; w is the right one."""
    options = list("wxyz"[:rounds])
    options = options[turn:] + options[:turn]
    letter = None if answer is None else "ABCD"[options.index(answer)]
    meta = {"group": group, "rounds": rounds, "options": options, "question": "Which?", "l2": l2}
    return row(prediction, letter, kind, str(group + turn * 10**6), **meta)
