"""LLaVA-1.5 (one grid), LLaVA-NeXT (an overview, tiles and newlines) and LLaVA-OneVision (also videos)."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import ceil
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers.models.llava_next.modeling_llava_next import get_anyres_image_grid_shape, image_size_to_num_patches

from vtcframe.adapters.arrangement import WHOLE, Picture
from vtcframe.adapters.base import Modality
from vtcframe.adapters.prompt import Prompt
from vtcframe.adapters.tower import Tower, TowerAdapter


def clip_tower(module: Any, states: Sequence[int]) -> Tower:
    """Return a CLIP or SigLIP tower of transformers; the projector reads hidden states `states`."""
    blocks = module.get_submodule("encoder.layers").children()
    classes = int(hasattr(module.embeddings, "class_embedding"))
    attention = [block.get_submodule("self_attn") for block in blocks]
    head = getattr(getattr(module, "head", None), "attention", None)
    return Tower(module, attention, states, classes=classes, head=head)


def hidden_state_indices(layers: int | Sequence[int], depth: int) -> list[int]:
    """Return `vision_feature_layer` as indices of hidden states; 0 is the output of the embedding."""
    return [i if i >= 0 else depth + 1 + i for i in ([layers] if isinstance(layers, int) else layers)]


class Llava(TowerAdapter):
    """LLaVA-1.5 and similar models: a CLIP or SigLIP tower at one resolution, each patch a token.

    A view is a picture after resizing and cropping by the processor, and boxes refer to that.
    """

    family = "llava"
    no_encoder_stages_because = ""
    consumes = (
        "input_ids",
        "attention_mask",
        "position_ids",
        "pixel_values",
        "image_sizes",
        "vision_feature_layer",
        "vision_feature_select_strategy",
    )

    @classmethod
    def matches(cls, model: nn.Module) -> bool:
        """Match by the configuration; towers without a fixed grid (Pixtral) are another family."""
        config: Any = getattr(model, "config", None)
        return super().matches(model) and config.vision_config.model_type in (
            "clip_vision_model",
            "siglip_vision_model",
        )

    def tower(self, modality: Modality, inputs: Mapping[str, Any]) -> Tower:
        """Return the vision tower."""
        module = self.model.base_model.vision_tower
        layers = inputs.get("vision_feature_layer")
        layers = self.model.config.vision_feature_layer if layers is None else layers
        tower = clip_tower(module, hidden_state_indices(layers, len(module.encoder.layers)))
        strategy = inputs.get("vision_feature_select_strategy") or self.model.config.vision_feature_select_strategy
        served = "default" if tower.classes else "full"
        if strategy != served:
            raise ValueError(
                f"vision_feature_select_strategy {strategy!r} makes [CLS] a token or drops a patch of "
                f"{type(module).__name__}: use {served!r}"
            )
        return tower

    def features(self, modality: Modality, inputs: Mapping[str, Any], tower: Tower) -> Any:
        """Encode images."""
        return self.model.base_model.get_image_features(
            pixel_values=inputs["pixel_values"],
            vision_feature_layer=list(tower.states) if len(tower.states) > 1 else tower.states[0],
            vision_feature_select_strategy="default" if tower.classes else "full",
            return_dict=True,
            **self.geometry(inputs),
        )

    def ungrid(self, modality: Modality, encoded: Any, tower: Tower) -> tuple[Tensor, Tensor]:
        """Return no structural tokens, and the remaining tokens of each picture."""
        tokens = torch.stack(list(encoded.pooler_output))
        return tokens[:, :0].flatten(0, 1), tokens

    def geometry(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Return the arguments of `get_image_features` besides the pixels."""
        return {}

    def pictures(self, modality: Modality, inputs: Mapping[str, Any], prompt: Prompt) -> list[Picture]:
        """Return one view for each picture."""
        return [Picture.grids((self.side, self.side))] * len(inputs["pixel_values"])

    def original_images(
        self, modality: Modality, inputs: Mapping[str, Any], pictures: Sequence[Picture]
    ) -> Sequence[Tensor]:
        """Return the pictures in the form that the tower gets."""
        return list(inputs["pixel_values"])

    @property
    def side(self) -> int:
        """Number of patches along an edge of the grid of the tower."""
        vision = self.model.config.vision_config
        return vision.image_size // vision.patch_size


