"""Methods for videos: what frames have in common is kept once.

A view is a frame. Frames of a video are views of one image number whose frame numbers follow one another; any other
picture is a video of one frame.
"""

from abc import abstractmethod
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor

from vtcframe.allocators import Even, apportion, required
from vtcframe.core import Budget, Evidence, Layout, Pruned
from vtcframe.ensemblers import Mean
from vtcframe.needs import Features, Need, Stand
from vtcframe.pipeline import Allocator, Facts, Method, Pipeline, gather
from vtcframe.scorers import ClsAttention, Uniqueness, first_frames
from vtcframe.selectors import TopK, highest, unit


@dataclass(frozen=True)
class ByUniqueness(Allocator):
    """Frames that stand out of their video get more: VidCom2 (arXiv 2505.14454).

    At a fraction r of all, a frame keeps r (1 + p - mean p) of its tokens, p the softmax over a sample's frames of its
    tokens' mean Uniqueness in the video / `temperature`. The code rounds each frame; here the quotas sum to the budget.
    """

    temperature: float = 0.01

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise ValueError(f"temperature must be positive, got {self.temperature}")

    def __call__(self, scores: Tensor, budget: Tensor | None, evidence: Evidence) -> Tensor:
        layout = evidence.layout
        alone = Uniqueness()(evidence)[0].masked_fill(~layout.valid, 0).sum(1).cpu() / layout.count.clamp(min=1)
        same = layout.sample == layout.sample[:, None]
        share = (alone / self.temperature).expand(same.shape).masked_fill(~same, -torch.inf).softmax(1).diagonal()
        return apportion(required(self, budget), (1 + share - 1 / same.float().sum(1)) * layout.count, layout)


@dataclass(frozen=True)
class VidCom2(Method):
    """VidCom2 (arXiv 2505.14454): tokens unlike the mean of their video and of their frame; unlike frames keep more.

    Its code switches itself off for batches; here a sample's frames are judged among themselves.
    """

    facts = Facts("arXiv 2505.14454", "distance to the means of video and frame", "top-k", "gone", "exact")

    def pipeline(self) -> Pipeline:
        return Pipeline((Uniqueness(),), Mean(), ByUniqueness(), TopK())


class _AcrossFrames(Method):
    """A method that merges tokens of several frames, and so is no Pipeline of parts."""

    def pipeline(self) -> Pipeline:
        raise TypeError(f"{type(self).__name__} merges across frames: it has no parts, call it as a whole")

    @property
    def needs(self) -> tuple[Need, ...]:
        return ()

    @abstractmethod
    def merged(self, scores: Tensor, total: Tensor, evidence: Evidence) -> tuple[Tensor, Tensor]:
        """Scores [V, N], total [P] -> kept [V, N], and tokens [V, N, D] float32 where what is kept holds the rest."""

    def scores(self, evidence: Evidence) -> Tensor:
        """[V, N], any value at padding."""
        return torch.zeros(evidence.layout.column.shape, device=evidence.layout.column.device, dtype=torch.float32)

    @torch.no_grad()
    def __call__(self, evidence: Evidence, budget: Budget | None = None) -> Pruned:
        layout = evidence.layout
        if budget is None:
            raise ValueError(f"{type(self).__name__} shares out a budget: give tokens or ratio")
        total = budget.total(layout)
        scores = self.scores(evidence)
        broken = (~scores.isfinite() & layout.valid).any(1).cpu()
        if broken.any():
            raise ValueError(f"scores of samples {layout.sample[broken].unique().tolist()} are not finite: {self}")
        scores = scores.masked_fill(~layout.valid, -torch.inf)
        with torch.autocast(scores.device.type, enabled=False):
            kept, tokens = self.merged(scores, total, evidence)
        return gather(kept, kept.sum(1).cpu(), scores, replace(evidence, tokens=tokens.to(evidence.tokens.dtype)))


