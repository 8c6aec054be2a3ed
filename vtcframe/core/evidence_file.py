"""TODO: vtcframe/core/evidence_file.py."""

from dataclasses import asdict

from vtcframe.core import needs
from vtcframe.core.needs import Need


def _describe(need: Need) -> dict:
    """Need -> JSON."""
    what = {"what": _describe(need.what)} if isinstance(need, needs.Text) else {}
    return {"kind": type(need).__name__, **asdict(need), **what}


def _ask(described: dict) -> Need:
    """JSON -> Need."""
    kind = getattr(needs, described["kind"])
    values = {k: tuple(v) if isinstance(v, list) else v for k, v in described.items() if k != "kind"}
    if "what" in described:
        values["what"] = _ask(described["what"])
    return kind(**values)
