"""Common base of the adapters to models of transformers: it taps vision towers and follows the packing of features.

A family defines which tower encodes a modality, how many tokens each picture has and in which order they are packed.
Arranging tokens, tapping attention and gathering evidence are the same for all families.
"""

from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import KW_ONLY, dataclass, replace
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
    """The parts of the vision encoder of one modality from which evidence is gathered."""

    module: Any
    attention: Sequence[nn.Module]  # attention module of every block, in depth order
    # indices of the hidden states that the projector reads; K is the output of the first K blocks
    states: Sequence[int]
    _: KW_ONLY
    classes: int = 0  # number of class tokens in front of the patches
    pool: Callable[[Tensor], Tensor] | None = None  # [..., patches, C] -> [..., tokens, C], mean over a token's patches
    packed: bool = False  # whether all pictures are concatenated to one sequence
    segments: PackedSequences | None = None  # how they are packed, if attention calls do not tell the kernel
    whole: Sequence[int] | None = None  # blocks whose attention spans a whole picture; None = all
    head: nn.MultiheadAttention | None = None  # attention pooling over the patches, by a learned query

    @property
    def feeding(self) -> list[nn.Module]:
        """Attention modules whose output reaches the projector and that span whole pictures, in depth order."""
        depth = max(self.states)
        blocks = range(depth) if self.whole is None else self.whole
        return [self.attention[i] for i in blocks if i < depth]


