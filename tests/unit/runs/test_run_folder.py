"""What a folder holds of earlier runs, and what may be done with it."""

import json
import os
import threading

import pytest

from vtcframe.errors import UnfinishedError, UsageError
from vtcframe.runs.run_folder import RunFolder
from vtcframe.runs.shards import Shard, row_locations

FACTS = {"model.backbone": {"path": "some/checkpoint"}, "data": "3 questions, 0123", "version of torch": "2.0"}
ORDER = ["a", "b", "c"]


def row(identity, prediction="yes", error=None):
    return {"id": identity, "prediction": prediction, "error": error}


def attempt(path, samples, facts=FACTS, existing="resume", finished=False):
    """Answer these in one attempt that then ends, or is killed, and return what were answered before it."""
    folder = RunFolder(path, existing)
    number, done = folder.begin(facts, 1)
    shard = Shard(folder.parts, number, 0)
    shard.append([[one] for one in samples])
    shard.close(finished)
    if finished:
        folder.await_others(number, 1, lambda: False)
        folder.merge(ORDER)
    folder.leave()
    return done


def merged(path):
    return [json.loads(line) for line in (path / "predictions.jsonl").read_text().splitlines()]


def files(path):
    return {file.relative_to(path): file.read_bytes() for file in path.rglob("*") if file.is_file()}


def test_attempts_add_up_and_the_merged_file_has_the_order_of_the_data(tmp_path):
    assert attempt(tmp_path, [row("c")]) == set()
    assert attempt(tmp_path, [row("a")]) == {"c"}
    assert attempt(tmp_path, [row("b")], finished=True) == {"a", "c"}
    assert merged(tmp_path) == [row("a"), row("b"), row("c")]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["predictions.jsonl", "run.json"]
    assert attempt(tmp_path, [], finished=True) == set(ORDER)
    told = json.loads((tmp_path / "run.json").read_text())
    assert [(one["attempt"], one["answered earlier"]) for one in told["attempts"]] == [(1, 0), (2, 1), (3, 2), (4, 3)]
    assert told["run"] == FACTS


def test_what_failed_is_asked_again_and_an_answer_is_not_lost_to_a_failure(tmp_path):
    assert attempt(tmp_path, [row("a"), row("b", None, "no picture"), row("c")], finished=True) == set()
    assert attempt(tmp_path, [row("b", None, "no picture yet")]) == {"a", "c"}
    assert attempt(tmp_path, [row("b", "no")]) == {"a", "c"}
    assert attempt(tmp_path, [row("b", None, "no picture again")], finished=True) == {"a", "b", "c"}
    assert merged(tmp_path) == [row("a"), row("b", "no"), row("c")]


def test_a_sample_has_all_of_its_rows_from_shards_and_from_merged_files(tmp_path):
    def rows(identity, error=None):
        return [row(identity, method, error if method == "pruned" else None) for method in ("unpruned", "pruned")]

    def several(samples):
        folder = RunFolder(tmp_path)
        number, done = folder.begin(FACTS, 1)
        shard = Shard(folder.parts, number, 0)
        shard.append(samples)
        shard.close(finished=True)
        folder.merge(ORDER)
        folder.leave()
        return done

    assert several([rows("b"), rows("a", "broken"), rows("c")]) == set()
    assert merged(tmp_path) == [*rows("a", "broken"), *rows("b"), *rows("c")]
    assert several([rows("a")]) == {"b", "c"}
    assert merged(tmp_path) == [*rows("a"), *rows("b"), *rows("c")]
    assert list(RunFolder(tmp_path).rows()) == merged(tmp_path)


def test_a_torn_last_line_is_not_read_wherever_it_is_cut(tmp_path):
    attempt(tmp_path, [row("a"), row("ü")])
    shard = tmp_path / "parts" / "0001-00000.jsonl"
    whole = shard.read_bytes()
    start = whole.rindex(b"[")
    for length in range(start, len(whole)):
        shard.write_bytes(whole[:length])
        assert [identity for identity, _ in row_locations(shard)] == ["a"]
    shard.write_bytes(whole)
    assert [identity for identity, _ in row_locations(shard)] == ["a", "ü"]


