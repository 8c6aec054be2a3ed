"""Synthetic evidence, so that components can be checked without a model."""

from collections.abc import Iterable, Mapping, Sequence
from hashlib import blake2b

import torch
from torch import Tensor

from vtcframe.core.evidence import Evidence
from vtcframe.core.layout import Layout
from vtcframe.core.need_bases import Need

POISON = 1e4  # value at padding: with zeros a missing mask could pass unnoticed
Samples = Mapping[int, Sequence[tuple[int, int]]]  # a sample's key -> (rows, columns) of each of its views

SAMPLES: Samples = {11: [(12, 12)], 29: [(6, 12), (12, 12), (12, 18)], 31: [], 47: [(18, 18), (6, 6)]}


def make_layout(samples: Samples = SAMPLES) -> Layout:
    """Return a layout of full grids; each view is a separate picture, and columns continue after five text tokens."""
    views = [(p, *grid) for p, grids in enumerate(samples.values()) for grid in grids]
    width = max((rows * columns for _, rows, columns in views), default=0)
    grid = torch.full((len(views), width, 2), -1)
    column = torch.full((len(views), width), -1)
    filled = [5] * len(samples)
    for v, (p, rows, columns) in enumerate(views):
        at = torch.arange(rows * columns)
        grid[v, : len(at)] = torch.stack([at // columns, at % columns], -1)
        column[v, : len(at)] = filled[p] + at
        filled[p] += len(at)
    sample = torch.tensor([p for p, *_ in views], dtype=torch.long)
    image = torch.tensor([i for grids in samples.values() for i in range(len(grids))], dtype=torch.long)
    return Layout(
        sample=sample,
        key=torch.tensor(list(samples)),
        image=image,
        frame=torch.zeros_like(sample),
        box=torch.tensor([0.0, 0.0, 1.0, 1.0]).repeat(len(views), 1),
        grid=grid,
        column=column,
        untouched=torch.tensor(filled) - 5,
    )


def make_evidence(needs: Iterable[Need] = (), samples: Samples = SAMPLES, channels: int = 8) -> Evidence:
    """Return evidence with exactly `needs`, and `POISON` at padding.

    Values of a sample depend only on its key, so they are equal in any batch.
    """
    layout = make_layout(samples)
    readings = {need: _synthetic(need, layout, channels) for need in dict.fromkeys(needs)}
    tokens = _fill([*layout.column.shape, channels], "VNC", "tokens", layout)
    projection = torch.randn(channels, channels, generator=torch.Generator().manual_seed(0))
    return Evidence(tokens, layout, readings, lambda features: features @ projection)


def _synthetic(need: Need, layout: Layout, channels: int) -> Tensor:
    sizes = {"V": len(layout.sample), "N": layout.column.shape[1], "P": len(layout.key), "H": 4, "T": 6, "C": channels}
    sizes["L"] = len(getattr(need, "layers", (0,)))
    if getattr(need, "heads", "split") != "split":
        sizes["H"] = 1
    if "H" in need.source.axes and "H" not in need.axes:  # heads joined
        sizes["C"] = sizes["H"] * channels
    return _fill([sizes[axis] for axis in need.axes], need.axes, str(need), layout)


def _fill(shape: list[int], axes: str, name: str, layout: Layout) -> Tensor:
    """Draw the values of each sample from a separate generator; other values are `POISON`."""
    out = torch.full(shape, POISON)
    for p, key in enumerate(layout.key.tolist()):
        seed = int.from_bytes(blake2b(f"{name}{key}".encode(), digest_size=4).digest(), "big")
        generator = torch.Generator().manual_seed(seed)
        if "V" not in axes:
            out.select(axes.index("P"), p).copy_(
                torch.rand([s for s, a in zip(shape, axes, strict=True) if a != "P"], generator=generator)
            )
            continue
        for v in (layout.sample == p).nonzero()[:, 0].tolist():
            part = out.select(axes.index("V"), v)
            if "N" in axes:
                part = part.narrow(axes.replace("V", "").index("N"), 0, int(layout.count[v]))
            part.copy_(torch.rand(part.shape, generator=generator))
    return out
