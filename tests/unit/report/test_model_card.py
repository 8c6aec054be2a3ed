"""The model card: only figures of the report, metadata that the Hub's library can load, code that runs."""

import re

import pytest
from huggingface_hub import ModelCard

from support.models import backbone
from support.report_runs import FACTS, QUARTER, folder, rows
from vtcframe import Budget, ClsAttention, Even, Mean, Pipeline, Pope, RandomPruner, Stage, TopK, VtcCls
from vtcframe.core.serialization import UNPRUNED, stage_data
from vtcframe.report import command as report
from vtcframe.report.model_card import card
from vtcframe.report.runs import load_runs
from vtcframe.report.sections import NONE
from vtcframe.testing import make_inputs
from vtcframe.testing.tiny_models.llava_families import SAMPLES

CODE = re.compile(r"```python\n(.*?)```", re.DOTALL)


def run_facts(*stages, **facts):
    """Return the facts of a run that pruned at these stages."""
    runs = [{"stages": [stage_data(stage)]} if isinstance(stage, Stage) else stage for stage in stages]
    return {"model.runs": [UNPRUNED, *runs]} | facts


@pytest.fixture
def runs(tmp_path):
    random = [rows(f"RandomPruner(seed={seed})", "10011010", QUARTER, seconds=0.05) for seed in (0, 1)]
    pruned = rows("VtcCls(last=3)", "11110110", QUARTER, seconds=0.04)
    stage = Stage("projector", VtcCls(last=3), Budget(ratio=0.25))
    folder(tmp_path / "a", rows("unpruned", "11111110"), *random, pruned, **run_facts(stage))
    return tmp_path


def lines(text):
    """Return the cells after the method name, by method, of the card's table."""
    cells = [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in text.splitlines() if line[:1] == "|"]
    return {cells[0][0]: cells[0][1:]} | {line[0]: line[1:] for line in cells[2:]}


def test_the_table_has_the_reports_figures(runs):
    table = lines(card(load_runs([runs])))
    assert list(table) == ["method", "unpruned", "RandomPruner()", "VtcCls(last=3)"]
    assert table["unpruned"][:2] == [NONE, "0.875"]
    assert table["VtcCls(last=3)"][:3] == ["0.25", "0.750", "-0.125"]
    assert table["VtcCls(last=3)"][4:] == ["36.0", "36.0", "0.0400", "0.40"]
    assert table["RandomPruner()"][:2] == ["0.25", "0.500"]
    assert re.fullmatch(r"[+-]\d\.\d{3} to [+-]\d\.\d{3}", table["VtcCls(last=3)"][3])


def test_it_describes_the_measurement_and_the_conclusions(runs):
    text = card(load_runs([runs]))
    for sentence in (
        "Model: some/tiny, revision a; weights and precision: float32, 32-true.",
        "Questions with a reference answer: 8; options of generate: max\\_new\\_tokens 4.",
        "Means over seeds: RandomPruner() at 0.25 (2).",
        "Baselines: RandomPruner.",
        "Versions: torch 2.9.",
        "missing baselines: UniformPruner at 0.25",
        "run with fewer than three seeds",
    ):
        assert sentence in text
    assert "transformers 5" not in text  # not among the facts of the run


def test_missing_information_is_left_out(tmp_path):
    stage = Stage("projector", VtcCls(last=3), Budget(ratio=0.25))
    folder(tmp_path / "a", rows("VtcCls(last=3)", "1110", QUARTER, seconds=None), **run_facts(stage))
    text = card(load_runs([tmp_path]))
    table = lines(text)
    assert table["VtcCls(last=3)"] == ["0.25", "0.750", NONE, NONE, "36.0", "36.0", NONE, NONE]
    for absent in ("share of its batch", "Differences", "Means over seeds", "Baselines:", "unpruned, 95"):
        assert absent not in text
    assert "the unpruned model was not run" in text


def test_seconds_of_different_runs_are_not_compared(tmp_path):
    folder(tmp_path / "a", rows("unpruned", "1111", seconds=0.2))
    folder(tmp_path / "b", rows("VtcCls(last=3)", "1110", QUARTER, seconds=0.1))
    table = lines(card(load_runs([tmp_path])))
    assert table["VtcCls(last=3)"][-2:] == [NONE, NONE]
    assert table["unpruned"][-2:] == ["0.2000", "1.00"]


def test_the_hubs_library_can_load_the_metadata(runs):
    path = report.write([runs], runs / "page", with_card=True)[-1]
    assert path == runs / "page-card.md"
    model_card = ModelCard.load(path)
    assert model_card.data.model_name == "tiny"
    results = {result.metric_name: result for result in model_card.data.eval_results}
    assert {name: result.metric_value for name, result in results.items()} == {
        "all, unpruned": 0.875,
        "all, RandomPruner() at 0.25": 0.5,
        "all, VtcCls(last=3) at 0.25": 0.75,
    }
    unpruned = results["all, unpruned"]
    assert (unpruned.task_type, unpruned.dataset_name, unpruned.metric_type) == (
        "image-text-to-text",
        "toys",
        "accuracy",
    )
    assert unpruned.verified is None
    assert model_card.text.strip().startswith("## Visual token compression")


