"""SparseVLM's need of evidence."""

from vtcframe.methods.sparsevlm import RaterAttention

RATED = RaterAttention((-1,), heads="mean")
