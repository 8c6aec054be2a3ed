from .adapter import Adapter as Adapter, adapter_for as adapter_for
from .allocators import (
    AttentionMass as AttentionMass,
    EffectiveRank as EffectiveRank,
    Entropy as Entropy,
    Even as Even,
    Joint as Joint,
    Outliers as Outliers,
    OverviewGuided as OverviewGuided,
)
from .arrangement import Arrangement as Arrangement, Picture as Picture, Prompt as Prompt
from .benchmark import Benchmark as Benchmark, ImageFolder as ImageFolder
from .benchmarks import (
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
from .compress import Compressed as Compressed, Result as Result, compress as compress
from .core import (
    Budget as Budget,
    Evidence as Evidence,
    Layout as Layout,
    Pruned as Pruned,
    Structural as Structural,
)
from .ensemblers import (
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
from .methods.llm import ProbeAttention as ProbeAttention, Sinkless as Sinkless
from .methods.sparse import Recycle as Recycle
from .methods.staged import Crops as Crops, PairwiseMean as PairwiseMean, Share as Share
from .needs import (
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
from .pipeline import (
    Allocator as Allocator,
    Component as Component,
    Ensembler as Ensembler,
    Facts as Facts,
    Merger as Merger,
    Method as Method,
    Pipeline as Pipeline,
    Pruner as Pruner,
    Scorer as Scorer,
    Selector as Selector,
    Stage as Stage,
)
from .plan_file import load_stages as load_stages
from .scorers import (
    ClsAttention as ClsAttention,
    KeyNorm as KeyNorm,
    QuestionSimilarity as QuestionSimilarity,
    Random as Random,
    TextAttention as TextAttention,
    TokenNorm as TokenNorm,
    Uniqueness as Uniqueness,
    WitnessAttention as WitnessAttention,
)
from .selectors import (
    Coverage as Coverage,
    Deduplicate as Deduplicate,
    Dpp as Dpp,
    Grid as Grid,
    LocalGlobal as LocalGlobal,
    MaxMin as MaxMin,
    Mixed as Mixed,
    OutliersThenDraw as OutliersThenDraw,
    TopK as TopK,
    WholeRows as WholeRows,
)
from .tower import Tower as Tower, TowerAdapter as TowerAdapter
from .mergers import (
    Absorb as Absorb,
    CellMean as CellMean,
    Contextual as Contextual,
    Fuse as Fuse,
    Nearest as Nearest,
)
from .transforms import (
    Downsample as Downsample,
    FramesAsPictures as FramesAsPictures,
    Thumbnail as Thumbnail,
    Transform as Transform,
)