@pytest.mark.parametrize(
    "line", [b"{}\n", b"no JSON\n", b"[{}]\n", b'[{"id": "a"}]\n', b"\0\0\0\n", b"\xff\n", b'["a"]\n', b"3\n"]
)
def test_a_shard_that_cannot_be_read_is_named_with_the_cure_and_nothing_is_touched(tmp_path, line):
    attempt(tmp_path, [row("a")])
    shard = tmp_path / "parts" / "0001-00000.jsonl"
    shard.write_bytes(shard.read_bytes() + line + b'[{"id": "c", "error": null}]\n')
    before = files(tmp_path)
    with pytest.raises(UsageError, match=r"0001-00000.jsonl, line 3 is no row of a run: remove the file"):
        attempt(tmp_path, [row("b")])
    assert files(tmp_path) == before
    shard.unlink()
    assert attempt(tmp_path, [row("a"), row("b"), row("c")], finished=True) == set()


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("data", "3 questions, 4567", "data: '3 questions, 0123' there, '3 questions, 4567' here"),
        (
            "model.backbone",
            {"path": "x" * 200},
            "model.backbone: {'path': 'some/checkpoint'} there, {'path': ... here",
        ),
        ("version of torch", "2.1", "version of torch: '2.0' there, '2.1' here"),
        ("new", 1, "new: None there, 1 here"),
    ],
)
@pytest.mark.parametrize("finished", [False, True])
def test_another_run_is_refused_unless_it_is_told_to_mix_or_to_replace(tmp_path, key, value, says, finished):
    all_but_b = [row("a"), row("c")]
    attempt(tmp_path, [*all_but_b, row("b", None, "no picture")] if finished else all_but_b, finished=finished)
    before, other = files(tmp_path), FACTS | {key: value}
    with pytest.raises(UsageError, match=f"holds another run:\n  {says}\ngive another folder, or writer.existing: rep"):
        attempt(tmp_path, [row("b", "other")], other)
    assert files(tmp_path) == before
    assert attempt(tmp_path, [row("b", "other")], other, "mix", finished=True) == {"a", "c"}
    assert merged(tmp_path) == [row("a"), row("b", "other"), row("c")]
    mixed = json.loads((tmp_path / "run.json").read_text())
    assert (mixed["run"], mixed["attempts"][1]["mixed with"]) == (other, FACTS)
    attempt(tmp_path, [row(one, "third") for one in ORDER], FACTS, "replace", finished=True)
    assert merged(tmp_path) == [row(one, "third") for one in ORDER]


def test_what_is_replaced_stays_until_the_new_rows_are_whole_and_never_counts_as_theirs(tmp_path):
    attempt(tmp_path, [row(one, "old") for one in ORDER], finished=True)
    assert attempt(tmp_path, [row("a", "new")], existing="replace") == set()
    assert [one["prediction"] for one in merged(tmp_path)] == ["old"] * 3
    assert attempt(tmp_path, [row("b", "new")]) == {"a"}
    assert attempt(tmp_path, [row("c", "new")], finished=True) == {"a", "b"}
    assert [one["prediction"] for one in merged(tmp_path)] == ["new"] * 3


def test_the_rows_of_a_replaced_run_that_was_never_finished_do_not_count_either(tmp_path):
    attempt(tmp_path, [row("a", "old"), row("b", "old")])
    assert attempt(tmp_path, [row("a", "new")], existing="replace") == set()
    assert attempt(tmp_path, [row("b", "new"), row("c", "new")], finished=True) == {"a"}
    assert [one["prediction"] for one in merged(tmp_path)] == ["new"] * 3


def test_a_configuration_that_came_to_nothing_does_not_stand_in_the_way_of_the_next(tmp_path):
    attempt(tmp_path, [], FACTS | {"model.backbone": {"path": "mistyped"}})
    assert attempt(tmp_path, [row(one) for one in ORDER], finished=True) == set()


