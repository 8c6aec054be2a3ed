# Every public name of the package, each of them listed here and nowhere else: the lazy imports of `__init__.py`, the
# registry and type checkers read this file. The names behind a line `# kind: KIND` are the built-in components of that
# kind; the names behind `# kind: none` are no components.

# kind: none
from .adapters.arrangement import Arrangement as Arrangement, Picture as Picture
from .adapters.base import Adapter as Adapter, EncoderAdapter as EncoderAdapter, adapter_for as adapter_for
from .adapters.prompt import Prompt as Prompt
from .adapters.tower import Tower as Tower, TowerAdapter as TowerAdapter
from .config.plan_file import load_stages as load_stages
from .core.budget import Budget as Budget
from .core.evidence import Evidence as Evidence
from .core.layout import Layout as Layout, Structural as Structural
from .core.method import MethodCard as MethodCard, Method as Method
from .core.encoder_readers import EncoderTokens as EncoderTokens
from .core.kernel_call import KernelCall as KernelCall
from .core.need_bases import AttentionNeed as AttentionNeed, HiddenNeed as HiddenNeed, Need as Need
from .core.needs import (
    ClassToken as ClassToken,
    HiddenStates as HiddenStates,
    AttentionKeys as AttentionKeys,
    AttentionRows as AttentionRows,
    Similarity as Similarity,
    TextTokens as TextTokens,
)
from .core.text_readers import PromptTokens as PromptTokens
from .methods.aim import AttentionPageRank as AttentionPageRank
from .methods.sparsevlm import RaterAttention as RaterAttention
from .methods.zipcache import ProbeAttention as ProbeAttention
from .core.pruned import Pruned as Pruned
from .core.stages import Pruner as Pruner, Stage as Stage
from .core.verbs import (
    Allocator as Allocator,
    Component as Component,
    Ensembler as Ensembler,
    Merger as Merger,
    Scorer as Scorer,
    Selector as Selector,
)
from .data.benchmarks.base import Benchmark as Benchmark
from .data.transforms import Transform as Transform
from .inference.outcome import Outcome as Outcome
from .inference.session import Session as Session
from .inference.compressed import compress as compress, Compressed as Compressed

# kind: scorer
from .components.scorers import (
    ClsAttention as ClsAttention,
    KeyNorm as KeyNorm,
    QuestionSimilarity as QuestionSimilarity,
    Random as Random,
    TextAttention as TextAttention,
    TokenNorm as TokenNorm,
    Uniqueness as Uniqueness,
    AuxiliaryClsAttention as AuxiliaryClsAttention,
)
from .methods.aim import TokenPageRank as TokenPageRank
from .methods.mustdrop import ClsKeySet as ClsKeySet, TextPeak as TextPeak, TextShare as TextShare
from .methods.sink_filter import DemoteSinks as DemoteSinks
from .methods.sparsevlm import TextRaters as TextRaters
from .methods.zipcache import ProbeSaliency as ProbeSaliency

# kind: ensembler
from .components.ensemblers import (
    Borda as Borda,
    Max as Max,
    Mean as Mean,
    OverviewFusion as OverviewFusion,
    RankFusion as RankFusion,
    Weighted as Weighted,
)

# kind: allocator
from .components.allocators import (
    AttentionMass as AttentionMass,
    EffectiveRank as EffectiveRank,
    Entropy as Entropy,
    Even as Even,
    Joint as Joint,
    Outliers as Outliers,
    OverviewGuided as OverviewGuided,
    KeepRatio as KeepRatio,
)
from .methods.mini_monkey import Crops as Crops
from .methods.mustdrop import Threshold as Threshold

# kind: selector
from .components.diverse_selectors import (
    Coverage as Coverage,
    Deduplicate as Deduplicate,
    Dpp as Dpp,
    MaxMin as MaxMin,
    Mixed as Mixed,
)
from .components.selectors import (
    Grid as Grid,
    LocalGlobal as LocalGlobal,
    OutliersThenDraw as OutliersThenDraw,
    TopK as TopK,
    WholeRows as WholeRows,
)
from .methods.dart import PivotDissimilarity as PivotDissimilarity

# kind: merger
from .components.mergers import (
    Absorb as Absorb,
    CellMean as CellMean,
    Contextual as Contextual,
    Fuse as Fuse,
    Nearest as Nearest,
)
from .methods.holitom import PairwiseMean as PairwiseMean
from .methods.sparsevlm import Recycle as Recycle

# kind: pruner
from .core.pipeline import Pipeline as Pipeline
from .methods.aim import Aim as Aim
from .methods.baselines import Pool as Pool, RandomPruner as RandomPruner, UniformPruner as UniformPruner
from .methods.cdpruner import CdPruner as CdPruner
from .methods.cls_coverage import ClsCoverage as ClsCoverage
from .methods.damro import DamroOutliers as DamroOutliers
from .methods.dart import Dart as Dart
from .methods.diffrate import DiffRate as DiffRate
from .methods.divprune import DivPrune as DivPrune
from .methods.evit import EVit as EVit
from .methods.fastervlm import FasterVlm as FasterVlm
from .methods.fastv import FastV as FastV
from .methods.fastvid import FastVid as FastVid
from .methods.globalcom2 import GlobalCom2 as GlobalCom2
from .methods.hired import HiRed as HiRed
from .methods.holitom import HoliTom as HoliTom, HoliTomOuter as HoliTomOuter
from .methods.mctf import Mctf as Mctf
from .methods.mini_monkey import MiniMonkeyScm as MiniMonkeyScm
from .methods.mustdrop import MustDrop as MustDrop
from .methods.prumerge import PruMerge as PruMerge, PruMergePlus as PruMergePlus
from .methods.prunevid import PruneVid as PruneVid, PruneVidOuter as PruneVidOuter
from .methods.pyramiddrop import PyramidDrop as PyramidDrop
from .methods.sink_filter import SinkFilter as SinkFilter
from .methods.sparsevlm import SparseVlm as SparseVlm
from .methods.tome import ToMe as ToMe
from .methods.ts_llava import TsLlava as TsLlava
from .methods.unverified import FoPru as FoPru, TokenCorrelation as TokenCorrelation
from .methods.vidcom2 import VidCom2 as VidCom2
from .methods.visionzip import VisionZip as VisionZip
from .methods.vispruner import VisPruner as VisPruner
from .methods.visual_exit import VisualExit as VisualExit
from .methods.vscan import VScan as VScan, VScanEncoder as VScanEncoder
from .methods.vtc_cls import VtcCls as VtcCls
from .methods.zipcache import ZipCacheSaliency as ZipCacheSaliency

# kind: transform
from .data.transforms import Downsample as Downsample, FramesAsPictures as FramesAsPictures, Thumbnail as Thumbnail

# kind: benchmark
from .data.benchmarks.base import ImageFolder as ImageFolder
from .data.benchmarks.choices import MmBench as MmBench, ScienceQa as ScienceQa, SeedBench as SeedBench
from .data.benchmarks.open_answers import Gqa as Gqa, MmVet as MmVet, TextVqa as TextVqa, VqaV2 as VqaV2
from .data.benchmarks.yes_or_no import Mme as Mme, Pope as Pope
