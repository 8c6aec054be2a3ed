import subprocess
import sys

import pytest

import vtcframe
from vtcframe import registry
from vtcframe.registry import KINDS, Entry, entries, named


class Point:
    """An entry point as importlib.metadata gives them."""

    def __init__(self, name, plugin, distribution="stranger", version="1.0"):
        self.name, self.plugin = name, plugin
        self.dist = type("Distribution", (), {"name": distribution, "version": version})

    def load(self):
        if isinstance(self.plugin, Exception):
            raise self.plugin
        return self.plugin


def plugin(components):
    class Plugin:
        @staticmethod
        @registry.hookimpl
        def vtcframe_components():
            return components

    return Plugin


@pytest.fixture
def install(monkeypatch):
    """Let the given entry points be installed beside our own."""

    ours = registry.entry_points(group="vtcframe")

    def with_points(*points):
        monkeypatch.setattr(registry, "entry_points", lambda group: [*points, *ours])
        entries.cache_clear()

    yield with_points
    monkeypatch.undo()
    entries.cache_clear()


def test_every_registered_component_loads_and_bears_its_class_name():
    assert {entry.kind for entry in entries()} >= set(KINDS) - {"merger"}
    for entry in entries():
        assert entry.load().__name__ == entry.name
        assert entry.version


def test_every_public_component_is_registered_and_the_other_way_round():
    public = {name for name in vtcframe.__all__ if not isinstance(getattr(vtcframe, name), type(vtcframe))}
    for entry in entries():
        if entry.kind != "adapter":
            assert entry.name in public
            assert getattr(vtcframe, entry.name) is entry.load()


def test_public_names_are_sorted_and_all_there():
    assert list(vtcframe.__all__) == sorted(vtcframe.__all__)
    assert all(getattr(vtcframe, name) is not None for name in vtcframe.__all__)


def test_a_strangers_component_is_found_by_the_name_of_its_class(install):
    install(Point("mine", plugin({"scorer": ["vtcframe.scorers:TokenNorm", "collections:Counter"]}), "a-dist", "2.3"))
    with pytest.warns(
        UserWarning, match=r"plugin 'mine' of a-dist 2.3 is left out: ValueError: scorer TokenNorm is already"
    ):
        assert named("scorer", "TokenNorm").distribution == "vtcframe"  # ours come first
    install(Point("mine", plugin({"selector": ["vtcframe.ensemblers:Mean"]}), "a-dist", "2.3"))
    assert named("selector", "Mean") == Entry("selector", "Mean", "vtcframe.ensemblers:Mean", "a-dist", "2.3")
    with pytest.raises(TypeError, match=r"vtcframe.ensemblers:Mean of a-dist 2.3 is no selector: extend .*Selector"):
        named("selector", "Mean").load()


@pytest.mark.parametrize(
    ("broken", "says"),
    [
        (ImportError("libfoo is missing"), "ImportError: libfoo is missing"),
        (plugin({"scorers": ["a:B"]}), "no kind is called 'scorers'"),
        (type("Misspelt", (), {"vtcframe_component": registry.hookimpl(lambda: {})}), "vtcframe_component"),
    ],
)
def test_a_broken_plugin_is_left_out_with_a_warning_and_all_others_work(install, broken, says):
    install(Point("bad", broken), Point("good", plugin({"merger": ["somewhere:Merger"]}), "zz"))
    with pytest.warns(UserWarning, match=f"plugin 'bad' of stranger 1.0 is left out: .*{says}"):
        assert named("merger", "Merger").distribution == "zz"
    assert named("pruner", "VtcCls").distribution == "vtcframe"


def test_an_unknown_name_is_answered_with_the_nearest():
    with pytest.raises(LookupError, match=r"no pruner is called 'VtcCsl'. Did you mean VtcCls\? Installed: FasterVlm"):
        named("pruner", "VtcCsl")
    with pytest.raises(LookupError, match=r"no merger is called 'X'. Installed: none"):
        named("merger", "X")


def test_listing_imports_nothing_heavy():
    heavy = "{'torch', 'lightning', 'transformers', 'timm', 'open_clip'}"
    code = f"import sys, vtcframe.registry as r; r.entries(); print(sorted({heavy} & set(sys.modules)))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
