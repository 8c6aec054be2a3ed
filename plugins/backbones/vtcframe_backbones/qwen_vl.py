"""Qwen2-VL, Qwen2.5-VL and Qwen3-VL: any resolution, a token for 2 x 2 patches, M-RoPE, no class token."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers.vision_utils import get_vision_window_index

from vtcframe.adapters.arrangement import Picture
from vtcframe.adapters.base import Modality
from vtcframe.adapters.prompt import Prompt, align_columns, prompt_mask
from vtcframe.adapters.tower import Tower, TowerAdapter
from vtcframe.core.encoder_readers import PatchGroups


class Qwen2Vl(TowerAdapter):
    """Qwen2-VL: every block attends to the whole picture; a view of a video is a temporal slice of two frames.

    Layers of `AttentionRows` and `AttentionKeys` count the blocks that attend to whole pictures (blocks="feeding"),
    without blocks that attend within windows only (Qwen2.5-VL).
    """

    family = "qwen2_vl"
    modalities = ("image", "video")
    pixels: ClassVar[Mapping[Modality, str]] = {"image": "pixel_values", "video": "pixel_values_videos"}
    consumes = (
        "input_ids",
        "attention_mask",
        "position_ids",
        "pixel_values",
        "pixel_values_videos",
        "image_grid_thw",
        "video_grid_thw",
        "second_per_grid_ts",
        "mm_token_type_ids",
    )

    @classmethod
    def matches(cls, model: nn.Module) -> bool:
        """Match by the configuration. LookupError, naming the converted families, for the custom code of Qwen-VL."""
        config: Any = getattr(model, "config", None)
        if getattr(config, "model_type", None) == "qwen" and hasattr(config, "visual"):
            raise LookupError(
                f"{type(model).__name__} is the first Qwen-VL, which needs custom code and has no converted "
                "checkpoint: use Qwen2-VL, Qwen2.5-VL or Qwen3-VL of transformers"
            )
        return super().matches(model)

    def tower(self, modality: Modality, inputs: Mapping[str, Any]) -> Tower:
        """Return the vision tower: one packed sequence of patches, those of a token consecutive."""
        module = self.model.base_model.visual
        attention = [block.get_submodule("attn") for block in module.blocks]
        return Tower(
            module,
            attention,
            [len(attention)],
            pool=PatchGroups(self._merge**2),
            packed=True,
            whole=self.full_attention_blocks(),
        )

    def full_attention_blocks(self) -> list[int] | None:
        """Return the blocks whose attention spans a whole picture; None for all."""
        return None

    def features(self, modality: Modality, inputs: Mapping[str, Any], tower: Tower) -> Any:
        """Encode images or videos."""
        encode = getattr(self.model.base_model, f"get_{modality}_features")
        return encode(inputs[self.pixels[modality]], self._grids(modality, inputs), return_dict=True)

    def hidden(self, encoded: Any, tower: Tower) -> Tensor:
        """Return the input of the merger, [1, patches, C]."""
        return encoded.last_hidden_state[None]

    def merged(self, hidden: Tensor, tower: Tower) -> Tensor:
        """[1, patches, C] -> [1, T, 4 C]."""
        return hidden.unflatten(1, (-1, self._merge**2)).flatten(2)

    def project(self, features: Tensor) -> Tensor:
        """[..., 4 C] -> [..., D] by the merger."""
        merger = self.model.base_model.visual.merger
        return merger(features.unflatten(-1, (self._merge**2, -1)).flatten(0, -2)).view(*features.shape[:-1], -1)

    def pictures(self, modality: Modality, inputs: Mapping[str, Any], prompt: Prompt) -> list[Picture]:
        """Return a view of each image, and of each temporal slice of a video."""
        return [
            Picture.grids((h // self._merge, w // self._merge), t, rows=t * h * w)
            for t, h, w in self._grids(modality, inputs).tolist()
        ]

    def positions(self, inputs: Mapping[str, Any], prompt: Prompt) -> Tensor:
        """Return the position in the text, then time, height and width as the model counts them, [4, P, C].

        ValueError without `mm_token_type_ids`.
        """
        types = inputs.get("mm_token_type_ids")
        if types is None:
            raise ValueError(
                "inputs hold no mm_token_type_ids, from which M-RoPE is computed: its processor returns them"
            )
        real = prompt_mask(inputs)
        names = ("image_grid_thw", "video_grid_thw", "second_per_grid_ts")
        grids = {name: torch.as_tensor(inputs[name]).cpu() for name in names if inputs.get(name) is not None}
        axes, _ = self.model.base_model.get_rope_index(
            inputs["input_ids"].cpu(), mm_token_type_ids=types.cpu(), attention_mask=real.long(), **grids
        )
        return torch.cat([super().positions(inputs, prompt), align_columns(axes, real)])

    def original_images(
        self, modality: Modality, inputs: Mapping[str, Any], pictures: Sequence[Picture]
    ) -> Sequence[Tensor]:
        """Return the images, or the mean of the frames of each temporal slice, assembled from their patches."""
        vision = self.model.config.vision_config
        pixels = self.pixels_of(modality, inputs)
        grids = self._grids(modality, inputs).tolist()
        m = self._merge
        edge = vision.patch_size
        slices = []
        for patches, (t, h, w) in zip(pixels.split([t * h * w for t, h, w in grids]), grids, strict=True):
            cut = patches.view(t, h // m, w // m, m, m, -1, vision.temporal_patch_size, edge, edge).mean(6)
            slices += list(cut.permute(0, 5, 1, 3, 6, 2, 4, 7).reshape(t, -1, h * edge, w * edge))
        return slices

    @property
    def _merge(self) -> int:
        return self.model.config.vision_config.spatial_merge_size

    def _grids(self, modality: Modality, inputs: Mapping[str, Any]) -> Tensor:
        name = f"{modality}_grid_thw"
        if inputs.get(name) is None:
            raise ValueError(f"inputs hold no {name}: {self.family} cuts pictures by it, and its processor returns it")
        return inputs[name]


class Qwen25Vl(Qwen2Vl):
    """Qwen2.5-VL: most blocks attend within windows; the tower orders patches by window."""

    family = "qwen2_5_vl"

    def full_attention_blocks(self) -> list[int]:
        """Return the blocks whose attention spans a whole picture."""
        return sorted(self.model.base_model.visual.fullatt_block_indexes)

    def pack(self, modality: Modality, inputs: Mapping[str, Any], maps: Tensor) -> Tensor:
        """Restore the order of tokens, which the tower sorts by window."""
        tower = self.model.base_model.visual
        order, _ = get_vision_window_index(
            self._grids(modality, inputs).cpu(),
            spatial_merge_size=tower.spatial_merge_size,
            window_size=tower.window_size,
            patch_size=tower.patch_size,
        )
        return maps[0, order.argsort().to(maps.device)]


class Qwen3Vl(Qwen2Vl):
    """Qwen3-VL: as Qwen2-VL, and features of inner blocks are added in the first layers of the language model.

    A merged token gets the added features of the token whose place it takes. Slices of a video are between timestamps
    in the prompt.
    """

    family = "qwen3_vl"

    def llm_first(self) -> int:
        """Return the layer after those in which features are added."""
        return max(1, len(self.model.config.vision_config.deepstack_visual_indexes))
