"""InternVL as transformers has it (checkpoints ending in "-hf"): tiles and a thumbnail, 2 x 2 patches a token."""

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
    """InternVL: a view is a tile; the last one of a picture that has several is a thumbnail of the whole.

    The processor does not tell how a picture was cut, so tiles are laid out in the grid that looks most like the
    thumbnail. Frames of a video come as pictures of one tile behind "Frame1:", "Frame2:", ...; the adapter tells them
    as a video where it knows the processor and so can read that, and as pictures where it does not.
    """

    family = "internvl"
    stacked = ("image",)
    consumes = Llava.consumes

    def tower(self, modality: Modality, inputs: Mapping[str, Any]) -> Tower:
        """Return the vision tower."""
        config, module = self.model.config, self.model.base_model.vision_tower
        for name, served in (("vision_feature_layer", -1), ("vision_feature_select_strategy", "default")):
            given = inputs.get(name)
            if (getattr(config, name) if given is None else given) != served:
                raise ValueError(f"{name} {given!r} is not what InternVL was trained with: use {served!r}")
        attention = [block.get_submodule("attention") for block in module.encoder.layer]
        columns = config.vision_config.image_size[1] // config.vision_config.patch_size[1]
        return Tower(module, attention, [len(attention)], classes=1, pool=Squares(columns, self._merge))

    def features(self, modality: Modality, inputs: Mapping[str, Any], tower: Tower) -> Any:
        """Encode tiles."""
        return self.model.base_model.get_image_features(inputs["pixel_values"], return_dict=True)

    def hidden(self, encoded: Any, tower: Tower) -> Tensor:
        """[tiles, patches, C] the last hidden state."""
        return encoded.last_hidden_state

    def merged(self, hidden: Tensor, tower: Tower) -> Tensor:
        """[tiles, patches, C] -> [tiles, T, 4 C] by the model's own shuffle."""
        grid = hidden.unflatten(1, (round(hidden.shape[1] ** 0.5), -1))
        return self.model.base_model.pixel_shuffle(grid, scale_factor=self.model.config.downsample_ratio).flatten(1, 2)

    def pictures(self, modality: Modality, inputs: Mapping[str, Any], prompt: Prompt) -> list[Picture]:
        """Group tiles into pictures by the runs of placeholders in the prompts."""
        vision, pixels = self.model.config.vision_config, inputs["pixel_values"]
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
        looks = adaptive_avg_pool2d(pixels.float(), LOOK).cpu().split([run // tokens for run in runs])
        made: list[Picture] = []
        for number, own in zip(self._frames(prompt), looks, strict=True):
            if number > 1:
                made[-1] = Picture.grids((side[0], side[1]), number, rows=number)
            else:
                made.append(Picture.grids((side[0], side[1]), len(own), rows=len(own), box=tile_boxes(own)))
        return made

    def _frames(self, prompt: Prompt) -> list[int]:
        """Return the number of the frame that each run of placeholders is, 0 where it is none of a video."""
        begins, ends = _bounds(prompt)
        if self.processor is None:
            return [0] * len(begins)
        numbers: list[int] = []
        for run, (p, begin) in enumerate(begins.tolist()):
            continues = run > 0 and begins[run - 1, 0] == p
            text = prompt.ids[p, int(ends[run - 1, 1]) if continues else 0 : begin]
            found = FRAME.search(self.processor.tokenizer.decode(text, skip_special_tokens=True))
            number = int(found[1]) if found else 0
            numbers.append(number if number == 1 or (continues and number == numbers[-1] + 1) else 0)
        return numbers

    def original_images(
        self, modality: Modality, inputs: Mapping[str, Any], pictures: Sequence[Picture]
    ) -> Sequence[Tensor]:
        """Return the thumbnails, or the tile where there is only one."""
        shown, at = [], 0
        for picture in pictures:
            own = inputs["pixel_values"][at : at + picture.rows]
            shown += list(own if picture.frame.any() else own[-1:])
            at += picture.rows
        return shown

    @property
    def _merge(self) -> int:
        return round(1 / self.model.config.downsample_ratio)


LOOK = 24  # pixels along the edge of the small pictures by which tiles are laid out
FRAME = re.compile(r"Frame\s?(\d+)\s*:\s*$")  # what the processor writes before a frame


def _bounds(prompt: Prompt) -> tuple[Tensor, Tensor]:
    """[runs, 2] each: sample and column where a run of placeholders begins, and behind its end."""
    steps = pad(prompt.visual.long(), (1, 1)).diff(dim=1)
    return (steps == 1).nonzero(), (steps == -1).nonzero()


def tile_boxes(looks: Tensor) -> Tensor:
    """[tiles, 3, LOOK, LOOK], the thumbnail last -> [tiles, 4] of the grid that looks most like the thumbnail.

    Ties go to the grid nearest to a square, then to the wider one.
    """
    count = len(looks) - 1
    if not count:
        return WHOLE
    grids = [(rows, count // rows) for rows in range(1, count + 1) if count % rows == 0]
    grids.sort(key=lambda grid: (max(grid) / min(grid), grid[0]))
    rows, columns = min(grids, key=lambda grid: _unlike(looks, *grid))
    corner = torch.cartesian_prod(torch.arange(rows), torch.arange(columns))
    extent = torch.tensor([rows, columns])
    return torch.cat([torch.cat([corner / extent, (corner + 1) / extent], 1), WHOLE])


def _unlike(looks: Tensor, rows: int, columns: int) -> float:
    tiles = looks[:-1].unflatten(0, (rows, columns)).permute(2, 0, 3, 1, 4).flatten(1, 2).flatten(2)
    return round(float((adaptive_avg_pool2d(tiles, LOOK) - looks[-1]).square().mean()), 6)
