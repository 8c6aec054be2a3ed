"""Evidence: what a backbone observed about its visual tokens, and how it is regrouped, saved and loaded.

Sizes: P samples, V views, N tokens in a view (padded), M tokens kept in a view (padded), D channels,
L layers, H heads, S score maps. A view is one grid of tokens: an image, a crop of it, a video frame.
Scores are float32. Tokens with higher scores are kept, and ties go to the lower index.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from vtcframe.core.evidence_file import describe_need, parse_need
from vtcframe.core.layout import Layout, Structural, reading_order
from vtcframe.core.need_bases import Need
from vtcframe.core.pruned import Pruned


@dataclass(frozen=True)
class Evidence:
    """What a backbone observed about its visual tokens before any was dropped."""

    tokens: Tensor  # [V, N, D] as the language model would read them
    layout: Layout
    readings: Mapping[Need, Tensor] = field(default_factory=dict)  # the tensor gathered for each need
    project: Callable[[Tensor], Tensor] | None = None  # encoder features [..., C] -> tokens [..., D]; None once loaded
    structural: Structural | None = None
    deepstack: Tensor | None = None  # [K, V, N, D] what is added to each token in the first K layers (Qwen3-VL)

    def __getitem__(self, need: Need) -> Tensor:
        """Return the tensor gathered for a need, shaped as `need.axes` says. LookupError if it was not gathered."""
        if need in self.readings:
            return self.readings[need]
        raise LookupError(
            f"{need} was not gathered: add it to the `needs` of the component that reads it, or observe with it "
            f"(gathered: {', '.join(map(str, self.readings)) or 'nothing'})"
        )

    def join_views(self) -> "Evidence":
        """Return the same evidence with one row per sample, which holds the tokens of all its views in reading order.

        Evidence with one vector per view (ClassToken) has no place in such a row and is omitted.
        """
        layout = self.layout
        slot = reading_order(layout.column)
        owner = layout.sample.to(slot.device)[:, None] * (slot.max() + 1 if slot.numel() else 1)
        order = (owner + slot).masked_fill(~layout.valid, torch.iinfo(slot.dtype).max).flatten().argsort()
        count = layout.total(layout.count)
        index = torch.arange(int(count.max()) if len(count) else 0)
        source = (count.cumsum(0) - count)[:, None] + index
        source = source.masked_fill(index >= count[:, None], -1).to(slot.device)
        sample = torch.arange(len(count))
        box = torch.tensor([0.0, 0.0, 1.0, 1.0], dtype=torch.float32).expand(len(count), 4)
        rows = replace(layout, sample=sample, image=sample * 0, frame=sample * 0, box=box)
        readings = {need: x for need, x in self.readings.items() if "N" in need.axes or "V" not in need.axes}
        return replace(self, readings=readings)._regroup(torch.where(source < 0, -1, order[source]), rows)

    def restrict_to(self, pruned: Pruned) -> "Evidence":
        """Return the evidence of the tokens that remain in `pruned`, in its order, for a later stage."""
        old = self if torch.equal(pruned.layout.sample, self.layout.sample) else self.join_views()
        first = torch.arange(len(pruned.place), device=pruned.place.device)[:, None] * old.layout.column.shape[1]
        source = torch.where(pruned.place < 0, -1, first + pruned.place)
        old = replace(old, tokens=old.tokens[..., :0])  # the tokens are those of `pruned`
        return replace(old._regroup(source, pruned.layout), tokens=pruned.tokens)

    def _regroup(self, source: Tensor, rows: Layout) -> "Evidence":
        """Arrange tokens in new rows: `source` [R, M] indexes V * N, -1 = padding; `rows` describes the new rows."""

        def regroup(x: Tensor, axes: str, empty: float = 0) -> Tensor:
            if "N" not in axes:
                return x
            at = axes.index("V"), axes.index("N")
            x = x.movedim(at, (0, 1)).flatten(0, 1)[source.clamp(min=0)]
            x[source < 0] = empty
            return x.movedim((0, 1), at)

        rows = replace(
            rows,
            grid=regroup(self.layout.grid, "VNC", -1),
            column=regroup(self.layout.column, "VN", -1),
            centre=regroup(self.layout.centre, "VNC", torch.nan),
        )
        readings = {need: regroup(x, need.axes) for need, x in self.readings.items()}
        deepstack = None if self.deepstack is None else regroup(self.deepstack, "LVNC")
        tokens = regroup(self.tokens, "VNC")
        return replace(self, tokens=tokens, layout=rows, readings=readings, deepstack=deepstack)

    def save(self, path: str | Path) -> None:
        """Write a safetensors file, so that scorers can be studied without a model. `project` is not saved."""
        tensors = {"tokens": self.tokens}
        needs = []
        if self.deepstack is not None:
            tensors["deepstack"] = self.deepstack
        for name, part in (("layout", self.layout), ("structural", self.structural)):
            if part is not None:
                tensors |= {f"{name}.{f.name}": getattr(part, f.name) for f in fields(part)}
        for i, (need, x) in enumerate(self.readings.items()):
            tensors[f"found.{i}"] = x  # the key of all versions of the file
            needs.append(describe_need(need))
        save_file({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, path, {"needs": json.dumps(needs)})

    @classmethod
    def load(cls, path: str | Path) -> "Evidence":
        """Read a file that `save` wrote, onto the CPU. ValueError for any other file.

        `project` is None: mergers that need it raise an error.
        """
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
            needs = (file.metadata() or {}).get("needs")
        if needs is None:
            raise ValueError(f"{path} holds no evidence: load a file that Evidence.save wrote")

        def part(kind: type, name: str):
            return kind(**{f.name: tensors[f"{name}.{f.name}"] for f in fields(kind)})

        return cls(
            tensors["tokens"],
            part(Layout, "layout"),
            {parse_need(need): tensors[f"found.{i}"] for i, need in enumerate(json.loads(needs))},
            structural=part(Structural, "structural") if "structural.tokens" in tensors else None,
            deepstack=tensors.get("deepstack"),
        )
