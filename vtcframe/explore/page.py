"""The layout and the HTML of the page of `vtcframe explore`."""

import base64
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gradio
from gradio import themes
from jinja2 import Environment
from PIL import Image

from vtcframe.assets import bundled
from vtcframe.data.formats import read_samples
from vtcframe.data.results import Prediction
from vtcframe.drawing import kept_tokens, score_map
from vtcframe.explore.session import FRACTION, NONE, TOKENS, AnswerPair, Questioner, describe_error, method_names

EXAMPLES = (
    "scene-007-color",
    "scene-002-count",
    "scene-017-letter",
    "scene-013-exist",
)  # examples on which methods give different answers
FIRST_METHOD, SECOND_METHOD = "VtcCls", "UniformPruner"  # initial values of the controls
INITIAL_FRACTION = 0.125
DAY = 86400  # seconds
FONT = themes.Font("sans-serif")  # the browser's default font
LAUNCH: dict[str, Any] = {  # options of gradio's launch
    "theme": themes.Base(primary_hue="indigo", neutral_hue="slate", font=FONT, font_mono=FONT).set(
        body_text_color_subdued="*neutral_500"  # the default has too little contrast
    ),
    "share": False,  # gradio shares by default in some environments
    "run_history": False,
    "footer_links": [],  # the settings and API pages have external links
    "enable_monitoring": False,
    "ssr_mode": False,
    "mcp_server": False,
    "pwa": False,
    "quiet": True,
    "show_error": True,  # gradio's message about a file that is not a picture
}
STYLE = """<style>
.gradio-container {max-width: 80rem !important; --font: system-ui, sans-serif}
.gradio-container .vtc h1 {font-size: 1.35rem; margin: 0}
.gradio-container .vtc p {margin: .25rem 0}
.gradio-container .vtc-note {font-size: .875rem; color: var(--body-text-color-subdued); overflow-wrap: anywhere}
.gradio-container .vtc-alert {border-left: 3px solid #dc2626; padding: .25rem .75rem; overflow-wrap: anywhere}
.vtc-answers {display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 18rem), 1fr)); gap: 1.5rem}
.vtc-answers article {min-width: 0}
.gradio-container .vtc-answers h2 {font-size: 1rem; margin: 0; overflow-wrap: anywhere}
.gradio-container .vtc-answers .answer {font-size: 1.5rem; line-height: 1.3; overflow-wrap: anywhere}
.vtc-answers dl {display: grid; grid-template-columns: auto 1fr; gap: 0 .75rem; margin: .25rem 0 .75rem}
.vtc-answers dd {margin: 0; font-variant-numeric: tabular-nums}
.vtc-answers figure {margin: 0 0 .75rem}
.vtc-answers img {display: block; max-width: 100%; height: auto}
.gradio-container .vtc-answers :is(dt, figcaption) {font-size: .875rem; color: var(--body-text-color-subdued)}
</style>"""
HEAD = """<header class="vtc"><h1>Tokens that a pruner keeps</h1>
<p>Ask {{ model }} about a picture, with all visual tokens and with the tokens that two methods keep.</p>
{% if forms %}<p class="vtc-note">Supported questions: {{ forms | join(", ") }}</p>{% endif %}</header>"""
ALERT = """<p class="vtc-alert" role="alert">{{ reason }}</p>"""
NOTE = """<p class="vtc-note">{{ text }}</p>"""
ANSWERS = """<section class="vtc vtc-answers" aria-label="Answers">
{% for panel in panels %}<article aria-label="{{ panel.title }}"><h2>{{ panel.title }}</h2>
{% if panel.reason %}<p class="vtc-alert" role="alert">{{ panel.reason }}</p>{% else %}
<p class="answer">{{ panel.row.prediction or "(empty answer)" }}</p>
<dl><dt>Visual tokens</dt><dd>{{ panel.row.visual_tokens }} of {{ panel.row.visual_tokens_before }}</dd>
{% if panel.row.mean_tokens_per_layer != panel.row.visual_tokens %}
<dt>Mean over layers</dt><dd>{{ "%.4g" | format(panel.row.mean_tokens_per_layer) }}</dd>{% endif %}
<dt>Time of this call</dt><dd>{{ "%.3g" | format(panel.row.seconds + panel.row.encode_seconds) }} s
{%- if panel.row.encode_seconds %} ({{ "%.3g" | format(panel.row.encode_seconds) }} s for encoding){% endif %}</dd></dl>
{% for caption, image in panel.images %}
<figure><img src="{{ image }}" alt="{{ caption }}, {{ panel.title }}"><figcaption>{{ caption }}</figcaption></figure>
{% endfor %}{% endif %}</article>
{% endfor %}</section>
<p class="vtc vtc-note">The time is that of a single call on this machine; use vtcframe bench for benchmarks. Methods
that prune after the encoder share one encoding. Colours range from the lowest to the highest score of a method.</p>"""
TEMPLATES = Environment(autoescape=True)


