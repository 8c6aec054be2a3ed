"""The import direction of the packages, and no cycles: `[tool.importlinter]` of pyproject.toml, held by import-linter."""

from importlinter import cli

from support.distributions import ROOT


def test_imports_run_downward_without_cycles_and_the_library_needs_no_lightning(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    status = cli.lint_imports(no_cache=True)
    assert status == cli.EXIT_STATUS_SUCCESS, capsys.readouterr().out
