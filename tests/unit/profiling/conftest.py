import copy

import pytest

from support.models import backbone
from support.profiling_cases import TINY
from vtcframe.profiling import command
from vtcframe.profiling.sizes import SHAPES
from vtcframe.testing.tiny_models.published import PUBLISHED


@pytest.fixture
def tiny(monkeypatch):
    """Return a function that replaces the default shape with a tiny shape of a family."""

    def replace_default_shape(family):
        monkeypatch.setitem(SHAPES, command.DEFAULT_SHAPE, TINY[family])
        monkeypatch.setitem(PUBLISHED, "tiny", lambda: copy.deepcopy(backbone(family)[0].config))

    return replace_default_shape
