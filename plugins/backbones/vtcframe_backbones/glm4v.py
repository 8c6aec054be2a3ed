"""GLM-4.1V: like Qwen2-VL, but frames of a video stand between timestamps, with the placeholder of images."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from vtcframe.adapters.base import Modality
from vtcframe.adapters.tower import Tower
from vtcframe_backbones.qwen_vl import Qwen2Vl


class Glm4v(Qwen2Vl):
    """GLM-4.1V: a batch holds images or videos; a view of a video is a temporal slice, two frames.

    Both have one placeholder, so what is left of either is handed over as of images: transformers groups the features
    of beams by placeholders, of which it finds none for videos.
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
        """[1, T, C] as it is: the tower convolves the patches of a token itself."""
        return hidden

    def project(self, features: Tensor) -> Tensor:
        """[..., C] -> [..., D]."""
        return self.model.base_model.visual.merger(features)

    def _kind(self, inputs: Mapping[str, Any]) -> Modality:
        if all(inputs.get(name) is not None for name in self.pixels.values()):
            raise ValueError(
                f"inputs hold {' and '.join(self.pixels.values())}, whose placeholders GLM-4.1V does not tell apart: "
                "give images and videos in batches of their own"
            )
        return "image" if inputs.get("pixel_values_videos") is None else "video"

    def _grids(self, modality: Modality, inputs: Mapping[str, Any]) -> Tensor:
        return super()._grids(self._kind(inputs), inputs)
