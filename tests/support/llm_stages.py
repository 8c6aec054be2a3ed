"""What several tests of stages inside the language model share."""

import torch

from support.models import backbone
from vtcframe import Budget, Pipeline
from vtcframe.adapters.base import adapter_for
from vtcframe.components.allocators import Even
from vtcframe.components.ensemblers import Mean, RankFusion
from vtcframe.components.scorers import ClsAttention, Random, TextAttention
from vtcframe.components.selectors import TopK
from vtcframe.core.stages import Pruner, Stage, plan_from_stages
from vtcframe.methods.sparsevlm import TextRaters
from vtcframe.ops.compose import keep_all
from vtcframe.testing.laws.adapters import inputs_for, left_padded
from vtcframe.testing.laws.llm import prepare
from vtcframe.testing.tiny_models.samples import SAMPLES

GREEDY = {"do_sample": False, "max_new_tokens": 4}


def ranked(*scorers, across="sample"):
    return Pipeline(scorers, RankFusion() if len(scorers) > 1 else Mean(), Even(), TopK(), across=across)


def at(layer, *scorers, tokens=2, **options):
    return Stage(f"llm:{layer}", ranked(*scorers), Budget(tokens), **options)


BEFORE = Stage("projector", ranked(TextAttention(1)), Budget(tokens=4))


LAYOUTS = {
    "FastV": [at(2, TextAttention(-1))],
    "ahead, then behind": [at(2, TextAttention(2), tokens=4), at(3, TextAttention(-1, "text"))],
    "probe, then inside": [BEFORE, at(3, TextAttention(-1, "after", reduce="max"))],
    "two signals": [at(2, ClsAttention(1, "proxy"), TextRaters())],
    "compact": [at(2, TextAttention(-1), tokens=3), at(3, TextAttention(-1), positions="compact")],
    "compact first": [at(2, TextAttention(-1), tokens=3, positions="compact"), at(3, TextAttention(-1))],
    "forgetting": [at(2, TextAttention(-1), tokens=3, forget=0), at(3, Random(1), forget=1)],
}


# Twins: what stages are shown, against the eager model's own matrices, in plain Python


class Keeper(Pruner):
    """Keeps all tokens and records the evidence."""

    def __init__(self, *needs):
        self.read_needs = needs

    @property
    def needs(self):
        return self.read_needs

    def __call__(self, evidence, budget=None):
        self.observed = evidence
        return keep_all(evidence)


def shown(family, needs, layer=2, samples="ragged several", attention="sdpa"):
    """Evidence at "llm:`layer`", and the eager model's own outputs on the same prompts, untouched."""
    model, processor = backbone(family, attention)
    inputs, keeper = inputs_for(model, processor, SAMPLES[samples]), Keeper(*needs)
    adapter = adapter_for(model)
    passage = prepare(adapter, inputs, plan_from_stages([Stage(f"llm:{layer}", keeper)]))
    with passage:
        model.generate(**passage.generate_kwargs, max_new_tokens=1)
    eager, _ = backbone(family, "eager")
    states, hook = {}, []
    for i, block in enumerate(adapter_for(eager).llm_layers()):
        hook.append(block.register_forward_hook(lambda _, __, out, i=i: states.__setitem__(i, out)))
    with torch.no_grad():
        out = eager(**left_padded(eager, inputs), output_attentions=True, use_cache=False)
    for one in hook:
        one.remove()
    return keeper.observed, out.attentions, states, left_padded(eager, inputs), adapter
