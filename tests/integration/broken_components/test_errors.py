"""Components of a stranger that do what they may not: one clear message each, and the others go on."""

import contextlib
import io
import json
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import yaml

from conftest import backbone
from vtcframe import (
    Budget,
    Even,
    Mean,
    Merger,
    Pipeline,
    Pruner,
    Random,
    RandomPruner,
    Stage,
    TopK,
    VtcCls,
    adapter,
    compress,
)
from vtcframe.cli import main
from vtcframe.config import bundled
from vtcframe.faults import ComponentError
from vtcframe.metrics import Row, table
from vtcframe.pipeline import plan_for, planned
from vtcframe.registry import Entry, entries, named
from vtcframe.testing import make_evidence, make_inputs
from vtcframe.testing.backbones import SAMPLES
from vtcframe_backbones.llava import Llava

HEAD = """
from dataclasses import dataclass, replace
import torch
from vtcframe import *
from vtcframe.benchmark import Benchmark
from vtcframe.pipeline import Allocator, Ensembler, gather
from vtcframe.transforms import Transform
"""
CALLS = {  # kind -> how its `__call__` begins
    "Scorer": "evidence",
    "Ensembler": "maps, layout",
    "Allocator": "scores, budget, evidence",
    "Selector": "scores, quota, evidence",
    "Merger": "kept, slots, scores, evidence",
    "Pruner": "evidence, budget=None",
}
FINE = {  # what the kind would have to return
    "Scorer": "evidence.tokens.float().norm(dim=-1)[None]",
    "Ensembler": "maps[0][0]",
    "Allocator": "budget",
    "Selector": "TopK()(scores, quota, evidence)",
    "Merger": "gather(kept, kept.sum(1), scores, evidence)",
    "Pruner": "RandomPruner()(evidence, budget)",
}
BROKEN = {  # class -> kind, body of its call, what is said of it
    "GivesNone": ("Scorer", "None", "returned None, and no tensor of scores [S, V, N]"),
    "GivesList": ("Scorer", "[1.0]", "returned a list, and no tensor"),
    "GivesClass": ("Scorer", "torch.Tensor", "returned the class Tensor itself"),
    "OneMap": (
        "Scorer",
        "{fine}[0]",
        "returned scores [S, V, N] of shape [1, 16], and not [any, 1, 16]: give one map as",
    ),
    "OtherShape": ("Scorer", "{fine}[..., 1:]", "of shape [1, 1, 15], and not [any, 1, 16]"),
    "Half": ("Scorer", "{fine}.half()", "of type float16, and not float32: end with .float()"),
    "Bools": ("Scorer", "{fine} > 0", "of type bool, and not float32"),
    "Ints": ("Scorer", "{fine}.long()", "of type int64, and not float32"),
    "Elsewhere": ("Scorer", "{fine}.to('meta')", "on meta, and not on cpu: make new tensors there"),
    "NotANumber": ("Scorer", "{fine} * torch.nan", "scores of samples [0] are not finite: {name}() of broken 1.2"),
    "Infinite": ("Scorer", "{fine} / 0", "scores of samples [0] are not finite: {name}() of broken 1.2"),
    "Ungathered": ("Scorer", "evidence[Rows('cls', (-1,))]", "raised LookupError: Rows(query='cls'"),
    "BadKey": ("Scorer", "{{}}['x']", "raised KeyError: 'x' (broken_parts, line "),
    "BadIndex": ("Scorer", "[][3]", "raised IndexError: list index out of range (broken_parts, line "),
    "Asserts": ("Scorer", "(_ for _ in ()).throw(AssertionError)", "raised AssertionError (broken_parts, line "),
    "Refuses": ("Scorer", "int('a')", "raised ValueError: invalid literal for int()"),
    "Multiplies": ("Scorer", "torch.ones(2, 3) @ torch.ones(2, 3)", "mat1 and mat2 shapes cannot be multiplied"),
    "Own": ("Scorer", "(_ for _ in ()).throw(Astray('way'))", "raised Astray: way (broken_parts, line "),
    "NoEnsemble": ("Ensembler", "maps[0]", "returned scores [V, N] of shape [1, 1, 16], and not [1, 16]"),
    "BadEnsemble": ("Ensembler", "maps[7]", "raised IndexError"),
    "Fused": ("Ensembler", "maps[0][0] / 0", "scores of samples [0] are not finite: {name}() of broken 1.2"),
    "Floats": ("Allocator", "budget.float()", "of type float32, and not int64: end with .long()"),
    "Negative": ("Allocator", "-budget", "returned quotas below 0: [-4]"),
    "NoQuota": ("Allocator", "budget.sum()", "returned quotas [V] of shape [], and not [1]"),
    "Numbers": ("Selector", "{fine}.long()", "returned a mask [V, N] of type int64, and not bool: end with .bool()"),
    "TooMany": ("Selector", "TopK()(scores, quota + 1, evidence)", "kept 5 tokens of row 0 where the quota is 4"),
    "Nothing": ("Selector", "None", "returned None, and no tensor of a mask [V, N]"),
    "NoMerge": ("Merger", "evidence.tokens", "returned a Tensor, and not a Pruned"),
    "NoPruned": ("Pruner", "None", "returned None, and not a Pruned"),
    "OtherWidth": (
        "Pruner",
        "replace({fine}, tokens=evidence.tokens[:, :4, :3])",
        "returned tokens [V, M, D] of shape",
    ),
    "FloatPlaces": ("Pruner", "replace({fine}, place={fine}.place.float())", "places [V, M] of type float32, and not"),
    "Fields": ("Pruner", "Pruned(None, None, None, None)", "returned a Pruned whose layout is None: give that of"),
    "Attributes": ("Pruner", "evidence.token", "raised AttributeError: 'Evidence' object has no attribute 'token'"),
}
BARE = """
class Astray(Exception):
    pass

@dataclass(frozen=True)
class NoArgument(Scorer):
    def __call__(self):
        return None

@dataclass(frozen=True)
class ManyArguments(Selector):
    def __call__(self, scores, quota, evidence, seed):
        return None

@dataclass(frozen=True)
class ManySlots(Merger):
    def slots(self, quota, layout):
        return quota + 1
    def __call__(self, kept, slots, scores, evidence):
        return None

@dataclass(frozen=True)
class Abstract(Scorer):
    pass

class Plain(Scorer):
    def __init__(self, last: int = 3):
        self.last = last
    def __call__(self, evidence):
        return evidence.tokens.float().norm(dim=-1)[None]

@dataclass(frozen=True)
class NeedsOne(Scorer):
    @property
    def needs(self):
        return Rows("cls", (-1,))
    def __call__(self, evidence):
        return None

@dataclass(frozen=True)
class NeedsMethod(NeedsOne):
    def needs(self):
        return (Rows("cls", (-1,)),)

@dataclass(frozen=True)
class NeedsWords(NeedsOne):
    needs = ("cls",)

@dataclass(frozen=True)
class NeedsClass(NeedsOne):
    needs = (Rows,)

@dataclass(frozen=True)
class NeedsRaise(NeedsOne):
    @property
    def needs(self):
        return 1 / 0

@dataclass(frozen=True)
class NoStages(Pruner):
    def stages(self, budget):
        return [self]
    def __call__(self, evidence, budget=None):
        return None

@dataclass(frozen=True)
class Picky(RandomPruner):
    last: int = 3
    def __post_init__(self):
        if self.last < 1:
            raise ValueError(f"last must be positive, got {self.last}")

@dataclass(frozen=True)
class NoFile(Benchmark):
    def read(self, path, images):
        return {}["questions"]

@dataclass(frozen=True)
class NoScore(Benchmark):
    def read(self, path, images):
        from vtcframe.formats import read_samples
        return read_samples(path, path)
    def score(self, rows):
        return 1 / 0

@dataclass(frozen=True)
class Torn(Transform):
    def __call__(self, visual):
        return len(visual.size) + "x"

@dataclass(frozen=True)
class Lost(Transform):
    def __call__(self, visual):
        return None

@dataclass(frozen=True)
class NoPipeline(Method):
    def pipeline(self):
        TopK()
"""
NEEDS = {
    "NeedsOne": "has a Rows for its `needs`: return a tuple",
    "NeedsMethod": "has a method for its `needs`: write @property above it",
    "NeedsWords": "has 'cls' among its `needs`: use the kinds of vtcframe.needs",
    "NeedsClass": "has <class 'vtcframe.needs.Rows'> among its `needs`",
    "NeedsRaise": "raised ZeroDivisionError: division by zero (broken_parts, line ",
}
TARGETS = {
    "Boom": ("broken_boom", "scorer Boom of broken 1.2 cannot be imported: OSError: libfoo is missing"),
    "Exits": ("broken_exits", "scorer Exits of broken 1.2 cannot be imported: SystemExit: 7"),
    "Missing": ("broken_parts", "cannot be imported: AttributeError: module 'broken_parts' has no attribute"),
    "Abstract": ("broken_parts", "scorer Abstract of broken 1.2 is abstract: it must define __call__"),
    "Plain": ("broken_parts", "scorer Plain of broken 1.2 is no frozen dataclass: write @dataclass(frozen=True)"),
    "Numbers": ("broken_parts", "broken_parts:Numbers of broken 1.2 is no scorer: extend vtcframe.pipeline.Scorer"),
}


