"""A question with its pictures and videos, as data."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from PIL import Image


class Embedded(ABC):
    """Pictures inside a file of questions. They are read when their sample is loaded; `str` says where they are."""

    @abstractmethod
    def files(self) -> Sequence[Path | BinaryIO]:
        """Return what each of them is decoded from. An error for what is no picture."""


@dataclass(frozen=True)
class Sample:
    """One question; once loaded, with its pictures and videos or the reason why there are none."""

    id: str
    question: str
    images: tuple[Path | Embedded, ...]
    answer: str | None = None  # the reference; None where it is not known, or where there are several, in `meta`
    type: str | None = None
    clips: tuple[tuple[Path, ...], ...] = ()  # each video as its frames' files, or as one folder or animated picture
    meta: dict[str, Any] = field(default_factory=dict)  # what a benchmark scores by, as JSON can hold it
    pictures: tuple[Image.Image, ...] = ()
    videos: tuple[tuple[Image.Image, ...], ...] = ()  # the frames of each
    error: str | None = None
