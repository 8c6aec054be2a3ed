"""Draw what each verb does to a grid of tokens: `python docs/make_pictures.py` writes docs/images/*.svg.

Every picture is made by the parts it shows, on a scene of the bundled questions and the bundled model.
"""

import argparse
import base64
import io
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers.utils.logging import disable_progress_bar

from vtcframe import (
    Borda,
    Budget,
    ClsAttention,
    Coverage,
    Even,
    Evidence,
    Grid,
    KeyNorm,
    MaxMin,
    Mean,
    Nearest,
    Pipeline,
    Random,
    RankFusion,
    Scorer,
    Selector,
    TopK,
    Uniqueness,
    adapter_for,
)
from vtcframe.assets import bundled
from vtcframe.data.decode import load_sample
from vtcframe.data.processor import processor_inputs
from vtcframe.data.sample import Sample
from vtcframe.inference.checkpoint import Backbone

IMAGES = Path(__file__).parent / "images"
SCENES, QUESTION = ("scene-004", "scene-000"), "what color is the star ?"
SIDE, GAP, LINE, EDGE = 168, 22, 18, 12  # of a drawn picture, between pictures, of a line of text, around all
KEPT, LOST, INK = "#ffdd33", "#101418", "#202428"
MAP = ("#440154", "#3b528b", "#21918c", "#5ec962", "#fde725")  # viridis, low to high
Fill = Callable[[int, int], str]  # row, column -> attributes of a token's rectangle; "" draws none


def look(scenes: Sequence[str]) -> tuple[Evidence, list[Image.Image], int]:
    """Return what the bundled model shows about a sample of these scenes, the scenes, and the length of its prompt."""
    files = [Path(bundled("vtcframe:questions")) / "images" / f"{scene}.png" for scene in scenes]
    sample = load_sample(Sample("+".join(scenes), QUESTION, tuple(files)))
    model, processor = Backbone("vtcframe:tiny").load()
    adapter = adapter_for(model, processor)
    needs = {need for scorer in (*SCORERS.values(), *BLOCKS.values()) for need in scorer.needs}
    inputs = processor_inputs(processor, [sample])
    pictures = [Image.open(file).convert("RGB") for file in files]
    return adapter.observe(inputs, needs), pictures, inputs["input_ids"].shape[1]


BLOCKS: dict[str, Scorer] = {f"block {block}": ClsAttention(layers=(block,)) for block in (-3, -2, -1)}
SCORERS: dict[str, Scorer] = {
    "ClsAttention(last=3)": ClsAttention(last=3),
    "Uniqueness()": Uniqueness(),
    "KeyNorm()": KeyNorm(),
    "Random(seed=0)": Random(seed=0),
}
SELECTORS: dict[str, Selector] = {
    "TopK()": TopK(),
    "MaxMin()": MaxMin(),
    "Coverage()": Coverage(),
    "Grid()": Grid(),
}


def main() -> None:
    """Write every picture."""
    parser = argparse.ArgumentParser(description="Draw what each verb does to a grid of tokens.")
    parser.add_argument("--out", type=Path, default=IMAGES, help="folder; %(default)s when not given")
    folder = parser.parse_args().out
    disable_progress_bar()
    one, scenes, length = look(SCENES[:1])
    two, both, _ = look(SCENES)
    for name, drawn in {
        "evidence": evidence(one, scenes[0]),
        "scorers": scorers(one, scenes[0]),
        "ensemblers": ensemblers(one, scenes[0]),
        "allocators": allocators(two, both),
        "selectors": selectors(one, scenes[0]),
        "mergers": mergers(one, scenes[0]),
        "splice": splice(one, length),
    }.items():
        (folder / f"{name}.svg").write_text(drawn, encoding="utf-8")


def evidence(shown: Evidence, scene: Image.Image) -> str:
    """The picture, its grid of tokens, and the attention that [CLS] pays to them in three blocks."""
    outline = 'fill="none" stroke="#fff" stroke-opacity="0.6" stroke-width="0.7"'
    panels = [("the picture", panel(scene)), ("12 x 12 tokens", panel(scene, lambda row, column: outline))]
    panels += [(f"[CLS] attention, {name}", heat(scene, map_of(scorer, shown))) for name, scorer in BLOCKS.items()]
    return page(panels)


