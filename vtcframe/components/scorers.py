"""Scorers rate the importance of tokens: (evidence) -> scores [S, V, N] float32."""

from dataclasses import KW_ONLY, dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from vtcframe.core.evidence import Evidence
from vtcframe.core.layout import Layout
from vtcframe.core.need_bases import Need
from vtcframe.core.needs import AttentionKeys, AttentionRows, ClsProxy, Similarity, TextQuery
from vtcframe.core.verbs import Scorer
from vtcframe.ops.hashing import mix_hash
from vtcframe.ops.views import first_frames


@dataclass(frozen=True)
class ClsAttention(Scorer):
    """[L, V, N]: attention weights from [CLS] to each token, a map for each block, mean over heads.

    VTC-CLS (arXiv 2412.05819). The maps are those of the `last` blocks, or of the blocks that `layers` lists (see
    AttentionRows). The softmax runs over all keys, [CLS] itself included, and its weights are not normalised again.
    `blocks="feeding"` counts only blocks that feed the projector; `blocks="tower"` counts all, for papers that use the
    block which LLaVA leaves unused. `pre_softmax` returns the logits before the softmax (GlobalCom2). `heads="joined"`
    treats all heads as a single head of full width (PruMerge).

    For towers without a class token `query` is a proxy: "mean", "received" or "head", or "proxy", which is "cls" for
    towers with a class token and "mean" for all others (see AttentionRows). Proxies are shares of the attention within
    a picture, so that they are smaller in larger pictures.
    """

    last: int = 3
    query: ClsProxy = "cls"
    _: KW_ONLY
    layers: tuple[int, ...] | None = None  # instead of the `last`
    blocks: Literal["feeding", "tower"] = "feeding"
    pre_softmax: bool = False
    heads: Literal["split", "joined"] = "split"

    def __post_init__(self) -> None:
        if self.last < 1:
            raise ValueError(f"last counts blocks and must be at least 1, got {self.last}")
        if self.query not in get_args(ClsProxy):
            raise ValueError(f"query must be one of {', '.join(map(repr, get_args(ClsProxy)))}, got {self.query!r}")
        if self.blocks not in ("feeding", "tower"):
            raise ValueError(f"blocks must be 'feeding' or 'tower', got {self.blocks!r}")
        if self.heads not in ("split", "joined"):
            raise ValueError(f"heads must be 'split' or 'joined', got {self.heads!r}")
        if self.layers is not None:
            object.__setattr__(self, "layers", tuple(self.layers))
            if not self.layers:
                raise ValueError("layers names no block: give at least one, or omit it and set the number `last`")

    @property
    def needs(self) -> tuple[Need, ...]:
        layers = tuple(range(-self.last, 0)) if self.layers is None else self.layers
        return (AttentionRows(self.query, layers, blocks=self.blocks, pre_softmax=self.pre_softmax, heads=self.heads),)

    def __call__(self, evidence: Evidence) -> Tensor:
        return evidence[self.needs[0]].mean(2)


@dataclass(frozen=True)
class TextAttention(Scorer):
    """[1, V, N]: attention weights from the question to each token in a layer of the language model.

    At a stage at "llm:K" `layer` is at most K, where layer K is read before it runs; -1 is the layer before K, by which
    FastV ranks tokens (arXiv 2403.06764). Before the language model, the layers up to `layer` run an additional time on
    all tokens. `queries` is "last", "text" or "after" (see AttentionRows), and `reduce` is the mean or the maximum over
    the queries. `heads` is the mean or the maximum over heads, or a number: the mean over that many heads, those with
    the most attention to a sample's visual tokens (SparseVLM 2). `divide_by_rope_prior` divides by the attention that
    an all-ones query and key would get from RoPE alone.
    """

    layer: int = -1
    queries: TextQuery = "last"
    _: KW_ONLY
    heads: Literal["mean", "max"] | int = "mean"
    reduce: Literal["mean", "max"] = "mean"
    divide_by_rope_prior: bool = False

    def __post_init__(self) -> None:
        if self.queries not in get_args(TextQuery):
            raise ValueError(
                f"queries must be one of {', '.join(map(repr, get_args(TextQuery)))}, got {self.queries!r}"
            )
        if self.reduce not in ("mean", "max"):
            raise ValueError(f"reduce must be 'mean' or 'max', got {self.reduce!r}")
        count = isinstance(self.heads, int) and not isinstance(self.heads, bool) and self.heads >= 1
        if self.heads not in ("mean", "max") and not count:
            raise ValueError(f"heads must be 'mean', 'max' or a number of heads of at least 1, got {self.heads!r}")

    @property
    def needs(self) -> tuple[Need, ...]:
        heads = "mean" if self.heads == "mean" else "split"
        return (
            AttentionRows(
                self.queries,
                (self.layer,),
                tower="llm",
                heads=heads,
                reduce=self.reduce,
                divide_by_rope_prior=self.divide_by_rope_prior,
            ),
        )

    def __call__(self, evidence: Evidence) -> Tensor:
        weights = evidence[self.needs[0]]  # [1, V, H, N]
        if isinstance(self.heads, int):
            if self.heads > weights.shape[2]:
                raise ValueError(f"{self}: the layer has {weights.shape[2]} heads only")
            return mean_of_top_heads(weights, self.heads, evidence.layout)
        return weights.amax(2) if self.heads == "max" else weights.mean(2)


