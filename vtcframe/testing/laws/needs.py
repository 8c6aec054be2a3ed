"""Laws of needs: kinds of evidence are checked on synthetic attention calls and on two tiny models."""

from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass, replace
from functools import cache
from typing import Any

import torch
from torch import Tensor

from vtcframe.adapters.auxiliary_evidence import auxiliary_refusal
from vtcframe.adapters.base import Adapter, adapter_for
from vtcframe.core.encoder_readers import EncoderTokens, PatchGroups
from vtcframe.core.evidence_file import describe_need, parse_need
from vtcframe.core.kernel_call import KernelCall
from vtcframe.core.need_bases import AttentionNeed, HiddenNeed, LayerNeed, Need
from vtcframe.core.text_readers import PromptTokens
from vtcframe.hooks.encoder_reading import encoder_refusal
from vtcframe.testing.tiny_models.llava_families import tiny_llava
from vtcframe.testing.tiny_models.other_families import tiny_qwen2_5_vl
from vtcframe.testing.tiny_models.samples import SAMPLES, make_inputs

HEADS, GROUPS, WIDTH, PATCHES = 4, 2, 8, 12  # shape of the calls; groups of 4 patches can form a token
PADDING = 1e4  # value at padding
CLOSE = {"rtol": 1e-4, "atol": 1e-5}
LENGTHS, VISUAL = (15, 11, 8), (5, 3, 4)  # prompts: two tokens, then so many visual tokens, then text


def check_need(need: Need) -> None:
    """Check that a need is hashable, can be saved, can be served, and that its readings depend on the right tokens.

    Readings must have the shape of the axes of the need, be float32 and finite on tokens, equal alone and in a padded
    batch and for any size of chunks, follow patches that change places, and leave the call unchanged. They are computed
    from synthetic calls, and by the adapters of a tiny LLaVA and a tiny Qwen2.5-VL if these serve the need.
    AssertionError if a law is broken.
    """
    _check_request(need)
    source = need.source
    if need.site == "encoder":
        served = [tokens for tokens in _encoders() if not encoder_refusal(need, tokens)]
        for tokens in served:
            if isinstance(need, AttentionNeed):
                _check_encoder_attention(need, tokens)
            elif isinstance(need, HiddenNeed):
                _check_encoder_states(need, tokens)
    elif need.site == "llm" and isinstance(source, AttentionNeed):
        _check_llm_attention(source)
    elif need.site == "llm" and isinstance(source, HiddenNeed):
        _check_llm_states(source)
    if isinstance(need, LayerNeed) and need.site != "auxiliary":
        for build in (tiny_llava, tiny_qwen2_5_vl):
            _check_model(need, build)


def unserved_because(need: Need) -> str:
    """Return why no adapter can serve a need, and the cure; "" if one can."""
    if need.site == "auxiliary":
        return auxiliary_refusal(need)
    if need.site == "llm":
        if not (isinstance(need, LayerNeed) and isinstance(need.source, AttentionNeed | HiddenNeed)):
            return "it reads neither attention nor hidden states: extend AttentionNeed or HiddenNeed"
        return need.llm_refusal()
    refusals = [encoder_refusal(need, tokens) for tokens in _encoders()]
    return refusals[0] if all(refusals) else ""


def _encoders() -> Iterator[EncoderTokens]:
    """Yield encoders without class token, with registers or a class token in front, with and without pooling."""
    for pool in (None, PatchGroups(4)):
        yield EncoderTokens(0, pool)
        yield EncoderTokens(2, pool)
        yield EncoderTokens(1, pool, has_class=True)
        yield EncoderTokens(0, pool, has_head=True)


def _is_frozen(need: Any) -> bool:
    return is_dataclass(need) and getattr(need, "__dataclass_params__").frozen  # noqa: B009 (pyright)


def _copy(need: Any) -> Any:
    return replace(need)


