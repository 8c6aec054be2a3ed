#!/usr/bin/env python3
"""`python3 dev.py demo | test | docs | bench | setup`: from a bare Python 3.11 and pip; arguments are handed on.

Sets up `.venv` when something that it is made from has changed; nothing else touches a network.
"""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent
VENV = ROOT / ".venv"
BIN = VENV / ("Scripts" if os.name == "nt" else "bin")
PYTHON = BIN / ("python.exe" if os.name == "nt" else "python")
SOURCES = sorted([ROOT / "pyproject.toml", ROOT / "constraints.txt", *ROOT.glob("plugins/*/pyproject.toml")])


def run(*command: object, **more: str) -> None:
    """Show and run a command in the repository, with `more` in its environment; leave with its status if it fails."""
    print("+", *command, flush=True)
    code = subprocess.run([str(part) for part in command], cwd=ROOT, env={**os.environ, **more}).returncode
    if code:
        sys.exit(code)


def setup(*groups: str) -> None:
    """Install the workspace with its pinned dependencies and the given dependency groups."""
    wanted = hashlib.sha256(b"".join(path.read_bytes() for path in SOURCES) + repr(groups).encode()).hexdigest()
    stamp = VENV / f"vtcframe-{'-'.join(groups)}"
    if stamp.exists() and stamp.read_text() == wanted:
        return
    tools = VENV / "tools"  # pip can install here without the venv module, which some systems lack
    uv = tools / "bin" / "uv"
    if not uv.exists():
        pip = (sys.executable, "-m", "pip", "install", "--quiet", "--target", tools)
        run(*pip, "--constraint", "constraints.txt", "uv")
    if not PYTHON.exists():
        run(uv, "venv", "--quiet", "--seed", "--allow-existing", "--python", sys.executable, VENV)
    editable = [part for path in SOURCES if path.name == "pyproject.toml" for part in ("--editable", path.parent)]
    extra = [part for group in groups for part in ("--group", group)]
    install = (uv, "pip", "install", "--quiet", "--python", PYTHON, "--constraint", "constraints.txt")
    run(*install, *editable, *extra)
    stamp.write_text(wanted)


def main() -> None:
    """Run the command of `sys.argv`."""
    if sys.version_info < (3, 11):  # noqa: UP036 (this file runs before anything is installed)
        sys.exit(f"vtcframe needs Python 3.11 or newer, this is {sys.version.split()[0]}")
    command, *rest = sys.argv[1:] or ["help"]
    if command in ("demo", "bench"):
        setup()
    elif command in ("test", "setup"):
        setup("dev", "docs")
    if command == "demo":
        run(PYTHON, "-m", "vtcframe", "predict", "--config", "configs/quickstart.yaml", *rest)
    elif command == "test":
        run(PYTHON, "-m", "pytest", *rest)
    elif command == "bench":
        name, *rest = rest if rest and (ROOT / "perf" / f"{rest[0]}.py").is_file() else ["rows", *rest]
        run(PYTHON, f"perf/{name}.py", *rest)
    elif command == "docs":
        setup("docs")
        run(PYTHON, "-m", "mkdocs", *(rest or ["serve"]), NO_MKDOCS_2_WARNING="1")
    elif command != "setup":
        sys.exit(__doc__)


if __name__ == "__main__":
    main()
