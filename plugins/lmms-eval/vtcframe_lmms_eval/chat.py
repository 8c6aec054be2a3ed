"""Conversations as lmms-eval hands them over, and what a processor makes of them."""

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
    """The frames of a video that are shown, and what processors want to know of the whole."""

    frames: Sequence[Image.Image]
    metadata: Metadata

    @classmethod
    def of(cls, source: Any, wanted: int, start: float | None = None, end: float | None = None) -> "VideoClip":
        """Show at most `wanted` frames, evenly spaced, of a file, a folder of frames, or frames in a list.

        `start` and `end` are seconds of a file. ValueError for what cannot be read.
        """
        if isinstance(source, str) and Path(source).suffix.lower() in ENCODED:
            return cls._decoded(source, wanted, start, end)
        if start is not None or end is not None:
            raise ValueError(f"seconds are told of an encoded video, not of {source!r}: leave start and end out")
        if isinstance(source, str):
            sample = load_sample(Sample(source, "", (), clips=((Path(source),),)), wanted)
            if sample.error is not None:
                raise ValueError(sample.error)
            frames = sample.videos[0]
        else:
            frames = [load_image(source[index]) for index in part_middles(len(source), wanted)]
        return cls(frames, {"fps": FPS, "total_num_frames": len(frames), "frames_indices": list(range(len(frames)))})

    @classmethod
    def _decoded(cls, path: str, wanted: int, start: float | None, end: float | None) -> "VideoClip":
        def indices(metadata: Any, **_: Any) -> list[int]:
            if not (count := metadata.total_num_frames):
                raise ValueError(f"{path} does not say how many frames it has: write it anew (ffmpeg -i ... it.mp4)")
            first = min(int((start or 0) * metadata.fps), count - 1)
            behind = count if end is None else min(int(end * metadata.fps), count)
            return [first + index for index in part_middles(max(behind - first, 1), wanted)]

        frames, told = load_video(path, sample_indices_fn=indices)  # pyright: ignore[reportArgumentType] (a path is fine)
        known = "fps", "total_num_frames", "frames_indices"
        return cls([Image.fromarray(frame) for frame in frames], {name: getattr(told, name) for name in known})


@dataclass(frozen=True)
class Chat:
    """A conversation: its turns with placeholders, and the pictures and videos that belong there, in their order."""

    turns: Sequence[Mapping[str, Any]]
    pictures: Sequence[Image.Image]
    films: Sequence[VideoClip]

    @classmethod
    def of(cls, messages: Sequence[Any], frames: int, system: str | None = None) -> "Chat":
        """Decode lmms-eval's messages; `system` takes the place of their own. ValueError for what cannot be shown."""
        turns: list[dict[str, Any]] = []
        pictures, films = [], []
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
                        films.append(_video_clip(content, frames))
                    case other:
                        raise ValueError(f"{other} cannot be shown to a model of pictures and text")
        return cls(turns, pictures, films)

    @property
    def visual(self) -> bool:
        """Whether it shows anything."""
        return bool(self.pictures or self.films)

    @property
    def question(self) -> str:
        """What was said last: what pruners compare pictures with."""
        return "\n".join(part["text"] for part in self.turns[-1]["content"] if part["type"] == "text")

    def prompt(self, processor: Any) -> str:
        """Write it in the checkpoint's own chat template, or bare where there is none."""
        if getattr(processor, "chat_template", None) is not None:
            return processor.apply_chat_template(list(self.turns), add_generation_prompt=True)
        parts = [part for turn in self.turns for part in turn["content"]]
        return " ".join(
            part["text"] if "text" in part else getattr(processor, f"{part['type']}_token") for part in parts
        )


def _video_clip(content: Any, frames: int) -> VideoClip:
    """Decode what stands for a video: where it is, or that with its seconds."""
    source, start, end = content.url, content.start_time, content.end_time
    if isinstance(source, Mapping):
        start, end = source.get("video_start", start), source.get("video_end", end)
        source = source.get("path") or source.get("url")
    return VideoClip.of(source, frames, start, end)


def chat_inputs(processor: Any, chats: Sequence[Chat]) -> Any:
    """Return what the processor makes of conversations. ValueError for videos where it takes none."""
    films = [film for chat in chats for film in chat.films]
    prompts = [chat.prompt(processor) for chat in chats]
    pictures = [chat.pictures for chat in chats]
    return batch_inputs(
        processor, prompts, pictures, [film.frames for film in films], [film.metadata for film in films]
    )
