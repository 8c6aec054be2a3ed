"""Witnesses: encoders beside the backbone, asked about the same picture or about the question.

A timm or open_clip ViT lends its [CLS] attention to backbones whose tower has no class token; a CLIP lends the space
that patches and words share. Each has a grid of its own, which `resampled` brings onto the backbone's tokens.
"""

import difflib
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vtcframe.core.encoder_readers import QueryRow, Reader
from vtcframe.hooks.tap import Tap

Tokenise = Callable[[str, int], Tensor]  # text, length -> [length] ids: padded, or cut and ended


@dataclass(frozen=True)
class AuxiliaryVit:
    """A ViT with a class token at place 0."""

    run: Callable[[Tensor, int], Tensor]  # pixels, block -> [I, C, r, c] behind that block; later ones are not run
    attention: tuple[nn.Module, ...]  # of each block
    prefix: int  # tokens in front of the patches: the class token, registers
    size: tuple[int, int]  # height and width of its input
    grid: tuple[int, int]  # r, c
    mean: Sequence[float]
    std: Sequence[float]


class AuxiliaryEncoder:
    """A frozen encoder in float32, on one device. What it cannot show is a ValueError."""

    def __init__(self, name: str, model: nn.Module, device: torch.device) -> None:
        self.name = name
        self.device = device
        self.model: Any = model.to(device, torch.float32).eval().requires_grad_(False)

    @cached_property
    def vit(self) -> AuxiliaryVit:
        """The ViT that looks at pictures."""
        raise ValueError(f"{self.name} looks at no pictures: name a 'timm:' or 'open_clip:' model")

    def rows(
        self,
        pictures: Sequence[Tensor],
        layers: Sequence[int],
        logits: bool = False,
        heads: Literal["split", "mean", "joined"] = "split",
    ) -> Tensor:
        """[L, I, H, r, c] float32: attention that [CLS] pays to the patches, softmax over all keys (see Row).

        `pictures` are [3, h, w] in 0..1. Each is resized to the encoder's input whole, without a crop, so that the
        r x c patches cover it. All blocks count as layers, negative ones from the end.
        """
        vit, reader = self.vit, QueryRow(0, pre_softmax=logits, heads=heads, skip=self.vit.prefix)
        depth = len(vit.attention)
        if not layers or not all(-depth <= layer < depth for layer in layers):
            raise ValueError(f"layers {tuple(layers)} are not among the {depth} blocks of {self.name}")
        wanted = [vit.attention[layer] for layer in layers]
        with Tap({module: [reader] for module in wanted}) as tap:
            self._patches(pictures, max(layer % depth for layer in layers))
        return torch.stack([only_call(tap, module, reader) for module in wanted]).unflatten(-1, vit.grid)

    def dense(self, pictures: Sequence[Tensor]) -> Tensor:
        """[I, r, c, E] float32: patches of `pictures` (as for `rows`) in the space of the text, not normalised.

        Patches behind the last block but one, as CDPruner takes them (arXiv 2506.10967): the last block is trained
        for [CLS] alone.
        """
        return self.embed(self._patches(pictures, len(self.vit.attention) - 2).movedim(1, -1))

    def embed(self, patches: Tensor) -> Tensor:
        """[..., C] patches in front of the tower's last norm -> [..., E] in the space of the text, not normalised."""
        raise ValueError(f"{self.name} has no space that patches and words share: name a 'clip:' or 'open_clip:' model")

    def text(self, questions: Sequence[str]) -> list[Tensor]:
        """[segments, E] float32 for each question, each segment of length 1.

        A segment has as many whole words as the context holds, a begin and an end. CDPruner ends only a question's
        last segment, which leaves the text tower no place to read the others from.
        """
        raise ValueError(f"{self.name} reads no text: name a 'clip:' or 'open_clip:' model")

    @staticmethod
    def similarity(patches: Tensor, segments: Tensor) -> Tensor:
        """[..., E] and [segments, E] -> [...] float32: cosine, mean over the segments."""
        with _exact(patches.device):
            patches, segments = (F.normalize(x.float(), dim=-1) for x in (patches, segments.to(patches.device)))
            return (patches @ segments.T).mean(-1)

    def _patches(self, pictures: Sequence[Tensor], layer: int) -> Tensor:
        """[I, C, r, c]."""
        if not pictures:
            raise ValueError(f"no pictures for {self.name}: give at least one")
        vit, resized = self.vit, []
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
        with _exact(self.device):
            return vit.run((torch.cat(resized) - mean) / std, layer)

    def _texts(self, questions: Sequence[str], tokenise: Tokenise, length: int, encode: Callable) -> list[Tensor]:
        parts = [segments(question, tokenise, length) for question in questions]
        if not parts:
            return []
        ids = torch.stack([tokenise(part, length) for question in parts for part in question]).to(self.device)
        with _exact(self.device):
            return list(F.normalize(encode(ids), dim=-1).split([len(question) for question in parts]))


