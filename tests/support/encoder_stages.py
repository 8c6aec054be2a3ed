"""Stages inside vision encoders, and ragged views of their tokens."""

import math

import torch

from support.models import backbone
from vtcframe import Budget, Even, Mean, Pipeline, Stage, TopK, adapter_for
from vtcframe.components.scorers import Random
from vtcframe.core.token_merging import EncoderEvidence
from vtcframe.methods.diffrate import DiffRate
from vtcframe.methods.evit import EVit
from vtcframe.methods.mctf import Mctf
from vtcframe.methods.tome import ToMe
from vtcframe.testing import make_evidence, make_inputs
from vtcframe.testing.tiny_models.llava_families import SAMPLES

GREEDY = {"do_sample": False, "max_new_tokens": 5}


OPENED = ("llava", "video_llava")


BLOCKS = 3  # of four feed


METHODS = (EVit((0, 1, 2)), ToMe(blocks=(0, 1, 2)), Mctf(blocks=(0, 1, 2)), DiffRate(blocks=(0, 2)))


RANDOM = Pipeline((Random(3),), Mean(), Even(), TopK())


def at(*sites, pruner=RANDOM, tokens=6):
    return [Stage(site, pruner, Budget(tokens)) for site in sites]


def within(adapter, inputs, stages, needs=(), ids=()):
    return adapter.encode_with_stages(inputs, adapter.arrange(inputs, ids), needs, tuple(stages))


# The mechanism, on transformers' towers


def taken(family, name="ragged several", attention="sdpa"):
    model, processor = backbone(family, attention)
    return model, adapter_for(model), make_inputs(processor, SAMPLES[name])


# Steps beside twins, on ragged views with poison at padding

GRIDS = {1: [(1, 7), (2, 6)], 2: [(1, 1)], 3: [(3, 5), (1, 2)]}


def drawn(needs, seed, levels=0, classes=0):
    """Evidence of ragged views; with `levels` full of ties and duplicates. Sizes are whole numbers."""
    evidence = make_evidence(needs, GRIDS, channels=5)
    generator = torch.Generator().manual_seed(seed)
    valid = evidence.layout.valid

    def draw(x, axes):
        fresh = torch.rand(x.shape, generator=generator) + 0.05
        if levels:
            fresh = (fresh * levels).ceil() / levels
        if levels and "C" in axes:  # of few directions, along axes: cosines are 0 or 1 without rounding
            one = torch.randint(
                levels, x.movedim(axes.index("H"), 0).shape[1:-1] if "H" in axes else x.shape[:-1], generator=generator
            )
            fresh = torch.nn.functional.one_hot(one, x.shape[-1]).float()
            fresh = fresh.unsqueeze(axes.index("H")).expand(x.shape) if "H" in axes else fresh
        real = valid if "N" in axes else torch.ones_like(valid[:, :1])
        at = axes.index("V"), axes.index("N")
        moved = torch.where(
            real.view(*real.shape, *[1] * (x.ndim - 2)), fresh.movedim(at, (0, 1)), x.movedim(at, (0, 1))
        )
        return moved.movedim((0, 1), at)

    found = {need: draw(evidence[need], need.axes) for need in needs}
    size = torch.randint(1, 4, valid.shape, generator=generator).float().masked_fill(~valid, 1)
    return EncoderEvidence(draw(evidence.tokens, "VNC"), evidence.layout, found, size=size, classes=classes)


def cos(a, b):
    norm = math.sqrt(sum(x * x for x in a)) * math.sqrt(sum(x * x for x in b))
    return sum(x * y for x, y in zip(a, b, strict=True)) / norm if norm else 0.0


def best_of(pairs, i, others):
    """The first of the best partners, up to rounding."""
    top = max(pairs[i][j] for j in others)
    return next(j for j in others if pairs[i][j] >= top - 1e-6), top


def ranked(members, best):
    """Descending, of equals (up to rounding) the first."""
    rest, order = list(members), []
    while rest:
        top = max(best[i] for i in rest)
        order.append(next(i for i in rest if best[i] >= top - 1e-6))
        rest.remove(order[-1])
    return order


def tome_by_hand(keys, r, classes):
    """Which tokens lead, in their order, and the leader of each."""
    n = len(keys)
    even = [i for i in range(n) if (i + classes) % 2 == 0]
    odd = [i for i in range(n) if (i + classes) % 2]
    r = min(r, n // 2)
    if not r:
        return list(range(n)), list(range(n))
    pairs = {i: {j: cos(keys[i], keys[j]) for j in odd} for i in even}
    to, best = {}, {}
    for i in even:
        to[i], best[i] = best_of(pairs, i, odd)
    order = ranked(even, best)
    leader = [to[i] if i in order[:r] else i for i in range(n)]
    stay = sorted(order[r:]) if classes else order[r:]
    return stay + odd, leader
