"""Base classes of adapters: they gather evidence about a family of models and splice pruned features into prompts.

Splicing uses `mm_encoder_outputs`, which forward and generate of transformers accept since 5.18: pruned features
replace those of the tower, and ids, mask and positions are shortened to match. It needs no hook, so nothing must be
restored.
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


def _require_transformers(installed: str) -> None:
    if tuple(int(part) for part in installed.split(".")[:2]) < (5, 18):
        raise ImportError(
            f"vtcframe needs transformers >= 5.18 (mm_encoder_outputs), found {installed}: pip install -U transformers"
        )


_require_transformers(version("transformers"))
Modality = Literal["image", "video"]


@dataclass
class Encoded(BaseModelOutputWithPooling):
    """Output of a tower; `deepstack_features` are added to the tokens in the first layers (Qwen3-VL)."""

    deepstack_features: list[list[Tensor]] | None = None


class EncoderAdapter(ABC):
    """Adapter to one family of vision encoders: it lays out their tokens and gathers evidence about them."""

    modalities: ClassVar[tuple[Modality, ...]] = ("image",)  # each has its own placeholder; in packed order
    # why stages inside the encoder cannot be run; "" if `encode_with_stages` can run them
    no_encoder_stages_because: ClassVar[str] = "the adapter does not know the blocks of the encoder"

    def __init__(self, model: nn.Module, processor: Any = None) -> None:
        """`processor` is required only for evidence about the original pictures or the questions."""
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
        """Return the positions of the visual tokens of `inputs` (the output of a processor) without encoding anything.

        `ids` are one for each sample and seed everything random; by default prompt and pixels do. `prompt` is
        `self.prompt(inputs)`, if the caller has computed it before. ValueError if there are no pictures, or if prompts
        and pictures do not match.
        """

    @abstractmethod
    def encode(self, inputs: Mapping[str, Any], arrangement: Arrangement, needs: Iterable[Need] = ()) -> Evidence:
        """Encode the pictures and gather exactly `needs`. ValueError for needs that the family cannot serve."""

    def encode_with_stages(
        self, inputs: Mapping[str, Any], arrangement: Arrangement, needs: Iterable[Need], stages: Sequence[Stage]
    ) -> tuple[Evidence, Pruned]:
        """Encode the pictures with `stages` inside the encoder.

        Return evidence of the remaining tokens, with `needs`, and the tokens as `Pruned` in the layout of the
        arrangement. ValueError if `no_encoder_stages_because` is not empty.
        """
        raise ValueError(f"{type(self).__name__} cannot be pruned inside its encoder: {self.no_encoder_stages_because}")

    def observe(self, inputs: Mapping[str, Any], needs: Iterable[Need] = (), ids: Sequence[object] = ()) -> Evidence:
        """Arrange and encode a batch. The evidence may be pruned any number of times."""
        return self.encode(inputs, self.arrange(inputs, ids), needs)


class Adapter(EncoderAdapter):
    """Adapter to one family of multimodal models: it also splices pruned features into prompts."""

    consumes: ClassVar[tuple[str, ...]]  # the inputs that splicing replaces
    # those of them [P, L] that are kept and shortened with the ids
    per_token_inputs: ClassVar[tuple[str, ...]] = ()
    stacked: ClassVar[tuple[Modality, ...]] = ()  # modalities whose features the model takes as one tensor

    def __init__(self, model: nn.Module, processor: Any = None) -> None:
        """Raise ValueError for a processor whose placeholder token is not the placeholder token of the model."""
        super().__init__(model, processor)
        processor_ids = getattr(processor, "image_token_ids", None)
        model_id = getattr(getattr(model, "config", None), "image_token_id", None)
        if processor_ids and model_id is not None and model_id not in processor_ids:
            raise ValueError(
                f"{type(processor).__name__} writes tokens {list(processor_ids)} as placeholders of pictures, "
                f"{type(model).__name__} expects {model_id}: give the processor of the checkpoint of the model"
            )

    def decoder(self) -> nn.Module:
        """Return the language model without its head: the module that has the layers."""
        return self.model.base_model.language_model

    def llm_layers(self) -> Sequence[nn.Module]:
        """Return the blocks of the language model, in depth order."""
        return tuple(self.decoder().get_submodule("layers").children())

    def llm_first(self) -> int:
        """Return the first layer of the language model before which tokens can be dropped."""
        return 1

    def has_mrope(self) -> bool:
        """Return whether rotary positions have several axes (M-RoPE)."""
        return "mrope_section" in (getattr(self.model.config.get_text_config(), "rope_parameters", None) or {})

    def blocks(self, spliced: Mapping[str, Any]) -> Tensor | None:
        """Return the picture of each slot of a spliced prompt, [P, L] on the CPU, -1 = none; None for causal attention.

        For models in which the tokens of a picture attend to each other in both directions.
        """
        return None

    def prompt(self, inputs: Mapping[str, Any]) -> Prompt:
        """Return the prompts of a batch by column. ValueError without `input_ids`."""
        if inputs.get("input_ids") is None:
            raise ValueError(
                "inputs hold no input_ids: give the output of the processor (inputs_embeds have no placeholders)"
            )
        config = self.model.config
        return Prompt.of(inputs, [getattr(config, f"{modality}_token_id") for modality in self.modalities])

    def positions(self, inputs: Mapping[str, Any], prompt: Prompt) -> Tensor:
        """Return the rotary positions of the full prompts by column, [A, P, C] on the CPU; A = 1, or 4 with M-RoPE.

        With several axes the first is the position in the text, which is always renumbered.
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
        """Return keyword arguments for `generate` or forward of the untouched model, without the dropped tokens.

        Rows are padded on the left. Prompts are shorter than the caller's: generated ids start after
        `result["input_ids"].shape[1]`. Make a new dict for every call: `generate` changes its arguments. `prompt` is
        `self.prompt(inputs)`, if the caller has computed it before. ValueError for "compact" positions of a model with
        M-RoPE, whose positions are places in a picture.
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
        """Return the result of `splice`, and [P, L] on the CPU the column of the original prompt of each slot.

        The column is -1 at padding.
        """
        prompt = self.prompt(inputs) if prompt is None else prompt
        position = self._positions(inputs, prompt)
        keep, feature, position_column = splice_plan(prompt, evidence, pruned)
        if positions == "compact" and len(position) > 1:
            raise ValueError(
                f"{type(self).__name__} has M-RoPE, whose positions are places in a picture: use 'original'"
            )
        position = position.gather(2, position_column.expand(len(position), *position_column.shape))
        if positions == "compact" or len(position) > 1:
            position[0] = keep.cumsum(1) - 1
        length = keep.sum(1)
        width = int(length.max())
        at = (
            torch.arange(width) - (width - length)[:, None]
        )  # left padding: the last slot is the last token of a prompt
        padding = at < 0
        order = (~keep).long().argsort(dim=1, stable=True)[:, :width].gather(1, at.clamp(min=0))
        device = inputs["input_ids"].device
        position = position.gather(2, order.expand(len(position), *order.shape)).masked_fill(padding, 0).to(device)
        real = prompt_mask(inputs)
        shortened = {
            name: align_columns(inputs[name].cpu(), real).gather(1, order).masked_fill(padding, 0).to(device)
            for name in self.per_token_inputs
            if inputs.get(name) is not None
        }
        unchanged = {name: value for name, value in inputs.items() if name not in self.consumes}
        spliced = {
            "input_ids": prompt.ids.gather(1, order).masked_fill(padding, self._padding()).to(device),
            # always given: without a mask transformers takes gaps in positions for packed sequences
            "attention_mask": (~padding).long().to(device),
            "position_ids": position if len(position) > 1 else position[0],
            "mm_encoder_outputs": self._encoded(prompt, keep, feature, evidence, pruned),
        }
        return unchanged | shortened | spliced, order.masked_fill(padding, -1)

    def _positions(self, inputs: Mapping[str, Any], prompt: Prompt) -> Tensor:
        """Return positions by column, [A, P, C]: the `position_ids` of `inputs`, by default `positions`."""
        if (position_ids := inputs.get("position_ids")) is None:
            return self.positions(inputs, prompt)
        real = prompt_mask(inputs)
        position_ids = position_ids.cpu()
        axes = position_ids if position_ids.ndim == 3 else position_ids[None]
        axes = align_columns(axes.expand(-1, *real.shape), real)
        if len(axes) != 3:
            return axes
        text = torch.arange(axes.shape[2]).expand(1, *axes.shape[1:])
        return torch.cat([text, axes])

    def _encoded(
        self, prompt: Prompt, keep: Tensor, feature: Tensor, evidence: Evidence, pruned: Pruned
    ) -> dict[str, Encoded]:
        """Return the remaining features in the form of tower outputs, for each modality that has any."""
        source = pruned.tokens.flatten(0, 1)
        levels = evidence.deepstack
        if evidence.structural is not None:
            source = torch.cat([source, evidence.structural.tokens.to(source)])
        if levels is not None:
            rows = evidence_rows(pruned, evidence).to(levels.device)
            levels = levels.flatten(1, 2)[:, rows.clamp(min=0)]
        out = {}
        for kind, modality in enumerate(self.modalities):
            placeholders = keep & (prompt.kind == kind)
            if not placeholders.any():
                continue
            index = feature[placeholders].to(source.device)
            # Beam search regroups features by sample. It finds the bounds of samples if there is one tensor for each
            # sample, or, where the model takes a single tensor, if each of its rows is one token.
            counts = [n for n in placeholders.sum(1).tolist() if n]
            features = source[index]
            packed: Any = features[:, None] if modality in self.stacked else list(features.split(counts))
            deep = None if levels is None else [list(level.split(counts)) for level in levels[:, index]]
            out[modality] = Encoded(pooler_output=packed, deepstack_features=deep)
        return out

    def _padding(self) -> int:
        for config in (self.model.generation_config, self.model.config.get_text_config()):
            if (token := getattr(config, "pad_token_id", None)) is not None:
                return token if isinstance(token, int) else token[0]
        return 0  # any id will do: padding is masked


def splice_plan(prompt: Prompt, evidence: Evidence, pruned: Pruned) -> tuple[Tensor, Tensor, Tensor]:
    """Return [P, C] each, by column: whether it is kept, the row of its feature, the column whose position it takes.

    ValueError if the evidence belongs to other inputs than `prompt`.
    """
    column = pruned.column.cpu()  # the only device synchronisation of a splice
    real = column >= 0
    slot = reading_order(column)[real]
    position_column = column[real]
    sample = pruned.layout.sample[:, None].expand(column.shape)[real]
    keep = prompt.real & ~prompt.visual
    tokens = pruned.layout.untouched
    if (extra := evidence.structural) is not None:
        tokens = tokens + torch.bincount(extra.sample, minlength=len(tokens))
    if not torch.equal(tokens, prompt.visual.sum(1)) or not prompt.visual[sample, slot].all():
        raise ValueError(
            f"the evidence is not of these inputs: it has {tokens.tolist()} visual tokens, the prompts have "
            f"{prompt.visual.sum(1).tolist()} placeholders, or they are in other columns: observe these inputs"
        )
    feature = torch.full(keep.shape, -1)
    position = torch.arange(keep.shape[1]).expand(keep.shape).clone()
    keep[sample, slot] = True
    feature[sample, slot] = torch.arange(column.numel()).view(column.shape)[real]
    position[sample, slot] = position_column
    if extra is not None:
        stays = extra.stays(keep & prompt.visual)
        sample, slot = extra.sample[stays], extra.column[stays]
        keep[sample, slot] = True
        feature[sample, slot] = column.numel() + stays.nonzero()[:, 0]
    return keep, feature, position


def evidence_rows(pruned: Pruned, evidence: Evidence) -> Tensor:
    """Return the flattened row of `evidence` that each row of `pruned` replaces, [V x M], -1 at padding."""
    layout = evidence.layout
    column = pruned.column
    evidence_sample = layout.sample[:, None].to(column.device).expand(layout.column.shape)
    rows = column.new_full((len(layout.key), int(layout.column.max()) + 1), -1)
    valid = layout.valid
    rows[evidence_sample[valid], layout.column[valid]] = valid.flatten().nonzero()[:, 0]
    sample = pruned.layout.sample[:, None].to(column.device).expand(column.shape)
    return rows[sample, column.clamp(min=0)].masked_fill(column < 0, -1).flatten()


def adapter_for(model: nn.Module, processor: Any = None) -> Adapter:
    """Return the first installed adapter that matches `model`. LookupError, with the installed ones, if none does.

    An adapter that cannot be imported, or whose `matches` fails, is skipped with a warning. `processor` is required
    only for evidence about the original pictures or the questions.
    """
    installed = []
    for entry in entries():
        if entry.kind != "adapter":
            continue
        label = f"{entry.name} ({entry.distribution} {entry.version})"
        try:
            kind = entry.load()
            fits = kind.matches(model)
        except Exception as error:  # a broken third-party adapter must not disable the others
            if type(error) is LookupError:  # the adapter matches the model and explains why it cannot serve it
                raise
            warnings.warn(f"adapter {label} is left out: {type(error).__name__}: {error}", stacklevel=2)
            continue
        if fits:
            return kind(model, processor)
        installed.append(label)
    family = getattr(getattr(model, "config", None), "model_type", None)
    names = ", ".join(installed) or "none"
    raise LookupError(
        f"no adapter knows {type(model).__name__} (model_type {family!r}). Installed: {names}. "
        "Other distributions register adapters under the entry point 'vtcframe'; `pip install vtcframe-backbones` "
        "installs those of this project"
    )
