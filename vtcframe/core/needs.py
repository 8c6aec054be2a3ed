"""The kinds of evidence one can ask for: hashable requests, each with the `axes` of its answer.

Axes: L layers, V views, H heads, N tokens, P samples, T text tokens, C channels. Layers count from 0; negative ones
count from the end of `of`. The kinds share no base class: jsonargparse would then want a class_path in the YAML.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

Tower = str  # "vision", "llm", or a witness: "timm:NAME", "open_clip:NAME/WEIGHTS" (see vtcframe.adapters.auxiliary_encoders)


ClsProxy = Literal["cls", "mean", "received", "head", "proxy"]  # [CLS], or what stands in for it


TextQuery = Literal["last", "text", "rated", "after"]  # who asks in the language model


Query = ClsProxy | TextQuery


@dataclass(frozen=True)
class AttentionRows:
    """Attention that visual tokens get from a query: softmax over all keys, in float32.

    Of encoders: "cls" is the class token. Where there is none, "received" is the mean over all patches' queries
    (VScan), "mean" the mean query against the mean key of each token's patches (FastVID; linear in N), "head" the
    learned query of an attention-pooling head, with layers=(-1,) (SigLIP); "proxy" is "cls" where there is a class
    token and "mean" where there is none. A token made of several patches gets their mean. Of a witness there is "cls"
    only, read bilinearly where the tokens' centres lie.

    `blocks="feeding"` counts only the blocks whose output reaches the projector: LLaVA reads `hidden_states[-2]`, so its
    last block is no part of it. Methods that publish scores of that unused block say `blocks="tower"`. Blocks that attend
    within windows (Qwen2.5-VL) are not counted either: their weights do not compare across a picture.

    Of the language model, where causality shows a token to those behind it only: "last" is the prompt's last token,
    "text" all behind the last visual token of the sample, "rated" those of them that SparseVLM rates above the mean
    (see `vtcframe.hooks.text_readers.rate_text`), "after" all behind the view, visual ones too, or behind the last crop of a picture
    that is cut into crops. Where nothing is behind, the last token asks. `over` tells whether the mean of what they pay
    counts or the largest, and `relative` divides by what rotary positions alone would make them pay (SparseVLM 2). At
    "llm:K" layers up to K can be read, K itself before it is run, and negative ones count back from K. Before the
    language model all of them can, and the layers up to the deepest asked for are run once more for it.
    """

    axes: ClassVar[str] = "LVHN"
    query: Query
    layers: tuple[int, ...]
    tower: Tower = "vision"
    blocks: Literal["feeding", "tower"] = "feeding"
    pre_softmax: bool = False  # before the softmax
    heads: Literal["split", "mean", "joined"] = "split"  # "mean" before `over`; "joined" as one head of full width
    reduce: Literal["mean", "max"] = "mean"  # how several query rows become one
    divide_by_rope_prior: bool = False


@dataclass(frozen=True)
class AttentionKeys:
    """Keys: as projected in the vision tower, after RoPE in the language model (as its cache holds them)."""

    axes: ClassVar[str] = "LVHNC"
    layers: tuple[int, ...]
    tower: Tower = "vision"
    blocks: Literal["feeding", "tower"] = "feeding"


@dataclass(frozen=True)
class HiddenStates:
    """Hidden states: what the projector reads, or a layer's output behind the language model's last norm."""

    axes: ClassVar[str] = "VNC"
    layer: int = -1
    tower: Tower = "vision"


@dataclass(frozen=True)
class ClassToken:
    """The [CLS] feature that the projector never sees."""

    axes: ClassVar[str] = "VC"


@dataclass(frozen=True)
class TextTokens:
    """The same of the text tokens behind a sample's last visual token, NaN where it has fewer; heads joined."""

    axes: ClassVar[str] = "PTC"
    what: AttentionKeys | HiddenStates  # of the language model, one layer


@dataclass(frozen=True)
class Similarity:
    """Cosine of each token and the question in a space they share, mean over the question's segments.

    `model` is "clip:PATH", the CLIP that the backbone's own tower was taken from, whose features are compared
    (CDPruner, arXiv 2506.10967); "clip", the same where the tower is of a published shape (OpenAI's CLIP-L/14 and
    L/14-336); or "open_clip:NAME/WEIGHTS", which looks at the picture itself. A question longer than the text tower's
    context (77 tokens) is cut into segments.
    """

    axes: ClassVar[str] = "VN"
    model: str = "clip"


@dataclass(frozen=True)
class AttentionPageRank:
    """Where a walk along the attention of a language model's layer ends, which starts at every token alike.

    AIM (arXiv 2412.03248): `steps` steps d <- d M, where M is the softmax of the logits divided by `temperature`.
    Layers count as in Rows. It reads the whole attention `steps` times, some rows at a time.
    """

    axes: ClassVar[str] = "LVHN"
    layers: tuple[int, ...]
    temperature: float = 0.1
    steps: int = 5


@dataclass(frozen=True)
class ProbeAttention:
    """Mean attention that probes of a language model's layer pay to a token, of those that can see it.

    ZipCache (arXiv 2405.14256): probes are the last `recent` share of the prompt and as many more of the rest as
    `random` says, drawn by a hash of (seed, sample, column). Layers count as in Rows.
    """

    axes: ClassVar[str] = "LVHN"
    layers: tuple[int, ...]
    recent: float = 0.05
    random: float = 0.05
    seed: int = 0


Need = (
    AttentionRows
    | AttentionKeys
    | HiddenStates
    | ClassToken
    | TextTokens
    | Similarity
    | AttentionPageRank
    | ProbeAttention
)


def in_llm(need: Need) -> bool:
    """Tell whether the language model must be asked."""
    return isinstance(need, TextTokens | AttentionPageRank | ProbeAttention) or getattr(need, "tower", None) == "llm"


@dataclass(frozen=True)
class AttentionReceived:
    """A need of stages in an encoder: attention a token gets in that block, mean over heads and all queries.

    Class tokens ask too; Rows("received") leaves them out.
    """

    axes: ClassVar[str] = "VN"


EncoderNeed = Need | AttentionReceived
