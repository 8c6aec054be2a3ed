"""Session: runs a plan on a batch, in the steps arrange, encode, prune, splice and generate; counts and times them.

`compress`, `vtcframe predict`, the lmms-eval model, `vtcframe bench` and the laws all run plans through `Session`.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from vtcframe.adapters.arrangement import Arrangement
from vtcframe.adapters.base import Adapter, EncoderAdapter
from vtcframe.adapters.prompt import Prompt
from vtcframe.core.evidence import Evidence
from vtcframe.core.need_bases import Need
from vtcframe.core.pruned import Pruned
from vtcframe.core.stages import Plan
from vtcframe.hooks.llm import LlmStages
from vtcframe.inference.checks import check_language_model, check_sites
from vtcframe.inference.kv_cache import kv_bytes
from vtcframe.inference.outcome import Outcome
from vtcframe.inference.stopwatch import Stopwatch
from vtcframe.ops.compose import compose_prunings, keep_all

Inputs = Mapping[str, Any]  # the output of a processor
Generate = Callable[[dict[str, Any]], Any]  # keyword arguments of `generate` of the model -> its return value


class Meter(Protocol):
    """Measures the steps of a run."""

    def lap(self, name: str) -> None:
        """End the step `name`."""

    @property
    def seconds(self) -> Mapping[str, float]:
        """Seconds of each step."""
        ...


@dataclass(frozen=True)
class EncodedBatch:
    """Evidence of a batch after a plan's stages inside the encoder."""

    evidence: Evidence  # evidence of the remaining tokens
    pruned: Pruned | None  # the remaining tokens in the layout of the arrangement; None without stages in the encoder


def encode_batch(
    adapter: EncoderAdapter, plan: Plan, inputs: Inputs, arrangement: Arrangement, needs: Sequence[Need]
) -> EncodedBatch:
    """Encode the pictures of a batch with the stages of a plan inside the encoder; gather `needs` of the rest."""
    if plan.encoder:
        return EncodedBatch(*adapter.encode_with_stages(inputs, arrangement, needs, plan.encoder))
    return EncodedBatch(adapter.encode(inputs, arrangement, needs), None)


def prune_batch(plan: Plan, encoded: EncodedBatch) -> tuple[Pruned, Evidence]:
    """Prune a batch before the language model.

    Return the tokens for the language model, in the layout of the arrangement, and the evidence about them that stages
    inside the language model use.
    """
    evidence = encoded.evidence
    if plan.projector is None:
        return encoded.pruned or keep_all(evidence), evidence
    pruned = plan.projector.act(evidence)
    if not plan.llm:
        evidence = replace(evidence, readings={}, deepstack=None)  # no later stage uses it
    remaining = evidence.restrict_to(pruned)
    return pruned if encoded.pruned is None else compose_prunings(encoded.pruned, pruned), remaining


class PrunedGeneration:
    """A batch that is pruned and spliced, before the language model runs.

    Call `generate(**generate_kwargs)` of the untouched model inside `with`, where the stages of the plan inside the
    language model act. Prepare a new object for every call: `generate` changes its arguments.
    """

    def __init__(
        self,
        adapter: Adapter,
        plan: Plan,
        spliced: tuple[dict[str, Any], Tensor],
        pruned: Pruned,
        remaining: Evidence,
    ) -> None:
        """`spliced` is the result of `splice_with_columns` for `pruned`; `remaining` is the evidence of its tokens."""
        self._spliced = pruned
        self.generate_kwargs, column = spliced
        blocks = adapter.blocks(self.generate_kwargs)
        self.stages = LlmStages(adapter.decoder(), remaining, column, plan.llm, (), blocks)

    def __enter__(self) -> "PrunedGeneration":
        self.stages.__enter__()
        return self

    def __exit__(self, *exception: Any) -> None:
        self.stages.__exit__(*exception)

    @property
    def pruned(self) -> Pruned:
        """The tokens that remain after all stages, in the layout of the arrangement; complete after the `with`."""
        return compose_prunings(self._spliced, self.stages.pruned) if self.stages.stages else self._spliced


