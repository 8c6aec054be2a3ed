"""Tiny random models of the LLaVA families with real processors, built offline from configurations.

`other_families` has the other families and the table of all.
"""

from typing import Any

import torch
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
    LlavaNextVideoConfig,
    LlavaNextVideoForConditionalGeneration,
    LlavaNextVideoProcessor,
    LlavaNextVideoVideoProcessor,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    LlavaOnevisionImageProcessor,
    LlavaOnevisionProcessor,
    LlavaOnevisionVideoProcessor,
    LlavaProcessor,
    PreTrainedTokenizerFast,
    Qwen2Config,
    SiglipVisionConfig,
    VideoLlavaConfig,
    VideoLlavaForConditionalGeneration,
    VideoLlavaImageProcessor,
    VideoLlavaProcessor,
    VideoLlavaVideoProcessor,
)

from vtcframe.testing.tiny_models.samples import SAMPLES, Sample, Visual, draw, film, make_inputs

__all__ = [
    "CANVASES",
    "PATCH",
    "SAMPLES",
    "SIDE",
    "SQUARE",
    "TEXT",
    "VISION",
    "WORDS",
    "Sample",
    "Visual",
    "draw",
    "film",
    "id_of",
    "make_inputs",
    "randomised",
    "tiny_llava",
    "tiny_llava_next",
    "tiny_llava_next_video",
    "tiny_llava_onevision",
    "tiny_video_llava",
    "tokenizer_of",
]

WORDS = "USER ASSISTANT : ? what is in the image which of two pictures shows a dog and where are they".split()
EXTRA_WORDS = "video seconds 0 1 2 3 4 5 6 7 8 9 . Frame1 Frame2 Frame3 Frame4 Frame5 Frame6".split()
SIDE, PATCH = 56, 14  # 4 x 4 patches
CANVASES = [[SIDE, 2 * SIDE], [2 * SIDE, SIDE], [2 * SIDE, 2 * SIDE]]
SQUARE = {"height": SIDE, "width": SIDE}
CROPPED: dict[str, Any] = {"size": {"shortest_edge": SIDE}, "crop_size": SQUARE}
VISION: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4}
TEXT: dict[str, Any] = VISION | {
    "num_key_value_heads": 2,
    "vocab_size": 200,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 199,
}
IMAGE = {"image_token": "<image>"}
IMAGE_AND_VIDEO = IMAGE | {"video_token": "<video>"}


def tiny_llava(attention: str = "sdpa", seed: int = 0) -> tuple[Any, LlavaProcessor]:
    """Return a LLaVA-1.5 of 4 + 4 blocks with random weights and 16 tokens for each picture, and its processor."""
    tokenizer = tokenizer_of(IMAGE)
    config = LlavaConfig(
        vision_config=_clip(),
        text_config=LlamaConfig(**TEXT),
        image_token_index=id_of(tokenizer, "<image>"),
        vision_feature_layer=-2,
    )
    model = LlavaForConditionalGeneration._from_config(config, attn_implementation=attention)
    pictures = CLIPImageProcessor(**CROPPED)
    return randomised(model, seed), LlavaProcessor(pictures, tokenizer, **_counting())


def tiny_llava_next(attention: str = "sdpa", seed: int = 0) -> tuple[Any, LlavaNextProcessor]:
    """Return a LLaVA-NeXT of the same size with canvases of 1 x 2, 2 x 1 and 2 x 2 tiles, and its processor."""
    tokenizer = tokenizer_of(IMAGE)
    config = LlavaNextConfig(
        vision_config=_clip(),
        text_config=LlamaConfig(**TEXT),
        image_token_index=id_of(tokenizer, "<image>"),
        image_grid_pinpoints=CANVASES,
        vision_feature_layer=-2,
    )
    model = LlavaNextForConditionalGeneration._from_config(config, attn_implementation=attention)
    pictures = LlavaNextImageProcessor(**CROPPED, image_grid_pinpoints=CANVASES)
    return randomised(model, seed), LlavaNextProcessor(pictures, tokenizer, **_counting())


def tiny_llava_next_video(attention: str = "sdpa", seed: int = 0) -> tuple[Any, LlavaNextVideoProcessor]:
    """Return a LLaVA-NeXT-Video: pictures as in LLaVA-NeXT, 4 tokens for each frame (2 x 2 mean pooling)."""
    tokenizer = tokenizer_of(IMAGE_AND_VIDEO)
    config = LlavaNextVideoConfig(
        vision_config=_clip(),
        text_config=LlamaConfig(**TEXT),
        image_token_index=id_of(tokenizer, "<image>"),
        video_token_index=id_of(tokenizer, "<video>"),
        image_grid_pinpoints=CANVASES,
        vision_feature_layer=-2,
    )
    model = LlavaNextVideoForConditionalGeneration._from_config(config, attn_implementation=attention)
    pictures = LlavaNextImageProcessor(**CROPPED, image_grid_pinpoints=CANVASES)
    processor = LlavaNextVideoProcessor(LlavaNextVideoVideoProcessor(**CROPPED), pictures, tokenizer, **_counting())
    return randomised(model, seed), processor


