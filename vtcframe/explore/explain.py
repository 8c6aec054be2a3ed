"""`vtcframe explain`: what a pruner keeps of a picture or a video, drawn on it, and the same in numbers."""

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
    """One question, answered by the untouched model and by the pruned one."""

    drawn: Image.Image
    numbers: dict[str, Any]  # as `explain` describes them

    def save(self, path: Path) -> Path:
        """Write the sheet to `path` and the numbers beside it as .json; return where these are."""
        numbers = path.with_suffix(".json")
        part, other = (p.with_name(p.name + ".part") for p in (path, numbers))
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self.drawn.save(part, format="PNG")
            other.write_text(json.dumps(self.numbers, ensure_ascii=False) + "\n", encoding="utf-8")
            os.replace(part, path)
            os.replace(other, numbers)
        except OSError as error:
            raise UsageError(f"cannot write {path} and {numbers}: {error}") from error
        return numbers


@dataclass(frozen=True)
class Given:
    """A picture as it was given, or a video's frames, and the part of it that the model is shown."""

    drawn: Picture
    width: int
    height: int
    part: Region

    @classmethod
    def of(cls, processor: Any, drawn: Picture, alone: bool = True) -> "Given":
        """Look up what `processor` shows of it; `alone` is False for one of several pictures."""
        video = not isinstance(drawn, Image.Image)
        width, height = (drawn[0] if video else drawn).size
        return cls(drawn, width, height, visible_region(processor, (height, width), video, alone))

    def placed(self, view: ViewRecord) -> ViewRecord:
        """Tell a view's box in the picture as given."""
        (top, left, bottom, right), (y, x, below, beside) = view["box"], self.part
        down, across = below - y, beside - x
        return {**view, "box": [y + top * down, x + left * across, y + bottom * down, x + right * across]}

    def pixels(self, box: Sequence[float]) -> list[float]:
        """Return left, top, right and bottom of a box."""
        top, left, bottom, right = box
        return _rounded((left * self.width, top * self.height, right * self.width, bottom * self.height))

    def told(self, view: ViewRecord, merged: int) -> dict[str, Any]:
        """Return the numbers of a placed view."""
        first = view["frame"] * merged
        return {
            "image": view["image"],
            "frame": view["frame"],
            "frames": (
                None
                if isinstance(self.drawn, Image.Image)
                else list(range(first, min(first + merged, len(self.drawn))))
            ),
            "box": self.pixels(view["box"]),
            "grid": [len(view["kept"]), len(view["kept"][0])],
            "scores": view["scores"],
            "kept": view["kept"],
            "tokens": [[cell and _rounded(cell) for cell in line] for line in cells(view, self.width, self.height)],
        }


def _rounded(edges: Sequence[float]) -> list[float]:
    return [round(edge, 3) + 0.0 for edge in edges]  # + 0.0: no -0.0


@dataclass(frozen=True)
class Answers:
    """One question, answered by the untouched model and by pruned ones."""

    unpruned: Prediction
    pruned: list[Prediction]  # in the order of the plans; boxes of their views lie in the pictures as given
    given: list[Given]
    merged: int  # frames of a video that become one view

    @property
    def pictures(self) -> list[Picture]:
        """What the views' images and frames count: pictures as given, of videos the first frame of each view."""
        return [one.drawn if isinstance(one.drawn, Image.Image) else one.drawn[:: self.merged] for one in self.given]


def plans(pruners: Sequence[Pruner], budget: Budget | None) -> list[Plan]:
    """Return where each pruner acts with that budget. UsageError for a budget, or none, that one of them refuses."""
    try:
        return [plan_for(pruner, budget) for pruner in pruners]
    except ValueError as error:
        raise UsageError(str(error)) from error


