"""Whether an adapter can run a plan, and with which options of `generate`."""

from collections.abc import Mapping
from typing import Any

from vtcframe.adapters.base import Adapter
from vtcframe.core.stages import Plan
from vtcframe.hooks.llm_reading import check_needs
from vtcframe.hooks.llm_segment import layer_types


def check_sites(adapter: Adapter, plan: Plan) -> None:
    """Raise ValueError where an adapter's encoder or language model cannot run a plan's stages."""
    reason = adapter.no_encoder_stages_because
    if plan.encoder and reason:
        raise ValueError(
            f"{type(adapter).__name__} cannot be pruned at {plan.encoder[0].at}: {reason}. Use stages at 'projector'"
        )
    check_plan(adapter, plan)


def check_plan(adapter: Adapter, plan: Plan) -> None:
    """Raise ValueError where the language model of an adapter cannot run a plan's stages or serve their needs."""
    depth, first = len(adapter.llm_layers()), adapter.llm_first()
    for stage in plan.llm:
        if not first <= stage.layer < depth:
            raise ValueError(
                f"{type(adapter).__name__} can be pruned before layers {first} to {depth - 1} of its language model, "
                f"not at {stage.at!r}: give {type(stage.pruner).__name__} or the method it is of other layers"
            )
        if stage.positions == "compact" and adapter.has_mrope():
            raise ValueError(
                f"{type(adapter).__name__} has M-RoPE, whose positions say where in a picture: use 'original' at "
                f"{stage.at!r}"
            )
        if stage.forget is not None and "sliding_attention" in (layer_types(adapter.decoder().config) or ()):
            raise ValueError(f"caches of sliding windows forget by themselves: leave forget out at {stage.at!r}")
        check_needs(stage.pruner.needs, depth, stage.layer)
    for stage in plan.before:
        check_needs(stage.pruner.needs, depth)


# options of generate under which prompts are read twice, in pieces, or into a cache with one length for all layers
_UNUSABLE_OPTIONS = {
    "use_cache": "the prompt would be read anew for every token: leave it on",
    "prefill_chunk_size": "whole prompts are judged: leave it out",
    "prompt_lookup_num_tokens": "guesses are read several at a time: leave it out",
    "assistant_early_exit": "guesses are read several at a time: leave it out",
    "cache_implementation": "layers hold different numbers of tokens: use the dynamic cache",
    "past_key_values": "layers hold different numbers of tokens: give a DynamicCache",
}


def check_options(options: Mapping[str, Any], default: Any) -> None:
    """Raise ValueError for options of `generate`, by name or in a `generation_config`, that stages cannot be run with."""
    config = options.get("generation_config")
    for name, cure in _UNUSABLE_OPTIONS.items():
        candidates = (options.get(name), getattr(config, name, None), getattr(default, name, None))
        value = next((candidate for candidate in candidates if candidate is not None), None)
        match name:
            case "use_cache":
                broken = value is False
            case "cache_implementation":
                broken = value not in (None, "dynamic", "offloaded")
            case "past_key_values":
                broken = value is not None and value.is_compileable
            case _:
                broken = value is not None
        if broken:
            raise ValueError(f"stages inside the language model cannot be run with {name}={value!r}: {cure}")
