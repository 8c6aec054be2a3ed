"""VisPruner: numbers recorded from the authors' own code."""

from support.places import kept
from support.recorded_cases import each_case, layout_of, load_case, square
from vtcframe import AttentionRows, Budget, Evidence, HiddenStates
from vtcframe.methods.vispruner import VisPruner


@each_case("vispruner")
def test_vis_pruner(path):
    tensors, params = load_case(path)
    x = tensors["in.features"]
    found = {AttentionRows("cls", (-1,)): tensors["in.cls_attn"][None], HiddenStates(): x}
    evidence = Evidence(x, layout_of([square(params["patches"])] * params["batch"]), found)
    pruned = VisPruner(params["important_ratio"])(evidence, Budget(params["visual_token_num"]))
    assert kept(pruned) == tensors["out.kept_indices"].sort(-1).values.tolist()
