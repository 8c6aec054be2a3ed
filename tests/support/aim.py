"""AIM's need of evidence."""

from vtcframe.methods.aim import AttentionPageRank

FLOW = AttentionPageRank((-1,))
