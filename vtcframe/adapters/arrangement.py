"""Where the visual tokens of a batch sit: prompts by column, pictures laid out over their placeholders."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b

import torch
from torch import Tensor

from vtcframe.adapters.prompt import Prompt
from vtcframe.core.evidence import Evidence
from vtcframe.core.layout import Layout, Structural
from vtcframe.core.needs import Need

WHOLE = torch.tensor([[0.0, 0.0, 1.0, 1.0]], dtype=torch.float32)


@dataclass(frozen=True)
class Picture:
    """How the packed tokens of one picture (an image or a video) map to its views, as the model's packing has them."""

    side: Tensor  # [views, 2] rows and columns of tokens in each view
    order: Tensor  # [n] place of each packed token among the cells of the views, laid end to end; -1 = structural
    box: Tensor  # [views, 4]
    frame: Tensor  # [views]
    # of each packed token [n] that is structural: the first and the last packed token that it serves; first > last
    # serves none
    first: Tensor
    last: Tensor
    rows: int = 1  # of the pixel tensor that it takes

    @classmethod
    def grids(cls, side: tuple[int, int], views: int = 1, rows: int = 1, box: Tensor = WHOLE) -> "Picture":
        """Views of equal size, each the whole picture at another time unless `box` [views, 4] says otherwise."""
        order = torch.arange(views * side[0] * side[1])
        frame = torch.arange(views) if len(box) == 1 else torch.zeros(views, dtype=torch.long)
        return cls(torch.tensor([side]).expand(views, 2), order, box.expand(views, 4), frame, order, order, rows)


def owners(prompt: Prompt, kind: int, pictures: Sequence[Picture], modality: str = "image") -> Tensor:
    """[pictures] the sample each belongs to. ValueError where a prompt's placeholders are not those of its pictures."""
    lengths = torch.tensor([len(picture.order) for picture in pictures], dtype=torch.long)
    held = (prompt.kind == kind).sum(1)
    bounds, ends = held.cumsum(0), lengths.cumsum(0)
    owner = torch.searchsorted(bounds, ends)  # the sample in which a picture's last placeholder lies
    starts = torch.searchsorted(bounds, ends - lengths, right=True)
    if int(lengths.sum()) != int(bounds[-1]) or (owner != starts).any():
        raise ValueError(
            f"the prompts hold {held.tolist()} {modality} placeholders, but the pictures make {lengths.tolist()} "
            "tokens, in this order: give ids and pixels that one call of the model's own processor returned, not "
            "truncated"
        )
    return owner


def sample_keys(prompt: Prompt, ids: Sequence[object], owner: Tensor, checksums: Sequence[int]) -> Tensor:
    """[P] 63-bit hashes: of the samples' ids, or without any of their prompts and their pictures' checksums."""
    if ids and len(ids) != len(prompt.ids):
        raise ValueError(f"{len(ids)} ids for {len(prompt.ids)} samples: give one a sample")
    names = [str(name).encode() for name in ids]
    if not ids:
        names = [row[real].numpy().tobytes() for row, real in zip(prompt.ids, prompt.real, strict=True)]
        for p, checksum in zip(owner.tolist(), checksums, strict=True):
            names[p] += checksum.to_bytes(8, "big", signed=True)
    return torch.tensor([int.from_bytes(blake2b(name, digest_size=8).digest(), "big") >> 1 for name in names])


