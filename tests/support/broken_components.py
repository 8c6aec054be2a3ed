"""A third-party distribution whose components break their contract, each in one way."""

from support.models import backbone
from vtcframe import Budget, Stage, compress
from vtcframe.testing import make_inputs
from vtcframe.testing.tiny_models.llava_families import SAMPLES

HEAD = """
from dataclasses import dataclass, replace
import torch
from vtcframe import *
from vtcframe.data.benchmarks.base import Benchmark
from vtcframe.core.pipeline import gather
from vtcframe.data.transforms import Transform
"""


CALLS = {  # kind -> how its `__call__` begins
    "Scorer": "evidence",
    "Ensembler": "maps, layout",
    "Allocator": "scores, budget, evidence",
    "Selector": "scores, quota, evidence",
    "Merger": "kept, slots, scores, evidence",
    "Pruner": "evidence, budget=None",
}


FINE = {  # what the kind would have to return
    "Scorer": "evidence.tokens.float().norm(dim=-1)[None]",
    "Ensembler": "maps[0][0]",
    "Allocator": "budget",
    "Selector": "TopK()(scores, quota, evidence)",
    "Merger": "gather(kept, kept.sum(1), scores, evidence)",
    "Pruner": "RandomPruner()(evidence, budget)",
}


BROKEN = {  # class -> kind, body of its call, what is said of it
    "GivesNone": ("Scorer", "None", "returned None, and no tensor of scores [S, V, N]"),
    "GivesList": ("Scorer", "[1.0]", "returned a list, and no tensor"),
    "GivesClass": ("Scorer", "torch.Tensor", "returned the class Tensor itself"),
    "OneMap": (
        "Scorer",
        "{fine}[0]",
        "returned scores [S, V, N] of shape [1, 16], and not [any, 1, 16]: give one map as",
    ),
    "OtherShape": ("Scorer", "{fine}[..., 1:]", "of shape [1, 1, 15], and not [any, 1, 16]"),
    "Half": ("Scorer", "{fine}.half()", "of type float16, and not float32: end with .float()"),
    "Bools": ("Scorer", "{fine} > 0", "of type bool, and not float32"),
    "Ints": ("Scorer", "{fine}.long()", "of type int64, and not float32"),
    "Elsewhere": ("Scorer", "{fine}.to('meta')", "on meta, and not on cpu: make new tensors there"),
    "NotANumber": ("Scorer", "{fine} * torch.nan", "scores of samples [0] are not finite: {name}() of broken 1.2"),
    "Infinite": ("Scorer", "{fine} / 0", "scores of samples [0] are not finite: {name}() of broken 1.2"),
    "Ungathered": ("Scorer", "evidence[AttentionRows('cls', (-1,))]", "raised LookupError: AttentionRows(query='cls'"),
    "BadKey": ("Scorer", "{{}}['x']", "raised KeyError: 'x' (broken_parts, line "),
    "BadIndex": ("Scorer", "[][3]", "raised IndexError: list index out of range (broken_parts, line "),
    "Asserts": ("Scorer", "(_ for _ in ()).throw(AssertionError)", "raised AssertionError (broken_parts, line "),
    "Refuses": ("Scorer", "int('a')", "raised ValueError: invalid literal for int()"),
    "Multiplies": ("Scorer", "torch.ones(2, 3) @ torch.ones(2, 3)", "mat1 and mat2 shapes cannot be multiplied"),
    "Own": ("Scorer", "(_ for _ in ()).throw(Astray('way'))", "raised Astray: way (broken_parts, line "),
    "NoEnsemble": ("Ensembler", "maps[0]", "returned scores [V, N] of shape [1, 1, 16], and not [1, 16]"),
    "BadEnsemble": ("Ensembler", "maps[7]", "raised IndexError"),
    "Fused": ("Ensembler", "maps[0][0] / 0", "scores of samples [0] are not finite: {name}() of broken 1.2"),
    "Floats": ("Allocator", "budget.float()", "of type float32, and not int64: end with .long()"),
    "Negative": ("Allocator", "-budget", "returned quotas below 0: [-4]"),
    "NoQuota": ("Allocator", "budget.sum()", "returned quotas [V] of shape [], and not [1]"),
    "Numbers": ("Selector", "{fine}.long()", "returned a mask [V, N] of type int64, and not bool: end with .bool()"),
    "TooMany": ("Selector", "TopK()(scores, quota + 1, evidence)", "kept 5 tokens of row 0 where the quota is 4"),
    "Nothing": ("Selector", "None", "returned None, and no tensor of a mask [V, N]"),
    "NoMerge": ("Merger", "evidence.tokens", "returned a Tensor, and not a Pruned"),
    "NoPruned": ("Pruner", "None", "returned None, and not a Pruned"),
    "OtherWidth": (
        "Pruner",
        "replace({fine}, tokens=evidence.tokens[:, :4, :3])",
        "returned tokens [V, M, D] of shape",
    ),
    "FloatPlaces": ("Pruner", "replace({fine}, place={fine}.place.float())", "places [V, M] of type float32, and not"),
    "Fields": ("Pruner", "Pruned(None, None, None, None)", "returned a Pruned whose layout is None: give that of"),
    "Attributes": ("Pruner", "evidence.token", "raised AttributeError: 'Evidence' object has no attribute 'token'"),
}


