"""Evidence of the LLaVA adapters."""

from support.models import backbone
from vtcframe import AttentionRows, adapter_for
from vtcframe.testing import make_inputs
from vtcframe.testing.tiny_models.llava_families import SAMPLES

CLS = AttentionRows("cls", (-3, -2, -1))


def observed(family, samples="ragged several", needs=(), **options):
    model, processor = backbone(family)
    inputs = make_inputs(processor, SAMPLES[samples])
    return adapter_for(model).observe(inputs, needs, **options), inputs, model
