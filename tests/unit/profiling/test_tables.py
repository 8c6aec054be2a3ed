"""The tables of `vtcframe bench` report what was measured."""

import pytest

from support.profiling_cases import cells, even, run
from vtcframe.profiling.tables import Answer, BatchTimings, format_tables, format_verdict, per_token
from vtcframe.profiling.timing import estimate


def test_tables_report_speed_both_limits_and_stages():
    six = [6.0] * 6
    plain = run("unpruned", [12.0, 12, 12, 12, 12, 12], 600, vision=[1] * 6, prefill=[11] * 6)
    fast = run(
        *("Fast", six, 100, [5.4] * 6),
        **{"vision": [1] * 6, "capture": [-0.1] * 6, "scoring": [0.1] * 6, "selection": [0.2] * 6, "prefill": [4] * 6},
    )
    lines = format_tables(BatchTimings(1, plain, [fast]), "cpu")
    complete, stages, sizes = (cells(lines, table) for table in range(3))
    assert [(row["answer"], row["run"]) for row in complete] == [(n, r) for n in "13" for r in ("unpruned", "Fast")]
    assert complete[1]["s"] == "6.000 [6.000, 6.000]"
    assert complete[3]["s"] == "18.000 [18.000, 18.000]"
    assert complete[1]["against unpruned"] == "faster: 2.00x [2.00, 2.00]"
    assert complete[1]["of the oracle"] == "0.900 [0.900, 0.900]"
    assert (complete[1]["FLOP bound"], complete[1]["of the bound"]) == ("6.00x", "0.33")
    assert stages[1]["capture ms"] == "-100.00"
    assert stages[1]["splice ms"] == stages[0]["capture ms"] == "-"
    assert stages[1]["token ms"] == "6000.00"
    assert stages[1]["scoring + selection, % of vision + prefill"] == "6.000 [6.000, 6.000]"
    assert stages[1]["until pruned / vision"] == "1.200 [1.200, 1.200]"
    assert sizes[1]["tokens per layer"] == "2 x 64, 1 x 9"
    assert (sizes[1]["KV MiB per sample"], sizes[1]["vision GFLOP"]) == ("1.0", "0.000")
    assert "No oracle of unpruned" in "".join(lines)  # the reason is printed wherever there is one
    assert cells(format_tables(BatchTimings(1, plain, [fast]), "wall"), 0)[1]["s"] == "12.000 [12.000, 12.000]"


@pytest.mark.parametrize(
    ("speeds", "verdict"),
    [
        ([1.2, 1.3, 1.4, 1.5, 1.6, 1.7], "faster: 1.45x [1.20, 1.70]"),
        ([0.9, 1.3, 1.4, 1.5, 1.6, 1.7], "not shown to be faster: 1.45x [0.90, 1.70]"),
        ([0.5, 0.6, 0.7, 0.8, 0.9, 1.1], "not shown to be faster: 0.75x [0.50, 1.10]"),
        ([0.5, 0.6, 0.7, 0.8, 0.9, 0.99], "slower: 0.75x [0.50, 0.99]"),
        ([1.2, 1.3, 1.4, 1.5, 1.6], "too few rounds to tell: 1.40x [1.20, 1.60]"),
    ],
)
def test_a_verdict_is_faster_only_if_the_interval_lies_above_one(speeds, verdict):
    assert format_verdict(estimate(speeds)) == verdict


def test_time_per_token_is_the_difference_of_answers_over_their_difference_in_length():
    long = Answer(17, even(40, 50), 0, None)
    short = Answer(1, even(8, 2), 0, None)
    assert per_token([long, short]) == even(2, 3)
    assert per_token([short]) is None
