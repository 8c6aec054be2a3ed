"""What the adapters to transformers' models share: vision towers that are tapped, and packing that is followed.

A family says which tower encodes a modality, how many tokens each picture makes and in which order they are packed;
arranging, tapping and gathering are the same for all.
"""

from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers.utils.output_capturing import maybe_install_capturing_hooks

from vtcframe.adapters.arrangement import Arrangement, Picture, checksums, owners, sample_keys
from vtcframe.adapters.auxiliary_evidence import gather_auxiliary
from vtcframe.adapters.base import Adapter, Modality
from vtcframe.adapters.llm_evidence import probe
from vtcframe.adapters.prompt import Prompt
from vtcframe.core.encoder_readers import EncoderTokens, Reader
from vtcframe.core.evidence import Evidence
from vtcframe.core.need_bases import AttentionNeed, HiddenNeed, Need
from vtcframe.core.pruned import Pruned
from vtcframe.core.stages import Stage
from vtcframe.hooks.encoder import EncoderStages, rows_of, stacked
from vtcframe.hooks.encoder_blocks import SplitBlock, by_heads
from vtcframe.hooks.encoder_reading import encoder_refusal, reader_of
from vtcframe.hooks.packing import PackedSequences
from vtcframe.hooks.tap import Tap
from vtcframe.ops.compose import keep_all
from vtcframe.ops.gather import find_columns


@dataclass(frozen=True)
class Tower:
    """The vision encoder of one modality, as far as it is read."""

    module: Any
    attention: Sequence[nn.Module]  # of every block, in depth order
    read: Sequence[int]  # the hidden states that the projector reads; K is the output of the first K blocks
    classes: int = 0  # class tokens in front of the patches
    pool: Callable[[Tensor], Tensor] | None = None  # [..., patches, C] -> [..., tokens, C], mean over a token's patches
    packed: bool = False  # all pictures lie behind one another in one sequence
    segments: PackedSequences | None = None  # how, where the calls of the attention do not tell
    whole: Sequence[int] | None = None  # the blocks whose attention spans a whole picture; None = all
    head: nn.MultiheadAttention | None = None  # attention pooling over the patches, by a learned query

    @property
    def feeding(self) -> list[nn.Module]:
        """The attention that feeds the projector and spans whole pictures, in depth order."""
        depth = max(self.read)
        return [self.attention[i] for i in (range(depth) if self.whole is None else self.whole) if i < depth]


