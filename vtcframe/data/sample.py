"""A question with its pictures and videos."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from PIL import Image


class Embedded(ABC):
    """Pictures inside a file of questions, which are read when their sample is loaded; `str` is their place."""

    @abstractmethod
    def files(self) -> Sequence[Path | BinaryIO]:
        """Return the source of each picture. It may raise any error."""


@dataclass(frozen=True)
class Sample:
    """One question. Once it is loaded, it has pictures and videos, or an error."""

    id: str
    question: str
    images: tuple[Path | Embedded, ...]
    answer: str | None = None  # the reference; None if it is not known, or if `meta` has several
    type: str | None = None
    clips: tuple[tuple[Path, ...], ...] = ()  # files of the frames of each video, or one folder or animated picture
    meta: dict[str, Any] = field(default_factory=dict)  # values of JSON that the benchmark needs for scores
    pictures: tuple[Image.Image, ...] = ()
    videos: tuple[tuple[Image.Image, ...], ...] = ()  # the frames of each
    error: str | None = None
