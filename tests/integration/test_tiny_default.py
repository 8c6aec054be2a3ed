import sys
from pathlib import Path

import numpy as np
import pytest

TINY = Path(__file__).parents[2] / "tiny"


@pytest.fixture
def default(monkeypatch):
    monkeypatch.syspath_prepend(str(TINY))
    before = set(sys.modules)
    import default

    yield default
    for name in set(sys.modules) - before:
        if (TINY / f"{name}.py").exists():
            sys.modules.pop(name)


def test_seeds_differ_from_those_of_all_other_sets(default):
    from scenes import DEVELOPMENT_SEED, HELD_OUT_SEED, TRAINING_SEEDS
    from video import SEED

    seeds = [default.DESIGN_SEED, default.REPORT_SEED, DEVELOPMENT_SEED, HELD_OUT_SEED, SEED, *TRAINING_SEEDS.values()]
    assert len(set(seeds)) == len(seeds)


def test_questions_are_reproducible_and_counting_is_a_separate_group(default):
    questions, other = (default.Questions.generate(5, 3) for _ in range(2))
    assert [s.id for s in questions.samples] == [s.id for s in other.samples]
    assert set(questions.scene.tolist()) == {0, 1, 2}
    counting = questions.group("counting")
    attributes = questions.group("attributes")
    assert counting.sum() == 3
    assert np.array_equal(attributes, ~counting)


def test_the_report_compares_the_default_to_every_method_that_can_run(default, monkeypatch, capsys):
    monkeypatch.setattr(default, "REPORT_SEED", 5)
    monkeypatch.setattr(default, "RATIOS", (0.25,))
    runnable = {name: pruners for name, pruners in default.registered().items() if name.startswith("FasterVlm")}
    assert runnable
    monkeypatch.setattr(default, "registered", lambda: runnable)
    default.main(["report", "--scenes=1"])
    lines = capsys.readouterr().out.splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| ")]
    names = {"unpruned", default.RANDOM, "uniform", "VtcCls(last=3)", "FasterVlm()", str(default.ClsCoverage())}
    assert {row[0] for row in rows} == names | {"method"}
    assert len(rows) == 2 * (len(names) + 1)
    for row in rows:
        if row[0] != "method":
            assert 0 <= float(row[1].split()[0]) <= 1
            assert ("to" in row[1]) == (row[0] != str(default.ClsCoverage()))


def test_a_pruner_that_cannot_run_is_reported(default, monkeypatch):
    monkeypatch.setattr(default, "RATIOS", (0.25,))
    questions = default.Questions.generate(5, 1)
    path = Path(default.bundled("vtcframe:tiny"))
    right, errors = default.grade_pruners(
        path, questions, {"deep": [default.VtcCls(9)], "shallow": [default.VtcCls(1)]}
    )
    assert set(right) == {"unpruned", "shallow"}
    assert "beyond the 3" in errors["deep"]
    assert right["shallow"].shape == (len(questions.samples), 1)


def test_the_default_keeps_the_laws_and_its_share_of_the_highest_scores(default):
    from vtcframe.testing import check_pruner, make_evidence

    method = default.ClsCoverage()
    check_pruner(method)
    evidence = make_evidence(method.needs)
    pruned = method(evidence, default.Budget(20))
    best = default.VtcCls(query="proxy")(evidence, default.Budget(20))
    quota = (pruned.place >= 0).sum(1)
    for row, count in enumerate(quota.tolist()):
        highest = best.scores[row].argsort(descending=True)[: count // 2]
        assert pruned.kept[row, highest].all()
    assert not pruned.kept.equal(best.kept)
    with pytest.raises(ValueError, match=r"important is a share of the quota and must lie in 0..1, got 2"):
        default.ClsCoverage(important=2).pipeline()
