"""HoliTom: numbers recorded from the authors' own code."""

from dataclasses import replace

import torch

from support.recorded_cases import each_case, layout_of, load_case
from support.recorded_videos import video
from vtcframe import Budget, Evidence
from vtcframe.methods.holitom import HoliTom, HoliTomOuter


@each_case("holitom")
def test_holi_tom_finds_the_recorded_still_places(path):
    tensors, params = load_case(path)
    frames, n, x = params["T"], params["L"], tensors["x"]
    where = replace(layout_of([(6, n // 6)] * frames, [0] * frames), frame=torch.arange(frames))
    outer = HoliTom(tau=params["tau"], beta=params["Beta"]).stages(Budget(1))[0].pruner
    begins, still = outer.find_static(x, where)
    first, last = tensors["windows"][0].tolist()
    assert begins[first : last + 2].tolist() == [True, *[False] * (last - first), True]
    like = tensors["frame_similarity"][first:last] > params["tau"]
    assert torch.equal(still[first], like.all(0))
    torch.testing.assert_close(x[first : last + 1].mean(0)[still[first]], tensors["window0_static_feat"])
    assert tensors["window0_dynamic_pos"].tolist() == [(~still[first]).nonzero()[:, 0].tolist()] * (last - first + 1)


@each_case("holitom")
def test_holi_tom_outer(path):
    tensors, params = load_case(path)
    frames, n = params["T"], params["L"]
    method = HoliTomOuter(params["tau"], params["Beta"])
    evidence = Evidence(tensors["x"], video(frames, (6, n // 6)), {method.needs[0]: tensors["attn"][None, :, None]})
    begins, still = method.find_static(tensors["x"], evidence.layout)
    starts = begins.nonzero()[:, 0].tolist()
    windows = [[a, b - 1] for a, b in zip(starts, [*starts[1:], frames], strict=True)]
    assert windows == tensors["windows"].tolist()
    saved = sum((b - a) * int(still[a].sum()) for a, b in windows)
    assert saved == int(tensors["static_total"])
    assert still[0].nonzero()[:, 0].tolist() == tensors["window0_static_pos"][0].tolist()
    # the recorded code rounds 6.4 changing tokens of a frame up to 7; ours meets its budget, so that 75 is where the
    # first window gets what was recorded
    pruned = method(evidence, Budget(75))
    assert pruned.total.tolist() == [75]
    assert method(evidence, Budget(ratio=params["retain_ratio_base"])).total.tolist() == [frames * n // 4]
    width = int(windows[0][1]) + 1
    for v in range(width):
        place = pruned.place[v][pruned.place[v] >= 0]
        moved = ~torch.isin(place, tensors["window0_static_pos"][0]) if v == 0 else torch.ones_like(place).bool()
        assert place[moved].tolist() == tensors["window0_dynamic_merged_pos"][v].long().tolist()
        got = pruned.tokens[v, : len(place)]
        torch.testing.assert_close(got[moved], tensors["window0_dynamic_merged"][v], atol=2e-5, rtol=0)
        if v == 0:
            assert place[~moved].tolist() == tensors["window0_static_merged_pos"][0].tolist()
            torch.testing.assert_close(got[~moved], tensors["window0_static_merged"][0], atol=2e-5, rtol=0)
