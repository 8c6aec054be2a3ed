"""Scenes and readings of MustDrop."""

from vtcframe.core.needs import AttentionRows

CLS = AttentionRows("cls", (-1,), blocks="tower")


MEAN, MOST = (AttentionRows("text", (-1,), tower="llm", heads="mean", reduce=over) for over in ("mean", "max"))
