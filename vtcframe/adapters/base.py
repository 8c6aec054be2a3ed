"""Adapter: what knows one family of backbones. It gathers evidence and splices the result of pruning back.

Splicing goes through `mm_encoder_outputs`, which transformers accepts in forward and generate since 5.18: pruned
features take the place of the tower's, and ids, mask and positions are shortened with them. No hook, nothing to undo.
"""

import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPooling

from vtcframe.adapters.arrangement import Arrangement
from vtcframe.adapters.prompt import Prompt, align_columns, prompt_mask
from vtcframe.core.evidence import Evidence
from vtcframe.core.layout import reading_order
from vtcframe.core.needs import Need
from vtcframe.core.pruned import Pruned
from vtcframe.core.stages import Stage
from vtcframe.registry import entries


def _require_transformers(found: str) -> None:
    if tuple(int(part) for part in found.split(".")[:2]) < (5, 18):
        raise ImportError(
            f"vtcframe needs transformers >= 5.18 (mm_encoder_outputs), found {found}: pip install -U transformers"
        )


_require_transformers(version("transformers"))
Modality = Literal["image", "video"]


@dataclass
class Encoded(BaseModelOutputWithPooling):
    """What a tower hands out; `deepstack_features` are added to the tokens in the first layers (Qwen3-VL)."""

    deepstack_features: list[list[Tensor]] | None = None


class EncoderAdapter(ABC):
    """Knows one family of vision encoders: it lays out their tokens and gathers evidence about them."""

    modalities: ClassVar[tuple[Modality, ...]] = ("image",)  # each with a placeholder of its own, in packed order
    # why stages inside the encoder cannot be run; "" where `encode_with_stages` can
    no_encoder_stages_because: ClassVar[str] = "it has no encoder whose blocks are known"

    def __init__(self, model: nn.Module, processor: Any = None) -> None:
        """`processor` is asked for by evidence about the pictures or the questions themselves."""
        self.model: Any = model
        self.processor = processor

    @classmethod
    @abstractmethod
    def matches(cls, model: nn.Module) -> bool:
        """Whether this adapter knows `model`."""

    @abstractmethod
    def arrange(
        self, inputs: Mapping[str, Any], ids: Sequence[object] = (), *, prompt: Prompt | None = None
    ) -> Arrangement:
        """Return where the visual tokens of `inputs` (what a processor returns) sit; nothing is encoded.

        `ids` name the samples, so that randomness does not depend on their pixels; without them it depends on prompt
        and pixels. `prompt` is that of `inputs`, where the caller has read it already. ValueError where there are no
        pictures, or prompts and pictures do not match.
        """

    @abstractmethod
    def encode(self, inputs: Mapping[str, Any], arrangement: Arrangement, needs: Iterable[Need] = ()) -> Evidence:
        """Encode the pictures and gather exactly `needs`. ValueError for a need that the family cannot serve."""

    def encode_with_stages(
        self, inputs: Mapping[str, Any], arrangement: Arrangement, needs: Iterable[Need], stages: Sequence[Stage]
    ) -> tuple[Evidence, Pruned]:
        """Encode the pictures with `stages` inside the encoder.

        Return evidence of the tokens left, with `needs`, and the same as `Pruned` in the layout of the arrangement.
        ValueError where `no_encoder_stages_because` is not empty.
        """
        raise ValueError(f"{type(self).__name__} cannot be pruned inside its encoder: {self.no_encoder_stages_because}")

    def observe(self, inputs: Mapping[str, Any], needs: Iterable[Need] = (), ids: Sequence[object] = ()) -> Evidence:
        """Arrange and encode. The evidence may be pruned any number of times."""
        return self.encode(inputs, self.arrange(inputs, ids), needs)