def mean_of_top_heads(weights: Tensor, count: int, layout: Layout) -> Tensor:
    """[1, V, H, N] attention -> [1, V, N], mean over the `count` heads with the most attention to a sample's tokens."""
    valid = layout.valid
    sample = layout.sample.to(weights.device)
    by_head = weights[0].masked_fill(~valid[:, None], 0).sum(2)  # [V, H]
    by_head = by_head.new_zeros(len(layout.key), weights.shape[2]).index_add_(0, sample, by_head)
    top = by_head.argsort(dim=1, descending=True, stable=True)[:, :count][sample]  # [V, count]
    return weights[0].gather(1, top[..., None].expand(-1, -1, weights.shape[3])).mean(1)[None]


@dataclass(frozen=True)
class AuxiliaryClsAttention(Scorer):
    """[last, V, N]: attention weights from [CLS] as in ClsAttention, of an auxiliary encoder of the same picture.

    `model` is "timm:NAME" or "open_clip:NAME/WEIGHTS" (see vtcframe.adapters.auxiliary_encoders). The backbone's
    processor provides the pictures. `last` counts all blocks of the auxiliary encoder.
    """

    model: str
    last: int = 1

    def __post_init__(self) -> None:
        if self.last < 1:
            raise ValueError(f"last counts blocks and must be at least 1, got {self.last}")

    @property
    def needs(self) -> tuple[Need, ...]:
        return (AttentionRows("cls", tuple(range(-self.last, 0)), tower=self.model),)

    def __call__(self, evidence: Evidence) -> Tensor:
        return evidence[self.needs[0]].mean(2)


@dataclass(frozen=True)
class QuestionSimilarity(Scorer):
    """[1, V, N]: cosine similarity of each token and the question in a shared embedding space (see Similarity)."""

    model: str

    @property
    def needs(self) -> tuple[Need, ...]:
        return (Similarity(self.model),)

    def __call__(self, evidence: Evidence) -> Tensor:
        return evidence[self.needs[0]][None]


@dataclass(frozen=True)
class KeyNorm(Scorer):
    """[1, V, N]: L1 norm of each token's keys in a single block, over all heads.

    DART (arXiv 2502.11494) selects its pivots by the keys of the language model, tower="llm". Layers then count as in
    TextAttention, and RoPE is applied to the keys. In the vision tower `layer` counts the blocks that feed the
    projector.
    """

    layer: int = -1
    tower: Literal["vision", "llm"] = "vision"

    def __post_init__(self) -> None:
        if self.tower not in ("vision", "llm"):
            raise ValueError(f"tower must be 'vision' or 'llm', got {self.tower!r}")

    @property
    def needs(self) -> tuple[Need, ...]:
        return (AttentionKeys((self.layer,), self.tower),)

    def __call__(self, evidence: Evidence) -> Tensor:
        return evidence[self.needs[0]].float().abs().sum((2, 4))


@dataclass(frozen=True)
class TokenNorm(Scorer):
    """[1, V, N]: Euclidean norm of each token as the language model would read it; a baseline without attention."""

    def __call__(self, evidence: Evidence) -> Tensor:
        return evidence.tokens.float().norm(dim=-1)[None]


@dataclass(frozen=True)
class Uniqueness(Scorer):
    """[2, V, N]: negative similarity of a token to the mean of its video, and to the mean of its frame.

    VidCom2 (arXiv 2505.14454). Tokens are those that the language model would read, restricted to the half of their
    channels that vary least in the video and normalised to length 1. The similarity is the sum of Gaussians
    exp(-d^2 / 2a) of the distance d to the mean, a = 1/8, 1/4, ... 2. A picture counts as a video of one frame.
    """

    def __call__(self, evidence: Evidence) -> Tensor:
        layout = evidence.layout
        valid = layout.valid
        video = (first_frames(layout).cumsum(0) - 1).to(valid.device)
        share = valid.float()[..., None]
        tokens = evidence.tokens.float().masked_fill(~valid[..., None], 0)

        def mean(x: Tensor) -> Tensor:
            """[V, N, C] -> [V, 1, C] over a video."""
            total = x.new_zeros(len(x), x.shape[2]).index_add_(0, video, (x * share).sum(1))
            count = x.new_zeros(len(x), 1).index_add_(0, video, share.sum(1))
            return (total / count.clamp(min=1))[video][:, None]

        spread = mean((tokens - mean(tokens)).square())
        steady = spread.argsort(dim=2, stable=True)[..., : max(tokens.shape[2] // 2, 1)]
        x = torch.nn.functional.normalize(tokens.gather(2, steady.expand(-1, tokens.shape[1], -1)), dim=2)
        frame_mean = (x * share).sum(1, keepdim=True) / share.sum(1, keepdim=True).clamp(min=1)
        distance = torch.stack([(x - mean(x)).square().sum(2), (x - frame_mean).square().sum(2)])
        return -torch.stack([(-distance / (2 * a)).exp() for a in (1 / 8, 1 / 4, 1 / 2, 1, 2)]).sum(0)


@dataclass(frozen=True)
class Random(Scorer):
    """[1, V, N]: pseudo-random scores in [0, 1), a hash of (seed, key of the sample, column of the token).

    Scores are the same on every device and rank, in any batch and at any padding. Tokens kept at a small budget are
    also kept at a larger one.
    """

    seed: int = 0

    def __call__(self, evidence: Evidence) -> Tensor:
        layout = evidence.layout
        key = mix_hash(layout.key ^ mix_hash(torch.tensor(self.seed)))[layout.sample]
        bits = mix_hash(key.to(layout.column.device)[:, None] + layout.column)
        return ((bits >> 40) & 0xFFFFFF).float()[None] / 2**24
