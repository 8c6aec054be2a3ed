"""The laws of needs: what a kind of evidence must keep, on calls made by hand and on two tiny models."""

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

HEADS, GROUPS, WIDTH, PATCHES = 4, 2, 8, 12  # of the calls: 12 patches, of which 4 can make a token
PADDING = 1e4  # what lies at padding
CLOSE = {"rtol": 1e-4, "atol": 1e-5}
LENGTHS, VISUAL = (15, 11, 8), (5, 3, 4)  # of the prompts: two tokens, then these many visual ones, then text


def check_need(need: Need) -> None:
    """A need is hashable, can be saved, is served somewhere, and what it reads is that of each token alone.

    Readings have the shape of the need's axes, are float32 and finite on tokens, the same alone as in a padded batch
    and whatever the size of chunks, follow the patches wherever these stand, and leave the call as it is. They are
    read of calls made by hand, and through the adapters of a tiny Llava and a tiny Qwen2.5-VL as far as these serve it.
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
    """Say why no adapter can serve a need, and the cure; "" where one can."""
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
        _hold(need.axes in axes, f"{need} has axes {need.axes!r}: one of its kind has {' or '.join(sorted(axes))}")
    try:
        equal = _copy(need)
        same = hash(need) == hash(equal) and need == equal
    except TypeError as error:
        raise AssertionError(f"{need} cannot be hashed: give its fields tuples in place of lists") from error
    _hold(same, f"{name} with equal fields are not equal: leave __eq__ and __hash__ to the dataclass")
    if isinstance(need, LayerNeed):
        layers = need.layer_numbers
        whole = isinstance(layers, tuple) and bool(layers) and all(isinstance(layer, int) for layer in layers)
        _hold(whole, f"{need} reads layers {layers!r}: give a tuple of at least one number")
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

    def read(call: KernelCall) -> Tensor:
        return _read(need, call, lambda: need.read_encoder(call, tokens))

    whole = read(call)
    _check_reading(need, whole, len(call.query), length)
    _check_chunks(need, read, call, whole)
    for view in range(len(call.query)):
        alone = read(replace(call, query=call.query[view : view + 1], key=call.key[view : view + 1]))
        _close(whole[view], alone[0], f"{need} reads another result of a view alone than in a batch")
    # a shorter view, padded on the right as stages inside an encoder leave it: in place of its last patches
    short = count - 4
    alone = read(replace(call, query=call.query[:1, :, :short], key=call.key[:1, :, :short]))
    real = torch.ones(len(call.query), count, dtype=torch.bool)
    real[0, short:] = False
    query, key = (x.clone() for x in (call.query, call.key))
    query[0, :, short:], key[0, :, short:] = PADDING, PADDING
    additive = torch.zeros(len(real), 1, 1, count).masked_fill(~real[:, None, None], -torch.inf)
    for mask in (real, additive.expand(-1, -1, rows, -1)):
        padded = read(replace(call, query=query, key=key, mask=mask))
        kept = alone.shape[2]
        _close(padded[0][:, :kept], alone[0], f"{need} lets padding into the result of a shorter view")
    if tokens.pool is None:
        order = torch.cat([torch.arange(tokens.skip), tokens.skip + torch.randperm(PATCHES, generator=_generator(3))])
        query = call.query if need.at_pooling_head else call.query[:, :, order]
        moved = read(replace(call, query=query, key=call.key[:, :, order]))
        wanted = whole[:, :, order[tokens.skip :] - tokens.skip]
        _close(moved, wanted, f"{need} does not follow patches that change places: drop the class tokens in front")


def _check_encoder_states(need: HiddenNeed, tokens: EncoderTokens) -> None:
    states, classes = _draw(1, PATCHES, 3)[:, 0], _draw(1, 1, 3, seed=1)[:, 0, 0] if tokens.has_class else None
    whole = need.read_encoder(states, classes)
    shape = [3, PATCHES, whole.shape[-1]] if need.axes == "VNC" else [3, whole.shape[-1]]
    _hold(list(whole.shape) == shape, f"{need} read {list(whole.shape)} and not {shape}, as its axes say")
    for view in range(3):
        alone = need.read_encoder(states[view : view + 1], None if classes is None else classes[view : view + 1])
        _close(whole[view], alone[0], f"{need} reads another result of a view alone than in a batch")


def _check_llm_attention(need: AttentionNeed) -> None:
    call, prompts = _prompts(range(len(LENGTHS)), need)

    def read(call: KernelCall) -> Tensor:
        return _read(need, call, lambda: need.read_llm(call, prompts))

    whole, longest = read(call), max(LENGTHS)
    _check_reading(need, whole, len(LENGTHS), longest, prompts.candidate)
    _check_chunks(need, read, call, whole, prompts.candidate)
    real = prompts.column >= 0
    visible = torch.ones(longest, longest, dtype=torch.bool).tril() & real[:, None]
    square = read(replace(call, mask=visible[:, None], causal=False))
    for sample, length in enumerate(LENGTHS):
        own_call, own_prompts = _prompts([sample], need)
        alone = _read(need, own_call, lambda c=own_call, p=own_prompts: need.read_llm(c, p))[0]
        at = own_prompts.candidate[0].nonzero()[:, 0]
        for batch in (whole, square):
            in_batch = batch[sample][:, longest - length :]
            message = f"{need} reads another result of a prompt alone than in a batch that is padded on the left"
            _close(in_batch[:, at], alone[:, at], message)


def _check_llm_states(need: HiddenNeed) -> None:
    _, prompts = _prompts(range(len(LENGTHS)), need)
    states = _draw(1, max(LENGTHS), len(LENGTHS))[:, 0]
    whole = need.read_llm(states, prompts)
    shape = [*states.shape[:2], whole.shape[-1]]
    _hold(list(whole.shape) == shape, f"{need} read {list(whole.shape)} and not {shape}: [P, L, C]")
    for sample, length in enumerate(LENGTHS):
        _, alone_prompts = _prompts([sample], need)
        alone = need.read_llm(states[sample : sample + 1, -length:], alone_prompts)[0]
        at = alone_prompts.candidate[0].nonzero()[:, 0]
        message = f"{need} reads another result of a prompt alone than in a batch that is padded on the left"
        _close(whole[sample, -length:][at], alone[at], message)


def _prompts(samples: Any, need: LayerNeed) -> tuple[KernelCall, PromptTokens]:
    """Return a causal call over the prompts of some samples, padded on the left, and the prompts."""
    lengths = [LENGTHS[sample] for sample in samples]
    longest = max(lengths)
    query, key = (torch.full((len(lengths), heads, longest, WIDTH), PADDING) for heads in (HEADS, GROUPS))
    embeddings = torch.full((len(lengths), longest, WIDTH), PADDING)
    column, candidate = torch.full((len(lengths), longest), -1), torch.zeros(len(lengths), longest, dtype=torch.bool)
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


def _check_reading(need: Need, read: Tensor, views: int, length: int, among: Tensor | None = None) -> None:
    """Check shape and numbers of a reading [B, H, T] or [B, G, T, d]; `among` [B, T] says where numbers count."""
    vectors = need.axes.endswith("C")
    axes = "[B, G, T, d]" if vectors else "[B, H, T]"
    fits = read.ndim == 3 + vectors and len(read) == views and read.shape[2] == length
    _hold(fits, f"{need} read {list(read.shape)} and not {axes} of {views} views and {length} tokens, as its axes say")
    _hold(read.dtype == torch.float32, f"{need} read {read.dtype}, not float32: end with .float()")
    numbers = read.transpose(1, 2)
    numbers = numbers if among is None else numbers[among]
    _hold(numbers.isfinite().all(), f"{need} read NaN or inf of a token")


def _check_chunks(
    need: Need, read: Callable[[KernelCall], Tensor], call: KernelCall, whole: Tensor, among: Tensor | None = None
) -> None:
    for elements in (1, 200):
        chunked = read(replace(call, max_elements=elements)).transpose(1, 2)
        expected = whole.transpose(1, 2)
        pair = (chunked, expected) if among is None else (chunked[among], expected[among])
        _close(*pair, f"{need} reads another result in smaller chunks, max_elements={elements}")


def _read(need: Need, call: KernelCall, read: Callable[[], Tensor]) -> Tensor:
    before = [x.clone() for x in (call.query, call.key)]
    read_once, read_again = read(), read()
    _hold(isinstance(read_once, Tensor), f"{need} read a {type(read_once).__name__}, not a tensor")
    same = all(torch.equal(x, was) for x, was in zip((call.query, call.key), before, strict=True))
    _hold(same, f"{need} changed query or key in place: other needs and the model read them too")
    again = torch.allclose(read_once, read_again, rtol=0, atol=0, equal_nan=True)
    _hold(again, f"{need} read another result of the same call a second time")
    return read_once


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
    last = need.at_layer(-1) if any(field.name in ("layers", "layer", "what") for field in fields(need)) else need  # pyright: ignore[reportArgumentType]
    try:
        together, *alone = (adapter.observe(batch, [last], ids=ids) for batch, ids in zip(inputs, IDS, strict=True))
    except ValueError as error:
        _hold("cannot gather" in str(error), f"{type(adapter).__name__}: {error}")
        return
    for sample, single in enumerate(alone):
        layout = together.layout
        sizes = {"V": len(layout.sample), "N": layout.column.shape[1], "P": len(layout.key), "L": 1}
        evidence, expected = together[last], single[last]
        shape = list(evidence.shape)
        fits = len(shape) == len(last.axes) and all(
            sizes.get(axis, size) == size for axis, size in zip(last.axes, shape, strict=True)
        )
        _hold(fits, f"{type(adapter).__name__} gathered {shape} for {last} and not {last.axes} with {sizes}")
        if "V" in last.axes and "N" in last.axes:
            v, n = last.axes.index("V"), last.axes.index("N")
            evidence, expected = (x.movedim((v, n), (0, 1)) for x in (evidence, expected))
            evidence = evidence[layout.sample == sample][layout.valid[layout.sample == sample]]
            expected = expected[single.layout.valid]
            _hold(evidence.isfinite().all(), f"{type(adapter).__name__}: {last} is NaN or inf of a token")
        elif "V" in last.axes:
            evidence = evidence[layout.sample == sample]
        else:
            evidence, expected = evidence[sample, : expected.shape[1]], expected[0]
        message = f"{type(adapter).__name__}: {last} differs alone and in a batch"
        _close(evidence.float(), expected.float(), message, rtol=1e-3, atol=1e-4)


IDS = (("first", "second"), ("first",), ("second",))


def _draw(heads: int, length: int, batch: int, seed: int = 0) -> Tensor:
    return torch.randn(batch, heads, length, WIDTH, generator=_generator(seed))


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _close(found: Tensor, expected: Tensor, message: str, **tolerance: float) -> None:
    same = found.shape == expected.shape
    _hold(same and torch.allclose(found, expected, equal_nan=True, **(tolerance or CLOSE)), message)


def _hold(law: object, broken: str) -> None:
    if not law:
        raise AssertionError(broken)
