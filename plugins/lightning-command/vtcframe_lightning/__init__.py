"""The console script `lightning`: `lightning predict` is `vtcframe predict`, other commands are forwarded.

lightning-sdk installs a script of the same name, and the distribution that was installed last replaces the file. So
this script forwards all other commands to the other distribution. `vtcframe predict` is always available.
"""

import sys
from importlib.metadata import entry_points

ENTRY_POINT = "vtcframe_lightning:main"


def main() -> int:
    """Run `sys.argv` and return the exit status."""
    arguments = sys.argv[1:]
    if arguments[:1] == ["predict"]:
        from vtcframe.cli import main as vtcframe  # lazy: forwarded commands do not need it

        return vtcframe(arguments)
    for point in entry_points(group="console_scripts", name="lightning"):
        if point.value != ENTRY_POINT:
            return point.load()()
    print(
        f"lightning: no installed distribution has the command {' '.join(arguments) or 'without arguments'!r}; "
        "vtcframe provides `lightning predict --config FILE`",
        file=sys.stderr,
    )
    return 2
