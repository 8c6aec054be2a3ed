"""`vtcframe explain`: drawings, numbers and errors."""

import json
from functools import cache

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from transformers import CLIPImageProcessor, LlavaImageProcessor, VideoLlavaImageProcessor, VideoLlavaVideoProcessor

from support.models import SERVED
from vtcframe import Budget, RandomPruner, TokenNorm, VtcCls, compress
from vtcframe.assets import bundled
from vtcframe.cli import main
from vtcframe.components.allocators import Even
from vtcframe.components.ensemblers import Mean
from vtcframe.components.selectors import TopK
from vtcframe.core.pipeline import Pipeline
from vtcframe.data.processor import processor_inputs, visible_region
from vtcframe.data.sample import Sample
from vtcframe.errors import UsageError
from vtcframe.explore.explainer import explain
from vtcframe.inference.checkpoint import Backbone, device_for
from vtcframe.testing.laws.alignment import silent_attention
from vtcframe.testing.tiny_models.other_families import BACKBONES, VIDEO

SCENE = f"{bundled('vtcframe:questions')}/images/scene-000.png"
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning:transformers")  # GLM-4V
QUESTION = "what shape is purple ?"
BRIGHTNESS = Pipeline((TokenNorm(),), Mean(), Even(), TopK())
AROUND = {  # placeholders with the tokens that the chat templates of these families add
    "<|image_pad|>": "<|vision_start|><|image_pad|><|vision_end|>",
    "<|video_pad|>": "<|vision_start|><|video_pad|><|vision_end|>",
    "<|image|>": "<|begin_of_image|><|image|><|end_of_image|>",
    "<|video|>": "<|begin_of_video|><|video|><|end_of_video|>",
}
TEMPLATE = """{% for part in messages[0]['content'] -%}
{% if part['type'] == 'image' %}IMAGE {% elif part['type'] == 'video' %}VIDEO {% else %}{{ part['text'] }}{% endif %}
{%- endfor %}"""


@cache
def model_of(family):
    model, processor = BACKBONES[family]()
    image = processor.image_token
    video = getattr(processor, "video_token", "")
    processor.chat_template = TEMPLATE.replace("IMAGE", AROUND.get(image, image)).replace(
        "VIDEO", AROUND.get(video, video)
    )
    return model, processor


@pytest.fixture
def of_family(monkeypatch):
    """Return a function that replaces every checkpoint with a random model of a family."""

    def replace_checkpoint(family):
        model, processor = model_of(family)
        monkeypatch.setattr(Backbone, "load", lambda self: (model, processor))
        return model, processor

    return replace_checkpoint


def run(capsys, *arguments):
    status = main(["explain", *arguments])
    out, err = capsys.readouterr()
    return status, out, err


def lines(grid):
    return [cell for line in grid for cell in line]


def test_the_drawing_and_the_numbers_are_written_and_both_answers_printed(tmp_path, capsys):
    status, out, _ = run(
        capsys, "--image", SCENE, "--question", QUESTION, "--tokens=18", "--out", f"{tmp_path}/new/e.png"
    )
    numbers = json.loads((tmp_path / "new" / "e.json").read_text())
    assert status == 0
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["e.json", "e.png"]
    assert "unpruned     144 visual tokens  square" in out
    assert "pruned        18 visual tokens  " in out
    assert numbers["pruner"] == str(VtcCls(last=3))
    assert (numbers["unpruned"]["visual_tokens"], numbers["pruned"]["visual_tokens"]) == (144, 18)
    assert numbers["unpruned"]["answer"] == "square"
    assert numbers["pictures"] == [{"files": [SCENE], "size": [96, 96], "shown": [0, 0, 96, 96]}]
    (view,) = numbers["views"]
    assert (view["grid"], view["box"], view["frames"]) == ([12, 12], [0, 0, 96, 96], None)
    assert view["tokens"][1][2] == [16, 8, 24, 16]
    assert {"vtcframe", "torch", "transformers"} <= numbers["versions"].keys()
    model, processor = Backbone("vtcframe:tiny", dtype="float32").load()
    short = compress(model, VtcCls(last=3), tokens=18)
    inputs = processor_inputs(processor, [Sample("", QUESTION, (), pictures=(Image.open(SCENE).convert("RGB"),))])
    short.generate(**inputs, max_new_tokens=1, do_sample=False)
    assert short.last is not None
    assert lines(view["kept"]) == short.last.kept[0].tolist()
    assert lines(view["scores"]) == pytest.approx(short.last.scores[0].tolist(), rel=1e-4)
    with Image.open(tmp_path / "new" / "e.png") as sheet:
        assert sheet.width > 2 * 672  # score map and kept tokens, each seven times the picture's 96 pixels


