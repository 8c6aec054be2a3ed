"""The page of `vtcframe explore`: its functions, its command, and the page in a browser that may ask nobody else.

`python tests/test_explore.py docs/images/explore.png` draws the picture of docs/explore.md anew.
"""

import asyncio
import gc
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from PIL import Image

pytest.importorskip("gradio", reason="the extra `explore` is not installed")

from vtcframe import Budget, Pruner, RandomPruner, VtcCls, explore, explore_answers, predict
from vtcframe.backbone import Backbone
from vtcframe.config import UsageError, bundled
from vtcframe.explain import Explainer, explain
from vtcframe.explore import _bypass_proxies
from vtcframe.explore_answers import FRACTION, NONE, TOKENS, Outcome, Questioner, budget_of, methods, told
from vtcframe.explore_page import answers
from vtcframe.metrics import Row
from vtcframe.registry import Entry, entries

CHROMIUM = Path("/usr/bin/chromium")
SCENES = Path(bundled("vtcframe:questions")) / "images"
SCENE = str(SCENES / "scene-000.png")
QUESTION = "what shape is purple ?"
QUIET = "--no-sandbox --disable-gpu --disable-background-networking --disable-component-update".split()
SERVER = """
import signal
import sys

signal.signal(signal.SIGINT, signal.default_int_handler)  # whoever runs the tests in the background has it ignored

def heard(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo", "webbrowser.open"):
        print("HEARD", event, arguments[1] if event == "socket.connect" else arguments[:2], file=sys.stderr, flush=True)

sys.addaudithook(heard)
from vtcframe.explore import main

sys.exit(main(sys.argv[1:]))
"""


@dataclass(frozen=True)
class Breaks(Pruner):
    """A stranger's pruner that fails."""

    def __call__(self, evidence, budget=None):
        return 1 / 0


@dataclass(frozen=True)
class Alone(Pruner):
    """Fails where another one is at work."""

    def __call__(self, evidence, budget=None):
        assert BUSY.acquire(blocking=False), "two at a time"
        try:
            time.sleep(0.3)
            return RandomPruner()(evidence, budget)
        finally:
            BUSY.release()


BUSY = threading.Lock()


@pytest.fixture(scope="module")
def questioner():
    return Questioner(Explainer("vtcframe:tiny"))


def ask(questioner, methods=("VtcCls", "UniformPruner"), kind=TOKENS, amount=18, picture=SCENE, question=QUESTION):
    return questioner.ask(picture, question, methods, kind, amount)


# What is asked and answered


@pytest.mark.parametrize(("kind", "amount", "budget"), [(TOKENS, 18, Budget(18)), (FRACTION, 0.25, Budget(None, 0.25))])
def test_answers_are_those_of_explain(questioner, kind, amount, budget):
    outcome = ask(questioner, ["VtcCls", "{name: RandomPruner, seed: 5}"], kind, amount)
    for (_, row), pruner in zip(outcome.methods, (VtcCls(last=3), RandomPruner(seed=5)), strict=True):
        told = explain("vtcframe:tiny", QUESTION, pruner, budget, [SCENE]).numbers
        assert outcome.unpruned.prediction == told["unpruned"]["answer"]
        assert (row.method, row.prediction) == (told["pruner"], told["pruned"]["answer"])
        assert row.visual_tokens == told["pruned"]["visual_tokens"]
        assert [view["kept"] for view in row.views] == [view["kept"] for view in told["views"]]
        assert [view["scores"] for view in row.views] == [view["scores"] for view in told["views"]]


def test_the_model_is_loaded_once_and_a_picture_encoded_once_for_both_methods(monkeypatch):
    loaded, encoded, load, encode = [], [], Backbone.load, predict.encode
    monkeypatch.setattr(Backbone, "load", lambda self: loaded.append(1) or load(self))
    monkeypatch.setattr(predict, "encode", lambda *given: encoded.append(1) or encode(*given))
    questioner = Questioner(Explainer("vtcframe:tiny"))
    for _ in range(3):
        ask(questioner)
    assert (len(loaded), len(encoded)) == (1, 4)  # the first question is asked twice: the untouched model goes first


def test_the_call_whose_seconds_are_shown_is_never_the_first(monkeypatch):
    explainer = Explainer("vtcframe:tiny")
    calls, answer = [], explainer.answers
    monkeypatch.setattr(explainer, "answers", lambda *given: calls.append(answer(*given)) or calls[-1])
    questioner = Questioner(explainer)
    assert ask(questioner).unpruned is calls[1].unpruned
    ask(questioner)
    assert len(calls) == 3


