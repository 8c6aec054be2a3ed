"""Checks that an adapter can run a plan, and that `generate` gets options under which stages can act."""

from collections.abc import Mapping
from typing import Any

from vtcframe.adapters.base import Adapter, EncoderAdapter
from vtcframe.core.stages import Plan
from vtcframe.hooks.llm_reading import check_needs
from vtcframe.hooks.llm_segment import layer_types


def check_language_model(adapter: EncoderAdapter) -> None:
    """Raise ValueError for an adapter of a vision encoder that has no language model."""
    if not isinstance(adapter, Adapter):
        raise ValueError(
            f"{type(adapter.model).__name__} has no language model and generates nothing: call features(evidence, "
            f"pruned) of {type(adapter).__name__}"
        )


def check_sites(adapter: Adapter, plan: Plan) -> None:
    """Raise ValueError if the encoder or the language model of an adapter cannot run the stages of a plan."""
    reason = adapter.no_encoder_stages_because
    if plan.encoder and reason:
        raise ValueError(
            f"{type(adapter).__name__} cannot be pruned at {plan.encoder[0].at}: {reason}. Use stages at 'projector'"
        )
    check_plan(adapter, plan)


def check_plan(adapter: Adapter, plan: Plan) -> None:
    """Raise ValueError if the language model of an adapter cannot run the stages of a plan or serve their needs."""
    depth, first = len(adapter.llm_layers()), adapter.llm_first()
    for stage in plan.llm:
        if not first <= stage.layer < depth:
            raise ValueError(
                f"{type(adapter).__name__} can be pruned before layers {first} to {depth - 1} of its language model, "
                f"not at {stage.at!r}: choose other layers for {type(stage.pruner).__name__} or its method"
            )
        if stage.positions == "compact" and adapter.has_mrope():
            raise ValueError(
                f"{type(adapter).__name__} has M-RoPE, whose positions are places in a picture: use 'original' at "
                f"{stage.at!r}"
            )
        if stage.forget is not None and "sliding_attention" in (layer_types(adapter.decoder().config) or ()):
            raise ValueError(
                f"{type(adapter).__name__} has sliding windows, whose KV cache evicts by itself: leave out forget at "
                f"{stage.at!r}"
            )
        check_needs(stage.pruner.needs, depth, stage.layer)
    for stage in plan.before:
        check_needs(stage.pruner.needs, depth)


# options of generate that process the prompt twice or in chunks, or need a KV cache of equal length in all layers
_UNUSABLE_OPTIONS = {
    "use_cache": "the prompt would be processed again for every token: leave it on",
    "prefill_chunk_size": "stages prune complete prompts: leave it out",
    "prompt_lookup_num_tokens": "candidate tokens are processed several at a time: leave it out",
    "assistant_early_exit": "candidate tokens are processed several at a time: leave it out",
    "cache_implementation": "layers cache different numbers of tokens: use the dynamic cache",
    "past_key_values": "layers cache different numbers of tokens: give a DynamicCache",
}


def check_options(options: Mapping[str, Any], default: Any) -> None:
    """Raise ValueError for options of `generate` with which stages inside the language model cannot be run.

    Options count whether they are given by name, in a `generation_config`, or in the model's `default` one.
    """
    config = options.get("generation_config")
    for name, cure in _UNUSABLE_OPTIONS.items():
        candidates = (options.get(name), getattr(config, name, None), getattr(default, name, None))
        value = next((candidate for candidate in candidates if candidate is not None), None)
        match name:
            case "use_cache":
                unusable = value is False
            case "cache_implementation":
                unusable = value not in (None, "dynamic", "offloaded")
            case "past_key_values":
                unusable = value is not None and value.is_compileable
            case _:
                unusable = value is not None
        if unusable:
            raise ValueError(f"stages inside the language model cannot be run with {name}={value!r}: {cure}")
