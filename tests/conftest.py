import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test may reach a network

import subprocess
import sys

import pytest
import torch

from support.distributions import PROJECTS, Environment, wheel
from support.models import BUILDERS, backbone

torch.set_num_threads(1)  # the tensors are tiny: threads cost more than they give


@pytest.fixture(params=BUILDERS)
def family(request):
    return request.param


@pytest.fixture
def llava():
    return backbone("llava")


@pytest.fixture
def llava_next():
    return backbone("llava_next")


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
