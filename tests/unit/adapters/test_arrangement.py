"""Layouts of hand-made prompts equal a reference that reads the prompts token by token."""

import pytest
import torch

from vtcframe.adapters.arrangement import Arrangement, Picture, checksums, owners, sample_keys
from vtcframe.adapters.prompt import Prompt, align_columns

IMAGE, VIDEO = 90, 91
WHOLE = [0.0, 0.0, 1.0, 1.0]


def prompt(rows, side="left"):
    """Rows of letters: t(ext), i(mage), v(ideo); padded on either side with an image placeholder as poison."""
    width = max(map(len, rows))
    ids, mask = torch.full((len(rows), width), IMAGE), torch.zeros(len(rows), width, dtype=torch.long)
    for p, row in enumerate(rows):
        at = width - len(row) if side == "left" else 0
        ids[p, at : at + len(row)] = torch.tensor([{"t": 5, "i": IMAGE, "v": VIDEO}[letter] for letter in row])
        mask[p, at : at + len(row)] = 1
    return Prompt.of({"input_ids": ids, "attention_mask": mask}, [IMAGE, VIDEO])


def overview_and_tile():
    """A 1 x 2 overview, then a 2 x 2 tile read column by column, a newline behind each column that serves it."""
    order = torch.tensor([0, 1, 2, 4, -1, 3, 5, -1])
    side, box = torch.tensor([[1, 2], [2, 2]]), torch.tensor([WHOLE, [0.5, 0.0, 1.0, 1.0]])
    at = torch.arange(8)
    first = torch.tensor([0, 0, 0, 0, 2, 0, 0, 5])
    last = torch.where(order < 0, at - 1, at)
    return Picture(side, order, box, torch.zeros(2, dtype=torch.long), first, last)


def video():
    """Two frames of 1 x 3 tokens behind a structural token with an empty span."""
    order = torch.tensor([-1, 0, 1, 2, 3, 4, 5])
    return Picture(
        torch.tensor([[1, 3]] * 2), order, torch.tensor([WHOLE] * 2), torch.arange(2), order * 0 + 1, order * 0
    )


ROWS = ["tvvvtvvvvtiiitiiiii", "t", "tiiiiiiiittvvvvvvvt"]  # pictures broken by text, as timestamps break videos


def arranged(side="left"):
    prompts = prompt(ROWS, side)
    pictures = [[overview_and_tile(), overview_and_tile()], [video(), video()]]
    owner = [owners(prompts, kind, of_kind) for kind, of_kind in enumerate(pictures)]
    return Arrangement.of(prompts, pictures, owner, torch.arange(3)), pictures, owner


@pytest.mark.parametrize("side", ["left", "right"])
def test_views_tokens_and_spans_equal_a_token_by_token_reference(side):
    arrangement, pictures, owner = arranged(side)
    layout, packed, structural = arrangement.layout, 0, {}
    want = {}  # (sample, image, view) -> {(row, column): (column in the prompt, packed feature)}
    order = {0: {1: 0, 0: 1}, 2: {0: 0, 1: 1}}  # sample -> kind -> which picture of the sample it is
    for kind, of_kind in enumerate(pictures):
        for picture, p in zip(of_kind, owner[kind].tolist(), strict=True):
            columns = [c for c, letter in enumerate(ROWS[p]) if letter == "iv"[kind]]
            for n, cell in enumerate(picture.order.tolist()):
                if cell < 0:
                    empty = picture.first[n] > picture.last[n]
                    span = None if empty else (columns[picture.first[n]], columns[picture.last[n]])
                    structural[p, columns[n]] = packed, span
                else:
                    view = 0
                    while cell >= picture.side[view].prod():
                        cell -= int(picture.side[view].prod())
                        view += 1
                    place = divmod(cell, int(picture.side[view, 1]))
                    want.setdefault((p, order[p][kind], view), {})[place] = columns[n], packed
                packed += 1
    assert layout.sample.tolist() == [0] * 4 + [2] * 4
    assert layout.image.tolist() == [0, 0, 1, 1] * 2
    assert layout.frame.tolist() == [0, 1, 0, 0, 0, 0, 0, 1]
    assert layout.untouched.tolist() == [12, 0, 12]
    positions = {}
    for v in range(8):
        nth = sum(int(layout.image[u] == layout.image[v] and layout.sample[u] == layout.sample[v]) for u in range(v))
        for n in layout.valid[v].nonzero()[:, 0].tolist():
            place = tuple(layout.grid[v, n].tolist())
            at = int(layout.column[v, n]), int(arrangement.source[v, n])
            positions.setdefault((int(layout.sample[v]), int(layout.image[v]), nth), {})[place] = at
    assert positions == want
    assert (layout.grid[~layout.valid] == -1).all()
    extra = arrangement.structural
    spans = {
        (int(extra.sample[u]), int(extra.column[u])): (
            int(arrangement.extra[u]),
            None if extra.first[u] > extra.last[u] else (int(extra.first[u]), int(extra.last[u])),
        )
        for u in range(len(extra.sample))
    }
    assert spans == structural


def test_origin_is_the_order_in_which_the_towers_encode():
    arrangement, *_ = arranged()
    assert arrangement.origin.tolist() == [4, 5, 0, 1, 2, 3, 6, 7]  # images of all samples first, then videos


def test_packed_features_come_out_at_their_tokens_and_padding_is_zero():
    arrangement, *_ = arranged()
    packed = torch.arange(30.0)[:, None] + 1
    evidence = arrangement.evidence(packed, {})
    valid = evidence.layout.valid
    assert torch.equal(evidence.tokens[valid][:, 0], arrangement.source[valid] + 1.0)
    assert not evidence.tokens[~valid].any()
    assert torch.equal(evidence.structural.tokens[:, 0], arrangement.extra + 1.0)
    with pytest.raises(ValueError, match="the model made 29 visual tokens, the layout has"):
        arrangement.evidence(packed[1:], {})


def test_a_picture_across_two_prompts_is_an_error():
    with pytest.raises(ValueError, match=r"hold \[3, 5\] image placeholders, but the pictures make \[8\] tokens"):
        owners(prompt(["tiii", "iiiii"]), 0, [overview_and_tile()])


def test_columns_do_not_count_padding_on_either_side():
    values = torch.tensor([[9, 9, 1, 2], [3, 4, 5, 6]])
    real = torch.tensor([[False, False, True, True], [True] * 4])
    assert align_columns(values, real)[:, :2].tolist() == [[1, 2], [3, 4]]
    assert align_columns(torch.stack([values, values + 10]), real)[1, 0, :2].tolist() == [11, 12]


def test_checksums_tell_pictures_apart_and_do_not_depend_on_their_batch():
    pixels = torch.rand(6, 3, 4, generator=torch.Generator().manual_seed(0))
    together = checksums(pixels, [2, 1, 3])
    assert [checksums(pixels[:2], [2]), checksums(pixels[2:3], [1]), checksums(pixels[3:], [3])] == [
        [x] for x in together
    ]
    assert checksums(pixels.flip(0)[4:], [2]) != together[:1]  # the same rows in another order
    padded = torch.cat([pixels[2:3], torch.zeros(1, 3, 4)], 1)
    assert checksums(padded.view(1, -1), [1]) == [checksums(pixels[2:3].view(1, -1), [1])[0]]
    same_prompts = prompt(["ti", "ti"])
    first, second = sample_keys(same_prompts, (), torch.tensor([0, 1]), [7, 8]).tolist()
    assert first != second
