"""The tap: readings of selected attention modules, while the model keeps its own kernel.

While a tap is open, `vtcframe.hooks.kernel` passes query and key of every call to it, after RoPE and qk-norm, and the
model calls its kernel as usual. Readers compute the evidence from them, in float32. No implementation is switched, no
N x N matrix is computed, and on exit the modules are restored.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vtcframe.core.encoder_readers import Reader
from vtcframe.hooks.kernel import intercept_attention
from vtcframe.hooks.packing import PackedSequences, calls_of


class Tap:
    """`with Tap({module: [reader, ...]}) as tap:` and, after the forward, `tap[module, reader]`.

    Modules are attention modules of transformers, timm and open_clip, or torch.nn.MultiheadAttention. Taps nest, also
    over the same modules, and are removed after the `with`, also after an exception. The forward of another thread is
    ignored. Entering raises TypeError for a module that is no attention module, ValueError for one that calls no
    kernel.

    `packed` describes how sequences are packed in calls where only a mask separates them; readers get each sequence
    without that mask.
    """

    def __init__(self, readers: Mapping[nn.Module, Sequence[Reader]], packed: PackedSequences | None = None) -> None:
        self.packed = packed
        self.readers = {module: tuple(dict.fromkeys(of_module)) for module, of_module in readers.items()}
        self._results: dict[tuple[nn.Module, Reader], list[Tensor]] = {}

    def __getitem__(self, at: tuple[nn.Module, Reader]) -> list[Tensor]:
        """Return a reader's results for a module, one tensor for each call or packed sequence, in their order.

        LookupError for a module and a reader without results.
        """
        if at in self._results:
            return self._results[at]
        raise LookupError(
            f"{type(at[0]).__name__} has no readings of {at[1]}: it is not among `readers`, did not run inside the "
            "`with`, or does not call its kernel through ALL_ATTENTION_FUNCTIONS or scaled_dot_product_attention"
        )

    def __enter__(self) -> "Tap":
        self._interception = intercept_attention(self.readers.keys(), self.read_call)
        self._interception.__enter__()
        return self

    def __exit__(self, *exception: Any) -> None:
        self._interception.__exit__(*exception)

    @torch.no_grad()
    def read_call(
        self, module: nn.Module, query: Tensor, key: Tensor, mask: Tensor | None, options: Mapping[str, Any]
    ) -> None:
        """Pass one kernel call to the readers of its module."""
        with torch.autocast(query.device.type, enabled=False):
            for call in calls_of(module, query, key, mask, options, self.packed):
                for reader in self.readers[module]:
                    self._results.setdefault((module, reader), []).append(reader(call))


def only_call(tap: Tap, module: nn.Module, reader: Reader) -> Tensor:
    """Return the result of a reader for the only call of a module. ValueError if there were several calls.

    Differential attention, for example, calls its kernel twice in one forward.
    """
    calls = tap[module, reader]
    if len(calls) == 1:
        return calls[0]
    raise ValueError(
        f"{type(module).__name__} calls its kernel {len(calls)} times in one forward, so it has no single attention "
        "map: use a model whose attention calls it once"
    )
