"""LLaVA-1.5 (one grid a picture) and LLaVA-NeXT (an overview, tiles, newlines), as transformers has them."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers.models.llava_next.modeling_llava_next import get_anyres_image_grid_shape, image_size_to_num_patches
from transformers.utils.output_capturing import maybe_install_capturing_hooks

from vtcframe.adapter import Adapter, Arrangement, Picture, owners, sample_keys
from vtcframe.attention import KeyStates, Reader, Row, Tap
from vtcframe.core import Evidence
from vtcframe.needs import ClassToken, Features, Keys, Need, Rows

WHOLE = torch.tensor([[0.0, 0.0, 1.0, 1.0]])


class Llava(Adapter):
    """LLaVA-1.5 and its like: a CLIP or SigLIP tower at one resolution, each patch a token.

    A view is what the processor made of a picture, so boxes are of the picture after its resizing and cropping.
    """

    family = "llava"
    reads = (
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
        if getattr(config, "model_type", None) != cls.family:
            return False
        return config.vision_config.model_type in ("clip_vision_model", "siglip_vision_model")

    def llm_layers(self) -> Sequence[nn.Module]:
        """Return the blocks of the language model, in depth order."""
        return tuple(self.model.base_model.language_model.get_submodule("layers").children())

    def arrange(self, inputs: Mapping[str, Any], ids: Sequence[object] = ()) -> Arrangement:
        """Tell where the visual tokens sit (see Adapter.arrange)."""
        pixels = inputs.get("pixel_values")
        if pixels is None:
            raise ValueError("inputs hold no pixel_values, so there is nothing to prune: call the model itself")
        prompt, pictures = self.prompt(inputs), self._pictures(inputs)
        owner = owners(prompt, pictures)
        key = sample_keys(prompt, ids, owner, [] if ids else _checksums(pixels))
        return Arrangement.of(prompt, pictures, owner, (self._side, self._side), key)

    @torch.no_grad()
    def encode(self, inputs: Mapping[str, Any], arrangement: Arrangement, needs: Iterable[Need] = ()) -> Evidence:
        """Encode the pictures and gather `needs`: [CLS] rows, keys, features and class token of the vision tower."""
        read = self._hidden_states_read(inputs)
        asked = {need: self._readers(need, max(read)) for need in needs}
        readers: dict[nn.Module, list[Reader]] = {}
        for pairs in asked.values():
            for module, reader in pairs:
                readers.setdefault(module, []).append(reader)
        deepest = max([*read, *(i + 1 for i, module in enumerate(self._attention()) if module in readers)])
        with Tap(readers) as tap, _first_blocks(self._tower, deepest):
            encoded = self.model.base_model.get_image_features(
                pixel_values=inputs["pixel_values"],
                vision_feature_layer=read if len(read) > 1 else read[0],
                vision_feature_select_strategy=self._strategy(inputs),
                return_dict=True,
                **self._geometry(inputs),
            )
        found = {}
        for need, pairs in asked.items():
            if pairs:
                found[need] = torch.stack([torch.cat(tap[pair])[:, :, self._class_tokens :] for pair in pairs])
            else:
                hidden = torch.cat([encoded.hidden_states[i] for i in read], -1)
                found[need] = hidden[:, 0] if isinstance(need, ClassToken) else hidden[:, self._class_tokens :]
        evidence = arrangement.evidence(encoded.pooler_output)
        return replace(evidence, found=found, project=self.model.base_model.multi_modal_projector)

    @property
    def _tower(self) -> Any:
        return self.model.base_model.vision_tower

    @property
    def _side(self) -> int:
        vision = self.model.config.vision_config
        return vision.image_size // vision.patch_size

    @property
    def _class_tokens(self) -> int:
        return int(hasattr(self._tower.embeddings, "class_embedding"))

    def _attention(self) -> list[nn.Module]:
        blocks = self._tower.get_submodule("encoder.layers").children()
        return [block.get_submodule("self_attn") for block in blocks]

    def _readers(self, need: Need, feeding: int) -> list[tuple[nn.Module, Reader]]:
        """Return the attention modules that serve a need, in the order asked for; none where hidden states do."""
        match need:
            case Rows(query="cls", tower="vision", over="mean") if self._class_tokens:
                reader: Reader = Row(0, need.logits, need.heads)
            case Keys(tower="vision"):
                reader = KeyStates()
            case Features(layer=-1, tower="vision"):
                return []
            case ClassToken() if self._class_tokens:
                return []
            case _:
                raise ValueError(f"{type(self).__name__} cannot gather {need} from {type(self._tower).__name__}")
        modules = self._attention()
        modules = modules[:feeding] if need.of == "feeding" else modules
        if not all(-len(modules) <= layer < len(modules) for layer in need.layers):
            raise ValueError(
                f"{need} asks for a block beyond the {len(modules)} ({need.of}) of {type(self._tower).__name__}"
            )
        return [(modules[layer], reader) for layer in need.layers]

    def _hidden_states_read(self, inputs: Mapping[str, Any]) -> list[int]:
        """Return the hidden states that the projector reads; K is the output of the first K blocks."""
        layers = inputs.get("vision_feature_layer")
        layers = self.model.config.vision_feature_layer if layers is None else layers
        depth = len(self._attention())
        return [i if i >= 0 else depth + 1 + i for i in ([layers] if isinstance(layers, int) else layers)]

    def _strategy(self, inputs: Mapping[str, Any]) -> str:
        strategy = inputs.get("vision_feature_select_strategy") or self.model.config.vision_feature_select_strategy
        fits = "default" if self._class_tokens else "full"
        if strategy != fits:
            raise ValueError(
                f"vision_feature_select_strategy {strategy!r} makes [CLS] a token or drops a patch of "
                f"{type(self._tower).__name__}: use {fits!r}"
            )
        return strategy

    def _geometry(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Return what get_image_features needs beside the pixels."""
        return {}

    def _pictures(self, inputs: Mapping[str, Any]) -> list[Picture]:
        order = torch.arange(self._side**2)
        return [Picture(order, order, order, WHOLE)] * len(inputs["pixel_values"])


