"""Load everything that installed distributions of vtcframe register: `python3 dev.py build` tries wheels with it."""

import sys
from importlib.metadata import distributions

from vtcframe.registry import entries, failures


def main() -> int:
    """Load all entry points and components; return 1 and say which plugins cannot be used if there are any."""
    ours = sorted((each for each in distributions() if each.name.startswith("vtcframe")), key=lambda each: each.name)
    for distribution in ours:
        points = [point.load() for point in distribution.entry_points]
        print(f"{distribution.name} {distribution.version}: {len(points)} entry points load")
    print(f"{len([entry.load() for entry in entries()])} components load")
    for failure in failures():
        print(f"error: {failure}", file=sys.stderr)
    return 1 if failures() else 0


if __name__ == "__main__":
    sys.exit(main())
