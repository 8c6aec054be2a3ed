"""Habits of transformers' users: pipelines, chats, streamers, adapters of peft, offloading; with a compressed model."""

import copy
import gc
import io
import logging
import pickle
import weakref
from threading import Thread

import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor, GenerationConfig, TextIteratorStreamer, pipeline

from support.models import backbone
from vtcframe import FastV, VtcCls, compress
from vtcframe.assets import bundled
from vtcframe.testing import check_restored, make_inputs
from vtcframe.testing.tiny_models.llava_families import SAMPLES
from vtcframe.testing.tiny_models.other_families import BACKBONES
from vtcframe.testing.tiny_models.samples import _AROUND

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # peft's to mend
TASK = "image-text-to-text"
GREEDY = {"do_sample": False, "max_new_tokens": 4}
FAMILIES = "llava", "qwen2_5_vl", "internvl"
PRUNERS = {"projector": VtcCls(last=2), "llm": FastV(layer=2)}
TEMPLATE = """\
{% for message in messages %}{{ message['role'] + ' : ' }}{% for part in message['content'] %}\
{% if part['type'] == 'image' %}PICTURE {% else %}{{ part['text'] + ' ' }}{% endif %}{% endfor %}{% endfor %}"""


@pytest.fixture(scope="module")
def tiny():
    path = bundled("vtcframe:tiny")
    return AutoModelForImageTextToText.from_pretrained(path, dtype=torch.float32), AutoProcessor.from_pretrained(path)


@pytest.fixture(params=FAMILIES)
def chatty(request):
    """A tiny family whose processor writes chats, and chats with one picture, with two and with other questions."""
    model, processor = backbone(request.param)
    image = str(processor.image_token)
    processor.chat_template = TEMPLATE.replace("PICTURE", _AROUND.get(image, image))
    yield model, processor
    processor.chat_template = None


def chat(question, *pictures):
    content = [*({"type": "image", "image": picture} for picture in pictures), {"type": "text", "text": question}]
    return [{"role": "user", "content": content}]


def chats():
    picture, (one, other) = SAMPLES["one"][0][1][0], SAMPLES["ragged several"][0][1][:2]
    return [chat("what is in the image", picture), chat("which of two pictures shows a dog", one, other)]


def by_hand(compressed, processor, messages):
    inputs = processor.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    return compressed.generate(**inputs, **GREEDY)[0]


@pytest.mark.parametrize("site", PRUNERS)
@pytest.mark.parametrize("batch_size", [1, 2])
def test_a_pipeline_answers_what_generate_answers(chatty, site, batch_size):
    model, processor = chatty
    if site == "projector" and "qwen" in model.config.model_type:
        pruner = VtcCls(last=2, query="proxy")  # Qwen's towers have no [CLS]
    else:
        pruner = PRUNERS[site]
    compressed = compress(model, pruner, tokens=3)
    want = [by_hand(compressed, processor, messages) for messages in chats()]
    with check_restored(model):
        pipe = pipeline(TASK, model=compressed, processor=processor, device="cpu")
        got = pipe(chats(), batch_size=batch_size, return_tensors=True, generate_kwargs=GREEDY)
    for (one,), answer in zip(got, want, strict=True):
        assert one["generated_token_ids"][-4:].tolist() == answer[-4:].tolist()  # a batch is padded in front
    assert set(compressed.last.tokens_after.tolist()) == {3}
    untouched = [by_hand(model, processor, messages) for messages in chats()]
    assert any(not torch.equal(*pair) for pair in zip(want, untouched, strict=True)), "pruning changed nothing"


def test_a_pipeline_of_the_bundled_model_returns_text_as_it_always_does(tiny):
    model, processor = tiny
    compressed, picture = compress(model, VtcCls(last=3), tokens=18), Image.new("RGB", (96, 96), "gray")
    pipe = pipeline(TASK, model=compressed, processor=processor, device="cpu")
    question = "how many shapes are there ?"
    (new,) = pipe(text=chat(question, picture), max_new_tokens=1, return_full_text=False)
    (full,) = pipe(text=chat(question, picture), max_new_tokens=1)
    assert full["generated_text"][-1] == {"role": "assistant", "content": new["generated_text"]}
    (bare,) = pipe(images=picture, text=f"user : <image> {question} assistant :", max_new_tokens=1)
    assert bare["generated_text"].endswith(new["generated_text"])
    (beams,) = pipe(text=chat(question, picture), generate_kwargs={"num_beams": 2, "max_new_tokens": 1})
    assert beams["generated_text"][-1]["role"] == "assistant"
    assert compressed.last.tokens_after.tolist() == [18]
    assert "float32" in repr(pipe)


