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
from vtcframe.explore import session as explore_answers
from vtcframe.explore.explain import Explainer, explain
from vtcframe.explore.page import answers
from vtcframe.explore.session import FRACTION, NONE, TOKENS, Outcome, Questioner, budget_of, methods, told
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


# What is asked and answered


@pytest.mark.parametrize(("kind", "amount", "budget"), [(TOKENS, 18, Budget(18)), (FRACTION, 0.25, Budget(None, 0.25))])
def test_answers_are_those_of_explain(questioner, kind, amount, budget):
    outcome = ask(questioner, ["VtcCls", "{name: RandomPruner, seed: 5}"], kind, amount)
    for (_, row), pruner in zip(outcome.methods, (VtcCls(last=3), RandomPruner(seed=5)), strict=True):
        told = explain("vtcframe:tiny", QUESTION, pruner, budget, [SCENE]).numbers
        assert outcome.unpruned.prediction == told["unpruned"]["answer"]
        assert (row.label, row.prediction) == (told["pruner"], told["pruned"]["answer"])
        assert row.visual_tokens == told["pruned"]["visual_tokens"]
        assert [view["kept"] for view in row.views] == [view["kept"] for view in told["views"]]
        assert [view["scores"] for view in row.views] == [view["scores"] for view in told["views"]]


def test_the_model_is_loaded_once_and_a_picture_encoded_once_for_both_methods(monkeypatch):
    loaded, encoded, load, encode = [], [], Backbone.load, Session.encode
    monkeypatch.setattr(Backbone, "load", lambda self: loaded.append(1) or load(self))
    monkeypatch.setattr(Session, "encode", lambda *arguments: encoded.append(1) or encode(*arguments))
    questioner = Questioner(Explainer("vtcframe:tiny"))
    for _ in range(3):
        ask(questioner)
    assert (len(loaded), len(encoded)) == (1, 4)  # the first question is asked twice: the untouched model goes first


def test_the_call_whose_seconds_are_shown_is_never_the_first(monkeypatch):
    explainer = Explainer("vtcframe:tiny")
    calls, answer = [], explainer.answers
    monkeypatch.setattr(explainer, "answers", lambda *given: calls.append(answer(*given)) or calls[-1])
    questioner = Questioner(explainer)
    assert ask(questioner).unpruned is calls[1].unpruned
    ask(questioner)
    assert len(calls) == 3


def test_pictures_are_read_as_by_explain_whatever_their_mode_or_side(questioner, tmp_path):
    scene = Image.open(SCENE).convert("RGB")
    exif = Image.Exif()
    exif[274] = 6  # lies on its side
    made = {
        "turned.jpg": (scene, {"exif": exif}),
        "alpha.png": (scene.convert("RGBA"), {}),
        "grey.gif": (scene.convert("L"), {}),
    }
    for name, (picture, options) in made.items():
        picture.save(tmp_path / name, **options)
        path = f"{tmp_path}/{name}"
        (_, row), _ = ask(questioner, picture=path).methods
        told = explain("vtcframe:tiny", QUESTION, VtcCls(last=3), Budget(18), [path]).numbers
        assert row.views[0]["kept"] == told["views"][0]["kept"]
        assert row.prediction == told["pruned"]["answer"]


def test_a_wide_picture_is_shown_whole_and_its_tokens_where_they_lie(questioner, tmp_path):
    Image.new("RGB", (192, 96), "red").save(tmp_path / "wide.png")
    outcome = ask(questioner, picture=f"{tmp_path}/wide.png")
    assert outcome.pictures[0].size == (384, 192)
    assert outcome.methods[0][1].views[0]["box"] == [0, 0.25, 1, 0.75]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"picture": None}, "there is no picture: upload one"),
        ({"picture": "lost.png"}, "cannot read the image lost.png: FileNotFoundError"),
        ({"question": ""}, "there is no question: type one"),
        ({"question": None}, "there is no question"),
        ({"question": "  \n "}, "there is no question"),
        ({"question": "what color is the dog ?"}, "the model does not know 'dog'; it can be asked: what color is"),
        ({"amount": None}, "there is no budget: type a number, or choose 'none'"),
        ({"amount": 0}, "the budget: tokens must be at least 1, got 0"),
        ({"amount": 1.5}, "the budget: 1.5 is no number of tokens: choose 'fraction'"),
        ({"amount": 144}, "a budget of 144 tokens drops nothing: there are only 144 visual tokens"),
        ({"amount": 9999}, "a budget of 9999 tokens drops nothing"),
        ({"kind": FRACTION, "amount": 18}, "must lie in (0, 1], got 18"),
        ({"kind": FRACTION, "amount": 1}, "a budget of 1 drops nothing"),
        ({"methods": ["VtcCsl", "VtcCsl"]}, "no pruner is called 'VtcCsl'. Did you mean VtcCls?"),
        ({"methods": [None, " "]}, "there is no method: choose one"),
        ({"kind": NONE}, "shares out a budget: give tokens or ratio"),
    ],
)
def test_what_cannot_be_asked_is_told_in_a_sentence(questioner, given, message):
    if given.get("kind") == NONE:
        given = given | {"methods": ["VtcCls", "VtcCls"]}
    with pytest.raises(UsageError) as error:
        ask(questioner, **given)
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert ask(questioner).unpruned.prediction == "square"  # it goes on


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
        ("SparseVlm", "SparseVlm has numbers for 192"),
        ("VisualExit", "takes no budget"),
        ("", "there is no method"),
        ("7", "7"),
    ],
)
def test_a_method_that_cannot_be_used_is_told_and_the_other_one_answers(questioner, method, message):
    (_, row), (name, reason) = ask(questioner, ["VtcCls", method]).methods
    assert row.visual_tokens == 18
    assert name == (method or "no method")
    assert message in reason
    assert "\n" not in reason
    assert "Traceback" not in reason


