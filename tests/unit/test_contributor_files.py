"""What a contributor meets: workflows, issue forms, changelog fragments, the map of the tree, the project's address."""

import re
import runpy
import sys
import tomllib
from collections import Counter
from pathlib import Path

import pytest
import yaml

ROOT = next(folder for folder in Path(__file__).resolve().parents if (folder / "dev.py").is_file())
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))
FORMS = sorted(set((ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml")) - {ROOT / ".github/ISSUE_TEMPLATE/config.yml"})
INPUTS = {"checkboxes", "dropdown", "input", "textarea"}  # of an issue form, beside markdown
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "RELEASING.md", "SECURITY.md", "changes/README.md")]
COMMANDS = [ROOT / ".ci/run", ROOT / ".pre-commit-config.yaml", ROOT / ".github/PULL_REQUEST_TEMPLATE.md", *PAGES]


def stem(path):
    return path.stem


def load(path):
    return yaml.safe_load(path.read_text())


def steps_of(workflow):
    return [step for job in workflow["jobs"].values() for step in job["steps"]]


def run_dev(monkeypatch, *arguments):
    """Call dev.py without setting anything up, and return the commands that it would run."""
    main, commands = runpy.run_path(str(ROOT / "dev.py"), run_name="dev")["main"], []
    stubs = {"setup": lambda *groups: None, "run": lambda *command, **environment: commands.append(command)}
    for name, stub in stubs.items():
        monkeypatch.setitem(main.__globals__, name, stub)
    monkeypatch.setattr(sys, "argv", ["dev.py", *arguments])
    main()
    return commands


# Workflows


def test_there_are_workflows_for_tests_docs_and_build():
    assert [path.stem for path in WORKFLOWS] == ["build", "docs", "tests"]


@pytest.mark.parametrize("path", WORKFLOWS, ids=stem)
def test_a_workflow_has_few_rights_ends_in_time_and_pins_its_actions(path):
    workflow = load(path)
    assert workflow["permissions"] == {"contents": "read"}
    assert workflow["concurrency"]["group"]
    for job in workflow["jobs"].values():
        assert job["timeout-minutes"]
        assert "permissions" not in job
    for step in steps_of(workflow):
        if "uses" in step and not step["uses"].startswith("./"):
            assert re.fullmatch(r"actions/[\w-]+@v\d+", step["uses"]), step
        if step.get("uses", "").startswith("./"):
            assert (ROOT / step["uses"] / "action.yml").is_file()
        assert step.get("run", "python3 dev.py").startswith("python3 dev.py"), step


@pytest.mark.parametrize("path", [*WORKFLOWS, *COMMANDS], ids=lambda path: path.name)
def test_every_command_of_dev_that_is_named_exists(path, monkeypatch):
    for command in sorted(set(re.findall(r"python3 dev\.py ([a-z]\w*)", path.read_text()))):
        run_dev(monkeypatch, command)


def test_a_command_that_dev_does_not_have_is_refused(monkeypatch):
    with pytest.raises(SystemExit, match=re.escape("python3 dev.py demo")):
        run_dev(monkeypatch, "tests")


def test_tests_run_on_the_oldest_supported_versions():
    jobs = load(ROOT / ".github/workflows/tests.yml")["jobs"]
    pythons = jobs["python"]["strategy"]["matrix"]["python"]
    assert f">={pythons[0]}" == PROJECT["project"]["requires-python"]
    assert pythons == ["3.11", "3.12", "3.13"]
    oldest, newest = (entry["requirement"] for entry in jobs["transformers"]["strategy"]["matrix"]["include"])
    (bound,) = [line for line in PROJECT["project"]["dependencies"] if line.startswith("transformers>=")]
    assert oldest.removesuffix(".0") == bound.replace(">=", "==")
    assert newest.split()[-1] == "transformers"
    assert oldest in (ROOT / "CONTRIBUTING.md").read_text()


def test_setup_hands_requirements_on_and_build_tries_the_wheels(monkeypatch):
    (command,) = run_dev(monkeypatch, "setup", "transformers==5.18.0")
    assert command[1:3] == ("pip", "install")
    assert command[-1] == "transformers==5.18.0"
    commands = [" ".join(map(str, command)) for command in run_dev(monkeypatch, "build")]
    assert any("build" in command and "--all-packages" in command for command in commands)
    assert any(".ci/try_installed.py" in command for command in commands)


# Issue forms


def test_there_is_a_form_for_each_kind_of_issue():
    assert [path.stem for path in FORMS] == ["bug", "feature", "method", "model"]


@pytest.mark.parametrize("path", FORMS, ids=stem)
def test_an_issue_form_has_the_required_keys(path):
    form = load(path)
    assert {"name", "description", "body"} <= set(form) <= {"name", "description", "labels", "title", "body"}
    assert {element["type"] for element in form["body"]} <= INPUTS | {"markdown"}
    fields = [element for element in form["body"] if element["type"] in INPUTS]
    assert max(Counter(field["id"] for field in fields).values()) == 1
    for field in fields:
        assert re.fullmatch(r"[\w-]+", field["id"])
        assert field["attributes"]["label"]
        options = field["attributes"].get("options", ())
        assert bool(options) == (field["type"] in ("checkboxes", "dropdown"))
        assert all(isinstance(option, dict) == (field["type"] == "checkboxes") for option in options)
    assert any(field.get("validations", {}).get("required") for field in fields)


def test_links_beside_the_forms_have_the_required_keys():
    links = load(ROOT / ".github/ISSUE_TEMPLATE/config.yml")["contact_links"]
    assert [set(link) for link in links] == [{"name", "url", "about"}] * len(links)


# The project's address


@pytest.fixture(scope="module")
def project_url():
    """The names of .ci/project_url.py."""
    return runpy.run_path(str(ROOT / ".ci/project_url.py"))


def test_the_address_is_written_in_the_listed_places_and_nowhere_else(project_url):
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    assert project_url["find_places"]() == project_url["PLACES"]


def test_one_command_changes_the_address_in_every_place(project_url, tmp_path):
    for name in project_url["PLACES"]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    before, after = project_url["current_address"](), "https://host.example/owner/name"
    project_url["fill"](after, tmp_path)
    assert project_url["current_address"](tmp_path) == after
    for name, count in project_url["PLACES"].items():
        text = (tmp_path / name).read_text()
        assert text.count(after) == count
        assert before not in text


@pytest.mark.parametrize("address", ["vtcframe", "http://host/owner/name", "https://host", "https://host/owner/name/"])
def test_what_is_no_address_of_a_repository_is_refused(project_url, tmp_path, address):
    with pytest.raises(ValueError, match=re.escape(repr(address))):
        project_url["fill"](address, tmp_path)


# The changelog


def test_fragments_are_named_as_towncrier_collects_them():
    settings = PROJECT["tool"]["towncrier"]
    types = [kind["directory"] for kind in settings["type"]]
    folder = ROOT / settings["directory"]
    names = [path.name for path in folder.iterdir() if path.name != "README.md"]
    assert [name for name in names if not re.fullmatch(rf"(\d+|\+[\w-]+)\.({'|'.join(types)})(\.\d+)?\.md", name)] == []
    assert re.findall(r"^\| `(\w+)`", (folder / "README.md").read_text(), re.MULTILINE) == types


def test_the_changelog_has_one_place_for_released_fragments():
    marker = PROJECT["tool"]["towncrier"]["start_string"]
    assert (ROOT / "CHANGELOG.md").read_text().count(marker) == 1


# The map of the tree


@pytest.mark.skipif(
    not all((ROOT / folder).is_dir() for folder in ("vtcframe/core", "tests/laws", "perf")),
    reason="the files are not yet where the map says",
)
def test_files_and_laws_that_contributing_names_exist():
    import vtcframe.testing

    text = re.sub(r"(?ms)^```.*?^```", "", (ROOT / "CONTRIBUTING.md").read_text())
    named = re.findall(r"`((?:vtcframe|plugins|tests|docs|perf|tiny|changes|\.github|\.ci)/[^`\s]*)`", text)
    placeholders = ("NAME", "ISSUE", "41.added")
    paths = [path for path in named if not any(word in path for word in placeholders)]
    assert len(paths) > 40
    assert [path for path in paths if not (ROOT / path).exists()] == []
    laws = set(re.findall(r"\bcheck_\w+", text))
    assert laws <= set(vtcframe.testing.__all__)
