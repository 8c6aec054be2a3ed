"""A stranger's distribution: written without our help, installed beside us, gone without a trace."""

import json
import shutil

import pytest
import yaml

from support.distributions import ROOT, wheel

pytestmark = pytest.mark.slow

EXAMPLE = ROOT / "docs" / "examples" / "vtcframe-consensus"
ENTROPY = ROOT / "docs" / "examples" / "vtcframe-entropy"
SCORER = {
    "name": "Pipeline",
    "scorers": ["Consensus"],
    "ensembler": "Mean",
    "allocator": "Even",
    "selector": "TopK",
}
METHOD = {"name": "ConsensusPruner", "agreed": 0.5}


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Its wheel, built from a copy: the checkout stays clean."""
    folder = tmp_path_factory.mktemp("stranger")
    project = shutil.copytree(EXAMPLE, folder / EXAMPLE.name, ignore=shutil.ignore_patterns("__pycache__"))
    return project, wheel(project, folder / "wheel")


@pytest.fixture
def stranger(built, installed):
    """It in the environment that has our wheels."""
    installed.pip("install", built[1])
    yield installed
    installed.pip("uninstall", "vtcframe-consensus")


def listed(environment):
    """The lines of `vtcframe list`."""
    return [line.split() for line in environment.run("-m", "vtcframe", "list").stdout.splitlines()]


def predict(environment, folder, *pruners, **options):
    """Run six bundled questions from a YAML that names these pruners."""
    folder.mkdir(exist_ok=True)
    told = {
        "model": {
            "backbone": {"path": "vtcframe:tiny", "dtype": "float32"},
            "compare": {"pruners": list(pruners), "budgets": [{"tokens": 36}]},
            "generation": {"max_new_tokens": 1},
        },
        "data": {"path": "vtcframe:questions", "limit": 6, "batch_size": 3},
        "trainer": {"accelerator": "cpu"},
        "writer": {"folder": str(folder / "run")},
    }
    (folder / "asked.yaml").write_text(yaml.safe_dump(told))
    return environment.run("-m", "vtcframe", "predict", "--config", folder / "asked.yaml", **options)


def test_its_components_are_listed_with_distribution_and_version(stranger):
    lines = listed(stranger)
    for kind, name in (("scorer", "Consensus"), ("pruner", "ConsensusPruner")):
        assert [kind, name, "vtcframe-consensus", "0.1.0", "ok"] in lines


def test_yaml_names_its_scorer_and_its_method(stranger, tmp_path):
    predict(stranger, tmp_path, SCORER, METHOD, "RandomPruner")
    rows = [json.loads(line) for line in (tmp_path / "run" / "predictions.jsonl").read_text().splitlines()]
    whole = "Pipeline(scorers=(Consensus(),), ensembler=Mean(), allocator=Even(), selector=TopK(), "
    runs = ["unpruned", f"{whole}merger=None, across='view')", "ConsensusPruner(agreed=0.5)", "RandomPruner(seed=0)"]
    assert [row["label"] for row in rows] == runs * 6
    assert {row["visual_tokens"] for row in rows if row["budget"]} == {36}
    assert {row["error"] for row in rows} == {None}
    assert None not in {row["prediction"] for row in rows}


def test_its_own_tests_pass_where_it_is_installed(stranger, built, tmp_path):
    done = stranger.run("-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "error", built[0] / "tests", cwd=tmp_path)
    assert "4 passed" in done.stdout


def test_once_it_is_uninstalled_a_yaml_that_names_it_says_so_and_all_else_works(stranger, installed, tmp_path):
    installed.pip("uninstall", "vtcframe-consensus")
    assert not [line for line in listed(installed) if "vtcframe-consensus" in line]
    for missing, says in (
        (SCORER, "model.compare.pruners.scorers: no scorer is called 'Consensus'."),
        (METHOD, "model.compare.pruners: no pruner is called 'ConsensusPruner'."),
    ):
        done = predict(installed, tmp_path / "gone", missing, check=False)
        assert done.returncode == 2
        assert says in done.stderr
        assert "Traceback" not in done.stderr
        assert not (tmp_path / "gone" / "run").exists()
    assert predict(installed, tmp_path / "rest", "RandomPruner").returncode == 0


def test_a_scorer_takes_fifteen_lines_and_nothing_of_ours_that_a_stranger_could_not_have():
    assert len((EXAMPLE / "vtcframe_consensus" / "scorers.py").read_text().splitlines()) <= 15
    for file in EXAMPLE.rglob("*.py"):
        assert "vtcframe._" not in file.read_text()
        assert "conftest" not in file.read_text()


def test_a_need_of_its_own_is_gathered_where_it_is_installed(installed, tmp_path_factory, tmp_path):
    folder = tmp_path_factory.mktemp("entropy")
    ignored = shutil.ignore_patterns("__pycache__")
    project = shutil.copytree(ENTROPY, folder / ENTROPY.name, ignore=ignored)
    installed.pip("install", wheel(project, folder / "wheel"))
    try:
        assert ["scorer", "FocusedAttention", "vtcframe-entropy", "0.1.0", "ok"] in listed(installed)
        predict(installed, tmp_path, SCORER | {"scorers": ["FocusedAttention"]})
        rows = [json.loads(line) for line in (tmp_path / "run" / "predictions.jsonl").read_text().splitlines()]
        assert {row["error"] for row in rows} == {None}
        assert {row["visual_tokens"] for row in rows if row["budget"]} == {36}
        options = "-q", "-p", "no:cacheprovider", "-W", "error"
        done = installed.run("-m", "pytest", *options, project / "tests", cwd=tmp_path)
        assert "6 passed" in done.stdout
    finally:
        installed.pip("uninstall", "vtcframe-entropy")
