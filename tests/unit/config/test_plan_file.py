"""vtcframe.yaml: what is written reads back the same, and reading a stranger's imports nothing."""

import re
import shutil
import sys
from dataclasses import dataclass

import pytest
import torch
import yaml
from transformers import AutoModelForImageTextToText

from vtcframe import (
    Budget,
    ClsAttention,
    DivPrune,
    Even,
    EVit,
    FastV,
    Joint,
    Mixed,
    Pipeline,
    PyramidDrop,
    Recycle,
    Scorer,
    SparseVlm,
    Stage,
    TextAttention,
    TopK,
    VScan,
    VtcCls,
    Weighted,
    compress,
    registry,
)
from vtcframe.assets import bundled
from vtcframe.config.parser import instantiate
from vtcframe.config.plan_file import FILE, HINTS, load_plan, load_stages, save_plan
from vtcframe.config.short_names import expand
from vtcframe.core.stages import Pruner, plan_for, plan_from_stages
from vtcframe.errors import UsageError
from vtcframe.registry import entries
from vtcframe.testing import make_inputs
from vtcframe.testing.tiny_models.llava_families import SAMPLES

PRUNERS = sorted(entry.name for entry in entries() if entry.kind == "pruner" and entry.name != "Pipeline")
BUDGETS = None, Budget(64), Budget(ratio=0.25), Budget(64, per="image"), Budget(ratio=1 / 3, per="view")
NESTED = Pipeline(
    scorers=(ClsAttention(last=2, heads="joined"), TextAttention(layer=1, heads=2)),
    ensembler=Weighted((0.25, 1e-5)),
    allocator=Joint(),
    selector=Mixed(rest=TopK(), important=0.75),
    merger=Recycle(0.2),
    across="sample",
)


@dataclass(frozen=True)
class Brightest(Scorer):
    """A scorer that no distribution registers."""

    power: float = 2.0
    first: Scorer | None = None  # under a key of its own
    name: str = "bright"  # which the short form has another meaning for

    def __call__(self, evidence):
        return evidence.tokens.float().norm(dim=2)[None] ** self.power


@dataclass(frozen=True)
class Cut(Pruner):
    """A pruner that no distribution registers."""

    options: tuple[str, ...] = ()

    def __call__(self, evidence, budget=None):
        raise NotImplementedError


class Loose(Cut):
    """No dataclass of its own, with options that its fields do not tell."""


def said(file):
    return yaml.safe_load(file.read_text())


@pytest.mark.parametrize("name", PRUNERS)
def test_every_registered_method_reads_back_the_same(name, tmp_path):
    method, served = registry.find_entry("pruner", name).load()(), 0
    for budget in BUDGETS:
        try:
            plan = plan_for(method, budget)
        except ValueError:
            continue  # it cannot have this budget
        served += 1
        file = save_plan(plan, tmp_path)
        assert file == tmp_path / FILE
        read = load_plan(tmp_path)
        assert read.stages == plan.stages == load_stages(file)
        assert re.sub(r"\.0\b", "", str(read)) == re.sub(r"\.0\b", "", str(plan))  # 16 may be a float's default
        assert read.budget == plan.budget
        assert not any("." in str(named) for named in names(said(file))), "an import path where a short name would do"
    assert served


def names(node):
    if isinstance(node, dict):
        yield from (node[key] for key in ("name", "class_path") if key in node)
        for value in node.values():
            yield from names(value)
    elif isinstance(node, list):
        for value in node:
            yield from names(value)


SEVERAL = {
    "a nested pipeline": [Stage("projector", NESTED, Budget(64), positions="compact")],
    "two sites": [
        Stage("projector", VtcCls(last=3), Budget(ratio=0.5)),
        Stage("llm:2", NESTED, Budget(18), forget=0),
        Stage("llm:3", FastV(layer=3), Budget(9), positions="compact", forget=1),
    ],
    "inside the encoder, made of parts that are not registered": [
        *EVit(blocks=(1, 2)).stages(Budget(72)),
        Stage("projector", VtcCls(), Budget(18)),
    ],
    "parts under keys of their own": SparseVlm().stages(Budget(64)),
    "parts that hold a budget": PyramidDrop().stages(Budget(ratio=0.25)),
}