class AuxiliaryTimm(AuxiliaryEncoder):
    """A ViT of timm with its pretrained weights."""

    def __init__(self, name: str, device: torch.device) -> None:
        timm = _library("timm")
        source, _, folder = name.partition(":")
        if source == "local-dir":
            _require_file(Path(folder) / "config.json", f"timm:{name}")
        elif source != "hf-hub":
            tagged = timm.list_pretrained()
            _require_known(name, [*tagged, *(known.partition(".")[0] for known in tagged)], "pretrained model", "timm")
        super().__init__(f"timm:{name}", timm.create_model(name, pretrained=True), device)

    @cached_property
    def vit(self) -> AuxiliaryVit:
        data = _library("timm").data.resolve_model_data_config(self.model)
        return _timm_vit(self.name, self.model, data["input_size"][1:], data["mean"], data["std"])


class AuxiliaryOpenClip(AuxiliaryEncoder):
    """A model of open_clip and its tokenizer."""

    def __init__(self, name: str, device: torch.device) -> None:
        library = _library("open_clip")
        source, _, folder = name.partition(":")
        weights: dict[str, Any] = {}
        if source == "local-dir":
            _require_file(Path(folder) / "open_clip_config.json", f"open_clip:{name}")
        elif source != "hf-hub":
            name, _, tag = name.partition("/")
            _require_known(name, library.list_models(), "model", "open_clip")
            if not Path(tag).is_file():
                tags = library.list_pretrained_tags_by_model(name)
                _require_known(tag, tags, "weights", f"open_clip for {name}")
            # The architecture does not say with which activation a tag was trained; without it features are wrong.
            quick = (library.get_pretrained_cfg(name, tag) or {}).get("quick_gelu", False)
            weights = {"pretrained": tag, "force_quick_gelu": quick}
        model = library.create_model(name, require_pretrained=True, **weights)
        super().__init__(f"open_clip:{name}", model, device)
        self.tokenizer = library.get_tokenizer(name)

    @cached_property
    def vit(self) -> AuxiliaryVit:
        data, visual = _library("open_clip").get_model_preprocess_cfg(self.model), self.model.visual
        size = data["size"] if isinstance(data["size"], Sequence) else (data["size"], data["size"])
        if hasattr(visual, "trunk"):
            return _timm_vit(self.name, visual.trunk, size, data["mean"], data["std"])
        if not hasattr(visual, "transformer") or not hasattr(visual, "class_embedding"):
            raise ValueError(f"{self.name} looks through {type(visual).__name__}: only a ViT has patches and [CLS]")

        def run(pixels: Tensor, layer: int) -> Tensor:
            options = {"indices": [layer], "stop_early": True, "intermediates_only": True}
            return visual.forward_intermediates(pixels, **options)["image_intermediates"][0]

        attention = tuple(block.attn for block in visual.transformer.resblocks)
        return AuxiliaryVit(run, attention, 1, tuple(size), tuple(visual.grid_size), data["mean"], data["std"])

    def embed(self, patches: Tensor) -> Tensor:
        visual = self.model.visual
        if getattr(visual, "attn_pool", self) is not None or visual.proj is None:
            raise ValueError(f"{self.name} pools its patches into the space of the text: single patches are not in it")
        _require_width(patches, visual.ln_post.normalized_shape[0], self.name)
        with _exact(self.device):
            return visual.ln_post(patches.to(self.device, torch.float32)) @ visual.proj

    def text(self, questions: Sequence[str]) -> list[Tensor]:
        def tokenise(text: str, length: int) -> Tensor:
            return self.tokenizer([text], context_length=length)[0]

        return self._texts(questions, tokenise, self.tokenizer.context_length, self.model.encode_text)


