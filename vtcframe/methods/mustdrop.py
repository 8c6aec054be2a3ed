"""MustDrop: what is alike becomes one in the encoder, what no text asks for leaves the language model and its cache."""

from dataclasses import dataclass
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
    """In an encoder, behind a block: windows of `side` x `side` patches that are alike become their mean.

    Of MustDrop (arXiv 2411.10803): where the mean cosine of all pairs of different patches is at least `alike`. The
    mean takes the place of the window's central patch. Windows count from the top left corner; those that a picture's
    edge cuts, or of which a patch is gone, stay as they are. Later blocks take the mean for one patch, as in the code,
    and not for `side` squared ones. All windows alike merge; the code merges as many in each picture of a batch as in
    that with the fewest, and puts the means in front, by falling likeness, which means nothing to an encoder.
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
            raise ValueError(f"{self} takes no budget: it merges what is alike, by `alike`")
        layout, grid, whole = evidence.layout, evidence.layout.grid, self.side**2
        has_position = layout.valid & (grid[..., 0] >= 0)
        across = (int(grid[..., 1].max()) if grid.numel() else 0) // self.side + 1
        down = (int(grid[..., 0].max()) if grid.numel() else 0) // self.side + 1
        window = (grid[..., 0] // self.side * across + grid[..., 1] // self.side).masked_fill(
            ~has_position, down * across
        )

        def summed(values: Tensor) -> Tensor:
            """[V, N, C] -> [V, windows + 1, C]; the last one is of the patches in none."""
            index = window[..., None].expand(values.shape)
            return values.new_zeros(len(window), down * across + 1, values.shape[2]).scatter_add_(1, index, values)

        total = summed(unit_vectors(evidence.tokens.float(), has_position)).square().sum(2)
        alike = ((total - whole) / (whole * (whole - 1))).gather(1, window)
        complete = (summed(has_position.float()[..., None])[..., 0] == whole).gather(1, window) & has_position
        joins = complete & (alike >= self.alike)
        index = torch.arange(window.shape[1], device=window.device).expand(window.shape)
        central = (grid % self.side == self.side // 2).all(2) & has_position
        centre = window.new_zeros(len(window), down * across + 1).scatter_(
            1, window.masked_fill(~central, down * across), index
        )
        leader = torch.where(joins, centre.gather(1, window), index)
        quota = layout.count - (joins & ~central).sum(1).cpu()
        scores = torch.where(complete, -alike, 1)
        merged = merge(evidence, leader, index, quota, torch.ones_like(scores), scores)
        return Pruned(merged.tokens, merged.place, merged.scores, layout)  # without sizes


@dataclass(frozen=True)
class TextShare(Scorer):
    """[1, V, N]: a token's part of all that the text pays to its sample's visual tokens, in units of `share`.

    Of MustDrop (arXiv 2411.10803), whose "global" threshold is 1 here: all text behind the pictures asks, mean over
    heads. `layer` counts as in TextAttention.
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
    """[1, V, N]: the most that any token of the text behind the pictures pays, mean over heads, in units of `peak`.

    Of MustDrop (arXiv 2411.10803), whose "individual" threshold is 1 here. `layer` counts as in TextAttention.
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
    """[1, V, N]: 1 for the part `part` of a sample that [CLS] attends to most, rounded up, 0 for the others.

    Of MustDrop (arXiv 2411.10803), by the tower's last block, mean over heads. The part is of the sample's tokens
    before any was dropped, all views together, so that it is the same set in every stage as long as none of it goes.
    The code counts the patches that are left of a single picture once windows have merged. `query` names what stands
    in for a missing [CLS] (see ClsAttention).
    """

    part: float = 0.08
    query: ClsProxy = "cls"

    def __post_init__(self) -> None:
        if not 0 <= self.part <= 1:
            raise ValueError(f"part is a part of the tokens and must lie in [0, 1], got {self.part}")

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
    """Adaptive: as many as have a score of `threshold` or more; a budget is split by these numbers.

    A sample of which none has keeps the one token with the highest score.
    """

    threshold: float = 1.0

    def __call__(self, scores: Tensor, budget: Tensor | None, evidence: Evidence) -> Tensor:
        layout = evidence.layout
        count = (layout.valid & (scores >= self.threshold)).sum(1).cpu()
        if budget is not None:
            return apportion(budget, count, layout)
        bare = (layout.total(count) == 0) & (layout.total(layout.count) > 0)
        return count + Joint()(scores, bare.long(), evidence)


@dataclass(frozen=True)
class MustDrop(Method):
    """MustDrop (arXiv 2411.10803): merging in the encoder, dropping in the language model and in the KV cache.

    Behind block 0 of the vision tower windows that are alike become one (see Windows). Before each of `layers` of the
    language model a token goes that all text together pays less than `share` of its attention to pictures in the layer
    before, and each text token less than `peak`; but never one of the `keys`, the part that [CLS] attends to most (see
    ClsKeySet). After the prefill, dropped tokens also leave the KV caches of layers from `layers[0]` - 1 on.

    How many stay depends on the picture and the question. The paper's budgets name thresholds, share and peak: tokens=
    192 is 0.001 and 0.001, 128 is 0.0012 and 0.001, 64 is 0.011 and 0.01 (0.005 and 0.001 on VizWiz). No budget takes
    those of the fields; any other is refused.

    The code numbers positions anew ("compact" here) and leaves keys in the cache at their old ones, so that new tokens
    collide with them. "original" works with every backbone. `windows=False` leaves the encoder alone, for towers that
    cannot be pruned inside; `forget=False` leaves caches alone, for models with sliding windows; `query` names what
    stands in for a missing [CLS]. None of these is part of the paper.
    """

    card = MethodCard(
        paper="arXiv 2411.10803",
        signal="similarity in windows, attention of all text, [CLS] attention",
        selector="thresholds",
        dropped="averaged in windows, then discarded, from caches too",
        parity="exact; differs: every window alike merges, in any batch; the key set is a part of all tokens",
        site="encoder, llm",
        text=True,
    )
    share: float = 0.001
    peak: float = 0.001
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
                f"MustDrop finds by itself how many stay, and knows thresholds for tokens={', '.join(_NAMED)} of 576, "
                f"not for {budget}: give one of these, or no budget and share and peak"
            )
        share, peak = (self.share, self.peak) if budget is None else PRESETS[budget]
        scorers = TextShare(share), TextPeak(peak), ClsKeySet(self.keys, self.query)
        filters = Pipeline(scorers, Max(), Threshold(), TopK())
        forget = self.layers[0] - 1 if self.forget else None
        inside = [
            Stage(f"llm:{layer}", filters, None, positions=self.positions, forget=forget) for layer in self.layers
        ]
        merging = Stage("encoder:0", WindowMerge(self.alike), None, positions=self.positions)
        return (*([merging] if self.windows else []), *inside)


PRESETS = {Budget(192): (0.001, 0.001), Budget(128): (0.0012, 0.001), Budget(64): (0.011, 0.01)}  # share, peak
_NAMED = [str(budget.tokens) for budget in PRESETS]


def _check_positive(name: str, value: float) -> None:
    if not value > 0:
        raise ValueError(f"{name} is a threshold and must be positive, got {value}")
