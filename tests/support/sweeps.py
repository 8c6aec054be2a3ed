"""Configurations of sweeps."""

import os
import sys
from dataclasses import replace

import pytest
import yaml

from support import workers
from vtcframe.cli import main as command
from vtcframe.runs.predictor import Predictor
from vtcframe.sweep import command as sweep
from vtcframe.sweep.config import read_sweep
from vtcframe.sweep.planning import plan_runs

pytest.importorskip("scipy", reason="the extra `report` is not installed")


pytest.importorskip("jinja2", reason="the extra `report` is not installed")


TINY = {"path": "vtcframe:tiny", "dtype": "float32"}


def written(folder, **keys):
    """The file of a sweep over the first questions: two pruners, two budgets, two seeds."""
    told = {
        "models": {"tiny": TINY},
        "data": {"toys": {"path": "vtcframe:questions", "batch_size": 4, "limit": 12}},
        "pruners": [{"name": "VtcCls", "last": 3}, "RandomPruner"],
        "budgets": [{"ratio": 0.25}, {"tokens": 9}],
        "seeds": [0, 1],
        "baselines": False,
        "generation": {"max_new_tokens": 4},
        "trainer": {"accelerator": "cpu", "devices": 1},
        "folder": str(folder / "sweep"),
    }
    (folder / "sweep.yaml").write_text(yaml.safe_dump(told | keys, sort_keys=False))
    return f"--config={folder}/sweep.yaml"


def planned(folder, *options, **keys):
    """What would be run: folder, and methods at budgets."""
    sweep_config = read_sweep(written(folder, **keys).removeprefix("--config="), options)
    place = folder / "sweep"
    return [(run.folder.relative_to(place).as_posix(), str(run).partition(": ")[2]) for run in plan_runs(sweep_config)]


# Killed


def swept(arguments, out, slow):
    """Sweep in this process, its runs too, with seconds that are always the same."""
    file = os.open(out, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(file, 1)
    os.dup2(file, 2)
    step = Predictor.predict_step

    def predict_step(self, batch, batch_idx):
        return [replace(row, seconds=0.25, encode_seconds=0.0) for row in step(self, batch, batch_idx)]

    Predictor.predict_step = workers._slowed(predict_step, slow, None)  # pyright: ignore[reportAttributeAccessIssue]
    sweep.predict = lambda file: command(["predict", "--config", str(file)])
    status = command(["sweep", *arguments])
    sys.stdout.flush()
    os._exit(status)