class TowerAdapter(Adapter):
    """Base class of adapters to models of transformers. A family overrides what differs."""

    family: ClassVar[str]  # model_type of the configuration
    pixels: ClassVar[Mapping[Modality, str]] = {
        "image": "pixel_values"
    }  # the input that holds the pixels of a modality
    # why stages inside the encoder cannot be run; "" if `ungrid` can map remaining tokens to the output of the towers
    no_encoder_stages_because: ClassVar[str] = "the packing of the model needs the complete grid of patches"

    @classmethod
    def matches(cls, model: nn.Module) -> bool:
        """Return whether the `model_type` of the configuration is `family`."""
        return getattr(getattr(model, "config", None), "model_type", None) == cls.family

    @abstractmethod
    def tower(self, modality: Modality, inputs: Mapping[str, Any]) -> Tower:
        """Return the tower that encodes a modality. ValueError for options in `inputs` that cannot be served."""

    @abstractmethod
    def pictures(self, modality: Modality, inputs: Mapping[str, Any], prompt: Prompt) -> list[Picture]:
        """Return the views and tokens of each image or video of the batch, in the order of the pixels."""

    @abstractmethod
    def features(self, modality: Modality, inputs: Mapping[str, Any], tower: Tower) -> Any:
        """Call the encoding of the model; its `pooler_output` holds the features for the language model."""

    def pack(self, modality: Modality, inputs: Mapping[str, Any], maps: Tensor) -> Tensor:
        """Pack maps over the tokens of the tower, [rows, T, C], like features -> [n, C]; 0 at structural tokens."""
        return maps.flatten(0, 1)

    def hidden(self, encoded: Any, tower: Tower) -> Tensor:
        """Return the hidden states that the projector reads, [rows, patches, C], class tokens in front."""
        return torch.cat([encoded.hidden_states[i] for i in tower.states], -1)

    def merged(self, hidden: Tensor, tower: Tower) -> Tensor:
        """[rows, patches, C] -> [rows, T, C'], the patches of a token concatenated in C'."""
        return hidden

    def original_images(
        self, modality: Modality, inputs: Mapping[str, Any], pictures: Sequence[Picture]
    ) -> Sequence[Tensor]:
        """Return each complete image or frame, [3, h, w], normalised by the processor: the input of auxiliary encoders.

        ValueError if the family cannot restore them.
        """
        raise ValueError(f"{type(self).__name__} cannot restore its original images for an auxiliary encoder")

    def project(self, features: Tensor) -> Tensor:
        """Project what `merged` returns, [..., C'], to tokens [..., D], before any packing that resamples."""
        return self.model.base_model.multi_modal_projector(features)

    def pixels_of(self, modality: Modality, inputs: Mapping[str, Any]) -> Any:
        """Return the pixels of a modality, None if there are none."""
        return inputs.get(self.pixels[modality])

    def modalities_in(self, inputs: Mapping[str, Any]) -> list[Modality]:
        """Return the modalities of which the inputs hold pixels, in packed order. ValueError if there are none."""
        present: list[Modality] = [
            modality for modality in self.modalities if self.pixels_of(modality, inputs) is not None
        ]
        if not present:
            names = " or ".join(self.pixels.values())
            raise ValueError(f"inputs hold no {names}, so there is nothing to prune: call the model itself")
        return present

    def arrange(
        self, inputs: Mapping[str, Any], ids: Sequence[object] = (), *, prompt: Prompt | None = None
    ) -> Arrangement:
        """Return the positions of the visual tokens (see `EncoderAdapter.arrange`)."""
        prompt = self.prompt(inputs) if prompt is None else prompt
        present = self.modalities_in(inputs)
        pictures = [self.pictures(m, inputs, prompt) if m in present else [] for m in self.modalities]
        owner: list[Tensor] = []
        sums: list[int] = []
        for kind, (modality, of_modality) in enumerate(zip(self.modalities, pictures, strict=True)):
            if empty := [i for i, picture in enumerate(of_modality) if not len(picture.box)]:
                raise ValueError(f"{modality}s {empty} have no frames: leave them out, or give them at least one")
            owner.append(owners(prompt, kind, of_modality, modality))
            if of_modality and not ids:
                sums += checksums(self.pixels_of(modality, inputs), [picture.rows for picture in of_modality])
        return Arrangement.of(prompt, pictures, owner, sample_keys(prompt, ids, torch.cat(owner), sums))

    @torch.no_grad()
    def encode(self, inputs: Mapping[str, Any], arrangement: Arrangement, needs: Iterable[Need] = ()) -> Evidence:
        """Encode the pictures and gather `needs` from vision towers, auxiliary encoders and the language model."""
        needs = tuple(dict.fromkeys(needs))
        prerequisites = [prerequisite for need in needs for prerequisite in need.prerequisites]
        of_encoder = dict.fromkeys([*(need for need in needs if need.site == "encoder"), *prerequisites])
        parts: dict[Need, list[Tensor]] = {need: [] for need in of_encoder}
        packed: list[Tensor] = []
        deepstack: list[list[Tensor]] = []
        for modality in self.modalities_in(inputs):
            tower = self.tower(modality, inputs)
            pairs_of_need = {need: self._readers(need, tower) for need in of_encoder}
            readers: dict[nn.Module, list[Reader]] = {}
            for pairs in pairs_of_need.values():
                for module, reader in pairs:
                    readers.setdefault(module, []).append(reader)
            deepest = max([*tower.states, *(i + 1 for i, module in enumerate(tower.attention) if module in readers)])
            if tower.head in readers:  # the pooling head reads the output of the last block
                deepest = len(tower.attention)
            with Tap(readers, tower.segments) as tap, first_blocks(tower, deepest):
                encoded = self.features(modality, inputs, tower)
            out = encoded.pooler_output
            packed.append(out.flatten(0, -2) if isinstance(out, Tensor) else torch.cat(list(out)))
            levels = getattr(encoded, "deepstack_features", None) or ()
            deepstack.append([torch.cat(list(level)) for level in levels])
            for need, pairs in pairs_of_need.items():
                calls = [tap[pair] for pair in pairs]
                parts[need].append(self._gather(need, modality, inputs, tower, encoded, calls))
        views = {need: self._arrange_views(need, torch.cat(values), arrangement) for need, values in parts.items()}
        for need in needs:
            if need.site == "auxiliary":
                features = [views[prerequisite] for prerequisite in need.prerequisites]
                views[need] = gather_auxiliary(need, self, inputs, arrangement, *features)
        levels = [torch.cat(level) for level in zip(*deepstack, strict=True)]
        evidence = arrangement.evidence(torch.cat(packed), {}, levels)
        views |= self._gather_llm(inputs, arrangement, evidence, needs)
        return replace(evidence, readings={need: views[need] for need in needs}, project=self.project)

    def _gather_llm(
        self, inputs: Mapping[str, Any], arrangement: Arrangement, evidence: Evidence, needs: Iterable[Need]
    ) -> dict[Need, Tensor]:
        """Gather those of `needs` that the language model serves, from a run of its first layers."""
        of_llm = [need for need in needs if need.site == "llm"]
        return probe(self, inputs, evidence, of_llm, arrangement.prompt) if of_llm else {}

    def ungrid(self, modality: Modality, encoded: Any, tower: Tower) -> tuple[Tensor, Tensor]:
        """Return structural tokens [rows x structural, D] and the other features by row of the tower [rows, T, D].

        ValueError if `no_encoder_stages_because` is not empty.
        """
        raise ValueError(f"{type(self).__name__} cannot be pruned inside its encoder: {self.no_encoder_stages_because}")

    @torch.no_grad()
    def encode_with_stages(
        self, inputs: Mapping[str, Any], arrangement: Arrangement, needs: Iterable[Need], stages: Sequence[Stage]
    ) -> tuple[Evidence, Pruned]:
        """Encode the pictures with `stages` inside the encoder.

        Return evidence of the remaining tokens, with `needs`, and the tokens as `Pruned` in the layout of the
        arrangement. ValueError for samples with images and videos, and for several hidden states in
        `Tower.states`.
        """
        layout = arrangement.layout
        device = inputs["input_ids"].device
        needs = tuple(needs)
        present = self.modalities_in(inputs)
        pictures = dict(zip(self.modalities, arrangement.pictures, strict=True))
        rows = [sum(len(picture.box) for picture in pictures[modality]) for modality in present]
        views_of_modality = arrangement.origin.argsort().split(rows)
        samples = [set(layout.sample[views].tolist()) for views in views_of_modality]
        if len(samples) > 1 and (shared := set.intersection(*samples)):
            raise ValueError(
                f"samples {sorted(shared)} have images and videos, whose encoders cannot share a budget: use stages at "
                "'projector'"
            )
        parts: list[Evidence] = []
        scores: list[Tensor] = []
        structural: list[Tensor] = []
        for modality, views in zip(present, views_of_modality, strict=True):
            tower = self.tower(modality, inputs)
            if len(tower.states) > 1:
                raise ValueError(
                    f"vision_feature_layer {list(tower.states)} reads hidden states of different lengths once tokens "
                    "are dropped: read one layer, or use stages at 'projector'"
                )
            modality_layout = rows_of(layout, views, device)
            blocks = [PreNorm(block) for block in tower.module.get_submodule("encoder.layers").children()]
            encoder_needs = [need for need in needs if need.site != "llm"]
            inside = EncoderStages(
                blocks, tower.classes, modality_layout, stages, encoder_needs, feeding=tower.states[0]
            )
            with inside, first_blocks(tower, inside.deepest):
                encoded = self.features(modality, inputs, tower)
            extra, tokens = self.ungrid(modality, encoded, tower)
            parts.append(inside.evidence(tokens))
            scores.append(inside.scores(modality_layout))
            structural.append(extra)
        evidence = stacked(parts, arrangement.origin, layout)
        evidence = evidence.restrict_to(keep_all(evidence))
        if arrangement.structural is not None:
            extra = replace(arrangement.structural, tokens=torch.cat(structural))
            evidence = replace(evidence, structural=extra)
        original = rows_of(layout, torch.arange(len(layout.sample)), device)
        place = find_columns(evidence.layout.column, original)
        original_scores = torch.cat(scores)[arrangement.origin.to(device)]
        readings = {**evidence.readings, **self._gather_llm(inputs, arrangement, evidence, needs)}
        evidence = replace(evidence, readings=readings, project=self.project)
        return evidence, Pruned(evidence.tokens, place, original_scores, original)

    def _gather(
        self,
        need: Need,
        modality: Modality,
        inputs: Mapping[str, Any],
        tower: Tower,
        encoded: Any,
        calls: Sequence[Sequence[Tensor]],
    ) -> Tensor:
        """Return the packed readings of a need: [n, L, H(, C)], [n, C], or [rows, C] for one vector of each view.

        `calls` are the results of its readers: for each layer one tensor for each call.
        """
        if isinstance(need, HiddenNeed):
            hidden = self.hidden(encoded, tower)
            tokens = self.merged(hidden[:, tower.classes :], tower)
            states = need.read_encoder(tokens, hidden[:, 0] if tower.classes else None)
            return self.pack(modality, inputs, states) if "N" in need.axes else states
        # [L, rows, H, T(, C)] -> [rows, T, L, H(, C)]
        layers = torch.stack([torch.cat(list(of_layer), 2 if tower.packed else 0) for of_layer in calls])
        maps = layers.movedim((1, 3), (0, 1))
        return self.pack(modality, inputs, maps.flatten(2)).unflatten(1, maps.shape[2:])

    def _arrange_views(self, need: Need, packed: Tensor, arrangement: Arrangement) -> Tensor:
        """Return packed readings by view, in the order of the axes of a need."""
        if "N" not in need.axes:
            return packed[arrangement.origin.to(packed.device)]
        views = arrangement.views(packed)  # [V, N, ...]
        return views.movedim((2, 3), (0, 2)).contiguous() if need.axes.startswith("L") else views

    def _readers(self, need: Need, tower: Tower) -> list[tuple[nn.Module, Reader]]:
        """Return the attention modules that serve a need, in the order of its layers; none for hidden states.

        ValueError for a need that the tower cannot serve.
        """
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
                f"{need} needs a block beyond the {len(modules)} ({need.blocks}) of {type(tower.module).__name__}"
            )
        modules = [modules[layer] for layer in need.layers]
        spanning = [tower.attention[i] for i in tower.whole or ()]
        if tower.whole is not None and need.spans_picture and not all(m in spanning for m in modules):
            raise ValueError(
                f"{need} needs a block of {type(tower.module).__name__} that attends within windows only, whose "
                "weights are not comparable: use blocks='feeding', which counts the other blocks"
            )
        return [(module, reader) for module in modules]


