"""The nouns: Layout, Evidence, Budget, Pruned.

Sizes: P samples, V views, N tokens in a view (padded), M tokens kept in a view (padded), D channels,
L layers, H heads, S score maps. A view is one grid of tokens: an image, a crop of it, a video frame.
Scores are float32; a higher score is kept; ties go to the lower index.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cached_property
from numbers import Integral, Real
from pathlib import Path
from typing import Literal

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from vtcframe import needs
from vtcframe.needs import Need


@dataclass(frozen=True)
class Layout:
    """Where views came from and where their tokens sit.

    `grid`, `column` and `centre` lie on the scores' device, everything else on the CPU, so that sharing out a budget
    costs no device sync.
    """

    sample: Tensor  # [V] the sample a view belongs to, 0..P-1
    key: Tensor  # [P] stable 63-bit hash of the sample's id: the same in every batch
    image: Tensor  # [V] which picture of its sample
    frame: Tensor  # [V] which frame of a video, else 0
    box: Tensor  # [V, 4] top, left, bottom, right in its picture, 0..1; padding lies outside
    grid: Tensor  # [V, N, 2] row and column in the view; -1 for a token of no picture
    column: Tensor  # [V, N] place in the sample's own prompt (batch padding not counted); -1 = no token
    untouched: Tensor  # [P] visual tokens each sample had before any was dropped
    # [V, N, 2] where in its picture each token's centre lies (row, column), 0..1; by default from `grid` and `box`
    centre: Tensor = None  # pyright: ignore[reportAssignmentType] (filled in at once)

    def __post_init__(self) -> None:
        if self.centre is None:  # only a whole view's grid tells its size: what is left of one carries its centres on
            size = (self.grid.amax(1, keepdim=True) if self.grid.shape[1] else self.grid) + 1
            box = self.box.to(self.grid.device)[:, None]
            centre = box[..., :2] + (self.grid + 0.5) / size * (box[..., 2:] - box[..., :2])
            object.__setattr__(self, "centre", centre)

    @cached_property
    def valid(self) -> Tensor:
        """[V, N] bool, True where there is a token."""
        return self.column >= 0

    @cached_property
    def count(self) -> Tensor:
        """[V] tokens in each view, on the CPU."""
        return self.valid.sum(1).cpu()

    def total(self, values: Tensor) -> Tensor:
        """[V] -> [P], summed over the views of each sample."""
        return torch.zeros_like(self.key).index_add_(0, self.sample, values)


@dataclass(frozen=True)
class Structural:
    """Placeholders that carry no picture: newlines of LLaVA-NeXT, a frame's [CLS] of Video-LLaVA.

    They are no candidates and not in the budget. One is dropped when every token in columns `first`..`last` of its
    sample is dropped; one with an empty span (first > last) always stays.
    """

    tokens: Tensor  # [U, D]
    sample: Tensor  # [U]
    column: Tensor  # [U] place in the sample's own prompt
    first: Tensor  # [U]
    last: Tensor  # [U]

    def stays(self, kept: Tensor) -> Tensor:
        """[P, columns] bool, True where a candidate stays -> [U] bool."""
        before = torch.nn.functional.pad(kept.long().cumsum(1), (1, 0))
        inside = before[self.sample, self.last + 1] - before[self.sample, self.first]
        return (inside > 0) | (self.first > self.last)


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
        slot = reading(layout.column)
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
            asked.append(_describe(need))
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
        found = {_ask(need): tensors[f"found.{i}"] for i, need in enumerate(json.loads(asked))}
        return cls(tensors["tokens"], part(Layout, "layout"), found, None, structural, tensors.get("deepstack"))


def _describe(need: Need) -> dict:
    """Need -> JSON."""
    what = {"what": _describe(need.what)} if isinstance(need, needs.Text) else {}
    return {"kind": type(need).__name__, **asdict(need), **what}


def _ask(described: dict) -> Need:
    """JSON -> Need."""
    kind = getattr(needs, described["kind"])
    values = {k: tuple(v) if isinstance(v, list) else v for k, v in described.items() if k != "kind"}
    if "what" in described:
        values["what"] = _ask(described["what"])
    return kind(**values)


@dataclass(frozen=True)
class Budget:
    """How many visual tokens may stay: a count, or the fraction kept of the untouched count.

    `tokens` is meant for each sample, image or view, as `per` says; whatever it says, the allocator shares out the
    sample's total. A ratio is rounded half to even. A sample keeps at least one token (it has any) and at most all.
    """

    tokens: int | None = None
    ratio: float | None = None
    per: Literal["sample", "image", "view"] = "sample"

    def __post_init__(self) -> None:
        if (self.tokens is None) == (self.ratio is None):
            raise ValueError(f"give tokens or ratio, exactly one of them: got tokens={self.tokens}, ratio={self.ratio}")
        if self.tokens is not None and (isinstance(self.tokens, bool) or not isinstance(self.tokens, Integral)):
            raise TypeError(f"tokens must be an int, got {self.tokens!r}: give ratio for a fraction")
        if self.tokens is not None and self.tokens < 1:
            raise ValueError(f"tokens must be at least 1, got {self.tokens}")
        if self.ratio is not None and (isinstance(self.ratio, bool) or not isinstance(self.ratio, Real)):
            raise TypeError(f"ratio must be a number, got {self.ratio!r}")
        if self.ratio is not None and not 0 < self.ratio <= 1:
            raise ValueError(f"ratio is the fraction of tokens kept and must lie in (0, 1], got {self.ratio}")
        if self.per not in ("sample", "image", "view"):
            raise ValueError(f"per must be 'sample', 'image' or 'view', got {self.per!r}")

    def total(self, layout: Layout) -> Tensor:
        """[P] tokens each sample may keep of those it has now; [P] lies on the CPU."""
        now, tokens = layout.total(layout.count), self.tokens or 0
        if self.ratio is not None:
            want = (layout.untouched.double() * self.ratio).round().long()
        elif self.per == "sample":
            want = torch.full_like(now, tokens)
        else:  # each image or view is capped by itself, so a small one leaves nothing to the others
            owner = layout.sample * (layout.image.max() + 1 if len(layout.image) else 1) + layout.image
            group = torch.arange(len(owner)) if self.per == "view" else owner.unique(return_inverse=True)[1]
            size = torch.zeros_like(layout.sample).index_add_(0, group, layout.count).clamp(max=tokens)
            first = torch.zeros_like(layout.sample).index_copy_(0, group, layout.sample)
            want = torch.zeros_like(now).index_add_(0, first, size)
        return want.clamp(min=1).minimum(now)

    def covers(self, layout: Layout) -> bool:
        """Tell whether nothing would have to go of what every sample had at first."""
        return bool((self.total(layout) >= layout.untouched).all())


@dataclass(frozen=True)
class Pruned:
    """What is left: rows as in `layout`, tokens in the order in which they are read, padded at the end."""

    tokens: Tensor  # [V, M, D]
    place: Tensor  # [V, M] index into the row's N tokens whose slot an output token takes; -1 = padding
    scores: Tensor  # [V, N] float32, -inf where there is no token
    layout: Layout  # of the rows: views, or samples where the pruner joined them

    @cached_property
    def kept(self) -> Tensor:
        """[V, N] bool, the slots that are taken (those of summary and class tokens too)."""
        rows, width = self.scores.shape
        kept = torch.zeros(rows, width + 1, dtype=torch.bool, device=self.place.device)
        return kept.scatter_(1, self.place % (width + 1), True)[:, :-1]

    @cached_property
    def column(self) -> Tensor:
        """[V, M] where in the prompt each output token came from: its rotary position. -1 = padding."""
        return self.layout.column.gather(1, self.place.clamp(min=0)).masked_fill(self.place < 0, -1)

    @cached_property
    def total(self) -> Tensor:
        """[P] tokens left in each sample, on the CPU."""
        return self.layout.total((self.place >= 0).sum(1).cpu())

    def sequence(self, sample: int) -> tuple[Tensor, Tensor]:
        """Return one sample's tokens [K, D] and their columns [K], as the language model reads them."""
        rows = (self.layout.sample == sample).to(self.place.device)
        column, slot = self.column[rows], reading(self.column)[rows]
        order = slot[column >= 0].argsort()
        return self.tokens[rows][column >= 0][order], column[column >= 0][order]


def reading(column: Tensor) -> Tensor:
    """[V, M] columns, -1 = padding -> [V, M]: where in the prompt each token is read.

    A view's own columns are sorted and filled in the order of its tokens. So crops that the prompt stitches row by
    row interleave, and the order that a merger publishes holds within its view.
    """
    real = column >= 0
    ordered = column.masked_fill(~real, torch.iinfo(column.dtype).max).sort(1).values
    return ordered.gather(1, (real.cumsum(1) - 1).clamp(min=0)).masked_fill(~real, -1)
