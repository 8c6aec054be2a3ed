"""Conversations of lmms-eval, and their conversion to inputs by a processor."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from transformers.image_utils import load_image
from transformers.video_utils import load_video

from vtcframe.data.decode import ENCODED, load_sample, part_middles
from vtcframe.data.processor import FPS, batch_inputs
from vtcframe.data.sample import Sample

Metadata = dict[str, Any]


@dataclass(frozen=True)
class VideoClip:
    """The sampled frames of a video, and the metadata of the video that processors need."""

    frames: Sequence[Image.Image]
    metadata: Metadata

    @classmethod
    def of(cls, source: Any, max_frames: int, start: float | None = None, end: float | None = None) -> "VideoClip":
        """Sample at most `max_frames` evenly spaced frames of a file, a folder of frames, or a list of frames.

        `start` and `end` are seconds of an encoded file. ValueError for a source that cannot be read.
        """
        if isinstance(source, str) and Path(source).suffix.lower() in ENCODED:
            return cls._decode(source, max_frames, start, end)
        if start is not None or end is not None:
            raise ValueError(f"start and end are seconds of an encoded video, not of {source!r}: leave them out")
        if isinstance(source, str):
            sample = load_sample(Sample(source, "", (), clips=((Path(source),),)), max_frames)
            if sample.error is not None:
                raise ValueError(sample.error)
            frames = sample.videos[0]
        else:
            frames = [load_image(source[index]) for index in part_middles(len(source), max_frames)]
        return cls(frames, {"fps": FPS, "total_num_frames": len(frames), "frames_indices": list(range(len(frames)))})

    @classmethod
    def _decode(cls, path: str, max_frames: int, start: float | None, end: float | None) -> "VideoClip":
        def indices(metadata: Any, **_: Any) -> list[int]:
            if not (count := metadata.total_num_frames):
                raise ValueError(f"{path} has no number of frames: convert it (ffmpeg -i {path} converted.mp4)")
            first = min(int((start or 0) * metadata.fps), count - 1)
            stop = count if end is None else min(int(end * metadata.fps), count)
            return [first + index for index in part_middles(max(stop - first, 1), max_frames)]

        # load_video also takes a path
        frames, metadata = load_video(path, sample_indices_fn=indices)  # pyright: ignore[reportArgumentType]
        names = "fps", "total_num_frames", "frames_indices"
        return cls([Image.fromarray(frame) for frame in frames], {name: getattr(metadata, name) for name in names})


@dataclass(frozen=True)
class Chat:
    """A conversation: its turns with placeholders, and the pictures and videos of the placeholders, in order."""

    turns: Sequence[Mapping[str, Any]]
    pictures: Sequence[Image.Image]
    videos: Sequence[VideoClip]

    @classmethod
    def of(cls, messages: Sequence[Any], frames: int, system: str | None = None) -> "Chat":
        """Decode messages of lmms-eval; `system` replaces their system message.

        `frames` is the maximum number of frames of a video. ValueError for content that is no text, image or video.
        """
        turns: list[dict[str, Any]] = []
        pictures: list[Image.Image] = []
        videos: list[VideoClip] = []
        if system is not None:
            messages = [message for message in messages if message.role != "system"]
            turns.append({"role": "system", "content": [{"type": "text", "text": system}]})
        for message in messages:
            turns.append({"role": message.role, "content": (parts := [])})
            for content in message.content:
                parts.append({"type": content.type})
                match content.type:
                    case "text":
                        parts[-1]["text"] = content.text
                    case "image":
                        pictures.append(load_image(content.url))
                    case "video":
                        videos.append(_video_clip(content, frames))
                    case other:
                        raise ValueError(f"content of type {other} is not supported: use text, image or video")
        return cls(turns, pictures, videos)

    @property
    def visual(self) -> bool:
        """Whether the conversation has pictures or videos."""
        return bool(self.pictures or self.videos)

    @property
    def question(self) -> str:
        """The text of the last turn, with which pruners compare pictures."""
        return "\n".join(part["text"] for part in self.turns[-1]["content"] if part["type"] == "text")

    def prompt(self, processor: Any) -> str:
        """Return the prompt in the chat template of the checkpoint, or without a template if it has none."""
        if getattr(processor, "chat_template", None) is not None:
            return processor.apply_chat_template(list(self.turns), add_generation_prompt=True)
        parts = [part for turn in self.turns for part in turn["content"]]
        return " ".join(
            part["text"] if "text" in part else getattr(processor, f"{part['type']}_token") for part in parts
        )


def _video_clip(content: Any, frames: int) -> VideoClip:
    """Decode the video of a message: its location, or a mapping of location, start and end."""
    source, start, end = content.url, content.start_time, content.end_time
    if isinstance(source, Mapping):
        start, end = source.get("video_start", start), source.get("video_end", end)
        source = source.get("path") or source.get("url")
    return VideoClip.of(source, frames, start, end)


def chat_inputs(processor: Any, chats: Sequence[Chat]) -> Any:
    """Return the inputs that a processor makes of conversations. ValueError for videos if it takes none."""
    videos = [video for chat in chats for video in chat.videos]
    prompts = [chat.prompt(processor) for chat in chats]
    pictures = [chat.pictures for chat in chats]
    return batch_inputs(
        processor, prompts, pictures, [video.frames for video in videos], [video.metadata for video in videos]
    )
