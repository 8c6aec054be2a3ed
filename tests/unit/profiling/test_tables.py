"""The tables of `vtcframe bench` report what was measured."""

import pytest

from support.profiling_cases import cells, even, run
from vtcframe.profiling.tables import Answer, Batch, per_token, tables, verdict
from vtcframe.profiling.timing import estimate


def test_tables_tell_speed_the_two_limits_and_stages():
    six = [6.0] * 6
    plain = run("unpruned", [12.0, 12, 12, 12, 12, 12], 600, vision=[1] * 6, prefill=[11] * 6)
    fast = run(
        *("Fast", six, 100, [5.4] * 6),
        **{"vision": [1] * 6, "capture": [-0.1] * 6, "scoring": [0.1] * 6, "selection": [0.2] * 6, "prefill": [4] * 6},
    )
    lines = tables(Batch(1, plain, [fast]), "cpu")
    whole, staged, sizes = (cells(lines, table) for table in range(3))
    assert [(row["answer"], row["run"]) for row in whole] == [(n, r) for n in "13" for r in ("unpruned", "Fast")]
    assert whole[1]["s"] == "6.000 [6.000, 6.000]"
    assert whole[3]["s"] == "18.000 [18.000, 18.000]"
    assert whole[1]["against unpruned"] == "faster: 2.00x [2.00, 2.00]"
    assert whole[1]["of the oracle"] == "0.900 [0.900, 0.900]"
    assert (whole[1]["FLOP bound"], whole[1]["of the bound"]) == ("6.00x", "0.33")
    assert staged[1]["capture ms"] == "-100.00"
    assert staged[1]["splice ms"] == staged[0]["capture ms"] == "-"
    assert staged[1]["token ms"] == "6000.00"
    assert staged[1]["judging, % of vision + prefill"] == "6.000 [6.000, 6.000]"
    assert staged[1]["until pruned / vision"] == "1.200 [1.200, 1.200]"
    assert sizes[1]["tokens a layer reads"] == "2 x 64, 1 x 9"
    assert (sizes[1]["KV MiB a sample"], sizes[1]["vision GFLOP"]) == ("1.0", "0.000")
    assert "No oracle of unpruned" in "".join(lines)  # wherever there is a reason
    assert cells(tables(Batch(1, plain, [fast]), "wall"), 0)[1]["s"] == "12.000 [12.000, 12.000]"


@pytest.mark.parametrize(
    ("speeds", "said"),
    [
        ([1.2, 1.3, 1.4, 1.5, 1.6, 1.7], "faster: 1.45x [1.20, 1.70]"),
        ([0.9, 1.3, 1.4, 1.5, 1.6, 1.7], "not shown to be faster: 1.45x [0.90, 1.70]"),
        ([0.5, 0.6, 0.7, 0.8, 0.9, 1.1], "not shown to be faster: 0.75x [0.50, 1.10]"),
        ([0.5, 0.6, 0.7, 0.8, 0.9, 0.99], "slower: 0.75x [0.50, 0.99]"),
        ([1.2, 1.3, 1.4, 1.5, 1.6], "too few rounds to tell: 1.40x [1.20, 1.60]"),
    ],
)
def test_a_verdict_says_faster_only_where_the_interval_does(speeds, said):
    assert verdict(estimate(speeds)) == said


def test_a_token_takes_the_difference_of_answers_for_each_token_between():
    long, short = Answer(17, even(40, 50), 0, None), Answer(1, even(8, 2), 0, None)
    assert per_token([long, short]) == even(2, 3)
    assert per_token([short]) is None
