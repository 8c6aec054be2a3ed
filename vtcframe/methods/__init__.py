"""Published methods and baselines: their own few fields and the parts they are made of."""

from vtcframe.methods.anyres import GlobalCom2, HiRed
from vtcframe.methods.cls import FasterVlm, RandomPruner, UniformPruner, VtcCls
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
from vtcframe.methods.merging import Pool, PruMerge, PruMergePlus, VisionZip
from vtcframe.methods.pictures import TsLlava
from vtcframe.methods.video import FastVid, HoliTomOuter, PruneVidOuter, VidCom2

__all__ = [
    "CdPruner",
    "ClsCoverage",
    "DamroOutliers",
    "DiffRate",
    "DivPrune",
    "EVit",
    "FastVid",
    "FasterVlm",
    "FoPru",
    "GlobalCom2",
    "HiRed",
    "HoliTomOuter",
    "Mctf",
    "Pool",
    "PruMerge",
    "PruMergePlus",
    "PruneVidOuter",
    "RandomPruner",
    "ToMe",
    "TokenCorrelation",
    "TsLlava",
    "UniformPruner",
    "VScanEncoder",
    "VidCom2",
    "VisPruner",
    "VisionZip",
    "VtcCls",
]
