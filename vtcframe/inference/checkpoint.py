"""Checkpoints: how they are loaded, identified and placed on a device."""

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

# model_type of checkpoints with custom code -> checkpoints of the same family that transformers supports
CONVERTED = {
    "qwen": "Qwen2-VL, Qwen2.5-VL or Qwen3-VL (the first Qwen-VL was never converted)",
    "internvl_chat": "the InternVL checkpoints whose names end in -hf",
}


MIB = 2**20


@dataclass(frozen=True)
class Backbone:
    """A checkpoint of a multimodal model, loaded by transformers from safetensors; no custom code is run.

    Args:
        path: Folder, or name on the Hugging Face Hub. `vtcframe:tiny` is the bundled checkpoint.
        dtype: Type of the weights; "auto" is the type in which they were saved.
        attn_implementation: Attention kernel (default: chosen by transformers).
    """

    path: str
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    attn_implementation: str | None = None

    def load(self) -> tuple[Any, Any]:
        """Return model and processor. UsageError if the checkpoint cannot be loaded."""
        path = bundled(self.path)
        source: dict[str, Any] = {"local_files_only": Path(path).is_dir(), "trust_remote_code": False}
        weights = {"dtype": self.dtype, "attn_implementation": self.attn_implementation, "use_safetensors": True}
        try:
            processor = AutoProcessor.from_pretrained(path, **source)
            model = AutoModelForImageTextToText.from_pretrained(path, **source, **weights)
        except (OSError, ValueError, ImportError) as error:
            reason = _custom_code(path) or str(error).strip().partition("\n")[0]
            raise UsageError(f"the backbone {self.path!r} cannot be loaded as a checkpoint: {reason}") from error
        if getattr(processor, "tokenizer", None) is None or getattr(processor, "image_processor", None) is None:
            raise UsageError(
                f"the backbone {self.path!r} has no processor of pictures and text, only a {type(processor).__name__}: "
                "put the files of the model's own processor beside its weights"
            )
        return model, processor

    def revision(self) -> str | None:
        """Return the commit of a checkpoint on the Hub, or a hash of the files of a folder; None if there is none.

        Of files above 2 MiB only the size and both ends are hashed: weights that differ in between get the same hash.
        """
        path = Path(bundled(self.path))
        if not path.is_dir():
            try:
                return extract_commit_hash(cached_file(self.path, "config.json"), None)
            except (OSError, ValueError):
                return None  # `load` explains why
        digest = blake2b(digest_size=8)
        for file in sorted(path.iterdir()):
            if file.is_file():
                size = file.stat().st_size
                digest.update(f"{file.name} {size} ".encode())
                with file.open("rb") as content:
                    digest.update(content.read(MIB))
                    content.seek(max(MIB, size - MIB))
                    digest.update(content.read())
        return digest.hexdigest()

    def question_vocabulary(self) -> QuestionVocabulary | None:
        """Return the words that may be asked, if the checkpoint is a folder that lists them; None for any other."""
        return read_question_vocabulary(Path(bundled(self.path)))


def _custom_code(path: str) -> str | None:
    """Return what to use instead of a checkpoint that needs custom code; None if it needs none."""
    try:
        config, _ = PreTrainedConfig.get_config_dict(path)
    except (OSError, ValueError):
        return None
    if "auto_map" not in config:
        return None
    family = config.get("model_type")
    replacement = CONVERTED.get(str(family), "a checkpoint of it that was converted for transformers")
    return f"it needs custom code (model_type {family!r}), which is never run: use {replacement}"


def device_for(name: str) -> torch.device:
    """Return the device called `name`. UsageError if this machine has no such device."""
    kind = torch.accelerator.current_accelerator(check_available=True)
    count = torch.accelerator.device_count()
    names = ["cpu", *(f"{kind}:{i}" for i in range(count))]
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or f"{device.type}:{device.index or 0}" not in ("cpu:0", *names):
        raise UsageError(f"there is no device {name!r} here: use {', '.join(names)}")
    return device
