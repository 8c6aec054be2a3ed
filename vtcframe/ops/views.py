"""Relations between views: overviews and their crops, frames of a video, outliers of a view."""

import torch
from torch import Tensor

from vtcframe.core.layout import Layout


def overview_of(layout: Layout) -> Tensor:
    """[V] index of the view that shows the complete picture of each crop, -1 for views without an overview; on the CPU.

    The overview is the first view of a picture whose box covers the picture. The stitched map of LLaVA-OneVision counts
    as a crop.
    """
    is_complete = ((layout.box - torch.tensor([0.0, 0.0, 1.0, 1.0], dtype=torch.float32)).abs() < 1e-6).all(1)
    picture = torch.stack([layout.sample, layout.image, layout.frame], 1)
    same = (picture[:, None] == picture).all(-1) & is_complete
    index = torch.arange(len(is_complete))
    first = same.long().argmax(1) if len(is_complete) else index
    return first.masked_fill(~same.any(1) | (first == index), -1)


def overview_sums(values: Tensor, layout: Layout) -> Tensor:
    """[V, N] -> [V] on the CPU: sum of the overview's values inside each view's box; 0 without an overview."""
    overview = overview_of(layout)
    crop = (overview >= 0).nonzero()[:, 0]
    source = overview[crop].to(values.device)
    centre = layout.centre[source]
    box = layout.box[crop].to(values.device)[:, None]
    inside = ((centre >= box[..., :2]) & (centre < box[..., 2:])).all(-1) & layout.valid[source]
    total = torch.zeros(len(overview), dtype=torch.float32)
    total[crop] = values[source].masked_fill(~inside, 0).sum(1).float().cpu()
    return total


def outlier_tokens(scores: Tensor, layout: Layout) -> Tensor:
    """[V, N] bool: True for scores above Q3 + 1.5 IQR of their row, or for the highest score if there are none.

    Quartiles are interpolated linearly.
    """
    real = scores.masked_fill(~layout.valid, torch.nan)
    q1, q3 = real.nanquantile(
        torch.tensor([0.25, 0.75], device=scores.device, dtype=torch.float32), dim=1, keepdim=True
    )
    above = layout.valid & (scores > q3 + 1.5 * (q3 - q1))
    first = scores.argmax(1, keepdim=True) == torch.arange(scores.shape[1], device=scores.device)
    return above | (layout.valid & first & ~above.any(1, keepdim=True))


def first_frames(layout: Layout) -> Tensor:
    """[V] bool on the CPU: False for a view that is the next frame of the preceding view's video, else True."""
    starts = torch.ones(len(layout.frame), dtype=torch.bool)
    continues = layout.frame[1:] == layout.frame[:-1] + 1
    for part in (layout.sample, layout.image):
        continues = continues & (part[1:] == part[:-1])
    starts[1:] = ~continues
    return starts
