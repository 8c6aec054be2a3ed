"""Which checkpoint answers, how it is loaded, how it is asked, and what it is shown of a picture."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor, PreTrainedConfig
from transformers.utils.hub import cached_file, extract_commit_hash

from vtcframe.config import UsageError, bundled
from vtcframe.data import Sample

# model_type of checkpoints that run code of their own -> those that transformers itself knows
CONVERTED = {
    "qwen": "Qwen2-VL, Qwen2.5-VL or Qwen3-VL (the first Qwen-VL was never converted)",
    "internvl_chat": "the InternVL checkpoints whose names end in -hf",
}
MIB = 2**20
FPS = 2.0  # of videos, which are given as frames: the rate at which Qwen's processors sample one
Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Language:
    """The few words and forms of question that a tiny model was taught, as its folder says in questions.json."""

    words: frozenset[str]
    forms: tuple[str, ...]

    def misunderstood(self, question: str) -> str | None:
        """Say which words of a question are unknown, and what may be asked; None where all are known."""
        unknown = [word for word in re.findall(r"\w+|[^\w\s]+", question.lower()) if word not in self.words]
        if not unknown:
            return None
        return f"the model does not know {', '.join(map(repr, unknown))}; it can be asked: {'  '.join(self.forms)}"


@dataclass(frozen=True)
class Backbone:
    """A checkpoint of a multimodal model, as transformers loads it: safetensors only, and no code of its own is run.

    Args:
        path: Folder, or name on the Hugging Face Hub. `vtcframe:tiny` is the bundled one.
        dtype: Type of the weights; "auto" is the one in which they were saved.
        attn_implementation: Attention kernel; chosen by transformers when not given.
    """

    path: str
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    attn_implementation: str | None = None

    def load(self) -> tuple[Any, Any]:
        """Return model and processor. UsageError if there is nothing that can be loaded."""
        path = bundled(self.path)
        source: dict[str, Any] = {"local_files_only": Path(path).is_dir(), "trust_remote_code": False}
        weights = {"dtype": self.dtype, "attn_implementation": self.attn_implementation, "use_safetensors": True}
        try:
            processor = AutoProcessor.from_pretrained(path, **source)
            model = AutoModelForImageTextToText.from_pretrained(path, **source, **weights)
        except (OSError, ValueError, ImportError) as error:
            reason = _own_code(path) or str(error).strip().partition("\n")[0]
            raise UsageError(f"the backbone {self.path!r} cannot be loaded as a checkpoint: {reason}") from error
        if getattr(processor, "tokenizer", None) is None or getattr(processor, "image_processor", None) is None:
            raise UsageError(
                f"the backbone {self.path!r} has no processor of pictures and text, only a {type(processor).__name__}: "
                "put the files of the model's own processor beside its weights"
            )
        return model, processor

    def revision(self) -> str | None:
        """Return the commit of a checkpoint of the Hub, or a hash of a folder's files; None for what is not found.

        Of files above 2 MiB their size and both ends are hashed: two weights that differ in between pass for one.
        """
        path = Path(bundled(self.path))
        if not path.is_dir():
            try:
                return extract_commit_hash(cached_file(self.path, "config.json"), None)
            except (OSError, ValueError):
                return None  # it is `load` that says why
        told = blake2b(digest_size=8)
        for file in sorted(path.iterdir()):
            if file.is_file():
                size = file.stat().st_size
                told.update(f"{file.name} {size} ".encode())
                with file.open("rb") as content:
                    told.update(content.read(MIB))
                    content.seek(max(MIB, size - MIB))
                    told.update(content.read())
        return told.hexdigest()

    def language(self) -> Language | None:
        """Return what may be asked, where the checkpoint is a folder that says so."""
        path = Path(bundled(self.path)) / "questions.json"
        if not path.is_file():
            return None
        told = json.loads(path.read_text(encoding="utf-8"))
        return Language(frozenset(told["vocabulary"]), tuple(told["forms"].values()))


def _own_code(path: str) -> str | None:
    """Say what to use in place of a checkpoint that runs code of its own; None for one that does not."""
    try:
        config, _ = PreTrainedConfig.get_config_dict(path)
    except (OSError, ValueError):
        return None
    if "auto_map" not in config:
        return None
    family = config.get("model_type")
    instead = CONVERTED.get(str(family), "a checkpoint of it that was converted for transformers")
    return f"it runs code of its own (model_type {family!r}), which is not done here: use {instead}"


def device_for(name: str) -> torch.device:
    """Return the device of that name. UsageError where there is none."""
    kind, count = torch.accelerator.current_accelerator(check_available=True), torch.accelerator.device_count()
    names = ["cpu", *(f"{kind}:{i}" for i in range(count))]
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or f"{device.type}:{device.index or 0}" not in ("cpu:0", *names):
        raise UsageError(f"there is no device {name!r} here: use {', '.join(names)}")
    return device


def asked(processor: Any, samples: Sequence[Sample]) -> Any:
    """Return what the processor makes of loaded samples: each question behind its pictures, these before its video.

    ValueError for a video where the processor takes none.
    """
    prompts = [prompt(processor, sample.question, len(sample.pictures), len(sample.videos)) for sample in samples]
    videos = [frames for sample in samples for frames in sample.videos]
    return fed(processor, prompts, [sample.pictures for sample in samples], videos, [_metadata(len(v)) for v in videos])


def fed(
    processor: Any,
    prompts: Sequence[str],
    pictures: Sequence[Sequence[Image.Image]],
    videos: Sequence[Sequence[Image.Image]],
    metadata: Sequence[Mapping[str, Any]],
) -> Any:
    """Return what the processor makes of prompts, the pictures of each, and all their videos in reading order.

    Frames are taken as they are given. ValueError for videos where the processor takes none.
    """
    if videos and getattr(processor, "video_processor", None) is None:
        raise ValueError(f"{type(processor).__name__} takes no videos: give the frames as `images`")
    given: dict[str, Any] = {}
    if any(pictures):
        given["images"] = [list(own) for own in pictures]
    if videos:
        given |= {"videos": [list(v) for v in videos], "do_sample_frames": False, "video_metadata": list(metadata)}
    start = processor.tokenizer.bos_token
    return processor(
        text=list(prompts),
        add_special_tokens=start is None or not prompts[0].startswith(start),  # some templates write it themselves
        padding=True,
        padding_side="left",  # what is generated follows the last tokens of the prompts
        return_tensors="pt",
        **given,
    )


def _metadata(frames: int) -> dict[str, Any]:
    return {"fps": FPS, "total_num_frames": frames, "frames_indices": list(range(frames))}


def prompt(processor: Any, question: str, pictures: int, videos: int = 0) -> str:
    """Write a question in the checkpoint's own chat template, or bare behind its placeholders where there is none."""
    if getattr(processor, "chat_template", None) is None:
        visuals = [processor.image_token] * pictures + ([processor.video_token] * videos if videos else [])
        return " ".join([*visuals, question])
    content = [{"type": "image"}] * pictures + [{"type": "video"}] * videos + [{"type": "text", "text": question}]
    return processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)


