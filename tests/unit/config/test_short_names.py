import json

import pytest

from vtcframe.config.short_names import expand, resolve, shorten
from vtcframe.errors import UsageError

CLS = {"class_path": "vtcframe.methods.vtc_cls.VtcCls"}


def test_names_become_classes_wherever_a_component_stands():
    assert expand({"pruner": "VtcCls"}) == {"pruner": CLS}
    assert expand({"stages": [{"pruner": {"name": "VtcCls", "last": 2}}]}) == {
        "stages": [{"pruner": CLS | {"init_args": {"last": 2}}}]
    }
    scorer = {"class_path": "vtcframe.components.scorers.TokenNorm"}
    assert expand({"name": "Pipeline", "scorers": ["TokenNorm"]}, "model.pruner")["init_args"] == {"scorers": [scorer]}


def test_what_is_no_component_or_no_short_name_is_left_alone():
    for node in ({"folder": "VtcCls"}, {"pruner": CLS}, {"merger": None}, 3, "VtcCls"):
        assert expand(node) == node


def test_a_class_that_is_not_registered_is_given_by_its_import_path():
    assert expand({"pruner": {"name": "my_package.Mine", "last": 2}}) == {
        "pruner": {"class_path": "my_package.Mine", "init_args": {"last": 2}}
    }


def test_an_unknown_name_is_told_with_its_key_and_the_nearest():
    with pytest.raises(UsageError, match=r"^model.compare.pruners: no pruner is called 'VtcCsl'. Did you mean VtcCls"):
        expand({"model": {"compare": {"pruners": ["UniformPruner", "VtcCsl"]}}})
    with pytest.raises(UsageError, match=r"^merger: no merger is called 'Pool'"):
        expand({"merger": "Pool"})


@pytest.mark.parametrize("joined", [True, False])
def test_short_names_on_the_command_line_become_classes(joined):
    option, value = "--model.stages.pruner", "{name: VtcCls, last: 2}"
    given = [f"{option}={value}"] if joined else [option, value]
    (found,) = resolve(given)
    assert json.loads(found.removeprefix(f"{option}=")) == CLS | {"init_args": {"last": 2}}


def test_a_list_on_the_command_line_takes_the_place_of_the_one_in_the_file():
    assert resolve(["--budgets=[{tokens: 9}]"]) == ["--budgets=[]", "--budgets=[{tokens: 9}]"]


def test_other_options_stay_as_they_are_typed():
    given = ["--print_config", "--data.path=a: [", "--trainer.devices=1"]
    assert resolve(given) == given


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
    ],
)
def test_shorten_is_the_reverse_of_expand(short):
    assert shorten(expand(short)) == short
