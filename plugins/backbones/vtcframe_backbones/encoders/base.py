"""ViTs of timm and open_clip as encoders of their own: pruned before their last blocks, for features, not for words."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from vtcframe.adapter import Adapter
from vtcframe.arrangement import WHOLE, Arrangement, Picture, Prompt, checksums, owners, sample_keys
from vtcframe.attention import KeyStates, Reader, Tap
from vtcframe.core import Budget, Evidence, Pruned
from vtcframe.encoder_stage import (
    Halves,
    Inside,
    Midway,
    by_heads,
    cure,
    reader_of,
    rows_of,
)
from vtcframe.needs import ClassToken, Features, Keys, Need, Rows
from vtcframe.passage import encode, prune
from vtcframe.pipeline import Pruner, Stage, plan_for
from vtcframe.remains import everything, located
from vtcframe.witness import only_call


class Vit(ABC):
    """A ViT in the parts that pruning runs one by one. Hidden states [B, prefix + patches, C] have prefix in front."""

    def __init__(self, module: nn.Module, blocks: Iterable[nn.Module], prefix: int, has_class: bool) -> None:
        self.module: Any = module
        self.blocks = list(blocks)
        self.prefix = prefix  # class token, registers
        self.has_class = has_class

    @abstractmethod
    def grid(self, pixels: Tensor) -> tuple[int, int]:
        """Return rows and columns of patches that [B, 3, h, w] becomes."""

    @abstractmethod
    def begin(self, pixels: Tensor, site: int, deepest: int) -> Tensor:
        """[B, 3, h, w] -> hidden states behind `site` blocks; `deepest` >= site of them are run."""

    @abstractmethod
    def halves(self, block: Any) -> Halves:
        """Return a block as stages inside it take it. ValueError where nothing lies between attention and MLP."""

    @abstractmethod
    def mask(self, bias: Tensor, block: Any) -> Tensor:
        """[B, T] what is added to the logits of keys -> the mask by which a block does."""

    @abstractmethod
    def pooled(self, hidden: Tensor) -> Tensor:
        """Hidden states behind the last block -> [B, D], by the model's own norm, pooling and head."""


class TimmVit(Vit):
    """VisionTransformer of timm, with class token, registers or neither; head included."""

    def __init__(self, module: Any) -> None:
        kind = type(module).__name__
        if not _is(module, "timm.models.vision_transformer", "VisionTransformer"):
            raise ValueError(
                f"timm's {kind} cannot be pruned: only VisionTransformer has one sequence of tokens, read block "
                "by block with full attention, and no windows, convolutions or rotary positions"
            )
        if not module.global_pool:
            raise ValueError(
                f"{kind} has global_pool='' and makes no features of its tokens: reset_classifier(0, 'avg')"
            )
        super().__init__(module, module.blocks, module.num_prefix_tokens, module.cls_token is not None)

    def grid(self, pixels: Tensor) -> tuple[int, int]:
        return tuple(self.module.patch_embed.dynamic_feat_size(pixels.shape[-2:]))

    def begin(self, pixels: Tensor, site: int, deepest: int) -> Tensor:
        seen = self.module.forward_intermediates(
            pixels,
            indices=[site - 1, deepest - 1],
            return_prefix_tokens=True,
            stop_early=True,
            output_fmt="NLC",
            intermediates_only=True,
        )[0]
        return torch.cat([seen[1], seen[0]], 1) if self.prefix else seen

    def halves(self, block: Any) -> Halves:
        if not _is(block, "timm.models.vision_transformer", "Block") or not hasattr(block, "norm1"):
            raise ValueError(
                f"a {type(block).__name__} cannot be pruned inside: only timm's Block has attention and MLP one after "
                "the other, each behind its norm. Use stages at 'projector'"
            )
        return _TimmHalves(self, block)

    def mask(self, bias: Tensor, block: Any) -> Tensor:
        return bias[:, None, None]

    def pooled(self, hidden: Tensor) -> Tensor:
        return self.module.forward_head(self.module.norm(hidden))


