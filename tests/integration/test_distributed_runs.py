"""Runs of several processes, and runs that were killed: every question once, in its order, each time."""

import csv
import itertools
import json
import os
import random
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from support import workers
from support.workers import Run, slurm, torchrun
from vtcframe.assets import bundled
from vtcframe.runs.shards import row_locations

pytestmark = pytest.mark.slow

QUESTIONS = Path(bundled("vtcframe:questions"))
LINES = [json.loads(line) for line in (QUESTIONS / "questions.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def context():
    return workers.forking()


def asked(folder, count):
    """Write the first `count` bundled questions and the configuration of a run that asks them; return its options."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "asked.jsonl").write_text("".join(json.dumps(line) + "\n" for line in LINES[:count]))
    (folder / "run.yaml").write_text(
        "model: {backbone: {path: 'vtcframe:tiny', dtype: float32}, generation: {max_new_tokens: 4}, "
        "stages: [{at: projector, pruner: {name: VtcCls, last: 3}, budget: {tokens: 36}}]}\n"
        f"data: {{path: {folder}/asked.jsonl, images: {QUESTIONS}, batch_size: 2}}\n"
        f"trainer: {{accelerator: cpu}}\nwriter: {{folder: {folder}/run}}\n"
    )
    return [f"--config={folder}/run.yaml"]


def answers(folder):
    lines = (folder / "run" / "predictions.jsonl").read_text().splitlines()
    return [(row["id"], row["prediction"], row["error"]) for row in map(json.loads, lines)]


def ids(count):
    return [line["id"] for line in LINES[:count]]


@pytest.fixture(scope="module")
def reference(context, tmp_path_factory):
    """What one process answers that nobody disturbs, and how long it takes from its start."""
    folder = tmp_path_factory.mktemp("reference")
    start = time.monotonic()
    run = Run(context, folder, 1, asked(folder, 40))
    assert run.end() == [0], run.said()
    return answers(folder), time.monotonic() - start


@pytest.mark.parametrize(("how", "nodes"), [(torchrun, 1), (torchrun, 2), (slurm, 1), (slurm, 2)])
def test_several_processes_answer_as_one_does(context, reference, tmp_path, how, nodes):
    run = Run(context, tmp_path, 2, asked(tmp_path, 40), how, nodes)
    assert run.end() == [0, 0], run.said()
    assert answers(tmp_path) == reference[0]
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["predictions.jsonl", "run.json"]
    assert run.said().count("written to") == 1


@pytest.mark.parametrize("world", [1, 2, 3, 4])
def test_every_question_is_asked_once_for_any_number_of_them_and_any_batch(context, tmp_path, world):
    """0 to 13 questions, batches of 1, 2, 3 and 5, all in one group of processes; of 0, all were answered earlier."""
    options, cases = asked(tmp_path, 13), list(itertools.product(range(14), (1, 2, 3, 5)))
    several = []
    for count, batch in cases:
        where = tmp_path / f"{count}-{batch}"
        asked(where, count or 1)
        several.append(
            [f"--data.path={where}/asked.jsonl", f"--writer.folder={where}/run", f"--data.batch_size={batch}"]
        )
        several += several[-1:] if count == 0 else []
    run = Run(context, tmp_path, world, options, echo=True, twice=several)
    assert run.end() == [0] * world, run.said()
    for count, batch in cases:
        rows = answers(tmp_path / f"{count}-{batch}")
        assert [name for name, _, _ in rows] == ids(count or 1)
        assert {rank for _, rank, _ in rows} == set(map(str, range(min(world, count or 1))))


def test_lightnings_own_launcher_starts_the_other_processes(reference, tmp_path):
    command = [sys.executable, "-m", "vtcframe", "predict", *asked(tmp_path, 40), "--trainer.devices=2"]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=300, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stderr
    assert answers(tmp_path) == reference[0]


# Killed


def lines(folder):
    """How many lines the processes have written by now."""
    return sum(path.read_bytes().count(b"\n") for path in (folder / "run" / "parts").glob("*.jsonl"))


def torn(folder, draw):
    """Cut the last line of a shard that has one, as a machine does that loses power."""
    shards = [path for path in sorted((folder / "run" / "parts").glob("*.jsonl")) if path.read_bytes().count(b"\n") > 1]
    if shards:
        shard = draw.choice(shards)
        line = shard.read_bytes().splitlines(keepends=True)[-1]
        os.truncate(shard, shard.stat().st_size - draw.randrange(1, len(line)))
    return bool(shards)


def killed(context, folder, reference, kills, seed):
    """Kill a run so many times, each time with another number of processes, then let it end.

    Every other time it is at any moment, else once some more questions are answered. Return how often a killed attempt
    had answered some, and how often one of its lines was torn.
    """
    draw, options, took = random.Random(seed), asked(folder, 40), reference[1]
    cut = midst = 0
    for attempt in range(kills):
        world, before = (seed + attempt) % 3 + 1, lines(folder)
        run = Run(context, folder, world, options, slow=0.1)
        if attempt % 2:
            time.sleep(draw.uniform(0, 1) * (took + 4 / world))
        else:
            wanted = before + world + draw.randrange(1, 10)
            while any(process.is_alive() for process in run.processes) and lines(folder) < wanted:
                time.sleep(draw.uniform(0, 0.05))
        if world > 1 and draw.random() < 0.5:
            run.kill(draw.randrange(world))
            time.sleep(0.05)
        run.kill()
        run.end()
        midst += lines(folder) > before + world
        parts = [place for shard in (folder / "run" / "parts").glob("*.jsonl") for place in row_locations(shard)]
        assert len(parts) == len({identity for identity, _ in parts}), "asked again"
        if draw.random() < 0.5:
            cut += torn(folder, draw)
    run = Run(context, folder, seed % 3 + 1, options)
    assert set(run.end()) == {0}, run.said()
    assert answers(folder) == reference[0]
    assert not (folder / "run" / "parts").exists()
    return midst, cut


def test_what_was_killed_goes_on_and_every_question_is_there_once(context, reference, tmp_path):
    found = [killed(context, tmp_path / str(seed), reference, 2, seed) for seed in range(3)]
    assert all(midst for midst, _ in found)
    assert any(cut for _, cut in found)


@pytest.mark.matrix
@pytest.mark.parametrize("seed", range(3, 12))
def test_a_long_series_of_kills(context, reference, tmp_path, seed):
    midst, _ = killed(context, tmp_path, reference, 4, seed)
    assert midst


def test_a_process_that_is_gone_while_the_first_waits_for_it_fails_the_run(context, reference, tmp_path):
    options = asked(tmp_path, 40)
    run = Run(context, tmp_path, 2, options, slow=[0, 0.3])
    while not (tmp_path / "run" / "parts" / "0001-00000.jsonl").exists() or not over(tmp_path, 0):
        time.sleep(0.05)
    run.kill(1)
    assert run.end()[0] == 3
    assert "process 1 (pid " in run.said()
    assert "has ended. Finished answers are kept: rerun the same command to resume" in run.said()
    assert Run(context, tmp_path, 1, options).end() == [0]
    assert answers(tmp_path) == reference[0]


def over(folder, process):
    return b'"end"' in (folder / "run" / "parts" / f"0001-{process:05d}.jsonl").read_bytes()


def test_processes_leave_when_the_first_one_is_gone_and_the_next_run_waits_for_that(context, reference, tmp_path):
    options = asked(tmp_path, 40)
    run = Run(context, tmp_path, 2, options, slow=0.2)
    while lines(tmp_path) < 6:
        time.sleep(0.05)
    run.kill(0)
    run.processes[0].join()
    again = Run(context, tmp_path, 1, options)
    assert again.end() == [0], again.said()
    assert run.end()[1] == 3
    assert answers(tmp_path) == reference[0]


def test_a_run_that_is_asked_to_stop_stops_behind_its_batch(context, reference, tmp_path):
    options = asked(tmp_path, 40)
    run = Run(context, tmp_path, 1, options, slow=0.2)
    while lines(tmp_path) < 4:
        time.sleep(0.05)
    run.processes[0].terminate()
    assert run.end() == [3]
    assert "the run received SIGTERM. Finished answers are kept" in run.said()
    assert 4 <= lines(tmp_path) < 40
    assert Run(context, tmp_path, 1, options).end() == [0]
    assert answers(tmp_path) == reference[0]


def test_a_second_run_in_the_folder_is_locked_out_and_the_first_one_never_notices(context, reference, tmp_path):
    options = asked(tmp_path, 40)
    run = Run(context, tmp_path, 1, options, slow=0.1)
    while lines(tmp_path) < 4:
        time.sleep(0.05)
    (tmp_path / "second").mkdir()
    second = Run(context, tmp_path / "second", 2, options)
    assert second.end() == [2, 2]
    assert "another run uses" in second.said()
    assert run.end() == [0], run.said()
    assert answers(tmp_path) == reference[0]


@pytest.mark.parametrize("largest", [600, 2_000, 9_000, 15_000])
def test_a_full_disk_costs_no_answer(context, reference, tmp_path, largest):
    """At the shard's first line, in its midst, at the merge."""
    options = asked(tmp_path, 40)
    run = Run(context, tmp_path, 1, options, largest=largest)
    assert run.end() == [3]
    assert "vtcframe: error: cannot write " in run.said()
    before = lines(tmp_path)
    assert Run(context, tmp_path, 1, options).end() == [0]
    assert answers(tmp_path) == reference[0]
    assert before or largest == 600


def test_a_full_file_system_costs_no_answer(context, reference, tmp_path):
    small = tmp_path / "run"
    small.mkdir()
    if (
        not shutil.which("mount")
        or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16k", "none", small]).returncode
    ):
        pytest.skip("mounting a small file system takes rights that are not given here")
    try:
        options = asked(tmp_path, 40)
        run = Run(context, tmp_path, 1, options)
        assert run.end() == [3]
        assert "No space left on device" in run.said()
        assert lines(tmp_path) > 2
        subprocess.run(["mount", "-o", "remount,size=1m", small], check=True)
        again = Run(context, tmp_path, 1, options)
        assert again.end() == [0], again.said()
        assert "samples were answered earlier" in again.said()
        assert answers(tmp_path) == reference[0]
    finally:
        subprocess.run(["umount", small], check=True)


def test_memory_stays_as_it_is_over_2000_steps(context, tmp_path):
    options = asked(tmp_path, 1)
    many = [{**LINES[i % len(LINES)], "id": i} for i in range(2_000)]
    (tmp_path / "asked.jsonl").write_text("".join(json.dumps(line) + "\n" for line in many))
    run = Run(context, tmp_path, 1, [*options, "--data.batch_size=1"], weigh=tmp_path / "memory")
    assert run.end(300) == [0], run.said()
    weights = [int(line) for line in (tmp_path / "memory").read_text().splitlines()]
    assert len(weights) == 2_000
    assert max(weights[200:]) - weights[200] < 10 * 2**20


def test_a_benchmark_is_asked_scored_and_exported_by_its_own_rules(context, tmp_path):
    """Two processes, one picture missing."""
    options, folder = asked(tmp_path, 1), tmp_path / "gqa"
    folder.mkdir()
    picture = (QUESTIONS / LINES[0]["image"]).read_bytes()
    (folder / "7.jpg").write_bytes(picture)
    told = {
        "types": {"structural": "query"},
        "isBalanced": True,
        "question": "what shape is there ?",
        "answer": "square",
    }
    questions = {str(i): {**told, "imageId": "8" if i == 2 else "7"} for i in range(4)}
    (tmp_path / "testdev.json").write_text(json.dumps(questions))
    options += [
        f"--data.path={tmp_path}/testdev.json",
        f"--data.images={folder}",
        "--data.benchmark={name: Gqa, prompt: ''}",
    ]
    run = Run(context, tmp_path, 2, [*options, "--writer.exports=[csv, parquet]"], echo=True)
    assert run.end() == [0, 0], run.said()
    (official,) = (tmp_path / "run" / "official").glob("*/gqa.json")
    assert json.loads(official.read_text()) == [{"questionId": str(i), "prediction": str(i % 2)} for i in range(4)]
    assert re.search(r"\bquery +binary +open +all\nquestions +4 +0 +4 +4\n", run.said())
    assert json.loads((tmp_path / "run" / "run.json").read_text())["run"]["data.benchmark"] == {
        "name": "Gqa",
        "prompt": "",
    }
    pyarrow = pytest.importorskip("pyarrow.parquet")
    lines = answers(tmp_path)
    with (tmp_path / "run" / "predictions.csv").open(newline="") as file:
        assert [(row["id"], row["prediction"]) for row in csv.DictReader(file)] == [line[:2] for line in lines]
    table = pyarrow.read_table(tmp_path / "run" / "predictions.parquet").to_pylist()
    assert [(row["id"], row["prediction"], row["error"]) for row in table] == lines
    assert (
        json.loads(table[0]["meta"])
        == json.loads((tmp_path / "run" / "predictions.jsonl").read_text().splitlines()[0])["meta"]
    )
