"""TS-LLaVA: numbers recorded from the authors' own code."""

import json
from dataclasses import replace

import pytest
import torch

from support.recorded_cases import GOLDEN, layout_of, load_case
from vtcframe import Budget, Evidence
from vtcframe.data.transforms import even_positions, tiled
from vtcframe.methods.ts_llava import Spaced, TsLlava
from vtcframe.testing import make_evidence

# Thumbnail and TS-LLaVA


def test_grids_and_places_are_the_recorded_ones():
    values = json.loads((GOLDEN / "ts_llava" / "indices.json").read_text())["values"]
    for frames, (rows, columns) in values["find_best_grid"].items():
        out = tiled(torch.zeros(int(frames), 1, 40, 40), 64)
        assert out.shape[1:] == (64 // rows * rows, 64 // columns * columns), frames
    numbered = values["uniform_frames"] | values["sample_tokens"]
    for name, want in numbered.items():
        count, wanted = (int(part[1:]) for part in name.split("_"))
        assert even_positions(count, wanted) == want, name
        evidence = make_evidence(samples={1: [(1, count)]})
        kept = Spaced()(torch.zeros(1, count), torch.tensor([wanted]), evidence)
        assert kept[0].nonzero()[:, 0].tolist() == want, name


def cases(kind):
    files = sorted((GOLDEN / "ts_llava").glob(f"*{kind}*.safetensors"))
    assert files
    return pytest.mark.parametrize("path", files, ids=lambda path: path.stem)


@cases("_grid")
def test_ts_llava_grid(path):
    tensors, params = load_case(path)
    torch.testing.assert_close(tiled(tensors["in.frames"], params["final"]), tensors["out.grid"], atol=2e-5, rtol=0)


@cases("_agg_")
def test_ts_llava(path):
    """Their encoder's stand-in is a mean over 4 x 4 cells."""
    tensors, params = load_case(path)
    order, number = params["aggregation_method"]
    frames, few = tensors["in.frames"], (4, 6, 8)[int(number) - 1]
    grid = tiled(frames[even_positions(len(frames), few)], 336)
    pictures = [*frames, grid] if order == "V" else [grid, *frames] if order == "Y" else [grid]
    tokens = torch.stack([torch.nn.functional.adaptive_avg_pool2d(p, 4).flatten(1).T for p in pictures])
    places = replace(layout_of([(4, 4)] * len(tokens), [0] * len(tokens)), image=torch.arange(len(tokens)))
    method = TsLlava("first" if order == "Y" else "last")
    pruned = method(Evidence(tokens, places), Budget(16 + params["num_sampled_tokens"]))
    torch.testing.assert_close(pruned.sequence(0)[0], tensors["out.tokens"][0], atol=2e-5, rtol=0)
