"""The model of lmms-eval: its arguments, and what is refused before weights are loaded."""

import re

import pytest
import torch
from lmms_eval.utils import simple_parse_args_string
from vtcframe_lmms_eval.settings import Settings

from support.lmms_eval_cases import TINY, VTC, model
from vtcframe import Budget, VtcCls
from vtcframe.core.stages import Stage
from vtcframe.errors import UsageError
from vtcframe.inference.checkpoint import Backbone

# what model_args may say


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ({"pruner": "VtcCls", "tokens": 64}, {"pruner": VtcCls(3), "tokens": 64}),
        ({"pruner": "VtcCls", "pruner.last": 2, "ratio": 0.5}, {"pruner": VtcCls(2), "ratio": 0.5}),
        ({"pruner": "{name: VtcCls, last: 2}", "tokens": 5, "per": "view"}, {"pruner": VtcCls(2), "per": "view"}),
        ({"pruner": {"name": "VtcCls", "last": 2}}, {"pruner": VtcCls(2)}),
        ({"pruner": VtcCls(2)}, {"pruner": VtcCls(2)}),
        ({"batch_size": "4", "dtype": "float32"}, {"batch_size": 4, "dtype": "float32"}),
        ({"system_prompt": '"Short, please."'}, {"system_prompt": "Short, please."}),
        (
            {"stages": '[{at: "llm:2", pruner: VtcCls, budget: {tokens: 5}}]'},
            {"stages": [Stage("llm:2", VtcCls(3), Budget(5))]},
        ),
    ],
)
def test_model_args_say_a_pruner_and_its_budget(said, expected):
    made = Settings.of({"pretrained": "a", **said})
    assert {name: getattr(made, name) for name in expected} == expected


def test_a_nested_pipeline_fits_into_braces_on_the_command_line():
    text = (
        "{name: Pipeline, scorers: [{name: ClsAttention, last: 2}], ensembler: Mean, allocator: Even, selector: TopK}"
    )
    made = Settings.of(simple_parse_args_string(f"{TINY},pruner={text},tokens=5"))
    assert made.pruner is not None
    assert str(made.pruner.scorers).startswith("(ClsAttention(last=2")
    assert made.tokens == 5


def test_what_tokens_are_meant_for_reaches_the_budget():
    plan = Settings.of({"pretrained": "a", "pruner": "VtcCls", "tokens": 5, "per": "image"}).plan
    assert plan.budget == plan.stages[0].budget == Budget(5, per="image")


def test_batch_size_and_device_come_from_the_command_line_unless_model_args_say_otherwise():
    assert (model(batch_size="3").batch_size, model(f"{VTC},batch_size=2", batch_size="3").batch_size) == (3, 2)
    assert model(f"{VTC},device=cpu", device="quantum").device == torch.device("cpu")


