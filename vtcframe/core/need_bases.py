"""The base classes of needs, which plug-ins extend to define their own kinds of evidence.

A need is a frozen dataclass that extends `AttentionNeed` or `HiddenNeed`. It defines where evidence is read and how.
Adapters and hooks find the modules, pass kernel calls or hidden states to the need, and arrange the result by `axes`.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import replace
from typing import Any, ClassVar, Literal, Self

from torch import Tensor

from vtcframe.core.encoder_readers import EncoderTokens
from vtcframe.core.kernel_call import KernelCall
from vtcframe.core.text_readers import PromptTokens

# "vision", "llm", or an auxiliary encoder: "timm:NAME", "open_clip:NAME/WEIGHTS" (see adapters/auxiliary_encoders.py)
Tower = str

Site = Literal["encoder", "llm", "auxiliary"]  # the vision encoder, the language model, or an encoder beside both

Blocks = Literal["feeding", "tower"]

Preparation = Callable[[Tensor, PromptTokens], Tensor]  # embeddings [P, L, D] -> [P, L, ...]

NOT_OF_ENCODERS = "it can be read in the language model only"
NOT_OF_LLM = "it can be read in vision encoders only"


class Need(ABC):
    """A request for evidence. Subclasses are frozen dataclasses, so that equal needs are gathered only once."""

    axes: ClassVar[str]

    @property
    @abstractmethod
    def site(self) -> Site:
        """The site where the evidence is read."""

    @property
    def source(self) -> "Need":
        """The need whose readings this need rearranges; the need itself by default."""
        return self

    @property
    def prerequisites(self) -> "tuple[Need, ...]":
        """Needs of the vision encoder whose evidence an adapter must gather before this need."""
        return ()

    def encoder_refusal(self, tokens: EncoderTokens) -> str:
        """Return why an encoder with such tokens cannot serve the need, and the cure; "" if it can."""
        return NOT_OF_ENCODERS

    def llm_refusal(self) -> str:
        """Return why no language model can serve the need, and the cure; "" if a language model can."""
        return NOT_OF_LLM


class LayerNeed(Need):
    """A need that is read layer by layer; its `tower` is the vision encoder, the language model or another encoder."""

    tower: Tower = "vision"

    @property
    def site(self) -> Site:
        """The site of the tower: "vision" and "llm" are towers of the backbone, all others auxiliary encoders."""
        sites: dict[str, Site] = {"vision": "encoder", "llm": "llm"}
        return sites.get(self.tower, "auxiliary")

    @property
    @abstractmethod
    def layer_numbers(self) -> tuple[int, ...]:
        """The layers that are read, in the order of axis L; negative numbers count from the end."""

    @abstractmethod
    def at_layer(self, layer: int) -> Self:
        """Return the same need for a single layer."""


class AttentionNeed(LayerNeed):
    """A need that reads calls of attention kernels: axes "LVHN", or "LVHNC" for vectors of each token.

    A subclass is a frozen dataclass with a field `layers`. If it serves both sites it has a field `tower`; otherwise it
    sets `tower` in the class. It implements `read_encoder`, `read_llm` or both, and refuses the site that it cannot
    serve. Readings run without gradients and autocast, one call at a time. Keep memory linear in the number of keys
    (see `KernelCall.row_chunks`).

    `blocks="feeding"` counts only the blocks whose output reaches the projector. LLaVA reads `hidden_states[-2]`, so
    its last block does not count. Methods whose papers use the scores of that unused block set `blocks="tower"`. Blocks
    with window attention (Qwen2.5-VL) do not count either: their weights are not comparable across a picture.
    """

    axes: ClassVar[str] = "LVHN"
    spans_picture: ClassVar[bool] = (
        True  # whether it compares all tokens of a picture, which window blocks cannot serve
    )
    layers: tuple[int, ...]
    blocks: Blocks = "feeding"

    @property
    def layer_numbers(self) -> tuple[int, ...]:
        """The field `layers`."""
        return self.layers

    def at_layer(self, layer: int) -> Self:
        """Return the same need for a single layer."""
        return replace(self, layers=(layer,))  # pyright: ignore[reportArgumentType] (subclasses are dataclasses)

    @property
    def at_pooling_head(self) -> bool:
        """Whether it is read in the encoder's attention-pooling head and not in blocks."""
        return False

    def reading(self, tokens: EncoderTokens) -> Self:
        """Return the need as it is read in a single encoder block; needs that are equal here share a reading."""
        fields = getattr(self, "__dataclass_fields__", {})
        shared: dict[str, Any] = {"layers": (0,), "blocks": "feeding"}
        return replace(self, **{name: x for name, x in shared.items() if name in fields})  # pyright: ignore

    def read_encoder(self, call: KernelCall, tokens: EncoderTokens) -> Tensor:
        """[B, H, T] float32, or [B, G, T, d], from a call over B views of K keys, which form T tokens."""
        raise NotImplementedError(f"{type(self).__name__} has no read_encoder: define it, or refuse in encoder_refusal")

    def read_llm(self, call: KernelCall, prompts: PromptTokens) -> Tensor:
        """[P, H, L] float32, or [P, G, L, d], from one layer's call over P prompts of L slots, padding included."""
        raise NotImplementedError(f"{type(self).__name__} has no read_llm: define it, or refuse in llm_refusal")

    @property
    def preparation(self) -> Preparation | None:
        """A function of the embeddings that enter layer 0 of the language model; None if nothing is prepared.

        It is called once with embeddings [P, L, D] and the prompts, and returns a tensor [P, L, ...]. `read_llm`
        receives the rows of the remaining slots as `prompts.prepared`. Needs with equal functions share the result.
        """
        return None

    def encoder_refusal(self, tokens: EncoderTokens) -> str:
        """Return why an encoder with such tokens cannot serve the need, and the cure; "" if it can."""
        return NOT_OF_ENCODERS if type(self).read_encoder is AttentionNeed.read_encoder else ""

    def llm_refusal(self) -> str:
        """Return why no language model can serve the need, and the cure; "" if a language model can."""
        if type(self).read_llm is AttentionNeed.read_llm:
            return NOT_OF_LLM
        return "" if self.blocks == "feeding" else "blocks='tower' applies to vision encoders only"


