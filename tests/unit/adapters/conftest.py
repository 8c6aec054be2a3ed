import pytest

from support.auxiliary_encoders import saved_clip, saved_open_clip, saved_timm
from support.vision_encoders import MODELS, clip, timm_vit
from vtcframe_backbones.encoders.open_clip import OpenClip
from vtcframe_backbones.encoders.timm import Timm


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    return {
        "timm": saved_timm(root / "timm"),
        "registers": saved_timm(root / "registers", reg_tokens=2),
        "without class token": saved_timm(root / "map", class_token=False, global_pool="map"),
        "open_clip": saved_open_clip(root / "open_clip"),
        "clip": saved_clip(root / "clip"),
    }


@pytest.fixture(params=MODELS, ids="-".join)
def adapter(request):
    library, name = request.param
    return Timm(timm_vit(name)) if library == "timm" else OpenClip(clip(name))
