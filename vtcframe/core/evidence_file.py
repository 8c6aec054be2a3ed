"""TODO: vtcframe/core/evidence_file.py."""

from dataclasses import asdict

from vtcframe.core import needs
from vtcframe.core.needs import Need


def describe_need(need: Need) -> dict:
    """Need -> JSON."""
    what = {"what": describe_need(need.what)} if isinstance(need, needs.TextTokens) else {}
    return {"kind": type(need).__name__, **asdict(need), **what}


def parse_need(described: dict) -> Need:
    """JSON -> Need."""
    kind = getattr(needs, described["kind"])
    values = {k: tuple(v) if isinstance(v, list) else v for k, v in described.items() if k != "kind"}
    if "what" in described:
        values["what"] = parse_need(described["what"])
    return kind(**values)
