"""Every registered method on every family that its site and signal allow."""

import pytest
import torch

from support.models import SERVED, backbone
from vtcframe import AttentionRows, Budget, ClassToken, Similarity, adapter_for, compress
from vtcframe.core.method import Method
from vtcframe.registry import entries
from vtcframe.testing.laws.adapters import inputs_for
from vtcframe.testing.tiny_models.other_families import samples_of
from vtcframe.testing.tiny_models.samples import SAMPLES

METHODS = {
    entry.name: entry.load() for entry in entries() if entry.kind == "pruner" and issubclass(entry.load(), Method)
}

OPTIONS = {  # for towers and language models of 4 blocks
    "VScanEncoder": {"layer": 0, "window": 2},
    "TokenCorrelation": {"layer": 0},
    "ClsCoverage": {"last": 1},
    "PyramidDrop": {"layers": (2, 3)},
    "SinkFilter": {"dims": (1, 3), "threshold": 1.5},
    "SparseVlm": {"layers": (1, 2, 3), "heads": 2},
    "VisualExit": {"layers": (2,)},
    "VScan": {"layer": 2, "shallow": 0, "window": 2, "query": "proxy"},
    "PruneVid": {"layer": 2},
    "HoliTom": {"layer": 2},
    "MustDrop": {"layers": (2, 3), "query": "proxy", "share": 0.5, "peak": 0.2},  # of a few tokens
    "Aim": {"first": 2, "span": 2},
}


@pytest.mark.parametrize("name", sorted(METHODS))
def test_a_method_tells_its_facts_and_its_paper(name):
    kind = METHODS[name]
    card = kind.card
    assert all((card.signal, card.selector, card.dropped, card.parity))
    assert card.paper == "" or card.paper.removeprefix("arXiv ") in kind.__doc__
    assert card.parity.startswith(("exact", "within ", "differs: ", "no public code", "ours"))


@pytest.mark.parametrize("family", SERVED)
@pytest.mark.parametrize("name", sorted(name for name, kind in METHODS.items() if kind.card.site == "projector"))
def test_a_method_prunes_a_family_or_says_what_it_lacks(name, family):
    model, processor = backbone(family)
    adapter, method = adapter_for(model, processor), METHODS[name](**OPTIONS.get(name, {}))  # towers of 4 blocks
    for samples in ("ragged several", "videos"):
        if samples not in samples_of(family):
            continue
        inputs = inputs_for(model, processor, SAMPLES[samples])
        if lacks(model, adapter, method, inputs):
            with pytest.raises(ValueError, match=f"{type(adapter).__name__} cannot gather"):
                adapter.observe(inputs, method.needs)
            continue
        for budget in (Budget(tokens=5), Budget(ratio=0.5)):
            compressed = compress(model, stages=method.stages(budget), processor=processor)
            compressed.generate(**inputs, max_new_tokens=2, do_sample=False)
            last = compressed.last
            assert (last.tokens_after <= budget.total(last.layout)).all()
            assert (last.tokens_after > 0).eq(last.tokens_before > 0).all()


INSIDE = sorted(name for name, kind in METHODS.items() if "llm" in kind.card.site)
BUDGETS = {  # what a method does not take from everybody
    "SparseVlm": [Budget(ratio=1 / 3)],
    "VisualExit": [None],
    "MustDrop": [None],
}


def refused(name, family):
    """Why a method cannot run on a tiny model, beyond what its options are there for."""
    if name == "SparseVlm" and family == "qwen3_vl":
        return r"before layers 2 to 3 of its language model"  # three stages, and deepstack
    return None


@pytest.mark.parametrize("family", SERVED)
@pytest.mark.parametrize("name", INSIDE)
def test_a_method_prunes_inside_any_language_model(name, family):
    """The same answers alone and in a ragged batch, fewer tokens the deeper, videos too."""
    model, processor = backbone(family)
    options = dict(OPTIONS.get(name, {}))
    if name == "MustDrop":
        options["windows"] = family in ("llava", "video_llava")
    if family == "gemma3" and name in ("MustDrop", "PruneVid"):
        options["forget"] = False
    method = METHODS[name](**options)
    for budget in BUDGETS.get(name, [Budget(tokens=5), Budget(ratio=0.5)]):
        if why := refused(name, family):
            with pytest.raises(ValueError, match=why):
                compress(model, stages=method.stages(budget), processor=processor)
            continue
        compressed = compress(model, stages=method.stages(budget), processor=processor)
        for kind in ("ragged several", "videos"):
            if kind not in samples_of(family):
                continue
            samples = SAMPLES[kind]
            inputs = inputs_for(model, processor, samples)
            answer = compressed.generate(**inputs, max_new_tokens=3, do_sample=False)
            last, new = compressed.last, answer[:, inputs["input_ids"].shape[1] :]
            assert (last.tokens_per_layer.diff(dim=1) <= 0).all()
            assert torch.equal(last.tokens_per_layer[:, -1], last.tokens_after)
            assert (last.kv_bytes <= last.kv_bytes_before).all()
            assert last.tokens_after.sum() < last.tokens_before.sum()
            for p, sample in enumerate(samples):
                if sample[1]:
                    single = inputs_for(model, processor, [sample])
                    alone = compressed.generate(**single, max_new_tokens=3, do_sample=False)[
                        0, single["input_ids"].shape[1] :
                    ]
                    assert alone.tolist() == new[p, : len(alone)].tolist()
                    assert torch.equal(compressed.last.tokens_per_layer[0], last.tokens_per_layer[p])


def lacks(model, adapter, method, inputs):
    """A class token, or a text tower that the tiny models' own towers were trained with."""
    if any(isinstance(need, Similarity) for need in method.needs):
        return True
    classless = any(not adapter.tower(modality, inputs).classes for modality in adapter.modalities_in(inputs))
    return classless and any(
        isinstance(need, ClassToken) or (isinstance(need, AttentionRows) and need.query == "cls")
        for need in method.needs
    )


@pytest.mark.parametrize("family", ["llava", "video_llava"])
@pytest.mark.parametrize("name", METHODS)
def test_a_default_dtype_of_half_precision_changes_nothing(name, family):
    """Lightning's `bf16-true` sets one; a score that is made without a dtype would be bfloat16."""
    model, processor = backbone(family)
    options = dict(OPTIONS.get(name, {}))
    if name == "MustDrop":
        options["windows"] = True
    method, inputs = METHODS[name](**options), inputs_for(model, processor, SAMPLES["ragged several"])
    compressed = compress(model, stages=method.stages(BUDGETS.get(name, [Budget(tokens=5)])[0]), processor=processor)
    outcomes = []
    for dtype in (torch.float32, torch.bfloat16):
        torch.set_default_dtype(dtype)
        try:
            answer = compressed.generate(**inputs, max_new_tokens=3, do_sample=False)
        except ValueError as error:
            outcomes.append(str(error))
        else:
            last = compressed.last
            outcomes.append((answer.tolist(), last.tokens_per_layer.tolist(), last.kept.tolist(), last.scores.tolist()))
        finally:
            torch.set_default_dtype(torch.float32)
    assert outcomes[0] == outcomes[1]
