import os
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing here may reach a network

import pytest
import torch

from vtcframe.registry import entries
from vtcframe.testing.tiny_models.llava_families import SAMPLES, make_inputs, tiny_llava, tiny_llava_next
from vtcframe.testing.tiny_models.other_families import BACKBONES

torch.set_num_threads(1)  # the tensors are tiny: threads cost more than they give
BUILDERS = {"llava": tiny_llava, "llava_next": tiny_llava_next}  # whose every detail test_llava knows
ROOT = Path(__file__).resolve().parent.parent
PROJECTS = [ROOT, *sorted(path.parent for path in ROOT.glob("plugins/*/pyproject.toml"))]
FAMILIES = {getattr(entry.load(), "family", None) for entry in entries() if entry.kind == "adapter"}
SERVED = [family for family in BACKBONES if family in FAMILIES]
_built = {}


def backbone(family: str, attention: str = "sdpa"):
    """A tiny model that has run once, and its processor; shared by all tests."""
    if (family, attention) not in _built:
        model, processor = BACKBONES[family](attention)
        model.generate(**make_inputs(processor, SAMPLES["one"]), max_new_tokens=1)
        _built[family, attention] = model, processor
    return _built[family, attention]


def has_mrope(family):
    return hasattr(backbone(family)[0].base_model, "get_rope_index")


@pytest.fixture(params=BUILDERS)
def family(request):
    return request.param


@pytest.fixture
def llava():
    return backbone("llava")


@pytest.fixture
def llava_next():
    return backbone("llava_next")


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


@pytest.fixture(scope="session")
def wheels(tmp_path_factory):
    """Our wheels, ours first."""
    folder = tmp_path_factory.mktemp("wheels")
    return [wheel(project, folder / project.name) for project in PROJECTS]


@pytest.fixture(scope="session")
def installed(wheels, tmp_path_factory):
    """An environment with our wheels. Who installs more takes it away again."""
    environment = Environment(tmp_path_factory.mktemp("installed") / "environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment.folder], check=True)
    environment.pip("install", *wheels)
    return environment
