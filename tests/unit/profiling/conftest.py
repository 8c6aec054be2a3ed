import copy

import pytest

from support.models import backbone
from support.profiling_cases import TINY
from vtcframe.profiling import command
from vtcframe.profiling.sizes import SHAPES
from vtcframe.testing.tiny_models.published import PUBLISHED


@pytest.fixture
def tiny(monkeypatch):
    """Let a tiny shape of a family stand for the published one that is run by default."""

    def stand(family):
        monkeypatch.setitem(SHAPES, command.DEFAULT_SHAPE, TINY[family])
        monkeypatch.setitem(PUBLISHED, "tiny", lambda: copy.deepcopy(backbone(family)[0].config))

    return stand