def code(name, kind, body):
    return (
        f"@dataclass(frozen=True)\nclass {name}({kind}):\n    def __call__(self, {CALLS[kind]}):\n"
        f"        return {body.format(fine=FINE[kind])}\n"
    )


@pytest.fixture(scope="module")
def broken(tmp_path_factory):
    """A distribution, installed as an installer would, all of whose components are broken."""
    folder = tmp_path_factory.mktemp("broken")
    parts = HEAD + BARE
    parts += "".join(code(name, kind, body) for name, (kind, body, _) in BROKEN.items())
    (folder / "broken_parts.py").write_text(parts)
    (folder / "broken_boom.py").write_text("raise OSError('libfoo is missing')")
    (folder / "broken_exits.py").write_text("import sys; sys.exit(7)")
    kinds = {}
    for name, (kind, *_) in BROKEN.items():
        kinds.setdefault(kind.lower(), []).append(f"broken_parts:{name}")
    kinds["scorer"] += [f"{module}:{name}" for name, (module, _) in TARGETS.items()]
    kinds["scorer"] += [f"broken_parts:{name}" for name in ("NoArgument", *NEEDS)]
    kinds["selector"].append("broken_parts:ManyArguments")
    kinds["merger"].append("broken_parts:ManySlots")
    kinds["pruner"].append("broken_parts:Picky")
    kinds["benchmark"] = ["broken_parts:NoFile", "broken_parts:NoScore"]
    kinds["transform"] = ["broken_parts:Torn", "broken_parts:Lost"]
    kinds["pruner"] += ["broken_parts:NoStages", "broken_parts:NoPipeline"]
    hook = "from vtcframe.registry import hookimpl\n@hookimpl\ndef vtcframe_components():\n    return "
    (folder / "broken_plugin.py").write_text(f"{hook}{kinds!r}\n")
    told = folder / "broken-1.2.dist-info"
    told.mkdir()
    (told / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 1.2\n")
    (told / "entry_points.txt").write_text("[vtcframe]\nbroken = broken_plugin\n")
    from vtcframe import registry

    sys.path.insert(0, str(folder))
    registry._scan.cache_clear()
    import broken_parts

    yield broken_parts
    sys.path.remove(str(folder))
    registry._scan.cache_clear()
    for name in [name for name in sys.modules if name.startswith("broken_")]:
        del sys.modules[name]


def pruner_with(part):
    """A pruner with one part of a stranger."""
    parts = {"scorers": (Random(),), "ensembler": Mean(), "allocator": Even(), "selector": TopK()}
    kinds = {base.__name__: base for base in type(part).__mro__}
    if "Pruner" in kinds:
        return part
    kind = next(name for name in CALLS if name in kinds).lower()
    return Pipeline(**parts | ({"scorers": (part,)} if kind == "scorer" else {kind: part}))


def generated(pruner, at="projector", ratio=0.25):
    model, processor = backbone("llava")
    inputs = make_inputs(processor, SAMPLES["one"])
    return compress(model, stages=[Stage(at, pruner, Budget(ratio=ratio))]).generate(**inputs, max_new_tokens=1)


@pytest.mark.parametrize("name", BROKEN)
def test_what_a_component_does_wrong_is_told_with_its_name_and_whose_it_is(broken, name):
    kind, _, says = BROKEN[name]
    with pytest.raises(ComponentError) as told:
        generated(pruner_with(getattr(broken, name)()))
    message = str(told.value)
    assert says.format(name=name) in message
    assert f"{name}() of broken 1.2" in message
    assert "finite" in says or message.startswith(f"{kind.lower()} {name}()")
    assert "\n" not in message
    if "raised" in says:
        assert type(told.value.__cause__).__name__ in message


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("NoArgument", "cannot be called as its kind is: .*: write def __call__\\(self, evidence\\)"),
        ("ManyArguments", "missing 1 .*'seed': write def __call__\\(self, scores, quota, evidence\\)"),
        ("ManySlots", "merger ManySlots\\(\\) of broken 1.2 wants \\[5\\] slots where the quotas are \\[4\\]"),
    ],
)
def test_a_wrong_signature_is_told_with_the_right_one(broken, name, says):
    with pytest.raises(ComponentError, match=rf"{name}\(\) of broken 1.2 .*{says}" if "wants" not in says else says):
        generated(pruner_with(getattr(broken, name)()))


