"""The model `vtcframe` of lmms-eval: `lmms-eval --model vtcframe --model_args pretrained=...,pruner=VtcCls,tokens=64`.

lmms-eval loads the manifest of every installed model at each start, so this module imports nothing.
"""

from typing import Any


def manifest() -> Any:
    """Return the ModelManifest of a chat model, for the entry point `lmms_eval.models`."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest("vtcframe", chat_class_path="vtcframe_lmms_eval.model.VtcFrame")
