"""What a run did to the visual tokens of a batch."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from vtcframe.core.layout import Layout
from vtcframe.core.pruned import Pruned


@dataclass(frozen=True)
class Outcome:
    """What a run returned and what the language model read in it, for a batch of P samples.

    Counts lie on the CPU. Structural tokens (newlines and their like) are counted apart from visual ones.
    """

    output: Any  # what `generate` returned
    layout: Layout | None  # of the views before anything was dropped; None for a batch without pictures
    pruned: Pruned | None  # None where nothing was to be dropped: no token was scored, the model ran untouched
    tokens_before: Tensor  # [P]
    tokens_after: Tensor  # [P]
    structural_before: Tensor  # [P]
    structural_after: Tensor  # [P]
    tokens_per_layer: Tensor  # [P, layers] visual tokens that each layer of the language model reads
    kv_bytes: Tensor  # [P] keys and values of the prompt, its text included, that the cache holds during decoding
    kv_bytes_before: Tensor  # [P] the same unpruned
    # Wall time of each step: "arrange", "encode" (stages inside the encoder included), "prune", "splice" and
    # "generate" (stages inside the language model included). A model that runs untouched encodes within "generate".
    seconds: Mapping[str, float]

    @property
    def kept(self) -> Tensor | None:
        """Bool [V, N] of the views, or [P, N] where the pruner joined a sample's views; None without pictures."""
        if self.pruned is not None:
            return self.pruned.kept
        return None if self.layout is None else self.layout.valid

    @property
    def scores(self) -> Tensor | None:
        """Float32 shaped as `kept`, -inf where there is no token; None where no token was scored.

        With several stages it holds each token's last score: that of the stage that dropped it, where one did.
        """
        return None if self.pruned is None else self.pruned.scores

    @property
    def mean_tokens_per_layer(self) -> Tensor:
        """[P] float32: visual tokens that a layer reads, mean over the layers of the language model.

        This is what a budget really costs: layers in front of a stage inside the language model read more tokens.
        """
        return self.tokens_per_layer.float().mean(1)
