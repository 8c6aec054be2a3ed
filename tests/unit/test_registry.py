import os
import subprocess
import sys
import warnings
from dataclasses import dataclass

import pytest

import vtcframe
from vtcframe import Scorer, registry
from vtcframe.registry import KINDS, entries, entry_of, failures, find_entry, kind_of


def hook(components):
    """A module with the hook that a plugin implements."""
    return f"from vtcframe.registry import hookimpl\n@hookimpl\ndef vtcframe_components():\n    return {components!r}\n"


PLUGINS = {  # distribution -> source of its module, and the expected warning (None: it works)
    "good": (hook({"scorer": ["good:Mine"]}), None),
    "raises": ("raise OSError('libfoo is missing')", "OSError: libfoo is missing"),
    "misspelt": (hook({}).replace("components", "component"), "unknown hook 'vtcframe_component'"),
    "unmarked": ("def vtcframe_components():\n    return {}", "has no hook vtcframe_components: mark it"),
    "same-name": (hook({"scorer": ["other.place:TokenNorm"]}), "scorer TokenNorm is provided by vtcframe (vtc"),
    "same-class": (hook({"merger": ["same:M", "same:M"]}), "merger M is provided by same-class (same:M) already"),
    "wrong-type": (hook(["scorer"]), "returns kind -> list of targets, not ['scorer']"),
    "wrong-targets": (hook({"scorer": "wrong:Scorer"}), "the targets of scorer are a list, not 'wrong:Scorer'"),
    "wrong-target": (hook({"scorer": ["wrong.Scorer"]}), "'wrong.Scorer' is no target: write 'package.module:"),
    "exits": ("import sys; sys.exit(7)", "SystemExit: 7"),
    "no-attribute": (hook({}), "AttributeError: module 'no_attribute' has no attribute 'plugin'"),
    "no-function": ("vtcframe_components = {'scorer': []}", "has no hook vtcframe_components: mark it"),
    "argument": (hook({}).replace("components()", "components(manager)"), "Argument(s) {'manager'} are declared in"),
    "hook-raises": (hook({}).replace("return {}", "return [][0]"), "IndexError: list index out of range"),
    "hook-exits": (hook({}).replace("return {}", "raise SystemExit"), "SystemExit"),
    "none": (hook(None), "returns kind -> list of targets, not None"),
    "generator": (hook({}).replace("return", "yield"), "returns kind -> list of targets, not <generator object"),
    "nested": (hook({"scorer": [["nested:Scorer"]]}), "['nested:Scorer'] is no target: write 'package.module:"),
    "number": (hook({1: ["number:Scorer"]}), "no kind is called 1: use adapter, scorer"),
    "wrong-kind": (hook({"scorers": ["wrong:Scorer"]}), "no kind is called 'scorers': use adapter, scorer"),
}


@pytest.fixture
def plugins(tmp_path, monkeypatch):
    """Install a distribution for each of PLUGINS in the layout of an installer."""
    for name, (code, _) in PLUGINS.items():
        module = name.replace("-", "_")
        (tmp_path / f"{module}.py").write_text(code)
        folder = tmp_path / f"{module}-2.3.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 2.3\n")
        attribute = ":plugin" if name == "no-attribute" else ""
        (folder / "entry_points.txt").write_text(f"[vtcframe]\n{name}-plugin = {module}{attribute}\n")
    monkeypatch.syspath_prepend(tmp_path)
    registry._scan.cache_clear()
    yield tmp_path
    registry._scan.cache_clear()
    for name in PLUGINS:
        sys.modules.pop(name.replace("-", "_"), None)


def test_every_registered_component_loads_and_has_its_class_name():
    assert {entry.kind for entry in entries()} >= set(KINDS) - {"merger"}
    for entry in entries():
        assert entry.load().__name__ == entry.name
        assert entry.version


def test_public_components_are_those_registered():
    public = {name for name in vtcframe.__all__ if not isinstance(getattr(vtcframe, name), type(vtcframe))}
    for entry in entries():
        if entry.kind != "adapter":
            assert entry.name in public
            assert getattr(vtcframe, entry.name) is entry.load()


def test_public_names_are_sorted_and_exist():
    assert list(vtcframe.__all__) == sorted(vtcframe.__all__)
    assert all(getattr(vtcframe, name) is not None for name in vtcframe.__all__)


def broken_plugins():
    return {name: message for name, (_, message) in PLUGINS.items() if message}