@pytest.mark.parametrize("name", NEEDS)
def test_needs_that_are_none_are_told_before_anything_runs(broken, name):
    with pytest.raises(ComponentError) as told:
        planned([Stage("projector", pruner_with(getattr(broken, name)()), Budget(3))])
    assert f"scorer {name}() of broken 1.2 {NEEDS[name]}" in str(told.value)


def test_stages_and_a_pipeline_that_are_none_are_told_before_anything_runs(broken):
    with pytest.raises(ComponentError, match=r"NoStages\(\) of broken 1.2 has a list for its stages: return a tuple"):
        plan_for(broken.NoStages(), Budget(3))
    with pytest.raises(
        ComponentError, match=r"NoPipeline\(\) of broken 1.2 raised TypeError: pipeline\(\) returned None"
    ):
        plan_for(broken.NoPipeline(), Budget(3))


def test_a_part_of_another_kind_or_a_class_in_its_place_is_refused_at_once(broken):
    parts = {"ensembler": Mean(), "allocator": Even(), "selector": TopK()}
    for given, says in (
        ({"scorers": (TopK(),)}, "scorer: an object that extends vtcframe.Scorer is needed, got a TopK"),
        ({"scorers": (Random(),), "selector": TopK}, "selector: .* got the class TopK itself"),
        ({"scorers": (Random(),), "merger": Mean()}, "merger: .* got a Mean"),
        ({"scorers": Random()}, "scorers are a tuple or list, got a Random"),
    ):
        with pytest.raises(TypeError, match=says):
            Pipeline(**parts | given)
    with pytest.raises(TypeError, match=r"extends vtcframe\.Pruner, got the class VtcCls itself"):
        Stage("projector", VtcCls)
    with pytest.raises(TypeError, match=r"extends vtcframe\.Pruner, got the class VtcCls itself"):
        plan_for(VtcCls)