@dataclass(frozen=True)
class FastVid(_AcrossFrames):
    """FastVID (arXiv 2503.11187): in each frame the most attended; what a segment's others share, in anchors.

    A video is cut where neighbouring frames are least alike, at the `segments` - 1 lowest cosines and at those below
    `tau`. `context` of every frame's share goes to the segment's anchor frames, the last and every `every`th before
    it: density peaks (4 neighbours) among what attention left over. All tokens of the segment that attention left over
    join the anchor most alike; it becomes `beta` of itself and the rest the mean of its cluster. Frames are compared by
    the mean of their encoder features (the paper: their pooled [CLS], which most backbones do not show). Where an
    anchor frame has no room, the tokens go by attention. Within a frame, order is raster.
    """

    facts = Facts(
        "arXiv 2503.11187",
        "attention of [CLS] or its proxy",
        "top-k and density peaks",
        "averaged in",
        "exact, given the code's features of whole frames",
    )
    segments: int = 8
    tau: float = 0.9
    context: float = 0.4
    every: int = 4
    beta: float = 0.6
    query: Stand = "proxy"

    def __post_init__(self) -> None:
        _check_shares(context=self.context, beta=self.beta)
        if self.segments < 1 or self.every < 1:
            raise ValueError(f"segments and every must be at least 1, got {self.segments} and {self.every}")

    @property
    def needs(self) -> tuple[Need, ...]:
        return (*ClsAttention(1, self.query).needs, Features())

    def scores(self, evidence: Evidence) -> Tensor:
        return ClsAttention(1, self.query)(evidence)[0].float()

    def cuts(self, evidence: Evidence) -> Tensor:
        """[V] bool on the CPU: where a segment begins."""
        layout = evidence.layout
        frame = torch.nn.functional.normalize(_mean(evidence[Features()], layout.valid), dim=1)
        alike = torch.ones(len(frame), dtype=torch.float32)
        alike[1:] = (frame[1:] * frame[:-1]).sum(1).cpu()
        begins = first_frames(layout)
        cut = begins | (alike < self.tau)
        for start, end in _runs(begins):
            cut[start + 1 + alike[start + 1 : end].argsort(stable=True)[: self.segments - 1]] = True
        return cut

    def plan(self, total: Tensor, cut: Tensor, evidence: Evidence) -> tuple[Tensor, Tensor]:
        """Return [V] each, on the CPU: how many tokens stay by attention, how many are anchors."""
        layout = evidence.layout
        share = Even()(layout.column, total, evidence)
        context = (share.double() * self.context).long()
        attended, anchors, room = (share - context).tolist(), [0] * len(share), layout.count.tolist()
        for start, end in _runs(cut):
            left, hosts = int(context[start:end].sum()), range(end - 1, start - 1, -self.every)
            for i, v in enumerate(hosts):
                anchors[v] = min(left // (len(hosts) - i), room[v] - attended[v])
                left -= anchors[v]
            for v in range(start, end):
                more = min(left, room[v] - attended[v] - anchors[v])
                attended[v] += more
                left -= more
        return torch.tensor(attended, dtype=torch.long), torch.tensor(anchors, dtype=torch.long)

    def merged(self, scores: Tensor, total: Tensor, evidence: Evidence) -> tuple[Tensor, Tensor]:
        valid, x, cut = evidence.layout.valid, _clean(evidence), self.cuts(evidence)
        attended, anchors = self.plan(total, cut, evidence)
        first = highest(scores, attended)
        others = valid & ~first
        anchor = highest(peaks(x, others, torch.full_like(anchors, 4))[0], anchors)
        segment = cut.cumsum(0) - 1
        width = torch.zeros(len(cut), dtype=torch.long).index_add_(0, segment, anchors)
        if not width.any():
            return first, x
        segment, size = segment.to(x.device), int(width.max())
        at = anchor.flatten().nonzero()[:, 0]  # by frame, then raster
        host = segment[at // valid.shape[1]]
        slot = torch.arange(len(at), device=at.device) - torch.searchsorted(host, host)
        centre = x.new_zeros(len(cut), size, x.shape[2])
        centre[host, slot] = x.flatten(0, 1)[at]
        real = torch.arange(size, device=x.device) < width.to(x.device)[:, None]
        alike = unit(x, valid) @ unit(centre, real)[segment].mT
        alike = alike.masked_fill(~real[segment][:, None], -torch.inf)
        to = (segment[:, None] * size + alike.argmax(2))[others]
        mean = centre.new_zeros(centre.shape).flatten(0, 1).index_add_(0, to, x[others])
        mean = mean / torch.bincount(to, minlength=len(mean)).clamp(min=1)[:, None]
        x[anchor] = self.beta * x[anchor] + (1 - self.beta) * mean[host * size + slot]
        return first | anchor, x


class _StillPlaces(_AcrossFrames):
    """A method that averages places which hardly change in a segment over its frames, kept in the first of them.

    The budget is shared between still places and the changing ones of every frame, in proportion to their number, so
    that it is met exactly. A sample that keeps all is left as it is; where the budget exceeds what averaging leaves,
    tokens of still places stay in later frames too.
    """

    @abstractmethod
    def still(self, x: Tensor, layout: Layout) -> tuple[Tensor, Tensor]:
        """Tokens [V, N, D] -> where a segment begins [V] on the CPU, and which places hardly change in it [V, N]."""

    @abstractmethod
    def together(self, centre: Tensor, others: Tensor, count: Tensor) -> Tensor:
        """[..., D] a cluster's centre, the sum of its `count` [..., 1] other tokens -> [..., D] what it becomes."""

    @abstractmethod
    def changing(self, x: Tensor, among: Tensor, quota: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens [V, N, D], among [V, N], quota [V] -> kept [V, N] of those, tokens [V, N, D]."""

    def gathered(self, x: Tensor, among: Tensor, quota: Tensor) -> tuple[Tensor, Tensor]:
        """Keep the density peaks (7 neighbours) of the tokens `among`, each of them standing for its cluster."""
        kept, others, count = clusters(x, among, quota, 7)
        return kept, torch.where(kept[..., None], self.together(x, others, count[..., None]), x)

    def merged(self, scores: Tensor, total: Tensor, evidence: Evidence) -> tuple[Tensor, Tensor]:
        layout, x = evidence.layout, _clean(evidence)
        begins, still = self.still(x, layout)
        prunes = (total < layout.total(layout.count))[layout.sample].to(x.device)
        still, first = still & prunes[:, None], begins.to(x.device)[:, None]
        x = torch.where((still & first)[..., None], _over_segment(x, begins), x)
        pools = still & first, layout.valid & ~still, still & ~first
        size = torch.stack([pool.sum(1) for pool in pools]).cpu()
        quota = _proportional(total, size, layout)
        kept, x = self.gathered(x, pools[0], quota[0])
        changing, x = self.changing(x, pools[1], quota[1], scores)
        return kept | changing | _first_of(pools[2], quota[2]), x


@dataclass(frozen=True)
class HoliTomOuter(_StillPlaces):
    """Outer stage of HoliTom (arXiv 2505.21334): still places once a window, of the others the most attended.

    A place is still in a window if the cosine of its tokens in all successive frames exceeds `tau`. Windows maximise
    the number of tokens that this saves. Still places become clusters around density peaks, each `beta` of its centre
    and the rest the mean of its others. Its code rounds per frame, so that it misses its budget by a few. Left out: the
    stage inside the language model, and the branch that merges changing tokens too, which fails in the code and is off.
    """

    facts = Facts(
        "arXiv 2505.21334",
        "attention received",
        "top-k and density peaks",
        "still places averaged",
        "differs: meets its budget, where the code rounds in every frame",
    )
    tau: float = 0.8
    beta: float = 0.6
    query: Stand = "received"

    def __post_init__(self) -> None:
        _check_shares(beta=self.beta)

    @property
    def needs(self) -> tuple[Need, ...]:
        return ClsAttention(1, self.query).needs

    def scores(self, evidence: Evidence) -> Tensor:
        return ClsAttention(1, self.query)(evidence)[0].float()

    def still(self, x: Tensor, layout: Layout) -> tuple[Tensor, Tensor]:
        videos = first_frames(layout)
        u = unit(x, layout.valid)
        same = (u[1:] * u[:-1]).sum(2) > self.tau
        same = torch.cat([same[:0].new_zeros(len(x[:1]), x.shape[1]), same]) & layout.valid  # as in the frame before
        longest = max((end - start for start, end in _runs(videos)), default=1)
        alive, counts = layout.valid, [torch.zeros(len(x), dtype=torch.long, device=x.device)]
        for length in range(1, longest):  # alive[v]: still in the `length` + 1 frames that end with v
            alive = same if length == 1 else same & alive.roll(1, 0)
            counts.append(alive.sum(1) * length)
        saved = torch.stack(counts).cpu().tolist()
        begins = torch.zeros(len(x), dtype=torch.bool)
        for start, end in _runs(videos):
            best, source = [0], []
            for last in range(start, end):
                options = [best[-1 - length] + saved[length][last] for length in range(last - start + 1)]
                best.append(max(options))
                source.append(last - options.index(best[-1]))
            last = end - 1
            while last >= start:
                begins[source[last - start]] = True
                last = source[last - start] - 1
        segment = begins.cumsum(0) - 1
        alone = (torch.bincount(segment)[segment] == 1).to(x.device)[:, None]
        segment, changes = segment.to(x.device), (~same & ~begins.to(x.device)[:, None]).long()
        changes = torch.zeros_like(changes).index_add_(0, segment, changes)[segment]
        return begins, (changes == 0) & ~alone & layout.valid

    def together(self, centre: Tensor, others: Tensor, count: Tensor) -> Tensor:
        mixed = self.beta * centre + (1 - self.beta) * others / count.clamp(min=1)
        return torch.where(count > 0, mixed, centre)

    def changing(self, x: Tensor, among: Tensor, quota: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
        return highest(scores.masked_fill(~among, -torch.inf), quota), x


@dataclass(frozen=True)
class PruneVidOuter(_StillPlaces):
    """Outer stage of PruneVid (arXiv 2412.16117): still places once a segment, everything clustered.

    Frames are clustered by density peaks of their mean tokens, into `clusters` of their number; segments are frames of
    one cluster in a row, a lone frame joining the segment before it (that this is the code's way of refining is only
    known of one recorded case). A place is still if the mean cosine of its tokens in all pairs of frames exceeds `tau`.
    Still places, and the others of every frame, become the means of clusters around density peaks. A lone frame has no
    still places; the code divides by zero there. The code leaves sets of 14 tokens or less alone; here all are
    clustered, to meet the budget. Left out: the stage inside the language model.
    """

    facts = Facts("arXiv 2412.16117", "none", "density peaks", "averaged in", "exact")
    tau: float = 0.8
    clusters: float = 0.25

    def __post_init__(self) -> None:
        _check_shares(clusters=self.clusters)

    def still(self, x: Tensor, layout: Layout) -> tuple[Tensor, Tensor]:
        begins = self.segments(_mean(x, layout.valid), first_frames(layout))
        segment = (begins.cumsum(0) - 1).to(x.device)
        length = torch.bincount(segment)[segment][:, None]
        total = torch.zeros_like(x).index_add_(0, segment, unit(x, layout.valid))[segment]
        pairs = (total.square().sum(2) - length) / (length * (length - 1)).clamp(min=1)
        return begins, (pairs > self.tau) & (length > 1) & layout.valid

    def segments(self, frame: Tensor, begins: Tensor) -> Tensor:
        """Frames' means [V, D], where videos begin [V] -> where segments begin [V] on the CPU."""
        runs = _runs(begins)
        longest = max((end - start for start, end in runs), default=1)
        start = torch.tensor([start for start, _ in runs], dtype=torch.long)[:, None]
        count = torch.tensor([end - start for start, end in runs], dtype=torch.long)
        real = torch.arange(longest) < count[:, None]
        at = (start + torch.arange(longest)).clamp(max=max(len(frame) - 1, 0)).to(frame.device)
        wanted = (count.double() * self.clusters).long().clamp(min=1)
        label = _nearest_peak(*peaks(frame[at], real.to(frame.device), wanted.clamp(max=7)), wanted).cpu()
        cut = begins.clone()
        for row, (first, end) in zip(label.tolist(), runs, strict=True):
            changes = [v for v in range(first + 1, end) if row[v - first] != row[v - first - 1]]
            for v, after in pairwise([*changes, end]):
                cut[v] = after - v > 1 and v - first > 1  # a lone frame at the start joins what follows
        return cut

    def together(self, centre: Tensor, others: Tensor, count: Tensor) -> Tensor:
        return (centre + others) / (1 + count)

    def changing(self, x: Tensor, among: Tensor, quota: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
        return self.gathered(x, among, quota)


def clusters(x: Tensor, among: Tensor, quota: Tensor, neighbours: int) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens [V, N, D], among [V, N], quota [V] -> the centres [V, N], and of what joined each its sum and number.

    Every token of a row's `among` that is no centre joins the nearest one. There are as many neighbours as centres at
    most, as recorded of HoliTom's code.
    """
    score, away = peaks(x, among, quota.clamp(max=neighbours))
    centre = highest(score, quota)
    to = _nearest_peak(score, away, quota)
    joins = among & ~centre & centre.any(1, keepdim=True)
    to = to + torch.arange(len(x), device=x.device)[:, None] * x.shape[1]
    total = torch.zeros_like(x).flatten(0, 1).index_add_(0, to[joins], x[joins]).view_as(x)
    return centre, total, torch.bincount(to[joins], minlength=among.numel()).view(among.shape)


def peaks(x: Tensor, among: Tensor, neighbours: Tensor) -> tuple[Tensor, Tensor]:
    """[V, N, D], [V, N], [V] -> how much of a density peak each token is [V, N] (-inf elsewhere), distances [V, N, N].

    Density peaks over nearest neighbours, the token itself among them (Du et al., Knowledge-Based Systems 99, 2016):
    exp of minus the mean squared distance to these, times the distance to the nearest denser token. Distances are
    divided by sqrt(D). The codes add noise of 1e-6 to the density; here there is none.
    """
    x = x.masked_fill(~among[..., None], 0)
    away = torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist") / x.shape[2] ** 0.5
    pair = among[:, None] & among[..., None]
    most = min(int(neighbours.max()) if len(neighbours) else 0, x.shape[1])
    near = away.masked_fill(~pair, torch.inf).topk(most, largest=False).values.square()
    found = near.isfinite() & (torch.arange(most) < neighbours[:, None]).to(x.device)[:, None]
    density = (-near.masked_fill(~found, 0).sum(2) / found.sum(2).clamp(min=1)).exp()
    farthest = away.masked_fill(~pair, 0).flatten(1).amax(1) if away.numel() else away.new_zeros(len(x))
    higher = (density[:, None] > density[..., None]) & pair
    peak = torch.where(higher, away, farthest[:, None, None]).amin(2)
    return (peak * density).masked_fill(~among, -torch.inf), away


def _nearest_peak(score: Tensor, away: Tensor, quota: Tensor) -> Tensor:
    """[V, N]: the index of the nearest of the row's `quota` highest peaks; of themselves these are the nearest."""
    centre = highest(score, quota)
    to = away.masked_fill(~centre[:, None], torch.inf).argmin(2)
    return torch.where(centre, torch.arange(to.shape[1], device=to.device), to)


def _clean(evidence: Evidence) -> Tensor:
    """[V, N, D] the tokens in float32, 0 at padding."""
    return evidence.tokens.float().masked_fill(~evidence.layout.valid[..., None], 0)


def _mean(x: Tensor, valid: Tensor) -> Tensor:
    """[V, N, C] -> [V, C] over a view's tokens."""
    return x.float().masked_fill(~valid[..., None], 0).sum(1) / valid.sum(1, keepdim=True).clamp(min=1)


def _over_segment(x: Tensor, begins: Tensor) -> Tensor:
    """[V, N, D] -> for each view the mean over the frames of its segment."""
    segment = (begins.cumsum(0) - 1).to(x.device)
    length = torch.bincount(segment, minlength=len(x)).clamp(min=1)[:, None, None]
    return (torch.zeros_like(x).index_add_(0, segment, x) / length)[segment]


def _runs(begins: Tensor) -> list[tuple[int, int]]:
    """[V] bool -> the first and one behind the last view of each run."""
    starts = begins.nonzero()[:, 0].tolist()
    return list(pairwise([*starts, len(begins)]))


def _proportional(total: Tensor, size: Tensor, layout: Layout) -> Tensor:
    """Total [P], size [3, V] of the pools of each view -> quota [3, V]; the last pools get what the others cannot."""
    index = torch.arange(int(size.max()) if size.numel() else 0)
    column = torch.where(index < size.reshape(-1, 1), index, -1)
    sample = layout.sample.repeat(3)
    grid = torch.zeros(*column.shape, 2, dtype=torch.long)
    pools = replace(layout, sample=sample, column=column, grid=grid, centre=grid.float())
    weight = size.clone()
    weight[2] = 0
    return apportion(total, weight.flatten(), pools).view(size.shape)


def _first_of(among: Tensor, quota: Tensor) -> Tensor:
    """[V, N] bool: the first `quota` of each row."""
    return among & (among.cumsum(1) <= quota.to(among.device)[:, None])


def _check_shares(**shares: float) -> None:
    for name, value in shares.items():
        if not 0 <= value <= 1:
            raise ValueError(f"{name} is a share and must lie in 0..1, got {value}")
