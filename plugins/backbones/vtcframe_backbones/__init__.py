"""Adapters to families of multimodal language models, one file for each family."""

from vtcframe.registry import hookimpl


@hookimpl
def vtcframe_components() -> dict[str, list[str]]:
    """Return the components of this distribution."""
    return {
        "adapter": [
            "vtcframe_backbones.llava:Llava",
            "vtcframe_backbones.llava:LlavaNext",
            "vtcframe_backbones.llava:LlavaOnevision",
            "vtcframe_backbones.llava_next_video:LlavaNextVideo",
            "vtcframe_backbones.internvl:InternVl",
            "vtcframe_backbones.qwen_vl:Qwen2Vl",
            "vtcframe_backbones.qwen_vl:Qwen25Vl",
            "vtcframe_backbones.qwen_vl:Qwen3Vl",
            "vtcframe_backbones.video_llava:VideoLlava",
            "vtcframe_backbones.glm4v:Glm4v",
            "vtcframe_backbones.gemma3:Gemma3",
            "vtcframe_backbones.idefics3:Idefics3",
            "vtcframe_backbones.idefics3:SmolVlm",
            "vtcframe_backbones.mistral3:Mistral3",
            "vtcframe_backbones.mistral3:PixtralLlava",
            "vtcframe_backbones.encoders.timm:Timm",
            "vtcframe_backbones.encoders.open_clip:OpenClip",
        ]
    }