def test_the_sheet_shows_the_complete_picture_even_if_the_model_sees_a_crop(tmp_path):
    wide = Image.new("RGB", (192, 96), "red")
    wide.paste("blue", (48, 0, 144, 96))
    wide.save(tmp_path / "wide.png")
    explanation = explain("vtcframe:tiny", QUESTION, RandomPruner(), Budget(tokens=143), [f"{tmp_path}/wide.png"])
    assert explanation.numbers["pictures"][0]["shown"] == [48, 0, 144, 96]
    assert explanation.numbers["views"][0]["box"] == [48, 0, 144, 96]
    assert explanation.numbers["views"][0]["tokens"][0][0] == [48, 0, 56, 8]
    pixels = np.asarray(explanation.image)
    assert (pixels == (255, 0, 0)).all(-1).any()
    assert (pixels == (0, 0, 255)).all(-1).any()


def dark(height, width):
    """Return a dark picture with a different value at each position."""
    down, across = (Image.linear_gradient("L").rotate(turn).resize((width, height)) for turn in (0, 90))
    return Image.merge("RGB", (down, across, down)).point(lambda level: level // 4)


def numbers_of(path, frames, video=True):
    """Return the numbers of pictures, or of a video's frames, with the norm of each token as its score."""
    names = []
    for i, frame in enumerate(frames):
        names.append(f"{path}/{i}.png")
        frame.save(names[-1])
    inputs = {"video": names} if video and len(names) > 1 else {"images": names}
    with silent_attention():
        return explain("some/checkpoint", "what ?", BRIGHTNESS, Budget(ratio=0.5), **inputs).numbers


def middle(rectangle, part=0.25):
    """Return the inner part of a rectangle, in integer pixels."""
    left, top, right, bottom = rectangle
    x, y, dx, dy = (left + right) / 2, (top + bottom) / 2, (right - left) * part, (bottom - top) * part
    return round(x - dx), round(y - dy), max(round(x + dx) - 1, round(x - dx)), max(round(y + dy) - 1, round(y - dy))


def changes(old, new):
    scores = zip(lines(old["scores"]), lines(new["scores"]), strict=True)
    return [0 if a is None else abs(a - b) for a, b in scores]


def check_lit(path, size, count, video=True):
    """Brighten the middle of a token: in each view that shows it, a token that covers the place must change most."""
    frames = [dark(*size) for _ in range(count)]
    plain = numbers_of(path, frames, video)
    checked = 0
    for v, view in enumerate(plain["views"]):
        visible = [(i, cell) for i, cell in enumerate(lines(view["tokens"])) if cell is not None]
        _, cell = visible[(7 * v + 3) % len(visible)]
        if cell[2] - cell[0] < 6 or cell[3] - cell[1] < 6:
            continue
        lit = [frame.copy() for frame in frames]
        place = middle(cell)
        for f in view["frames"] or [view["image"]]:
            ImageDraw.Draw(lit[f]).rectangle(place, fill=(255, 230, 200))
        after = numbers_of(path, lit, video)
        differences = [changes(old, new) for old, new in zip(plain["views"], after["views"], strict=True)]
        for change, new in zip(differences, after["views"], strict=True):
            if (new["image"], new["frame"]) != (view["image"], view["frame"]):
                assert max(change) == 0
            elif max(change) > 0.1 * max(map(max, differences)):  # otherwise the place lies in another tile
                most = lines(new["tokens"])[int(np.argmax(change))]
                assert most is not None
                for low, high in ((0, 2), (1, 3)):
                    assert most[low] <= place[high], (place, most)
                    assert most[high] >= place[low], (place, most)
                checked += 1
    assert checked


@pytest.mark.parametrize("size", [(140, 300), (320, 160)])
@pytest.mark.parametrize("family", SERVED)
def test_a_bright_place_changes_the_token_at_that_position_most(tmp_path, of_family, family, size):
    of_family(family)
    check_lit(tmp_path, size, 1)


@pytest.mark.parametrize("family", sorted(VIDEO))
def test_a_bright_place_in_one_frame_changes_only_that_frame(tmp_path, of_family, family):
    of_family(family)
    check_lit(tmp_path, (140, 300), 4)


@pytest.mark.parametrize("family", sorted(VIDEO))
def test_views_of_a_video_list_their_frames(tmp_path, of_family, family):
    of_family(family)
    numbers = numbers_of(tmp_path, [dark(60, 90) for _ in range(4)])
    merged = 2 if "qwen" in family or "glm" in family else 1
    assert {view["image"] for view in numbers["views"]} == {0}
    frames = list(dict.fromkeys(tuple(view["frames"]) for view in numbers["views"]))
    assert frames == [tuple(range(f, f + merged)) for f in range(0, 4, merged)]


@pytest.mark.parametrize("family", SERVED)
def test_each_of_two_pictures_changes_only_its_tokens(tmp_path, of_family, family):
    of_family(family)
    check_lit(tmp_path, (140, 300), 2, video=False)


def processors():
    crop = {"size": {"shortest_edge": 56}, "crop_size": {"height": 56, "width": 56}}
    larger = {"size": {"shortest_edge": 40}, "crop_size": {"height": 56, "width": 56}}
    return {
        "CLIP": (CLIPImageProcessor(**crop), None),
        "CLIP, the crop beyond the picture": (CLIPImageProcessor(**larger), None),
        "LLaVA": (LlavaImageProcessor(**crop), None),
        "LLaVA, padded to a square": (LlavaImageProcessor(**crop, do_pad=True), None),
        "Video-LLaVA": (VideoLlavaImageProcessor(**crop), VideoLlavaVideoProcessor(**crop)),
        "Video-LLaVA, the crop beyond the frame": (
            VideoLlavaImageProcessor(**larger),
            VideoLlavaVideoProcessor(**larger),
        ),
        "not resized": (CLIPImageProcessor(**crop, do_resize=False), None),
    }


@pytest.mark.parametrize("size", [(70, 150), (160, 80), (60, 61), (300, 33)])
@pytest.mark.parametrize("name", processors())
def test_the_visible_region_matches_the_crop_and_padding_of_the_processor(name, size):
    image_processor, video_processor = processors()[name]

    class Processor:
        pass

    processor = Processor()
    processor.image_processor, processor.video_processor = image_processor, video_processor
    height, width = size
    for video in (False, True) if video_processor else (False,):
        top, left, bottom, right = visible_region(processor, size, video)
        picture = Image.new("RGB", (width, height), (9, 9, 9))
        y, x = (max(low, 0) + 0.6 * (min(high, 1) - max(low, 0)) for low, high in ((top, bottom), (left, right)))
        reach = max(3, min(size) // 10)
        at = round(x * width), round(y * height)
        ImageDraw.Draw(picture).rectangle((at[0] - reach, at[1] - reach, at[0] + reach, at[1] + reach), fill="white")
        options = {"do_rescale": False, "do_normalize": False, "return_tensors": "pt"}
        if video:
            output = video_processor([[picture] * 2], **options)["pixel_values_videos"][0, 0]
        else:
            output = next(iter(image_processor([picture], **options).values()))[0]
        lit = (output.float().mean(0) > 128).nonzero().float()
        centre = lit.mean(0) + 0.5
        expected_y = (y - top) / (bottom - top) * output.shape[1]
        expected_x = (x - left) / (right - left) * output.shape[2]
        assert centre.tolist() == pytest.approx([expected_y, expected_x], abs=1.6)


@pytest.mark.parametrize("spec", ["{name: VtcCls, last: 2}", '{"name": "VtcCls", "last": 2}', "two.yaml", "two.json"])
def test_a_pruner_can_be_yaml_json_or_a_file(tmp_path, capsys, spec):
    (tmp_path / "two.yaml").write_text("name: VtcCls\nlast: 2\n")
    (tmp_path / "two.json").write_text('{"name": "VtcCls",\n "last": 2}')
    spec = f"{tmp_path}/{spec}" if spec.startswith("two") else spec
    options = "--question", QUESTION, "--ratio=0.125", "--pruner", spec, f"--out={tmp_path}/e.png"
    assert run(capsys, "--image", SCENE, *options)[0] == 0
    assert json.loads((tmp_path / "e.json").read_text())["pruner"] == str(VtcCls(last=2))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--image", SCENE, "--tokens=0"], "--tokens and --ratio: tokens must be at least 1, got 0"),
        (["--image", SCENE, "--ratio=1.5"], "must lie in (0, 1], got 1.5"),
        (["--image", SCENE], "give tokens or ratio, exactly one of them"),
        (["--image", SCENE, "--tokens=3", "--ratio=0.5"], "exactly one of them"),
        (["--image", SCENE, "--tokens=144"], "drops nothing: there are only 144 visual tokens"),
        (["--tokens=3"], "give --image or --video"),
        (["--image", "lost.png", "--tokens=3"], "cannot read the image lost.png: FileNotFoundError"),
        (["--video", "lost.gif", "--tokens=3"], "cannot read the video lost.gif: FileNotFoundError"),
        (["--video", SCENE, "--tokens=3"], "LlavaProcessor takes no videos: give the frames as"),
        (["--image", SCENE, "--tokens=3", "--pruner=VtcCsl"], "no pruner is called 'VtcCsl'. Did you mean VtcCls?"),
        (["--image", SCENE, "--tokens=3", "--pruner={name: VtcCls, last: 0}"], "last counts blocks"),
        (["--image", SCENE, "--tokens=3", "--pruner={name: VtcCls, lst: 3}"], "'lst'"),
        (["--image", SCENE, "--tokens=3", "--pruner={name: VtcCls, last: 9}"], "a block beyond the 3"),
        (["--image", SCENE, "--tokens=3", "--pruner=lost.yaml"], "cannot read the pruner lost.yaml"),
        (["--image", SCENE, "--tokens=3", "--pruner=TopK"], "no pruner is called 'TopK'"),
        (["--image", SCENE, "--tokens=3", "--model=vtcframe:tinny"], "nothing bundled is called 'vtcframe:tinny'"),
        (["--image", SCENE, "--tokens=3", "--model=tests"], "cannot be loaded as a checkpoint"),
        (["--image", SCENE, "--tokens=3", "--device=banana"], "there is no device 'banana' here: use cpu"),
        (["--image", SCENE, "--tokens=3", "--attn=fast"], "cannot be loaded as a checkpoint"),
        (["--image", SCENE, "--tokens=3", "--out=e.jpg"], "--out e.jpg does not end in .png"),
        (["--image", SCENE, "--tokens=3", "--question=what color is the dog ?"], "does not know 'dog'"),
    ],
)
def test_errors_are_reported_in_a_few_lines(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tests").mkdir()
    status, out, err = run(capsys, "--question", QUESTION, *arguments)
    assert (status, out) == (2, "")
    assert err.startswith("vtcframe: error: ")
    assert len(err.splitlines()) <= 7
    assert message in err
    assert [path.name for path in tmp_path.iterdir()] == ["tests"]


def test_a_pruner_file_with_invalid_yaml_is_named(tmp_path, capsys):
    (tmp_path / "torn.yaml").write_text("name: [VtcCls")
    status, _, err = run(capsys, "--image", SCENE, "--question=?", "--tokens=3", f"--pruner={tmp_path}/torn.yaml")
    assert status == 2
    assert "torn.yaml: while parsing a flow sequence" in err


def test_a_model_without_an_adapter_is_reported(monkeypatch, of_family):
    model, processor = of_family("llava")

    class Unknown(torch.nn.Module):
        config, generation_config = model.config, model.generation_config

    unknown = Unknown()
    unknown.config = type("Config", (), {"model_type": "blip"})()
    monkeypatch.setattr(Backbone, "load", lambda self: (unknown, processor))
    with pytest.raises(UsageError, match="no adapter knows Unknown"):
        explain("some/checkpoint", "?", RandomPruner(), Budget(tokens=3), [SCENE])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("another placeholder", "give the processor of the checkpoint of the model"),
        ("another number of patches", "one call of the model's own processor returned"),
        ("another size", "doesn't match model"),
    ],
)
def test_a_processor_of_another_model_is_named_as_the_likely_cause(monkeypatch, capsys, change, message):
    from vtcframe.testing.tiny_models.llava_families import tiny_llava

    model, processor = tiny_llava()
    if change == "another placeholder":
        model.config.image_token_id = 5
    elif change == "another number of patches":
        processor.patch_size = 28
    else:
        processor.image_processor = CLIPImageProcessor(
            size={"shortest_edge": 84}, crop_size={"height": 84, "width": 84}
        )
        processor.patch_size = 21
    monkeypatch.setattr(Backbone, "load", lambda self: (model, processor))
    for command in (["explain", "--image", SCENE, "--question=?", "--tokens=3"], ["check", "some/checkpoint"]):
        assert main(command) == 2
        err = capsys.readouterr().err
        assert message in err


def test_missing_devices_are_reported():
    assert device_for("cpu") == torch.device("cpu")
    for name in ("banana", "meta", "cuda:99"):
        with pytest.raises(UsageError, match=f"there is no device '{name}' here: use cpu"):
            device_for(name)
