"""Rows and values of benchmarks."""

from vtcframe.data.results import Prediction


def row(prediction, answer=None, kind=None, name="1", **meta):
    return Prediction(name, kind, "?", answer, "unpruned", prediction=prediction, meta=meta)


def values(scores):
    return {name: one.value for name, one in scores.items()}


# MME


def mme(prediction, answer, kind="count", picture="1.jpg"):
    return row(prediction, answer, kind, picture=picture, question="Is it?")


def rotation(said, right, group, turn, kind="ocr", rounds=3, l2="fine"):
    """A row of the question `group`, whose options w, x, y, ... are turned by so many places; the right one is w."""
    options = list("wxyz"[:rounds])
    options = options[turn:] + options[:turn]
    letter = None if right is None else "ABCD"[options.index(right)]
    meta = {"group": group, "rounds": rounds, "options": options, "question": "Which?", "l2": l2}
    return row(said, letter, kind, str(group + turn * 10**6), **meta)