def test_a_benchmarks_figure_has_its_name(tmp_path):
    facts = {"data.benchmark": {"name": "Pope"}}
    answers = [rows("unpruned", "1101")]
    path = folder(tmp_path / "a", *answers, **facts)
    headline = list(Pope().score(answers[0]))[-1]
    text = card(load_runs([path]))
    assert f"score ({headline})".replace("_", "\\_") in text
    assert "type: accuracy" not in text or headline == "all"


def test_questions_without_reference_answers_give_a_card_without_metadata(tmp_path):
    unanswered = rows("unpruned", "11")
    object.__setattr__(unanswered[0], "answer", None)
    object.__setattr__(unanswered[1], "answer", None)
    text = card(load_runs([folder(tmp_path / "a", unanswered)]))
    assert text.startswith("## ")
    assert lines(text)["unpruned"][:2] == [NONE, NONE]


# Usage code


def usage_code(tmp_path, method, budget, *stages):
    text = card(load_runs([folder(tmp_path / "a", rows(str(method), "1110", budget), **run_facts(*stages))]))
    return [code for code in CODE.findall(text)]


def test_the_usage_code_runs_and_reproduces_the_run(runs):
    (code,) = CODE.findall(card(load_runs([runs])))
    assert len(code.strip().splitlines()) == 2
    model, processor = backbone("llava")
    names = {"model": model, "processor": processor}
    exec(code, names)
    assert names["compressed"].plan.stages == (Stage("projector", VtcCls(last=3), Budget(ratio=0.25)),)
    names["compressed"].generate(**make_inputs(processor, SAMPLES["one"]), max_new_tokens=1)
    assert names["compressed"].last.tokens_after.tolist() == [4]


@pytest.mark.parametrize(
    "pruner",
    [VtcCls(last=2), Pipeline((ClsAttention(last=2),), Mean(), Even(), TopK(), across="sample")],
    ids=["a method", "a pipeline"],
)
@pytest.mark.parametrize("per", [{}, {"per": "image"}], ids=["a sample", "an image"])
def test_the_usage_code_reproduces_the_stages_of_the_run(pruner, per, tmp_path):
    stage = Stage("projector", pruner, Budget(tokens=36, **per))
    (code,) = CODE.findall(card(load_runs([_run_folder(tmp_path, pruner, {"tokens": 36} | per, stage)])))
    names = dict(zip(("model", "processor"), backbone("llava"), strict=True))
    exec(code, names)
    assert names["compressed"].plan.stages == (stage,)


def _run_folder(tmp_path, pruner, budget, stage):
    answers = rows(str(pruner), "1110", {"ratio": 0.25})
    for row in answers:
        object.__setattr__(row, "budget", budget)
    return folder(tmp_path / "a", answers, **run_facts(stage))


@pytest.mark.parametrize(
    ("method", "stage"),
    [
        (
            "VtcCls(last=3)",
            Stage("projector", VtcCls(last=3), Budget(ratio=0.25), positions="compact"),
        ),  # not the default positions of VtcCls
        ("VtcCls(last=3) + VtcCls(last=1)", Stage("projector", VtcCls(last=3), Budget(ratio=0.25))),
        ("Unknown(last=3)", "Stage"),
        ("VtcCls(last=__import__('os'))", "Stage"),
        ("VtcCls(last=3).stages.__globals__", "Stage"),
        ("print(1)", "Stage"),
        ("VtcCls", "Stage"),
        ("VtcCls(last=(lambda: 3)())", "Stage"),
        ("not python", "Stage"),
        ("VtcCls(last=1 + 2)", Stage("projector", VtcCls(last=3), Budget(ratio=0.25))),
        ("RandomPruner(seed=0)", Stage("projector", RandomPruner(seed=0), Budget(ratio=0.25))),  # a baseline
    ],
)
def test_methods_without_safe_usage_code_are_left_out(method, stage, tmp_path):
    assert usage_code(tmp_path, method, QUARTER, stage) == []


def test_the_command_writes_the_card_only_with_the_option(runs, capsys):
    report.main([str(runs)])
    assert not list(runs.glob("*-card.md"))
    report.main([str(runs), "--card"])
    assert "report-card.md" in capsys.readouterr().out
    assert (runs / "report-card.md").read_text() == card(load_runs([runs]))


def test_special_characters_in_names_do_not_break_the_table_or_the_metadata(tmp_path):
    backbone_facts = FACTS["model.backbone"] | {"path": "some/a|b # *c*"}
    path = folder(
        tmp_path / "a", rows("unpruned", "1111"), rows("a | b", "1111", QUARTER), **{"model.backbone": backbone_facts}
    )
    text = card(load_runs([path]))
    (tmp_path / "card.md").write_text(text)
    assert ModelCard.load(tmp_path / "card.md").data.model_name == "a|b # *c*"
    assert "a\\|b # \\*c\\*" in text
    assert "| a \\| b | 0.25 |" in text
