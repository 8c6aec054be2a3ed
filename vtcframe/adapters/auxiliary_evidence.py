"""Evidence of auxiliary encoders about a batch: [CLS] attention on its pictures, or their similarity to questions."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vtcframe.adapters.arrangement import Arrangement
from vtcframe.adapters.auxiliary_encoders import auxiliary_encoder, resampled
from vtcframe.core.need_bases import Need
from vtcframe.core.needs import AttentionRows, Similarity

if TYPE_CHECKING:
    from vtcframe.adapters.tower import TowerAdapter


def auxiliary_refusal(need: Need) -> str:
    """Return why no auxiliary encoder can serve a need, and the cure; "" if one can."""
    rows = isinstance(need, AttentionRows) and (need.query, need.blocks, need.reduce) == ("cls", "feeding", "mean")
    if rows or isinstance(need, Similarity):
        return ""
    return "an auxiliary encoder serves AttentionRows('cls', layers, tower='timm:...') and Similarity only"


def gather_auxiliary(
    need: Need,
    adapter: "TowerAdapter",
    inputs: Mapping[str, Any],
    arrangement: Arrangement,
    features: Tensor | None = None,
) -> Tensor:
    """Return the readings of `need`, in the order of its axes.

    `features` [V, N, C] are those of the backbone's vision tower, if the need compares them instead of encoding the
    pictures again. ValueError if the adapter has no processor, which is needed to restore pictures and questions.
    """
    layout = arrangement.layout
    if refusal := auxiliary_refusal(need):
        raise ValueError(f"{need}: {refusal}")
    if isinstance(need, AttentionRows):
        pictures, picture_of_view = _original_images(need, adapter, inputs, arrangement)
        encoder = auxiliary_encoder(need.tower, pictures[0].device)
        maps = encoder.rows(pictures, need.layers, need.pre_softmax, need.heads)  # [L, I, H, r, c]
        rows = resampled(maps.transpose(1, 2).contiguous(), picture_of_view, layout.centre)  # [L, H, V, N]
        return rows.transpose(1, 2).masked_fill(~layout.valid.to(rows.device)[:, None], 0).contiguous()
    assert isinstance(need, Similarity)
    if features is not None:
        encoder = auxiliary_encoder(_clip_of_backbone(need, adapter), features.device)
        patches = encoder.embed(features)
    else:
        pictures, picture_of_view = _original_images(need, adapter, inputs, arrangement)
        encoder = auxiliary_encoder(need.model, pictures[0].device)
        dense = encoder.dense(pictures).movedim(-1, 0)
        patches = resampled(dense, picture_of_view, layout.centre).movedim(0, -1)  # [V, N, E]
    words = encoder.text(_questions(need, adapter, arrangement))
    similarity = torch.stack([encoder.similarity(patches[v], words[p]) for v, p in enumerate(layout.sample.tolist())])
    return similarity.masked_fill(~layout.valid.to(similarity.device), 0)


# hidden size, patch size and image size of OpenAI's vision towers in backbones -> checkpoint with their text tower
PUBLISHED: dict[tuple[int | None, ...], str] = {
    (1024, 14, 336): "clip:openai/clip-vit-large-patch14-336",
    (1024, 14, 224): "clip:openai/clip-vit-large-patch14",
}


def _clip_of_backbone(need: Similarity, adapter: "TowerAdapter") -> str:
    """Return the name of the CLIP that the vision tower of a backbone was taken from. ValueError if it is unknown."""
    if need.model != "clip":
        return need.model
    vision = adapter.model.config.vision_config
    shape = tuple(getattr(vision, name, None) for name in ("hidden_size", "patch_size", "image_size"))
    if vision.model_type == "clip_vision_model" and shape in PUBLISHED:
        return PUBLISHED[shape]
    raise ValueError(
        f"{type(adapter).__name__} cannot gather {need}: its tower has no published CLIP's shape, {shape}. Name the "
        "checkpoint it was taken from, 'clip:PATH', or an encoder of the picture itself, 'open_clip:NAME/WEIGHTS'"
    )


def _original_images(
    need: Need, adapter: "TowerAdapter", inputs: Mapping[str, Any], arrangement: Arrangement
) -> tuple[list[Tensor], Tensor]:
    """Return pictures [3, h, w] in 0..1, one for each image or frame, and [V] the index of the picture of each view."""
    processor = _processor(need, adapter)
    pictures: list[Tensor] = []
    by_modality = dict(zip(adapter.modalities, arrangement.pictures, strict=True))
    for modality in adapter.modalities_in(inputs):
        preparation = processor.image_processor if modality == "image" else processor.video_processor
        images = adapter.original_images(modality, inputs, by_modality[modality])
        pictures += [_denormalise(preparation, pixels) for pixels in images]
    layout = arrangement.layout
    tower_order = arrangement.origin.argsort()
    keys = torch.stack([layout.sample, layout.image, layout.frame], 1)[tower_order]
    _, picture_of_view = keys.unique_consecutive(dim=0, return_inverse=True)
    return pictures, picture_of_view[arrangement.origin]


def _denormalise(preparation: Any, pixels: Tensor) -> Tensor:
    """Undo the normalisation and rescaling of an image processor; return pixels in 0..1."""
    pixels = pixels.float()
    if preparation.do_normalize:
        mean, std = (
            torch.tensor(x, device=pixels.device, dtype=torch.float32).view(3, 1, 1)
            for x in (preparation.image_mean, preparation.image_std)
        )
        pixels = pixels * std + mean
    return (pixels if preparation.do_rescale else pixels / 255).clamp(0, 1)


def _questions(need: Need, adapter: "TowerAdapter", arrangement: Arrangement) -> Sequence[str]:
    """Return the questions of the caller, by default the prompts without placeholders and special tokens."""
    if arrangement.questions:
        return arrangement.questions
    prompt = arrangement.prompt
    tokenizer = _processor(need, adapter).tokenizer
    rows = zip(prompt.ids, prompt.real & ~prompt.visual, strict=True)
    return [tokenizer.decode(ids[text], skip_special_tokens=True).strip() for ids, text in rows]


def _processor(need: Need, adapter: "TowerAdapter") -> Any:
    if adapter.processor is None:
        raise ValueError(
            f"{need} needs the original pictures or questions, which only the processor can restore from pixels and "
            "ids: give compress(..., processor=processor) or adapter_for(model, processor)"
        )
    return adapter.processor