def test_a_scorer_is_told_from_the_one_beside_it(broken):
    pipeline = Pipeline((Random(), broken.NotANumber(), Random(1)), Mean(), Even(), TopK())
    with pytest.raises(ComponentError, match=r"are not finite: NotANumber\(\) of broken 1.2$"):
        pipeline(make_evidence(), Budget(3))


def test_of_our_own_components_no_plug_in_is_blamed():
    with pytest.raises(ComponentError, match=r"^Even shares out a budget: give tokens or ratio$"):
        Pipeline((Random(),), Mean(), Even(), TopK())(make_evidence())

    @dataclass(frozen=True)
    class Mine(Merger):
        def __call__(self, kept, slots, scores, evidence):
            raise KeyError("x")

    with pytest.raises(ComponentError, match=r"Mine\(\) raised KeyError: 'x' \(test_broken_plugins, line \d+\)$"):
        Pipeline((Random(),), Mean(), Even(), TopK(), Mine())(make_evidence(), Budget(3))


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, MemoryError, KeyboardInterrupt])
def test_what_is_no_components_fault_passes_as_it_is(error):
    @dataclass(frozen=True)
    class Large(Pruner):
        def __call__(self, evidence, budget=None):
            raise error("of the machine")

    with pytest.raises(error, match="of the machine"):
        generated(Large())