@pytest.mark.parametrize("stages", SEVERAL.values(), ids=SEVERAL)
def test_stages_read_back_the_same_here_and_in_the_yaml_of_predict(stages, tmp_path):
    file = save_plan(plan_from_stages(stages), tmp_path)
    assert load_stages(tmp_path) == tuple(stages)
    config = expand({"stages": said(file)["stages"]}, {"stages": list[Stage] | None})
    assert instantiate({"stages": list[Stage] | None}, config) == {"stages": list(stages)}


def test_the_file_says_what_one_would_write_by_hand(tmp_path):
    file = save_plan(plan_from_stages([Stage("projector", VtcCls(last=3), Budget(64))]), tmp_path / "made" / "here")
    assert said(file) == {
        "stages": [
            {
                "at": "projector",
                "pruner": {"name": "VtcCls", "last": 3, "query": "cls"},
                "budget": {"tokens": 64, "per": "sample"},
                "positions": "original",
            }
        ],
        "versions": {"vtcframe": registry.find_entry("pruner", "VtcCls").version},
    }
    file = save_plan(plan_for(VScan(), Budget(64)), tmp_path)
    assert list(said(file)) == ["pruner", "budget", "versions"]
    assert said(file)["pruner"]["name"] == "VScan"


def test_a_compressed_model_writes_its_plan_and_nothing_else(llava, tmp_path):
    model, processor = llava
    compressed = compress(model, DivPrune(), tokens=5)
    assert compressed.save_pretrained(tmp_path) == tmp_path / FILE
    assert [path.name for path in tmp_path.iterdir()] == [FILE]
    again = compress(model, stages=load_stages(str(tmp_path)))
    inputs, options = make_inputs(processor, SAMPLES["one"]), {"max_new_tokens": 3, "do_sample": False}
    assert torch.equal(again.generate(**inputs, **options), compressed.generate(**inputs, **options))
    assert again.last.tokens_after.tolist() == [5]


# Components that are not registered


def test_what_is_not_registered_is_written_by_its_import_path_and_read_if_allowed(tmp_path):
    inner = Brightest(first=Brightest(3.0))
    stages = [Stage("projector", Pipeline((inner,), Weighted((1.0,)), Even(), TopK()), Budget(7))]
    path = f"{__name__}.Brightest"
    file = save_plan(plan_from_stages(stages), tmp_path)
    assert path in file.read_text()
    for trusted in ([path], path):
        assert load_stages(file, imports=trusted) == tuple(stages)
    for others in ((), [f"{__name__}.Brightes"], f"{path}er", ["vtcframe"]):
        with pytest.raises(UsageError, match=rf"{path} is not registered.*imports=\['{path}'\]"):
            load_stages(file, imports=others)


EVIL = "antigravity_of_strangers"
RECYCLED = "vtcframe.methods.sparsevlm.PlusRecycled"
SMUGGLED = {
    "a name": f"pruner: {EVIL}.Foo",
    "a name with options": f"pruner: {{name: {EVIL}.Foo, last: 3}}",
    "a class path": f"pruner: {{class_path: {EVIL}.Foo}}",
    "a class path inside": f"pruner: {{name: Pipeline, scorers: [{{class_path: {EVIL}.Foo}}]}}",
    "a scorer": f"pruner: {{name: Pipeline, scorers: [{EVIL}.Foo], ensembler: Mean, allocator: Even, selector: TopK}}",
    "under another key": f"pruner: {{name: {RECYCLED}, pipeline: {EVIL}.Foo}}",
    "YAML in a string": f"pruner: {{name: {RECYCLED}, pipeline: '{{class_path: {EVIL}.Foo}}'}}",
    "a list in a string": f"pruner: {{name: Pipeline, scorers: '[{EVIL}.Foo]'}}",
    "quotes in a string": f"pruner: \"'{EVIL}.Foo'\"",
    "quotes under another key": f"pruner: {{name: {RECYCLED}, pipeline: \"'{EVIL}.Foo'\"}}",
    "quotes in a class path": f"pruner: {{class_path: \"'{EVIL}.Foo'\"}}",
    "a dotted key": f"pruner.class_path: {EVIL}.Foo",
    "a budget": f"pruner: VtcCls\n  budget: {{class_path: {EVIL}.Foo}}",
    "an anchor": f"pruner: {{class_path: &a {EVIL}.Foo}}\n  positions: *a",
    "a module of ours that registers nothing": "pruner: vtcframe.__main__.main",
    "what a module of ours imports": f"pruner: vtcframe.methods.{EVIL}.Foo",
    "a tag": f"pruner: !!python/object:{EVIL}.Foo {{}}",
    "a tag that calls": f"pruner: !!python/object/apply:{EVIL}.Foo []",
}


