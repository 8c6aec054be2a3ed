"""The page of `vtcframe explore` in a browser that may send requests to no other host."""

import re

import pytest
from PIL import Image

from support.explore_page import CHROMIUM, QUIET, answered, serving

pytest.importorskip("gradio", reason="the extra `explore` is not installed")


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gradio")
    with serving(folder) as (address, lines):
        assert f"vtcframe:tiny can be asked at {address} (Ctrl+C ends it)\n" in lines, "".join(lines)
        yield address
    assert not list(folder.rglob("mine.png"))  # that was uploaded
    port = int(address.rsplit(":", 1)[1].rstrip("/"))
    heard = [line.split(maxsplit=2) for line in lines if line.startswith("HEARD")]
    asked = {what.strip() for _, event, what in heard if event == "socket.connect"}
    assert asked == {f"('127.0.0.1', {port})"}
    assert {what.strip() for _, event, what in heard if event == "socket.getaddrinfo"} <= {f"('127.0.0.1', {port})"}
    assert not any(event == "webbrowser.open" for _, event, _ in heard)


@pytest.fixture(scope="module")
def browser():
    driver = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if not CHROMIUM.exists():
        pytest.skip(f"there is no {CHROMIUM}")
    with (
        driver.sync_playwright() as playwright,
        playwright.chromium.launch(executable_path=str(CHROMIUM), args=QUIET) as chromium,
    ):
        yield chromium


@pytest.fixture
def opened(browser, served):
    """Open pages that must neither complain nor ask anybody but their own server."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    said, requests = [], []
    context.on("request", lambda request: requests.append(request.url))

    def open_one():
        page = context.new_page()
        page.on("console", lambda message: message.type == "error" and said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("websocket", lambda one: requests.append(one.url))
        page.goto(served)
        page.get_by_role("button", name="Ask").wait_for()
        return page

    yield open_one
    context.close()
    assert said == []
    assert [url for url in requests if not url.startswith((served, "data:", f"blob:{served}"))] == []


def choose(page, label, text):
    box = page.get_by_role("combobox", name=label)
    box.fill(text)
    box.press("Tab")


def test_two_methods_are_seen_side_by_side_an_error_is_told_and_the_page_goes_on(opened):
    page = opened()
    choose(page, "First method", "{name: VtcCls, last: 2}")
    page.get_by_role("combobox", name="Second method").click()
    page.get_by_role("option", name="RandomPruner").click()
    page.get_by_role("radio", name="tokens").check()
    page.get_by_label("Budget", exact=True).fill("9")
    panels = answered(page)
    names = ["Untouched model", "VtcCls(last=2)", "RandomPruner(seed=0)"]
    assert panels.get_by_role("heading").all_text_contents() == names
    shown = [panels.get_by_role("article", name=name).inner_text() for name in names]
    assert [re.search(r"\d+ of \d+", text)[0] for text in shown] == ["144 of 144", "9 of 144", "9 of 144"]
    assert all(re.search(r"This one call\s+[\d.e-]+ s", text) for text in shown)
    assert panels.get_by_role("img").count() == 5
    assert page.eval_on_selector_all(".vtc-answers img", "all => all.every(one => one.naturalWidth >= 480)")
    page.get_by_label("Question").fill("what color is the dog ?")
    page.get_by_role("button", name="Ask").click()
    page.get_by_role("alert").filter(has_text="the model does not know 'dog'").wait_for()
    assert panels.count() == 0
    page.get_by_role("button", name="is there a red circle ?").click()
    page.wait_for_function("document.querySelector('textarea, input[type=text]').value.includes('red circle')")
    assert answered(page).get_by_role("article", name="Untouched model").get_by_text("no", exact=True).count() == 1


def test_methods_tell_what_they_are_or_why_they_cannot_be_used_when_they_are_chosen(opened):
    page = opened()
    page.get_by_text("VTC-CLS (arXiv 2412.05819): ").wait_for()
    choose(page, "First method", "PyramidDrop")
    page.get_by_role("alert").filter(has_text="can be pruned before layers 1 to 3").wait_for()
    choose(page, "First method", "{name: support.explore_page.Breaks}")
    page.get_by_text("A stranger's pruner that fails.").wait_for()
    panels = answered(page)
    assert "ZeroDivisionError" in panels.get_by_role("alert").inner_text()
    assert panels.get_by_role("article", name="UniformPruner()").get_by_role("img").count() == 2


def test_a_picture_of_ones_own_and_a_file_that_is_none(opened, tmp_path):
    page = opened()
    Image.new("RGBA", (200, 100), "red").save(tmp_path / "mine.png")
    page.get_by_role("button", name="Remove Image").click()
    page.get_by_role("button", name="Ask").click()
    page.get_by_role("alert").filter(has_text="there is no picture").wait_for()
    page.locator("input[type=file]").set_input_files(tmp_path / "mine.png")
    page.get_by_role("button", name="Remove Image").wait_for()
    given = answered(page).get_by_role("img", name="The picture as given")
    assert given.evaluate("one => [one.naturalWidth, one.naturalHeight]") == [400, 200]
    (tmp_path / "junk.png").write_text("no picture")
    page.get_by_role("button", name="Remove Image").click()
    page.locator("input[type=file]").set_input_files(tmp_path / "junk.png")
    page.get_by_role("button", name="Remove Image").wait_for()
    page.get_by_role("button", name="Ask").click()
    page.get_by_role("alert").filter(has_text="cannot read the image junk.png: UnidentifiedImageError").wait_for()
    page.get_by_role("button", name="how many shapes are there ?").click()
    page.wait_for_function("document.querySelector('textarea, input[type=text]').value.includes('how many')")
    assert answered(page).get_by_role("article", name="Untouched model").get_by_text("three").count() == 1


def test_everything_is_reached_with_the_keyboard_and_enter_asks(opened):
    page = opened()
    reached = []
    for _ in range(40):
        page.keyboard.press("Tab")
        reached.append(
            page.evaluate("""(() => {
            const at = document.activeElement;
            return at.getAttribute('aria-label') || at.labels?.[0]?.innerText.trim() || at.innerText;
        })()""")
        )
        if reached[-1] == "Ask":
            break
    told = " | ".join(reached)
    names = "Upload", "how many shapes are there ?", "Question", "First method", "Second method", "fraction", "Budget"
    assert all(name in told for name in (*names, "Ask")), told
    page.get_by_label("Question").focus()
    page.keyboard.press("Enter")
    page.get_by_role("region", name="Answers").wait_for()


@pytest.mark.parametrize("width", [360, 1280])
def test_the_page_is_no_wider_than_its_screen(opened, width):
    page = opened()
    page.set_viewport_size({"width": width, "height": 780})
    choose(
        page,
        "First method",
        "{name: Pipeline, scorers: [{name: ClsAttention, last: 3}], ensembler: Mean, allocator: Even, selector: TopK}",
    )
    choose(page, "Second method", "ToMe")
    panels = answered(page)
    assert panels.get_by_role("article", name="ToMe").get_by_role("alert").count() == 1
    assert page.evaluate("document.documentElement.scrollWidth") == width
    boxes = [one.bounding_box() for one in panels.get_by_role("article").all()]
    assert len({round(box["x"]) for box in boxes}) == (1 if width == 360 else 3)


def test_two_people_are_answered_one_after_the_other(opened):
    pages = [opened(), opened()]
    for page in pages:
        choose(page, "First method", "{name: support.explore_page.Alone}")
    for page in pages:
        page.get_by_role("button", name="Ask").click()
    for page in pages:
        page.get_by_role("region", name="Answers").wait_for()
        assert page.get_by_role("alert").count() == 0
