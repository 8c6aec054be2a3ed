"""compress(model, ...): a loaded model generates with fewer visual tokens, and nothing else changes for its caller."""

import functools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vtcframe.adapters.base import Adapter, adapter_for
from vtcframe.config.plan_file import save_plan
from vtcframe.core.budget import Budget
from vtcframe.core.stages import Plan, Pruner, Stage, plan_for, plan_from_stages
from vtcframe.inference.checks import check_options
from vtcframe.inference.generate_call import CallerPrompt, bind_arguments, infer_mask, refuse_options
from vtcframe.inference.outcome import Outcome
from vtcframe.inference.session import Session

ATTRIBUTES = "model", "session", "last"  # attributes of a Compressed itself; others belong to its model


NOT_COMPRESSED = {  # attributes of a model that its Compressed lacks, as they would not be compressed -> what to use
    "forward": "only generate prunes visual tokens: call `compressed.model` for its logits",
    "generate_batch": "only generate prunes visual tokens: call it, or `compressed.model.generate_batch`",
    "push_to_hub": "save_pretrained writes the plan of the compression, not the weights: upload its file, or push "
    "`compressed.model`",
}


def compress(
    model: nn.Module,
    pruner: Pruner | None = None,
    *,
    tokens: int | None = None,
    ratio: float | None = None,
    stages: Sequence[Stage] | None = None,
    processor: Any = None,
) -> "Compressed":
    """Return an object whose `generate` gives the language model fewer visual tokens. The model itself is not changed.

    Give a pruner with `tokens` (how many are kept in each sample) or `ratio` (the fraction that is kept); without
    either the pruner must be adaptive or have its own schedule. Or give `stages` in the order in which they act, each
    with budget and positions; `load_stages` reads them from a file. The `processor` of the model is required for
    evidence about the original pictures or the questions (auxiliary encoders, similarity). LookupError if no installed
    adapter matches the model, ValueError if it cannot be pruned by these stages.
    """
    if (pruner is None) == (stages is None):
        raise ValueError("give a pruner or stages, exactly one of them")
    budget = None if tokens is None and ratio is None else Budget(tokens, ratio)
    if pruner is not None:
        return Compressed(model, plan_for(pruner, budget), processor)
    if budget is not None:
        raise ValueError("stages have their own budgets: give tokens or ratio with a pruner only")
    return Compressed(model, plan_from_stages(stages or ()), processor)


class Compressed:
    """A model whose `generate` prunes visual tokens; see `compress`.

    Every other attribute is read from and set on the model; methods that return the model (`to`, `eval`, ...) return
    this object. So it can replace a generating model, for example in a pipeline of transformers. `forward` and others
    that would not be compressed are attributes of `model` only.
    """

    def __init__(self, model: nn.Module, plan: Plan, processor: Any = None) -> None:
        vars(self).update(model=model, last=None)
        self.model: Any
        self.last: Outcome | None  # outcome of the latest `generate`
        if not hasattr(model, "generate"):
            raise ValueError(
                f"{type(model).__name__} generates nothing: call features(evidence, pruned) of its adapter"
            )
        self.session = Session(adapter_for(_bare(model), processor), plan)

    @property
    def adapter(self) -> Adapter:
        """The adapter of the model."""
        return self.session.adapter

    @property
    def plan(self) -> Plan:
        """The stages that act in `generate`."""
        assert self.session.plan is not None
        return self.session.plan

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or "model" not in vars(self):  # copy and pickle read attributes before `model` is set
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}", name=name, obj=self)
        if name in NOT_COMPRESSED:
            raise AttributeError(f"a compressed model has no {name}: {NOT_COMPRESSED[name]}", name=name, obj=self)
        attribute = getattr(self.model, name)
        if getattr(attribute, "__self__", None) is not self.model:
            return attribute

        @functools.wraps(attribute)
        def method(*args: Any, **kwargs: Any) -> Any:
            out = attribute(*args, **kwargs)
            return self if out is self.model else out

        return method

    def __setattr__(self, name: str, value: Any) -> None:
        if name in ATTRIBUTES:
            object.__setattr__(self, name, value)
        else:  # for example a generation_config, which generate reads from the model
            setattr(self.model, name, value)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Raise TypeError: there are no compressed logits."""
        raise TypeError(f"a compressed model cannot be called: {NOT_COMPRESSED['forward']}")

    def __repr__(self) -> str:
        return f"Compressed({type(self.model).__name__}, {self.plan}, {self.plan.budget})"

    def save_pretrained(self, folder: str | Path) -> Path:
        """Write the plan of the compression, without weights, to vtcframe.yaml in a folder; return the file.

        `load_stages` reads it. The folder may be that of the checkpoint.
        """
        return save_plan(self.plan, folder)

    @torch.no_grad()
    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """Generate with pruned visual tokens: arguments and result are those of `model.generate`.

        The result starts with the original prompt. Lengths refer to it, and logits processors, stopping criteria,
        `prefix_allowed_tokens_fn` and streamers get its ids. Hidden states, attentions and KV cache of a ModelOutput
        have the pruned length. Internally rows are padded on the left, whatever the padding of the inputs. If the
        budget covers every token, and for prompts without pictures, the model is called untouched; the latter set
        `last` to None. ValueError for `inputs_embeds`, `mm_encoder_outputs`, a filled cache, an assistant model, and
        placeholders without pictures.
        """
        options = bind_arguments(_bare(self.model).generate, args, kwargs)
        refuse_options(options)
        if self.plan.llm:
            check_options(options, self.model.generation_config)
        inputs = {name: options.pop(name, None) for name in self.adapter.consumes}
        inputs = {name: value for name, value in inputs.items() if value is not None}
        inputs.setdefault("attention_mask", infer_mask(inputs, self.model))
        caller: CallerPrompt | None = None

        def generate(arguments: dict[str, Any]) -> Any:
            nonlocal caller
            if arguments["input_ids"] is inputs["input_ids"]:  # nothing is dropped
                return self.model.generate(**arguments, **options)
            caller = CallerPrompt(inputs["input_ids"], arguments["input_ids"].shape[1])
            return self.model.generate(**arguments, **caller.translate_options(options, self.model.generation_config))

        outcome = self.session.run(inputs, generate)
        self.last = None if outcome.layout is None else replace(outcome, output=None)
        return outcome.output if caller is None else caller.restore(outcome.output)


def _bare(model: Any) -> Any:
    """Return the model of transformers inside a PeftModel, whose adapters are in its layers, or the model itself.

    ValueError for prompt learning, whose virtual tokens in front of the prompt have no column.
    """
    if not hasattr(model, "get_base_model"):
        return model
    if getattr(model.active_peft_config, "is_prompt_learning", False):
        kind = model.active_peft_config.peft_type.value
        raise ValueError(f"{kind} of peft puts virtual tokens in front of the prompt: compress the model without it")
    return model.get_base_model()
