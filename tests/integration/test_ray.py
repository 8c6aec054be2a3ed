"""The recipe of docs/ray.md with the real Ray: one cluster of two CPUs on this machine for all tests."""

import contextlib
import importlib.util
import json
import os
import runpy
import secrets
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from vtcframe.assets import bundled
from vtcframe.data.decode import load_sample
from vtcframe.data.formats import read_samples
from vtcframe.data.results import Prediction

pytest.importorskip("ray.data", reason="Ray Data is not installed: it is the optional extra `ray`")
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::DeprecationWarning:ray.*")]

import ray  # noqa: E402 (not before it is known to be there)

DOCS = Path(__file__).parents[2] / "docs"
RECIPE = DOCS / "examples" / "ray_predict.py"
QUESTIONS = Path(bundled("vtcframe:questions"))
COUNT, BATCH = 23, 4  # no multiple


@pytest.fixture(scope="module")
def cluster():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_AUTH_TOKEN", secrets.token_hex(32))  # else Ray writes one to the home folder
        patch.delenv("OMP_NUM_THREADS", raising=False)  # as on a machine where nobody thought of it
        ray.init(num_cpus=2, include_dashboard=False, object_store_memory=100 * 2**20, log_to_driver=False)
        ray.data.DataContext.get_current().execution_no_progress_timeout_s = 120  # what hangs is to fail
        yield
        ray.shutdown()


@pytest.fixture
def recipe():
    """The script as a module that no worker could import: its code must travel, as that of a script does."""
    spec = importlib.util.spec_from_file_location("recipe", RECIPE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def asked(tmp_path_factory):
    """A file of questions; the picture of the sixth is missing."""
    folder = tmp_path_factory.mktemp("asked")
    lines = [json.loads(line) for line in (QUESTIONS / "questions.jsonl").read_text().splitlines()[:COUNT]]
    lines[5]["image"] = "missing.png"
    (folder / "questions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "images").symlink_to(QUESTIONS / "images")
    return folder / "questions.jsonl"


def read(lines):
    return [Prediction(**json.loads(line)) for line in lines]


def told(rows):
    """The rows in the order of their ids, without what differs from run to run."""
    return [replace(row, seconds=None, encode_seconds=None, batch=None) for row in sorted(rows, key=lambda row: row.id)]


def expected(recipe, asked):
    """The rows of the same predictor in this process."""
    predictor = recipe.Predictor(recipe.BACKBONE, recipe.STAGES, generation=recipe.GENERATION)
    predictor.setup("predict")
    with torch.inference_mode():
        return predictor.predict_step([load_sample(sample) for sample in read_samples(asked, asked.parent)], 0)


def test_the_script_writes_the_rows_that_one_process_writes(cluster, recipe, asked, tmp_path, monkeypatch):
    monkeypatch.chdir(asked.parent)  # where Ray's processes are not
    out = tmp_path / "predictions.jsonl"
    monkeypatch.setattr(sys, "argv", ["ray_predict.py", asked.name, str(out), "--actors=1", f"--batch-size={BATCH}"])
    runpy.run_path(str(RECIPE), run_name="__main__")
    rows = read(out.read_text().splitlines())
    assert told(rows) == told(expected(recipe, asked))
    assert ["missing.png" in row.error for row in rows if row.error is not None] == [True]
    assert [row.visual_tokens for row in rows].count(18) == COUNT - 1
    assert {row.batch for row in rows} == set(range(-(-COUNT // BATCH)))
    assert list(tmp_path.iterdir()) == [out]


def test_a_killed_actor_starts_anew_and_every_question_is_answered_once(cluster, recipe, asked, tmp_path, monkeypatch):
    class Killed(recipe.Answerer):
        def __call__(self, batch):
            (tmp_path / f"{os.getpid()} with {torch.get_num_threads()} threads").touch()
            deadline = time.monotonic() + 300
            while not self.batches and len(list(tmp_path.iterdir())) < 2 and time.monotonic() < deadline:
                time.sleep(0.05)  # until both actors have a batch
            answered = super().__call__(batch)
            if self.batches == 2:
                with contextlib.suppress(FileExistsError):
                    (tmp_path / "killed").touch(exist_ok=False)
                    os.kill(os.getpid(), signal.SIGKILL)
            return answered

    monkeypatch.setattr(recipe, "Answerer", Killed)
    answers = recipe.answers(read_samples(asked, asked.parent), actors=2, gpus=0, batch_size=BATCH)
    rows = read(row["line"] for row in answers.iter_rows())
    assert told(rows) == told(expected(recipe, asked))
    processes = [path.name for path in tmp_path.iterdir() if path.name != "killed"]
    assert (tmp_path / "killed").exists()
    assert len(processes) == 3
    assert all(name.endswith(" with 1 threads") for name in processes)


def test_a_model_that_cannot_be_loaded_ends_the_run_with_the_reason(cluster, recipe, asked, tmp_path, monkeypatch):
    out = tmp_path / "predictions.jsonl"
    monkeypatch.setattr(sys, "argv", ["ray_predict.py", str(asked), str(out), "--actors=1"])
    monkeypatch.setattr(recipe, "BACKBONE", recipe.Backbone("vtcframe:tinny"))
    with pytest.raises(ray.exceptions.RayError, match="nothing bundled is called 'vtcframe:tinny'"):
        recipe.main()
    assert not out.exists()


def test_the_page_shows_the_script_as_it_is():
    include = f'--8<-- "docs/{RECIPE.relative_to(DOCS).as_posix()}"'
    assert f"\n```py\n{include}\n```\n" in (DOCS / "ray.md").read_text()
