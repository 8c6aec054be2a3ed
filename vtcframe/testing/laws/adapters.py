"""The laws of adapters, on a model: keep all, removed = masked, batch independence, nothing left behind."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from vtcframe.adapters.base import Adapter, adapter_for
from vtcframe.core.budget import Budget
from vtcframe.core.evidence import Evidence
from vtcframe.core.pruned import Pruned
from vtcframe.core.stages import Pruner, Stage
from vtcframe.inference.compressed import compress
from vtcframe.methods.baselines import RandomPruner
from vtcframe.testing.laws.closeness import float64_throughout, relative_distance, relative_tolerance
from vtcframe.testing.tiny_models.llava_families import SAMPLES, Sample, make_inputs

Positions = Literal["original", "compact"]
GREEDY = {"do_sample": False, "max_new_tokens": 6}


def check_adapter(
    model: Any,
    processor: Any,
    samples: Sequence[Sample] = SAMPLES["ragged several"],
    pruners: Sequence[Pruner] = (RandomPruner(),),
    budget: Budget = Budget(tokens=5),
    positions: Positions = "original",
    side: Literal["left", "right"] = "left",
    options: Mapping[str, Any] = GREEDY,
    tolerance: float | None = None,
) -> None:
    """Hold every law on one batch of `samples` (text with `<image>`, pictures); `options` go to generate.

    Logits at real tokens that a law says are equal may be `tolerance` of the largest one apart; unless given, it
    follows from the model's type. Give a tiny model in float64 (`model.double()`): transformers then computes in
    float64 throughout, and it is 1e-9, in float32 1e-4. See `vtcframe.testing.laws.closeness` for what was measured.

    `budget` must drop something of the batch.
    """
    inputs = inputs_for(model, processor, samples, side)
    model.generate(**inputs, max_new_tokens=1)  # transformers installs hooks of its own in a first forward
    with float64_throughout(model), check_restored(model):
        check_keep_all(model, inputs, pruners[0], positions, options)
        check_raising(model, inputs)
        for pruner in pruners:
            check_removed_is_masked(model, inputs, pruner, budget, positions, options, tolerance)
            check_alone(model, processor, samples, side, pruner, budget, positions, options, tolerance)


def check_keep_all(
    model: Any, inputs: Mapping[str, Any], pruner: Pruner, positions: Positions, options: Mapping[str, Any]
) -> None:
    """A budget that covers all gives the untouched answer; so does splicing everything, with bit-equal logits."""
    want = _ids(model.generate(**inputs, **options))
    stage = Stage("projector", pruner, Budget(ratio=1.0), positions=positions)
    got = _ids(compress(model, stages=[stage]).generate(**inputs, **options))
    _hold(torch.equal(got, want), "keep all: compress answers otherwise than the untouched model")
    adapter = adapter_for(model)
    evidence = adapter.observe(inputs, pruner.needs)
    pruned = pruner(evidence, Budget(ratio=1.0))
    left = left_padded(model, inputs)
    spliced = adapter.splice(inputs, evidence, pruned, positions)
    for name in ("input_ids", "attention_mask", "position_ids"):
        _hold(torch.equal(spliced[name], left[name]), f"keep all: splice changed {name}")
    real = left["attention_mask"].bool()
    same = torch.equal(_logits(model, spliced)[real], _logits(model, left)[real])
    _hold(same, "keep all: spliced logits are not bit-equal")
    spliced = adapter.splice(inputs, evidence, pruned, positions)
    same = torch.equal(_ids(model.generate(**spliced, **options)), _ids(model.generate(**left, **options)))
    _hold(same, "keep all: the spliced answer is another")


def check_removed_is_masked(
    model: Any,
    inputs: Mapping[str, Any],
    pruner: Pruner,
    budget: Budget,
    positions: Positions,
    options: Mapping[str, Any],
    tolerance: float | None = None,
) -> None:
    """The pruned run equals the full run in which dropped tokens are masked out of attention, up to `tolerance`.

    With compact positions the full run gets the new numbers. The caller's prompt stands in front of the answer.
    """
    adapter = adapter_for(model)
    evidence = adapter.observe(inputs, pruner.needs)
    pruned = pruner(evidence, budget)
    reference = masked(adapter, inputs, evidence, pruned, positions)
    kept = reference["attention_mask"].bool()
    _hold((kept.sum(1) < inputs["attention_mask"].sum(1)).any(), f"{budget} drops nothing of these samples")
    spliced = adapter.splice(inputs, evidence, pruned, positions)
    _hold(
        torch.equal(spliced["attention_mask"].sum(1), kept.sum(1)), "removed = masked: another number of tokens is left"
    )
    want, got = _logits(model, reference), _logits(model, spliced)
    tolerance = relative_tolerance(model.dtype) if tolerance is None else tolerance
    distance = relative_distance(got[spliced["attention_mask"].bool()], want[kept])
    _hold(distance <= tolerance, f"removed = masked: logits are {distance:.1e} of the largest one apart")
    stage = Stage("projector", pruner, budget, positions=positions)
    answer = _ids(compress(model, stages=[stage]).generate(**inputs, **options))
    width = inputs["input_ids"].shape[1]
    want = _ids(model.generate(**reference, **options))[:, width:]
    _hold(torch.equal(answer[:, width:], want), "removed = masked: the answer is another")
    times = len(answer) // len(inputs["input_ids"])
    prompt = inputs["input_ids"].repeat_interleave(times, 0)
    _hold(torch.equal(answer[:, :width], prompt), "the caller's prompt does not stand in front of the answer")


def check_alone(
    model: Any,
    processor: Any,
    samples: Sequence[Sample],
    side: Literal["left", "right"],
    pruner: Pruner,
    budget: Budget,
    positions: Positions,
    options: Mapping[str, Any],
    tolerance: float | None = None,
) -> None:
    """A sample keeps the same tokens and gives the same logits, up to `tolerance`, and answer alone and in a batch."""
    tolerance = relative_tolerance(model.dtype) if tolerance is None else tolerance
    adapter, inputs = adapter_for(model), inputs_for(model, processor, samples, side)
    evidence = adapter.observe(inputs, pruner.needs)
    pruned = pruner(evidence, budget)
    spliced = adapter.splice(inputs, evidence, pruned, positions)
    logits = _logits(model, spliced)
    stage = Stage("projector", pruner, budget, positions=positions)
    compressed = compress(model, stages=[stage])
    answer = _ids(compressed.generate(**inputs, **options))[:, inputs["input_ids"].shape[1] :]
    for p, sample in enumerate(samples):
        single = inputs_for(model, processor, [sample], side)
        if not sample[1]:
            distance = relative_distance(logits[p, -1], _logits(model, single)[0, -1])
            _hold(
                distance <= tolerance,
                f"sample {p} without a picture: logits are {distance:.1e} of the largest one apart in a batch",
            )
            continue
        own = pruner(adapter.observe(single, pruner.needs), budget)
        _hold(torch.equal(own.sequence(0)[1], pruned.sequence(p)[1]), f"sample {p} keeps other tokens in a batch")
        one = adapter.splice(single, adapter.observe(single, pruner.needs), own, positions)
        distance = relative_distance(logits[p, -1], _logits(model, one)[0, -1])
        _hold(distance <= tolerance, f"sample {p}: logits are {distance:.1e} of the largest one apart in a batch")
        alone = _ids(compressed.generate(**single, **options))[:, single["input_ids"].shape[1] :]
        times = len(answer) // len(samples)
        mine = answer[p * times : (p + 1) * times, : alone.shape[1]]
        _hold(torch.equal(mine, alone), f"sample {p} answers otherwise in a batch")


def check_raising(model: Any, inputs: Mapping[str, Any]) -> None:
    """An exception in the midst of observing comes through and leaves nothing behind (inside `check_restored`)."""
    adapter, calls, last = adapter_for(model), 0, 0

    def fail(*_: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == last:
            raise RuntimeError("on purpose")

    hook = register_module_forward_pre_hook(fail)  # of every module: which ones an adapter runs is its own affair
    try:
        adapter.observe(inputs)
        _hold(calls > 0, "no module was run under observation")
        calls, last = 0, max(1, calls // 2)
        adapter.observe(inputs)
    except RuntimeError as error:
        _hold(str(error) == "on purpose", f"another error hid the first one: {error}")
    else:
        _hold(False, "an exception under observation was swallowed")
    finally:
        hook.remove()


@contextmanager
def check_restored(model: nn.Module) -> Iterator[None]:
    """Hold that hooks, blocks, kernels and the attention registry are after the `with` what they were before.

    The model must have run once: transformers installs hooks of its own in its first forward.
    """
    before = _state(model)
    try:
        yield
    finally:
        after = _state(model)
    for name, value in before.items():
        _hold(after[name] == value, f"{name} was not restored")


def _state(model: nn.Module) -> dict[str, object]:
    modules = dict(model.named_modules(remove_duplicate=False))
    return {
        "the module tree": [(name, id(module)) for name, module in modules.items()],
        "a hook": [
            (n, k, list(v)) for n, m in modules.items() for k, v in vars(m).items() if k.endswith("_hooks") and v
        ],
        "an overridden method": [(n, k) for n, m in modules.items() for k, v in vars(m).items() if callable(v)],
        "an attention implementation": [
            (n, m.config._attn_implementation)  # pyright: ignore[reportAttributeAccessIssue]
            for n, m in modules.items()
            if hasattr(getattr(m, "config", None), "_attn_implementation")
        ],
        "a torch function mode": torch.overrides._get_current_function_mode_stack(),
        "the attention registry": {name: id(f) for name, f in ALL_ATTENTION_FUNCTIONS.items()},
    }


def inputs_for(
    model: Any, processor: Any, samples: Sequence[Sample], side: Literal["left", "right"] = "left"
) -> dict[str, Any]:
    """Return what `make_inputs` does, on the model's device, pixels in its dtype."""
    inputs = make_inputs(processor, samples, side)
    return {k: v.to(model.device, model.dtype if v.is_floating_point() else None) for k, v in inputs.items()}


