"""The kinds of evidence that a component can ask for, each a hashable request with the `axes` of its answer.

Axes: L layers, V views, H heads, N tokens, P samples, T text tokens, C channels. Layers count from 0, negative ones
from the end. Kinds that only one paper asks for are in that paper's module; all extend those of
`vtcframe.core.need_bases`.
"""

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, Self, get_args

from torch import Tensor

from vtcframe.core.encoder_readers import EncoderTokens, KeyStates, MeanQuery, QueryRow, ReceivedAttention
from vtcframe.core.kernel_call import KernelCall
from vtcframe.core.need_bases import AttentionNeed, Blocks, HiddenNeed, LayerNeed, Need, Site, Tower
from vtcframe.core.text_readers import PromptTokens, query_starts, text_rows

ClsProxy = Literal["cls", "mean", "received", "head", "proxy"]  # [CLS], or what stands in for it

TextQuery = Literal["last", "text", "after"]  # the queries in the language model

Query = ClsProxy | TextQuery

NO_CLASS_TOKEN = (
    "it has no class token. Use a proxy, query='mean' or 'received', or the class token of an auxiliary encoder"
)


@dataclass(frozen=True)
class AttentionRows(AttentionNeed):
    """Attention from a query to the visual tokens: softmax over all keys, in float32.

    Of encoders: "cls" is the class token. Where there is none, "received" is the mean over all patches' queries
    (VScan), "mean" the mean query against the mean key of each token's patches (FastVID; linear in N), "head" the
    learned query of an attention-pooling head, with layers=(-1,) (SigLIP); "proxy" is "cls" where there is a class
    token and "mean" where there is none. A token made of several patches gets their mean. Of an auxiliary encoder
    there is "cls" only, interpolated bilinearly at the centres of the tokens.

    Of the language model, where causality shows a token only to later ones: "last" is the prompt's last token, "text"
    all tokens after the last visual token of the sample, "after" all tokens after the view, visual ones too, or after
    the last crop of a picture that is cut into crops. Where nothing comes after, the last token is the query.
    `reduce` says whether the mean of their attention counts or the largest, and `divide_by_rope_prior` divides by the
    attention that an all-ones query and key would get from RoPE alone (SparseVLM 2). At "llm:K" layers up to K can be
    read, K itself before it runs, and negative ones count back from K. Before the language model all of them can, and
    the layers up to the deepest one in question run once more for it.
    """

    query: Query
    layers: tuple[int, ...]
    tower: Tower = "vision"
    blocks: Blocks = "feeding"
    pre_softmax: bool = False  # before the softmax
    heads: Literal["split", "mean", "joined"] = "split"  # "mean" before `reduce`; "joined" as one head of full width
    reduce: Literal["mean", "max"] = "mean"  # how several query rows become one
    divide_by_rope_prior: bool = False

    @property
    def at_pooling_head(self) -> bool:
        """Whether the learned query of an attention-pooling head is read."""
        return self.query == "head"

    def reading(self, tokens: EncoderTokens) -> Self:
        """Return what is read in one block: a proxy is what it stands for in this encoder."""
        shared = super().reading(tokens)
        proxy: ClsProxy = "cls" if tokens.has_class else "mean"
        return replace(shared, query=proxy) if self.query == "proxy" else shared

    def read_encoder(self, call: KernelCall, tokens: EncoderTokens) -> Tensor:
        """[B, H, T] float32 from one call of a block."""
        query = self.reading(tokens).query
        if query == "mean":
            return MeanQuery(self.pre_softmax, self.heads, tokens.skip, tokens.pool)(call)
        if query == "received":
            heads: Any = self.heads
            return ReceivedAttention(heads, tokens.skip, tokens.pool)(call)
        return QueryRow(0, self.pre_softmax, self.heads, tokens.skip, tokens.pool)(call)

    def read_llm(self, call: KernelCall, prompts: PromptTokens) -> Tensor:
        """[P, H, L] float32 from one call of a layer."""
        if self.heads == "joined":
            raise ValueError(f"{self}: {self.llm_refusal()}")
        return text_rows(
            call,
            prompts,
            query_starts(self.query, prompts, call.query.shape[2]),
            heads=self.heads,
            reduce=self.reduce,
            pre_softmax=self.pre_softmax,
            divide_by_rope_prior=self.divide_by_rope_prior,
        )

    def encoder_refusal(self, tokens: EncoderTokens) -> str:
        """Say why an encoder with such tokens cannot serve it, and the cure; "" where it can."""
        if self.query not in get_args(ClsProxy):
            return f"the queries of a vision encoder are {', '.join(map(repr, get_args(ClsProxy)))}"
        if self.query == "cls" and not tokens.has_class:
            return NO_CLASS_TOKEN
        if self.query == "head" and not (tokens.has_head and self.layers == (-1,)):
            return "it has no attention-pooling head, or layers is not (-1,)"
        if self.query == "received" and (self.pre_softmax or self.heads == "joined"):
            return "query='received' averages attention after the softmax, with heads='split' or 'mean'"
        if self.reduce != "mean" or self.divide_by_rope_prior:
            return "reduce='max' and divide_by_rope_prior apply to the language model only"
        return ""

    def llm_refusal(self) -> str:
        """Say why no language model can serve it, and the cure; "" where one can."""
        if self.query not in get_args(TextQuery):
            return f"the queries of the language model are {', '.join(map(repr, get_args(TextQuery)))}"
        if self.blocks != "feeding" or self.heads == "joined":
            return "blocks='tower' and heads='joined' apply to vision encoders only"
        return ""


