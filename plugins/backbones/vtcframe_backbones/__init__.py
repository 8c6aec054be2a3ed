"""Adapters to families of multimodal language models, one family a file."""

from vtcframe.registry import hookimpl


@hookimpl
def vtcframe_components() -> dict[str, list[str]]:
    """Return what this distribution brings."""
    return {"adapter": ["vtcframe_backbones.llava:Llava", "vtcframe_backbones.llava:LlavaNext"]}
