"""ZipCache (arXiv 2405.14256): the mean attention of a few query rows, the probes, ranks visual tokens in the LLM."""

from dataclasses import KW_ONLY, dataclass

import torch
from torch import Tensor

from vtcframe.core.evidence import Evidence
from vtcframe.core.kernel_call import MASKED_LOGIT, KernelCall
from vtcframe.core.method import MethodCard
from vtcframe.core.need_bases import AttentionNeed, Need
from vtcframe.core.pipeline import Pipeline
from vtcframe.core.text_readers import PromptTokens
from vtcframe.core.verbs import Scorer
from vtcframe.methods._base import SingleLlmStage
from vtcframe.ops.hashing import mix_hash


@dataclass(frozen=True)
class ProbeAttention(AttentionNeed):
    """Mean attention to each token from probes, a few query rows of a language model's layer that can attend to it.

    ZipCache (arXiv 2405.14256): probes are the last share `recent` of the prompt and a share `random` drawn from the
    rest, by a hash of (seed, sample, column). Layers count as in AttentionRows.
    """

    layers: tuple[int, ...]
    recent: float = 0.05
    random: float = 0.05
    _: KW_ONLY
    seed: int = 0
    tower = "llm"

    def read_llm(self, call: KernelCall, prompts: PromptTokens) -> Tensor:
        """[P, H, L] float32: mean attention to a token of the probes that can attend to it, 0 if there are none.

        The divisor is that of the paper. The authors' code sums over probes but divides by the number of all queries
        that can attend to the token.
        """
        is_probe = self.probes(prompts.column, prompts.key)[:, -call.query.shape[2] :]
        mean = torch.zeros(*call.query.shape[:2], call.key.shape[2], device=call.key.device, dtype=torch.float32)
        for sample, part in enumerate(call.sample_chunks(1)):
            total, visible = sum_attention(part, is_probe[sample].nonzero()[:, 0].to(mean.device))
            mean[sample] = (total / visible.clamp(min=1))[0]
        return mean

    def probes(self, column: Tensor, key: Tensor) -> Tensor:
        """[B, K] bool: of a sample's n tokens the last int(recent n), at least one, and int(random n) of the others.

        `column` [B, K] is each token's position in its own prompt, -1 at padding, and `key` [B] the samples' stable
        hashes; on the CPU they cost no device sync. The others are drawn without replacement, by the hash of Random.
        The authors' code draws with replacement, and differently in every run.
        """
        is_token = column >= 0
        count = is_token.sum(1, keepdim=True)
        later = count - is_token.cumsum(1)  # the number of tokens after each token
        recent = is_token & (later < (count.double() * self.recent).long().clamp(min=1))
        rest = is_token & ~recent
        sample_hash = mix_hash(key ^ mix_hash(torch.tensor(self.seed, device=key.device))).to(column.device)
        draw = mix_hash(sample_hash[:, None] + column).masked_fill(~rest, torch.iinfo(torch.long).min)
        rank = draw.argsort(dim=1, descending=True, stable=True).argsort(1)
        return recent | (rest & (rank < (count.double() * self.random).long()))


def sum_attention(call: KernelCall, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return the summed attention of query rows [R] of one sample [1, H, K] and the number of rows per key [1, h, K].

    The number counts the rows that can attend to a key. A row that is listed twice counts twice. Rows are processed in
    chunks, so that memory is linear in K. h is H if the mask differs between heads, else 1.
    """
    heads, length = call.query.shape[1], call.key.shape[2]
    device = call.key.device
    total = torch.zeros(1, heads, length, device=device, dtype=torch.float32)
    visible = torch.zeros(1, 1, length, device=device, dtype=torch.float32)
    for chunk in rows.split(max(1, call.max_elements // max(heads * length, 1))):
        mask = call.additive_mask(chunk)
        visible = visible + (len(chunk) if mask is None else (mask > MASKED_LOGIT).sum(2))
        total += call.attention(chunk).sum(2)
    return total, visible


@dataclass(frozen=True)
class ZipCacheSaliency(SingleLlmStage):
    """FastV's stage with the saliency of ZipCache (arXiv 2405.14256): mean attention of probes to a token.

    Sums would favour early tokens, which more queries can attend to. Deviation: ZipCache drops no token; its saliency
    selects the keys and values that are quantised to fewer bits, separately for each head. Here it ranks visual tokens,
    mean over heads.
    """

    card = MethodCard(
        paper="arXiv 2405.14256",
        signal="mean attention of recent and random probes that can attend to a token",
        selector="top-k",
        dropped="discarded",
        parity="differs: drops tokens instead of bits; given the code's probes and divisor, the saliency is exact",
        site="llm",
        text=True,
    )
    layer: int = 2

    def pipeline(self) -> Pipeline:
        return self.rank_by(ProbeSaliency(-1))


@dataclass(frozen=True)
class ProbeSaliency(Scorer):
    """[1, V, N]: mean attention to a token from the probes that can attend to it, mean over heads (see ProbeAttention).

    ZipCache (arXiv 2405.14256). `layer` counts as in TextAttention.
    """

    layer: int = -1
    recent: float = 0.05
    random: float = 0.05
    _: KW_ONLY
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("recent", "random"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is a share of the prompt and must lie in 0..1, got {getattr(self, name)}")

    @property
    def needs(self) -> tuple[Need, ...]:
        return (ProbeAttention((self.layer,), self.recent, self.random, seed=self.seed),)

    def __call__(self, evidence: Evidence) -> Tensor:
        return evidence[self.needs[0]].mean(2)
