from dataclasses import dataclass

import torch
from vtcframe import AttentionNeed, Scorer


@dataclass(frozen=True)
class AttentionEntropy(AttentionNeed):
    """The entropy of each token's own attention, in nats: 0 where it attends to one key only."""

    layers: tuple[int, ...]
    tower: str = "vision"

    def read_encoder(self, call, tokens):
        """[B, H, T] from one call of a block over B views."""
        return tokens.of_values(entropy(call))

    def read_llm(self, call, prompts):
        """[P, H, L] from one call of a layer over P prompts."""
        return entropy(call)


def entropy(call):
    """[B, H, Q]: a chunk of rows at a time, so that no whole attention matrix is held."""
    chunks = [torch.special.entr(call.attention(rows)).sum(-1) for rows in call.row_chunks()]
    return torch.cat(chunks, 2)


@dataclass(frozen=True)
class FocusedAttention(Scorer):
    """[1, V, N]: minus the entropy of each token's own attention, mean over heads: focused tokens come first."""

    layer: int = -1
    tower: str = "vision"

    @property
    def needs(self):
        return (AttentionEntropy((self.layer,), self.tower),)

    def __call__(self, evidence):
        return -evidence[self.needs[0]].mean(2)  # [L, V, H, N] -> [1, V, N]
