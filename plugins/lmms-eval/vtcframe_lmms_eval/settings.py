"""Options of `--model_args` of lmms-eval, checked before weights are loaded.

The response cache of lmms-eval identifies a model by its model_args. So they contain everything that answers depend on:
no option names a file whose content could change.
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

COMPONENTS = "pruner", "stages"  # keys whose values contain components
OPTION = "pruner."  # prefix of the keys of pruner options


@dataclass(frozen=True)
class Settings:
    """A checkpoint, how it is pruned, and where it runs; untouched without pruner and stages.

    Args:
        pretrained: Folder, name on the Hugging Face Hub, or `vtcframe:tiny`.
        pruner: A name, or {name: VtcCls, last: 3}.
        tokens: Number of visual tokens that are kept of each sample, image or view.
        ratio: Fraction of visual tokens that is kept, instead of `tokens`.
        per: Unit to which `tokens` applies.
        positions: Rotary positions of the remaining tokens (default: those of the method).
        stages: Stages instead of a pruner and its budget: [{at: "llm:2", pruner: ..., budget: {tokens: 64}}].
        dtype: Type of the weights; "auto" is the type in which they were saved.
        attn_implementation: Attention kernel (default: chosen by transformers).
        system_prompt: System message of every conversation, instead of that of the task.
        max_num_frames: Maximum number of frames of a video, evenly spaced.
        device: Device of the model (default: an accelerator, if there is one).
        batch_size: Number of questions that are answered together.
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
    def of(cls, model_args: Mapping[str, Any]) -> "Settings":
        """Create settings from model_args, split by lmms-eval. UsageError with the key, and the nearest known key."""
        values = {key: _unquote(value) for key, value in model_args.items()}
        options = {key.removeprefix(OPTION): values.pop(key) for key in model_args if key.startswith(OPTION)}
        for key in COMPONENTS & values.keys():
            values[key] = _component(key, values[key])
        hints = get_type_hints(cls)
        for key in values.keys() - hints.keys():
            raise UsageError(_unknown(key, list(hints), values.get("pruner")))
        if options:
            values["pruner"] = _with_options(values.get("pruner"), options)
        _check_options(values.get("pruner"))
        parser = Parser(prog="lmms-eval --model vtcframe")
        for field in fields(cls):
            rest = {"required": True} if field.default is MISSING else {"default": field.default}
            parser.add_argument(f"--{field.name}", type=hints[field.name], **rest)
        try:
            instantiate = getattr(
                parser, "instantiate", parser.instantiate_classes
            )  # the older name, before jsonargparse 4.49
            return cls(**instantiate(parser.parse_object(values)))
        except (ValueError, TypeError) as error:
            raise UsageError(f"model_args: {error}") from error

    def __post_init__(self) -> None:
        for name in ("batch_size", "max_num_frames"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.system_prompt is not None and Path(self.system_prompt).is_file():
            raise ValueError(
                f"system_prompt {self.system_prompt!r} is a file, whose content the cache of lmms-eval would not see: "
                "give its text"
            )
        _ = self.plan  # raises ValueError if there is no such plan

    @property
    def backbone(self) -> Backbone:
        """The checkpoint."""
        return Backbone(self.pretrained, self.dtype, self.attn_implementation)

    @property
    def plan(self) -> Plan | None:
        """The stages of pruning; None is the untouched model. ValueError for options that exclude each other."""
        budget_options = [name for name in ("tokens", "ratio", "positions") if getattr(self, name) is not None]
        budget_options += ["per"] if self.per != "sample" else []
        if self.stages is not None:
            if self.pruner is not None or budget_options:
                raise ValueError(
                    f"stages have their own {', '.join(['pruner', *budget_options])}: give one or the other"
                )
            return plan_from_stages(self.stages)
        if self.pruner is None:
            if budget_options:
                raise ValueError(
                    f"{', '.join(budget_options)} without a pruner: give a pruner, for example pruner=VtcCls"
                )
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


def _unquote(value: Any) -> Any:
    """Return a value without the quotes that lmms-eval keeps around values with commas."""
    quoted = isinstance(value, str) and len(value) > 1 and value[0] == value[-1] and value[0] in "'\""
    return value[1:-1] if quoted else value


def _unknown(key: str, keys: Sequence[str], pruner: Any) -> str:
    """Return the error message for an unknown key, with the nearest known key."""
    if hasattr(GenerationConfig(), key):
        return f"model_args: {key!r} is an option of generate: give it to --gen_kwargs, which overrides the tasks' own"
    near = difflib.get_close_matches(key, keys, 1)
    if key in _options(pruner):
        near = [OPTION + key]
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return f"model_args: nothing is called {key!r}.{hint} Known: {', '.join(keys)}, and {OPTION}OPTION of the pruner"


def _component(key: str, value: Any) -> Any:
    """Return the value of a key with its short names expanded; it may be YAML, parsed YAML, or an object."""
    if isinstance(value, str):
        if value.endswith((".yaml", ".yml", ".json")):
            raise UsageError(
                f"model_args: {key}={value} is a file, whose content the cache of lmms-eval would not see: write "
                "its content, in braces or in the file of --config"
            )
        try:
            value = get_loader("yaml")(value)
        except yaml.YAMLError as error:
            raise UsageError(f"model_args: {key} is no YAML: {' '.join(str(error).split())}") from error
    return expand(value, get_type_hints(Settings)[key], key)


def _with_options(pruner: Any, options: Mapping[str, Any]) -> Any:
    """Add options with keys of their own to a pruner. UsageError for duplicates, and without a pruner."""
    if not isinstance(pruner, dict):
        raise UsageError(f"model_args: {OPTION}{next(iter(options))} belongs to a pruner: give its name, pruner=VtcCls")
    init_args = pruner.get("init_args", {})
    for name in options.keys() & init_args.keys():
        raise UsageError(f"model_args: {OPTION}{name} is given twice: {init_args[name]!r} and {options[name]!r}")
    return {**pruner, "init_args": {**init_args, **options}}


def _options(pruner: Any) -> list[str]:
    """Return the options of an expanded, registered pruner; none for anything else."""
    path = pruner.get("class_path") if isinstance(pruner, dict) else None
    for entry in entries():
        if entry.kind == "pruner" and entry.target.replace(":", ".") == path:
            return [field.name for field in fields(entry.load())]
    return []


def _check_options(pruner: Any) -> None:
    """Raise UsageError for an option that a registered pruner does not have, with its nearest option."""
    if not (names := _options(pruner)):
        return
    for name in pruner.get("init_args", {}).keys() - set(names):
        near = difflib.get_close_matches(name, names, 1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        kind = pruner["class_path"].rpartition(".")[2]
        raise UsageError(f"model_args: {kind} has no option {name!r}.{hint} It has {', '.join(names)}")
