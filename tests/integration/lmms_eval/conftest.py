import datasets
import pytest
import yaml
from lmms_eval import evaluator
from lmms_eval.api import task as tasks
from loguru import logger

from support.lmms_eval_cases import ASKED, QUESTIONS, TASK


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A task on the first bundled questions, as lmms-eval's users write theirs."""
    folder = tmp_path_factory.mktemp("tasks")
    rows = [{"question": one["question"], "answer": one["answer"]} for one in ASKED]
    rows = [{**row, "image": str(QUESTIONS / one["image"])} for row, one in zip(rows, ASKED, strict=True)]
    given = datasets.Dataset.from_list(rows).cast_column("image", datasets.Image())
    given.to_parquet(str(folder / "scenes.parquet"))
    task = {**TASK, "dataset_kwargs": {"data_files": {"test": str(folder / "scenes.parquet")}}}
    (folder / "scenes.yaml").write_text(yaml.safe_dump(task))
    return folder


@pytest.fixture(autouse=True)
def at_home(monkeypatch, tmp_path_factory):
    """Leave the caches of the person who runs this alone, and filelock as it is for other tests."""
    home = str(tmp_path_factory.getbasetemp() / "datasets")
    monkeypatch.setenv("LMMS_EVAL_DATASETS_CACHE", home)
    monkeypatch.setattr(evaluator, "_enable_reentrant_filelocks", lambda: None)
    tasks._resolve_hf_datasets_cache_dir.cache_clear()
    yield
    tasks._resolve_hf_datasets_cache_dir.cache_clear()


@pytest.fixture
def log():
    """What is logged meanwhile."""
    lines = []
    number = logger.add(lambda line: lines.append(str(line)), format="{level} {message}")
    yield lines
    logger.remove(number)