def test_what_a_stranger_s_component_raises_is_told_with_its_place(questioner):
    (_, reason), (_, row) = ask(questioner, [f"{{name: {Breaks.__module__}.Breaks}}", "VtcCls"]).methods
    assert "pruner Breaks() raised ZeroDivisionError: division by zero" in reason
    assert f"({Breaks.__module__}, line " in reason
    assert "\n" not in reason
    assert row.prediction == ask(questioner).unpruned.prediction == "square"


def test_what_nobody_foresaw_is_told_in_a_line_and_leaves_its_trace(questioner, monkeypatch, capsys):
    def broken(self, sample, plans):
        raise KeyError("two\nlines")

    monkeypatch.setattr(Explainer, "answers", broken)
    with pytest.raises(KeyError) as raised:
        ask(questioner)
    assert told(raised.value) == "KeyError: 'two\\nlines' (the terminal shows where)"
    assert "in broken" in capsys.readouterr().err
    assert told(RuntimeError()) == "RuntimeError: it says no more (the terminal shows where)"


def test_adaptive_methods_decide_by_themselves_and_others_ask_for_a_budget(questioner):
    (_, adaptive), (_, reason) = ask(questioner, ["PruMerge", "VtcCls"], NONE, None).methods
    assert 0 < adaptive.visual_tokens < 144
    assert adaptive.budget is None
    assert "Even shares out a budget: give tokens or ratio" in reason
    assert budget_of(NONE, 7) is None


def test_all_registered_pruners_can_be_chosen_those_of_plugins_too(monkeypatch):
    assert set(methods()) == {entry.name for entry in entries() if entry.kind == "pruner"}
    brought = Entry("pruner", "Breaks", f"{Breaks.__module__}:Breaks", "stranger", "1")
    monkeypatch.setattr(explore_answers, "entries", lambda: (*entries(), brought))
    assert "Breaks" in methods()
    assert methods() == sorted(methods(), key=str.casefold)


def test_each_registered_pruner_answers_or_says_why_not(questioner):
    for name in methods():
        ((_, found),) = ask(questioner, [name, "VtcCls"]).methods[:1]
        if isinstance(found, str):
            assert len(found.splitlines()) == 1
            assert "terminal" not in found, found  # all of ours are told, none traced
        else:
            assert found.views


def test_a_method_is_described_and_one_without_a_place_in_the_model_told_before_it_is_asked(questioner):
    assert questioner.about("VtcCls", FRACTION, 0.1).startswith("VTC-CLS (arXiv 2412.05819): ")
    assert questioner.about("{name: RandomPruner, seed: 3}", FRACTION, 0.1).startswith("Baseline: ")
    for method, message in (("PyramidDrop", "before layers 1 to 3"), ("VtcCsl", "Did you mean VtcCls?")):
        with pytest.raises(UsageError, match=re.escape(message)):
            questioner.about(method, FRACTION, 0.1)


def test_words_of_the_model_and_of_people_are_no_markup():
    row = Prediction(
        "a", None, "?", None, "unpruned", None, "<b>bold</b>", 4, 4, 0, [4, 4], seconds=0.25, encode_seconds=0.0
    )
    page = answers(Outcome(row, [Image.new("RGB", (8, 8))], [("<i>", "<u>wrong</u>")]))
    assert not re.search("<[biu]>", page)
    assert "&lt;b&gt;bold" in page


def test_layers_that_read_more_than_what_is_left_and_empty_answers_are_told(questioner):
    outcome = ask(questioner, ["FastV", "VtcCls"])
    shown = answers(replace(outcome, unpruned=replace(outcome.unpruned, prediction="")))
    assert shown.count("Mean over layers") == 1
    assert shown.count("(no words)") == 1
    assert shown.count("data:image/png;base64,") == 5
    assert f"{outcome.methods[1][1].seconds + outcome.methods[1][1].encode_seconds:.3g} s" in shown
