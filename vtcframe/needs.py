"""The kinds of evidence one can ask for: hashable requests, each with the `axes` of its answer.

Axes: L layers, V views, H heads, N tokens, P samples, T text tokens, C channels. Layers count from 0; negative ones
count from the end of `of`. The kinds share no base class: jsonargparse would then want a class_path in the YAML.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

Tower = Literal["vision", "llm"]
Query = Literal["cls", "mean", "received", "last", "text", "rated", "after"]


@dataclass(frozen=True)
class Rows:
    """Attention that visual tokens get from a query: softmax over all keys, in float32.

    `of="feeding"` counts only the blocks whose output reaches the projector: LLaVA reads `hidden_states[-2]`, so its
    last block is no part of it. Methods that publish scores of that unused block say `of="tower"`.
    """

    axes: ClassVar[str] = "LVHN"
    query: Query
    layers: tuple[int, ...]
    tower: Tower = "vision"
    of: Literal["feeding", "tower"] = "feeding"
    logits: bool = False  # before the softmax
    heads: Literal["split", "mean", "joined"] = "split"  # "mean" before `over`; "joined" as one head of full width
    over: Literal["mean", "max"] = "mean"  # how several query rows become one


@dataclass(frozen=True)
class Keys:
    """Keys: as projected in the vision tower, after RoPE in the language model (as its cache holds them)."""

    axes: ClassVar[str] = "LVHNC"
    layers: tuple[int, ...]
    tower: Tower = "vision"
    of: Literal["feeding", "tower"] = "feeding"


@dataclass(frozen=True)
class Features:
    """Hidden states: what the projector reads, or a layer's output behind the language model's last norm."""

    axes: ClassVar[str] = "VNC"
    layer: int = -1
    tower: Tower = "vision"


@dataclass(frozen=True)
class ClassToken:
    """The [CLS] feature that the projector never sees."""

    axes: ClassVar[str] = "VC"


@dataclass(frozen=True)
class Text:
    """The same of the text tokens behind the pictures, NaN where a sample has fewer."""

    axes: ClassVar[str] = "PTC"
    what: Keys | Features


@dataclass(frozen=True)
class Similarity:
    """Cosine of each token and the question in a space they share, mean over the question's segments."""

    axes: ClassVar[str] = "VN"
    model: str = "clip"


Need = Rows | Keys | Features | ClassToken | Text | Similarity
