"""Auxiliary encoders of timm, open_clip and transformers."""

import difflib
from collections.abc import Iterable, Sequence
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vtcframe.adapters.auxiliary_base import AuxiliaryEncoder, AuxiliaryVit, exact_float32


class AuxiliaryTimm(AuxiliaryEncoder):
    """A ViT of timm with its pretrained weights."""

    def __init__(self, name: str, device: torch.device) -> None:
        timm = _library("timm")
        source, _, folder = name.partition(":")
        if source == "local-dir":
            require_file(Path(folder) / "config.json", f"timm:{name}")
        elif source != "hf-hub":
            tagged = timm.list_pretrained()
            require_name(name, [*tagged, *(tag.partition(".")[0] for tag in tagged)], "pretrained model", "timm")
        super().__init__(f"timm:{name}", timm.create_model(name, pretrained=True), device)

    @cached_property
    def vit(self) -> AuxiliaryVit:
        """The model itself. ValueError if it has no class token."""
        data = _library("timm").data.resolve_model_data_config(self.model)
        return _timm_vit(self.name, self.model, data["input_size"][1:], data["mean"], data["std"])


class AuxiliaryOpenClip(AuxiliaryEncoder):
    """A model of open_clip and its tokenizer."""

    def __init__(self, name: str, device: torch.device) -> None:
        library = _library("open_clip")
        source, _, folder = name.partition(":")
        weights: dict[str, Any] = {}
        if source == "local-dir":
            require_file(Path(folder) / "open_clip_config.json", f"open_clip:{name}")
        elif source != "hf-hub":
            name, _, tag = name.partition("/")
            require_name(name, library.list_models(), "model", "open_clip")
            if not Path(tag).is_file():
                tags = library.list_pretrained_tags_by_model(name)
                require_name(tag, tags, "weights", f"open_clip for {name}")
            # The architecture does not define the activation that a tag was trained with; a wrong one spoils features.
            quick = (library.get_pretrained_cfg(name, tag) or {}).get("quick_gelu", False)
            weights = {"pretrained": tag, "force_quick_gelu": quick}
        model = library.create_model(name, require_pretrained=True, **weights)
        super().__init__(f"open_clip:{name}", model, device)
        self.tokenizer = library.get_tokenizer(name)

    @cached_property
    def vit(self) -> AuxiliaryVit:
        """The image tower. ValueError if it is no ViT with a class token."""
        data = _library("open_clip").get_model_preprocess_cfg(self.model)
        visual = self.model.visual
        size = data["size"] if isinstance(data["size"], Sequence) else (data["size"], data["size"])
        if hasattr(visual, "trunk"):
            return _timm_vit(self.name, visual.trunk, size, data["mean"], data["std"])
        if not hasattr(visual, "transformer") or not hasattr(visual, "class_embedding"):
            raise ValueError(
                f"{self.name} has the image tower {type(visual).__name__}: name a ViT with patches and [CLS]"
            )

        def run(pixels: Tensor, layer: int) -> Tensor:
            options = {"indices": [layer], "stop_early": True, "intermediates_only": True}
            return visual.forward_intermediates(pixels, **options)["image_intermediates"][0]

        attention = tuple(block.attn for block in visual.transformer.resblocks)
        return AuxiliaryVit(run, attention, 1, tuple(size), tuple(visual.grid_size), data["mean"], data["std"])

    def embed(self, patches: Tensor) -> Tensor:
        """Norm and projection of the image tower. ValueError for a tower that pools patches before it projects."""
        visual = self.model.visual
        if getattr(visual, "attn_pool", self) is not None or visual.proj is None:
            raise ValueError(
                f"{self.name} pools its patches before the projection, so single patches are not in the embedding "
                "space of the text: name a ViT without attention pooling"
            )
        _require_width(patches, visual.ln_post.normalized_shape[0], self.name)
        with exact_float32(self.device):
            return visual.ln_post(patches.to(self.device, torch.float32)) @ visual.proj

    def text(self, questions: Sequence[str]) -> list[Tensor]:
        """Encode the segments of questions by the text tower."""

        def tokenise(text: str, length: int) -> Tensor:
            return self.tokenizer([text], context_length=length)[0]

        return self._texts(questions, tokenise, self.tokenizer.context_length, self.model.encode_text)


