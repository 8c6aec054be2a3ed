"""The door to lmms-eval: `lmms-eval --model vtcframe --model_args pretrained=...,pruner=VtcCls,tokens=64`.

lmms-eval asks every installed model for its manifest whenever it starts, so that nothing is imported here.
"""

from typing import Any


def manifest() -> Any:
    """Return what the entry point `lmms_eval.models` promises: the ModelManifest of a model that reads chats."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest("vtcframe", chat_class_path="vtcframe_lmms_eval.model.VtcFrame")
