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


STRANGERS = {  # distribution -> its module, and what is said of it (None: it works)
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
def strangers(tmp_path, monkeypatch):
    """Install a distribution for each of STRANGERS, as an installer would lay it out."""
    for name, (code, _) in STRANGERS.items():
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
    for name in STRANGERS:
        sys.modules.pop(name.replace("-", "_"), None)


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


def broken():
    return {name: says for name, (_, says) in STRANGERS.items() if says}


def test_each_broken_plugin_is_told_once_and_all_others_work(strangers):
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        assert find_entry("scorer", "Mine").distribution == "good"
        assert find_entry("scorer", "TokenNorm").distribution == "vtcframe"
        assert find_entry("adapter", "Llava").distribution == "vtcframe-backbones"
        entries()
    messages = [str(warning.message) for warning in told]
    assert len(messages) == len(broken())
    for name, says in broken().items():
        (message,) = [message for message in messages if message.startswith(f"plugin '{name}-plugin' of {name} 2.3 is")]
        assert says in message
    assert [failure.distribution for failure in failures()] == sorted(broken())  # a fixed order


@pytest.mark.filterwarnings("ignore:plugin")
def test_what_was_left_out_is_told_again_when_an_unknown_component_is_asked_for(strangers):
    with pytest.raises(LookupError, match="no merger is called 'M'") as error:
        find_entry("merger", "M")
    for says in broken().values():
        assert says in str(error.value)


@pytest.mark.filterwarnings("ignore:plugin")
def test_a_component_that_is_none_of_its_kind_says_whose_it_is(strangers):
    entry = find_entry("scorer", "Mine")
    sys.modules["good"].Mine = dict
    with pytest.raises(TypeError, match=r"good:Mine of good 2.3 is no scorer: extend vtcframe.core.verbs.Scorer"):
        entry.load()
    del sys.modules["good"].Mine
    with pytest.raises(ImportError, match=r"scorer Mine of good 2.3 cannot be imported"):
        entry.load()


class Broken:
    """Classes that Mine of "good" might be."""

    class Abstract(Scorer):
        pass

    class Plain(Scorer):
        def __call__(self, evidence): ...

    @dataclass
    class Unfrozen(Scorer):
        def __call__(self, evidence): ...


@pytest.mark.filterwarnings("ignore:plugin")
@pytest.mark.parametrize(
    ("kind", "says"),
    [
        (Broken.Abstract, "is abstract: it must define __call__"),
        (Broken.Plain, r"is no frozen dataclass: write @dataclass\(frozen=True\) above it"),
        (Broken.Unfrozen, "is no frozen dataclass"),
    ],
)
def test_a_component_that_could_not_be_used_is_refused_when_it_is_loaded(strangers, kind, says):
    entry = find_entry("scorer", "Mine")
    sys.modules["good"].Mine = kind
    with pytest.raises(TypeError, match=f"^scorer Mine of good 2.3 {says}"):
        entry.load()


@pytest.mark.filterwarnings("ignore:plugin")
def test_a_class_tells_its_kind_and_who_brings_it(strangers):
    from vtcframe import TokenNorm

    assert (kind_of(TokenNorm), entry_of(TokenNorm).distribution) == ("scorer", "vtcframe")
    assert kind_of(dict) is entry_of(dict) is None
    find_entry("scorer", "Mine")
    mine = type("Mine", (Scorer,), {"__module__": "elsewhere"})
    sys.modules["good"].Mine = mine  # handed on by the module that is named
    assert entry_of(mine).distribution == "good"
    assert entry_of(type("Part", (Scorer,), {"__module__": "good.parts"})).distribution == "good"


def test_list_tells_the_status_of_every_plugin(strangers):
    variables = os.environ | {"PYTHONPATH": str(strangers)}
    command = [sys.executable, "-m", "vtcframe", "list"]
    out = subprocess.run(command, capture_output=True, text=True, check=True, env=variables)
    lines = [line.split(None, 4) for line in out.stdout.splitlines()]
    assert lines[0] == ["kind", "name", "distribution", "version", "status"]
    assert ["scorer", "Mine", "good", "2.3", "ok"] in lines
    for name, says in broken().items():
        (status,) = [line[4] for line in lines if line[:4] == ["plugin", f"{name}-plugin", name, "2.3"]]
        assert status.startswith("left out: ")
        assert says in status
    assert out.stderr == ""


def test_list_ends_quietly_where_nobody_reads_on():
    command = [sys.executable, "-m", "vtcframe", "list"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as listing:
        assert listing.stdout is not None
        assert listing.stderr is not None
        listing.stdout.close()
        assert listing.stderr.read() == b""
    assert listing.returncode == 0


def test_an_unknown_name_is_answered_with_the_nearest():
    told = r"no pruner is called 'VtcCsl'. Did you mean VtcCls\? Installed: Aim, CdPruner, "
    with pytest.raises(LookupError, match=told):
        find_entry("pruner", "VtcCsl")
    with pytest.raises(LookupError, match=r"no merger is called 'X'. Installed: Absorb, "):
        find_entry("merger", "X")


def test_listing_imports_nothing_heavy():
    heavy = "{'torch', 'lightning', 'transformers', 'timm', 'open_clip'}"
    code = f"import sys, vtcframe.registry as r; r.entries(); print(sorted({heavy} & set(sys.modules)))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
