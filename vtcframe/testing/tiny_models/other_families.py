"""Tiny random models of families other than LLaVA, and the table of all families."""

from collections.abc import Callable
from typing import Any

from transformers import (
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma3ImageProcessor,
    Gemma3Processor,
    Gemma3TextConfig,
    Glm4vConfig,
    Glm4vForConditionalGeneration,
    Glm4vImageProcessor,
    Glm4vProcessor,
    Glm4vVideoProcessor,
    GotOcr2ImageProcessor,
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    Idefics3ImageProcessor,
    Idefics3Processor,
    InternVLConfig,
    InternVLForConditionalGeneration,
    InternVLProcessor,
    InternVLVideoProcessor,
    InternVLVisionConfig,
    LlamaConfig,
    Mistral3Config,
    Mistral3ForConditionalGeneration,
    MistralConfig,
    PixtralImageProcessor,
    PixtralProcessor,
    PixtralVisionConfig,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2Config,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLImageProcessor,
    Qwen2VLProcessor,
    Qwen2VLVideoProcessor,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
    SiglipVisionConfig,
)

from vtcframe.testing.tiny_models.llava_families import (
    PATCH,
    SIDE,
    SQUARE,
    TEXT,
    VISION,
    id_of,
    randomised,
    tiny_llava,
    tiny_llava_next,
    tiny_llava_next_video,
    tiny_llava_onevision,
    tiny_video_llava,
    tokenizer_of,
)
from vtcframe.testing.tiny_models.samples import SAMPLES, Sample

MERGED = 2 * PATCH  # pixels along an edge of a token of 2 x 2 patches
QWEN = {
    "image_token": "<|image_pad|>",
    "video_token": "<|video_pad|>",
    "vision_start_token": "<|vision_start|>",
    "vision_end_token": "<|vision_end|>",
}