class TowerAdapter(Adapter):
    """An adapter to a model of transformers whose towers are tapped. A family fills in what differs."""

    family: ClassVar[str]  # model_type of the configuration
    pixels: ClassVar[Mapping[Modality, str]] = {"image": "pixel_values"}  # the input that holds a modality's pixels
    # why stages inside the encoder cannot be run; "" where `opened` tells what the towers make of what is left
    no_encoder_stages_because: ClassVar[str] = (
        "the model's packing needs the whole grid of patches that the encoder was given"
    )

    @classmethod
    def matches(cls, model: nn.Module) -> bool:
        """Tell by the configuration."""
        return getattr(getattr(model, "config", None), "model_type", None) == cls.family

    @abstractmethod
    def tower(self, modality: Modality, inputs: Mapping[str, Any]) -> Tower:
        """Return the tower that encodes a modality. ValueError where inputs ask it for what cannot be served."""

    @abstractmethod
    def pictures(self, modality: Modality, inputs: Mapping[str, Any], prompt: Prompt) -> list[Picture]:
        """Tell what each image or video of the batch becomes, in the order of the pixels."""

    @abstractmethod
    def features(self, modality: Modality, inputs: Mapping[str, Any], tower: Tower) -> Any:
        """Call the model's own encoding; its `pooler_output` is what the language model reads."""

    def pack(self, modality: Modality, inputs: Mapping[str, Any], maps: Tensor) -> Tensor:
        """[rows, T, C] maps over the tower's tokens -> [n, C], packed as features are; structural tokens get 0."""
        return maps.flatten(0, 1)

    def hidden(self, encoded: Any, tower: Tower) -> Tensor:
        """[rows, patches, C] the hidden states that the projector reads, class tokens in front."""
        return torch.cat([encoded.hidden_states[i] for i in tower.read], -1)

    def merged(self, hidden: Tensor, tower: Tower) -> Tensor:
        """[rows, patches, C] -> [rows, T, C'], the patches of a token behind one another in C'."""
        return hidden

    def original_images(
        self, modality: Modality, inputs: Mapping[str, Any], pictures: Sequence[Picture]
    ) -> Sequence[Tensor]:
        """Return [3, h, w], as the processor normalised it, of each image or frame whole: what a witness is shown."""
        raise ValueError(f"{type(self).__name__} cannot show its pictures to a witness")

    def project(self, features: Tensor) -> Tensor:
        """[..., C'] what the projector reads -> [..., D] tokens, before any packing that resamples."""
        return self.model.base_model.multi_modal_projector(features)

    def pixels_of(self, modality: Modality, inputs: Mapping[str, Any]) -> Any:
        """Return the pixels of a modality, None where there are none."""
        return inputs.get(self.pixels[modality])

    def modalities_in(self, inputs: Mapping[str, Any]) -> list[Modality]:
        """Return the modalities that the inputs hold pixels of, in packed order. ValueError where there are none."""
        found: list[Modality] = [
            modality for modality in self.modalities if self.pixels_of(modality, inputs) is not None
        ]
        if not found:
            names = " or ".join(self.pixels.values())
            raise ValueError(f"inputs hold no {names}, so there is nothing to prune: call the model itself")
        return found

    def arrange(
        self, inputs: Mapping[str, Any], ids: Sequence[object] = (), *, prompt: Prompt | None = None
    ) -> Arrangement:
        """Tell where the visual tokens sit (see Adapter.arrange)."""
        prompt = self.prompt(inputs) if prompt is None else prompt
        present = self.modalities_in(inputs)
        pictures = [self.pictures(m, inputs, prompt) if m in present else [] for m in self.modalities]
        for modality, own in zip(self.modalities, pictures, strict=True):
            if empty := [i for i, picture in enumerate(own) if not len(picture.box)]:
                raise ValueError(f"{modality}s {empty} have no frames: leave them out, or give them at least one")
        named = zip(pictures, self.modalities, strict=True)
        owner = [owners(prompt, kind, own, modality) for kind, (own, modality) in enumerate(named)]
        sums = []
        for modality, own in zip(self.modalities, pictures, strict=True):
            if own and not ids:
                sums += checksums(self.pixels_of(modality, inputs), [picture.rows for picture in own])
        return Arrangement.of(prompt, pictures, owner, sample_keys(prompt, ids, torch.cat(owner), sums))

    @torch.no_grad()
    def encode(self, inputs: Mapping[str, Any], arrangement: Arrangement, needs: Iterable[Need] = ()) -> Evidence:
        """Encode the pictures and gather `needs`: attention, keys, features and class tokens of the vision towers."""
        asked_for, packed, deepstack = tuple(dict.fromkeys(needs)), [], []
        needs = [need for need in asked_for if need.site == "encoder"]
        needs = [*dict.fromkeys([*needs, *(first for need in asked_for for first in need.prerequisites)])]
        found: dict[Need, list[Tensor]] = {need: [] for need in needs}
        for modality in self.modalities_in(inputs):
            tower = self.tower(modality, inputs)
            asked = {need: self._readers(need, tower) for need in needs}
            readers: dict[nn.Module, list[Reader]] = {}
            for pairs in asked.values():
                for module, reader in pairs:
                    readers.setdefault(module, []).append(reader)
            deepest = max([*tower.read, *(i + 1 for i, module in enumerate(tower.attention) if module in readers)])
            if tower.head in readers:  # it reads what the last block makes
                deepest = len(tower.attention)
            with Tap(readers, tower.segments) as tap, first_blocks(tower, deepest):
                encoded = self.features(modality, inputs, tower)
            out = encoded.pooler_output
            packed.append(out.flatten(0, -2) if isinstance(out, Tensor) else torch.cat(list(out)))
            levels = getattr(encoded, "deepstack_features", None) or ()
            deepstack.append([torch.cat(list(level)) for level in levels])
            for need, pairs in asked.items():
                found[need].append(
                    self._gathered(need, modality, inputs, tower, encoded, [tap[pair] for pair in pairs])
                )
        views = {need: self._arranged(need, torch.cat(parts), arrangement) for need, parts in found.items()}
        for need in asked_for:
            if need.site == "auxiliary":
                features = [views[first] for first in need.prerequisites]
                views[need] = gather_auxiliary(need, self, inputs, arrangement, *features)
        levels = [torch.cat(level) for level in zip(*deepstack, strict=True)]
        evidence = arrangement.evidence(torch.cat(packed), {}, levels)
        views |= self._spoken(inputs, arrangement, evidence, asked_for)
        return replace(evidence, readings={need: views[need] for need in asked_for}, project=self.project)

    def _spoken(
        self, inputs: Mapping[str, Any], arrangement: Arrangement, evidence: Evidence, needs: Iterable[Need]
    ) -> dict[Need, Tensor]:
        """Return those of `needs` that the language model must be asked, of the tokens as it would read them."""
        asked = [need for need in needs if need.site == "llm"]
        return probe(self, inputs, evidence, asked, arrangement.prompt) if asked else {}

    def ungrid(self, modality: Modality, encoded: Any, tower: Tower) -> tuple[Tensor, Tensor]:
        """[rows x structural tokens, D] and [rows, T, D]: the packed features as their rows were encoded."""
        raise ValueError(f"{type(self).__name__} cannot be pruned inside its encoder: {self.no_encoder_stages_because}")

    @torch.no_grad()
    def encode_with_stages(
        self, inputs: Mapping[str, Any], arrangement: Arrangement, needs: Iterable[Need], stages: Sequence[Stage]
    ) -> tuple[Evidence, Pruned]:
        """Encode the pictures with `stages` inside the encoder.

        Return evidence of what is left, with `needs`, and the same as `Pruned` by the layout of the arrangement.
        """
        layout, order = arrangement.layout, arrangement.origin.argsort()
        device, needs, present = inputs["input_ids"].device, tuple(needs), self.modalities_in(inputs)
        pictures = dict(zip(self.modalities, arrangement.pictures, strict=True))
        rows = [sum(len(picture.box) for picture in pictures[modality]) for modality in present]
        every = order.split(rows)
        if len(every) > 1 and (shared := set.intersection(*(set(layout.sample[views].tolist()) for views in every))):
            raise ValueError(
                f"samples {sorted(shared)} have images and videos, which two encoders read that share no budget: "
                "use stages at 'projector'"
            )
        parts: list[Evidence] = []
        scores, structural = [], []
        for modality, views in zip(present, every, strict=True):
            tower = self.tower(modality, inputs)
            if len(tower.read) > 1:
                raise ValueError(
                    f"vision_feature_layer {list(tower.read)} reads hidden states of several lengths once tokens leave "
                    "the encoder: read one layer, or use stages at 'projector'"
                )
            own = rows_of(layout, views, device)
            blocks = [PreNorm(block) for block in tower.module.get_submodule("encoder.layers").children()]
            others = [need for need in needs if need.site != "llm"]
            inside = EncoderStages(blocks, tower.classes, own, stages, others, feeding=tower.read[0])
            with inside, first_blocks(tower, inside.deepest):
                encoded = self.features(modality, inputs, tower)
            extra, tokens = self.ungrid(modality, encoded, tower)
            parts.append(inside.evidence(tokens))
            scores.append(inside.scores(own))
            structural.append(extra)
        evidence = stacked(parts, arrangement.origin, layout)
        evidence = evidence.restrict_to(keep_all(evidence))
        if arrangement.structural is not None:
            extra = replace(arrangement.structural, tokens=torch.cat(structural))
            evidence = replace(evidence, structural=extra)
        whole = rows_of(layout, torch.arange(len(layout.sample)), device)
        place = find_columns(evidence.layout.column, whole)
        judged = torch.cat(scores)[arrangement.origin.to(device)]
        found = {**evidence.readings, **self._spoken(inputs, arrangement, evidence, needs)}
        evidence = replace(evidence, readings=found, project=self.project)
        return evidence, Pruned(evidence.tokens, place, judged, whole)

    def _gathered(
        self,
        need: Need,
        modality: Modality,
        inputs: Mapping[str, Any],
        tower: Tower,
        encoded: Any,
        seen: Sequence[Sequence[Tensor]],
    ) -> Tensor:
        """Return what a need is served with: [n, L, H(, C)], [n, C], or [rows, C] for one vector of each view."""
        if isinstance(need, HiddenNeed):
            hidden = self.hidden(encoded, tower)
            tokens = self.merged(hidden[:, tower.classes :], tower)
            states = need.read_encoder(tokens, hidden[:, 0] if tower.classes else None)
            return self.pack(modality, inputs, states) if "N" in need.axes else states
        # [L, rows, H, T(, C)] -> [rows, T, L, H(, C)]
        maps = torch.stack([torch.cat(list(calls), 2 if tower.packed else 0) for calls in seen]).movedim((1, 3), (0, 1))
        return self.pack(modality, inputs, maps.flatten(2)).unflatten(1, maps.shape[2:])

    def _arranged(self, need: Need, packed: Tensor, arrangement: Arrangement) -> Tensor:
        if "N" not in need.axes:
            return packed[arrangement.origin.to(packed.device)]
        views = arrangement.views(packed)  # [V, N, ...]
        return views.movedim((2, 3), (0, 2)).contiguous() if need.axes.startswith("L") else views

    def _readers(self, need: Need, tower: Tower) -> list[tuple[nn.Module, Reader]]:
        """Return the attention modules that serve a need, in the order of its layers; none where hidden states do."""
        tokens = EncoderTokens(
            tower.classes, tower.pool, has_class=bool(tower.classes), has_head=tower.head is not None
        )
        if refusal := encoder_refusal(need, tokens):
            raise ValueError(
                f"{type(self).__name__} cannot gather {need} from {type(tower.module).__name__}: {refusal}"
            )
        if not isinstance(need, AttentionNeed):
            return []
        reader = reader_of(need, tokens)
        if need.at_pooling_head and tower.head is not None:
            return [(tower.head, reader)]
        modules = tower.feeding if need.blocks == "feeding" else list(tower.attention)
        if not all(-len(modules) <= layer < len(modules) for layer in need.layers):
            raise ValueError(
                f"{need} asks for a block beyond the {len(modules)} ({need.blocks}) of {type(tower.module).__name__}"
            )
        modules = [modules[layer] for layer in need.layers]
        spanning = [tower.attention[i] for i in tower.whole or ()]
        if tower.whole is not None and need.spans_picture and not all(m in spanning for m in modules):
            raise ValueError(
                f"{need} asks for a block of {type(tower.module).__name__} that attends within windows only, where "
                "weights of different windows do not compare: use blocks='feeding', which counts the others"
            )
        return [(module, reader) for module in modules]


