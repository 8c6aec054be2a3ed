"""The kinds of evidence that a component can require. Each is a hashable request with the `axes` of its result.

Axes: L layers, V views, H heads, N tokens, P samples, T text tokens, C channels. Layers count from 0, and negative
numbers count from the end. A kind that only a single paper uses is in that paper's module. All kinds extend the classes
of `vtcframe.core.need_bases`.
"""

from dataclasses import KW_ONLY, dataclass, replace
from typing import Any, ClassVar, Literal, Self, get_args

from torch import Tensor

from vtcframe.core.encoder_readers import EncoderTokens, KeyStates, MeanQuery, QueryRow, ReceivedAttention
from vtcframe.core.kernel_call import KernelCall
from vtcframe.core.need_bases import AttentionNeed, Blocks, HiddenNeed, LayerNeed, Need, Site, Tower
from vtcframe.core.text_readers import PromptTokens, query_starts, text_rows

ClsProxy = Literal["cls", "mean", "received", "head", "proxy"]  # the class token, or a proxy for it

TextQuery = Literal["last", "text", "after"]  # the queries in the language model

Query = ClsProxy | TextQuery

NO_CLASS_TOKEN = (
    "it has no class token. Use a proxy, query='mean' or 'received', or the class token of an auxiliary encoder"
)


@dataclass(frozen=True)
class AttentionRows(AttentionNeed):
    """Attention weights from a query to the visual tokens: softmax over all keys, in float32.

    Queries in vision encoders:

    - "cls": the class token.
    - "received": the mean over the queries of all patches (VScan), for encoders without a class token.
    - "mean": the mean query, with the mean key of each token's patches (FastVID; linear in N).
    - "head": the learned query of an attention-pooling head, with layers=(-1,) (SigLIP).
    - "proxy": "cls" for encoders with a class token, "mean" for all others.

    The weight of a token that consists of several patches is the mean over its patches. Auxiliary encoders offer "cls"
    only, interpolated bilinearly at the centres of the tokens.

    Queries in the language model, where causal attention lets only later tokens attend to a visual token:

    - "last": the prompt's last token.
    - "text": all tokens after the last visual token of the sample.
    - "after": all tokens after the view, visual tokens included; for a picture cut into crops, after its last crop.

    If no token follows, the last token is the query. `reduce` is the mean or the maximum over the queries.
    `divide_by_rope_prior` divides by the attention that an all-ones query and key would get from RoPE alone (SparseVLM
    2). A stage at "llm:K" can read layers up to K, where layer K is read before it runs, and negative numbers count
    back from K. Before the language model any layer can be read; the layers up to the deepest of them then run an
    additional time.
    """

    query: Query
    layers: tuple[int, ...]
    tower: Tower = "vision"
    _: KW_ONLY
    blocks: Blocks = "feeding"
    pre_softmax: bool = False  # logits before the softmax
    # "mean" averages the heads before `reduce`; "joined" treats all heads as a single head of full width
    heads: Literal["split", "mean", "joined"] = "split"
    reduce: Literal["mean", "max"] = "mean"  # how several query rows are reduced
    divide_by_rope_prior: bool = False

    @property
    def at_pooling_head(self) -> bool:
        """Whether the learned query of an attention-pooling head is read."""
        return self.query == "head"

    def reading(self, tokens: EncoderTokens) -> Self:
        """Return the need as it is read in a single block, with "proxy" resolved for this encoder."""
        shared = super().reading(tokens)
        proxy: ClsProxy = "cls" if tokens.has_class else "mean"
        return replace(shared, query=proxy) if self.query == "proxy" else shared

    def read_encoder(self, call: KernelCall, tokens: EncoderTokens) -> Tensor:
        """[B, H, T] float32 attention weights from one call of a block."""
        query = self.reading(tokens).query
        if query == "mean":
            return MeanQuery(pre_softmax=self.pre_softmax, heads=self.heads, skip=tokens.skip, pool=tokens.pool)(call)
        if query == "received":
            heads: Any = self.heads
            return ReceivedAttention(heads=heads, skip=tokens.skip, pool=tokens.pool)(call)
        return QueryRow(0, pre_softmax=self.pre_softmax, heads=self.heads, skip=tokens.skip, pool=tokens.pool)(call)

    def read_llm(self, call: KernelCall, prompts: PromptTokens) -> Tensor:
        """[P, H, L] float32 attention weights from one call of a layer."""
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
        """Return why an encoder with such tokens cannot serve the need, and the cure; "" if it can."""
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
        """Return why no language model can serve the need, and the cure; "" if a language model can."""
        if self.query not in get_args(TextQuery):
            return f"the queries of the language model are {', '.join(map(repr, get_args(TextQuery)))}"
        if self.blocks != "feeding" or self.heads == "joined":
            return "blocks='tower' and heads='joined' apply to vision encoders only"
        return ""