class Adapter(EncoderAdapter):
    """Knows one family of multimodal models: an encoder adapter that also splices what pruning left into prompts."""

    consumes: ClassVar[tuple[str, ...]]  # the inputs that describe pictures; splice takes them over
    # those of them [P, L] that stay beside the ids, shortened with them
    per_token_inputs: ClassVar[tuple[str, ...]] = ()
    stacked: ClassVar[tuple[Modality, ...]] = ()  # the modalities whose features the model takes as one tensor

    def __init__(self, model: nn.Module, processor: Any = None) -> None:
        """ValueError for a processor that marks pictures by another token than the model does."""
        super().__init__(model, processor)
        processor_ids = getattr(processor, "image_token_ids", None)
        model_id = getattr(getattr(model, "config", None), "image_token_id", None)
        if processor_ids and model_id is not None and model_id not in processor_ids:
            raise ValueError(
                f"{type(processor).__name__} puts tokens {list(processor_ids)} where pictures are to stand, "
                f"{type(model).__name__} reads them at {model_id}: give the processor of the model's own checkpoint"
            )

    def decoder(self) -> nn.Module:
        """Return the language model without its head: the module that has the layers."""
        return self.model.base_model.language_model

    def llm_layers(self) -> Sequence[nn.Module]:
        """Return the blocks of the language model, in depth order."""
        return tuple(self.decoder().get_submodule("layers").children())

    def llm_first(self) -> int:
        """Return the first layer of the language model before which tokens can leave."""
        return 1

    def has_mrope(self) -> bool:
        """Tell whether rotary positions have several axes."""
        return "mrope_section" in (getattr(self.model.config.get_text_config(), "rope_parameters", None) or {})

    def blocks(self, spliced: Mapping[str, Any]) -> Tensor | None:
        """[P, L] on the CPU: which picture a slot of a spliced prompt is of, -1 = none; None where causality holds.

        For models whose pictures see themselves in both directions.
        """
        return None

    def prompt(self, inputs: Mapping[str, Any]) -> Prompt:
        """Return the batch of prompts by column."""
        if inputs.get("input_ids") is None:
            raise ValueError(
                "inputs hold no input_ids: give what the processor returns (inputs_embeds hide the pictures)"
            )
        config = self.model.config
        return Prompt.of(inputs, [getattr(config, f"{modality}_token_id") for modality in self.modalities])

    def positions(self, inputs: Mapping[str, Any], prompt: Prompt) -> Tensor:
        """[A, P, C] the rotary positions of the full prompts by column, one axis, or those of M-RoPE. On the CPU.

        Where there are several, the first is the place in the text, which is always numbered anew.
        """
        return torch.arange(prompt.ids.shape[1]).expand(1, *prompt.ids.shape)

    def splice(
        self,
        inputs: Mapping[str, Any],
        evidence: Evidence,
        pruned: Pruned,
        positions: Literal["original", "compact"] = "original",
        *,
        prompt: Prompt | None = None,
    ) -> dict[str, Any]:
        """Return keyword arguments for the untouched model's `generate` or forward, with the dropped tokens gone.

        Rows are padded on the left. Prompts are shorter than the caller's: generated ids start behind
        `result["input_ids"].shape[1]`. Make a new dict for every call: `generate` changes what it is given.
        ValueError for "compact" positions of a model with M-RoPE, whose positions are places in a picture.
        """
        return self.splice_with_columns(inputs, evidence, pruned, positions, prompt=prompt)[0]

    def splice_with_columns(
        self,
        inputs: Mapping[str, Any],
        evidence: Evidence,
        pruned: Pruned,
        positions: Literal["original", "compact"] = "original",
        *,
        prompt: Prompt | None = None,
    ) -> tuple[dict[str, Any], Tensor]:
        """Return what `splice` does, and [P, L] on the CPU: the own column of each slot of the new prompts, -1 = none.

        "Own" is what a slot stands for: the column it had in the caller's prompt.
        """
        prompt = self.prompt(inputs) if prompt is None else prompt
        place, keep, feature, slot = self._places(inputs, prompt), *splice_plan(prompt, evidence, pruned)
        if positions == "compact" and len(place) > 1:
            raise ValueError(
                f"{type(self).__name__} has M-RoPE, whose positions say where in a picture: use 'original'"
            )
        place = place.gather(2, slot.expand(len(place), *slot.shape))
        if positions == "compact" or len(place) > 1:
            place[0] = keep.cumsum(1) - 1
        length = keep.sum(1)
        width = int(length.max())
        at = torch.arange(width) - (width - length)[:, None]  # left padding: the last slot is a prompt's last token
        padding = at < 0
        order = (~keep).long().argsort(dim=1, stable=True)[:, :width].gather(1, at.clamp(min=0))
        device = inputs["input_ids"].device
        place = place.gather(2, order.expand(len(place), *order.shape)).masked_fill(padding, 0).to(device)
        real = prompt_mask(inputs)
        follow = {
            name: align_columns(inputs[name].cpu(), real).gather(1, order).masked_fill(padding, 0).to(device)
            for name in self.per_token_inputs
            if inputs.get(name) is not None
        }
        passed = {k: v for k, v in inputs.items() if k not in self.consumes}
        made = {
            "input_ids": prompt.ids.gather(1, order).masked_fill(padding, self._padding()).to(device),
            # always: position gaps without one read as packed sequences
            "attention_mask": (~padding).long().to(device),
            "position_ids": place if len(place) > 1 else place[0],
            "mm_encoder_outputs": self._encoded(prompt, keep, feature, evidence, pruned),
        }
        return passed | follow | made, order.masked_fill(padding, -1)

    def _places(self, inputs: Mapping[str, Any], prompt: Prompt) -> Tensor:
        """[A, P, C] positions by column, the caller's own where there are any."""
        if (own := inputs.get("position_ids")) is None:
            return self.positions(inputs, prompt)
        own, real = own.cpu(), prompt_mask(inputs)
        places = align_columns((own if own.ndim == 3 else own[None]).expand(-1, *real.shape), real)
        if len(places) != 3:
            return places
        return torch.cat([torch.arange(places.shape[2]).expand(1, *places.shape[1:]), places])  # and that in the text

    def _encoded(
        self, prompt: Prompt, keep: Tensor, feature: Tensor, evidence: Evidence, pruned: Pruned
    ) -> dict[str, Encoded]:
        """Return the features that are left as the towers would hand them out, for each modality that is left."""
        source, levels = pruned.tokens.flatten(0, 1), evidence.deepstack
        if evidence.structural is not None:
            source = torch.cat([source, evidence.structural.tokens.to(source)])
        if levels is not None:
            own = evidence_rows(pruned, evidence).to(levels.device)
            levels = levels.flatten(1, 2)[:, own.clamp(min=0)]
        out = {}
        for kind, modality in enumerate(self.modalities):
            mine = keep & (prompt.kind == kind)
            if not mine.any():
                continue
            index = feature[mine].to(source.device)
            # In generate, beams regroup features by sample. They find the bounds of samples where there is one tensor
            # a sample; where the model takes a single tensor, if each of its rows is one token.
            counts = [n for n in mine.sum(1).tolist() if n]
            features = source[index]
            packed: Any = features[:, None] if modality in self.stacked else list(features.split(counts))
            deep = None if levels is None else [list(level.split(counts)) for level in levels[:, index]]
            out[modality] = Encoded(pooler_output=packed, deepstack_features=deep)
        return out

    def _padding(self) -> int:
        for config in (self.model.generation_config, self.model.config.get_text_config()):
            if (found := getattr(config, "pad_token_id", None)) is not None:
                return found if isinstance(found, int) else found[0]
        return 0  # masked anyway


