"""Auxiliary encoders by name: encoders beside the backbone that encode the same pictures, or the question.

A ViT of timm or open_clip provides [CLS] attention for backbones whose tower has no class token. A CLIP provides the
embedding space that patches and words share. Each encoder has its own grid of patches; `resampled` maps values from
that grid to the tokens of the backbone.
"""

import threading
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from vtcframe.adapters.auxiliary_base import AuxiliaryEncoder
from vtcframe.adapters.auxiliary_models import AuxiliaryClip, AuxiliaryOpenClip, AuxiliaryTimm, require_name

KINDS: dict[str, Callable[[str, torch.device], AuxiliaryEncoder]] = {
    "timm": AuxiliaryTimm,
    "open_clip": AuxiliaryOpenClip,
    "clip": AuxiliaryClip,
}
_LOADED: dict[tuple[str, torch.device], AuxiliaryEncoder] = {}
_LOCK = threading.Lock()


def auxiliary_encoder(name: str, device: str | torch.device = "cpu") -> AuxiliaryEncoder:
    """Return the encoder called `name`; each is loaded once for each device.

    Names are "timm:NAME", "open_clip:NAME/WEIGHTS" and "clip:PATH". NAME may be "local-dir:FOLDER" or
    "hf-hub:REPOSITORY" in the syntax of those libraries; open_clip then takes no WEIGHTS. WEIGHTS is a tag or a file.
    PATH is a folder or a name on the Hugging Face Hub. ValueError for an unknown name, ImportError if the library is
    not installed.
    """
    kind, _, model = name.partition(":")
    require_name(kind, KINDS, "kind of auxiliary encoder", "vtcframe")
    if not model:
        raise ValueError(f"{name!r} names no model: write '{kind}:NAME'")
    key = name, torch.device(device)
    with _LOCK:  # two threads that use the same encoder must not load it twice
        if key not in _LOADED:
            _LOADED[key] = KINDS[kind](model, key[1])
        return _LOADED[key]


def resampled(maps: Tensor, picture: Tensor, centre: Tensor) -> Tensor:
    """Sample maps [..., I, r, c] bilinearly at `centre` of picture [V] -> [..., V, N].

    `centre` [V, N, 2] is row and column in the picture, 0..1. Cell i of r has its centre at (i + 0.5) / r; beyond the
    outermost centres the map is constant. The result is 0 where a centre is NaN (no token).
    """
    leading = maps.shape[:-3]
    rows, columns = maps.shape[-2:]
    cells = maps.reshape(-1, maps.shape[-3], rows, columns).movedim(1, 0)[picture.to(maps.device)]
    at = centre.to(maps.device, torch.float32)
    real = at.isfinite().all(-1)
    grid = (2 * at.nan_to_num(0.5) - 1).flip(-1)[:, :, None].to(maps.dtype)  # column first
    values = F.grid_sample(cells, grid, padding_mode="border", align_corners=False)[..., 0]
    return values.movedim(0, 1).masked_fill(~real, 0).reshape(*leading, *real.shape)
