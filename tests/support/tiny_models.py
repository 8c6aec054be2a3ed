"""The tiny models and samples of the testing kit."""

import functools

import torch

from vtcframe.testing.tiny_models.other_families import BACKBONES, samples_of

CLOSE = 5e-5  # logits of some units, float32: machines round otherwise


GREEDY = {"do_sample": False, "max_new_tokens": 4}


CASES = [(family, name) for family in BACKBONES for name in samples_of(family)]


@functools.cache
def built(family, attention="sdpa"):
    return BACKBONES[family](attention)


@torch.no_grad()
def logits(model, inputs):
    return model(**inputs).logits


def apart(a, b, inputs):
    """The largest difference of logits at tokens; what stands at padding means nothing."""
    return (a - b)[inputs["attention_mask"].bool()].abs().max().item()