class PreNorm(SplitBlock):
    """A block of transformers' CLIP and SigLIP."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__(block, block.get_submodule("self_attn"))

    def attention(self, hidden: Tensor, bias: Tensor | None) -> Tensor:
        if bias is not None:
            bias = (bias > -torch.inf).long() if self.flash else bias[:, None, None].to(hidden.dtype)
        return hidden + self.attention_module(self.block.layer_norm1(hidden), attention_mask=bias)[0]

    def apply_attention(self, hidden: Tensor, weights: Tensor) -> Tensor:
        values = self.attention_module.v_proj(self.block.layer_norm1(hidden))
        return hidden + self.attention_module.out_proj(by_heads(values, weights))

    def mlp(self, hidden: Tensor) -> Tensor:
        return hidden + self.block.mlp(self.block.layer_norm2(hidden))


@contextmanager
def first_blocks(tower: Tower, count: int) -> Iterator[None]:
    """Run only the first `count` blocks of a tower: what lies behind them nobody reads."""
    if count >= len(tower.attention):
        yield
        return
    encoder = tower.module.get_submodule("encoder")
    whole = encoder.layers
    # transformers hooks the blocks it finds once and for all: let it see all of them first.
    maybe_install_capturing_hooks(tower.module)
    encoder.layers = nn.ModuleList(list(whole)[:count])
    try:
        yield
    finally:
        encoder.layers = whole
