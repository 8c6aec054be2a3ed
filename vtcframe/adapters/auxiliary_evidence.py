"""What a witness shows of a batch: its [CLS] attention on the pictures, or how much they are like the questions."""

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
    """Say why no auxiliary encoder can serve a need, and the cure; "" where one can."""
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
    """Return `need` as its axes say; `features` [V, N, C] are those of the backbone's own CLIP.

    ValueError where the processor is not known, by which pixels become a picture again and ids a question.
    """
    layout = arrangement.layout
    if refusal := auxiliary_refusal(need):
        raise ValueError(f"{need}: {refusal}")
    if isinstance(need, AttentionRows):
        pictures, of = _original_images(need, adapter, inputs, arrangement)
        seen = auxiliary_encoder(need.tower, pictures[0].device)
        maps = seen.rows(pictures, need.layers, need.pre_softmax, need.heads)  # [L, I, H, r, c]
        read = resampled(maps.transpose(1, 2).contiguous(), of, layout.centre)  # [L, H, V, N]
        return read.transpose(1, 2).masked_fill(~layout.valid.to(read.device)[:, None], 0).contiguous()
    assert isinstance(need, Similarity)
    if features is not None:
        speaker = auxiliary_encoder(_own_clip(need, adapter), features.device)
        space = speaker.embed(features)
    else:
        pictures, of = _original_images(need, adapter, inputs, arrangement)
        speaker = auxiliary_encoder(need.model, pictures[0].device)
        space = resampled(speaker.dense(pictures).movedim(-1, 0), of, layout.centre).movedim(0, -1)  # [V, N, E]
    said = speaker.text(_questions(need, adapter, inputs, arrangement))
    like = torch.stack([speaker.similarity(space[v], said[p]) for v, p in enumerate(layout.sample.tolist())])
    return like.masked_fill(~layout.valid.to(like.device), 0)


# width, patch and input of OpenAI's towers that backbones were built on -> the checkpoint with their text tower
PUBLISHED: dict[tuple[int | None, ...], str] = {
    (1024, 14, 336): "clip:openai/clip-vit-large-patch14-336",
    (1024, 14, 224): "clip:openai/clip-vit-large-patch14",
}


def _own_clip(need: Similarity, adapter: "TowerAdapter") -> str:
    if need.model != "clip":
        return need.model
    vision = adapter.model.config.vision_config
    shape = tuple(getattr(vision, name, None) for name in ("hidden_size", "patch_size", "image_size"))
    if vision.model_type == "clip_vision_model" and shape in PUBLISHED:
        return PUBLISHED[shape]
    raise ValueError(
        f"{type(adapter).__name__} cannot gather {need}: its tower is of no published CLIP's shape, {shape}. Name the "
        "checkpoint it was taken from, 'clip:PATH', or an encoder that looks at the picture, 'open_clip:NAME/WEIGHTS'"
    )


def _original_images(
    need: Need, adapter: "TowerAdapter", inputs: Mapping[str, Any], arrangement: Arrangement
) -> tuple[list[Tensor], Tensor]:
    """Return the pictures, [3, h, w] in 0..1, one for each image or frame, and [V] which of them a view shows."""
    processor = _processor(need, adapter)
    pictures: list[Tensor] = []
    by_modality = dict(zip(adapter.modalities, arrangement.pictures, strict=True))
    for modality in adapter.modalities_in(inputs):
        made = processor.image_processor if modality == "image" else processor.video_processor
        pictures += [
            _undone(made, pixels) for pixels in adapter.original_images(modality, inputs, by_modality[modality])
        ]
    layout, back = arrangement.layout, arrangement.origin.argsort()
    keys = torch.stack([layout.sample, layout.image, layout.frame], 1)[back]  # in the order of the towers
    _, of = keys.unique_consecutive(dim=0, return_inverse=True)
    return pictures, of[arrangement.origin]


def _undone(made: Any, pixels: Tensor) -> Tensor:
    """Undo an image processor's normalisation and rescaling: 0..1."""
    pixels = pixels.float()
    if made.do_normalize:
        mean, std = (
            torch.tensor(x, device=pixels.device, dtype=torch.float32).view(3, 1, 1)
            for x in (made.image_mean, made.image_std)
        )
        pixels = pixels * std + mean
    return (pixels if made.do_rescale else pixels / 255).clamp(0, 1)


def _questions(
    need: Need, adapter: "TowerAdapter", inputs: Mapping[str, Any], arrangement: Arrangement
) -> Sequence[str]:
    """Return the questions, or the prompts without placeholders and special tokens where the caller named none."""
    if arrangement.questions:
        return arrangement.questions
    prompt = arrangement.prompt
    tokenizer = _processor(need, adapter).tokenizer
    rows = zip(prompt.ids, prompt.real & ~prompt.visual, strict=True)
    return [tokenizer.decode(ids[text], skip_special_tokens=True).strip() for ids, text in rows]


def _processor(need: Need, adapter: "TowerAdapter") -> Any:
    if adapter.processor is None:
        raise ValueError(
            f"{need} is about the pictures or questions themselves, which ids and pixels hold only for who knows the "
            "processor: give compress(..., processor=processor) or adapter_for(model, processor)"
        )
    return adapter.processor
