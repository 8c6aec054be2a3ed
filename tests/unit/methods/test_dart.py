"""DART: laws, and a twin in plain Python."""

import math
from dataclasses import replace

import pytest
import torch

from support.models import backbone
from vtcframe import Budget, compress
from vtcframe.components.scorers import KeyNorm
from vtcframe.core.needs import TextTokens
from vtcframe.methods.dart import KEYS, STATES, Dart, PivotDissimilarity
from vtcframe.testing import check_pruner, check_scorer, check_selector, make_evidence
from vtcframe.testing.laws.adapters import inputs_for
from vtcframe.testing.tiny_models.samples import SAMPLES

SAID = (6, 2, 3, 0)  # tokens of text behind the pictures of each sample


MORE = [PivotDissimilarity(), PivotDissimilarity(1, 0), PivotDissimilarity(2, 9)]


def test_laws_of_the_scorer_hold():
    check_scorer(KeyNorm(tower="llm"))


@pytest.mark.parametrize("selector", MORE, ids=str)
def test_laws_of_the_selector_hold(selector):
    check_selector(selector)


@pytest.mark.parametrize("method", [Dart(), Dart(image_pivots=1, text_pivots=0)], ids=str)
def test_laws_of_the_method_hold(method):
    check_pruner(method)


def quiet(samples=None, said=SAID):
    """Evidence whose samples have a number of text tokens each, some of them none."""
    evidence = make_evidence(Dart().needs, **({} if samples is None else {"samples": samples}))
    found = dict(evidence.readings)
    for need in (TextTokens(KEYS), TextTokens(STATES)):
        found[need] = found[need].clone() - 0.5
        for p, count in enumerate(said):
            found[need][p, count:] = math.nan
    valid = evidence.layout.valid
    found[STATES] = (found[STATES] - 0.5).masked_fill(~valid[..., None], 1e4)
    return replace(evidence, readings=found)


def cosine(a, b):
    return sum(x * y for x, y in zip(a, b, strict=True)) / math.hypot(*a) / math.hypot(*b)


def falling(values):
    return sorted(range(len(values)), key=lambda i: (-values[i], i))


def twin(lengths, states, text_lengths, text_states, quota, image, text):
    """Which tokens DART keeps, token after token."""
    first = falling(lengths)[: min(image, quota)]
    pivots = [states[i] for i in first] + [text_states[t] for t in falling(text_lengths)[:text]]
    kept, rest = list(first), quota - len(first)
    for k, pivot in enumerate(pivots):
        for _ in range(rest // len(pivots) + (k < rest % len(pivots))):
            free = [i for i in range(len(states)) if i not in kept]
            kept.append(min(free, key=lambda i: (cosine(states[i], pivot), i)))
    return sorted(kept)


@pytest.mark.parametrize(("image", "text"), [(4, 4), (1, 2), (3, 0)])
@pytest.mark.parametrize("tokens", [1, 3, 4, 5, 12, 47])
def test_dart_equals_its_twin(image, text, tokens):
    samples = {11: [(5, 6)], 29: [(4, 4), (6, 6)], 31: [], 47: [(3, 3)]}
    evidence = quiet(samples)
    pruned, joined = Dart(2, image_pivots=image, text_pivots=text)(evidence, Budget(tokens)), evidence.join_views()
    for p, count in enumerate(joined.layout.count.tolist()):
        lengths = joined[KEYS][0, p, :, :count].abs().sum((0, 2)).tolist()
        said = slice(0, SAID[p])
        want = twin(
            lengths,
            joined[STATES][p, :count].tolist(),
            evidence[TextTokens(KEYS)][p, said].abs().sum(1).tolist(),
            evidence[TextTokens(STATES)][p, said].tolist(),
            min(tokens, count),
            image,
            text,
        )
        assert pruned.place[p][pruned.place[p] >= 0].tolist() == want


def test_text_pivots_matter_and_its_padding_does_not():
    evidence = quiet()
    kept = Dart()(evidence, Budget(20)).kept
    some = {need: x.clone() for need, x in evidence.readings.items()}
    some[TextTokens(STATES)][0, :6] = some[TextTokens(STATES)][0, :6].flip(0)
    other = Dart()(replace(evidence, readings=some), Budget(20)).kept
    assert not torch.equal(kept[0], other[0])
    assert torch.equal(kept[1:], other[1:])
    longer = {
        need: torch.cat([x, torch.full_like(x, math.nan)], 1) if isinstance(need, TextTokens) else x
        for need, x in evidence.readings.items()
    }
    assert torch.equal(Dart()(replace(evidence, readings=longer), Budget(20)).kept, kept)


def test_no_text_at_all_leaves_the_rest_to_visual_pivots():
    evidence = quiet()
    none = {need: x[:, :0] if isinstance(need, TextTokens) else x for need, x in evidence.readings.items()}
    pruned = Dart()(replace(evidence, readings=none), Budget(20))
    assert torch.equal(pruned.kept, Dart(text_pivots=0)(evidence, Budget(20)).kept)
    assert pruned.total.tolist() == [20, 20, 0, 20]


def test_it_acts_before_a_layer_and_needs_a_budget():
    (stage,) = Dart(3).stages(Budget(7))
    assert (stage.at, stage.pruner, stage.budget, stage.positions) == ("llm:3", Dart(3), Budget(7), "original")
    with pytest.raises(ValueError, match="least similar to its pivots: give tokens or ratio"):
        Dart().stages(None)
    with pytest.raises(ValueError, match="at least 1 and text_pivots at least 0, got 0 and 4"):
        PivotDissimilarity(image_pivots=0)
    with pytest.raises(ValueError, match="got 4 and -1"):
        Dart(text_pivots=-1).pipeline()


@pytest.mark.parametrize("family", ["llava", "llava_next", "qwen2_5_vl"])
def test_a_tiny_model_answers_alone_as_in_a_batch(family):
    model, processor = backbone(family)
    compressed = compress(model, Dart(), ratio=0.3, processor=processor)
    samples = SAMPLES["ragged several"]
    inputs = inputs_for(model, processor, samples)
    options = {"max_new_tokens": 3, "do_sample": False}
    together, after = (
        compressed.generate(**inputs, **options)[:, inputs["input_ids"].shape[1] :],
        compressed.last.tokens_after,
    )
    assert after.tolist() == Budget(ratio=0.3).total(compressed.last.layout).tolist()
    for p, sample in enumerate(samples):
        if sample[1]:
            one = inputs_for(model, processor, [sample])
            alone = compressed.generate(**one, **options)[0, one["input_ids"].shape[1] :]
            assert alone.tolist() == together[p, : len(alone)].tolist()
            assert compressed.last.tokens_after.tolist() == [after[p]]
