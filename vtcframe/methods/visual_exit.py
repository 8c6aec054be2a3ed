"""VisualExit: drops all visual tokens at one LLM layer, as in DyVTE (arXiv 2411.19628), without its training."""

from dataclasses import KW_ONLY, dataclass

import torch

from vtcframe.core.budget import Budget
from vtcframe.core.evidence import Evidence
from vtcframe.core.method import Method, MethodCard
from vtcframe.core.needs import AttentionRows, Need
from vtcframe.core.pipeline import gather
from vtcframe.core.pruned import Pruned
from vtcframe.core.stages import Pruner, Stage
from vtcframe.methods._base import check_layers


@dataclass(frozen=True)
class VisualExit(Method):
    """Drops all visual tokens at once, as in DyVTE (arXiv 2411.19628), without its training.

    Without a threshold all visual tokens are dropped before the first of `layers`. With a threshold, the tokens of a
    sample are dropped before the first of `layers` that meets a condition: in each of the `patience` layers before, the
    attention of the prompt's last token to all visual tokens together, mean over heads, was below `threshold`. The
    method takes no budget; tokens keep their positions. Deviation: DyVTE decides by a small network, trained for each
    model, on the hidden states of the text; both rules here are ours.
    """

    card = MethodCard(
        paper="arXiv 2411.19628",
        signal="none, or attention of the prompt's last token to all visual ones",
        selector="all or none of a sample",
        dropped="discarded",
        parity="differs: a fixed layer or a threshold in place of the trained exit",
        site="llm",
        text=True,
    )
    layers: tuple[int, ...] = (16,)
    threshold: float | None = None
    _: KW_ONLY
    patience: int = 1

    def __post_init__(self) -> None:
        object.__setattr__(self, "layers", check_layers(self.layers))
        if self.threshold is not None and not 0 < self.threshold <= 1:
            raise ValueError(f"threshold is a share of attention and must lie in (0, 1], got {self.threshold}")
        if not 1 <= self.patience <= self.layers[0]:
            raise ValueError(
                f"patience counts layers before the first of `layers`, {self.layers[0]}: give 1 to {self.layers[0]}, "
                f"got {self.patience}"
            )

    def stages(self, budget: Budget | None) -> tuple[Stage, ...]:
        if budget is not None:
            raise ValueError(f"VisualExit drops all visual tokens or none and takes no budget: omit {budget}")
        layers = self.layers if self.threshold is not None else self.layers[:1]
        return tuple(Stage(f"llm:{layer}", DropAll(self.threshold, self.patience)) for layer in layers)


@dataclass(frozen=True)
class DropAll(Pruner):
    """Drops all visual tokens of a sample or none; with a threshold, only of samples with less attention to them.

    The attention is the sum over a sample's visual tokens, and it must be below the threshold in each of the `patience`
    layers before the stage. The budget is ignored. ValueError, naming the samples, if their attention is not finite.
    """

    threshold: float | None = None
    patience: int = 1

    @property
    def needs(self) -> tuple[Need, ...]:
        if self.threshold is None:
            return ()
        return (AttentionRows("last", tuple(range(-self.patience, 0)), tower="llm", heads="mean"),)

    @torch.no_grad()
    def __call__(self, evidence: Evidence, budget: Budget | None = None) -> Pruned:
        layout = evidence.layout
        valid = layout.valid
        scores = torch.zeros(valid.shape, device=valid.device, dtype=torch.float32)
        is_kept = torch.zeros(len(layout.key), dtype=torch.bool)
        if self.threshold is not None:
            attention = evidence[self.needs[0]].float().mean(2).masked_fill(~valid, 0)  # [L, V, N]
            mass = attention.new_zeros(len(attention), len(layout.key))
            mass = mass.index_add_(1, layout.sample.to(attention.device), attention.sum(2)).cpu()
            if not mass.isfinite().all():
                samples = (~mass.isfinite()).any(0).nonzero()[:, 0].tolist()
                raise ValueError(f"attention of samples {samples} is not finite: {self}")
            scores = attention.mean(0)
            is_kept = (mass >= self.threshold).any(0)
        is_kept = is_kept[layout.sample]
        kept = valid & is_kept.to(valid.device)[:, None]
        return gather(kept, layout.count * is_kept, scores.masked_fill(~valid, -torch.inf), evidence)
