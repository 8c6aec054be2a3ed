"""Gemma 3: a SigLIP tower, squares of patches averaged to tokens that attend to each other in both directions."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from vtcframe.adapters.arrangement import Picture
from vtcframe.adapters.base import Modality
from vtcframe.adapters.prompt import Prompt
from vtcframe.adapters.tower import Tower, TowerAdapter
from vtcframe_backbones.internvl import Squares
from vtcframe_backbones.llava import clip_tower


class Gemma3(TowerAdapter):
    """Gemma 3: a view is a picture resized to a square; each crop of pan-and-scan is a separate picture.

    The remaining tokens of a picture still attend to each other in both directions (under FlashAttention they never
    do). Windows of local layers count remaining tokens, not positions: in a prompt longer than a window they reach
    further back over dropped tokens than over masked tokens.
    """

    family = "gemma3"
    stacked = ("image",)
    per_token_inputs = ("token_type_ids",)
    consumes = ("input_ids", "attention_mask", "position_ids", "pixel_values", "token_type_ids")

    def tower(self, modality: Modality, inputs: Mapping[str, Any]) -> Tower:
        """Return the vision tower."""
        module, projector = self.model.base_model.vision_tower, self.model.base_model.multi_modal_projector
        tower = clip_tower(module, [len(module.encoder.layers)])
        return replace(tower, pool=Squares(projector.patches_per_image, projector.kernel_size))

    def features(self, modality: Modality, inputs: Mapping[str, Any], tower: Tower) -> Any:
        """Encode images."""
        return self.model.base_model.get_image_features(inputs["pixel_values"], return_dict=True)

    def hidden(self, encoded: Any, tower: Tower) -> Tensor:
        """Return the last hidden state after its norm, [images, patches, C]."""
        return encoded.last_hidden_state

    def merged(self, hidden: Tensor, tower: Tower) -> Tensor:
        """[images, patches, C] -> [images, T, C], the mean over the patches of a token."""
        return tower.pool(hidden) if tower.pool else hidden

    def project(self, features: Tensor) -> Tensor:
        """[..., C] -> [..., D]: norm and projection, which the projector applies after pooling."""
        projector = self.model.base_model.multi_modal_projector
        return projector.mm_soft_emb_norm(features) @ projector.mm_input_projection_weight

    def pictures(self, modality: Modality, inputs: Mapping[str, Any], prompt: Prompt) -> list[Picture]:
        """Return one view for each picture."""
        side = self.model.base_model.multi_modal_projector.tokens_per_side
        return [Picture.grids((side, side))] * len(inputs["pixel_values"])

    def blocks(self, spliced: Mapping[str, Any]) -> Tensor | None:
        """Return the index of the picture of each slot, [P, L], from `token_type_ids`; None without them."""
        if (types := spliced.get("token_type_ids")) is None:
            return None
        picture = types.cpu() == 1
        first = picture & ~torch.nn.functional.pad(picture, (1, 0))[:, :-1]
        return torch.where(picture, first.long().cumsum(1) - 1, -1)

    def original_images(
        self, modality: Modality, inputs: Mapping[str, Any], pictures: Sequence[Picture]
    ) -> Sequence[Tensor]:
        """Return the pictures in the form that the tower gets."""
        return list(inputs["pixel_values"])
