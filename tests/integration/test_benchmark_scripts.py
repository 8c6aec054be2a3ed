"""The benchmark scripts in perf/ run and print their tables; no test depends on speed."""

import importlib
from pathlib import Path

import pytest
import torch


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "perf")
    return importlib.import_module


@pytest.fixture
def rows(script):
    return script("rows")


def table_of(out):
    """Return the cells of all lines of a Markdown table, including its head and rule."""
    table = [line.strip("| ").split(" | ") for line in out.splitlines() if line.startswith("|")]
    assert len({len(cells) for cells in table}) == 1
    return table


def test_every_variant_has_its_row_in_the_table(rows, monkeypatch, capsys):
    monkeypatch.setattr(rows, "peak_in_new_process", lambda *_: 1.0)
    rows.main(["--small", "--rounds", "2", "--batch", "2", "--dtype", "float32"])
    table = table_of(capsys.readouterr().out)
    names = rows.variants(rows.llava(True, "float32", "cpu"), 2)
    assert [cells[2] for cells in table[2:]] == list(names)


def test_all_variants_do_the_same_work(rows):
    with torch.no_grad():
        outputs = {name: call() for name, call in rows.variants(rows.llava(True, "float32", "cpu"), 2).items()}
    features = [torch.stack(list(tokens)) for tokens, _ in outputs.values()]
    for other in features[1:]:
        torch.testing.assert_close(other, features[0], rtol=0, atol=1e-5)
    maps = [x for _, x in outputs.values() if x is not None]
    assert [len(x) for x in maps] == [3, 8, 3, 8, 3]
    for other in maps:
        torch.testing.assert_close(other[-3:], maps[0], rtol=0, atol=1e-6)


def test_every_reader_has_its_row_for_every_length_and_its_growth(script, capsys):
    script("reducers").main(["--tokens", "8", "16", "--rounds", "2", "--dtype", "bfloat16"])
    table = table_of(capsys.readouterr().out)
    names = ["class row", "mean query", "received", "SDPA"]
    assert [tuple(cells[:2]) for cells in table[2:]] == [(n, name) for n in ("8", "16") for name in names]
    growth = table[0].index("CPU / 8 tokens")
    assert [cells[growth] for cells in table[2:6]] == ["1.000 [1.000, 1.000]"] * 4
    column = table[0].index("CPU / SDPA")
    assert [cells[column] for cells in table[5::4]] == ["1.000 [1.000, 1.000]"] * 2


def test_readers_are_timed_on_one_and_the_same_call(script):
    calls = script("reducers").variants(8, torch.float32, "cpu")
    with torch.no_grad():
        outputs = {name: call() for name, call in calls.items()}
    assert outputs["class row"].shape == outputs["mean query"].shape == outputs["received"].shape == (1, 16, 8)
    assert outputs["SDPA"].shape == (1, 16, 8, 64)


def test_every_selector_has_its_row_for_every_number_of_views(script, capsys):
    selection = script("selection")
    selection.main("--views 1 2 --tokens 16 --width 4 --keep 3 --rounds 1".split())
    head, _, *rows = table_of(capsys.readouterr().out)
    assert head == list(selection.HEAD)
    assert [row[1:3] for row in rows] == [[v, str(s)] for v in "12" for s in selection.SELECTORS]


def test_stages_inside_are_beside_the_oracle(script, capsys):
    script("inside").main(["--batch", "2", "--layers", "3", "--width", "128", "--rounds", "2"])
    table = table_of(capsys.readouterr().out)
    assert [cells[1] for cells in table[2:]][:2] == ["plain", "FastV, keep 64"]
    assert table[-1][1] == "oracle"
