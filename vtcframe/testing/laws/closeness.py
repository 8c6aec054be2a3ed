"""How far apart logits may be that a law says are equal.

Distances are relative to the largest logit, so that they mean the same for every model. Two computations that are
equal in exact arithmetic differ in the last bits, and by how much depends on the processor: on tiny models in float64
that is below 1e-14, in float32 below 1e-5, while a wrong token, position or mask moves logits by more than 1e-3.
"""

import torch
from torch import Tensor

RELATIVE_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 1e-1}


def relative_tolerance(dtype: torch.dtype) -> float:
    """Return the largest distance that passes between logits of models in `dtype`."""
    return RELATIVE_TOLERANCE[dtype]


def relative_distance(computed: Tensor, expected: Tensor) -> float:
    """Return the largest difference of logits over the largest expected logit; NaN where either holds one.

    Give rows of real tokens only: what a model computes at padding means nothing, and may be NaN.
    """
    scale = expected.abs().max().clamp(min=torch.finfo(expected.dtype).tiny)
    return ((computed - expected).abs().max() / scale).item()