class AuxiliaryClip(AuxiliaryEncoder):
    """A CLIPModel checkpoint of transformers, for backbones whose vision tower is that of the same CLIP."""

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
        if missing := sorted(report["missing_keys"]):
            raise ValueError(
                f"clip:{path} lacks {len(missing)} weights, among them {missing[0]}: name a complete CLIPModel"
            )
        super().__init__(f"clip:{path}", model, device)

    def embed(self, patches: Tensor) -> Tensor:
        """Norm and projection of the image tower."""
        _require_width(patches, self.model.config.vision_config.hidden_size, self.name)
        with exact_float32(self.device):
            normed = self.model.vision_model.post_layernorm(patches.to(self.device, torch.float32))
            return self.model.visual_projection(normed)

    def text(self, questions: Sequence[str]) -> list[Tensor]:
        """Encode the segments of questions by the text tower."""

        def tokenise(text: str, length: int) -> Tensor:
            options = {"max_length": length, "padding": "max_length", "truncation": True, "return_tensors": "pt"}
            return self.tokenizer(text, **options).input_ids[0]

        def encode(ids: Tensor) -> Tensor:  # attention is causal, so padding after the end token has no effect
            return self.model.text_projection(self.model.text_model(input_ids=ids).pooler_output)

        return self._texts(questions, tokenise, self.model.config.text_config.max_position_embeddings, encode)


def require_name(name: str, names: Iterable[str], kind: str, library: str) -> None:
    """Raise ValueError, with the nearest name, if `name` is not among the `names` of a `kind` of thing in a library."""
    names = sorted(set(names))
    if name in names:
        return
    near = difflib.get_close_matches(name, names, 1, 0.4)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    listed = f" Known: {', '.join(names) or 'none'}." if len(names) <= 60 else ""
    raise ValueError(f"no {kind} of {library} is called {name!r}.{hint}{listed}")


def require_file(path: Path, name: str) -> None:
    """Raise ValueError if the file by which a local model called `name` is loaded does not exist."""
    if not path.is_file():
        raise ValueError(f"{name} names no model: there is no {path}")


def _timm_vit(name: str, trunk: Any, size: Sequence[int], mean: Sequence[float], std: Sequence[float]) -> AuxiliaryVit:
    blocks = tuple(getattr(trunk, "blocks", ()))
    if getattr(trunk, "cls_token", None) is None or not all(hasattr(block, "attn") for block in blocks):
        raise ValueError(
            f"{name} ({type(trunk).__name__}) has no class token whose attention could be read: name a ViT with one, "
            "such as timm:vit_base_patch14_dinov2.lvd142m, or use AttentionRows('received') or AttentionRows('mean') "
            "of the backbone"
        )
    size = tuple(trunk.patch_embed.img_size or size)

    def run(pixels: Tensor, layer: int) -> Tensor:
        return trunk.forward_intermediates(pixels, indices=[layer], stop_early=True, intermediates_only=True)[0]

    attention = tuple(block.attn for block in blocks)
    grid = tuple(trunk.patch_embed.dynamic_feat_size(size))
    return AuxiliaryVit(run, attention, trunk.num_prefix_tokens, (size[0], size[1]), (grid[0], grid[1]), mean, std)


def _library(name: str) -> Any:
    try:
        return import_module(name)
    except ImportError as error:
        raise ImportError(f"an auxiliary encoder needs {name}: pip install vtcframe[encoders]", name=name) from error


def _require_width(patches: Tensor, width: int, name: str) -> None:
    if patches.shape[-1] != width:
        raise ValueError(
            f"{name} has a tower {width} wide, the patches are {patches.shape[-1]} wide: name the CLIP that the "
            "backbone's vision tower was taken from, or an 'open_clip:' model, which encodes the picture itself"
        )
