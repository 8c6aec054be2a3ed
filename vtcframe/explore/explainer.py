"""`vtcframe explain`: the tokens of a picture or video that a pruner keeps, as a drawing and in numbers."""

import json
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image
from transformers.utils.logging import disable_progress_bar

from vtcframe.core.budget import Budget
from vtcframe.core.stages import Plan, Pruner, plan_for
from vtcframe.data.decode import load_sample
from vtcframe.data.processor import Region, visible_region
from vtcframe.data.results import Prediction, ViewRecord, format_budget
from vtcframe.data.sample import Sample
from vtcframe.drawing import Picture, cells, sheet
from vtcframe.errors import UsageError
from vtcframe.inference.checkpoint import Backbone, device_for
from vtcframe.runs.crops import frames_per_view
from vtcframe.runs.predictor import Predictor

Dtype = Literal["auto", "float32", "bfloat16", "float16"]


EDGE = 768  # pixels of a picture's longer edge on the sheet


@dataclass(frozen=True)
class Explanation:
    """The answers of the unpruned and the pruned model to one question, as a drawing and in numbers."""

    image: Image.Image
    numbers: dict[str, Any]  # described in `explain`

    def save(self, path: Path) -> Path:
        """Write the drawing to `path` and the numbers to a .json file of the same name, and return that file's path.

        Raises UsageError if a file cannot be written.
        """
        numbers = path.with_suffix(".json")
        image_part = path.with_name(path.name + ".part")
        numbers_part = numbers.with_name(numbers.name + ".part")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self.image.save(image_part, format="PNG")
            numbers_part.write_text(json.dumps(self.numbers, ensure_ascii=False) + "\n", encoding="utf-8")
            os.replace(image_part, path)
            os.replace(numbers_part, numbers)
        except OSError as error:
            raise UsageError(f"cannot write {path} and {numbers}: {error}") from error
        return numbers


@dataclass(frozen=True)
class SourcePicture:
    """An input picture, or the frames of a video, and the part of it that the model sees."""

    picture: Picture
    width: int
    height: int
    visible: Region

    @classmethod
    def of(cls, processor: Any, picture: Picture, single: bool = True) -> "SourcePicture":
        """Look up the part of `picture` that `processor` shows to the model.

        `single` is False for one of several pictures.
        """
        video = not isinstance(picture, Image.Image)
        width, height = (picture[0] if video else picture).size
        return cls(picture, width, height, visible_region(processor, (height, width), video, single))

    def place_view(self, view: ViewRecord) -> ViewRecord:
        """Return the view with its box in fractions of the input picture instead of the visible part."""
        top, left, bottom, right = view["box"]
        visible_top, visible_left, visible_bottom, visible_right = self.visible
        height = visible_bottom - visible_top
        width = visible_right - visible_left
        return {
            **view,
            "box": [
                visible_top + top * height,
                visible_left + left * width,
                visible_top + bottom * height,
                visible_left + right * width,
            ],
        }

    def pixels(self, box: Sequence[float]) -> list[float]:
        """Convert a box [top, left, bottom, right] in fractions to [left, top, right, bottom] in pixels."""
        top, left, bottom, right = box
        return _rounded((left * self.width, top * self.height, right * self.width, bottom * self.height))

    def view_numbers(self, view: ViewRecord, merged: int) -> dict[str, Any]:
        """Return the numbers of a view whose box is placed in the input picture; `merged` is the frames per view."""
        first = view["frame"] * merged
        return {
            "image": view["image"],
            "frame": view["frame"],
            "frames": (
                None
                if isinstance(self.picture, Image.Image)
                else list(range(first, min(first + merged, len(self.picture))))
            ),
            "box": self.pixels(view["box"]),
            "grid": [len(view["kept"]), len(view["kept"][0])],
            "scores": view["scores"],
            "kept": view["kept"],
            "tokens": [[cell and _rounded(cell) for cell in line] for line in cells(view, self.width, self.height)],
        }


def _rounded(edges: Sequence[float]) -> list[float]:
    return [round(edge, 3) + 0.0 for edge in edges]  # + 0.0 turns -0.0 into 0.0


@dataclass(frozen=True)
class Answers:
    """The answers of the unpruned model and of pruned ones to one question."""

    unpruned: Prediction
    pruned: list[Prediction]  # in the order of the plans; boxes of their views are in fractions of the input pictures
    sources: list[SourcePicture]
    merged: int  # video frames per view

    @property
    def pictures(self) -> list[Picture]:
        """The input pictures, and for a video the first frame of each view: what image and frame of views index."""
        pictures = [source.picture for source in self.sources]
        return [picture if isinstance(picture, Image.Image) else picture[:: self.merged] for picture in pictures]


