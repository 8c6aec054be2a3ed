"""What several tests of methods inside the language model share."""

from vtcframe import Rows
from vtcframe.methods.llm import (
    FastV,
    SinkFilter,
    Sinkless,
    ZipCacheSaliency,
)
from vtcframe.scorers import TextAttention

DIMS = (0, 5)


SINKLESS = Sinkless(TextAttention(), DIMS, threshold=1.5)  # of evidence drawn from 0..1: some tokens of each sample


ONCE = [FastV(), ZipCacheSaliency(), SinkFilter(dims=DIMS, threshold=1.5)]


LAST = Rows("last", (-1,), tower="llm", heads="mean")
