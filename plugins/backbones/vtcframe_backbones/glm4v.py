"""GLM-4.1V: like Qwen2-VL, but frames of a video are between timestamps and have the placeholder of images."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from vtcframe.adapters.base import Modality
from vtcframe.adapters.tower import Tower
from vtcframe_backbones.qwen_vl import Qwen2Vl


class Glm4v(Qwen2Vl):
    """GLM-4.1V: a batch holds images or videos; a view of a video is a temporal slice of two frames.

    Images and videos share a placeholder, so the remaining features of both are passed as those of images:
    transformers groups features for beam search by placeholder and would find none of videos.
    """

    family = "glm4v"
    modalities = ("image",)

    def pixels_of(self, modality: Modality, inputs: Mapping[str, Any]) -> Any:
        """Return the pixels of the images or the videos. ValueError for a batch of both."""
        return inputs.get(self.pixels[self._kind(inputs)])

    def features(self, modality: Modality, inputs: Mapping[str, Any], tower: Tower) -> Any:
        """Encode images or videos."""
        return super().features(self._kind(inputs), inputs, tower)

    def merged(self, hidden: Tensor, tower: Tower) -> Tensor:
        """Return [1, T, C] unchanged: the tower itself convolves the patches of a token."""
        return hidden

    def project(self, features: Tensor) -> Tensor:
        """[..., C] -> [..., D] by the merger."""
        return self.model.base_model.visual.merger(features)

    def _kind(self, inputs: Mapping[str, Any]) -> Modality:
        if all(inputs.get(name) is not None for name in self.pixels.values()):
            raise ValueError(
                f"inputs hold {' and '.join(self.pixels.values())}, which share a placeholder in GLM-4.1V: give "
                "images and videos in separate batches"
            )
        return "image" if inputs.get("pixel_values_videos") is None else "video"

    def _grids(self, modality: Modality, inputs: Mapping[str, Any]) -> Tensor:
        return super()._grids(self._kind(inputs), inputs)
