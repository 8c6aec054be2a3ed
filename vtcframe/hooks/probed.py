"""What a few query rows of a language model's layer, the probes, pay each token (ZipCache, arXiv 2405.14256)."""

import torch
from torch import Tensor

from vtcframe.core.needs import ProbeAttention
from vtcframe.hooks.kernel_call import MASKED_LOGIT, MAX_ELEMENTS, KernelCall, attention_logits, float_keys
from vtcframe.ops.hashing import mix_hash


def probe_attention(call: KernelCall, need: ProbeAttention, column: Tensor, key: Tensor) -> Tensor:
    """[B, H, K] float32: mean attention of the probes that see a token, 0 where none does.

    `column` [B, K] is each token's place in its own prompt, -1 at padding, and `key` [B] the samples' stable hashes;
    on the CPU they cost no device sync. So the paper divides; its code does by all queries that see a token, though
    only probes are summed.
    """
    asking = probes(column, key, need)[:, -call.query.shape[2] :]
    paid = torch.zeros(*call.query.shape[:2], call.key.shape[2], device=call.key.device, dtype=torch.float32)
    for sample, part in enumerate(call.parts(1)):
        total, seen = sum_attention(part, asking[sample].nonzero()[:, 0].to(paid.device))
        paid[sample] = (total / seen.clamp(min=1))[0]
    return paid


def probes(column: Tensor, key: Tensor, need: ProbeAttention) -> Tensor:
    """[B, K] bool: of a sample's n tokens the last int(recent n), one at least, and int(random n) of the others.

    Those are drawn without replacement, by the hash of Random. The authors' code draws with replacement, and anew in
    every run.
    """
    present = column >= 0
    count = present.sum(1, keepdim=True)
    behind = count - present.cumsum(1)  # how many come later
    recent = present & (behind < (count.double() * need.recent).long().clamp(min=1))
    rest = present & ~recent
    own = mix_hash(key ^ mix_hash(torch.tensor(need.seed, device=key.device))).to(column.device)
    drawn = mix_hash(own[:, None] + column).masked_fill(~rest, torch.iinfo(torch.long).min)
    rank = drawn.argsort(dim=1, descending=True, stable=True).argsort(1)
    return recent | (rest & (rank < (count.double() * need.random).long()))


def sum_attention(call: KernelCall, rows: Tensor) -> tuple[Tensor, Tensor]:
    """What query rows [R] of a call of one sample pay each token, summed: [1, H, K], and how many see it: [1, h, K].

    A row that is given twice counts twice. Some rows at a time, so that memory stays linear in K. h is H where the
    mask tells heads apart, else 1.
    """
    key = float_keys(call.key)
    heads, length = call.query.shape[1], key.shape[2]
    total, seen = (
        torch.zeros(1, heads, length, device=key.device, dtype=torch.float32),
        torch.zeros(1, 1, length, device=key.device, dtype=torch.float32),
    )
    for some in rows.split(max(1, MAX_ELEMENTS // max(heads * length, 1))):
        paid = attention_logits(call.query[:, :, some], key, call.scaling)
        hidden = call.additive_mask(some)
        if hidden is None:
            seen = seen + len(some)
        else:
            paid, seen = paid + hidden, seen + (hidden > MASKED_LOGIT).sum(2)
        total += paid.softmax(-1).sum(2)
    return total, seen
