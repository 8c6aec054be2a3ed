"""What a page shows is checked: each kind of mistake in a small page fails, and what is right passes."""

import json
import os
import sys

import pytest
import torch
from sybil import Sybil

from support import page_commands
from support.page_commands import NOT_RUN, commands_of_dev
from support.page_examples import close, commands, parse, pattern, steady
from support.page_folder import CHECKPOINTS, ROOT, THINGS, Page
from vtcframe.registry import entries

WHOLE = """\
model:
  backbone: {path: llava-hf/llava-1.5-7b-hf, dtype: bfloat16}
  stages: [{at: projector, pruner: {name: VtcCls, last: 3}, budget: {tokens: 64}}]
data: {path: questions.jsonl, images: images/}
writer: {folder: runs/a}
"""
TABLE = """\
method  budget  seconds  all
VtcCls     0.5   0.0151  0.9
"""
SCRIPT = """\
if __name__ == "__main__":
    with open("questions.jsonl") as file:
        assert file.read().count("photo.jpg") == 1
    print("that is all")
"""
PROJECT = """\
[project]
name = "corners"
version = "1.2"

[project.entry-points.vtcframe]
corners = "corners"
"""
CORNERS = """\
from dataclasses import dataclass

from vtcframe import Scorer
from vtcframe.registry import hookimpl


@dataclass(frozen=True)
class Corners(Scorer):
    def __call__(self, evidence):
        return (evidence.layout.centre - 0.5).norm(dim=-1)[None]


@hookimpl
def vtcframe_components():
    return {"scorer": ["corners:Corners"]}
"""
PIPELINE = "{name: Pipeline, scorers: [Corners], ensembler: Mean, allocator: Even, selector: TopK}"
LIST = "$ vtcframe list\nkind       name                distribution        version  status\n"


@pytest.fixture
def page(tmp_path):
    """Check the blocks of a page, given as (what stands behind the fence, text)."""
    namespaces = []

    def checked(*blocks):
        file = tmp_path / "page.md"
        file.write_text("\n".join(f"```{info}\n{text.rstrip()}\n```\n" for info, text in blocks))
        document = Sybil([parse]).parse(file)
        namespaces.append(document.namespace)
        examples = list(document.examples())
        assert len(examples) == len(blocks)
        for example in examples:
            example.evaluate()
        return document.namespace["_page"]

    yield checked
    for namespace in namespaces:
        close(namespace)


@pytest.mark.parametrize(
    ("info", "text"),
    [
        ("console", LIST + "..."),
        ("console", "$ vtcframe list    # all of it"),
        ("console", "$ vtcframe lits\nvtcframe: error: no command is called 'lits'. Did you mean list?"),
        ("console", "$ cd images/\n$ ls *-000.png    # one of them\nscene-000.png"),
        ("console", "$ echo a \\\n    b\na b"),
        ("console", "$ vtcframe list | grep -c VtcCls\n1"),
        ("console", "$ python3 dev.py test -m matrix\n$ python3 dev.py bench methods"),
        ("console", "$ pip install 'vtcframe[report]'\n$ python -m pip install --quiet vtcframe-backbones torch"),
        ("console", "$ torchrun --nproc-per-node=8 -m vtcframe predict --config my.yaml --trainer.devices=8"),
        ("console", "$ vtcframe bench --model path/to/checkpoint --pruner VtcCls '{name: FastV, layer: 2}'"),
        ("console", "$ vtcframe bench --threads 1\n$ torchrun --nproc-per-node=2 -m vtcframe check --dtype bfloat16 a"),
        ("console", "$ python ray_predict.py questions.jsonl predictions.jsonl --actors 32 --gpus 1"),
        (
            "console",
            "$ vtcframe explain --model path/to/checkpoint --image photo.jpg --question 'is it a cat ?' --tokens 9",
        ),
        ("yaml", WHOLE),
        ("yaml", "  compare:\n    pruners: [VtcCls]\n    budgets: [{ratio: 0.25}]"),
        ("yaml", "trainer: {accelerator: gpu, devices: auto, precision: bf16-true}"),
        ("yaml", "models: {a: {path: Qwen/Qwen2.5-VL-7B-Instruct}}\ndata: {b: {path: b}}\nbudgets: [{ratio: 0.1}]"),
        ("yaml", "seeds: [0, 1]"),
        ("yaml", "{name: VtcCls, last: 3}"),
        ('yaml title="a.yaml"', "task: a"),
        ("toml", '[a]\nb = "c"'),
        ("json", '{"a": 1}'),
        ("jsonl", '{"a": 1}\n{"a": 2}'),
        ("bash", "#!/bin/bash\n#SBATCH --nodes=4\nsrun vtcframe predict --config my.yaml --trainer.num_nodes=4"),
        ("py", (ROOT / "docs" / "examples" / "ray_predict.py").read_text()),
        ("py", '--8<-- "docs/examples/ray_predict.py"'),
        ("text", "vtcframe/\n  cli.py  pipeline.py    two files\n  methods/    and a folder\n  type_*.py"),
        ("python", "a = 1"),
    ],
)
def test_what_is_right_passes(page, info, text):
    page((info, text))


