"""The nouns: Layout, Evidence, Budget, Pruned.

Sizes: P samples, V views, N tokens in a view (padded), M tokens kept in a view (padded), D channels,
L layers, H heads, S score maps. A view is one grid of tokens: an image, a crop of it, a video frame.
Scores are float32; a higher score is kept; ties go to the lower index.
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
    """What a backbone showed about its visual tokens before any was dropped."""

    tokens: Tensor  # [V, N, D] as the language model would read them
    layout: Layout
    found: Mapping[Need, Tensor] = field(default_factory=dict)
    project: Callable[[Tensor], Tensor] | None = None  # encoder features [..., C] -> tokens [..., D]; None once loaded
    structural: Structural | None = None
    deepstack: Tensor | None = None  # [K, V, N, D] what is added to each token in the first K layers (Qwen3-VL)

    def __getitem__(self, need: Need) -> Tensor:
        """Return what was gathered, shaped as `need.axes` says. LookupError for what was not."""
        if need in self.found:
            return self.found[need]
        raise LookupError(
            f"{need} was not gathered: add it to the `needs` of the component that reads it, or observe with it "
            f"(gathered: {', '.join(map(str, self.found)) or 'nothing'})"
        )

    def joined(self) -> "Evidence":
        """Return the same evidence with one row a sample: its tokens of all views, in reading order.

        Evidence that is one vector a view (ClassToken) has no place there and is left out.
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
        whole = torch.tensor([0.0, 0.0, 1.0, 1.0], dtype=torch.float32).expand(len(count), 4)
        rows = replace(layout, sample=sample, image=sample * 0, frame=sample * 0, box=whole)
        found = {need: x for need, x in self.found.items() if "N" in need.axes or "V" not in need.axes}
        return replace(self, found=found)._take(torch.where(source < 0, -1, order[source]), rows)

    def after(self, pruned: "Pruned") -> "Evidence":
        """Return what a later stage still knows of the tokens that are left, in the order of `pruned`."""
        old = self if torch.equal(pruned.layout.sample, self.layout.sample) else self.joined()
        first = torch.arange(len(pruned.place), device=pruned.place.device)[:, None] * old.layout.column.shape[1]
        source = torch.where(pruned.place < 0, -1, first + pruned.place)
        old = replace(old, tokens=old.tokens[..., :0])  # `pruned` has its own
        return replace(old._take(source, pruned.layout), tokens=pruned.tokens)

    def _take(self, source: Tensor, rows: Layout) -> "Evidence":
        """Regroup tokens: source [R, M] indexes V * N, -1 = padding; `rows` says what the new rows are."""

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
        found = {need: regroup(x, need.axes) for need, x in self.found.items()}
        deepstack = None if self.deepstack is None else regroup(self.deepstack, "LVNC")
        return replace(self, tokens=regroup(self.tokens, "VNC"), layout=rows, found=found, deepstack=deepstack)

    def save(self, path: str | Path) -> None:
        """Write a safetensors file from which scorers can be studied without a model. `project` is not saved."""
        tensors, asked = {"tokens": self.tokens}, []
        if self.deepstack is not None:
            tensors["deepstack"] = self.deepstack
        for name, part in (("layout", self.layout), ("structural", self.structural)):
            if part is not None:
                tensors |= {f"{name}.{f.name}": getattr(part, f.name) for f in fields(part)}
        for i, (need, x) in enumerate(self.found.items()):
            tensors[f"found.{i}"] = x
            asked.append(describe_need(need))
        save_file({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, path, {"needs": json.dumps(asked)})

    @classmethod
    def load(cls, path: str | Path) -> "Evidence":
        """Read what `save` wrote, onto the CPU. Its `project` is None: mergers that need one say so."""
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
            asked = (file.metadata() or {}).get("needs")
        if asked is None:
            raise ValueError(f"{path} holds no evidence: it was not written by Evidence.save")

        def part(kind: type, name: str):
            return kind(**{f.name: tensors[f"{name}.{f.name}"] for f in fields(kind)})

        structural = part(Structural, "structural") if "structural.tokens" in tensors else None
        found = {parse_need(need): tensors[f"found.{i}"] for i, need in enumerate(json.loads(asked))}
        return cls(tensors["tokens"], part(Layout, "layout"), found, None, structural, tensors.get("deepstack"))
