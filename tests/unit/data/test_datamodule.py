import json
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
from PIL import Image

from vtcframe.assets import bundled
from vtcframe.data.benchmarks.base import Benchmark
from vtcframe.data.datamodule import Questions
from vtcframe.data.decode import load_sample
from vtcframe.data.formats import read_samples
from vtcframe.data.sample import Sample
from vtcframe.data.transforms import FramesAsPictures, Transform
from vtcframe.errors import UsageError

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
        ([LINE, LINE], r"line 2: the id 'a' is also that of .*questions.jsonl, line 1: ids must be unique"),
        (["", LINE, "[1]"], r"questions.jsonl, line 3: a JSON object with the field 'id' was expected, this is a list"),
        ([{"id": "a", "image": "a.png"}], r"line 1: there is no field 'question', only 'id', 'image'"),
        ([{"image": "a.png", "question": "?"}], r"line 1: there is no field 'id'"),
        ([LINE | {"id": True}], r"line 1: the field 'id' must be .*, got True"),
        ([LINE | {"question": 3}], r"line 1: the field 'question' must be str, got 3"),
        ([LINE | {"answer": 3}], r"line 1: the field 'answer' must be str \| None, got 3"),
        ([{"id": "a", "question": "?"}], r"line 1: give `image` .* or `images` .*, or a `video`"),
        ([LINE | {"video": 3}], r"line 1: a video is given as a path or as a list of its frames' paths, got 3"),
        ([LINE | {"video": ["a.png", 3]}], r"line 1: a video is given as a path or as a list"),
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
    assert [(p.mode, p.size) for p in load_sample(sample).pictures] == [("RGB", (1, 2)), ("RGB", (2, 1))]


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
    assert all(load_sample(sample).error is None for sample in data.samples)
    assert bundled("some/folder") == "some/folder"
    with pytest.raises(UsageError, match=r"nothing bundled is called 'vtcframe:tinny': use .*vtcframe:tiny"):
        bundled("vtcframe:tinny")


def frame(level):
    return Image.new("RGB", (8, 6), (level, level, level))


def levels(sample):
    """The brightness of each frame."""
    assert sample.error is None
    return [[one.getpixel((0, 0))[0] for one in frames] for frames in sample.videos]


def asked(folder, frames=None, **fields):
    (sample,) = read_samples(written(folder, {"id": "a", "question": "?"} | fields), folder)
    return load_sample(sample, frames)


def test_a_video_is_a_list_of_frames_a_folder_of_them_or_an_animation(tmp_path):
    (tmp_path / "film").mkdir()
    (tmp_path / "film" / "notes.txt").write_text("no frame")
    names = [f"film/frame{number}.png" for number in (2, 9, 10)]
    for name, level in zip(names, (20, 90, 100), strict=True):
        frame(level).save(tmp_path / name)
    assert levels(asked(tmp_path, video=names[::-1])) == [[100, 90, 20]]
    assert levels(asked(tmp_path, video="film")) == [[20, 90, 100]]  # 9 before 10
    for name in ("a.gif", "a.webp"):
        frame(20).save(
            tmp_path / name, save_all=True, append_images=[frame(90), frame(100)], duration=100, lossless=True
        )
        assert levels(asked(tmp_path, video=name)) == [[20, 90, 100]]
    assert levels(asked(tmp_path, video="film/frame9.png")) == [[90]]


def test_a_video_stands_beside_images(tmp_path):
    frame(3).save(tmp_path / "a.png")
    sample = asked(tmp_path, image="a.png", video=["a.png", "a.png"])
    assert (len(sample.pictures), levels(sample)) == (1, [[3, 3]])
    assert asked(tmp_path, image="a.png").videos == ()