class LlavaNext(Llava):
    """LLaVA-NeXT: views are an overview and the tiles of an un-padded canvas with a newline behind each row.

    An index map goes through the model's own packing code, so no geometry of its is written again here. Un-padding
    cuts whole tokens, and boxes of tiles are told as precisely as that.
    """

    family = "llava_next"

    def _geometry(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        if inputs.get("image_sizes") is None:
            raise ValueError("inputs hold no image_sizes: LLaVA-NeXT un-pads by them, and its processor returns them")
        return {"image_sizes": inputs["image_sizes"]}

    def _pictures(self, inputs: Mapping[str, Any]) -> list[Picture]:
        return [self._picture(size) for size in torch.as_tensor(self._geometry(inputs)["image_sizes"]).cpu()]

    def _picture(self, size: Tensor) -> Picture:
        config, n = self.model.config, self._side**2
        resolution = config.vision_config.image_size
        views = image_size_to_num_patches(size, config.image_grid_pinpoints, resolution)
        index = torch.arange(views * n, dtype=torch.float32).view(views, n, 1)  # exact up to 2^24 tokens
        packed, _ = self.model.base_model.pack_image_features(
            [index], size[None], vision_feature_select_strategy="default", image_newline=torch.full((1,), torch.nan)
        )
        newline = packed[0][:, 0].isnan()
        order = packed[0][:, 0].nan_to_num(-1).long()
        at = torch.arange(len(order))
        ends = torch.where(newline, at, -1).cummax(0).values  # the last newline so far
        first = torch.cat([torch.tensor([-1]), ends[:-1]]).maximum(torch.tensor(n - 1 if views > 1 else -1)) + 1
        box = WHOLE if views == 1 else torch.cat([WHOLE, self._tiles(order[order >= n] - n, size)])
        return Picture(order, first, at - 1, box)

    def _tiles(self, order: Tensor, size: Tensor) -> Tensor:
        """[tiles, 4] boxes relative to the rectangle of the canvas that un-padding left."""
        config, side = self.model.config, self._side
        down, across = get_anyres_image_grid_shape(size, config.image_grid_pinpoints, config.vision_config.image_size)
        tile, token = order // side**2, order % side**2
        row, column = tile // across * side + token // side, tile % across * side + token % side
        low = torch.stack([row.min(), column.min()])
        extent = torch.stack([row.max(), column.max()]) + 1 - low
        corner = torch.cartesian_prod(torch.arange(down), torch.arange(across)) * side
        return torch.cat([(corner - low) / extent, (corner + side - low) / extent], 1)


def _checksums(pixels: Tensor) -> list[int]:
    """One integer a picture, exact and so the same in any batch; all-zero padding tiles do not count."""
    width = {2: torch.int16, 4: torch.int32, 8: torch.int64}[pixels.element_size()]
    bits = pixels.contiguous().view(width).flatten(1).long()
    weight = torch.arange(bits.shape[1], device=bits.device) * 0x9E3779B1 + 1
    return (bits * weight).sum(1).tolist()


@contextmanager
def _first_blocks(tower: Any, count: int) -> Iterator[None]:
    """Run only the first `count` blocks of a tower: what lies behind them nobody reads."""
    encoder = tower.get_submodule("encoder")
    whole = encoder.layers
    # transformers hooks the blocks it finds once and for all: let it see all of them first.
    maybe_install_capturing_hooks(tower)
    encoder.layers = nn.ModuleList(list(whole)[:count])
    try:
        yield
    finally:
        encoder.layers = whole