@pytest.mark.parametrize("line", SMUGGLED.values(), ids=SMUGGLED)
def test_a_file_cannot_make_its_reader_import_anything(line, tmp_path, monkeypatch):
    (tmp_path / f"{EVIL}.py").write_text("print('imported')\nFoo = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / FILE).write_text(f"stages:\n- at: projector\n  {line}\n")
    with pytest.raises(UsageError, match=FILE):
        load_stages(tmp_path)
    assert EVIL not in sys.modules
    assert "vtcframe.__main__" not in sys.modules


def test_what_cannot_be_read_back_is_not_written(tmp_path):
    local = dataclass(frozen=True)(type("Local", (Cut,), {"__qualname__": "f.<locals>.Local"}))
    for pruner, says in (
        (local(), "define it at the top of a module"),
        (Cut(options=(torch.zeros(1),)), "cannot be written as YAML"),
        (Loose(options=("a",)), None),
    ):
        plan = plan_from_stages([Stage("projector", pruner, Budget(3))])
        if says is None:  # a class that adds no fields is as good as its base
            assert load_stages(save_plan(plan, tmp_path / "fine"), [f"{__name__}.Loose"]) == plan.stages
            continue
        with pytest.raises(ValueError, match=says):
            save_plan(plan, tmp_path)
    with pytest.raises(
        ValueError, match="it would be loaded as"
    ):  # a kind of budget of its own: VScan itself can be written
        save_plan(plan_from_stages(VScan().stages(Budget(64))), tmp_path)
    assert not (tmp_path / FILE).exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot write"):
        save_plan(plan_from_stages([Stage("projector", VtcCls(), Budget(3))]), tmp_path / "file")


# What its reader is told


WRONG = {
    "stages: [{at: projector, pruner: VtcClss}]": "no pruner is called 'VtcClss'. Did you mean VtcCls?",
    "stages: [{at: projector, pruner: {name: VtcCls, lust: 3}, budget: {tokens: 3}}]": "lust",
    "stages: [{at: projector, pruner: {name: VtcCls, last: three}, budget: {tokens: 3}}]": "three",
    "stages: [{at: projector, pruner: VtcCls, budget: {tokens: 0}}]": "at least 1, got 0",
    "stages: [{at: nowhere, pruner: VtcCls}]": "no site is called 'nowhere'",
    "stages: [{at: 'llm:2', pruner: FastV}, {at: projector, pruner: VtcCls}]": "give them in the order",
    "stages: []": "act at nowhere",
    "stages: VtcCls": "stages",
    "pruner: FastV": "give tokens or ratio",
    "pruner: [FastV, VtcCls]": "pruner",
    "budget: {tokens: 3}": "it has budget: give stages, or pruner and budget",
    "stages: []\npruner: VtcCls": "it has stages, pruner",
    "model: {stages: []}": "it has model: give stages",
    "": "it has no keys",
    "[1, 2]": "it has no keys",
    "a: [": "cannot read",
    "stages: &a [*a]": "cannot read",
}


@pytest.mark.parametrize("text", WRONG)
def test_what_is_wrong_is_told_with_the_file(text, tmp_path):
    (tmp_path / FILE).write_text(text)
    with pytest.raises(UsageError) as told:
        load_stages(tmp_path)
    assert WRONG[text] in str(told.value)
    assert str(tmp_path / FILE) in str(told.value)


def test_other_versions_are_told_where_something_is_not_known(tmp_path):
    stages = "stages: [{at: projector, pruner: Novel, budget: {tokens: 3}}]\n"
    (tmp_path / FILE).write_text(
        f"{stages}versions: {{vtcframe: 9.9.9, vtcframe-novel: 1.2, '-r x; rm': 1, torch: [1]}}\n"
    )
    with pytest.raises(UsageError) as told:
        load_stages(tmp_path)
    assert "written with vtcframe 9.9.9, and " in str(told.value)
    assert "written with vtcframe-novel 1.2, which is not installed: pip install vtcframe-novel, if" in str(told.value)
    assert "rm" not in str(told.value).partition("written with")[2]
    (tmp_path / FILE).write_text(stages.replace("Novel", "VtcCls") + "versions: {vtcframe: 9.9.9}\n")
    assert load_stages(tmp_path)[0].pruner == VtcCls()  # it is known: the version does not matter


def test_a_plugins_component_is_written_by_its_name_and_its_distribution_told(tmp_path, monkeypatch):
    module = (
        "from dataclasses import dataclass\nfrom vtcframe import VtcCls\nfrom vtcframe.registry import hookimpl\n"
        "@hookimpl\ndef vtcframe_components():\n    return {'pruner': ['strange_pruners:MyOwnPruner']}\n"
        "@dataclass(frozen=True)\nclass MyOwnPruner(VtcCls):\n    mine: int = 1\n"
    )
    (tmp_path / "strange_pruners.py").write_text(module)
    folder = tmp_path / "strange_pruners-2.3.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: strange-pruners\nVersion: 2.3\n")
    (folder / "entry_points.txt").write_text("[vtcframe]\nstrange = strange_pruners\n")
    with monkeypatch.context() as installed:
        installed.syspath_prepend(tmp_path)
        registry._scan.cache_clear()
        try:
            method = registry.find_entry("pruner", "MyOwnPruner").load()
            file = save_plan(plan_from_stages([Stage("projector", method(mine=5), Budget(3))]), tmp_path)
            assert said(file)["stages"][0]["pruner"]["name"] == "MyOwnPruner"
            assert said(file)["versions"]["strange-pruners"] == "2.3"
            assert load_stages(file)[0].pruner == method(mine=5)
        finally:
            sys.modules.pop("strange_pruners", None)
    registry._scan.cache_clear()
    with pytest.raises(UsageError, match=r"strange-pruners 2\.3, which is not installed: pip install strange-pruners"):
        load_stages(file)


