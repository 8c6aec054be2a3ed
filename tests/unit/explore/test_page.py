"""The page of `vtcframe explore` in a browser, without requests to other hosts."""

import re

import pytest
from PIL import Image

from support.explore_page import CHROMIUM, QUIET, answer_panels, serving

pytest.importorskip("gradio", reason="the extra `explore` is not installed")


@pytest.fixture(scope="module")
def address_of_page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gradio")
    with serving(folder) as (address, lines):
        assert f"Serving vtcframe:tiny at {address} (press Ctrl+C to stop)\n" in lines, "".join(lines)
        yield address
    assert not list(folder.rglob("upload.png"))  # the uploaded file
    port = int(address.rsplit(":", 1)[1].rstrip("/"))
    events = [line.split(maxsplit=2) for line in lines if line.startswith("AUDIT")]
    connections = {detail.strip() for _, event, detail in events if event == "socket.connect"}
    assert connections == {f"('127.0.0.1', {port})"}
    assert {detail.strip() for _, event, detail in events if event == "socket.getaddrinfo"} <= {
        f"('127.0.0.1', {port})"
    }
    assert not any(event == "webbrowser.open" for _, event, _ in events)


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
def opened(browser, address_of_page):
    """Return a function that opens the page; console errors and requests to other servers fail the test."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    errors, requests = [], []
    context.on("request", lambda request: requests.append(request.url))

    def open_page():
        page = context.new_page()
        page.on("console", lambda message: message.type == "error" and errors.append(message.text))
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("websocket", lambda websocket: requests.append(websocket.url))
        page.goto(address_of_page)
        page.get_by_role("button", name="Ask").wait_for()
        return page

    yield open_page
    context.close()
    assert errors == []
    assert [url for url in requests if not url.startswith((address_of_page, "data:", f"blob:{address_of_page}"))] == []


def choose(page, label, text):
    box = page.get_by_role("combobox", name=label)
    box.fill(text)
    box.press("Tab")


def test_two_methods_appear_side_by_side_and_the_page_recovers_from_an_error(opened):
    page = opened()
    choose(page, "First method", "{name: VtcCls, last: 2}")
    page.get_by_role("combobox", name="Second method").click()
    page.get_by_role("option", name="RandomPruner").click()
    page.get_by_role("radio", name="tokens").check()
    page.get_by_label("Budget", exact=True).fill("9")
    panels = answer_panels(page)
    names = ["Unpruned model", "VtcCls(last=2)", "RandomPruner(seed=0)"]
    assert panels.get_by_role("heading").all_text_contents() == names
    texts = [panels.get_by_role("article", name=name).inner_text() for name in names]
    assert [re.search(r"\d+ of \d+", text)[0] for text in texts] == ["144 of 144", "9 of 144", "9 of 144"]
    assert all(re.search(r"Time of this call\s+[\d.e-]+ s", text) for text in texts)
    assert panels.get_by_role("img").count() == 5
    assert page.eval_on_selector_all(".vtc-answers img", "all => all.every(image => image.naturalWidth >= 480)")
    page.get_by_label("Question").fill("what color is the dog ?")
    page.get_by_role("button", name="Ask").click()
    page.get_by_role("alert").filter(has_text="the model does not know 'dog'").wait_for()
    assert panels.count() == 0
    page.get_by_role("button", name="is there a red circle ?").click()
    page.wait_for_function("document.querySelector('textarea, input[type=text]').value.includes('red circle')")
    assert answer_panels(page).get_by_role("article", name="Unpruned model").get_by_text("no", exact=True).count() == 1


def test_choosing_a_method_shows_its_description_or_why_it_cannot_be_used(opened):
    page = opened()
    page.get_by_text("VTC-CLS (arXiv 2412.05819): ").wait_for()
    choose(page, "First method", "PyramidDrop")
    page.get_by_role("alert").filter(has_text="can be pruned before layers 1 to 3").wait_for()
    choose(page, "First method", "{name: support.explore_page.Breaks}")
    page.get_by_text("A third-party pruner that fails.").wait_for()
    panels = answer_panels(page)
    assert "ZeroDivisionError" in panels.get_by_role("alert").inner_text()
    assert panels.get_by_role("article", name="UniformPruner()").get_by_role("img").count() == 2


def test_an_uploaded_picture_and_an_invalid_file(opened, tmp_path):
    page = opened()
    Image.new("RGBA", (200, 100), "red").save(tmp_path / "upload.png")
    page.get_by_role("button", name="Remove Image").click()
    page.get_by_role("button", name="Ask").click()
    page.get_by_role("alert").filter(has_text="there is no picture").wait_for()
    page.locator("input[type=file]").set_input_files(tmp_path / "upload.png")
    page.get_by_role("button", name="Remove Image").wait_for()
    image = answer_panels(page).get_by_role("img", name="Input picture")
    assert image.evaluate("image => [image.naturalWidth, image.naturalHeight]") == [400, 200]
    (tmp_path / "junk.png").write_text("no picture")
    page.get_by_role("button", name="Remove Image").click()
    page.locator("input[type=file]").set_input_files(tmp_path / "junk.png")
    page.get_by_role("button", name="Remove Image").wait_for()
    page.get_by_role("button", name="Ask").click()
    page.get_by_role("alert").filter(has_text="cannot read the image junk.png: UnidentifiedImageError").wait_for()
    page.get_by_role("button", name="how many shapes are there ?").click()
    page.wait_for_function("document.querySelector('textarea, input[type=text]').value.includes('how many')")
    assert answer_panels(page).get_by_role("article", name="Unpruned model").get_by_text("three").count() == 1


def test_the_keyboard_reaches_every_control_and_enter_submits(opened):
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
    focused = " | ".join(reached)
    names = "Upload", "how many shapes are there ?", "Question", "First method", "Second method", "fraction", "Budget"
    assert all(name in focused for name in (*names, "Ask")), focused
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
    panels = answer_panels(page)
    assert panels.get_by_role("article", name="ToMe").get_by_role("alert").count() == 1
    assert page.evaluate("document.documentElement.scrollWidth") == width
    boxes = [article.bounding_box() for article in panels.get_by_role("article").all()]
    assert len({round(box["x"]) for box in boxes}) == (1 if width == 360 else 3)


def test_two_simultaneous_questions_are_answered_one_after_the_other(opened):
    pages = [opened(), opened()]
    for page in pages:
        choose(page, "First method", "{name: support.explore_page.Alone}")
    for page in pages:
        page.get_by_role("button", name="Ask").click()
    for page in pages:
        page.get_by_role("region", name="Answers").wait_for()
        assert page.get_by_role("alert").count() == 0