def checksums(pixels: Tensor, rows: Sequence[int]) -> list[int]:
    """One integer a picture of `rows` rows, exact and so the same in any batch; all-zero padding does not count."""
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
    """Where the visual tokens of a batch sit, before anything is encoded. On the CPU.

    "Packed" is the order in which the model hands features out: all images of the batch, then all videos.
    """

    layout: Layout
    source: Tensor  # [V, N] the packed feature that a token is, 0 at padding
    origin: Tensor  # [V] the view's number in the order in which the towers encode
    structural: Structural | None  # without tokens as yet
    extra: Tensor  # [U] the packed features that structural tokens are
    prompt: Prompt
    pictures: tuple[tuple[Picture, ...], ...]  # for each modality of the adapter, in the order of the pixels
    questions: tuple[str, ...] = ()  # [P] as asked, for those who compare pictures with them

    @classmethod
    def of(
        cls, prompt: Prompt, pictures: Sequence[Sequence[Picture]], owner: Sequence[Tensor], key: Tensor
    ) -> "Arrangement":
        """Lay pictures, a list for each kind of placeholder, out over the placeholders of their owners.

        Views come sample by sample, in the order of their pictures in the prompt.
        """
        kept = tuple(map(tuple, pictures))
        places = [(prompt.kind == kind).nonzero(as_tuple=True) for kind in range(len(pictures))]
        sample, column = (torch.cat(x) for x in zip(*places, strict=True))  # [n] of each packed feature
        every, owned = [p for kind in pictures for p in kind], torch.cat(list(owner))
        length = torch.tensor([len(p.order) for p in every])
        start = length.cumsum(0) - length
        views = torch.tensor([len(p.box) for p in every])
        side = torch.cat([p.side for p in every])
        cells = side.prod(1)
        width = int(cells.max())
        begin = cells.cumsum(0) - cells  # of each view, among all cells laid end to end
        cell = torch.cat(
            [
                torch.where(p.order < 0, -1, p.order + begin[v])
                for p, v in zip(every, (views.cumsum(0) - views).tolist(), strict=True)
            ]
        )
        candidate = cell >= 0
        view = torch.searchsorted(begin, cell[candidate], right=True) - 1
        at = view * width + cell[candidate] - begin[view]
        columns, source = torch.full((len(cells) * width,), -1), torch.zeros(len(cells) * width, dtype=torch.long)
        columns[at], source[at] = column[candidate], candidate.nonzero()[:, 0]
        index = torch.arange(width)
        grid = torch.stack([index // side[:, 1:], index % side[:, 1:]], -1)
        grid = grid.masked_fill((index >= cells[:, None])[..., None], -1)

        rank = (owned * (prompt.ids.shape[1] + 1) + column[start]).argsort()  # pictures in the order of the prompts
        picture = torch.arange(len(every)).repeat_interleave(views)
        place = torch.empty_like(rank)
        place[rank] = torch.arange(len(rank))
        origin = place[picture].argsort(stable=True)
        nth = torch.arange(len(rank)) - torch.searchsorted(owned[rank], owned[rank])
        layout = Layout(
            sample=owned[picture][origin],
            key=key,
            image=nth[place[picture]][origin],
            frame=torch.cat([p.frame for p in every])[origin],
            box=torch.cat([p.box for p in every])[origin],
            grid=grid[origin],
            column=columns.view(-1, width)[origin],
            untouched=torch.bincount(sample[candidate], minlength=len(key)),
        )
        source, extra = source.view(-1, width)[origin], (~candidate).nonzero()[:, 0]
        if not len(extra):
            return cls(layout, source, origin, None, extra, prompt, kept)
        first, last = (torch.cat([getattr(p, end) for p in every])[extra] for end in ("first", "last"))
        own, empty = start.repeat_interleave(length)[extra], first > last
        first, last = (column[own + x.masked_fill(empty, 0)] for x in (first, last))
        structural = Structural(
            torch.zeros(len(extra), 0, dtype=torch.float32),
            sample[extra],
            column[extra],
            first,
            last.masked_fill(empty, -1),
        )
        return cls(layout, source, origin, structural, extra, prompt, kept)

    def views(self, packed: Tensor) -> Tensor:
        """[n, ...] packed -> [V, N, ...], 0 where there is no token."""
        at = self.source.to(packed.device)
        padding = (self.layout.column < 0).to(packed.device)
        return packed[at].masked_fill(padding.view(*padding.shape, *[1] * (packed.ndim - 1)), 0)

    def evidence(self, packed: Tensor, found: Mapping[Need, Tensor], deepstack: Sequence[Tensor] = ()) -> Evidence:
        """Make evidence of packed features [n, D]; `found` and `deepstack` [n, D] go with them."""
        layout, structural = self.layout, self.structural
        if len(packed) != int(layout.untouched.sum()) + len(self.extra):
            raise ValueError(f"the model made {len(packed)} visual tokens of {int(layout.untouched.sum())} laid out")
        if structural is not None:
            structural = replace(structural, tokens=packed[self.extra.to(packed.device)])
        device = packed.device
        layout = replace(
            layout, grid=layout.grid.to(device), column=layout.column.to(device), centre=layout.centre.to(device)
        )
        vars(layout)["count"] = self.layout.count  # known already: counting on the device would wait for it
        levels = torch.stack([self.views(level) for level in deepstack]) if deepstack else None
        return Evidence(self.views(packed), layout, found, structural=structural, deepstack=levels)
