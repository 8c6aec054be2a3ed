"""DivPrune: numbers recorded from the authors' own code."""

from support.places import kept
from support.recorded_cases import each_case, layout_of, load_case, square
from vtcframe import Budget, Evidence
from vtcframe.methods.divprune import DivPrune


@each_case("divprune")
def test_div_prune(path):
    tensors, params = load_case(path)
    evidence = Evidence(tensors["in.features"][None], layout_of([square(params["patches"])]))
    pruned = DivPrune()(evidence, Budget(ratio=params["ratio"]))
    assert kept(pruned)[0] == tensors["out.kept_indices"].sort().values.tolist()
    for k in (1, 2, 7):  # the order of the picks, too
        want = tensors["out.selection_order"][:k].sort().values.tolist()
        assert kept(DivPrune()(evidence, Budget(k)))[0] == want
