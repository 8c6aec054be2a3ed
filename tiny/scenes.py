"""Generated scenes and questions about them, determined by a numpy Generator. Letters use Pillow's built-in font.

python scenes.py FOLDER --seed 20270821 --count 146     writes FOLDER/questions.jsonl and FOLDER/images/
"""

import argparse
import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

SIZE = 96  # pixels per side
SHAPES = ["circle", "square", "triangle", "star", "cross", "ring"]
COLORS = {
    "red": (214, 40, 40),
    "green": (40, 168, 60),
    "blue": (40, 80, 220),
    "yellow": (236, 212, 40),
    "purple": (150, 50, 190),
    "cyan": (50, 205, 215),
}
NAMES = list(COLORS)
LETTERS = ["a", "c", "e", "h", "k", "s", "t", "x"]
NUMBERS = "one two three four".split()
COUNT = "count"  # type excluded from the group "attributes", because the background also gives the answer
FORMS = {
    "color": "what color is the {shape} ?",
    "shape": "what shape is {color} ?",
    COUNT: "how many shapes are there ?",
    "exist": "is there a {color} {shape} ?",
    "letter": "which letter is shown ?",
}
TRAINING_SEEDS = {"encoder": 101, "reader": 102, "joint": 103}
DEVELOPMENT_SEED, HELD_OUT_SEED = 7001, 20270821
FONTS = {size: ImageFont.load_default(size) for size in range(14, 27)}
# number of corners, alternating relative radii, angle of the first corner
POLYGONS = {
    "square": (4, (1.15,), math.pi / 4),
    "triangle": (3, (1.2,), -math.pi / 2),
    "star": (10, (1.25, 0.5), -math.pi / 2),
}


@dataclass(frozen=True)
class Thing:
    """A shape or a letter: name, colour (None for a letter), centre and radius in pixels."""

    name: str
    color: str | None
    x: float
    y: float
    radius: float


@dataclass(frozen=True)
class Scene:
    """A picture and its objects. No two shapes share both colour and shape; objects do not overlap."""

    pixels: np.ndarray  # [96, 96, 3] uint8
    things: tuple[Thing, ...]

    @property
    def shapes(self) -> list[tuple[str, str]]:
        """(colour, shape) of all shapes."""
        return [(thing.color, thing.name) for thing in self.things if thing.color is not None]

    @property
    def letter(self) -> str | None:
        """The letter; None if there is none."""
        return next((thing.name for thing in self.things if thing.color is None), None)


@dataclass(frozen=True)
class Question:
    """A question with its one-word answer; `kind` is a key of FORMS."""

    kind: str
    text: str
    answer: str


def draw(rng: np.random.Generator) -> Scene:
    """Draw one to four shapes and, with probability 0.7, a letter on a muted background, then add noise."""
    image = background(rng)
    canvas = ImageDraw.Draw(image)
    shapes = int(rng.integers(1, 5))
    letter = str(rng.choice(LETTERS)) if rng.random() < 0.7 else None
    occupied: list[tuple[float, float, float]] = []
    things: list[Thing] = []
    for i in range(shapes + (letter is not None)):
        place = _place(rng, occupied, (6, 12) if i < shapes else (8, 11))
        if place is None:
            continue
        x, y, radius = place
        occupied.append((x, y, radius * 1.25 + 1))
        if i < shapes:
            color, name = _new_pair(rng, things)
            fill = tuple(int(v) for v in np.clip(np.array(COLORS[color]) + rng.uniform(-18, 18, 3), 0, 255))
            _draw_shape(canvas, name, fill, place, rng.uniform(-0.25, 0.25))
            things.append(Thing(name, color, *place))
        elif letter is not None:
            fill = (245, 245, 245) if rng.random() < 0.5 else (10, 10, 10)
            font = FONTS[int(np.clip(radius * 2.2, 16, 26))]
            canvas.text((x, y), letter.upper(), fill, font, anchor="mm", stroke_width=1, stroke_fill=fill)
            things.append(Thing(letter, None, *place))
    noisy = np.asarray(image, np.float32) + rng.normal(0, rng.uniform(2, 9), (SIZE, SIZE, 1)).astype(np.float32)
    return Scene(np.clip(noisy, 0, 255).astype(np.uint8), tuple(things))


def background(rng: np.random.Generator) -> Image.Image:
    """Draw a background of muted clouds and lines, without objects."""
    base = rng.uniform(70, 185, 3)
    base = base.mean() + (base - base.mean()) * 0.35  # muted
    coarse = Image.fromarray(rng.integers(0, 256, (7, 7, 3), np.uint8)).resize((SIZE, SIZE), Image.Resampling.BICUBIC)
    clouds = np.asarray(coarse, np.float32) - 128
    grey = clouds.mean(-1, keepdims=True)
    pixels = base + grey * rng.uniform(0.1, 0.35) + (clouds - grey) * rng.uniform(0.05, 0.15)
    image = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
    canvas = ImageDraw.Draw(image)
    for _ in range(rng.integers(0, 7)):  # clutter
        fill = tuple(int(v) for v in np.clip(base + rng.uniform(-45, 45), 0, 255))
        canvas.line(rng.uniform(0, SIZE, 4).tolist(), fill=fill, width=int(rng.integers(1, 3)))
    return image


