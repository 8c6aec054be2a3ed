"""Mistral 3 and LLaVA on Pixtral: pictures of any shape, packed in one sequence and separated by the mask."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from vtcframe.adapters.arrangement import Picture
from vtcframe.adapters.base import Modality
from vtcframe.adapters.prompt import Prompt
from vtcframe.adapters.tower import Tower, TowerAdapter
from vtcframe.core.encoder_readers import PatchGroups
from vtcframe.hooks.packing import PackedSequences
from vtcframe_backbones.llava import Llava


class Mistral3(TowerAdapter):
    """Mistral 3: a view is a picture, a token a square of patches. Breaks after rows are text and always stay."""

    family = "mistral3"
    consumes = Llava.consumes

    def pixels_of(self, modality: Modality, inputs: Mapping[str, Any]) -> Any:
        """Return the pixels of each picture, [images, values], with zeros at the end in place of padding."""
        if inputs.get("pixel_values") is None:
            return None
        return pad_sequence(
            [picture.flatten() for picture in self.original_images(modality, inputs, ())], batch_first=True
        )

    def tower(self, modality: Modality, inputs: Mapping[str, Any]) -> Tower:
        """Return the vision tower, which runs on one packed sequence of patches."""
        module = self.model.base_model.vision_tower
        layer = inputs.get("vision_feature_layer")
        layer = self.model.config.vision_feature_layer if layer is None else layer
        if layer != -1:
            raise ValueError(f"{self.family} on Pixtral cannot read vision_feature_layer {layer!r}: use -1")
        attention = [block.get_submodule("attention") for block in module.transformer.layers]
        pool = PatchGroups(self.merge**2)
        order = self._order(inputs)
        lengths = (self._sizes(inputs) // module.patch_size).prod(1).tolist()
        return Tower(
            module, attention, [len(attention)], pool=pool, packed=True, segments=PackedSequences(lengths, order)
        )

    def features(self, modality: Modality, inputs: Mapping[str, Any], tower: Tower) -> Any:
        """Encode images."""
        sizes = torch.as_tensor(inputs["image_sizes"])
        return self.model.base_model.get_image_features(inputs["pixel_values"], image_sizes=sizes, return_dict=True)

    def pictures(self, modality: Modality, inputs: Mapping[str, Any], prompt: Prompt) -> list[Picture]:
        """Return one view for each picture."""
        sizes = self._sizes(inputs) // (self.model.base_model.vision_tower.patch_size * self.merge)
        return [Picture.grids((rows, columns)) for rows, columns in sizes.tolist()]

    def original_images(
        self, modality: Modality, inputs: Mapping[str, Any], pictures: Sequence[Picture]
    ) -> Sequence[Tensor]:
        """Return the pictures without their padding."""
        sizes = self._sizes(inputs).tolist()
        return [p[:, :h, :w] for p, (h, w) in zip(inputs["pixel_values"], sizes, strict=True)]

    def merged(self, hidden: Tensor, tower: Tower) -> Tensor:
        """[1, patches, C] -> [1, T, C x patches of a token]."""
        if tower.segments is not None:
            hidden = hidden[:, tower.segments.order.to(hidden.device)]
        return hidden.unflatten(1, (-1, self.merge**2)).flatten(2)

    def project(self, features: Tensor) -> Tensor:
        """[..., C x patches of a token] -> [..., D] by the projector."""
        projector = self.model.base_model.multi_modal_projector
        patches = projector.norm(features.unflatten(-1, (self.merge**2, -1)))
        merged = projector.patch_merger.merging_layer(patches.transpose(-1, -2).flatten(-2))
        return projector.linear_2(projector.act(projector.linear_1(merged)))

    @property
    def merge(self) -> int:
        """Number of patches along an edge of a token."""
        return self.model.config.spatial_merge_size

    def _order(self, inputs: Mapping[str, Any]) -> Tensor:
        """Return the order of patches in which those of a token are consecutive, [patches]."""
        parts: list[Tensor] = []
        start = 0
        m = self.merge
        for rows, columns in (self._sizes(inputs) // self.model.base_model.vision_tower.patch_size).tolist():
            grid = torch.arange(start, start + rows * columns).view(rows // m, m, columns // m, m)
            parts.append(grid.transpose(1, 2).flatten())
            start += rows * columns
        return torch.cat(parts)

    def _sizes(self, inputs: Mapping[str, Any]) -> Tensor:
        if inputs.get("image_sizes") is None:
            raise ValueError(
                "inputs hold no image_sizes: Pixtral removes padding by them, and its processor returns them"
            )
        return torch.as_tensor(inputs["image_sizes"]).cpu()


class PixtralLlava(Mistral3):
    """LLaVA on a Pixtral tower (Pixtral-12B): each patch is a token."""

    family = "llava"

    @classmethod
    def matches(cls, model: nn.Module) -> bool:
        """Match by the configuration of model and tower."""
        config: Any = getattr(model, "config", None)
        return super().matches(model) and config.vision_config.model_type == "pixtral"

    @property
    def merge(self) -> int:
        """Number of patches along an edge of a token."""
        return 1

    def project(self, features: Tensor) -> Tensor:
        """[..., C] -> [..., D] by the projector."""
        return self.model.base_model.multi_modal_projector(features)