def test_a_pipeline_may_be_given_its_compressed_model_later_and_then_logs_nothing(tiny, caplog):
    model, processor = tiny
    with caplog.at_level(logging.WARNING, "transformers"):
        pipe = pipeline(TASK, model=model, processor=processor, device="cpu")
        pipe.model = compress(pipe.model, VtcCls(last=3), tokens=18)
        pipe(text=chat("how many shapes are there ?", Image.new("RGB", (96, 96))), max_new_tokens=1)
    assert not caplog.records
    assert pipe.model.last.tokens_after.tolist() == [18]


def test_a_chat_without_pictures_is_answered_by_the_model_itself(tiny):
    model, processor = tiny
    compressed = compress(model, VtcCls(last=3), tokens=18)
    compressed.last = "of an earlier one"
    inputs = processor(text="user : what color is the ring ? assistant :", return_tensors="pt")
    assert torch.equal(compressed.generate(**inputs, **GREEDY), model.generate(**inputs, **GREEDY))
    assert compressed.last is None
    with pytest.raises(ValueError, match="placeholders"):  # a picture that no prompt has a place for is no text alone
        compressed.generate(**inputs, pixel_values=torch.zeros(1, 3, 96, 96))
    pipe = pipeline(TASK, model=compressed, processor=processor, device="cpu")
    mixed = [chat("what color is the ring ?"), chat("what color is the ring ?", Image.new("RGB", (96, 96)))]
    assert len(pipe(mixed, max_new_tokens=1)) == 2
    assert compressed.last.tokens_after.tolist() == [18]


