"""How the page of `vtcframe explore` looks."""

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
from vtcframe.explore.session import FRACTION, NONE, TOKENS, Outcome, Questioner, methods, told

EXAMPLES = "scene-007-color", "scene-002-count", "scene-017-letter", "scene-013-exist"  # methods differ on each
FIRST, SECOND, SHARE = "VtcCls", "UniformPruner", 0.125  # what the page starts with
DAY = 86400  # seconds
FONT = themes.Font("sans-serif")  # the browser's own
LAUNCH: dict[str, Any] = {  # of gradio's launch
    "theme": themes.Base(primary_hue="indigo", neutral_hue="slate", font=FONT, font_mono=FONT).set(
        body_text_color_subdued="*neutral_500"  # its own is too pale to be read
    ),
    "share": False,  # not even where gradio would by itself
    "run_history": False,
    "footer_links": [],  # its settings and its API page link elsewhere
    "enable_monitoring": False,
    "ssr_mode": False,
    "mcp_server": False,
    "pwa": False,
    "quiet": True,
    "show_error": True,  # what gradio itself says of a file that is no picture
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
HEAD = """<header class="vtc"><h1>What a pruner keeps</h1>
<p>Ask {{ model }} about a picture: with all of its visual tokens, and with those that two methods keep.</p>
{% if forms %}<p class="vtc-note">It can be asked: {{ forms | join(", ") }}</p>{% endif %}</header>"""
ALERT = """<p class="vtc-alert" role="alert">{{ reason }}</p>"""
NOTE = """<p class="vtc-note">{{ text }}</p>"""
ANSWERS = """<section class="vtc vtc-answers" aria-label="Answers">
{% for one in panels %}<article aria-label="{{ one.title }}"><h2>{{ one.title }}</h2>
{% if one.reason %}<p class="vtc-alert" role="alert">{{ one.reason }}</p>{% else %}
<p class="answer">{{ one.row.prediction or "(no words)" }}</p>
<dl><dt>Visual tokens</dt><dd>{{ one.row.visual_tokens }} of {{ one.row.visual_tokens_before }}</dd>
{% if one.row.mean_tokens_per_layer != one.row.visual_tokens %}
<dt>Mean over layers</dt><dd>{{ "%.4g" | format(one.row.mean_tokens_per_layer) }}</dd>{% endif %}
<dt>This one call</dt><dd>{{ "%.3g" | format(one.row.seconds + one.row.encode_seconds) }} s
{%- if one.row.encode_seconds %} ({{ "%.3g" | format(one.row.encode_seconds) }} to encode){% endif %}</dd></dl>
{% for caption, image in one.images %}
<figure><img src="{{ image }}" alt="{{ caption }}, {{ one.title }}"><figcaption>{{ caption }}</figcaption></figure>
{% endfor %}{% endif %}</article>
{% endfor %}</section>
<p class="vtc vtc-note">Seconds are of this one call on this machine: no benchmark, vtcframe bench is one. Methods that
act behind the encoder share one encoding. Colours run from the lowest score of a method to its highest.</p>"""
TEMPLATES = Environment(autoescape=True)


def layout(questioner: Questioner) -> gradio.Blocks:
    """Return the page, with the first example in its controls."""
    backbone = questioner.explainer.backbone
    vocabulary = backbone.question_vocabulary()
    samples = {sample.id: sample for sample in read_samples(Path(bundled("vtcframe:questions")), None)}
    examples = [(str(samples[name].images[0]), samples[name].question) for name in EXAMPLES]

    def ask(picture: str | None, question: str, first: str, second: str, kind: str, amount: float | None) -> str:
        try:
            return answers(questioner.ask(picture, question, [first, second], kind, amount))
        except Exception as error:  # the page goes on
            return _filled(ALERT, reason=told(error))

    def about(method: str, kind: str, amount: float | None) -> str:
        try:
            return _filled(NOTE, text=questioner.about(method, kind, amount))
        except Exception as error:
            return _filled(ALERT, reason=told(error))

    # the model is one: what uses it waits for its turn
    turn: dict[str, Any] = {"concurrency_limit": 1, "concurrency_id": "model", "api_visibility": "private"}
    with gradio.Blocks(analytics_enabled=False, title="vtcframe explore", delete_cache=(DAY, DAY)) as page:
        gradio.HTML(STYLE + _filled(HEAD, model=backbone.path, forms=vocabulary.templates if vocabulary else ()))
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
                picture.preprocess = _path  # a file is decoded as by every command, and told of in our words
                with gradio.Group():
                    shown = [gradio.Button(text, icon=path, size="sm") for path, text in examples]
            with gradio.Column(scale=3, min_width=280):
                question = gradio.Textbox(examples[0][1], label="Question")
                first, first_note = _method("First method", FIRST, about)
                second, second_note = _method("Second method", SECOND, about)
                with gradio.Row():
                    kind = gradio.Radio([FRACTION, TOKENS, NONE], value=FRACTION, label="Budget given as")
                    amount = gradio.Number(SHARE, label="Budget", step=0.001)
                button = gradio.Button("Ask", variant="primary")
        result = gradio.HTML()
        gradio.on(
            [button.click, question.submit], ask, [picture, question, first, second, kind, amount], result, **turn
        )
        for method, note in ((first, first_note), (second, second_note)):
            gradio.on([method.change, kind.change, amount.blur], about, [method, kind, amount], note, **turn)
        for example, one in zip(shown, examples, strict=True):
            example.click(lambda one=one: one, None, [picture, question], api_visibility="private")
    return page


def _path(payload: Any) -> str | None:
    return payload and payload.path


def _method(label: str, name: str, about: Callable[..., str]) -> tuple[gradio.Dropdown, gradio.HTML]:
    """Make the choice of a method, and what is said of it below."""
    info = "A name, or YAML with options: {name: VtcCls, last: 3}"
    choice = gradio.Dropdown(methods(), value=name, label=label, info=info, allow_custom_value=True)
    return choice, gradio.HTML(about(name, FRACTION, SHARE))


def answers(outcome: Outcome) -> str:
    """Return what became of a question as HTML, its pictures within."""
    seen = outcome.pictures[0]
    assert isinstance(seen, Image.Image)  # the page takes no videos
    panels = [{"title": "Untouched model", "row": outcome.unpruned, "images": [("The picture as given", _data(seen))]}]
    for method, found in outcome.methods:
        if isinstance(found, Prediction):
            drawn = (
                ("Kept tokens, framed", kept_tokens(outcome.pictures, found.views or ())),
                ("Scores", score_map(outcome.pictures, found.views or ())),
            )
            images = [(caption, _data(image)) for caption, image in drawn]
            panels.append({"title": str(found.label), "row": found, "images": images})
        else:
            panels.append({"title": method, "reason": found})
    return _filled(ANSWERS, panels=panels)


def _filled(template: str, **values: Any) -> str:
    return TEMPLATES.from_string(template).render(values)


def _data(image: Image.Image) -> str:
    """Return a picture as an address that holds it: no file of it is left on the disk."""
    png = io.BytesIO()
    image.save(png, "PNG")
    return "data:image/png;base64," + base64.b64encode(png.getvalue()).decode()