class AuxiliaryClip(AuxiliaryEncoder):
    """A CLIPModel checkpoint of transformers, for backbones whose own tower is that CLIP's."""

    def __init__(self, path: str, device: torch.device) -> None:
        from transformers import AutoConfig, AutoTokenizer, CLIPModel

        try:
            kind = AutoConfig.from_pretrained(path).model_type
            if kind != "clip":
                raise ValueError(f"clip:{path} is a {kind!r} checkpoint: name a CLIPModel, both towers and projections")
            loaded: Any = CLIPModel.from_pretrained(path, dtype=torch.float32, output_loading_info=True)
            self.tokenizer = AutoTokenizer.from_pretrained(path)
        except OSError as error:
            raise ValueError(f"clip:{path} cannot be loaded: {error}") from error
        model, report = loaded
        if lost := sorted(report["missing_keys"]):
            raise ValueError(f"clip:{path} lacks {len(lost)} weights, among them {lost[0]}: name a whole CLIPModel")
        super().__init__(f"clip:{path}", model, device)

    def embed(self, patches: Tensor) -> Tensor:
        _require_width(patches, self.model.config.vision_config.hidden_size, self.name)
        with _exact(self.device):
            normed = self.model.vision_model.post_layernorm(patches.to(self.device, torch.float32))
            return self.model.visual_projection(normed)

    def text(self, questions: Sequence[str]) -> list[Tensor]:
        def tokenise(text: str, length: int) -> Tensor:
            options = {"max_length": length, "padding": "max_length", "truncation": True, "return_tensors": "pt"}
            return self.tokenizer(text, **options).input_ids[0]

        def encode(ids: Tensor) -> Tensor:  # causal, so padding behind the end is not seen
            return self.model.text_projection(self.model.text_model(input_ids=ids).pooler_output)

        return self._texts(questions, tokenise, self.model.config.text_config.max_position_embeddings, encode)


KINDS: dict[str, Callable[[str, torch.device], AuxiliaryEncoder]] = {
    "timm": AuxiliaryTimm,
    "open_clip": AuxiliaryOpenClip,
    "clip": AuxiliaryClip,
}
_LOADED: dict[tuple[str, torch.device], AuxiliaryEncoder] = {}
_LOCK = threading.Lock()


def auxiliary_encoder(name: str, device: str | torch.device = "cpu") -> AuxiliaryEncoder:
    """Return the encoder that `name` says, loaded once for each device.

    "timm:NAME" and "open_clip:NAME/WEIGHTS", where NAME may be "local-dir:FOLDER" or "hf-hub:REPOSITORY" as those
    libraries read it (open_clip then wants no WEIGHTS) and WEIGHTS is a tag or a file; "clip:PATH", a folder or a hub's
    name. ValueError for a name that nothing is known by, ImportError without the library.
    """
    kind, _, rest = name.partition(":")
    _require_known(kind, KINDS, "kind of witness", "vtcframe")
    if not rest:
        raise ValueError(f"{name!r} names no model: write '{kind}:NAME'")
    at = name, torch.device(device)
    with _LOCK:  # two threads that ask for the same one must not load it twice
        if at not in _LOADED:
            _LOADED[at] = KINDS[kind](rest, at[1])
        return _LOADED[at]


def only_call(tap: Tap, module: nn.Module, reader: Reader) -> Tensor:
    """Return what a reader made of a module's only call. ValueError for more (differential attention)."""
    calls = tap[module, reader]
    if len(calls) == 1:
        return calls[0]
    raise ValueError(f"{type(module).__name__} attends {len(calls)} times in one forward: it has no one attention map")


