"""Cases and readings of SparseVLM."""

from vtcframe import AttentionRows

RATED = AttentionRows("rated", (-1,), tower="llm", heads="mean")
