import sys
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

from vtcframe import (
    AttentionKeys,
    AttentionNeed,
    AttentionPageRank,
    AttentionRows,
    Budget,
    ClassToken,
    Evidence,
    HiddenStates,
    Pruned,
    RandomPruner,
    Similarity,
    TextTokens,
    VtcCls,
)
from vtcframe.core.evidence_file import UnknownNeedError, parse_need
from vtcframe.core.layout import Structural, reading_order
from vtcframe.errors import UsageError
from vtcframe.testing import make_evidence, make_layout

NEED = AttentionRows("cls", (-2, -1))
ALL_KINDS = (
    NEED,
    AttentionKeys((0,), "llm"),
    HiddenStates(),
    ClassToken(),
    TextTokens(HiddenStates(2, "llm")),
    TextTokens(AttentionKeys((1,))),
    Similarity(),
)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({}, ValueError, "exactly one"),
        ({"tokens": 3, "ratio": 0.5}, ValueError, "exactly one"),
        ({"tokens": 0}, ValueError, "at least 1, got 0"),
        ({"tokens": -2}, ValueError, "at least 1, got -2"),
        ({"tokens": 2.0}, TypeError, "give ratio"),
        ({"tokens": True}, TypeError, "True"),
        ({"ratio": 0.0}, ValueError, r"\(0, 1\], got 0.0"),
        ({"ratio": 1.5}, ValueError, "got 1.5"),
        ({"ratio": float("nan")}, ValueError, "nan"),
        ({"ratio": "half"}, TypeError, "half"),
        ({"tokens": 3, "per": "batch"}, ValueError, "'batch'"),
    ],
)
def test_an_invalid_budget_is_refused(options, error, message):
    with pytest.raises(error, match=message):
        Budget(**options)


def test_a_budget_takes_the_numbers_of_other_libraries():
    assert Budget(np.int64(5)).total(make_layout({1: [(2, 3)]})).tolist() == [5]
    assert Budget(ratio=np.float32(0.5)).total(make_layout({1: [(2, 3)]})).tolist() == [3]


def test_a_budget_counts_for_samples_images_or_views_and_never_exceeds_the_tokens():
    layout = make_layout({1: [(2, 2)], 2: [(2, 3), (5, 5)], 3: []})
    assert Budget(5).total(layout).tolist() == [4, 5, 0]
    assert Budget(10**9).total(layout).tolist() == [4, 31, 0]
    assert Budget(8, per="image").total(layout).tolist() == [4, 14, 0]
    assert Budget(8, per="view").total(layout).tolist() == [4, 14, 0]
    one_image = replace(layout, image=layout.image * 0)
    assert Budget(8, per="image").total(one_image).tolist() == [4, 8, 0]
    assert Budget(8, per="view").total(one_image).tolist() == [4, 14, 0]


def test_a_ratio_is_of_the_untouched_count_rounded_half_to_even_and_at_least_one():
    layout = make_layout({1: [(1, 5)], 2: [(1, 15)], 3: [(1, 1)]})
    assert Budget(ratio=0.5).total(layout).tolist() == [2, 8, 1]
    assert Budget(ratio=0.01).total(layout).tolist() == [1, 1, 1]
    half = replace(layout, untouched=layout.untouched * 2)
    assert Budget(ratio=0.2).total(half).tolist() == [2, 6, 1]


def test_counts_boxes_and_centres_are_derived():
    layout = make_layout({1: [(2, 2)], 2: [(1, 3)]})
    assert layout.count.tolist() == [4, 3]
    assert layout.valid.tolist() == [[True] * 4, [True] * 3 + [False]]
    assert layout.centre[0, 3].tolist() == [0.75, 0.75]
    assert layout.centre[1, 0].tolist() == pytest.approx([0.5, 1 / 6])
    assert layout.total(layout.count).tolist() == [4, 3]


def test_reading_fills_a_views_own_columns_in_the_order_of_its_tokens():
    column = torch.tensor([[9, 3, 5, -1], [4, -1, -1, -1]])
    assert reading_order(column).tolist() == [[3, 5, 9, -1], [4, -1, -1, -1]]


def test_join_views_puts_all_views_of_a_sample_in_one_row_in_reading_order():
    evidence = make_evidence((NEED, ClassToken()))
    rows = evidence.join_views()
    assert rows.layout.count.tolist() == [144, 432, 0, 360]
    assert all((c[c >= 0].diff() == 1).all() for c in rows.layout.column)
    assert torch.equal(rows[NEED][:, 1, :, 72:216], evidence[NEED][:, 2, :, :144])
    assert torch.equal(rows.tokens[3, :324], evidence.tokens[4, :324])
    with pytest.raises(LookupError, match="ClassToken"):  # a vector a view has no place in a row of several
        rows[ClassToken()]


def test_join_views_interleaves_views_that_the_prompt_stitches_row_by_row():
    layout = make_layout({7: [(2, 2), (2, 2)]})
    stitched = replace(layout, column=torch.tensor([[0, 1, 4, 5], [2, 3, 6, 7]]))
    tokens = torch.arange(8.0).view(2, 4, 1)
    assert Evidence(tokens, stitched).join_views().tokens[0, :, 0].tolist() == [0, 1, 4, 5, 2, 3, 6, 7]


def test_centres_stay_where_they_were_when_tokens_leave_or_views_are_joined():
    evidence = make_evidence((), {1: [(4, 6)], 2: [(2, 2), (2, 2)]})
    kept = RandomPruner()(evidence, Budget(3))
    later = evidence.restrict_to(kept).layout
    for m, n in enumerate(kept.place[0].tolist()):
        assert torch.equal(later.centre[0, m], evidence.layout.centre[0, n])
    joined = evidence.join_views().layout
    assert torch.equal(joined.centre[0], evidence.layout.centre[0])
    assert torch.equal(joined.centre[1, :8], evidence.layout.centre[1:, :4].flatten(0, 1))
    assert joined.centre[1, 8:].isnan().all()


