"""The outcome of a run: its output and the visual tokens that were kept."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from vtcframe.core.layout import Layout
from vtcframe.core.pruned import Pruned


@dataclass(frozen=True)
class Outcome:
    """The output of a run and the number of tokens that the language model processed, for a batch of P samples.

    Counts are on the CPU. Structural tokens (such as newlines) are counted separately from visual tokens.
    """

    output: Any  # return value of `generate`
    layout: Layout | None  # layout of the views before pruning; None for a batch without pictures
    pruned: Pruned | None  # None if nothing had to be dropped: no token was scored, the model ran untouched
    tokens_before: Tensor  # [P]
    tokens_after: Tensor  # [P]
    structural_before: Tensor  # [P]
    structural_after: Tensor  # [P]
    tokens_per_layer: Tensor  # [P, layers] visual tokens that each layer of the language model processes
    kv_bytes: Tensor  # [P] size of the KV cache of the prompt, text included, during decoding
    kv_bytes_before: Tensor  # [P] the same without pruning
    # Wall time of each step: "arrange", "encode" (stages inside the encoder included), "prune", "splice" and
    # "generate" (stages inside the language model included). A model that runs untouched encodes within "generate".
    seconds: Mapping[str, float]

    @property
    def kept(self) -> Tensor | None:
        """Bool [V, N] for each view, or [P, N] if the pruner joined the views of a sample; None without pictures."""
        if self.pruned is not None:
            return self.pruned.kept
        return None if self.layout is None else self.layout.valid

    @property
    def scores(self) -> Tensor | None:
        """Float32 with the shape of `kept`, -inf at padding; None if no token was scored.

        With several stages it holds the last score of each token: that of the stage that dropped it, if any.
        """
        return None if self.pruned is None else self.pruned.scores

    @property
    def mean_tokens_per_layer(self) -> Tensor:
        """[P] float32: number of visual tokens that a layer processes, mean over the layers of the language model.

        This is the effective budget: layers before a stage inside the language model process more tokens.
        """
        return self.tokens_per_layer.float().mean(1)