@pytest.mark.parametrize(
    ("info", "text", "words"),
    [
        ("console", LIST + "adapter    Gemma4 ...", "but the page shows"),
        ("console", "$ vtcframe list --all", "takes no arguments"),
        ("console", "$ vtcframe explain --image photo.jpg --question 'how many shapes are there ?'\n...", "--tokens"),
        ("console", "$ ls nowhere", "exit status 2"),
        ("console", "$ no-such-command", "exit status 127"),
        ("console", "$ python -c 'raise SystemExit(3)'\nwell", "exit status 3"),
        ("console", "$ echo 'Traceback (most recent call last)'", "exit status 0"),
        ("console", "$ cd nowhere", "there is no folder nowhere"),
        ("console", "vtcframe list", "is no command"),
        ("console", "$ python3 dev.py demo --model.runs=3", "model.runs"),
        ("console", "$ python3 dev.py setup\n$ python3 dev.py fly", "dev.py demo"),
        ("console", "$ python3 dev.py bench --help\nusage", "nothing can be shown below it"),
        ("console", "$ pip install 'vtcframe[reports]'", "has no extra reports"),
        ("console", "$ pip install vtcframe-no-such-thing", "none that is installed"),
        ("console", "$ torchrun --nproc-per-nodes=8 -m vtcframe predict --config my.yaml", "nproc-per-nodes"),
        ("console", "$ torchrun --nproc-per-node=8 -m vtcframe predict --config my.yaml --trainer.device=8", "device"),
        ("console", "$ vtcframe bench --shapes all", "--shapes"),
        ("console", "$ vtcframe bench --pruner VtcClss", "Did you mean VtcCls"),
        ("console", "$ python ray_predict.py questions.jsonl predictions.jsonl --gpu 1", "no option --gpu"),
        ("console", "$ sbatch job.sh", "there is no job.sh"),
        ("yaml", WHOLE.replace("stages", "stage"), "stage"),
        ("yaml", WHOLE.replace("tokens", "token"), "token"),
        ("yaml", WHOLE.replace("last: 3", "last: 30"), "needs a block beyond"),
        ("yaml", WHOLE.replace("images/", "pictures/"), "pictures"),
        ("yaml", WHOLE.replace("llava-1.5", "llava-1.6"), "cannot be loaded"),
        ("yaml", WHOLE.replace("data:", "date:"), "date"),
        ("yaml", "  compare:\n    pruner: [VtcCls]\n    budgets: [{ratio: 0.25}]", "pruner"),
        ("yaml", "trainer: {accelerator: gpu, precision: bf17}", "bf17"),
        ("yaml", "seeds: [one]", "seeds"),
        ("yaml", "models: {a: {path: nobody/none}}", "offline mode"),
        ("yaml", "{name: VtcCls, lats: 3}", "lats"),
        ("yaml", "a: [", "expected"),
        ("yaml", "task: a", "is a file"),
        ("yaml", "words", "is no configuration"),
        ("python", "raise SystemExit('enough')", "enough"),
        ("toml", "a = ", "Invalid"),
        ("json", "{'a': 1}", "double quotes"),
        ("jsonl", '{"a": 1}\n{"a"', "Expecting"),
        ("bash", "if true; then", "syntax error"),
        ("bash", "srun vtcframe predict --config my.yaml --trainer.nodes=4", "nodes"),
        ("py", "import ray", "no file of docs/examples"),
        ("text", "written to star.png", "nothing on this page has printed this"),
        ("text", "vtcframe/\n  cores.py    the nouns", "there is no cores.py"),
        ("text", "vtcframe/\n  pluggins/", "there is no pluggins"),
        ("fortran", "a = 1", "'fortran' is no language of"),
        ("", "a = 1", "'' is no language of"),
    ],
)
def test_what_is_wrong_fails_and_says_why(page, info, text, words):
    with pytest.raises(AssertionError, match=r"page\.md, line 1") as error:
        page((info, text))
    assert words in str(error.value)


