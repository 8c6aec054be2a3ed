"""Adapter: what knows one family of backbones. It gathers evidence and splices the result of pruning back.

Splicing goes through `mm_encoder_outputs`, which transformers accepts in forward and generate since 5.18: pruned
features take the place of the tower's, and ids, mask and positions are shortened with them. No hook, nothing to undo.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from importlib.metadata import version
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPooling

from vtcframe.core import Evidence, Layout, Pruned, Structural, reading
from vtcframe.needs import Need
from vtcframe.registry import entries


def _require_transformers(found: str) -> None:
    if tuple(int(part) for part in found.split(".")[:2]) < (5, 18):
        raise ImportError(
            f"vtcframe needs transformers >= 5.18 (mm_encoder_outputs), found {found}: pip install -U transformers"
        )


_require_transformers(version("transformers"))


@dataclass(frozen=True)
class Prompt:
    """A batch of prompts by column: the place in a sample's own prompt, batch padding not counted. On the CPU."""

    ids: Tensor  # [P, C]
    real: Tensor  # [P, C] bool, False behind a prompt's end
    visual: Tensor  # [P, C] bool, True at placeholders

    @classmethod
    def of(cls, inputs: Mapping[str, Any], placeholder: int) -> "Prompt":
        """Read `input_ids` and `attention_mask` (all ones where there is none), padded on either side."""
        ids = inputs["input_ids"].cpu()
        mask = inputs.get("attention_mask")
        mask = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask.cpu().bool()
        if mask.shape != ids.shape:
            raise ValueError(f"attention_mask is {list(mask.shape)}, input_ids {list(ids.shape)}: give a 2-D mask")
        order = (~mask).long().argsort(dim=1, stable=True)[:, : int(mask.sum(1).max())]
        ids, real = ids.gather(1, order), mask.gather(1, order)
        return cls(ids, real, real & (ids == placeholder))


class Adapter(ABC):
    """Knows one family of backbones."""

    reads: ClassVar[tuple[str, ...]]  # the inputs that describe pictures; splice takes them over

    def __init__(self, model: nn.Module) -> None:
        self.model: Any = model

    @classmethod
    @abstractmethod
    def matches(cls, model: nn.Module) -> bool:
        """Tell whether this adapter knows `model`."""

    @abstractmethod
    def arrange(self, inputs: Mapping[str, Any], ids: Sequence[object] = ()) -> "Arrangement":
        """Tell where the visual tokens of `inputs` (what a processor returns) sit; nothing is encoded.

        `ids` names the samples, so that randomness does not depend on their pixels; without them it depends on prompt
        and pixels. ValueError where there are no pictures, or prompts and pictures do not match.
        """

    @abstractmethod
    def encode(self, inputs: Mapping[str, Any], arrangement: "Arrangement", needs: Iterable[Need] = ()) -> Evidence:
        """Encode the pictures and gather exactly `needs`. ValueError for a need that the family cannot serve."""

    def observe(self, inputs: Mapping[str, Any], needs: Iterable[Need] = (), ids: Sequence[object] = ()) -> Evidence:
        """Arrange and encode. The evidence may be pruned any number of times."""
        return self.encode(inputs, self.arrange(inputs, ids), needs)

    @abstractmethod
    def llm_layers(self) -> Sequence[nn.Module]:
        """Return the blocks of the language model, in depth order."""

    def prompt(self, inputs: Mapping[str, Any]) -> Prompt:
        """Return the batch of prompts by column."""
        if inputs.get("input_ids") is None:
            raise ValueError(
                "inputs hold no input_ids: give what the processor returns (inputs_embeds hide the pictures)"
            )
        return Prompt.of(inputs, self.model.config.image_token_id)

    def splice(
        self,
        inputs: Mapping[str, Any],
        evidence: Evidence,
        pruned: Pruned,
        positions: Literal["original", "compact"] = "original",
    ) -> dict[str, Any]:
        """Return keyword arguments for the untouched model's `generate` or forward, with the dropped tokens gone.

        Rows are padded on the left. Prompts are shorter than the caller's: generated ids start behind
        `result["input_ids"].shape[1]`. Make a new dict for every call: `generate` changes what it is given.
        """
        prompt = self.prompt(inputs)
        keep, feature, position = _plan(prompt, evidence, pruned)
        if (own := inputs.get("position_ids")) is not None:
            position = _by_column(own.cpu(), inputs, prompt).gather(1, position)
        if positions == "compact":
            position = keep.cumsum(1) - 1
        length = keep.sum(1)
        width = int(length.max())
        slot = torch.arange(width) - (width - length)[:, None]  # left padding: the last slot is a prompt's last token
        order = (~keep).long().argsort(dim=1, stable=True)[:, :width].gather(1, slot.clamp(min=0))
        device = inputs["input_ids"].device
        padding = slot < 0
        source = pruned.tokens.flatten(0, 1)
        if evidence.structural is not None:
            source = torch.cat([source, evidence.structural.tokens.to(source)])
        features = source[feature[keep & prompt.visual].to(source.device)]
        # One tensor a sample: when beams repeat a sample, generate has nothing left to regroup.
        split = [part for part in features.split((keep & prompt.visual).sum(1).tolist()) if len(part)]
        passed = {k: v for k, v in inputs.items() if k not in self.reads}
        return passed | {
            "input_ids": prompt.ids.gather(1, order).masked_fill(padding, self._padding()).to(device),
            "attention_mask": (~padding)
            .long()
            .to(device),  # always: position gaps without one read as packed sequences
            "position_ids": position.gather(1, order).masked_fill(padding, 0).to(device),
            "mm_encoder_outputs": {"image": BaseModelOutputWithPooling(pooler_output=split)},  # pyright: ignore
        }

    def _padding(self) -> int:
        for config in (self.model.generation_config, self.model.config.get_text_config()):
            if (found := getattr(config, "pad_token_id", None)) is not None:
                return found if isinstance(found, int) else found[0]
        return 0  # masked anyway