def test_positions_hold_for_every_stage_of_the_method():
    plan = Settings.of({"pretrained": "a", "pruner": "VtcCls", "tokens": 5, "positions": "compact"}).plan
    assert [stage.positions for stage in plan.stages] == ["compact"]
    plan = Settings.of({"pretrained": "a", "pruner": "VtcCls", "tokens": 5}).plan
    assert [stage.positions for stage in plan.stages] == ["original"]


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ("pruner=VtcCls", "required: pretrained"),
        (f"{TINY},token=3", "nothing is called 'token'. Did you mean 'tokens'?"),
        (f"{TINY},prune=VtcCls", "nothing is called 'prune'. Did you mean 'pruner'?"),
        (f"{TINY},quatsch=3", "nothing is called 'quatsch'. Known: pretrained, pruner"),
        (f"{TINY},pruner=VtcCls,last=3", "Did you mean 'pruner.last'?"),
        (f"{TINY},max_new_tokens=3", "give it to --gen_kwargs"),
        (f"{TINY},pruner=VtcCl,tokens=3", "no pruner is called 'VtcCl'. Did you mean VtcCls?"),
        (f"{TINY},pruner=VtcCls,pruner.lst=3", "VtcCls has no option 'lst'. Did you mean 'last'? It has last, query"),
        (f"{TINY},pruner={{name: VtcCls, lst: 3}}", "VtcCls has no option 'lst'. Did you mean 'last'?"),
        (f"{TINY},pruner={{name: VtcCls, last: x}}", 'Parser key "last"'),
        (f"{TINY},pruner={{name: VtcCls, last: 3}},pruner.last=2", "pruner.last is given twice: 3 and 2"),
        (f"{TINY},pruner.last=3", "pruner.last belongs to a pruner"),
        (f"{TINY},pruner={{name: VtcCls", "pruner is no YAML"),
        (f"{TINY},pruner=mine.yaml", "pruner=mine.yaml is a file, whose content the cache of lmms-eval would not see"),
        (f"{TINY},stages=mine.json", "stages=mine.json is a file"),
        (f"{TINY},system_prompt={__file__}", "is a file, whose content the cache of lmms-eval would not see"),
        (f"{TINY},pruner=VtcCls,tokens=x", 'Parser key "tokens"'),
        (f"{TINY},pruner=VtcCls,tokens=0", "tokens must be at least 1, got 0"),
        (f"{TINY},pruner=VtcCls,ratio=1.5", "must lie in (0, 1], got 1.5"),
        (f"{TINY},pruner=VtcCls,ratio=nan", "must lie in (0, 1], got nan"),
        (f"{TINY},pruner=VtcCls,tokens=3,ratio=0.5", "exactly one of them: got tokens=3, ratio=0.5"),
        (f"{TINY},pruner=VtcCls,tokens=3,per=sampel", "'sample', 'image', 'view'"),
        (f"{TINY},pruner=VtcCls,per=image", "per=image without tokens or ratio"),
        (f"{TINY},pruner=VtcCls,tokens=3,positions=here", 'Parser key "positions"'),
        (f"{TINY},tokens=3", "tokens without a pruner"),
        (
            f"{TINY},stages=[{{at: projector, pruner: VtcCls, budget: {{tokens: 3}}}}],tokens=3",
            "stages have their own pruner, tok",
        ),
        (f"{TINY},stages=[{{at: here, pruner: VtcCls, budget: {{tokens: 3}}}}]", "no site is called 'here'"),
        (f"{TINY},stages=[]", "the stages act at nowhere"),
        (f"{TINY},dtype=fp16", "'auto', 'float32', 'bfloat16', 'float16'"),
        (f"{TINY},batch_size=auto", 'Parser key "batch_size"'),
        (f"{TINY},batch_size=0", "batch_size must be at least 1, got 0"),
        (f"{TINY},max_num_frames=0", "max_num_frames must be at least 1, got 0"),
    ],
)
def test_what_cannot_be_used_is_told_by_its_key_before_weights_are_loaded(said, message, monkeypatch):
    monkeypatch.setattr(Backbone, "load", lambda self: pytest.fail("weights were loaded"))
    with pytest.raises(UsageError, match=re.escape(message)):
        model(said)


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ("pretrained=vtcframe:large", "nothing bundled is called 'vtcframe:large'"),
        ("pretrained=/nowhere", "cannot be loaded as a checkpoint"),
        (f"{TINY},device=quantum", "there is no device 'quantum' here"),
        (
            f"{TINY},pruner=VtcCls",
            "vtcframe:tiny cannot answer a test question under VtcCls(last=3)",
        ),  # no budget, not adaptive
        (f"{TINY},pruner=FastV,pruner.layer=99,tokens=9", "cannot answer a test question under FastV(layer=99)"),
    ],
)
def test_what_will_never_work_is_told_before_the_first_question(said, message):
    with pytest.raises(UsageError, match=re.escape(message)):
        model(said)