def test_a_component_cannot_leave_the_process_but_a_signals_handler_can():
    handler = {"__name__": "elsewhere"}
    exec("def leave(): raise SystemExit(0)", handler)

    @dataclass(frozen=True)
    class Leaves(Pruner):
        signal: bool

        def __call__(self, evidence, budget=None):
            if self.signal:
                handler["leave"]()
            raise SystemExit(0)

    with pytest.raises(
        ComponentError, match=r"Leaves\(signal=False\) raised SystemExit: 0 \(test_broken_plugins, line"
    ):
        generated(Leaves(signal=False))
    with pytest.raises(SystemExit):
        generated(Leaves(signal=True))


@pytest.mark.parametrize("at", ["encoder:1", "llm:1"])
def test_inside_the_model_parts_are_told_as_they_are_before_it(broken, at):
    for name in ("BadKey", "GivesNone", "TooMany"):
        with pytest.raises(ComponentError, match=rf"{name}\(\) of broken 1.2 "):
            generated(pruner_with(getattr(broken, name)()), at)


@pytest.mark.parametrize("name", TARGETS)
def test_a_target_that_cannot_be_used_is_told_when_it_is_loaded(broken, name):
    with pytest.raises((ImportError, TypeError)) as told:
        named("scorer", name).load()
    assert TARGETS[name][1] in str(told.value)
    assert "scorer TopK" not in str(told.value)


class Stumbling(Llava):
    """An adapter that cannot even be asked."""

    @classmethod
    def matches(cls, model):
        raise KeyError("model_type")


@pytest.mark.parametrize(
    ("target", "says"),
    [
        ("nowhere.at_all:Stumbling", "ImportError: adapter Stumbling of broken 1.2 cannot be imported"),
        ("test_broken_plugins:Stumbling", "KeyError: 'model_type'"),
    ],
)
def test_an_adapter_that_cannot_be_used_is_left_out_with_a_warning(monkeypatch, llava, target, says):
    stumbling = Entry("adapter", "Stumbling", target, "broken", "1.2")
    monkeypatch.setattr(adapter, "entries", lambda: (stumbling, *entries()))
    with pytest.warns(UserWarning, match=rf"^adapter Stumbling \(broken 1.2\) is left out: {says}"):
        assert type(adapter.adapter_for(llava[0])) is Llava


# From the command line


def predict(folder, *pruners, stage=None, limit=4, more=None):
    """Exit status, rows, standard output and standard error of a run on bundled questions."""
    model = {"backbone": {"path": "vtcframe:tiny", "dtype": "float32"}, "generation": {"max_new_tokens": 1}}
    if stage is None:
        model["compare"] = {"pruners": list(pruners), "budgets": [{"ratio": 0.25}, {"ratio": 0.5}]}
    else:
        model["stages"] = [{"at": "projector", "pruner": stage, "budget": {"tokens": 4}}]
    told = {
        "model": model,
        "data": {"path": "vtcframe:questions", "limit": limit, "batch_size": 2},
        "trainer": {"accelerator": "cpu"},
        "writer": {"folder": str(folder)},
    }
    for section, options in (more or {}).items():
        told[section] |= {"limit": 2} | options if section == "data" else options
        told["data"]["limit"] = 2
    folder.mkdir(exist_ok=True)
    (folder / "asked.yaml").write_text(yaml.safe_dump(told))
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = main(["predict", "--config", str(folder / "asked.yaml")])
    path = Path(folder) / "predictions.jsonl"
    rows = [Row(**json.loads(line)) for line in path.read_text().splitlines()] if path.exists() else []
    return status, rows, out.getvalue(), err.getvalue()


def spelt(**parts):
    whole = {"name": "Pipeline", "scorers": ["Random"], "ensembler": "Mean", "allocator": "Even", "selector": "TopK"}
    return whole | parts