def test_python_that_raises_fails_with_its_own_exception(page):
    with pytest.raises(ZeroDivisionError):
        page(("python", "1 / 0"))


def test_python_goes_on_where_the_block_before_it_ended_and_what_it_prints_can_be_shown(page):
    page(("python", "a = 41"), ("python", "print(a + 1, 'is it')"), ("text", "42 is it"))


def test_a_titled_block_is_a_file_that_commands_and_scripts_find(page):
    asked = {"id": "1", "image": "photo.jpg", "question": "how many shapes are there ?", "answer": "two"}
    mine = WHOLE.replace(", images: images/", "").replace("runs/a", "runs/b")
    found = page(
        ('json title="questions.jsonl"', json.dumps(asked)),
        ('yaml title="mine/my.yaml"', mine),
        (
            'python title="count.py"',
            SCRIPT,
        ),
        (
            "console",
            "$ vtcframe predict --config mine/my.yaml\n...\nwritten to runs/b/...\n$ python count.py\nthat is all",
        ),
        ("console", "$ vtcframe predict --config mine/my.yaml --generation.max_new_tokens=3\n...error...generation..."),
    )
    assert len((found.root / "runs/b/predictions.jsonl").read_text().splitlines()) == 1
    assert not (ROOT / "runs" / "b").exists()


def test_the_folder_of_a_page_is_gone_behind_its_last_example():
    found = Page("photo.jpg")
    assert (found.root / "photo.jpg").exists()
    close({"_page": found})
    close({})
    assert not found.root.exists()


def test_a_file_of_the_checkout_is_never_written_to(page):
    before = (ROOT / "README.md").read_text()
    found = page(('json title="README.md"', "{}"))
    assert (found.root / "README.md").read_text() == "{}\n"
    assert (ROOT / "README.md").read_text() == before
    with pytest.raises(AssertionError, match="into the checkout"):
        page(('json title="docs/nowhere/a.json"', "{}"))
    assert not (ROOT / "docs" / "nowhere").exists()


