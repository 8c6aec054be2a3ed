"""Runs of `vtcframe predict`."""

import contextlib
import io
import json
from pathlib import Path

from vtcframe import RandomPruner, UniformPruner, VtcCls
from vtcframe.assets import bundled
from vtcframe.cli import main
from vtcframe.data.formats import read_groups
from vtcframe.data.results import Prediction
from vtcframe.data.sample import Sample
from vtcframe.testing.tiny_models.llava_families import draw

QUICKSTART = str(Path(__file__).parents[2] / "configs" / "quickstart.yaml")


METHODS = tuple(str(pruner) for pruner in (VtcCls(last=3), RandomPruner(seed=0), UniformPruner()))


QUESTIONS = Path(bundled("vtcframe:questions"))
GROUPS = read_groups(QUESTIONS)


def predict(*arguments):
    """Exit status, standard output, standard error."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = main(["predict", "--config", QUICKSTART, *arguments])
    return status, out.getvalue(), err.getvalue()


def read(folder):
    return [Prediction(**json.loads(line)) for line in (folder / "predictions.jsonl").read_text().splitlines()]


def taken(folder, count):
    """Write the first bundled questions as a file of their own and return the options that read it."""
    lines = [json.loads(line) for line in (QUESTIONS / "questions.jsonl").read_text().splitlines()[:count]]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "asked.jsonl").write_text(text)
    return f"--data.path={folder}/asked.jsonl", f"--data.images={QUESTIONS}", f"--writer.folder={folder}"


def runs(rows):
    split = {}
    for row in rows:
        split.setdefault((row.label, None if row.budget is None else row.budget["ratio"]), []).append(row)
    return split


def sample(name, pictures=(), frames=0, size=(70, 90)):
    film = tuple(draw(*size, 20 + f) for f in range(frames))
    return Sample(name, "what ?", (), pictures=tuple(pictures), videos=(film,) if frames else ())