class Explainer:
    """A checkpoint that is loaded once and then asked one question after the other.

    UsageError for what cannot be loaded, for a model that no adapter knows, or a device that is not there.
    """

    def __init__(self, path: str, dtype: Dtype = "float32", device: str = "cpu", attention: str | None = None) -> None:
        self.device = device_for(device)
        disable_progress_bar()  # of loading weights
        self.backbone = Backbone(path, dtype, attention)
        self.model, self.processor = self.backbone.load()
        self.prepared([])

    def prepared(self, plans: Sequence[Plan]) -> Predictor:
        """Return what answers untouched and by each plan. UsageError for one that the model has no place for."""
        loaded = self.model, self.processor
        predictor = Predictor.with_model(*loaded, [None, *plans], backbone=self.backbone, views=True)
        return predictor.to(self.device).eval()

    @torch.no_grad()
    def answers(self, asked: Sample, plans: Sequence[Plan]) -> Answers:
        """Answer a loaded sample, untouched and by each plan. UsageError for what cannot be asked or drops nothing."""
        if asked.error is not None:
            raise UsageError(asked.error)
        predictor = self.prepared(plans)
        unpruned, *pruned = predictor.predict_step([asked], 0)
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
        given = [Given.of(predictor.processor, one, len(asked.pictures) == 1) for one in asked.pictures]
        given += [Given.of(predictor.processor, frames) for frames in asked.videos]
        placed = [replace(row, views=[given[v["image"]].placed(v) for v in row.views or ()]) for row in pruned]
        return Answers(unpruned, placed, given, frames_per_view(predictor.processor))


def _answer(row: Prediction) -> dict[str, Any]:
    names = "visual_tokens", "structural_tokens", "seconds", "encode_seconds"
    return {"answer": row.prediction} | {name: value for name, value in asdict(row).items() if name in names}


def explain(
    path: str,
    question: str,
    pruner: Pruner,
    budget: Budget,
    images: Sequence[str] = (),
    video: Sequence[str] = (),
    dtype: Dtype = "float32",
    device: str = "cpu",
    attention: str | None = None,
) -> Explanation:
    """Ask the checkpoint `path` about pictures, or about a video given as its frames' files or as one file or folder.

    All coordinates are pixels of the pictures as given (turned upright), [left, top, right, bottom]. The numbers:
    "pictures" has the files and sizes, and the rectangle that the model was "shown", which may go beyond the picture;
    "unpruned" and "pruned" have the answer, the visual tokens read, the structural ones beside them and the seconds;
    "views" has for each view its picture, the "frames" of the video that it shows, "box", "grid" ([rows, columns]) and
    three lists of the grid's rows: "scores", "kept" and "tokens", the rectangle of each token cut to the picture; null
    where there is no token, "tokens" also where the picture shows nothing of it.

    UsageError for what cannot be asked or drops nothing.
    """
    asked = load_sample(
        Sample(
            " ".join([*images, *video]),
            question,
            tuple(Path(image) for image in images),
            clips=(tuple(Path(part) for part in video),) if video else (),
        )
    )
    if asked.error is not None:
        raise UsageError(asked.error)  # before anything heavy is loaded
    wanted = plans([pruner], budget)
    found = Explainer(path, dtype, device, attention).answers(asked, wanted)
    files = [*([image] for image in images), *([list(video)] if video else [])]
    unpruned, (pruned,), given = found.unpruned, found.pruned, found.given
    numbers = {
        "model": path,
        "question": question,
        "pruner": pruned.label,
        "budget": pruned.budget,
        "pictures": [
            {"files": names, "size": [one.width, one.height], "shown": one.pixels(one.part)}
            for names, one in zip(files, given, strict=True)
        ],
        "unpruned": _answer(unpruned),
        "pruned": _answer(pruned),
        "views": [given[view["image"]].told(view, found.merged) for view in pruned.views or ()],
        "versions": {"python": platform.python_version()}
        | {name: version(name) for name in ("vtcframe", "torch", "transformers")},
    }
    return Explanation(sheet(found.pictures, [unpruned, pruned], EDGE), numbers)
