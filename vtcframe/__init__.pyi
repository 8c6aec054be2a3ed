from .adapters.base import Adapter as Adapter, adapter_for as adapter_for
from .components.allocators import (
    AttentionMass as AttentionMass,
    EffectiveRank as EffectiveRank,
    Entropy as Entropy,
    Even as Even,
    Joint as Joint,
    Outliers as Outliers,
    OverviewGuided as OverviewGuided,
)
from .adapters.arrangement import Arrangement as Arrangement, Picture as Picture
from .adapters.prompt import Prompt as Prompt
from .data.benchmarks.base import Benchmark as Benchmark, ImageFolder as ImageFolder
from .data.benchmarks import (
    Gqa as Gqa,
    MmBench as MmBench,
    Mme as Mme,
    MmVet as MmVet,
    Pope as Pope,
    ScienceQa as ScienceQa,
    SeedBench as SeedBench,
    TextVqa as TextVqa,
    VqaV2 as VqaV2,
)
from .inference.compressed import Compressed as Compressed, Result as Result, compress as compress
from .core.budget import Budget as Budget
from .core.evidence import Evidence as Evidence
from .core.layout import Layout as Layout, Structural as Structural
from .core.pruned import Pruned as Pruned
from .components.ensemblers import (
    Borda as Borda,
    Max as Max,
    Mean as Mean,
    OverviewFusion as OverviewFusion,
    RankFusion as RankFusion,
    Weighted as Weighted,
)
from .methods import (
    CdPruner as CdPruner,
    ClsCoverage as ClsCoverage,
    DamroOutliers as DamroOutliers,
    Aim as Aim,
    Dart as Dart,
    DiffRate as DiffRate,
    DivPrune as DivPrune,
    EVit as EVit,
    FastV as FastV,
    FastVid as FastVid,
    FasterVlm as FasterVlm,
    FoPru as FoPru,
    GlobalCom2 as GlobalCom2,
    HiRed as HiRed,
    HoliTom as HoliTom,
    HoliTomOuter as HoliTomOuter,
    Mctf as Mctf,
    MustDrop as MustDrop,
    MiniMonkeyScm as MiniMonkeyScm,
    Pool as Pool,
    PruMerge as PruMerge,
    PruMergePlus as PruMergePlus,
    PruneVid as PruneVid,
    PruneVidOuter as PruneVidOuter,
    PyramidDrop as PyramidDrop,
    RandomPruner as RandomPruner,
    SinkFilter as SinkFilter,
    SparseVlm as SparseVlm,
    ToMe as ToMe,
    TokenCorrelation as TokenCorrelation,
    TsLlava as TsLlava,
    UniformPruner as UniformPruner,
    VScan as VScan,
    VScanEncoder as VScanEncoder,
    VidCom2 as VidCom2,
    VisPruner as VisPruner,
    VisionZip as VisionZip,
    VisualExit as VisualExit,
    VtcCls as VtcCls,
    ZipCacheSaliency as ZipCacheSaliency,
)
from .methods.aim import AttentionFlow as AttentionFlow
from .methods.mustdrop import Above as Above, KeySet as KeySet, TextPeak as TextPeak, TextShare as TextShare
from .methods.dart import LeastLike as LeastLike
from .methods.zipcache import ProbeAttention as ProbeAttention
from .methods.sink_filter import Sinkless as Sinkless
from .methods.sparsevlm import Recycle as Recycle
from .methods.mini_monkey import Crops as Crops
from .methods.holitom import PairwiseMean as PairwiseMean
from .components.allocators import Share as Share
from .core.needs import (
    ClassToken as ClassToken,
    Features as Features,
    Flow as Flow,
    Keys as Keys,
    Need as Need,
    Probed as Probed,
    Rows as Rows,
    Similarity as Similarity,
    Text as Text,
)
from .core.verbs import (
    Allocator as Allocator,
    Component as Component,
    Ensembler as Ensembler,
    Merger as Merger,
    Scorer as Scorer,
    Selector as Selector,
)
from .core.method import Facts as Facts, Method as Method
from .core.pipeline import Pipeline as Pipeline
from .core.stages import Pruner as Pruner, Stage as Stage
from .config.plan_file import load_stages as load_stages
from .components.scorers import (
    ClsAttention as ClsAttention,
    KeyNorm as KeyNorm,
    QuestionSimilarity as QuestionSimilarity,
    Random as Random,
    TextAttention as TextAttention,
    TokenNorm as TokenNorm,
    Uniqueness as Uniqueness,
    WitnessAttention as WitnessAttention,
)
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
from .adapters.tower import Tower as Tower, TowerAdapter as TowerAdapter
from .components.mergers import (
    Absorb as Absorb,
    CellMean as CellMean,
    Contextual as Contextual,
    Fuse as Fuse,
    Nearest as Nearest,
)
from .data.transforms import (
    Downsample as Downsample,
    FramesAsPictures as FramesAsPictures,
    Thumbnail as Thumbnail,
    Transform as Transform,
)
