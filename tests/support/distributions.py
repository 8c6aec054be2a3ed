"""The distributions of this repository: their folders, their wheels, and environments that install them."""

import os
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PROJECTS = [ROOT, *sorted(path.parent for path in ROOT.glob("plugins/*/pyproject.toml"))]


@dataclass(frozen=True)
class Environment:
    """A fresh environment, which sees this one's dependencies but none of our source."""

    folder: Path

    @property
    def python(self) -> Path:
        return self.folder / "bin" / "python"

    def pip(self, *arguments: object) -> None:
        """Run uv's pip, offline; `install` takes no dependencies."""
        command = [sys.executable, "-m", "uv", "pip", arguments[0], "--quiet", "--offline", "--python", self.python]
        command += ["--no-deps"] if arguments[0] == "install" else []
        subprocess.run([*command, *arguments[1:]], check=True, capture_output=True)

    def run(self, *arguments: object, **options) -> subprocess.CompletedProcess[str]:
        """Run its Python where a path file, which would bring our source back, is not read."""
        variables = os.environ | {"PYTHONPATH": sysconfig.get_path("purelib"), "HF_HUB_OFFLINE": "1"}
        given = {"cwd": self.folder, "check": True, **options}
        return subprocess.run([self.python, *arguments], capture_output=True, text=True, env=variables, **given)


def wheel(project: Path, folder: Path) -> Path:
    """Build a project's wheel into a folder of its own."""
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, project]
    subprocess.run(build, check=True, capture_output=True)
    (built,) = folder.glob("*.whl")
    return built