def build_page(questioner: Questioner) -> gradio.Blocks:
    """Build the page, with the first example in its controls."""
    backbone = questioner.explainer.backbone
    vocabulary = backbone.question_vocabulary()
    samples = {sample.id: sample for sample in read_samples(Path(bundled("vtcframe:questions")), None)}
    examples = [(str(samples[name].images[0]), samples[name].question) for name in EXAMPLES]

    def ask(picture: str | None, question: str, first: str, second: str, kind: str, amount: float | None) -> str:
        try:
            return render_answers(questioner.ask(picture, question, [first, second], kind, amount))
        except Exception as error:  # shown on the page, which stays usable
            return _render(ALERT, reason=describe_error(error))

    def describe(method: str, kind: str, amount: float | None) -> str:
        try:
            return _render(NOTE, text=questioner.describe(method, kind, amount))
        except Exception as error:
            return _render(ALERT, reason=describe_error(error))

    # there is one model, so calls that use it run one after the other
    queue: dict[str, Any] = {"concurrency_limit": 1, "concurrency_id": "model", "api_visibility": "private"}
    with gradio.Blocks(analytics_enabled=False, title="vtcframe explore", delete_cache=(DAY, DAY)) as page:
        gradio.HTML(STYLE + _render(HEAD, model=backbone.path, forms=vocabulary.templates if vocabulary else ()))
        with gradio.Row():
            with gradio.Column(scale=2, min_width=280):
                picture = gradio.Image(
                    examples[0][0],
                    label="Picture",
                    type="filepath",
                    sources=["upload", "clipboard"],
                    height=240,
                    buttons=[],
                )
                picture.preprocess = _path  # the file is decoded as in every command, with the same error messages
                with gradio.Group():
                    buttons = [gradio.Button(text, icon=path, size="sm") for path, text in examples]
            with gradio.Column(scale=3, min_width=280):
                question = gradio.Textbox(examples[0][1], label="Question")
                first, first_note = _method("First method", FIRST_METHOD, describe)
                second, second_note = _method("Second method", SECOND_METHOD, describe)
                with gradio.Row():
                    kind = gradio.Radio([FRACTION, TOKENS, NONE], value=FRACTION, label="Kind of budget")
                    amount = gradio.Number(INITIAL_FRACTION, label="Budget", step=0.001)
                button = gradio.Button("Ask", variant="primary")
        result = gradio.HTML()
        gradio.on(
            [button.click, question.submit], ask, [picture, question, first, second, kind, amount], result, **queue
        )
        for method, note in ((first, first_note), (second, second_note)):
            gradio.on([method.change, kind.change, amount.blur], describe, [method, kind, amount], note, **queue)
        for example_button, example in zip(buttons, examples, strict=True):
            example_button.click(lambda example=example: example, None, [picture, question], api_visibility="private")
    return page


def _path(payload: Any) -> str | None:
    return payload and payload.path


def _method(label: str, name: str, describe: Callable[..., str]) -> tuple[gradio.Dropdown, gradio.HTML]:
    """Make the control for a method, and the note below it with its description."""
    info = "A name, or YAML with options: {name: VtcCls, last: 3}"
    choice = gradio.Dropdown(method_names(), value=name, label=label, info=info, allow_custom_value=True)
    return choice, gradio.HTML(describe(name, FRACTION, INITIAL_FRACTION))


def render_answers(outcome: AnswerPair) -> str:
    """Return the answers to a question as HTML with embedded pictures."""
    picture = outcome.pictures[0]
    assert isinstance(picture, Image.Image)  # the page does not support videos
    panels = [{"title": "Unpruned model", "row": outcome.unpruned, "images": [("Input picture", _data_url(picture))]}]
    for method, result in outcome.methods:
        if isinstance(result, Prediction):
            drawings = (
                ("Kept tokens, framed", kept_tokens(outcome.pictures, result.views or ())),
                ("Scores", score_map(outcome.pictures, result.views or ())),
            )
            images = [(caption, _data_url(image)) for caption, image in drawings]
            panels.append({"title": str(result.label), "row": result, "images": images})
        else:
            panels.append({"title": method, "reason": result})
    return _render(ANSWERS, panels=panels)


def _render(template: str, **values: Any) -> str:
    return TEMPLATES.from_string(template).render(values)


def _data_url(image: Image.Image) -> str:
    """Return a picture as a data URL, so that no file is written to the disk."""
    png = io.BytesIO()
    image.save(png, "PNG")
    return "data:image/png;base64," + base64.b64encode(png.getvalue()).decode()