def test_one_that_fails_in_a_comparison_leaves_the_answers_of_the_others(broken, tmp_path):
    status, rows, out, err = predict(tmp_path, "RandomPruner", spelt(scorers=["BadKey"]), "Attributes", "VtcCls")
    assert status == 1
    failed = [row for row in rows if row.error is not None]
    assert {row.method.partition("(")[0] for row in failed} == {"Pipeline", "Attributes"}
    assert len(failed) == 2 * 2 * 4
    assert len(rows) - len(failed) == (1 + 2 * 2) * 4
    for row in failed:
        assert row.prediction is row.visual_tokens is None
        assert row.error.startswith(f"{row.method} at {row.budget['ratio']} fails on vtcframe:tiny: ")
        assert "of broken 1.2 raised" in row.error
    for row in rows:
        assert row.error is not None or row.prediction is not None
    warned = [line for line in err.splitlines() if line.startswith("vtcframe: warning: ")]
    assert len(warned) == 2
    assert "scorer BadKey() of broken 1.2 raised KeyError: 'x'" in warned[0]
    assert "pruner Attributes() of broken 1.2 raised AttributeError" in warned[1]
    assert "Traceback" not in err
    assert out.startswith(table(rows))
    lines = [line.split() for line in out.splitlines()]
    assert lines[0][6:8] == ["KV", "MiB"]
    at = out.splitlines()[0].index("failed")
    assert [line[at : at + 6].split()[0] for line in out.splitlines()[2:11]] == "0 0 0 4 4 4 4 0 0".split()


def test_one_that_fails_in_stages_gets_rows_that_say_why(broken, tmp_path):
    status, rows, _, err = predict(tmp_path, stage="NoPruned")
    assert status == 1
    assert len(rows) == 4
    (reason,) = {row.error for row in rows}
    assert reason == (
        "NoPruned() at 4 tokens fails on vtcframe:tiny: pruner NoPruned() of broken 1.2 returned None, and not a Pruned"
    )
    assert err.count("NoPruned()") == 2  # the method and the pruner, in one line
    assert "4 samples failed, their rows say why" in err


def test_a_run_that_fails_on_all_samples_of_a_batch_is_not_tried_on_each_of_the_next(broken, tmp_path, monkeypatch):
    from vtcframe.scorers import Random

    calls = []

    def fails(self, evidence):
        calls.append(len(evidence.layout.key))
        raise KeyError("always")

    monkeypatch.setattr(Random, "__call__", fails)
    status, rows, _, _ = predict(tmp_path, stage=spelt(), limit=6)
    assert status == 1
    assert calls == [2, 1, 1, 2, 2]
    assert len(rows) == 6
    assert all("always" in row.error for row in rows)


def test_what_fails_for_one_sample_of_a_batch_fails_for_that_one_only(broken, tmp_path, monkeypatch):
    from vtcframe.scorers import Random

    calls, whole = [], Random.__call__

    def fails_in_batches_and_once(self, evidence):
        calls.append(len(evidence.layout.key))
        if calls[-1] > 1 or calls.count(1) == 1:
            raise KeyError("x")
        return whole(self, evidence)

    monkeypatch.setattr(Random, "__call__", fails_in_batches_and_once)
    status, rows, _, _ = predict(tmp_path, stage=spelt(), limit=2)
    assert status == 1
    assert calls == [2, 1, 1]
    assert [row.error is None for row in rows] == [False, True]
    assert rows[1].visual_tokens == 4


def test_answers_of_places_that_are_none_fail_their_run_only(tmp_path):
    from vtcframe.backbone import Backbone
    from vtcframe.data import read_samples
    from vtcframe.predict import Comparison, Predictor

    @dataclass(frozen=True)
    class Far(Pruner):
        def __call__(self, evidence, budget=None):
            pruned = RandomPruner()(evidence, budget)
            return type(pruned)(pruned.tokens, pruned.place + 10**6, pruned.scores, pruned.layout)

    comparison = Comparison([Far(), RandomPruner()], [Budget(4)])
    predictor = Predictor(Backbone("vtcframe:tiny", dtype="float32"), compare=comparison)
    predictor.setup("predict")
    folder = Path(bundled("vtcframe:questions"))
    sample = read_samples(folder / "questions.jsonl", folder)[0].loaded()
    with torch.no_grad():
        untouched, far, drawn = predictor.predict_step([sample], 0)
    assert untouched.error is drawn.error is None
    assert "Far() at 4 tokens fails on vtcframe:tiny: what it left cannot be read: " in far.error