def resampled(maps: Tensor, picture: Tensor, centre: Tensor) -> Tensor:
    """[..., I, r, c] read at `centre` of picture [V] -> [..., V, N], bilinear.

    `centre` [V, N, 2] is row and column in the picture, 0..1; cell i of r has its centre at (i + 0.5) / r, and beyond
    the outermost centres the map goes on as it ends. 0 where a centre is NaN (no token).
    """
    leading, (rows, columns) = maps.shape[:-3], maps.shape[-2:]
    cells = maps.reshape(-1, maps.shape[-3], rows, columns).movedim(1, 0)[picture.to(maps.device)]
    at = centre.to(maps.device, torch.float32)
    real = at.isfinite().all(-1)
    where = (2 * at.nan_to_num(0.5) - 1).flip(-1)[:, :, None].to(maps.dtype)  # column first
    read = F.grid_sample(cells, where, padding_mode="border", align_corners=False)[..., 0]
    return read.movedim(0, 1).masked_fill(~real, 0).reshape(*leading, *real.shape)


def segments(question: str, tokenise: Tokenise, length: int) -> list[str]:
    """Cut a question into the fewest runs of whole words whose tokens, begin and end included, fit into `length`.

    A word that does not fit by itself is cut between letters. A question without words is one empty segment.
    """

    def fits(text: str) -> bool:  # whoever fits is the same, but for padding, where there is room for one more
        return torch.equal(tokenise(text, length), tokenise(text, length + 1)[:length])

    found, words = [], question.split()
    while words:
        if count := _longest(words, " ", fits):
            found.append(" ".join(words[:count]))
            words = words[count:]
        elif count := _longest(words[0], "", fits):
            found.append(words[0][:count])
            words[0] = words[0][count:]
        else:
            raise ValueError(f"the tokenizer does not fit {words[0][0]!r} into {length} tokens: no question can be cut")
    return found or [""]


def _longest(pieces: Sequence[str], space: str, fits: Callable[[str], bool]) -> int:
    """Return how many pieces from the first one on fit when joined, by bisection."""
    low, high = 0, len(pieces)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(space.join(pieces[:middle])) else (low, middle - 1)
    return low


@contextmanager
def _exact(device: torch.device) -> Iterator[None]:
    with torch.no_grad(), torch.autocast(device.type, enabled=False):
        yield


def _timm_vit(name: str, trunk: Any, size: Sequence[int], mean: Sequence[float], std: Sequence[float]) -> AuxiliaryVit:
    blocks = tuple(getattr(trunk, "blocks", ()))
    if getattr(trunk, "cls_token", None) is None or not all(hasattr(block, "attn") for block in blocks):
        raise ValueError(
            f"{name} ({type(trunk).__name__}) has no class token whose attention could be read: name a ViT with one, "
            "as timm:vit_base_patch14_dinov2.lvd142m, or ask the backbone itself for Rows('received') or Rows('mean')"
        )
    size = tuple(trunk.patch_embed.img_size or size)

    def run(pixels: Tensor, layer: int) -> Tensor:
        return trunk.forward_intermediates(pixels, indices=[layer], stop_early=True, intermediates_only=True)[0]

    attention, grid = tuple(block.attn for block in blocks), tuple(trunk.patch_embed.dynamic_feat_size(size))
    return AuxiliaryVit(run, attention, trunk.num_prefix_tokens, (size[0], size[1]), (grid[0], grid[1]), mean, std)


def _library(name: str) -> Any:
    try:
        return import_module(name)
    except ImportError as error:
        raise ImportError(f"a witness needs {name}: pip install vtcframe[encoders]", name=name) from error


def _require_known(name: str, known: Iterable[str], what: str, where: str) -> None:
    known = sorted(set(known))
    if name in known:
        return
    near = difflib.get_close_matches(name, known, 1, 0.4)
    some = f" Did you mean {near[0]!r}?" if near else ""
    listed = f" Known: {', '.join(known) or 'none'}." if len(known) <= 60 else ""
    raise ValueError(f"no {what} of {where} is called {name!r}.{some}{listed}")


def _require_file(path: Path, name: str) -> None:
    if not path.is_file():
        raise ValueError(f"{name} names no model: there is no {path}")


def _require_width(patches: Tensor, width: int, name: str) -> None:
    if patches.shape[-1] != width:
        raise ValueError(
            f"{name} has a tower {width} wide, the patches are {patches.shape[-1]} wide: name the CLIP that the "
            "backbone's own tower was taken from, or an 'open_clip:' model, which looks at the picture itself"
        )
