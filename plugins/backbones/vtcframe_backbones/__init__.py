"""Adapters to families of multimodal language models, one family a file."""

from vtcframe.registry import hookimpl


@hookimpl
def vtcframe_components() -> dict[str, list[str]]:
    """Return what this distribution brings."""
    return {
        "adapter": [
            "vtcframe_backbones.llava:Llava",
            "vtcframe_backbones.llava:LlavaNext",
            "vtcframe_backbones.llava:LlavaOnevision",
            "vtcframe_backbones.internvl:InternVl",
            "vtcframe_backbones.qwen_vl:Qwen2Vl",
            "vtcframe_backbones.qwen_vl:Qwen25Vl",
            "vtcframe_backbones.qwen_vl:Qwen3Vl",
            "vtcframe_backbones.video_llava:VideoLlava",
        ]
    }