@pytest.mark.parametrize("existing", ["resume", "mix"])
def test_predictions_of_somebody_else_are_not_overwritten(tmp_path, existing):
    (tmp_path / "predictions.jsonl").write_text("mine\n")
    with pytest.raises(
        UsageError, match=r"has predictions.jsonl, but no run.json that describes the run: give another folder"
    ):
        attempt(tmp_path, [row(one) for one in ORDER], existing=existing, finished=True)
    assert (tmp_path / "predictions.jsonl").read_text() == "mine\n"
    attempt(tmp_path, [row(one) for one in ORDER], existing="replace", finished=True)
    assert merged(tmp_path) == [row(one) for one in ORDER]


def test_foreign_files_are_neither_read_nor_removed(tmp_path):
    (tmp_path / "parts").mkdir()
    foreign = ["notes.txt", "parts/notes.jsonl", "parts/0001-00000.txt", "parts/1-2.jsonl"]
    for name in foreign:
        (tmp_path / name).write_text("mine")
    attempt(tmp_path, [row(one) for one in ORDER], finished=True)
    assert {str(name) for name in files(tmp_path)} == {*foreign, "predictions.jsonl", "run.json"}


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"run": 1}', "\0"])
def test_a_manifest_that_says_nothing_is_refused_and_may_be_replaced(tmp_path, text):
    attempt(tmp_path, [row("a")])
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(UsageError, match=r"run.json does not describe a run \(.*\): give another folder"):
        attempt(tmp_path, [])
    attempt(tmp_path, [row(one) for one in ORDER], existing="replace", finished=True)
    assert merged(tmp_path) == [row(one) for one in ORDER]


def test_a_folder_is_one_runs_at_a_time(tmp_path):
    first = RunFolder(tmp_path)
    first.begin(FACTS, 1)
    second = RunFolder(tmp_path, "replace")
    with pytest.raises(UsageError, match="another run uses"):
        second.begin(FACTS, 1)
    second.leave()
    with pytest.raises(UsageError, match="another run uses"):
        RunFolder(tmp_path).begin(FACTS, 1)
    first.leave()
    second.begin(FACTS, 1)
    second.leave()


def test_a_process_that_outlives_the_first_is_waited_for_and_named_if_it_stays(tmp_path, monkeypatch):
    monkeypatch.setattr("vtcframe.runs.run_folder.HEARTBEAT_S", 0.02)
    first = RunFolder(tmp_path)
    number, _ = first.begin(FACTS, 2)
    orphan = Shard(first.parts, number, 1)
    first.leave()
    orphan.append([[row("a")]])
    with pytest.raises(UsageError, match=rf"process 1 \(pid {os.getpid()} on .*\) of an earlier attempt still runs"):
        RunFolder(tmp_path).begin(FACTS, 1)
    threading.Timer(0.1, orphan.close).start()
    again = RunFolder(tmp_path)
    assert again.begin(FACTS, 1)[1] == {"a"}
    again.leave()


def test_a_sample_that_was_never_asked_keeps_the_run_unfinished(tmp_path):
    with pytest.raises(UnfinishedError, match=r"1 of 3 samples were not answered, 'b' first: .*data.limit"):
        attempt(tmp_path, [row("a"), row("c")], finished=True)


def test_a_kill_between_the_merge_and_its_mark_merges_again(tmp_path, monkeypatch):
    def killed(told):
        raise KeyboardInterrupt

    folder = RunFolder(tmp_path)
    number, _ = folder.begin(FACTS, 1)
    shard = Shard(folder.parts, number, 0)
    shard.append([[row(one)] for one in ORDER])
    shard.close(finished=True)
    monkeypatch.setattr(folder, "_write_manifest", killed)
    with pytest.raises(KeyboardInterrupt):
        folder.merge(ORDER)
    folder.leave()
    assert attempt(tmp_path, [], finished=True) == set(ORDER)
    assert merged(tmp_path) == [row(one) for one in ORDER]


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match=r"cannot write into the folder .*file/run: Not a directory"):
        RunFolder(tmp_path / "file" / "run").begin(FACTS, 1)


def test_the_policy_is_one_of_three(tmp_path):
    with pytest.raises(ValueError, match="existing must be one of resume, replace, mix, got 'again'"):
        RunFolder(tmp_path, "again")