class OpenClipVit(Vit):
    """VisionTransformer of open_clip, pooling and projection included."""

    def __init__(self, module: Any) -> None:
        if not _is(module, "open_clip.transformer", "VisionTransformer"):
            raise ValueError(
                f"open_clip's {type(module).__name__} cannot be pruned: only ViTs have a sequence of tokens"
            )
        if module.attn_pool is None and module.pool_type == "none":
            raise ValueError("this VisionTransformer has pool_type='none' and makes no features of its tokens")
        super().__init__(module, module.transformer.resblocks, 1, True)

    def grid(self, pixels: Tensor) -> tuple[int, int]:
        return tuple(self.module.grid_size)

    def begin(self, pixels: Tensor, site: int, deepest: int) -> Tensor:
        seen = self.module.forward_intermediates(
            pixels,
            indices=[site - 1, deepest - 1],
            stop_early=True,
            intermediates_only=True,
            output_fmt="NLC",
            output_extra_tokens=True,
        )
        return torch.cat([seen["image_intermediates_prefix"][0], seen["image_intermediates"][0]], 1)

    def halves(self, block: Any) -> Halves:
        return _OpenClipHalves(self, block)

    def mask(self, bias: Tensor, block: Any) -> Tensor:
        width = bias.shape[1]  # torch's MultiheadAttention takes no mask by sample but one for each head and query
        return bias[:, None].expand(-1, width, -1).repeat_interleave(block.attn.num_heads, 0)

    def pooled(self, hidden: Tensor) -> Tensor:
        pooled = self.module._pool(hidden)[0]  # it has no public name
        return pooled if self.module.proj is None else pooled @ self.module.proj


class _TimmHalves(Halves):
    def __init__(self, vit: Vit, block: Any) -> None:
        super().__init__(block, block.attn)
        self.vit = vit

    def attend(self, hidden: Tensor, bias: Tensor | None) -> Tensor:
        mask = None if bias is None else self.vit.mask(bias.to(hidden.dtype), self.block)
        return hidden + self.block.drop_path1(self.block.ls1(self.attention(self.block.norm1(hidden), attn_mask=mask)))

    def spread(self, hidden: Tensor, paid: Tensor) -> Tensor:
        attention, normed = self.attention, self.block.norm1(hidden)
        seen = attention.norm(by_heads(attention.qkv(normed).chunk(3, -1)[2], paid))
        if attention.gate is not None:
            seen = seen * attention.gate(normed).sigmoid()
        return hidden + self.block.drop_path1(self.block.ls1(attention.proj(seen)))

    def feed(self, hidden: Tensor) -> Tensor:
        return hidden + self.block.drop_path2(self.block.ls2(self.block.mlp(self.block.norm2(hidden))))


class _OpenClipHalves(Halves):
    def __init__(self, vit: Vit, block: Any) -> None:
        super().__init__(block, block.attn)
        self.vit = vit

    def attend(self, hidden: Tensor, bias: Tensor | None) -> Tensor:
        block, normed = self.block, self.block.ln_1(hidden)
        mask = None if bias is None else self.vit.mask(bias.to(hidden.dtype), block)
        if isinstance(self.attention, nn.MultiheadAttention):
            return hidden + block.ls_1(block.attention(q_x=normed, attn_mask=mask))
        return hidden + block.ls_1(block.ln_attn(self.attention(normed, attn_mask=mask)))

    def spread(self, hidden: Tensor, paid: Tensor) -> Tensor:
        attention = self.attention
        if not isinstance(attention, nn.MultiheadAttention):
            raise ValueError(
                f"{type(attention).__name__} of {type(self.block).__name__} takes no attention that was merged: "
                "let it be computed anew, when='before'"
            )
        bias = None if attention.in_proj_bias is None else attention.in_proj_bias.chunk(3)[2]
        values = torch.nn.functional.linear(self.block.ln_1(hidden), attention.in_proj_weight.chunk(3)[2], bias)
        return hidden + self.block.ls_1(attention.out_proj(by_heads(values, paid)))

    def feed(self, hidden: Tensor) -> Tensor:
        return hidden + self.block.ls_2(self.block.mlp(self.block.ln_2(hidden)))


