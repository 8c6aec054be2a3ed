"""All visual tokens leave at one layer, as in DyVTE (arXiv 2411.19628), without its training."""

from dataclasses import dataclass

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
    """Visual tokens leave all at once, as in DyVTE (arXiv 2411.19628), without its training.

    Without a threshold they leave before the first of `layers`. With one, they leave a sample before the first of them
    at which the attention of the prompt's last token to all of them, mean over heads, was below `threshold` in each of
    the `patience` layers before. It takes no budget. DyVTE decides by a small network, trained for each model, which
    reads the text's hidden states; both rules here are ours. Tokens keep their positions.
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
            raise ValueError(f"VisualExit drops all visual tokens or none and takes no budget: leave out {budget}")
        layers = self.layers if self.threshold is not None else self.layers[:1]
        return tuple(Stage(f"llm:{layer}", DropAll(self.threshold, self.patience)) for layer in layers)


@dataclass(frozen=True)
class DropAll(Pruner):
    """All visual tokens of a sample leave, or none: with a threshold, those of samples that pay them less.

    What counts is the sum over a sample's visual tokens, in each of the `patience` layers before the stage. The budget
    does not matter. ValueError, naming the samples, if their attention is not finite.
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
        layout, valid = evidence.layout, evidence.layout.valid
        scores = torch.zeros(valid.shape, device=valid.device, dtype=torch.float32)
        stays = torch.zeros(len(layout.key), dtype=torch.bool)
        if self.threshold is not None:
            attention = evidence[self.needs[0]].float().mean(2).masked_fill(~valid, 0)  # [L, V, N]
            mass = attention.new_zeros(len(attention), len(layout.key))
            mass = mass.index_add_(1, layout.sample.to(attention.device), attention.sum(2)).cpu()
            if not mass.isfinite().all():
                samples = (~mass.isfinite()).any(0).nonzero()[:, 0].tolist()
                raise ValueError(f"attention of samples {samples} is not finite: {self}")
            scores, stays = attention.mean(0), (mass >= self.threshold).any(0)
        stays = stays[layout.sample]
        kept = valid & stays.to(valid.device)[:, None]
        return gather(kept, layout.count * stays, scores.masked_fill(~valid, -torch.inf), evidence)
