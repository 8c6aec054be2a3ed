"""LLaVA-1.5 (one grid a picture), LLaVA-NeXT (an overview, tiles, newlines) and LLaVA-OneVision (and videos)."""

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


def clip_tower(module: Any, read: Sequence[int]) -> Tower:
    """Return a CLIP or SigLIP tower of transformers."""
    blocks = module.get_submodule("encoder.layers").children()
    classes = int(hasattr(module.embeddings, "class_embedding"))
    attention = [block.get_submodule("self_attn") for block in blocks]
    return Tower(
        module, attention, read, classes=classes, head=getattr(getattr(module, "head", None), "attention", None)
    )


def hidden_states_read(layers: int | Sequence[int], depth: int) -> list[int]:
    """Return `vision_feature_layer` as numbers of hidden states, counted from the embedding's, 0."""
    return [i if i >= 0 else depth + 1 + i for i in ([layers] if isinstance(layers, int) else layers)]


class Llava(TowerAdapter):
    """LLaVA-1.5 and its like: a CLIP or SigLIP tower at one resolution, each patch a token.

    A view is what the processor made of a picture, so boxes are of the picture after its resizing and cropping.
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
        """Tell by the configuration; towers without a fixed grid (Pixtral) are another family."""
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
        tower = clip_tower(module, hidden_states_read(layers, len(module.encoder.layers)))
        strategy = inputs.get("vision_feature_select_strategy") or self.model.config.vision_feature_select_strategy
        fits = "default" if tower.classes else "full"
        if strategy != fits:
            raise ValueError(
                f"vision_feature_select_strategy {strategy!r} makes [CLS] a token or drops a patch of "
                f"{type(module).__name__}: use {fits!r}"
            )
        return tower

    def features(self, modality: Modality, inputs: Mapping[str, Any], tower: Tower) -> Any:
        """Encode images."""
        return self.model.base_model.get_image_features(
            pixel_values=inputs["pixel_values"],
            vision_feature_layer=list(tower.read) if len(tower.read) > 1 else tower.read[0],
            vision_feature_select_strategy="default" if tower.classes else "full",
            return_dict=True,
            **self.geometry(inputs),
        )

    def ungrid(self, modality: Modality, encoded: Any, tower: Tower) -> tuple[Tensor, Tensor]:
        """Return no structural tokens and what is left of each picture."""
        tokens = torch.stack(list(encoded.pooler_output))
        return tokens[:, :0].flatten(0, 1), tokens

    def geometry(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Return what get_image_features needs beside the pixels."""
        return {}

    def pictures(self, modality: Modality, inputs: Mapping[str, Any], prompt: Prompt) -> list[Picture]:
        """One view a picture."""
        return [Picture.grids((self.side, self.side))] * len(inputs["pixel_values"])

    def original_images(
        self, modality: Modality, inputs: Mapping[str, Any], pictures: Sequence[Picture]
    ) -> Sequence[Tensor]:
        """Return the pictures as the tower sees them."""
        return list(inputs["pixel_values"])

    @property
    def side(self) -> int:
        """Patches along an edge of the tower's grid."""
        vision = self.model.config.vision_config
        return vision.image_size // vision.patch_size


