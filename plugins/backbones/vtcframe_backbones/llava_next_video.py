"""LLaVA-NeXT-Video: pictures as in LLaVA-NeXT, and videos whose frames are pooled."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

from torch import Tensor

from vtcframe.adapters.arrangement import Picture
from vtcframe.adapters.base import Modality
from vtcframe.adapters.prompt import Prompt
from vtcframe.adapters.tower import Tower
from vtcframe_backbones.internvl import Squares
from vtcframe_backbones.llava import Llava, LlavaNext


class LlavaNextVideo(LlavaNext):
    """LLaVA-NeXT-Video: a frame of a video is a view, whose tokens are squares of patches (2 x 2 as published).

    Evidence of patches is averaged over the square of a token, whatever the pooling of the model (mean, max or
    convolution).
    """

    family = "llava_next_video"
    modalities = ("image", "video")
    pixels: ClassVar[Mapping[Modality, str]] = {"image": "pixel_values", "video": "pixel_values_videos"}
    consumes = (*Llava.consumes, "pixel_values_videos")

    def tower(self, modality: Modality, inputs: Mapping[str, Any]) -> Tower:
        """Return the vision tower, which images and videos share."""
        tower = super().tower(modality, inputs)
        pool = Squares(self.side, self.model.config.spatial_pool_stride)
        return replace(tower, pool=pool) if modality == "video" else tower

    def features(self, modality: Modality, inputs: Mapping[str, Any], tower: Tower) -> Any:
        """Encode images or videos."""
        if modality == "image":
            return super().features(modality, inputs, tower)
        return self.model.base_model.get_video_features(
            pixel_values_videos=inputs["pixel_values_videos"],
            vision_feature_layer=list(tower.states) if len(tower.states) > 1 else tower.states[0],
            vision_feature_select_strategy="default" if tower.classes else "full",
            return_dict=True,
        )

    def merged(self, hidden: Tensor, tower: Tower) -> Tensor:
        """[rows, patches, C] -> [rows, T, C']; frames are pooled by the model."""
        return self.model.base_model.vision_resampler(hidden) if tower.pool else hidden

    def pictures(self, modality: Modality, inputs: Mapping[str, Any], prompt: Prompt) -> list[Picture]:
        """Return an overview and tiles of an image, and a view of each frame of a video."""
        if modality == "image":
            return super().pictures(modality, inputs, prompt)
        videos, frames = inputs["pixel_values_videos"].shape[:2]
        side = self.side // self.model.config.spatial_pool_stride
        return [Picture.grids((side, side), frames)] * videos

    def original_images(
        self, modality: Modality, inputs: Mapping[str, Any], pictures: Sequence[Picture]
    ) -> Sequence[Tensor]:
        """Return the overviews, or the frames."""
        if modality == "image":
            return super().original_images(modality, inputs, pictures)
        return list(inputs["pixel_values_videos"].flatten(0, 1))

    def pack(self, modality: Modality, inputs: Mapping[str, Any], maps: Tensor) -> Tensor:
        """Pack maps in the same way as features: maps of frames are concatenated."""
        return super().pack(modality, inputs, maps) if modality == "image" else maps.flatten(0, 1)
