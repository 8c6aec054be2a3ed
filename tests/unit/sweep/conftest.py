import json

import pytest
import yaml

from vtcframe.sweep import command as sweep


@pytest.fixture
def pretended(monkeypatch):
    """The configurations that predict is given; it leaves a finished run, and the exit status that a test puts in."""
    ran, statuses = [], {}

    def predict(file):
        config = yaml.safe_load(file.read_text())
        ran.append(config)
        status = statuses.get(config["writer"]["folder"].rpartition("sweep/")[2], 0)
        told = {"run": {}, "merged": "now" if status in (0, 1) else None, "attempts": []}
        (file.parent / "run.json").write_text(json.dumps(told))
        (file.parent / "predictions.jsonl").write_text("")  # also where it is not over: those of a run that it replaces
        return status

    monkeypatch.setattr(sweep, "predict", predict)
    return ran, statuses