def tiny_internvl(attention: str = "sdpa", seed: int = 0) -> tuple[Any, InternVLProcessor]:
    """Return an InternVL with a class token, query and key norms, at most 4 tiles and a thumbnail, 4 tokens each."""
    tokenizer = tokenizer_of(
        {
            "start_image_token": "<img>",
            "end_image_token": "</img>",
            "context_image_token": "<IMG_CONTEXT>",
            "video_token": "<video>",
        }
    )
    tokens = (SIDE // MERGED) ** 2
    config = InternVLConfig(
        vision_config=InternVLVisionConfig(
            **VISION,
            image_size=[SIDE, SIDE],
            patch_size=[PATCH, PATCH],
            layer_scale_init_value=0.5,
            use_qk_norm=True,
        ),
        text_config=Qwen2Config(**TEXT),
        image_token_id=id_of(tokenizer, "<IMG_CONTEXT>"),
        image_seq_length=tokens,
    )
    model = InternVLForConditionalGeneration._from_config(config, attn_implementation=attention)
    processor = InternVLProcessor(
        GotOcr2ImageProcessor(size=SQUARE, crop_to_patches=True, min_patches=1, max_patches=4),
        tokenizer,
        InternVLVideoProcessor(size=SQUARE),
        image_seq_length=tokens,
    )
    return randomised(model, seed), processor


def tiny_qwen2_vl(attention: str = "sdpa", seed: int = 0) -> tuple[Any, Qwen2VLProcessor]:
    """Return a Qwen2-VL: M-RoPE, one token for 2 x 2 patches, a temporal slice for 2 frames."""
    tokenizer = tokenizer_of(QWEN)
    config = Qwen2VLConfig(
        text_config=_mrope([1, 1, 2]),
        vision_config={"depth": 4, "embed_dim": 32, "hidden_size": 32, "num_heads": 4, "mlp_ratio": 2, **_MERGING},
        **_qwen_ids(tokenizer),
    )
    model = Qwen2VLForConditionalGeneration._from_config(config, attn_implementation=attention)
    processor = Qwen2VLProcessor(Qwen2VLImageProcessor(**_RESIZING), tokenizer, Qwen2VLVideoProcessor(**_RESIZING))
    return randomised(model, seed), processor


def tiny_qwen2_5_vl(attention: str = "sdpa", seed: int = 0) -> tuple[Any, Qwen2_5_VLProcessor]:
    """Return a Qwen2.5-VL whose windows are 4 x 4 patches, full attention in blocks 1 and 3."""
    tokenizer = tokenizer_of(QWEN)
    config = Qwen2_5_VLConfig(
        text_config=_mrope([1, 1, 2]),
        vision_config={
            **_TOWER,
            "window_size": 2 * MERGED,
            "fullatt_block_indexes": [1, 3],
            "tokens_per_second": 2,
        },
        **_qwen_ids(tokenizer),
    )
    model = Qwen2_5_VLForConditionalGeneration._from_config(config, attn_implementation=attention)
    processor = Qwen2_5_VLProcessor(Qwen2VLImageProcessor(**_RESIZING), tokenizer, Qwen2VLVideoProcessor(**_RESIZING))
    return randomised(model, seed), processor


def tiny_qwen3_vl(attention: str = "sdpa", seed: int = 0) -> tuple[Any, Qwen3VLProcessor]:
    """Return a Qwen3-VL with deepstack from tower blocks 0 and 2, and its processor."""
    tokenizer = tokenizer_of(QWEN)
    config = Qwen3VLConfig(
        text_config=_mrope([2, 1, 1], mrope_interleaved=True) | {"head_dim": 8},
        vision_config={**_TOWER, "deepstack_visual_indexes": [0, 2], "num_position_embeddings": 64},
        **_qwen_ids(tokenizer),
    )
    model = Qwen3VLForConditionalGeneration._from_config(config, attn_implementation=attention)
    processor = Qwen3VLProcessor(Qwen2VLImageProcessor(**_RESIZING), tokenizer, Qwen3VLVideoProcessor(**_RESIZING))
    return randomised(model, seed), processor


def tiny_glm4v(attention: str = "sdpa", seed: int = 0) -> tuple[Any, Glm4vProcessor]:
    """Return a GLM-4.1V: M-RoPE, one token for 2 x 2 patches, frames of a video as pictures with timestamps."""
    edges = {
        f"{kind}_{name}_token_id": f"<|{edge}_of_{kind}|>"
        for kind in ("image", "video")
        for name, edge in (("start", "begin"), ("end", "end"))
    }
    tokenizer = tokenizer_of({"image_token": "<|image|>", "video_token": "<|video|>"}, *edges.values())
    ids: dict[str, Any] = {name: id_of(tokenizer, token) for name, token in edges.items()}
    config = Glm4vConfig(
        text_config=_mrope([1, 1, 2]),
        vision_config={**_TOWER, "image_size": 2 * SIDE},
        image_token_id=id_of(tokenizer, "<|image|>"),
        video_token_id=id_of(tokenizer, "<|video|>"),
        **ids,
    )
    model = Glm4vForConditionalGeneration._from_config(config, attn_implementation=attention)
    processor = Glm4vProcessor(Glm4vImageProcessor(**_RESIZING), tokenizer, Glm4vVideoProcessor(**_RESIZING))
    return randomised(model, seed), processor


def tiny_idefics3(attention: str = "sdpa", seed: int = 0) -> tuple[Any, Idefics3Processor]:
    """Return an Idefics3: pictures split into tiles and a thumbnail, 4 tokens each (2 x 2 pixel shuffle)."""
    tokenizer = tokenizer_of(
        {"image_token": "<image>"},
        "<fake_token_around_image>",
        "<global-img>",
        "<end_of_utterance>",
        *(f"<row_{row}_col_{column}>" for row in range(1, 5) for column in range(1, 5)),
    )
    config = Idefics3Config(
        vision_config=VISION | {"image_size": SIDE, "patch_size": PATCH},
        text_config=LlamaConfig(**TEXT),
        image_token_id=id_of(tokenizer, "<image>"),
        scale_factor=2,
    )
    model = Idefics3ForConditionalGeneration._from_config(config, attn_implementation=attention)
    pictures = Idefics3ImageProcessor(size={"longest_edge": 2 * SIDE}, max_image_size={"longest_edge": SIDE})
    return randomised(model, seed), Idefics3Processor(pictures, tokenizer, image_seq_len=(SIDE // MERGED) ** 2)


def tiny_gemma3(attention: str = "sdpa", seed: int = 0) -> tuple[Any, Gemma3Processor]:
    """Return a Gemma 3: 4 tokens for each picture, with attention in both directions; sliding windows of 64."""
    tokenizer = tokenizer_of(
        {"boi_token": "<start_of_image>", "eoi_token": "<end_of_image>", "image_token": "<image_soft_token>"}
    )
    tokens = (SIDE // MERGED) ** 2
    config = Gemma3Config(
        vision_config=SiglipVisionConfig(**VISION, image_size=SIDE, patch_size=PATCH, vision_use_head=False),
        text_config=Gemma3TextConfig(
            **TEXT,
            head_dim=8,
            query_pre_attn_scalar=8,
            sliding_window=64,
            layer_types=["sliding_attention", "full_attention"] * 2,
        ),
        mm_tokens_per_image=tokens,
        image_token_index=id_of(tokenizer, "<image_soft_token>"),
        boi_token_index=id_of(tokenizer, "<start_of_image>"),
        eoi_token_index=id_of(tokenizer, "<end_of_image>"),
        tie_word_embeddings=False,  # tied random weights repeat the last token for any picture
    )
    model = Gemma3ForConditionalGeneration._from_config(config, attn_implementation=attention)
    return randomised(model, seed), Gemma3Processor(
        Gemma3ImageProcessor(size=SQUARE), tokenizer, image_seq_length=tokens
    )


def tiny_mistral3(attention: str = "sdpa", seed: int = 0) -> tuple[Any, PixtralProcessor]:
    """Return a Mistral 3 on Pixtral: one token for 2 x 2 patches, grids of any shape, a break after each row."""
    tokenizer = tokenizer_of(
        {"image_token": "[IMG]", "image_break_token": "[IMG_BREAK]", "image_end_token": "[IMG_END]"}
    )
    config = Mistral3Config(
        vision_config=PixtralVisionConfig(**VISION, image_size=2 * SIDE, patch_size=PATCH),
        text_config=MistralConfig(**TEXT, head_dim=8, sliding_window=None),
        image_token_index=id_of(tokenizer, "[IMG]"),
        spatial_merge_size=2,
        tie_word_embeddings=False,  # tied random weights repeat the last token for any picture
    )
    model = Mistral3ForConditionalGeneration._from_config(config, attn_implementation=attention)
    pictures = PixtralImageProcessor(size={"longest_edge": 2 * SIDE}, patch_size=PATCH)
    return randomised(model, seed), PixtralProcessor(pictures, tokenizer, patch_size=PATCH, spatial_merge_size=2)


_MERGING: dict[str, Any] = {"patch_size": PATCH, "spatial_merge_size": 2, "temporal_patch_size": 2}
_TOWER: dict[str, Any] = {
    "depth": 4,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_heads": 4,
    "out_hidden_size": 32,
    **_MERGING,
}
_RESIZING: dict[str, Any] = {
    "patch_size": PATCH,
    "temporal_patch_size": 2,
    "merge_size": 2,
    "size": {"shortest_edge": 4 * MERGED**2, "longest_edge": 64 * MERGED**2},
}


def _mrope(section: list[int], **options: Any) -> dict[str, Any]:
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": section}
    return TEXT | {"rope_parameters": rope | options}


def _qwen_ids(tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    return {f"{name}_id": id_of(tokenizer, token) for name, token in QWEN.items()}


Builder = Callable[..., tuple[Any, Any]]  # (attention="sdpa", seed=0) -> model, processor

BACKBONES: dict[str, Builder] = {  # by config.model_type
    "llava": tiny_llava,
    "llava_next": tiny_llava_next,
    "llava_next_video": tiny_llava_next_video,
    "llava_onevision": tiny_llava_onevision,
    "video_llava": tiny_video_llava,
    "internvl": tiny_internvl,
    "qwen2_vl": tiny_qwen2_vl,
    "qwen2_5_vl": tiny_qwen2_5_vl,
    "qwen3_vl": tiny_qwen3_vl,
    "glm4v": tiny_glm4v,
    "idefics3": tiny_idefics3,
    "gemma3": tiny_gemma3,
    "mistral3": tiny_mistral3,
}
# Families that take videos besides pictures; every family takes several pictures in a sample.
VIDEO = frozenset(BACKBONES) - {"llava", "llava_next", "idefics3", "gemma3", "mistral3"}
RAGGED_VIDEO = VIDEO & {"qwen2_vl", "qwen2_5_vl", "qwen3_vl", "glm4v"}  # videos of different lengths in a batch
MIXED = VIDEO - {"glm4v"}  # videos and pictures in a batch: GLM-4.1V has one placeholder for both
# Gemma 3 has attention in both directions within pictures, which masks of FlashAttention cannot express.
FLASH = frozenset(BACKBONES) - {"gemma3"}

_TAKE = {"video": VIDEO, "videos": VIDEO, "ragged video": RAGGED_VIDEO, "image and video": MIXED}


def samples_of(family: str) -> dict[str, list[Sample]]:
    """Return those of `SAMPLES` that a family supports."""
    return {name: samples for name, samples in SAMPLES.items() if family in _TAKE.get(name, BACKBONES)}
