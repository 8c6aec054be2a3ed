"""What several tests of methods inside the language model share."""

from vtcframe import AttentionRows
from vtcframe.components.scorers import TextAttention
from vtcframe.methods.fastv import FastV
from vtcframe.methods.sink_filter import DemoteSinks, SinkFilter
from vtcframe.methods.zipcache import ZipCacheSaliency

DIMS = (0, 5)


SINKLESS = DemoteSinks(TextAttention(), DIMS, threshold=1.5)  # of evidence drawn from 0..1: some tokens of each sample


ONCE = [FastV(), ZipCacheSaliency(), SinkFilter(dims=DIMS, threshold=1.5)]


LAST = AttentionRows("last", (-1,), tower="llm", heads="mean")