class OpenClipTrunk(TimmVit):
    """A timm ViT inside an open_clip model (SigLIP and others)."""

    def __init__(self, module: Any) -> None:
        super().__init__(module.trunk)
        self.head = module.head

    def pooled(self, hidden: Tensor) -> Tensor:
        return self.head(super().pooled(hidden))


class Encoder(Adapter):
    """A ViT by itself: each picture is a sample of one view, each patch a token, no language model.

    Tokens are the patches in front of the last `rest` blocks, which `features` runs on those that are left. Blocks
    before them feed. Class token and registers are structural and always stay; a token's column is its place among the
    patches.
    """

    reads = ("pixel_values",)
    closed = ""

    def __init__(self, model: nn.Module, processor: Any = None, rest: int | None = 1) -> None:
        """With `rest=None` tokens are read behind the last block: for stages inside the encoder alone."""
        super().__init__(model, processor)
        self.vit = self.part(model)
        depth = len(self.vit.blocks)
        if rest is not None and not 1 <= rest < depth:
            raise ValueError(f"rest={rest} of {depth} blocks cannot come after pruning: at least one before and after")
        self.site = depth - (rest or 0)

    @staticmethod
    @abstractmethod
    def part(model: Any) -> Vit:
        """Return the ViT of a model. ValueError, with the reason, for what cannot be pruned."""

    @abstractmethod
    def untouched(self, pixels: Tensor) -> Tensor:
        """[P, 3, h, w] -> [P, D], by the model itself."""

    def arrange(self, inputs: Mapping[str, Any], ids: Sequence[object] = ()) -> Arrangement:
        """Tell where the patches of "pixel_values" [P, 3, h, w] sit (see Adapter.arrange)."""
        pixels = inputs.get("pixel_values")
        if not isinstance(pixels, Tensor) or pixels.ndim != 4 or not len(pixels):
            found = f"is {list(pixels.shape)}" if isinstance(pixels, Tensor) else f"is a {type(pixels).__name__}"
            raise ValueError(
                f"pixel_values {found}: give pictures [P, 3, height, width] as the model itself takes them"
            )
        rows, columns = self.vit.grid(pixels)
        patches, count = rows * columns, len(pixels)
        order = torch.arange(patches + self.vit.prefix)
        structural = order >= patches
        picture = replace(
            Picture.grids((rows, columns), box=WHOLE),
            order=order.masked_fill(structural, -1),
            first=structural.long(),  # behind the last, so that none of the prefix goes with a patch
            last=order * 0,
        )
        place = torch.zeros(count, len(order), dtype=torch.long)
        prompt = Prompt(place, place == 0, place)
        owner = owners(prompt, 0, [picture] * count)
        key = sample_keys(prompt, ids, owner, [] if ids else checksums(pixels, [1] * count))
        return Arrangement.of(prompt, [[picture] * count], [owner], key)

    @torch.no_grad()
    def encode(self, inputs: Mapping[str, Any], arrangement: Arrangement, needs: Iterable[Need] = ()) -> Evidence:
        """Run the blocks before the site and gather `needs`."""
        asked = {need: self._readers(need) for need in needs}
        readers: dict[nn.Module, list[Reader]] = {}
        deepest = self.site
        for layers, reader in asked.values():
            for layer in layers:
                readers.setdefault(self.vit.blocks[layer].get_submodule("attn"), []).append(reader)
                deepest = max(deepest, layer + 1)
        with Tap(readers) as tap:
            hidden = self.vit.begin(inputs["pixel_values"], self.site, deepest)
        prefix, patches = hidden[:, : self.vit.prefix], hidden[:, self.vit.prefix :]
        found = {}
        for need, (layers, reader) in asked.items():
            if isinstance(need, ClassToken):
                found[need] = hidden[:, 0]
            elif isinstance(need, Features):
                found[need] = patches
            else:
                modules = [self.vit.blocks[layer].get_submodule("attn") for layer in layers]
                found[need] = torch.stack([only_call(tap, module, reader) for module in modules])
        evidence = arrangement.evidence(torch.cat([patches, prefix], 1).flatten(0, 1), found)
        return replace(evidence, project=nn.Identity())

    @torch.no_grad()
    def within(
        self, inputs: Mapping[str, Any], arrangement: Arrangement, needs: Iterable[Need], stages: Sequence[Stage]
    ) -> tuple[Evidence, Pruned]:
        """Run the blocks before the site with `stages` inside them (see TowerAdapter.within)."""
        pixels, k = inputs["pixel_values"], self.vit.prefix
        layout = rows_of(arrangement.layout, torch.arange(len(pixels)), pixels.device)
        blocks = [self.vit.halves(block) for block in self.vit.blocks]
        inside = Inside(blocks, k, layout, stages, needs, feeding=self.site, has_class=self.vit.has_class)
        with inside:
            self.vit.begin(pixels, self.site, inside.deepest)
        evidence = inside.evidence()
        evidence = evidence.after(everything(evidence))
        if arrangement.structural is not None:
            prefix = inside.hidden[:, :k].flatten(0, 1)
            evidence = replace(evidence, structural=replace(arrangement.structural, tokens=prefix))
        place = located(evidence.layout.column, layout)
        left = Pruned(evidence.tokens, place, inside.scores(layout), layout)
        return replace(evidence, project=nn.Identity()), left

    @torch.no_grad()
    def features(self, evidence: Evidence, pruned: Pruned) -> Tensor:
        """[P, D] what the model makes of a picture when the last blocks, pooling and head see only what is left.

        With everything left it is the model's own output, bit for bit unless it averages patches that no class token
        or register stands in front of: then they lie otherwise in memory and are summed in another order.
        ValueError for a picture of which nothing is left.
        """
        count = (pruned.place >= 0).sum(1).cpu()
        if len(pruned.place) != len(evidence.layout.key) or not torch.equal(pruned.layout.key, evidence.layout.key):
            raise ValueError(f"{len(pruned.place)} rows of tokens are not of these {len(evidence.layout.key)} pictures")
        if not count.all():
            raise ValueError(
                f"nothing is left of samples {(count == 0).nonzero()[:, 0].tolist()}: keep at least a token"
            )
        k, padding = self.vit.prefix, pruned.place < 0
        hidden, size = pruned.tokens.masked_fill(padding[..., None], 0), None
        if isinstance(evidence, Midway) and evidence.size is not None:
            size = evidence.size.gather(1, located(pruned.column, evidence.layout).clamp(min=0))
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
        for rows, part in parts:  # pooling takes no mask: samples of one length go together
            out[rows] = part
        return out

    def decoder(self) -> nn.Module:
        """Raise ValueError: there is no language model."""
        raise ValueError(f"{type(self.model).__name__} has no language model whose layers could be pruned")

    def splice(
        self,
        inputs: Mapping[str, Any],
        evidence: Evidence,
        pruned: Pruned,
        positions: Literal["original", "compact"] = "original",
    ) -> dict[str, Any]:
        """Raise ValueError: nothing is generated."""
        raise ValueError(f"{type(self.model).__name__} generates nothing: call features(evidence, pruned), or extract")

    def _readers(self, need: Need) -> tuple[list[int], Reader]:
        """Return the blocks that serve a need, in the order asked for, and what reads them."""
        kind, k = type(self.vit.module).__name__, self.vit.prefix
        if need == Features() or (isinstance(need, ClassToken) and self.vit.has_class):
            return [], KeyStates()
        reader = reader_of(need, k, None, self.vit.has_class)
        if reader is None or not isinstance(need, Rows | Keys):
            raise ValueError(f"{type(self).__name__} cannot gather {need} from {kind}{cure(need)}")
        count = self.site if need.of == "feeding" else len(self.vit.blocks)
        if not all(-count <= layer < count for layer in need.layers):
            raise ValueError(f"{need} asks for a block beyond the {count} ({need.of}) of {kind}")
        if not all(hasattr(block, "attn") for block in self.vit.blocks):
            raise ValueError(f"{need} cannot be gathered: blocks of {kind} have no attention module of their own")
        return [layer % count for layer in need.layers], reader


