"""What [CLS] agrees on, block after block: a plug-in of vtcframe."""

from vtcframe.registry import hookimpl


@hookimpl
def vtcframe_components() -> dict[str, list[str]]:
    """Return kind -> classes, which are imported when they are used."""
    return {
        "scorer": ["vtcframe_consensus.scorers:Consensus"],
        "pruner": ["vtcframe_consensus.methods:ConsensusPruner"],
    }