class HiddenNeed(LayerNeed):
    """A need that reads hidden states: axes "VNC" with a vector for each token, or "VC" with a vector for each view.

    A subclass is a frozen dataclass. Vision encoders offer only layer -1, the input of the projector. In the language
    model a layer's output is read after the model's last norm.
    """

    axes: ClassVar[str] = "VNC"
    layer: int = -1

    @property
    def layer_numbers(self) -> tuple[int, ...]:
        """The field `layer` as a tuple."""
        return (self.layer,)

    def at_layer(self, layer: int) -> Self:
        """Return the same need for another layer."""
        return replace(self, layer=layer)  # pyright: ignore[reportArgumentType] (subclasses are dataclasses)

    def read_encoder(self, tokens: Tensor, class_token: Tensor | None) -> Tensor:
        """[B, T, C'] or [B, C'] from the hidden states of tokens [B, T, C] and of the class token [B, C].

        The channels of a token that consists of several patches are the concatenated channels of its patches.
        """
        raise NotImplementedError(f"{type(self).__name__} has no read_encoder: define it, or refuse in encoder_refusal")

    def read_llm(self, states: Tensor, prompts: PromptTokens) -> Tensor:
        """[P, L, C'] from the hidden states [P, L, C] of a layer, padding included."""
        raise NotImplementedError(f"{type(self).__name__} has no read_llm: define it, or refuse in llm_refusal")

    def encoder_refusal(self, tokens: EncoderTokens) -> str:
        """Return why an encoder with such tokens cannot serve the need, and the cure; "" if it can."""
        if type(self).read_encoder is HiddenNeed.read_encoder:
            return NOT_OF_ENCODERS
        return "" if self.layer == -1 else "vision encoders offer layer=-1 only, the input of the projector"

    def llm_refusal(self) -> str:
        """Return why no language model can serve the need, and the cure; "" if a language model can."""
        if type(self).read_llm is HiddenNeed.read_llm:
            return NOT_OF_LLM
        return "" if self.axes == "VNC" else "the language model offers vectors of tokens only, axes VNC"