def tiny_llava_onevision(attention: str = "sdpa", seed: int = 0) -> tuple[Any, LlavaOnevisionProcessor]:
    """Return a LLaVA-OneVision on SigLIP and Qwen2, and its processor.

    A canvas of 2 x 2 tiles has more tokens than "anyres_max_2" allows, so its packing shrinks it bilinearly; canvases
    of 1 x 2 and 2 x 1 tiles are not shrunk. Frames have 4 tokens; a newline follows the last frame of a video.
    """
    tokenizer = tokenizer_of(IMAGE_AND_VIDEO)
    aspect_ratio = "anyres_max_2"
    config = LlavaOnevisionConfig(
        vision_config=SiglipVisionConfig(**VISION, image_size=SIDE, patch_size=PATCH, vision_use_head=False),
        text_config=Qwen2Config(**TEXT),
        image_token_index=id_of(tokenizer, "<image>"),
        video_token_index=id_of(tokenizer, "<video>"),
        image_grid_pinpoints=CANVASES,
        vision_aspect_ratio=aspect_ratio,
    )
    model = LlavaOnevisionForConditionalGeneration._from_config(config, attn_implementation=attention)
    processor = LlavaOnevisionProcessor(
        LlavaOnevisionImageProcessor(size=SQUARE, image_grid_pinpoints=CANVASES),
        tokenizer,
        LlavaOnevisionVideoProcessor(size=SQUARE),
        num_image_tokens=(SIDE // PATCH) ** 2,
        vision_feature_select_strategy="full",
        vision_aspect_ratio=aspect_ratio,
    )
    return randomised(model, seed), processor


def tiny_video_llava(attention: str = "sdpa", seed: int = 0) -> tuple[Any, VideoLlavaProcessor]:
    """Return a Video-LLaVA with two towers: 16 tokens for each picture, 17 for each frame ([CLS] first)."""
    tokenizer = tokenizer_of(IMAGE_AND_VIDEO)
    config = VideoLlavaConfig(
        vision_config=_clip(),
        text_config=LlamaConfig(**TEXT),
        image_token_index=id_of(tokenizer, "<image>"),
        video_token_index=id_of(tokenizer, "<video>"),
        vision_feature_layer=-2,
    )
    model = VideoLlavaForConditionalGeneration._from_config(config, attn_implementation=attention)
    processor = VideoLlavaProcessor(
        VideoLlavaImageProcessor(**CROPPED), VideoLlavaVideoProcessor(**CROPPED), tokenizer, **_counting()
    )
    return randomised(model, seed), processor


def tokenizer_of(named: dict[str, str], *extra: str) -> PreTrainedTokenizerFast:
    """Return a tokenizer that splits at spaces; special tokens are those of the attributes `named`, and `extra`."""
    special = [*dict.fromkeys((*named.values(), *extra))]
    words = dict.fromkeys(["<pad>", "<s>", "</s>", "<unk>", *WORDS, *special, *EXTRA_WORDS])
    core = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    core.pre_tokenizer = Whitespace()  # pyright: ignore[reportAttributeAccessIssue] (a property of the Rust object)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        extra_special_tokens=named,
    )
    tokenizer.add_tokens(special, special_tokens=True)
    return tokenizer


def randomised(model: Any, seed: int) -> Any:
    """Draw weights large enough for answers to depend on every token."""
    generator = torch.Generator().manual_seed(seed)
    for name, weight in model.named_parameters():
        if weight.ndim > 1 or name.endswith(("class_embedding", "image_newline")):
            weight.data.copy_(torch.randn(weight.shape, generator=generator) * 0.2)
        elif name.endswith("bias"):
            weight.data.zero_()  # SigLIP initialises it from another random state
    return model.eval()


def id_of(tokenizer: PreTrainedTokenizerFast, token: str) -> int:
    """Return the id of a token that the tokenizer has."""
    return tokenizer.get_vocab()[token]


def _clip() -> CLIPVisionConfig:
    return CLIPVisionConfig(**VISION, image_size=SIDE, patch_size=PATCH)


def _counting() -> dict[str, Any]:
    """Return the options by which a LLaVA processor counts the tokens of a CLIP tower with a class token."""
    return {"patch_size": PATCH, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