class Timm(Encoder):
    """A VisionTransformer of timm: class-token, average and attention pooling, with or without a classifier."""

    @classmethod
    def matches(cls, model: nn.Module) -> bool:
        """Take every model of timm: what cannot be pruned gets its reason."""
        return _is(model, "timm.models")

    @staticmethod
    def part(model: Any) -> Vit:
        """Return the model itself."""
        return TimmVit(model)

    def untouched(self, pixels: Tensor) -> Tensor:
        """Call the model."""
        return self.model(pixels)


class OpenClip(Encoder):
    """The image tower of an open_clip model; `features` are those of `encode_image`."""

    @classmethod
    def matches(cls, model: nn.Module) -> bool:
        """Take every model of open_clip: what cannot be pruned gets its reason."""
        return _is(model, "open_clip") and hasattr(model, "visual")

    @staticmethod
    def part(model: Any) -> Vit:
        """Return the image tower."""
        if type(model).__name__ not in ("CLIP", "CustomTextCLIP"):
            raise ValueError(
                f"open_clip's {type(model).__name__} is served by no adapter: use a CLIP or CustomTextCLIP"
            )
        return OpenClipTrunk(model.visual) if hasattr(model.visual, "trunk") else OpenClipVit(model.visual)

    def untouched(self, pixels: Tensor) -> Tensor:
        """Call `encode_image`."""
        return self.model.encode_image(pixels)


