"""Published methods and baselines: their own few fields and the parts they are made of."""

from vtcframe.methods.aim import Aim
from vtcframe.methods.anyres import GlobalCom2, HiRed
from vtcframe.methods.cls import FasterVlm, RandomPruner, UniformPruner, VtcCls
from vtcframe.methods.dart import Dart
from vtcframe.methods.default import ClsCoverage
from vtcframe.methods.diversity import (
    CdPruner,
    DamroOutliers,
    DivPrune,
    FoPru,
    TokenCorrelation,
    VisPruner,
    VScanEncoder,
)
from vtcframe.methods.encoder import DiffRate, EVit, Mctf, ToMe
from vtcframe.methods.llm import FastV, PyramidDrop, SinkFilter, VisualExit, ZipCacheSaliency
from vtcframe.methods.merging import Pool, PruMerge, PruMergePlus, VisionZip
from vtcframe.methods.mustdrop import MustDrop
from vtcframe.methods.pictures import TsLlava
from vtcframe.methods.sparse import SparseVlm
from vtcframe.methods.staged import HoliTom, MiniMonkeyScm, PruneVid, VScan
from vtcframe.methods.video import FastVid, HoliTomOuter, PruneVidOuter, VidCom2

__all__ = [
    "Aim",
    "CdPruner",
    "ClsCoverage",
    "DamroOutliers",
    "Dart",
    "DiffRate",
    "DivPrune",
    "EVit",
    "FastV",
    "FastVid",
    "FasterVlm",
    "FoPru",
    "GlobalCom2",
    "HiRed",
    "HoliTom",
    "HoliTomOuter",
    "Mctf",
    "MiniMonkeyScm",
    "MustDrop",
    "Pool",
    "PruMerge",
    "PruMergePlus",
    "PruneVid",
    "PruneVidOuter",
    "PyramidDrop",
    "RandomPruner",
    "SinkFilter",
    "SparseVlm",
    "ToMe",
    "TokenCorrelation",
    "TsLlava",
    "UniformPruner",
    "VScan",
    "VScanEncoder",
    "VidCom2",
    "VisPruner",
    "VisionZip",
    "VisualExit",
    "VtcCls",
    "ZipCacheSaliency",
]
