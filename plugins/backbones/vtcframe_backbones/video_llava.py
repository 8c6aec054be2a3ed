"""Video-LLaVA: images and videos, each with a separate tower."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import pad

from vtcframe.adapters.arrangement import WHOLE, Picture
from vtcframe.adapters.base import Modality
from vtcframe.adapters.prompt import Prompt
from vtcframe.adapters.tower import Tower, TowerAdapter
from vtcframe_backbones.llava import clip_tower, hidden_state_indices


class VideoLlava(TowerAdapter):
    """Video-LLaVA: an image is a view, and so is each frame of a video.

    The language model gets the class token of each frame, in front of its patches. It is structural: it stays while any
    token of its frame stays.
    """

    family = "video_llava"
    no_encoder_stages_because = ""
    modalities = ("image", "video")
    stacked = ("image", "video")
    pixels: ClassVar[Mapping[Modality, str]] = {"image": "pixel_values", "video": "pixel_values_videos"}
    consumes = (
        "input_ids",
        "attention_mask",
        "position_ids",
        "pixel_values",
        "pixel_values_images",
        "pixel_values_videos",
        "vision_feature_layer",
        "vision_feature_select_strategy",
    )

    def pixels_of(self, modality: Modality, inputs: Mapping[str, Any]) -> Any:
        """Return the pixels of a modality. Those of images have two names, of which the processor uses the older."""
        pixels = super().pixels_of(modality, inputs)
        return inputs.get("pixel_values_images") if pixels is None and modality == "image" else pixels

    def tower(self, modality: Modality, inputs: Mapping[str, Any]) -> Tower:
        """Return the tower of images or of videos."""
        module = getattr(self.model.base_model, f"{modality}_tower")
        layers = inputs.get("vision_feature_layer")
        layers = self.model.config.vision_feature_layer if layers is None else layers
        strategy = inputs.get("vision_feature_select_strategy") or self.model.config.vision_feature_select_strategy
        if strategy != "default":
            raise ValueError(
                f"vision_feature_select_strategy {strategy!r} makes [CLS] of images a token: use 'default'"
            )
        return clip_tower(module, hidden_state_indices(layers, len(module.encoder.layers)))

    def features(self, modality: Modality, inputs: Mapping[str, Any], tower: Tower) -> Any:
        """Encode images or videos."""
        layers = list(tower.states) if len(tower.states) > 1 else tower.states[0]
        encode = getattr(self.model.base_model, f"get_{modality}_features")
        return encode(self.pixels_of(modality, inputs), vision_feature_layer=layers, return_dict=True)

    def ungrid(self, modality: Modality, encoded: Any, tower: Tower) -> tuple[Tensor, Tensor]:
        """Return the class tokens of frames, and the remaining tokens of each image or frame."""
        tokens = encoded.pooler_output
        classes = tower.classes if modality == "video" else 0
        return tokens[:, :classes].flatten(0, 1), tokens[:, classes:]

    def pictures(self, modality: Modality, inputs: Mapping[str, Any], prompt: Prompt) -> list[Picture]:
        """Return one view for each image or frame."""
        vision = self.model.config.vision_config
        pixels = self.pixels_of(modality, inputs)
        side = vision.image_size // vision.patch_size
        if modality == "image":
            return [Picture.grids((side, side))] * len(pixels)
        videos, frames = pixels.shape[:2]
        each = torch.arange(side**2 + 1) - 1  # [CLS] first
        order = (torch.arange(frames)[:, None] * side**2 + each).masked_fill(each < 0, -1).flatten()
        at = torch.arange(len(order))
        video = Picture(
            torch.full((frames, 2), side), order, WHOLE.expand(frames, 4), torch.arange(frames), at + 1, at + side**2
        )
        return [video] * videos

    def original_images(
        self, modality: Modality, inputs: Mapping[str, Any], pictures: Sequence[Picture]
    ) -> Sequence[Tensor]:
        """Return the images or frames in the form that the towers get."""
        pixels = self.pixels_of(modality, inputs)
        return list(pixels if modality == "image" else pixels.flatten(0, 1))

    def pack(self, modality: Modality, inputs: Mapping[str, Any], maps: Tensor) -> Tensor:
        """Pack maps in the same way as features, with 0 for the class token of each frame."""
        return (pad(maps, (0, 0, 1, 0)) if modality == "video" else maps).flatten(0, 1)
