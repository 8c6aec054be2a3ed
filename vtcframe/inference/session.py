"""The way of a batch through a plan: stages in the encoder, at the projector, and inside the language model."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from vtcframe.core.evidence import Evidence
from vtcframe.core.needs import Need
from vtcframe.core.pruned import Pruned
from vtcframe.core.stages import Plan
from vtcframe.hooks.llm import LlmStages
from vtcframe.hooks.llm_needs import check_needs
from vtcframe.hooks.llm_segment import layer_types
from vtcframe.ops.compose import compose_prunings, keep_all


def check_sites(adapter: Any, plan: Plan) -> None:
    """ValueError where a plan has stages that an adapter's encoder or language model has no place for."""
    reason = getattr(adapter, "no_encoder_stages_because", "it has no encoder whose blocks are known")
    if plan.encoder and reason:
        raise ValueError(
            f"{type(adapter).__name__} cannot be pruned at {plan.encoder[0].at}: {reason}. Use stages at 'projector'"
        )
    check_plan(adapter, plan)


def encode(
    adapter: Any, inputs: Mapping[str, Any], arrangement: Any, plan: Plan, needs: Iterable[Need]
) -> tuple[Evidence, Pruned | None]:
    """Encode with a plan's stages inside the encoder: evidence of what is left, and the same by the first layout."""
    if plan.encoder:
        return adapter.encode_with_stages(inputs, arrangement, needs, plan.encoder)
    return adapter.encode(inputs, arrangement, needs), None


def prune(plan: Plan, evidence: Evidence, left: Pruned | None) -> tuple[Pruned, Evidence]:
    """Act before the language model on what `encode` returned.

    Return what it is to read, by the first layout, and what a stage inside it still knows of that.
    """
    if plan.projector is None:
        return left or keep_all(evidence), evidence
    pruned = plan.projector.act(evidence)
    if not plan.llm:
        evidence = replace(evidence, found={}, deepstack=None)  # nobody will ask
    return pruned if left is None else compose_prunings(left, pruned), evidence.after(pruned)


class PrunedGeneration:
    """A batch in front of the language model: `given` is what `generate` takes, to be called inside a `with`.

    `read` and `known` are what `prune` made of `evidence`. Make a new one for every call: `generate` changes what it
    is given.
    """

    def __init__(
        self, adapter: Any, inputs: Mapping[str, Any], plan: Plan, evidence: Evidence, read: Pruned, known: Evidence
    ) -> None:
        self._read = read
        self.generate_kwargs, column = adapter.splice_with_columns(inputs, evidence, read, plan.positions)
        self.stages = LlmStages(adapter.decoder(), known, column, plan.llm, (), adapter.blocks(self.generate_kwargs))

    def __enter__(self) -> "PrunedGeneration":
        self.stages.__enter__()
        return self

    def __exit__(self, *exception: Any) -> None:
        self.stages.__exit__(*exception)

    @property
    def pruned(self) -> Pruned:
        """What is left in the end, by the layout that the encoder saw; behind the `with`."""
        return compose_prunings(self._read, self.stages.pruned) if self.stages.stages else self._read


def check_plan(adapter: Any, plan: Plan) -> None:
    """ValueError where a plan's stages in the language model, or what they ask of it, cannot be had of an adapter."""
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
_REFUSED = {
    "use_cache": "the prompt would be read anew for every token: leave it on",
    "prefill_chunk_size": "whole prompts are judged: leave it out",
    "prompt_lookup_num_tokens": "guesses are read several at a time: leave it out",
    "assistant_early_exit": "guesses are read several at a time: leave it out",
    "cache_implementation": "layers hold different numbers of tokens: use the dynamic cache",
    "past_key_values": "layers hold different numbers of tokens: give a DynamicCache",
}


def check_options(options: Mapping[str, Any], default: Any) -> None:
    """ValueError for options of `generate`, by name or in a `generation_config`, that stages cannot live with."""
    config = options.get("generation_config")
    for name, cure in _REFUSED.items():
        said = (options.get(name), getattr(config, name, None), getattr(default, name, None))
        given = next((value for value in said if value is not None), None)
        match name:
            case "use_cache":
                broken = given is False
            case "cache_implementation":
                broken = given not in (None, "dynamic", "offloaded")
            case "past_key_values":
                broken = given is not None and given.is_compileable
            case _:
                broken = given is not None
        if broken:
            raise ValueError(f"stages inside the language model cannot be run with {name}={given!r}: {cure}")
