"""MustDrop (arXiv 2411.10803): merges in the encoder; drops in the language model and from its KV cache."""

from dataclasses import KW_ONLY, dataclass
from typing import ClassVar

import torch
from torch import Tensor

from vtcframe.components.allocators import Joint
from vtcframe.components.ensemblers import Max
from vtcframe.components.scorers import ClsAttention, TextAttention
from vtcframe.components.selectors import TopK
from vtcframe.core.budget import Budget
from vtcframe.core.evidence import Evidence
from vtcframe.core.method import Method, MethodCard
from vtcframe.core.needs import ClsProxy, Need
from vtcframe.core.pipeline import Pipeline
from vtcframe.core.pruned import Pruned
from vtcframe.core.stages import Positions, Pruner, Stage
from vtcframe.core.token_merging import MergeTime, merge
from vtcframe.core.verbs import Allocator, Scorer
from vtcframe.methods._base import check_layers
from vtcframe.ops.gather import highest
from vtcframe.ops.quotas import apportion
from vtcframe.ops.similarity import unit_vectors


@dataclass(frozen=True)
class WindowMerge(Pruner):
    """After an encoder block, merges windows of `side` x `side` similar patches into their mean.

    From MustDrop (arXiv 2411.10803). A window merges if the mean cosine of all pairs of its patches is at least
    `alike`. The mean takes the place of the window's central patch. Windows are counted from the top left corner.
    Windows that the picture's edge cuts, or from which a patch was dropped, do not merge. Later blocks treat the mean
    as one patch, as in the authors' code, and not as `side` squared patches. Deviation: here all similar windows merge,
    whereas the code merges as many in each picture of a batch as in the picture with the fewest. It also puts the means
    first, by falling similarity; an encoder ignores that order.
    """

    alike: float = 0.8
    side: int = 3
    when: ClassVar[MergeTime] = "after"

    def __post_init__(self) -> None:
        if self.side < 2:
            raise ValueError(f"side counts the patches along a window and must be at least 2, got {self.side}")

    @torch.no_grad()
    def __call__(self, evidence: Evidence, budget: Budget | None = None) -> Pruned:
        if budget is not None:
            raise ValueError(f"{self} takes no budget: the threshold `alike` sets the number of merged windows")
        layout = evidence.layout
        grid = layout.grid
        patch_count = self.side**2
        has_position = layout.valid & (grid[..., 0] >= 0)
        across = (int(grid[..., 1].max()) if grid.numel() else 0) // self.side + 1
        down = (int(grid[..., 0].max()) if grid.numel() else 0) // self.side + 1
        window = (grid[..., 0] // self.side * across + grid[..., 1] // self.side).masked_fill(
            ~has_position, down * across
        )

        def sum_windows(values: Tensor) -> Tensor:
            """[V, N, C] -> [V, windows + 1, C] sums; the last entry sums the patches outside all windows."""
            index = window[..., None].expand(values.shape)
            return values.new_zeros(len(window), down * across + 1, values.shape[2]).scatter_add_(1, index, values)

        total = sum_windows(unit_vectors(evidence.tokens.float(), has_position)).square().sum(2)
        similarity = ((total - patch_count) / (patch_count * (patch_count - 1))).gather(1, window)
        is_full = sum_windows(has_position.float()[..., None])[..., 0] == patch_count
        complete = is_full.gather(1, window) & has_position
        joins = complete & (similarity >= self.alike)
        index = torch.arange(window.shape[1], device=window.device).expand(window.shape)
        central = (grid % self.side == self.side // 2).all(2) & has_position
        centre = window.new_zeros(len(window), down * across + 1).scatter_(
            1, window.masked_fill(~central, down * across), index
        )
        leader = torch.where(joins, centre.gather(1, window), index)
        quota = layout.count - (joins & ~central).sum(1).cpu()
        scores = torch.where(complete, -similarity, 1)
        merged = merge(evidence, leader, index, quota, torch.ones_like(scores), scores)
        return Pruned(merged.tokens, merged.place, merged.scores, layout)  # without sizes


@dataclass(frozen=True)
class TextShare(Scorer):
    """[1, V, N]: a token's share of the attention from the text to all visual tokens of its sample, divided by `share`.

    From MustDrop (arXiv 2411.10803), whose "global" threshold corresponds to 1. The queries are all text tokens after
    the pictures, mean over heads. `layer` counts as in TextAttention.
    """

    share: float = 0.001
    layer: int = -1

    def __post_init__(self) -> None:
        _check_positive("share", self.share)

    @property
    def needs(self) -> tuple[Need, ...]:
        return TextAttention(self.layer, "text").needs

    def __call__(self, evidence: Evidence) -> Tensor:
        layout = evidence.layout
        attention = TextAttention(self.layer, "text")(evidence).float().masked_fill(~layout.valid, 0)
        sample = layout.sample.to(attention.device)
        total = attention.new_zeros(len(layout.key)).index_add_(0, sample, attention[0].sum(1))
        return attention / (total * self.share).clamp(min=torch.finfo(torch.float32).tiny)[sample][:, None]


@dataclass(frozen=True)
class TextPeak(Scorer):
    """[1, V, N]: the highest attention from any text token after the pictures, mean over heads, divided by `peak`.

    From MustDrop (arXiv 2411.10803), whose "individual" threshold corresponds to 1. `layer` counts as in TextAttention.
    """

    peak: float = 0.001
    layer: int = -1

    def __post_init__(self) -> None:
        _check_positive("peak", self.peak)

    @property
    def needs(self) -> tuple[Need, ...]:
        return TextAttention(self.layer, "text", reduce="max").needs

    def __call__(self, evidence: Evidence) -> Tensor:
        return TextAttention(self.layer, "text", reduce="max")(evidence).float() / self.peak


@dataclass(frozen=True)
class ClsKeySet(Scorer):
    """[1, V, N]: 1 for the fraction `part` of a sample's tokens, rounded up, that [CLS] attends to most; 0 elsewhere.

    From MustDrop (arXiv 2411.10803), by the tower's last block, mean over heads. The fraction is relative to the tokens
    of all views of the sample before any was dropped, so that the set is the same in every stage as long as no token of
    it is dropped. The authors' code counts the remaining patches of a single picture after windows have merged. `query`
    selects a proxy for towers without [CLS] (see ClsAttention).
    """

    part: float = 0.08
    query: ClsProxy = "cls"

    def __post_init__(self) -> None:
        if not 0 <= self.part <= 1:
            raise ValueError(f"part is a fraction of the tokens and must lie in [0, 1], got {self.part}")

    @property
    def needs(self) -> tuple[Need, ...]:
        return ClsAttention(1, self.query, blocks="tower").needs

    def __call__(self, evidence: Evidence) -> Tensor:
        layout = evidence.layout
        attention = ClsAttention(1, self.query, blocks="tower")(evidence)[0].float()
        scores = attention.masked_fill(~layout.valid, -torch.inf)
        count = (layout.untouched.double() * self.part).ceil().long()
        key = highest(scores, Joint()(scores, count, evidence).minimum(layout.count))
        return key.float().masked_fill(~attention.isfinite(), torch.nan)[None]


@dataclass(frozen=True)
class Threshold(Allocator):
    """Adaptive: the number of tokens with a score of at least `threshold`; a budget is split by these numbers.

    A sample in which no token reaches the threshold keeps the single token with the highest score.
    """

    threshold: float = 1.0

    def __call__(self, scores: Tensor, budget: Tensor | None, evidence: Evidence) -> Tensor:
        layout = evidence.layout
        count = (layout.valid & (scores >= self.threshold)).sum(1).cpu()
        if budget is not None:
            return apportion(budget, count, layout)
        is_empty = (layout.total(count) == 0) & (layout.total(layout.count) > 0)
        return count + Joint()(scores, is_empty.long(), evidence)


@dataclass(frozen=True)
class MustDrop(Method):
    """MustDrop (arXiv 2411.10803): merging in the encoder, dropping in the language model and in the KV cache.

    After block 0 of the vision tower, windows of similar patches merge (see WindowMerge). Before each of `layers` of
    the language model a token is dropped if, in the layer before, it receives less than the share `share` of the text's
    attention to visual tokens and less than `peak` from each text token (see TextShare and TextPeak). The fraction
    `keys` of the tokens that [CLS] attends to most is never dropped (see ClsKeySet). After the prefill, dropped tokens
    are also evicted from the KV caches of the layers from `layers[0]` - 1 on.

    The number of kept tokens depends on the picture and the question. The paper's budgets stand for thresholds, share
    and peak: tokens=192 for 0.001 and 0.001, 128 for 0.0012 and 0.001, 64 for 0.011 and 0.01 (0.005 and 0.001 on
    VizWiz). Without a budget the options `share` and `peak` apply; any other budget raises ValueError.

    Deviations from the authors' code: the code renumbers positions ("compact" here) but leaves the keys in the cache at
    their old positions, so that new tokens collide with them; "original" works with every backbone. Options that are
    not part of the paper: `windows=False` does not merge in the encoder, for towers that cannot be pruned inside;
    `forget=False` does not change KV caches, for models with sliding windows; `query` selects a proxy for towers
    without [CLS].
    """

    card = MethodCard(
        paper="arXiv 2411.10803",
        signal="similarity in windows, attention of all text, [CLS] attention",
        selector="thresholds",
        dropped="averaged in windows, then discarded, from KV caches too",
        parity="exact; differs: every similar window merges, in any batch; the key set is a fraction of all tokens",
        site="encoder, llm",
        text=True,
    )
    share: float = 0.001
    peak: float = 0.001
    _: KW_ONLY
    layers: tuple[int, ...] = (3, 7, 11, 15)
    alike: float = 0.8
    keys: float = 0.08
    windows: bool = True
    forget: bool = True
    query: ClsProxy = "cls"
    positions: Positions = "original"

    def __post_init__(self) -> None:
        object.__setattr__(self, "layers", check_layers(self.layers))

    def stages(self, budget: Budget | None) -> tuple[Stage, ...]:
        if budget is not None and budget not in PRESETS:
            raise ValueError(
                f"MustDrop drops by thresholds and has presets for tokens={', '.join(_PRESET_TOKENS)} of 576, "
                f"not for {budget}: give one of these, or no budget and share and peak"
            )
        share, peak = (self.share, self.peak) if budget is None else PRESETS[budget]
        scorers = TextShare(share), TextPeak(peak), ClsKeySet(self.keys, self.query)
        filters = Pipeline(scorers, Max(), Threshold(), TopK())
        forget = self.layers[0] - 1 if self.forget else None
        dropping = [
            Stage(f"llm:{layer}", filters, None, positions=self.positions, forget=forget) for layer in self.layers
        ]
        merging = Stage("encoder:0", WindowMerge(self.alike), None, positions=self.positions)
        return (*([merging] if self.windows else []), *dropping)


PRESETS = {Budget(192): (0.001, 0.001), Budget(128): (0.0012, 0.001), Budget(64): (0.011, 0.01)}  # share, peak
_PRESET_TOKENS = [str(budget.tokens) for budget in PRESETS]


def _check_positive(name: str, value: float) -> None:
    if not value > 0:
        raise ValueError(f"{name} is a threshold and must be positive, got {value}")
