"""Prompts of ragged lengths for AIM's walk along attention."""

from vtcframe.core.needs import AttentionPageRank

FLOW = AttentionPageRank((-1,))
