"""How far apart logits may be that a law says are equal.

Distances are relative to the largest logit, so that they mean the same for every model. Two computations that are
equal in exact arithmetic differ in their last bits, and by how much depends on the processor. The table below was
measured on every tiny model, sdpa and eager, by perturbing all weights by the rounding error of their type, which
stands in for another processor:

| what | distance |
|---|---|
| float64 | 9e-16, unless a number inside is rounded to float32 |
| float64, a number inside is rounded to another float32 | up to 4.4e-7, up to 2.2e-6 for GLM-4.1V |
| float32 | up to 1.2e-5 |
| one hidden token is seen, or one position is off by one | at least 1.9e-2 at some token, 3.5e-3 at the last one |

transformers rounds to float32 also in a float64 model: RMSNorm, rotary embeddings in encoders and the eager kernel's
softmax. A difference of 1e-16 before such a rounding is lost nearly always; three times in ten thousand forward passes
it turns one number into its neighbour. Encoders of GLM-4.1V do it in nearly every pass, as they round sums of two
float32 numbers, which lie in the middle between two others. The tolerance of float64 passes these, and no mistake.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

RELATIVE_TOLERANCE = {torch.float64: 1e-5, torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 1e-1}


def relative_tolerance(dtype: torch.dtype) -> float:
    """Return the largest distance that passes between logits of models in `dtype`."""
    return RELATIVE_TOLERANCE[dtype]


def relative_distance(computed: Tensor, expected: Tensor) -> float:
    """Return the largest difference of logits over the largest expected logit; NaN where either holds one.

    Give rows of real tokens only: what a model computes at padding means nothing, and may be NaN.
    """
    scale = expected.abs().max().clamp(min=torch.finfo(expected.dtype).tiny)
    return ((computed - expected).abs().max() / scale).item()


@contextmanager
def finite_eager_masks() -> Iterator[None]:
    """Let the eager kernel's masks of float64 models hide keys with the lowest number of float32, not of float64.

    That kernel takes the softmax in float32, where the lowest number of float64 is -inf. Padding that sees no key then
    becomes NaN, and from the next layer on every token of its sample. Models in other types get the masks they always
    get. The registry of masks is restored, also after an exception.
    """
    original = ALL_MASK_ATTENTION_FUNCTIONS["eager"]
    before = dict(ALL_MASK_ATTENTION_FUNCTIONS._local_mapping)

    def finite(*args: Any, dtype: torch.dtype = torch.float32, **options: Any) -> Tensor:
        return original(*args, dtype=torch.float32 if dtype == torch.float64 else dtype, **options)

    ALL_MASK_ATTENTION_FUNCTIONS["eager"] = finite
    try:
        yield
    finally:
        ALL_MASK_ATTENTION_FUNCTIONS._local_mapping.clear()
        ALL_MASK_ATTENTION_FUNCTIONS._local_mapping.update(before)
