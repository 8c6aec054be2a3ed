"""Arrangement of the visual tokens of a batch: pictures laid out over the placeholders of their prompts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b

import torch
from torch import Tensor

from vtcframe.adapters.prompt import Prompt
from vtcframe.core.evidence import Evidence
from vtcframe.core.layout import Layout, Structural
from vtcframe.core.needs import Need

# top, left, bottom and right of the picture itself, as fractions
WHOLE = torch.tensor([[0.0, 0.0, 1.0, 1.0]], dtype=torch.float32)


@dataclass(frozen=True)
class Picture:
    """Map from the packed tokens of one picture (an image or a video), in the order of the model, to its views."""

    side: Tensor  # [views, 2] rows and columns of tokens in each view
    order: Tensor  # [n] index of each packed token among the cells of all views, concatenated; -1 = structural
    box: Tensor  # [views, 4] part of the picture that a view covers
    frame: Tensor  # [views] frame of a video
    # [n] for structural tokens: the first and last packed token in their span; first > last is an empty span
    first: Tensor
    last: Tensor
    rows: int = 1  # number of rows of the pixel tensor

    @classmethod
    def grids(cls, side: tuple[int, int], views: int = 1, rows: int = 1, box: Tensor = WHOLE) -> "Picture":
        """Return views of `side` = rows x columns tokens: frames of a video, or the crops of `box` [views, 4]."""
        order = torch.arange(views * side[0] * side[1])
        frame = torch.arange(views) if len(box) == 1 else torch.zeros(views, dtype=torch.long)
        return cls(torch.tensor([side]).expand(views, 2), order, box.expand(views, 4), frame, order, order, rows)


def owners(prompt: Prompt, kind: int, pictures: Sequence[Picture], modality: str = "image") -> Tensor:
    """Return the sample of each picture, [pictures].

    ValueError if the number of placeholders of a `kind` in the prompts differs from the number of tokens of `pictures`.
    """
    lengths = torch.tensor([len(picture.order) for picture in pictures], dtype=torch.long)
    placeholders = (prompt.kind == kind).sum(1)
    bounds = placeholders.cumsum(0)
    ends = lengths.cumsum(0)
    owner = torch.searchsorted(bounds, ends)  # sample of the last placeholder of each picture
    starts = torch.searchsorted(bounds, ends - lengths, right=True)
    if int(lengths.sum()) != int(bounds[-1]) or (owner != starts).any():
        raise ValueError(
            f"the prompts hold {placeholders.tolist()} {modality} placeholders, but the pictures make "
            f"{lengths.tolist()} tokens, in this order: give ids and pixels that one call of the model's own "
            "processor returned, not truncated"
        )
    return owner


def sample_keys(prompt: Prompt, ids: Sequence[object], owner: Tensor, checksums: Sequence[int]) -> Tensor:
    """Return a 63-bit hash of each sample, [P].

    It is computed from the id of the sample, by default from its prompt and the checksums of its pictures. `owner`
    [pictures] is the sample of each picture. ValueError for another number of ids than samples.
    """
    if ids and len(ids) != len(prompt.ids):
        raise ValueError(f"{len(ids)} ids for {len(prompt.ids)} samples: give one id for each sample")
    names = [str(name).encode() for name in ids]
    if not ids:
        names = [row[real].numpy().tobytes() for row, real in zip(prompt.ids, prompt.real, strict=True)]
        for p, checksum in zip(owner.tolist(), checksums, strict=True):
            names[p] += checksum.to_bytes(8, "big", signed=True)
    return torch.tensor([int.from_bytes(blake2b(name, digest_size=8).digest(), "big") >> 1 for name in names])


def checksums(pixels: Tensor, rows: Sequence[int]) -> list[int]:
    """Return an integer for each picture of `rows` rows, equal in any batch; zero padding does not change it."""
    width = {2: torch.int16, 4: torch.int32, 8: torch.int64}[pixels.element_size()]
    bits = pixels.contiguous().view(width).flatten(1).long()
    weight = torch.arange(bits.shape[1], device=bits.device) * 0x9E3779B1 + 1
    owner = torch.arange(len(rows)).repeat_interleave(torch.tensor(rows))
    nth = torch.arange(len(owner)) - torch.searchsorted(owner, owner)
    values = (bits * weight).sum(1) * (2 * nth.to(bits.device) * 0x85EBCA6B + 1)
    return (
        torch.zeros(len(rows), dtype=torch.long, device=bits.device)
        .index_add(0, owner.to(bits.device), values)
        .tolist()
    )


@dataclass(frozen=True)
class Arrangement:
    """Positions of the visual tokens of a batch, known before anything is encoded. On the CPU.

    "Packed" is the order in which the model returns features: all images of the batch, then all videos.
    """

    layout: Layout
    source: Tensor  # [V, N] index of the packed feature of each token, 0 at padding
    origin: Tensor  # [V] index of each view in the order in which the towers encode
    structural: Structural | None  # tokens are empty until the pictures are encoded
    extra: Tensor  # [U] index of the packed feature of each structural token
    prompt: Prompt
    pictures: tuple[tuple[Picture, ...], ...]  # for each modality of the adapter, in the order of the pixels
    questions: tuple[str, ...] = ()  # [P] questions that auxiliary encoders compare pictures with

    @classmethod
    def of(
        cls, prompt: Prompt, pictures: Sequence[Sequence[Picture]], owner: Sequence[Tensor], key: Tensor
    ) -> "Arrangement":
        """Lay out `pictures`, a list for each kind of placeholder, over the placeholders of their samples.

        `owner` has the sample of each picture for each kind, `key` [P] the hash of each sample. Views are ordered by
        sample, then by the position of their picture in the prompt.
        """
        by_kind = tuple(map(tuple, pictures))
        places = [(prompt.kind == kind).nonzero(as_tuple=True) for kind in range(len(pictures))]
        sample, column = (torch.cat(x) for x in zip(*places, strict=True))  # [n] for each packed feature
        flat = [p for kind in pictures for p in kind]
        sample_of_picture = torch.cat(list(owner))
        length = torch.tensor([len(p.order) for p in flat])
        start = length.cumsum(0) - length
        views = torch.tensor([len(p.box) for p in flat])
        side = torch.cat([p.side for p in flat])
        cells = side.prod(1)
        width = int(cells.max())
        begin = cells.cumsum(0) - cells  # first cell of each view, among all cells concatenated
        cell = torch.cat(
            [
                torch.where(p.order < 0, -1, p.order + begin[v])
                for p, v in zip(flat, (views.cumsum(0) - views).tolist(), strict=True)
            ]
        )
        candidate = cell >= 0
        view = torch.searchsorted(begin, cell[candidate], right=True) - 1
        at = view * width + cell[candidate] - begin[view]
        columns = torch.full((len(cells) * width,), -1)
        columns[at] = column[candidate]
        source = torch.zeros(len(cells) * width, dtype=torch.long)
        source[at] = candidate.nonzero()[:, 0]
        index = torch.arange(width)
        grid = torch.stack([index // side[:, 1:], index % side[:, 1:]], -1)
        grid = grid.masked_fill((index >= cells[:, None])[..., None], -1)

        rank = (sample_of_picture * (prompt.ids.shape[1] + 1) + column[start]).argsort()  # order in the prompts
        picture = torch.arange(len(flat)).repeat_interleave(views)
        place = torch.empty_like(rank)
        place[rank] = torch.arange(len(rank))
        origin = place[picture].argsort(stable=True)
        nth = torch.arange(len(rank)) - torch.searchsorted(sample_of_picture[rank], sample_of_picture[rank])
        layout = Layout(
            sample=sample_of_picture[picture][origin],
            key=key,
            image=nth[place[picture]][origin],
            frame=torch.cat([p.frame for p in flat])[origin],
            box=torch.cat([p.box for p in flat])[origin],
            grid=grid[origin],
            column=columns.view(-1, width)[origin],
            untouched=torch.bincount(sample[candidate], minlength=len(key)),
        )
        source = source.view(-1, width)[origin]
        extra = (~candidate).nonzero()[:, 0]
        if not len(extra):
            return cls(layout, source, origin, None, extra, prompt, by_kind)
        first, last = (torch.cat([getattr(p, end) for p in flat])[extra] for end in ("first", "last"))
        empty = first > last
        start_of_picture = start.repeat_interleave(length)[extra]
        first, last = (column[start_of_picture + x.masked_fill(empty, 0)] for x in (first, last))
        structural = Structural(
            torch.zeros(len(extra), 0, dtype=torch.float32),
            sample[extra],
            column[extra],
            first,
            last.masked_fill(empty, -1),
        )
        return cls(layout, source, origin, structural, extra, prompt, by_kind)

    def views(self, packed: Tensor) -> Tensor:
        """Arrange packed values [n, ...] by view -> [V, N, ...], 0 at padding."""
        at = self.source.to(packed.device)
        padding = (self.layout.column < 0).to(packed.device)
        return packed[at].masked_fill(padding.view(*padding.shape, *[1] * (packed.ndim - 1)), 0)

    def evidence(self, packed: Tensor, readings: Mapping[Need, Tensor], deepstack: Sequence[Tensor] = ()) -> Evidence:
        """Return evidence of packed features [n, D] with `readings` by view and `deepstack` features [n, D].

        ValueError for another number of features than the layout has tokens.
        """
        layout = self.layout
        structural = self.structural
        if len(packed) != int(layout.untouched.sum()) + len(self.extra):
            raise ValueError(
                f"the model made {len(packed)} visual tokens, the layout has "
                f"{int(layout.untouched.sum()) + len(self.extra)}: check `pictures` of the adapter"
            )
        if structural is not None:
            structural = replace(structural, tokens=packed[self.extra.to(packed.device)])
        device = packed.device
        layout = replace(
            layout, grid=layout.grid.to(device), column=layout.column.to(device), centre=layout.centre.to(device)
        )
        vars(layout)["count"] = self.layout.count  # cached on the CPU: a count on the device would synchronise
        levels = torch.stack([self.views(level) for level in deepstack]) if deepstack else None
        return Evidence(self.views(packed), layout, readings, structural=structural, deepstack=levels)