class LlavaNext(Llava):
    """LLaVA-NeXT: views are an overview and the tiles of an un-padded canvas with a newline behind each row.

    An index map goes through the model's own packing code, so no geometry of its is written again here. Un-padding
    cuts whole tokens, and boxes of tiles are told as precisely as that.
    """

    family = "llava_next"
    no_encoder_stages_because = TowerAdapter.no_encoder_stages_because

    def geometry(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Return the sizes by which pictures are un-padded."""
        if inputs.get("image_sizes") is None:
            raise ValueError(
                f"inputs hold no image_sizes: {self.family} un-pads by them, and its processor returns them"
            )
        return {"image_sizes": torch.as_tensor(inputs["image_sizes"])}

    def pictures(self, modality: Modality, inputs: Mapping[str, Any], prompt: Prompt) -> list[Picture]:
        """An overview and tiles; the overview alone where the packing takes no more."""
        return [self.picture(size, n, inputs) for size, n in zip(self._sizes(inputs), self.tiles(inputs), strict=True)]

    def original_images(
        self, modality: Modality, inputs: Mapping[str, Any], pictures: Sequence[Picture]
    ) -> Sequence[Tensor]:
        """Return the overviews."""
        return [tiles[0] for tiles in inputs["pixel_values"]]

    def tiles(self, inputs: Mapping[str, Any]) -> list[int]:
        """Return how many tiles, the overview among them, each picture has."""
        config = self.model.config
        pinpoints, resolution = config.image_grid_pinpoints, config.vision_config.image_size
        return [image_size_to_num_patches(size, pinpoints, resolution) for size in self._sizes(inputs)]

    def pack(self, modality: Modality, inputs: Mapping[str, Any], maps: Tensor) -> Tensor:
        """Send the maps the way of the features."""
        parts, sizes = maps.split(self.tiles(inputs)), self._sizes(inputs)
        newline = torch.zeros(maps.shape[2], dtype=maps.dtype, device=maps.device)
        return torch.cat([self.packed(part, size, newline, inputs) for part, size in zip(parts, sizes, strict=True)])

    def packed(self, tiles: Tensor, size: Tensor, newline: Tensor, inputs: Mapping[str, Any]) -> Tensor:
        """[tiles, T, C] of one picture -> [n, C], by the model's own packing."""
        options = {"vision_feature_select_strategy": "default"}
        packed, _ = self.model.base_model.pack_image_features([tiles], size[None], image_newline=newline, **options)
        return packed[0]

    def _sizes(self, inputs: Mapping[str, Any]) -> Tensor:
        return self.geometry(inputs)["image_sizes"].cpu()

    def picture(self, size: Tensor, views: int, inputs: Mapping[str, Any]) -> Picture:
        """Tell what one picture of `size` (height, width) becomes."""
        n = self.side**2
        index = torch.arange(views * n, dtype=torch.float32).view(views, n, 1)  # exact up to 2^24 tokens
        packed = self.packed(index, size, torch.full((1,), torch.nan), inputs)[:, 0]
        newline, order = packed.isnan(), packed.nan_to_num(-1).long()
        box = WHOLE if views == 1 else torch.cat([WHOLE, self._boxes(order[order >= n] - n, size)])
        frame = torch.zeros(views, dtype=torch.long)
        served = rows_ended(newline, n if views > 1 else 0)
        return Picture(torch.full((views, 2), self.side), order, box, frame, *served)

    def _boxes(self, order: Tensor, size: Tensor) -> Tensor:
        """[tiles, 4] relative to the rectangle of the canvas that un-padding left."""
        config, side = self.model.config, self.side
        down, across = get_anyres_image_grid_shape(size, config.image_grid_pinpoints, config.vision_config.image_size)
        tile, token = order // side**2, order % side**2
        row, column = tile // across * side + token // side, tile % across * side + token % side
        low = torch.stack([row.min(), column.min()])
        extent = torch.stack([row.max(), column.max()]) + 1 - low
        corner = torch.cartesian_prod(torch.arange(down), torch.arange(across)) * side
        return torch.cat([(corner - low) / extent, (corner + side - low) / extent], 1)


class LlavaOnevision(LlavaNext):
    """LLaVA-OneVision: an overview and the stitched map of all tiles, which its packing may shrink bilinearly.

    The stitched map is one view: a shrunk token is made of several tiles' patches, so no tile owns it, and evidence of
    patches goes through the same resampling (`project` of such features is not exactly their token). Pictures of a
    sample with several have an overview only. Frames of a video are views of 2 x 2-pooled tokens; the newline behind
    the last one always stays.
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
            vision_feature_layer=tower.read[0] if len(tower.read) == 1 else list(tower.read),
            vision_feature_select_strategy="default" if tower.classes else "full",
            return_dict=True,
        )

    def geometry(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Return the sizes, how many pictures each sample has, and how much is kept of a large one."""
        more = {name: inputs.get(name) for name in ("batch_num_images", "vision_aspect_ratio")}
        return super().geometry(inputs) | {name: given for name, given in more.items() if given is not None}

    def tiles(self, inputs: Mapping[str, Any]) -> list[int]:
        """Return how many tiles each picture has; those of samples with several have one."""
        counts = inputs.get("batch_num_images")
        every = super().tiles(inputs)
        if counts is None:
            return every
        single = [n == 1 for n in torch.as_tensor(counts).tolist() for _ in range(n)]
        return [n if alone else 1 for n, alone in zip(every, single, strict=True)]

    def packed(self, tiles: Tensor, size: Tensor, newline: Tensor, inputs: Mapping[str, Any]) -> Tensor:
        """[tiles, T, C] of one picture -> [n, C], by the model's own packing."""
        options = {"vision_aspect_ratio": inputs.get("vision_aspect_ratio") or self.model.config.vision_aspect_ratio}
        packed, _ = self.model.base_model.pack_image_features([tiles], size[None], image_newline=newline, **options)
        return packed[0]

    def picture(self, size: Tensor, views: int, inputs: Mapping[str, Any]) -> Picture:
        """Tell what one picture of `size` (height, width) becomes: the overview and, of tiles, the stitched map."""
        n = self.side**2
        packed = self.packed(torch.zeros(views, n, 1), size, torch.full((1,), torch.nan), inputs)[:, 0]
        newline = packed.isnan()
        order = (~newline).cumsum(0) - 1
        side = [[self.side, self.side]]
        if views > 1:
            rows = int(newline.sum())
            side.append([rows, (len(packed) - n) // rows - 1])
        frame, box = torch.zeros(len(side), dtype=torch.long), WHOLE.expand(len(side), 4)
        served = rows_ended(newline, n if views > 1 else 0)
        return Picture(torch.tensor(side), order.masked_fill(newline, -1), box, frame, *served)

    def pictures(self, modality: Modality, inputs: Mapping[str, Any], prompt: Prompt) -> list[Picture]:
        """An image has one view or two, a video one a frame."""
        if modality == "image":
            return super().pictures(modality, inputs, prompt)
        videos, frames = inputs["pixel_values_videos"].shape[:2]
        grids = Picture.grids((ceil(self.side / 2), ceil(self.side / 2)), frames)
        order = pad(grids.order, (0, 1), value=-1)  # a newline that serves no token behind them all
        return [replace(grids, order=order, first=order + 1, last=order * 0 - 1)] * videos

    def original_images(
        self, modality: Modality, inputs: Mapping[str, Any], pictures: Sequence[Picture]
    ) -> Sequence[Tensor]:
        """Return the overviews, or the frames."""
        if modality == "image":
            return super().original_images(modality, inputs, pictures)
        return list(inputs["pixel_values_videos"].flatten(0, 1))

    def pack(self, modality: Modality, inputs: Mapping[str, Any], maps: Tensor) -> Tensor:
        """Send the maps the way of the features."""
        if modality == "image":
            return super().pack(modality, inputs, maps)
        pooled = self.model.base_model.apply_pooling(maps.contiguous())
        return pad(pooled.reshape(len(inputs["pixel_values_videos"]), -1, maps.shape[2]), (0, 0, 0, 1)).flatten(0, 1)


def rows_ended(newline: Tensor, begin: int) -> tuple[Tensor, Tensor]:
    """[n] bool, True at newlines; from `begin` on, each serves the tokens since the one before -> first, last [n]."""
    at = torch.arange(len(newline))
    ends = torch.where(newline, at, -1).cummax(0).values  # the last newline so far
    return torch.cat([torch.tensor([-1]), ends[:-1]]).clamp(min=begin - 1) + 1, at - 1
