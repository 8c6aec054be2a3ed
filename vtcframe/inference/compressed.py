"""compress(model, ...): a model in hand answers with fewer visual tokens, and nothing else changes for its caller."""

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

OWN = "model", "session", "last"  # the attributes of a Compressed that are not its model's


NOT_COMPRESSED = {  # what a model has and its Compressed has not: it would do something else than was meant
    "forward": "only generate reads fewer visual tokens: call `compressed.model` for its logits",
    "generate_batch": "only generate reads fewer visual tokens: call it, or `compressed.model.generate_batch`",
    "push_to_hub": "save_pretrained writes what the compression is, not the weights: upload its file, or push "
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
    """Return an object whose `generate` lets the language model read fewer visual tokens.

    Give a pruner with `tokens` (how many stay in each sample) or `ratio` (the fraction that stays); without either
    the pruner must be adaptive, or have a schedule of its own. Or give `stages` in the order in which they act, which
    say budget and positions by themselves; `load_stages` reads them from a file. The model itself is not changed.
    Evidence about the pictures or questions themselves (a witness, their similarity) needs the model's `processor`.
    LookupError if no installed adapter knows the model, ValueError if it cannot be pruned there.
    """
    if (pruner is None) == (stages is None):
        raise ValueError("give a pruner or stages, exactly one of them")
    budget = None if tokens is None and ratio is None else Budget(tokens, ratio)
    if pruner is not None:
        return Compressed(model, plan_for(pruner, budget), processor)
    if budget is not None:
        raise ValueError("stages say their budgets themselves: give tokens or ratio with a pruner only")
    return Compressed(model, plan_from_stages(stages or ()), processor)


class Compressed:
    """A model whose `generate` reads fewer visual tokens; see `compress`.

    Every other attribute is the model's own, and is set there; its methods that return the model (`to`, `eval`, ...)
    return this object. So it can stand where a generating model is asked for, as in a pipeline of transformers.
    `forward` and the like, which are not compressed, are there at `model` only.
    """

    def __init__(self, model: nn.Module, plan: Plan, processor: Any = None) -> None:
        vars(self).update(model=model, last=None)
        self.model: Any
        self.last: Outcome | None  # of the latest generate
        if not hasattr(model, "generate"):
            raise ValueError(
                f"{type(model).__name__} generates nothing: call features(evidence, pruned) of its adapter"
            )
        self.session = Session(adapter_for(_bare(model), processor), plan)

    @property
    def adapter(self) -> Adapter:
        """The adapter that knows the model."""
        return self.session.adapter

    @property
    def plan(self) -> Plan:
        """The stages that act in `generate`."""
        assert self.session.plan is not None
        return self.session.plan

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or "model" not in vars(self):  # copy and pickle ask before there is a model
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}", name=name, obj=self)
        if name in NOT_COMPRESSED:
            raise AttributeError(f"a compressed model has no {name}: {NOT_COMPRESSED[name]}", name=name, obj=self)
        found = getattr(self.model, name)
        if getattr(found, "__self__", None) is not self.model:
            return found

        @functools.wraps(found)
        def method(*args: Any, **kwargs: Any) -> Any:
            out = found(*args, **kwargs)
            return self if out is self.model else out

        return method

    def __setattr__(self, name: str, value: Any) -> None:
        if name in OWN:
            object.__setattr__(self, name, value)
        else:  # a generation_config that is set here is to be the one that generate reads
            setattr(self.model, name, value)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """TypeError: there are no compressed logits."""
        raise TypeError(f"a compressed model is not called: {NOT_COMPRESSED['forward']}")

    def __repr__(self) -> str:
        return f"Compressed({type(self.model).__name__}, {self.plan}, {self.plan.budget})"

    def save_pretrained(self, folder: str | Path) -> Path:
        """Write what the compression is, and no weights, to vtcframe.yaml in a folder; return the file.

        `load_stages` reads it. The folder may be the checkpoint's own.
        """
        return save_plan(self.plan, folder)

    @torch.no_grad()
    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """Take what `model.generate` takes and return what it returns, the caller's own prompt in front.

        Lengths are the caller's, and so are the ids that logits processors, stopping criteria,
        `prefix_allowed_tokens_fn` and a streamer see. Hidden states, attentions and cache of a ModelOutput have the
        length that was run. Rows are padded on the left, on whatever side the caller's were. Where the budget covers
        every token the model is called untouched, and so it is for prompts of text alone, which leave no `last`.
        ValueError for what cannot work: `inputs_embeds`, `mm_encoder_outputs`, a filled cache, an assistant model,
        placeholders without pictures.
        """
        options = bind_arguments(_bare(self.model).generate, args, kwargs)
        refuse_options(options)
        if self.plan.llm:
            check_options(options, self.model.generation_config)
        inputs = {name: options.pop(name, None) for name in self.adapter.consumes}
        inputs = {name: given for name, given in inputs.items() if given is not None}
        inputs.setdefault("attention_mask", infer_mask(inputs, self.model))
        caller: CallerPrompt | None = None

        def generate(arguments: dict[str, Any]) -> Any:
            nonlocal caller
            if arguments["input_ids"] is inputs["input_ids"]:  # nothing is dropped
                return self.model.generate(**arguments, **options)
            caller = CallerPrompt(inputs["input_ids"], arguments["input_ids"].shape[1])
            return self.model.generate(**arguments, **caller.translated(options, self.model.generation_config))

        outcome = self.session.run(inputs, generate)
        self.last = None if outcome.layout is None else replace(outcome, output=None)
        return outcome.output if caller is None else caller.restored(outcome.output)


def _bare(model: Any) -> Any:
    """Return the model of transformers in a PeftModel, whose adapters lie in its layers, or a model itself.

    ValueError for prompt learning, which puts virtual tokens in front of the prompt where no column counts them.
    """
    if not hasattr(model, "get_base_model"):
        return model
    if getattr(model.active_peft_config, "is_prompt_learning", False):
        kind = model.active_peft_config.peft_type.value
        raise ValueError(f"{kind} of peft puts virtual tokens in front of the prompt: compress the model without it")
    return model.get_base_model()
