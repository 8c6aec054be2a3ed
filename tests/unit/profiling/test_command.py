"""`vtcframe bench` as a command; no test depends on speed."""

import json
import subprocess
import sys

import pytest
import torch

from support.profiling_cases import TINY, cells
from vtcframe.errors import UsageError
from vtcframe.profiling import measure as measuring
from vtcframe.profiling.command import main
from vtcframe.profiling.measure import measure_batch


@pytest.mark.parametrize("family", TINY)
def test_a_shape_is_measured_without_a_checkpoint(family, tiny, capsys, tmp_path):
    tiny(family)
    path = tmp_path / "deep" / "results.json"
    options = "--tokens 4 --batch 1 2 --answer 1 2 --rounds 1 --dtype float32 --threads 1 --layers 3 --device cpu"
    pruner = "{name: VtcCls, last: 1, query: proxy}"
    assert main([*options.split(), "--pruner", pruner, "--json", str(path)]) == 0
    out = capsys.readouterr().out
    assert "the first 3 of 4 layers" in out
    assert out.count("too few rounds to tell") == 4
    assert "load" in out  # the machine
    results = json.loads(path.read_text())
    assert [batch["size"] for batch in results["batches"]] == [1, 2]
    (pruned,) = results["batches"][1]["pruned"]
    assert (pruned["method"], pruned["tokens"], results["rounds"]) == ("VtcCls(last=1, query='proxy')", 4.0, 1)
    assert len(pruned["answers"][1]["oracle"]["wall"]) == 1
    assert not list(path.parent.glob("*.part"))


def test_a_checkpoint_is_measured_at_three_two_and_one_ninths(capsys):
    pruners = "--pruner", "VtcCls", "{name: RandomPruner, seed: 3}"
    options = "--model vtcframe:tiny --dtype float32 --batch 1 --answer 1 --rounds 1 --device cpu"
    assert main([*options.split(), *pruners]) == 0
    rows = cells(capsys.readouterr().out.splitlines(), 0)
    assert [(row["run"], row["tokens"]) for row in rows[1:]] == [
        (name, tokens) for name in ("VtcCls(last=3)", "RandomPruner(seed=3)") for tokens in ("48", "32", "16")
    ]


def test_a_file_that_cannot_be_written_is_reported_before_the_measurements(tiny, monkeypatch, tmp_path):
    tiny("llava")
    monkeypatch.setattr(measuring, "measure_batch", lambda *_: pytest.fail("measured"))
    with pytest.raises(UsageError, match="cannot write"):
        main(["--tokens", "4", "--device", "cpu", "--json", str(tmp_path)])


def test_a_batch_that_does_not_fit_is_reported_and_the_next_batch_runs(tiny, monkeypatch, capsys):
    tiny("llava")

    def measure_little(model, cases, inputs, *rest):
        if len(inputs["input_ids"]) == 2:
            raise torch.OutOfMemoryError("2 GiB are missing")
        return measure_batch(model, cases, inputs, *rest)

    monkeypatch.setattr(measuring, "measure_batch", measure_little)
    assert main("--tokens 4 --batch 2 1 --answer 1 --rounds 1 --device cpu".split()) == 0
    out = capsys.readouterr().out
    assert "## Batch 2\n\nOut of memory: 2 GiB are missing" in out
    assert "## Batch 1\n\nComplete runs." in out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--tokens 16", r"a sample has 16 visual tokens: give smaller values of --tokens"),
        ("--model vtcframe:tiny --layers 2", r"leave --shape and --layers out"),
        ("--model vtcframe:tiny --shape llava-1.5-7b", r"leave --shape and --layers out"),
        ("--tokens 4 --attn slow", r"--attn slow: "),
        ("--device moon", r"there is no device 'moon' here"),
        ("--tokens 4 --pruner deep", r"llava-1.5-7b with random weights.*: AttentionRows.* beyond the 3"),
    ],
)
def test_options_that_cannot_be_run_are_reported(options, message, tiny):
    tiny("llava")
    arguments = f"--batch 1 --answer 1 --rounds 1 --device cpu {options}".split()
    with pytest.raises(UsageError, match=message):
        main(["{name: VtcCls, last: 99}" if option == "deep" else option for option in arguments])


@pytest.mark.parametrize("options", ["--batch 0", "--rounds -1", "--shape llava-9b", "--answer one"])
def test_numbers_and_names_are_checked_by_the_parser(options, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(options.split())
    assert options.split()[0] in capsys.readouterr().err


def test_a_misspelled_pruner_is_reported_without_importing_torch():
    script = (
        "import sys\nfrom vtcframe.profiling.command import main\nfrom vtcframe.config.short_names import UsageError\n"
        "try: main(['--pruner', 'VtcCl'])\nexcept UsageError as error: print(error)\n"
        "print({'torch', 'transformers'} & set(sys.modules))"
    )
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert "Did you mean" in out or "VtcCls" in out
    assert out.endswith("set()\n")
