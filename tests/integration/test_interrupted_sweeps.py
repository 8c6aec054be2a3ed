"""Sweeps that are killed and resumed write the same report."""

import re
import time
from pathlib import Path

import pytest

from support import workers
from support.sweeps import swept, written
from vtcframe.assets import bundled

pytestmark = pytest.mark.slow

pytest.importorskip("scipy", reason="the extra `report` is not installed")


pytest.importorskip("jinja2", reason="the extra `report` is not installed")


QUESTIONS = Path(bundled("vtcframe:questions"))


def started(context, folder, slow=0.0):
    data = {
        "toys": {"path": "vtcframe:questions", "batch_size": 4, "limit": 20},
        "more": {"path": str(folder / "more.jsonl"), "images": str(QUESTIONS), "batch_size": 4},
    }
    lines = (QUESTIONS / "questions.jsonl").read_text().splitlines(keepends=True)
    (folder / "more.jsonl").write_text("".join(lines[20:40]))
    out = folder / "said.txt"
    process = context.Process(target=swept, args=([written(folder, data=data, pictures=1)], out, slow))
    process.start()
    return process, out


def figures(folder):
    """The report without what tells of attempts."""
    return (folder / "sweep" / "report.md").read_text().partition("\n## Runs\n")[0]


def answered(folder, run):
    return sum(path.read_bytes().count(b"\n") for path in (folder / "sweep" / run / "parts").glob("*.jsonl"))


def test_a_sweep_that_was_killed_in_the_middle_and_started_again_gives_the_same_report(tmp_path):
    context = workers.forking()
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    whole.mkdir()
    killed.mkdir()
    process, out = started(context, whole)
    process.join()
    assert process.exitcode == 0, out.read_text()
    for run in ("tiny/toys/01", "tiny/more/01"):
        process, out = started(context, killed, slow=0.3)
        while answered(killed, run) < 9:
            assert process.is_alive(), out.read_text()
            time.sleep(0.02)
        process.kill()
        process.join()
    process, out = started(context, killed)
    process.join()
    assert process.exitcode == 0, out.read_text()
    assert "tiny/more/01: resumes VtcCls(last=3)" in out.read_text()
    assert "samples were answered earlier" in out.read_text()
    assert figures(killed) == figures(whole)
    text = figures(whole)
    assert "## tiny: mean over 2 sets" in text
    assert "| RandomPruner() | 0.25 | 2 | 20 |" in text
    assert len(re.findall("Kept tokens of", text)) == 2
    assert not list(killed.rglob("parts"))