class LlavaNext(Llava):
    """LLaVA-NeXT: views are an overview and the tiles of an un-padded canvas with a newline after each row.

    Token positions come from an index map that is packed by the code of the model, so that its geometry is not
    duplicated. Un-padding removes complete tokens, and boxes of tiles have that precision.
    """

    family = "llava_next"
    no_encoder_stages_because = TowerAdapter.no_encoder_stages_because

    def geometry(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Return the sizes by which pictures are un-padded. ValueError without them."""
        if inputs.get("image_sizes") is None:
            raise ValueError(
                f"inputs hold no image_sizes: {self.family} un-pads by them, and its processor returns them"
            )
        return {"image_sizes": torch.as_tensor(inputs["image_sizes"])}

    def pictures(self, modality: Modality, inputs: Mapping[str, Any], prompt: Prompt) -> list[Picture]:
        """Return an overview and tiles of each picture, or the overview only if the packing has no tiles."""
        return [self.picture(size, n, inputs) for size, n in zip(self._sizes(inputs), self.tiles(inputs), strict=True)]

    def original_images(
        self, modality: Modality, inputs: Mapping[str, Any], pictures: Sequence[Picture]
    ) -> Sequence[Tensor]:
        """Return the overviews."""
        return [tiles[0] for tiles in inputs["pixel_values"]]

    def tiles(self, inputs: Mapping[str, Any]) -> list[int]:
        """Return the number of tiles of each picture, the overview included."""
        config = self.model.config
        pinpoints, resolution = config.image_grid_pinpoints, config.vision_config.image_size
        return [image_size_to_num_patches(size, pinpoints, resolution) for size in self._sizes(inputs)]

    def pack(self, modality: Modality, inputs: Mapping[str, Any], maps: Tensor) -> Tensor:
        """Pack maps in the same way as features."""
        parts, sizes = maps.split(self.tiles(inputs)), self._sizes(inputs)
        newline = torch.zeros(maps.shape[2], dtype=maps.dtype, device=maps.device)
        return torch.cat([self.packed(part, size, newline, inputs) for part, size in zip(parts, sizes, strict=True)])

    def packed(self, tiles: Tensor, size: Tensor, newline: Tensor, inputs: Mapping[str, Any]) -> Tensor:
        """[tiles, T, C] of a picture -> [n, C], by the packing of the model."""
        options = {"vision_feature_select_strategy": "default"}
        packed, _ = self.model.base_model.pack_image_features([tiles], size[None], image_newline=newline, **options)
        return packed[0]

    def _sizes(self, inputs: Mapping[str, Any]) -> Tensor:
        return self.geometry(inputs)["image_sizes"].cpu()

    def picture(self, size: Tensor, views: int, inputs: Mapping[str, Any]) -> Picture:
        """Return views and tokens of a picture of `size` (height, width)."""
        n = self.side**2
        index = torch.arange(views * n, dtype=torch.float32).view(views, n, 1)  # exact up to 2^24 tokens
        packed = self.packed(index, size, torch.full((1,), torch.nan), inputs)[:, 0]
        newline, order = packed.isnan(), packed.nan_to_num(-1).long()
        box = WHOLE if views == 1 else torch.cat([WHOLE, self._boxes(order[order >= n] - n, size)])
        frame = torch.zeros(views, dtype=torch.long)
        first, last = newline_spans(newline, n if views > 1 else 0)
        return Picture(torch.full((views, 2), self.side), order, box, frame, first, last)

    def _boxes(self, order: Tensor, size: Tensor) -> Tensor:
        """Return the boxes of tiles, [tiles, 4], relative to the un-padded canvas."""
        config = self.model.config
        side = self.side
        down, across = get_anyres_image_grid_shape(size, config.image_grid_pinpoints, config.vision_config.image_size)
        tile = order // side**2
        token = order % side**2
        row = tile // across * side + token // side
        column = tile % across * side + token % side
        low = torch.stack([row.min(), column.min()])
        extent = torch.stack([row.max(), column.max()]) + 1 - low
        corner = torch.cartesian_prod(torch.arange(down), torch.arange(across)) * side
        return torch.cat([(corner - low) / extent, (corner + side - low) / extent], 1)


class LlavaOnevision(LlavaNext):
    """LLaVA-OneVision: an overview and the stitched map of all tiles, which its packing may shrink bilinearly.

    The stitched map is a single view, because a shrunk token combines patches of several tiles. Evidence of patches is
    resampled in the same way (`project` of resampled features is not exactly their token). In samples with several
    pictures these have an overview only. Frames of a video are views of 2 x 2-pooled tokens; the newline after the
    last frame always stays.
    """

    family = "llava_onevision"
    modalities = ("image", "video")
    stacked = ("video",)
    pixels: ClassVar[Mapping[Modality, str]] = {"image": "pixel_values", "video": "pixel_values_videos"}
    consumes = (
        *Llava.consumes,
        "pixel_values_videos",
        "batch_num_images",
        "vision_aspect_ratio",
    )

    def features(self, modality: Modality, inputs: Mapping[str, Any], tower: Tower) -> Any:
        """Encode images or videos."""
        if modality == "image":
            return super().features(modality, inputs, tower)
        return self.model.base_model.get_video_features(
            pixel_values_videos=inputs["pixel_values_videos"],
            vision_feature_layer=tower.states[0] if len(tower.states) == 1 else list(tower.states),
            vision_feature_select_strategy="default" if tower.classes else "full",
            return_dict=True,
        )

    def geometry(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Return image sizes, the number of pictures of each sample, and the limit on the tokens of large pictures."""
        options = {name: inputs.get(name) for name in ("batch_num_images", "vision_aspect_ratio")}
        return super().geometry(inputs) | {name: value for name, value in options.items() if value is not None}

    def tiles(self, inputs: Mapping[str, Any]) -> list[int]:
        """Return the number of tiles of each picture; 1 for pictures of samples with several."""
        counts = inputs.get("batch_num_images")
        tiles = super().tiles(inputs)
        if counts is None:
            return tiles
        single = [n == 1 for n in torch.as_tensor(counts).tolist() for _ in range(n)]
        return [n if alone else 1 for n, alone in zip(tiles, single, strict=True)]

    def packed(self, tiles: Tensor, size: Tensor, newline: Tensor, inputs: Mapping[str, Any]) -> Tensor:
        """[tiles, T, C] of a picture -> [n, C], by the packing of the model."""
        options = {"vision_aspect_ratio": inputs.get("vision_aspect_ratio") or self.model.config.vision_aspect_ratio}
        packed, _ = self.model.base_model.pack_image_features([tiles], size[None], image_newline=newline, **options)
        return packed[0]

    def picture(self, size: Tensor, views: int, inputs: Mapping[str, Any]) -> Picture:
        """Return views and tokens of a picture of `size` (height, width): the overview and the stitched map."""
        n = self.side**2
        packed = self.packed(torch.zeros(views, n, 1), size, torch.full((1,), torch.nan), inputs)[:, 0]
        newline = packed.isnan()
        order = (~newline).cumsum(0) - 1
        side = [[self.side, self.side]]
        if views > 1:
            rows = int(newline.sum())
            side.append([rows, (len(packed) - n) // rows - 1])
        frame = torch.zeros(len(side), dtype=torch.long)
        box = WHOLE.expand(len(side), 4)
        first, last = newline_spans(newline, n if views > 1 else 0)
        return Picture(torch.tensor(side), order.masked_fill(newline, -1), box, frame, first, last)

    def pictures(self, modality: Modality, inputs: Mapping[str, Any], prompt: Prompt) -> list[Picture]:
        """Return one or two views of each image, and a view of each frame of a video."""
        if modality == "image":
            return super().pictures(modality, inputs, prompt)
        videos, frames = inputs["pixel_values_videos"].shape[:2]
        grids = Picture.grids((ceil(self.side / 2), ceil(self.side / 2)), frames)
        order = pad(grids.order, (0, 1), value=-1)  # a newline with an empty span after all frames
        return [replace(grids, order=order, first=order + 1, last=order * 0 - 1)] * videos

    def original_images(
        self, modality: Modality, inputs: Mapping[str, Any], pictures: Sequence[Picture]
    ) -> Sequence[Tensor]:
        """Return the overviews, or the frames."""
        if modality == "image":
            return super().original_images(modality, inputs, pictures)
        return list(inputs["pixel_values_videos"].flatten(0, 1))

    def pack(self, modality: Modality, inputs: Mapping[str, Any], maps: Tensor) -> Tensor:
        """Pack maps in the same way as features."""
        if modality == "image":
            return super().pack(modality, inputs, maps)
        pooled = self.model.base_model.apply_pooling(maps.contiguous())
        return pad(pooled.reshape(len(inputs["pixel_values_videos"]), -1, maps.shape[2]), (0, 0, 0, 1)).flatten(0, 1)


def newline_spans(newline: Tensor, begin: int) -> tuple[Tensor, Tensor]:
    """Return the first and last token of the row that each newline ends, [n] each.

    `newline` [n] is True at newlines. A row begins after the previous newline, and not before `begin`.
    """
    at = torch.arange(len(newline))
    ends = torch.where(newline, at, -1).cummax(0).values  # the latest newline up to here
    return torch.cat([torch.tensor([-1]), ends[:-1]]).clamp(min=begin - 1) + 1, at - 1
