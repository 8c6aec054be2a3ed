"""Base class of auxiliary encoders: frozen models beside the backbone that encode the same pictures or the question."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vtcframe.adapters.text_segments import Tokenise, segments
from vtcframe.core.encoder_readers import QueryRow
from vtcframe.hooks.tap import Tap, only_call


@dataclass(frozen=True)
class AuxiliaryVit:
    """A ViT whose token 0 is a class token."""

    run: Callable[[Tensor, int], Tensor]  # pixels, block -> output of that block [I, C, r, c]; later blocks do not run
    attention: tuple[nn.Module, ...]  # attention module of each block
    prefix: int  # number of tokens in front of the patches: class token and registers
    size: tuple[int, int]  # height and width of the input in pixels
    grid: tuple[int, int]  # r rows and c columns of patches
    mean: Sequence[float]
    std: Sequence[float]


class AuxiliaryEncoder:
    """A frozen encoder in float32 on one device. Methods that an encoder cannot serve raise ValueError."""

    def __init__(self, name: str, model: nn.Module, device: torch.device) -> None:
        self.name = name
        self.device = device
        self.model: Any = model.to(device, torch.float32).eval().requires_grad_(False)

    @cached_property
    def vit(self) -> AuxiliaryVit:
        """The ViT that encodes pictures. ValueError if there is none."""
        raise ValueError(f"{self.name} encodes no pictures: name a 'timm:' or 'open_clip:' model")

    def rows(
        self,
        pictures: Sequence[Tensor],
        layers: Sequence[int],
        logits: bool = False,
        heads: Literal["split", "mean", "joined"] = "split",
    ) -> Tensor:
        """[L, I, H, r, c] float32: attention from [CLS] to the patches, softmax over all keys (see `QueryRow`).

        `pictures` are [3, h, w] in 0..1. Each is resized to the input size of the encoder without a crop, so that the
        r x c patches cover all of it. All blocks count as layers; negative numbers count from the end. `logits` omits
        the softmax. ValueError for layers that the encoder does not have.
        """
        vit = self.vit
        depth = len(vit.attention)
        if not layers or not all(-depth <= layer < depth for layer in layers):
            raise ValueError(f"layers {tuple(layers)} are not among the {depth} blocks of {self.name}")
        reader = QueryRow(index=0, pre_softmax=logits, heads=heads, skip=vit.prefix)
        modules = [vit.attention[layer] for layer in layers]
        with Tap({module: [reader] for module in modules}) as tap:
            self._patches(pictures, max(layer % depth for layer in layers))
        return torch.stack([only_call(tap, module, reader) for module in modules]).unflatten(-1, vit.grid)

    def dense(self, pictures: Sequence[Tensor]) -> Tensor:
        """[I, r, c, E] float32: patches of `pictures` (as in `rows`) in the embedding space of the text, unnormalised.

        Patches are the output of the second-to-last block, as in CDPruner (arXiv 2506.10967): the last block is trained
        for [CLS] only.
        """
        return self.embed(self._patches(pictures, len(self.vit.attention) - 2).movedim(1, -1))

    def embed(self, patches: Tensor) -> Tensor:
        """[..., C] patches before the last norm of the tower -> [..., E] in the embedding space of text, unnormalised.

        ValueError if the encoder has no such space.
        """
        raise ValueError(
            f"{self.name} has no embedding space that patches and words share: name a 'clip:' or 'open_clip:' model"
        )

    def text(self, questions: Sequence[str]) -> list[Tensor]:
        """[segments, E] float32 for each question; each segment is normalised to length 1.

        A segment has a begin token, as many complete words as the context holds, and an end token. CDPruner adds an
        end token only to the last segment of a question, but text towers pool at the end token. ValueError if the
        encoder has no text tower.
        """
        raise ValueError(f"{self.name} encodes no text: name a 'clip:' or 'open_clip:' model")

    @staticmethod
    def similarity(patches: Tensor, segments: Tensor) -> Tensor:
        """[..., E] and [segments, E] -> [...] float32: cosine similarity, mean over the segments."""
        with exact_float32(patches.device):
            patches = F.normalize(patches.float(), dim=-1)
            segments = F.normalize(segments.to(patches.device).float(), dim=-1)
            return (patches @ segments.T).mean(-1)

    def _patches(self, pictures: Sequence[Tensor], layer: int) -> Tensor:
        """[I, C, r, c]: output of block `layer` for pictures resized to the encoder's input."""
        if not pictures:
            raise ValueError(f"no pictures for {self.name}: give at least one")
        vit = self.vit
        resized = []
        for picture in pictures:
            if picture.ndim != 3 or picture.shape[0] != 3 or not picture.is_floating_point():
                raise ValueError(
                    f"a picture is {list(picture.shape)} {picture.dtype}: give [3, height, width] floats in 0..1"
                )
            picture = picture[None].to(self.device, torch.float32)
            resized.append(F.interpolate(picture, vit.size, mode="bicubic", antialias=True).clamp(0, 1))
        mean, std = (
            torch.tensor(x, device=self.device, dtype=torch.float32).view(3, 1, 1) for x in (vit.mean, vit.std)
        )
        with exact_float32(self.device):
            return vit.run((torch.cat(resized) - mean) / std, layer)

    def _texts(self, questions: Sequence[str], tokenise: Tokenise, length: int, encode: Callable) -> list[Tensor]:
        """Segment questions, `encode` ids [n, length] -> [n, E] of all segments at once, and normalise."""
        parts = [segments(question, tokenise, length) for question in questions]
        if not parts:
            return []
        ids = torch.stack([tokenise(part, length) for question in parts for part in question]).to(self.device)
        with exact_float32(self.device):
            return list(F.normalize(encode(ids), dim=-1).split([len(question) for question in parts]))


@contextmanager
def exact_float32(device: torch.device) -> Iterator[None]:
    """Run code without gradients and without autocast."""
    with torch.no_grad(), torch.autocast(device.type, enabled=False):
        yield
