"""The tiny LLaVA before training: tokenizer, processor, chat template, configuration, initial weights and export."""

import json
from pathlib import Path

import torch
from scenes import FORMS, LETTERS, NAMES, NUMBERS, SHAPES, SIZE
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import Tensor, nn
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    GenerationConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

PATCH, WIDTH, HEADS, LAYERS = 8, 128, 4, 4
SIDE = SIZE // PATCH  # patches per side
SPECIAL = "<pad> <s> </s> <unk> <image>".split()
PAD, START, STOP, _, IMAGE = range(len(SPECIAL))
TEMPLATE = (
    "{% for message in messages %}{{ message['role'] + ' : ' }}"
    "{% if message['content'] is string %}{{ message['content'] + ' ' }}{% else %}"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}{{ '<image> ' }}{% endif %}{% endfor %}"
    "{% for part in message['content'] %}{% if part['type'] == 'text' %}{{ part['text'] + ' ' }}{% endif %}{% endfor %}"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}{{ 'assistant :' }}{% endif %}"
)


def vocabulary() -> list[str]:
    """Return all words of the template, the questions and the answers. `a` is both article and letter."""
    question_words = [word for form in FORMS.values() for word in form.split() if "{" not in word]
    words = [*SPECIAL, "user", "assistant", ":", *question_words, *NAMES, *SHAPES, *LETTERS, *NUMBERS, "yes", "no"]
    return list(dict.fromkeys(words))


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer with one token per word."""
    ids = {word: i for i, word in enumerate(vocabulary())}
    inner = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    inner.normalizer = normalizers.Lowercase()  # pyright: ignore[reportAttributeAccessIssue]
    inner.pre_tokenizer = pre_tokenizers.Whitespace()  # pyright: ignore[reportAttributeAccessIssue]
    inner.post_processor = processors.TemplateProcessing(  # pyright: ignore[reportAttributeAccessIssue]
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", START)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        extra_special_tokens={"image_token": "<image>"},
        padding_side="left",
        model_max_length=512,
    )


def make_processor() -> LlavaProcessor:
    """Return a processor with image processor, tokenizer and chat template."""
    images = CLIPImageProcessor(
        size={"shortest_edge": SIZE},
        crop_size={"height": SIZE, "width": SIZE},
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )
    return LlavaProcessor(
        image_processor=images,
        tokenizer=make_tokenizer(),
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=TEMPLATE,
        image_token="<image>",
    )


def make_model() -> LlavaForConditionalGeneration:
    """Return the model with random initial weights from torch's global generator."""
    vision = CLIPVisionConfig(
        hidden_size=WIDTH,
        intermediate_size=WIDTH * 3,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        image_size=SIZE,
        patch_size=PATCH,
        projection_dim=WIDTH,
    )
    text = LlamaConfig(
        vocab_size=len(vocabulary()),
        hidden_size=WIDTH,
        intermediate_size=352,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        max_position_embeddings=512,
        bos_token_id=START,
        eos_token_id=STOP,
        pad_token_id=PAD,
        tie_word_embeddings=False,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=IMAGE,
        image_seq_length=SIDE**2,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        projector_hidden_act="gelu",
    )
    model = LlavaForConditionalGeneration(config)
    model.generation_config = GenerationConfig(
        do_sample=False, max_new_tokens=8, bos_token_id=START, eos_token_id=STOP, pad_token_id=PAD
    )
    _initialise(model)
    return model


@torch.no_grad()
def _initialise(model: LlavaForConditionalGeneration) -> None:
    """Scale matrices by their fan-in, because CLIP's default initialisation trains slowly at this size."""
    embeddings = model.get_submodule("model.vision_tower.embeddings")
    embeddings.get_parameter("patch_embedding.weight").normal_(0, (3 * PATCH**2) ** -0.5)
    embeddings.get_parameter("position_embedding.weight")[1:] = _sincos() * 0.3
    for name, weight in model.get_submodule("model.multi_modal_projector").named_parameters():
        nn.init.normal_(weight, 0, weight.shape[-1] ** -0.5) if name.endswith("weight") else weight.zero_()
    for name, weight in model.get_submodule("model.language_model").named_parameters():
        if weight.ndim == 2:
            out = "o_proj" in name or "down_proj" in name
            nn.init.normal_(weight, 0, weight.shape[1] ** -0.5 * (0.35 if out else 0.5 if "embed" in name else 0.7))
    nn.init.normal_(model.get_parameter("lm_head.weight"), 0, 0.02)


def _sincos() -> Tensor:
    """Return sines and cosines of column and row, [patches, width]."""
    y, x = torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij")
    frequencies = 1000 ** -(torch.arange(WIDTH // 4) / (WIDTH // 4 - 1))
    waves = [v.flatten()[:, None] * frequencies for v in (x, y)]
    return torch.cat([f(wave) for wave in waves for f in (torch.sin, torch.cos)], 1)


def save(model: LlavaForConditionalGeneration, folder: Path) -> None:
    """Write a checkpoint for from_pretrained, in bfloat16, and questions.json with the supported questions."""
    model.to(torch.bfloat16).save_pretrained(folder)  # pyright: ignore[reportArgumentType] (a decorated method)
    make_processor().save_pretrained(folder)
    questions = {
        "forms": FORMS,
        "slots": {"color": NAMES, "shape": SHAPES},
        "answers": {
            "color": NAMES,
            "shape": SHAPES,
            "count": NUMBERS,
            "exist": ["yes", "no"],
            "letter": LETTERS,
        },
        "vocabulary": vocabulary(),
    }
    (folder / "questions.json").write_text(json.dumps(questions, indent=1) + "\n", encoding="utf-8")
