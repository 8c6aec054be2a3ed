"""Laws of stages inside a language model: keep all, removed = masked, batch independence, restored model."""

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
    """Check every law for `stages` (without mergers) on a batch; `options` are passed to `generate`.

    See `check_adapter` for `tolerance` and the type of the model. AssertionError if a law is broken.
    """
    inputs = inputs_for(model, processor, samples, side)
    model.generate(**inputs, max_new_tokens=1)  # transformers installs its own hooks in the first forward
    adapter = adapter_for(model, processor)
    plan = plan_from_stages(stages)
    with float64_throughout(model), check_restored(model):
        _check_keep_all(adapter, inputs, plan, options)
        _check_removed_is_masked(
            adapter, inputs, plan, options, relative_tolerance(model.dtype) if tolerance is None else tolerance
        )
        _check_alone(model, processor, samples, side, plan, options)
        _check_raising(adapter, inputs, plan)


def prepare(adapter: Adapter, inputs: Mapping[str, Any], plan: Plan) -> PrunedGeneration:
    """Encode a batch, prune it before the language model, and splice it."""
    session = Session(adapter, plan)
    arrangement = session.arrange(inputs)
    return session.prepare(inputs, arrangement, session.encode(inputs, arrangement))


def _check_keep_all(adapter: Adapter, inputs: Mapping[str, Any], plan: Plan, options: Mapping[str, Any]) -> None:
    """Check that stages that drop nothing change no bit."""
    keeping = [replace(stage, budget=Budget(ratio=1.0)) for stage in plan.stages]
    prepared = prepare(adapter, inputs, plan_from_stages(keeping))
    plain = prepare(adapter, inputs, plan_from_stages(keeping)).generate_kwargs
    want = _generate(adapter, plain, options)
    got = _generate(adapter, prepared.generate_kwargs, options, prepared)
    _hold(torch.equal(got.sequences, want.sequences), "keep all: stages that drop nothing change the answer")
    _hold(all(map(torch.equal, got.logits, want.logits)), "keep all: logits are not bit-equal")


def _check_removed_is_masked(
    adapter: Adapter, inputs: Mapping[str, Any], plan: Plan, options: Mapping[str, Any], tolerance: float
) -> None:
    """Check that the pruned run equals a run in which every layer has all tokens and masks those dropped before it."""
    prepared = prepare(adapter, inputs, plan)
    got = _generate(adapter, prepared.generate_kwargs, options, prepared)
    tokens = prepared.stages.tokens_per_layer
    _hold((tokens[:, -1] < tokens[:, 0]).any(), "the stages drop nothing of these samples")
    plain = prepare(adapter, inputs, plan).generate_kwargs
    want = _generate(adapter, plain, options, masked_layers(adapter, prepared.stages))
    distance = max(relative_distance(a, b) for a, b in zip(got.logits, want.logits, strict=True))
    _hold(distance <= tolerance, f"removed = masked: logits differ by {distance:.1e} of the largest logit")
    _hold(torch.equal(got.sequences, want.sequences), "removed = masked: the answer is different")


def _check_alone(
    model: Any,
    processor: Any,
    samples: Sequence[Sample],
    side: Literal["left", "right"],
    plan: Plan,
    options: Mapping[str, Any],
) -> None:
    """Check that a sample keeps the same tokens in every layer and has the same answer alone and in a batch."""
    compressed = compress(model, stages=plan.stages, processor=processor)
    inputs = inputs_for(model, processor, samples, side)
    answer = _ids(compressed.generate(**inputs, **options))
    together = compressed.last
    assert together is not None
    times = len(answer) // len(samples)
    width = inputs["input_ids"].shape[1]
    for p, sample in enumerate(samples):
        if not sample[1]:
            continue
        single = inputs_for(model, processor, [sample], side)
        answer_alone = _ids(compressed.generate(**single, **options))[:, single["input_ids"].shape[1] :]
        alone = compressed.last
        assert alone is not None
        assert alone.pruned is not None
        assert together.pruned is not None
        same = torch.equal(together.pruned.sequence(p)[1], alone.pruned.sequence(0)[1])
        _hold(same, f"sample {p} keeps other tokens in a batch")
        _hold(
            torch.equal(together.tokens_per_layer[p], alone.tokens_per_layer[0]),
            f"sample {p}: layers process other numbers of tokens in a batch",
        )
        _hold(
            together.kv_bytes[p] == alone.kv_bytes[0],
            f"sample {p}: the KV cache has another number of bytes in a batch",
        )
        in_batch = answer[p * times : (p + 1) * times, width : width + answer_alone.shape[1]]
        _hold(torch.equal(in_batch, answer_alone), f"sample {p} has another answer in a batch")


