"""The folder that a page's examples are run in: a checkout, the reader's own files, and the checkpoints it names."""

import atexit
import json
import os
import shutil
import sys
import tempfile
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from unittest import mock

import pytest
import torch
from huggingface_hub import constants
from PIL import Image

from vtcframe import registry
from vtcframe.assets import bundled
from vtcframe.testing.tiny_models.other_families import BACKBONES

ROOT = Path(__file__).resolve().parents[2]
NOT_OF_A_CHECKOUT = "runs", "site"
COMMIT = "0" * 40
SCENES = Path(bundled("vtcframe:questions"))
TRAINED = "vtcframe:tiny"
CHECKPOINTS = {  # name on the Hub -> what answers to it here: the bundled model, or random weights of a family
    "llava-hf/llava-1.5-7b-hf": TRAINED,
    "Qwen/Qwen2.5-VL-3B-Instruct": "qwen2_5_vl",
    "Qwen/Qwen2.5-VL-7B-Instruct": "qwen2_5_vl",
}


@cache
def home() -> Path:
    """Return the folder that stands for Hugging Face's; it lives as long as this process."""
    folder = Path(tempfile.mkdtemp(prefix="huggingface-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


@cache
def checkpoint(name: str) -> Path:
    """Return the folder of a name on the Hub, as a download leaves it in the cache."""
    repository = home() / "hub" / f"models--{name.replace('/', '--')}"
    snapshot = repository / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    if CHECKPOINTS[name] == TRAINED:
        for file in Path(bundled(TRAINED)).iterdir():
            if file.name != "questions.json":  # it would refuse words that the model was never taught
                (snapshot / file.name).symlink_to(file)
    else:
        model, processor = BACKBONES[CHECKPOINTS[name]]("sdpa")
        if hasattr(tower := model.config.vision_config, "fullatt_block_indexes"):
            tower.fullatt_block_indexes = [1, 2, 3]  # three blocks see a whole picture, as VtcCls wants
        model.save_pretrained(snapshot)
        processor.save_pretrained(snapshot)
    return snapshot


# What a reader is taken to have, made where the page names it


def _checkpoint(path: Path) -> None:
    path.parent.mkdir(parents=True)
    path.symlink_to(checkpoint("llava-hf/llava-1.5-7b-hf"))


def _photo(path: Path) -> None:
    Image.open(SCENES / "images" / "scene-004.png").convert("RGB").save(path)


def _frames(path: Path) -> None:
    path.mkdir()
    for at in range(16):
        frame = Image.new("RGB", (96, 96), "gray")
        frame.paste("red", (5 * at, 30, 5 * at + 20, 60))
        frame.save(path / f"{at:05}.png")


def _questions(path: Path) -> None:
    lines = [json.loads(line) for line in (SCENES / "questions.jsonl").read_text().splitlines()[:8]]
    for line in lines:
        line["image"] = Path(line["image"]).name
        if not (beside := path.parent / line["image"]).exists():
            beside.symlink_to(SCENES / "images" / line["image"])
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def _pope(path: Path) -> None:
    path.mkdir(parents=True)
    for way in ("random", "popular", "adversarial"):
        asked = {"question_id": 1, "image": "1.jpg", "text": "Is there a red circle in the image?", "label": "no"}
        (path / f"coco_pope_{way}.json").write_text(json.dumps(asked) + "\n")


def _val2014(path: Path) -> None:
    path.mkdir(parents=True)
    _photo(path / "1.jpg")


def _configuration(path: Path) -> None:
    _questions(path.with_name("questions.jsonl"))
    path.write_text(
        "model:\n"
        "  backbone: {path: vtcframe:tiny, dtype: float32}\n"
        "  stages:\n"
        "    - {at: projector, pruner: {name: VtcCls, last: 3}, budget: {tokens: 64}}\n"
        "  generation: {max_new_tokens: 4}\n"
        "data: {path: questions.jsonl}\n"
        "trainer: {accelerator: cpu, devices: 1}\n"
        "writer: {folder: runs/mine}\n"
    )


THINGS: dict[str, Callable[[Path], None]] = {
    "path/to/checkpoint": _checkpoint,
    "photo.jpg": _photo,
    "frames/": _frames,
    "images/": lambda path: path.symlink_to(SCENES / "images"),
    "questions.jsonl": _questions,
    "my.yaml": _configuration,
    "pope/output/coco": _pope,
    "coco/val2014": _val2014,
}


class Page:
    """Where a page's examples are run, one after another, and what they have printed so far."""

    def __init__(self, text: str) -> None:
        self.root = Path(tempfile.mkdtemp(prefix="page-")).resolve()
        self.here = self.root  # where `cd` has gone
        self.printed: list[str] = []
        self.installed: list[Path] = []  # what `pip install` put on the path
        for entry in ROOT.iterdir():
            if not entry.name.startswith(".") and entry.name not in NOT_OF_A_CHECKOUT:
                (self.root / entry.name).symlink_to(entry)
        for name in CHECKPOINTS:
            if name in text:
                checkpoint(name)
        for name, make in THINGS.items():
            if name in text and not (self.root / name).exists():
                make(self.root / name)

    @contextmanager
    def entered(self, *path: Path) -> Iterator[None]:
        """Be in its folder, with its checkpoints, its distributions and `path`; leave the process as it was."""
        places = [str(one) for one in (*path, *self.installed)]
        environment = {
            "HF_HOME": str(home()),
            "HF_HUB_CACHE": str(home() / "hub"),
            "HF_HUB_OFFLINE": "1",
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
            "PYTHONPATH": os.pathsep.join([*map(str, self.installed), *filter(None, [os.environ.get("PYTHONPATH")])]),
        }
        threads, modules = torch.get_num_threads(), set(sys.modules)
        with pytest.MonkeyPatch.context() as patch, mock.patch.dict(os.environ, environment):
            patch.chdir(self.here)
            patch.setattr(constants, "HF_HUB_CACHE", environment["HF_HUB_CACHE"])
            patch.setattr(sys, "path", [*places, *sys.path])
            registry._scan.cache_clear()
            try:
                with torch.random.fork_rng(devices=[]):
                    yield
            finally:
                torch.set_num_threads(threads)
                for name in set(sys.modules) - modules:
                    if str(getattr(sys.modules[name], "__file__", None)).startswith((str(self.root), *places)):
                        del sys.modules[name]
        registry._scan.cache_clear()

    def write(self, name: str, text: str) -> None:
        """Give the reader a file, in place of a link to one of the checkout."""
        path = self.here / name
        if not path.parent.resolve().is_relative_to(self.root):
            raise ValueError(f"{name} would be written into the checkout: give it another folder")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        path.write_text(text)

    def install(self, folder: Path) -> None:
        """Install a distribution as pip does an editable one: its metadata on the path, and its source."""
        project = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
        try:
            distribution(project["name"])
        except PackageNotFoundError:
            metadata = self.root / ".installed" / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
            metadata.mkdir(parents=True)
            head = f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
            (metadata / "METADATA").write_text(head)
            points = [
                f"[{group}]\n" + "".join(f"{name} = {target}\n" for name, target in own.items())
                for group, own in project.get("entry-points", {}).items()
            ]
            (metadata / "entry_points.txt").write_text("\n".join(points))
            source = folder / "src" if (folder / "src").is_dir() else folder
            self.installed += [metadata.parent, source]

    def close(self) -> None:
        """Remove the folder."""
        shutil.rmtree(self.root)