BARE = """
class Astray(Exception):
    pass

@dataclass(frozen=True)
class NoArgument(Scorer):
    def __call__(self):
        return None

@dataclass(frozen=True)
class ManyArguments(Selector):
    def __call__(self, scores, quota, evidence, seed):
        return None

@dataclass(frozen=True)
class ManySlots(Merger):
    def slots(self, quota, layout):
        return quota + 1
    def __call__(self, kept, slots, scores, evidence):
        return None

@dataclass(frozen=True)
class Abstract(Scorer):
    pass

class Plain(Scorer):
    def __init__(self, last: int = 3):
        self.last = last
    def __call__(self, evidence):
        return evidence.tokens.float().norm(dim=-1)[None]

@dataclass(frozen=True)
class NeedsOne(Scorer):
    @property
    def needs(self):
        return AttentionRows("cls", (-1,))
    def __call__(self, evidence):
        return None

@dataclass(frozen=True)
class NeedsMethod(NeedsOne):
    def needs(self):
        return (AttentionRows("cls", (-1,)),)

@dataclass(frozen=True)
class NeedsWords(NeedsOne):
    needs = ("cls",)

@dataclass(frozen=True)
class NeedsClass(NeedsOne):
    needs = (AttentionRows,)

@dataclass(frozen=True)
class NeedsRaise(NeedsOne):
    @property
    def needs(self):
        return 1 / 0

@dataclass(frozen=True)
class NoStages(Pruner):
    def stages(self, budget):
        return [self]
    def __call__(self, evidence, budget=None):
        return None

@dataclass(frozen=True)
class Picky(RandomPruner):
    last: int = 3
    def __post_init__(self):
        if self.last < 1:
            raise ValueError(f"last must be positive, got {self.last}")

@dataclass(frozen=True)
class NoFile(Benchmark):
    def read(self, path, images):
        return {}["questions"]

@dataclass(frozen=True)
class NoScore(Benchmark):
    def read(self, path, images):
        from vtcframe.data.formats import read_samples
        return read_samples(path, path)
    def score(self, rows):
        return 1 / 0

@dataclass(frozen=True)
class Torn(Transform):
    def __call__(self, visual):
        return len(visual.size) + "x"

@dataclass(frozen=True)
class Lost(Transform):
    def __call__(self, visual):
        return None

@dataclass(frozen=True)
class NoPipeline(Method):
    def pipeline(self):
        TopK()
"""


NEEDS = {
    "NeedsOne": "has an AttentionRows for its `needs`: return a tuple",
    "NeedsMethod": "has a method for its `needs`: write @property above it",
    "NeedsWords": "has 'cls' among its `needs`: use the kinds of vtcframe.core.needs",
    "NeedsClass": "has <class 'vtcframe.core.needs.AttentionRows'> among its `needs`",
    "NeedsRaise": "raised ZeroDivisionError: division by zero (broken_parts, line ",
}


TARGETS = {
    "Boom": ("broken_boom", "scorer Boom of broken 1.2 cannot be imported: OSError: libfoo is missing"),
    "Exits": ("broken_exits", "scorer Exits of broken 1.2 cannot be imported: SystemExit: 7"),
    "Missing": ("broken_parts", "cannot be imported: AttributeError: module 'broken_parts' has no attribute"),
    "Abstract": ("broken_parts", "scorer Abstract of broken 1.2 is abstract: it must define __call__"),
    "Plain": ("broken_parts", "scorer Plain of broken 1.2 is no frozen dataclass: write @dataclass(frozen=True)"),
    "Numbers": ("broken_parts", "broken_parts:Numbers of broken 1.2 is no scorer: extend vtcframe.core.verbs.Scorer"),
}


def code(name, kind, body):
    return (
        f"@dataclass(frozen=True)\nclass {name}({kind}):\n    def __call__(self, {CALLS[kind]}):\n"
        f"        return {body.format(fine=FINE[kind])}\n"
    )


def generated(pruner, at="projector", ratio=0.25):
    model, processor = backbone("llava")
    inputs = make_inputs(processor, SAMPLES["one"])
    return compress(model, stages=[Stage(at, pruner, Budget(ratio=ratio))]).generate(**inputs, max_new_tokens=1)
