"""Configurations of published checkpoints, and models of them without weights.

Each has the values of the config.json of the checkpoint that define the model; other values are defaults.
"""

from collections.abc import Callable
from typing import Any

import torch
from transformers import (
    AutoModelForImageTextToText,
    CLIPVisionConfig,
    InternVLConfig,
    InternVLVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaNextConfig,
    LlavaOnevisionConfig,
    PreTrainedConfig,
    Qwen2_5_VLConfig,
    Qwen2Config,
    Qwen2VLConfig,
    Qwen3VLConfig,
    SiglipVisionConfig,
    VideoLlavaConfig,
)


def on_meta(config: PreTrainedConfig) -> Any:
    """Return the model of a configuration on the meta device: modules and shapes, no weights, in about a second."""
    with torch.device("meta"):
        return AutoModelForImageTextToText.from_config(config).eval()


def llava_1_5_7b() -> LlavaConfig:
    """Return llava-hf/llava-1.5-7b-hf: 576 tokens for each picture."""
    return LlavaConfig(
        vision_config=_clip_large(336),
        text_config=_vicuna_7b(),
        image_token_index=32000,
        image_seq_length=576,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
    )


def llava_next_7b() -> LlavaNextConfig:
    """Return llava-hf/llava-v1.6-vicuna-7b-hf: tiles of 336 pixels on five canvases."""
    return LlavaNextConfig(
        vision_config=_clip_large(336),
        text_config=_vicuna_7b(),
        image_token_index=32000,
        image_seq_length=576,
        image_grid_pinpoints=[[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]],
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
    )


def llava_onevision_7b() -> LlavaOnevisionConfig:
    """Return llava-hf/llava-onevision-qwen2-7b-ov-hf: canvases of up to 6 x 6 tiles, at most nine tiles' tokens."""
    return LlavaOnevisionConfig(
        vision_config=SiglipVisionConfig(
            hidden_size=1152,
            intermediate_size=4304,
            num_hidden_layers=26,
            num_attention_heads=16,
            image_size=384,
            patch_size=14,
            vision_use_head=False,
        ),
        text_config=Qwen2Config(**_QWEN2_7B, vocab_size=152000, max_position_embeddings=32768),
        image_token_index=151646,
        video_token_index=151647,
        image_grid_pinpoints=[[384 * rows, 384 * columns] for rows in range(1, 7) for columns in range(1, 7)],
        vision_aspect_ratio="anyres_max_9",
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
    )


def video_llava_7b() -> VideoLlavaConfig:
    """Return LanguageBind/Video-LLaVA-7B-hf: 256 tokens for each picture, 8 frames of 257 tokens."""
    return VideoLlavaConfig(
        vision_config=_clip_large(224),
        text_config=_vicuna_7b(),
        image_token_index=32000,
        video_token_index=32001,
        image_seq_length=256,
        video_seq_length=2056,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
    )


def internvl3_8b() -> InternVLConfig:
    """Return OpenGVLab/InternVL3-8B-hf: 256 tokens for each tile of 448 pixels."""
    return InternVLConfig(
        vision_config=InternVLVisionConfig(
            hidden_size=1024,
            intermediate_size=4096,
            num_hidden_layers=24,
            num_attention_heads=16,
            attention_bias=True,
            use_qk_norm=False,
            norm_type="layer_norm",
            image_size=[448, 448],
            patch_size=[14, 14],
        ),
        text_config=Qwen2Config(**_QWEN2_7B, vocab_size=151674, max_position_embeddings=32768),
        image_token_id=151667,
        image_seq_length=256,
        downsample_ratio=0.5,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        tie_word_embeddings=False,
    )


def qwen2_vl_7b() -> Qwen2VLConfig:
    """Return Qwen/Qwen2-VL-7B-Instruct."""
    return Qwen2VLConfig(
        vision_config={
            "depth": 32,
            "embed_dim": 1280,
            "hidden_size": 3584,
            "mlp_ratio": 4,
            "num_heads": 16,
            "patch_size": 14,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
        },
        text_config=_QWEN2_7B
        | {
            "vocab_size": 152064,
            "max_position_embeddings": 32768,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
        },
        **_QWEN_IDS,
    )


def qwen2_5_vl_7b() -> Qwen2_5_VLConfig:
    """Return Qwen/Qwen2.5-VL-7B-Instruct: windows of 8 x 8 patches, full attention in every eighth block."""
    return Qwen2_5_VLConfig(
        vision_config={
            "depth": 32,
            "hidden_size": 1280,
            "intermediate_size": 3420,
            "num_heads": 16,
            "out_hidden_size": 3584,
            "patch_size": 14,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "window_size": 112,
            "fullatt_block_indexes": [7, 15, 23, 31],
            "tokens_per_second": 2,
        },
        text_config=_QWEN2_7B
        | {
            "vocab_size": 152064,
            "max_position_embeddings": 128000,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
        },
        **_QWEN_IDS,
    )


def qwen3_vl_8b() -> Qwen3VLConfig:
    """Return Qwen/Qwen3-VL-8B-Instruct: patches of 16 pixels, deepstack into the first three layers."""
    return Qwen3VLConfig(
        vision_config={
            "depth": 27,
            "hidden_size": 1152,
            "intermediate_size": 4304,
            "num_heads": 16,
            "out_hidden_size": 4096,
            "patch_size": 16,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "num_position_embeddings": 2304,
            "deepstack_visual_indexes": [8, 16, 24],
        },
        text_config={
            "hidden_size": 4096,
            "intermediate_size": 12288,
            "num_hidden_layers": 36,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "vocab_size": 151936,
            "max_position_embeddings": 262144,
            "rms_norm_eps": 1e-6,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 5e6,
                "mrope_section": [24, 20, 20],
                "mrope_interleaved": True,
            },
        },
        **_QWEN_IDS,
    )


PUBLISHED: dict[str, Callable[[], PreTrainedConfig]] = {
    "llava-hf/llava-1.5-7b-hf": llava_1_5_7b,
    "llava-hf/llava-v1.6-vicuna-7b-hf": llava_next_7b,
    "llava-hf/llava-onevision-qwen2-7b-ov-hf": llava_onevision_7b,
    "LanguageBind/Video-LLaVA-7B-hf": video_llava_7b,
    "OpenGVLab/InternVL3-8B-hf": internvl3_8b,
    "Qwen/Qwen2-VL-7B-Instruct": qwen2_vl_7b,
    "Qwen/Qwen2.5-VL-7B-Instruct": qwen2_5_vl_7b,
    "Qwen/Qwen3-VL-8B-Instruct": qwen3_vl_8b,
}

_QWEN_IDS: dict[str, Any] = {
    "image_token_id": 151655,
    "video_token_id": 151656,
    "vision_start_token_id": 151652,
    "vision_end_token_id": 151653,
}
_QWEN2_7B: dict[str, Any] = {  # also the shape of Qwen2.5-7B
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "rms_norm_eps": 1e-6,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
}


def _clip_large(side: int) -> CLIPVisionConfig:
    """Return CLIP ViT-L/14 at `side` pixels."""
    return CLIPVisionConfig(
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=24,
        num_attention_heads=16,
        image_size=side,
        patch_size=14,
        projection_dim=768,
    )


def _vicuna_7b() -> LlamaConfig:
    """Return Vicuna 7B v1.5 with a vocabulary that is padded for the placeholders."""
    return LlamaConfig(
        hidden_size=4096,
        intermediate_size=11008,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=32,
        vocab_size=32064,
        max_position_embeddings=4096,
        rms_norm_eps=1e-5,
    )
