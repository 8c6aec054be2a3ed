"""Plain files of questions."""

import base64
import csv
import json
import pickle
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from support.question_files import encoded, levels, picture, saved, table
from vtcframe.data import formats
from vtcframe.data.benchmarks.base import ImageFolder
from vtcframe.data.datamodule import Questions
from vtcframe.data.decode import load_sample
from vtcframe.data.formats import read_groups, read_samples
from vtcframe.errors import UsageError


def parquet(path, rows, **options):
    pq.write_table(pa.Table.from_pylist(rows), path, **options)
    return path


ROW = {"id": "a", "question": "what, is it ?", "image": "a.png", "answer": "red", "type": "color"}


@pytest.mark.parametrize("ending", [".csv", ".tsv", ".jsonl", ".parquet"])
def test_every_plain_format_says_the_same(tmp_path, ending):
    saved(tmp_path / "pictures" / "a.png", picture(7))
    rows, path = (
        [ROW, {"id": "b", "question": "?", "image": "a.png", "answer": None, "type": None}],
        tmp_path / f"q{ending}",
    )
    if ending == ".jsonl":
        saved(path, "".join(json.dumps(row) + "\n" for row in rows))
    else:
        parquet(path, rows) if ending == ".parquet" else table(path, *rows)
    first, second = read_samples(path, tmp_path / "pictures")
    assert (first.id, first.question, first.answer, first.type) == ("a", "what, is it ?", "red", "color")
    assert (second.answer, second.type, second.meta) == (None, None, {})
    assert levels(first) == levels(second) == [7]


@pytest.mark.parametrize("ending", [".csv", ".tsv"])
def test_a_cell_of_a_table_holds_a_path_or_a_picture_in_base64(tmp_path, ending):
    saved(tmp_path / "a.png", picture(7))
    wrapped = "\n".join([encoded(9)[:40], encoded(9)[40:]])
    large = base64.b64encode(picture(11) + bytes(300_000)).decode()  # larger than what csv reads by itself
    rows = [{"question": "?", "image": image} for image in ("a.png", encoded(8), wrapped, large)]
    usual = csv.field_size_limit(99_999)
    samples = read_samples(table(tmp_path / f"q{ending}", *rows))
    assert csv.field_size_limit(usual) == 99_999  # as it was before
    assert [sample.id for sample in samples] == ["1", "2", "3", "4"]
    assert [levels(sample) for sample in samples] == [[7], [8], [9], [11]]


def test_a_table_that_excel_saved_is_read_like_any_other(tmp_path):
    path = saved(tmp_path / "q.csv", "\ufeffid,question,image\r\na,was für ein ?,a.png\r\n")
    (sample,) = read_samples(path)
    assert (sample.id, sample.question) == ("a", "was für ein ?")


def test_a_table_may_name_videos(tmp_path):
    saved(tmp_path / "film" / "1.png", picture(5))
    (sample,) = read_samples(table(tmp_path / "q.csv", {"id": "a", "question": "?", "image": "", "video": "film"}))
    assert (sample.images, len(load_sample(sample).videos[0])) == ((), 1)


CELLS = {  # what a cell of a Parquet file may be -> the brightness of its pictures
    "bytes": (picture(1), [1]),
    "base64": (encoded(2), [2]),
    "path": ("a.png", [7]),
    "Hugging Face's struct": ({"bytes": picture(3), "path": "lost.png"}, [3]),
    "its path": ({"bytes": None, "path": "a.png"}, [7]),
    "a list of structs": ([{"bytes": picture(4), "path": None}, {"bytes": picture(5), "path": None}], [4, 5]),
    "a list of paths": (["a.png", "a.png", "a.png"], [7, 7, 7]),
}


@pytest.mark.parametrize("kind", CELLS)
def test_a_cell_of_a_parquet_file_holds_pictures_in_any_of_these_forms(tmp_path, kind):
    saved(tmp_path / "pictures" / "a.png", picture(7))
    cell, expected = CELLS[kind]
    column = "images" if isinstance(cell, list) else "image"
    path = parquet(tmp_path / "q.parquet", [{"id": 3, "question": "?", column: cell}])
    (sample,) = read_samples(path, tmp_path / "pictures")
    assert (sample.id, levels(sample)) == ("3", expected)


def test_pictures_in_a_parquet_file_are_read_by_the_row_group_each_once_and_only_when_they_are_loaded(
    tmp_path, monkeypatch
):
    rows = [{"question": "?", "image": picture(level)} for level in range(7)]
    path = parquet(tmp_path / "q.parquet", rows, row_group_size=3)
    read = []
    original = pq.ParquetFile.read_row_group
    monkeypatch.setattr(
        pq.ParquetFile,
        "read_row_group",
        lambda self, group, **more: read.append(group) or original(self, group, **more),
    )
    formats._group.cache_clear()
    samples = read_samples(path)
    assert read == []
    assert [levels(sample) for sample in samples] == [[level] for level in range(7)]
    assert read == [0, 1, 2]


def test_embedded_pictures_go_to_the_processes_of_a_loader_and_come_back_in_order(tmp_path):
    rows = [{"question": "?", "image": picture(level)} for level in range(5)]
    parquet(tmp_path / "q.parquet", rows, row_group_size=2)
    table(tmp_path / "q.csv", *({"question": "?", "image": encoded(level)} for level in range(5)))
    for name in ("q.parquet", "q.csv"):
        data = Questions(str(tmp_path / name), batch_size=2, num_workers=2)
        data.setup("predict")
        assert [levels(pickle.loads(pickle.dumps(sample))) for sample in data.samples] == [[i] for i in range(5)]
        shown = [sample.pictures[0].getpixel((0, 0))[0] for batch in data.predict_dataloader() for sample in batch]
        assert shown == list(range(5))


