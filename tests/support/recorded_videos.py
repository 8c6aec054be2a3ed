"""Videos of one sample, and what a pruning keeps of them."""

from dataclasses import replace

import torch

from support.recorded_cases import layout_of


def video(frames, grid):
    """One sample, one video."""
    return replace(layout_of([grid] * frames, [0] * frames), frame=torch.arange(frames))


def kept_in_video(pruned):
    """Places in the video, frame by frame."""
    width = pruned.scores.shape[1]
    return [v * width + n for v, row in enumerate(pruned.place.tolist()) for n in row if n >= 0]