def splice_plan(prompt: Prompt, evidence: Evidence, pruned: Pruned) -> tuple[Tensor, Tensor, Tensor]:
    """[P, C] each, by column: is it kept, which row of the features it reads, whose column's position it takes."""
    column = pruned.column.cpu()  # the one device sync of a splice
    real = column >= 0
    slot, at = reading_order(column)[real], column[real]
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


def evidence_rows(pruned: Pruned, evidence: Evidence) -> Tensor:
    """[V x M] for each row of `pruned`, flattened, the row of `evidence`, flattened, whose place it takes."""
    layout, column = evidence.layout, pruned.column
    own = layout.sample[:, None].to(column.device).expand(layout.column.shape)
    rows = column.new_full((len(layout.key), int(layout.column.max()) + 1), -1)
    valid = layout.valid
    rows[own[valid], layout.column[valid]] = valid.flatten().nonzero()[:, 0]
    sample = pruned.layout.sample[:, None].to(column.device).expand(column.shape)
    return rows[sample, column.clamp(min=0)].masked_fill(column < 0, -1).flatten()


def adapter_for(model: nn.Module, processor: Any = None) -> Adapter:
    """Return the first installed adapter that knows `model`. LookupError, with those installed, if none does.

    One that cannot be imported or asked is left out with a warning.

    The model's processor is asked for by evidence about the pictures or questions themselves.
    """
    known = []
    for entry in entries():
        if entry.kind != "adapter":
            continue
        told = f"{entry.name} ({entry.distribution} {entry.version})"
        try:
            kind = entry.load()
            fits = kind.matches(model)
        except Exception as error:  # a stranger's adapter must not take the others along
            if type(error) is LookupError:  # it knows the model, and says why it cannot be served
                raise
            warnings.warn(f"adapter {told} is left out: {type(error).__name__}: {error}", stacklevel=2)
            continue
        if fits:
            return kind(model, processor)
        known.append(told)
    family = getattr(getattr(model, "config", None), "model_type", None)
    raise LookupError(
        f"no adapter knows {type(model).__name__} (model_type {family!r}). Installed: {', '.join(known) or 'none'}. "
        "More come with distributions that register one under the entry point 'vtcframe'; `pip install "
        "vtcframe-backbones` brings ours"
    )