def test_pictures_are_read_as_by_explain_whatever_their_mode_or_side(questioner, tmp_path):
    scene = Image.open(SCENE).convert("RGB")
    exif = Image.Exif()
    exif[274] = 6  # lies on its side
    made = {
        "turned.jpg": (scene, {"exif": exif}),
        "alpha.png": (scene.convert("RGBA"), {}),
        "grey.gif": (scene.convert("L"), {}),
    }
    for name, (picture, options) in made.items():
        picture.save(tmp_path / name, **options)
        path = f"{tmp_path}/{name}"
        (_, row), _ = ask(questioner, picture=path).methods
        told = explain("vtcframe:tiny", QUESTION, VtcCls(last=3), Budget(18), [path]).numbers
        assert row.views[0]["kept"] == told["views"][0]["kept"]
        assert row.prediction == told["pruned"]["answer"]


def test_a_wide_picture_is_shown_whole_and_its_tokens_where_they_lie(questioner, tmp_path):
    Image.new("RGB", (192, 96), "red").save(tmp_path / "wide.png")
    outcome = ask(questioner, picture=f"{tmp_path}/wide.png")
    assert outcome.pictures[0].size == (384, 192)
    assert outcome.methods[0][1].views[0]["box"] == [0, 0.25, 1, 0.75]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"picture": None}, "there is no picture: upload one"),
        ({"picture": "lost.png"}, "cannot read the image lost.png: FileNotFoundError"),
        ({"question": ""}, "there is no question: type one"),
        ({"question": None}, "there is no question"),
        ({"question": "  \n "}, "there is no question"),
        ({"question": "what color is the dog ?"}, "the model does not know 'dog'; it can be asked: what color is"),
        ({"amount": None}, "there is no budget: type a number, or choose 'none'"),
        ({"amount": 0}, "the budget: tokens must be at least 1, got 0"),
        ({"amount": 1.5}, "the budget: 1.5 is no number of tokens: choose 'fraction'"),
        ({"amount": 144}, "a budget of 144 tokens drops nothing: 144 visual tokens are all there are"),
        ({"amount": 9999}, "a budget of 9999 tokens drops nothing"),
        ({"kind": FRACTION, "amount": 18}, "must lie in (0, 1], got 18"),
        ({"kind": FRACTION, "amount": 1}, "a budget of 1 drops nothing"),
        ({"methods": ["VtcCsl", "VtcCsl"]}, "no pruner is called 'VtcCsl'. Did you mean VtcCls?"),
        ({"methods": [None, " "]}, "there is no method: choose one"),
        ({"kind": NONE}, "shares out a budget: give tokens or ratio"),
    ],
)
def test_what_cannot_be_asked_is_told_in_a_sentence(questioner, given, message):
    if given.get("kind") == NONE:
        given = given | {"methods": ["VtcCls", "VtcCls"]}
    with pytest.raises(UsageError) as error:
        ask(questioner, **given)
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert ask(questioner).unpruned.prediction == "square"  # it goes on


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ("VtcCsl", "no pruner is called 'VtcCsl'. Did you mean VtcCls?"),
        ("{name: VtcCls, lst: 3}", "'lst'"),
        ("{name: VtcCls, last: 0}", "last counts blocks"),
        ("{name: VtcCls, last: 9}", "a block beyond the 3"),
        ("{name: VtcCls, last: [3}", "VtcCls"),
        ("TopK", "no pruner is called 'TopK'"),
        ("Pipeline", "the following arguments are required: scorers"),
        ("ToMe", "encoder:3 is none of the 3 blocks"),
        ("PyramidDrop", "can be pruned before layers 1 to 3"),
        ("SparseVlm", "SparseVlm has numbers for 192"),
        ("VisualExit", "takes no budget"),
        ("", "there is no method"),
        ("7", "7"),
    ],
)
def test_a_method_that_cannot_be_used_is_told_and_the_other_one_answers(questioner, method, message):
    (_, row), (name, reason) = ask(questioner, ["VtcCls", method]).methods
    assert row.visual_tokens == 18
    assert name == (method or "no method")
    assert message in reason
    assert "\n" not in reason
    assert "Traceback" not in reason