@torch.no_grad()
def extract(
    model: nn.Module, pixels: Tensor, pruner: Pruner, tokens: int | None = None, ratio: float | None = None
) -> Tensor:
    """[P, 3, h, w] -> [P, D]: features of a timm or open_clip model, its last block seeing what `pruner` leaves.

    A method with stages inside the encoder acts there instead. `tokens` or `ratio` is the budget of each picture (see
    Budget); without either an adaptive pruner decides. Zero-shot classification with half the patches:

        names = [f"a photo of a {name}" for name in classes]
        words = model.encode_text(open_clip.get_tokenizer("ViT-B-32")(names), normalize=True)
        seen = torch.nn.functional.normalize(extract(model, pixels, VtcCls(), ratio=0.5), dim=-1)
        answer = (seen @ words.T).argmax(1)
    """
    kind = next((kind for kind in (Timm, OpenClip) if kind.matches(model)), None)
    if kind is None:
        raise ValueError(f"{type(model).__name__} is neither a model of timm nor of open_clip")
    budget = None if tokens is None and ratio is None else Budget(tokens, ratio)
    plan, inputs = plan_for(pruner, budget), {"pixel_values": pixels}
    adapter = kind(model, rest=1 if plan.projector else None)
    arrangement = adapter.arrange(inputs)
    if plan.covers(arrangement.layout):
        return adapter.untouched(pixels)
    if plan.llm:
        raise ValueError(f"{type(model).__name__} has no language model: {plan} acts at {plan.llm[0].at}")
    evidence, left = encode(adapter, inputs, arrangement, plan, plan.needs)
    return adapter.features(evidence, prune(plan, evidence, left)[0])


def _is(model: nn.Module, package: str, name: str | None = None) -> bool:
    """Tell whether a class of `package` made the model, without importing that package."""
    return any(
        (kind.__module__ + ".").startswith(package + ".") and name in (None, kind.__name__)
        for kind in type(model).__mro__
    )
