"""InternVL of transformers (checkpoints ending in "-hf"): tiles and a thumbnail, a token for 2 x 2 patches."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, pad

from vtcframe.adapters.arrangement import WHOLE, Picture
from vtcframe.adapters.base import Modality
from vtcframe.adapters.prompt import Prompt
from vtcframe.adapters.tower import Tower, TowerAdapter
from vtcframe_backbones.llava import Llava


@dataclass(frozen=True)
class Squares:
    """Mean over squares of `size` x `size` patches of a grid: [..., rows x columns, C] -> [..., T, C]."""

    columns: int
    size: int

    def __call__(self, x: Tensor) -> Tensor:
        squares = x.unflatten(-2, (-1, self.size, self.columns // self.size, self.size))
        return squares.mean((-4, -2)).flatten(-3, -2)


class InternVl(TowerAdapter):
    """InternVL: a view is a tile; the last tile of a picture with several is a thumbnail of all of it.

    The processor does not return the grid of tiles, so they are laid out in the grid that is most similar to the
    thumbnail. Frames of a video are pictures of one tile after "Frame1:", "Frame2:", ... in the prompt. With the
    processor the adapter can decode this text and groups them to a video; without it they are separate pictures.
    """

    family = "internvl"
    stacked = ("image",)
    consumes = Llava.consumes

    def tower(self, modality: Modality, inputs: Mapping[str, Any]) -> Tower:
        """Return the vision tower."""
        config = self.model.config
        module = self.model.base_model.vision_tower
        for name, served in (("vision_feature_layer", -1), ("vision_feature_select_strategy", "default")):
            value = inputs.get(name)
            value = getattr(config, name) if value is None else value
            if value != served:
                raise ValueError(f"InternVL was not trained with {name} {value!r}: use {served!r}")
        attention = [block.get_submodule("attention") for block in module.encoder.layer]
        columns = config.vision_config.image_size[1] // config.vision_config.patch_size[1]
        return Tower(module, attention, [len(attention)], classes=1, pool=Squares(columns, self._merge))

    def features(self, modality: Modality, inputs: Mapping[str, Any], tower: Tower) -> Any:
        """Encode tiles."""
        return self.model.base_model.get_image_features(inputs["pixel_values"], return_dict=True)

    def hidden(self, encoded: Any, tower: Tower) -> Tensor:
        """Return the last hidden state, [tiles, patches, C]."""
        return encoded.last_hidden_state

    def merged(self, hidden: Tensor, tower: Tower) -> Tensor:
        """[tiles, patches, C] -> [tiles, T, 4 C] by the pixel shuffle of the model."""
        grid = hidden.unflatten(1, (round(hidden.shape[1] ** 0.5), -1))
        return self.model.base_model.pixel_shuffle(grid, scale_factor=self.model.config.downsample_ratio).flatten(1, 2)

    def pictures(self, modality: Modality, inputs: Mapping[str, Any], prompt: Prompt) -> list[Picture]:
        """Group tiles into pictures by the runs of placeholders in the prompts.

        ValueError if prompts and tiles do not match.
        """
        vision = self.model.config.vision_config
        pixels = inputs["pixel_values"]
        side = [edge // patch // self._merge for edge, patch in zip(vision.image_size, vision.patch_size, strict=True)]
        tokens = side[0] * side[1]
        begins, ends = _bounds(prompt)
        runs = (ends - begins)[:, 1].tolist()
        if sum(runs) != len(pixels) * tokens or any(run % tokens for run in runs):
            raise ValueError(
                f"the prompts hold runs of {runs} image placeholders, but the pictures make {len(pixels)} tiles of "
                f"{tokens} tokens: give ids and pixels that one call of the model's own processor returned, not "
                "truncated"
            )
        thumbnails = adaptive_avg_pool2d(pixels.float(), THUMBNAIL_SIDE).cpu().split([run // tokens for run in runs])
        pictures: list[Picture] = []
        for number, tiles in zip(self._frames(prompt), thumbnails, strict=True):
            if number > 1:
                pictures[-1] = Picture.grids((side[0], side[1]), number, rows=number)
            else:
                box = tile_boxes(tiles)
                pictures.append(Picture.grids((side[0], side[1]), len(tiles), rows=len(tiles), box=box))
        return pictures

    def _frames(self, prompt: Prompt) -> list[int]:
        """Return the frame number of each run of placeholders, 0 if it is no frame of a video."""
        begins, ends = _bounds(prompt)
        if self.processor is None:
            return [0] * len(begins)
        numbers: list[int] = []
        for run, (p, begin) in enumerate(begins.tolist()):
            continues = run > 0 and begins[run - 1, 0] == p
            text = prompt.ids[p, int(ends[run - 1, 1]) if continues else 0 : begin]
            label = FRAME.search(self.processor.tokenizer.decode(text, skip_special_tokens=True))
            number = int(label[1]) if label else 0
            numbers.append(number if number == 1 or (continues and number == numbers[-1] + 1) else 0)
        return numbers

    def original_images(
        self, modality: Modality, inputs: Mapping[str, Any], pictures: Sequence[Picture]
    ) -> Sequence[Tensor]:
        """Return the thumbnails; the only tile of a picture that is not split; the frames of a video."""
        images: list[Tensor] = []
        start = 0
        for picture in pictures:
            tiles = inputs["pixel_values"][start : start + picture.rows]
            images += list(tiles if picture.frame.any() else tiles[-1:])
            start += picture.rows
        return images

    @property
    def _merge(self) -> int:
        return round(1 / self.model.config.downsample_ratio)


THUMBNAIL_SIDE = 24  # pixels along an edge of the small pictures that are compared to lay out tiles
FRAME = re.compile(r"Frame\s?(\d+)\s*:\s*$")  # the label of a frame in the prompt


def _bounds(prompt: Prompt) -> tuple[Tensor, Tensor]:
    """Return [runs, 2] each: sample and column of the start of each run of placeholders, and after its end."""
    steps = pad(prompt.visual.long(), (1, 1)).diff(dim=1)
    return (steps == 1).nonzero(), (steps == -1).nonzero()


def tile_boxes(thumbnails: Tensor) -> Tensor:
    """Return the boxes of tiles, [tiles, 4], in the grid that is most similar to the thumbnail of the picture.

    `thumbnails` [tiles, 3, THUMBNAIL_SIDE, THUMBNAIL_SIDE] are the tiles made small, that of the picture last. Ties go
    to the grid nearest to a square, then to the wider grid.
    """
    count = len(thumbnails) - 1
    if not count:
        return WHOLE
    grids = [(rows, count // rows) for rows in range(1, count + 1) if count % rows == 0]
    grids.sort(key=lambda grid: (max(grid) / min(grid), grid[0]))
    rows, columns = min(grids, key=lambda grid: _distance(thumbnails, *grid))
    corner = torch.cartesian_prod(torch.arange(rows), torch.arange(columns))
    extent = torch.tensor([rows, columns])
    return torch.cat([torch.cat([corner / extent, (corner + 1) / extent], 1), WHOLE])


def _distance(thumbnails: Tensor, rows: int, columns: int) -> float:
    """Return the mean squared difference of the tiles in a grid and the thumbnail of the picture."""
    tiles = thumbnails[:-1].unflatten(0, (rows, columns)).permute(2, 0, 3, 1, 4).flatten(1, 2).flatten(2)
    return round(float((adaptive_avg_pool2d(tiles, THUMBNAIL_SIDE) - thumbnails[-1]).square().mean()), 6)
