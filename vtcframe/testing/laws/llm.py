"""The laws of stages inside a language model: keep all, removed = masked, batch independence, nothing left behind."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from vtcframe.adapters.base import Adapter, adapter_for
from vtcframe.core.budget import Budget
from vtcframe.core.stages import Plan, Stage, plan_from_stages
from vtcframe.hooks.llm import LlmStages
from vtcframe.inference.compressed import compress
from vtcframe.inference.session import PrunedGeneration, Session
from vtcframe.testing.laws.adapters import GREEDY, check_restored, inputs_for
from vtcframe.testing.laws.closeness import float64_throughout, relative_distance, relative_tolerance
from vtcframe.testing.tiny_models.llava_families import SAMPLES, Sample

_HIDDEN = torch.finfo(torch.float32).min


def check_llm_stages(
    model: Any,
    processor: Any,
    stages: Sequence[Stage],
    samples: Sequence[Sample] = SAMPLES["ragged several"],
    side: Literal["left", "right"] = "left",
    options: Mapping[str, Any] = GREEDY,
    tolerance: float | None = None,
) -> None:
    """Hold every law for `stages` (mergers left out) on one batch; `options` go to generate.

    See `check_adapter` for `tolerance` and the model's type.
    """
    inputs = inputs_for(model, processor, samples, side)
    model.generate(**inputs, max_new_tokens=1)  # transformers installs hooks of its own in a first forward
    adapter, plan = adapter_for(model, processor), plan_from_stages(stages)
    with float64_throughout(model), check_restored(model):
        _check_keep_all(adapter, inputs, plan, options)
        _check_removed_is_masked(
            adapter, inputs, plan, options, relative_tolerance(model.dtype) if tolerance is None else tolerance
        )
        _check_alone(model, processor, samples, side, plan, options)
        _check_raising(adapter, inputs, plan)


def prepare(adapter: Adapter, inputs: Mapping[str, Any], plan: Plan) -> PrunedGeneration:
    """Encode a batch, prune it before the language model, and splice."""
    session = Session(adapter, plan)
    arrangement = session.arrange(inputs)
    return session.prepare(inputs, arrangement, session.encode(inputs, arrangement))


def _check_keep_all(adapter: Adapter, inputs: Mapping[str, Any], plan: Plan, options: Mapping[str, Any]) -> None:
    """Stages that act and drop nothing change no bit."""
    whole = [replace(stage, budget=Budget(ratio=1.0)) for stage in plan.stages]
    passage = prepare(adapter, inputs, plan_from_stages(whole))
    plain = prepare(adapter, inputs, plan_from_stages(whole)).generate_kwargs
    want, got = _answered(adapter, plain, options), _answered(adapter, passage.generate_kwargs, options, passage)
    _hold(torch.equal(got.sequences, want.sequences), "keep all: stages that drop nothing change the answer")
    _hold(all(map(torch.equal, got.logits, want.logits)), "keep all: logits are not bit-equal")


def _check_removed_is_masked(
    adapter: Adapter, inputs: Mapping[str, Any], plan: Plan, options: Mapping[str, Any], tolerance: float
) -> None:
    """The pruned run equals one in which every layer still has all tokens and hides those that have left it."""
    passage = prepare(adapter, inputs, plan)
    got = _answered(adapter, passage.generate_kwargs, options, passage)
    read = passage.stages.tokens_per_layer
    _hold((read[:, -1] < read[:, 0]).any(), "the stages drop nothing of these samples")
    given = prepare(adapter, inputs, plan).generate_kwargs
    want = _answered(adapter, given, options, masked_layers(adapter, passage.stages))
    distance = max(relative_distance(a, b) for a, b in zip(got.logits, want.logits, strict=True))
    _hold(distance <= tolerance, f"removed = masked: logits are {distance:.1e} of the largest one apart")
    _hold(torch.equal(got.sequences, want.sequences), "removed = masked: the answer is another")


def _check_alone(
    model: Any,
    processor: Any,
    samples: Sequence[Sample],
    side: Literal["left", "right"],
    plan: Plan,
    options: Mapping[str, Any],
) -> None:
    """A sample keeps the same tokens in every layer and gives the same answer alone and in its batch."""
    compressed, inputs = compress(model, stages=plan.stages, processor=processor), None
    inputs = inputs_for(model, processor, samples, side)
    answer, together = _ids(compressed.generate(**inputs, **options)), compressed.last
    assert together is not None
    times, width = len(answer) // len(samples), inputs["input_ids"].shape[1]
    for p, sample in enumerate(samples):
        if not sample[1]:
            continue
        single = inputs_for(model, processor, [sample], side)
        own = _ids(compressed.generate(**single, **options))[:, single["input_ids"].shape[1] :]
        alone = compressed.last
        assert alone is not None
        assert alone.pruned is not None
        assert together.pruned is not None
        kept, want = together.pruned.sequence(p)[1], alone.pruned.sequence(0)[1]
        _hold(torch.equal(kept, want), f"sample {p} keeps other tokens in a batch")
        _hold(
            torch.equal(together.tokens_per_layer[p], alone.tokens_per_layer[0]),
            f"sample {p}: layers read other numbers of tokens",
        )
        _hold(together.kv_bytes[p] == alone.kv_bytes[0], f"sample {p}: the caches hold another number of bytes")
        mine = answer[p * times : (p + 1) * times, width : width + own.shape[1]]
        _hold(torch.equal(mine, own), f"sample {p} answers otherwise in a batch")


def _check_raising(adapter: Adapter, inputs: Mapping[str, Any], plan: Plan) -> None:
    """An exception in the midst of the layers comes through and leaves nothing behind (inside `check_restored`)."""

    def fail(*_: Any) -> None:
        raise RuntimeError("on purpose")

    passage = prepare(adapter, inputs, plan)
    hook = adapter.llm_layers()[-1].register_forward_pre_hook(fail)
    try:
        _answered(adapter, passage.generate_kwargs, {}, passage)
    except RuntimeError as error:
        _hold(str(error) == "on purpose", f"another error hid the first one: {error}")
    else:
        _hold(False, "an exception inside the language model was swallowed")
    finally:
        hook.remove()


@contextmanager
def masked_layers(adapter: Adapter, acted: LlmStages) -> Iterator[None]:
    """Run prompts as `acted` was given them whole, each layer hiding from its queries what had left it there.

    Nothing is removed. Where a stage numbered anew the tokens left get those numbers. Written apart from LlmStages.
    """
    decoder: Any = adapter.decoder()
    whole, steps = acted.segments[0].column, 0

    def before(i: int, module: Any, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        hidden, changed = args[0] if args else kwargs["hidden_states"], dict(kwargs)
        held = _among(whole, acted.segments[acted.segment_cached(i) if steps else acted.segment_read(i)].column)
        held = held.repeat_interleave(len(hidden) // len(held), 0)
        held = torch.cat([held, torch.ones(len(hidden), steps, dtype=torch.bool)], 1)
        changed["attention_mask"] = _hiding(changed.get("attention_mask"), held, hidden, decoder.config)
        numbered = [n for n, at in enumerate(acted.stages, 1) if at <= i and acted.stages[at].positions == "compact"]
        if numbered:
            own = _among(whole, acted.segments[numbered[-1]].column)
            own = torch.cat([own, torch.ones(len(own), steps, dtype=torch.bool)], 1).repeat_interleave(
                len(hidden) // len(own), 0
            )
            number = (own.cumsum(1) - 1).clamp(min=0)[:, -hidden.shape[1] :]
            kinds = getattr(decoder.config, "layer_types", None)
            by_kind = isinstance(getattr(decoder.rotary_emb, "layer_types", None), list)
            extra = [kinds[i]] if by_kind and kinds else []
            changed["position_embeddings"] = decoder.rotary_emb(hidden, number, *extra)
        return args, changed

    def count(*_: Any) -> None:
        nonlocal steps
        steps += 1

    hooks = [
        layer.register_forward_pre_hook(partial(before, i), with_kwargs=True)
        for i, layer in enumerate(adapter.llm_layers())
    ]
    hooks.append(decoder.register_forward_hook(count))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _among(whole: Tensor, left: Tensor) -> Tensor:
    """[P, L] columns, [P, M] columns -> [P, L] bool: which of them are left."""
    return torch.stack([torch.isin(w, kept[kept >= 0]) for w, kept in zip(whole, left, strict=True)])


def _hiding(mask: Tensor | None, held: Tensor, hidden: Tensor, config: Any) -> Tensor:
    """Return a layer's own mask with the keys hidden that are not held [B, K]; a token always sees itself."""
    count, length = hidden.shape[1], held.shape[1]
    if "flash" in config._attn_implementation:
        return held if mask is None else held & mask[:, -length:].bool()
    if mask is None:
        seen = torch.ones(count, length, dtype=torch.bool).tril(length - count)[None, None]
    else:
        seen = mask[..., :length] if mask.dtype == torch.bool else mask[..., :length] > _HIDDEN / 2
    own = torch.eye(length, dtype=torch.bool)[-count:]
    seen = (seen & held[:, None, None]) | own
    return seen if config._attn_implementation == "sdpa" else torch.zeros(seen.shape).masked_fill(~seen, _HIDDEN)


def _answered(adapter: Adapter, given: Mapping[str, Any], options: Mapping[str, Any], around: Any = None) -> Any:
    more: dict[str, Any] = {"return_dict_in_generate": True, "output_logits": True}
    with around or nullcontext():
        return adapter.model.generate(**given, **{"max_new_tokens": 2, **options, **more})


def _ids(out: Any) -> Tensor:
    return out if isinstance(out, Tensor) else out.sequences


def _hold(law: object, broken: str) -> None:
    if not law:
        raise AssertionError(broken)