def scorers(shown: Evidence, scene: Image.Image) -> str:
    """Maps of four scorers."""
    return page([(name, heat(scene, map_of(scorer, shown))) for name, scorer in SCORERS.items()])


def ensemblers(shown: Evidence, scene: Image.Image) -> str:
    """The maps of two scorers, and three ways to make them one."""
    pair = {name: SCORERS[name] for name in ("ClsAttention(last=3)", "Uniqueness()")}
    maps = [scorer(shown) for scorer in pair.values()]
    panels = [(name, heat(scene, map_of(scorer, shown))) for name, scorer in pair.items()]
    for ensembler in (Mean(), RankFusion(), Borda()):
        panels.append((f"{type(ensembler).__name__}()", heat(scene, ensembler(maps, shown.layout)[0])))
    return page(panels)


def allocators(shown: Evidence, scenes: Sequence[Image.Image]) -> str:
    """Two pictures of one sample: the same for each, and one pool."""
    panels = []
    for title, across in (("Even()", "view"), ('across="sample"', "sample")):
        pruner = Pipeline((ClsAttention(last=3),), Mean(), Even(), TopK(), across=across)
        kept = pruner(shown, Budget(tokens=24)).kept.reshape(2, -1)
        for v, scene in enumerate(scenes):
            panels.append((f"{title}: {int(kept[v].sum())} of 24", stays(scene, kept[v])))
    return page(panels)


def selectors(shown: Evidence, scene: Image.Image) -> str:
    """Four ways to take 18 tokens with the same scores."""
    panels = []
    for name, selector in SELECTORS.items():
        pruner = Pipeline((ClsAttention(last=3),), Mean(), Even(), selector)
        panels.append((name, stays(scene, pruner(shown, Budget(tokens=18)).kept[0])))
    return page(panels)


def mergers(shown: Evidence, scene: Image.Image) -> str:
    """Which dropped tokens join which kept one."""
    pruner = Pipeline((ClsAttention(last=3),), Mean(), Even(), MaxMin())
    kept = pruner(shown, Budget(tokens=18)).kept[0]
    joins = joined(Nearest(), kept, shown)
    colours = [f"hsl({360 * i // 18}, 75%, 55%)" for i in range(18)]

    def groups(row: int, column: int) -> str:
        n = row * 12 + column
        edge = f'stroke="{LOST}" stroke-width="2"' if kept[n] else ""
        return f'fill="{colours[joins[n]]}" fill-opacity="{0.95 if kept[n] else 0.6}" {edge}'

    return page([("MaxMin() keeps 18", stays(scene, kept)), ("Nearest(): who joins whom", panel(scene, groups))])


def joined(merger: Nearest, kept: Tensor, shown: Evidence) -> list[int]:
    """Return for each token which of the kept ones it joins: a mark that only it bears arrives there."""
    marks = torch.eye(len(kept))[None]
    marked = torch.cat([shown.tokens.float(), 1e-6 * marks], -1)  # too small to change who is most alike
    probe = Evidence(marked, shown.layout, {})
    out = merger(kept[None], torch.zeros(1, dtype=torch.long), torch.zeros(1, len(kept)), probe)
    return out.tokens[0, :, shown.tokens.shape[2] :].argmax(0).tolist()


