"""SinkFilter: numbers recorded from the authors' own code."""

from support.recorded_cases import each_case_with, load_case
from vtcframe.components.scorers import TextAttention
from vtcframe.methods.sink_filter import DemoteSinks


@each_case_with("var", "sink_indices")
def test_sinks_are_those_recorded(path):
    tensors, params = load_case(path)
    dims, width = tensors["sink_dims"].tolist(), 4096
    own, square = tensors["hidden_sink_dims"].double(), tensors["hidden_mean_square"].double()
    rest = (square * width - own.square().sum(1)) / (width - len(dims))  # what the other channels must have held
    hidden = rest.sqrt()[:, None].repeat(1, width)
    hidden[:, dims] = own
    sinks = DemoteSinks(TextAttention(), dims=tuple(dims), threshold=params["tau"]).find_sinks(hidden.float())
    assert sinks.nonzero()[:, 0].tolist() == sorted(tensors["sink_indices"].tolist())