def _place(
    rng: np.random.Generator, occupied: list[tuple[float, float, float]], radii: tuple[float, float]
) -> tuple[float, float, float] | None:
    """Return x, y, radius of a free place; None after 30 failed attempts."""
    for _ in range(30):
        radius = rng.uniform(*radii)
        margin = radius * 1.25 + 1
        x, y = rng.uniform(margin, SIZE - margin, 2).tolist()
        if all((x - u) ** 2 + (y - v) ** 2 > (margin + other) ** 2 for u, v, other in occupied):
            return x, y, radius
    return None


def _new_pair(rng: np.random.Generator, things: list[Thing]) -> tuple[str, str]:
    while True:
        color, name = NAMES[rng.integers(6)], SHAPES[rng.integers(6)]
        if all((thing.color, thing.name) != (color, name) for thing in things):
            return color, name


def _draw_shape(canvas: ImageDraw.ImageDraw, name: str, fill, place: tuple[float, float, float], turn: float) -> None:
    x, y, r = place
    box = (x - r, y - r, x + r, y + r)
    if name == "circle":
        canvas.ellipse(box, fill=fill)
    elif name == "ring":
        canvas.ellipse(box, outline=fill, width=max(2, int(r * 0.38)))
    elif name == "cross":
        arm = r * 0.36
        canvas.rectangle((x - r, y - arm, x + r, y + arm), fill=fill)
        canvas.rectangle((x - arm, y - r, x + arm, y + r), fill=fill)
    else:
        corners, radii, first = POLYGONS[name]
        angles = [first + turn + 2 * math.pi * i / corners for i in range(corners)]
        out = [r * radii[i % len(radii)] for i in range(corners)]
        canvas.polygon([(x + d * math.cos(a), y + d * math.sin(a)) for d, a in zip(out, angles, strict=True)], fill)


def ask(rng: np.random.Generator, scene: Scene) -> list[Question]:
    """Return one question of every kind that the scene supports, in random order.

    Colour and shape questions need a unique answer. Half of the `exist` questions have the answer yes; the others
    share colour or shape with an object of the scene.
    """
    shapes = scene.shapes
    kinds = [shape for _, shape in shapes]
    colors = [color for color, _ in shapes]
    questions = [Question(COUNT, FORMS[COUNT], NUMBERS[len(shapes) - 1])]
    if single := [pair for pair in shapes if kinds.count(pair[1]) == 1]:
        color, shape = single[rng.integers(len(single))]
        questions.append(Question("color", FORMS["color"].format(shape=shape), color))
    if single := [pair for pair in shapes if colors.count(pair[0]) == 1]:
        color, shape = single[rng.integers(len(single))]
        questions.append(Question("shape", FORMS["shape"].format(color=color), shape))
    present = bool(rng.random() < 0.5)
    color, shape = shapes[rng.integers(len(shapes))] if present else _absent(rng, shapes)
    questions.append(Question("exist", FORMS["exist"].format(color=color, shape=shape), "yes" if present else "no"))
    if scene.letter is not None:
        questions.append(Question("letter", FORMS["letter"], scene.letter))
    return [questions[i] for i in rng.permutation(len(questions))]


def _absent(rng: np.random.Generator, shapes: list[tuple[str, str]]) -> tuple[str, str]:
    while True:
        color, shape = shapes[rng.integers(len(shapes))]
        pair = (color, SHAPES[rng.integers(6)]) if rng.random() < 0.5 else (NAMES[rng.integers(6)], shape)
        if pair not in shapes:
            return pair


def write(folder: Path, seed: int, count: int) -> int:
    """Write `count` scenes as PNG files and their questions as questions.jsonl; return the number of questions."""
    rng = np.random.default_rng(seed)
    (folder / "images").mkdir(parents=True, exist_ok=True)
    lines = []
    for i in range(count):
        scene = draw(rng)
        name = f"scene-{i:03d}"
        Image.fromarray(scene.pixels).save(folder / "images" / f"{name}.png", optimize=True)
        for question in ask(rng, scene):
            fields = {"id": f"{name}-{question.kind}", "image": f"images/{name}.png", "type": question.kind}
            lines.append(json.dumps(fields | {"question": question.text, "answer": question.answer}))
    (folder / "questions.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return len(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Write scenes and questions about them.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=HELD_OUT_SEED)
    parser.add_argument("--count", type=int, default=146)
    options = parser.parse_args()
    print(write(options.folder, options.seed, options.count), "questions")