def _check_request(need: Any) -> None:
    name = type(need).__name__
    _hold(isinstance(need, Need), f"check an object that extends vtcframe.AttentionNeed or HiddenNeed, not a {name}")
    _hold(_is_frozen(need), f"{name} is no frozen dataclass: write @dataclass(frozen=True) above it")
    axes = {"LVHN", "LVHNC"} if isinstance(need, AttentionNeed) else {"VNC", "VC"}
    if isinstance(need, AttentionNeed | HiddenNeed):
        _hold(
            need.axes in axes, f"{need} has axes {need.axes!r}: use {' or '.join(sorted(axes))} for this kind of need"
        )
    try:
        equal = _copy(need)
        same = hash(need) == hash(equal) and need == equal
    except TypeError as error:
        raise AssertionError(f"{need} cannot be hashed: give its fields tuples in place of lists") from error
    _hold(same, f"{name} with equal fields are not equal: leave __eq__ and __hash__ to the dataclass")
    if isinstance(need, LayerNeed):
        layers = need.layer_numbers
        valid = isinstance(layers, tuple) and bool(layers) and all(isinstance(layer, int) for layer in layers)
        _hold(valid, f"{need} reads layers {layers!r}: give a tuple of at least one number")
    reason = unserved_because(need)
    _hold(not reason, f"no adapter can serve {need}: {reason}")
    described = describe_need(need)
    try:
        _hold(parse_need(described) == need, f"{need} is another need once it is saved and loaded")
    except (TypeError, LookupError) as error:
        raise AssertionError(f"{need} cannot be saved with evidence, as {described}: {error}") from error


def _check_encoder_attention(need: AttentionNeed, tokens: EncoderTokens) -> None:
    count = tokens.skip + PATCHES
    length = PATCHES if tokens.pool is None else PATCHES // 4
    rows = 1 if need.at_pooling_head else count
    call = KernelCall(_draw(HEADS, rows, 3), _draw(GROUPS, count, 3, seed=1), None, 0.3, False, None)

    def compute(call: KernelCall) -> Tensor:
        return _compute_twice(need, call, lambda: need.read_encoder(call, tokens))

    readings = compute(call)
    _check_readings(need, readings, len(call.query), length)
    _check_chunks(need, compute, call, readings)
    for view in range(len(call.query)):
        alone = compute(replace(call, query=call.query[view : view + 1], key=call.key[view : view + 1]))
        _close(readings[view], alone[0], f"{need} reads different results of a view alone and in a batch")
    # a shorter view, padded on the right, which is the form that stages inside an encoder return
    short = count - 4
    alone = compute(replace(call, query=call.query[:1, :, :short], key=call.key[:1, :, :short]))
    real = torch.ones(len(call.query), count, dtype=torch.bool)
    real[0, short:] = False
    query, key = (x.clone() for x in (call.query, call.key))
    query[0, :, short:], key[0, :, short:] = PADDING, PADDING
    additive = torch.zeros(len(real), 1, 1, count).masked_fill(~real[:, None, None], -torch.inf)
    for mask in (real, additive.expand(-1, -1, rows, -1)):
        padded = compute(replace(call, query=query, key=key, mask=mask))
        kept = alone.shape[2]
        _close(padded[0][:, :kept], alone[0], f"{need} lets padding into the result of a shorter view")
    if tokens.pool is None:
        order = torch.cat([torch.arange(tokens.skip), tokens.skip + torch.randperm(PATCHES, generator=_generator(3))])
        query = call.query if need.at_pooling_head else call.query[:, :, order]
        moved = compute(replace(call, query=query, key=call.key[:, :, order]))
        expected = readings[:, :, order[tokens.skip :] - tokens.skip]
        _close(moved, expected, f"{need} does not follow patches that change places: drop the class tokens in front")


def _check_encoder_states(need: HiddenNeed, tokens: EncoderTokens) -> None:
    states = _draw(1, PATCHES, 3)[:, 0]
    classes = _draw(1, 1, 3, seed=1)[:, 0, 0] if tokens.has_class else None
    readings = need.read_encoder(states, classes)
    channels = readings.shape[-1]
    shape = [3, PATCHES, channels] if need.axes == "VNC" else [3, channels]
    _hold(list(readings.shape) == shape, f"{need} read {list(readings.shape)} and not {shape}, as its axes say")
    for view in range(3):
        alone = need.read_encoder(states[view : view + 1], None if classes is None else classes[view : view + 1])
        _close(readings[view], alone[0], f"{need} reads different results of a view alone and in a batch")


