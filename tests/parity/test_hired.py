"""HiRED: numbers recorded from the authors' own code."""

from dataclasses import dataclass, replace

import torch

from support.recorded_cases import each_case_with, layout_of, load_case, square
from support.recorded_merging import close, tiles
from vtcframe import AttentionRows, Budget, Evidence, Pipeline
from vtcframe.components.allocators import AttentionMass
from vtcframe.components.ensemblers import Mean
from vtcframe.components.scorers import ClsAttention
from vtcframe.components.selectors import TopK
from vtcframe.core.encoder_readers import QueryRow
from vtcframe.core.kernel_call import KernelCall
from vtcframe.core.verbs import Allocator
from vtcframe.methods.hired import HiRed
from vtcframe.ops.gather import highest


@dataclass(frozen=True)
class RecordedHiRed(Allocator):
    """The code's split: stretches of the raster for regions, counts of the hottest for mass, rounding down."""

    alpha: float
    needs = AttentionMass().needs

    def __call__(self, scores, budget, evidence):
        mass, n = evidence[self.needs[0]][0, 0].mean(0), scores.shape[1]
        hot = highest(mass[None], torch.tensor([int(n * (1 - self.alpha))]))[0]
        counts = hot.view(len(scores) - 1, -1).sum(1)
        whole = min(int(self.alpha * int(budget)), n)
        crops = (counts.float() / counts.sum() * (int(budget) - whole)).long().clamp(max=n)
        return torch.cat([torch.tensor([whole]), crops])


@each_case_with("hired", "in.cls_attn_layer_init")
def test_hired_shares_by_the_papers_regions_and_its_code_by_stretches_of_the_raster(path):
    tensors, params = load_case(path)
    rows = tensors["in.cls_attn_layer_final"][None, ..., 1:]
    first = torch.zeros_like(rows)
    first[:, :1] = tensors["in.cls_attn_layer_init"][None, ..., 1:]
    (down, across), views = params["grid_shape_as_returned"], rows.shape[1]
    where = layout_of([(24, 24)] * views, [0] * views)
    where = replace(where, box=tiles(down, across), centre=None)
    found = {AttentionRows("cls", (-1,)): rows, AttentionRows("cls", (0,)): first}
    evidence, budget = Evidence(tensors["in.features"], where, found), Budget(params["total_budget"])
    recorded = Pipeline((ClsAttention(1),), Mean(), RecordedHiRed(params["alpha"]), TopK())(evidence, budget)
    assert torch.equal(recorded.kept, tensors["out.mask"].bool())

    ours = HiRed(params["alpha"])(evidence, budget)
    heat = first[0, 0].mean(0).view(24, 24)
    share = torch.stack([piece.sum() for band in heat.chunk(down, 0) for piece in band.chunk(across, 1)])
    whole = params["alpha"] * params["total_budget"]
    paper = torch.cat([torch.tensor([whole]), (params["total_budget"] - whole) * share / share.sum()])
    assert int(ours.kept.sum()) == params["total_budget"]
    assert (ours.kept.sum(1) - paper).abs().max() < 1


@each_case_with("hired", "out.kept_indices")
def test_hired_without_crops(path):
    tensors, params = load_case(path)
    rows, n = tensors["in.cls_attn_layer_final"][None, ..., 1:], params["patches"]
    found = {AttentionRows("cls", (-1,)): rows, AttentionRows("cls", (0,)): rows}
    pruned = HiRed()(Evidence(torch.zeros(1, n, 1), layout_of([square(n)]), found), Budget(params["k"]))
    assert pruned.place[0].tolist() == tensors["out.kept_indices"].tolist()


@each_case_with("hired", "in.q_proj_out")
def test_hireds_attention_is_the_row_that_is_read(path):
    tensors, params = load_case(path)
    query, key = (tensors[f"in.{x}_proj_out"].unflatten(-1, (params["heads"], -1)).transpose(1, 2) for x in "qk")
    row = QueryRow(skip=1)(KernelCall(query, key, None, query.shape[-1] ** -0.5, False, None))
    close(row, tensors["out.attn"][:, :, 0, 1:], 1e-6)
