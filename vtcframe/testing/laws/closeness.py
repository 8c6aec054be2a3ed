"""Tolerances for logits that are equal by a law.

Distances are relative to the largest logit, so that they are comparable between models. Two computations that are
equal in exact arithmetic differ in their last bits, by an amount that depends on the processor. Measured on every tiny
model with the sdpa and the eager kernel, with rounding errors of all weights multiplied to emulate other processors:

| model | rounding errors | distance |
|---|---|---|
| float32 | 1 x | up to 1.2e-5 |
| float64, as transformers runs it | 1 x | up to 2.2e-6 |
| float64, inside `float64_throughout` | 1 x | up to 2e-14 |
| float64, inside `float64_throughout` | 1000 x | up to 9.2e-12 |
| a masked token is visible, or a position is off by one | | at least 3.5e-3 at the last token |
"""

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

RELATIVE_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 1e-1}
_MODEL_CODE = "transformers.models.", "transformers.generation.", "transformers.modeling_"


def relative_tolerance(dtype: torch.dtype) -> float:
    """Return the largest permitted distance between logits of models in `dtype`."""
    return RELATIVE_TOLERANCE[dtype]


def relative_distance(computed: Tensor, expected: Tensor) -> float:
    """Return the largest difference of logits over the largest expected logit; NaN if either has NaN.

    Give rows of real tokens only: logits at padding are meaningless and may be NaN.
    """
    scale = expected.abs().max().clamp(min=torch.finfo(expected.dtype).tiny)
    return ((computed - expected).abs().max() / scale).item()


@contextmanager
def float64_throughout(model: nn.Module) -> Iterator[None]:
    """Let transformers compute a float64 model in float64 from pixels to logits; other models run unchanged.

    transformers casts to float32 in RMSNorm, rotary embeddings, the eager kernel's softmax and the logits that generate
    returns. A difference of 1e-16 before such a cast becomes one of 1e-7 when it crosses a rounding boundary, which
    depends on the processor. The eager softmax also returns NaN at padding in a float64 model, as the lowest float64
    is -inf in float32, and the next layer spreads it to every token of the sample.

    Casts by other code, such as scorers that return float32, are unchanged.
    """
    if next(model.parameters()).dtype != torch.float64:
        yield
        return
    with _Float64():
        yield


class _Float64(TorchFunctionMode):
    """Replace float32 by float64 where the code of models of transformers requests it."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = dict(kwargs or {})
        named = kwargs.get("dtype") is torch.float32
        placed = any(arg is torch.float32 for arg in args)
        if (func is Tensor.float or named or placed) and _called_by_a_model():
            if func is Tensor.float:
                return args[0].double()
            args = tuple(torch.float64 if arg is torch.float32 else arg for arg in args)
            kwargs |= {"dtype": torch.float64} if named else {}
        return func(*args, **kwargs)


def _called_by_a_model() -> bool:
    """Return whether a forward of a model of transformers, or generate, called the current function of torch.

    Functions of transformers that an adapter calls itself, on evidence in float32, do not count.
    """
    frame = sys._getframe(2)
    while frame is not None and (_module(frame).startswith("torch.") or frame.f_code.co_name == "__torch_function__"):
        frame = frame.f_back  # torch's own Python code, or another function mode
    if frame is None or not _module(frame).startswith(_MODEL_CODE):
        return False
    # While attention is intercepted, vtcframe.hooks is between the forward of a model and its kernel.
    while frame is not None and _module(frame).startswith(("torch.", "transformers.", "vtcframe.hooks.")):
        if _module(frame).startswith(("torch.nn.modules.module", "transformers.generation.")):
            return True
        frame = frame.f_back
    return False


def _module(frame: FrameType) -> str:
    return frame.f_globals.get("__name__", "")
