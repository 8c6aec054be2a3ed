"""The model of lmms-eval: how requests become prompts, and answers responses."""

import re
from functools import cache

import pytest
import torch
from lmms_eval.protocol import ChatMessages
from vtcframe_lmms_eval import model as harness_model
from vtcframe_lmms_eval.chat import Chat
from vtcframe_lmms_eval.model import VtcFrame

from support.lmms_eval_cases import ASKED, QUESTIONS, TINY, VTC, answered, model, request, scene, user
from vtcframe import VtcCls, compress
from vtcframe.inference.checkpoint import Backbone

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
    passed = [line for line in log if "is ignored" in line]
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
    assert "audio is not supported" in failed[2]
    assert (lm.sums["failed"], lm.sums["with pictures"]) == (3, 2)  # those of the batch that failed are counted once


def test_a_device_that_is_broken_ends_the_run_and_one_out_of_memory_does_not(monkeypatch):
    lm, generated = model(batch_size="2"), VtcFrame._generate
    said, expected = user(scene(0), "what shape is purple ?"), by_hand(ONE, [scene(0)], 18)

    def full(self, chats, *rest):
        if len(chats) > 1:
            raise torch.OutOfMemoryError("no room for two")
        return generated(self, chats, *rest)

    monkeypatch.setattr(VtcFrame, "_generate", full)
    assert answered(lm, said, said) == [expected, expected]
    if hasattr(torch, "AcceleratorError"):

        def broken(*given):
            raise torch.AcceleratorError("illegal memory access")

        monkeypatch.setattr(VtcFrame, "_generate", broken)
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
