import json

import pytest
from PIL import Image

from vtcframe.config import UsageError, bundled
from vtcframe.data import Questions, read_samples

LINE = {"id": "a", "image": "a.png", "question": "what is it ?"}


def written(folder, *lines):
    path = folder / "questions.jsonl"
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return path


def test_a_line_needs_no_more_than_id_image_and_question(tmp_path):
    (sample,) = read_samples(written(tmp_path, LINE | {"source": "not looked at"}), tmp_path)
    assert (sample.id, sample.question, sample.images) == ("a", "what is it ?", (tmp_path / "a.png",))
    assert sample.answer is sample.type is sample.error is None


def test_a_question_may_have_several_images_and_a_number_for_an_id(tmp_path):
    line = {"id": 7, "images": ["a.png", "b.png"], "question": "?", "answer": "yes", "type": "exist"}
    (sample,) = read_samples(written(tmp_path, "", line), tmp_path)
    assert (sample.id, len(sample.images), sample.answer, sample.type) == ("7", 2, "yes", "exist")


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([LINE, '{"id": '], r"questions.jsonl, line 2: no JSON: .* column 8"),
        ([LINE, LINE], r"questions.jsonl, line 2: the id 'a' was on an earlier line"),
        (["", LINE, "[1]"], r"questions.jsonl, line 3: a line holds one JSON object, this one a list"),
        ([{"id": "a", "image": "a.png"}], r"line 1: there is no field 'question', only 'id', 'image'"),
        ([{"image": "a.png", "question": "?"}], r"line 1: there is no field 'id'"),
        ([LINE | {"question": 3}], r"line 1: the field 'question' must be str, got 3"),
        ([LINE | {"answer": 3}], r"line 1: the field 'answer' must be str \| None, got 3"),
        ([{"id": "a", "question": "?"}], r"line 1: give `image` .* or `images`"),
        ([LINE | {"images": ["a.png"]}], r"line 1: give `image` .* or `images` .* exactly one"),
        ([LINE | {"image": None}], r"line 1: pictures are given as paths, at least one a question, got \[None\]"),
        ([{"id": "a", "images": [], "question": "?"}], r"line 1: pictures are given as paths, at least one"),
        ([], r"questions.jsonl holds no questions"),
        (["", " "], r"questions.jsonl holds no questions"),
    ],
)
def test_a_line_that_cannot_be_used_is_named_with_its_file(tmp_path, lines, message):
    with pytest.raises(UsageError, match=message):
        read_samples(written(tmp_path, *lines), tmp_path)


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(UsageError, match=r"cannot read the questions .*nothing\.jsonl"):
        read_samples(tmp_path / "nothing.jsonl", tmp_path)


def test_images_start_from_the_folder_of_the_file_unless_another_is_given(tmp_path):
    path = written(tmp_path, LINE)
    for images, folder in ((None, tmp_path), ("elsewhere", "elsewhere")):
        data = Questions(str(path), images)
        data.setup("predict")
        assert str(data.samples[0].images[0]) == f"{folder}/a.png"


def test_pictures_are_decoded_to_rgb_the_right_way_up(tmp_path):
    picture = Image.new("RGB", (2, 1), "red")
    exif = picture.getexif()
    exif[0x0112] = 6  # turned by 90 degrees
    picture.save(tmp_path / "turned.jpg", exif=exif)
    Image.new("LA", (2, 1)).save(tmp_path / "grey.png")
    line = {"id": "a", "images": ["turned.jpg", "grey.png"], "question": "?"}
    (sample,) = read_samples(written(tmp_path, line), tmp_path)
    assert [(p.mode, p.size) for p in sample.loaded().pictures] == [("RGB", (1, 2)), ("RGB", (2, 1))]


def test_a_picture_that_cannot_be_read_makes_its_sample_fail_and_no_other(tmp_path):
    Image.new("RGB", (9, 9)).save(tmp_path / "whole.png")
    (tmp_path / "torn.png").write_bytes((tmp_path / "whole.png").read_bytes()[:40])
    names = ["whole.png", "torn.png", "missing.png"]
    lines = [{"id": name, "image": name, "question": "?"} for name in names]
    data = Questions(str(written(tmp_path, *lines)), batch_size=3)
    data.setup("predict")
    ((whole, torn, missing),) = data.predict_dataloader()
    assert whole.error is None
    assert len(whole.pictures) == 1
    assert "torn.png: " in torn.error
    assert "missing.png: FileNotFoundError" in missing.error


def test_bundled_names_stand_for_folders_of_the_package():
    data = Questions("vtcframe:questions")
    data.setup("predict")
    assert len(data.samples) >= 600
    assert all(sample.loaded().error is None for sample in data.samples)
    assert bundled("some/folder") == "some/folder"
    with pytest.raises(UsageError, match=r"nothing bundled is called 'vtcframe:tinny': use .*vtcframe:tiny"):
        bundled("vtcframe:tinny")
