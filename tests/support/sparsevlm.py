"""Cases and readings of SparseVLM."""

from vtcframe import Rows

RATED = Rows("rated", (-1,), tower="llm", heads="mean")