def _by_column(values: Tensor, inputs: Mapping[str, Any], prompt: Prompt) -> Tensor:
    mask = inputs.get("attention_mask")
    mask = torch.ones_like(values, dtype=torch.bool) if mask is None else mask.cpu().bool()
    order = (~mask).long().argsort(dim=1, stable=True)[:, : prompt.ids.shape[1]]
    return values.expand(len(order), -1).gather(1, order)


def _plan(prompt: Prompt, evidence: Evidence, pruned: Pruned) -> tuple[Tensor, Tensor, Tensor]:
    """[P, C] each, by column: is it kept, which row of the features it reads, which position it takes."""
    column = pruned.column.cpu()  # the one device sync of a splice
    real = column >= 0
    slot, at = reading(column)[real], column[real]
    sample = pruned.layout.sample[:, None].expand(column.shape)[real]
    keep = prompt.real & ~prompt.visual
    held = pruned.layout.untouched
    if (extra := evidence.structural) is not None:
        held = held + torch.bincount(extra.sample, minlength=len(held))
    if not torch.equal(held, prompt.visual.sum(1)) or not prompt.visual[sample, slot].all():
        raise ValueError(
            f"the evidence is not of these inputs: it has {held.tolist()} visual tokens, the prompts have "
            f"{prompt.visual.sum(1).tolist()} placeholders, or has them elsewhere"
        )
    feature = torch.full(keep.shape, -1)
    position = torch.arange(keep.shape[1]).expand(keep.shape).clone()
    keep[sample, slot] = True
    feature[sample, slot] = torch.arange(column.numel()).view(column.shape)[real]
    position[sample, slot] = at
    if extra is not None:
        stays = extra.stays(keep & prompt.visual)
        sample, slot = extra.sample[stays], extra.column[stays]
        keep[sample, slot] = True
        feature[sample, slot] = column.numel() + stays.nonzero()[:, 0]
    return keep, feature, position


@dataclass(frozen=True)
class Picture:
    """How one picture's packed tokens map to its views, as the model's own packing code laid them out."""

    order: Tensor  # [n] index into the picture's views x N tokens; -1 = structural
    first: Tensor  # [n] at a structural token, the first of the packed tokens that it serves
    last: Tensor  # [n] and the last of them; first > last serves none
    box: Tensor  # [views, 4]