def _check_raising(adapter: Adapter, inputs: Mapping[str, Any], plan: Plan) -> None:
    """Check that an exception inside the layers is raised; call it inside `check_restored`."""

    def fail(*_: Any) -> None:
        raise RuntimeError("on purpose")

    prepared = prepare(adapter, inputs, plan)
    hook = adapter.llm_layers()[-1].register_forward_pre_hook(fail)
    try:
        _generate(adapter, prepared.generate_kwargs, {}, prepared)
    except RuntimeError as error:
        _hold(str(error) == "on purpose", f"the exception was replaced by another one: {error}")
    else:
        _hold(False, "an exception inside the language model was swallowed")
    finally:
        hook.remove()


@contextmanager
def masked_layers(adapter: Adapter, reference: LlmStages) -> Iterator[None]:
    """Run complete prompts, and mask in each layer the tokens that `reference` had dropped before it.

    No token is removed. After a stage with compact positions the remaining tokens get compact positions. The code is
    independent of `LlmStages`.
    """
    decoder: Any = adapter.decoder()
    columns = reference.segments[0].column
    steps = 0

    def before(i: int, module: Any, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        hidden = args[0] if args else kwargs["hidden_states"]
        changed = dict(kwargs)
        segment = reference.segment_cached(i) if steps else reference.segment_at(i)
        kept = _is_kept(columns, reference.segments[segment].column)
        kept = kept.repeat_interleave(len(hidden) // len(kept), 0)
        kept = torch.cat([kept, torch.ones(len(hidden), steps, dtype=torch.bool)], 1)
        changed["attention_mask"] = _hiding_mask(changed.get("attention_mask"), kept, hidden, decoder.config)
        stages = reference.stages
        compact = [n for n, at in enumerate(stages, 1) if at <= i and stages[at].positions == "compact"]
        if compact:
            counted = _is_kept(columns, reference.segments[compact[-1]].column)
            counted = torch.cat([counted, torch.ones(len(counted), steps, dtype=torch.bool)], 1)
            counted = counted.repeat_interleave(len(hidden) // len(counted), 0)
            number = (counted.cumsum(1) - 1).clamp(min=0)[:, -hidden.shape[1] :]
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


def _is_kept(columns: Tensor, kept: Tensor) -> Tensor:
    """[P, L] columns, [P, M] kept columns, -1 = padding -> [P, L] bool: whether each column is kept."""
    return torch.stack([torch.isin(row, row_kept[row_kept >= 0]) for row, row_kept in zip(columns, kept, strict=True)])


def _hiding_mask(mask: Tensor | None, kept: Tensor, hidden: Tensor, config: Any) -> Tensor:
    """Return the mask of a layer with keys masked that are not kept [B, K]; a token always attends to itself."""
    count = hidden.shape[1]
    length = kept.shape[1]
    if "flash" in config._attn_implementation:
        return kept if mask is None else kept & mask[:, -length:].bool()
    if mask is None:
        visible = torch.ones(count, length, dtype=torch.bool).tril(length - count)[None, None]
    else:
        visible = mask[..., :length] if mask.dtype == torch.bool else mask[..., :length] > _HIDDEN / 2
    itself = torch.eye(length, dtype=torch.bool)[-count:]
    visible = (visible & kept[:, None, None]) | itself
    if config._attn_implementation == "sdpa":
        return visible
    return torch.zeros(visible.shape).masked_fill(~visible, _HIDDEN)


def _generate(
    adapter: Adapter, generate_kwargs: Mapping[str, Any], options: Mapping[str, Any], context: Any = None
) -> Any:
    """Generate inside a context, by default none; return a ModelOutput with logits."""
    output: dict[str, Any] = {"return_dict_in_generate": True, "output_logits": True}
    with context or nullcontext():
        return adapter.model.generate(**generate_kwargs, **{"max_new_tokens": 2, **options, **output})


def _ids(out: Any) -> Tensor:
    return out if isinstance(out, Tensor) else out.sequences


def _hold(law: object, message: str) -> None:
    if not law:
        raise AssertionError(message)
