"""Benchmarks run and measure what they say; how long anything takes is not tested."""

import importlib
from pathlib import Path

import pytest
import torch


@pytest.fixture
def rows(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "benchmarks")
    return importlib.import_module("rows")


def test_every_variant_has_its_row_in_the_table(rows, monkeypatch, capsys):
    monkeypatch.setattr(rows, "peak_apart", lambda *_: 1.0)
    rows.main(["--small", "--rounds", "2", "--batch", "2", "--dtype", "float32"])
    table = [line.split(" | ") for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert len({len(cells) for cells in table}) == 1
    names = rows.variants(rows.llava(True, "float32", "cpu"), 2)
    assert [cells[2] for cells in table[2:]] == list(names)


def test_all_variants_do_the_same_work(rows):
    with torch.no_grad():
        found = {name: call() for name, call in rows.variants(rows.llava(True, "float32", "cpu"), 2).items()}
    features = [torch.stack(list(tokens)) for tokens, _ in found.values()]
    for other in features[1:]:
        torch.testing.assert_close(other, features[0], rtol=0, atol=1e-5)
    maps = [x for _, x in found.values() if x is not None]
    assert [len(x) for x in maps] == [3, 8, 3, 8, 3]
    for other in maps:
        torch.testing.assert_close(other[-3:], maps[0], rtol=0, atol=1e-6)


def test_the_interval_is_that_of_the_sign_test(rows):
    assert rows.interval(range(15)) == (3, 11, pytest.approx(0.96484375))
    assert rows.interval([5, 4, 3, 2, 1]) == (1, 5, pytest.approx(0.9375))