def test_each_broken_plugin_warns_once_and_all_others_work(plugins):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert find_entry("scorer", "Mine").distribution == "good"
        assert find_entry("scorer", "TokenNorm").distribution == "vtcframe"
        assert find_entry("adapter", "Llava").distribution == "vtcframe-backbones"
        entries()
    messages = [str(warning.message) for warning in caught]
    assert len(messages) == len(broken_plugins())
    for name, cause in broken_plugins().items():
        (message,) = [message for message in messages if message.startswith(f"plugin '{name}-plugin' of {name} 2.3 is")]
        assert cause in message
    assert [failure.distribution for failure in failures()] == sorted(broken_plugins())  # a fixed order


@pytest.mark.filterwarnings("ignore:plugin")
def test_an_unknown_component_error_lists_the_plugins_left_out(plugins):
    with pytest.raises(LookupError, match="no merger is called 'M'") as error:
        find_entry("merger", "M")
    for message in broken_plugins().values():
        assert message in str(error.value)


@pytest.mark.filterwarnings("ignore:plugin")
def test_loading_a_component_of_a_wrong_kind_names_its_distribution(plugins):
    entry = find_entry("scorer", "Mine")
    sys.modules["good"].Mine = dict
    with pytest.raises(TypeError, match=r"good:Mine of good 2.3 is no scorer: extend vtcframe.core.verbs.Scorer"):
        entry.load()
    del sys.modules["good"].Mine
    with pytest.raises(ImportError, match=r"scorer Mine of good 2.3 cannot be imported"):
        entry.load()


class Broken:
    """Invalid classes for the target Mine of "good"."""

    class Abstract(Scorer):
        pass

    class Plain(Scorer):
        def __call__(self, evidence): ...

    @dataclass
    class Unfrozen(Scorer):
        def __call__(self, evidence): ...


@pytest.mark.filterwarnings("ignore:plugin")
@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (Broken.Abstract, "is abstract: it must define __call__"),
        (Broken.Plain, r"is no frozen dataclass: write @dataclass\(frozen=True\) above it"),
        (Broken.Unfrozen, "is no frozen dataclass"),
    ],
)
def test_an_unusable_component_is_refused_when_it_is_loaded(plugins, kind, message):
    entry = find_entry("scorer", "Mine")
    sys.modules["good"].Mine = kind
    with pytest.raises(TypeError, match=f"^scorer Mine of good 2.3 {message}"):
        entry.load()


@pytest.mark.filterwarnings("ignore:plugin")
def test_kind_and_entry_of_a_class(plugins):
    from vtcframe import TokenNorm

    assert (kind_of(TokenNorm), entry_of(TokenNorm).distribution) == ("scorer", "vtcframe")
    assert kind_of(dict) is entry_of(dict) is None
    find_entry("scorer", "Mine")
    component = type("Mine", (Scorer,), {"__module__": "elsewhere"})
    sys.modules["good"].Mine = component  # re-exported by the module of the target
    assert entry_of(component).distribution == "good"
    assert entry_of(type("Part", (Scorer,), {"__module__": "good.parts"})).distribution == "good"


def test_list_prints_the_status_of_every_plugin(plugins):
    variables = os.environ | {"PYTHONPATH": str(plugins)}
    command = [sys.executable, "-m", "vtcframe", "list"]
    out = subprocess.run(command, capture_output=True, text=True, check=True, env=variables)
    lines = [line.split(None, 4) for line in out.stdout.splitlines()]
    assert lines[0] == ["kind", "name", "distribution", "version", "status"]
    assert ["scorer", "Mine", "good", "2.3", "ok"] in lines
    for name, message in broken_plugins().items():
        (status,) = [line[4] for line in lines if line[:4] == ["plugin", f"{name}-plugin", name, "2.3"]]
        assert status.startswith("left out: ")
        assert message in status
    assert out.stderr == ""


def test_list_ends_quietly_when_its_output_is_closed():
    command = [sys.executable, "-m", "vtcframe", "list"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as listing:
        assert listing.stdout is not None
        assert listing.stderr is not None
        listing.stdout.close()
        assert listing.stderr.read() == b""
    assert listing.returncode == 0


def test_an_unknown_name_error_suggests_the_nearest():
    message = r"no pruner is called 'VtcCsl'. Did you mean VtcCls\? Installed: Aim, CdPruner, "
    with pytest.raises(LookupError, match=message):
        find_entry("pruner", "VtcCsl")
    with pytest.raises(LookupError, match=r"no merger is called 'X'. Installed: Absorb, "):
        find_entry("merger", "X")


def test_listing_imports_nothing_heavy():
    heavy = "{'torch', 'lightning', 'transformers', 'timm', 'open_clip'}"
    code = f"import sys, vtcframe.registry as r; r.entries(); print(sorted({heavy} & set(sys.modules)))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