def test_a_readers_own_distribution_is_there_from_its_installation_to_the_end_of_the_page(page):
    explain = f'vtcframe explain --image photo.jpg --question "how many shapes are there ?" --pruner "{PIPELINE}"'
    found = page(
        ('toml title="corners/pyproject.toml"', PROJECT),
        ('python title="corners/corners.py"', CORNERS),
        ("console", "$ vtcframe list | grep -c Corners || true\n0"),
        ("console", "$ pip install --editable corners"),
        ("console", "$ vtcframe list\n...\nscorer  Corners  corners  1.2  ok\n..."),
        ("console", "$ vtcframe list | grep Corners\nscorer  Corners  corners  1.2  ok"),
        ("console", f"$ {explain} --tokens 9\n...\npruned  9 visual tokens ..."),
        ("yaml", f"  stages: [{{at: projector, pruner: {PIPELINE}, budget: {{tokens: 4}}}}]"),
        ("python", "from corners import Corners\nassert Corners().needs == ()"),
        (
            "python",
            "from vtcframe.registry import find_entry\nassert find_entry('scorer', 'Corners').load() is not Corners",
        ),
    )
    assert found.installed
    assert "corners" not in sys.modules
    assert "Corners" not in {entry.name for entry in entries()}


def test_an_example_leaves_the_process_as_it_was(page):
    threads, environment, path, folder = torch.get_num_threads(), dict(os.environ), list(sys.path), os.getcwd()
    page(
        ("python", "import os, sys, torch\ntorch.set_num_threads(2)\nos.chdir('..')\nos.environ['A'] = 'b'"),
        ("python", "sys.path.append('/nowhere')\nassert os.environ['HF_HUB_CACHE'] and 'A' not in os.environ"),
        ("console", "$ vtcframe predict --config my.yaml"),
    )
    assert (torch.get_num_threads(), dict(os.environ), list(sys.path), os.getcwd()) == (
        threads,
        environment,
        path,
        folder,
    )


def test_a_configuration_of_ours_is_run_once_for_all_pages_and_each_gets_what_it_wrote(page, monkeypatch):
    ran = []

    def main(arguments):
        ran.append(arguments)
        os.makedirs("runs/pope")
        print("answered")

    monkeypatch.setattr(page_commands.cli, "main", main)
    page_commands.answered.cache_clear()
    asked = ("console", "$ vtcframe predict --config configs/pope.yaml\nanswered\n$ ls runs\npope")
    page(asked)
    page(asked)
    page_commands.answered.cache_clear()
    assert ran == [["predict", "--config", "configs/pope.yaml"]]


def test_the_demo_is_what_dev_py_runs():
    assert [command[1:] for command in commands_of_dev(["demo", "--data.limit=1"])] == [
        ("-m", "vtcframe", "predict", "--config", "configs/quickstart.yaml", "--data.limit=1")
    ]


@pytest.mark.parametrize("table", [NOT_RUN, CHECKPOINTS, THINGS], ids=["not run", "checkpoints", "things"])
def test_no_page_lacks_what_is_kept_for_it(table):
    text = "\n".join(path.read_text() for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
    assert [name for name in table if name not in text] == []


def test_a_command_is_not_run_only_where_all_its_first_words_are_in_the_table():
    assert page_commands.not_run("python3 dev.py test -m matrix".split())
    assert not page_commands.not_run("python3 dev.py demo".split())
    assert not page_commands.not_run("vtcframe benches".split())


def test_figures_are_compared_and_seconds_and_widths_of_columns_are_not():
    wide = TABLE.replace("method  ", "method      ").replace("VtcCls  ", "VtcCls      ")
    assert pattern(TABLE).fullmatch(steady(wide.replace("0.0151", "9.1000")))
    assert not pattern(TABLE).fullmatch(steady(wide.replace("0.9", "0.8")))
    assert not pattern(TABLE).fullmatch(steady(wide.replace("0.5", "0.6")))
    assert not pattern(TABLE).fullmatch(steady(TABLE.replace("seconds", "minutes")))
    assert pattern("a...\nd").fullmatch("a b\nc\nd")
    assert not pattern("a.b").fullmatch("acb")


def test_commands_are_told_from_what_they_print():
    text = "$ a \\\n    --b   # c\n\n$ d\n\ne\n\n  f\n$ g"
    assert list(commands(text)) == [("a --b   # c", ""), ("d", "e\n\n  f"), ("g", "")]