def owners(prompt: Prompt, pictures: Sequence[Picture]) -> Tensor:
    """[pictures] the sample each belongs to. ValueError where a prompt's placeholders are not those of its pictures."""
    lengths = torch.tensor([len(picture.order) for picture in pictures])
    bounds, ends = prompt.visual.sum(1).cumsum(0), lengths.cumsum(0)
    owner = torch.searchsorted(bounds, ends)  # the sample in which a picture's last placeholder lies
    starts = torch.searchsorted(bounds, ends - lengths, right=True)
    if not len(ends) or ends[-1] != bounds[-1] or (owner != starts).any():
        raise ValueError(
            f"the prompts hold {prompt.visual.sum(1).tolist()} image placeholders, but the pictures make "
            f"{lengths.tolist()} tokens, in this order: give ids and pixels that one call of the model's own processor "
            "returned, not truncated"
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


@dataclass(frozen=True)
class Arrangement:
    """Where the visual tokens of a batch sit, before anything is encoded. On the CPU."""

    layout: Layout
    source: Tensor  # [V, N] row of the packed features that a token is, 0 at padding
    structural: Structural | None  # without tokens as yet
    extra: Tensor  # [U] rows of the packed features that structural tokens are

    @classmethod
    def of(
        cls, prompt: Prompt, pictures: Sequence[Picture], owner: Tensor, side: tuple[int, int], key: Tensor
    ) -> "Arrangement":
        """Lay views of `side` (rows, columns) tokens out over the placeholders."""
        sample, column = prompt.visual.nonzero(as_tuple=True)
        views, n = torch.tensor([len(picture.box) for picture in pictures]), side[0] * side[1]
        offset = (views.cumsum(0) - views).tolist()
        token = torch.cat(
            [torch.where(p.order < 0, -1, p.order + v * n) for p, v in zip(pictures, offset, strict=True)]
        )
        candidate = token >= 0
        columns, source = torch.full((int(views.sum()) * n,), -1), torch.zeros(int(views.sum()) * n, dtype=torch.long)
        columns[token[candidate]] = column[candidate]
        source[token[candidate]] = candidate.nonzero()[:, 0]
        columns, source, at = columns.view(-1, n), source.view(-1, n), torch.arange(n)
        grid = torch.stack([at // side[1], at % side[1]], -1).expand(*columns.shape, 2)
        picture = torch.arange(len(views)).repeat_interleave(views)
        nth = torch.arange(len(owner)) - torch.searchsorted(owner, owner)  # pictures come sample by sample
        layout = Layout(
            sample=owner[picture],
            key=key,
            image=nth[picture],
            frame=torch.zeros_like(picture),
            box=torch.cat([picture.box for picture in pictures]),
            grid=grid,
            column=columns,
            untouched=torch.bincount(sample[candidate], minlength=len(key)),
        )
        extra = (~candidate).nonzero()[:, 0]
        if not len(extra):
            return cls(layout, source, None, extra)
        lengths = torch.tensor([len(picture.order) for picture in pictures])
        start = column[(lengths.cumsum(0) - lengths).repeat_interleave(lengths)[extra]]  # a picture's columns run on
        first, last = (torch.cat([getattr(p, end) for p in pictures])[extra] + start for end in ("first", "last"))
        structural = Structural(torch.zeros(len(extra), 0), sample[extra], column[extra], first, last)
        return cls(layout, source, structural, extra)

    def evidence(self, features: Sequence[Tensor]) -> Evidence:
        """Cut packed features, [n, D] for each picture, into views."""
        packed, layout, structural = torch.cat(list(features)), self.layout, self.structural
        if len(packed) != int(layout.untouched.sum()) + len(self.extra):
            raise ValueError(f"the model made {len(packed)} visual tokens of {int(layout.untouched.sum())} laid out")
        column = layout.column.to(packed.device)
        tokens = packed[self.source.to(packed.device)].masked_fill((column < 0)[..., None], 0)
        if structural is not None:
            structural = replace(structural, tokens=packed[self.extra.to(packed.device)])
        layout = replace(
            layout, grid=layout.grid.to(packed.device), column=column, centre=layout.centre.to(packed.device)
        )
        vars(layout)["count"] = self.layout.count  # known already: counting on the device would wait for it
        return Evidence(tokens, layout, structural=structural)


def adapter_for(model: nn.Module) -> Adapter:
    """Return the installed adapter that knows `model`. LookupError, with those installed, if none does."""
    known = []
    for entry in entries():
        if entry.kind != "adapter":
            continue
        if (kind := entry.load()).matches(model):
            return kind(model)
        known.append(f"{entry.name} ({entry.distribution} {entry.version})")
    family = getattr(getattr(model, "config", None), "model_type", None)
    raise LookupError(
        f"no adapter knows {type(model).__name__} (model_type {family!r}). Installed: {', '.join(known) or 'none'}. "
        "More come with distributions that register one under the entry point 'vtcframe'; `pip install "
        "vtcframe-backbones` brings ours"
    )