def splice(shown: Evidence, length: int) -> str:
    """The prompt before and after, a column a token, and the positions that are left."""
    kept = Pipeline((ClsAttention(last=3),), Mean(), Even(), TopK())(shown, Budget(tokens=18)).kept[0]
    before, width, high = int(shown.layout.column[0, 0]), 5.4, 26
    after = length - before - 144

    def row(y: float, title: str, places: Iterable[tuple[float, str]]) -> str:
        bars = "".join(
            f'<rect x="{EDGE + x * width:.1f}" y="{y + LINE:.1f}" width="{width - 0.8:.1f}" height="{high}" '
            f'fill="{hue}"/>'
            for x, hue in places
        )
        return text(EDGE, y + 12, title) + bars

    word, seen, gone = "#3b528b", "#21918c", "#dfe3e8"
    visual = [(before + n, seen if kept[n] else gone) for n in range(144)]
    words = [(i, word) for i in range(before)]
    whole = [*words, *visual, *((before + 144 + i, word) for i in range(after))]
    stay = [at for at in whole if at[1] != gone]
    rows = [
        ("the prompt: text, 144 visual tokens, text", whole),
        ("what the language model reads; every token keeps its position (positions: original)", stay),
        ("the same, numbered anew (positions: compact)", [(i, hue) for i, (_, hue) in enumerate(stay)]),
    ]
    drawn = "".join(row(EDGE + i * 60, title, places) for i, (title, places) in enumerate(rows))
    return svg(round(2 * EDGE + length * width), 2 * EDGE + 60 * 3 - 10, drawn)


def map_of(scorer: Scorer, shown: Evidence) -> Tensor:
    """[N]: the mean of a scorer's maps of the first view."""
    return scorer(shown)[:, 0].mean(0)


def heat(scene: Image.Image, scores: Tensor) -> str:
    """The picture in grey below its score map, coloured by rank: attention has few large values and many small."""
    rank = scores.argsort().argsort().float() / (len(scores) - 1)

    def fill(row: int, column: int) -> str:
        return f'fill="{colour(rank[row * 12 + column].item())}" fill-opacity="0.75"'

    return panel(scene.convert("L").convert("RGB"), fill)


def stays(scene: Image.Image, kept: Tensor) -> str:
    """The picture, dark where tokens are dropped."""

    def fill(row: int, column: int) -> str:
        if kept[row * 12 + column]:
            return f'fill="none" stroke="{KEPT}" stroke-width="1.4"'
        return f'fill="{LOST}" fill-opacity="0.82"'

    return panel(scene, fill)


def colour(share: float) -> str:
    """0 to 1 -> a colour between those of MAP."""
    at = min(share, 0.9999) * (len(MAP) - 1)
    low, high = ([int(MAP[int(at) + i][k : k + 2], 16) for k in (1, 3, 5)] for i in (0, 1))
    return "#" + "".join(f"{round(a + (b - a) * (at % 1)):02x}" for a, b in zip(low, high, strict=True))


def panel(scene: Image.Image, fill: Fill | None = None) -> str:
    """A picture with its 12 x 12 tokens over it, its upper left corner at 0, 0."""
    file = io.BytesIO()
    scene.quantize(48).save(file, "PNG", optimize=True)
    data = base64.b64encode(file.getvalue()).decode()
    parts = [f'<image width="{SIDE}" height="{SIDE}" href="data:image/png;base64,{data}"/>']
    step = SIDE // 12
    for row in range(12 if fill else 0):
        for column in range(12):
            if fill and (look := fill(row, column)):
                at = f'x="{column * step}" y="{row * step}" width="{step}" height="{step}"'
                parts.append(f"<rect {at} {look}/>")
    return "".join(parts)


def text(x: float, y: float, words: str) -> str:
    """One line of text."""
    return f'<text x="{x:.0f}" y="{y:.0f}">{words.replace("&", "&amp;").replace("<", "&lt;")}</text>'


def page(panels: Sequence[tuple[str, str]]) -> str:
    """Titled pictures side by side."""
    drawn = "".join(
        f'<g transform="translate({EDGE + i * (SIDE + GAP)},{EDGE})">{text(0, 12, title)}'
        f'<g transform="translate(0,{LINE + 2})">{inner}</g></g>'
        for i, (title, inner) in enumerate(panels)
    )
    width = 2 * EDGE + len(panels) * (SIDE + GAP) - GAP
    return svg(width, 2 * EDGE + LINE + 2 + SIDE, drawn)


def svg(width: Any, height: Any, drawn: str) -> str:
    """A drawing on white paper, so that it can be read on a dark page too."""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'font-family="sans-serif" font-size="12.5" fill="{INK}">'
        f'<rect width="{width}" height="{height}" rx="6" fill="#fff"/>{drawn}</svg>\n'
    )


if __name__ == "__main__":
    main()
