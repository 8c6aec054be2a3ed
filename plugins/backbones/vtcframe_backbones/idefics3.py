"""Idefics3 and SmolVLM: tiles and a thumbnail, squares of patches shuffled to tokens."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, pad

from vtcframe.adapters.arrangement import Picture
from vtcframe.adapters.base import Modality
from vtcframe.adapters.prompt import Prompt
from vtcframe.adapters.tower import Tower, TowerAdapter
from vtcframe_backbones.internvl import THUMBNAIL_SIDE, Squares, tile_boxes
from vtcframe_backbones.llava import clip_tower


class Idefics3(TowerAdapter):
    """Idefics3: a view is a tile; the last tile of a picture is a thumbnail of all of it, or its only tile.

    The processor does not return the grid of tiles, so they are laid out in the grid that is most similar to the
    thumbnail. Padded patches (`pixel_attention_mask`) are neither queries nor keys in evidence of attention; their
    tokens are candidates, because the language model reads them.
    """

    family = "idefics3"
    consumes = ("input_ids", "attention_mask", "position_ids", "pixel_values", "pixel_attention_mask")

    def pixels_of(self, modality: Modality, inputs: Mapping[str, Any]) -> Any:
        """Return the tiles [tiles, 3, height, width] without tiles of zeros, which pad samples."""
        if (pixels := inputs.get("pixel_values")) is None:
            return None
        tiles = pixels.flatten(0, 1)
        return tiles[tiles.flatten(1).any(1)]

    def decoder(self) -> nn.Module:
        """Return the language model without its head."""
        return self.model.base_model.text_model

    def tower(self, modality: Modality, inputs: Mapping[str, Any]) -> Tower:
        """Return the vision tower."""
        module, vision = self.model.base_model.vision_model, self.model.config.vision_config
        pool = Squares(vision.image_size // vision.patch_size, self.model.config.scale_factor)
        return replace(clip_tower(module, [len(module.encoder.layers)]), pool=pool)

    def features(self, modality: Modality, inputs: Mapping[str, Any], tower: Tower) -> Any:
        """Encode tiles."""
        mask = inputs.get("pixel_attention_mask")
        return self.model.base_model.get_image_features(inputs["pixel_values"], mask, return_dict=True)

    def hidden(self, encoded: Any, tower: Tower) -> Tensor:
        """Return the last hidden state after its norm, [tiles, patches, C]."""
        return encoded.last_hidden_state

    def merged(self, hidden: Tensor, tower: Tower) -> Tensor:
        """[tiles, patches, C] -> [tiles, T, C x patches of a token] by the pixel shuffle of the model."""
        return self.model.base_model.connector.pixel_shuffle(hidden, self.model.config.scale_factor)

    def project(self, features: Tensor) -> Tensor:
        """[..., C'] -> [..., D] by the projection of the connector."""
        return self.model.base_model.connector.modality_projection(features)

    def pictures(self, modality: Modality, inputs: Mapping[str, Any], prompt: Prompt) -> list[Picture]:
        """Group tiles into pictures by the tags before them in the prompts: a picture ends with a thumbnail.

        ValueError if prompts and tiles do not match.
        """
        vision = self.model.config.vision_config
        tiles = self.pixels_of(modality, inputs)
        side = vision.image_size // vision.patch_size // self.model.config.scale_factor
        edge = pad(prompt.visual.long(), (1, 1)).diff(
            dim=1
        )  # 1 at the start of a run of placeholders, -1 after its end
        (sample, begin), (_, end) = ((edge == step).nonzero(as_tuple=True) for step in (1, -1))
        if len(begin) != len(tiles) or (end - begin != side**2).any():
            raise ValueError(
                f"the prompts hold runs of {(end - begin).tolist()} image placeholders, but the pictures make "
                f"{len(tiles)} tiles of {side**2} tokens: give ids and pixels that one call of the model's own "
                "processor returned, not truncated"
            )
        tag = prompt.ids[sample, (begin - 1).clamp(min=0)]
        last = (tag == tag[-1]).nonzero()[:, 0]  # the last tile of the batch is a thumbnail
        thumbnails = adaptive_avg_pool2d(tiles.float(), THUMBNAIL_SIDE).cpu()
        return [
            Picture.grids((side, side), len(part), rows=len(part), box=tile_boxes(part))
            for part in thumbnails.split(pad(last, (1, 0), value=-1).diff().tolist())
        ]

    def original_images(
        self, modality: Modality, inputs: Mapping[str, Any], pictures: Sequence[Picture]
    ) -> Sequence[Tensor]:
        """Return the thumbnails."""
        ends = torch.tensor([picture.rows for picture in pictures]).cumsum(0) - 1
        tiles = self.pixels_of(modality, inputs)
        return list(tiles[ends.to(tiles.device)])


class SmolVlm(Idefics3):
    """SmolVLM: as Idefics3. Frames of a video are separate pictures of one tile."""

    family = "smolvlm"
