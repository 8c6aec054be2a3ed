import pytest
from PIL import Image

from vtcframe import Budget, RandomPruner, VtcCls, adapter_for
from vtcframe.data.results import Prediction
from vtcframe.drawing import GAP, cells, file_name, kept_tokens, score_map, sheet
from vtcframe.runs.rows import view_records
from vtcframe.testing.tiny_models.llava_families import draw, make_inputs

WHITE = Image.new("RGB", (80, 80), "white")


def view(kept, scores=None, box=(0, 0, 1, 1), image=0):
    scores = [[float(one or 0) for one in line] for line in kept] if scores is None else scores
    return {"image": image, "frame": 0, "box": list(box), "kept": kept, "scores": scores}


def row(views=None, method="VtcCls(last=3)", budget=None):
    return Prediction("a/b", None, "?", "red", method, budget, "red", 2, 4, 0, views=views)


def brightness(picture, x, y):
    return sum(picture.getpixel((round(x), round(y)))) / 3


def test_kept_tokens_are_bright_and_outlined_and_dropped_ones_dark():
    drawn = kept_tokens([WHITE], [view([[True, False], [False, True]])])
    assert drawn.size == (80, 80)
    assert brightness(drawn, 20, 20) == brightness(drawn, 60, 60) == 255
    assert brightness(drawn, 60, 20) == brightness(drawn, 20, 60) < 70
    assert drawn.getpixel((0, 0)) == drawn.getpixel((39, 39)) == (255, 221, 51)
    assert brightness(drawn, 40, 0) < 70


def test_the_score_map_goes_from_the_lowest_to_the_highest_score_over_the_tokens_own_places():
    scores = [[0.0, 1.0], [0.5, None]]
    drawn = score_map([WHITE], [view([[False, True], [False, None]], scores)])
    low, high, middle, none = (drawn.getpixel(at) for at in ((20, 20), (60, 20), (20, 60), (60, 60)))
    assert low == (124, 77, 135)  # the ends of viridis, seven parts of it to three of white
    assert high == (253, 238, 102)
    assert len({low, high, middle, none}) == 4
    assert none == (255, 255, 255)


def test_equal_scores_are_grey_and_told():
    drawn = score_map([WHITE], [view([[True, False]], [[0.0, 0.0]])])
    red, green, blue = drawn.getpixel((20, 40))
    assert red == green == blue


def test_pictures_of_a_sample_and_views_that_cover_each_other_get_panels_of_their_own():
    half = [view([[True]], box=(0, 0, 0.5, 1)), view([[False]], box=(0.5, 0, 1, 1))]
    drawn = kept_tokens([WHITE, WHITE], [view([[False]]), *half, view([[True]], image=1)])
    assert drawn.size == (3 * 80 + 2 * GAP, 80)
    step = 80 + GAP
    assert [brightness(drawn, 40 + n * step, 20) > 200 for n in (0, 1, 2)] == [False, True, True]
    assert brightness(drawn, 40 + step, 60) < 70


@pytest.mark.parametrize("size", [(70, 150), (160, 80), (60, 60)])
@pytest.mark.parametrize("pruner", [RandomPruner(), VtcCls(2)])
def test_tokens_of_tiles_land_where_their_centres_lie_in_the_picture(llava_next, size, pruner):
    model, processor = llava_next
    inputs = make_inputs(processor, [("USER : <image> what ?", [draw(*size, 1)])])
    evidence = adapter_for(model).observe(inputs, pruner.needs)
    pruned = pruner(evidence, Budget(ratio=0.4))
    layout = evidence.layout
    picture = Image.new("RGB", (size[1] * 4, size[0] * 4), "white")
    drawn = kept_tokens([picture], view_records(layout, pruned, 0))
    assert drawn.width == 2 * picture.width + GAP
    for v in range(len(layout.sample)):
        start = 0 if v == 0 else picture.width + GAP
        for n in layout.valid[v].nonzero()[:, 0].tolist():
            y, x = layout.centre[v, n].tolist()
            bright = brightness(drawn, start + x * picture.width, y * picture.height) > 200
            assert bright == bool(pruned.kept[v, n])


def test_a_sheet_has_a_line_for_each_method_and_one_map_for_the_budgets_that_share_it():
    kept, other = [view([[True, False]])], [view([[False, True]])]
    shared = view([[False, True]], kept[0]["scores"])
    plain = sheet([WHITE], [row(method="unpruned")])
    one = sheet([WHITE], [row(method="unpruned"), row(kept, budget={"ratio": 0.5})])
    same = sheet([WHITE], [row(kept, budget={"ratio": 0.5}), row([shared], budget={"ratio": 0.25})])
    differ = sheet([WHITE], [row(kept, budget={"ratio": 0.5}), row(other, budget={"ratio": 0.25})])
    assert one.height > plain.height
    assert (same.width - 2 * GAP + GAP) % 3 == 0  # map, kept, kept
    assert (differ.width - 2 * GAP + GAP) % 4 == 0  # each with its map
    assert differ.width > same.width > one.width


def test_small_pictures_are_enlarged_in_whole_steps_and_large_ones_shrunk():
    assert sheet([Image.new("RGB", (96, 48))], [row()]).width == sheet([Image.new("RGB", (384, 192))], [row()]).width
    assert sheet([Image.new("RGB", (4000, 2000))], [row()]).width < 1000


@pytest.mark.parametrize("identity", ["a/b", "../up", "a b", "", "é" * 300, "x" * 300, "con:1"])
def test_file_names_are_safe_and_differ_where_ids_do(identity):
    name = file_name(identity, ".png")
    assert set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789_-.")
    assert len(name) < 100
    assert name not in {file_name(other, ".png") for other in ("a_b", "___up", "x" * 80, "x" * 301)}


def test_a_safe_id_is_its_own_file_name():
    assert file_name("scene-00-color", ".png") == "scene-00-color.png"


def test_frames_of_a_video_are_drawn_side_by_side_behind_the_pictures():
    frames = [Image.new("RGB", (80, 80), colour) for colour in ("red", "lime")]
    views = [view([[True]]), view([[True]], image=1), view([[False]], image=1) | {"frame": 1}]
    drawn = kept_tokens([WHITE, frames], views)
    assert drawn.size == (3 * 80 + 2 * GAP, 80)
    white, red, dark = (drawn.getpixel((40 + n * (80 + GAP), 40)) for n in range(3))
    assert (white, red) == ((255, 255, 255), (255, 0, 0))
    assert dark == (0, 63, 0)
    assert score_map([WHITE, frames], views).width >= drawn.width
    assert sheet([WHITE, frames], [row(method="unpruned"), row(views, budget={"ratio": 0.5})]).width > 2 * 384


def test_many_frames_go_on_in_the_next_line():
    views = [view([[True]]) | {"frame": n} for n in range(10)]
    drawn = kept_tokens([[WHITE] * 10], views)
    assert drawn.size == (8 * 80 + 7 * GAP, 2 * 80 + GAP)


def test_tokens_that_are_too_small_for_an_outline_have_none():
    drawn = kept_tokens([WHITE], [view([[True] * 16] * 16)])
    assert brightness(drawn, 0, 0) == brightness(drawn, 42, 42) == 255


def test_cells_are_cut_to_the_picture():
    kept = [[True, None], [False, True]]
    assert cells(view(kept, box=(-0.5, 0, 0.5, 1)), 40, 20) == [[None, None], [(0, 0, 20, 10), (20, 0, 40, 10)]]
    assert cells(view(kept), 40, 20) == [[(0, 0, 20, 10), None], [(0, 10, 20, 20), (20, 10, 40, 20)]]
