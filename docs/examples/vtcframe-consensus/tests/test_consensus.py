from vtcframe import Even, Mean, Pipeline, TopK, compress
from vtcframe.testing import check_pruner, check_scorer, make_evidence, make_inputs, tiny_llava
from vtcframe.testing.tiny_models.llava_families import SAMPLES

from vtcframe_consensus.methods import ConsensusPruner
from vtcframe_consensus.scorers import Consensus


def test_the_scorer_obeys_the_laws():
    check_scorer(Consensus())


def test_both_pruners_obey_the_laws():
    check_pruner(Pipeline((Consensus(),), Mean(), Even(), TopK()))
    check_pruner(ConsensusPruner())


def test_a_token_that_one_block_overlooks_scores_nothing():
    (need,) = Consensus().needs
    evidence = make_evidence([need])
    evidence[need][1, 0, :, 5] = 0  # block -2, first view, every head, token 5
    scores = Consensus()(evidence)
    assert scores[0, 0, 5] == 0
    assert scores[0, 0, 6] > 0


def test_a_model_answers_with_fewer_tokens():
    model, processor = tiny_llava()
    compressed = compress(model, ConsensusPruner(agreed=0.5), tokens=4)
    compressed.generate(**make_inputs(processor, SAMPLES["one"]), max_new_tokens=2, do_sample=False)
    assert compressed.last is not None
    assert compressed.last.tokens_after.tolist() == [4]
