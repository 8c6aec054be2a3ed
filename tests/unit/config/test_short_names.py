"""Short names of components: where type hints say that a component stands, and nowhere else."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

import pytest

from vtcframe import Merger, Pipeline, Pruner, Scorer, Stage, VtcCls
from vtcframe.config.short_names import expand, expand_text, shorten
from vtcframe.config.type_hints import Kind
from vtcframe.data.benchmarks.base import Benchmark
from vtcframe.data.datamodule import Questions
from vtcframe.errors import UsageError
from vtcframe.runs.predictor import Predictor

if TYPE_CHECKING:
    from nowhere import Unknown  # pyright: ignore[reportMissingImports]

CLS = {"class_path": "vtcframe.methods.vtc_cls.VtcCls"}
NORM = {"class_path": "vtcframe.components.scorers.TokenNorm"}
MODEL = {"model": Predictor, "data": Questions}


@dataclass(frozen=True)
class Judge(Scorer):
    """A scorer that no distribution registers, with components under names of its own."""

    inner: Scorer
    several: Sequence[Scorer] = ()
    by_view: Mapping[str, Scorer] | None = None
    rule: Scorer | Literal["mean"] | None = None
    label: str = ""
    free: Any = None

    def __call__(self, evidence):
        return self.inner(evidence)


class Sheet:
    """A class that is no component, some of whose hints exist for type checkers only."""

    def __init__(self, best: "Annotated[Scorer, 'x']", other: "Unknown | None" = None, **more: Any) -> None: ...


class WideSheet(Sheet):
    """Passes options on."""

    def __init__(self, width: int, **options: Any) -> None: ...


JUDGE = f"{__name__}.Judge"


def test_names_become_classes_wherever_a_hint_says_that_a_component_stands():
    assert expand({"model": {"stages": [{"at": "projector", "pruner": "VtcCls"}]}}, MODEL) == {
        "model": {"stages": [{"at": "projector", "pruner": CLS}]}
    }
    assert expand({"model": {"compare": {"pruners": ["VtcCls"]}}}, MODEL) == {"model": {"compare": {"pruners": [CLS]}}}
    assert expand({"name": "VtcCls", "last": 2}, Pruner) == CLS | {"init_args": {"last": 2}}
    assert expand({"name": "Pipeline", "scorers": ["TokenNorm"]}, Pruner)["init_args"] == {"scorers": [NORM]}
    assert expand("VtcCls", VtcCls) == expand("VtcCls", Pipeline | VtcCls) == CLS
    assert expand({"data.benchmark": "Pope"}, MODEL)["data.benchmark"]["class_path"].endswith(".Pope")


@pytest.mark.parametrize(
    ("option", "value", "expanded"),
    [
        ("inner", "TokenNorm", NORM),
        ("inner", {"class_path": NORM["class_path"]}, NORM),
        (
            "several",
            ["TokenNorm", {"name": JUDGE, "inner": "TokenNorm"}],
            [NORM, {"class_path": JUDGE, "init_args": {"inner": NORM}}],
        ),
        ("by_view", {"a.b": "TokenNorm"}, {"a.b": NORM}),
        ("rule", "TokenNorm", NORM),
        ("rule", "mean", "mean"),
        ("rule", None, None),
        ("label", "TokenNorm", "TokenNorm"),
        ("free", {"name": "TokenNorm"}, {"name": "TokenNorm"}),
    ],
)  # fmt: skip
@pytest.mark.parametrize("form", ["name", "class_path"])
def test_options_of_any_class_are_components_by_their_hints_under_any_key(form, option, value, expanded):
    node = {"name": JUDGE, option: value} if form == "name" else {"class_path": JUDGE, "init_args": {option: value}}
    want = {"class_path": JUDGE, "init_args": {option: expanded}}
    assert expand(node, Scorer) == want
    assert expand(want, Scorer) == want
    assert expand(shorten(want, Scorer), Scorer) == want


def test_hints_that_cannot_be_resolved_hide_no_others():
    assert expand({"best": "TokenNorm", "other": "TokenNorm"}, Sheet) == {"best": NORM, "other": "TokenNorm"}
    assert expand({"width": 3, "best": "TokenNorm"}, WideSheet) == {"width": 3, "best": NORM}


@pytest.mark.parametrize("node", [{"folder": "VtcCls"}, {"pruner": CLS}, {"merger": None}, 3, "VtcCls", ["VtcCls"]])
def test_what_is_no_component_or_no_short_name_is_left_alone(node):
    assert expand(node, {"pruner": Pruner, "merger": Merger | None}) == node


def test_a_class_that_is_not_registered_is_named_by_its_import_path():
    assert expand({"name": "my_package.Mine", "last": 2}, Pruner) == {
        "class_path": "my_package.Mine",
        "init_args": {"last": 2},
    }


@pytest.mark.parametrize(
    ("node", "hint", "message"),
    [
        (
            {"model": {"compare": {"pruners": ["UniformPruner", "VtcCsl"]}}},
            MODEL,
            "^model.compare.pruners: no pruner is called 'VtcCsl'. Did you mean VtcCls",
        ),
        ({"merger": "Pool"}, {"merger": Merger}, "^merger: no merger is called 'Pool'"),
        (
            {"data": {"benchmark": "POPE"}},
            {"data": {"benchmark": Benchmark}},
            r"^data\.benchmark: no benchmark is called 'POPE'",
        ),
        (
            {"pruner": {"name": "Pipeline", "scorers": ["TokenNrm"]}},
            {"pruner": Kind("pruner")},
            r"^pruner\.scorers: no scorer is called 'TokenNrm'. Did you mean TokenNorm",
        ),
    ],
)
def test_an_unknown_name_is_reported_with_its_key_and_the_nearest_name(node, hint, message):
    with pytest.raises(UsageError, match=message):
        expand(node, hint)


def test_text_is_yaml_or_a_bare_name():
    assert expand_text("{name: VtcCls, last: 2}", Pruner) == CLS | {"init_args": {"last": 2}}
    assert expand_text("VtcCls", Kind("pruner")) == CLS
    with pytest.raises(UsageError, match=r"^pruner: no pruner is called '\{name: VtcCls'"):
        expand_text("{name: VtcCls", Pruner, "pruner")


@pytest.mark.parametrize(
    "short",
    [
        {"stages": [{"at": "projector", "pruner": {"name": "VtcCls", "last": 2}, "budget": {"tokens": 64}}]},
        {"compare": {"pruners": ["UniformPruner", {"name": "RandomPruner", "seed": 1}]}},
        {
            "pruner": {
                "name": "Pipeline",
                "scorers": [{"name": "ClsAttention", "last": 3}, "TokenNorm"],
                "ensembler": {"name": "RankFusion", "k": 60},
                "allocator": "Even",
                "selector": "TopK",
                "merger": None,
            }
        },
        {"pruner": {"class_path": "my_package.Mine", "init_args": {"last": 2}}},
        {"free": {"class_path": "vtcframe.methods.vtc_cls.VtcCls"}},
    ],
)
def test_shorten_is_the_reverse_of_expand(short):
    hints = {"stages": list[Stage], "compare": {"pruners": list[Pruner]}, "pruner": Pruner, "free": Any}
    assert shorten(expand(short, hints), hints) == short