@pytest.mark.parametrize("name", NEEDS)
def test_a_configuration_that_can_never_work_ends_before_the_first_batch(broken, tmp_path, name):
    status, rows, out, err = predict(tmp_path, "RandomPruner", spelt(scorers=[name]))
    assert (status, rows, out) == (2, [], "")
    assert err.startswith(f"vtcframe: error: scorer {name}() of broken 1.2 ")
    assert len(err.splitlines()) == 1


def test_list_and_help_are_not_disturbed(broken, capsys):
    assert main(["list"]) == main(["--help"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["scorer", "Boom", "broken", "1.2", "ok"] in lines  # nothing is imported before it is used


# What is wrong outside of the pruners, and what is told by other modules


@pytest.mark.parametrize("at", ["encoder:1", "llm:1"])
def test_a_whole_pruner_is_told_inside_the_model_too(broken, at):
    for name in ("Attributes", "NoPruned"):
        with pytest.raises(ComponentError, match=rf"pruner {name}\(\) of broken 1.2 "):
            generated(getattr(broken, name)(), at)


@pytest.mark.parametrize("name", sorted(TARGETS.keys() - {"Numbers"}))  # a selector bears that name, too
def test_a_target_that_cannot_be_used_ends_the_command_in_one_line(broken, tmp_path, name):
    status, rows, out, err = predict(tmp_path, "RandomPruner", spelt(scorers=[name]))
    assert (status, rows, out) == (2, [], "")
    assert TARGETS[name][1] in err
    assert len(err.splitlines()) == 1


def test_what_a_component_says_of_its_options_is_told_with_whose_it_is(broken, tmp_path):
    status, _, _, err = predict(tmp_path, "RandomPruner", {"name": "Picky", "last": -1})
    assert (status, err) == (2, "vtcframe: error: broken 1.2: last must be positive, got -1\n")


def test_samples_that_fail_in_several_runs_are_counted_once_and_drawn_where_they_did_not(broken, tmp_path):
    drawn = {"writer": {"pictures": 2}}
    status, _, _, err = predict(tmp_path, "Attributes", "RandomPruner", more=drawn)
    assert status == 1
    assert "2 samples failed, their rows say why: scene-000-shape, scene-000-count\n" in err
    assert len(list((tmp_path / "pictures").iterdir())) == 2


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"benchmark": "NoFile"}, "benchmark NoFile() of broken 1.2 raised KeyError: 'questions' (broken_parts, line "),
        ({"benchmark": "NoScore"}, "benchmark NoScore() of broken 1.2 raised ZeroDivisionError: "),
    ],
)
def test_a_benchmark_that_raises_ends_the_command_in_one_line(broken, tmp_path, more, says):
    status, _, _, err = predict(tmp_path, "RandomPruner", more={"data": more})
    assert status == 2
    assert err.startswith(f"vtcframe: error: {says}")
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("Torn", "transform Torn() of broken 1.2 raised TypeError: "),
        ("Lost", "transform Lost() of broken 1.2 returned None, and not a tuple of pictures"),
    ],
)
def test_a_transform_that_raises_fails_its_samples(broken, tmp_path, name, says):
    status, rows, _, err = predict(tmp_path, "RandomPruner", more={"data": {"transforms": [name]}})
    assert status == 1
    assert len(rows) == 2
    assert all(row.error.startswith(says) for row in rows)
    assert "Traceback" not in err


def test_explain_tells_what_fails_in_one_line(broken, tmp_path, capsys):
    picture = Path(bundled("vtcframe:questions")) / "images" / "scene-000.png"
    given = ["--image", str(picture), "--question", "what shape is purple ?", "--tokens", "4"]
    status = main(["explain", *given, "--pruner", "Attributes", "--out", str(tmp_path / "a.png")])
    err = capsys.readouterr().err
    assert status == 2
    assert "pruner Attributes() of broken 1.2 raised AttributeError" in err
    assert len(err.splitlines()) == 1


def test_the_report_counts_the_answers_that_are_there(broken, tmp_path):
    predict(tmp_path / "run", "Attributes", "RandomPruner")
    with contextlib.redirect_stdout(io.StringIO()):
        assert main(["report", str(tmp_path / "run"), "--out", str(tmp_path / "page")]) == 0
    page = (tmp_path / "page.md").read_text()
    assert "RandomPruner" in page
    assert page.count("Attributes() at 0.25 fails on vtcframe:tiny: pruner Attributes() of broken 1.2 raised") == 1
