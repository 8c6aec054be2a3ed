"""Mini-Monkey: numbers recorded from the authors' own code."""

from dataclasses import replace

import torch

from support.recorded_cases import each_case, layout_of, load_case
from vtcframe import Evidence
from vtcframe.methods.mini_monkey import MiniMonkeyScm


@each_case("minimonkey_scm")
def test_mini_monkey(path):
    tensors, params = load_case(path)
    (high, wide), n = params["grid"], params["tokens_per_tile"]
    first, count = params["text_before"], params["high_tokens"]
    paid = tensors["in.attn_llm_layer1"].mean((0, 1)).view(1, -1, 1, n)  # of all that follows the crops
    column = first + torch.arange(count).view(-1, n)
    where = layout_of([(1, n)] * (high * wide), [0] * (high * wide), column)
    cut = torch.tensor([[r, c, r + 1, c + 1] for r in range(high) for c in range(wide)])
    where = replace(where, box=cut / torch.tensor([high, wide, high, wide]))
    if high * wide > 1:  # the first view behind the crops, as the overview; all behind is left alone
        more = layout_of([(1, n)] * (high * wide + 1), [0] * (high * wide + 1))
        column = torch.cat([column, first + count + torch.arange(n)[None]])
        where = replace(more, column=column, box=torch.cat([where.box, torch.tensor([[0.0, 0, 1, 1]])]))
        paid = torch.cat([paid, torch.zeros(1, 1, 1, n)], 1)
    method = MiniMonkeyScm()
    pruned = method(Evidence(torch.zeros(*where.column.shape, 1), where, {method.needs[0]: paid}))
    left = set(range(params["seq_len"])) - set(where.column.flatten().tolist())
    left |= set(pruned.column[pruned.place >= 0].tolist())
    assert len([c for c in left if first <= c < first + count]) == params["keep"]
    wanted = set(tensors["out.kept_positions"].tolist())
    assert left - wanted == {params["skipped_position"]}  # the token behind the crops, which the code loses by a slip
    assert wanted <= left
