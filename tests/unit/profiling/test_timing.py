"""Rounds of measurements and their statistics; no test depends on speed."""

from functools import partial
from types import SimpleNamespace

import pytest

from vtcframe.profiling.timing import Estimate, estimate, ratio, run_rounds, time_rounds


def test_the_interval_is_that_of_the_sign_test():
    assert estimate(range(15)) == Estimate(7, 3, 11, pytest.approx(0.96484375))
    assert estimate([5, 4, 3, 2, 1]) == Estimate(3, 1, 5, pytest.approx(0.9375))


def test_ratios_compare_values_of_the_same_round():
    assert ratio([2, 8, 30], [1, 2, 10]) == Estimate(3, 2, 4, pytest.approx(0.75))


def test_every_call_runs_once_per_round_in_changing_order_after_a_warm_up_round():
    names = []
    values = run_rounds({name: partial(lambda name: names.append(name) or len(names), name) for name in "abcd"}, 20)
    order = ["".join(names[i : i + 4]) for i in range(0, len(names), 4)]
    assert len(order) == 21
    assert all(sorted(calls) == list("abcd") for calls in order)
    assert len(set(order[1:])) > 5
    assert all(min(calls) > 4 and len(calls) == 20 for calls in values.values())


def test_cpu_and_wall_seconds_are_those_of_the_call(monkeypatch):
    clock = SimpleNamespace(cpu=0.0, wall=0.0)
    monkeypatch.setattr("vtcframe.profiling.timing.time.process_time", lambda: clock.cpu)
    monkeypatch.setattr("vtcframe.profiling.timing.time.perf_counter", lambda: clock.wall)

    def call():
        clock.cpu, clock.wall = clock.cpu + 2, clock.wall + 3

    assert time_rounds({"call": call}, 2, "cpu") == {"call": [(2, 3), (2, 3)]}
