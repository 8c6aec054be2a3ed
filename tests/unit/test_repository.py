"""What a stranger gets: wheels that install, pinned versions without addresses, no paths of one machine."""

import ast
import re
import subprocess
import tomllib
import zipfile
from pathlib import Path

import pytest

from support.distributions import PROJECTS, ROOT

LONGEST = 350  # lines of a file
CHECKED_FOLDERS = ["vtcframe", "plugins", "tests", "perf", "tiny", "docs"]


def python_files(folder):
    return [path for path in sorted((ROOT / folder).rglob("*.py")) if "__pycache__" not in path.parts]


@pytest.mark.slow
def test_wheels_install_into_a_fresh_environment_and_work(installed):
    code = (
        "import vtcframe, vtcframe.registry as r\n"
        "print(vtcframe.__file__)\n"
        "assert 'environment' in vtcframe.__file__\n"
        "assert {e.name for e in r.entries()} >= {'VtcCls', 'Llava', 'LlavaNext'}\n"
        "from vtcframe.testing import make_inputs, tiny_llava\n"
        "from vtcframe.testing.tiny_models.llava_families import SAMPLES\n"
        "model, processor = tiny_llava()\n"
        "inputs = make_inputs(processor, SAMPLES['one'])\n"
        "compressed = vtcframe.compress(model, vtcframe.VtcCls(2), tokens=3)\n"
        "compressed.generate(**inputs, max_new_tokens=2, do_sample=False)\n"
        "print(compressed.last.tokens_after.tolist())\n"
    )
    out = installed.run("-W", "error::UserWarning", "-c", code).stdout
    assert out.splitlines()[-1] == "[3]"


def test_wheels_carry_types_licence_and_assets_and_no_tests(wheels):
    names = [name for wheel in wheels for name in zipfile.ZipFile(wheel).namelist()]
    assert "vtcframe/py.typed" in names
    assert "vtcframe/__init__.pyi" in names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert any(name.startswith("vtcframe/assets/tiny/") for name in names)
    assert not any(name.startswith("tests/") for name in names)


def test_pinned_versions_hold_no_addresses_and_cover_what_we_ask_for():
    text = (ROOT / "constraints.txt").read_text()
    assert "://" not in text
    pinned = {line.partition("==")[0] for line in text.splitlines() if "==" in line}
    for project in PROJECTS:
        for requirement in tomllib.loads((project / "pyproject.toml").read_text())["project"]["dependencies"]:
            name = re.split(r"[\[><=~ ]", requirement)[0].lower().replace("_", "-")
            assert name in pinned or name == "vtcframe", requirement


def test_ci_and_readme_name_the_same_two_commands():
    readme, ci = (ROOT / "README.md").read_text(), (ROOT / ".ci/run").read_text()
    for command in ("python3 dev.py demo", "python3 dev.py test"):
        assert command in readme
        assert command in ci


def test_no_tracked_file_names_one_machines_paths_or_locks_addresses():
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if tracked.returncode:
        pytest.skip("not a git checkout")
    for name in tracked.stdout.splitlines():
        assert Path(name).name not in ("uv.lock", "pylock.toml")
        path = ROOT / name
        if path.suffix in (".py", ".md", ".toml", ".yml", ".yaml", ".txt", ".json", ".jsonl", ".cff") and path.exists():
            assert not re.search(r"(?<![\w.])/(work|root|farm|home)/", path.read_text()), name


def test_no_test_module_imports_another_one():
    files = python_files("tests")
    modules = {path.stem for path in files if path.stem.startswith("test_") or path.stem == "conftest"}
    assert len(modules) > 50
    wrong = []
    for path in files:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
            if isinstance(node, ast.ImportFrom):
                names = [f"{node.module or ''}.{name}" for name in names]
            for name in names:
                if modules & set(name.split(".")) or name.split(".")[0] == "tests":
                    wrong.append(
                        f"{path.relative_to(ROOT)}:{node.lineno} imports {name}; put what is shared into tests/support"
                    )
    assert not wrong, "\n".join(wrong)


def test_no_file_is_too_long_to_be_read_at_once():
    lengths = {
        path.relative_to(ROOT): len(path.read_text(encoding="utf-8").splitlines())
        for folder in CHECKED_FOLDERS
        for path in python_files(folder)
    }
    assert lengths
    long = [f"{path} has {count} lines" for path, count in lengths.items() if count > LONGEST]
    assert not long, f"more than {LONGEST} lines, split them along their themes: {'; '.join(long)}"
