"""Laws of adapters, checked on a model: keep all, removed = masked, batch independence, restored model."""

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
    """Check every law on a batch of `samples` (text with `<image>`, pictures). AssertionError if one is broken.

    `budget` must drop some tokens of the batch; `options` are passed to `generate`. Logits at real tokens that must be
    equal by a law may differ by `tolerance` of the largest logit (default: by the type of the model, 1e-9 in float64
    and 1e-4 in float32). Give a tiny model in float64 (`model.double()`), for which transformers computes in float64
    throughout. See `vtcframe.testing.laws.closeness` for measurements.
    """
    inputs = inputs_for(model, processor, samples, side)
    model.generate(**inputs, max_new_tokens=1)  # transformers installs its own hooks in the first forward
    with float64_throughout(model), check_restored(model):
        check_keep_all(model, inputs, pruners[0], positions, options)
        check_raising(model, inputs)
        for pruner in pruners:
            check_removed_is_masked(model, inputs, pruner, budget, positions, options, tolerance)
            check_alone(model, processor, samples, side, pruner, budget, positions, options, tolerance)


def check_keep_all(
    model: Any, inputs: Mapping[str, Any], pruner: Pruner, positions: Positions, options: Mapping[str, Any]
) -> None:
    """Check that a budget for all tokens gives the untouched answer, and that splicing gives bit-equal logits."""
    want = _ids(model.generate(**inputs, **options))
    stage = Stage("projector", pruner, Budget(ratio=1.0), positions=positions)
    got = _ids(compress(model, stages=[stage]).generate(**inputs, **options))
    _hold(torch.equal(got, want), "keep all: compress and the untouched model give different answers")
    adapter = adapter_for(model)
    evidence = adapter.observe(inputs, pruner.needs)
    pruned = pruner(evidence, Budget(ratio=1.0))
    padded = left_padded(model, inputs)
    spliced = adapter.splice(inputs, evidence, pruned, positions)
    for name in ("input_ids", "attention_mask", "position_ids"):
        _hold(torch.equal(spliced[name], padded[name]), f"keep all: splice changed {name}")
    real = padded["attention_mask"].bool()
    same = torch.equal(_logits(model, spliced)[real], _logits(model, padded)[real])
    _hold(same, "keep all: spliced logits are not bit-equal")
    spliced = adapter.splice(inputs, evidence, pruned, positions)
    same = torch.equal(_ids(model.generate(**spliced, **options)), _ids(model.generate(**padded, **options)))
    _hold(same, "keep all: the spliced answer is different")


def check_removed_is_masked(
    model: Any,
    inputs: Mapping[str, Any],
    pruner: Pruner,
    budget: Budget,
    positions: Positions,
    options: Mapping[str, Any],
    tolerance: float | None = None,
) -> None:
    """Check that the pruned run equals the full run with dropped tokens masked in attention, up to `tolerance`.

    With compact positions the full run gets the compact positions. The answer must start with the original prompt.
    """
    adapter = adapter_for(model)
    evidence = adapter.observe(inputs, pruner.needs)
    pruned = pruner(evidence, budget)
    reference = masked(adapter, inputs, evidence, pruned, positions)
    kept = reference["attention_mask"].bool()
    _hold((kept.sum(1) < inputs["attention_mask"].sum(1)).any(), f"{budget} drops nothing of these samples")
    spliced = adapter.splice(inputs, evidence, pruned, positions)
    _hold(
        torch.equal(spliced["attention_mask"].sum(1), kept.sum(1)),
        "removed = masked: the number of tokens is different",
    )
    want, got = _logits(model, reference), _logits(model, spliced)
    tolerance = relative_tolerance(model.dtype) if tolerance is None else tolerance
    distance = relative_distance(got[spliced["attention_mask"].bool()], want[kept])
    _hold(distance <= tolerance, f"removed = masked: logits differ by {distance:.1e} of the largest logit")
    stage = Stage("projector", pruner, budget, positions=positions)
    answer = _ids(compress(model, stages=[stage]).generate(**inputs, **options))
    width = inputs["input_ids"].shape[1]
    want = _ids(model.generate(**reference, **options))[:, width:]
    _hold(torch.equal(answer[:, width:], want), "removed = masked: the answer is different")
    times = len(answer) // len(inputs["input_ids"])
    prompt = inputs["input_ids"].repeat_interleave(times, 0)
    _hold(torch.equal(answer[:, :width], prompt), "the answer does not start with the original prompt")


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
    """Check that a sample keeps the same tokens, logits (up to `tolerance`) and answer alone and in a batch."""
    tolerance = relative_tolerance(model.dtype) if tolerance is None else tolerance
    adapter = adapter_for(model)
    inputs = inputs_for(model, processor, samples, side)
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
                f"sample {p} without a picture: logits differ by {distance:.1e} of the largest logit in a batch",
            )
            continue
        pruned_alone = pruner(adapter.observe(single, pruner.needs), budget)
        same = torch.equal(pruned_alone.sequence(0)[1], pruned.sequence(p)[1])
        _hold(same, f"sample {p} keeps other tokens in a batch")
        spliced_alone = adapter.splice(single, adapter.observe(single, pruner.needs), pruned_alone, positions)
        distance = relative_distance(logits[p, -1], _logits(model, spliced_alone)[0, -1])
        _hold(distance <= tolerance, f"sample {p}: logits differ by {distance:.1e} of the largest logit in a batch")
        alone = _ids(compressed.generate(**single, **options))[:, single["input_ids"].shape[1] :]
        times = len(answer) // len(samples)
        in_batch = answer[p * times : (p + 1) * times, : alone.shape[1]]
        _hold(torch.equal(in_batch, alone), f"sample {p} has another answer in a batch")


