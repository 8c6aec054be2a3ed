"""Translation of a call of `generate` between the original prompt of the caller and the pruned prompt."""

import copy
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList, StoppingCriteria, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer


def bind_arguments(function: Callable, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of a `generate` by name, with `inputs` renamed to `input_ids`. ValueError for both."""
    options = dict(inspect.signature(function).bind(*args, **kwargs).arguments)
    options |= options.pop("kwargs", {})
    if (ids := options.pop("inputs", None)) is not None:
        if options.get("input_ids") is not None:
            raise ValueError("give input_ids or inputs, not both: they mean the same")
        options["input_ids"] = ids
    return options


def refuse_options(options: Mapping[str, Any]) -> None:
    """Raise ValueError for options of `generate` that do not work with pruned prompts."""
    for name, why in {
        "inputs_embeds": "give input_ids: embeddings have no placeholders",
        "mm_encoder_outputs": "give pixel_values: evidence is gathered while they are encoded",
        "assistant_model": "an assistant would process the unpruned prompt: generate without it",
    }.items():
        if options.get(name) is not None:
            raise ValueError(f"{name} cannot be used with a compressed model: {why}")
    cache = options.get("past_key_values")
    if cache is not None and cache.get_seq_length() > 0:
        raise ValueError(
            "past_key_values is filled, but its columns are not those of the pruned prompt: give an empty cache"
        )


def infer_mask(inputs: Mapping[str, Any], model: Any) -> Tensor | None:
    """Return the attention mask that `generate` infers without one: from a pad token that is no end token."""
    ids = inputs.get("input_ids")
    config = model.generation_config
    if ids is None:
        return None
    ends = config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id]
    if config.pad_token_id is None or config.pad_token_id in ends:
        return torch.ones_like(ids)
    return (ids != config.pad_token_id).long()


@dataclass(frozen=True)
class CallerPrompt:
    """The original prompt of the caller, while `generate` runs a pruned prompt."""

    ids: Tensor  # [P, L]
    width: int  # number of columns of the pruned prompt

    def restore_ids(self, ids: Tensor) -> Tensor:
        """[P x k, width + new] -> [P x k, L + new], the original prompt in front of the new ids."""
        return torch.cat([self.ids.repeat_interleave(len(ids) // len(self.ids), 0).to(ids), ids[:, self.width :]], 1)

    def restore(self, out: Any) -> Any:
        """Put the original prompt in front of the output of `generate`, a tensor or a ModelOutput."""
        if isinstance(out, Tensor):
            return self.restore_ids(out)
        out.sequences = self.restore_ids(out.sequences)
        return out

    def translate_options(self, options: Mapping[str, Any], default: Any) -> dict[str, Any]:
        """Return options of `generate` for the pruned prompt that have the effect of `options` for the original prompt.

        `default` is the generation config of the model.
        """
        options = dict(options)
        dropped = self.ids.shape[1] - self.width
        config = options.get("generation_config")
        for name in ("max_length", "min_length"):
            candidates = (options.get(name), getattr(config, name, None), getattr(default, name, None))
            length = next((candidate for candidate in candidates if candidate), 0)
            if not length:
                continue
            if config is None or options.get(name):
                options[name] = max(length - dropped, 0)
            else:
                options["generation_config"] = config = copy.deepcopy(config)
                setattr(config, name, max(length - dropped, 0))
        for name, list_class, wrapper in (
            ("logits_processor", LogitsProcessorList, _Processor),
            ("stopping_criteria", StoppingCriteriaList, _Criterion),
        ):
            if options.get(name):
                options[name] = list_class([wrapper(self, inner) for inner in options[name]])
        if (allowed := options.get("prefix_allowed_tokens_fn")) is not None:
            options["prefix_allowed_tokens_fn"] = lambda row, ids: allowed(
                row, torch.cat([self.ids[row].to(ids), ids[self.width :]])
            )
        if options.get("streamer") is not None:
            options["streamer"] = _Streamer(self.ids, options["streamer"])
        return options


class _Processor(LogitsProcessor):
    def __init__(self, caller: CallerPrompt, inner: LogitsProcessor) -> None:
        self.caller, self.inner = caller, inner

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        return self.inner(self.caller.restore_ids(input_ids), scores)  # pyright: ignore[reportArgumentType]


class _Criterion(StoppingCriteria):
    def __init__(self, caller: CallerPrompt, inner: StoppingCriteria) -> None:
        self.caller, self.inner = caller, inner

    def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
        return self.inner(self.caller.restore_ids(input_ids), scores, **kwargs)  # pyright: ignore[reportArgumentType]


class _Streamer(BaseStreamer):
    """Streams the original prompt of the caller in place of the pruned prompt, which `generate` puts first."""

    def __init__(self, prompt: Tensor, inner: BaseStreamer) -> None:
        self.prompt: Tensor | None = prompt
        self.inner = inner

    def put(self, value: Tensor) -> None:
        prompt = self.prompt
        self.prompt = None
        self.inner.put(value if prompt is None else prompt.cpu())

    def end(self) -> None:
        self.inner.end()
