import math

import pytest
import torch
from vtcframe import Even, Evidence, KernelCall, Mean, Pipeline, TopK, compress
from vtcframe.testing import check_need, check_scorer, make_evidence, make_inputs, tiny_llava, tiny_qwen2_5_vl
from vtcframe.testing.tiny_models.llava_families import SAMPLES

from vtcframe_entropy.scorers import AttentionEntropy, FocusedAttention, entropy


@pytest.mark.parametrize("tower", ["vision", "llm"])
def test_the_need_and_the_scorer_obey_the_laws(tower):
    check_need(AttentionEntropy((-1,), tower))
    check_scorer(FocusedAttention(tower=tower))


def test_equal_attention_to_k_keys_has_the_entropy_log_k():
    call = KernelCall(torch.zeros(1, 2, 5, 4), torch.randn(1, 2, 5, 4), None, 1.0, True, None)  # row n sees n + 1 keys
    expected = torch.tensor([math.log(n + 1) for n in range(5)])
    torch.testing.assert_close(entropy(call), expected.expand(1, 2, 5))


@pytest.mark.parametrize("build", [tiny_llava, tiny_qwen2_5_vl])
def test_a_model_answers_with_the_most_focused_tokens(build):
    model, processor = build()
    pruner = Pipeline((FocusedAttention(),), Mean(), Even(), TopK())
    compressed = compress(model, pruner, tokens=4)
    compressed.generate(**make_inputs(processor, SAMPLES["one"]), max_new_tokens=2, do_sample=False)
    assert compressed.last is not None
    assert compressed.last.tokens_after.tolist() == [4]


def test_evidence_with_the_need_is_saved_and_loaded(tmp_path):
    evidence = make_evidence(FocusedAttention().needs)
    evidence.save(tmp_path / "evidence.safetensors")
    loaded = Evidence.load(tmp_path / "evidence.safetensors")
    assert torch.equal(FocusedAttention()(loaded), FocusedAttention()(evidence))
