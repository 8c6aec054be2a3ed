"""What `--model_args` of lmms-eval may say, checked before weights are loaded.

The response cache of lmms-eval tells models apart by their model_args. So all that answers depend on is written there
in full: no key names a file whose content could change under its name.
"""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, get_type_hints

import yaml
from jsonargparse import get_loader
from transformers import GenerationConfig

from vtcframe.config.parser import Parser
from vtcframe.config.short_names import expand
from vtcframe.core.budget import Budget
from vtcframe.core.stages import Plan, Positions, Pruner, Stage, plan_for, plan_from_stages
from vtcframe.errors import UsageError
from vtcframe.inference.checkpoint import Backbone
from vtcframe.registry import entries

COMPONENTS = "pruner", "stages"  # keys whose values hold components
OPTION = "pruner."  # what keys of a pruner's own options begin with


@dataclass(frozen=True)
class Settings:
    """A checkpoint, how it is pruned, and where it runs; neither pruner nor stages: the untouched model.

    Args:
        pretrained: Folder, name on the Hugging Face Hub, or `vtcframe:tiny`.
        pruner: A name, or {name: VtcCls, last: 3}.
        tokens: How many visual tokens stay of each sample, image or view.
        ratio: Or the fraction of them that stays.
        per: What `tokens` are meant for.
        positions: Rotary positions of what is left; the method's own if not given.
        stages: In place of a pruner and its budget: [{at: "llm:2", pruner: ..., budget: {tokens: 64}}].
        dtype: Type of the weights; "auto" is the one in which they were saved.
        attn_implementation: Attention kernel; chosen by transformers when not given.
        system_prompt: What is said to the model before every conversation, in place of the task's own.
        max_num_frames: How many frames of a video are shown at most, evenly spaced.
        device: Where the model runs; an accelerator where there is one.
        batch_size: Questions that are answered together.
    """

    pretrained: str
    pruner: Pruner | None = None
    tokens: int | None = None
    ratio: float | None = None
    per: Literal["sample", "image", "view"] = "sample"
    positions: Positions | None = None
    stages: list[Stage] | None = None
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    attn_implementation: str | None = None
    system_prompt: str | None = None
    max_num_frames: int = 32
    device: str | None = None
    batch_size: int = 1

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> "Settings":
        """Make them of what lmms-eval split model_args into. UsageError naming the key, and the nearest known one."""
        own = {key: _bare(value) for key, value in given.items()}
        options = {key.removeprefix(OPTION): own.pop(key) for key in given if key.startswith(OPTION)}
        for key in COMPONENTS & own.keys():
            own[key] = _component(key, own[key])
        hints = get_type_hints(cls)
        for key in own.keys() - hints.keys():
            raise UsageError(_unknown(key, list(hints), own.get("pruner")))
        if options:
            own["pruner"] = _with_options(own.get("pruner"), options)
        _check_options(own.get("pruner"))
        parser = Parser(prog="lmms-eval --model vtcframe")
        for field in fields(cls):
            rest = {"required": True} if field.default is MISSING else {"default": field.default}
            parser.add_argument(f"--{field.name}", type=hints[field.name], **rest)
        try:
            make = getattr(parser, "instantiate", parser.instantiate_classes)  # the older name until jsonargparse 4.49
            return cls(**make(parser.parse_object(own)))
        except (ValueError, TypeError) as error:
            raise UsageError(f"model_args: {error}") from error

    def __post_init__(self) -> None:
        for name in ("batch_size", "max_num_frames"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.system_prompt is not None and Path(self.system_prompt).is_file():
            raise ValueError(
                f"system_prompt {self.system_prompt!r} is a file, of which lmms-eval's cache sees but the name: give "
                "its text"
            )
        _ = self.plan  # what cannot be planned is told here

    @property
    def backbone(self) -> Backbone:
        """The checkpoint."""
        return Backbone(self.pretrained, self.dtype, self.attn_implementation)

    @property
    def plan(self) -> Plan | None:
        """Where it is pruned; None is the untouched model. ValueError for what does not go together."""
        about = [name for name in ("tokens", "ratio", "positions") if getattr(self, name) is not None]
        about += ["per"] if self.per != "sample" else []
        if self.stages is not None:
            if self.pruner is not None or about:
                raise ValueError(f"stages say {', '.join(['pruner', *about])} themselves: give one or the other")
            return plan_from_stages(self.stages)
        if self.pruner is None:
            if about:
                raise ValueError(f"{', '.join(about)} without a pruner: give one, for example pruner=VtcCls")
            return None
        unbounded = self.tokens is None and self.ratio is None
        if unbounded and self.per != "sample":
            raise ValueError(f"per={self.per} without tokens or ratio: give one of them")
        budget = None if unbounded else Budget(self.tokens, self.ratio, per=self.per)
        plan = plan_for(self.pruner, budget)
        if self.positions is None:
            return plan
        return plan_from_stages(
            [replace(stage, positions=self.positions) for stage in plan.stages], self.pruner, budget
        )


def _bare(value: Any) -> Any:
    """Return a text without the quotes that lmms-eval leaves around what holds commas."""
    quoted = isinstance(value, str) and len(value) > 1 and value[0] == value[-1] and value[0] in "'\""
    return value[1:-1] if quoted else value


def _unknown(key: str, known: Sequence[str], pruner: Any) -> str:
    """Say what may have been meant by a key that there is not."""
    if hasattr(GenerationConfig(), key):
        return f"model_args: {key!r} is an option of generate: give it to --gen_kwargs, which overrides the tasks' own"
    near = difflib.get_close_matches(key, known, 1)
    if key in _options(pruner):
        near = [OPTION + key]
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return (
        f"model_args: nothing is called {key!r}.{hint} There are {', '.join(known)}, and {OPTION}OPTION of the pruner"
    )


def _component(key: str, value: Any) -> Any:
    """Return what stands below a key with its short names expanded, be it YAML, parsed already, or made."""
    if isinstance(value, str):
        if value.endswith((".yaml", ".yml", ".json")):
            raise UsageError(
                f"model_args: {key}={value} is a file, of which lmms-eval's cache sees but the name: write what is in "
                "it, in braces or in the file of --config"
            )
        try:
            value = get_loader("yaml")(value)
        except yaml.YAMLError as error:
            raise UsageError(f"model_args: {key} is no YAML: {' '.join(str(error).split())}") from error
    return expand(value, get_type_hints(Settings)[key], key)


def _with_options(pruner: Any, options: Mapping[str, Any]) -> Any:
    """Add options given one by one. UsageError for those that were given already, or belong to nobody."""
    if not isinstance(pruner, dict):
        raise UsageError(f"model_args: {OPTION}{next(iter(options))} belongs to a pruner: give its name, pruner=VtcCls")
    said = pruner.get("init_args", {})
    for name in options.keys() & said.keys():
        raise UsageError(f"model_args: {OPTION}{name} is given twice: {said[name]!r} and {options[name]!r}")
    return {**pruner, "init_args": {**said, **options}}


def _options(pruner: Any) -> list[str]:
    """Return what an expanded, registered pruner has for options; nothing for what is none."""
    path = pruner.get("class_path") if isinstance(pruner, dict) else None
    for entry in entries():
        if entry.kind == "pruner" and entry.target.replace(":", ".") == path:
            return [field.name for field in fields(entry.load())]
    return []


def _check_options(pruner: Any) -> None:
    """UsageError for an option that a registered pruner does not have, with the nearest that it has."""
    if not (known := _options(pruner)):
        return
    for name in pruner.get("init_args", {}).keys() - set(known):
        near = difflib.get_close_matches(name, known, 1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        kind = pruner["class_path"].rpartition(".")[2]
        raise UsageError(f"model_args: {kind} has no option {name!r}.{hint} It has {', '.join(known)}")
