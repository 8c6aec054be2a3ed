"""The console script `lightning`: `lightning predict` is `vtcframe predict`, all else belongs to another distribution.

lightning-sdk installs a script of this name too. Whichever was installed last owns the file, so this one hands on what
is not its own; where it is not wanted, `vtcframe predict` is always there.
"""

import sys
from importlib.metadata import entry_points

OURS = "vtcframe_lightning:main"


def main() -> int:
    """Run `sys.argv` and return the exit status."""
    arguments = sys.argv[1:]
    if arguments[:1] == ["predict"]:
        from vtcframe.cli import main as vtcframe  # lazily: what is handed on need not wait for it

        return vtcframe(arguments)
    for point in entry_points(group="console_scripts", name="lightning"):
        if point.value != OURS:
            return point.load()()
    print(
        f"lightning: no installed distribution knows {' '.join(arguments) or 'what to do without a command'!r}; "
        "vtcframe brings `lightning predict --config FILE`",
        file=sys.stderr,
    )
    return 2
