"""Published methods and baselines: their own few fields and the parts they are made of."""

from vtcframe.methods.aim import Aim
from vtcframe.methods.baselines import Pool, RandomPruner, UniformPruner
from vtcframe.methods.cdpruner import CdPruner
from vtcframe.methods.cls_coverage import ClsCoverage
from vtcframe.methods.damro import DamroOutliers
from vtcframe.methods.dart import Dart
from vtcframe.methods.diffrate import DiffRate
from vtcframe.methods.divprune import DivPrune
from vtcframe.methods.evit import EVit
from vtcframe.methods.fastervlm import FasterVlm
from vtcframe.methods.fastv import FastV
from vtcframe.methods.fastvid import FastVid
from vtcframe.methods.globalcom2 import GlobalCom2
from vtcframe.methods.hired import HiRed
from vtcframe.methods.holitom import HoliTom, HoliTomOuter
from vtcframe.methods.mctf import Mctf
from vtcframe.methods.mini_monkey import MiniMonkeyScm
from vtcframe.methods.mustdrop import MustDrop
from vtcframe.methods.prumerge import PruMerge, PruMergePlus
from vtcframe.methods.prunevid import PruneVid, PruneVidOuter
from vtcframe.methods.pyramiddrop import PyramidDrop
from vtcframe.methods.sink_filter import SinkFilter
from vtcframe.methods.sparsevlm import SparseVlm
from vtcframe.methods.tome import ToMe
from vtcframe.methods.ts_llava import TsLlava
from vtcframe.methods.unverified import FoPru, TokenCorrelation
from vtcframe.methods.vidcom2 import VidCom2
from vtcframe.methods.visionzip import VisionZip
from vtcframe.methods.vispruner import VisPruner
from vtcframe.methods.visual_exit import VisualExit
from vtcframe.methods.vscan import VScan, VScanEncoder
from vtcframe.methods.vtc_cls import VtcCls
from vtcframe.methods.zipcache import ZipCacheSaliency

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
