"""CDPruner: numbers recorded from the authors' own code."""

import torch

from support.places import kept
from support.recorded_cases import each_case, layout_of, load_case, square
from vtcframe import Budget, Evidence, Similarity
from vtcframe.methods.cdpruner import CdPruner


@each_case("cdpruner")
def test_cd_pruner(path):
    tensors, params = load_case(path)
    image, text = (torch.nn.functional.normalize(tensors[f"in.{name}_embeds"], dim=-1) for name in ("image", "text"))
    found = {Similarity("clip"): (image @ text.T).mean(-1)}
    # the code scales relevance over its batch; ours over a sample: as views of one sample they are scaled together
    where = layout_of([square(params["patches"])] * params["batch"], [0] * params["batch"])
    evidence = Evidence(tensors["in.projected_features"], where, found)
    pruned = CdPruner()(evidence, Budget(params["visual_token_num"], per="view"))
    assert kept(pruned) == tensors["out.kept_indices"].sort(-1).values.tolist()
