"""Published model sizes that `vtcframe bench` can build, with the processor output for one picture.

This module does not import torch, so that a misspelled option is reported at once.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Shape:
    """The sizes of a published checkpoint and the shapes of its inputs for one picture."""

    checkpoint: str  # a key of vtcframe.testing.tiny_models.published.PUBLISHED, which holds the configuration
    picture: str  # size in pixels
    pixels: tuple[int, ...]  # shape of one picture's pixel_values; pictures are concatenated in the first dimension
    placeholders: int  # number of prompt columns of one picture
    geometry: Mapping[str, tuple[int, ...]] = field(default_factory=dict)  # one picture's row of each other input
    language: Mapping[str, int] = field(default_factory=dict)  # language-model sizes that differ from the checkpoint


SHAPES = {
    "llava-1.5-7b": Shape("llava-hf/llava-1.5-7b-hf", "336 x 336", (1, 3, 336, 336), 576),
    "llava-1.5-13b": Shape(
        "llava-hf/llava-1.5-7b-hf",
        "336 x 336",
        (1, 3, 336, 336),
        576,
        language={
            "hidden_size": 5120,
            "intermediate_size": 13824,
            "num_hidden_layers": 40,
            "num_attention_heads": 40,
            "num_key_value_heads": 40,
        },
    ),
    "llava-next-7b": Shape(  # 5 x 576 tokens, and a newline after each of the canvas's 48 rows
        "llava-hf/llava-v1.6-vicuna-7b-hf", "672 x 672", (1, 5, 3, 336, 336), 2928, {"image_sizes": (672, 672)}
    ),
    "qwen2.5-vl-7b": Shape(  # 48 x 48 patches; 2 x 2 patches form one token
        "Qwen/Qwen2.5-VL-7B-Instruct", "672 x 672", (2304, 1176), 576, {"image_grid_thw": (1, 48, 48)}
    ),
}
