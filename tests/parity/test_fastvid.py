"""FastVID: numbers recorded from the authors' own code."""

import torch

from support.recorded_cases import each_case, load_case
from support.recorded_videos import kept_in_video, video
from vtcframe import Budget, Evidence
from vtcframe.methods.fastvid import FastVid


@each_case("fastvid")
def test_fast_vid(path):
    tensors, params = load_case(path)
    frames, n, start = params["frames"], params["tokens_per_frame"], params["video_start"]
    stop = start + frames * n
    x = tensors["hidden_states"][start:stop].view(frames, n, -1)
    method = FastVid(
        params["DySeg_c"],
        params["DySeg_tau"],
        context=params["STPrune_d"],
        every=params["DTM_p"],
        beta=params["DTM_beta"],
        query="head",
    )
    attention, features = method.needs
    pooled = tensors["frame_global"][:, None].expand(-1, n, -1)  # the code compares frames by the head's output
    evidence = Evidence(
        x, video(frames, (7, n // 7)), {attention: tensors["frame_attn"][None, :, None], features: pooled}
    )
    cut = method.find_segments(evidence).nonzero()[:, 0].tolist()
    assert [b - a for a, b in zip(cut, [*cut[1:], frames], strict=True)] == tensors["segment_sizes"].tolist()
    pruned = method(evidence, Budget(int(n * params["retention"]), per="view"))
    mine = (tensors["kept_indices"] >= start) & (tensors["kept_indices"] < stop)
    assert kept_in_video(pruned) == (tensors["kept_indices"][mine] - start).tolist()
    torch.testing.assert_close(pruned.sequence(0)[0], tensors["hidden_out"][mine], atol=2e-5, rtol=0)
