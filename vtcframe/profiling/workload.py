"""The measured model and its inputs: random weights at published sizes, or a checkpoint."""

import os
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, PreTrainedConfig

from vtcframe.data.processor import processor_inputs
from vtcframe.data.sample import Sample
from vtcframe.errors import UsageError
from vtcframe.inference.checkpoint import Backbone
from vtcframe.profiling.sizes import Shape
from vtcframe.testing.tiny_models.published import PUBLISHED, on_meta

TEXT_BEFORE = 35  # text tokens before the picture, the length of LLaVA's system prompt
TEXT_AFTER = 29  # text tokens after the picture, the length of a short question
MAX_CPU_LAYERS = 4  # default limit of language-model layers on the CPU, so that a run takes seconds
PICTURE_SIDE = 672  # pixels of the square pictures for a checkpoint's processor
QUESTION = "what is in the image, and where ?"  # question for checkpoints


@dataclass(frozen=True)
class Subject:
    """A model on its device, and a function that makes inputs for a number of samples."""

    model: Any
    description: str  # shown above the tables
    inputs: Callable[[int], dict[str, Any]]
    processor: Any = None


def random_subject(
    name: str, shape: Shape, layers: int | None, dtype: torch.dtype, attention: str, device: torch.device
) -> Subject:
    """Return a model with random weights and `layers` language-model layers, or as many as fit if it is None.

    Raises UsageError if the model does not fit or has fewer layers.
    """
    built_layers, all_layers = choose_depth(shape, layers, dtype, device)
    model = build_model(published_config(shape, built_layers), dtype, attention, device)
    part = f"all {all_layers}" if built_layers == all_layers else f"the first {built_layers} of {all_layers}"
    description = (
        f"{name} with random weights, {part} layers of its language model, pictures of {shape.picture} pixels, "
        f"{TEXT_BEFORE + TEXT_AFTER} tokens of text"
    )
    return Subject(model, description, lambda batch: noise_inputs(shape, model, batch))


def checkpoint_subject(path: str, dtype: Any, attention: str, device: torch.device) -> Subject:
    """Return a checkpoint with noise pictures as inputs. Raises UsageError if it cannot be loaded."""
    model, processor = Backbone(path, dtype, attention).load()
    model = model.to(device).eval()

    def inputs(batch: int) -> dict[str, Any]:
        noise = [random.Random(i).randbytes(3 * PICTURE_SIDE**2) for i in range(batch)]
        pictures = [Image.frombytes("RGB", (PICTURE_SIDE, PICTURE_SIDE), pixels) for pixels in noise]
        samples = [Sample(str(i), QUESTION, (), pictures=(picture,)) for i, picture in enumerate(pictures)]
        return dict(processor_inputs(processor, samples).to(device, model.dtype))

    description = f"{path}, pictures of {PICTURE_SIDE} x {PICTURE_SIDE} pixels for its processor"
    return Subject(model, description, inputs, processor)


def published_config(shape: Shape, layers: int | None = None) -> PreTrainedConfig:
    """Return the configuration of a shape, with only the first `layers` language-model layers unless it is None."""
    config = PUBLISHED[shape.checkpoint]()
    text: Any = config.get_text_config()
    for name, size in shape.language.items():
        setattr(text, name, size)
    if layers is not None:
        text.num_hidden_layers = layers
        if getattr(text, "layer_types", None):
            text.layer_types = text.layer_types[:layers]
    return config


def choose_depth(shape: Shape, requested: int | None, dtype: torch.dtype, device: torch.device) -> tuple[int, int]:
    """Return how many language-model layers to build, and how many the published model has.

    The first number is `requested`, or as many as fit into memory if that is None. Raises UsageError if `requested`
    exceeds the published number, or if not even one layer fits.
    """
    all_layers = published_config(shape).get_text_config().num_hidden_layers
    if requested is not None:
        if requested > all_layers:
            raise UsageError(f"--layers {requested}: the language model of this shape has {all_layers}")
        return requested, all_layers
    one_layer = _weight_bytes(published_config(shape, 1), dtype)
    two_layers = _weight_bytes(published_config(shape, 2), dtype)
    room = available_bytes(device) * 2 // 3  # the rest is for the KV cache and activations
    fitting = 1 + (room - one_layer) // (two_layers - one_layer)
    if fitting < 1:
        raise UsageError(f"weights of at least {one_layer / 2**30:.1f} GiB do not fit {device}: give a smaller --shape")
    return min(fitting, all_layers, MAX_CPU_LAYERS if device.type == "cpu" else all_layers), all_layers


def available_bytes(device: torch.device) -> int:
    """Return the free memory of a GPU, or the total memory of the machine for a CPU, in bytes."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _weight_bytes(config: PreTrainedConfig, dtype: torch.dtype) -> int:
    return sum(weight.numel() for weight in on_meta(config).parameters()) * dtype.itemsize


def build_model(config: PreTrainedConfig, dtype: torch.dtype, attention: str, device: torch.device) -> Any:
    """Build a model with random weights directly on the device. Raises UsageError for an unknown attention kernel."""
    try:
        with torch.device("meta"):
            model = AutoModelForImageTextToText.from_config(config, dtype=dtype, attn_implementation=attention)
    except (ValueError, ImportError) as error:
        raise UsageError(f"--attn {attention}: {str(error).strip().splitlines()[0]}") from error
    torch.manual_seed(0)
    model.to_empty(device=device).init_weights()
    model.generation_config.pad_token_id = 0  # without it, generate logs its choice at every call
    return model.eval()


def noise_inputs(shape: Shape, model: Any, batch: int) -> dict[str, Any]:
    """Return random inputs in the processor's format: one picture and one prompt for each of `batch` samples."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, 20, (batch, TEXT_BEFORE + shape.placeholders + TEXT_AFTER), generator=generator)
    ids[:, TEXT_BEFORE : TEXT_BEFORE + shape.placeholders] = model.config.image_token_id
    pixels = torch.randn(batch * shape.pixels[0], *shape.pixels[1:], generator=generator)
    inputs = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "pixel_values": pixels.to(model.dtype),
        **{name: torch.tensor([row] * batch) for name, row in shape.geometry.items()},
    }
    if hasattr(model.base_model, "get_rope_index"):  # M-RoPE positions are computed from the token types
        inputs["mm_token_type_ids"] = (ids == model.config.image_token_id).long()
    return {name: tensor.to(model.device) for name, tensor in inputs.items()}
