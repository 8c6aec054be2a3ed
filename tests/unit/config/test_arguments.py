"""Command lines and configuration files, as jsonargparse takes them."""

import json
from pathlib import Path

import pytest
import yaml
from jsonargparse import get_loader

from vtcframe.config.arguments import expand_arguments, expand_value, read_config
from vtcframe.data.datamodule import Questions
from vtcframe.errors import UsageError
from vtcframe.runs.predictor import Predictor

SECTIONS = {"model": Predictor, "data": Questions}
CLS = {"class_path": "vtcframe.methods.vtc_cls.VtcCls"}
NORM = {"class_path": "vtcframe.components.scorers.TokenNorm"}


@pytest.mark.parametrize("joined", [True, False])
@pytest.mark.parametrize(
    ("option", "value", "expanded"),
    [
        ("--model.stages.pruner", "{name: VtcCls, last: 2}", CLS | {"init_args": {"last": 2}}),
        ("--model.stages.pruner", "VtcCls", CLS),
        ("--model.stages.pruner.scorers+", "TokenNorm", NORM),
        ("--model.stages.pruner.init_args.scorers+", "TokenNorm", NORM),
        ("--model.compare.pruners+", "VtcCls", CLS),
        ("--model.compare", "{pruners: [VtcCls]}", {"pruners": [CLS]}),
        ("--model", "{compare: {pruners: [VtcCls]}}", {"compare": {"pruners": [CLS]}}),
    ],
)
def test_short_names_on_the_command_line_become_classes(joined, option, value, expanded):
    (argument,) = expand_arguments([f"{option}={value}"] if joined else [option, value], SECTIONS)
    assert json.loads(argument.removeprefix(f"{option}=")) == expanded


def test_a_list_on_the_command_line_replaces_the_one_in_the_file():
    assert expand_arguments(["--budgets=[{tokens: 9}]"], {}) == ["--budgets=[]", "--budgets=[{tokens: 9}]"]
    replaced, argument = expand_arguments(["--model.compare.pruners=[VtcCls]"], SECTIONS)
    assert replaced == "--model.compare.pruners=[]"
    assert json.loads(argument.partition("=")[2]) == [CLS]


def test_other_options_stay_as_they_are_typed():
    arguments = ["--print_config", "--data.path=a: [", "--trainer.devices=1", "--data.images=VtcCls"]
    assert expand_arguments(arguments, SECTIONS) == arguments


def test_an_unknown_name_is_reported_with_its_option():
    with pytest.raises(UsageError, match=r"^model.stages.pruner: no pruner is called 'VtcCsl'"):
        expand_arguments(["--model.stages.pruner=VtcCsl"], SECTIONS)


@pytest.mark.parametrize("option", ["--config", "-c"])
def test_a_file_is_read_once_and_replaced_by_its_content(tmp_path, monkeypatch, option):
    file = tmp_path / "a.yaml"
    file.write_text("model: {stages: [{pruner: VtcCls}], generation: {temperature: 1e-5, word: 1e5x, text: '1e5'}}")
    reads, read_text = [], Path.read_text
    monkeypatch.setattr(Path, "read_text", lambda path, **options: reads.append(path) or read_text(path, **options))
    (argument,) = expand_arguments([option, str(file)], SECTIONS)
    content = get_loader("yaml")(argument.removeprefix(f"{option}="))
    generation = {"temperature": 1e-5, "word": "1e5x", "text": "1e5"}
    assert content == {"model": {"stages": [{"pruner": CLS}], "generation": generation}}
    assert reads == [file]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1]", "a.yaml holds a list, and not the keys of a configuration"),
        ("a: [", "a.yaml is no YAML: while parsing a flow "),
        (yaml.safe_dump({"model": {"compare": {"pruners": ["VtcCsl"]}}}), "a.yaml: model.compare.pruners: no pruner"),
        (None, "cannot read the configuration .*a.yaml: "),
    ],
)
def test_a_file_that_cannot_be_used_is_named(tmp_path, text, message):
    if text is not None:
        (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(UsageError, match=message):
        read_config(str(tmp_path / "a.yaml"), SECTIONS)


def test_an_empty_file_configures_nothing(tmp_path):
    (tmp_path / "a.yaml").write_text("# later\n")
    assert read_config(str(tmp_path / "a.yaml"), SECTIONS) == {}


def test_a_value_is_expanded_by_the_path_of_its_key():
    assert expand_value("toys.benchmark", "Pope", {"toys": Questions})["class_path"].endswith(".Pope")
    assert expand_value("toys.benchmark", "Pope", dict[str, Questions])["class_path"].endswith(".Pope")
    assert expand_value("toys.path", "Pope", {"toys": Questions}) == "Pope"
