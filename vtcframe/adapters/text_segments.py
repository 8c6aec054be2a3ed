"""Segmentation of questions that are longer than the context of a text encoder."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Tokenise = Callable[[str, int], Tensor]  # text, length -> ids [length]: padded, or truncated with an end token


def segments(question: str, tokenise: Tokenise, length: int) -> list[str]:
    """Cut a question into the fewest runs of complete words whose tokens fit into `length`, begin and end included.

    A word that does not fit by itself is cut between letters. A question without words is one empty segment.
    ValueError if not even one letter fits.
    """

    def fits(text: str) -> bool:  # a text that fits has the same ids, but for padding, in a longer context
        return torch.equal(tokenise(text, length), tokenise(text, length + 1)[:length])

    parts: list[str] = []
    words = question.split()
    while words:
        if count := _longest(words, " ", fits):
            parts.append(" ".join(words[:count]))
            words = words[count:]
        elif count := _longest(words[0], "", fits):
            parts.append(words[0][:count])
            words[0] = words[0][count:]
        else:
            raise ValueError(f"the tokenizer does not fit {words[0][0]!r} into {length} tokens: no question can be cut")
    return parts or [""]


def _longest(pieces: Sequence[str], separator: str, fits: Callable[[str], bool]) -> int:
    """Return how many of the first pieces fit when joined, by bisection."""
    low, high = 0, len(pieces)
    while low < high:
        middle = (low + high + 1) // 2
        if fits(separator.join(pieces[:middle])):
            low = middle
        else:
            high = middle - 1
    return low
