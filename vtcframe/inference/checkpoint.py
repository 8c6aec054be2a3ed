"""Which checkpoint answers, how it is loaded, how it is asked, and what it is shown of a picture."""

from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import AutoModelForImageTextToText, AutoProcessor, PreTrainedConfig
from transformers.utils.hub import cached_file, extract_commit_hash

from vtcframe.assets import bundled
from vtcframe.data.question_vocabulary import QuestionVocabulary, read_question_vocabulary
from vtcframe.errors import UsageError

# model_type of checkpoints that run code of their own -> those that transformers itself knows
CONVERTED = {
    "qwen": "Qwen2-VL, Qwen2.5-VL or Qwen3-VL (the first Qwen-VL was never converted)",
    "internvl_chat": "the InternVL checkpoints whose names end in -hf",
}


MIB = 2**20


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

    def question_vocabulary(self) -> QuestionVocabulary | None:
        """Return the words that may be asked, if the checkpoint is a folder that lists them; None for any other."""
        return read_question_vocabulary(Path(bundled(self.path)))


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
