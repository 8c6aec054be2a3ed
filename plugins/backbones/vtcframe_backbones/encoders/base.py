"""Base class of adapters to stand-alone ViTs: patches are pruned before the last blocks, which compute the features."""

from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from vtcframe.adapters.arrangement import WHOLE, Arrangement, Picture, checksums, owners, sample_keys
from vtcframe.adapters.base import EncoderAdapter
from vtcframe.adapters.prompt import Prompt
from vtcframe.core.encoder_readers import EncoderTokens, Reader
from vtcframe.core.evidence import Evidence
from vtcframe.core.need_bases import AttentionNeed, HiddenNeed, Need
from vtcframe.core.pruned import Pruned
from vtcframe.core.stages import Stage
from vtcframe.core.token_merging import EncoderEvidence
from vtcframe.hooks.encoder import EncoderStages, rows_of
from vtcframe.hooks.encoder_reading import encoder_refusal, reader_of
from vtcframe.hooks.tap import Tap, only_call
from vtcframe.ops.compose import keep_all
from vtcframe.ops.gather import find_columns
from vtcframe_backbones.encoders.vit import Vit


class Encoder(EncoderAdapter):
    """Adapter to a stand-alone ViT: each picture is a sample of one view, each patch a token; no language model.

    Tokens are the patches before the last `rest` blocks, which `features` runs on the remaining tokens. Earlier blocks
    count as "feeding". Class token and registers are structural and always stay. The column of a token is its index
    among the patches.
    """

    no_encoder_stages_because = ""

    def __init__(self, model: nn.Module, processor: Any = None, rest: int | None = 1) -> None:
        """With `rest=None` tokens are the output of the last block, for stages inside the encoder only.

        ValueError if `rest` is no number of blocks that leaves at least one before pruning.
        """
        super().__init__(model, processor)
        self.vit = self.part(model)
        depth = len(self.vit.blocks)
        if rest is not None and not 1 <= rest < depth:
            raise ValueError(
                f"rest={rest} of {depth} blocks cannot run after pruning: leave at least one before and after"
            )
        self.site = depth - (rest or 0)

    @staticmethod
    @abstractmethod
    def part(model: Any) -> Vit:
        """Return the ViT of a model. ValueError, with the reason, for a model that cannot be pruned."""

    @abstractmethod
    def untouched(self, pixels: Tensor) -> Tensor:
        """[P, 3, h, w] -> [P, D]: features of the model without pruning."""

    def arrange(
        self, inputs: Mapping[str, Any], ids: Sequence[object] = (), *, prompt: Prompt | None = None
    ) -> Arrangement:
        """Return the positions of the patches of "pixel_values" [P, 3, h, w] (see `EncoderAdapter.arrange`)."""
        pixels = inputs.get("pixel_values")
        if not isinstance(pixels, Tensor) or pixels.ndim != 4 or not len(pixels):
            kind = str(list(pixels.shape)) if isinstance(pixels, Tensor) else f"a {type(pixels).__name__}"
            raise ValueError(
                f"pixel_values is {kind}: give pictures [P, 3, height, width] in the form that the model takes"
            )
        rows, columns = self.vit.grid(pixels)
        patches = rows * columns
        count = len(pixels)
        order = torch.arange(patches + self.vit.prefix)
        structural = order >= patches
        picture = replace(
            Picture.grids((rows, columns), box=WHOLE),
            order=order.masked_fill(structural, -1),
            first=structural.long(),  # after `last`: the spans are empty, so that the prefix always stays
            last=order * 0,
        )
        place = torch.zeros(count, len(order), dtype=torch.long)
        prompt = Prompt(place, place == 0, place)
        owner = owners(prompt, 0, [picture] * count)
        key = sample_keys(prompt, ids, owner, [] if ids else checksums(pixels, [1] * count))
        return Arrangement.of(prompt, [[picture] * count], [owner], key)

    @torch.no_grad()
    def encode(self, inputs: Mapping[str, Any], arrangement: Arrangement, needs: Iterable[Need] = ()) -> Evidence:
        """Run the blocks before pruning and gather `needs`."""
        pairs_of_need = {need: self._readers(need) for need in needs}
        readers: dict[nn.Module, list[Reader]] = {}
        deepest = self.site
        for pairs in pairs_of_need.values():
            for layer, reader in pairs:
                readers.setdefault(self.vit.blocks[layer].get_submodule("attn"), []).append(reader)
                deepest = max(deepest, layer + 1)
        with Tap(readers) as tap:
            hidden = self.vit.begin(inputs["pixel_values"], self.site, deepest)
        prefix = hidden[:, : self.vit.prefix]
        patches = hidden[:, self.vit.prefix :]
        readings = {}
        for need, pairs in pairs_of_need.items():
            if isinstance(need, HiddenNeed):
                readings[need] = need.read_encoder(patches, hidden[:, 0] if self.vit.has_class else None)
            else:
                modules = [(self.vit.blocks[layer].get_submodule("attn"), reader) for layer, reader in pairs]
                readings[need] = torch.stack([only_call(tap, module, reader) for module, reader in modules])
        evidence = arrangement.evidence(torch.cat([patches, prefix], 1).flatten(0, 1), readings)
        return replace(evidence, project=nn.Identity())

    @torch.no_grad()
    def encode_with_stages(
        self, inputs: Mapping[str, Any], arrangement: Arrangement, needs: Iterable[Need], stages: Sequence[Stage]
    ) -> tuple[Evidence, Pruned]:
        """Run the blocks before pruning with `stages` inside them (see `EncoderAdapter.encode_with_stages`)."""
        pixels = inputs["pixel_values"]
        k = self.vit.prefix
        layout = rows_of(arrangement.layout, torch.arange(len(pixels)), pixels.device)
        blocks = [self.vit.split(block) for block in self.vit.blocks]
        inside = EncoderStages(blocks, k, layout, stages, needs, feeding=self.site, has_class=self.vit.has_class)
        with inside:
            self.vit.begin(pixels, self.site, inside.deepest)
        evidence = inside.evidence()
        evidence = evidence.restrict_to(keep_all(evidence))
        if arrangement.structural is not None:
            prefix = inside.hidden[:, :k].flatten(0, 1)
            evidence = replace(evidence, structural=replace(arrangement.structural, tokens=prefix))
        place = find_columns(evidence.layout.column, layout)
        pruned = Pruned(evidence.tokens, place, inside.scores(layout), layout)
        return replace(evidence, project=nn.Identity()), pruned

    @torch.no_grad()
    def features(self, evidence: Evidence, pruned: Pruned) -> Tensor:
        """Return the features of each picture, [P, D], from the last blocks, pooling and head on the remaining tokens.

        If all tokens remain, they are bit-equal to the output of the model, with one exception: models that average
        patches without a class token or register in front sum them in another order. ValueError for tokens of another
        batch, and for a picture without remaining tokens.
        """
        count = (pruned.place >= 0).sum(1).cpu()
        if len(pruned.place) != len(evidence.layout.key) or not torch.equal(pruned.layout.key, evidence.layout.key):
            raise ValueError(
                f"{len(pruned.place)} rows of tokens are not of these {len(evidence.layout.key)} pictures: give "
                "the evidence that was pruned"
            )
        if not count.all():
            raise ValueError(
                f"nothing is left of samples {(count == 0).nonzero()[:, 0].tolist()}: keep at least one token of each"
            )
        k = self.vit.prefix
        padding = pruned.place < 0
        hidden = pruned.tokens.masked_fill(padding[..., None], 0)
        size = None
        if isinstance(evidence, EncoderEvidence) and evidence.size is not None:
            size = evidence.size.gather(1, find_columns(pruned.column, evidence.layout).clamp(min=0))
        if evidence.structural is not None:
            hidden = torch.cat([evidence.structural.tokens.view(len(hidden), k, -1).to(hidden), hidden], 1)
            padding = torch.nn.functional.pad(padding, (k, 0))
        ragged = bool((count < pruned.place.shape[1]).any())
        bias = None
        if ragged or size is not None:
            bias = torch.zeros(padding.shape, device=padding.device).masked_fill(padding, -torch.inf)
            if size is not None:
                bias[:, k:] += size.log()
        for block in self.vit.blocks[self.site :]:
            options = {} if bias is None else {"attn_mask": self.vit.mask(bias.to(hidden.dtype), block)}
            hidden = block(hidden, **options)
        if not ragged:
            return self.vit.pooled(hidden)
        parts = [(count == n, self.vit.pooled(hidden[count == n, : k + n])) for n in count.unique().tolist()]
        out = hidden.new_empty(len(hidden), *parts[0][1].shape[1:], dtype=parts[0][1].dtype)
        for rows, part in parts:  # pooling takes no mask: pool samples of equal length together
            out[rows] = part
        return out

    def _readers(self, need: Need) -> list[tuple[int, Reader]]:
        """Return the blocks that serve a need, in the order of its layers, and readers; none for hidden states.

        ValueError for a need that the ViT cannot serve.
        """
        kind = type(self.vit.module).__name__
        tokens = EncoderTokens(self.vit.prefix, None, has_class=self.vit.has_class)
        if refusal := encoder_refusal(need, tokens):
            raise ValueError(f"{type(self).__name__} cannot gather {need} from {kind}: {refusal}")
        if not isinstance(need, AttentionNeed):
            return []
        count = self.site if need.blocks == "feeding" else len(self.vit.blocks)
        if not all(-count <= layer < count for layer in need.layers):
            raise ValueError(f"{need} needs a block beyond the {count} ({need.blocks}) of {kind}")
        if not all(hasattr(block, "attn") for block in self.vit.blocks):
            raise ValueError(f"{need} cannot be gathered: blocks of {kind} have no separate attention module")
        return [(layer % count, reader_of(need, tokens)) for layer in need.layers]