@pytest.mark.parametrize(
    ("wanted", "shown"), [(None, [0, 1, 2, 3, 4, 5, 6, 7]), (1, [4]), (2, [2, 6]), (3, [1, 4, 6]), (8, list(range(8)))]
)
def test_frames_are_the_middles_of_equal_parts(tmp_path, wanted, shown):
    frames = [frame(10 * i) for i in range(8)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    for i, one in enumerate(frames):
        one.save(tmp_path / f"{i}.png")
    for video in ("a.gif", [f"{i}.png" for i in range(8)]):
        assert levels(asked(tmp_path, wanted, video=video)) == [[10 * i for i in shown]]
    data = Questions(str(written(tmp_path, {"id": "a", "question": "?", "video": "a.gif"})), frames=wanted)
    data.setup("predict")
    ((sample,),) = data.predict_dataloader()
    assert len(sample.videos[0]) == len(shown)
    with pytest.raises(ValueError, match="frames must be at least 1, got 0"):
        Questions("questions.jsonl", frames=0)


def test_a_video_that_cannot_be_read_makes_its_sample_fail_and_says_what_to_do(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "film.MP4").write_bytes(b"ftyp")
    (tmp_path / "torn.gif").write_bytes(b"GIF89a")
    frame(1).save(tmp_path / "a.png")
    Image.new("RGB", (9, 9)).save(tmp_path / "b.png")
    for video, message in (
        ([], "the video [] has no frames"),
        ("empty", f"the video {tmp_path}/empty has no frames: give pictures, or a folder that holds some"),
        ("film.MP4", "only animated GIF and WebP: write its frames as pictures (ffmpeg -i film.MP4"),
        ("torn.gif", f"cannot read the video {tmp_path}/torn.gif: "),
        ("lost", f"cannot read the video {tmp_path}/lost: FileNotFoundError"),
        (["a.png", "lost.png"], f"cannot read the frame {tmp_path}/lost.png: FileNotFoundError"),
        (["a.png", "b.png"], f"the frames of the video {tmp_path}/a.png, ... differ in size: [(8, 6), (9, 9)]"),
    ):
        sample = asked(tmp_path, video=video)
        assert message in sample.error
        assert sample.videos == ()


@dataclass(frozen=True)
class Doubled(Transform):
    """Each picture twice; of a video its first frame. The processor's name is looked at, to show that it is known."""

    known: str = ""

    def fitted(self, processor):
        return Doubled(type(processor).__name__)

    def __call__(self, visual):
        if isinstance(visual, tuple):
            return (visual[:1],)
        if visual.width == 9:
            raise ValueError(f"{self.known} refuses nine pixels")
        return visual, visual


def test_transforms_change_pictures_and_videos_one_after_the_other(tmp_path):
    for level in (10, 20):
        frame(level).save(tmp_path / f"{level}.png")
    Image.new("RGB", (9, 9)).save(tmp_path / "nine.png")
    lines = [
        {"id": "both", "question": "?", "image": "10.png", "video": ["20.png", "10.png"]},
        {"id": "nine", "question": "?", "image": "nine.png"},
    ]
    data = Questions(str(written(tmp_path, *lines)), transforms=[Doubled(), FramesAsPictures(), Doubled()])
    data.setup("predict")
    ((both, nine),) = data.predict_dataloader()
    assert [picture.getpixel((0, 0))[0] for picture in both.pictures] == [10] * 4 + [20] * 2
    assert both.videos == ()
    assert (nine.error, nine.pictures) == (" refuses nine pixels", ())
    data.trainer = SimpleNamespace(lightning_module=SimpleNamespace(processor=1), global_rank=0, world_size=1)
    ((_, nine),) = data.predict_dataloader()
    assert nine.error == "int refuses nine pixels"


@dataclass(frozen=True)
class Named(Benchmark):
    """Three questions about files of these names."""

    names: tuple[str, ...]

    def read(self, path, images):
        return [Sample(name, "?", ((images or path) / name,)) for name in self.names]


def test_a_benchmark_reads_its_own_files_and_a_limit_asks_the_first_questions_only(tmp_path):
    frame(1).save(tmp_path / "b.png")
    for limit, ids in ((None, ["a.png", "b.png", "c.png"]), (2, ["a.png", "b.png"]), (9, ["a.png", "b.png", "c.png"])):
        data = Questions(str(tmp_path), benchmark=Named(("a.png", "b.png", "c.png")), limit=limit)
        data.setup("predict")
        assert (
            [sample.id for sample in data.samples]
            == [sample.id for sample in data.progress.pending(data.samples)]
            == ids
        )
    data = Questions(str(written(tmp_path, LINE, LINE | {"id": "b"})), limit=1)
    data.setup("predict")
    assert [sample.id for sample in data.samples] == ["a"]
    with pytest.raises(ValueError, match="limit must be at least 1, got 0: leave it out to answer all"):
        Questions("questions.jsonl", limit=0)


def test_where_none_of_a_benchmarks_first_pictures_is_there_the_folder_is_another(tmp_path):
    data = Questions(str(tmp_path), str(tmp_path / "val2014"), Named(("a.png", "b.png")))
    with pytest.raises(UsageError, match=r"there is no picture .*val2014/a.png, nor any other"):
        data.setup("predict")


def test_what_is_asked_and_how_it_is_shown_are_facts_of_a_run(tmp_path):
    def facts(*lines, **options):
        data = Questions(str(written(tmp_path, *lines)), **options)
        data.setup("predict")
        return data.facts()

    here = facts(LINE)
    assert facts(LINE) == here
    assert json.loads(json.dumps(here)) == here
    for other in (
        facts(LINE | {"question": "another ?"}),
        facts(LINE | {"answer": "yes"}),
        facts(LINE, frames=2),
        facts(LINE, transforms=[Doubled()]),
        facts(LINE, limit=1),
    ):
        assert other != here