def test_a_streamer_in_a_thread_yields_the_answer(tiny):
    model, processor = tiny
    compressed = compress(model, VtcCls(last=3), tokens=18)
    inputs = processor.apply_chat_template(
        chat("what color is the ring ?", Image.new("RGB", (96, 96), "gray")),
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    streamer = TextIteratorStreamer(processor.tokenizer, skip_prompt=True, skip_special_tokens=True, timeout=60)
    thread = Thread(target=compressed.generate, kwargs={**inputs, **GREEDY, "streamer": streamer})
    thread.start()
    streamed = "".join(streamer)
    thread.join()
    new = compressed.generate(**inputs, generation_config=GenerationConfig(**GREEDY))[:, inputs["input_ids"].shape[1] :]
    assert streamed.strip() == processor.batch_decode(new, skip_special_tokens=True)[0].strip() != ""


# What else is asked of a model


@pytest.fixture
def compressed(llava):
    return compress(llava[0], VtcCls(last=2), tokens=5)


def test_everything_but_generate_is_the_models_own(compressed):
    model = compressed.model
    for name in ("config", "generation_config", "device", "dtype", "name_or_path", "main_input_name"):
        assert getattr(compressed, name) == getattr(model, name)
    assert compressed.config is model.config
    assert compressed.can_generate()
    assert compressed.num_parameters() == model.num_parameters()
    assert next(iter(compressed.parameters())) is next(iter(model.parameters()))
    assert not hasattr(compressed, "hf_device_map")
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = compressed.nonsense


def test_methods_that_return_the_model_return_the_compressed_one(compressed):
    assert compressed.train() is compressed
    assert compressed.model.training
    assert compressed.eval() is compressed
    assert not compressed.model.training
    assert compressed.to("cpu") is compressed
    assert compressed.to(dtype=torch.float32).requires_grad_(False) is compressed
    compressed.requires_grad_(True)


def test_what_is_set_is_set_on_the_model(compressed):
    before = compressed.model.generation_config
    try:
        compressed.generation_config = GenerationConfig(max_new_tokens=2, do_sample=False, pad_token_id=0)
        assert compressed.model.generation_config.max_new_tokens == 2
        assert "generation_config" not in vars(compressed)
    finally:
        compressed.model.generation_config = before


def test_what_is_not_compressed_is_not_there(compressed, llava):
    for name in ("forward", "generate_batch", "push_to_hub"):
        assert hasattr(compressed.model, name)
        assert not hasattr(compressed, name)
    with pytest.raises(AttributeError, match=r"compressed\.model"):
        compressed.push_to_hub("me/mine")
    with pytest.raises(TypeError, match=r"call `compressed\.model` for its logits"):
        compressed(**make_inputs(llava[1], SAMPLES["one"]))


def test_copies_answer_alike_and_a_deep_one_has_a_model_of_its_own():
    model, processor = BACKBONES["llava"]()  # transformers' hooks cannot be pickled once hidden states were asked for
    compressed, file = compress(model, VtcCls(last=2), tokens=5), io.BytesIO()
    torch.save(compressed, file)
    file.seek(0)
    others = [pickle.loads(pickle.dumps(compressed)), torch.load(file, weights_only=False)]
    inputs = make_inputs(processor, SAMPLES["one"])
    want = compressed.generate(**inputs, **GREEDY)
    shallow, deep = copy.copy(compressed), copy.deepcopy(compressed)
    for other in (shallow, deep, *others):
        assert torch.equal(other.generate(**inputs, **GREEDY), want)
        assert other.plan == compressed.plan
    assert shallow.model is compressed.model
    assert deep.model is deep.adapter.model is not compressed.model
    assert repr(compressed) == repr(deep)
    assert repr(compressed).startswith("Compressed(LlavaForConditionalGeneration, VtcCls(last=2")


def test_a_deleted_one_is_gone_at_once(llava):
    gone = compress(llava[0], VtcCls(last=2), tokens=5)
    gone.generate(**make_inputs(llava[1], SAMPLES["one"]), **GREEDY)
    gone.to("cpu")
    seen = weakref.ref(gone)
    gc.disable()
    try:
        del gone
        assert seen() is None
    finally:
        gc.enable()


# Models that are wrapped


def answer(model, processor, pruner=None):
    pruner = pruner or VtcCls(last=2, query="proxy" if "qwen" in model.config.model_type else "cls")
    return compress(model, pruner, tokens=5).generate(**make_inputs(processor, SAMPLES["one"]), **GREEDY).tolist()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("task", [None, "CAUSAL_LM"])
def test_adapters_of_peft_act_in_a_compressed_model(family, task):
    peft = pytest.importorskip("peft")
    model, processor = BACKBONES[family]()
    want = answer(model, processor)
    torch.manual_seed(0)
    lora = peft.LoraConfig(target_modules=["q_proj", "v_proj"], task_type=task, init_lora_weights=False)
    wrapped = peft.get_peft_model(model, lora).eval()
    got = answer(wrapped, processor)
    inputs = make_inputs(processor, SAMPLES["one"])
    positional = compress(wrapped, FastV(layer=2), tokens=5).generate(
        inputs["input_ids"], **{k: v for k, v in inputs.items() if k != "input_ids"}, **GREEDY
    )
    assert got != want
    with wrapped.disable_adapter():
        assert answer(wrapped, processor) == want
    merged = wrapped.merge_and_unload()
    assert got == answer(merged, processor)
    assert positional.tolist() == answer(merged, processor, FastV(layer=2))


def test_prompt_learning_of_peft_is_refused(llava):
    peft = pytest.importorskip("peft")
    model, _ = BACKBONES["llava"]()
    learnt = peft.get_peft_model(model, peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3))
    with pytest.raises(ValueError, match="PROMPT_TUNING of peft puts virtual tokens in front"):
        compress(learnt, VtcCls(last=2), tokens=5)


@pytest.mark.parametrize("family", FAMILIES)
def test_dispatched_and_offloaded_models_answer_alike(family):
    accelerate = pytest.importorskip("accelerate")
    model, processor = BACKBONES[family]()
    want = answer(model, processor)
    assert answer(accelerate.dispatch_model(model, {"": "cpu"}, force_hooks=True), processor) == want
    accelerate.hooks.remove_hook_from_submodules(model)
    assert answer(accelerate.cpu_offload(model, torch.device("cpu")), processor) == want


def test_a_compiled_model_answers_alike(llava):
    model, processor = llava
    want = answer(model, processor)
    assert answer(torch.compile(model, backend="eager"), processor) == want