def make_plans(pruners: Sequence[Pruner], budget: Budget | None) -> list[Plan]:
    """Return the plan of each pruner at a budget. Raises UsageError if a pruner rejects the budget or its absence."""
    try:
        return [plan_for(pruner, budget) for pruner in pruners]
    except ValueError as error:
        raise UsageError(str(error)) from error


class Explainer:
    """A checkpoint that is loaded once and then answers any number of questions.

    Raises UsageError if the checkpoint cannot be loaded, no adapter supports the model, or the device does not exist.
    """

    def __init__(self, path: str, dtype: Dtype = "float32", device: str = "cpu", attention: str | None = None) -> None:
        self.device = device_for(device)
        disable_progress_bar()  # the bar shown while weights are loaded
        self.backbone = Backbone(path, dtype, attention)
        self.model, self.processor = self.backbone.load()
        self.predictor_for([])

    def predictor_for(self, plans: Sequence[Plan]) -> Predictor:
        """Return a predictor for the unpruned model and each plan. Raises UsageError if the model rejects a plan."""
        predictor = Predictor.with_model(self.model, self.processor, [None, *plans], backbone=self.backbone, views=True)
        return predictor.to(self.device).eval()

    @torch.no_grad()
    def answer(self, sample: Sample, plans: Sequence[Plan]) -> Answers:
        """Answer a loaded sample with the unpruned model and with each plan.

        Raises UsageError for a sample or plan that fails, and for a budget that drops nothing.
        """
        if sample.error is not None:
            raise UsageError(sample.error)
        predictor = self.predictor_for(plans)
        unpruned, *pruned = predictor.predict_step([sample], 0)
        if unpruned.error is not None:
            raise UsageError(unpruned.error)
        for row in pruned:
            if row.error is not None:
                raise UsageError(row.error)
            if row.views is None:
                raise UsageError(
                    f"a budget of {format_budget(row.budget)} drops nothing: there are only "
                    f"{unpruned.visual_tokens} visual tokens"
                )
        single = len(sample.pictures) == 1
        sources = [SourcePicture.of(predictor.processor, picture, single) for picture in sample.pictures]
        sources += [SourcePicture.of(predictor.processor, frames) for frames in sample.videos]
        rows = [
            replace(row, views=[sources[view["image"]].place_view(view) for view in row.views or ()]) for row in pruned
        ]
        return Answers(unpruned, rows, sources, frames_per_view(predictor.processor))


def _answer_numbers(row: Prediction) -> dict[str, Any]:
    names = "visual_tokens", "structural_tokens", "seconds", "encode_seconds"
    return {"answer": row.prediction} | {name: value for name, value in asdict(row).items() if name in names}


def explain(
    path: str,
    question: str,
    pruner: Pruner,
    budget: Budget,
    images: Sequence[str] = (),
    video: Sequence[str] = (),
    *,
    dtype: Dtype = "float32",
    device: str = "cpu",
    attention: str | None = None,
) -> Explanation:
    """Ask the checkpoint `path` a question about pictures or a video, with the unpruned and the pruned model.

    `video` holds the files of its frames, or one file or folder. All coordinates are pixels of the input pictures
    (turned upright), [left, top, right, bottom]. The numbers are:
    "pictures": files and sizes, and "shown": the rectangle that the model sees, which may extend beyond the picture;
    "unpruned" and "pruned": the answer, the numbers of visual and of structural tokens, and the seconds;
    "views": for each view its picture, the "frames" of the video that it shows, "box", "grid" ([rows, columns]) and
    three lists with the rows of the grid: "scores", "kept" and "tokens", the rectangle of each token clipped to the
    picture. An entry is null where there is no token; in "tokens" also where the token lies outside the picture.

    Raises UsageError for inputs that cannot be used and for a budget that drops nothing.
    """
    sample = load_sample(
        Sample(
            " ".join([*images, *video]),
            question,
            tuple(Path(image) for image in images),
            clips=(tuple(Path(part) for part in video),) if video else (),
        )
    )
    if sample.error is not None:
        raise UsageError(sample.error)  # before the model is loaded
    answers = Explainer(path, dtype, device, attention).answer(sample, make_plans([pruner], budget))
    files = [*([image] for image in images), *([list(video)] if video else [])]
    (pruned,) = answers.pruned
    numbers = {
        "model": path,
        "question": question,
        "pruner": pruned.label,
        "budget": pruned.budget,
        "pictures": [
            {"files": names, "size": [source.width, source.height], "shown": source.pixels(source.visible)}
            for names, source in zip(files, answers.sources, strict=True)
        ],
        "unpruned": _answer_numbers(answers.unpruned),
        "pruned": _answer_numbers(pruned),
        "views": [answers.sources[view["image"]].view_numbers(view, answers.merged) for view in pruned.views or ()],
        "versions": {"python": platform.python_version()}
        | {name: version(name) for name in ("vtcframe", "torch", "transformers")},
    }
    return Explanation(sheet(answers.pictures, [answers.unpruned, pruned], EDGE), numbers)