def test_restrict_to_keeps_only_the_remaining_tokens_in_the_order_of_pruned():
    evidence = make_evidence((NEED,))
    pruned = VtcCls(last=2)(evidence, Budget(ratio=0.5))
    later = evidence.restrict_to(pruned)
    assert torch.equal(later.tokens, pruned.tokens)
    assert torch.equal(later.layout.column, pruned.column)
    place = pruned.place[1, 5]
    assert torch.equal(later[NEED][:, 1, :, 5], evidence[NEED][:, 1, :, place])
    assert Budget(ratio=0.25).total(later.layout).tolist() == [36, 108, 0, 90]  # still of the untouched count


def test_evidence_that_was_not_gathered_is_an_error_naming_need_and_cure():
    with pytest.raises(
        LookupError, match=r"Rows\(query='cls', layers=\(-1,\).* was not gathered: add it to the `needs`"
    ):
        make_evidence((NEED,))[AttentionRows("cls", (-1,))]


@pytest.mark.parametrize("structural", [None, Structural(torch.rand(2, 8), *torch.arange(8).view(4, 2))])
def test_evidence_saves_and_loads_all_kinds(tmp_path, structural):
    evidence = make_evidence(ALL_KINDS)
    evidence = replace(evidence, structural=structural)
    evidence.save(tmp_path / "evidence.safetensors")
    loaded = Evidence.load(tmp_path / "evidence.safetensors")
    assert torch.equal(loaded.tokens, evidence.tokens)
    assert list(loaded.readings) == list(ALL_KINDS)
    assert all(torch.equal(loaded[need], evidence[need]) for need in ALL_KINDS)
    for part in ("layout", "structural"):
        a, b = getattr(loaded, part), getattr(evidence, part)
        assert type(a) is type(b)
        if b is not None:
            assert all(torch.equal(getattr(a, k), v) for k, v in vars(b).items() if k in type(b).__dataclass_fields__)
    assert loaded.project is None
    want = VtcCls(last=2)(evidence, Budget(9))
    assert torch.equal(VtcCls(last=2)(loaded, Budget(9)).place, want.place)


def test_loading_another_safetensors_file_is_an_error(tmp_path):
    from safetensors.torch import save_file

    save_file({"x": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="holds no evidence"):
        Evidence.load(tmp_path / "other.safetensors")


def test_kept_and_column_follow_from_place_and_a_sequence_is_read_in_its_order():
    layout = make_layout({1: [(2, 4)]})
    tokens = torch.arange(8.0).view(1, 8, 1)
    place = torch.tensor([[6, 1, 3, -1]])
    pruned = Pruned(tokens[:, place[0]], place, torch.zeros(1, 8), layout)
    assert pruned.kept[0].nonzero()[:, 0].tolist() == [1, 3, 6]
    assert pruned.column.tolist() == [[11, 6, 8, -1]]
    tokens_read, column = pruned.sequence(0)
    assert tokens_read[:, 0].tolist() == [6, 1, 3]
    assert column.tolist() == [11, 6, 8]


def test_a_structural_token_stays_with_any_token_of_its_span_and_always_without_one():
    extra = Structural(torch.zeros(3, 1), *torch.tensor([[0, 0, 0], [4, 8, 9], [1, 5, 1], [3, 7, 0]]))
    kept = torch.zeros(1, 10, dtype=torch.bool)
    assert extra.stays(kept).tolist() == [False, False, True]
    kept[0, 7] = True
    assert extra.stays(kept).tolist() == [False, True, True]


def test_needs_of_any_imported_module_are_saved_and_loaded(tmp_path):
    @dataclass(frozen=True)
    class Entropy(AttentionNeed):
        layers: tuple[int, ...]
        kind: str = "entropy"  # as a need's description calls its class

    needs = (Entropy((-2, -1)), TextTokens(HiddenStates(2, "llm")), AttentionPageRank((3,), steps=2))
    evidence = make_evidence(needs)
    evidence.save(tmp_path / "evidence.safetensors")
    loaded = Evidence.load(tmp_path / "evidence.safetensors")
    assert tuple(loaded.readings) == needs
    assert all(torch.equal(loaded[need], evidence[need]) for need in needs)
    assert isinstance(next(iter(loaded.readings)), Entropy)


def test_a_need_of_a_module_that_is_not_imported_is_an_error_naming_it_and_nothing_is_imported():
    described = {"kind": "Sharpness", "module": "antigravity", "fields": {"layers": [0]}}
    with pytest.raises(
        LookupError, match=r"Sharpness of antigravity, which is not imported: import antigravity before"
    ):
        parse_need(described)
    assert "antigravity" not in sys.modules
    assert issubclass(UnknownNeedError, UsageError)
    with pytest.raises(LookupError, match="Popen"):  # a class of an imported module that is no need
        parse_need({"kind": "Popen", "module": "subprocess", "fields": {"args": ["true"]}})


def test_needs_that_earlier_versions_saved_are_loaded():
    rows = {"kind": "AttentionRows", "query": "cls", "layers": [-2, -1], "tower": "vision", "blocks": "feeding"}
    assert parse_need(rows) == AttentionRows("cls", (-2, -1))
    text = {"kind": "TextTokens", "what": {"kind": "HiddenStates", "layer": 2, "tower": "llm"}}
    assert parse_need(text) == TextTokens(HiddenStates(2, "llm"))