def test_where_there_is_no_file_that_is_said(tmp_path, monkeypatch):
    for nowhere in (tmp_path, tmp_path / "other.yaml", "no such thing"):
        with pytest.raises(UsageError, match="there is no file"):
            load_stages(nowhere)
    with pytest.raises(UsageError, match="and none on the Hub"):
        load_stages("nobody/nothing")


def test_a_name_on_the_hub_is_looked_up_in_the_cache(tmp_path, monkeypatch):
    commit = "0123456789abcdef0123456789abcdef01234567"
    repo = tmp_path / "models--somebody--pruned"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text(commit)
    want = plan_from_stages([Stage("projector", VtcCls(), Budget(3))])
    save_plan(want, repo / "snapshots" / commit)
    monkeypatch.setattr("transformers.utils.hub.TRANSFORMERS_CACHE", str(tmp_path), raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert load_stages("somebody/pruned") == want.stages


def test_the_bundled_checkpoint_may_hold_one_beside_its_weights(tmp_path):
    folder = tmp_path / "tiny"
    shutil.copytree(bundled("vtcframe:tiny"), folder)
    save_plan(plan_for(VtcCls(last=3), Budget(18)), folder)
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
    assert compress(model, stages=load_stages(folder)).plan.budget == Budget(18)
    assert expand(said(folder / FILE), HINTS)["stages"][0]["pruner"]["class_path"] == "vtcframe.methods.vtc_cls.VtcCls"
