from .adapter import Adapter as Adapter, adapter_for as adapter_for
from .allocators import Even as Even
from .arrangement import Arrangement as Arrangement, Picture as Picture, Prompt as Prompt
from .compress import Compressed as Compressed, Result as Result, compress as compress
from .core import (
    Budget as Budget,
    Evidence as Evidence,
    Layout as Layout,
    Pruned as Pruned,
    Structural as Structural,
)
from .ensemblers import Mean as Mean, RankFusion as RankFusion, Weighted as Weighted
from .methods import (
    FasterVlm as FasterVlm,
    RandomPruner as RandomPruner,
    UniformPruner as UniformPruner,
    VtcCls as VtcCls,
)
from .needs import (
    ClassToken as ClassToken,
    Features as Features,
    Keys as Keys,
    Need as Need,
    Rows as Rows,
    Similarity as Similarity,
    Text as Text,
)
from .pipeline import (
    Allocator as Allocator,
    Component as Component,
    Ensembler as Ensembler,
    Merger as Merger,
    Method as Method,
    Pipeline as Pipeline,
    Pruner as Pruner,
    Scorer as Scorer,
    Selector as Selector,
    Stage as Stage,
)
from .scorers import (
    ClsAttention as ClsAttention,
    QuestionSimilarity as QuestionSimilarity,
    Random as Random,
    TokenNorm as TokenNorm,
    WitnessAttention as WitnessAttention,
)
from .selectors import Grid as Grid, TopK as TopK
from .tower import Tower as Tower, TowerAdapter as TowerAdapter
