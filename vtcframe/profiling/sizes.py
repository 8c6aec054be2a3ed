"""Published sizes that `vtcframe bench` knows, and what their processors make of one picture.

Nothing here imports torch, so that a typo is answered at once.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Shape:
    """The sizes of a checkpoint, and its inputs for one picture."""

    checkpoint: str  # whose configuration vtcframe.testing.tiny_models.published has
    picture: str  # in pixels
    pixels: tuple[int, ...]  # of one picture's pixel_values; pictures lie behind one another in the first dimension
    placeholders: int  # columns that it takes in a prompt
    geometry: Mapping[str, tuple[int, ...]] = field(default_factory=dict)  # its row of other inputs
    language: Mapping[str, int] = field(default_factory=dict)  # what the language model has other than the checkpoint's


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
    "llava-next-7b": Shape(  # 5 x 576 tokens, and a newline behind each of the canvas's 48 rows
        "llava-hf/llava-v1.6-vicuna-7b-hf", "672 x 672", (1, 5, 3, 336, 336), 2928, {"image_sizes": (672, 672)}
    ),
    "qwen2.5-vl-7b": Shape(  # 48 x 48 patches, 2 x 2 of them a token
        "Qwen/Qwen2.5-VL-7B-Instruct", "672 x 672", (2304, 1176), 576, {"image_grid_thw": (1, 48, 48)}
    ),
}
