"""Float64 models are computed in float64 throughout, and casts by other code are unchanged."""

import pytest
import torch

from support.models import backbone, exact_backbone
from vtcframe.testing.laws.adapters import inputs_for
from vtcframe.testing.laws.closeness import float64_throughout, relative_distance
from vtcframe.testing.tiny_models.samples import SAMPLES

RAGGED = SAMPLES["ragged several"]


@pytest.mark.parametrize("family", ["llava", "qwen2_vl", "glm4v", "gemma3"])
@torch.no_grad()
def test_kernels_agree_to_the_last_bits_only_where_no_number_is_rounded_to_float32(family):
    (sdpa, processor), (eager, _) = exact_backbone(family), exact_backbone(family, "eager")
    inputs = inputs_for(sdpa, processor, RAGGED)
    real = inputs["attention_mask"].bool()
    with float64_throughout(sdpa):
        exact = [model(**inputs).logits[real] for model in (sdpa, eager)]
    assert relative_distance(*exact) < 1e-12
    assert relative_distance(sdpa(**inputs).logits[real], exact[0]) > 1e-9
    assert eager(**inputs).logits[real].isnan().any()


def test_casts_by_other_code_and_other_models_are_untouched():
    x = torch.ones(2, dtype=torch.float64)
    with float64_throughout(exact_backbone("llava")[0]):
        assert x.float().dtype == x.to(torch.float32).dtype == x.softmax(0, dtype=torch.float32).dtype == torch.float32
    model, processor = backbone("llava")
    with torch.no_grad(), float64_throughout(model):
        assert model(**inputs_for(model, processor, RAGGED)).logits.dtype == torch.float32
