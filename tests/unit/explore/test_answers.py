"""The functions of the page of `vtcframe explore`."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from support.explore_page import Breaks
from vtcframe import Budget, RandomPruner, VtcCls
from vtcframe.assets import bundled
from vtcframe.data.results import Prediction
from vtcframe.errors import UsageError
from vtcframe.explore import session as explore_session
from vtcframe.explore.explainer import Explainer, explain
from vtcframe.explore.page import render_answers
from vtcframe.explore.session import (
    FRACTION,
    NONE,
    TOKENS,
    AnswerPair,
    Questioner,
    describe_error,
    method_names,
    parse_budget,
)
from vtcframe.inference.checkpoint import Backbone
from vtcframe.inference.session import Session
from vtcframe.registry import Entry, entries

pytest.importorskip("gradio", reason="the extra `explore` is not installed")


SCENES = Path(bundled("vtcframe:questions")) / "images"


SCENE = str(SCENES / "scene-000.png")


QUESTION = "what shape is purple ?"


@pytest.fixture(scope="module")
def questioner():
    return Questioner(Explainer("vtcframe:tiny"))


def ask(questioner, methods=("VtcCls", "UniformPruner"), kind=TOKENS, amount=18, picture=SCENE, question=QUESTION):
    return questioner.ask(picture, question, methods, kind, amount)


@pytest.mark.parametrize(("kind", "amount", "budget"), [(TOKENS, 18, Budget(18)), (FRACTION, 0.25, Budget(None, 0.25))])
def test_answers_are_those_of_explain(questioner, kind, amount, budget):
    outcome = ask(questioner, ["VtcCls", "{name: RandomPruner, seed: 5}"], kind, amount)
    for (_, row), pruner in zip(outcome.methods, (VtcCls(last=3), RandomPruner(seed=5)), strict=True):
        numbers = explain("vtcframe:tiny", QUESTION, pruner, budget, [SCENE]).numbers
        assert outcome.unpruned.prediction == numbers["unpruned"]["answer"]
        assert (row.label, row.prediction) == (numbers["pruner"], numbers["pruned"]["answer"])
        assert row.visual_tokens == numbers["pruned"]["visual_tokens"]
        assert [view["kept"] for view in row.views] == [view["kept"] for view in numbers["views"]]
        assert [view["scores"] for view in row.views] == [view["scores"] for view in numbers["views"]]


def test_the_model_is_loaded_once_and_a_picture_encoded_once_for_both_methods(monkeypatch):
    loads, encodes = [], []
    load, encode = Backbone.load, Session.encode
    monkeypatch.setattr(Backbone, "load", lambda self: loads.append(1) or load(self))
    monkeypatch.setattr(Session, "encode", lambda *arguments: encodes.append(1) or encode(*arguments))
    questioner = Questioner(Explainer("vtcframe:tiny"))
    for _ in range(3):
        ask(questioner)
    assert (len(loads), len(encodes)) == (1, 4)  # the first question is answered twice, the first time as a warm-up


def test_the_displayed_seconds_are_never_those_of_the_first_call(monkeypatch):
    explainer = Explainer("vtcframe:tiny")
    calls, answer = [], explainer.answer
    monkeypatch.setattr(explainer, "answer", lambda *arguments: calls.append(answer(*arguments)) or calls[-1])
    questioner = Questioner(explainer)
    assert ask(questioner).unpruned is calls[1].unpruned
    ask(questioner)
    assert len(calls) == 3


def test_pictures_of_any_mode_and_orientation_are_decoded_as_by_explain(questioner, tmp_path):
    scene = Image.open(SCENE).convert("RGB")
    exif = Image.Exif()
    exif[274] = 6  # rotated by 90 degrees
    pictures = {
        "turned.jpg": (scene, {"exif": exif}),
        "alpha.png": (scene.convert("RGBA"), {}),
        "grey.gif": (scene.convert("L"), {}),
    }
    for name, (picture, options) in pictures.items():
        picture.save(tmp_path / name, **options)
        path = f"{tmp_path}/{name}"
        (_, row), _ = ask(questioner, picture=path).methods
        numbers = explain("vtcframe:tiny", QUESTION, VtcCls(last=3), Budget(18), [path]).numbers
        assert row.views[0]["kept"] == numbers["views"][0]["kept"]
        assert row.prediction == numbers["pruned"]["answer"]


def test_a_wide_picture_is_shown_completely_with_its_tokens_in_place(questioner, tmp_path):
    Image.new("RGB", (192, 96), "red").save(tmp_path / "wide.png")
    outcome = ask(questioner, picture=f"{tmp_path}/wide.png")
    assert outcome.pictures[0].size == (384, 192)
    assert outcome.methods[0][1].views[0]["box"] == [0, 0.25, 1, 0.75]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"picture": None}, "there is no picture: upload one"),
        ({"picture": "lost.png"}, "cannot read the image lost.png: FileNotFoundError"),
        ({"question": ""}, "there is no question: type one"),
        ({"question": None}, "there is no question"),
        ({"question": "  \n "}, "there is no question"),
        ({"question": "what color is the dog ?"}, "the model does not know 'dog'; it can be asked: what color is"),
        ({"amount": None}, "there is no budget: type a number, or choose 'none'"),
        ({"amount": 0}, "the budget: tokens must be at least 1, got 0"),
        ({"amount": 1.5}, "the budget: 1.5 is not a number of tokens: choose 'fraction'"),
        ({"amount": 144}, "a budget of 144 tokens drops nothing: there are only 144 visual tokens"),
        ({"amount": 9999}, "a budget of 9999 tokens drops nothing"),
        ({"kind": FRACTION, "amount": 18}, "must lie in (0, 1], got 18"),
        ({"kind": FRACTION, "amount": 1}, "a budget of 1 drops nothing"),
        ({"methods": ["VtcCsl", "VtcCsl"]}, "no pruner is called 'VtcCsl'. Did you mean VtcCls?"),
        ({"methods": [None, " "]}, "there is no method: choose one"),
        ({"kind": NONE}, "shares out a budget: give tokens or ratio"),
    ],
)
def test_questions_that_cannot_be_answered_raise_a_one_line_error(questioner, changes, message):
    if changes.get("kind") == NONE:
        changes = changes | {"methods": ["VtcCls", "VtcCls"]}
    with pytest.raises(UsageError) as error:
        ask(questioner, **changes)
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert ask(questioner).unpruned.prediction == "square"  # the next question works


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ("VtcCsl", "no pruner is called 'VtcCsl'. Did you mean VtcCls?"),
        ("{name: VtcCls, lst: 3}", "'lst'"),
        ("{name: VtcCls, last: 0}", "last counts blocks"),
        ("{name: VtcCls, last: 9}", "a block beyond the 3"),
        ("{name: VtcCls, last: [3}", "VtcCls"),
        ("TopK", "no pruner is called 'TopK'"),
        ("Pipeline", "the following arguments are required: scorers"),
        ("ToMe", "encoder:3 is none of the 3 blocks"),
        ("PyramidDrop", "can be pruned before layers 1 to 3"),
        ("SparseVlm", "SparseVlm has published numbers only for 192"),
        ("VisualExit", "takes no budget"),
        ("", "there is no method"),
        ("7", "7"),
    ],
)
def test_a_method_that_fails_is_reported_and_the_other_one_answers(questioner, method, message):
    (_, row), (name, reason) = ask(questioner, ["VtcCls", method]).methods
    assert row.visual_tokens == 18
    assert name == (method or "no method")
    assert message in reason
    assert "\n" not in reason
    assert "Traceback" not in reason


def test_errors_of_third_party_components_are_reported_with_their_location(questioner):
    (_, reason), (_, row) = ask(questioner, [f"{{name: {Breaks.__module__}.Breaks}}", "VtcCls"]).methods
    assert "pruner Breaks() raised ZeroDivisionError: division by zero" in reason
    assert f"({Breaks.__module__}, line " in reason
    assert "\n" not in reason
    assert row.prediction == ask(questioner).unpruned.prediction == "square"


def test_unexpected_errors_are_reported_in_one_line_with_a_traceback_in_the_terminal(questioner, monkeypatch, capsys):
    def broken(self, sample, plans):
        raise KeyError("two\nlines")

    monkeypatch.setattr(Explainer, "answer", broken)
    with pytest.raises(KeyError) as raised:
        ask(questioner)
    assert describe_error(raised.value) == "KeyError: 'two\\nlines' (see the traceback in the terminal)"
    assert "in broken" in capsys.readouterr().err
    assert describe_error(RuntimeError()) == "RuntimeError: no message (see the traceback in the terminal)"


def test_adaptive_methods_need_no_budget_and_other_methods_require_one(questioner):
    (_, adaptive), (_, reason) = ask(questioner, ["PruMerge", "VtcCls"], NONE, None).methods
    assert 0 < adaptive.visual_tokens < 144
    assert adaptive.budget is None
    assert "Even shares out a budget: give tokens or ratio" in reason
    assert parse_budget(NONE, 7) is None


def test_all_registered_pruners_can_be_chosen_including_those_of_plugins(monkeypatch):
    assert set(method_names()) == {pruner.name for pruner in entries() if pruner.kind == "pruner"}
    entry = Entry("pruner", "Breaks", f"{Breaks.__module__}:Breaks", "plugin", "1")
    monkeypatch.setattr(explore_session, "entries", lambda: (*entries(), entry))
    assert "Breaks" in method_names()
    assert method_names() == sorted(method_names(), key=str.casefold)


def test_each_registered_pruner_answers_or_reports_a_usage_error(questioner):
    for name in method_names():
        ((_, result),) = ask(questioner, [name, "VtcCls"]).methods[:1]
        if isinstance(result, str):
            assert len(result.splitlines()) == 1
            assert "terminal" not in result, result  # no unexpected errors
        else:
            assert result.views


def test_a_method_is_described_and_an_unsupported_one_is_reported_before_the_question(questioner):
    assert questioner.describe("VtcCls", FRACTION, 0.1).startswith("VTC-CLS (arXiv 2412.05819): ")
    assert questioner.describe("{name: RandomPruner, seed: 3}", FRACTION, 0.1).startswith("Baseline: ")
    for method, message in (("PyramidDrop", "before layers 1 to 3"), ("VtcCsl", "Did you mean VtcCls?")):
        with pytest.raises(UsageError, match=re.escape(message)):
            questioner.describe(method, FRACTION, 0.1)


def test_answers_and_inputs_are_escaped():
    row = Prediction(
        "a", None, "?", None, "unpruned", None, "<b>bold</b>", 4, 4, 0, [4, 4], seconds=0.25, encode_seconds=0.0
    )
    page = render_answers(AnswerPair(row, [Image.new("RGB", (8, 8))], [("<i>", "<u>wrong</u>")]))
    assert not re.search("<[biu]>", page)
    assert "&lt;b&gt;bold" in page


def test_the_mean_over_layers_and_empty_answers_are_shown(questioner):
    outcome = ask(questioner, ["FastV", "VtcCls"])
    html = render_answers(replace(outcome, unpruned=replace(outcome.unpruned, prediction="")))
    assert html.count("Mean over layers") == 1
    assert html.count("(empty answer)") == 1
    assert html.count("data:image/png;base64,") == 5
    assert f"{outcome.methods[1][1].seconds + outcome.methods[1][1].encode_seconds:.3g} s" in html
