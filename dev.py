#!/usr/bin/env python3
"""From a bare Python 3.11 and pip: `python3 dev.py demo | test | docs | bench | lint | build | setup`, and arguments.

Sets up `.venv` when something that it is made from has changed. Apart from that only two commands use the network:
`build`, which installs the built wheels into a fresh environment, and `setup REQUIREMENT ...`, which installs these
requirements over the pinned versions (they stay until `.venv` is set up again).
"""

import hashlib
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent
SCRIPTS, EXE = ("Scripts", ".exe") if os.name == "nt" else ("bin", "")
VENV = ROOT / ".venv"
BIN = VENV / SCRIPTS
PYTHON = BIN / f"python{EXE}"
UV = VENV / "tools" / "bin" / "uv"
SOURCES = sorted([ROOT / "pyproject.toml", ROOT / "constraints.txt", *ROOT.glob("plugins/*/pyproject.toml")])


def run(*command: object, **more: str) -> None:
    """Show and run a command in the repository, with `more` in its environment; leave with its status if it fails."""
    print("+", *command, flush=True)
    code = subprocess.run([str(part) for part in command], cwd=ROOT, env={**os.environ, **more}).returncode
    if code:
        sys.exit(code)


def install_uv() -> None:
    """Install uv where pip can do so without the venv module, which some systems lack."""
    if not UV.exists():
        pip = (sys.executable, "-m", "pip", "install", "--quiet", "--target", UV.parent.parent)
        run(*pip, "--constraint", "constraints.txt", "uv")


def setup(*groups: str) -> None:
    """Install the workspace with its pinned dependencies and the given dependency groups."""
    wanted = hashlib.sha256(b"".join(path.read_bytes() for path in SOURCES) + repr(groups).encode()).hexdigest()
    stamp = VENV / f"vtcframe-{'-'.join(groups)}"
    if stamp.exists() and stamp.read_text() == wanted:
        return
    install_uv()
    if not PYTHON.exists():
        run(UV, "venv", "--quiet", "--seed", "--allow-existing", "--python", sys.executable, VENV)
    editable = [part for path in SOURCES if path.name == "pyproject.toml" for part in ("--editable", path.parent)]
    extra = [part for group in groups for part in ("--group", group)]
    install = (UV, "pip", "install", "--quiet", "--python", PYTHON, "--constraint", "constraints.txt")
    run(*install, *editable, *extra)
    stamp.write_text(wanted)


def lint() -> None:
    """Check style, types and spelling; change nothing."""
    run(BIN / "ruff", "check")
    run(BIN / "ruff", "format", "--check")
    run(BIN / "pyright")
    run(BIN / "codespell", ".", ".ci", ".github")


def build() -> None:
    """Build sdist and wheel of every distribution into `dist`, and try the wheels in a fresh environment."""
    install_uv()
    constraint = ("--constraint", ROOT / "constraints.txt")
    run(UV, "build", "--quiet", "--all-packages", "--clear", "--out-dir", "dist")
    with tempfile.TemporaryDirectory() as folder:
        fresh = Path(folder) / "environment"
        run(UV, "venv", "--quiet", "--python", sys.executable, fresh)
        run(UV, "pip", "install", "--quiet", "--python", fresh, *constraint, *sorted((ROOT / "dist").glob("*.whl")))
        run(fresh / SCRIPTS / f"python{EXE}", "-I", ".ci/try_installed.py")  # -I: not the sources of this folder
        questions = ("--config", "configs/quickstart.yaml", "--data.limit=2", f"--writer.folder={folder}/run")
        run(fresh / SCRIPTS / f"vtcframe{EXE}", "predict", *questions)


def main() -> None:
    """Run the command of `sys.argv`."""
    if sys.version_info < (3, 11):  # noqa: UP036 (this file runs before anything is installed)
        sys.exit(f"vtcframe needs Python 3.11 or newer, this is {sys.version.split()[0]}")
    command, *rest = sys.argv[1:] or ["help"]
    if command in ("demo", "bench"):
        setup()
    elif command in ("test", "setup"):
        setup("dev", "docs")
    elif command == "lint":
        setup("dev", "docs", "lint")
    if command == "demo":
        run(PYTHON, "-m", "vtcframe", "predict", "--config", "configs/quickstart.yaml", *rest)
    elif command == "test":
        workers = ("-n", str(min(4, os.cpu_count() or 1)), "--dist", "loadfile")  # each module stays in one process
        run(PYTHON, "-m", "pytest", *(rest or workers))
    elif command == "bench":
        name, *rest = rest if rest and (ROOT / "perf" / f"{rest[0]}.py").is_file() else ["rows", *rest]
        run(PYTHON, f"perf/{name}.py", *rest)
    elif command == "docs":
        setup("docs")
        run(PYTHON, "-m", "mkdocs", *(rest or ["serve"]), NO_MKDOCS_2_WARNING="1")
    elif command == "lint":
        lint()
    elif command == "build":
        build()
    elif command == "setup" and rest:
        run(UV, "pip", "install", "--python", PYTHON, *rest)
    elif command != "setup":
        sys.exit(__doc__)


if __name__ == "__main__":
    main()
