from dataclasses import dataclass

from vtcframe import AttentionRows, Scorer


@dataclass(frozen=True)
class Consensus(Scorer):
    """[1, V, N]: the least [CLS] attention of three blocks, mean over heads: a token counts if none overlooks it."""

    @property
    def needs(self):
        return (AttentionRows("cls", (-3, -2, -1)),)

    def __call__(self, evidence):
        return evidence[self.needs[0]].mean(2).amin(0, keepdim=True)  # [L, V, H, N] -> [1, V, N]