def check_raising(model: Any, inputs: Mapping[str, Any]) -> None:
    """Check that an exception during `observe` is raised; call it inside `check_restored`."""
    adapter = adapter_for(model)
    calls = 0
    last = 0

    def fail(*_: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == last:
            raise RuntimeError("on purpose")

    hook = register_module_forward_pre_hook(fail)  # for every module, because adapters run different ones
    try:
        adapter.observe(inputs)
        _hold(calls > 0, "no module ran during observe")
        last = max(1, calls // 2)
        calls = 0
        adapter.observe(inputs)
    except RuntimeError as error:
        _hold(str(error) == "on purpose", f"the exception was replaced by another one: {error}")
    else:
        _hold(False, "an exception during observe was swallowed")
    finally:
        hook.remove()


@contextmanager
def check_restored(model: nn.Module) -> Iterator[None]:
    """Check that hooks, blocks, kernels and the attention registry are the same before and after the `with`.

    The model must have run once: transformers installs its own hooks in the first forward.
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
    """Return the result of `make_inputs` on the device of the model, with pixels in its dtype."""
    inputs = make_inputs(processor, samples, side)
    return {k: v.to(model.device, model.dtype if v.is_floating_point() else None) for k, v in inputs.items()}


def left_padded(model: Any, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the same batch padded on the left, with the positions that generate would use."""
    mask = inputs["attention_mask"].bool()

    def pad_left(values: Tensor) -> Tensor:
        rows = [row[real] for row, real in zip(values, mask, strict=True)]
        return torch.stack([torch.cat([row.new_zeros(mask.shape[1] - len(row)), row]) for row in rows])

    by_token = {k: v for k, v in inputs.items() if isinstance(v, Tensor) and v.shape == mask.shape}
    full = {**inputs, **{k: pad_left(v) for k, v in by_token.items()}}
    text = pad_left(mask.cumsum(1) - 1)
    if not hasattr(model.base_model, "get_rope_index"):
        return full | {"position_ids": text}
    names = ("image_grid_thw", "video_grid_thw", "second_per_grid_ts", "mm_token_type_ids")
    grids = {name: full[name] for name in names if name in full}
    axes, _ = model.base_model.get_rope_index(full["input_ids"], attention_mask=full["attention_mask"], **grids)
    return full | {"position_ids": torch.cat([text[None], axes])}


def masked(
    adapter: Adapter, inputs: Mapping[str, Any], evidence: Evidence, pruned: Pruned, positions: Positions
) -> dict[str, Any]:
    """Return the full, left-padded batch with dropped tokens masked: the reference that pruning must equal.

    It is computed token by token, independently of the code of splice.
    """
    full = left_padded(adapter.model, inputs)
    placeholders = [getattr(adapter.model.config, f"{modality}_token_id") for modality in adapter.modalities]
    extra = evidence.structural
    for p, ids in enumerate(full["input_ids"]):
        begin = int((full["attention_mask"][p] == 0).sum())
        kept = set(pruned.sequence(p)[1].tolist())
        candidates = set(evidence.layout.column[evidence.layout.sample == p].flatten().tolist())
        spans = {}
        if extra is not None:
            for u in (extra.sample == p).nonzero()[:, 0].tolist():
                spans[int(extra.column[u])] = range(int(extra.first[u]), int(extra.last[u]) + 1)
        for at, token in enumerate(ids.tolist()):
            if token not in placeholders:
                continue
            column = at - begin
            stays = column in kept if column in candidates else not spans[column] or kept & set(spans[column])
            full["attention_mask"][p, at] = int(bool(stays))
    text = (full["attention_mask"].cumsum(1) - 1).clamp(min=0)
    if full["position_ids"].ndim == 3:
        full["position_ids"][0] = text  # the position in the text, which defines causality and is no rotary position
    elif positions == "compact":
        full["position_ids"] = text
    return full


def _logits(model: Any, inputs: Mapping[str, Any]) -> Tensor:
    with torch.no_grad():
        return model(**inputs, use_cache=False).logits


def _ids(out: Any) -> Tensor:
    return out if isinstance(out, Tensor) else out.sequences


def _hold(law: object, message: str) -> None:
    if not law:
        raise AssertionError(message)
