"""The model of lmms-eval: videos."""

import av
import numpy as np
import pytest
from PIL import Image
from vtcframe_lmms_eval.chat import VideoClip

from support.lmms_eval_cases import answered, model
from vtcframe import Budget, UniformPruner
from vtcframe.core.stages import Stage
from vtcframe.data.sample import Sample
from vtcframe.inference.checkpoint import Backbone
from vtcframe.runs.predictor import Predictor
from vtcframe.testing.tiny_models.llava_families import film
from vtcframe.testing.tiny_models.other_families import BACKBONES

# videos


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """Twenty frames at 10 a second, each brighter than the one before."""
    path = tmp_path_factory.mktemp("video") / "clip.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        for number in range(20):
            frame = av.VideoFrame.from_ndarray(np.full((64, 64, 3), 12 * number, np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return str(path)


def shades(found):
    return [round(np.asarray(frame).mean() / 12) for frame in found.frames]


def test_frames_of_a_file_are_evenly_spaced_within_the_seconds_asked_for(clip):
    assert shades(VideoClip.of(clip, 4)) == [2, 7, 12, 17]
    assert shades(VideoClip.of(clip, 99)) == list(range(20))
    within = VideoClip.of(clip, 2, start=1.0, end=1.4)
    assert shades(within) == within.metadata["frames_indices"] == [11, 13]
    assert (within.metadata["fps"], within.metadata["total_num_frames"]) == (10, 20)
    assert shades(VideoClip.of(clip, 2, start=99.0)) == [19]


def test_frames_in_a_list_or_a_folder_are_shown_as_they_are(tmp_path):
    frames = [Image.new("RGB", (8, 8), (12 * number,) * 3) for number in range(6)]
    for number, frame in enumerate(frames):
        frame.save(tmp_path / f"{number}.png")
    for source in (frames, [str(tmp_path / f"{number}.png") for number in range(6)], str(tmp_path)):
        assert shades(VideoClip.of(source, 3)) == [1, 3, 5]
        assert VideoClip.of(source, 3).metadata == {"fps": 2.0, "total_num_frames": 3, "frames_indices": [0, 1, 2]}
    with pytest.raises(ValueError, match="start and end are seconds of an encoded video"):
        VideoClip.of(frames, 3, start=1.0)
    with pytest.raises(ValueError, match="cannot read the video"):
        VideoClip.of(str(tmp_path / "gone.gif"), 3)


@pytest.mark.parametrize("family", ["qwen2_5_vl", "video_llava", "internvl"])
def test_videos_are_answered_as_our_own_predictor_answers_them(family, monkeypatch, log):
    made = BACKBONES[family]()
    monkeypatch.setattr(Backbone, "load", lambda self: made)
    frames = film(5, 56, 56)
    frames = [Image.fromarray(frame) if isinstance(frame, np.ndarray) else frame for frame in frames][:4]
    lm = model("pretrained=tiny,pruner=UniformPruner,ratio=0.5,max_num_frames=4")
    question = "what is in the video ?"
    content = [{"type": "video", "url": frames}, {"type": "text", "text": question}]
    got = answered(lm, [{"role": "user", "content": content}])
    predictor = Predictor(
        Backbone("tiny"),
        stages=[Stage("projector", UniformPruner(), Budget(ratio=0.5))],
        generation={"max_new_tokens": 4},
    )
    predictor.setup("predict")
    (row,) = predictor.predict_step([Sample("v", question, (), videos=(tuple(frames),))], 0)
    assert row.error is None
    assert got == [row.prediction], log
    assert (lm.sums["before"], lm.sums["after"]) == (row.visual_tokens_before, row.visual_tokens)


def test_a_video_for_a_model_of_pictures_is_told(clip, log):
    content = [{"type": "video", "url": clip}, {"type": "text", "text": "what shape is purple ?"}]
    assert answered(model(), [{"role": "user", "content": content}]) == [""]
    assert any("takes no videos: give the frames as `images`" in line for line in log)
