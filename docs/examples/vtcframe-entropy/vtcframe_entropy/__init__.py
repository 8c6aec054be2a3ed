"""How widely each token attends: a plug-in of vtcframe with a need of its own."""

from vtcframe.registry import hookimpl


@hookimpl
def vtcframe_components() -> dict[str, list[str]]:
    """Return kind -> classes, which are imported when they are used."""
    return {"scorer": ["vtcframe_entropy.scorers:FocusedAttention"]}