def _check_llm_attention(need: AttentionNeed) -> None:
    call, prompts = _prompts(range(len(LENGTHS)), need)

    def compute(call: KernelCall) -> Tensor:
        return _compute_twice(need, call, lambda: need.read_llm(call, prompts))

    readings = compute(call)
    longest = max(LENGTHS)
    _check_readings(need, readings, len(LENGTHS), longest, prompts.candidate)
    _check_chunks(need, compute, call, readings, prompts.candidate)
    real = prompts.column >= 0
    visible = torch.ones(longest, longest, dtype=torch.bool).tril() & real[:, None]
    square = compute(replace(call, mask=visible[:, None], causal=False))
    for sample, length in enumerate(LENGTHS):
        call_alone, prompt_alone = _prompts([sample], need)
        alone = _compute_twice(need, call_alone, lambda c=call_alone, p=prompt_alone: need.read_llm(c, p))[0]
        at = prompt_alone.candidate[0].nonzero()[:, 0]
        for batch in (readings, square):
            in_batch = batch[sample][:, longest - length :]
            message = f"{need} reads different results of a prompt alone and in a batch that is padded on the left"
            _close(in_batch[:, at], alone[:, at], message)


def _check_llm_states(need: HiddenNeed) -> None:
    _, prompts = _prompts(range(len(LENGTHS)), need)
    states = _draw(1, max(LENGTHS), len(LENGTHS))[:, 0]
    readings = need.read_llm(states, prompts)
    shape = [*states.shape[:2], readings.shape[-1]]
    _hold(list(readings.shape) == shape, f"{need} read {list(readings.shape)} and not {shape}: [P, L, C]")
    for sample, length in enumerate(LENGTHS):
        _, alone_prompts = _prompts([sample], need)
        alone = need.read_llm(states[sample : sample + 1, -length:], alone_prompts)[0]
        at = alone_prompts.candidate[0].nonzero()[:, 0]
        message = f"{need} reads different results of a prompt alone and in a batch that is padded on the left"
        _close(readings[sample, -length:][at], alone[at], message)