def test_what_a_stranger_s_component_raises_is_told_with_its_place(questioner):
    (_, reason), (_, row) = ask(questioner, [f"{{name: {__name__}.Breaks}}", "VtcCls"]).methods
    assert "pruner Breaks() raised ZeroDivisionError: division by zero" in reason
    assert f"({__name__}, line " in reason
    assert "\n" not in reason
    assert row.prediction == ask(questioner).unpruned.prediction == "square"


def test_what_nobody_foresaw_is_told_in_a_line_and_leaves_its_trace(questioner, monkeypatch, capsys):
    def broken(self, sample, plans):
        raise KeyError("two\nlines")

    monkeypatch.setattr(Explainer, "answers", broken)
    with pytest.raises(KeyError) as raised:
        ask(questioner)
    assert told(raised.value) == "KeyError: 'two\\nlines' (the terminal shows where)"
    assert "in broken" in capsys.readouterr().err
    assert told(RuntimeError()) == "RuntimeError: it says no more (the terminal shows where)"


def test_adaptive_methods_decide_by_themselves_and_others_ask_for_a_budget(questioner):
    (_, adaptive), (_, reason) = ask(questioner, ["PruMerge", "VtcCls"], NONE, None).methods
    assert 0 < adaptive.visual_tokens < 144
    assert adaptive.budget is None
    assert "Even shares out a budget: give tokens or ratio" in reason
    assert budget_of(NONE, 7) is None


def test_all_registered_pruners_can_be_chosen_those_of_plugins_too(monkeypatch):
    assert set(methods()) == {entry.name for entry in entries() if entry.kind == "pruner"}
    brought = Entry("pruner", "Breaks", f"{__name__}:Breaks", "stranger", "1")
    monkeypatch.setattr(explore_answers, "entries", lambda: (*entries(), brought))
    assert "Breaks" in methods()
    assert methods() == sorted(methods(), key=str.casefold)


def test_each_registered_pruner_answers_or_says_why_not(questioner):
    for name in methods():
        ((_, found),) = ask(questioner, [name, "VtcCls"]).methods[:1]
        if isinstance(found, str):
            assert len(found.splitlines()) == 1
            assert "terminal" not in found, found  # all of ours are told, none traced
        else:
            assert found.views


def test_a_method_is_described_and_one_without_a_place_in_the_model_told_before_it_is_asked(questioner):
    assert questioner.about("VtcCls", FRACTION, 0.1).startswith("VTC-CLS (arXiv 2412.05819): ")
    assert questioner.about("{name: RandomPruner, seed: 3}", FRACTION, 0.1).startswith("Baseline: ")
    for method, message in (("PyramidDrop", "before layers 1 to 3"), ("VtcCsl", "Did you mean VtcCls?")):
        with pytest.raises(UsageError, match=re.escape(message)):
            questioner.about(method, FRACTION, 0.1)


def test_words_of_the_model_and_of_people_are_no_markup():
    row = Row("a", None, "?", None, "unpruned", None, "<b>bold</b>", 4, 4, 0, [4, 4], seconds=0.25, encode_seconds=0.0)
    page = answers(Outcome(row, [Image.new("RGB", (8, 8))], [("<i>", "<u>wrong</u>")]))
    assert not re.search("<[biu]>", page)
    assert "&lt;b&gt;bold" in page


def test_layers_that_read_more_than_what_is_left_and_empty_answers_are_told(questioner):
    outcome = ask(questioner, ["FastV", "VtcCls"])
    shown = answers(replace(outcome, unpruned=replace(outcome.unpruned, prediction="")))
    assert shown.count("Mean over layers") == 1
    assert shown.count("(no words)") == 1
    assert shown.count("data:image/png;base64,") == 5
    assert f"{outcome.methods[1][1].seconds + outcome.methods[1][1].encode_seconds:.3g} s" in shown


# The command


def test_neither_gradio_nor_torch_is_imported_before_there_is_something_to_serve():
    code = "import sys, vtcframe.explore; print({'gradio', 'torch', 'transformers'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "set()\n"


def test_without_gradio_the_cure_is_told(monkeypatch):
    monkeypatch.setattr(explore, "find_spec", lambda name: None)
    for start in (lambda: explore.main([]), explore.page, explore.launch_options):
        with pytest.raises(UsageError, match=re.escape("pip install 'vtcframe[explore]'")):
            start()