@dataclass(frozen=True)
class AttentionKeys(AttentionNeed):
    """Keys: as projected in the vision tower; after RoPE in the language model, as in its KV cache."""

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
    """Hidden states: the input of the projector, or a layer's output after the language model's last norm."""

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
    """The hidden state of the class token, which is no input of the projector."""

    axes: ClassVar[str] = "VC"

    def read_encoder(self, tokens: Tensor, class_token: Tensor | None) -> Tensor:
        """[B, C] the hidden state of the class token."""
        if class_token is None:
            raise ValueError(f"{self}: {NO_CLASS_TOKEN}")
        return class_token

    def encoder_refusal(self, tokens: EncoderTokens) -> str:
        """Return why an encoder with such tokens cannot serve the need, and the cure; "" if it can."""
        return "" if tokens.has_class else NO_CLASS_TOKEN


@dataclass(frozen=True)
class TextTokens(LayerNeed):
    """Keys or hidden states of the text tokens after a sample's last visual token, heads joined.

    A sample with fewer text tokens than T has NaN in the remaining rows.
    """

    axes: ClassVar[str] = "PTC"
    tower = "llm"
    what: AttentionNeed | HiddenNeed  # the need that is read of text tokens, for a single layer of the language model

    @property
    def source(self) -> Need:
        """The need whose readings are rearranged."""
        return self.what

    @property
    def layer_numbers(self) -> tuple[int, ...]:
        """The layers of the need that is read."""
        return self.what.layer_numbers

    def at_layer(self, layer: int) -> Self:
        """Return the same need for another layer."""
        return replace(self, what=self.what.at_layer(layer))

    def llm_refusal(self) -> str:
        """Return why no language model can serve the need, and the cure; "" if a language model can."""
        if self.what.site != "llm":
            return "text tokens are read in the language model: use tower='llm'"
        if len(self.what.layer_numbers) != 1:
            return "text tokens are read in one layer: give a single layer in `layers`"
        return self.what.llm_refusal()


@dataclass(frozen=True)
class Similarity(Need):
    """Cosine similarity of each token and the question in a shared embedding space, mean over the question's segments.

    Values of `model`:

    - "clip:PATH": the CLIP model from which the backbone's tower was taken. The tower's features are compared with the
      question (CDPruner, arXiv 2506.10967).
    - "clip": the same, for towers of a published shape (OpenAI's CLIP-L/14 and L/14-336).
    - "open_clip:NAME/WEIGHTS": another model, which encodes the picture again.

    A question longer than the text tower's context (77 tokens) is cut into segments.
    """

    axes: ClassVar[str] = "VN"
    model: str = "clip"

    @property
    def site(self) -> Site:
        """An auxiliary encoder."""
        return "auxiliary"

    @property
    def prerequisites(self) -> tuple[Need, ...]:
        """The features of the backbone's tower, if `model` is the CLIP model of that tower."""
        return (HiddenStates(),) if self.model.partition(":")[0] == "clip" else ()
