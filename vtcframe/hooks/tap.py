"""The tap: what chosen attention modules show, while the model keeps its own kernel.

While a tap is open, gates (see vtcframe.hooks.kernel) hand it query and key of every call, after RoPE and qk-norm, and the
kernel is called as ever. Readers make of them what was asked for, in float32. No implementation is switched, no N x N
matrix made, and nothing is left behind.
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
    over the same modules, and are gone after the `with` whatever happens in it. Another thread's forward is not seen.
    Entering raises TypeError for a module that is no attention module, ValueError for one that calls no kernel.

    `segments` tells how calls are packed where a mask keeps the sequences apart; readers see each without that mask.
    """

    def __init__(self, readers: Mapping[nn.Module, Sequence[Reader]], segments: PackedSequences | None = None) -> None:
        self.segments = segments
        self.readers = {module: tuple(dict.fromkeys(wanted)) for module, wanted in readers.items()}
        self._seen: dict[tuple[nn.Module, Reader], list[Tensor]] = {}

    def __getitem__(self, at: tuple[nn.Module, Reader]) -> list[Tensor]:
        """Return what a reader made of a module's calls, one tensor a call or packed segment, in their order."""
        if at in self._seen:
            return self._seen[at]
        raise LookupError(
            f"{type(at[0]).__name__} was not seen by {at[1]}: it was not asked for, was not run inside the `with`, or "
            "does not call its kernel through ALL_ATTENTION_FUNCTIONS or scaled_dot_product_attention"
        )

    def __enter__(self) -> "Tap":
        self._gates = intercept_attention(self.readers.keys(), self.see)
        self._gates.__enter__()
        return self

    def __exit__(self, *exception: Any) -> None:
        self._gates.__exit__(*exception)

    @torch.no_grad()
    def see(
        self, module: nn.Module, query: Tensor, key: Tensor, mask: Tensor | None, options: Mapping[str, Any]
    ) -> None:
        """Hand one kernel call to the readers of its module."""
        with torch.autocast(query.device.type, enabled=False):
            for call in calls_of(module, query, key, mask, options, self.segments):
                for reader in self.readers[module]:
                    self._seen.setdefault((module, reader), []).append(reader(call))
