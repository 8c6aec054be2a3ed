"""The model that is measured, and what it is asked: random weights at published sizes, or a checkpoint."""

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

BEFORE, BEHIND = 35, 29  # tokens of text around the picture: a system prompt of LLaVA's length, a short question
ON_CPU = 4  # layers of the language model there, unless more are asked for: a run is to take seconds
SIDE, QUESTION = 672, "what is in the image, and where ?"  # of checkpoints: their processors say what becomes of it


@dataclass(frozen=True)
class Subject:
    """A model on its device, and inputs of so many samples."""

    model: Any
    told: str  # what it is, for readers of a table
    inputs: Callable[[int], dict[str, Any]]
    processor: Any = None


def random_subject(
    name: str, shape: Shape, layers: int | None, dtype: torch.dtype, attention: str, device: torch.device
) -> Subject:
    """Return a model with random weights; without `layers`, as much of it as fits. UsageError where it does not."""
    run, every = depth(shape, layers, dtype, device)
    model = built(published(shape, run), dtype, attention, device)
    part = f"all {every}" if run == every else f"the first {run} of {every}"
    told = (
        f"{name} with random weights, {part} layers of its language model, pictures of {shape.picture} pixels, "
        f"{BEFORE + BEHIND} tokens of text"
    )
    return Subject(model, told, lambda batch: noise(shape, model, batch))


def checkpoint_subject(path: str, dtype: Any, attention: str, device: torch.device) -> Subject:
    """Return a checkpoint, which is asked about noise. UsageError if it cannot be loaded."""
    model, processor = Backbone(path, dtype, attention).load()
    model = model.to(device).eval()

    def inputs(batch: int) -> dict[str, Any]:
        noises = [random.Random(i).randbytes(3 * SIDE**2) for i in range(batch)]
        pictures = [Image.frombytes("RGB", (SIDE, SIDE), one) for one in noises]
        samples = [Sample(str(i), QUESTION, (), pictures=(one,)) for i, one in enumerate(pictures)]
        return dict(processor_inputs(processor, samples).to(device, model.dtype))

    return Subject(model, f"{path}, pictures of {SIDE} x {SIDE} pixels for its processor", inputs, processor)


def published(shape: Shape, layers: int | None = None) -> PreTrainedConfig:
    """Return its configuration, of a language model with the first `layers` only where they are given."""
    config = PUBLISHED[shape.checkpoint]()
    text: Any = config.get_text_config()
    for name, size in shape.language.items():
        setattr(text, name, size)
    if layers is not None:
        text.num_hidden_layers = layers
        if getattr(text, "layer_types", None):
            text.layer_types = text.layer_types[:layers]
    return config


def depth(shape: Shape, wanted: int | None, dtype: torch.dtype, device: torch.device) -> tuple[int, int]:
    """Return how many layers of the language model to run, and how many it has: those wanted, or that fit.

    UsageError for more than there are, or where not even one fits.
    """
    every = published(shape).get_text_config().num_hidden_layers
    if wanted is not None:
        if wanted > every:
            raise UsageError(f"--layers {wanted}: the language model of this shape has {every}")
        return wanted, every
    one, two = (_bytes(published(shape, layers), dtype) for layers in (1, 2))
    room = memory(device) * 2 // 3  # keys, values and activations want the rest
    fitting = 1 + (room - one) // (two - one)
    if fitting < 1:
        raise UsageError(f"weights of {one / 2**30:.1f} GiB and more do not fit {device}: give a smaller --shape")
    return min(fitting, every, ON_CPU if device.type == "cpu" else every), every


def memory(device: torch.device) -> int:
    """Return the bytes that a GPU has free, or those of the machine."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _bytes(config: PreTrainedConfig, dtype: torch.dtype) -> int:
    return sum(weight.numel() for weight in on_meta(config).parameters()) * dtype.itemsize


def built(config: PreTrainedConfig, dtype: torch.dtype, attention: str, device: torch.device) -> Any:
    """Return the model of a configuration with random weights, each written once. UsageError for an unknown kernel."""
    try:
        with torch.device("meta"):
            model = AutoModelForImageTextToText.from_config(config, dtype=dtype, attn_implementation=attention)
    except (ValueError, ImportError) as error:
        raise UsageError(f"--attn {attention}: {str(error).strip().splitlines()[0]}") from error
    torch.manual_seed(0)
    model.to_empty(device=device).init_weights()
    model.generation_config.pad_token_id = 0  # without one, generate tells at every call which it takes
    return model.eval()


def noise(shape: Shape, model: Any, batch: int) -> dict[str, Any]:
    """Return what a processor would make of so many samples: a picture and a prompt each."""
    draw = torch.Generator().manual_seed(0)
    ids = torch.randint(3, 20, (batch, BEFORE + shape.placeholders + BEHIND), generator=draw)
    ids[:, BEFORE : BEFORE + shape.placeholders] = model.config.image_token_id
    pixels = torch.randn(batch * shape.pixels[0], *shape.pixels[1:], generator=draw)
    inputs = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "pixel_values": pixels.to(model.dtype),
        **{name: torch.tensor([row] * batch) for name, row in shape.geometry.items()},
    }
    if hasattr(model.base_model, "get_rope_index"):  # M-RoPE is laid out by them
        inputs["mm_token_type_ids"] = (ids == model.config.image_token_id).long()
    return {name: given.to(model.device) for name, given in inputs.items()}