def left_padded(model: Any, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the same batch padded on the left, with the positions that generate would use."""
    mask = inputs["attention_mask"].bool()

    def left(values: Tensor) -> Tensor:
        rows = [row[real] for row, real in zip(values, mask, strict=True)]
        return torch.stack([torch.cat([row.new_zeros(mask.shape[1] - len(row)), row]) for row in rows])

    alike = {k: v for k, v in inputs.items() if isinstance(v, Tensor) and v.shape == mask.shape}
    full = {**inputs, **{k: left(v) for k, v in alike.items()}}
    text = left(mask.cumsum(1) - 1)
    if not hasattr(model.base_model, "get_rope_index"):
        return full | {"position_ids": text}
    names = ("image_grid_thw", "video_grid_thw", "second_per_grid_ts", "mm_token_type_ids")
    grids = {name: full[name] for name in names if name in full}
    axes, _ = model.base_model.get_rope_index(full["input_ids"], attention_mask=full["attention_mask"], **grids)
    return full | {"position_ids": torch.cat([text[None], axes])}


def masked(
    adapter: Adapter, inputs: Mapping[str, Any], evidence: Evidence, pruned: Pruned, positions: Positions
) -> dict[str, Any]:
    """Return the full, left-padded batch with the dropped tokens masked out: what pruning must be equal to.

    Written token by token, apart from splice's own code.
    """
    full = left_padded(adapter.model, inputs)
    placeholders = [getattr(adapter.model.config, f"{modality}_token_id") for modality in adapter.modalities]
    extra = evidence.structural
    for p, ids in enumerate(full["input_ids"]):
        begin = int((full["attention_mask"][p] == 0).sum())
        kept = set(pruned.sequence(p)[1].tolist())
        candidates = set(evidence.layout.column[evidence.layout.sample == p].flatten().tolist())
        served = {}
        if extra is not None:
            for u in (extra.sample == p).nonzero()[:, 0].tolist():
                served[int(extra.column[u])] = range(int(extra.first[u]), int(extra.last[u]) + 1)
        for at, token in enumerate(ids.tolist()):
            if token not in placeholders:
                continue
            column = at - begin
            stays = column in kept if column in candidates else not served[column] or kept & set(served[column])
            full["attention_mask"][p, at] = int(bool(stays))
    text = (full["attention_mask"].cumsum(1) - 1).clamp(min=0)
    if full["position_ids"].ndim == 3:
        full["position_ids"][0] = text  # a place in the text, by which causality is told, no rotary position
    elif positions == "compact":
        full["position_ids"] = text
    return full


def _logits(model: Any, inputs: Mapping[str, Any]) -> Tensor:
    with torch.no_grad():
        return model(**inputs, use_cache=False).logits


def _ids(out: Any) -> Tensor:
    return out if isinstance(out, Tensor) else out.sequences


def _hold(law: object, broken: str) -> None:
    if not law:
        raise AssertionError(broken)
