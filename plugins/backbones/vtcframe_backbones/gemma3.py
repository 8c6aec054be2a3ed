"""Gemma 3: a SigLIP tower, squares of patches averaged to tokens that see each other in both directions."""

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
    """Gemma 3: a view is a picture as the processor squared it; crops of pan-and-scan are pictures of their own.

    What is left of a picture still sees itself in both directions (under FlashAttention it never does). Windows of the
    local layers count the tokens that are there, whatever their positions: in a prompt longer than a window they reach
    further back over dropped tokens than they would over masked ones.
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
        """[images, patches, C] the last hidden state, normalised."""
        return encoded.last_hidden_state

    def merged(self, hidden: Tensor, tower: Tower) -> Tensor:
        """[images, patches, C] -> [images, T, C], the mean of a token's patches."""
        return tower.pool(hidden) if tower.pool else hidden

    def project(self, features: Tensor) -> Tensor:
        """[..., C] -> [..., D] by what the projector does behind its pooling."""
        projector = self.model.base_model.multi_modal_projector
        return projector.mm_soft_emb_norm(features) @ projector.mm_input_projection_weight

    def pictures(self, modality: Modality, inputs: Mapping[str, Any], prompt: Prompt) -> list[Picture]:
        """One view a picture."""
        side = self.model.base_model.multi_modal_projector.tokens_per_side
        return [Picture.grids((side, side))] * len(inputs["pixel_values"])

    def blocks(self, spliced: Mapping[str, Any]) -> Tensor | None:
        """[P, L]: the pictures, numbered as they follow one another, where the prompts say which tokens are theirs."""
        if (types := spliced.get("token_type_ids")) is None:
            return None
        picture = types.cpu() == 1
        first = picture & ~torch.nn.functional.pad(picture, (1, 0))[:, :-1]
        return torch.where(picture, first.long().cumsum(1) - 1, -1)

    def original_images(
        self, modality: Modality, inputs: Mapping[str, Any], pictures: Sequence[Picture]
    ) -> Sequence[Tensor]:
        """Return the pictures as the tower sees them."""
        return list(inputs["pixel_values"])
