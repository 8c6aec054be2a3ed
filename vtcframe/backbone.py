"""Which checkpoint answers, and how it is loaded."""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from transformers import AutoModelForImageTextToText, AutoProcessor

from vtcframe.config import UsageError, bundled


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
        """Return model and processor, which pads on the left. UsageError if there is nothing that can be loaded."""
        path = bundled(self.path)
        source: dict[str, Any] = {"local_files_only": Path(path).is_dir(), "trust_remote_code": False}
        weights = {"dtype": self.dtype, "attn_implementation": self.attn_implementation, "use_safetensors": True}
        try:
            processor = AutoProcessor.from_pretrained(path, **source)
            model = AutoModelForImageTextToText.from_pretrained(path, **source, **weights)
        except (OSError, ValueError, ImportError) as error:
            reason = str(error).strip().partition("\n")[0]
            raise UsageError(f"the backbone {self.path!r} cannot be loaded as a checkpoint: {reason}") from error
        processor.tokenizer.padding_side = "left"  # what is generated follows the prompts' last tokens
        return model, processor

    def language(self) -> Language | None:
        """Return what may be asked, where the checkpoint is a folder that says so."""
        path = Path(bundled(self.path)) / "questions.json"
        if not path.is_file():
            return None
        told = json.loads(path.read_text(encoding="utf-8"))
        return Language(frozenset(told["vocabulary"]), tuple(told["forms"].values()))
