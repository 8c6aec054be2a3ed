"""Comparisons with recorded tokens."""

import torch

from support.recorded_cases import layout_of, square
from vtcframe import Evidence, HiddenStates
from vtcframe.components.mergers import Absorb
from vtcframe.components.scorers import ClsAttention


def close(got, want, tolerance=2e-5):
    torch.testing.assert_close(got.float(), want.float(), atol=tolerance, rtol=0)


def unsplit(tensors, patches):
    """What the recorded PruMerge saw: one head of full width."""
    x, keys = tensors["in.hidden"], tensors["in.k"]
    rows = (tensors["in.q_cls"] @ keys.T * keys.shape[1] ** -0.5).softmax(-1)
    (need,) = ClsAttention(1, blocks="tower", heads="joined").needs
    found = {need: rows[None, None, :, 1:], HiddenStates(): x[None, 1:], Absorb().needs[1]: keys[None, None, None, 1:]}
    return Evidence(x[None, 1:], layout_of([square(patches)]), found, lambda features: features)


def tiles(down, across, top=0.0, left=0.0, bottom=1.0, right=1.0):
    """Boxes of the overview and the tiles of a canvas that reaches from top, left to bottom, right."""
    high, wide = (bottom - top) / down, (right - left) / across
    corners = [(top + i * high, left + j * wide) for i in range(down) for j in range(across)]
    return torch.tensor([[0.0, 0.0, 1.0, 1.0], *([y, x, y + high, x + wide] for y, x in corners)])
