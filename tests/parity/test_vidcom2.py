"""VidCom2: numbers recorded from the authors' own code."""

import torch

from support.recorded_cases import each_case, load_case
from support.recorded_videos import kept_in_video, video
from vtcframe import Budget, Evidence
from vtcframe.components.scorers import Uniqueness
from vtcframe.methods.vidcom2 import ByUniqueness, VidCom2


@each_case("vidcom2")
def test_vid_com2(path):
    tensors, params = load_case(path)
    frames, n = params["frames"], params["tokens_per_frame"]
    evidence = Evidence(tensors["x"].view(frames, n, -1), video(frames, (14, n // 14)))
    unique = Uniqueness()(evidence)
    torch.testing.assert_close(-unique[0], tensors["video_score"], atol=2e-6, rtol=0)
    torch.testing.assert_close(-unique[1], tensors["frame_score"], atol=2e-6, rtol=0)
    budget = Budget(ratio=params["base_scale"])
    quota = ByUniqueness()(unique.mean(0), budget.total(evidence.layout), evidence)
    assert quota.tolist() == (tensors["frame_scales"] * n).round().long().tolist()
    assert kept_in_video(VidCom2()(evidence, budget)) == tensors["kept_indices"].tolist()
