"""The page of the report in a browser."""

import re

import pytest

from support.browser import NARROW, WIDE, started, watched
from support.report_runs import QUARTER, folder, pages, rows
from vtcframe.data.results import Prediction
from vtcframe.report.statistics import bootstrap_unit

pytest.importorskip("scipy", reason="the extra `report` is not installed")


pytest.importorskip("jinja2", reason="the extra `report` is not installed")


@pytest.fixture(scope="module")
def browser():
    with started() as chromium:
        yield chromium


@pytest.fixture
def opened(browser, sweep):
    """Open the page; console errors and external requests fail the test."""
    pages(sweep)
    with watched(browser) as (page, errors, requests):
        page.goto((sweep / "report.html").as_uri())
        yield page
        assert errors == []
        assert [url for url in requests if not url.startswith("data:")] == [(sweep / "report.html").as_uri()]


def column(table, number):
    return table.locator(f"tbody tr td:nth-child({number})").all_text_contents()


def test_tables_sort_by_click_and_by_keyboard_with_numbers_as_numbers(opened):
    table = opened.locator("table", has=opened.locator("caption", has_text=re.compile("^Scores$"))).first
    head = table.locator("thead th").nth(4)
    head.locator("button").click()
    ascending = [float(value) for value in column(table, 5)]
    assert ascending == sorted(ascending)
    assert head.get_attribute("aria-sort") == "ascending"
    head.locator("button").focus()
    opened.keyboard.press("Enter")
    assert [float(value) for value in column(table, 5)] == ascending[::-1]
    assert head.get_attribute("aria-sort") == "descending"
    table.locator("thead th button").first.click()
    names = column(table, 1)
    assert names == sorted(names, key=str.casefold) or names == sorted(names)
    assert head.get_attribute("aria-sort") is None


def test_negative_numbers_sort_as_numbers(opened):
    table = opened.locator("table", has=opened.locator("caption", has_text="Paired differences")).first
    table.locator("thead th button").nth(2).click()
    values = [float(value) for value in column(table, 3)]
    assert values == sorted(values)
    assert min(values) < -0.5 < -0.1 < max(values)


def test_missing_figures_stay_at_the_end(opened):
    table = opened.locator("table", has=opened.locator("caption", has_text=re.compile("^Scores$"))).first
    for _ in ("ascending", "descending"):
        table.locator("thead th button").nth(5).click()
        assert column(table, 6)[0] == "0.455"
        assert set(column(table, 6)[1:]) == {"\u2013"}


def test_plots_are_drawn_and_pictures_are_shown(opened):
    assert opened.locator("svg.plot").count() == 2 + 2 * 2
    for box in (svg.bounding_box() for svg in opened.locator("svg.plot").all()):
        assert box["width"] > 250
        assert box["height"] > 180
    assert opened.locator("svg.plot").first.locator(":scope > g").count() == 5
    assert opened.eval_on_selector_all("figure img", "all => all.map(image => image.naturalWidth)") == [1000, 1000]


@pytest.mark.parametrize("width", [NARROW, WIDE])
def test_the_page_is_no_wider_than_the_screen_and_wide_tables_scroll(opened, width):
    opened.set_viewport_size({"width": width, "height": 780})
    assert opened.evaluate("document.documentElement.scrollWidth") == width
    wide = opened.eval_on_selector_all(".scroll", "all => all.map(box => box.scrollWidth > box.clientWidth)")
    assert any(wide) == (width == NARROW)


def test_a_long_name_leaves_room_for_figures_on_a_narrow_screen(browser, tmp_path):
    name = f"Pipeline(scorers=({'ClsAttention(last=3), ' * 6}), across='view')"
    folder(tmp_path / "a", rows("unpruned", "11"), rows(name, "10", QUARTER))
    pages(tmp_path)
    with watched(browser) as (page, _, _):
        page.goto((tmp_path / "report.html").as_uri())
        assert max(page.eval_on_selector_all("tbody td:first-child", "all => all.map(cell => cell.offsetWidth)")) < 180


def test_it_follows_the_colour_scheme_and_prints_on_white(opened):
    def background():
        return opened.evaluate("getComputedStyle(document.body).backgroundColor")

    opened.emulate_media(color_scheme="dark")
    assert background() == "rgb(20, 23, 27)"
    opened.emulate_media(color_scheme="dark", media="print")
    assert background() == "rgb(255, 255, 255)"
    assert opened.evaluate("getComputedStyle(document.querySelector('.scroll')).overflow") == "visible"
    assert len(opened.pdf()) > 10_000


def test_questions_about_the_same_pictures_share_a_bootstrap_unit():
    def row(name, images, **meta):
        return Prediction(name, "color", "what ?", "red", images=images, meta=meta)

    rows = [row("a", ["1.png"]), row("b", ["1.png"]), row("c", ["1.png", "2.png"]), row("d", [])]
    assert len({bootstrap_unit(question) for question in rows}) == 3
    assert bootstrap_unit(rows[0]) == bootstrap_unit(rows[1])
    assert bootstrap_unit(row("e", ["3.png"], group=1)) == bootstrap_unit(row("f", ["4.png"], group=1))