def test_an_embedded_picture_that_cannot_be_read_fails_with_its_row_and_column(tmp_path):
    path = parquet(tmp_path / "q.parquet", [{"question": "?", "image": cell} for cell in (b"torn", None)])
    torn, missing = (load_sample(sample) for sample in read_samples(path))
    assert f"cannot read the image {path}, row 1, column image: UnidentifiedImageError" in torn.error
    assert f"{path}, row 2, column image: TypeError: a picture is bytes, base64 or a path, got None" in missing.error
    path = parquet(tmp_path / "q.parquet", [{"question": "?", "images": cell} for cell in ([b"torn"], [])])
    _, empty = (load_sample(sample) for sample in read_samples(path))
    assert empty.error == f"there is no image in {path}, row 2, column images"
    path = table(tmp_path / "q.csv", {"question": "?", "image": "some_pictures"})
    (neither,) = read_samples(path)
    told = f"cannot read the image {path}, row 1, column image: ValueError: 'some_pictures' is no base64"
    assert load_sample(neither).error.startswith(told)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "q.csv",
            "id,question,image\na,?,a.png\na,?,b.png\n",
            r"q.csv, row 2: the id 'a' is also that of .*, row 1",
        ),
        ("q.csv", "id,image\na,a.png\n", r"q.csv, row 1: there is no field 'question', only 'id', 'image'"),
        ("q.csv", "id,question\na,?\n", r"q.csv, row 1: give `image`"),
        ("q.csv", "id,question,image\na,?\n", r"q.csv, row 1 has fewer cells than the header"),
        ("q.csv", "id,question,image\na,?,a.png,3\n", r"q.csv, row 1 has more cells than the header"),
        ("q.tsv", "id\tquestion\timage\n", r"q.tsv holds no questions"),
        ("q.jsonl", "\n", r"q.jsonl holds no questions"),
        ("q.csv", b"\xff\xfe\x00", r"cannot read the questions .*q.csv: .*utf-8"),
        ("q.parquet", b"PAR2", r"cannot read the questions .*q.parquet: "),
        (
            "q.json",
            "[]",
            r"q.json: give a .jsonl .csv .tsv .parquet file, or the benchmark .* as data.benchmark: .*Pope",
        ),
        ("folder/a.png", picture(), r"folder.* has no questions.jsonl. One question about all .*ImageFolder"),
    ],
)
def test_a_plain_file_that_cannot_be_used_is_named_with_the_row(tmp_path, name, content, message):
    path = saved(tmp_path / name, content)
    with pytest.raises(UsageError, match=message):
        read_samples(tmp_path / "folder" if name.startswith("folder") else path)


def test_a_parquet_file_without_its_columns_is_refused(tmp_path):
    for rows, message in (
        ([{"image": b""}], r"q.parquet has no column 'question', only 'image'"),
        ([], r"q.parquet has no column 'question', only "),
        ([{"id": 1, "question": "?"}], r"q.parquet, row 1: give `image`"),
        ([{"id": 1, "question": "?", "image": b"", "answer": 3}], r"row 1: the field 'answer' must be .*, got 3"),
        ([{"id": 1, "question": None, "image": b""}], r"row 1: the field 'question' must be str, got None"),
        ([{"id": 1, "question": "?", "image": b""}] * 2, r"row 2: the id '1' is also that of .*q.parquet, row 1"),
    ):
        with pytest.raises(UsageError, match=message):
            read_samples(parquet(tmp_path / "q.parquet", rows))


def test_without_pyarrow_a_parquet_file_is_refused_with_what_to_install(tmp_path, monkeypatch):
    path = parquet(tmp_path / "q.parquet", [ROW])
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UsageError, match=r"q.parquet is read by pyarrow: pip install 'vtcframe\[parquet\]'"):
        read_samples(path)


def test_a_folder_of_pictures_is_asked_one_question(tmp_path):
    for name in ("b/10.png", "b/9.jpg", "a.PNG"):
        saved(tmp_path / name, picture(3))
    saved(tmp_path / "notes.txt", "no picture")
    samples = ImageFolder("what is it ?").read(tmp_path, None)
    assert [sample.id for sample in samples] == ["a.PNG", "b/9.jpg", "b/10.png"]
    assert {sample.question for sample in samples} == {"what is it ?"}
    assert levels(samples[2]) == [3]
    with pytest.raises(UsageError, match="there are no pictures in the folder"):
        ImageFolder("?").read(saved(tmp_path / "empty" / "notes.txt", "").parent, None)


def test_groups_of_question_types_stand_beside_the_questions(tmp_path):
    path = saved(tmp_path / "q.jsonl", json.dumps(ROW | {"image": "a.png"}) + "\n")
    assert read_groups(path) == read_groups(tmp_path) == {}
    saved(tmp_path / "groups.json", '{"seen": ["color", "shape"]}')
    data = Questions(str(path))
    data.setup("predict")
    assert data.groups == data.facts()["data.groups"] == {"seen": ["color", "shape"]}


@pytest.mark.parametrize("content", ["[]", '{"seen": "color"}', '{"seen": [1]}', "{", "\udcff"])
def test_groups_of_another_form_are_refused(tmp_path, content):
    (tmp_path / "groups.json").write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(UsageError, match=r"groups.json"):
        read_groups(tmp_path)