class PreNorm(SplitBlock):
    """A pre-norm block of CLIP or SigLIP in transformers, split into attention and MLP."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__(block, block.get_submodule("self_attn"))

    def attention(self, hidden: Tensor, bias: Tensor | None) -> Tensor:
        """Run norm, attention and residual connection (see `SplitBlock`)."""
        if bias is not None:
            bias = (bias > -torch.inf).long() if self.flash else bias[:, None, None].to(hidden.dtype)
        return hidden + self.attention_module(self.block.layer_norm1(hidden), attention_mask=bias)[0]

    def apply_attention(self, hidden: Tensor, weights: Tensor) -> Tensor:
        """Apply given attention weights to the values of a block (see `SplitBlock`)."""
        values = self.attention_module.v_proj(self.block.layer_norm1(hidden))
        return hidden + self.attention_module.out_proj(by_heads(values, weights))

    def mlp(self, hidden: Tensor) -> Tensor:
        """Run norm, MLP and residual connection (see `SplitBlock`)."""
        return hidden + self.block.mlp(self.block.layer_norm2(hidden))


@contextmanager
def first_blocks(tower: Tower, count: int) -> Iterator[None]:
    """Run only the first `count` blocks of a tower, if nothing reads the output of later ones."""
    if count >= len(tower.attention):
        yield
        return
    encoder = tower.module.get_submodule("encoder")
    blocks = encoder.layers
    # transformers installs its capturing hooks only once: install them before blocks are removed.
    maybe_install_capturing_hooks(tower.module)
    encoder.layers = nn.ModuleList(list(blocks)[:count])
    try:
        yield
    finally:
        encoder.layers = blocks