@dataclass(frozen=True)
class AttentionKeys(AttentionNeed):
    """Keys: as projected in the vision tower, after RoPE in the language model (as its cache holds them)."""

    axes: ClassVar[str] = "LVHNC"
    spans_picture: ClassVar[bool] = False
    layers: tuple[int, ...]
    tower: Tower = "vision"
    blocks: Blocks = "feeding"

    def read_encoder(self, call: KernelCall, tokens: EncoderTokens) -> Tensor:
        """[B, G, T, d] float32 from one call of a block."""
        return KeyStates(tokens.skip, tokens.pool)(call)

    def read_llm(self, call: KernelCall, prompts: PromptTokens) -> Tensor:
        """[P, G, L, d] float32 from one call of a layer."""
        return call.key.float()


@dataclass(frozen=True)
class HiddenStates(HiddenNeed):
    """Hidden states: what the projector reads, or a layer's output after the language model's last norm."""

    axes: ClassVar[str] = "VNC"
    layer: int = -1
    tower: Tower = "vision"

    def read_encoder(self, tokens: Tensor, class_token: Tensor | None) -> Tensor:
        """[B, T, C] the hidden states of the tokens."""
        return tokens

    def read_llm(self, states: Tensor, prompts: PromptTokens) -> Tensor:
        """[P, L, C] the hidden states."""
        return states


@dataclass(frozen=True)
class ClassToken(HiddenNeed):
    """The [CLS] feature, which the projector never sees."""

    axes: ClassVar[str] = "VC"

    def read_encoder(self, tokens: Tensor, class_token: Tensor | None) -> Tensor:
        """[B, C] the hidden state of the class token."""
        if class_token is None:
            raise ValueError(f"{self}: {NO_CLASS_TOKEN}")
        return class_token

    def encoder_refusal(self, tokens: EncoderTokens) -> str:
        """Say why an encoder with such tokens cannot serve it, and the cure; "" where it can."""
        return "" if tokens.has_class else NO_CLASS_TOKEN


@dataclass(frozen=True)
class TextTokens(LayerNeed):
    """The same of the text tokens after a sample's last visual token, NaN where it has fewer; heads joined."""

    axes: ClassVar[str] = "PTC"
    tower = "llm"
    what: AttentionNeed | HiddenNeed  # of the language model, one layer

    @property
    def source(self) -> Need:
        """The need that is read."""
        return self.what

    @property
    def layer_numbers(self) -> tuple[int, ...]:
        """The layers of what is read."""
        return self.what.layer_numbers

    def at_layer(self, layer: int) -> Self:
        """Return the same of another layer."""
        return replace(self, what=self.what.at_layer(layer))

    def llm_refusal(self) -> str:
        """Say why no language model can serve it, and the cure; "" where one can."""
        if self.what.site != "llm":
            return "text is read of the language model: use tower='llm'"
        if len(self.what.layer_numbers) != 1:
            return "text is read of one layer: name one in `layers`"
        return self.what.llm_refusal()


@dataclass(frozen=True)
class Similarity(Need):
    """Cosine of each token and the question in a space they share, mean over the question's segments.

    `model` is "clip:PATH", the CLIP that the backbone's own tower was taken from, whose features are compared
    (CDPruner, arXiv 2506.10967); "clip", the same where the tower is of a published shape (OpenAI's CLIP-L/14 and
    L/14-336); or "open_clip:NAME/WEIGHTS", which looks at the picture itself. A question longer than the text tower's
    context (77 tokens) is cut into segments.
    """

    axes: ClassVar[str] = "VN"
    model: str = "clip"

    @property
    def site(self) -> Site:
        """An auxiliary encoder."""
        return "auxiliary"

    @property
    def prerequisites(self) -> tuple[Need, ...]:
        """The features of the backbone's own tower, where that is the CLIP in question."""
        return (HiddenStates(),) if self.model.partition(":")[0] == "clip" else ()
