"""Scenes and readings of MustDrop."""

from vtcframe.needs import Rows

CLS = Rows("cls", (-1,), of="tower")


MEAN, MOST = (Rows("text", (-1,), tower="llm", heads="mean", over=over) for over in ("mean", "max"))
