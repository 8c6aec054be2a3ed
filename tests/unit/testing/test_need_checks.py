"""`check_need`: all kinds of needs pass it, and deliberately wrong ones fail with what is wrong."""

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch

from vtcframe import AttentionNeed, ClassToken, HiddenNeed, Need, Scorer, Similarity, TextTokens
from vtcframe.core.encoder_readers import ReceivedAttention
from vtcframe.core.needs import AttentionKeys, AttentionRows, HiddenStates
from vtcframe.methods.aim import AttentionPageRank
from vtcframe.methods.mctf import AttentionReceived
from vtcframe.methods.sparsevlm import RaterAttention
from vtcframe.methods.zipcache import ProbeAttention
from vtcframe.testing import check_need, check_scorer

NEEDS = [
    *(AttentionRows(query, (-1,)) for query in ("cls", "mean", "received", "head", "proxy")),
    AttentionRows("cls", (-2, -1), blocks="tower", pre_softmax=True, heads="joined"),
    AttentionRows("received", (-1,), heads="mean"),
    *(AttentionRows(query, (-1,), tower="llm") for query in ("last", "text", "after")),
    AttentionRows("text", (-1,), tower="llm", heads="mean", reduce="max"),
    AttentionRows("last", (-1,), tower="llm", divide_by_rope_prior=True),
    AttentionRows("cls", (-1,), tower="timm:vit"),
    AttentionKeys((-1,)),
    AttentionKeys((0, -1), tower="llm"),
    HiddenStates(),
    HiddenStates(1, tower="llm"),
    ClassToken(),
    TextTokens(AttentionKeys((1,), "llm")),
    TextTokens(HiddenStates(1, "llm")),
    Similarity(),
    AttentionPageRank((-1,)),
    AttentionReceived(),
    ProbeAttention((-1,), random=0.3),
    RaterAttention((-1,)),
    RaterAttention((-1,), heads="mean", divide_by_rope_prior=True),
]


@pytest.mark.parametrize("need", NEEDS, ids=str)
def test_every_kind_of_need_obeys_the_laws(need):
    check_need(need)


@dataclass(frozen=True)
class Wrong(AttentionNeed):
    """A need whose reading is a function of the call, the tokens and how often it was called."""

    layers: tuple[int, ...] = (-1,)
    kind: str = ""
    calls: ClassVar[list] = []

    def read_encoder(self, call, tokens):
        self.calls.append(1)
        received = ReceivedAttention()(call)  # [B, H, K]
        values = tokens.of_values(received)
        return {
            "": lambda: values,
            "padding": lambda: values + call.key.amax((1, 2, 3))[:, None, None],
            "class tokens stay": lambda: received,
            "dropped behind": lambda: received[..., : received.shape[2] - tokens.skip],
            "double": lambda: values.double(),
            "nan": lambda: values.log() * float("nan"),
            "batch": lambda: values - received.max(),
            "again": lambda: values + len(self.calls),
            "chunks": lambda: values + call.max_elements * 1e-6,
            "in place": lambda: values + call.key.mul_(2).sum() * 0,
            "vectors": lambda: values[..., None],
        }[self.kind]()


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("padding", "lets padding into the result"),
        ("class tokens stay", r"read \[3, 4, 14\] and not \[B, H, T\]"),
        (
            "dropped behind",
            "lets padding into|does not follow patches that change places: drop the class tokens in front",
        ),
        ("double", "read torch.float64, not float32"),
        ("nan", "read NaN or inf of a token"),
        ("batch", "different results of a view alone and in a batch"),
        ("again", "different results of the same call a second time"),
        ("chunks", "different results in smaller chunks"),
        ("in place", "changed query or key in place"),
        ("vectors", r"and not \[B, H, T\]"),
    ],
)
def test_wrong_readings_are_errors(kind, message):
    with pytest.raises(AssertionError, match=message):
        check_need(Wrong(kind=kind))


@dataclass(frozen=True)
class LeftPadding(AttentionNeed):
    layers: tuple[int, ...] = (-1,)
    tower = "llm"

    def read_llm(self, call, prompts):
        return call.attention(slice(None)).mean(2)  # rows of padding count too


@dataclass(frozen=True)
class Prepared(LeftPadding):
    @property
    def preparation(self):
        return lambda embeddings, prompts: embeddings.mean(1)


@dataclass(frozen=True)
class Listed(AttentionNeed):
    layers: list

    def read_encoder(self, call, tokens):
        return tokens.of_values(call.attention(slice(None)).mean(2))


@dataclass
class Thawed(AttentionNeed):
    layers: tuple[int, ...]


@dataclass(frozen=True)
class WrongAxes(Listed):
    axes: ClassVar[str] = "VN"


@dataclass(frozen=True)
class Nowhere(AttentionNeed):
    layers: tuple[int, ...] = (-1,)


@dataclass(frozen=True)
class NowhereInside(Nowhere):
    tower = "llm"


@dataclass(frozen=True)
class Beside(Nowhere):
    tower = "timm:vit"


@dataclass(frozen=True)
class Bare(Need):
    axes: ClassVar[str] = "VN"

    @property
    def site(self):
        return "encoder"


@dataclass(frozen=True)
class Sums(HiddenNeed):
    axes: ClassVar[str] = "VNC"

    def read_encoder(self, tokens, class_token):
        return tokens.mean(1)


@pytest.mark.parametrize(
    ("need", "message"),
    [
        (LeftPadding(), "different results of a prompt alone and in a batch that is padded on the left"),
        (Prepared(), r"its preparation returns \[P, L, ...\]"),
        (Listed([-1]), "cannot be hashed: give its fields tuples in place of lists"),
        (Thawed((-1,)), "Thawed is no frozen dataclass"),
        (WrongAxes((-1,)), "has axes 'VN': use LVHN or LVHNC for this kind of need"),
        (Listed(()), r"reads layers \(\): give a tuple of at least one number"),
        (Nowhere(), "no adapter can serve Nowhere.*read in the language model only"),
        (NowhereInside(), "no adapter can serve NowhereInside.*read in vision encoders only"),
        (Beside(), "no adapter can serve Beside.*an auxiliary encoder serves AttentionRows"),
        (Bare(), "no adapter can serve Bare.*extend AttentionNeed or HiddenNeed"),
        (AttentionRows("cls", (-1,), tower="llm"), "the queries of the language model are"),
        (Sums(), "as its axes say"),
        ("cls", "check an object that extends vtcframe.AttentionNeed or HiddenNeed, not a str"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_wrong_needs_are_errors(need, message):
    with pytest.raises(AssertionError, match=message):
        check_need(need)


def test_check_scorer_refuses_a_need_that_no_adapter_serves():
    @dataclass(frozen=True)
    class Asks(Scorer):
        need: Need

        @property
        def needs(self):
            return (self.need,)

        def __call__(self, evidence):
            return torch.zeros(1, *evidence.layout.column.shape)

    check_scorer(Asks(AttentionRows("proxy", (-1,))))
    with pytest.raises(AssertionError, match=r"needs Nowhere.*, which no adapter can serve: .*language model only"):
        check_scorer(Asks(Nowhere()))
