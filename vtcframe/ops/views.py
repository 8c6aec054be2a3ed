"""TODO: vtcframe/ops/views.py."""

import torch
from torch import Tensor

from vtcframe.core.layout import Layout


def overview_of(layout: Layout) -> Tensor:
    """[V] the view that shows all of the picture that a view is a part of, -1 where there is no other; on the CPU.

    That is the first whose box is the whole picture. The stitched map of LLaVA-OneVision is a part too.
    """
    whole = ((layout.box - torch.tensor([0.0, 0.0, 1.0, 1.0], dtype=torch.float32)).abs() < 1e-6).all(1)
    picture = torch.stack([layout.sample, layout.image, layout.frame], 1)
    same = (picture[:, None] == picture).all(-1) & whole
    index = torch.arange(len(whole))
    first = same.long().argmax(1) if len(whole) else index
    return first.masked_fill(~same.any(1) | (first == index), -1)


def overview_sums(values: Tensor, layout: Layout) -> Tensor:
    """[V, N] -> [V] on the CPU: what of the overview's values lies in a view's box; 0 where it has no overview."""
    whole = overview_of(layout)
    part = (whole >= 0).nonzero()[:, 0]
    source = whole[part].to(values.device)
    at, box = layout.centre[source], layout.box[part].to(values.device)[:, None]
    inside = ((at >= box[..., :2]) & (at < box[..., 2:])).all(-1) & layout.valid[source]
    total = torch.zeros(len(whole), dtype=torch.float32)
    total[part] = values[source].masked_fill(~inside, 0).sum(1).float().cpu()
    return total


def outlier_tokens(scores: Tensor, layout: Layout) -> Tensor:
    """[V, N] bool: scores above Q3 + 1.5 IQR of their row, quartiles interpolated linearly; at least the highest."""
    real = scores.masked_fill(~layout.valid, torch.nan)
    q1, q3 = real.nanquantile(
        torch.tensor([0.25, 0.75], device=scores.device, dtype=torch.float32), dim=1, keepdim=True
    )
    above = layout.valid & (scores > q3 + 1.5 * (q3 - q1))
    first = scores.argmax(1, keepdim=True) == torch.arange(scores.shape[1], device=scores.device)
    return above | (layout.valid & first & ~above.any(1, keepdim=True))


def first_frames(layout: Layout) -> Tensor:
    """[V] bool on the CPU: False where a view is the next frame of the video that the view before it is of."""
    step = torch.ones(len(layout.frame), dtype=torch.bool)
    continues = layout.frame[1:] == layout.frame[:-1] + 1
    for part in (layout.sample, layout.image):
        continues = continues & (part[1:] == part[:-1])
    step[1:] = ~continues
    return step