class Session:
    """Runs batches of a model under a plan, or with every visual token without a plan.

    ValueError if the adapter has no language model or cannot run the plan. `run` does everything. Callers that share an
    encoding between plans, or that handle the errors of each step separately, call the steps `arrange`, `encode`,
    `prepare` and `generate`.
    """

    def __init__(self, adapter: Adapter, plan: Plan | None = None) -> None:
        check_language_model(adapter)
        if plan is not None:
            check_sites(adapter, plan)
        self.adapter = adapter
        self.plan = plan

    @torch.no_grad()
    def run(
        self,
        inputs: Inputs,
        generate: Generate,
        *,
        ids: Sequence[object] = (),
        questions: Sequence[str] = (),
        meter: Meter | None = None,
    ) -> Outcome:
        """Run a batch. `generate` is called once, with keyword arguments for `generate` of the model.

        `ids`, one for each sample, seed everything random. Auxiliary encoders compare pictures with `questions`, by
        default with the prompts. `meter` measures the steps, by default a `Stopwatch`. A batch without pictures, and a
        batch whose budget covers every token, run untouched.
        """
        prompt = self.adapter.prompt(inputs)
        meter = meter or self.stopwatch(inputs)
        if not self.has_pictures(inputs, prompt):
            return self.generate(inputs, generate, None, None, meter)
        arrangement = self.arrange(inputs, ids, questions, prompt)
        meter.lap("arrange")
        if not self.prunes(arrangement):
            return self.generate(inputs, generate, arrangement, None, meter)
        encoded = self.encode(inputs, arrangement)
        meter.lap("encode")
        prepared = self.prepare(inputs, arrangement, encoded, meter)
        return self.generate(inputs, generate, arrangement, prepared, meter)

    def stopwatch(self, inputs: Inputs) -> Stopwatch:
        """Return a stopwatch for the device of a batch."""
        return Stopwatch(inputs["input_ids"].device)

    def has_pictures(self, inputs: Inputs, prompt: Prompt) -> bool:
        """Whether a batch has placeholders or pixels; `arrange` raises ValueError if it has only one of them."""
        has_pixels = any(name.startswith("pixel_values") and inputs[name] is not None for name in inputs)
        return has_pixels or bool(prompt.visual.any())

    def arrange(
        self,
        inputs: Inputs,
        ids: Sequence[object] = (),
        questions: Sequence[str] = (),
        prompt: Prompt | None = None,
    ) -> Arrangement:
        """Lay out the visual tokens of a batch (see `EncoderAdapter.arrange`)."""
        arrangement = self.adapter.arrange(inputs, ids, prompt=prompt)
        return replace(arrangement, questions=tuple(questions)) if questions else arrangement

    def prunes(self, arrangement: Arrangement) -> bool:
        """Whether the plan drops any token of a batch."""
        return self.plan is not None and not self.plan.covers(arrangement.layout)

    @torch.no_grad()
    def encode(self, inputs: Inputs, arrangement: Arrangement, needs: Iterable[Need] | None = None) -> EncodedBatch:
        """Encode the pictures with the stages of the plan inside the encoder.

        `needs` are gathered of the remaining tokens; by default those of the plan. Plans with the same stages inside
        the encoder can share an encoding that gathers the needs of all of them. ValueError without a plan.
        """
        plan = self._plan()
        return encode_batch(self.adapter, plan, inputs, arrangement, plan.needs if needs is None else tuple(needs))

    @torch.no_grad()
    def prepare(
        self, inputs: Inputs, arrangement: Arrangement, encoded: EncodedBatch, meter: Meter | None = None
    ) -> PrunedGeneration:
        """Prune before the language model and splice the remaining tokens into prompts. ValueError without a plan."""
        plan = self._plan()
        pruned, remaining = prune_batch(plan, encoded)
        if meter is not None:
            meter.lap("prune")
        spliced = self.adapter.splice_with_columns(
            inputs, encoded.evidence, pruned, plan.positions, prompt=arrangement.prompt
        )
        prepared = PrunedGeneration(self.adapter, plan, spliced, pruned, remaining)
        if meter is not None:
            meter.lap("splice")
        return prepared

    def generate(
        self,
        inputs: Inputs,
        generate: Generate,
        arrangement: Arrangement | None,
        prepared: PrunedGeneration | None,
        meter: Meter | None = None,
    ) -> Outcome:
        """Generate with the pruned prompts of `prepared`, or untouched if it is None, and count tokens.

        `arrangement` is None for a batch without pictures.
        """
        meter = meter or self.stopwatch(inputs)
        if prepared is None:
            output = generate(dict(inputs))
        else:
            with prepared:
                output = generate(prepared.generate_kwargs)
        meter.lap("generate")
        return self._count(inputs, arrangement, prepared, output, meter)

    def _count(
        self,
        inputs: Inputs,
        arrangement: Arrangement | None,
        prepared: PrunedGeneration | None,
        output: Any,
        meter: Meter,
    ) -> Outcome:
        prompt = self.adapter.prompt(inputs) if arrangement is None else arrangement.prompt
        decoder = self.adapter.decoder()
        depth = len(self.adapter.llm_layers())
        lengths = prompt.real.sum(1)
        before = torch.zeros_like(lengths) if arrangement is None else arrangement.layout.untouched
        structural = prompt.visual.sum(1) - before if arrangement is not None else torch.zeros_like(lengths)
        bytes_before = kv_bytes(decoder, _every_layer(lengths, depth))
        outcome = Outcome(
            output=output,
            layout=None if arrangement is None else arrangement.layout,
            pruned=None,
            tokens_before=before,
            tokens_after=before,
            structural_before=structural,
            structural_after=structural,
            tokens_per_layer=_every_layer(before, depth),
            kv_bytes=bytes_before,
            kv_bytes_before=bytes_before,
            seconds=meter.seconds,
        )
        if prepared is None:
            return outcome
        pruned = prepared.pruned
        stages = prepared.stages
        return replace(
            outcome,
            pruned=pruned,
            tokens_after=pruned.total,
            structural_after=stages.structural,
            tokens_per_layer=stages.tokens_per_layer,
            kv_bytes=kv_bytes(decoder, stages.cached_tokens),
        )

    def _plan(self) -> Plan:
        if self.plan is None:
            raise ValueError("this session has no plan, so there is nothing to prune: call `run`")
        return self.plan


def _every_layer(counts: Tensor, depth: int) -> Tensor:
    """[P] -> [P, layers]: the same count in each layer."""
    return counts[:, None].expand(-1, depth)
