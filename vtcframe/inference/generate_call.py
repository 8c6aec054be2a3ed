"""TODO: vtcframe/inference/generate_call.py."""

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
    """Return the arguments of a `generate` by name, `inputs` as the `input_ids` that it means."""
    options = dict(inspect.signature(function).bind(*args, **kwargs).arguments)
    options |= options.pop("kwargs", {})
    if (ids := options.pop("inputs", None)) is not None:
        if options.get("input_ids") is not None:
            raise ValueError("give input_ids or inputs, not both: they mean the same")
        options["input_ids"] = ids
    return options


def refuse_options(options: Mapping[str, Any]) -> None:
    for name, why in {
        "inputs_embeds": "give input_ids: embeddings hide where the pictures are",
        "mm_encoder_outputs": "give pixel_values: the pictures must be encoded under observation",
        "assistant_model": "an assistant would read the unpruned prompt: generate without one",
    }.items():
        if options.get(name) is not None:
            raise ValueError(f"{name} cannot be used with a compressed model: {why}")
    cache = options.get("past_key_values")
    if cache is not None and cache.get_seq_length() > 0:
        raise ValueError("past_key_values is filled: its columns are not those of the pruned prompt; give an empty one")


def infer_mask(inputs: Mapping[str, Any], model: Any) -> Tensor | None:
    """Tell padding from prompt as `generate` does without a mask: by a pad token that is no end token."""
    ids, config = inputs.get("input_ids"), model.generation_config
    if ids is None:
        return None
    ends = config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id]
    if config.pad_token_id is None or config.pad_token_id in ends:
        return torch.ones_like(ids)
    return (ids != config.pad_token_id).long()


@dataclass(frozen=True)
class CallerPrompt:
    """The caller's prompt [P, L], which `generate` knows only `width` columns of."""

    ids: Tensor
    width: int

    def whole(self, ids: Tensor) -> Tensor:
        """[P x k, width + new] -> [P x k, L + new]."""
        return torch.cat([self.ids.repeat_interleave(len(ids) // len(self.ids), 0).to(ids), ids[:, self.width :]], 1)

    def restored(self, out: Any) -> Any:
        """Put the caller's prompt in front of what `generate` returned, a tensor or a ModelOutput."""
        if isinstance(out, Tensor):
            return self.whole(out)
        out.sequences = self.whole(out.sequences)
        return out

    def translated(self, options: Mapping[str, Any], default: Any) -> dict[str, Any]:
        """Return options that mean in columns run what the caller meant in columns of the own prompt."""
        options, shorter = dict(options), self.ids.shape[1] - self.width
        config = options.get("generation_config")
        for name in ("max_length", "min_length"):
            given = next(
                (v for v in (options.get(name), getattr(config, name, None), getattr(default, name, None)) if v), 0
            )
            if not given:
                continue
            if config is None or options.get(name):
                options[name] = max(given - shorter, 0)
            else:
                options["generation_config"] = config = copy.deepcopy(config)
                setattr(config, name, max(given - shorter, 0))
        for name, many, wrap in (
            ("logits_processor", LogitsProcessorList, _Processor),
            ("stopping_criteria", StoppingCriteriaList, _Criterion),
        ):
            if options.get(name):
                options[name] = many([wrap(self, inner) for inner in options[name]])
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
        return self.inner(self.caller.whole(input_ids), scores)  # pyright: ignore[reportArgumentType]


class _Criterion(StoppingCriteria):
    def __init__(self, caller: CallerPrompt, inner: StoppingCriteria) -> None:
        self.caller, self.inner = caller, inner

    def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
        return self.inner(self.caller.whole(input_ids), scores, **kwargs)  # pyright: ignore[reportArgumentType]


class _Streamer(BaseStreamer):
    """Hands the caller's prompt on in place of the one that was run, which `generate` puts first."""

    def __init__(self, prompt: Tensor, inner: BaseStreamer) -> None:
        self.prompt: Tensor | None = prompt
        self.inner = inner

    def put(self, value: Tensor) -> None:
        prompt, self.prompt = self.prompt, None
        self.inner.put(value if prompt is None else prompt.cpu())

    def end(self) -> None:
        self.inner.end()