def shown(processor: Any, size: tuple[int, int], video: bool = False, alone: bool = True) -> Box:
    """Return which part of a picture of `size` (height, width), or of a video's frames, the model is shown.

    That is a rectangle (top, left, bottom, right) in the picture's own 0..1, and boxes of views lie in it. It goes
    beyond 0..1 where the processor pads; it is the whole picture where that is resized, be it squashed, or cut into
    tiles (what pads these is no part of their boxes). `alone` is False for one of several images of a sample:
    LLaVA-OneVision tiles a single one, and pads several to squares.
    """
    made = processor.video_processor if video else processor.image_processor
    height, width = size
    top = left = 0
    tiled = bool(getattr(made, "image_grid_pinpoints", None))
    if hasattr(made, "pad_to_square") and (not alone if tiled else getattr(made, "do_pad", False)):
        side = max(size)
        top, left = -((side - height) // 2), -((side - width) // 2)
        height = width = side
    crop = getattr(made, "crop_size", None)
    if getattr(made, "do_center_crop", False) and crop and not tiled:
        down, across = _resized(made, height, width)
        top, left = (
            top + _offset(down, crop["height"]) * height / down,
            left + _offset(across, crop["width"]) * width / across,
        )
        height, width = crop["height"] * height / down, crop["width"] * width / across
    return top / size[0], left / size[1], (top + height) / size[0], (left + width) / size[1]


def _resized(made: Any, height: int, width: int) -> tuple[int, int]:
    """Return height and width before the crop: the shortest edge at the size asked for, or both edges."""
    size = dict(made.size) if getattr(made, "do_resize", False) else {"height": height, "width": width}
    if "height" in size:
        return size["height"], size["width"]
    short, long = size["shortest_edge"], int(size["shortest_edge"] * max(height, width) / min(height, width))
    return (short, long) if height <= width else (long, short)


def _offset(edge: int, crop: int) -> int:
    """Return where a centre crop begins; negative where it pads."""
    return (edge - crop) // 2 if edge >= crop else -((crop - edge) // 2)