@pytest.mark.parametrize("port", ["0", "65536", "http"])
def test_what_is_no_port_is_told(capsys, port):
    with pytest.raises(SystemExit) as leaving:
        explore.main(["--port", port])
    assert leaving.value.code == 2
    assert "--port" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "vtcframe:tinny"], "nothing bundled is called 'vtcframe:tinny'"),
        (["--device", "banana"], "there is no device 'banana' here"),
        (["--attn", "fast"], "cannot be loaded as a checkpoint"),
    ],
)
def test_what_cannot_be_loaded_is_told(arguments, message):
    with pytest.raises(UsageError, match=re.escape(message)):
        explore.main([*arguments, "--no-browser"])


def test_a_port_that_is_taken_and_an_address_of_another_machine_are_told_before_anything_is_loaded(monkeypatch):
    monkeypatch.setattr(explore, "page", None)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        for arguments, where in (
            (["--port", port], f"127.0.0.1:{port}"),
            (["--host", "203.0.113.7"], "203.0.113.7"),
            (["--host", "2001:db8::7", "--port", "7860"], "2001:db8::7:7860"),
        ):
            with pytest.raises(UsageError, match=f"cannot serve at {where} .*: --host is an address of this machine"):
                explore.main([*arguments, "--no-browser"])


def test_what_the_environment_keeps_from_its_proxy_stays_so(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "example.org")
    monkeypatch.setenv("no_proxy", "example.org")
    _bypass_proxies("127.0.0.1")
    assert os.environ["NO_PROXY"] == os.environ["no_proxy"] == "example.org,127.0.0.1,localhost"


def test_the_page_can_stand_inside_another_one():
    import gradio

    async def both():
        with gradio.Blocks(analytics_enabled=False) as outer:
            inner = explore.page()
            inner.render()
        return inner, outer

    inner, outer = asyncio.run(both())
    assert len(outer.fns) == 7
    assert not inner.analytics_enabled


def test_a_page_leaves_no_event_loop_behind():
    def loops():
        return sum(issubclass(type(one), asyncio.AbstractEventLoop) for one in gc.get_objects())

    before = loops()
    assert explore.page().title == "vtcframe explore"
    assert loops() == before


# In a browser


@contextmanager
def serving(folder):
    """Yield the page's address and the lines that its process has written so far; `folder` is for gradio's files."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    proxy = "http://127.0.0.1:9"  # nobody is there: what is sent to it would be heard
    environment = os.environ | {
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "HTTP_PROXY": proxy,
        "HTTPS_PROXY": proxy,
        "GRADIO_TEMP_DIR": str(folder),
    }
    environment["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-c", SERVER, "--port", port, "--no-browser"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
    ) as process:
        lines = []
        reader = threading.Thread(target=lambda: lines.extend(process.stdout))
        reader.start()
        try:
            for _ in range(1200):
                if any("can be asked at" in line for line in lines) or process.poll() is not None:
                    break
                time.sleep(0.1)
            yield f"http://127.0.0.1:{port}/", lines
        finally:
            process.send_signal(signal.SIGINT)
            try:
                assert process.wait(timeout=60) == 0
            finally:
                process.kill()
                reader.join()


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


def answered(page):
    """Press the button and return the panels of the answer to come."""
    page.evaluate("document.querySelectorAll('.vtc-answers').forEach(one => one.setAttribute('data-old', ''))")
    page.get_by_role("button", name="Ask").click()
    page.locator(".vtc-answers:not([data-old])").wait_for()
    return page.get_by_role("region", name="Answers")


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
    choose(page, "First method", "{name: test_explore.Breaks}")
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
        choose(page, "First method", "{name: test_explore.Alone}")
    for page in pages:
        page.get_by_role("button", name="Ask").click()
    for page in pages:
        page.get_by_role("region", name="Answers").wait_for()
        assert page.get_by_role("alert").count() == 0


def draw(path):
    """Write the picture of docs/explore.md."""
    from playwright.sync_api import sync_playwright

    with TemporaryDirectory() as folder, serving(folder) as (address, _), sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=str(CHROMIUM), args=QUIET)
        page = chromium.new_page(viewport={"width": 1120, "height": 900})
        page.goto(address)
        answered(page)
        page.screenshot(path=path, full_page=True)
        chromium.close()


if __name__ == "__main__":
    draw(sys.argv[1])