def _prompts(samples: Any, need: LayerNeed) -> tuple[KernelCall, PromptTokens]:
    """Return a causal call over the prompts of `samples`, padded on the left, and the prompts."""
    lengths = [LENGTHS[sample] for sample in samples]
    longest = max(lengths)
    query, key = (torch.full((len(lengths), heads, longest, WIDTH), PADDING) for heads in (HEADS, GROUPS))
    embeddings = torch.full((len(lengths), longest, WIDTH), PADDING)
    column = torch.full((len(lengths), longest), -1)
    candidate = torch.zeros(len(lengths), longest, dtype=torch.bool)
    start = torch.zeros(len(lengths), dtype=torch.long)
    for p, (sample, length) in enumerate(zip(samples, lengths, strict=True)):
        query[p, :, longest - length :] = _draw(HEADS, length, 1, seed=10 + sample)[0]
        key[p, :, longest - length :] = _draw(GROUPS, length, 1, seed=20 + sample)[0]
        embeddings[p, longest - length :] = _draw(1, length, 1, seed=30 + sample)[0, 0]
        column[p, longest - length :] = torch.arange(length)
        start[p] = longest - length + 2 + VISUAL[sample]
        candidate[p, longest - length + 2 : int(start[p])] = True
    after = torch.where(candidate, start[:, None], longest - 1)
    frequency = 100.0 ** -(torch.arange(WIDTH) % (WIDTH // 2) / (WIDTH // 2))
    angle = column.clamp(min=0)[..., None] * frequency
    key_of_sample = torch.tensor([1000 + sample for sample in samples])
    prompts = PromptTokens(column, key_of_sample, candidate, start, after, None, (angle.cos(), angle.sin()))
    if isinstance(need, AttentionNeed) and need.preparation:
        prepared = need.preparation(embeddings, prompts)
        _hold(
            list(prepared.shape[:2]) == [len(lengths), longest],
            f"{need} prepares {list(prepared.shape)}: its preparation returns [P, L, ...], here {list(column.shape)}",
        )
        prompts = replace(prompts, prepared=prepared)
    return KernelCall(query, key, column >= 0, 0.3, True, None), prompts


def _check_readings(need: Need, readings: Tensor, views: int, length: int, is_token: Tensor | None = None) -> None:
    """Check shape and values of readings [B, H, T] or [B, G, T, d]; only values where `is_token` [B, T] count."""
    vectors = need.axes.endswith("C")
    axes = "[B, G, T, d]" if vectors else "[B, H, T]"
    fits = readings.ndim == 3 + vectors and len(readings) == views and readings.shape[2] == length
    _hold(
        fits, f"{need} read {list(readings.shape)} and not {axes} of {views} views and {length} tokens, as its axes say"
    )
    _hold(readings.dtype == torch.float32, f"{need} read {readings.dtype}, not float32: end with .float()")
    values = readings.transpose(1, 2)
    values = values if is_token is None else values[is_token]
    _hold(values.isfinite().all(), f"{need} read NaN or inf of a token")


def _check_chunks(
    need: Need,
    compute: Callable[[KernelCall], Tensor],
    call: KernelCall,
    readings: Tensor,
    is_token: Tensor | None = None,
) -> None:
    for elements in (1, 200):
        chunked = compute(replace(call, max_elements=elements)).transpose(1, 2)
        expected = readings.transpose(1, 2)
        pair = (chunked, expected) if is_token is None else (chunked[is_token], expected[is_token])
        _close(*pair, f"{need} reads different results in smaller chunks, max_elements={elements}")


def _compute_twice(need: Need, call: KernelCall, compute: Callable[[], Tensor]) -> Tensor:
    """Return the readings of a call. AssertionError if they are no tensor, change the call, or are not repeatable."""
    before = [x.clone() for x in (call.query, call.key)]
    readings = compute()
    again = compute()
    _hold(isinstance(readings, Tensor), f"{need} read a {type(readings).__name__}, not a tensor")
    same = all(torch.equal(x, previous) for x, previous in zip((call.query, call.key), before, strict=True))
    _hold(same, f"{need} changed query or key in place: other needs and the model use them too")
    same = torch.allclose(readings, again, rtol=0, atol=0, equal_nan=True)
    _hold(same, f"{need} read different results of the same call a second time")
    return readings


@cache
def _model(build: Callable[[], tuple[Any, Any]]) -> tuple[Adapter, list[dict[str, Any]]]:
    """Return the adapter of a tiny model, and inputs: two samples in a batch, then each alone."""
    model, processor = build()
    samples = SAMPLES["ragged several"][:2]
    batches = [samples, samples[:1], samples[1:]]
    return adapter_for(model, processor), [make_inputs(processor, batch) for batch in batches]


def _check_model(need: LayerNeed, build: Callable[[], tuple[Any, Any]]) -> None:
    """Check the evidence that an adapter gathers of the last layer, unless its tower cannot serve the need."""
    adapter, inputs = _model(build)
    names = {field.name for field in fields(need)}  # pyright: ignore[reportArgumentType]
    has_layers = bool(names & {"layers", "layer", "what"})
    last = need.at_layer(-1) if has_layers else need
    try:
        together, *alone = (adapter.observe(batch, [last], ids=ids) for batch, ids in zip(inputs, IDS, strict=True))
    except ValueError as error:
        _hold("cannot gather" in str(error), f"{type(adapter).__name__}: {error}")
        return
    for sample, single in enumerate(alone):
        layout = together.layout
        sizes = {"V": len(layout.sample), "N": layout.column.shape[1], "P": len(layout.key), "L": 1}
        readings = together[last]
        expected = single[last]
        shape = list(readings.shape)
        fits = len(shape) == len(last.axes) and all(
            sizes.get(axis, size) == size for axis, size in zip(last.axes, shape, strict=True)
        )
        _hold(fits, f"{type(adapter).__name__} gathered {shape} for {last} and not {last.axes} with {sizes}")
        if "V" in last.axes and "N" in last.axes:
            v, n = last.axes.index("V"), last.axes.index("N")
            readings, expected = (x.movedim((v, n), (0, 1)) for x in (readings, expected))
            readings = readings[layout.sample == sample][layout.valid[layout.sample == sample]]
            expected = expected[single.layout.valid]
            _hold(readings.isfinite().all(), f"{type(adapter).__name__}: {last} is NaN or inf of a token")
        elif "V" in last.axes:
            readings = readings[layout.sample == sample]
        else:
            readings = readings[sample, : expected.shape[1]]
            expected = expected[0]
        message = f"{type(adapter).__name__}: {last} differs alone and in a batch"
        _close(readings.float(), expected.float(), message, rtol=1e-3, atol=1e-4)


IDS = (("first", "second"), ("first",), ("second",))


def _draw(heads: int, length: int, batch: int, seed: int = 0) -> Tensor:
    return torch.randn(batch, heads, length, WIDTH, generator=_generator(seed))


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _close(computed: Tensor, expected: Tensor, message: str, **tolerance: float) -> None:
    same = computed.shape == expected.shape
    _hold(same and torch.allclose(computed, expected, equal_nan=True, **(tolerance or CLOSE)), message)


def _hold(law: object, message: str) -> None:
    if not law:
        raise AssertionError(message)
