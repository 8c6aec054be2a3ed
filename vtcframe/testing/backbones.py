"""Tiny random models with real processors, built from configurations, offline."""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextImageProcessor,
    LlavaNextProcessor,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

WORDS = "USER ASSISTANT : ? what is in the image which of two pictures shows a dog and where are they".split()
SIDE, PATCH = 56, 14  # 4 x 4 patches
Sample = tuple[str, Sequence[Image.Image]]  # a text with one "<image>" for each picture


def tiny_llava(attention: str = "sdpa", seed: int = 0) -> tuple[Any, LlavaProcessor]:
    """Return a LLaVA-1.5 of 4 + 4 blocks with random weights and 16 tokens a picture, and its processor."""
    tokenizer = _tokenizer()
    config = LlavaConfig(
        vision_config=_vision(),
        text_config=_text(),
        image_token_index=_placeholder(tokenizer),
        vision_feature_layer=-2,
    )
    model = LlavaForConditionalGeneration._from_config(config, attn_implementation=attention)
    pictures = CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE})
    return _randomised(model, seed), _processor(LlavaProcessor, pictures, tokenizer)


def tiny_llava_next(attention: str = "sdpa", seed: int = 0) -> tuple[Any, LlavaNextProcessor]:
    """Return a LLaVA-NeXT of the same size with canvases of 1 x 2, 2 x 1 and 2 x 2 tiles, and its processor."""
    tokenizer = _tokenizer()
    canvases = [[SIDE, 2 * SIDE], [2 * SIDE, SIDE], [2 * SIDE, 2 * SIDE]]
    config = LlavaNextConfig(
        vision_config=_vision(),
        text_config=_text(),
        image_token_index=_placeholder(tokenizer),
        image_grid_pinpoints=canvases,
        vision_feature_layer=-2,
    )
    model = LlavaNextForConditionalGeneration._from_config(config, attn_implementation=attention)
    pictures = LlavaNextImageProcessor(
        size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE}, image_grid_pinpoints=canvases
    )
    return _randomised(model, seed), _processor(LlavaNextProcessor, pictures, tokenizer)


def make_inputs(processor: Any, samples: Sequence[Sample], side: Literal["left", "right"] = "left") -> dict[str, Any]:
    """Return what the processor makes of `samples`, as a plain dict, padded on `side`."""
    processor.tokenizer.padding_side = side
    texts = [text.replace("<image>", processor.image_token) for text, _ in samples]
    images = [list(pictures) for _, pictures in samples if pictures]
    return dict(processor(text=texts, images=images or None, padding=True, return_tensors="pt"))


def draw(height: int, width: int, seed: int = 0) -> Image.Image:
    """Return a picture of noise."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


SAMPLES: dict[str, list[Sample]] = {
    "one": [("USER : <image> what is in the image ? ASSISTANT :", [draw(70, 150, 1)])],
    "several": [("USER : <image> and <image> which of the two ? ASSISTANT :", [draw(60, 60, 2), draw(160, 80, 3)])],
    "ragged one": [
        ("USER : <image> what is in the image ? ASSISTANT :", [draw(70, 150, 1)]),
        ("USER : where are they ? ASSISTANT :", []),
        ("USER : <image> what ? ASSISTANT :", [draw(60, 64, 4)]),
    ],
    "ragged several": [
        ("USER : <image> and <image> which of the two ? ASSISTANT :", [draw(60, 60, 2), draw(160, 80, 3)]),
        ("USER : <image> what ? ASSISTANT :", [draw(60, 64, 4)]),
        ("USER : where are they ? ASSISTANT :", []),
    ],
}


def _tokenizer() -> PreTrainedTokenizerFast:
    vocabulary = {word: i for i, word in enumerate(["<pad>", "<s>", "</s>", "<unk>", *dict.fromkeys(WORDS), "<image>"])}
    core = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    core.pre_tokenizer = Whitespace()  # pyright: ignore[reportAttributeAccessIssue] (a property of the Rust object)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        extra_special_tokens={"image_token": "<image>"},
    )
    tokenizer.add_tokens(["<image>"], special_tokens=True)
    return tokenizer


def _placeholder(tokenizer: PreTrainedTokenizerFast) -> int:
    return tokenizer.get_vocab()["<image>"]


def _processor(kind: Any, pictures: Any, tokenizer: PreTrainedTokenizerFast) -> Any:
    return kind(
        image_processor=pictures,
        tokenizer=tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )


def _vision() -> CLIPVisionConfig:
    return CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        image_size=SIDE,
        patch_size=PATCH,
    )


def _text() -> LlamaConfig:
    return LlamaConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=200,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=199,
    )


def _randomised(model: Any, seed: int) -> Any:
    """Draw weights large enough for answers to depend on every token."""
    generator = torch.Generator().manual_seed(seed)
    for name, weight in model.named_parameters():
        if weight.ndim > 1 or name.endswith(("class_embedding", "image_newline")):
            weight.data.copy_(torch.randn(weight.shape, generator=generator) * 0.2)
    return model.eval()
